"""The datasets that config.data describes: opened, detected, converted and checked before a run.

Importing this package and opening a dataset import neither flax nor the network.
"""

from retinanet_jax.datasets.checks import (
    check_evaluation_data,
    check_images,
    check_training_data,
    why_no_object,
)
from retinanet_jax.datasets.detected import (
    convert_dataset,
    use_all_images,
    use_dataset,
    use_evaluation_dataset,
)
from retinanet_jax.datasets.opening import (
    LIST_FIELDS,
    PARTS,
    SOURCES,
    names_evaluation_data,
    open_both,
    open_evaluation,
    open_source,
    open_sources,
    open_split,
    open_training,
    splits_training_data,
    with_missing_categories,
)

__all__ = [
    "LIST_FIELDS",
    "PARTS",
    "SOURCES",
    "check_evaluation_data",
    "check_images",
    "check_training_data",
    "convert_dataset",
    "names_evaluation_data",
    "open_both",
    "open_evaluation",
    "open_source",
    "open_sources",
    "open_split",
    "open_training",
    "splits_training_data",
    "use_all_images",
    "use_dataset",
    "use_evaluation_dataset",
    "why_no_object",
    "with_missing_categories",
]
