"""The fit of a config's buckets to a dataset, and a search for buckets with less padding."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.data.buckets import minimal_buckets, smallest_bucket
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import resized_sizes, round_up
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.bucket_search import (
    BucketTable,
    bucket_table,
    choose_buckets,
    one_shape,
    sample_sizes,
    two_shapes,
)
from retinanet_jax.data_report.findings import ERROR, INFO, WARNING, Finding
from retinanet_jax.utils.progress import format_count

CONFIGURED = "configured"  # the name of the config's own buckets, and anchors, in a report
MIN_SIZES = 20_000  # the minimum number of random image sizes for which buckets are chosen
MANY_BUCKETS = 8
NOTABLE_PADDING = 0.05  # fraction of padding that other buckets must save to be suggested


class BucketFit(NamedTuple):
    """The padding of the configured buckets and of other choices.

    Attributes:
        plan: The training plan with the configured buckets or, if they are unusable, with the
            suggested ones.
        error: The error that the configured buckets cause; empty if they are usable.
        tables: The images and the padding of each choice of buckets, by its name.
        suggested: As many buckets as configured, with the least padding.
    """

    plan: TrainPlan
    error: str
    tables: dict[str, BucketTable]
    suggested: tuple[tuple[int, int], ...]


def fit_buckets(config: ConfigDict, source: Source) -> BucketFit:
    """Compare the config's buckets with others, for the image sizes of training.

    Args:
        config: The config of the run; its buckets may be unusable.
        source: The training data.
    """
    error = ""
    try:
        plan = input_pipeline.train_plan(config, source)
    except ValueError as exception:
        # With a bucket that can contain every image, another error is not about the buckets.
        longest = math.ceil(max((config.data.long_side, *config.data.crop_size)))
        square = (round_up(longest), round_up(longest))
        plan = input_pipeline.train_plan(with_buckets(config, (square,)), source)
        error = str(exception)
    sizes = sample_sizes(plan, min_count=max(MIN_SIZES, len(source)))
    required = np.concatenate([sizes, minimal_buckets(plan.largest_sizes.reshape(-1, 2))])
    suggested = choose_buckets(required, count=MANY_BUCKETS if error else len(plan.buckets))
    if error:
        plan = input_pipeline.train_plan(with_buckets(config, suggested), source)
    choices = {} if error else {CONFIGURED: config.data.buckets}
    choices |= {"one shape": one_shape(sizes), "two shapes": two_shapes(sizes)}
    for count in (len(plan.buckets), MANY_BUCKETS):
        buckets = choose_buckets(required, count=count)
        choices[_suggested_name(buckets)] = buckets
    tables = {name: bucket_table(sizes, buckets) for name, buckets in choices.items()}
    return BucketFit(plan, error, tables, suggested)


def with_buckets(config: ConfigDict, buckets: Sequence[tuple[int, int]]) -> ConfigDict:
    """Return a copy of the config with other buckets."""
    changed = config.copy_and_resolve_references()
    changed.data.buckets = tuple(buckets)
    return changed


def check_buckets(fit: BucketFit) -> Finding:
    """Report whether the configured buckets can contain the training images with little padding."""
    flag = f"--config.data.buckets='{fit.suggested}'"
    least = min(table.padding_overhead for table in fit.tables.values())
    if fit.error:
        message = f"{fit.error} The rest of this report uses other buckets ({least:.1%} padding)."
        return Finding(ERROR, "buckets", message, f"give {flag}.")
    table = fit.tables[CONFIGURED]
    suggested = fit.tables[_suggested_name(fit.suggested)].padding_overhead
    shapes = format_count(len(table.rows), "shape")
    message = f"{table.padding_overhead:.1%} of the computed pixels are padding, with {shapes}"
    advice = []
    if table.padding_overhead - suggested > NOTABLE_PADDING:
        advice.append(f"{flag} has {suggested:.1%}")
    if min(table.padding_overhead, suggested) - least > NOTABLE_PADDING:
        advice.append(f"{MANY_BUCKETS} shapes, each compiled once, have {least:.1%} (see below)")
    limited = count_limited_jitter(fit.plan)
    if limited:
        images = f"{limited} of {len(fit.plan.sizes)} images"
        advice.append(f"add larger buckets, because these limit the scale_jitter of {images}")
    if not advice:
        return Finding(INFO, "buckets", message)
    return Finding(WARNING, "buckets", message, f"{'; '.join(advice)}.")


def count_limited_jitter(plan: TrainPlan) -> int:
    """Return the number of images that would fit in no bucket at the largest scale jitter."""
    augmentation = plan.augmentation
    factor = max(augmentation.scale_jitter or (1,))
    if augmentation.crop_size or factor <= 1:
        return 0
    sizes = resized_sizes(
        plan.sizes,
        short_side=factor * augmentation.possible_short_sides.max(),
        long_side=factor * augmentation.long_side,
        resize=plan.resize,
    )
    rotated = [sizes, sizes[:, ::-1]] if augmentation.rot90 else [sizes]
    fits = [smallest_bucket(part, plan.buckets) >= 0 for part in rotated]
    return len(plan.sizes) - int(np.all(fits, axis=0).sum())


def check_evaluation_buckets(config: ConfigDict, source: Source) -> Finding:
    """Report whether the configured buckets can contain the resized evaluation images.

    Args:
        config: The config of the run.
        source: The evaluation data.
    """
    try:
        plan = input_pipeline.eval_plan(
            config, source.sizes, batch_size=config.data.eval_batch_size
        )
    except ValueError as error:
        return Finding(ERROR, "eval: buckets", str(error), "add it to --config.data.buckets.")
    overhead = bucket_table(plan.transforms.size, plan.buckets.tolist()).padding_overhead
    return Finding(INFO, "eval: buckets", f"{overhead:.1%} of the computed pixels are padding")


def _suggested_name(buckets: Sequence[tuple[int, int]]) -> str:
    """Return the name of suggested buckets in the report."""
    return format_count(len(buckets), "suggested shape")
