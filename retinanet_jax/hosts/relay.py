"""A relay of connections, which hides from jax that the other end is gone.

jax's client aborts the process with a stack dump of C++ at the moment at which its connection to
process 0 breaks; its callback for that case cannot be used from Python (`std::bad_cast` with jax
0.10 and 0.12). Behind a relay the connection stays open, and this package ends the process itself,
with one line.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

CHUNK = 1 << 16  # bytes
RETRY_SECONDS = 10.0  # for one connection to the other end; jax's client connects again


class Relay:
    """Accepts connections at a port of this machine, and forwards their bytes to another address.

    Args:
        address: HOST:PORT of the other end.
        on_loss: Called, in a thread, when the other end has ended a connection that has worked.

    Attributes:
        address: HOST:PORT of this end.
    """

    def __init__(self, address: str, on_loss: Callable[[], None]) -> None:
        host, _, port = address.rpartition(":")
        self._target, self._on_loss = (host.strip("[]"), int(port)), on_loss
        self._server = socket.create_server(("localhost", 0))
        self.address = f"localhost:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            threading.Thread(target=self._connect, args=[near], daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        """Forward one connection, in both directions."""
        try:
            far = socket.create_connection(self._target, RETRY_SECONDS)
        except OSError:  # it has not started yet
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=forward, args=[near, far], daemon=True).start()
        if forward(far, near):
            self._on_loss()  # and `near` stays open
        else:
            near.close()


def forward(source: socket.socket, target: socket.socket) -> bool:
    """Forward bytes until an end closes, and return whether any were forwarded."""
    has_worked = False
    with contextlib.suppress(OSError):
        while content := source.recv(CHUNK):
            target.sendall(content)
            has_worked = True
    return has_worked
