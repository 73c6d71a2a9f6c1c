"""The joined detector: input, loss over a batch, and what changes neither."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax import core, modeling
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import Outputs
from retinanet_jax.training import objective
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step

SIZE = (64, 64)
NUM_CLASSES = 3


def make_batch(rows: int, seed: int = 0) -> Batch:
    """Pictures of noise with up to 3 boxes each, and one crowd region."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (rows, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (rows, 3, 2))], axis=-1)
    return Batch(
        images=rng.integers(0, 256, (rows, *SIZE, 3), np.uint8),
        sizes=np.tile(np.float32([60, 50]), (rows, 1)),
        scales=np.full((rows, 2), 2, np.float32),
        boxes=boxes.astype(np.float32),
        classes=rng.integers(0, NUM_CLASSES, (rows, 3), np.int32),
        mask=rng.random((rows, 3)) < 0.8,
        crowd_boxes=np.tile(np.float32([0, 0, 20, 20]), (rows, 1, 1)),
        crowd_mask=np.ones((rows, 1), bool),
        weights=np.ones(rows, np.float32),
        index=np.arange(rows, dtype=np.int32),
        colors=np.tile(np.float32([1.2, 0.7, 1.3, 0.1]), (rows, 1)),
        dropped=np.zeros(rows, np.int32),
    )


def random_outputs(config, rows: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    counts = [len(level) for level in modeling.image_anchors(SIZE, config)]
    return Outputs(
        tuple(rng.normal(size=(rows, n, NUM_CLASSES)).astype(np.float32) for n in counts),
        tuple(rng.normal(size=(rows, n, 4)).astype(np.float32) for n in counts),
    )


def loss_of(config):
    """Jitted `(outputs, batch) -> LossTerms`, from a moving count of 10."""
    return jax.jit(
        lambda outputs, batch: objective.batch_loss(outputs, batch, jnp.float32(10), config)
    )


@pytest.fixture
def small(config):
    """One anchor a cell and three levels: little to compile."""
    config.anchors.update(max_level=5, scales=(1.0,), ratios=(1.0,))
    config.matching.crowd_ioa = 0.5
    return config


# ---- the network's input


def test_normalize_by_hand():
    image = np.array([[[[10, 20, 30]]]], np.uint8)
    numbers = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 4.0), "dtype": jnp.float32}
    sizes = np.ones((1, 2), np.float32)
    rgb = modeling.normalize(image, sizes, order="rgb", **numbers)
    bgr = modeling.normalize(image, sizes, order="bgr", **numbers)
    assert rgb.ravel().tolist() == [9, 9, 6.75]
    # The means are in the network's order: 30 - 1, (20 - 2) / 2, (10 - 3) / 4.
    assert bgr.ravel().tolist() == [29, 9, 1.75]


def test_normalize_zeroes_the_padding():
    images = np.full((2, 4, 6, 3), 200, np.uint8)
    sizes = np.array([[4, 6], [3, 2]], np.float32)
    normalize = functools.partial(
        modeling.normalize, order="rgb", mean=(100.0,) * 3, std=(10.0,) * 3, dtype=jnp.float32
    )
    result = np.asarray(normalize(images, sizes))
    np.testing.assert_array_equal(result[0], 10)
    np.testing.assert_array_equal(result[1, :3, :2], 10)
    assert result[1].sum() == 10 * 3 * 2 * 3
    np.testing.assert_array_equal(jax.jit(normalize)(images, sizes), result)


def test_normalize_rounds_once_at_the_end():
    image = np.full((1, 1, 1, 3), 255, np.uint8)
    one = modeling.normalize(
        image,
        np.ones((1, 2), np.float32),
        order="rgb",
        mean=(254.9,) * 3,
        std=(1.0,) * 3,
        dtype=jnp.bfloat16,
    )
    assert one.dtype == jnp.bfloat16
    # In bfloat16 254.9 would be 255 and the difference 0.
    np.testing.assert_allclose(one.astype(np.float32), 0.1, rtol=1e-2)


def test_an_unknown_channel_order_is_named(config):
    config.input.order = "gbr"
    with pytest.raises(ValueError, match="input.order='gbr' must be 'rgb' or 'bgr'"):
        modeling.network_input(make_batch(1), config, train=False)


def test_colors_are_jittered_in_training_if_the_config_says_so(config):
    batch = make_batch(1)
    plain = modeling.network_input(batch, config, train=False)
    np.testing.assert_array_equal(modeling.network_input(batch, config, train=True), plain)
    config.data.color_jitter.hue = 0.1
    np.testing.assert_array_equal(modeling.network_input(batch, config, train=False), plain)
    jittered = np.array(modeling.network_input(batch, config, train=True))
    assert np.abs(jittered - plain).mean() > 1
    assert not jittered[:, 60:].any()
    assert not jittered[:, :, 50:].any()


# ---- the loss


def test_the_three_normalizers_by_hand(config):
    class_sums, box_sums = jnp.array([8.0, 3.0, 100.0]), jnp.array([4.0, 1.0, 100.0])
    foreground = jnp.array([4.0, 0.0, 7.0])
    weights = jnp.array([1.0, 1.0, 0.0])  # the third row is a filler
    config.loss.update(box_weight=2.0, ema_momentum=0.9)

    def reduce(normalizer, num_kept=None):
        config.loss.normalizer = normalizer
        return objective.reduce_losses(
            class_sums, box_sums, foreground, num_kept, weights, jnp.float32(10), config.loss
        )

    batch = reduce("batch")
    np.testing.assert_allclose(batch[:4], [11 / 4 + 2 * 5 / 4, 11 / 4, 5 / 4, 4])
    assert batch.normalizer == 10
    image = reduce("image")  # (8 / 4 + 3 / 1) / 2 images and (4 / 4 + 1 / 1) / 2
    np.testing.assert_allclose(image[:4], [2.5 + 2 * 1, 2.5, 1, 4])
    assert image.normalizer == 10
    ema = reduce("ema")  # 0.9 * 10 + 0.1 * 4 = 9.4
    np.testing.assert_allclose(ema, [(11 + 2 * 5) / 9.4, 11 / 9.4, 5 / 9.4, 4, 9.4], rtol=1e-6)

    # What OHEM kept, 16 + 6 of them, divides the classification alone.
    num_kept = jnp.array([16, 6, 99])
    for normalizer, plain, classification in (
        ("batch", batch, 11 / 22),
        ("image", image, (8 / 16 + 3 / 6) / 2),
        ("ema", ema, 11 / 22),
    ):
        mined = reduce(normalizer, num_kept)
        np.testing.assert_allclose(mined.classification, classification, rtol=1e-6)
        np.testing.assert_allclose(mined.total, classification + 2 * plain.box, rtol=1e-6)
        np.testing.assert_array_equal(mined[2:], plain[2:])


@pytest.mark.parametrize("normalizer", ["batch", "image", "ema"])
def test_a_batch_without_objects_costs_something_finite(config, normalizer):
    config.loss.normalizer = normalizer
    terms = objective.reduce_losses(
        jnp.ones(2), jnp.zeros(2), jnp.zeros(2), None, jnp.ones(2), jnp.float32(1), config.loss
    )
    assert 0 < terms.total < 3
    assert terms.num_foreground == 0


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("classification", "focol", "focal, focal_star, balanced_cross_entropy, cross_ent"),
        ("box", "iou", "smooth_l1, giou"),
        ("normalizer", "anchors", "batch, image, ema"),
    ],
)
def test_an_unknown_name_is_told_with_those_there_are(small, field, value, choices):
    small.loss[field] = value
    with pytest.raises(ValueError, match=f"loss.{field}='{value}' must be one of {choices}"):
        jax.eval_shape(
            lambda outputs, batch: objective.batch_loss(outputs, batch, jnp.float32(1), small),
            random_outputs(small, 1),
            make_batch(1),
        )


@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_the_loss_is_that_of_core_over_all_levels(small, box):
    small.loss.box = box
    batch, outputs = make_batch(2), random_outputs(small, 2)
    terms = loss_of(small)(outputs, batch)
    anchors = np.concatenate(modeling.image_anchors(SIZE, small))
    class_sum, box_sum, foreground = 0.0, 0.0, 0
    for row in range(2):
        targets = core.assign_targets(
            anchors,
            *(x[row] for x in batch[3:8]),
            batch.sizes[row],
            **small.matching,
        )
        logits, deltas = (np.concatenate([level[row] for level in part]) for part in outputs)
        focal = functools.partial(core.focal_loss, alpha=0.25, gamma=2.0)
        class_sum += core.classification_sum(logits, targets.labels, focal)
        box_sum += (
            core.giou_sum(deltas, anchors, targets)
            if box == "giou"
            else core.smooth_l1_sum(deltas, anchors, targets, beta=1 / 9)
        )
        foreground += int(core.count_foreground(targets.labels))
    assert foreground > 0
    assert terms.num_foreground == foreground
    np.testing.assert_allclose(terms.classification, class_sum / foreground, rtol=1e-5)
    np.testing.assert_allclose(terms.box, box_sum / foreground, rtol=1e-5)


def test_the_elementwise_losses_and_what_joins_them(small):
    outputs, batch = random_outputs(small, 1), make_batch(1)

    def classification(name, **numbers):
        small.loss.update(classification=name, **numbers)
        return float(loss_of(small)(outputs, batch).classification)

    plain = classification("cross_entropy")
    balanced = classification("balanced_cross_entropy", alpha=0.5)
    np.testing.assert_allclose(balanced, plain / 2, rtol=1e-6)
    np.testing.assert_allclose(classification("focal", alpha=0.5, gamma=0.0), balanced, rtol=1e-6)
    assert classification("focal", gamma=2.0) < balanced
    star = classification("focal_star", alpha=0.5, gamma=1.0, star_beta=0.0)
    np.testing.assert_allclose(star, balanced, rtol=1e-6)
    assert classification("focal_star", gamma=2.0, star_beta=1.0) < balanced


def test_ohem_is_the_mean_of_what_core_keeps_over_all_levels(small):
    small.loss.ohem.update(num_examples=8, negatives_per_positive=3)
    batch, outputs = make_batch(2), random_outputs(small, 2)
    focal = loss_of(small)(outputs, batch)
    small.loss.classification = "ohem"
    anchors = np.concatenate(modeling.image_anchors(SIZE, small))

    @jax.jit
    def gradients_and_terms(outputs):
        def classification(outputs):
            terms = objective.batch_loss(outputs, batch, jnp.float32(10), small)
            return terms.classification, terms

        return jax.grad(classification, has_aux=True)(outputs)

    @jax.jit
    def losses_and_kept(logits, gt, size):
        targets = core.assign_targets(anchors, *gt, size, **small.matching)
        losses = core.classification_per_anchor(logits, targets.labels, core.cross_entropy)
        return losses, core.hard_examples(losses, anchors, targets.labels, **small.loss.ohem)

    gradients, terms = gradients_and_terms(outputs)
    total, num_kept = 0.0, 0
    for row in range(2):
        logits = np.concatenate([level[row] for level in outputs.logits])
        losses, keep = losses_and_kept(logits, [x[row] for x in batch[3:8]], batch.sizes[row])
        gradient = np.concatenate([level[row] for level in gradients.logits])
        np.testing.assert_array_equal(gradient != 0, np.repeat(keep[:, None], NUM_CLASSES, axis=1))
        total, num_kept = total + losses[keep].sum(), num_kept + keep.sum()
    assert 8 < num_kept <= 16
    np.testing.assert_allclose(terms.classification, total / num_kept, rtol=1e-5)
    np.testing.assert_allclose(terms.box, focal.box, rtol=1e-6)


@pytest.mark.parametrize(
    ("normalizer", "classification"),
    [
        ("batch", "focal"),
        pytest.param("image", "focal", marks=pytest.mark.slow),
        pytest.param("ema", "focal", marks=pytest.mark.slow),
        pytest.param("batch", "ohem", marks=pytest.mark.slow),
    ],
)
def test_filler_rows_change_neither_loss_nor_gradients(small, normalizer, classification):
    small.loss.update(normalizer=normalizer, classification=classification)
    batch, outputs = make_batch(2), random_outputs(small, 2)
    # Two more rows, with ground truth and outputs of their own, but of weight 0.
    filled = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, make_batch(2, seed=9))
    filled = filled._replace(weights=np.float32([1, 1, 0, 0]))
    more = jax.tree.map(
        lambda a, b: np.concatenate([a, 50 * b]), outputs, random_outputs(small, 2, seed=9)
    )

    @jax.jit
    def terms_and_gradients(outputs, batch):
        def total(outputs):
            terms = objective.batch_loss(outputs, batch, jnp.float32(10), small)
            return terms.total, terms

        (_, terms), gradients = jax.value_and_grad(total, has_aux=True)(outputs)
        return terms, gradients

    terms, gradients = terms_and_gradients(outputs, batch)
    terms_filled, gradients_filled = terms_and_gradients(more, filled)
    np.testing.assert_allclose(terms_filled, terms, rtol=1e-6)
    for one, two in zip(*map(jax.tree.leaves, (gradients, gradients_filled)), strict=True):
        np.testing.assert_allclose(two[:2], one, rtol=1e-5, atol=1e-9)
        assert not two[2:].any()


# ---- the network


def step_shapes(config):
    """What one train step returns, as shapes and types."""
    model = modeling.build_model(config, NUM_CLASSES)
    optimizer = make_optimizer(config)

    def run(batch):
        image = jnp.zeros((1, *SIZE, 3))
        variables = model.init(jax.random.key(0), image, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        state = TrainState(
            jnp.int32(0), params, batch_stats, optimizer.init(params), jnp.float32(100)
        )
        outputs = model.apply(
            variables, modeling.network_input(batch, config, train=True), train=False
        )
        return outputs, make_train_step(model, optimizer, config)(state, batch)

    return jax.eval_shape(run, make_batch(2))


def test_bfloat16_computes_but_keeps_float32_parameters_and_losses(toy_config):
    toy_config.dtype = "bfloat16"
    outputs, (state, metrics) = step_shapes(toy_config)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    kept = (state.params, state.batch_stats, state.normalizer, metrics)
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}


def test_outputs_fit_the_anchors(toy_config):
    outputs, _ = step_shapes(toy_config)
    for logits, deltas, anchors in zip(
        *outputs, modeling.image_anchors(SIZE, toy_config), strict=True
    ):
        assert logits.shape == (2, len(anchors), NUM_CLASSES)
        assert deltas.shape == (2, len(anchors), 4)


@pytest.mark.slow
def test_a_seed_gives_the_same_variables_and_the_prior(toy_config):
    first, again = (modeling.initialize(toy_config, NUM_CLASSES, seed=3) for _ in range(2))
    other = modeling.initialize(toy_config, NUM_CLASSES, seed=4)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert optax.global_norm(jax.tree.map(jnp.subtract, first, other)) > 1
    assert set(first) == {"params", "batch_stats"}
    bias = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            first["params"]["classification_head"]
        )
        if path[-1].key == "bias" and len(leaf) == 9 * NUM_CLASSES
    ]
    np.testing.assert_allclose(jax.nn.sigmoid(bias[0]), 0.01, rtol=1e-4)
