"""Joining the other hosts of a run."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from retinanet_jax.hosts.hosts import Hosts
from retinanet_jax.hosts.relay import Relay
from retinanet_jax.hosts.store import JaxStore
from retinanet_jax.utils.ending import in_seconds, leave, print_message
from retinanet_jax.utils.progress import one_line

JOIN_SECONDS = 300  # that a host waits for the others to start
# jax would then abort the process with a stack dump of C++. This package ends it earlier.
JAX_EXTRA_SECONDS = 60
# jax would abort all processes if one is silent, with a stack dump of C++. `Hosts` notices
# it earlier, and ends all in one line.
JAX_HEARTBEAT_SECONDS = 24 * 3600

_joined: Hosts | None = None


def joined() -> Hosts | None:
    """Return the hosts that this process has joined; None if it is the only one of its run."""
    return _joined


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: float,
) -> None:
    """Connect this process to the others of a run, before jax initializes its devices.

    Args:
        coordinator_address: HOST:PORT of process 0; None where the cluster provides it.
        num_processes: The number of processes; None where the cluster provides it.
        process_id: The index of this process, from 0; None where the cluster provides it.
        timeout: A host of which nothing was heard for this many seconds is lost.

    Raises:
        RuntimeError: If the other processes cannot be joined.
        ValueError: If there are no others, or an argument is missing.
    """
    import jax  # here, because `retinanet-jax --help` does not need it

    global _joined
    # jax would catch SIGTERM in C++, in place of `Stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    with _relayed_client(), _time_limit():
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS + JAX_EXTRA_SECONDS,
            heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
        )
        count = _process_count()  # it waits without an end if process 0 has ended
    if count > 1:
        _joined = Hosts(JaxStore(), jax.process_index(), count, timeout)
        _joined.start()


def _process_count() -> int:
    """Return the number of processes, after all have exchanged which devices they have.

    If one of them has ended since it joined, or this one has no devices, it ends in one line.
    """
    import jax

    try:
        return jax.process_count()
    except RuntimeError as error:
        print_message(
            "error: --distributed: another process has ended while all were starting, or this one "
            f"has no devices ({one_line(error)}); see the output of each, and start all again."
        )
        leave(1)  # jax would wait for that process for minutes, and then end with a stack dump


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """End the process in one line if the `with` statement takes longer than JOIN_SECONDS."""

    def end() -> None:
        if not has_joined.is_set():
            print_message(
                f"error: --distributed: not all processes have joined within {JOIN_SECONDS} s; "
                "start all of them with the same --coordinator_address and --num_processes, "
                "and see the output of each."
            )
            leave(1)

    has_joined = threading.Event()
    in_seconds(JOIN_SECONDS, end)
    try:
        yield
    finally:
        has_joined.set()


@contextlib.contextmanager
def _relayed_client() -> Iterator[None]:
    """Let jax's client connect to process 0 through a `Relay`, inside a `with` statement."""
    # Nothing public creates the client.
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    create = _jax.get_distributed_runtime_client

    def lose_store() -> None:
        if _joined:
            _joined.lose_store()

    def create_relayed(address: str, node_id: int, **options: Any) -> Any:
        if node_id:
            address = Relay(address, lose_store).address
        return create(address, node_id, **options)

    _jax.get_distributed_runtime_client = create_relayed
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = create
