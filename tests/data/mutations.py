"""Random changes of valid datasets: what people, tools and accidents do to them."""

import copy
import csv
import io
import json
import pathlib
import random
import re
import unicodedata
from collections.abc import Callable
from typing import Any

# Values in place of any other.
STRANGE = (
    *(
        None,
        True,
        False,
        "",
        " ",
        "x",
        "0",
        "1",
        "-1",
        "1.5",
        "1e3",
        "NaN",
        "null",
        "\uff11",
        "1_000",
    ),
    *(0, 1, -1, 2**31, 2**63, 2**64 + 1, -(2**70), 1.5, -0.0, 1e308, -1e308, 5e-324),
    *([], {}, [1], [None] * 4, [[1, 2]], {"a": 1}, "\x00", "a\nb", "é" * 300, "../x", "a,b", "🐈"),
    *(float("nan"), float("inf")),
)
FLAGS = {
    0: (0, "0", 0.0, False, None, "false", ""),
    1: (1, "1", 1.0, True, "true", "True"),
}


def nodes(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in a JSON tree, except its root."""
    paths = [path] if path else []
    items = enumerate(value) if isinstance(value, list) else ()
    items = value.items() if isinstance(value, dict) else items
    for key, inner in list(items):
        paths += nodes(inner, (*path, key))
    return paths


def parent_of(tree: Any, path: tuple) -> Any:
    """Return the list or dict that contains the value at a path."""
    for key in path[:-1]:
        tree = tree[key]
    return tree


def change_json(tree: Any, rng: random.Random) -> None:
    """Change one value, key or entry of a JSON tree in any way."""
    path = rng.choice(nodes(tree))
    parent, key = parent_of(tree, path), path[-1]
    value = parent[key]
    match rng.randrange(6):
        case 0:
            parent[key] = copy.deepcopy(rng.choice(STRANGE))
        case 1:
            del parent[key]
        case 2 if isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
        case 3 if isinstance(value, int | float):
            parent[key] = rng.choice((-value, value * 1000, value + 0.5, str(value), [value]))
        case 4 if isinstance(value, str):
            parent[key] = rng.choice((value + "x", value.upper(), value[:1], [value], {value: 1}))
        case _:
            other = rng.choice(nodes(tree))
            parent[key] = copy.deepcopy(parent_of(tree, other)[other[-1]])


def rewrite_json(tree: Any, rng: random.Random) -> None:
    """Change a COCO tree in a way that keeps its meaning."""
    path = rng.choice([p for p in nodes(tree) if not isinstance(p[-1], str) or p[0] != "info"])
    parent, key = parent_of(tree, path), path[-1]
    value = parent[key]
    if key in ("iscrowd", "ignore"):
        parent[key] = rng.choice(FLAGS[value])
    elif isinstance(value, int):
        parent[key] = rng.choice((str(value), float(value), f" {value} ", f"{value}.0"))
    elif isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        value.clear()
        value.update([*items, ("extra", rng.choice(STRANGE[:20]))])
    elif isinstance(value, list) and value and isinstance(value[0], dict) and key == "annotations":
        rng.shuffle(value)
    elif key == "file_name":
        parent[key] = rewrite_path(value, rng)


def rewrite_path(path: str, rng: random.Random) -> str:
    """Return a file name as another system or tool would write it."""
    spellings: tuple[Callable[[str], str], ...] = (
        lambda text: f"./{text}",
        lambda text: f"images\\{text}",
        lambda text: f"C:\\job\\images\\{text}",
        lambda text: f"/content/job/images/{text}",
        lambda text: text.replace(" ", "%20"),
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.upper(),
    )
    return rng.choice(spellings)(path)


def change_text(text: str, rng: random.Random) -> str:
    """Change one word, line or character of a text in any way."""
    words = list(re.finditer(r"[^\s<>,:/]+", text))
    lines = text.split("\n")
    match rng.randrange(6):
        case 0 if words:
            word = rng.choice(words)
            strange = str(rng.choice(STRANGE)).replace("\x00", "")
            return text[: word.start()] + strange + text[word.end() :]
        case 1:
            del lines[rng.randrange(len(lines))]
        case 2:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        case 3:
            position = rng.randrange(len(text) + 1)
            return text[:position] + rng.choice("\x01é,;\t\"'<&-1 \ufeff") + text[position:]
        case 4 if words:
            first, second = rng.choice(words), rng.choice(words)
            return text[: first.start()] + second[0] + text[first.end() :]
        case _:
            return text[: rng.randrange(len(text) + 1)]
    return "\n".join(lines)


def rewrite_text(text: str, rng: random.Random) -> str:
    """Change a text in a way that keeps its meaning: line ends and a byte order mark."""
    spellings: tuple[Callable[[str], str], ...] = (
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n",
        lambda text: "\ufeff" + text,
    )
    return rng.choice(spellings)(text)


def rewrite_csv(text: str, rng: random.Random) -> str:
    """Change a CSV with a header in a way that keeps its meaning."""
    rows = list(csv.reader(io.StringIO(text)))
    delimiter, quoting = ",", csv.QUOTE_MINIMAL
    match rng.randrange(7):
        case 0:
            order = rng.sample(range(len(rows[0])), len(rows[0]))
            rows = [[row[k] for k in order] for row in rows]
        case 1:
            rows[0] = [f" {name.upper()} " for name in rows[0]]
        case 2:
            rows = [[*row, "extra"] for row in rows]
        case 3:
            delimiter = rng.choice(";\t")
        case 4:
            quoting = csv.QUOTE_ALL
        case 5:
            column = rows[0].index("filename")
            rows[1:] = [
                [rewrite_path(x, random.Random(0)) if k == column else x for k, x in enumerate(row)]
                for row in rows[1:]
            ]
        case _:
            return rewrite_text(text, rng)
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)
    return file.getvalue()


def change_files(folder: pathlib.Path, rng: random.Random) -> None:
    """Rename, remove, empty, add or copy one file in any way."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    match rng.randrange(6):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.rename(path.with_name(path.name.upper()))
        case 3:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
        case 4:
            path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
        case _:
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def change_json_file(path: pathlib.Path, rng: random.Random) -> None:
    """Change a JSON file in any way."""
    tree = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        change_json(tree, rng)
    path.write_text(json.dumps(tree, ensure_ascii=rng.random() < 0.5))


def change_text_file(path: pathlib.Path, rng: random.Random) -> None:
    """Change a text file in any way."""
    text = path.read_text()
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = change_text(text, rng)
    path.write_text(text, errors="surrogatepass")
