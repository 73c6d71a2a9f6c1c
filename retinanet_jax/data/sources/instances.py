"""The base class of datasets that files of annotations describe; it checks their contents."""

import collections
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int32

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.fields import show
from retinanet_jax.data.sources.objects import OUTSIDE_TOLERANCE, Objects, clip_to_image

WITHOUT_AREA = (
    "have no area inside their image: they are not trained on, but AP counts each as missed"
)
OUTSIDE = f"extend beyond their image by more than {OUTSIDE_TOLERANCE:g} pixel and are clipped"


class InstancesSource(Source):
    """A dataset of which everything but the images is in memory.

    Boxes without an area inside their image are left out of training, and boxes that extend beyond
    their image are clipped; warnings report how many. `ground_truth` contains all boxes unchanged.
    """

    def __init__(
        self,
        name: str,
        *,
        image_ids: Sequence[int],
        file_names: Sequence[str],
        sizes: Int32[np.ndarray, "N 2"],
        categories: Iterable[Category],
        objects: Objects,
        label: Callable[[int], str],
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Check and store the contents of the dataset.

        Args:
            name: As in `Source`.
            image_ids: As in `Source`.
            file_names: As in `Source`.
            sizes: As in `Source`.
            categories: The categories; their ids differ.
            objects: The objects, in any order.
            label: Returns the name, for messages, of the annotation with a given id.
            decoding: As in `Source`; an `exif` of "auto" is "applied".

        Raises:
            ValueError: If there are no images or no categories, or names are repeated.
        """
        if not image_ids:
            raise ValueError(f"{name}: has no images; give a file that lists some.")
        categories = list(categories)
        if not categories:
            raise ValueError(f"{name}: has no categories; give it at least one.")
        counts = collections.Counter(category.name for category in categories)
        repeated = [category_name for category_name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(
                f"{name}: {len(repeated)} names belong to several categories, first "
                f"{repeated[0]!r}; give each category a different name."
            )
        if decoding.exif == "auto":
            decoding = decoding._replace(exif="applied")
        super().__init__(
            name,
            image_ids=image_ids,
            file_names=file_names,
            sizes=sizes,
            categories=categories,
            objects=objects,
            decoding=decoding,
        )
        self._warn_of_similar_names()
        self._warn_of_invalid_boxes(label)

    def _warn_of_similar_names(self) -> None:
        """Log which categories differ only in letter case or spaces; they may be the same."""
        groups = collections.defaultdict(list)
        for category in self.categories:
            groups["".join(category.name.casefold().split())].append(category.name)
        similar = [names for names in groups.values() if len(names) > 1]
        if similar:
            logging.warning(
                "%s: %d categories differ from another one only in letter case or spaces (first: "
                "%s and %s); if they are the same, give them one name.",
                self.name,
                sum(len(names) - 1 for names in similar),
                *map(show, similar[0][:2]),
            )

    def _warn_of_invalid_boxes(self, label: Callable[[int], str]) -> None:
        """Log how many boxes have no area or extend beyond their image."""
        objects = self.objects
        _, has_area, is_outside = clip_to_image(objects.boxes, self.sizes[objects.image_index])
        for mask, problem in ((~has_area, WITHOUT_AREA), (has_area & is_outside, OUTSIDE)):
            if mask.any():
                first = int(mask.argmax())
                file_name = self.file_names[objects.image_index[first]]
                logging.warning(
                    "%s: %d boxes %s (first: %s (%s)).",
                    self.name,
                    mask.sum(),
                    problem,
                    label(objects.ids[first : first + 1].tolist()[0]),
                    file_name,
                )
