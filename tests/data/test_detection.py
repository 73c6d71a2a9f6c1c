"""The format of a dataset is detected in the layouts of tools, never guessed, and else named."""

import json
import shutil

import pytest
from nine_formats import FORMATS, make_content, write_coco, write_images, write_voc

from retinanet_jax import datasets
from retinanet_jax.config import default_config
from retinanet_jax.data.sources.detection import detect_dataset

CONTENT = make_content(3)
OTHER = make_content(4, seed=1)  # with the same file names


def sizes(path, workdir):
    """Return the numbers of images and boxes of the training and the evaluation data."""
    config = default_config()
    datasets.use_dataset(config, path, given=("data.validation_fraction",))
    train = datasets.open_source(config, "train", workdir)
    parts = [train]
    if config.data.eval.annotations:
        parts.append(datasets.open_source(config, "eval", workdir))
    return [(len(part), len(part.objects.ids)) for part in parts]


BOTH = [(3, len(CONTENT.boxes)), (4, len(OTHER.boxes))]


def write_split(root, image_folder, annotation_folder, name, content):
    """Write a dataset with the annotations in another folder than the images."""
    FORMATS[name](root / "written", content)
    for folder, is_image in ((image_folder, True), (annotation_folder, False)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for path in (root / "written").iterdir():
            if (path.suffix == ".jpg") == is_image:
                path.rename(root / folder / path.name)
    (root / "written").rmdir()


def write_instances(file, content, images):
    """Write COCO's JSON as a file, and the images to a folder."""
    write_coco(file.parent / "written", content)
    (file.parent / "written" / "boxes.json").rename(file)
    images.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "written" / "images").rename(images)
    (file.parent / "written").rmdir()


@pytest.mark.parametrize("name", FORMATS)
def test_outer_folders_of_an_unpacked_archive_change_nothing(tmp_path, name):
    inner = tmp_path / "Köln, (1)" / "data set"
    inner.parent.mkdir()
    FORMATS[name](inner, CONTENT)
    (tmp_path / "__MACOSX" / "data set").mkdir(parents=True)
    (tmp_path / "README.dataset.txt").write_text("x")
    assert detect_dataset(tmp_path) == detect_dataset(inner)
    assert sizes(tmp_path, tmp_path) == sizes(inner, tmp_path)


@pytest.mark.parametrize(
    "names",
    [("Training", "Validation"), ("train_data", "val_data"), ("Train Set", "Test Set")],
)
def test_the_split_is_a_word_of_the_name(tmp_path, names):
    for name, content in zip(names, (CONTENT, OTHER), strict=True):
        write_voc(tmp_path / name, content)
    assert sizes(tmp_path, tmp_path) == BOTH
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / name).rename(tmp_path / "images" / name)
    assert sizes(tmp_path, tmp_path) == BOTH


@pytest.mark.parametrize("name", ["voc", "labelme"])
@pytest.mark.parametrize("folders", [("annotations", "images"), ("ann", "img")])
def test_the_images_of_each_split_are_those_in_its_own_folder(tmp_path, name, folders):
    for split, content in (("train", CONTENT), ("val", OTHER)):
        write_split(tmp_path, f"{folders[1]}/{split}", f"{folders[0]}/{split}", name, content)
    detected = detect_dataset(tmp_path)
    assert detected.train["images"] == str(tmp_path / folders[1] / "train")
    assert detected.evaluation is not None
    assert detected.evaluation["images"] == str(tmp_path / folders[1] / "val")
    assert sizes(tmp_path, tmp_path) == BOTH


@pytest.mark.parametrize("images", ["{}2017", "images/{}2017", "{}"])
@pytest.mark.parametrize("annotations", ["annotations", "annotations_trainval2017/annotations"])
def test_the_official_layout_of_coco(tmp_path, images, annotations):
    folder = tmp_path / annotations
    folder.mkdir(parents=True)
    for split, content in (("train", CONTENT), ("val", OTHER)):
        file = folder / f"instances_{split}2017.json"
        write_instances(file, content, tmp_path / images.format(split))
        shutil.copy(file, folder / f"person_keypoints_{split}2017.json")
        (folder / f"captions_{split}2017.json").write_text('{"images": [], "annotations": []}')
    assert sizes(tmp_path, tmp_path) == BOTH
    assert f"with the images in {tmp_path}" in detect_dataset(tmp_path).description


def test_the_images_of_another_dataset_are_not_read(tmp_path):
    for name in ("first", "second", "labelstudio"):
        write_coco(tmp_path / name, CONTENT)
    (tmp_path / "first" / "images").rename(tmp_path / "photos")
    for name in ("second", "labelstudio"):
        shutil.rmtree(tmp_path / name / "images")
        with pytest.raises(FileNotFoundError, match="3 of 3 images"):
            sizes(tmp_path / name, tmp_path)


def test_names_without_a_suffix_and_paths_of_another_system_find_their_folder(tmp_path):
    header = "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    for split, content in (("train", CONTENT), ("validation", OTHER)):
        write_images(tmp_path / split, content)
        lines = [f"{box.image[:-4]},/m/0,1,0.1,0.2,0.3,0.4,0\n" for box in content.boxes]
        (tmp_path / f"{split}-annotations-bbox.csv").write_text(header + "".join(lines))
    detected = detect_dataset(tmp_path)
    assert detected.train["images"] == str(tmp_path / "train")
    assert detected.evaluation is not None
    assert detected.evaluation["images"] == str(tmp_path / "validation")
    file = write_coco(tmp_path / "windows", CONTENT) / "boxes.json"
    text = file.read_text().replace("photo", r"C:\\data\\photo")
    (tmp_path / "windows" / "images").rename(tmp_path / "windows" / "photos 2")
    write_images(tmp_path / "windows" / "masks", make_content(1)._replace(sizes={"a.jpg": (8, 8)}))
    for suffix in (".jpg", ".png"):
        file.write_text(text.replace(".jpg", suffix))
        assert detect_dataset(file).train["images"] == str(tmp_path / "windows" / "photos 2")


@pytest.mark.parametrize("name", ["voc", "labelme"])
def test_images_are_preferred_to_copies_of_them_in_other_folders(tmp_path, name):
    write_split(tmp_path, "JPEGImages", "Annotations", name, CONTENT)
    for copy in ("AnnotationsVisualization", "backup"):
        shutil.copytree(tmp_path / "JPEGImages", tmp_path / copy)
    assert detect_dataset(tmp_path).train["images"] == str(tmp_path / "JPEGImages")
    assert sizes(tmp_path, tmp_path) == BOTH[:1]
    shutil.copytree(tmp_path / "JPEGImages", tmp_path / "Annotations", dirs_exist_ok=True)
    assert "images" not in detect_dataset(tmp_path).train


def test_a_devkit_of_a_single_split_of_any_name(tmp_path):
    FORMATS["voc devkit"](tmp_path, CONTENT)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "trainval.txt").rename(lists / "default.txt")
    (lists / "cat_default.txt").write_text("photo 0  1\nphoto 1 -1\n")
    assert detect_dataset(tmp_path).train["split"] == "default"
    assert sizes(tmp_path, tmp_path) == BOTH[:1]


def test_other_files_of_the_same_suffix_are_passed_over(tmp_path):
    FORMATS["csv"](tmp_path / "csv", CONTENT)
    (tmp_path / "csv" / "sample_submission.csv").write_text("image_id,PredictionString\na,1 2\n")
    (tmp_path / "csv" / "weather.csv").write_text("id,weather\n1,sun\n")
    assert sizes(tmp_path / "csv", tmp_path) == BOTH[:1]
    write_coco(tmp_path / "coco", CONTENT)
    (tmp_path / "coco" / "results.json").write_text('[{"image_id": 1, "bbox": [], "score": 1}]')
    assert sizes(tmp_path / "coco", tmp_path) == BOTH[:1]


def test_of_several_files_or_datasets_none_is_guessed(tmp_path):
    write_coco(tmp_path / "a", CONTENT)
    boxes = (tmp_path / "a" / "boxes.json").read_bytes()
    (tmp_path / "a" / "boxes.json").unlink()
    for name in ("train2014", "train2017", "val2017"):
        (tmp_path / "a" / f"{name}.json").write_bytes(boxes)
    with pytest.raises(ValueError, match=r"train2014.json and train2017.json both have the word"):
        detect_dataset(tmp_path / "a")
    for name in ("one.json", "other_eval.json"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(boxes)
    with pytest.raises(ValueError, match=r"one.json, other_eval.json\), and no name has the word"):
        detect_dataset(tmp_path / "d")
    for name in ("train/x.json", "train/y.json", "valid/x.json"):
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(boxes)
    with pytest.raises(ValueError, match=r"train: contains 2 files of boxes \(x.json, y.json\)"):
        detect_dataset(tmp_path / "b")
    for year in (2007, 2012):
        FORMATS["voc devkit"](tmp_path / "c" / "VOCdevkit" / f"VOC{year}", CONTENT)
    with pytest.raises(ValueError, match=r"contains 2 datasets \(.*VOC2007.*VOC2012.*give one"):
        detect_dataset(tmp_path / "c")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data.zip", "PK", "data.zip (an archive) cannot be read; unpack it"),
        ("data/train-00000-of-00001.parquet", "PAR1", "Parquet"),
        ("train/cells.tfrecord", "", "TFRecord without TFDS's dataset_info.json"),
        ("train/_classes.csv", "filename, cat\na.jpg, 1\n", "classes of whole images"),
        ("training/label_2/0.txt", "Car 0 0 0 1 2 3 4", "KITTI"),
        ("SegmentationClass/a.png", "", "masks"),
        (
            "x.json",
            '[{"id": 1, "annotations": [{"result": [{"from_name": "l"}]}]}]',
            "Label Studio",
        ),
        ("via.json", '{"a1": {"regions": [{"shape_attributes": {}}]}}', "VIA"),
        ("via.csv", "filename,file_size,region_shape_attributes\n", "VIA"),
        ("p-export.json", '{"assets": {"1": {"regions": [{"boundingBox": {}}]}}}', "VoTT"),
        ("ds/ann/a.jpg.json", '{"objects": [{"classTitle": "cat"}]}', "Supervisely"),
        ("detections.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "results"),
        ("annotations.json", '[{"shapes": [{"type": "polygon"}], "tracks": []}]', "CVAT's backup"),
        ("boxes.json", '{"images": [], "annotations": [{"id"', "boxes.json is not JSON"),
        ("boxes.json", '{"images": [], "annotations": []}', "lists images, annotations and cat"),
        ("boxes.csv", "image_id,width,height,bbox,source\n", "boxes.csv has the header 'image_id"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, file, content, words):
    write_images(tmp_path / "images", CONTENT)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    targets = [tmp_path] if path.suffix in (".txt", ".png") else [tmp_path, path]
    for target in targets:
        with pytest.raises(ValueError, match=r"^--data=") as caught:
            detect_dataset(target)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_json_in_another_encoding_is_named(tmp_path):
    file = write_coco(tmp_path, CONTENT) / "boxes.json"
    file.write_text(file.read_text(), encoding="utf-16")
    with pytest.raises(ValueError, match=r"boxes.json is not in UTF-8; save it in UTF-8"):
        detect_dataset(tmp_path)


def test_an_info_of_tfds_that_another_program_wrote_is_named(tmp_path):
    for name, content in (("features.json", "{}"), ("dataset_info.json", json.dumps({"v": 1}))):
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"dataset_info.json: is not written by TFDS \(KeyError"):
        detect_dataset(tmp_path)
