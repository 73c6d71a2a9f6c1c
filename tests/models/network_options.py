"""The arguments that a `RetinaNet` requires, for several test modules."""

REQUIRED = {
    "num_classes": 91,
    "num_anchors": 9,
    "stride_in_1x1": False,
    "norm": "frozen_batch",
    "norm_epsilon": 1e-5,
    "frozen_stages": 0,
    "p6_from": "c5",
    "head_norm": "none",
    "padding": "plain",
}
