"""Pictures of what training is given: augmented batches with their anchors, and histograms."""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from retinanet_jax import core, input_pipeline, visualize
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.fit import Anchors, anchor_sides
from retinanet_jax.modeling import image_anchors, network_input

HEIGHT = 480  # pixels of a picture in the sheet
WIDTH = 1600  # pixels that a row of pictures fills
LINE, GAP = 17, 6  # pixels of a line of text, and between pictures
STEPS, ROWS = 4, 2  # the first rows of the first batches are shown
# Thin and half transparent, for a large box has dozens of anchors.
MATCHED, FORCED, CROWD = (255, 230, 0, 130), (255, 0, 200, 220), (255, 255, 255, 255)
BINS = 60


def batch_sheet(config: ConfigDict, source: Source, plan: TrainPlan) -> bytes:
    """A PNG: the first pictures of training as the network sees them, with boxes and anchors.

    Thin lines are the foreground anchors: yellow by their IoU, pink where they only are because
    no other overlaps a box more. White boxes are crowd regions.
    """
    file = io.BytesIO()
    in_rows(list(batch_pictures(config, source, plan))).save(file, "PNG")
    return file.getvalue()


def batch_pictures(config: ConfigDict, source: Source, plan: TrainPlan) -> Iterator[Image.Image]:
    """Those of the sheet, one by one."""
    steps = min(STEPS, plan.steps_per_epoch)
    for batch in input_pipeline.host_batches(config, source, plan, range(steps)):
        rows = np.flatnonzero(batch.weights)[:ROWS]
        few = Batch(*(field[rows] for field in batch))
        pixels = np.asarray(network_input(few, config, train=True), np.float32)
        matched, forced = foreground_anchors(config, few)
        anchors = np.concatenate(image_anchors(few.images.shape[1:3], config))
        for row, index in enumerate(few.index.tolist()):
            picture = draw_anchors(
                denormalized(pixels[row], **config.input),
                few,
                row,
                source,
                anchors[matched[row]],
                anchors[forced[row]],
            )
            height, width = few.images.shape[1:3]
            yield captioned(
                picture,
                [
                    f"{source.file_name(index)}, bucket {height} x {width}",
                    f"anchors: {matched[row].sum()} matched (yellow), "
                    f"{forced[row].sum()} forced (pink)",
                ],
            )


def denormalized(
    pixels: Float[np.ndarray, "H W 3"],
    *,
    order: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> UInt8[np.ndarray, "H W 3"]:
    """What the network reads, as a picture for people; the padding has the mean colour."""
    shown = pixels * np.array(std, np.float32) + np.array(mean, np.float32)
    shown = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
    return shown[..., ::-1] if order == "bgr" else shown


def foreground_anchors(
    config: ConfigDict, batch: Batch
) -> tuple[Bool[np.ndarray, "B A"], Bool[np.ndarray, "B A"]]:
    """Anchors that are foreground by their IoU, and those that low-quality matching adds."""
    anchors = np.concatenate(image_anchors(batch.images.shape[1:3], config))

    def foreground(low_quality: bool) -> np.ndarray:
        matching = {**config.matching, "low_quality": low_quality}
        assign = functools.partial(core.assign_targets, **matching)
        targets = jax.jit(jax.vmap(assign, in_axes=(None, 0, 0, 0, 0, 0, 0)))(
            anchors,
            batch.boxes,
            batch.classes,
            batch.mask,
            batch.crowd_boxes,
            batch.crowd_mask,
            batch.sizes,
        )
        return np.asarray(targets.labels) >= 0

    matched = foreground(low_quality=False)
    every = foreground(low_quality=True) if config.matching.low_quality else matched
    return matched, every & ~matched


def draw_anchors(
    image: UInt8[np.ndarray, "H W 3"],
    batch: Batch,
    row: int,
    source: Source,
    matched: Float[np.ndarray, "m 4"],
    forced: Float[np.ndarray, "f 4"],
) -> Image.Image:
    """One row of a batch, scaled to the sheet; boxes are drawn over anchors."""
    scale = HEIGHT / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), HEIGHT)
    # Small pictures are shown pixel by pixel.
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    picture = Image.fromarray(image).resize(size, way)
    pen = ImageDraw.Draw(picture, "RGBA")
    for boxes, ink, width in (
        (matched, MATCHED, 1),
        (forced, FORCED, 1),
        (batch.crowd_boxes[row][batch.crowd_mask[row]], CROWD, 3),
    ):
        for y1, x1, y2, x2 in (boxes * scale).tolist():
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=ink, width=width)
    real = batch.mask[row]
    classes = batch.classes[row][real]
    names = [source.categories[k].name for k in classes]
    return visualize.draw(np.asarray(picture), batch.boxes[row][real] * scale, names, classes)


def captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture over lines of text, widened where one of them needs it."""
    font = ImageFont.load_default(size=13)
    width = max(picture.width, *(round(font.getlength(line)) + 4 for line in lines))
    canvas = Image.new("RGB", (width, picture.height + LINE * len(lines)), "white")
    canvas.paste(picture)
    for number, line in enumerate(lines):
        place = (2, picture.height + LINE * number)
        ImageDraw.Draw(canvas).text(place, line, font=font, fill="black")
    return canvas


def in_rows(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height side by side, in rows of at most `WIDTH` where a picture has less."""
    rows: list[list[Image.Image]] = []
    for picture in pictures:
        if not rows or sum(one.width + GAP for one in rows[-1]) + picture.width > WIDTH:
            rows.append([])
        rows[-1].append(picture)
    height = max(one.height for one in pictures) + GAP
    width = max(sum(one.width + GAP for one in row) for row in rows)
    canvas = Image.new("RGB", (width, height * len(rows)), "white")
    for number, row in enumerate(rows):
        left = 0
        for one in row:
            canvas.paste(one, (left, number * height))
            left += one.width + GAP
    return canvas


def histograms(config: ConfigDict, anchors: Anchors, counts: Mapping[str, int]) -> bytes:
    """A PNG: sizes and forms of the boxes beside the anchors', best IoUs, boxes a category.

    Raises ImportError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError(
            "matplotlib is not installed; pip install 'retinanet_jax[inspect]'."
        ) from None

    seen, matching = anchors.seen, config.matching
    covered = seen.ious >= matching.foreground_iou
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    sides = np.sqrt(seen.sides.prod(axis=1))
    panels = (
        (axes[0, 0], sides, anchor_sides(config), "square root of a box's area, input pixels"),
        (axes[0, 1], seen.sides[:, 0] / seen.sides[:, 1], config.anchors.ratios, "height / width"),
    )
    for axis, values, marks, title in panels:
        ends = np.log2([min(values.min(), *marks), max(values.max(), *marks)]) + (-0.2, 0.2)
        bins = np.exp2(np.linspace(*ends, BINS))
        stacked = [values[covered], values[~covered]]
        labels = [f"an anchor at IoU {matching.foreground_iou}", "none"]
        axis.hist(stacked, bins, stacked=True, color=["tab:blue", "tab:red"], label=labels)
        for number, mark in enumerate(marks):
            axis.axvline(mark, color="black", lw=0.7, ls=":", label=None if number else "anchors")
        axis.set(xscale="log", xlabel=title, ylabel="boxes")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.legend()
    axes[1, 0].hist(seen.ious, np.linspace(0, 1, 51), color="tab:blue")
    for iou in (matching.background_iou, matching.foreground_iou):
        axes[1, 0].axvline(iou, color="black", lw=0.7, ls="--")
    axes[1, 0].set(xlabel="IoU of a box with the anchor that overlaps it most", ylabel="boxes")
    names = sorted(counts, key=counts.get, reverse=True)[:30]
    axes[1, 1].barh(names[::-1], [counts[name] for name in names[::-1]], color="tab:blue")
    axes[1, 1].set(xlabel="boxes of the most frequent categories")
    axes[1, 1].tick_params(axis="y", labelsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
