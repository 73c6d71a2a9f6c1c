"""The union of several sources; their categories are matched by name."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from retinanet_jax.data.sources.base import Annotations, Category, Source


def merge(sources: Sequence[Source]) -> Source:
    """Return a source of the images of all `sources`, in order; a single source is not changed.

    Categories are equal if their names are, whatever their ids. A category gets the id that the
    first source with its name gives it or, if that id already belongs to another name, the next
    id above the largest so far. Images keep their ids if these are unique over all sources and are
    otherwise numbered from 1, and so are annotations. A warning lists categories that a source
    lacks, because training treats their objects in its images as background.
    """
    return sources[0] if len(sources) == 1 else _Merged(sources)


class _Merged(Source):
    """The images of several sources."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        # The index of each source's first image; the last entry is the number of all images.
        self._starts = [0, *itertools.accumulate(map(len, sources))]
        self.name = " + ".join(source.name for source in sources)
        self.sizes = np.concatenate([source.sizes for source in sources])
        self.image_ids = _make_unique(
            [image_id for source in sources for image_id in source.image_ids]
        )
        self.categories = _unite_categories([source.categories for source in sources])
        _warn_of_lacking_categories(self.categories, sources)
        class_of = {category.name: k for k, category in enumerate(self.categories)}
        # For each source: the merged class of each of its own classes.
        self._classes = [
            np.array([class_of[category.name] for category in source.categories], np.int32)
            for source in sources
        ]

    def annotations(self, index: int) -> Annotations:
        source_index, own_index = self._locate(index)
        own = self._sources[source_index].annotations(own_index)
        return own._replace(classes=self._classes[source_index][own.classes])

    def file_name(self, index: int) -> str:
        source, own_index = self._source_of(index)
        return source.file_name(own_index)

    def read(self, index: int) -> bytes | None:
        source, own_index = self._source_of(index)
        return source.read(own_index)

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        source, own_index = self._source_of(index)
        return source.image(own_index)

    def ground_truth(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        id_of = {category.name: category.id for category in self.categories}
        for source, (start, stop) in zip(
            self._sources, itertools.pairwise(self._starts), strict=True
        ):
            image_id = dict(zip(source.image_ids, self.image_ids[start:stop], strict=True))
            category_id = {category.id: id_of[category.name] for category in source.categories}
            truth = source.ground_truth()
            images += [{**image, "id": image_id[image["id"]]} for image in truth["images"]]
            annotations += [
                {
                    **annotation,
                    "image_id": image_id[annotation["image_id"]],
                    "category_id": category_id[annotation["category_id"]],
                }
                for annotation in truth["annotations"]
            ]
        ids = _make_unique([annotation["id"] for annotation in annotations])
        return {
            "images": images,
            "categories": [category._asdict() for category in self.categories],
            "annotations": [
                {**annotation, "id": annotation_id}
                for annotation, annotation_id in zip(annotations, ids, strict=True)
            ],
        }

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of the source, and the image's index in it."""
        source_index = bisect.bisect_right(self._starts, index) - 1
        return source_index, index - self._starts[source_index]

    def _source_of(self, index: int) -> tuple[Source, int]:
        """Return the source of an image, and the image's index in it."""
        source_index, own_index = self._locate(index)
        return self._sources[source_index], own_index


def _make_unique(ids: list[int]) -> list[int]:
    """Return the ids if they are unique, else the numbers from 1."""
    return ids if len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _unite_categories(
    categories_of_sources: Iterable[tuple[Category, ...]],
) -> tuple[Category, ...]:
    """Return every name once, sorted by id."""
    name_of: dict[int, str] = {}
    for categories in categories_of_sources:
        for category_id, name in categories:
            if name not in name_of.values():
                is_free = category_id not in name_of
                name_of[category_id if is_free else max(name_of) + 1] = name
    return tuple(Category(category_id, name) for category_id, name in sorted(name_of.items()))


def _warn_of_lacking_categories(
    categories: tuple[Category, ...], sources: Iterable[Source]
) -> None:
    """Log a warning for every source without all of the merged categories."""
    for source in sources:
        own = {category.name for category in source.categories}
        lacking = [category.name for category in categories if category.name not in own]
        if lacking:
            logging.warning(
                "%s: lacks %d categories of the data it is merged with (first: %s): training "
                "treats such objects in its images as background.",
                source.name,
                len(lacking),
                lacking[0],
            )
