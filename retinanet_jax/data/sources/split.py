"""Splits of a dataset into training images and held-out images for evaluation.

Images that show the same scene, such as the frames of a video, must not be on both sides, since AP
would count what was memorized. `group_images` finds them by their names and by their content, and
`split_by_groups` keeps them together.
"""

import collections
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from retinanet_jax.data.sources.base import Source, subset
from retinanet_jax.data.sources.similarity import hash_images, near_pairs

MAX_COMPARED = 20_000  # images; comparing the content of more takes minutes
# What tools append to an image's name when they copy or augment it: Roboflow "_jpg.rf.HASH", others
# "_aug3", "-flipped", "_rot90" or " - copy".
COPY_SUFFIX = re.compile(
    r"((_(jpe?g|png|bmp|webp))?\.rf\.[0-9a-z]+"
    r"|[ _-]+(aug|[hv]?flip|mirror|rot|blur|noise|bright|copy)[a-z]*[ _-]*\d*)$",
    re.IGNORECASE,
)
# The name of a frame is that of its video and a number. The video's name has a number itself or one
# of the words below; names of photographs and of files by category have neither (IMG_0042, cat12,
# 2008_000123).
FRAME = re.compile(r"(.*?)(\d+)$", re.DOTALL)
YEAR = re.compile(r"(?<!\d)(19|20)\d\d(?!\d)")
VIDEO_WORD = re.compile(r"frame|video|clip|seq|scene|shot", re.IGNORECASE)
# Numbered files are one scene only if they are not more than so many times the images to hold out.
MAX_OF_TARGET = 1.5
# If a larger fraction of the images is one group by content, images are grouped by name only.
LARGEST_FRACTION = 0.5


def split_by_hash(source: Source, fraction: float) -> tuple[Source, Source]:
    """Split a dataset into training images and a fraction of images that are held out.

    An image is assigned to a part by the hash of its file name only, so that adding or removing
    other images does not move it. If one part would be empty, it receives the image with the
    nearest hash.

    Args:
        source: The dataset to split.
        fraction: The expected fraction of held-out images, between 0 and 1.

    Returns:
        The training images and the held-out images.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, or if the dataset does not have two
            different file names.
    """
    positions = _positions(source, fraction)
    is_evaluation = positions < fraction
    if not is_evaluation.any():
        is_evaluation = positions == positions.min()
    if is_evaluation.all():
        is_evaluation = positions != positions.max()
    return _parts(source, is_evaluation)


def split_by_groups(
    source: Source, fraction: float, rule: str, progress: Callable[[int], None]
) -> tuple[Source, Source]:
    """Split a dataset into training images and a fraction of held-out images, by groups.

    The groups are ordered by the lowest hash of their file names, and the first ones are held out,
    as many as bring the number of images closest to the fraction. A group is not held out if the
    training images would lack one of its categories.

    Args:
        source: The dataset to split.
        fraction: The fraction of held-out images, between 0 and 1.
        rule: As in `group_images`.
        progress: As in `group_images`.

    Returns:
        The training images and the held-out images.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, the dataset does not have two different
            file names, or the rule is invalid.
    """
    positions = _positions(source, fraction)
    target = min(max(round(fraction * len(source)), 1), len(source) - 1)
    group_of = group_images(source, target, rule, progress)
    is_evaluation = _choose(source, group_of, positions, target)
    if is_evaluation.all():
        logging.warning(
            "%s: its images form one group, which cannot be split; they are split one by one.",
            source.name,
        )
        is_evaluation = positions <= np.sort(positions)[target - 1]
    return _parts(source, is_evaluation)


def group_images(
    source: Source, target: int, rule: str, progress: Callable[[int], None]
) -> Int[np.ndarray, " N"]:
    """Return the number of each image's group.

    Args:
        source: The dataset.
        target: The number of images to hold out.
        rule: "auto": the frames of a video, the copies of an image, and nearly identical images
            form groups. Otherwise a regular expression, of which the first group, or else the
            match, names the group of an image; an image without a match is a group of its own.
        progress: Called with the number of images that have been compared.

    Raises:
        ValueError: If the rule is no regular expression.
    """
    if rule != "auto":
        return _numbered(_names_by_expression(source.file_names, rule))
    by_name = _numbered(_names_of_scenes(source.file_names, target))
    if len(source) > MAX_COMPARED:
        logging.warning(
            "%s: the content of %d images is not compared, only that of %d or fewer; nearly "
            "identical images may be in training and evaluation.",
            source.name,
            len(source),
            MAX_COMPARED,
        )
        return by_name
    pairs = near_pairs(hash_images(source, progress))
    joined = _join(by_name, pairs)
    largest = int(np.bincount(joined).max())
    if largest > LARGEST_FRACTION * len(source):
        if largest > np.bincount(by_name).max():
            logging.warning(
                "%s: %d of %d images are nearly identical to others, too many to keep together; "
                "AP will count what was memorized.",
                source.name,
                largest,
                len(source),
            )
        return by_name
    return joined


def _positions(source: Source, fraction: float) -> np.ndarray:
    """Return the position in [0, 1) of each image; raise ValueError if a split is impossible."""
    if not 0 < fraction < 1:
        raise ValueError(f"data.validation_fraction={fraction} must lie between 0 and 1; try 0.1.")
    positions = np.array([_position(source.file_name(index)) for index in range(len(source))])
    if len(np.unique(positions)) < 2:
        raise ValueError(
            f"{source.name}: {len(source)} images cannot be split into training and held-out "
            "images; add images, or give separate evaluation data."
        )
    return positions


def _position(file_name: str) -> float:
    """Return a number in [0, 1) that, unlike `hash`, is the same on all machines and versions."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _parts(source: Source, is_evaluation: Bool[np.ndarray, " N"]) -> tuple[Source, Source]:
    """Return the training images and the held-out images."""
    training, validation = (
        np.flatnonzero(part).tolist() for part in (~is_evaluation, is_evaluation)
    )
    return subset(source, training), subset(source, validation)


def _names_by_expression(file_names: Sequence[str], rule: str) -> list[str]:
    """Return the name of each image's group by a regular expression."""
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"data.split_groups={rule!r} is neither auto nor none, and no regular expression "
            f"({error}); for files such as scene3_0042.jpg, use '(scene[0-9]+)'."
        ) from None
    matches = [expression.search(file_name) for file_name in file_names]
    group = 1 if expression.groups else 0
    return [
        f"group {match[group]}" if match and match[group] is not None else f"file {file_name}"
        for file_name, match in zip(file_names, matches, strict=True)
    ]


def _names_of_scenes(file_names: Sequence[str], target: int) -> list[str]:
    """Return the name of each image's video or original, or its own name."""
    originals = [_original(file_name) for file_name in file_names]
    frames: dict[str, set[tuple[int, str]]] = collections.defaultdict(set)
    for original in originals:
        match = FRAME.fullmatch(original)
        if match and _is_video(match[1]):
            frames[match[1]].add((int(match[2]), original))
    scene_of: dict[str, str] = {}
    for video, numbered in frames.items():
        size = len(numbered)
        if size > MAX_OF_TARGET * target:
            if not VIDEO_WORD.search(video):
                continue  # numbered photographs of many scenes
            # A long video is split into parts, of which only the ends are similar to other parts.
            size = max(1, target // 2)
        for position, (_, original) in enumerate(sorted(numbered)):
            scene_of[original] = f"{video}*{position // size}"
    return [scene_of.get(original, original) for original in originals]


def _is_video(name: str) -> bool:
    """Return whether the name before a number is that of a video: it has a number or a word."""
    return re.search(r"\d", YEAR.sub("", name)) is not None or VIDEO_WORD.search(name) is not None


def _original(file_name: str) -> str:
    """Return a file name without its suffix and without what tools append to copies."""
    name, previous = os.path.splitext(file_name)[0], ""
    while name != previous:
        name, previous = COPY_SUFFIX.sub("", name), name
    return name or file_name


def _numbered(names: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Return a number for each name, equal for equal names."""
    return np.unique(np.array(names, object), return_inverse=True)[1]


def _join(groups: Int[np.ndarray, " N"], pairs: Int[np.ndarray, "p 2"]) -> Int[np.ndarray, " N"]:
    """Return the groups after joining those of each pair of images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(groups.max()) + 1
    edges = coo_array((np.ones(len(pairs), bool), tuple(groups[pairs].T)), (count, count))
    return connected_components(edges, directed=False)[1][groups]


def _choose(
    source: Source, group_of: Int[np.ndarray, " N"], positions: np.ndarray, target: int
) -> Bool[np.ndarray, " N"]:
    """Return the images to hold out: whole groups, about `target` images."""
    objects = source.objects
    members, classes = collections.defaultdict(list), collections.defaultdict(set)
    for index in np.argsort(positions, stable=True).tolist():
        members[group_of[index]].append(index)
    for group, k in np.unique(
        np.stack([group_of[objects.image_index], objects.classes])[:, source.object_mask], axis=1
    ).T.tolist():
        classes[group].add(k)
    # The number of groups in training that have each class.
    remaining = collections.Counter(k for group in classes.values() for k in group)
    is_evaluation, count = np.zeros(len(source), bool), 0
    # The first group with an object comes first: without one, AP is undefined.
    with_objects = [
        group for group in members if classes[group] and _is_spared(classes[group], remaining)
    ]
    for group in dict.fromkeys([*with_objects[:1], *members]):
        indices = members[group]
        is_closer = abs(count + len(indices) - target) < abs(count - target)
        if is_closer and _is_spared(classes[group], remaining):
            is_evaluation[indices] = True
            count += len(indices)
            remaining.subtract(classes[group])
    if not count:
        nearest = min(members.values(), key=lambda indices: abs(len(indices) - target))
        is_evaluation[nearest] = True
    return is_evaluation


def _is_spared(classes: Iterable[int], remaining: Mapping[int, int]) -> bool:
    """Return whether training can spare a group: other groups have each of its classes."""
    return all(remaining[k] > 1 for k in classes)
