"""Files of a run that grow, such as metrics.jsonl, in a local or a remote working directory.

Remote storage cannot append to a file. There the files grow in a local folder, and are copied as
a whole: a thread does so every few seconds, and a caller when they must be up to date.
"""

import contextlib
import pathlib
import tempfile
import threading

from retinanet_jax.utils.files import write_atomically
from retinanet_jax.utils.paths import is_remote

INTERVAL = 10.0  # seconds between two copies


class GrowingFiles:
    """A local folder for the growing files of a working directory.

    Attributes:
        folder: The folder to write to: the working directory itself if it is local.

    Args:
        workdir: The working directory.
        *names: The files that a resumed run appends to; those that exist are in `folder` then.
    """

    def __init__(self, workdir: pathlib.Path, *names: str) -> None:
        self.folder = self._workdir = workdir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # size and time of each copied file
        self._lock = threading.Lock()
        self._ends = threading.Event()
        if not is_remote(workdir):
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="retinanet_jax-")
        self.folder = pathlib.Path(self._temporary.name)
        for name in names:
            if (workdir / name).exists():
                (self.folder / name).write_bytes((workdir / name).read_bytes())
        self._thread = threading.Thread(target=self._update_regularly, daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Let the working directory have the present content of all files.

        Raises:
            OSError: If a file cannot be written there.
        """
        if self._temporary is None:
            return
        with self._lock:
            for file in sorted(filter(pathlib.Path.is_file, self.folder.rglob("*"))):
                stat = file.stat()
                state = (stat.st_size, stat.st_mtime_ns)
                if self._copied.get(file) != state:
                    copy = self._workdir / file.relative_to(self.folder).as_posix()
                    write_atomically(copy, file.read_bytes())
                    self._copied[file] = state

    def close(self) -> None:
        """Copy the files a last time, and remove the temporary folder.

        Raises:
            OSError: If a file cannot be written.
        """
        if self._temporary is not None:
            self._ends.set()
            self._thread.join()
            with self._temporary:
                self.update()

    def _update_regularly(self) -> None:
        while not self._ends.wait(INTERVAL):
            # The next call of a caller raises the error, if there still is one.
            with contextlib.suppress(OSError):
                self.update()
