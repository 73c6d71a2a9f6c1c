"""Files of pictures, as a person names them: one by one, by folder or by pattern."""

import glob
import pathlib
from collections.abc import Iterable, Iterator

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_pictures(paths: Iterable[str]) -> list[pathlib.Path]:
    """The picture files at `paths`, each once; folders are searched to the bottom.

    What does not exist is taken for a pattern (`*.jpg`, `**/*.png`), as a shell takes it.
    Raises FileNotFoundError where there is neither, or no picture at all.
    """
    found: list[pathlib.Path] = []
    for given in paths:
        path = pathlib.Path(given).expanduser()
        matches = [path] if path.exists() else sorted(_matching(path))
        if not matches:
            raise FileNotFoundError(f"{given}: no such picture or folder.")
        for match in matches:
            found += _pictures_in(match) if match.is_dir() else [match]
    if not found:
        raise FileNotFoundError(
            f"no picture ({', '.join(SUFFIXES)}) in {', '.join(paths) or 'an empty list'}; "
            "give pictures, or folders with some."
        )
    return list(dict.fromkeys(found))


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    return map(pathlib.Path, glob.iglob(str(pattern), recursive=True))


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [path for path in inside if path.is_file()]
