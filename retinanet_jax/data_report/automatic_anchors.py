"""Anchors chosen for a run's training data, as the dataset report proposes them."""

from typing import NamedTuple

from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.data.sources.base import Source, subset
from retinanet_jax.data_report.anchor_choice import AnchorChoice, measure
from retinanet_jax.data_report.anchor_fit import CONFIGURED
from retinanet_jax.data_report.proposals import propose_anchors
from retinanet_jax.data_report.report import MAX_IMAGES, sample_indices
from retinanet_jax.data_report.views import epoch_views


class AutomaticAnchors(NamedTuple):
    """The coverage of a dataset by the configured anchors, and by better ones.

    Attributes:
        configured: The coverage of the config's anchors; None if an epoch has no box.
        chosen: The anchors to train with instead; None if the configured ones cover the boxes well
            or none cover notably more.
    """

    configured: AnchorChoice | None
    chosen: AnchorChoice | None

    def description(self, threshold: float) -> str:
        """Return what is chosen and why, as a clause for messages.

        Args:
            threshold: The foreground IoU.
        """
        if self.configured is None:
            return "those of the config, because an epoch has no box to choose them for"
        count, uncovered = len(self.configured.boxes.ious), self.configured.uncovered
        of_config = f"{uncovered:.1%} of {count} boxes have no anchor at IoU {threshold}"
        if self.chosen is None:
            return f"those of the config: {of_config}"
        return (
            f"{self.chosen.name} chosen for the data, with which {self.chosen.uncovered:.1%} of "
            f"{count} boxes have no anchor at IoU {threshold}; {uncovered:.1%} with the config's"
        )


def choose_anchors(config: ConfigDict, source: Source, *, same_number: bool) -> AutomaticAnchors:
    """Choose anchors for the boxes of an epoch of at most MAX_IMAGES images.

    Args:
        config: A run's config.
        source: The training data.
        same_number: As in `propose_anchors`.
    """
    sample = subset(source, sample_indices(len(source), MAX_IMAGES, config.seed))
    config = config.copy_and_resolve_references()
    config.data.batch_size = config.data.batch_size or 1  # it hardly matters for the boxes
    plan = input_pipeline.train_plan(config, sample)
    views = list(epoch_views(sample, plan, min_visible=augmented_data(config).min_visible))
    if not any(len(view.boxes) for view in views):
        return AutomaticAnchors(None, None)
    configured = measure(CONFIGURED, {}, config, views, num_classes=len(source.categories))
    chosen = propose_anchors(config, sample, views, configured, same_number=same_number)
    return AutomaticAnchors(configured, chosen)
