"""Layers: the images that one example is composed of, and where each of them is painted.

A mosaic, an average of two images, pasted objects and an affine transform are all lists of layers.
A layer is an image that is resized, flipped, rotated and cropped like any other, and then painted
at a place. All of them are sampled here, before an image is read.

The scale of an affine transform is part of the size that each layer is resized to, and its
translation is part of the place, so that pixels are resampled only once. Rotation and shear, the
`warp`, resample a second time: the layers are painted onto a canvas, which is warped.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, UInt64

from retinanet_jax.data.augmentation import Augmentation, ImageTransforms, rot90_sizes
from retinanet_jax.data.random_streams import Stream, random_bits, uniform
from retinanet_jax.data.sizes import round_sizes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.objects import clip_to_image
from retinanet_jax.data.transforms import unrotated_windows

NUM_PASTED = 4  # objects that may be pasted onto an image
MIXUP_OPACITY = 0.5
# The range, in fractions of the sides, of the point where the four images of a mosaic meet.
MEETING_RANGE = (0.25, 0.75)
# The corner of each of a mosaic's images that lies on that point, (y, x): 1 is the end of a side.
MOSAIC_CORNERS = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
# How many random numbers an example has of each stream.
NUM_SAMPLES = {
    Stream.AFFINE: 6,
    Stream.MOSAIC: 6,
    Stream.COPY_PASTE: 4 * NUM_PASTED,
    Stream.MIXUP: 4,
}


class Layers(NamedTuple):
    """The layers of examples, in the order of painting; one that is absent has the size zero."""

    index: Int32[np.ndarray, "*B S"]  # of the image
    resized: Int32[np.ndarray, "*B S 2"]  # this and the next four are described in `BatchPlan`
    flip: Bool[np.ndarray, "*B S"]
    rot90_k: Int32[np.ndarray, "*B S"]
    offset: Int32[np.ndarray, "*B S 2"]
    size: Int32[np.ndarray, "*B S 2"]
    place: Int32[np.ndarray, "*B S 2"]  # y and x of its corner in the example before the warp
    opacity: Float32[np.ndarray, "*B S"]  # 1: covers what is below; 0.5: is averaged with it


class Composition(NamedTuple):
    """What examples are composed of."""

    layers: Layers
    canvas: Int32[np.ndarray, "*B 4"]  # yxyx around all layers, in the example before the warp
    warp: Float64[np.ndarray, "*B 2 2"]  # of canvas points (y, x) around the example's center
    is_composed: Bool[np.ndarray, "*B"]  # whether this is more than the transforms of one image

    def select(self, part: int | slice) -> "Composition":
        """Return the composition of one or some of the examples."""
        layers = Layers(*(field[part] for field in self.layers))
        return Composition(layers, self.canvas[part], self.warp[part], self.is_composed[part])


class PastableObjects(NamedTuple):
    """The objects of a dataset that may be pasted onto other images."""

    boxes: Float32[np.ndarray, "M 4"]  # yxyx in pixels of the original image, inside it
    image_index: Int32[np.ndarray, " M"]


def pastable_objects(source: Source) -> PastableObjects:
    """Return the objects of a dataset, without crowd regions and boxes that have no area."""
    objects = source.objects.select(np.flatnonzero(source.object_mask))
    boxes, _, _ = clip_to_image(objects.boxes, source.sizes[objects.image_index])
    return PastableObjects(boxes, objects.image_index)


class Composer:
    """Samples what the examples of an epoch are composed of.

    Args:
        augmentation: The ranges and probabilities to sample from.
        sizes: The original height and width of each image.
        images: The index of the image of each example of an epoch; the first N are 0 to N - 1.
        objects: The objects that may be pasted; None if none are.
        seed: Determines every sample, together with the epoch.
        resize: The resize method, a key of `transforms.PIXEL_TYPES`.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        sizes: Int[np.ndarray, "N 2"],
        images: Int[np.ndarray, " E"],
        objects: PastableObjects | None,
        *,
        seed: int,
        resize: str,
    ):
        self._augmentation = augmentation
        self._sizes = sizes
        self._images = images
        self._objects = objects
        self._has_objects = objects is not None and len(objects.boxes) > 0
        self._seed = seed
        self._resize = resize

    def random_bits(self, epoch: int) -> dict[Stream, UInt64[np.ndarray, "E n"]]:
        """Return the random bits of an epoch for the streams that are in use."""
        augmentation, count = self._augmentation, len(self._images)
        in_use = {
            Stream.AFFINE: augmentation.is_affine,
            Stream.MOSAIC: augmentation.mosaic,
            Stream.COPY_PASTE: augmentation.copy_paste and self._has_objects,
            Stream.MIXUP: augmentation.mixup,
        }
        return {
            stream: random_bits(self._seed, epoch, stream, count=count * n).reshape(count, n)
            for stream, n in NUM_SAMPLES.items()
            if in_use[stream]
        }

    def compose(
        self,
        examples: Int[np.ndarray, " B"],
        transforms: ImageTransforms,
        bits: dict[Stream, UInt64[np.ndarray, "E n"]],
        *,
        is_mixed: bool,
    ) -> Composition | None:
        """Return what some of the examples of an epoch are composed of; None without `bits`.

        Args:
            examples: The numbers of the examples in the epoch.
            transforms: The transforms of the images of all examples.
            bits: From `random_bits`.
            is_mixed: Whether examples may have more than one image.
        """
        if not bits:
            return None
        samples = {stream: uniform(of_stream[examples]) for stream, of_stream in bits.items()}
        frame = transforms.size[examples]
        zoom, shift, warp = _affine(self._augmentation, frame, samples.get(Stream.AFFINE))
        options = transforms, zoom, is_mixed
        parts = [self._own_and_mosaic(examples, shift, samples.get(Stream.MOSAIC), *options)]
        if Stream.COPY_PASTE in samples:
            parts.append(self._pasted(frame, samples[Stream.COPY_PASTE], *options))
        if Stream.MIXUP in samples:
            parts.append(self._averaged(frame, samples[Stream.MIXUP], *options))
        layers = Layers(*(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))
        # The example before the warp is a parallelogram in this box.
        extent = (np.abs(np.linalg.inv(warp)) @ frame[:, :, None])[:, :, 0] / 2
        canvas = np.concatenate([np.floor(frame / 2 - extent), np.ceil(frame / 2 + extent)], axis=1)
        layers = _clipped(layers, canvas.astype(np.int32))
        return Composition(
            layers, canvas.astype(np.int32), warp, _is_composed(layers, warp, examples, transforms)
        )

    def _own_and_mosaic(
        self,
        examples: Int[np.ndarray, " B"],
        shift: Float[np.ndarray, "B 2"],
        samples: Float[np.ndarray, "B 6"] | None,
        transforms: ImageTransforms,
        zoom: Float[np.ndarray, " B"],
        is_mixed: bool,
    ) -> Layers:
        """Return the layer of each example's own image, and three that complete it to a mosaic."""
        center = transforms.size[examples] / 2
        single = np.rint(center - zoom[:, None] * center + shift)  # B 2
        if samples is None:
            layers = self._whole(examples[:, None], transforms, zoom)
            return layers._replace(place=single[:, None])
        partners = (samples[:, 3:] * len(self._images)).astype(np.int32)
        layers = self._whole(np.column_stack([examples, partners]), transforms, zoom)
        low, high = MEETING_RANGE
        from_center = 2 * center * (low + (high - low) * samples[:, 1:3]) - center
        meeting = np.rint(center + zoom[:, None] * from_center + shift)
        place = meeting[:, None] - MOSAIC_CORNERS * layers.size
        is_mosaic = samples[:, 0] < self._augmentation.mosaic * is_mixed
        layers.size[~is_mosaic, 1:] = 0
        return layers._replace(place=np.where(is_mosaic[:, None, None], place, single[:, None]))

    def _averaged(
        self,
        frame: Int32[np.ndarray, "B 2"],
        samples: Float[np.ndarray, "B 4"],
        transforms: ImageTransforms,
        zoom: Float[np.ndarray, " B"],
        is_mixed: bool,
    ) -> Layers:
        """Return the layer of another image that is averaged with what is below."""
        partner = (samples[:, 1:2] * len(self._images)).astype(np.int32)
        layers = self._whole(partner, transforms, zoom)
        layers.opacity[:] = MIXUP_OPACITY
        layers.size[samples[:, 0] >= self._augmentation.mixup * is_mixed] = 0
        return layers._replace(place=_anywhere(layers.size, frame, samples[:, None, 2:]))

    def _pasted(
        self,
        frame: Int32[np.ndarray, "B 2"],
        samples: Float[np.ndarray, "B p"],
        transforms: ImageTransforms,
        zoom: Float[np.ndarray, " B"],
        is_mixed: bool,
    ) -> Layers:
        """Return the layers of pasted objects, which are crops of their images."""
        samples = samples.reshape(len(frame), NUM_PASTED, 4)
        objects = self._objects
        assert objects is not None, "otherwise there are no bits"
        selected = (samples[:, :, 1] * len(objects.boxes)).astype(np.int32)  # B p
        index = objects.image_index[selected].astype(np.int32)
        layers = self._whole(index, transforms, zoom)
        scale = layers.resized / self._sizes[index]
        # Rounded as in `transforms.resize_boxes`, so that the crop contains the whole object.
        boxes = (objects.boxes[selected] * np.tile(scale, 2)).astype(np.float32)
        start, stop = np.floor(boxes[..., :2]), np.ceil(boxes[..., 2:])
        offset, size = _rotated_windows(layers, start, np.minimum(stop, layers.resized) - start)
        size[samples[:, :, 0] >= self._augmentation.copy_paste * is_mixed] = 0
        place = _anywhere(size, frame, samples[:, :, 2:])
        return layers._replace(offset=offset, size=size, place=place)

    def _whole(
        self,
        examples: Int32[np.ndarray, "B S"],
        transforms: ImageTransforms,
        zoom: Float[np.ndarray, " B"],
    ) -> Layers:
        """Return layers of the images of examples, as these have them except for a zoom."""
        factor = zoom[:, None, None]
        rot90_k = transforms.rot90_k[examples]
        resized = round_sizes(transforms.resized[examples] * factor, self._resize)
        rotated = rot90_sizes(resized, rot90_k)
        # Rounded up, so that without a crop this is the whole image.
        size = np.minimum(np.ceil(transforms.size[examples] * factor), rotated).astype(np.int32)
        offset = np.minimum(np.rint(transforms.offset[examples] * factor), rotated - size)
        return Layers(
            index=self._images[examples].astype(np.int32),
            resized=resized,
            flip=transforms.flip[examples],
            rot90_k=rot90_k,
            offset=offset,
            size=size,
            place=np.zeros_like(size),
            opacity=np.ones(examples.shape, np.float32),
        )


def _affine(
    augmentation: Augmentation,
    frame: Int32[np.ndarray, "B 2"],
    samples: Float[np.ndarray, "B 6"] | None,
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B 2"], Float64[np.ndarray, "B 2 2"]]:
    """Return the factor, the translation in pixels, and the rotation after the shear."""
    if samples is None:
        count = len(frame)
        return np.ones(count), np.zeros((count, 2)), np.tile(np.eye(2), (count, 1, 1))
    affine = augmentation.affine
    low, high = affine["scale"]
    signed = 2 * samples[:, 1:] - 1
    angle = np.radians(affine["rotation"]) * signed[:, 2]
    shear_y, shear_x = np.tan(np.radians(affine["shear"]) * signed[:, 3:].T)
    cos, sin, ones = np.cos(angle), np.sin(angle), np.ones(len(angle))
    rotation = np.array([[cos, -sin], [sin, cos]])  # 2 2 B
    shear = np.array([[ones, shear_y], [shear_x, ones]])
    warp = np.einsum("ijb,jkb->bik", rotation, shear)
    return low + (high - low) * samples[:, 0], affine["translation"] * signed[:, :2] * frame, warp


def _anywhere(
    size: Int32[np.ndarray, "B S 2"],
    frame: Int32[np.ndarray, "B 2"],
    samples: Float[np.ndarray, "B S 2"],
) -> Float[np.ndarray, "B S 2"]:
    """Return a place inside the example; of a larger layer, one where it covers the example."""
    return np.rint(samples * (frame[:, None] - size))


def _rotated_windows(
    layers: Layers, start: Float[np.ndarray, "B S 2"], size: Float[np.ndarray, "B S 2"]
) -> tuple[Int32[np.ndarray, "B S 2"], Int32[np.ndarray, "B S 2"]]:
    """Return the offset and size of windows of resized images after their flip and rotation."""
    (y, x), (height, width) = np.moveaxis(start, -1, 0), np.moveaxis(size, -1, 0)
    x = np.where(layers.flip, layers.resized[..., 1] - x - width, x)
    # To rotate by k is to undo a rotation by -k.
    rotated = rot90_sizes(layers.resized, layers.rot90_k)
    windows, _ = unrotated_windows(np.moveaxis(rotated, -1, 0), (y, x), (height, width))
    window = np.choose(-layers.rot90_k % 4, np.array(windows))  # 4 B S
    offset, size = np.moveaxis(window.astype(np.int32).reshape(2, 2, *y.shape), 1, -1)
    return offset, size


def _clipped(layers: Layers, canvas: Int32[np.ndarray, "B 4"]) -> Layers:
    """Return the layers without what is outside the canvas."""
    start = np.maximum(layers.place, canvas[:, None, :2])
    stop = np.minimum(layers.place + layers.size, canvas[:, None, 2:])
    size = np.where((stop > start).all(axis=-1, keepdims=True), stop - start, 0)
    offset = layers.offset + start - layers.place
    return layers._replace(
        offset=offset.astype(np.int32), size=size.astype(np.int32), place=start.astype(np.int32)
    )


def _is_composed(
    layers: Layers,
    warp: Float64[np.ndarray, "B 2 2"],
    examples: Int[np.ndarray, " B"],
    transforms: ImageTransforms,
) -> Bool[np.ndarray, " B"]:
    """Return which examples differ from their own image with its own transforms."""
    changed = [layers.size[:, 1:].any(axis=(1, 2)), (warp != np.eye(2)).any(axis=(1, 2))]
    for field, own in (
        (layers.resized, transforms.resized[examples]),
        (layers.offset, transforms.offset[examples]),
        (layers.size, transforms.size[examples]),
        (layers.place, 0),
    ):
        changed.append((field[:, 0] != own).any(axis=-1))
    return np.any(changed, axis=0)
