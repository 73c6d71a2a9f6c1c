import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax.core import (
    BACKGROUND,
    IGNORE,
    Targets,
    balanced_cross_entropy,
    classification_per_anchor,
    classification_sum,
    count_foreground,
    cross_entropy,
    decode,
    ema_normalizer,
    encode,
    focal_loss,
    focal_star,
    giou_loss,
    giou_sum,
    smooth_l1,
    smooth_l1_sum,
    xyxy_to_yxyx,
)

BALANCED = functools.partial(balanced_cross_entropy, alpha=0.75)
FOCAL = functools.partial(focal_loss, alpha=0.25, gamma=2.0)
STAR = functools.partial(focal_star, alpha=0.25, gamma=2.0, beta=1.0)
LOSSES = [cross_entropy, BALANCED, FOCAL, STAR]

POSITIVE = np.array([True])
NEGATIVE = np.array([False])


def array(*values, dtype=np.float32):
    return jnp.array(values, dtype)


def logit(probability):
    return array(np.log(probability / (1 - probability)))


def test_cross_entropy_by_hand():
    for positive, p_t in ((POSITIVE, 0.9), (NEGATIVE, 0.1)):
        loss = cross_entropy(logit(0.9), positive)
        np.testing.assert_allclose(loss, [-np.log(p_t)], rtol=1e-6)


def test_balanced_cross_entropy_by_hand():
    for positive, alpha_t, p_t in ((POSITIVE, 0.75, 0.9), (NEGATIVE, 0.25, 0.1)):
        loss = balanced_cross_entropy(logit(0.9), positive, alpha=0.75)
        np.testing.assert_allclose(loss, [-alpha_t * np.log(p_t)], rtol=1e-6)


def test_focal_loss_by_hand():
    for positive, alpha_t, p_t in ((POSITIVE, 0.25, 0.9), (NEGATIVE, 0.75, 0.1)):
        loss = focal_loss(logit(0.9), positive, alpha=0.25, gamma=2.0)
        np.testing.assert_allclose(loss, [-alpha_t * (1 - p_t) ** 2 * np.log(p_t)], rtol=1e-5)


def test_focal_star_by_hand():
    # p_t* = o / (1 + o) with the odds o = exp(2 x_t + 1): 81 e if x_t = log 9, e / 81 if -log 9.
    for positive, alpha_t, odds in ((POSITIVE, 0.25, 81 * np.e), (NEGATIVE, 0.75, np.e / 81)):
        loss = focal_star(logit(0.9), positive, alpha=0.25, gamma=2.0, beta=1.0)
        np.testing.assert_allclose(loss, [alpha_t * np.log(1 + 1 / odds) / 2], rtol=1e-5)


def test_focal_star_of_gamma_one_and_beta_zero_is_balanced_cross_entropy():
    logits = jnp.linspace(-30, 30, 61)
    for positive in (logits > 99, logits < 99):
        star = focal_star(logits, positive, alpha=0.75, gamma=1.0, beta=0.0)
        np.testing.assert_array_equal(star, BALANCED(logits, positive))


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0)])
def test_focal_star_gradient_is_the_papers(gamma, beta):
    # Appendix B, equation 11: dFL*/dx = y (p_t* - 1), here times alpha_t.
    for x in (-5.0, -1.0, 0.0, 1.0, 5.0):
        for y, alpha_t in ((1, 0.25), (-1, 0.75)):
            expected = y * alpha_t * (1 / (1 + np.exp(-gamma * x * y - beta)) - 1)
            gradient = jax.grad(
                lambda x, y=y: focal_star(x, jnp.array(y > 0), alpha=0.25, gamma=gamma, beta=beta)
            )(x)
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)


def test_focal_star_of_gamma_zero_is_refused():
    with pytest.raises(ValueError, match=r"gamma=0\.0 of FL\* must be above 0"):
        focal_star(logit(0.9), POSITIVE, alpha=0.25, gamma=0.0, beta=1.0)


def test_gamma_zero_is_balanced_cross_entropy_and_alpha_half_is_half_of_cross_entropy():
    logits = jnp.linspace(-30, 30, 61)
    for positive in (logits > 99, logits < 99):
        focal = focal_loss(logits, positive, alpha=0.75, gamma=0.0)
        np.testing.assert_array_equal(focal, BALANCED(logits, positive))
        balanced = balanced_cross_entropy(logits, positive, alpha=0.5)
        np.testing.assert_array_equal(2 * balanced, cross_entropy(logits, positive))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_equals_optax(gamma):
    logits = jnp.linspace(-30, 30, 241)
    for positive in (logits > 99, logits < 99):
        loss = focal_loss(logits, positive, alpha=0.3, gamma=gamma)
        expected = optax.sigmoid_focal_loss(logits, positive.astype(float), alpha=0.3, gamma=gamma)
        np.testing.assert_allclose(loss, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_the_papers(gamma):
    # Appendix B, equation 10: dFL/dx = y alpha_t (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1).
    for x in (-5.0, -1.0, 0.0, 1.0, 5.0):
        for y, alpha_t in ((1, 0.25), (-1, 0.75)):
            p_t = 1 / (1 + np.exp(-x * y))
            expected = y * alpha_t * (1 - p_t) ** gamma * (gamma * p_t * np.log(p_t) + p_t - 1)
            gradient = jax.grad(
                lambda x, y=y: focal_loss(x, jnp.array(y > 0), alpha=0.25, gamma=gamma)
            )(x)
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("positive", [True, False])
def test_the_gradient_of_cross_entropy_at_zero_is_exactly_a_half(positive):
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array(positive)))(0.0)
    assert gradient == (-0.5 if positive else 0.5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("positive", [True, False])
def test_value_and_gradient_are_finite_up_to_1e4(loss, dtype, positive):
    logits = array(-1e4, -1e3, -100, -20, 0, 20, 100, 1e3, 1e4, dtype=dtype)
    total = lambda x: loss(x, jnp.full(x.shape, positive)).sum()  # noqa: E731
    values = loss(logits, jnp.full(logits.shape, positive))
    assert values.dtype == jnp.float32
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)
    gradients = jax.grad(total)(logits)
    assert gradients.dtype == dtype
    assert np.all(np.isfinite(gradients.astype(np.float32)))
    wrong, right = (0, -1) if positive else (-1, 0)
    assert gradients[wrong] != 0  # however wrong the logit is, it has a gradient
    assert gradients[right] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_float64_stays_float64(loss):
    with jax.enable_x64(True):
        values = loss(jnp.array([0.3], jnp.float64), POSITIVE)
        assert values.dtype == jnp.float64
        labels = jnp.array([0], jnp.int32)
        total = classification_sum(jnp.array([[0.3]], jnp.float64), labels, loss)
        np.testing.assert_array_equal(total, values[0])


def test_classification_sum_by_hand():
    logits = np.array([[0.5, -1.0], [2.0, 3.0], [9.0, -9.0]], np.float32)
    labels = np.array([1, BACKGROUND, IGNORE], np.int32)
    p = 1 / (1 + np.exp(-logits))
    first, second = -np.log([1 - p[0, 0], p[0, 1]]).sum(), -np.log(1 - p[1]).sum()
    losses = classification_per_anchor(logits, labels, cross_entropy)
    np.testing.assert_allclose(losses, [first, second, 0], rtol=1e-6)
    total = classification_sum(logits, labels, cross_entropy)
    np.testing.assert_allclose(total, first + second, rtol=1e-6)


@pytest.mark.parametrize("per_cell", [2, 3, 6])
def test_the_sum_does_not_depend_on_how_many_anchors_are_computed_together(per_cell):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = jnp.asarray(rng.normal(size=(2, 12, 5)))
        labels = jnp.asarray(rng.integers(IGNORE, 5, (2, 12)))

        def sums_and_gradient(per_cell):
            total = functools.partial(classification_sum, elementwise=FOCAL, per_cell=per_cell)
            return jax.jit(jax.vmap(jax.value_and_grad(total)))(logits, labels)

        expected, actual = sums_and_gradient(1), sums_and_gradient(per_cell)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), actual, expected)


def test_ignored_anchors_have_no_gradient():
    logits = jnp.ones((3, 2))
    labels = np.array([0, IGNORE, BACKGROUND])
    gradient = jax.grad(lambda x: classification_sum(x, labels, FOCAL))(logits)
    np.testing.assert_array_equal(gradient != 0, [[True] * 2, [False] * 2, [True] * 2])


def test_smooth_l1_by_hand():
    error = array(-2, -0.5, 0, 0.5, 2)
    np.testing.assert_array_equal(smooth_l1(error, beta=1.0), [1.5, 0.125, 0, 0.125, 1.5])
    np.testing.assert_array_equal(smooth_l1(error, beta=0.0), [2, 0.5, 0, 0.5, 2])
    np.testing.assert_allclose(
        smooth_l1(array(1 / 18, 1), beta=1 / 9), [1 / 72, 1 - 1 / 18], rtol=1e-6
    )


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_gradient_is_at_most_one_and_zero_at_zero(beta):
    gradient = jax.grad(lambda error: smooth_l1(error, beta=beta).sum())
    np.testing.assert_array_equal(gradient(array(-3, 0, 3)), [-1, 0, 1])


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_smooth_l1_is_smooth_at_beta(beta):
    around = array(beta * (1 - 1e-5), beta * (1 + 1e-5))
    values = smooth_l1(around, beta=beta)
    gradients = jax.grad(lambda error: smooth_l1(error, beta=beta).sum())(around)
    np.testing.assert_allclose(values, beta / 2, rtol=1e-4)
    np.testing.assert_allclose(gradients, 1, rtol=1e-4)


def test_giou_loss_by_hand():
    square = np.array([[0, 0, 1, 1]], np.float32)
    others = np.array([[0, 0, 1, 1], [0, 2, 1, 3]], np.float32)
    losses = giou_loss(np.repeat(square, 2, axis=0), others)
    np.testing.assert_allclose(losses, [0, 4 / 3], atol=1e-6)


@pytest.fixture
def three_anchors():
    """Return three anchors and targets: only the first is foreground, 1/8 of its height lower."""
    anchors = np.array([[0, 0, 16, 16], [0, 0, 32, 32], [8, 8, 24, 24]], np.float32)
    labels = np.array([4, BACKGROUND, IGNORE])
    boxes = anchors + np.array([[2, 0, 2, 0], [0] * 4, [0] * 4], np.float32)
    return anchors, Targets(jnp.array(labels), jnp.array(boxes))


def test_box_sums_by_hand(three_anchors):
    anchors, targets = three_anchors
    deltas = np.array([[0.375, -0.5, 0, 0], [9] * 4, [9] * 4], np.float32)
    np.testing.assert_allclose(smooth_l1_sum(deltas, anchors, targets, beta=0.0), 0.75, rtol=1e-6)
    # Boxes decoded from zero deltas overlap the ground truth in 14 of 18 rows.
    np.testing.assert_allclose(giou_sum(deltas * 0, anchors, targets), 1 - 14 / 18, rtol=1e-6)


@pytest.mark.parametrize(
    "box_sum", [giou_sum, functools.partial(smooth_l1_sum, beta=0.0)], ids=["giou", "l1"]
)
def test_box_sums_are_zero_at_the_target_and_depend_on_foreground_anchors_only(
    three_anchors, box_sum
):
    anchors, targets = three_anchors
    perfect = encode(targets.boxes, anchors)
    np.testing.assert_allclose(box_sum(perfect, anchors, targets), 0, atol=1e-6)
    deltas = jnp.array([[0.3, 0.2, 0.1, 0.1], [1e4] * 4, [-1e4] * 4])
    gradient = jax.grad(box_sum)(deltas, anchors, targets)
    assert np.all(gradient[0] != 0)
    np.testing.assert_array_equal(gradient[1:], 0)


def test_box_sums_compute_half_precision_in_float32(three_anchors):
    anchors, targets = three_anchors
    deltas = jnp.full((3, 4), 0.3, jnp.bfloat16)
    for box_sum in (giou_sum, functools.partial(smooth_l1_sum, beta=1 / 9)):
        total = box_sum(deltas, anchors, targets)
        assert total.dtype == jnp.float32
        np.testing.assert_array_equal(total, box_sum(deltas.astype(jnp.float32), anchors, targets))


def test_giou_sum_is_finite_for_boxes_shrunk_to_nothing(three_anchors):
    anchors, targets = three_anchors
    deltas = jnp.full((3, 4), -1e4)
    value, gradient = jax.value_and_grad(giou_sum)(deltas, anchors, targets)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_count_foreground():
    labels = np.array([0, 5, BACKGROUND, IGNORE, 2])
    assert count_foreground(labels) == 3


def test_ema_normalizer_is_updated_before_use():
    first = ema_normalizer(array(100.0)[0], jnp.array(30), momentum=0.9)
    np.testing.assert_allclose(first, 93, rtol=1e-6)
    empty = ema_normalizer(first, jnp.array(0), momentum=0.9)
    np.testing.assert_allclose(empty, 0.9 * 93 + 0.1, rtol=1e-6)


def test_jit_and_vmap_change_nothing():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 40, 6)).astype(np.float32)
    deltas = generator.normal(size=(3, 40, 4)).astype(np.float32)
    corner = generator.uniform(0, 50, (40, 2))
    anchors = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    labels = generator.integers(-2, 6, (3, 40))
    boxes = np.stack([decode(0.2 * row, anchors) for row in deltas])
    smooth = functools.partial(smooth_l1_sum, beta=1 / 9)

    def losses(logits, deltas, labels, boxes):
        targets = Targets(labels, boxes)
        return jnp.stack(
            [
                classification_sum(logits, labels, FOCAL),
                smooth(deltas, anchors, targets),
                giou_sum(deltas, anchors, targets),
                count_foreground(labels),
            ]
        )

    batched = jax.jit(jax.vmap(losses))(logits, deltas, labels, boxes)
    each = [jax.jit(losses)(*row) for row in zip(logits, deltas, labels, boxes, strict=True)]
    np.testing.assert_allclose(batched, np.stack(each), rtol=1e-5)


@pytest.mark.parametrize("name", ["torchvision_v1", "detectron2_r50_stride_in_1x1"])
def test_loss_sums_equal_torchvisions_and_detectron2s(test_data, name):
    golden = np.load(test_data / "parity" / f"{name}_128x160.npz")
    anchors, gt = xyxy_to_yxyx(golden["anchors"]), xyxy_to_yxyx(golden["gt_boxes"][0])
    deltas = xyxy_to_yxyx(golden["bbox_regression"][0])  # the order is (dx, dy, dw, dh)
    matched = golden["matched_idxs"][0]
    if "torchvision" in name:
        labels = np.where(matched >= 0, golden["gt_labels"][0][matched], matched)
        normalizer = max(1, np.sum(matched >= 0))
        expected = golden["loss_classification"], golden["loss_bbox_regression"]
    else:
        labels = golden["gt_labels_per_anchor"][0]  # a class, 80 for background, -1 for ignored
        labels = np.select([labels == 80, labels == -1], [BACKGROUND, IGNORE], labels)
        normalizer = golden["loss_normalizer"]
        expected = golden["loss_cls"], golden["loss_box_reg"]
    targets = Targets(jnp.array(labels), gt[np.maximum(matched, 0)])
    classification = classification_sum(golden["cls_logits"][0], targets.labels, FOCAL)
    box = smooth_l1_sum(deltas, anchors, targets, beta=0.0)
    np.testing.assert_allclose((classification / normalizer, box / normalizer), expected, rtol=2e-5)


def test_memory_of_the_focal_loss_of_100000_anchors_and_80_classes():
    logits = jax.ShapeDtypeStruct((100_000, 80), np.float32)
    labels = jax.ShapeDtypeStruct((100_000,), np.int32)
    total = functools.partial(classification_sum, elementwise=FOCAL, per_cell=10)
    compiled = jax.jit(jax.value_and_grad(total)).lower(logits, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 48e6  # measured: 32e6


def test_the_focal_loss_computes_one_logarithm_of_each_logit():
    # An exponential, a logarithm and the modulation, which the gradient needs, too. Two calls of
    # `jax.nn.log_sigmoid` would compute 5, and 7 for the gradient.
    logits, positive = jax.ShapeDtypeStruct((1000,), np.float32), np.zeros(1000, bool)
    total = lambda logits: FOCAL(logits, positive).sum()  # noqa: E731
    for function in (total, jax.grad(total)):
        cost = jax.jit(function).lower(logits).cost_analysis()
        assert cost["transcendentals"] == 3 * 1000
