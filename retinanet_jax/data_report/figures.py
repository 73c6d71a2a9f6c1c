"""Figures of the dataset report: augmented batches with their anchors, and histograms."""

import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from retinanet_jax import input_pipeline, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.anchor_fit import AnchorFit, anchor_sides
from retinanet_jax.modeling import image_anchors, network_input
from retinanet_jax.training.objective import assign_batch_targets
from retinanet_jax.utils.progress import format_count

HEIGHT = 480  # pixels of an image in the sheet
WIDTH = 1600  # pixels of a row of images
GAP = 6  # pixels between images
MAX_STEPS, MAX_EXAMPLES = 4, 2  # the sheet has the first examples of the first batches
# RGBA colors; the lines are thin and half transparent because a large box has dozens of anchors.
MATCHED = (*visualize.YELLOW, 130)
FORCED = (*visualize.PINK, 220)
CROWD = (*visualize.WHITE, 255)
NUM_BINS = 60
MAX_CATEGORIES = 30  # in the bar chart


def batch_sheet(config: ConfigDict, source: Source, plan: TrainPlan) -> bytes:
    """Return a PNG of the first training images as the network sees them, with boxes and anchors.

    Thin lines are foreground anchors: yellow if they are foreground by their IoU, pink if they are
    forced matches. White boxes are crowd regions.

    Args:
        config: The config of the run.
        source: The training data.
        plan: The plan of its batches.
    """
    file = io.BytesIO()
    arrange_in_rows(list(batch_images(config, source, plan))).save(file, "PNG")
    return file.getvalue()


def batch_images(config: ConfigDict, source: Source, plan: TrainPlan) -> Iterator[Image.Image]:
    """Yield the images of the sheet.

    Args:
        config: The config of the run.
        source: The training data.
        plan: The plan of its batches.
    """
    steps = min(MAX_STEPS, plan.steps_per_epoch)
    for batch in input_pipeline.host_batches(config, source, plan, range(steps)):
        first = np.flatnonzero(batch.weights)[:MAX_EXAMPLES]
        examples = Batch(*(field[first] for field in batch))
        pixels = np.asarray(network_input(examples, config, train=True), np.float32)
        matched, forced = foreground_anchors(config, examples)
        height, width = examples.images.shape[1:3]
        anchors = np.concatenate(image_anchors((height, width), config))
        for example, index in enumerate(examples.index.tolist()):
            image = draw_anchors(
                denormalize(pixels[example], **config.input),
                examples,
                example,
                source,
                anchors[matched[example]],
                anchors[forced[example]],
            )
            num_crowd = int(examples.crowd_mask[example].sum())
            lines = [
                f"{source.file_name(index)}, bucket {height} x {width}",
                f"anchors: {matched[example].sum()} matched (yellow), "
                f"{forced[example].sum()} forced (pink)"
                + (f"; {format_count(num_crowd, 'crowd region')} (white)" if num_crowd else ""),
            ]
            yield add_caption(image, lines)


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


def foreground_anchors(
    config: ConfigDict, batch: Batch
) -> tuple[Bool[np.ndarray, "B A"], Bool[np.ndarray, "B A"]]:
    """Return the anchors that are foreground by their IoU, and the forced matches."""
    height, width = batch.images.shape[1:3]
    anchors = np.concatenate(image_anchors((height, width), config))

    def is_foreground(low_quality: bool) -> Bool[np.ndarray, "B A"]:
        matching = {**config.matching, "low_quality": low_quality}
        assign = functools.partial(assign_batch_targets, matching=matching)
        return np.asarray(jax.jit(assign)(anchors, batch).labels) >= 0

    matched = is_foreground(low_quality=False)
    foreground = is_foreground(low_quality=True) if config.matching.low_quality else matched
    return matched, foreground & ~matched


def draw_anchors(
    image: UInt8[np.ndarray, "H W 3"],
    batch: Batch,
    example: int,
    source: Source,
    matched: Float[np.ndarray, "m 4"],
    forced: Float[np.ndarray, "f 4"],
) -> Image.Image:
    """Return an example of a batch, scaled to the sheet, with its boxes drawn over its anchors.

    Args:
        image: Its pixels as RGB.
        batch: The batch, for its boxes.
        example: Its index in the batch.
        source: The dataset, for the names of its categories.
        matched: The anchors that are foreground by their IoU.
        forced: The forced matches.
    """
    scale = HEIGHT / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), HEIGHT)
    # Small images are enlarged without blur.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    canvas = Image.fromarray(image).resize(size, method)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for boxes, color, width in (
        (matched, MATCHED, 1),
        (forced, FORCED, 1),
        (batch.crowd_boxes[example][batch.crowd_mask[example]], CROWD, 3),
    ):
        for y1, x1, y2, x2 in (boxes * scale).tolist():
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=width)
    mask = batch.mask[example]
    classes = batch.classes[example][mask]
    names = [source.categories[k].name for k in classes]
    return visualize.draw(np.asarray(canvas), batch.boxes[example][mask] * scale, names, classes)


def add_caption(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the image with lines of text below it, widened if a line is longer."""
    texts = [visualize.fit_text(line, visualize.TEXT_SIZE) for line in lines]
    width = max(image.width, *(math.ceil(font.getlength(t)) + visualize.LINE for t, font in texts))
    return visualize.arrange([[image], *([visualize.text_line([line], width)] for line in lines)])


def arrange_in_rows(images: Sequence[Image.Image]) -> Image.Image:
    """Return images of equal height in rows of at most `WIDTH` pixels; a wider image has a row."""
    rows: list[list[Image.Image]] = []
    for image in images:
        if not rows or sum(other.width + GAP for other in rows[-1]) + image.width > WIDTH:
            rows.append([])
        rows[-1].append(image)
    return visualize.arrange(rows, gap=GAP)


def histograms(config: ConfigDict, anchors: AnchorFit, counts: Mapping[str, int]) -> bytes:
    """Return a PNG of four plots: box sizes, aspect ratios, best IoUs, boxes per category.

    Args:
        config: The config of the run.
        anchors: The fit of its anchors.
        counts: The number of boxes of each category, by name, in the order of the classes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError(
            "matplotlib is not installed; run `pip install 'retinanet_jax[inspect]'`."
        ) from None

    boxes = anchors.boxes
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    sizes = np.sqrt(boxes.sides.prod(axis=1))
    size_label = "square root of a box's area, input pixels"
    _plot_coverage(axes[0, 0], sizes, anchor_sides(config), size_label, config, boxes.ious)
    ratios = boxes.sides[:, 0] / boxes.sides[:, 1]
    _plot_coverage(axes[0, 1], ratios, config.anchors.ratios, "height / width", config, boxes.ious)
    axes[1, 0].hist(boxes.ious, np.linspace(0, 1, 51), color="tab:blue")
    for iou in (config.matching.background_iou, config.matching.foreground_iou):
        axes[1, 0].axvline(iou, color="black", lw=0.7, ls="--")
    axes[1, 0].set(xlabel="IoU of a box with the anchor that overlaps it most", ylabel="boxes")
    _plot_counts(axes[1, 1], counts)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()


def _plot_coverage(
    axis: Any,
    values: Float[np.ndarray, " n"],
    anchor_values: Sequence[float],
    label: str,
    config: ConfigDict,
    ious: Float[np.ndarray, " n"],
) -> None:
    """Plot a logarithmic histogram of covered and uncovered boxes, with a line for each anchor."""
    covered = ious >= config.matching.foreground_iou
    low, high = min(values.min(), *anchor_values), max(values.max(), *anchor_values)
    edges = np.log2(low) - 0.2, np.log2(high) + 0.2
    axis.hist(
        [values[covered], values[~covered]],
        np.exp2(np.linspace(*edges, NUM_BINS)),
        stacked=True,
        color=["tab:blue", "tab:red"],
        label=[f"an anchor at IoU {config.matching.foreground_iou}", "none"],
    )
    for index, value in enumerate(anchor_values):
        axis.axvline(value, color="black", lw=0.7, ls=":", label=None if index else "anchors")
    axis.set(xscale="log", xlabel=label, ylabel="boxes")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend()


def _plot_counts(axis: Any, counts: Mapping[str, int]) -> None:
    """Plot the number of boxes of the most frequent categories, in the colors of the classes."""
    from matplotlib.font_manager import FontProperties

    colors = {name: np.array(visualize.class_color(k)) / 255 for k, name in enumerate(counts)}
    names = sorted(counts, key=lambda name: counts[name])[-MAX_CATEGORIES:]
    axis.barh(
        range(len(names)),
        [counts[name] for name in names],
        color=[colors[name] for name in names],
    )
    texts = [visualize.fit_text(name, visualize.TEXT_SIZE) for name in names]
    axis.set_yticks(range(len(names)), [text for text, _ in texts], fontsize=8)
    for label, (_, font) in zip(axis.get_yticklabels(), texts, strict=True):
        if isinstance(font.path, str):  # of the system; matplotlib's own may lack characters
            label.set_fontproperties(FontProperties(fname=font.path, size=8))
    axis.set(xlabel="boxes of the most frequent categories")
