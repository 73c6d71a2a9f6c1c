"""The plan of one batch: its images, their transforms, and the bucket that they are padded to."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from retinanet_jax.data.effects import Effects
from retinanet_jax.data.layers import Composition
from retinanet_jax.data.transforms import Geometry


class BatchPlan(NamedTuple):
    """The plan of one batch over all hosts."""

    bucket: tuple[int, int]  # (H, W) that the images are padded to
    resize: str  # the resize method, a key of transforms.PIXEL_TYPES
    index: Int32[np.ndarray, " B"]  # index of each image in its source; a filler repeats an image
    resized: Int32[np.ndarray, "B 2"]  # height and width of the resized image
    flip: Bool[np.ndarray, " B"]  # whether to flip left to right, after resizing
    rot90_k: Int32[np.ndarray, " B"]  # rotations by 90 degrees counterclockwise, after the flip
    offset: Int32[np.ndarray, "B 2"]  # y and x of the crop in the rotated image
    size: Int32[np.ndarray, "B 2"]  # height and width of the crop, which is padded to the bucket
    colors: Float32[np.ndarray, "B 4"]  # factors of brightness, contrast, saturation; hue shift
    weights: Float32[np.ndarray, " B"]  # 1 for an image, 0 for a filler
    composition: Composition | None = None  # None: each example is its own image only
    effects: Effects | None = None  # on the pixels of the examples, after all else; None: none

    def for_process(self, process_index: int, process_count: int) -> "BatchPlan":
        """Return the contiguous part of the batch that one host loads.

        Args:
            process_index: The index of the host.
            process_count: The number of hosts.

        Raises:
            ValueError: If the batch does not divide evenly among the processes.
        """
        size, remainder = divmod(len(self.index), process_count)
        if remainder:
            raise ValueError(
                f"batch_size={len(self.index)} does not divide among {process_count} processes; "
                f"try {process_count * max(1, size)}."
            )
        part = slice(process_index * size, (process_index + 1) * size)
        composition = self.composition and self.composition.select(part)
        effects = self.effects and self.effects.select(part)
        arrays = {name: getattr(self, name)[part] for name in self._fields[2:-2]}
        return self._replace(**arrays, composition=composition, effects=effects)

    def images(self) -> list[int]:
        """Return the indices of all images that the batch requires, some of them repeatedly."""
        if self.composition is None:
            return self.index.tolist()
        layers = self.composition.layers
        return self.index.tolist() + layers.index[layers.size.any(axis=-1)].tolist()

    @property
    def num_layers(self) -> int:
        """The largest number of images that an example of any batch of the plan is composed of."""
        return 1 if self.composition is None else self.composition.layers.index.shape[1]

    @property
    def is_composed(self) -> Bool[np.ndarray, " B"]:
        """Whether each example is more than its own image with its `geometry`."""
        if self.composition is None:
            return np.zeros(len(self.index), bool)
        return self.composition.is_composed

    def composition_of(self, example: int) -> Composition | None:
        """Return what an example is composed of; None if it is its own image only."""
        if self.composition is None or not self.composition.is_composed[example]:
            return None
        return self.composition.select(example)

    @property
    def has_effects(self) -> Bool[np.ndarray, " B"]:
        """Whether the pixels of each example are changed after all else."""
        return np.zeros(len(self.index), bool) if self.effects is None else self.effects.is_any

    def geometry(self, example: int) -> Geometry:
        """Return the transforms of one example of the batch."""
        fields = (self.resized, self.flip, self.rot90_k, self.offset, self.size)
        resized, flip, rot90_k, offset, size = (field[example].tolist() for field in fields)
        return Geometry(tuple(resized), flip, rot90_k, tuple(offset), tuple(size))
