"""The documents name only what is there: fields, flags, files, modules, links."""

import configparser
import functools
import importlib
import importlib.util
import json
import pathlib
import pkgutil
import re

import pytest

import retinanet_jax
from retinanet_jax import Detector
from retinanet_jax.config import field_names
from retinanet_jax.configs import r50_fpn

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("configs", "docs", "notebooks", "retinanet_jax", "scripts", "tests")
FIELDS = set(field_names(r50_fpn.get_config()))
SECTIONS = {field.rsplit(".", n)[0] for field in FIELDS for n in range(1, field.count(".") + 1)}
MODULES = {module.name for module in pkgutil.iter_modules(retinanet_jax.__path__)}
SUFFIXES = ("ipynb", "jaxexport", "json", "jsonl", "md", "npz", "onnx", "pkl", "png", "py", "txt")
# Their Python can be run as it stands.
WITH_PYTHON = ("architecture.md", "configuration.md")

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


@functools.cache
def text_of(path):
    """A document's text; a notebook's is that of its cells without code."""
    content = path.read_text()
    if path.suffix != ".ipynb":
        return content
    cells = json.loads(content)["cells"]
    return "\n\n".join("".join(one["source"]) for one in cells if one["cell_type"] == "markdown")


def commands_of(text):
    """(module or script, arguments) of each of the project's commands."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    pattern = r"python (?:-m (retinanet_jax[\w.]*)|(scripts/[\w.]+))([^`\n#]*)"
    return [
        (module or script, arguments) for module, script, arguments in re.findall(pattern, joined)
    ]


@functools.cache
def sources_of(program):
    """The files that define a command's flags, as text."""
    path = ROOT / program if program.endswith(".py") else ROOT / program.replace(".", "/")
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return "\n".join(file.read_text() for file in files)


def flags_of(program):
    """absl's DEFINE_...("name" and argparse's "--name"."""
    source = sources_of(program)
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    return {*defined, *re.findall(r'"--([\w-]+)"', source), "help"}


def test_a_command_is_found_with_its_flags():
    text = "```sh\npython -m retinanet_jax.pack --output=a \\\n    --part=eval  # --not\n```\n"
    assert commands_of(text) == [("retinanet_jax.pack", " --output=a --part=eval  ")]
    assert flags_of("retinanet_jax.pack") == {"config", "output", "part", "help"}
    assert flags_of("scripts/ablation.py") >= {"seeds", "rows"}


@each_document
def test_fields_exist(path):
    text = text_of(path)
    flags = re.findall(r"--config\.([a-z0-9_.]+)", text)
    spans = re.findall(r"`(?:config\.)?([a-z0-9_]+\.[a-z0-9_.]+)(?:=[^`]*)?`", text)
    named = flags + [span for span in spans if span.split(".")[0] in SECTIONS]
    named += re.findall(r"`config\.([a-z0-9_.]+)(?:=[^`]*)?`", text)
    named = {name.rstrip(".") for name in named if name.split(".")[-1] not in SUFFIXES}
    assert not named - FIELDS - SECTIONS


@each_document
def test_commands_have_their_flags(path):
    for program, arguments in commands_of(text_of(path)):
        if program.startswith("retinanet_jax"):
            assert importlib.util.find_spec(program), program
        assert sources_of(program)
        named = set(re.findall(r"(?<!\S)--([\w-]+)(?![\w.-])", arguments))
        assert not named - flags_of(program), program


@each_document
def test_files_exist(path):
    pattern = rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w.*/-]*)"
    for named in re.findall(pattern, text_of(path)):
        assert list(ROOT.glob(named.rstrip(".-/"))), named


@each_document
def test_recipes_take_the_arguments(path):
    for recipe, argument in re.findall(r"configs/(\w+)\.py:([\w=.@,+-]+)", text_of(path)):
        importlib.import_module(f"retinanet_jax.configs.{recipe}").get_config(argument.strip(".,"))


@each_document
def test_names_of_the_package_exist(path):
    spans = re.findall(r"`(?:retinanet_jax\.)?([a-z_]+)\.(\w+)[^`]*`", text_of(path))
    for module, name in spans:
        if module in MODULES - SECTIONS and name not in SUFFIXES:
            package = importlib.import_module(f"retinanet_jax.{module}")
            # `detector` is also what a Detector is called.
            assert hasattr(package, name) or hasattr(Detector, name), f"{module}.{name}"


@each_document
def test_extras_exist(path):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text_of(path)):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])


def anchors_of(path):
    """What links to the headings of a document end in."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_resolve(path):
    prose = re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_is_in_the_index():
    index = text_of(ROOT / "docs" / "README.md")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not [page for page in sorted(pages) if f"]({page})" not in index]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_the_pages_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names = {}
        exec(block, names)
        if "get_config" in names:
            names["get_config"]("tiny")
