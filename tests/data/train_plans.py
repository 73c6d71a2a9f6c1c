"""Training plans from a single dict of settings, and settings for several test modules."""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from retinanet_jax.data.augmentation import COLORS, Augmentation
from retinanet_jax.data.plan import TrainPlan

AUGMENTATION_FIELDS = [field.name for field in dataclasses.fields(Augmentation)]
SIZES = np.array([[480, 640], [640, 480], [500, 500], [333, 640], [640, 200], [20, 30]])
NO_COLOR_JITTER = dict.fromkeys(COLORS, 0.0)
COLOR_JITTER = {"brightness": 0.4, "contrast": 0.2, "saturation": 1.5, "hue": 0.1}

DEFAULTS = {
    "seed": 0,
    "batch_size": 4,
    "buckets": ((128, 192), (192, 128)),
    "resize": "bilinear",
    "short_sides": (96, 128),
    "short_side_sampling": "choice",
    "long_side": 192,
    "flip": True,
    "scale_jitter": (0.7, 1.4),
    "crop_size": None,
    "rot90": False,
    "color_jitter": NO_COLOR_JITTER,
}
plan_options = st.fixed_dictionaries(
    {
        "short_side_sampling": st.sampled_from(["choice", "range"]),
        "flip": st.booleans(),
        "scale_jitter": st.sampled_from([None, (0.7, 1.4), (0.1, 2.0)]),
        "crop_size": st.sampled_from([None, (128, 192), (100, 60)]),
        "rot90": st.booleans(),
        "color_jitter": st.sampled_from([NO_COLOR_JITTER, COLOR_JITTER]),
        "resize": st.sampled_from(["bilinear", "bilinear_float", "pillow"]),
    }
)


def make_train_plan(sizes: np.ndarray, settings: dict[str, Any]) -> TrainPlan:
    """Return a plan; `settings` contains its arguments and the fields of its `Augmentation`."""
    fields = {name: settings[name] for name in AUGMENTATION_FIELDS if name in settings}
    augmentation = Augmentation(**fields)
    arguments = {k: v for k, v in settings.items() if k not in AUGMENTATION_FIELDS}
    return TrainPlan(np.asarray(sizes), augmentation, **arguments)


def train_plan(sizes, **changes) -> TrainPlan:
    """Return a plan with the default settings except for changes."""
    return make_train_plan(sizes, DEFAULTS | changes)


def random_sizes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 700, (count, 2))


def first_epoch(plan: TrainPlan, field: str) -> np.ndarray:
    """Return one field of the batch plans of all images of the first epoch."""
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    return np.concatenate([getattr(batch, field)[batch.weights == 1] for batch in batches])
