"""The form of an advice, and the facts that all advice is derived from."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from retinanet_jax.analysis.errors import confusion_matrix
from retinanet_jax.analysis.evaluated import NONE, Evaluated, missed_by
from retinanet_jax.analysis.missed import input_boxes
from retinanet_jax.analysis.offsets import Pairs, best_pairs
from retinanet_jax.analysis.thresholds import OperatingPoints, lowest_score
from retinanet_jax.data_report.anchor_choice import EpochBoxes
from retinanet_jax.utils.progress import shorten

ENOUGH = 5  # errors of one sort, from which on they are no accident


class Advice(NamedTuple):
    """What is wrong, and what to try."""

    severity: str  # one of findings.SEVERITIES
    title: str
    text: str  # the figures, and what to do
    number: float  # the figure that shows it


class Facts(NamedTuple):
    """The facts about the detections of a dataset.

    Attributes:
        evaluated: The dataset and its detections.
        thresholds: The operating points.
        is_confident: Whether each detection has the score of the operating point of all categories.
        is_object: Whether each annotation is an object and no crowd region.
        is_missed: Whether each object has no detection, whatever its score.
        num_objects: The number of objects of each class.
        confusion: The confusion matrix of the confident detections, with background at the end.
        boxes: The objects as the network sees them; None without the detector's config.
        pairs: The objects with the best detections near them.
    """

    evaluated: Evaluated
    thresholds: OperatingPoints
    is_confident: Bool[np.ndarray, " n"]
    is_object: Bool[np.ndarray, " m"]
    is_missed: Bool[np.ndarray, " m"]
    num_objects: Int[np.ndarray, " K"]
    confusion: Int[np.ndarray, "K1 K1"]
    boxes: EpochBoxes | None
    pairs: Pairs

    def name(self, class_index: int) -> str:
        """Return the name of a category, shortened."""
        return shorten(self.evaluated.source.categories[class_index].name)

    def count(self, class_indices: Int[np.ndarray, " q"]) -> Int[np.ndarray, " K"]:
        """Return how often each class is among some class indices."""
        return np.bincount(class_indices, minlength=len(self.num_objects))

    @property
    def num_correct(self) -> int:
        """The number of confident detections that are correct."""
        return int((self.is_confident & (self.evaluated.detections.error == NONE)).sum())


def collect_facts(evaluated: Evaluated, thresholds: OperatingPoints) -> Facts:
    """Return the facts about the detections of a dataset.

    Args:
        evaluated: The dataset and its detections.
        thresholds: The operating points.
    """
    detections, objects = evaluated.detections, evaluated.objects
    threshold = thresholds.overall.threshold
    is_object = ~objects.is_crowd
    return Facts(
        evaluated=evaluated,
        thresholds=thresholds,
        is_confident=detections.score >= lowest_score(threshold),
        is_object=is_object,
        is_missed=missed_by(evaluated, np.ones(len(detections.score), bool)),
        num_objects=np.bincount(
            objects.class_index[is_object], minlength=len(evaluated.source.categories)
        ),
        confusion=confusion_matrix(evaluated, threshold),
        boxes=input_boxes(evaluated),
        pairs=best_pairs(evaluated),
    )
