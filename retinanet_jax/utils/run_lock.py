"""The lock of a working directory: only one run at a time may write to it.

The file NAME contains the process, its host and its start. On a local disk, and on shared ones that
support it, the operating system locks the file, too, and unlocks it however the process ends. On
others a run shows that it is alive by changing the file every few seconds.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
from typing import IO, Any

from retinanet_jax.utils.files import errors_name
from retinanet_jax.utils.paths import is_remote
from retinanet_jax.utils.remote import remote_errors

NAME = "run.lock"
BEAT_SECONDS = 10  # between two changes of the file
DEAD_SECONDS = 60  # a run that has not changed its file for so long has ended


class RunLock:
    """Holds the lock of a working directory inside a `with` statement.

    Args:
        workdir: The working directory; it must exist.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        self._path = workdir / NAME
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        self._locked: IO[str] | None = None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "RunLock":
        """Take the lock, and print which run had it, if one ended without releasing it.

        Raises:
            BlockingIOError: If another run holds it.
            OSError: If the file cannot be written.
        """
        self._locked = None if is_remote(self._path) else self._lock()
        try:
            self._take_over()
            self._write(0)
        except OSError:
            self._unlock()
            raise
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        # The folder may be gone, or the disk read-only.
        with contextlib.suppress(OSError), remote_errors(self._path, "written"):
            self._path.unlink(missing_ok=True)
        self._unlock()

    def _take_over(self) -> None:
        """Print which run has left its file; BlockingIOError if that run is alive."""
        if earlier := self._read():
            if self._is_alive(earlier):
                raise self._in_use(earlier)
            print(f"{self._path}: taken over from {describe(earlier)}, which has ended", flush=True)

    def _lock(self) -> IO[str] | None:
        """Lock the file; return None if the file system cannot, or the locked file."""
        import fcntl  # Windows lacks it

        while True:
            file = self._path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another run may have removed the file at its end, before it was locked here.
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            except BlockingIOError:
                file.close()
                raise self._in_use(self._read()) from None
            except FileNotFoundError:
                pass
            except OSError:
                file.close()
                return None
            file.close()

    def _unlock(self) -> None:
        if self._locked:
            self._locked.close()

    def _read(self) -> dict[str, Any] | None:
        """Return the content of the file; None if there is none, or a run that begins or ends."""
        with contextlib.suppress(OSError, ValueError), remote_errors(self._path, "read"):
            content = json.loads(self._path.read_text())
            return content if {"host", "pid", "since", "time"} <= content.keys() else None
        return None

    def _write(self, beats: int) -> None:
        with remote_errors(self._path, "written"), errors_name(self._path):
            self._path.write_text(json.dumps({**self._own, "beats": beats, "time": time.time()}))

    def _beat(self) -> None:
        """Change the file every few seconds, in a thread."""
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            # The next checkpoint fails, too, and reports it.
            with contextlib.suppress(OSError), remote_errors(self._path, "read"):
                if self._path.exists():
                    self._write(beats)

    def _is_alive(self, earlier: dict[str, Any]) -> bool:
        """Return whether the run that wrote the file is alive; watch it if that is not known."""
        on_this_host = earlier["host"] == self._own["host"]
        if on_this_host and (self._locked or not process_exists(earlier["pid"])):
            return False
        if time.time() - earlier["time"] > 10 * DEAD_SECONDS:  # the hosts' clocks may differ
            return False
        print(
            f"{self._path}: waiting up to {DEAD_SECONDS} s for a sign of life of "
            f"{describe(earlier)}",
            flush=True,
        )
        deadline = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
            if self._read() != earlier:
                return self._path.exists()
        return False

    def _in_use(self, other: dict[str, Any] | None) -> BlockingIOError:
        return BlockingIOError(
            f"--workdir={self._path.parent} is in use by {describe(other)}; wait until it ends, or "
            "give another folder."
        )


def describe(run: dict[str, Any] | None) -> str:
    """Return a description of the run that a lock's file names; None for an unknown one."""
    if run is None:
        return "another run"
    return f"the run of process {run['pid']} on host {run['host']} since {run['since']}"


def process_exists(pid: int) -> bool:
    """Return whether another process of this number exists on this host."""
    if pid == os.getpid():  # a container often starts with the same number again
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
