"""The flags of `predict`, and its errors in one line."""

import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.cli import predict
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections


class CatDetector:
    """A detector of a cat at .9 and a dog at .2 in every image that is not empty."""

    checkpoint = types.SimpleNamespace(config=default_config())

    def batch_with_errors(self, images, batch_size):
        assert batch_size == 2
        for path in images:
            if not path.stat().st_size:
                yield ValueError(f"{path}: empty")
                continue
            yield Detections(
                image=np.asarray(Image.open(path)),
                boxes=np.float32([[3, 2, 30, 20], [0, 0, 5, 9]]),
                scores=np.float32([0.9, 0.2]),
                classes=np.array([1, 0]),
                categories=(Category(3, "dog"), Category(7, "cat")),
            )


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    """The user's cache is not touched."""
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """A folder with three images, one of them in a folder of its own."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deep/a.jpg"):
        Image.new("RGB", (60, 40), (50, 90, 130)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --weights=NAME_OR_DIR_OR_FILE --output=DIR"),
        (("--checkpoint={tmp}/absent",), "give --weights=NAME_OR_DIR_OR_FILE --out"),
        (
            ("--output={tmp}/o", "--weights={tmp}/absent", "{tmp}/images"),
            "absent does not exist, and",
        ),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/nope"), "nope: no such image"),
        (("--output={tmp}/o", "--checkpoint={tmp}"), "no images: pass image files, folders or p"),
        (("--output={tmp}/o", "--checkpoint={tmp}", "{tmp}/images/deep/.."), "no checkpoint"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(error_line, images, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in error_line("predict", *arguments)
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_a_folder_is_named(error_line, images, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: CatDetector())
    (tmp_path / "file").write_text("")
    arguments = ["--batch_size=2", f"--output={tmp_path}/file/out", images / "a.png"]
    assert f"{tmp_path}/file/out" in error_line("predict", "--checkpoint=run", *arguments)


def test_the_flags_reach_the_detector(images, tmp_path, monkeypatch, capsys):
    """Images that cannot be read are listed at the end, with exit status 1."""
    given = {}
    monkeypatch.setattr(
        predict.Detector, "load", lambda path, **limits: given.update(limits) or CatDetector()
    )
    (images / "b.JPG").rename(images / "b\n.JPG").write_text("")
    argv = [
        "predict",
        "--checkpoint=run",
        f"--output={tmp_path}/out",
        "--score_threshold=0.3",
        "--iou_threshold=0.4",
        "--class_agnostic",
        "--max_detections=7",
        "--categories=dog,cat",
        "--batch_size=2",
        "--nodraw",
        "--csv",
        str(images),
    ]
    assert run_command(predict.COMMAND, argv) == 1
    assert given == {
        "score_threshold": 0.3,
        "iou_threshold": 0.4,
        "class_agnostic": True,
        "max_detections": 7,
        "categories": ["dog", "cat"],
    }
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert written == ["detections.csv", "detections.json"]
    printed = capsys.readouterr()
    assert "4 detections in 2 images: " in printed.out
    assert f"1 of 3 images could not be read:\n  {images / 'b .JPG'}: " in printed.err
