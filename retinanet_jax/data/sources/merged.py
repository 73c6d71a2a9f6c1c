"""Several sources as one."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from retinanet_jax.data.sources.base import Annotations, Category, Source


def merged(sources: Sequence[Source]) -> Source:
    """The pictures of all `sources`, in order; one source is itself.

    A category is its name, whatever its id: it has the id that the first source with that name
    gives it or, where a category of another name has that already, the next above all so far.
    Pictures keep their ids where these are unique over all sources, else they are numbered from 1;
    so are annotations. A warning tells of categories that a source lacks: what its pictures show
    of them is taught as background.
    """
    return sources[0] if len(sources) == 1 else _Merged(sources)


class _Merged(Source):
    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._starts = [0, *itertools.accumulate(map(len, sources))]  # the last one is the end
        self.name = " + ".join(source.name for source in sources)
        self.sizes = np.concatenate([source.sizes for source in sources])
        self.image_ids = _unique([one for source in sources for one in source.image_ids])
        self.categories = _united([source.categories for source in sources])
        _warn_of_gaps(self.categories, sources)
        class_of = {category.name: k for k, category in enumerate(self.categories)}
        # Of every source, its classes' rows in `categories`.
        self._classes = [
            np.array([class_of[category.name] for category in source.categories], np.int32)
            for source in sources
        ]

    def annotations(self, index: int) -> Annotations:
        number, row = self._locate(index)
        own = self._sources[number].annotations(row)
        return own._replace(classes=self._classes[number][own.classes])

    def file_name(self, index: int) -> str:
        source, row = self._at(index)
        return source.file_name(row)

    def read(self, index: int) -> bytes | None:
        source, row = self._at(index)
        return source.read(row)

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        source, row = self._at(index)
        return source.image(row)

    def ground_truth(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        id_of = {category.name: category.id for category in self.categories}
        for number, source in enumerate(self._sources):
            own = self.image_ids[self._starts[number] : self._starts[number + 1]]
            image_id = dict(zip(source.image_ids, own, strict=True))
            category_id = {category.id: id_of[category.name] for category in source.categories}
            truth = source.ground_truth()
            images += [{**one, "id": image_id[one["id"]]} for one in truth["images"]]
            annotations += [
                {
                    **one,
                    "image_id": image_id[one["image_id"]],
                    "category_id": category_id[one["category_id"]],
                }
                for one in truth["annotations"]
            ]
        ids = _unique([one["id"] for one in annotations])
        return {
            "images": images,
            "categories": [category._asdict() for category in self.categories],
            "annotations": [
                {**one, "id": number} for one, number in zip(annotations, ids, strict=True)
            ],
        }

    def _locate(self, index: int) -> tuple[int, int]:
        """Which source, and the picture's row in it."""
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _at(self, index: int) -> tuple[Source, int]:
        number, row = self._locate(index)
        return self._sources[number], row


def _unique(ids: list[int]) -> list[int]:
    return ids if len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _united(of_sources: Iterable[tuple[Category, ...]]) -> tuple[Category, ...]:
    """Every name once, sorted by id."""
    name_of: dict[int, str] = {}
    for categories in of_sources:
        for number, name in categories:
            if name not in name_of.values():
                name_of[number if number not in name_of else max(name_of) + 1] = name
    return tuple(Category(number, name) for number, name in sorted(name_of.items()))


def _warn_of_gaps(categories: tuple[Category, ...], sources: Iterable[Source]) -> None:
    for source in sources:
        own = {category.name for category in source.categories}
        lacking = [category.name for category in categories if category.name not in own]
        if lacking:
            logging.warning(
                "%s: lacks %d categories of the data it is merged with (first: %s): what its "
                "pictures show of them is taught as background.",
                source.name,
                len(lacking),
                lacking[0],
            )
