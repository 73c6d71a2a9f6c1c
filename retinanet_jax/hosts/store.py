"""The texts that all processes of a run can read and write."""

from typing import Any, Protocol


class Store(Protocol):
    """Texts that all processes of a run can read and write, by key.

    An error of the connection to the process that holds them is a RuntimeError.
    """

    def set(self, key: str, value: str) -> None:
        """Store a text, in place of an earlier one."""
        ...

    def read(self, prefix: str) -> dict[str, str]:
        """Return the stored texts with keys that begin with `prefix/`, by the rest of the key."""
        ...

    def wait_for(self, key: str, seconds: float) -> str:
        """Return a text, after waiting until it is stored; RuntimeError after `seconds`."""
        ...


class JaxStore:
    """The store that jax itself uses to connect the processes; process 0 holds it."""

    def __init__(self) -> None:
        # jax has no public access to it. jax 0.4 to 0.12 have this one.
        from jax._src import distributed

        self._client: Any = distributed.global_state.client

    def set(self, key: str, value: str) -> None:
        """Store a text; see `Store`."""
        self._client.key_value_set(f"retinanet_jax/{key}", value, allow_overwrite=True)

    def read(self, prefix: str) -> dict[str, str]:
        """Return the stored texts of a prefix; see `Store`."""
        folder = f"retinanet_jax/{prefix}/"
        entries = self._client.key_value_dir_get(folder)
        return {key.removeprefix(folder): value for key, value in entries}

    def wait_for(self, key: str, seconds: float) -> str:
        """Wait for a text; see `Store`."""
        return self._client.blocking_key_value_get(f"retinanet_jax/{key}", int(seconds * 1000))
