"""Proposals for a dataset that the configured anchors cover poorly.

They are other scales and ratios, another base scale, more levels, and another image size; each is
measured as the configured anchors are, and only those that help are proposed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.config_checks import MAX_LEVELS
from retinanet_jax.data.sizes import round_up
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report import anchor_search
from retinanet_jax.data_report.anchor_choice import (
    ENOUGH,
    AnchorChoice,
    anchor_shapes,
    measure,
    place_views,
)
from retinanet_jax.data_report.coverage import PlacedBoxes
from retinanet_jax.data_report.views import View, epoch_views
from retinanet_jax.utils.progress import format_count

MAX_SEARCH_BOXES = 10_000  # the largest number of boxes that the searches use
NOTABLE_GAIN = 0.02  # of the weight of the boxes, by which a proposal must cover more
IMAGE_FACTORS = (0.5, 0.75, 1.25, 1.5, 2, 3)  # of the sides of images


def propose(
    config: ConfigDict,
    source: Source,
    views: Sequence[View],
    parts: Mapping[str, Source],
    configured: AnchorChoice,
) -> tuple[AnchorChoice, ...]:
    """Return the choices that cover notably more boxes than the configured anchors do.

    The first is the one to try first: of those that cover about the most, the cheapest. There is
    none if the configured anchors cover the boxes, and those of each category, well.

    Args:
        config: The config of the run.
        source: The images of the epoch.
        views: The epoch of the run's config.
        parts: All training and evaluation data; proposals have buckets for all of their images.
        configured: The coverage of the run's config.
    """
    if not configured.is_poor:
        return ()
    search = _Search(config, source, views, parts, configured)
    candidates = [search.base_scale(), *search.shapes(), *search.levels(), *search.image_size()]
    helpful = [choice for choice in candidates if search.helps(choice)]
    if not helpful:
        return ()
    first = search.cheapest_of_best(helpful)
    return first, *(choice for choice in helpful if choice is not first)


def propose_anchors(
    config: ConfigDict,
    source: Source,
    views: Sequence[View],
    configured: AnchorChoice,
    *,
    same_number: bool,
) -> AnchorChoice | None:
    """Return the base scale, or scales and ratios, to try first; None as for `propose`.

    Args:
        config: The config of the run.
        source: The images of the epoch.
        views: The epoch of the run's config.
        configured: The coverage of the run's config.
        same_number: Whether only as many scales and ratios as configured are proposed, for which
            the network is the same.
    """
    if not configured.is_poor:
        return None
    search = _Search(config, source, views, {}, configured)
    number = configured.anchors_per_image
    helpful = [
        choice
        for choice in (search.base_scale(), *search.shapes())
        if search.helps(choice) and (choice.anchors_per_image == number or not same_number)
    ]
    return search.cheapest_of_best(helpful) if helpful else None


def box_weights(
    classes: Int[np.ndarray, " n"], poor: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " n"]:
    """Return weights of the boxes, of which half belongs to the poorly covered categories.

    Each of these has the same weight, but less if it has few boxes. The other half is distributed
    evenly over all boxes.

    Args:
        classes: The class of each box.
        poor: The classes that are poorly covered.
    """
    weights = np.full(len(classes), 1 / len(classes))
    if len(poor):
        counts = np.bincount(classes, minlength=poor.max() + 1)
        extra = np.zeros(len(counts))
        extra[poor] = 1 / (len(poor) * np.maximum(counts[poor], ENOUGH))
        weights += extra[classes]
    return weights / weights.sum()


def thin_out(
    placed: PlacedBoxes, weights: Float[np.ndarray, " n"], max_boxes: int
) -> tuple[PlacedBoxes, Float[np.ndarray, " m"]]:
    """Return a sample of at most `max_boxes` of the boxes, and the weights of those.

    Args:
        placed: The boxes.
        weights: The weight of each box, to which its chance to be in the sample is proportional.
        max_boxes: The largest number of boxes.
    """
    if len(weights) <= max_boxes:
        return placed, weights
    ends = np.cumsum(weights)
    positions = (np.arange(max_boxes) + 0.5) / max_boxes * ends[-1]
    indices, counts = np.unique(np.searchsorted(ends, positions), return_counts=True)
    return placed.select(indices), counts / max_boxes


def scale_sizes(config: ConfigDict, factor: float, slack: float) -> dict[str, Any]:
    """Return the fields of a config with all sizes of images multiplied by a factor.

    Args:
        config: The config of the run.
        factor: The factor.
        slack: Pixels by which images may exceed the multiplied buckets.
    """
    data = config.data

    def scaled(length: float) -> int:
        return max(1, math.floor(length * factor))

    buckets = [
        tuple(round_up(math.ceil(side * factor + slack)) for side in bucket)
        for bucket in data.buckets
    ]
    fields = {
        "data.short_sides": tuple(map(scaled, data.short_sides)),
        "data.eval_short_side": scaled(data.eval_short_side),
        "data.long_side": scaled(data.long_side),
        "data.buckets": tuple(dict.fromkeys(buckets)),
    }
    if data.crop_size:
        fields["data.crop_size"] = tuple(map(scaled, data.crop_size))
    return fields


def images_fit(config: ConfigDict, parts: Mapping[str, Source]) -> bool:
    """Return whether the buckets of a config can contain the images of all datasets."""
    try:
        input_pipeline.train_plan(config, parts["train"])
        if "eval" in parts:
            input_pipeline.eval_plan(config, parts["eval"].sizes, batch_size=1)
    except ValueError:
        return False
    return True


class _Search:
    """The searches for proposals; the arguments are those of `propose`."""

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        views: Sequence[View],
        parts: Mapping[str, Source],
        configured: AnchorChoice,
    ):
        self._config, self._source, self._views, self._parts = config, source, views, parts
        self._configured = configured
        self._poor = configured.classes.poor
        weights = box_weights(configured.boxes.classes, self._poor)
        placed = place_views(config, views)
        self._sample, self._weights = thin_out(placed, weights, MAX_SEARCH_BOXES)

    def shapes(self) -> Iterator[AnchorChoice]:
        """Yield as many scales and ratios as configured and, if they do not suffice, one more."""
        same = self._shapes(self._config.anchors.scales, self._config.anchors.ratios)
        yield same
        if same.is_poor:
            scales, ratios = same.fields["anchors.scales"], same.fields["anchors.ratios"]
            more_scales = self._shapes((*scales, scales[-1] * 1.5), ratios)
            more_ratios = self._shapes(scales, (*ratios, ratios[-1] * 1.5))
            more = max(more_scales, more_ratios, key=self.score)
            if self.score(more) > self.score(same) + NOTABLE_GAIN:
                yield more

    def base_scale(self) -> AnchorChoice:
        """Return the best base scale."""
        threshold = self._config.matching.foreground_iou
        base_scale = anchor_search.search_base_scale(
            self._sample, self._weights, **anchor_shapes(self._config), threshold=threshold
        )
        return self._measure(f"base_scale {base_scale:g}", {"anchors.base_scale": base_scale})

    def levels(self) -> Iterator[AnchorChoice]:
        """Yield the pyramid with all levels that the network may have, unless it is configured."""
        most = max(MAX_LEVELS)
        if self._config.anchors.max_level < most:
            yield self._measure(f"levels 3 to {most}", {"anchors.max_level": most})

    def image_size(self) -> Iterator[AnchorChoice]:
        """Yield the cheapest image size of those that cover about the most."""
        choices = [self._scaled(factor) for factor in IMAGE_FACTORS]
        usable = [choice for choice in choices if choice is not None]
        if usable:
            yield self.cheapest_of_best(usable)

    def cheapest_of_best(self, choices: Sequence[AnchorChoice]) -> AnchorChoice:
        """Return the choice with the fewest anchors of those that cover about the most."""
        scores = list(map(self.score, choices))
        good = [c for c, s in zip(choices, scores, strict=True) if s >= max(scores) - NOTABLE_GAIN]
        return min(good, key=lambda choice: choice.anchors_per_image)

    def score(self, choice: AnchorChoice) -> float:
        """Return the weight of the boxes that a choice covers, from 0 to 1."""
        return float(box_weights(choice.boxes.classes, self._poor) @ choice.boxes.covered)

    def helps(self, choice: AnchorChoice) -> bool:
        """Return whether a choice covers notably more, and not notably fewer of all boxes."""
        gain = self.score(choice) - self.score(self._configured)
        return gain > NOTABLE_GAIN and choice.uncovered < self._configured.uncovered + NOTABLE_GAIN

    def _scaled(self, factor: float) -> AnchorChoice | None:
        """Return the choice of images of another size, or None if that cannot be trained on.

        The sides of an image may exceed the multiplied buckets by the pixel to which they were
        rounded.
        """
        for slack in (0, factor):
            fields = scale_sizes(self._config, factor, slack)
            if images_fit(self._with(fields), self._parts):
                sides = ", ".join(map(str, fields["data.short_sides"]))
                choice = self._measure(f"short side {sides}", fields)
                # Crops may leave out all boxes.
                return choice if len(choice.boxes.classes) else None
        return None

    def _shapes(self, scales: Sequence[float], ratios: Sequence[float]) -> AnchorChoice:
        """Return the best of all choices of as many scales and ratios as given."""
        shapes = {**anchor_shapes(self._config), "scales": scales, "ratios": ratios}
        scales, ratios = anchor_search.search_shapes(
            self._sample,
            self._weights,
            **shapes,
            threshold=self._config.matching.foreground_iou,
        )
        name = f"{format_count(len(scales), 'scale')}, {format_count(len(ratios), 'ratio')}"
        return self._measure(name, {"anchors.scales": scales, "anchors.ratios": ratios})

    def _measure(self, name: str, fields: dict[str, Any]) -> AnchorChoice:
        """Return the coverage of the run's config with some fields changed."""
        changed, views = self._with(fields), self._views
        if any(field.startswith("data.") for field in fields):
            plan = input_pipeline.train_plan(changed, self._source)
            min_visible = augmented_data(changed).min_visible
            views = list(epoch_views(self._source, plan, min_visible=min_visible))
        return measure(name, fields, changed, views, num_classes=len(self._source.categories))

    def _with(self, fields: dict[str, Any]) -> ConfigDict:
        """Return the run's config with some fields changed."""
        changed = self._config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        return changed
