"""Checks of datasets before a run."""

from absl import logging

from retinanet_jax.data.decoding import filled_bits_of_file
from retinanet_jax.data.reading import read_patiently
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.conventions import recognize_convention
from retinanet_jax.data.sources.dense_images import find_dense_images
from retinanet_jax.data.value_range import FilledBits, find_unfilled
from retinanet_jax.utils.threads import map_ahead

# Decoding this many images takes seconds, but an invalid image may end a run after hours.
MAX_IMAGES_TO_CHECK = 1_000


def check_training_data(source: Source) -> None:
    """Check that there are objects to learn from, and `check_images`.

    Raises:
        ValueError: If no image has an object, if the boxes are in another convention than that of
            their format, or as in `check_images`.
    """
    if not source.object_mask.any():
        raise ValueError(
            f"{source.name}: {why_no_object(source)}; there is nothing to learn. Give the file "
            "that contains the annotations, or correct them."
        )
    check_images(source)  # where sizes are wrong, boxes may seem to be
    _check_convention(source)


def check_evaluation_data(source: Source, *, max_detections: int) -> None:
    """Check that the boxes can be evaluated, and log what will limit AP.

    That is: there is no object, or images have more objects than are detected or than COCO's AP
    counts. Boxes without an area, which AP counts, are logged when a dataset is opened.

    Args:
        source: The dataset.
        max_detections: The largest number of detections of an image
            (config.detections.max_detections).

    Raises:
        ValueError: If the boxes are in another convention than that of their format.
    """
    _check_convention(source)
    if not source.object_mask.any():
        # AP counts objects without an area as missed.
        ap = "undefined" if source.objects.crowd.all() else "0"
        logging.warning(
            "%s: %s, so that AP will be %s; give evaluation data with objects.",
            source.name,
            why_no_object(source),
            ap,
        )
    dense = find_dense_images(source, max_detections=max_detections)
    if dense.advice:
        first = f" (first: {dense.examples[0]})" if dense.examples else ""
        logging.warning("%s: %s; %s%s.", source.name, dense.message, dense.advice, first)


def _check_convention(source: Source) -> None:
    """Log that boxes may be in another convention than that of their format.

    Raises:
        ValueError: If they certainly are.
    """
    convention = recognize_convention(source)
    if convention:
        line = f"{source.name}: {convention.message}; {convention.advice}."
        if convention.is_certain:
            raise ValueError(line)
        logging.warning("%s", line)


def why_no_object(source: Source) -> str:
    """Return why a dataset has no object to learn, as a clause for messages."""
    count, num_crowd = len(source.objects.crowd), int(source.objects.crowd.sum())
    if not count:
        return f"none of its {len(source)} images has a box"
    if num_crowd == count:
        return f"all of its {count} boxes are crowd regions (iscrowd, ignore or difficult)"
    return f"none of its {count} boxes has an area inside its image and is no crowd region"


def check_images(source: Source) -> None:
    """Decode all images of a small dataset, so that invalid ones are reported before the run.

    Images that are nearly of one brightness, because their values fill few of their bits, are
    logged. For a large dataset, which takes minutes, use `retinanet-jax inspect`.

    Raises:
        ValueError: If an image is invalid.
        OSError: If an image cannot be read.
    """
    if len(source) > MAX_IMAGES_TO_CHECK:
        return
    # The threads return bits instead of the images, which would fill the memory.
    all_bits = map_ahead(
        lambda index: check_image(source, index, read_patiently(source, index, source.read)),
        range(len(source)),
    )
    names = {source.file_name(index): bits for index, bits in enumerate(all_bits) if bits}
    unfilled = find_unfilled(names)
    if unfilled:
        logging.warning("%s: %s; %s.", source.name, unfilled.message, unfilled.advice)


def check_image(source: Source, index: int, data: bytes | None) -> FilledBits | None:
    """Decode an image, and return how much it fills of its bits if it has more than 8 a channel.

    Args:
        source: The dataset.
        index: The index of the image.
        data: What `source.read` has returned; None if the dataset stores pixels.

    Raises:
        ValueError: If the image is invalid.
    """
    if data is None:
        source.image(index)
        return None
    source.decode(index, data)
    return filled_bits_of_file(data, source.file_name(index), source.decoding_of(index).value_range)
