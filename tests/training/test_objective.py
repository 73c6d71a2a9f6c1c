"""The loss of a batch: its normalizers, its choices by name, and images of weight 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batches import NUM_CLASSES, SIZE, make_batch

from retinanet_jax import core, modeling, sharding
from retinanet_jax.models import Outputs
from retinanet_jax.training import normalizers, objective


def random_outputs(config, batch_size: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    counts = [len(level) for level in modeling.image_anchors(SIZE, config)]
    return Outputs(
        tuple(rng.normal(size=(batch_size, n, NUM_CLASSES)).astype(np.float32) for n in counts),
        tuple(rng.normal(size=(batch_size, n, 4)).astype(np.float32) for n in counts),
    )


def make_loss(config):
    """Return the jitted `(outputs, batch) -> LossTerms`, with a moving average of 10."""
    return jax.jit(
        lambda outputs, batch: objective.batch_loss(outputs, batch, jnp.float32(10), config)
    )


@pytest.fixture
def small(config):
    """One anchor per cell and three levels: little to compile."""
    config.anchors.update(max_level=5, scales=(1.0,), ratios=(1.0,))
    config.matching.crowd_ioa = 0.5
    return config


def test_the_three_normalizers_by_hand(config):
    class_sums, box_sums = jnp.array([8.0, 3.0, 100.0]), jnp.array([4.0, 1.0, 100.0])
    foreground = jnp.array([4.0, 0.0, 7.0])
    weights = jnp.array([1.0, 1.0, 0.0])  # the third image is a filler
    config.loss.update(box_weight=2.0, ema_momentum=0.9)

    def reduce(normalizer, num_selected=None):
        config.loss.normalizer = normalizer
        return normalizers.reduce_losses(
            class_sums, box_sums, foreground, num_selected, weights, jnp.float32(10), config.loss
        )

    batch = reduce("batch")
    np.testing.assert_allclose(batch[:4], [11 / 4 + 2 * 5 / 4, 11 / 4, 5 / 4, 4])
    assert batch.normalizer == 10
    image = reduce("image")  # (8 / 4 + 3 / 1) / 2 images and (4 / 4 + 1 / 1) / 2
    np.testing.assert_allclose(image[:4], [2.5 + 2 * 1, 2.5, 1, 4])
    assert image.normalizer == 10
    ema = reduce("ema")  # 0.9 * 10 + 0.1 * 4 = 9.4
    np.testing.assert_allclose(ema, [(11 + 2 * 5) / 9.4, 11 / 9.4, 5 / 9.4, 4, 9.4], rtol=1e-6)

    # The hard examples of OHEM, 16 + 6 of them, divide only the classification.
    num_selected = jnp.array([16, 6, 99])
    for normalizer, plain, classification in (
        ("batch", batch, 11 / 22),
        ("image", image, (8 / 16 + 3 / 6) / 2),
        ("ema", ema, 11 / 22),
    ):
        with_ohem = reduce(normalizer, num_selected)
        np.testing.assert_allclose(with_ohem.classification, classification, rtol=1e-6)
        np.testing.assert_allclose(with_ohem.total, classification + 2 * plain.box, rtol=1e-6)
        np.testing.assert_array_equal(with_ohem[2:], plain[2:])


@pytest.mark.parametrize("normalizer", ["batch", "image", "ema"])
def test_the_loss_of_a_batch_without_objects_is_finite_and_positive(config, normalizer):
    config.loss.normalizer = normalizer
    terms = normalizers.reduce_losses(
        jnp.ones(2), jnp.zeros(2), jnp.zeros(2), None, jnp.ones(2), jnp.float32(1), config.loss
    )
    assert 0 < terms.total < 3
    assert terms.num_foreground == 0


# ---- detectron2's moving averages, one for each of its processes


def reduce_ema(config, class_sums, box_sums, foreground, weights, averages, num_selected=None):
    config.loss.normalizer = "ema"
    arrays = map(jnp.float32, (class_sums, box_sums, foreground))
    return normalizers.reduce_losses(
        *arrays, num_selected, jnp.float32(weights), jnp.float32(averages), config.loss
    )


def test_averages_of_groups_by_hand(config):
    """Groups of two images; the third has only fillers, so it counts for nothing."""
    terms = reduce_ema(
        config,
        class_sums=[8, 3, 5, 70, 80, 90],
        box_sums=[4, 1, 2, 70, 80, 90],
        foreground=[4, 2, 0, 70, 80, 90],
        weights=[1, 1, 1, 0, 0, 0],
        averages=[10, 20, 30],
        num_selected=jnp.array([16, 6, 5, 99, 99, 99]),
    )
    # .9 * 10 + .1 * 6 and .9 * 20 + .1 * max(0, 1)
    np.testing.assert_allclose(terms.normalizer, [9.6, 18.1, 30], rtol=1e-6)
    assert terms.num_foreground == 6
    np.testing.assert_allclose(terms.box, ((4 + 1) / 9.6 + 2 / 18.1) / 2, rtol=1e-6)
    np.testing.assert_allclose(terms.classification, ((8 + 3) / 22 + 5 / 5) / 2, rtol=1e-6)
    without_ohem = reduce_ema(
        config, [8, 3, 5, 7], [4, 1, 2, 7], [4, 2, 0, 7], [1, 1, 1, 0], averages=[10, 20]
    )
    expected = ((8 + 3) / 9.6 + 5 / 18.1) / 2
    np.testing.assert_allclose(without_ohem.classification, expected, rtol=1e-6)


def test_averages_of_groups_are_those_of_detectron2s_processes(config):
    """8 processes of 2 images, as in detectron2's runs, for several steps, with the gradients."""

    @jax.jit
    def step(class_sums, box_sums, foreground, averages):
        def total(sums):
            terms = reduce_ema(config, *sums, foreground, np.ones(16), averages)
            return terms.total, terms.normalizer

        return jax.value_and_grad(total, has_aux=True)((class_sums, box_sums))

    rng = np.random.default_rng(0)
    averages, loss_normalizers = jnp.full(8, 100.0), [100.0] * 8
    for _ in range(5):
        class_sums, box_sums = rng.uniform(0, 50, (2, 16)).astype(np.float32)
        foreground = rng.poisson(20, 16) * (rng.random(16) < 0.5)
        (loss, averages), gradients = step(class_sums, box_sums, foreground, averages)
        losses, factors = [], []
        for process in range(8):
            images = slice(2 * process, 2 * process + 2)
            num_pos_anchors = max(foreground[images].sum(), 1)
            loss_normalizers[process] = 0.9 * loss_normalizers[process] + 0.1 * num_pos_anchors
            losses += [(class_sums[images] + box_sums[images]).sum() / loss_normalizers[process]]
            factors += [1 / loss_normalizers[process] / 8] * 2
        np.testing.assert_allclose(averages, loss_normalizers, rtol=1e-5)
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
        for gradient in gradients:
            np.testing.assert_allclose(gradient, factors, rtol=1e-5)


@pytest.mark.slow
def test_the_loss_of_groups_is_the_mean_of_their_own_losses(small):
    small.loss.normalizer = "ema"
    batch, outputs = make_batch(4), random_outputs(small, 4)

    @jax.jit
    def terms_and_gradients(outputs, batch, averages):
        def total(outputs):
            terms = objective.batch_loss(outputs, batch, averages, small)
            return terms.total, terms

        (_, terms), gradients = jax.value_and_grad(total, has_aux=True)(outputs)
        return terms, gradients

    terms, gradients = terms_and_gradients(outputs, batch, jnp.float32([10, 50]))
    for index, (average, images) in enumerate([(10, slice(0, 2)), (50, slice(2, 4))]):
        parts = jax.tree.map(lambda x, images=images: x[images], (outputs, batch))
        own, own_gradients = terms_and_gradients(*parts, jnp.float32(average))
        np.testing.assert_allclose(own.normalizer, terms.normalizer[index], rtol=1e-6)
        terms = terms._replace(total=terms.total - own.total / 2)
        for whole, part in zip(*map(jax.tree.leaves, (gradients, own_gradients)), strict=True):
            np.testing.assert_allclose(whole[images], part / 2, rtol=1e-5, atol=1e-9)
    assert abs(terms.total) < 1e-5


@pytest.mark.parametrize("space", [1, 2, 4])
def test_averages_of_groups_are_the_same_on_any_mesh(config, space):
    mesh = sharding.make_mesh(space)
    rng = np.random.default_rng(0)
    arrays = rng.uniform(1, 50, (3, 16)).astype(np.float32)
    averages = np.linspace(50, 150, 8, dtype=np.float32)

    def reduce(arrays, averages):
        return reduce_ema(config, *arrays, np.ones(16), averages)

    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    replicated = sharding.replicated(mesh)
    sharded = jax.jit(reduce, in_shardings=(split, replicated), out_shardings=replicated)
    for value, expected in zip(sharded(arrays, averages), reduce(arrays, averages), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_number_of_averages_is_that_of_the_groups(config):
    assert normalizers.normalizer_shape(config) == ()
    config.loss.update(normalizer="ema", ema_images=2)
    assert normalizers.normalizer_shape(config) == (8,)
    config.loss.ema_images = 16
    assert normalizers.normalizer_shape(config) == (1,)


@pytest.mark.parametrize(("images", "batch_size"), [(3, 16), (32, 16), (-2, 16), (2, 1)])
def test_groups_that_do_not_fill_the_batch_are_an_error(config, images, batch_size):
    config.data.batch_size = batch_size
    config.loss.update(normalizer="ema", ema_images=images)
    message = (
        rf"^loss\.ema_images={images} must divide data\.batch_size={batch_size}; 0 is the whole"
    )
    with pytest.raises(ValueError, match=message):
        normalizers.normalizer_shape(config)


# ---- the loss of a batch


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("classification", "focol", "focal, focal_star, balanced_cross_entropy, cross_ent"),
        ("box", "iou", "smooth_l1, giou"),
        ("normalizer", "anchors", "batch, image, ema"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(small, field, value, choices):
    small.loss[field] = value
    with pytest.raises(ValueError, match=f"loss.{field}='{value}' must be one of {choices}"):
        jax.eval_shape(
            lambda outputs, batch: objective.batch_loss(outputs, batch, jnp.float32(1), small),
            random_outputs(small, 1),
            make_batch(1),
        )


@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_the_loss_equals_that_of_core_over_all_levels(small, box):
    small.loss.box = box
    batch, outputs = make_batch(2), random_outputs(small, 2)
    terms = make_loss(small)(outputs, batch)
    anchors = np.concatenate(modeling.image_anchors(SIZE, small))
    class_sum, box_sum, num_foreground = 0.0, 0.0, 0
    for example in range(2):
        targets = core.assign_targets(
            anchors,
            *(x[example] for x in batch[3:8]),
            batch.sizes[example],
            **small.matching,
        )
        logits, deltas = (np.concatenate([level[example] for level in part]) for part in outputs)
        focal = functools.partial(core.focal_loss, alpha=0.25, gamma=2.0)
        class_sum += core.classification_sum(logits, targets.labels, focal)
        box_sum += (
            core.giou_sum(deltas, anchors, targets)
            if box == "giou"
            else core.smooth_l1_sum(deltas, anchors, targets, beta=1 / 9)
        )
        num_foreground += int(core.count_foreground(targets.labels))
    assert num_foreground > 0
    assert terms.num_foreground == num_foreground
    np.testing.assert_allclose(terms.classification, class_sum / num_foreground, rtol=1e-5)
    np.testing.assert_allclose(terms.box, box_sum / num_foreground, rtol=1e-5)


def test_the_elementwise_losses_are_special_cases_of_each_other(small):
    outputs, batch = random_outputs(small, 1), make_batch(1)

    def classification(name, **numbers):
        small.loss.update(classification=name, **numbers)
        return float(make_loss(small)(outputs, batch).classification)

    plain = classification("cross_entropy")
    balanced = classification("balanced_cross_entropy", alpha=0.5)
    np.testing.assert_allclose(balanced, plain / 2, rtol=1e-6)
    np.testing.assert_allclose(classification("focal", alpha=0.5, gamma=0.0), balanced, rtol=1e-6)
    assert classification("focal", gamma=2.0) < balanced
    star = classification("focal_star", alpha=0.5, gamma=1.0, star_beta=0.0)
    np.testing.assert_allclose(star, balanced, rtol=1e-6)
    assert classification("focal_star", gamma=2.0, star_beta=1.0) < balanced


def test_ohem_is_the_mean_over_the_hard_examples_of_core(small):
    small.loss.ohem.update(num_examples=8, negatives_per_positive=3)
    batch, outputs = make_batch(2), random_outputs(small, 2)
    focal = make_loss(small)(outputs, batch)
    small.loss.classification = "ohem"
    anchors = np.concatenate(modeling.image_anchors(SIZE, small))

    @jax.jit
    def gradients_and_terms(outputs):
        def classification(outputs):
            terms = objective.batch_loss(outputs, batch, jnp.float32(10), small)
            return terms.classification, terms

        return jax.grad(classification, has_aux=True)(outputs)

    @jax.jit
    def losses_and_hard(logits, gt, size):
        targets = core.assign_targets(anchors, *gt, size, **small.matching)
        losses = core.classification_per_anchor(logits, targets.labels, core.cross_entropy)
        return losses, core.hard_examples(losses, anchors, targets.labels, **small.loss.ohem)

    gradients, terms = gradients_and_terms(outputs)
    total, num_selected = 0.0, 0
    for example in range(2):
        logits = np.concatenate([level[example] for level in outputs.logits])
        losses, hard = losses_and_hard(
            logits, [x[example] for x in batch[3:8]], batch.sizes[example]
        )
        gradient = np.concatenate([level[example] for level in gradients.logits])
        np.testing.assert_array_equal(gradient != 0, np.repeat(hard[:, None], NUM_CLASSES, axis=1))
        total, num_selected = total + losses[hard].sum(), num_selected + hard.sum()
    assert 8 < num_selected <= 16
    np.testing.assert_allclose(terms.classification, total / num_selected, rtol=1e-5)
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
def test_fillers_change_neither_loss_nor_gradients(small, normalizer, classification):
    small.loss.update(normalizer=normalizer, classification=classification)
    batch, outputs = make_batch(2), random_outputs(small, 2)
    # Two more images, with ground truth and outputs of their own, but of weight 0.
    filled_batch = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, make_batch(2, seed=9))
    filled_batch = filled_batch._replace(weights=np.float32([1, 1, 0, 0]))
    filled_outputs = jax.tree.map(
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
    filled_terms, filled_gradients = terms_and_gradients(filled_outputs, filled_batch)
    np.testing.assert_allclose(filled_terms, terms, rtol=1e-6)
    for gradient, filled in zip(*map(jax.tree.leaves, (gradients, filled_gradients)), strict=True):
        np.testing.assert_allclose(filled[:2], gradient, rtol=1e-5, atol=1e-9)
        assert not filled[2:].any()
