"""The sheet of augmentation: training images with that of the config and with each preset."""

import functools
import io
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from PIL import Image

from retinanet_jax import input_pipeline, visualize
from retinanet_jax.augmentation_presets import PRESETS
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report import sheet
from retinanet_jax.modeling import network_input

NUM_IMAGES = 8  # of each augmentation
HEIGHT, WIDTH = 200, 400  # the largest size of an image


def augmentation_sheet(config: ConfigDict, source: Source) -> bytes:
    """Return a PNG of training images with the config's augmentation and that of each preset.

    Args:
        config: The config of the run.
        source: The training data.
    """
    rows = []
    see = compiled_input(config)
    for name, changed in augmentations(config):
        images = [draw(*example) for example in first_images(changed, source, see)]
        row = sheet.arrange_in_rows(images)
        rows += [[visualize.text_line([name], sheet.WIDTH)], [row]]
    file = io.BytesIO()
    visualize.arrange(rows).save(file, "PNG")
    return file.getvalue()


def augmentations(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the title of each section of the sheet, and the config that its images are loaded with.

    Args:
        config: The config of the run.
    """
    yield f"this config ({config.data.augmentation or 'no preset'})", config
    for name in PRESETS:
        if name != config.data.augmentation:
            changed = config.copy_and_resolve_references()
            changed.data.augmentation = name
            yield f"with --config.data.augmentation={name}", changed


def compiled_input(config: ConfigDict) -> Callable[[Batch], Float[Array, "B H W 3"]]:
    """Return `network_input` in training as one program for all augmentations of colors.

    Args:
        config: The config of the run.
    """
    colored = config.copy_and_resolve_references()
    # The program uses the colors of its batch, whatever the strength is that is not 0.
    colored.data.color_jitter.hue = 1.0
    return jax.jit(functools.partial(network_input, config=colored, train=True))


def first_images(
    config: ConfigDict, source: Source, see: Callable[[Batch], Float[Array, "B H W 3"]]
) -> Iterator[tuple[Image.Image, Batch, int]]:
    """Yield the first images of training as the network sees them, their batch and index in it.

    Args:
        config: The config of the run.
        source: The training data.
        see: From `compiled_input`.
    """
    plan = input_pipeline.train_plan(config, source)
    steps = range(min(NUM_IMAGES, plan.steps_per_epoch))
    count = 0
    for batch in input_pipeline.host_batches(config, source, plan, steps):
        pixels = np.asarray(see(batch), np.float32)
        for example in np.flatnonzero(batch.weights).tolist()[: NUM_IMAGES - count]:
            height, width = batch.sizes[example].astype(int).tolist()
            image = sheet.denormalize(pixels[example], **config.input)[:height, :width]
            yield Image.fromarray(image), batch, example
            count += 1
        if count == NUM_IMAGES:
            return


def draw(image: Image.Image, batch: Batch, example: int) -> Image.Image:
    """Return an image, scaled to the sheet, with its boxes in the colors of their categories.

    Args:
        image: The image, without padding.
        batch: The batch that it is from.
        example: Its index in the batch.
    """
    scale = min(HEIGHT / image.height, WIDTH / image.width)
    canvas = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    mask = batch.mask[example]
    boxes, classes = batch.boxes[example][mask] * scale, batch.classes[example][mask]
    for box, class_index in zip(boxes, classes.tolist(), strict=True):
        sheet.outline(canvas, box[None], visualize.BLACK, 4)
        sheet.outline(canvas, box[None], visualize.class_color(class_index), 2)
    crowd_boxes = batch.crowd_boxes[example][batch.crowd_mask[example]]
    sheet.outline(canvas, crowd_boxes * scale, sheet.CROWD, 2)
    return canvas
