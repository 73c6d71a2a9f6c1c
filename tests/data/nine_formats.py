"""Writers of one small dataset in every format, for tests."""

import csv
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from seeded_images import encode_image


class Box(NamedTuple):
    """An object, in pixels."""

    image: str
    name: str
    xyxy: tuple[float, float, float, float]


class Content(NamedTuple):
    """A dataset: the height and width of each image, and the objects."""

    sizes: dict[str, tuple[int, int]]
    names: tuple[str, ...]
    boxes: Sequence[Box]

    def of(self, image: str) -> list[Box]:
        """Return the objects of an image."""
        return [box for box in self.boxes if box.image == image]


def make_content(count: int = 6, seed: int = 0) -> Content:
    """Return images of different sizes with up to three objects, the last one with none."""
    generator = np.random.default_rng(seed)
    sizes = {
        f"photo {k}.jpg": (int(height), int(width))
        for k, (height, width) in enumerate(generator.integers(64, 128, (count, 2)))
    }
    boxes = []
    for k, (image, (height, width)) in enumerate(sizes.items()):
        for j in range(3 if k < count - 1 else 0):
            x1, y1 = generator.integers(0, (width - 20, height - 20)).tolist()
            x2, y2 = x1 + 4 + 5 * j, y1 + 6 + 4 * j
            boxes.append(Box(image, ("cat", "dog")[(j + k) % 2], (x1, y1, x2, y2)))
    return Content(sizes, ("cat", "dog"), boxes)


def write_images(folder: pathlib.Path, content: Content) -> None:
    """Write the images, each with other pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, size) in enumerate(content.sizes.items()):
        pixels = np.random.default_rng(k).integers(0, 256, (*size, 3)).astype(np.uint8)
        (folder / name).write_bytes(encode_image(pixels, "JPEG"))


def write_coco(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write COCO's JSON next to the folder images."""
    ids = {image: k for k, image in enumerate(content.sizes, 1)}
    annotations = [
        {
            "id": k,
            "image_id": ids[box.image],
            "category_id": 1 + content.names.index(box.name),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for k, box in enumerate(content.boxes, 1)
        for x1, y1, x2, y2 in [box.xyxy]
    ]
    images = [
        {"id": ids[name], "file_name": name, "height": height, "width": width}
        for name, (height, width) in content.sizes.items()
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(content.names, 1)]
    write_images(folder / "images", content)
    parts = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(parts))
    return folder


def write_roboflow_coco(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write COCO's JSON as Roboflow does: in the folder train, with the images."""
    write_coco(folder, content)
    (folder / "images").rename(folder / "train")
    (folder / "boxes.json").rename(folder / "train" / "_annotations.coco.json")
    return folder


def write_voc(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write XML files next to the images, as labelImg does."""
    write_images(folder, content)
    for name, (height, width) in content.sizes.items():
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        size = ElementTree.SubElement(root, "size")
        for side, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, side).text = str(value)
        for box in content.of(name):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = box.name
            corners = ElementTree.SubElement(element, "bndbox")
            for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), box.xyxy, strict=True):
                ElementTree.SubElement(corners, corner).text = str(value)
        ElementTree.ElementTree(root).write((folder / name).with_suffix(".xml"))
    return folder


def write_devkit(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write the layout of the VOC devkit, in which pixels count from 1."""
    shifted = [
        box._replace(xyxy=(box.xyxy[0] + 1, box.xyxy[1] + 1, *box.xyxy[2:]))
        for box in content.boxes
    ]
    write_voc(folder / "all", content._replace(boxes=shifted))
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for path in (folder / "all").iterdir():
        path.rename(folder / ("Annotations" if path.suffix == ".xml" else "JPEGImages") / path.name)
    (folder / "all").rmdir()
    stems = "".join(f"{pathlib.Path(name).stem}\n" for name in content.sizes)
    (folder / "ImageSets/Main/trainval.txt").write_text(stems)
    return folder


def write_csv(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write a CSV with TensorFlow's header; an image without objects has an empty box."""
    write_images(folder / "images", content)
    with (folder / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for name, (height, width) in content.sizes.items():
            rows = [[box.name, *box.xyxy] for box in content.of(name)] or [[""] * 5]
            writer.writerows([[name, width, height, *row] for row in rows])
    return folder


def write_keras_csv(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write keras-retinanet's two CSV files."""
    write_images(folder, content)
    with (folder / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for name in content.sizes:
            writer.writerows(
                [[name, *box.xyxy, box.name] for box in content.of(name)] or [[name, *[""] * 5]]
            )
    lines = "".join(f"{name},{k}\n" for k, name in enumerate(content.names))
    (folder / "classes.csv").write_text(lines)
    return folder


def write_yolo(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write a data.yaml, images/train and labels/train."""
    write_images(folder / "images" / "train", content)
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for name, (height, width) in content.sizes.items():
        lines = []
        for box in content.of(name):
            x1, y1, x2, y2 = box.xyxy
            numbers = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            numbers += (x2 - x1) / width, (y2 - y1) / height
            lines.append(" ".join(map(repr, (content.names.index(box.name), *numbers))))
        (labels / name).with_suffix(".txt").write_text("\n".join(lines))
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(content.names))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames:\n{names}")
    return folder


def write_labelme(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write a JSON file of shapes next to each image; every other box is a polygon."""
    write_images(folder, content)
    for name, (height, width) in content.sizes.items():
        shapes = []
        for k, box in enumerate(content.of(name)):
            x1, y1, x2, y2 = box.xyxy
            points = [[x2, y2], [x1, y1]]
            if k % 2:
                points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            shape_type = "polygon" if k % 2 else "rectangle"
            shapes.append({"label": box.name, "points": points, "shape_type": shape_type})
        image = {"imagePath": name, "imageHeight": height, "imageWidth": width}
        (folder / name).with_suffix(".json").write_text(
            json.dumps({"version": "5.5.0", "shapes": shapes, "imageData": None, **image})
        )
    return folder


def write_cvat(folder: pathlib.Path, content: Content) -> pathlib.Path:
    """Write CVAT's annotations.xml; every other box is a polygon."""
    write_images(folder / "images", content)
    root = ElementTree.Element("annotations")
    labels = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "labels")
    for name in content.names:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for k, (name, (height, width)) in enumerate(content.sizes.items()):
        fields = {"id": str(k), "name": name, "height": str(height), "width": str(width)}
        image = ElementTree.SubElement(root, "image", fields)
        for j, box in enumerate(content.of(name)):
            x1, y1, x2, y2 = box.xyxy
            points = f"{x1},{y1};{x2},{y1};{x2},{y2}"
            edges = {"xtl": str(x1), "ytl": str(y1), "xbr": str(x2), "ybr": str(y2)}
            shape = {"points": points} if j % 2 else edges
            ElementTree.SubElement(
                image, "polygon" if j % 2 else "box", {"label": box.name, **shape}
            )
    ElementTree.ElementTree(root).write(folder / "annotations.xml")
    return folder


FORMATS: dict[str, Callable[[pathlib.Path, Content], pathlib.Path]] = {
    "coco": write_coco,
    "roboflow coco": write_roboflow_coco,
    "voc": write_voc,
    "voc devkit": write_devkit,
    "csv": write_csv,
    "keras csv": write_keras_csv,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
}


def copy_to(folder: pathlib.Path, destination: pathlib.Path) -> pathlib.Path:
    """Copy a dataset, so that a test can change it."""
    shutil.copytree(folder, destination)
    return destination
