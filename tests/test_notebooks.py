"""The notebooks: clean in the repository, and every cell runs, on a CPU with tiny settings."""

import ast
import json
import pathlib
import runpy
import shutil
import textwrap

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import checkpoint, weights
from retinanet_jax.config import check_fields
from retinanet_jax.configs import r50_fpn
from retinanet_jax.weights import detectors

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
PROGRAM_CACHE = ROOT / ".cache" / "runs"
parity_value = runpy.run_path(str(ROOT / "tests" / "weights" / "state_dicts.py"))["parity_value"]


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def source_of(name, cell):
    """The code of a notebook's cell."""
    cells = {one["id"]: one for one in cells_of(ROOT / "notebooks" / f"{name}.ipynb")}
    return "".join(cells[cell]["source"])


@each_notebook
def test_outputs_are_cleared_and_each_cell_is_introduced(path):
    cells = cells_of(path)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert cells[0]["cell_type"] == "markdown"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]]
    assert [cell["id"] for cell in code if "parameters" in cell["metadata"].get("tags", ())] == [
        "settings"
    ]
    # But for the one that shows the devices, right after the installation.
    bare = [two["id"] for one, two in zip(cells, cells[1:], strict=False) if one in code]
    assert [ident for ident in bare if not ident.endswith("-text") and ident != "more"] == [
        "devices"
    ]


@each_notebook
def test_settings_are_plain_values(path):
    """So that a person, papermill or a test can put others in their place."""
    settings = ast.parse(source_of(path.stem, "settings"))
    for one in settings.body:
        assert isinstance(one, ast.Assign)
        ast.literal_eval(one.value)


@pytest.mark.parametrize("data", ["shapes", "own", "coco"])
def test_every_choice_of_data_is_a_config(data):
    names = {}
    exec(source_of("train", "settings"), names)
    names |= {"DATA": data, "CHANGES": {"data.batch_size": 3}}
    exec(source_of("train", "config"), names)
    check_fields(names["config"], r50_fpn.get_config())
    assert names["config"].data.batch_size == 3
    with pytest.raises(KeyError, match="total_steps"):
        exec(source_of("train", "config"), names | {"CHANGES": {"total_step": 3}})


def test_an_installed_package_is_left_alone():
    """And where there is none, pip is asked for what the machine has."""
    cell = source_of("train", "install")
    assert "%pip" in cell
    exec(cell.replace("%pip", "assert False; #"), {})


class Ran(dict):
    """A finished notebook's outputs by cell: text, and whether there was a picture."""

    def text(self, cell):
        return "".join(one.get("text", "") for one in self[cell])

    def pictures(self, cell):
        return sum("image/png" in one.get("data", {}) for one in self[cell])


@pytest.fixture
def run(program, tmp_path):
    """`run(name, settings)`: every cell in a kernel of its own, with other settings."""

    def run(name, settings):
        import nbformat
        from nbclient import NotebookClient

        book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        at = next(k for k, cell in enumerate(book.cells) if cell.id == "settings")
        book.cells.insert(at + 1, nbformat.v4.new_code_cell(textwrap.dedent(settings)))
        environment = program.environment()
        environment["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAM_CACHE)
        client = NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
        client.execute(env=environment)
        return Ran({cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"})

    return run


@pytest.mark.slow
def test_train(run, tiny_run, tmp_path):
    """The second half of the tiny run again, whose programs are compiled by then."""
    shutil.copytree(tiny_run.workdir, tmp_path, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    (tmp_path / "eval" / "8.json").unlink()
    ran = run(
        "train",
        """
        import operator

        from retinanet_jax.command import field_names
        from retinanet_jax.configs import shapes

        tiny = shapes.get_config("tiny")
        CHANGES = {name: operator.attrgetter(name)(tiny) for name in field_names(tiny)}
        CHANGES |= {"data.eval_batch_size": 1, "detections.score_threshold": 0.001}
        WORKDIR = "."
        """,
    )
    assert "steps 4 to 8" in ran.text("train")
    assert "after step 8\nAP " in ran.text("table")
    assert ran.pictures("curve") == ran.pictures("draw") == 1
    assert checkpoint.load(tmp_path / "checkpoints" / "8").step == 8


@pytest.mark.slow
def test_detect_with_imported_weights(run, tmp_path):
    """A file as torchvision's, of a smaller backbone, on a small picture."""
    form = weights.DETECTOR_FORMATS["torchvision_v1"]
    named = detectors.shapes(form, "resnet18", form.num_coco_outputs)
    arrays = {name: parity_value(name, shape, 0, -2.0) for name, shape in named.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    ran = run(
        "detect",
        """
        from retinanet_jax.import_weights import preset_config

        SOURCE = "torchvision_v1"
        WEIGHTS = "weights.npz"
        PICTURE = "picture.png"
        THRESHOLD = 0.1
        config = preset_config(SOURCE)
        config.model.backbone = "resnet18"
        config.data.update(eval_short_side=40, long_side=64)
        OPTIONS = {"config": config}
        """,
    )
    assert (tmp_path / "runs" / "coco" / "checkpoints").is_dir()
    assert ran.pictures("detect") == 1
    found = json.loads((tmp_path / "detections.json").read_text())
    assert found
    assert ran.text("table").startswith(f"{len(found)} found, of 80 kinds")


@pytest.mark.slow
def test_the_focal_loss(run, tiny_run):
    ran = run("focal_loss", f"CHECKPOINT, BATCHES = {str(tiny_run.workdir)!r}, 2")
    figures = ("figure1", "gradient", "figure4", "shares", "prior")
    assert [ran.pictures(cell) for cell in figures] == [1] * len(figures)
    # The paper: 100 times lower at p_t = .9, and 1000 times at .968 (section 3.2).
    assert "p_t 0.9    cross entropy 0.1054  focal loss 0.001054  100 times" in ran.text("figure1")
    assert "p_t 0.968  cross entropy 0.0325  focal loss 0.000033  977 times" in ran.text("figure1")
    # 96 x 96 pixels: (12^2 + 6^2 + 3^2 + 2^2 + 1) cells of 9 anchors, of 2 batches of 1.
    assert "step 8: 3,492 anchors" in ran.text("detector")
    # At pi = .5 what an anchor costs does not depend on what it is: 6 classes x log 2 x .5.
    assert "cross entropy, pi 0.5 : foreground    2.079" in ran.text("prior")
