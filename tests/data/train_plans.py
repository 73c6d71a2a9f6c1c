"""Training plans from a single dict of settings."""

import dataclasses
from typing import Any

import numpy as np

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.plan import TrainPlan

AUGMENTATION_FIELDS = [field.name for field in dataclasses.fields(Augmentation)]


def make_train_plan(sizes: np.ndarray, settings: dict[str, Any]) -> TrainPlan:
    """Return a plan; `settings` contains its arguments and the fields of its `Augmentation`."""
    augmentation = Augmentation(**{name: settings[name] for name in AUGMENTATION_FIELDS})
    arguments = {k: v for k, v in settings.items() if k not in AUGMENTATION_FIELDS}
    return TrainPlan(np.asarray(sizes), augmentation, **arguments)
