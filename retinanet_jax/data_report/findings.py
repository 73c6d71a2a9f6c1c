"""What may be wrong with a data set, found in its annotations and its pictures' bytes.

Every function here takes what it judges and returns one `Finding`; the numbers from which one is
worth a look are the constants below.
"""

import collections
import hashlib
import itertools
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent import futures
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.transforms import decode_image
from retinanet_jax.utils.progress import one_line

OK, LOOK, FAULT = "ok", "look", "fault"
EXAMPLES = 20  # that a finding names
SAME_IOU = 0.95  # from which two boxes are drawn around the same thing
SMALL_SHARE = 0.01  # of the boxes: more of what is wrong is a fault
MANY_EMPTY = 0.5  # of the pictures
RARE = 10  # boxes
OUTSIDE = 1.0  # pixels by which rounding lets a box stand out
READERS = 8  # threads


class Finding(NamedTuple):
    """One thing that was looked at."""

    verdict: str  # OK, LOOK, FAULT
    subject: str
    says: str  # what there is, in figures
    advice: str = ""  # what to do, one sentence; empty where nothing is to be done
    examples: tuple[str, ...] = ()


class Boxes(NamedTuple):
    """All annotations of a data set, those too that training leaves out."""

    ids: Int[np.ndarray, " n"]
    pictures: Int[np.ndarray, " n"]  # row of the source
    classes: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]  # yxyx in original pixels, cut to the picture
    outside: Float[np.ndarray, " n"]  # pixels by which it stood out
    empty: Bool[np.ndarray, " n"]  # no area is left
    crowd: Bool[np.ndarray, " n"]

    @property
    def usable(self) -> Bool[np.ndarray, " n"]:
        """What is trained on as an object."""
        return ~self.empty & ~self.crowd


class Fingerprints(NamedTuple):
    """What the bytes of pictures say."""

    digests: tuple[str, ...]  # equal where the bytes are; empty where they can't be used
    unusable: tuple[str, ...]  # why not, a sentence each


def read_boxes(source: Source) -> Boxes:
    """From the ground truth, because sources leave boxes without area out of `annotations`."""
    row_of = {int(image_id): row for row, image_id in enumerate(source.image_ids)}
    class_of = {category.id: k for k, category in enumerate(source.categories)}
    annotations = source.ground_truth()["annotations"]
    pictures = np.array([row_of[one["image_id"]] for one in annotations], np.int64)
    x, y, width, height = np.array([one["bbox"] for one in annotations], float).reshape(-1, 4).T
    boxes = np.stack([y, x, y + height, x + width], axis=1)
    inside = np.clip(boxes, 0, np.tile(source.sizes[pictures], 2))
    held = inside.astype(np.float32)  # as it is trained on: a hair of a box has no area either
    return Boxes(
        ids=np.array([one["id"] for one in annotations], np.int64),
        pictures=pictures,
        classes=np.array([class_of[one["category_id"]] for one in annotations], np.int64),
        boxes=inside,
        outside=np.abs(inside - boxes).max(axis=1, initial=0),
        empty=(held[:, 2:] <= held[:, :2]).any(axis=1),
        crowd=np.array([bool(one.get("iscrowd")) for one in annotations], bool),
    )


def content(source: Source, boxes: Boxes) -> Finding:
    """How much there is."""
    says = f"{len(source)} pictures, {len(boxes.ids)} boxes, {len(source.categories)} categories"
    if boxes.usable.any():
        return Finding(OK, "content", says)
    advice = "there is nothing to learn: check the annotations' path and format."
    return Finding(FAULT, "content", says, advice)


def categories(source: Source, boxes: Boxes) -> Finding:
    """Those without boxes, and those with few."""
    counts = np.bincount(boxes.classes[boxes.usable], minlength=len(source.categories))
    none = [_label(c) for c, n in zip(source.categories, counts, strict=True) if not n]
    rare = [
        f"{_label(c)}: {n}" for c, n in zip(source.categories, counts, strict=True) if 0 < n < RARE
    ]
    says = f"{len(none)} of {len(counts)} categories have no box, {len(rare)} fewer than {RARE}"
    if not none and not rare:
        return Finding(
            OK, "categories", f"each of {len(counts)} categories has {RARE} boxes or more"
        )
    advice = "add pictures of them or drop them: what is not shown is not learnt."
    return Finding(LOOK, "categories", says, advice, _first([*none, *rare]))


def empty_pictures(source: Source, boxes: Boxes) -> Finding:
    """Pictures without an object."""
    shown = np.zeros(len(source), bool)
    shown[boxes.pictures[boxes.usable]] = True
    share = float((~shown).mean())
    says = f"{(~shown).sum()} of {len(source)} pictures ({share:.1%}) show no object"
    if share <= MANY_EMPTY:
        return Finding(OK, "empty pictures", says)
    advice = "they teach background alone: see that their annotations are not missing."
    names = _first(source.file_name(row) for row in np.flatnonzero(~shown)[:EXAMPLES].tolist())
    return Finding(LOOK, "empty pictures", says, advice, names)


def crowd_regions(source: Source, boxes: Boxes, *, crowd_ioa: float | None) -> Finding:
    """Regions of many objects, and whether the matching spares them."""
    rows = np.flatnonzero(boxes.crowd)
    share = len(rows) / max(1, len(boxes.ids))
    says = f"{len(rows)} of {len(boxes.ids)} boxes ({share:.1%}) are crowd regions"
    if not len(rows) or crowd_ioa is not None:
        return Finding(OK, "crowd regions", says)
    advice = "objects in them are taught as background; --config.matching.crowd_ioa=0.5 ignores it."
    return Finding(LOOK, "crowd regions", says, advice, _names(source, boxes, rows))


def boxes_without_area(source: Source, boxes: Boxes) -> Finding:
    """No width or height, or all of it outside of the picture."""
    rows = np.flatnonzero(boxes.empty)
    says = f"{len(rows)} of {len(boxes.ids)} boxes have no area inside their picture"
    advice = "remove or redraw them: training leaves them out, and AP counts each as missed."
    return _judged("boxes without area", says, advice, boxes, rows, _names(source, boxes, rows))


def boxes_outside(source: Source, boxes: Boxes) -> Finding:
    """Boxes that reach beyond their picture."""
    rows = np.flatnonzero((boxes.outside > OUTSIDE) & ~boxes.empty)
    says = f"{len(rows)} of {len(boxes.ids)} boxes reach beyond their picture by over a pixel"
    advice = "see that they were drawn on pictures of this size; training cuts them off."
    return _judged("boxes outside", says, advice, boxes, rows, _names(source, boxes, rows))


def same_boxes(boxes: Boxes) -> Int[np.ndarray, "p 2"]:
    """Pairs of objects of one picture that overlap by `SAME_IOU` or more."""
    rows = np.flatnonzero(boxes.usable)
    rows = rows[np.argsort(boxes.pictures[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(boxes.pictures[rows])) + 1
    pairs = [np.zeros((0, 2), np.int64)]
    for group in np.split(rows, starts):
        first, second = np.nonzero(np.triu(_ious(boxes.boxes[group]) >= SAME_IOU, k=1))
        pairs.append(np.stack([group[first], group[second]], axis=1))
    return np.concatenate(pairs)


def duplicate_boxes(source: Source, boxes: Boxes, pairs: Int[np.ndarray, "p 2"]) -> Finding:
    """The same object twice, in one class."""
    pairs = pairs[boxes.classes[pairs[:, 0]] == boxes.classes[pairs[:, 1]]]
    rows = np.unique(pairs[:, 1])
    says = f"{len(rows)} of {len(boxes.ids)} boxes repeat another of their class"
    advice = "keep one of each: NMS finds only one, and AP counts the other as missed."
    names = _first(_pair_name(source, boxes, *pair) for pair in pairs[:EXAMPLES].tolist())
    return _judged("duplicate boxes", says, advice, boxes, rows, names)


def boxes_of_two_classes(source: Source, boxes: Boxes, pairs: Int[np.ndarray, "p 2"]) -> Finding:
    """One box, two names."""
    pairs = pairs[boxes.classes[pairs[:, 0]] != boxes.classes[pairs[:, 1]]]
    rows = np.unique(pairs[:, 1])
    says = f"{len(rows)} of {len(boxes.ids)} boxes are also of another class"
    advice = "decide for one class: anchors take one of the two and learn that the other is absent."
    names = _first(_pair_name(source, boxes, *pair) for pair in pairs[:EXAMPLES].tolist())
    return _judged("boxes of two classes", says, advice, boxes, rows, names)


def take_fingerprints(
    source: Source, *, decoded: Container[int], tell: Callable[[int], None]
) -> Fingerprints:
    """Reads all pictures; those in `decoded` are decoded too. `tell` hears how many are done."""

    def look(index: int) -> tuple[str, str]:
        try:
            data = source.read(index)
            if data is None:
                pixels = source.image(index)
                return hashlib.sha1(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(), ""
            if index in decoded:
                height, width = source.sizes[index].tolist()
                decode_image(data, source.file_name(index), size=(height, width))
        except (OSError, ValueError) as error:
            return "", one_line(error)
        return hashlib.sha1(data).hexdigest(), ""

    digests, unusable = [], []
    with futures.ThreadPoolExecutor(READERS) as readers:
        for done, (digest, error) in enumerate(readers.map(look, range(len(source))), 1):
            digests.append(digest)
            if error:
                unusable.append(error)
            tell(done)
    return Fingerprints(tuple(digests), tuple(unusable))


def unusable_pictures(found: Fingerprints) -> Finding:
    """Missing, truncated, of another size than annotated."""
    says = f"{len(found.unusable)} of {len(found.digests)} pictures cannot be read"
    if not found.unusable:
        return Finding(OK, "pictures", says)
    advice = "replace them or remove them: a run ends at the first one."
    return Finding(FAULT, "pictures", says, advice, _first(found.unusable))


def duplicate_pictures(source: Source, found: Fingerprints) -> Finding:
    """The same bytes under two names."""
    rows = collections.defaultdict(list)
    for row, digest in enumerate(found.digests):
        if digest:
            rows[digest].append(row)
    groups = [group for group in rows.values() if len(group) > 1]
    more = sum(len(group) - 1 for group in groups)
    says = f"{more} of {len(source)} pictures have the same bytes as another"
    if not groups:
        return Finding(OK, "duplicate pictures", says)
    advice = "keep one of each, with the boxes of all."
    names = _first(" = ".join(map(source.file_name, group)) for group in groups)
    return Finding(LOOK, "duplicate pictures", says, advice, names)


def leaked_pictures(
    train: Source, evaluation: Source, found: Mapping[str, Fingerprints]
) -> Finding:
    """Pictures that are both trained on and evaluated on."""
    row_of = {digest: row for row, digest in enumerate(found["train"].digests) if digest}
    pairs = [
        f"{train.file_name(row_of[digest])} = {evaluation.file_name(row)}"
        for row, digest in enumerate(found["eval"].digests)
        if digest in row_of
    ]
    says = f"{len(pairs)} of {len(evaluation)} pictures of eval are also in train"
    if not pairs:
        return Finding(OK, "leak", says)
    advice = "remove them from one of the two: AP would reward what was learnt by heart."
    return Finding(FAULT, "leak", says, advice, _first(pairs))


def same_categories(train: Source, evaluation: Source) -> Finding:
    """Both parts must number and name the same things."""
    if train.categories == evaluation.categories:
        return Finding(OK, "categories of both", "train and eval list the same categories")
    differing = sorted(set(train.categories) ^ set(evaluation.categories))
    says = f"{len(differing)} categories (id and name) are in one of train and eval alone"
    advice = "give both the same list: a run refuses these."
    return Finding(FAULT, "categories of both", says, advice, _first(map(_label, differing)))


def unlearnt_categories(
    train: Source, train_boxes: Boxes, evaluation: Source, boxes: Boxes
) -> Finding:
    """What AP asks for and training never shows."""
    shown = {train.categories[k].name for k in np.unique(train_boxes.classes[train_boxes.usable])}
    asked = {evaluation.categories[k].name for k in np.unique(boxes.classes[boxes.usable])}
    says = f"{len(asked - shown)} of {len(asked)} categories with boxes in eval have none in train"
    if asked <= shown:
        return Finding(OK, "unlearnt categories", says)
    advice = "their AP will be 0: add them to train."
    return Finding(FAULT, "unlearnt categories", says, advice, _first(sorted(asked - shown)))


def _judged(
    subject: str,
    says: str,
    advice: str,
    boxes: Boxes,
    rows: Int[np.ndarray, " r"],
    examples: tuple[str, ...],
) -> Finding:
    """Any such box is worth a look, many are a fault."""
    if not len(rows):
        return Finding(OK, subject, says)
    verdict = FAULT if len(rows) > SMALL_SHARE * len(boxes.ids) else LOOK
    return Finding(verdict, subject, says, advice, examples)


def _ious(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n n"]:
    """Of boxes that have an area."""
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / (areas[:, None] + areas - shared)


def _names(source: Source, boxes: Boxes, rows: Int[np.ndarray, " r"]) -> tuple[str, ...]:
    return tuple(
        f"{source.file_name(int(boxes.pictures[row]))}: annotation {boxes.ids[row]} "
        f"({source.categories[boxes.classes[row]].name})"
        for row in rows[:EXAMPLES]
    )


def _pair_name(source: Source, boxes: Boxes, first: int, second: int) -> str:
    names = [source.categories[boxes.classes[row]].name for row in (first, second)]
    both = names[0] if names[0] == names[1] else " and ".join(names)
    return (
        f"{source.file_name(int(boxes.pictures[first]))}: annotations {boxes.ids[first]} and "
        f"{boxes.ids[second]} ({both})"
    )


def _label(category: Category) -> str:
    return f"{category.id} {category.name}"


def _first(examples: Iterable[str]) -> tuple[str, ...]:
    return tuple(itertools.islice(examples, EXAMPLES))
