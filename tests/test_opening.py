"""Datasets are opened with the paths and the decoding of the config."""

import json
import shutil

import pytest

from retinanet_jax import datasets
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.decoding import Decoding


@pytest.fixture
def copy_dataset(synthetic_dataset, tmp_path):
    """Return `copy_dataset(name)`, which copies the synthetic dataset to a folder."""

    def copy_dataset(name: str):
        return shutil.copytree(synthetic_dataset, tmp_path / name)

    return copy_dataset


def test_commas_in_existing_paths_belong_to_them(config, copy_dataset, tmp_path):
    first, second, third = map(copy_dataset, ("boxes, many", "boxes", "a,b,c"))
    config.data.train.update(
        annotations=f"{first}/instances.json", images=f"{first}/images", source="coco"
    )
    assert len(datasets.open_training(config, tmp_path)) == 20
    folders = (first, second, third)
    config.data.train.update(
        annotations=",".join(f"{folder}/instances.json" for folder in folders),
        images=", ".join(f"{folder}/images" for folder in folders),
    )
    source = datasets.open_training(config, tmp_path)
    assert len(source) == 60
    assert source.read(41) == source.read(1)
    config.data.train.images = f"{first}/images,{second}/images"
    with pytest.raises(ValueError, match=r"data\.train\.images lists 2 sources, but another field"):
        datasets.open_training(config, tmp_path)


def write_all_formats(folder, images) -> dict[str, dict[str, str]]:
    """Write a box of the synthetic dataset in each format; return the fields of the section."""
    image = next(images.iterdir())
    (folder / "yolo").mkdir()
    shutil.copy(image, folder / "yolo")
    (folder / f"yolo/{image.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "yolo/classes.txt").write_text("cat\n")
    (folder / "voc").mkdir()
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    (folder / f"voc/{image.stem}.xml").write_text(
        f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    (folder / "boxes.csv").write_text(f"path,x1,y1,x2,y2,class\n{image.name},1,1,9,9,cat\n")
    (folder / "labelme").mkdir()
    shape = {"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    size = {"imageHeight": 96, "imageWidth": 96}
    labels = {"shapes": [shape], "imagePath": image.name, **size}
    (folder / f"labelme/{image.stem}.json").write_text(json.dumps(labels))
    box = '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" occluded="0"></box>'
    cvat = f'<image id="0" name="{image.name}" width="96" height="96">{box}</image>'
    (folder / "cvat.xml").write_text(f"<annotations>{cvat}</annotations>")
    return {
        "yolo": {"annotations": str(folder / "yolo"), "images": ""},
        "voc": {"annotations": str(folder / "voc")},
        "csv": {"annotations": str(folder / "boxes.csv")},
        "labelme": {"annotations": str(folder / "labelme")},
        "cvat": {"annotations": str(folder / "cvat.xml")},
    }


def test_every_format_is_decoded_by_the_rules_of_the_config(config, synthetic_dataset, tmp_path):
    images = synthetic_dataset / "images"
    formats = write_all_formats(tmp_path, images)
    formats["coco"] = {"annotations": str(synthetic_dataset / "instances.json")}
    for exif, expected, num_decisions in (
        ("ignored", "ignored", 0),
        ("applied", "applied", 0),
        ("auto", "applied", 1),
    ):
        config.data.update(exif=exif, value_range="0,4095")
        for name, fields in formats.items():
            config.data.train.update({"source": name, "images": str(images)} | fields)
            source = datasets.open_training(config, tmp_path)
            assert source.decoding == Decoding((0.0, 4095.0), expected), name
            assert len(source.exif_decisions) == num_decisions, name


def test_an_unknown_rule_for_exif_is_an_error(config):
    config.data.exif = "yes"
    with pytest.raises(ValueError, match=r"data\.exif='yes' must be one of auto, applied, ignored"):
        check_fields(config)


def test_the_error_for_different_categories_lists_only_those_that_differ(
    config, copy_dataset, tmp_path
):
    for part in ("train", "eval"):
        folder = copy_dataset(part)
        config.data[part].update(
            annotations=f"{folder}/instances.json", images=f"{folder}/images", source="coco"
        )
    path = tmp_path / "eval/instances.json"
    content = json.loads(path.read_bytes())
    content["categories"] += [{"id": 100 + k, "name": f"new {k}"} for k in range(1000)]
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"only in the former: none; only in the latter: 100 new 0, 101 new 1"
    ) as caught:
        datasets.open_sources(config, tmp_path)
    assert "and 990 more" in str(caught.value)
