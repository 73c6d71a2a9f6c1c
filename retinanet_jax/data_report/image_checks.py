"""Checks of a dataset's images: their files, sizes, pixel values, orientations and duplicates."""

import collections
import hashlib
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.similarity import hash_images, near_pairs
from retinanet_jax.data.sources.split import MAX_COMPARED
from retinanet_jax.data.value_range import FilledBits, find_unfilled
from retinanet_jax.data_report.findings import ERROR, INFO, WARNING, Finding, first_examples
from retinanet_jax.datasets.checks import check_image
from retinanet_jax.utils.progress import make_progress, one_line
from retinanet_jax.utils.threads import map_ahead

NUM_READERS = 8  # threads
LEAK_FRACTION = 0.05  # of the evaluation images, from which near-duplicates are an error


class Fingerprints(NamedTuple):
    """Digests of the images of a dataset."""

    digests: tuple[str, ...]  # equal for equal bytes; empty for an unusable image
    errors: tuple[str, ...]  # one message per unusable image
    filled_bits: dict[int, FilledBits]  # by index, of decoded images of more than 8 bits a channel


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
    digests, errors, filled_bits = [], [], {}
    results = map_ahead(
        lambda index: _fingerprint(source, index, index in decoded),
        range(len(source)),
        num_ahead=NUM_READERS,
        num_threads=NUM_READERS,
    )
    for done, (digest, error, filled) in enumerate(results, 1):
        digests.append(digest)
        if filled:
            filled_bits[done - 1] = filled
        if error:
            errors.append(error)
        progress(done)
    return Fingerprints(tuple(digests), tuple(errors), filled_bits)


def _fingerprint(source: Source, index: int, decode: bool) -> tuple[str, str, FilledBits | None]:
    """Return (digest, error message, filled bits) of an image; one of the first two is empty."""
    filled = None
    try:
        data = source.read(index)
        if data is None:
            pixels = source.image(index)
            content = repr(pixels.shape).encode() + pixels.tobytes()
            return hashlib.sha1(content).hexdigest(), "", None
        if decode:
            filled = check_image(source, index, data)
    except (OSError, ValueError) as error:
        return "", one_line(error), None
    return hashlib.sha1(data).hexdigest(), "", filled


def check_readable(fingerprints: Fingerprints) -> Finding:
    """Report images that are missing, truncated or of another size than annotated."""
    errors = fingerprints.errors
    message = f"{len(errors)} of {len(fingerprints.digests)} images cannot be read"
    if not errors:
        return Finding(INFO, "images", message)
    advice = "replace or remove them: a run stops at the first of them."
    return Finding(ERROR, "images", message, advice, first_examples(errors))


def check_value_range(source: Source, fingerprints: Fingerprints) -> list[Finding]:
    """Report images of more than 8 bits a channel that are nearly of one brightness once scaled."""
    names = {source.file_name(index): bits for index, bits in fingerprints.filled_bits.items()}
    unfilled = find_unfilled(names)
    if unfilled:
        message, advice, examples = unfilled
        return [Finding(WARNING, "value range", message, f"{advice}.", first_examples(examples))]
    message = f"{len(names)} images of more than 8 bits a channel fill the bits that are used"
    return [Finding(INFO, "value range", message)] if names else []


def check_exif(source: Source) -> list[Finding]:
    """Report for each file of annotations how its images were annotated, and what shows it."""
    findings = []
    for decision in source.exif_decisions:
        if decision.num_applied and decision.num_ignored:
            advice = (
                "annotate them again in one way, or set --config.data.exif; each of these images "
                "is read as its own size shows."
            )
            findings.append(Finding(WARNING, "EXIF", str(decision), advice))
        else:
            findings.append(Finding(INFO, "EXIF", str(decision)))
    return findings


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


def check_near_duplicates(
    train: Source, evaluation: Source, fingerprints: Mapping[str, Fingerprints]
) -> Finding:
    """Report images of the evaluation data that are nearly identical to one of the training data.

    Args:
        train: The training data.
        evaluation: The evaluation data.
        fingerprints: As in `check_leak`, which reports images with equal bytes.
    """
    subject, count = "near-duplicates", len(train) + len(evaluation)
    if count > MAX_COMPARED:
        message = f"not searched among {count} images, only among {MAX_COMPARED} or fewer"
        return Finding(INFO, subject, message)
    hashes = [
        hash_images(source, make_progress(f"comparing {part}", len(source)))
        for part, source in (("train", train), ("eval", evaluation))
    ]
    digests = [fingerprints[part].digests for part in ("train", "eval")]
    pairs = [
        (first, second)
        for first, second in near_pairs(*hashes).tolist()
        if digests[0][first] != digests[1][second]
    ]
    num_similar = len({second for _, second in pairs})
    message = (
        f"{num_similar} of {len(evaluation)} images of eval are nearly identical to one of train"
    )
    if not pairs:
        return Finding(INFO, subject, message)
    advice = (
        "keep them on one side: AP counts what was memorized. Images that a run holds out itself "
        "are split together (data.split_groups)."
    )
    examples = [
        f"{train.file_name(first)} = {evaluation.file_name(second)}" for first, second in pairs
    ]
    severity = ERROR if num_similar > LEAK_FRACTION * len(evaluation) else WARNING
    return Finding(severity, subject, message, advice, first_examples(examples))
