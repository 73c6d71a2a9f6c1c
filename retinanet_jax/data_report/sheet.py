"""The sheet of a dataset report: augmented images as the network sees them, boxes and anchors."""

import functools
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from retinanet_jax import core, input_pipeline, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.modeling import assign_batch_targets, image_anchors, network_input
from retinanet_jax.utils.progress import shorten

HEIGHT, WIDTH = 480, 1600  # the largest size of an image, and the width of a row of images
GAP = 6  # pixels between images
MAX_STEPS, MAX_EXAMPLES = 4, 2  # the sheet has examples of the first batches
MAX_BOXES = 3  # of an image of which anchors are drawn
MAX_ANCHORS = 6  # of a box that are drawn: those of highest IoU
MAX_FILE_NAME = 60  # characters
# Classes have other colors. A line of a box is thicker, and black at both sides.
MATCHED, FORCED, CROWD = visualize.YELLOW, visualize.PINK, visualize.WHITE


class Foreground(NamedTuple):
    """The foreground anchors of the images of a batch."""

    matched: Bool[np.ndarray, "B A"]  # by their IoU
    forced: Bool[np.ndarray, "B A"]
    boxes: Float[np.ndarray, "B A 4"]  # the box that an anchor is matched with
    ious: Float[np.ndarray, "B A"]  # of an anchor and that box


class BoxAnchors(NamedTuple):
    """The indices of the foreground anchors of a box, those of highest IoU first."""

    matched: Int[np.ndarray, " m"]
    forced: Int[np.ndarray, " f"]


def batch_sheet(config: ConfigDict, source: Source, plan: TrainPlan) -> bytes:
    """Return a PNG of training images as the network sees them, with their boxes and some anchors.

    Args:
        config: The config of the run.
        source: The training data.
        plan: The plan of its batches.
    """
    images, classes = [], set()
    for batch, foreground in first_examples(config, source, plan):
        classes |= set(batch.classes[batch.mask].tolist())
        pixels = np.asarray(network_input(batch, config, train=True), np.float32)
        height, width = pixels.shape[1:3]
        anchors = np.concatenate(image_anchors((height, width), config))
        for example in range(len(pixels)):
            boxes = batch.boxes[example][batch.mask[example]]
            groups = anchors_of_boxes(foreground, example, boxes)
            image = denormalize(pixels[example], **config.input)
            images.append(draw_example(image, batch, example, source, anchors, groups))
    sheet = arrange_in_rows(images)
    names = {k: source.categories[k].name for k in sorted(classes)}
    legends = [[visualize.legend(names, sheet.width)]] if names else []
    file = io.BytesIO()
    visualize.arrange([[line_legend(config, sheet.width)], *legends, [sheet]]).save(file, "PNG")
    return file.getvalue()


def first_examples(
    config: ConfigDict, source: Source, plan: TrainPlan
) -> Iterator[tuple[Batch, Foreground]]:
    """Yield a few images of each of the first batches, those with boxes first, and their anchors.

    Args:
        config: The config of the run.
        source: The training data.
        plan: The plan of its batches.
    """
    steps = min(MAX_STEPS, plan.steps_per_epoch)
    for batch in input_pipeline.host_batches(config, source, plan, range(steps)):
        has_boxes = batch.mask.any(axis=1)
        order = np.lexsort((~has_boxes, batch.weights == 0))
        first = order[: min(MAX_EXAMPLES, np.count_nonzero(batch.weights))]
        examples = Batch(*(field[first] for field in batch))
        yield examples, foreground_anchors(config, examples)


def foreground_anchors(config: ConfigDict, batch: Batch) -> Foreground:
    """Return the foreground anchors of a batch, as training matches them."""
    height, width = batch.images.shape[1:3]
    anchors = np.concatenate(image_anchors((height, width), config))

    @functools.partial(jax.jit, static_argnums=0)
    def assign(low_quality: bool, batch: Batch):
        matching = {**config.matching, "low_quality": low_quality}
        targets = assign_batch_targets(anchors, batch, matching=matching)
        return targets.labels >= 0, targets.boxes, core.paired_iou(anchors, targets.boxes)

    matched, boxes, ious = assign(False, batch)
    if config.matching.low_quality:
        foreground, boxes, ious = assign(True, batch)
    else:
        foreground = matched
    return Foreground(*map(np.asarray, (matched, foreground & ~matched, boxes, ious)))


def anchors_of_boxes(
    foreground: Foreground, example: int, boxes: Float[np.ndarray, "n 4"]
) -> list[BoxAnchors]:
    """Return the foreground anchors of each box of an image.

    Args:
        foreground: The foreground anchors of a batch.
        example: The index of the image in it.
        boxes: The boxes of the image.
    """
    order = np.argsort(-foreground.ious[example], stable=True)
    masks = foreground.matched[example][order], foreground.forced[example][order]
    matched, forced = (order[mask] for mask in masks)
    target = foreground.boxes[example]
    return [
        BoxAnchors(*(group[(target[group] == box).all(axis=1)] for group in (matched, forced)))
        for box in boxes
    ]


def choose_boxes(groups: Sequence[BoxAnchors], classes: Int[np.ndarray, " n"]) -> list[int]:
    """Return the indices of the boxes of which anchors are drawn.

    Those without an anchor by IoU come first, and then boxes of different categories.

    Args:
        groups: The anchors of each box.
        classes: The class of each box.
    """
    repeats = [int((classes[:k] == classes[k]).sum()) for k in range(len(classes))]
    order = sorted(range(len(groups)), key=lambda k: (len(groups[k].matched) > 0, repeats[k]))
    return order[:MAX_BOXES]


def draw_example(
    image: UInt8[np.ndarray, "H W 3"],
    batch: Batch,
    example: int,
    source: Source,
    anchors: Float[np.ndarray, "A 4"],
    groups: Sequence[BoxAnchors],
) -> Image.Image:
    """Return an image of a batch, scaled to the sheet, with its boxes and the anchors of some.

    Args:
        image: Its pixels as RGB.
        batch: The batch, for its boxes.
        example: Its index in the batch.
        source: The dataset, for the names of its categories.
        anchors: All anchors.
        groups: The foreground anchors of each box.
    """
    scale = min(HEIGHT / image.shape[0], WIDTH / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    # Small images are enlarged without blur.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    canvas = Image.fromarray(image).resize((width, height), method)
    mask = batch.mask[example]
    boxes, classes = batch.boxes[example][mask] * scale, batch.classes[example][mask]
    names = [source.categories[k].name for k in classes]
    chosen = choose_boxes(groups, classes)
    for box, class_index in zip(boxes, classes.tolist(), strict=True):
        outline(canvas, box[None], visualize.BLACK, 5)
        outline(canvas, box[None], visualize.class_color(class_index), 3)
    outline(canvas, batch.crowd_boxes[example][batch.crowd_mask[example]] * scale, CROWD, 3)
    for number, k in enumerate(chosen, 1):
        names[k] = f"{number} {names[k]}"
        outline(canvas, anchors[groups[k].matched[:MAX_ANCHORS]] * scale, MATCHED, 1)
        outline(canvas, anchors[groups[k].forced[:MAX_ANCHORS]] * scale, FORCED, 2)
    labeled = visualize.draw(np.asarray(canvas), boxes, names, classes)
    file = shorten(source.file_name(int(batch.index[example])), MAX_FILE_NAME)
    first = f"{file}, bucket {image.shape[0]} x {image.shape[1]}"
    return add_caption(labeled, [first, *anchor_lines(groups, chosen)])


def outline(
    canvas: Image.Image, boxes: Float[np.ndarray, "n 4"], color: tuple[int, int, int], width: int
) -> None:
    """Draw boxes on an image.

    Args:
        canvas: The image.
        boxes: yxyx in pixels of the image.
        color: RGB.
        width: The width of the lines in pixels; half of a wide line is outside of its box.
    """
    pen, extra = ImageDraw.Draw(canvas), (width - 1) // 2
    for y1, x1, y2, x2 in boxes.tolist():
        low = x1 - extra, y1 - extra
        high = max(x1, x2 - 1) + extra, max(y1, y2 - 1) + extra
        pen.rectangle((*low, *high), outline=color, width=width)


def anchor_lines(groups: Sequence[BoxAnchors], chosen: Sequence[int]) -> Iterator[str]:
    """Yield lines of text: the numbers of anchors of all boxes, and of those with drawn anchors.

    Args:
        groups: The anchors of each box.
        chosen: The boxes with drawn anchors.
    """
    if not groups:
        yield "no box"
        return
    matched, forced = (sum(map(len, anchors)) for anchors in zip(*groups, strict=True))
    count = "1 box" if len(groups) == 1 else f"{len(groups)} boxes"
    yield f"{count}: {matched} anchors by IoU, {forced} forced"
    texts = [
        f"{number}: {len(groups[k].matched)} by IoU, {len(groups[k].forced)} forced"
        for number, k in enumerate(chosen, 1)
    ]
    if len(groups) > 1:
        yield "; ".join(texts)


def line_legend(config: ConfigDict, width: int) -> Image.Image:
    """Return an image that explains the lines of the sheet.

    Args:
        config: The config of the run.
        width: The width of the image in pixels.
    """
    iou = config.matching.foreground_iou
    entries = [
        (
            ((visualize.BLACK, 7), (visualize.class_color(0), 3)),
            "box, in the color of its category",
        ),
        (((MATCHED, 1),), f"anchor that is foreground by its IoU (>= {iou})"),
        (((FORCED, 2),), "forced match: the best anchor of a box, with a lower IoU"),
        (((CROWD, 3),), "crowd region"),
    ]
    canvas = Image.new("RGB", (width, visualize.LINE * len(entries)), "gray")
    pen = ImageDraw.Draw(canvas)
    for row, (lines, text) in enumerate(entries):
        y = row * visualize.LINE
        for color, thickness in lines:
            pen.line((6, y + 10, 36, y + 10), fill=color, width=thickness)
        pen.text((44, y), text, fill="white", font=visualize.fit_text(text, visualize.TEXT_SIZE)[1])
    notes = (
        f"Anchors of at most {MAX_BOXES} boxes of an image are drawn, which are numbered; of each "
        f"the {MAX_ANCHORS} of highest IoU.",
        "The plain area at the right and at the bottom of an image is padding.",
    )
    return visualize.arrange([[canvas], *([visualize.text_line([note], width)] for note in notes)])


def denormalize(
    pixels: Float[np.ndarray, "H W 3"],
    *,
    order: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the network's input as an RGB image; its padding has the mean color.

    Args:
        pixels: The normalized input.
        order: "rgb" or "bgr", the channel order of the input.
        mean: The mean of each channel that was subtracted, in that order.
        std: The standard deviation of each channel that it was divided by, in that order.
    """
    image = pixels * np.array(std, np.float32) + np.array(mean, np.float32)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image[..., ::-1] if order == "bgr" else image


def add_caption(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the image with lines of text below it, widened if a line is longer."""
    texts = [visualize.fit_text(line, visualize.TEXT_SIZE) for line in lines]
    width = max(image.width, *(math.ceil(font.getlength(t)) + visualize.LINE for t, font in texts))
    return visualize.arrange([[image], *([visualize.text_line([line], width)] for line in lines)])


def arrange_in_rows(images: Sequence[Image.Image]) -> Image.Image:
    """Return images in rows of at most `WIDTH` pixels; a wider image has a row of its own."""
    rows: list[list[Image.Image]] = []
    for image in images:
        if not rows or sum(other.width + GAP for other in rows[-1]) + image.width > WIDTH:
            rows.append([])
        rows[-1].append(image)
    return visualize.arrange(rows, gap=GAP)
