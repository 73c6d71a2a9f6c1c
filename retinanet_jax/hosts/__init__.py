"""The processes of a run on many hosts: their common texts, and how they stop and end together.

A process is called a host here, as on TPUs, where each host runs one.
"""

from retinanet_jax.hosts.hosts import Hosts
from retinanet_jax.hosts.joining import join, joined
from retinanet_jax.hosts.store import JaxStore, Store

__all__ = ["Hosts", "JaxStore", "Store", "join", "joined"]
