"""Imported detectors compute what their libraries compute: the parity data, two programs each."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from retinanet_jax import core, weights
from retinanet_jax.configs import detectron2, torchvision
from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import build_model, detect, image_anchors, network_input, normalize
from retinanet_jax.training.objective import batch_loss
from retinanet_jax.weights import detectors

pytestmark = pytest.mark.slow

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torchvision_v2_gradients.json"
FILES = {
    "torchvision_v1": "torchvision_v1_128x160.npz",
    "torchvision_v2": "torchvision_v2_128x160.npz",
    "detectron2": "detectron2_r50_stride_in_1x1_128x160.npz",
}
YXYX = [1, 0, 3, 2]  # of xyxy, and of (dx, dy, dw, dh)
LEVELS = ("p3", "p4", "p5", "p6", "p7")


def shapes_listed(golden):
    listed = zip(golden["sd_names"].tolist(), golden["sd_shapes"].tolist(), strict=True)
    return {name: tuple(map(int, filter(None, shape.split("x")))) for name, shape in listed}


def config_of(name, golden):
    """The recipe's config, with what the data were made with instead of what is published."""
    if name == "detectron2":
        config = detectron2.get_config().unlock()
        config.model.stride_in_1x1 = bool(golden["meta_stride_in_1x1"])
        config.input.mean = tuple(golden["meta_pixel_mean"].tolist())
        config.input.std = tuple(golden["meta_pixel_std"].tolist())
        config.input.order = str(golden["meta_format"]).lower()
    else:
        config = torchvision.get_config(name.removeprefix("torchvision_")).unlock()
        config.model.norm_epsilon = float(golden["meta_eps"])
    config.model.frozen_stages = 0
    return config


def batch_of(name, golden):
    """The data's picture and ground truth as the program has them: RGB in 0..255, yxyx."""
    pixels = golden["image"].transpose(0, 2, 3, 1)
    pixels = pixels[..., ::-1] if name == "detectron2" else pixels * 255
    boxes = golden["gt_boxes"][..., YXYX]
    classes = golden["gt_classes" if name == "detectron2" else "gt_labels"]
    return Batch(
        images=pixels.astype(np.float32),
        sizes=np.array([pixels.shape[1:3]], np.float32),
        scales=np.ones((1, 2), np.float32),
        boxes=boxes,
        classes=classes.astype(np.int32),
        mask=np.ones(classes.shape, bool),
        crowd_boxes=np.zeros((1, 1, 4), np.float32),
        crowd_mask=np.zeros((1, 1), bool),
        weights=np.ones(1, np.float32),
        index=np.zeros(1, np.int32),
        colors=np.array([[1, 1, 1, 0]], np.float32),
        dropped=np.zeros(1, np.int32),
    )


def make_evaluation(model, config):
    """(variables, batch) -> what an evaluation computes, and the pyramid."""

    @jax.jit
    def evaluation(variables, batch):
        outputs, seen = model.apply(
            variables,
            network_input(batch, config, train=False),
            train=False,
            capture_intermediates=lambda module, _: module.name == "fpn",
            mutable=["intermediates"],
        )
        (pyramid,) = seen["intermediates"]["fpn"]["__call__"]
        return pyramid, outputs, detect(variables, batch, model, config)

    return evaluation


def make_training(model, config, paths):
    """(variables, batch) -> loss terms, and their gradients in the parameters at `paths`."""

    @jax.jit
    def training(variables, batch):
        def objective(params):
            outputs, _ = model.apply(
                variables | {"params": params},
                network_input(batch, config, train=True),
                train=True,
                mutable=["batch_stats"],
            )
            terms = batch_loss(outputs, batch, jnp.asarray(config.loss.ema_start), config)
            return terms.total, terms

        gradients, terms = jax.grad(objective, has_aux=True)(variables["params"])
        gradients = traverse_util.flatten_dict(gradients)
        # The rest is not asked for, and so not computed.
        return terms, {"/".join(path): gradients[path] for path in paths}

    return training


def in_float64(tree):
    wider = {np.dtype(np.float32): np.float64}
    return jax.tree.map(lambda x: np.asarray(x, wider.get(x.dtype, x.dtype)), tree)


@pytest.fixture(scope="module", params=FILES)
def parity(request, test_data, parity_arrays):
    """A library's numbers (`golden`) and ours, in one namespace."""
    name = request.param
    with np.load(test_data / "parity" / FILES[name]) as archive:
        golden = dict(archive)
    form, config = weights.DETECTOR_FORMATS[name], config_of(name, golden)
    arrays = parity_arrays(
        shapes_listed(golden), int(golden["meta_seed"]), float(golden["meta_cls_bias"])
    )
    num_outputs = golden["cls_logits"].shape[-1]
    variables = weights.DETECTOR_SOURCES[name](
        arrays, architecture="resnet50", norm=config.model.norm, num_outputs=num_outputs
    )
    path_of = {their: path for path, their in detectors.names(form, "resnet50").items()}
    compared = [key.removeprefix("grad/") for key in golden if key.startswith("grad/")]
    paths = [path_of[their] for their in compared]
    batch = batch_of(name, golden)
    evaluation = make_evaluation(build_model(config, num_outputs), config)
    pyramid, outputs, detections = jax.tree.map(np.asarray, evaluation(variables, batch))
    # Checkpoint batch norms over few pixels make noise of 1% of float32: the library's own gradients
    # in float32 are as far from its own in float64.
    with jax.enable_x64(name == "torchvision_v2"):
        training_config, inputs = config.copy_and_resolve_references(), (variables, batch)
        if name == "torchvision_v2":
            training_config.dtype, inputs = "float64", in_float64(inputs)
        model = build_model(training_config, num_outputs)
        training = make_training(model, training_config, paths)
        terms, gradients = jax.tree.map(np.asarray, training(*inputs))
    return types.SimpleNamespace(
        name=name,
        form=form,
        config=config,
        golden=golden,
        batch=batch,
        anchors=image_anchors(batch.images.shape[1:3], config),
        variables=variables,
        pyramid=pyramid,
        outputs=outputs,
        detections=detections,
        terms=terms,
        gradients=gradients,
    )


def in_our_order(rows, form):
    """Rows of a library's anchors (... A and more axes), with the anchors of a cell as we have."""
    if not form.ratio_outer:
        return rows
    return rows.reshape(-1, 3, 3, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def test_the_normalised_input(parity):
    batch = parity.batch
    ours = normalize(batch.images, batch.sizes, dtype=jnp.float32, **parity.config.input)
    theirs = parity.golden["normalized"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("level", range(5))
def test_the_pyramid(parity, level):
    theirs = parity.golden[LEVELS[level]].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(parity.pyramid[level], theirs, atol=1e-4, rtol=0)


def test_the_logits(parity):
    ours = np.concatenate(parity.outputs.logits, axis=1)[0]
    theirs = in_our_order(parity.golden["cls_logits"][0], parity.form)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_the_deltas(parity):
    ours = np.concatenate(parity.outputs.deltas, axis=1)[0]
    theirs = in_our_order(parity.golden["bbox_regression"][0], parity.form)[:, YXYX]
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_the_anchors(parity):
    assert [len(level) for level in parity.anchors] == parity.golden["levels"].tolist()
    ours = np.concatenate(parity.anchors)
    theirs = in_our_order(parity.golden["anchors"], parity.form)[:, YXYX]
    if parity.name == "detectron2":  # exact sides: the last bit depends on the order of operations
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_the_matches_and_labels(parity):
    """In these data every ground truth touches an anchor: there we do not differ on purpose."""
    golden, batch = parity.golden, parity.batch
    anchors = jnp.asarray(np.concatenate(parity.anchors))
    boxes, mask = batch.boxes[0], batch.mask[0]
    assert (np.asarray(core.pairwise_iou(anchors, jnp.asarray(boxes))).max(axis=0) > 0).all()
    thresholds = ("foreground_iou", "background_iou", "low_quality")
    matches = core.match(
        anchors, boxes, mask, **{field: parity.config.matching[field] for field in thresholds}
    )
    targets = core.assign_targets(
        anchors,
        boxes,
        batch.classes[0],
        mask,
        batch.crowd_boxes[0],
        batch.crowd_mask[0],
        batch.sizes[0],
        **parity.config.matching,
    )
    theirs = in_our_order(golden["matched_idxs"][0], parity.form)
    if parity.name == "detectron2":  # the best row whatever its overlap, and apart what it is worth
        worth = golden["match_labels"][0]
        theirs = np.select([worth == 1, worth == 0], [theirs, core.BACKGROUND], core.IGNORE)
        labels = golden["gt_labels_per_anchor"][0]
        labels = np.select([labels == 80, labels == -1], [core.BACKGROUND, core.IGNORE], labels)
    else:  # which has no labels of anchors, but writes their matches as we do
        labels = np.where(theirs >= 0, golden["gt_labels"][0][np.maximum(theirs, 0)], theirs)
    assert (theirs >= 0).any()
    assert (theirs == core.IGNORE).any()
    np.testing.assert_array_equal(matches, theirs)
    np.testing.assert_array_equal(targets.labels, labels)


def test_the_losses(parity):
    terms, golden = parity.terms, parity.golden
    keys = ("loss_classification", "loss_bbox_regression")
    if parity.name == "detectron2":
        keys = ("loss_cls", "loss_box_reg")
        np.testing.assert_allclose(terms.normalizer, golden["loss_normalizer"], rtol=1e-6)
    np.testing.assert_allclose(terms.classification, golden[keys[0]], rtol=1e-5)
    np.testing.assert_allclose(terms.box, golden[keys[1]], rtol=1e-5)


def test_the_gradients(parity):
    """Carried back as weights are: exported, they have the library's names, axes and order."""
    gradients = traverse_util.flatten_dict(parity.variables["params"])
    gradients |= {tuple(path.split("/")): value for path, value in parity.gradients.items()}
    variables = parity.variables | {"params": traverse_util.unflatten_dict(gradients)}
    num_outputs = parity.golden["cls_logits"].shape[-1]
    ours = detectors.to_arrays(
        variables, parity.form, architecture="resnet50", num_outputs=num_outputs
    )
    # Where the library's float32 is noise, its float64.
    sampled = json.loads(GOLDEN.read_text())["gradients"] if parity.name == "torchvision_v2" else {}
    names = [key.removeprefix("grad/") for key in parity.golden if key.startswith("grad/")]
    assert set(sampled) < set(names)
    assert len(names) == len(parity.gradients) >= 6
    for name in names:
        value, theirs = ours[name], parity.golden[f"grad/{name}"]
        if name in sampled:
            np.testing.assert_allclose(value, theirs, rtol=0, atol=2e-2 * np.abs(theirs).max())
            rms = np.sqrt((value**2).mean())
            np.testing.assert_allclose(rms, sampled[name]["rms"], rtol=1e-5, err_msg=name)
            value = value.ravel()[7 :: value.size // 40 + 1]
            theirs = np.array(sampled[name]["values"])
        atol = 1e-3 * np.abs(theirs).max()
        np.testing.assert_allclose(value, theirs, rtol=0, atol=atol, err_msg=name)


def test_the_detections_as_a_set(parity):
    golden = parity.golden
    found = jax.tree.map(lambda rows: rows[0], parity.detections)
    found = jax.tree.map(lambda rows: rows[found.mask], found)
    classes = golden["det0_classes" if parity.name == "detectron2" else "det0_labels"]
    boxes, scores = golden["det0_boxes"][:, YXYX], golden["det0_scores"]
    assert len(found.scores) == len(scores) == parity.config.detections.max_detections
    left = set(range(len(scores)))
    for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True):
        same = [
            row
            for row in left
            if classes[row] == label
            and abs(scores[row] - score) < 3e-5
            and np.abs(boxes[row] - box).max() < 0.01
        ]
        left -= set(same[:1])
    # Where the scores tie to rounding, another one may be the last.
    assert len(left) <= 1
    assert all(scores[row] < scores.min() + 3e-5 for row in left)
