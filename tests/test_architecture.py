"""The architecture is a test: who may import whom."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "retinanet_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
ISLANDS = ("core", "models", "data")
LAZY = (
    "tensorflow",
    "tensorflow_datasets",
    "array_record",
    "pycocotools",
    "matplotlib",
    "torch",
    "safetensors",
    "onnx",
    "onnxruntime",
    "hotcoco",
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


def is_for_types_alone(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(tree, *, inside_functions):
    """The modules that a syntax tree imports when it runs; `from a import b` counts as a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_for_types_alone(node):
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(node, inside_functions=inside_functions)


def is_within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    tree = ast.parse(path.read_text())
    everything = set(imported(tree, inside_functions=True))
    at_import = set(imported(tree, inside_functions=False))
    island = path.relative_to(PACKAGE).parts[0]

    assert not [name for name in at_import if is_within(name, LAZY)]
    if island in ISLANDS:
        others = [f"retinanet_jax.{other}" for other in ISLANDS if other != island]
        assert not [name for name in everything if is_within(name, others)]
    if island == "core":
        assert not [name for name in everything if not is_within(name, CORE_MAY_IMPORT)]
    if island == "data":
        assert not [name for name in everything if is_within(name, ["jax", "flax"])]


def test_the_imports_are_found():
    source = (
        "import a.b\nfrom c import d\ndef f():\n    import e\nif 1:\n    import g\n"
        "if TYPE_CHECKING:\n    import h"
    )
    assert set(imported(ast.parse(source), inside_functions=True)) == {"a.b", "c.d", "e", "g"}
    assert set(imported(ast.parse(source), inside_functions=False)) == {"a.b", "c.d", "g"}
