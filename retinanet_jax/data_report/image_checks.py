"""Checks of a dataset's image files: that they can be read, have the annotated size and differ."""

import collections
import hashlib
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from retinanet_jax.data.decoding import decode_image
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.findings import ERROR, INFO, WARNING, Finding, first_examples
from retinanet_jax.utils.progress import one_line
from retinanet_jax.utils.threads import map_ahead

NUM_READERS = 8  # threads


class Fingerprints(NamedTuple):
    """Digests of the images of a dataset."""

    digests: tuple[str, ...]  # equal for equal bytes; empty for an unusable image
    errors: tuple[str, ...]  # one message per unusable image


def take_fingerprints(
    source: Source, *, decoded: Container[int], progress: Callable[[int], None]
) -> Fingerprints:
    """Read every image of `source` and return its digest or its error.

    Args:
        source: The dataset.
        decoded: Indices of the images that are also decoded, to find truncated files and files of
            another size than annotated.
        progress: Called with the number of images read so far.
    """
    digests, errors = [], []
    results = map_ahead(
        lambda index: _fingerprint(source, index, index in decoded),
        range(len(source)),
        num_ahead=NUM_READERS,
        num_threads=NUM_READERS,
    )
    for done, (digest, error) in enumerate(results, 1):
        digests.append(digest)
        if error:
            errors.append(error)
        progress(done)
    return Fingerprints(tuple(digests), tuple(errors))


def _fingerprint(source: Source, index: int, decode: bool) -> tuple[str, str]:
    """Return (digest, error message) of an image; one of the two is empty."""
    try:
        data = source.read(index)
        if data is None:
            pixels = source.image(index)
            return hashlib.sha1(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(), ""
        if decode:
            height, width = source.sizes[index].tolist()
            decode_image(data, source.file_name(index), size=(height, width))
    except (OSError, ValueError) as error:
        return "", one_line(error)
    return hashlib.sha1(data).hexdigest(), ""


def check_readable(fingerprints: Fingerprints) -> Finding:
    """Report images that are missing, truncated or of another size than annotated."""
    errors = fingerprints.errors
    message = f"{len(errors)} of {len(fingerprints.digests)} images cannot be read"
    if not errors:
        return Finding(INFO, "images", message)
    advice = "replace or remove them: a run stops at the first of them."
    return Finding(ERROR, "images", message, advice, first_examples(errors))


def check_duplicate_images(source: Source, fingerprints: Fingerprints) -> Finding:
    """Report images with equal bytes."""
    indices = collections.defaultdict(list)
    for index, digest in enumerate(fingerprints.digests):
        if digest:
            indices[digest].append(index)
    groups = [group for group in indices.values() if len(group) > 1]
    count = sum(len(group) - 1 for group in groups)
    message = f"{count} of {len(source)} images have the same bytes as another image"
    if not groups:
        return Finding(INFO, "duplicate images", message)
    advice = "keep one image of each group, with the boxes of all."
    examples = first_examples(" = ".join(map(source.file_name, group)) for group in groups)
    return Finding(WARNING, "duplicate images", message, advice, examples)


def check_leak(
    train: Source, evaluation: Source, fingerprints: Mapping[str, Fingerprints]
) -> Finding:
    """Report images that are in both training and evaluation data.

    Args:
        train: The training data.
        evaluation: The evaluation data.
        fingerprints: The fingerprints of both, by "train" and "eval".
    """
    index_of = {digest: i for i, digest in enumerate(fingerprints["train"].digests) if digest}
    pairs = [
        f"{train.file_name(index_of[digest])} = {evaluation.file_name(index)}"
        for index, digest in enumerate(fingerprints["eval"].digests)
        if digest in index_of
    ]
    message = f"{len(pairs)} of {len(evaluation)} images of eval are also in train"
    if not pairs:
        return Finding(INFO, "leak", message)
    advice = "remove them from train or eval: AP would count memorized images."
    return Finding(ERROR, "leak", message, advice, first_examples(pairs))
