"""The architecture: which modules may import which, and how long files and functions may be."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "retinanet_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# Each layer imports from itself and from those before it; the packages of the first layer do not
# import each other, except for the helpers in utils.
LAYERS = (
    ("utils", "core", "models", "data"),
    (
        "augmentation_presets",
        "config",
        "config_checks",
        "config_versions",
        "stored_config",
        "hosts",
        "stopping",
    ),
    (
        "modeling",
        "datasets",
        "input_pipeline",
        "weights",
        "checkpoint",
        "sharding",
        "compilation",
        "visualize",
    ),
    ("training", "evaluation", "detector", "inference", "data_report", "export"),
    ("planning", "analysis"),
    ("cli", "main", "__main__"),
)
LAYER_OF = {name: index for index, layer in enumerate(LAYERS) for name in layer}
HEAVY = (
    "av",
    "tensorflow",
    "tensorflow_datasets",
    "array_record",
    "pycocotools",
    "matplotlib",
    "jinja2",
    "torch",
    "safetensors",
    "onnx",
    "onnxruntime",
    "ai_edge_litert",
    "litert_quantizer",
    "hotcoco",
    "h5py",
    "supervision",
    "mlflow",
    "wandb",
)
CORE_MAY_IMPORT = (
    "collections.abc",
    "functools",
    "jax",
    "jaxtyping",
    "math",
    "numpy",
    "retinanet_jax.core",
    "typing",
)
COMMANDS_ONLY = ("absl.app", "absl.flags", "ml_collections.config_flags", "argparse")


def is_for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(tree, *, inside_functions):
    """Yield the modules that a syntax tree imports when it runs; `from a import b` is a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_for_types_only(node):
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(node, inside_functions=inside_functions)


def is_within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def entry_of(path):
    """Return the entry of the package that contains a file, for example "core" or "detector"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_entries(path):
    """Return the entries of the package that a file imports."""
    names = imported(ast.parse(path.read_text()), inside_functions=True)
    entries = {name.split(".")[1] for name in names if name.startswith("retinanet_jax.")}
    return entries & set(LAYER_OF)


def test_every_entry_of_the_package_has_a_layer():
    entries = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__pycache")}
    assert entries - {"py", "__init__"} == set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    tree = ast.parse(path.read_text())
    everything = set(imported(tree, inside_functions=True))
    at_import = set(imported(tree, inside_functions=False))
    entry = entry_of(path)

    assert not [name for name in at_import if is_within(name, HEAVY)]
    if entry == "core":
        assert not [name for name in everything if not is_within(name, CORE_MAY_IMPORT)]
    if entry == "data":
        assert not [name for name in everything if is_within(name, ["jax", "flax"])]
    if entry != "__init__":
        layer = LAYER_OF[entry]
        assert not [name for name in imported_entries(path) if LAYER_OF[name] > layer]
        if layer == 0:
            assert imported_entries(path) <= {entry, "utils"}
    if entry not in LAYERS[-1]:
        assert not [name for name in everything if is_within(name, COMMANDS_ONLY)]


def test_no_two_entries_import_each_other():
    graph = {entry: set() for entry in LAYER_OF}
    for path in FILES:
        entry = entry_of(path)
        if entry != "__init__":  # it imports its public names when they are used
            graph[entry] |= imported_entries(path) - {entry}
    assert_no_circle(graph)


def assert_no_circle(graph):
    while graph:
        leaves = [name for name, imports in graph.items() if not imports & set(graph)]
        assert leaves, f"these import each other in a circle: {sorted(graph)}"
        for name in leaves:
            del graph[name]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle():
    names = {module_name(path): path for path in FILES}
    graph = {}
    for name, path in names.items():
        used = imported(ast.parse(path.read_text()), inside_functions=True)
        # `from package import module` imports the module, `from module import name` its module.
        modules = {use if use in names else use.rpartition(".")[0] for use in used}
        graph[name] = (modules & set(names)) - {name, "retinanet_jax"}
    del graph["retinanet_jax"]  # it imports its public names when they are used
    assert_no_circle(graph)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_has_the_name_of_a_standard_one(path):
    """Python started in the module's folder would import it instead of the standard one."""
    assert path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_fits_in_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


# Functions that may be long: those of core, the config and the training loop.
LONG = {"config.py": {"default_config"}, "training/loop.py": {"train"}}


def lines_of_code(function: ast.FunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_code_of_a_function_fits_on_a_screen(path):
    name = str(path.relative_to(PACKAGE))
    if entry_of(path) == "core":
        return
    long = {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and lines_of_code(node) > 48
    }
    assert long <= LONG.get(name, set())


def modules_after(code):
    """Return the names of the modules that a fresh process has after it ran `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import retinanet_jax", ["jax", "numpy", "retinanet_jax.detector"]),
        ("import retinanet_jax.core", ["flax", "ml_collections", "retinanet_jax.data"]),
        (
            "import retinanet_jax.input_pipeline, retinanet_jax.datasets",
            ["flax", "orbax", "retinanet_jax.models"],
        ),
        ("import retinanet_jax.detector", ["tensorflow", "pycocotools", "matplotlib"]),
    ],
)
def test_an_import_loads_no_more_than_it_needs(code, absent):
    assert not set(absent) & set(modules_after(code))


def test_imports_are_collected_from_every_block():
    source = (
        "import a.b\nfrom c import d\ndef f():\n    import e\nif 1:\n    import g\n"
        "if TYPE_CHECKING:\n    import h"
    )
    assert set(imported(ast.parse(source), inside_functions=True)) == {"a.b", "c.d", "e", "g"}
    assert set(imported(ast.parse(source), inside_functions=False)) == {"a.b", "c.d", "g"}
