"""The client of an artifact: it makes the artifact's inputs of an image file.

    card = json.load(open("ARTIFACT/card.json"))
    images, sizes, scale = prepare("street.jpg", card)

If the artifact ends before NMS, the client also selects the detections from its outputs:

    boxes, scores, classes = select(boxes[0], scores[0], sizes[0], images.shape[1:3], card)

This file lies next to each artifact. It requires only Python 3.10, numpy and Pillow, and may be
copied.
"""

from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps


def prepare(
    file: str | IO[bytes], card: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs of the artifact for one image.

    Args:
        file: An image file of 8 bits per channel: its path, or an open file. Its EXIF orientation
            is applied.
        card: The content of the artifact's card.json.

    Returns:
        `images` (1, H, W, 3) and `sizes` (1, 2), the inputs of the artifact, and the scale of its
        boxes: `boxes[0] * scale` are in pixels of the original image.

    Raises:
        OSError: If the file cannot be read as an image.
        ValueError: If the image has more than 8 bits per channel.
    """
    image = read_rgb(file)
    rule = card["resize"]
    height, width = resized_size(
        *image.shape[:2],
        short_side=rule["short_side"],
        long_side=rule["long_side"],
        method=rule["kind"],
        input_size=card["image_size"],
    )
    input_size = card["image_size"]
    if input_size is None:  # the artifact accepts any multiples of this size
        multiple = card["size_multiple"]
        input_size = [-(-side // multiple) * multiple for side in (height, width)]
    images = np.zeros((1, *input_size, 3), card["inputs"]["images"]["dtype"])
    images[0, :height, :width] = resize(image, (height, width), rule["kind"])
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    return images, np.array([[height, width]], np.int32), scale


def read_rgb(file: str | IO[bytes]) -> np.ndarray:
    """Return the pixels (height, width, 3) of an image file; the arguments are as in `prepare`."""
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip their values to 0..255
            raise ValueError(
                f"{file}: has more than 8 bits per channel (Pillow's mode {image.mode}); scale it "
                "to 8 bits first."
            )
        oriented = ImageOps.exif_transpose(image)
        if oriented.mode in ("P", "PA"):  # Pillow warns about some transparent colors otherwise
            oriented = oriented.convert("RGBA")
        return np.asarray(oriented.convert("RGB"))


def resize(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Resize bilinearly with half-pixel centers; only Pillow's method has antialiasing.

    Args:
        image: Pixels (height, width, 3) of the type uint8.
        size: The new height and width.
        method: That of the card: "bilinear", which is rounded, "bilinear_float" or "pillow".
    """
    if method == "pillow":
        width_height = size[1], size[0]
        return np.asarray(Image.fromarray(image).resize(width_height, Image.Resampling.BILINEAR))
    for axis in (1, 0):
        old, new = image.shape[axis], size[axis]
        center = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (
            np.float32(old) / np.float32(new)
        ) - np.float32(0.5)
        low, high = np.floor(center), np.minimum(np.ceil(center), old - 1)
        weight = np.expand_dims(center - low, (1, 2) if axis == 0 else (0, 2))
        low = image.take(np.maximum(low, 0).astype(int), axis).astype(np.float32)
        image = low + (image.take(high.astype(int), axis) - low) * weight
    return image if method == "bilinear_float" else np.rint(image)


def resized_size(
    height: int,
    width: int,
    *,
    short_side: int,
    long_side: int,
    method: str,
    input_size: list[int] | None,
) -> list[int]:
    """Return the height and width to which an image of `height` and `width` is resized."""
    sides, half = [height, width], 0 if method == "bilinear_float" else 0.5
    if method == "pillow":
        factor = short_side / min(sides)
        fitted = [short_side if side == min(sides) else side * factor for side in sides]
        limit = min(long_side / max(fitted), 1)
        fitted = [side * limit for side in fitted]
    else:
        factor = min(short_side / min(sides), long_side / max(sides))
        fitted = [side * factor for side in sides]
    size = [max(int(side + half), 1) for side in fitted]
    if input_size and (size[0] > input_size[0] or size[1] > input_size[1]):
        factor = min(input_size[0] / height, input_size[1] / width)
        size = [max(int(side * factor + half), 1) for side in sides]
    return size


def select(
    boxes: np.ndarray,
    scores: np.ndarray,
    size: np.ndarray,
    input_size: tuple[int, int],
    card: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the detections of one image from the outputs of an artifact without NMS.

    Args:
        boxes: x0 y0 x1 y1 of the A anchors (A, 4).
        scores: Their scores for the K categories (A, K).
        size: The height and width of the image inside the input.
        input_size: The height and width of the input.
        card: The content of the artifact's card.json, which has the limits of detections.

    Returns:
        The boxes (n, 4) in pixels of the input, their scores (n,) in descending order, and their
        classes (n,), which are indices of `card["categories"]`.

    Raises:
        ValueError: If the detector has soft NMS.
    """
    limits = card["checkpoint"]["config"]["detections"]
    if limits["nms"] != "hard":
        raise ValueError(f"nms={limits['nms']!r} is not supported by this client, only 'hard' is.")
    anchors, classes = _candidates(scores, input_size, card)
    boxes, scores = boxes[anchors], scores[anchors, classes]
    groups = np.zeros_like(classes) if limits["class_agnostic"] else classes
    keep = _nms(boxes, groups, limits["iou_threshold"])[: limits["max_detections"]]
    height, width = size
    boxes = np.clip(boxes[keep], 0, np.array([width, height] * 2, np.float32))
    if limits["drop_empty"]:
        not_empty = np.all(boxes[:, :2] < boxes[:, 2:], axis=1)
        keep, boxes = keep[not_empty], boxes[not_empty]
    return boxes, scores[keep], classes[keep]


def _candidates(
    scores: np.ndarray, input_size: tuple[int, int], card: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the anchors and classes of the best scores of each pyramid level, best first."""
    config, by_name = card["checkpoint"]["config"], card["score_thresholds"]
    anchors, limits = config["anchors"], config["detections"]
    thresholds = np.full(scores.shape[1], limits["score_threshold"], np.float32)
    if by_name:
        thresholds[:] = [by_name[category["name"]] for category in card["categories"]]
    pairs, start = [], 0
    for level in range(anchors["min_level"], anchors["max_level"] + 1):
        rows, columns = (-(-side // 2**level) for side in input_size)
        end = start + rows * columns * len(anchors["scales"]) * len(anchors["ratios"])
        pair = np.add(np.argwhere(scores[start:end] > thresholds.min()), (start, 0))
        pairs.append(_best_first(pair, scores)[: limits["top_k"]])
        start = end
    anchor, classes = _best_first(np.concatenate(pairs), scores).T
    is_above = scores[anchor, classes] > thresholds[classes]
    return anchor[is_above], classes[is_above]


def _best_first(pairs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return pairs (n, 2) of an anchor and a class by descending score; equals keep their order."""
    return pairs[np.lexsort([-scores[tuple(pairs.T)]])]  # stable in each version of numpy


def _nms(boxes: np.ndarray, groups: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return the indices of the boxes that no better box of their group suppresses, best first."""
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    rest, keep = np.arange(len(boxes)), []
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(best)
        top_left = np.maximum(boxes[best, :2], boxes[rest, :2])
        bottom_right = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
        union = np.maximum(area[best] + area[rest] - overlap, np.finfo(np.float32).tiny)
        is_suppressed = (groups[rest] == groups[best]) & (overlap / union > iou_threshold)
        rest = rest[~is_suppressed]
    return np.array(keep, int)
