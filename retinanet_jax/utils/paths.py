"""Lists of paths in a config field, and the files that operating systems add to folders."""

import os
from collections.abc import Callable

# What operating systems add to folders of images; other files of macOS begin with "._".
SYSTEM_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")


def split_list(text: str, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Split a list that is separated by commas; a comma in an existing path belongs to the path.

    Args:
        text: The list.
        exists: Returns whether a path exists.

    Returns:
        The entries without surrounding spaces. Where several would be possible, an entry is the
        longest existing path.
    """
    words = text.split(",")
    entries = []
    while words:
        joined = [",".join(words[:count]).strip() for count in range(len(words), 1, -1)]
        entry = next(filter(exists, joined), words[0].strip())
        del words[: entry.count(",") + 1]
        entries.append(entry)
    return entries
