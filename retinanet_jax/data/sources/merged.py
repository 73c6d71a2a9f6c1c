"""The union of several sources; their categories are matched by name."""

import bisect
import itertools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging
from jaxtyping import UInt8

from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import concatenate, id_array


def merge(sources: Sequence[Source]) -> Source:
    """Return a dataset of the images of all `sources`, in order; a single source is returned.

    Categories of different sources are equal if their names are equal. The id of a category is that
    in the first source with its name or, if another category already has that id, one more than the
    largest id so far. Images keep their ids if these are unique over all sources, and are numbered
    from 1 otherwise; the same applies to annotations. A warning is logged for each source that
    lacks categories, because training treats such objects in its images as background.

    Args:
        sources: At least one dataset.
    """
    return sources[0] if len(sources) == 1 else _Merged(sources)


class _Merged(Source):
    """The images of several sources."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        # The index of the first image of each source, and the number of all images at the end.
        self._starts = [0, *itertools.accumulate(map(len, sources))]
        categories = _unite_categories([source.categories for source in sources])
        _warn_of_lacking_categories(categories, sources)
        class_of = {category.name: k for k, category in enumerate(categories)}
        parts = []
        for source, start in zip(sources, self._starts, strict=False):
            classes = np.array([class_of[category.name] for category in source.categories])
            parts.append(
                source.objects._replace(
                    image_index=source.objects.image_index + np.int32(start),
                    classes=classes[source.objects.classes].astype(np.int32),
                )
            )
        objects = concatenate(parts)
        super().__init__(
            " + ".join(source.name for source in sources),
            image_ids=_make_unique(
                [image_id for source in sources for image_id in source.image_ids]
            ),
            file_names=[name for source in sources for name in source.file_names],
            sizes=np.concatenate([source.sizes for source in sources]),
            categories=categories,
            objects=objects._replace(ids=id_array(_make_unique(objects.ids.tolist()))),
        )
        self.exif_decisions = tuple(
            decision for source in sources for decision in source.exif_decisions
        )

    def read(self, index: int) -> bytes | None:
        source, index_in_source = self._locate(index)
        return source.read(index_in_source)

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        source, index_in_source = self._locate(index)
        return source.image(index_in_source)

    def decoding_of(self, index: int) -> Decoding:
        source, index_in_source = self._locate(index)
        return source.decoding_of(index_in_source)

    def path(self, index: int) -> pathlib.Path | None:
        source, index_in_source = self._locate(index)
        return source.path(index_in_source)

    def _locate(self, index: int) -> tuple[Source, int]:
        """Return the source of an image, and the image's index in it."""
        position = bisect.bisect_right(self._starts, index) - 1
        return self._sources[position], index - self._starts[position]


def _make_unique(ids: list[int]) -> list[int]:
    """Return the ids if they are unique, and otherwise the numbers from 1."""
    return ids if len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _unite_categories(
    categories_of_sources: Iterable[tuple[Category, ...]],
) -> tuple[Category, ...]:
    """Return the categories of all names, sorted by id."""
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
    """Log a warning for every source that lacks some of the merged categories."""
    for source in sources:
        names = {category.name for category in source.categories}
        lacking = [category.name for category in categories if category.name not in names]
        if lacking:
            logging.warning(
                "%s: lacks %d categories of the datasets that it is merged with (first: %s); "
                "training treats such objects in its images as background.",
                source.name,
                len(lacking),
                lacking[0],
            )
