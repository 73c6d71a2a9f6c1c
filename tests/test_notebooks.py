"""Notebooks have no outputs in the repository, and every cell runs on a CPU with tiny settings."""

import ast
import itertools
import json
import pathlib
import runpy
import shutil
import textwrap

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import checkpoint, weights
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.labelme import LabelmeSource
from retinanet_jax.weights import detectors
from retinanet_jax.weights.convert import import_weights
from retinanet_jax.weights.presets import preset_config

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
PROGRAM_CACHE = ROOT / ".cache" / "runs"
state_dicts = runpy.run_path(str(ROOT / "tests" / "weights" / "state_dicts.py"))


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def source_of(name, cell_id):
    """Return the code of a notebook's cell."""
    cells = {cell["id"]: cell for cell in cells_of(ROOT / "notebooks" / f"{name}.ipynb")}
    return "".join(cells[cell_id]["source"])


@each_notebook
def test_outputs_are_cleared_and_each_cell_has_a_heading(path):
    cells = cells_of(path)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert cells[0]["cell_type"] == "markdown"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]]
    assert [cell["id"] for cell in code if "parameters" in cell["metadata"].get("tags", ())] == [
        "settings"
    ]
    # Except for the cell that shows the devices, right after the installation.
    after_code = [cell for before, cell in itertools.pairwise(cells) if before in code]
    assert [
        cell["id"]
        for cell in after_code
        if not cell["id"].endswith("-text") and cell["id"] != "more"
    ] == ["devices"]


@each_notebook
def test_settings_are_plain_values(path):
    """A person, papermill or a test can then replace them."""
    settings = ast.parse(source_of(path.stem, "settings"))
    for statement in settings.body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("data", ["shapes", "own", "coco"])
def test_every_choice_of_data_is_a_config(data):
    names = {}
    exec(source_of("train", "settings"), names)
    names |= {"DATA": data, "CHANGES": {"data.batch_size": 3}}
    exec(source_of("train", "config"), names)
    check_fields(names["config"])
    assert names["config"].data.batch_size == 3
    with pytest.raises(KeyError, match="total_steps"):
        exec(source_of("train", "config"), names | {"CHANGES": {"total_step": 3}})


@each_notebook
def test_an_installed_package_is_not_installed_again(path):
    cell = source_of(path.stem, "install")
    assert "%pip" in cell
    exec(cell.replace("%pip", "assert False; #"), {})


class Outputs(dict):
    """The outputs of a finished notebook by cell: text and images."""

    def text(self, cell_id):
        return "".join(output.get("text", "") for output in self[cell_id])

    def num_images(self, cell_id):
        return sum("image/png" in output.get("data", {}) for output in self[cell_id])


@pytest.fixture
def run(program, tmp_path):
    """`run(name, settings)`: the outputs of a notebook with other settings, in its own kernel."""

    def run(name, settings):
        import nbformat
        from nbclient import NotebookClient

        book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        index = next(k for k, cell in enumerate(book.cells) if cell.id == "settings")
        book.cells.insert(index + 1, nbformat.v4.new_code_cell(textwrap.dedent(settings)))
        environment = program.environment()
        environment["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAM_CACHE)
        client = NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
        client.execute(env=environment)
        return Outputs({cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"})

    return run


@pytest.mark.slow
def test_train(run, tiny_run, tmp_path):
    """The second half of the tiny run again; its programs are compiled already."""
    shutil.copytree(tiny_run.workdir, tmp_path, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    (tmp_path / "eval" / "8.json").unlink()
    outputs = run(
        "train",
        """
        from retinanet_jax.config import flatten
        from retinanet_jax.configs import shapes

        CHANGES = dict(flatten(shapes.get_config("tiny")))
        CHANGES |= {"data.eval_batch_size": 1, "detections.score_threshold": 0.001}
        WORKDIR = "."
        """,
    )
    assert "training from step 4 to 8" in outputs.text("train")
    assert "after step 8\nAP " in outputs.text("table")
    assert outputs.num_images("curve") == outputs.num_images("draw") == 1
    assert checkpoint.load(tmp_path / "checkpoints" / "8").step == 8


@pytest.mark.slow
def test_prelabel(run, program, tiny_run, tmp_path):
    """The loop on a few shapes, with the tiny run's programs: every detection is a label."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        program.use_shared_cache(tmp_path / name)
    outputs = run(
        "prelabel",
        """
        from retinanet_jax.config import flatten
        from retinanet_jax.configs import shapes

        CHANGES = dict(flatten(shapes.get_config("tiny")))
        CHANGES |= {"data.eval_batch_size": 1, "detections.score_threshold": 0.001}
        CHANGES |= {"evaluate_every": 8, "checkpoint_every": 8}
        for field in [name for name in CHANGES if name.startswith(("data.train.", "data.eval."))]:
            del CHANGES[field]
        NUM_SHAPES, THRESHOLD, WORKDIR = (8, 4, 4), 0.001, "."
        """,
    )
    assert "labels with a score of 0.001 or more in 4 images" in outputs.text("prelabel")
    assert outputs.num_images("look") == 1
    assert " objects had a right label" in outputs.text("correct")
    assert " before, " in outputs.text("second")
    # The second run has read the corrected labels of all new images.
    labels = LabelmeSource(tmp_path / "labels" / "labelme")
    truth = CocoSource(tmp_path / "new" / "instances.json", tmp_path / "new" / "images")
    np.testing.assert_allclose(labels.objects.boxes, truth.objects.boxes, atol=1e-4)
    config = checkpoint.load(tmp_path / "second" / "checkpoints" / "8").config
    assert config.data.train.annotations.endswith("labels/labelme")
    assert config.init.path.endswith("first")


@pytest.mark.slow
def test_detect(run, tmp_path):
    """A detector like torchvision's, with a smaller backbone, and a small image."""
    library, config = weights.DETECTOR_FORMATS["torchvision_v1"], preset_config("torchvision_v1")
    config.model.backbone = "resnet18"
    config.data.update(eval_short_side=40, long_side=64)
    shapes = detectors.shapes(library, config, library.num_coco_outputs)
    parity_value = state_dicts["parity_value"]
    arrays = {name: parity_value(name, shape, 0, -2.0) for name, shape in shapes.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    import_weights("torchvision_v1", tmp_path / "weights.npz", tmp_path / "coco", config=config)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    outputs = run("detect", "WEIGHTS, IMAGE, THRESHOLD = 'coco', 'image.png', 0.1")
    assert outputs.num_images("detect") == 1
    results = json.loads((tmp_path / "detections.json").read_text())
    assert results
    assert outputs.text("table").startswith(f"{len(results)} detections of 80 categories")


@pytest.mark.slow
def test_focal_loss(run, tiny_run):
    outputs = run("focal_loss", f"CHECKPOINT, BATCHES = {str(tiny_run.workdir)!r}, 2")
    figures = ("figure1", "gradient", "figure4", "fractions", "prior")
    assert [outputs.num_images(cell_id) for cell_id in figures] == [1] * len(figures)
    # The paper: 100 times lower at p_t = .9, and 1000 times at .968 (section 3.2).
    figure1 = outputs.text("figure1")
    assert "p_t 0.9    cross entropy 0.1054  focal loss 0.001054  100 times" in figure1
    assert "p_t 0.968  cross entropy 0.0325  focal loss 0.000033  977 times" in figure1
    # 96 x 96 pixels: (12^2 + 6^2 + 3^2 + 2^2 + 1) cells of 9 anchors, of 2 batches of 1.
    assert "step 8: 3,492 anchors" in outputs.text("detector")
    # With pi = .5 foreground and background have the same loss: 6 classes x log 2 x .5.
    assert "cross entropy, pi 0.5 : foreground    2.079" in outputs.text("prior")
