"""What a run takes from another detector: all but other classes' rows, and never in silence."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from retinanet_jax import checkpoint
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import initialize
from retinanet_jax.training import initialization, loop, transfer
from retinanet_jax.training.optimizer import make_optimizer

OLD = (Category(3, "dog"), Category(7, "cat"), Category(9, "cow"))
NEW = (Category(1, "egg"), Category(2, "cow"), Category(3, "hen"), Category(4, "dog"))
ANCHORS = 9
KERNEL = ("params", "classification_head", "predict", "kernel")
BIAS = (*KERNEL[:-1], "bias")


@pytest.fixture
def shapes_of(toy_config):
    """`shapes_of(categories)`: the toy network's variables as shapes."""

    def shapes_of(categories):
        return jax.eval_shape(lambda: initialize(toy_config, len(categories), seed=0))

    return shapes_of


def seeded(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.03, x.shape).astype(np.float32), shapes)


@pytest.fixture
def trained(toy_config, shapes_of, tmp_path):
    """A detector of OLD."""
    config = toy_config.copy_and_resolve_references()
    return Checkpoint(seeded(shapes_of(OLD), 1), config, OLD, 5, tmp_path / "5")


def flat(variables):
    return traverse_util.flatten_dict(variables)


def rows(variables, path, categories):
    """An array of the classification output with axes anchor and class."""
    value = flat(variables)[path]
    return value.reshape(*value.shape[:-1], ANCHORS, len(categories))


def test_all_is_kept_but_the_rows_of_other_classes(trained, shapes_of):
    before = seeded(shapes_of(NEW), 2)
    after = transfer.transferred(trained, before, NEW)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for path, value in flat(after).items():
        if path not in (KERNEL, BIAS):
            np.testing.assert_array_equal(value, flat(trained.variables)[path])
    for path in (KERNEL, BIAS):
        old, new, random = (
            rows(trained.variables, path, OLD),
            rows(after, path, NEW),
            rows(before, path, NEW),
        )
        np.testing.assert_array_equal(new[..., 1], old[..., 2])  # cow
        np.testing.assert_array_equal(new[..., 3], old[..., 0])  # dog
        np.testing.assert_array_equal(new[..., [0, 2]], random[..., [0, 2]])


def test_the_same_classes_in_another_order_are_all_kept(trained, shapes_of):
    after = transfer.transferred(trained, seeded(shapes_of(OLD), 2), OLD[::-1])
    for path in (KERNEL, BIAS):
        np.testing.assert_array_equal(
            rows(after, path, OLD), rows(trained.variables, path, OLD)[..., ::-1]
        )


def test_the_same_classes_under_other_ids_keep_every_array(trained, shapes_of):
    same = tuple(Category(one.id + 10, one.name) for one in OLD)
    assert not transfer.fit(trained, shapes_of(OLD), same).reinitialized
    after = transfer.transferred(trained, seeded(shapes_of(OLD), 2), same)
    jax.tree.map(np.testing.assert_array_equal, after, trained.variables)


@pytest.mark.parametrize(("theirs", "ours"), [("batch", "frozen_batch"), ("frozen_batch", "batch")])
def test_frozen_and_trained_norms_take_each_others_arrays(
    toy_config, shapes_of, tmp_path, theirs, ours
):
    toy_config.model.norm = theirs
    config = toy_config.copy_and_resolve_references()
    trained = Checkpoint(seeded(shapes_of(OLD), 1), config, OLD, 5, tmp_path)
    toy_config.model.update(norm=ours, frozen_stages=1, prior_probability=0.1)
    fitted = transfer.fit(trained, shapes_of(OLD), OLD)
    transfer.check(fitted, trained, toy_config)
    assert len(fitted.kept) == len(flat(trained.variables)) == sum(map(len, fitted))
    after = flat(transfer.transferred(trained, seeded(shapes_of(OLD), 2), OLD))
    have = flat(trained.variables)
    scale = ("backbone", "stem_norm", "scale")
    frozen, trainable = ("batch_stats", *scale), ("params", *scale)
    assert (frozen in after, trainable in after) == (ours == "frozen_batch", ours == "batch")
    by_name = {path[1:]: value for path, value in have.items()}
    for path, value in after.items():
        np.testing.assert_array_equal(value, by_name[path[1:]])


def test_the_table_names_what_is_not_simply_kept(trained, shapes_of):
    table = transfer.table(transfer.fit(trained, shapes_of(NEW), NEW), trained, NEW).splitlines()
    assert table[0].endswith("5 (step 5, 3 classes) for 4 classes")
    kept = len(flat(trained.variables)) - 2
    assert table[1] == (
        f"  kept             {kept} arrays  backbone {kept - 22}, box_head 4, "
        "classification_head 2, fpn 16"
    )
    assert table[2:] == [
        "  re-initialised    2 arrays  classification_head/predict/bias, "
        "classification_head/predict/kernel",
        "  missing           0 arrays",
        "  unexpected        0 arrays",
        "  of the re-initialised, the rows of 2 classes that both have are kept: cow, dog",
        "  new classes: egg, hen",
    ]


def test_the_table_says_where_no_class_is_shared(trained, shapes_of):
    other = (Category(1, "egg"),)
    table = transfer.table(transfer.fit(trained, shapes_of(other), other), trained, other)
    assert table.endswith("0 classes that both have are kept: none\n  new classes: egg")


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        ("model", {"head_depth": 2}, "missing: box_head/conv1/bias, .*model.head_depth is 1 th"),
        ("model", {"backbone": "resnet18"}, "missing: backbone/stage2_block1/conv1/ker.* more"),
        ("model", {"fpn_channels": 8}, "misshapen: box_head/conv0/bias, .*channels is 16 there"),
        ("model", {"norm": "group"}, "unexpected: backbone/stage2_block0/.* and 19 more"),
        ("model", {"p6_from": "p5"}, "misshapen: fpn/p6/kernel; config.model.p6_from is c5 ther"),
        ("anchors", {"scales": (1.0,)}, "misshapen: box_head/predict/bias, .*classification_he"),
        ("model", {"norm_epsilon": 1.0}, r"network; config\.model\.norm_epsilon is .* and 1\.0 "),
        ("model", {"stride_in_1x1": False}, r"network; config\.model\.stride_in_1x1 is True"),
        ("anchors", {"offset": 0.0}, r"network; config\.anchors\.offset is 0\.5 there and 0\.0"),
        ("input", {"order": "rgb"}, r"network; config\.input\.order is bgr there and rgb here"),
    ],
)
def test_whatever_else_differs_is_refused_by_name(
    trained, shapes_of, toy_config, section, change, told
):
    toy_config[section].update(change)
    fitted = transfer.fit(trained, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match=rf"5: its weights can't start .*{told}") as error:
        transfer.check(fitted, trained, toy_config)
    assert "\n" not in str(error.value)
    # The table has every name.
    table = transfer.table(fitted, trained, NEW)
    assert all(name in table for group in fitted[1:] for name in group)


def test_arrays_that_the_configs_do_not_account_for_are_refused_too(trained, shapes_of, toy_config):
    del trained.variables["params"]["fpn"]["p6"]["bias"]
    trained.variables["params"]["fpn"]["p8"] = {"bias": np.zeros(1)}
    fitted = transfer.fit(trained, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match="missing: fpn/p6/bias; unexpected: fpn/p8/bias. Give"):
        transfer.check(fitted, trained, toy_config)


def test_a_checkpoint_that_does_not_fit_is_told_before_anything_compiles(
    trained, toy_config, tmp_path, monkeypatch
):
    checkpoint.write_imported(tmp_path / "run", trained.variables, trained.config, OLD)
    toy_config.init.update(source="checkpoint", path=str(tmp_path / "run"))
    toy_config.input.order = "rgb"
    optimizer = make_optimizer(toy_config)
    monkeypatch.setattr(initialization, "random_state", uncompiled(initialization.random_state))
    with pytest.raises(ValueError, match=r"config\.input\.order is bgr there and rgb here"):
        initialization.initial_state(toy_config, NEW, optimizer)
    toy_config.init.path = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        initialization.initial_state(toy_config, NEW, optimizer)


def uncompiled(function):
    """Fails where it is not traced for shapes alone."""

    def checked(*arguments):
        result = function(*arguments)
        assert isinstance(result.step, jax.core.Tracer), "compiled"
        return result

    return checked


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_detector_is_fine_tuned_to_other_classes(trained, toy_config, drawn, tmp_path, capsys):
    """In this process, two steps; what was frozen is bit for bit what the checkpoint had."""
    content = json.loads((drawn / "instances.json").read_text())
    names = [category["name"] for category in content["categories"]]
    old = (Category(1, "dog"), Category(2, names[2]), Category(3, names[0]))
    checkpoint.write_imported(tmp_path / "old", trained.variables, trained.config, old)
    given = dict(
        source="coco", annotations=str(drawn / "instances.json"), images=str(drawn / "images")
    )
    toy_config.data.train.update(given)
    toy_config.data.eval.update(given)
    toy_config.init.update(source="checkpoint", path=str(tmp_path / "old"))
    toy_config.model.frozen_stages = 2
    toy_config.update(total_steps=2, checkpoint_every=1, evaluate_every=2)
    toy_config.optimizer.warmup_steps = 0
    started = []
    initial_state = initialization.initial_state

    def kept(*arguments):
        started.append(initial_state(*arguments))
        return jax.tree.map(lambda x: x.copy(), started[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialization, "initial_state", kept)
        loop.train(toy_config, tmp_path / "new", evaluates=False)
    told = capsys.readouterr().out
    assert f"rows of 2 classes that both have are kept: {names[0]}, {names[2]}" in told

    have, start = flat(trained.variables), flat(jax.device_get(started[0].variables))
    after = checkpoint.load(tmp_path / "new")
    assert [one.name for one in after.categories] == names
    end = flat(after.variables)
    for path, value in start.items():
        if path not in (KERNEL, BIAS):
            np.testing.assert_array_equal(value, have[path])
        if path[2].startswith(("stem", "stage2")):
            np.testing.assert_array_equal(end[path], have[path])
    for path in (KERNEL, BIAS):
        old_rows, new_rows = (
            value.reshape(*value.shape[:-1], ANCHORS, -1) for value in (have[path], start[path])
        )
        np.testing.assert_array_equal(new_rows[..., 2], old_rows[..., 1])
        np.testing.assert_array_equal(new_rows[..., 0], old_rows[..., 2])
        assert np.any(end[path] != start[path])

    # The run itself is resumed as any other; the weights are read once.
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    toy_config.update(total_steps=3)
    loop.train(toy_config, tmp_path / "new", evaluates=False)
    # In the imported weights' own folder nothing goes on.
    with pytest.raises(ValueError, match="imported weights, which no training can be resumed"):
        loop.train(toy_config, tmp_path / "elsewhere", evaluates=False)
