"""Folders of written data that appear as a whole or not at all."""

import pathlib
import shutil
import tempfile
from collections.abc import Callable


def write_folder(
    folder: pathlib.Path, write: Callable[[pathlib.Path], None], is_written: Callable[[], bool]
) -> None:
    """Makes `folder` of what `write` puts into the draft that it is given.

    Where another process makes the same folder meanwhile, `is_written` says so, and its is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp's is for one user alone
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            if not is_written():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
