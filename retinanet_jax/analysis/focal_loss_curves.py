"""Figure 4 of the paper from any detector: how few anchors have most of the focal loss."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int
from ml_collections import ConfigDict

from retinanet_jax import core, input_pipeline
from retinanet_jax.compilation import compiled_off_the_clock
from retinanet_jax.core.structures import Array
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.sources.base import Source, subset
from retinanet_jax.modeling import build_model, image_anchors, network_input, valid_sizes
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.progress import make_progress

GAMMAS = (0.0, 0.5, 1.0, 2.0)
NUM_POINTS = 101  # of a curve: at 0%, 1%, ..., 100% of the anchors
MAX_BACKGROUND = 10_000_000  # anchors: 160 MB of losses
GROUPS = ("foreground", "background")
COLORS = ("#440154", "#3e4c8a", "#24868e", "#3fbc73")  # of the gammas, from viridis


def focal_loss_curves(
    variables: Mapping[str, Any],
    config: ConfigDict,
    source: Source,
    *,
    num_images: int = 8,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the cumulative distribution of the normalized focal loss over the anchors.

    These are the curves of https://arxiv.org/abs/1708.02002, figure 4 (section 5.1). Foreground
    and background anchors are sorted by their loss, each on their own, and the loss of each group
    is divided by its sum. All gammas judge the same outputs, those of a network that was trained
    with the gamma of its config. It differs from the paper, which judges random samples of 10^5
    positive and 10^7 negative predictions of a ResNet-101, as follows: the loss of an anchor is the
    sum over all classes, as in training; all anchors of the images count that training would not
    ignore, and only of background, if there is more, about 10^7 random ones.

    The losses of an image's anchors are sorted, not its logits, and one image at a time is in
    memory: 16 million logits of 80 classes at 800 x 1344 pixels are 200,000 losses for each gamma.

    Args:
        variables: The network's variables, {"params": ..., "batch_stats": ...}.
        config: The config that they were trained with.
        source: A dataset with the categories of the network, in the same order.
        num_images: The number of random images; at most all of the dataset are used.
        seed: Of the choice of images and of background anchors.

    Returns:
        The gammas; for "foreground" and "background" the curve of each gamma by its text, the
        fractions of the loss that the easiest 0%, 1%, ..., 100% of the anchors have together; the
        number of images, and those of the anchors. None if the images have no foreground or no
        background anchors, or if a loss is zero.
    """
    rng = np.random.default_rng(seed)
    count = min(num_images, len(source))
    images = subset(source, np.sort(rng.choice(len(source), count, replace=False)).tolist())
    losses: dict[str, list[Float32[np.ndarray, "G n"]]] = {group: [] for group in GROUPS}
    for all_losses, labels, fraction in _anchor_losses(variables, config, images):
        sampled = rng.random(len(labels)) < fraction
        losses["foreground"].append(all_losses[:, labels >= 0])
        losses["background"].append(all_losses[:, (labels == core.BACKGROUND) & sampled])
    joined = {group: np.concatenate(parts, axis=1) for group, parts in losses.items()}
    if not all(group.any(axis=1).all() for group in joined.values()):
        return None
    curves = {
        name: {f"{gamma:g}": cumulative(row) for gamma, row in zip(GAMMAS, group, strict=True)}
        for name, group in joined.items()
    }
    counts = {name: group.shape[1] for name, group in joined.items()}
    return {"gammas": list(GAMMAS), **curves, "images": count, "anchors": counts}


def cumulative(losses: Float[np.ndarray, " n"]) -> list[float]:
    """Return the fractions of a sum that its smallest 0%, 1%, ..., 100% terms have together.

    Args:
        losses: At least one number, with a sum above 0. Between two of them the curve is linear.
    """
    sums = np.concatenate([[0.0], np.cumsum(np.sort(losses), dtype=np.float64)])
    positions = np.linspace(0, len(losses), NUM_POINTS)
    return (np.interp(positions, np.arange(len(sums)), sums) / sums[-1]).tolist()


def _anchor_losses(
    variables: Mapping[str, Any], config: ConfigDict, source: Source
) -> Iterator[tuple[Float32[np.ndarray, "G A"], Int[np.ndarray, " A"], float]]:
    """Yield the losses and the labels of the anchors of each image.

    Also yield the fraction of its background anchors that may be kept.
    """
    config = ConfigDict(config.to_dict())
    config.data.loader = "numpy"  # without starting TensorFlow for a few images
    plan = input_pipeline.eval_plan(config, source.sizes, batch_size=1)
    steps = range(plan.num_batches)
    sizes = [plan.batch(step).bucket for step in steps]
    num_anchors = {size: sum(map(len, image_anchors(size, config))) for size in set(sizes)}
    fraction = MAX_BACKGROUND / max(1, sum(num_anchors[size] for size in sizes))
    compute = compiled_off_the_clock(_make_compute(config, len(source.categories)))
    on_device = jax.device_put(variables)
    progress = make_progress("focal loss", len(source))
    for done, batch in enumerate(input_pipeline.host_batches(config, source, plan, steps), 1):
        losses, labels = jax.device_get(compute(on_device, batch))
        progress(done)
        yield losses, labels, fraction


def _make_compute(config: ConfigDict, num_classes: int) -> Callable[..., Any]:
    """Return a compiled `(variables, batch of one image) -> (losses, labels)` of all anchors."""
    model = build_model(config, num_classes)

    @jax.jit
    def compute(variables: Mapping[str, Any], batch: Batch) -> tuple[Array, Array]:
        pixels = network_input(batch, config, train=False)
        outputs: Any = model.apply(variables, pixels, train=False, sizes=valid_sizes(batch))
        anchors = image_anchors(batch.images.shape[1:3], config)
        fields = ("boxes", "classes", "mask", "crowd_boxes", "crowd_mask", "sizes")
        truth = [getattr(batch, field)[0] for field in fields]
        all_anchors = jnp.asarray(np.concatenate(anchors))
        labels = core.assign_targets(all_anchors, *truth, **config.matching).labels
        ends = np.cumsum([len(level) for level in anchors])
        levels = [
            (logits[0], part)
            for logits, part in zip(outputs.logits, jnp.split(labels, ends[:-1]), strict=True)
        ]
        return jnp.stack([_loss(levels, gamma) for gamma in GAMMAS]), labels

    return compute


def _loss(
    levels: Sequence[tuple[Float[Array, "_ K"], Int[Array, " _"]]], gamma: float
) -> Float[Array, " A"]:
    """Return the loss of each anchor of all levels; alpha .5 weights both terms equally."""
    elementwise = functools.partial(core.focal_loss, alpha=0.5, gamma=gamma)
    per_anchor = functools.partial(core.classification_per_anchor, elementwise=elementwise)
    return jnp.concatenate([per_anchor(logits, labels) for logits, labels in levels])


def draw_focal_loss(curves: Mapping[str, Any], colors: Sequence[str] = COLORS) -> Any:
    """Return a matplotlib figure of the curves, foreground and background next to each other.

    Args:
        curves: What `focal_loss_curves` returns.
        colors: The color of each gamma.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    module = import_optional("matplotlib.figure", "this figure", "retinanet-jax[analyze]")
    figure = module.Figure(figsize=(11, 4.5), layout="constrained")
    # Dashes distinguish the lines in gray prints too.
    styles = ("-", "--", "-.", ":")
    for axis, group in zip(figure.subplots(1, 2, sharey=True), GROUPS, strict=True):
        for index, (gamma, curve) in enumerate(curves[group].items()):
            line = {"linestyle": styles[index], "color": colors[index], "linewidth": 2}
            axis.plot(np.linspace(0, 1, len(curve)), curve, label=f"gamma = {gamma}", **line)
        axis.set(xlabel=f"fraction of the {group} anchors, easiest first", xlim=(0, 1), ylim=(0, 1))
        axis.legend(loc="upper left")
    figure.axes[0].set_ylabel("fraction of their focal loss")
    return figure
