"""The detectors of the formats: each returns the dataset in a file or folder, or None."""

import itertools
import json
import pathlib
import re
from collections.abc import Callable
from xml.etree import ElementTree

from retinanet_jax.data.sources import cvat, yolo_layout
from retinanet_jax.data.sources.csv_tables import NUM_FIELDS, find_columns, first_lines
from retinanet_jax.data.sources.fields import FieldError
from retinanet_jax.data.sources.layouts import (
    ANNOTATION_FOLDERS,
    DetectedDataset,
    Fields,
    choose_splits,
    find_image_folder,
    find_splits,
    image_stems,
    list_files,
    list_folders,
    make_fields,
    split_of,
)
from retinanet_jax.data.sources.unsupported import recognize_unsupported

MAX_NAMES = 5  # file names with which the folder of the images is searched
MAX_FILES = 20  # files that are searched for COCO's lists; more are those of single images
COCO_LISTS = tuple(
    re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories")
)
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
LABELME_FIELDS = (re.compile(rb'"shapes"\s*:\s*\['), re.compile(rb'"image(Path|Height|Data)"'))
IMAGE_PATH = re.compile(rb'"imagePath"\s*:\s*("(?:[^"\\]|\\.)*")')
ROOT_TAG = re.compile(rb"<(annotations?)[ >]")
VERSION = re.compile(r"\d+\.\d+\.\d+")  # of a TFDS dataset


def _detect_packed(folder: pathlib.Path) -> DetectedDataset | None:
    parts = {"": folder, "train": folder / "train", "eval": folder / "eval"}
    packed = {name: part for name, part in parts.items() if (part / "packed.json").is_file()}
    return choose_splits(
        "packed", {name: make_fields("packed", images=part) for name, part in packed.items()}
    )


def _detect_tfds(folder: pathlib.Path) -> DetectedDataset | None:
    """Detect BUILDER/[CONFIG/]VERSION, or its newest version; above BUILDER is TFDS's data_dir."""
    versions = [path for path in list_folders(folder) if VERSION.fullmatch(path.name)]
    if versions:
        folder = versions[-1]
    if not all((folder / name).is_file() for name in ("dataset_info.json", "features.json")):
        return None
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        names = [name for name in (info["name"], info.get("configName")) if name]
        splits = [split["name"] for split in info.get("splits", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'dataset_info.json'}: is not written by TFDS ({error!r}); prepare the "
            "dataset again."
        ) from None
    builder, data_dir = f"{'/'.join(names)}:{folder.name}", folder.parents[len(names)]
    parts = {split: make_fields("tfds", builder, images=data_dir, split=split) for split in splits}
    return choose_splits("TFDS", parts)


def _detect_coco_file(file: pathlib.Path) -> DetectedDataset | None:
    return choose_splits("COCO", {"": _coco_fields(file)}) if _is_coco(file) else None


def _detect_coco(folder: pathlib.Path) -> DetectedDataset | None:
    """Detect JSON files in the folder, in its folder annotations, or in a folder for each split."""
    for inner in (folder / "annotations", folder):
        detected = choose_splits("COCO", find_splits(inner, _coco_files, _coco_fields))
        if detected is not None:
            return detected
    return None


def _coco_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return COCO's files in a folder; if there are files of instances, only these."""
    files = list_files(folder, ".json")
    files = [file for file in files if file.name.startswith("instances")] or files
    return list(filter(_is_coco, files[:MAX_FILES]))


def _is_coco(file: pathlib.Path) -> bool:
    """Return whether a JSON file has COCO's lists; parsing a large one would take seconds."""
    if file.suffix.lower() != ".json":
        return False
    content = file.read_bytes()
    return all(expression.search(content) for expression in COCO_LISTS)


def _coco_fields(file: pathlib.Path) -> Fields:
    """Return the fields of a COCO file, with the folder in which its images are."""
    matches = itertools.islice(FILE_NAME.finditer(file.read_bytes()), MAX_NAMES)
    names = [_parse_text(match[1]).replace("\\", "/") for match in matches]
    return make_fields("coco", file, images=find_image_folder(file, names))


def _parse_text(text: bytes) -> str:
    """Return a text in JSON, or "" if it is invalid, which is reported when the file is read."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return ""


def _detect_yolo(folder: pathlib.Path) -> DetectedDataset | None:
    """Detect a description, or a folder labels, also in the folder of a split."""
    folders = list_folders(folder)
    folders += [inner for outer in folders if split_of(outer.name) for inner in list_folders(outer)]
    has_labels = any(
        path.name.lower() == "labels" and not list_files(path, ".xml", ".json") for path in folders
    )
    is_described = yolo_layout.read_layout(folder).listing.is_file()
    return _yolo_dataset(folder) if has_labels or is_described else None


def _detect_yolo_file(file: pathlib.Path) -> DetectedDataset | None:
    is_description = file.suffix.lower() in (*yolo_layout.YAML_SUFFIXES, ".data")
    return _yolo_dataset(file) if is_description else None


def _yolo_dataset(path: pathlib.Path) -> DetectedDataset | None:
    splits = yolo_layout.splits(path) or ("",)
    return choose_splits(
        "YOLO", {split: make_fields("yolo", path, split=split) for split in splits}
    )


def _detect_xml_file(file: pathlib.Path) -> DetectedDataset | None:
    match _root_tag(file) if file.suffix.lower() == ".xml" else "":
        case "annotations":
            return _cvat_dataset(file)
        case "annotation":
            return _detect_voc(file.parent)
    return None


def _detect_cvat(folder: pathlib.Path) -> DetectedDataset | None:
    files = _cvat_files(folder)
    if len(files) == 1:
        return _cvat_dataset(files[0])
    parts = find_splits(folder, _cvat_files, lambda file: make_fields("cvat", file))
    return choose_splits("CVAT", parts)


def _cvat_dataset(file: pathlib.Path) -> DetectedDataset | None:
    """Return a file with subsets, if these are named after splits, or as a whole."""
    parts = {
        split_of(subset): make_fields("cvat", file, split=subset)
        for subset in cvat.list_subsets(file)
    }
    parts.pop("", None)
    return choose_splits("CVAT", parts if len(parts) > 1 else {"": make_fields("cvat", file)})


def _cvat_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = list_files(folder, ".xml")[:MAX_FILES]
    return [file for file in files if _root_tag(file) == "annotations"]


def _detect_voc(folder: pathlib.Path) -> DetectedDataset | None:
    """Detect a devkit, a folder of XML files, or one for each split."""
    if (folder / "Annotations").is_dir():
        splits = _devkit_splits(folder)
        parts = {split: make_fields("voc", folder, split=split) for split in splits}
        detected = choose_splits("Pascal VOC", {"": parts[splits[0]]} if len(parts) == 1 else parts)
        if detected is not None:
            return detected
    return _detect_files_of_images(folder, "Pascal VOC", "voc", _has_voc_files)


def _devkit_splits(folder: pathlib.Path) -> list[str]:
    """Return the splits of a devkit, without those of a single class, such as cat_train."""
    stems = [file.stem for file in list_files(folder / "ImageSets" / "Main", ".txt")]
    return [stem for stem in stems if not any(stem.endswith(f"_{other}") for other in stems)]


def _has_voc_files(folder: pathlib.Path) -> bool:
    return any(_root_tag(file) == "annotation" for file in list_files(folder, ".xml")[:MAX_FILES])


def _root_tag(file: pathlib.Path) -> str:
    """Return the tag of an XML file's root; empty if the file is no XML."""
    try:
        with file.open("rb") as opened:
            for _, element in ElementTree.iterparse(opened, ["start"]):
                return element.tag
    except (ElementTree.ParseError, OSError):
        return ""
    except (LookupError, ValueError):  # an encoding that only Python reads, such as GBK
        match = ROOT_TAG.search(file.read_bytes())
        return match[1].decode() if match else ""
    return ""


def _detect_labelme(folder: pathlib.Path) -> DetectedDataset | None:
    return _detect_files_of_images(folder, "LabelMe", "labelme", _has_labelme_files)


def _detect_labelme_file(file: pathlib.Path) -> DetectedDataset | None:
    return _detect_labelme(file.parent) if _is_labelme(file) else None


def _has_labelme_files(folder: pathlib.Path) -> bool:
    return any(map(_is_labelme, list_files(folder, ".json")[:MAX_FILES]))


def _is_labelme(file: pathlib.Path) -> bool:
    if file.suffix.lower() != ".json":
        return False
    content = file.read_bytes()
    return all(expression.search(content) for expression in LABELME_FIELDS)


def _lists_its_images(folder: pathlib.Path) -> bool:
    """Return whether LabelMe's files in a folder have the paths of existing images."""
    contents = (file.read_bytes() for file in list_files(folder, ".json")[:MAX_NAMES])
    listed = [match[1] for content in contents for match in IMAGE_PATH.finditer(content)]
    paths = [folder / _parse_text(text).replace("\\", "/") for text in listed]
    return bool(paths) and all(path.is_file() for path in paths)


def _detect_files_of_images(
    folder: pathlib.Path, name: str, source: str, has_files: Callable[[pathlib.Path], bool]
) -> DetectedDataset | None:
    """Detect a format with a file for each image: in a folder, in annotations/, or a split each."""

    def find(outer: pathlib.Path) -> list[pathlib.Path]:
        inner = [path for path in list_folders(outer) if path.name.lower() in ANNOTATION_FOLDERS]
        return list(filter(has_files, (outer, *inner)))[:1]

    def fields_of(path: pathlib.Path) -> Fields:
        names = [file.stem for file in list_files(path, ".xml", ".json")[:MAX_NAMES]]
        if image_stems(path).intersection(names) or _lists_its_images(path):
            return make_fields(source, path)
        images = find_image_folder(path / path.name, names)
        return make_fields(source, path, images="" if images == path else images)

    return choose_splits(name, find_splits(folder, find, fields_of))


def _detect_csv_file(file: pathlib.Path) -> DetectedDataset | None:
    is_csv = file.suffix.lower() in (".csv", ".tsv") and not recognize_unsupported(file)
    return choose_splits("CSV", {"": _csv_fields(file)}) if is_csv else None


def _detect_csv(folder: pathlib.Path) -> DetectedDataset | None:
    return choose_splits("CSV", find_splits(folder, _csv_files, _csv_fields))


def _csv_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = list_files(folder, ".csv", ".tsv")
    return [file for file in files if "class" not in file.stem.lower() and _has_boxes(file)]


def _has_boxes(file: pathlib.Path) -> bool:
    """Return whether the first line of a CSV is a known header or, without one, a box."""
    fields = next(iter(first_lines(file, 1)), [])
    try:
        return find_columns(fields) is not None or len(fields) == NUM_FIELDS
    except FieldError:
        return False


def _csv_fields(file: pathlib.Path) -> Fields:
    """Return the fields of a CSV, with the file of classes and the folder of images."""
    files = [
        file for folder in (file.parent, file.parent.parent) for file in list_files(folder, ".csv")
    ]
    classes = [file for file in files if "class" in file.stem.lower()]
    names = [name for name, *_ in first_lines(file, 1 + MAX_NAMES) if name]
    return make_fields(
        "csv",
        file,
        images=find_image_folder(file, names),
        classes=classes[0] if len(classes) == 1 else "",
    )


# In the order in which they are tried; of two formats in a folder, the first one is read.
FILE_DETECTORS = (
    _detect_coco_file,
    _detect_labelme_file,
    _detect_yolo_file,
    _detect_xml_file,
    _detect_csv_file,
)
FOLDER_DETECTORS = (
    _detect_packed,
    _detect_tfds,
    _detect_coco,
    _detect_cvat,
    _detect_voc,
    _detect_labelme,
    _detect_yolo,
    _detect_csv,
)
