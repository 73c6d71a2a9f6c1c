"""The same dataset in every format, opened by its folder, has the same boxes, classes and AP."""

import importlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from nine_formats import FORMATS, Content, make_content, write_images

from retinanet_jax import datasets
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.detection import detect_dataset
from retinanet_jax.evaluation.coco_metrics import coco_metrics


@pytest.fixture(scope="module")
def content() -> Content:
    return make_content()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, content) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("formats")
    return {name: write(root / name, content) for name, write in FORMATS.items()}


def open_folder(folder, workdir):
    """Open the training data of a folder of any format."""
    config = default_config()
    datasets.use_dataset(config, folder, given=())
    return datasets.open_source(config, "train", workdir)


def run(command, *arguments):
    """Run a command in this process, which must succeed."""
    module = importlib.import_module(f"retinanet_jax.cli.{command}")
    assert run_command(module.COMMAND, ["program", *map(str, arguments)]) == 0


def contents(source):
    """Return the objects by image: their names and yxyx boxes."""
    result = {}
    for index in range(len(source)):
        boxes, classes, crowd = source.annotations(index)
        assert not crowd.any()
        names = [source.categories[k].name for k in classes]
        name = pathlib.PurePath(source.file_name(index)).name
        result[name] = sorted(zip(names, boxes.tolist(), strict=True))
    return result


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_classes_sizes_and_pixels_are_those_of_the_content(folders, content, name, tmp_path):
    source = open_folder(folders[name], tmp_path)
    assert tuple(category.name for category in source.categories) == content.names
    read_boxes = contents(source)
    assert sorted(read_boxes) == sorted(content.sizes)
    for image, size in content.sizes.items():
        expected = sorted((b.name, [b.xyxy[k] for k in (1, 0, 3, 2)]) for b in content.of(image))
        assert [name for name, _ in read_boxes[image]] == [name for name, _ in expected]
        boxes = [box for _, box in read_boxes[image]]
        np.testing.assert_allclose(
            np.reshape(boxes, (-1, 4)), np.reshape([box for _, box in expected], (-1, 4)), atol=1e-4
        )
        index = [pathlib.PurePath(path).name for path in source.file_names].index(image)
        assert source.image(index).shape == (*size, 3)


def detections(source, coco, shift):
    """Return the boxes of `coco`, shifted by pixels, as detections with the ids of `source`."""
    image_id = {
        pathlib.PurePath(path).name: i
        for path, i in zip(source.file_names, source.image_ids, strict=True)
    }
    category_id = {category.name: category.id for category in source.categories}
    return [
        {
            "image_id": image_id[file_name],
            "category_id": category_id[coco.categories[k].name],
            "bbox": [float(x1) + shift, float(y1), float(x2 - x1), float(y2 - y1)],
            "score": 0.5,
        }
        for index, file_name in enumerate(coco.file_names)
        for (y1, x1, y2, x2), k in zip(*coco.annotations(index)[:2], strict=True)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_detections_have_the_same_ap_in_every_format(folders, name, tmp_path):
    source, coco = (open_folder(folders[key], tmp_path) for key in (name, "coco"))
    for shift, expected in ((0, 1), (1.3, None)):  # no IoU is exactly a threshold
        metrics, other = (
            coco_metrics(data.ground_truth(), detections(data, coco, shift))[0]
            for data in (source, coco)
        )
        assert metrics["AP"] == pytest.approx(expected or other["AP"])
    assert 0 < metrics["AP"] < 1


@pytest.mark.parametrize("name", FORMATS)
def test_the_converted_dataset_is_the_same(folders, name, tmp_path):
    output = tmp_path / "deeper" / "converted.json"
    output.parent.mkdir()
    run("convert", f"--data={folders[name]}", f"--output={output}")
    assert contents(open_folder(output, tmp_path)) == contents(open_folder(folders[name], tmp_path))


SPLITS = [f"{train}+{other}" for train in ("train",) for other in ("valid", "test")]


@pytest.mark.parametrize("names", SPLITS)
@pytest.mark.parametrize("name", ["roboflow coco", "voc", "labelme", "csv"])
def test_a_folder_for_each_split(content, tmp_path, name, names):
    for split in names.split("+"):
        if name == "roboflow coco":
            FORMATS["coco"](tmp_path / split, content)
            for path in (tmp_path / split / "images").iterdir():
                path.rename(tmp_path / split / path.name)
        else:
            FORMATS[name](tmp_path / split, content)
    detected = detect_dataset(tmp_path)
    assert "/train" in detected.train["annotations"]
    assert detected.evaluation is not None
    assert f"/{names.split('+')[1]}" in detected.evaluation["annotations"]
    config = default_config()
    description = datasets.use_dataset(config, tmp_path, given=())
    assert "held out" not in description
    train, evaluation = datasets.open_sources(config, tmp_path)
    assert contents(train) == contents(evaluation)


def test_categories_that_only_one_split_has_are_those_of_both(content, tmp_path):
    only_cats = content._replace(boxes=[box for box in content.boxes if box.name == "cat"])
    FORMATS["labelme"](tmp_path / "train", only_cats)
    FORMATS["labelme"](tmp_path / "test", content)
    config = default_config()
    datasets.use_dataset(config, tmp_path, given=())
    train, evaluation = datasets.open_sources(config, tmp_path)
    assert train.categories == evaluation.categories == ((1, "cat"), (2, "dog"))
    assert contents(evaluation)["photo 0.jpg"]


def test_without_evaluation_data_some_images_are_for_validation(folders):
    config = default_config()
    description = datasets.use_dataset(config, folders["yolo"], given=())
    assert description.startswith("data: YOLO: ")
    assert description.endswith("; 20% of the images are held out for evaluation")
    assert datasets.splits_training_data(config)


def test_fields_that_are_given_have_precedence(folders):
    config = default_config()
    config.data.train.images = "elsewhere"
    config.data.validation_fraction = 0.0
    given = ("data.train.images", "data.validation_fraction")
    datasets.use_dataset(config, folders["coco"], given)
    assert config.data.train.images == "elsewhere"
    assert config.data.train.annotations == str(folders["coco"] / "boxes.json")
    assert config.data.validation_fraction == 0


def test_evaluate_reads_all_images_unless_the_run_split_them(folders):
    def evaluated(trained_folder, *given, fraction=None):
        trained, config = default_config(), default_config()
        datasets.use_dataset(trained, trained_folder, given=())
        if fraction is not None:
            config.data.validation_fraction = fraction
        datasets.use_dataset(config, folders["voc"], given)
        message = datasets.use_all_images(config, trained, given)
        return message, config.data.eval.annotations

    all_images = ("all images are used", str(folders["voc"]))
    assert evaluated(folders["voc"]) == ("", "")
    message, annotations = evaluated(folders["coco"])
    assert "only the held-out images are used" in message
    assert not annotations
    given = "data.validation_fraction"
    assert evaluated(folders["coco"], given, fraction=0.3) == ("", "")
    assert evaluated(folders["coco"], given, fraction=0.0) == all_images
    split = folders["voc"].parent / "split"
    for name in ("train", "valid"):
        shutil.copytree(folders["coco"], split / name)
    assert evaluated(split) == all_images


def test_a_file_of_annotations_is_enough(folders, tmp_path):
    for name, file in (
        ("coco", "boxes.json"),
        ("yolo", "data.yaml"),
        ("cvat", "annotations.xml"),
        ("csv", "boxes.csv"),
        ("voc", "photo 0.xml"),
        ("labelme", "photo 0.json"),
    ):
        expected = contents(open_folder(folders[name], tmp_path))
        assert contents(open_folder(folders[name] / file, tmp_path)) == expected


def test_a_packed_folder_is_recognized(folders, tmp_path):
    packed = tmp_path / "packed"
    run("pack", f"--data={folders['coco']}", f"--output={packed}", "--config=r50_fpn.py:tiny")
    detected = detect_dataset(packed)
    assert detected.train == {"source": "packed", "images": str(packed / "train")}
    assert detected.evaluation == {"source": "packed", "images": str(packed / "eval")}


def test_unknown_data_are_refused_with_what_was_looked_for(content, tmp_path, error_line):
    write_images(tmp_path / "photos", content)
    message = error_line("convert", f"--data={tmp_path / 'photos'}", "--output=x.json")
    for word in (
        "photo 0.jpg",
        "and 1 more",
        "COCO",
        "YOLO",
        "VOC",
        "CSV",
        "LabelMe",
        "CVAT",
        "TFDS",
    ):
        assert word in message
    assert "no such file or folder" in error_line("convert", "--data=nowhere", "--output=x.json")
    assert "--data" in error_line("convert", "--data=one", "--data", "two", "--output=x.json")
    (tmp_path / "notes.txt").write_text("x")
    assert "a file .txt" in error_line(
        "convert", f"--data={tmp_path / 'notes.txt'}", "--output=x.json"
    )


def test_files_that_are_not_named_after_a_split_are_not_guessed(folders, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_bytes((folders["coco"] / "boxes.json").read_bytes())
    with pytest.raises(ValueError, match=r"2 files of boxes \(a.json, b.json\)"):
        detect_dataset(tmp_path)


def test_the_folder_of_the_images_of_a_json_is_detected(folders, tmp_path, content):
    for folder in ("boxes", "images/train", "photographs"):
        root = tmp_path / folder.replace("/", "_")
        write_images(root / folder, content)
        (root / "boxes.json").write_bytes((folders["coco"] / "boxes.json").read_bytes())
        detected = detect_dataset(root / "boxes.json")
        assert detected.train["images"] == str(root / folder)
        CocoSource(detected.train["annotations"], detected.train["images"])


def test_convert_writes_the_evaluation_data_too_and_replaces_nothing(content, tmp_path, error_line):
    only_cats = content._replace(boxes=[box for box in content.boxes if box.name == "cat"])
    FORMATS["voc"](tmp_path / "data" / "train", content)
    FORMATS["voc"](tmp_path / "data" / "valid", only_cats)
    output = tmp_path / "new" / "folder" / "x.json"
    run("convert", f"--data={tmp_path / 'data'}", f"--output={output}")
    written = [json.loads(path.read_text()) for path in (output, output.with_name("x_eval.json"))]
    counts = [len(content.boxes), len(only_cats.boxes)]
    assert [len(part["annotations"]) for part in written] == counts
    assert written[0]["categories"] == written[1]["categories"]
    detected = detect_dataset(output.parent)
    assert detected.train["annotations"] == str(output)
    assert detected.evaluation is not None
    assert detected.evaluation["annotations"] == str(output.with_name("x_eval.json"))
    assert "exists" in error_line("convert", f"--data={tmp_path / 'data'}", f"--output={output}")
    assert "ends with .json" in error_line("convert", f"--data={output}", "--output=x.txt")


def test_convert_names_images_that_are_no_files(folders, tmp_path, capsys):
    packed = tmp_path / "packed"
    run("pack", f"--data={folders['coco']}", f"--output={packed}", "--config=r50_fpn.py:tiny")
    capsys.readouterr()
    run("convert", f"--data={packed}", f"--output={tmp_path / 'x.json'}")
    assert capsys.readouterr().out.count("write its images, which are no files, to a folder") == 2
