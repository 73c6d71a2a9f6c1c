"""Names of output files: different from each other, and valid on every operating system."""

import collections
import unicodedata
from collections.abc import Callable, Sequence

RESERVED = '<>:"/\\|?*'  # characters that Windows does not allow in the name of a file
MAX_BYTES = 200  # of a name, to which a number and a suffix are added; file systems allow 255


def unique_names(
    names: Sequence[str], is_free: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """Return the names, with a number at the end of those that would occur twice.

    Two names that differ only in the letter case count as equal, because file systems may ignore
    it. A name with a number is never one of the given names: "a-2" is not made of "a" where there
    is an "a-2".

    Args:
        names: The names, such as those of images without their suffixes.
        is_free: Returns whether a name may be used; another number is tried otherwise.
    """
    given = {name.casefold() for name in names}
    copies: collections.Counter[str] = collections.Counter()

    def next_name(name: str) -> str:
        copies[name.casefold()] += 1
        copy = copies[name.casefold()]
        if copy == 1:
            return name
        numbered = f"{name}-{copy}"
        return next_name(name) if numbered.casefold() in given else numbered

    unique = []
    for name in names:
        candidate = next_name(name)
        while not is_free(candidate):
            candidate = next_name(name)
        unique.append(candidate)
    return unique


def safe_name(name: str) -> str:
    """Return a name for a file or folder with _ in place of the characters that are not allowed.

    Args:
        name: The name of an image or a category. Dots and spaces at its ends are left out, and what
            is longer than `MAX_BYTES` in UTF-8.
    """
    allowed = "".join(char if _is_allowed(char) else "_" for char in name)
    return cut(allowed).strip(". ") or "_"


def cut(name: str) -> str:
    """Return a name without what is longer than `MAX_BYTES` in UTF-8.

    Args:
        name: The name of a file or a part of it, in which bytes may be that are not UTF-8.
    """
    content = name.encode(errors="surrogateescape")
    return name if len(content) <= MAX_BYTES else content[:MAX_BYTES].decode(errors="ignore")


def _is_allowed(char: str) -> bool:
    # All spaces are: macOS writes a narrow one into the names of screenshots.
    is_text = char.isprintable() or unicodedata.category(char) == "Zs"
    return is_text and char not in RESERVED
