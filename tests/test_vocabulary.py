"""The vocabulary is a test: docs/contributing.md has the glossary, this file the words to avoid.

`python tests/test_vocabulary.py [FILE...]` lists the places.
"""

import ast
import collections
import io
import json
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("retinanet_jax", "configs", "scripts", "tests", "docs", "notebooks")
TOP_LEVEL = ("README.md", "CHANGELOG.md", "setup.cfg", "pyproject.toml", ".ci/run")

# Parts of a name (between underscores or capitals) that no identifier of ours has, and what to say
# instead.
NAME_PARTS = {
    "alone": "only",
    "beaten": "suppressed",
    "beside": "next_to",
    "centre": "center",
    "centres": "centers",
    "colour": "color",
    "colours": "colors",
    "doctor": "report",
    "door": "entry_point",
    "doors": "entry_points",
    "drawn": "synthetic, sampled or annotated",
    "fault": "finding or error",
    "faults": "findings or errors",
    "faulty": "invalid",
    "form": "format, shape or aspect_ratio",
    "forms": "formats, shapes or aspect_ratios",
    "found": "detections, findings or matches",
    "grey": "gray",
    "held": "loaded or contained",
    "island": "package",
    "joiner": "module",
    "kept": "keep or remaining",
    "kind": "method, format, mode or norm",
    "kinds": "methods, formats, modes or norms",
    "learnt": "learned",
    "look": "report or warning",
    "oracle": "reference",
    "peer": "reference",
    "peers": "reference",
    "picture": "image",
    "pictures": "images",
    "recipe": "config",
    "recipes": "configs",
    "rival": "overlapping",
    "rivals": "overlapping",
    "road": "pipeline",
    "room": "space",
    "said": "printed",
    "say": "print",
    "says": "message",
    "seen": "report",
    "share": "fraction",
    "shares": "fractions",
    "shown": "visible",
    "tell": "print or report",
    "teller": "progress",
    "tells": "prints or reports",
    "theirs": "reference",
    "told": "printed or message",
    "turn": "rot90",
    "turned": "rotated",
    "turns": "rot90_k",
    "undisputed": "not_suppressed",
    "upright": "oriented",
    "verdict": "severity",
    "want": "expected",
    "wanted": "expected or requested",
    "wants": "requires",
    "whose": "owner",
}
# Whole names that say nothing.
NAMES = {"one": "name the thing: annotation, category, example"}

# Stems of verbs in -ize, which British English may write with an s.
IZE = (
    "emphas|general|initial|normal|optim|organ|real|recogn|serial|special|summar|synchron|token"
    "|visual"
)
# Patterns that no comment, string, docstring, page or notebook has.
PHRASES = {
    r"alone": "only",
    r"beaten": "suppressed",
    r"beside": "next to, compared with",
    r"doctor": "dataset report",
    r"doors?": "entry point",
    r"drawn (?:data|dataset|figures?|images?|ones?|shapes?|squares?|things?)": "synthetic",
    r"faults?": "error, problem or finding",
    r"(?:go|goes|going|went) on": "continue, resume",
    r"islands?": "package",
    r"joiners?": "module",
    r"kinds?": "method, format, mode, norm or type",
    r"oracles?": "reference implementation",
    r"peers?'?": "reference implementation",
    r"pictures?'?": "image",
    r"quarter[- ]turns?": "rot90, rotation by 90 degrees",
    r"recipes?": "config",
    r"rivals?": "overlapping",
    r"roads?": "pipeline",
    r"says?|said": "prints, states, specifies",
    r"shares?": "fraction",
    r"tell|tells|told|telling|tellers?": "print, report, show",
    r"theirs": "torchvision's, detectron2's",
    r"undisputed": "not suppressed",
    r"upright": "oriented",
    r"verdicts?": "severity",
    r"wants?|wanted": "requires, expects, requests",
    r"whose": "of which, its",
    # American spelling.
    r"artefacts?": "artifact",
    r"\w*behaviours?": "behavior",
    r"\w*cent(?:re|res|red|ring)": "center",
    r"\w*colou\w+": "color",
    r"favou\w+": "favor",
    r"\w*grey\w*": "gray",
    r"(?:un|re)?learnt": "learned",
    rf"\w*(?:{IZE})is(?:e|es|ed|ing|ation|ations|er|ers)": "-ize",
    r"label(?:ling|led)": "labeling, labeled",
    r"licence": "license",
    r"neighbou\w+": "neighbor",
    r"analys(?:e|ed|ing)": "analyze",
}
# Not in the names of the files that version 0.1.0 wrote (pictures.bin, recipe.json).
PHRASE = re.compile(
    rf"(?<![\w/.-])(?:{'|'.join(PHRASES)})(?![\w/]|\.(?:bin|json)\b)", re.IGNORECASE
)
# Quoted keys of card.json, which other programs read, where code writes or documents them.
KEYS = re.compile(r'"(?:kind|pictures)"')
FILES_WITH_KEYS = (
    ROOT / "retinanet_jax/export/client.py",
    ROOT / "retinanet_jax/export/model_card.py",
    ROOT / "tests/export/test_any_size.py",
    ROOT / "tests/export/test_servable.py",
)
THIS_FILE = pathlib.Path(__file__).resolve()
GLOSSARY = ROOT / "docs" / "contributing.md"


class Place(NamedTuple):
    """A word of the list, and where it stands."""

    path: pathlib.Path
    line: int
    source: str  # identifier, string, comment or page
    word: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.source} {self.word!r}"


def files() -> list[pathlib.Path]:
    """Every text file of the project that people read."""
    texts = [ROOT / name for name in TOP_LEVEL]
    for folder in FOLDERS:
        for suffix in (".py", ".md", ".ipynb", ".sh", ".yml"):
            texts += sorted((ROOT / folder).rglob(f"*{suffix}"))
    return [path for path in texts if path.resolve() != THIS_FILE and path.exists()]


def name_parts(name: str) -> list[str]:
    """The words of an identifier, in lower case."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier that the code itself defines, and its line; not what it only uses."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno
            case ast.keyword(arg=str(name)):
                yield name, node.value.lineno


def avoided_names(path: pathlib.Path) -> Iterator[Place]:
    """The identifiers of a Python file that the lists exclude."""
    for name, line in bound_names(ast.parse(path.read_text())):
        if name in NAMES or any(part in NAME_PARTS for part in name_parts(name)):
            yield Place(path, line, "identifier", name)


def python_prose(path: pathlib.Path) -> Iterator[tuple[str, int, str]]:
    """(kind of token, line, text) of the comments and strings of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield "comment", token.start[0], token.string
        elif token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
            yield "string", token.start[0], token.string


def prose(path: pathlib.Path) -> Iterator[tuple[str, int, str]]:
    """(source, line, text) of what people read in a file."""
    if path.suffix == ".py":
        yield from python_prose(path)
    elif path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(path.read_text())["cells"]):
            yield "page", number, "".join(cell["source"])
    else:
        yield "page", 1, path.read_text()


def avoided_phrases(path: pathlib.Path) -> Iterator[Place]:
    """The words of a file's prose that the list excludes."""
    for source, line, text in prose(path):
        text = KEYS.sub('""', text) if path in FILES_WITH_KEYS else text
        for match in PHRASE.finditer(text):
            yield Place(path, line + text[: match.start()].count("\n"), source, match[0])


def avoided(path: pathlib.Path) -> list[Place]:
    """Every place of a file with a name or a word of the lists; the glossary itself quotes them."""
    names = list(avoided_names(path)) if path.suffix == ".py" else []
    return names + ([] if path == GLOSSARY else list(avoided_phrases(path)))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_vocabulary_is_kept(path):
    assert not [str(place) for place in avoided(path)]


def test_avoided_words_are_found(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        'def tell(picture_size, *, kind="a"):\n    """Colours of 3 pictures."""  # whose\n'
    )
    names = {place.word for place in avoided_names(path)}
    assert names == {"tell", "picture_size", "kind"}
    assert [place.word for place in avoided_phrases(path)] == ["Colours", "pictures", "whose"]


def test_a_longer_word_or_a_quoted_field_is_not_an_avoided_word():
    for text in (
        "return saddle outside sharing shared mankind validation_share said_x",
        "a/picture/b",
        "recipe.json",
    ):
        assert not PHRASE.search(text), text


if __name__ == "__main__":
    paths = [pathlib.Path(argument).resolve() for argument in sys.argv[1:]] or files()
    places = [place for path in paths for place in avoided(path)]
    print(*places, sep="\n")
    print(len(places), collections.Counter(place.source for place in places), file=sys.stderr)
