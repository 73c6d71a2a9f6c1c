"""Files of detections of any program: what is wrong with one is a line that names the entry."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.__main__ import main
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation.results_file import describe_results, read_results

CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog\n<b>"}]
# Ids that are neither positions nor in the order of the names.
IMAGES = {900: "b.jpg", 41: "a.jpg", 2**40: "sub/c.jpg"}
GOOD = {"image_id": 900, "category_id": 7, "bbox": [10, 20.5, 30, 40], "score": 0.5}


@pytest.fixture
def dataset(tmp_path) -> pathlib.Path:
    """A folder with three images of 100 x 80 pixels, of which the first one has two objects."""
    folder = tmp_path / "mine"
    for name in IMAGES.values():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(path)
    images = [
        {"id": image_id, "file_name": name, "width": 100, "height": 80}
        for image_id, name in IMAGES.items()
    ]
    box = {"image_id": 900, "area": 1200, "iscrowd": 0}
    annotations = [
        {"id": 1, "category_id": 7, "bbox": [10, 20.5, 30, 40], **box},
        {"id": 2, "category_id": 2, "bbox": [50, 30, 30, 40], **box},
    ]
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def read(dataset, tmp_path):
    """`read(entries)`: the detections that are read from a file with these entries or this text."""
    source = CocoSource(dataset / "instances.json", dataset / "images")

    def read(entries):
        path = tmp_path / "results.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return read_results(path, source)

    return read


def changed(**fields):
    """Return a good entry and one with other fields; those that are None are left out."""
    entry = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
    return [GOOD, entry]


def test_the_fields_of_good_entries_are_read_and_no_others(read):
    entries = [{**GOOD, "segmentation": {}, "area": 3, "id": 5}, {**GOOD, "score": -3}]
    assert read(entries) == [GOOD, {**GOOD, "score": -3}]
    assert read([]) == []
    assert read([{**GOOD, "image_id": 2**40, "file_name": "/data/c.jpg"}])[0]["image_id"] == 2**40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "results.json is no JSON file (Expecting value: line 1 column 1 (char 0))."),
        ("\x00", "results.json is no JSON file ("),
        ('"text"', "results.json is a JSON str, and not a list of detections as in COCO's results"),
        ("{}", "results.json is a JSON object of nothing, and not a list of detections"),
        (
            '{"images": [], "annotations": []}',
            "a JSON object of images, annotations, and not a list of detections as in COCO's "
            "results format; it reads as a dataset, which --data names.",
        ),
        ('{"detections": []}', "a JSON object of detections, and not a list of detections"),
    ],
)
def test_a_file_that_is_no_list_is_named(read, content, message):
    with pytest.raises(ValueError, match=r"results\.json") as error:
        read(content)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD, 5], "must be an object with image_id, category_id, bbox, score, and is 5."),
        ([GOOD, [GOOD]], "must be an object with image_id, category_id, bbox, score, and is [{"),
        (changed(bbox=None), "has no bbox, which COCO's results format requires; it has image_id,"),
        (changed(image_id=None), "has no image_id, which COCO's results format requires"),
        (changed(category_id=None), "has no category_id, which COCO's results format requires"),
        ([GOOD, {}], "has no image_id, which COCO's results format requires; it has no field."),
        (changed(bbox=None, segmentation=[]), "has a segmentation and no bbox, but AP is that of"),
        (changed(score=None), "has no score, by which AP ranks the detections; add the confidence"),
        (changed(bbox=[1, 2, 3]), "has bbox=[1, 2, 3], which must be four finite numbers: x, y, "),
        (changed(bbox=[1, 2, 3, 4, 5]), "has bbox=[1, 2, 3, 4, 5], which must be four finite"),
        (changed(bbox=[1, 2, 3, "4"]), 'has bbox=[1, 2, 3, "4"], which must be four finite'),
        (changed(bbox=[1, 2, 3, True]), "has bbox=[1, 2, 3, true], which must be four finite"),
        (changed(bbox=[1, 2, 3, np.nan]), "has bbox=[1, 2, 3, NaN], which must be four finite"),
        (changed(bbox=[10**400, 2, 3, 4]), "has bbox=[1000000"),
        (changed(bbox={"x": 1}), 'has bbox={"x": 1}, which must be four finite numbers'),
        (changed(score=np.inf), "has score=Infinity, which must be a finite number."),
        (changed(score="0.5"), 'has score="0.5", which must be a finite number.'),
    ],
)
def test_the_first_wrong_entry_is_named(read, entries, message):
    with pytest.raises(ValueError, match=r"results\.json: entry 1 ") as error:
        read(entries)
    assert f"results.json: entry 1 (the first one is 0) {message}" in str(error.value)
    assert len(str(error.value)) < 500


def with_ids(*image_ids):
    return [{**GOOD, "image_id": image_id} for image_id in image_ids]


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        (
            (900, 5, 5, 77),
            "entry 1 (the first one is 0) has image_id=5, which is not in {data} (unknown: 2 of "
            "the 3 image ids in the file); the dataset's ids begin with 900, 41, 1099511627776; "
            "give the dataset that was predicted.",
        ),
        ((1, 2, 3), "the ids look like positions of the images; give the dataset's ids, such as "),
        ((0, 1), "such as 900, 41, 1099511627776: `retinanet-jax predict --data=DATASET` writes"),
        (("b.jpg",), "is text; give the dataset's id, which for b.jpg is the number 900."),
        (("a",), "is text; give the dataset's id, which for a is the number 41."),
        (("sub/c.jpg",), "the dataset's id, which for sub/c.jpg is the number 1099511627776."),
        (("900",), 'has image_id="900", which is not in {data} (unknown: 1 of the 1 image ids in'),
        (("900",), "is text; give the dataset's id, which for 900 is the number 900."),
        ((None, [1]), 'has image_id="null", which is not in {data} (unknown: 2 of the 2 image id'),
    ],
)
def test_unknown_images_are_counted_and_their_ids_explained(read, dataset, image_ids, message):
    with pytest.raises(ValueError, match="which is not in") as error:
        read(with_ids(*image_ids))
    assert message.format(data=dataset / "instances.json") in str(error.value)


def test_known_ids_of_other_images_are_an_error_if_the_file_names_differ(read):
    entries = [{**GOOD, "file_name": "images/b.jpg"}, {**GOOD, "file_name": "images/a.jpg"}]
    with pytest.raises(ValueError, match="entry 1 ") as error:
        read(entries)
    assert "is of the image images/a.jpg, but in" in str(error.value)
    assert "the image_id 900 is b.jpg; give the dataset's ids" in str(error.value)


@pytest.mark.parametrize(
    ("category_ids", "message"),
    [
        (
            (7, 1, 3, 1),
            "entry 1 (the first one is 0) has category_id=1, which is not in {data} (unknown: 2 of "
            "the 3 category ids in the file); the dataset's categories are 2 cat, 7 dog <b>.",
        ),
        ((1, 0), "the ids look like indices of classes from 0; the dataset's categories are 2 cat"),
        (("cat",), 'has category_id="cat", which is not in {data} (unknown: 1 of the 1 category'),
    ],
)
def test_unknown_categories_are_counted_and_the_datasets_listed(
    read, dataset, category_ids, message
):
    with pytest.raises(ValueError, match="which is not in") as error:
        read([{**GOOD, "category_id": category_id} for category_id in category_ids])
    assert message.format(data=dataset / "instances.json") in str(error.value)


def test_the_categories_of_a_large_dataset_are_not_all_listed(dataset, tmp_path):
    file = dataset / "instances.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": k, "name": f"{k}" * 300} for k in range(1, 1_001)]
    file.write_text(json.dumps(content))
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**GOOD, "category_id": -1}]))
    with pytest.raises(ValueError, match="has category_id=-1") as error:
        read_results(path, CocoSource(file, dataset / "images"))
    assert str(error.value).endswith(", and 990 more.")
    assert len(str(error.value)) < 1_000


def test_corners_instead_of_sides_are_an_error(read):
    """As [x, y, width, height] they would extend beyond the image of 100 x 80."""
    corners = [[60, 40, 90, 70], [50, 30, 80, 75], [70, 45, 95, 78]]
    with pytest.raises(ValueError, match=r"nearly all would if they were read as corners") as error:
        read([{**GOOD, "bbox": box} for box in corners])
    assert "results.json: 3 of 3 boxes do not fit their image" in str(error.value)


def test_the_numbers_of_detections_categories_and_images(read, dataset):
    source = CocoSource(dataset / "instances.json", dataset / "images")
    results = read([GOOD, GOOD, {**GOOD, "image_id": 41}])
    assert describe_results(results, source) == (
        "3 detections of 1 of the 2 categories in 2 of the 3 images"
    )


# ---- the command


@pytest.fixture
def results_file(tmp_path):
    """Detections of both objects, and one dog with a higher score in an image without objects."""
    entries = [
        GOOD,
        {**GOOD, "category_id": 2, "bbox": [50, 30, 30, 40]},
        {**GOOD, "image_id": 41, "score": 0.75},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    return path


def evaluate(*arguments):
    argv = ["retinanet-jax", "evaluate", *map(str, arguments)]
    return main(argv)


def test_the_metrics_are_printed_and_written(results_file, dataset, tmp_path, capsys):
    """The first of two dogs is wrong, so that precision is 1/2 at every recall."""
    flags = (f"--detections={results_file}", f"--data={dataset}")
    assert evaluate(*flags, f"--output={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    assert f"images in {dataset}/images; all images are used\n" in printed
    counts = "3 detections of 2 of the 2 categories in 2 of the 3 images"
    assert f"{results_file}: {counts}\n" in printed
    assert f"categories of {dataset}/instances.json: 2 cat, 7 dog <b>\n" in printed
    assert "(AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.750" in printed
    assert "AP by category, worst first:" in printed
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert content["AP"] == pytest.approx(0.75)
    assert content["AP_by_category"] == pytest.approx({"cat": 1.0, "dog\n<b>": 0.5})
    assert content["dataset"]["num_images"] == 3
    assert content["detections"] == str(results_file)
    assert evaluate(*flags) == 0  # and writes nothing
    assert capsys.readouterr().out == printed.partition("written to ")[0]


def test_more_detections_of_an_image_than_coco_counts_have_metrics_of_their_own(
    dataset, tmp_path, capsys
):
    """102 detections of a dog, of which the last one is right."""
    entries = [{**GOOD, "bbox": [0, 0, 5, 5], "score": 0.9}] * 101 + [GOOD]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    evaluate(f"--detections={tmp_path / 'results.json'}", f"--data={dataset}")
    printed = capsys.readouterr().out
    assert "(AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.000" in printed
    assert "(AR) @[ IoU=0.50:0.95 | area=   all | maxDets=102 ] = 0.500" in printed


def test_without_objects_the_reason_is_printed(dataset, results_file, capsys):
    file = dataset / "instances.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    assert evaluate(f"--detections={results_file}", f"--data={dataset}") == 0
    assert "AP is undefined, because none of its 3 images has a box\n" in capsys.readouterr().out


def test_the_images_are_not_needed(dataset, results_file, tmp_path, caplog):
    """Only the annotations, in COCO's format; the other numbers are the same."""
    flags = (f"--detections={results_file}", f"--data={dataset / 'instances.json'}")
    evaluate(*flags, f"--output={tmp_path / 'with'}")
    assert caplog.messages == []
    shutil.rmtree(dataset / "images")
    evaluate(*flags, f"--output={tmp_path / 'without'}")
    (message,) = caplog.messages
    assert "3 of 3 images of " in message
    assert message.endswith(" AP is computed without the images.")
    expected, content = (
        json.loads((tmp_path / name / "evaluation.json").read_text())
        for name in ("with", "without")
    )
    assert expected.pop("dataset")["sha256"] != content.pop("dataset")["sha256"]
    assert content == expected


def test_a_missing_file_of_annotations_is_an_error(dataset, results_file, error_line):
    flags = [f"--config.data.eval.{name}" for name in ("source", "annotations", "images")]
    values = ("coco", dataset / "none.json", dataset)
    given = [f"{flag}={value}" for flag, value in zip(flags, values, strict=True)]
    config = "--config=configs/finetune.py"
    line = error_line("evaluate", f"--detections={results_file}", config, *given)
    assert "none.json" in line


def test_a_part_of_the_images_is_evaluated_if_asked(dataset, results_file, error_line):
    """As after a training that has held out a part."""
    fraction = "--config.data.validation_fraction=0.5"
    line = error_line("evaluate", f"--detections={results_file}", f"--data={dataset}", fraction)
    assert "which is not in" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--detections={tmp}/results.json",), "give --data=FOLDER_OR_FILE, the dataset that they"),
        (("--detections={tmp}/absent.json", "--data={tmp}/mine"), "absent.json"),
        (("--detections={tmp}/results.json", "--data={tmp}/absent"), "absent"),
        (("--output={tmp}/out", "--workdir={tmp}"), "is only used with --detections; the evaluati"),
        ((), "no --workdir: give that of a run, or --detections=FILE --data=FOLDER_OR_FILE to eva"),
        (
            ("--detections={tmp}/results.json", "--data={tmp}/mine", "--output={tmp}/results.json"),
            "results.json",
        ),
        (
            ("--detections={tmp}/results.json", "--data={tmp}/mine", "--output=gs://bucket/x"),
            "--output=gs://bucket/x: must be on a local disk",
        ),
    ],
)
@pytest.mark.usefixtures("results_file", "dataset")
def test_mistakes_are_errors_of_one_line(error_line, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in error_line("evaluate", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_user_wrote_is_not_replaced(error_line, dataset, results_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/evaluation.json").write_text("mine")
    flags = (f"--detections={results_file}", f"--data={dataset}", f"--output={tmp_path / 'out'}")
    assert "evaluation.json is not replaced" in error_line("evaluate", *flags)
    assert (tmp_path / "out/evaluation.json").read_text() == "mine"
