"""Hooks of the documentation site: pages link to files of the repository as they do on GitHub.

The site has the pages of this folder and, under repository/, the other files of the repository
that they link to.
"""

import pathlib
import posixpath
import re
from typing import Any

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
FILES = ("CHANGELOG.md", "configs/*.md", "configs/*.py", "notebooks/*.ipynb")
FOLDER = "repository"  # of the site
CODE = re.compile(r"(```.*?```)", re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")


def on_config(config: Any) -> Any:
    """Read the pages from this folder, which the config itself may not name."""
    config.docs_dir = str(DOCS)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    for pattern in FILES:
        for path in sorted(ROOT.glob(pattern)):
            uri = f"{FOLDER}/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the relative links of a page in the repository by those of the site."""
    folder = posixpath.dirname(repository_path(page.file.src_uri))
    page_folder = posixpath.dirname(page.file.src_uri) or "."

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        return posixpath.relpath(site_path(target), page_folder)

    parts = CODE.split(markdown)  # prose and code in turn
    parts[::2] = [LINK.sub(site_link, prose) for prose in parts[::2]]
    return "".join(parts)


def repository_path(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    name = uri.removeprefix(f"{FOLDER}/")
    return name if name != uri else f"{DOCS.name}/{uri}"


def site_path(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    name = path.removeprefix(f"{DOCS.name}/")
    return name if name != path else f"{FOLDER}/{path}"
