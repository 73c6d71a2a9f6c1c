"""docs/presets.md says what the presets do, and no field in which they differ is missing there."""

import pathlib

import numpy as np
import pytest

from retinanet_jax import input_pipeline
from retinanet_jax.config import field_names
from retinanet_jax.configs import detectron2, r50_fpn, torchvision

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "presets.md"
PRESETS = {
    "paper": r50_fpn.get_config(),
    "torchvision v1": torchvision.get_config("v1"),
    "torchvision v2": torchvision.get_config("v2"),
    "detectron2": detectron2.get_config(),
}
# Where files are, and shapes that only save padding.
NOT_TOLD = {"init.path", "data.buckets"}


def rows() -> list[tuple[str, dict[str, str]]]:
    """Each row of the tables: a field, and its cell in each preset's column."""
    found, columns = [], []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("| -"):
            continue
        if cells[0] in ("field", "preset"):  # the last table is of what was measured
            columns = cells[1:] if cells[0] == "field" else []
        elif columns:
            found.append((cells[0], dict(zip(columns, cells[1:], strict=True))))
    return found


def at(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(("field", "cells"), rows(), ids=lambda value: str(value)[:30])
def test_a_cell_is_the_configs_value(field, cells):
    assert list(cells) == list(PRESETS)
    for name, config in PRESETS.items():
        told = eval(cells[name], {"__builtins__": {"range": range, "tuple": tuple}})
        value = at(config, field)
        if isinstance(value, float | tuple) and not isinstance(told, str):
            np.testing.assert_allclose(told, value, rtol=1e-12, err_msg=f"{name}: {field}")
        else:
            assert told == value, f"{name}: {field}"


def test_every_field_in_which_presets_differ_is_told_once():
    told = [field for field, _ in rows()]
    assert len(told) == len(set(told)) > 40
    differing = {
        field
        for field in field_names(PRESETS["paper"])
        if len({repr(at(config, field)) for config in PRESETS.values()}) > 1
    }
    assert differing - NOT_TOLD <= set(told)
    # What evaluates a detector, all of it, whether they differ or not.
    decisive = {name for name in field_names(PRESETS["paper"]) if "anchors." in name}
    assert decisive - {"anchors.min_level", "anchors.max_level"} <= set(told)


@pytest.mark.parametrize(
    ("name", "resized", "bucket"),
    [
        ("paper", (800, 1067), (800, 1088)),
        ("torchvision v1", (800, 1066), (800, 1088)),
        ("detectron2", (800, 1067), (800, 1088)),
    ],
)
def test_a_common_picture_by_hand(name, resized, bucket):
    """480 x 640."""
    planned = input_pipeline.eval_plan(PRESETS[name], np.array([[480, 640]]), batch_size=1).batch(0)
    assert tuple(planned.resized[0].tolist()) == resized
    assert planned.bucket == bucket


@pytest.mark.parametrize("name", ["torchvision v1", "torchvision v2", "detectron2"])
def test_the_peers_pad_each_picture_to_multiples_of_32(name):
    """640 x 640 becomes 800 x 800, for which the paper's preset takes 800 x 928."""
    square = np.array([[640, 640]])
    assert input_pipeline.eval_plan(PRESETS[name], square, batch_size=1).batch(0).bucket == (
        800,
        800,
    )
    ours = input_pipeline.eval_plan(PRESETS["paper"], square, batch_size=1)
    assert ours.batch(0).bucket == (800, 928)


def test_shapes_of_another_name_are_refused(config):
    config.data.eval_shapes = "mine"
    with pytest.raises(ValueError, match=r"data\.eval_shapes='mine' must be one of buckets, own\."):
        input_pipeline.eval_plan(config, np.array([[480, 640]]), batch_size=1)


def test_packed_pictures_of_another_kind_are_refused(toy_config, drawn, tmp_path):
    """Packed ones are bytes, of the kind of resizing that they were packed with."""
    data = toy_config.data
    data.train.update(source="coco", annotations=f"{drawn}/instances.json")
    data.train.images = f"{drawn}/images"
    data.resize = "bilinear_float"
    with pytest.raises(ValueError, match="packed ones are bytes") as caught:
        input_pipeline.pack_datasets(toy_config, ["train"], tmp_path / "refused")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    data.resize = "pillow"
    input_pipeline.pack_datasets(toy_config, ["train"], tmp_path)
    data.train.update(source="packed", annotations="", images=str(tmp_path / "train"))
    assert input_pipeline.open_source(toy_config, "train", tmp_path).resize == "pillow"
    data.resize = "bilinear"
    with pytest.raises(ValueError, match=r"resized by 'pillow', and data\.resize is 'bilinear'"):
        input_pipeline.open_source(toy_config, "train", tmp_path)
