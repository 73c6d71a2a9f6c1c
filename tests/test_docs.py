"""The documentation mentions only commands, flags, fields, files, names and links that exist."""

import configparser
import functools
import importlib
import json
import pathlib
import pkgutil
import re
import runpy
import shlex
import types

import pytest

import retinanet_jax
from retinanet_jax import Detector
from retinanet_jax.__main__ import COMMANDS
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config, flatten, load_config

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("configs", "docs", "notebooks", "retinanet_jax", "scripts", "tests")
FIELDS = {name for name, _ in flatten(default_config())}
SECTIONS = {field.rsplit(".", n)[0] for field in FIELDS for n in range(1, field.count(".") + 1)}
MODULES = {module.name for module in pkgutil.iter_modules(retinanet_jax.__path__[:1])}
SUFFIXES = (
    *("ipynb", "jaxexport", "json", "jsonl", "md", "npz", "onnx", "pkl", "png", "py", "tflite"),
    "txt",
)
# Pages with Python that runs without other files.
WITH_PYTHON = ("architecture.md", "configuration.md")

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


@functools.cache
def text_of(path):
    """Return the text of a document; of a notebook, the text of its markdown cells."""
    content = path.read_text()
    if path.suffix != ".ipynb":
        return content
    cells = json.loads(content)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def commands_of(text):
    """Return (command, arguments) of each command of the package; "main" is the module main."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    matches = re.findall(
        r"(?:(?<![\w/.-])retinanet-jax |python -m retinanet_jax )([a-z-]+)([^`\n#]*)"
        r"|python -m retinanet_jax\.(\w+)([^`\n#]*)",
        text,
    )
    return [(name or module, first or second) for name, first, module, second in matches]


def scripts_of(text):
    """Return (script, arguments) of each command that runs a script of the project."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    return re.findall(r"python (scripts/[\w.]+)([^`\n#]*)", text)


def check_command(name, arguments):
    """Parse a command as the program does, without running it; arguments with "..." are omitted."""
    assert name in {*COMMANDS, "main"}, f"there is no command {name!r}"
    module = COMMANDS[name][0] if name in COMMANDS else "train"
    command = importlib.import_module(f"retinanet_jax.cli.{module}").COMMAND
    given = [argument for argument in shlex.split(arguments) if "..." not in argument]
    assert run_command(command._replace(run=lambda *_: 0), ["retinanet-jax", *given]) == 0


def script_flags(script):
    """Return the flags that a script defines with argparse."""
    path = ROOT / script
    files = path.rglob("*.py") if path.is_dir() else [path]
    return {"help", *re.findall(r'"--([\w-]+)"', "\n".join(file.read_text() for file in files))}


def test_commands_and_scripts_are_extracted():
    text = (
        "```sh\nretinanet-jax pack --output=a \\\n    --part=eval  # --not\n"
        "X=1 python -m retinanet_jax.main --workdir=b\npython scripts/ablation.py c --rows d\n```\n"
        "`python -m retinanet_jax configs` lists"
    )
    assert commands_of(text) == [
        ("pack", " --output=a --part=eval  "),
        ("main", " --workdir=b"),
        ("configs", ""),
    ]
    assert scripts_of(text) == [("scripts/ablation.py", " c --rows d")]
    assert script_flags("scripts/ablation.py") >= {"seeds", "rows"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("predict", "--chekpoint=a"),
        ("train", "--config=configs/absent.py"),
        ("train", "--config=configs/shapes.py:absent"),
        ("train", "--config.data.absent=1"),
        ("train", "--config.data.batch_size=many"),
        ("train", "--mode=absent"),
        ("main", "surplus"),
    ],
)
def test_a_wrong_command_does_not_pass(name, arguments):
    with pytest.raises(SystemExit, match="error: "):
        check_command(name, arguments)


@each_document
def test_fields_exist(path):
    text = text_of(path)
    flags = re.findall(r"--config\.([a-z0-9_.]+)", text)
    spans = re.findall(r"`(?:config\.)?([a-z0-9_]+\.[a-z0-9_.]+)(?:=[^`]*)?`", text)
    names = flags + [span for span in spans if span.split(".")[0] in SECTIONS]
    names += re.findall(r"`config\.([a-z0-9_.]+)(?:=[^`]*)?`", text)
    names = {name.rstrip(".") for name in names if name.split(".")[-1] not in SUFFIXES}
    assert not names - FIELDS - SECTIONS


@each_document
def test_commands_are_accepted(path):
    for name, arguments in commands_of(text_of(path)):
        check_command(name, arguments)


@each_document
def test_scripts_exist_with_their_flags(path):
    for script, arguments in scripts_of(text_of(path)):
        assert (ROOT / script).exists(), script
        names = set(re.findall(r"(?<!\S)--([\w-]+)(?![\w.-])", arguments))
        assert not names - script_flags(script), script


@each_document
def test_files_exist(path):
    pattern = rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w.*/-]*)"
    for name in re.findall(pattern, text_of(path)):
        # NAME stands for any.
        assert list(ROOT.glob(name.rstrip(".-/").replace("NAME", "*"))), name


@each_document
def test_configs_accept_their_arguments(path):
    for config, argument in re.findall(r"configs/(\w+)\.py:([\w=.@,+-]+)", text_of(path)):
        load_config(f"configs/{config}.py:{argument.strip('.,')}")


@each_document
def test_names_of_the_package_exist(path):
    spans = re.findall(r"`(?:retinanet_jax\.)?([a-z_]+)\.(\w+)[^`]*`", text_of(path))
    for module, name in spans:
        is_field = module in SECTIONS or (module == "config" and name in FIELDS | SECTIONS)
        if module in MODULES and name not in SUFFIXES and not is_field:
            package = importlib.import_module(f"retinanet_jax.{module}")
            # `detector` is also the usual name of a Detector.
            assert hasattr(package, name) or hasattr(Detector, name), f"{module}.{name}"


@each_document
def test_extras_exist(path):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text_of(path)):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])


def anchors_of(path):
    """Return the anchors of a document's headings."""
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


@each_document
def test_no_placeholder_is_left(path):
    assert "OWNER" not in path.read_text()


def test_every_page_is_in_the_index_and_in_the_site():
    docs = ROOT / "docs"
    index, site = text_of(docs / "README.md"), (docs / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"}
    assert not [page for page in sorted(pages) if f"]({page})" not in index]
    assert not [page for page in sorted(pages) if f"- {page}\n" not in site]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.stem)
def test_the_api_reference_describes_what_exists(page):
    names = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("data.md", "[a](results.md#b)", "[a](results.md#b)"),
        ("data.md", "[a](../configs/README.md)", "[a](repository/configs/README.md)"),
        ("api/core.md", "[a](../export.md)", "[a](../export.md)"),
        ("repository/configs/README.md", "[a](../docs/data.md)", "[a](../../data.md)"),
        ("repository/configs/README.md", "[a](r50_fpn.py)", "[a](r50_fpn.py)"),
        ("data.md", "[a](https://b.c/d) [e](#f)", "[a](https://b.c/d) [e](#f)"),
        (
            "data.md",
            '```python\nf["a"](b.c)\n```\n[d](../e)',
            '```python\nf["a"](b.c)\n```\n[d](repository/e)',
        ),
    ],
)
def test_links_of_the_site_are_those_of_the_repository(page, markdown, expected):
    hooks = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))
    described = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    assert hooks["on_page_markdown"](markdown, described) == expected


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_the_pages_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names = {}
        exec(block, names)
        if "get_config" in names:
            names["get_config"]("tiny")
