"""What every data set of picture files goes through: its content as COCO has it, checked once."""

import collections
import concurrent.futures
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image, UnidentifiedImageError

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.transforms import ORIENTATIONS, valid_orientation

OUTSIDE = 1.0  # pixels a box may stand out by: what rounding does, and not worth a warning
# What warnings say of boxes.
HAVE_NO_AREA = "have no area inside their picture and are not trained on"
STAND_OUT = f"stand out of their picture by more than {OUTSIDE:g} pixel: clipped"
SIDES = ("height", "width")
READERS = 16  # threads
# What a PNG that says how it is to be turned holds one of.
PNG_TAGS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


class InstancesSource(Source):
    """Pictures in a folder, and boxes in COCO's terms.

    name: the file that lists them. content: gives a dict of `images`, `categories` and
    `annotations` as COCO JSON has them, now and for every `ground_truth`. images: the folder that
    its `file_name`s are relative to. place: what messages call the annotation of an id.
    Everything is checked here, before a run has begun: ValueError where the content contradicts
    itself, FileNotFoundError where pictures are missing. Boxes without an area inside their
    picture are left out of training, boxes that stand out are clipped, and both are counted in a
    warning; `ground_truth` keeps them all.
    """

    def __init__(
        self,
        name: str,
        content: Callable[[], dict[str, Any]],
        images: str | os.PathLike,
        *,
        place: Callable[[int], str] = "annotation id {}".format,
    ):
        self.name = name
        self._content = content
        self._folder = pathlib.Path(images)
        self._place = place
        sections = content()
        self._read_images(sections["images"])
        self._read_categories(sections["categories"])
        self._read_boxes(sections["annotations"])
        check_images(self.name, self._folder, self._file_names)

    def annotations(self, index: int) -> Annotations:
        """The objects that can be trained on."""
        return self._annotations[index]

    def file_name(self, index: int) -> str:
        """Relative to the picture folder."""
        return self._file_names[index]

    def read(self, index: int) -> bytes:
        """The file's content."""
        path = self._folder / self._file_names[index]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: the picture of image id {self.image_ids[index]} is missing; restore it, "
                f"or remove it from {self.name}."
            ) from None

    def ground_truth(self) -> dict[str, Any]:
        """The content as it was given.

        Only what pycocotools needs and the content lacks is added: `area`, `iscrowd`.
        """
        content = self._content()
        return {**content, "annotations": [completed(one) for one in content["annotations"]]}

    def _read_images(self, images: list[dict]) -> None:
        if not images:
            raise ValueError(f"{self.name}: has no images; give a file that lists some.")
        self.image_ids = self._unique_ids("image", images)
        self._file_names = [self._field("image", image, "file_name", str) for image in images]
        self.sizes = np.array(
            [[self._field("image", image, side, int) for side in SIDES] for image in images],
            np.int32,
        )
        if (self.sizes < 1).any():
            wrong = int(np.flatnonzero((self.sizes < 1).any(axis=1))[0])
            raise ValueError(
                f"{self.name}: image id {self.image_ids[wrong]} has height and width "
                f"{self.sizes[wrong].tolist()}; both must be at least 1: correct them."
            )

    def _read_categories(self, categories: list[dict]) -> None:
        if not categories:
            raise ValueError(f"{self.name}: has no categories; name at least one.")
        ids = self._unique_ids("category", categories)
        names = [self._field("category", category, "name", str) for category in categories]
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{self.name}: {len(twice)} names stand for several categories, first "
                f"{twice[0]!r}; give each category a name of its own."
            )
        self.categories = tuple(sorted(map(Category, ids, names)))

    def _read_boxes(self, annotations: list[dict]) -> None:
        self._unique_ids("annotation", annotations)
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        class_of = {category.id: k for k, category in enumerate(self.categories)}
        kept, empty, clipped = collections.defaultdict(list), [], []
        for annotation in annotations:
            image_id = self._field("annotation", annotation, "image_id", int)
            category_id = self._field("annotation", annotation, "category_id", int)
            if image_id not in row_of:
                self._refuse(annotation, f"image_id={image_id}, which `images` does not list")
            if category_id not in class_of:
                self._refuse(
                    annotation, f"category_id={category_id}, which `categories` does not list"
                )
            row = row_of[image_id]
            box = self._box(annotation)
            inside, has_area, stands_out = clip_to_image(box, self.sizes[row])
            if not has_area:
                empty.append(annotation)
                continue
            if stands_out:
                clipped.append(annotation)
            crowd = bool(annotation.get("iscrowd"))
            kept[row].append((inside, class_of[category_id], crowd))
        self._warn(empty, HAVE_NO_AREA)
        self._warn(clipped, STAND_OUT)
        self._annotations = [_stack(kept[row]) for row in range(len(self))]

    def _box(self, annotation: dict) -> np.ndarray:
        """From xywh to yxyx, in float64 so that the file's numbers are judged as they are."""
        xywh = self._field("annotation", annotation, "bbox", list)
        if len(xywh) != 4 or not all(
            isinstance(number, int | float) and math.isfinite(number) for number in xywh
        ):
            self._refuse(annotation, f"bbox={xywh}, not four finite numbers [x, y, w, h]")
        x, y, width, height = xywh
        if width < 0 or height < 0:
            self._refuse(annotation, f"bbox={xywh} with a negative size; it is [x, y, w, h]")
        return np.array([y, x, y + height, x + width], np.float64)

    def _unique_ids(self, kind: str, entries: list[dict]) -> list[int]:
        ids = [self._field(kind, entry, "id", int) for entry in entries]
        if len(set(ids)) < len(ids):
            twice = collections.Counter(ids).most_common(1)[0][0]
            raise ValueError(f"{self.name}: {kind} id {twice} is given twice; make ids unique.")
        return ids

    def _field(self, kind: str, entry: dict, name: str, of_type: type) -> Any:
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, of_type):
            what = f"{name}={value!r}" if value is not None else f"no `{name}`"
            raise ValueError(
                f"{self.name}: {self._label(kind, entry)} has {what}; give it one of type "
                f"{of_type.__name__}."
            )
        return value

    def _refuse(self, annotation: dict, what: str) -> None:
        label = self._label("annotation", annotation)
        raise ValueError(f"{self.name}: {label} has {what}; correct or remove it.")

    def _warn(self, annotations: list[dict], what: str) -> None:
        if annotations:
            first = self._label("annotation", annotations[0])
            logging.warning(
                "%s: %d boxes %s (first: %s).", self.name, len(annotations), what, first
            )

    def _label(self, kind: str, entry: Any) -> str:
        """What to call an entry in a message; an annotation with its picture's file."""
        if not isinstance(entry, dict) or "id" not in entry:
            return f"{kind} {str(entry)[:60]}"
        if kind != "annotation":
            return f"{kind} id {entry['id']}"
        image_id, file = entry.get("image_id"), ""
        if image_id in self.image_ids:
            file = f" ({self._file_names[self.image_ids.index(image_id)]})"
        return f"{self._place(entry['id'])}{file}"


def check_images(name: str, folder: pathlib.Path, file_names: Sequence[str]) -> None:
    """Raises FileNotFoundError where pictures that the file `name` lists are not in `folder`.

    By one listing a folder, not one look a file, which is slow on network disks.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder of pictures; give the one that the file names of "
            f"{name} are relative to."
        )
    wanted = [os.path.normpath(file_name) for file_name in file_names]
    parents = {os.path.dirname(file_name) for file_name in wanted}
    there = {
        os.path.join(parent, file_name)
        for parent in parents
        if (folder / parent).is_dir()
        for file_name in os.listdir(folder / parent)
    }
    missing = [file_name for file_name in wanted if file_name not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(wanted)} pictures of {name} are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); give the folder "
            "that their names are relative to, or remove them from it."
        )


def oriented_sizes(paths: Sequence[pathlib.Path]) -> list[tuple[int, int]]:
    """Height and width of pictures as they are shown, from their headers.

    5,000 pictures on a local disk take a few seconds; threads are for disks that answer late.
    Raises ValueError naming the file where it has none.
    """
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(_shown_size, paths))


def parse_corners(where: str, texts: Mapping[str, str]) -> tuple[float, float, float, float]:
    """The numbers of four texts, named as x1, y1, x2, y2 and in that order.

    Raises ValueError that begins with `where` unless they are finite, x1 <= x2 and y1 <= y2.
    """
    x1, y1, x2, y2 = (_number(where, name, text) for name, text in texts.items())
    names = tuple(texts)
    for low, high, first, last in ((x1, x2, *names[::2]), (y1, y2, *names[1::2])):
        if low > high:
            raise ValueError(
                f"{where} has {first}={low:g} above {last}={high:g}; correct or remove it."
            )
    return x1, y1, x2, y2


def _number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} has {name}={text!r}, not a finite number; correct it.")
    return number


def _shown_size(path: pathlib.Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Pillow would decode a whole PNG in search of tags that few have.
            if picture.format == "PNG" and not _has_tags(path.read_bytes()):
                return height, width
            orientation = valid_orientation(picture, str(path), None)
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known picture format" if unknown else error
        raise ValueError(
            f"{path}: the picture's size cannot be read ({reason}); replace it, or remove it from "
            "the data set."
        ) from None
    return (width, height) if ORIENTATIONS[orientation][0] else (height, width)


def _has_tags(png: bytes) -> bool:
    return any(mark in png for mark in PNG_TAGS)


def clip_to_image(
    boxes: Float[np.ndarray, "*n 4"], sizes: Int[np.ndarray, "*n 2"]
) -> tuple[Float32[np.ndarray, "*n 4"], Bool[np.ndarray, "*n"], Bool[np.ndarray, "*n"]]:
    """yxyx boxes inside their pictures of `sizes`; which have an area there, and which stood out.

    In float32, as they will be trained on: there a hair of a box has no area either.
    """
    inside = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
    has_area = (inside[..., 2:] > inside[..., :2]).all(axis=-1)
    stands_out = (np.abs(inside - boxes) > OUTSIDE).any(axis=-1)
    return inside, np.asarray(has_area), np.asarray(stands_out)


def completed(annotation: dict[str, Any]) -> dict[str, Any]:
    """A copy with what pycocotools needs and a file may lack: `area` and `iscrowd`."""
    area = annotation.get("area")
    if area is None:
        area = annotation["bbox"][2] * annotation["bbox"][3]
    return {**annotation, "area": area, "iscrowd": int(annotation.get("iscrowd") or 0)}


def _stack(objects: list[tuple[np.ndarray, int, bool]]) -> Annotations:
    return Annotations(
        boxes=np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        classes=np.array([k for _, k, _ in objects], np.int32),
        crowd=np.array([crowd for _, _, crowd in objects], bool),
    )
