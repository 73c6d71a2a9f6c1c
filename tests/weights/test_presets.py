"""docs/presets.md lists the fields in which the presets differ, with their values."""

import pathlib

import numpy as np
import pytest

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.config import flatten, load_config

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "presets.md"
PRESETS = {
    "paper": load_config("configs/r50_fpn.py"),
    "torchvision v1": load_config("configs/torchvision.py:v1"),
    "torchvision v2": load_config("configs/torchvision.py:v2"),
    "detectron2": load_config("configs/detectron2.py"),
}
# Paths of files, and shapes that only save padding.
NOT_LISTED = {"init.path", "data.buckets"}


def rows() -> list[tuple[str, dict[str, str]]]:
    """Return each row of the tables: a field, and its cell in each preset's column."""
    result, columns = [], []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("| -"):
            continue
        if cells[0] in ("field", "preset"):  # the last table has measured results
            columns = cells[1:] if cells[0] == "field" else []
        elif columns:
            result.append((cells[0], dict(zip(columns, cells[1:], strict=True))))
    return result


def field_value(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(("field", "cells"), rows(), ids=lambda value: str(value)[:30])
def test_a_cell_has_the_value_of_the_config(field, cells):
    assert list(cells) == list(PRESETS)
    for name, config in PRESETS.items():
        written = eval(cells[name], {"__builtins__": {"range": range, "tuple": tuple}})
        value = field_value(config, field)
        if isinstance(value, float | tuple) and not isinstance(written, str):
            np.testing.assert_allclose(written, value, rtol=1e-12, err_msg=f"{name}: {field}")
        else:
            assert written == value, f"{name}: {field}"


def test_every_field_in_which_presets_differ_is_listed_once():
    listed = [field for field, _ in rows()]
    assert len(listed) == len(set(listed)) > 40
    differing = {
        field
        for field, _ in flatten(PRESETS["paper"])
        if len({repr(field_value(config, field)) for config in PRESETS.values()}) > 1
    }
    assert differing - NOT_LISTED <= set(listed)
    # All fields of the anchors are listed, whether they differ or not.
    decisive = {field for field, _ in flatten(PRESETS["paper"]) if "anchors." in field}
    assert decisive - {"anchors.min_level", "anchors.max_level"} <= set(listed)


@pytest.mark.parametrize(
    ("name", "resized", "bucket"),
    [
        ("paper", (800, 1067), (800, 1088)),
        ("torchvision v1", (800, 1066), (800, 1088)),
        ("detectron2", (800, 1067), (800, 1088)),
    ],
)
def test_the_sizes_of_a_common_image_by_hand(name, resized, bucket):
    planned = input_pipeline.eval_plan(PRESETS[name], np.array([[480, 640]]), batch_size=1).batch(0)
    assert tuple(planned.resized[0].tolist()) == resized
    assert planned.bucket == bucket


@pytest.mark.parametrize("name", ["torchvision v1", "torchvision v2", "detectron2"])
def test_the_presets_of_libraries_pad_each_image_to_multiples_of_32(name):
    """640 x 640 becomes 800 x 800, which the paper's preset pads to 800 x 928."""
    square = np.array([[640, 640]])
    assert input_pipeline.eval_plan(PRESETS[name], square, batch_size=1).batch(0).bucket == (
        800,
        800,
    )
    paper = input_pipeline.eval_plan(PRESETS["paper"], square, batch_size=1)
    assert paper.batch(0).bucket == (800, 928)


def test_an_unknown_name_of_eval_shapes_is_an_error(config):
    config.data.eval_shapes = "mine"
    with pytest.raises(ValueError, match=r"data\.eval_shapes='mine' must be one of buckets, own\."):
        input_pipeline.eval_plan(config, np.array([[480, 640]]), batch_size=1)


def test_packed_images_of_another_resizing_are_an_error(toy_config, synthetic_dataset, tmp_path):
    """Packed images are bytes, and resized by the method with which they were packed."""
    data = toy_config.data
    data.train.update(source="coco", annotations=f"{synthetic_dataset}/instances.json")
    data.train.images = f"{synthetic_dataset}/images"
    data.resize = "bilinear_float"
    with pytest.raises(ValueError, match="packed pixels are bytes") as caught:
        input_pipeline.pack_datasets(toy_config, ["train"], tmp_path / "refused")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    data.resize = "pillow"
    input_pipeline.pack_datasets(toy_config, ["train"], tmp_path)
    data.train.update(source="packed", annotations="", images=str(tmp_path / "train"))
    assert datasets.open_source(toy_config, "train", tmp_path).resize == "pillow"
    data.resize = "bilinear"
    with pytest.raises(ValueError, match=r"resized by 'pillow', but data\.resize is 'bilinear'"):
        datasets.open_source(toy_config, "train", tmp_path)
