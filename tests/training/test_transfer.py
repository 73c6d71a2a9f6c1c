"""The transfer to other classes: all arrays except the rows of other classes, or an error."""

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
NUM_ANCHORS = 9
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
def source(toy_config, shapes_of, tmp_path):
    """The checkpoint of a detector of OLD."""
    config = toy_config.copy_and_resolve_references()
    return Checkpoint(seeded(shapes_of(OLD), 1), config, OLD, 5, tmp_path / "5")


def flat(variables):
    return traverse_util.flatten_dict(variables)


def class_rows(variables, path, categories):
    """An array of the classification output with axes anchor and class."""
    value = flat(variables)[path]
    return value.reshape(*value.shape[:-1], NUM_ANCHORS, len(categories))


def test_all_is_transferred_but_the_rows_of_other_classes(source, shapes_of):
    before = seeded(shapes_of(NEW), 2)
    after = transfer.transfer_variables(source, before, NEW)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for path, value in flat(after).items():
        if path not in (KERNEL, BIAS):
            np.testing.assert_array_equal(value, flat(source.variables)[path])
    for path in (KERNEL, BIAS):
        old, new, random = (
            class_rows(source.variables, path, OLD),
            class_rows(after, path, NEW),
            class_rows(before, path, NEW),
        )
        np.testing.assert_array_equal(new[..., 1], old[..., 2])  # cow
        np.testing.assert_array_equal(new[..., 3], old[..., 0])  # dog
        np.testing.assert_array_equal(new[..., [0, 2]], random[..., [0, 2]])


def test_the_same_classes_in_another_order_are_all_transferred(source, shapes_of):
    after = transfer.transfer_variables(source, seeded(shapes_of(OLD), 2), OLD[::-1])
    for path in (KERNEL, BIAS):
        np.testing.assert_array_equal(
            class_rows(after, path, OLD), class_rows(source.variables, path, OLD)[..., ::-1]
        )


def test_the_same_classes_with_other_ids_transfer_every_array(source, shapes_of):
    same = tuple(Category(category.id + 10, category.name) for category in OLD)
    assert not transfer.plan_transfer(source, shapes_of(OLD), same).reinitialized
    after = transfer.transfer_variables(source, seeded(shapes_of(OLD), 2), same)
    jax.tree.map(np.testing.assert_array_equal, after, source.variables)


@pytest.mark.parametrize(
    ("saved_norm", "norm"), [("batch", "frozen_batch"), ("frozen_batch", "batch")]
)
def test_frozen_and_trained_batch_norms_take_each_others_arrays(
    toy_config, shapes_of, tmp_path, saved_norm, norm
):
    toy_config.model.norm = saved_norm
    config = toy_config.copy_and_resolve_references()
    source = Checkpoint(seeded(shapes_of(OLD), 1), config, OLD, 5, tmp_path)
    toy_config.model.update(norm=norm, frozen_stages=1, prior_probability=0.1)
    plan = transfer.plan_transfer(source, shapes_of(OLD), OLD)
    transfer.check_transfer(plan, source, toy_config)
    assert len(plan.transferred) == len(flat(source.variables)) == sum(map(len, plan))
    after = flat(transfer.transfer_variables(source, seeded(shapes_of(OLD), 2), OLD))
    saved = flat(source.variables)
    scale = ("backbone", "stem_norm", "scale")
    frozen, trainable = ("batch_stats", *scale), ("params", *scale)
    assert (frozen in after, trainable in after) == (norm == "frozen_batch", norm == "batch")
    by_name = {path[1:]: value for path, value in saved.items()}
    for path, value in after.items():
        np.testing.assert_array_equal(value, by_name[path[1:]])


def test_the_table_names_every_array_that_is_not_transferred(source, shapes_of):
    plan = transfer.plan_transfer(source, shapes_of(NEW), NEW)
    table = transfer.format_table(plan, source, NEW).splitlines()
    assert table[0].endswith("5 (step 5, 3 classes) for 4 classes")
    count = len(flat(source.variables)) - 2
    assert table[1] == (
        f"  transferred      {count} arrays  backbone {count - 22}, box_head 4, "
        "classification_head 2, fpn 16"
    )
    assert table[2:] == [
        "  re-initialized    2 arrays  classification_head/predict/bias, "
        "classification_head/predict/kernel",
        "  missing           0 arrays",
        "  unexpected        0 arrays",
        "  rows of the re-initialized arrays that are transferred, for 2 classes of the same name: "
        "cow, dog",
        "  new classes: egg, hen",
    ]


def test_the_table_shows_that_no_class_is_shared(source, shapes_of):
    other = (Category(1, "egg"),)
    plan = transfer.plan_transfer(source, shapes_of(other), other)
    table = transfer.format_table(plan, source, other)
    assert table.endswith("for 0 classes of the same name: none\n  new classes: egg")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"head_depth": 2}, "missing: box_head/conv1/bias, .*model.head_depth is 1 in"),
        ("model", {"backbone": "resnet18"}, "missing: backbone/stage2_block1/conv1/ker.* more"),
        ("model", {"fpn_channels": 8}, "misshapen: box_head/conv0/bias, .*channels is 16 in the"),
        ("model", {"norm": "group"}, "unexpected: backbone/stage2_block0/.* and 19 more"),
        ("model", {"p6_from": "p5"}, "misshapen: fpn/p6/kernel; config.model.p6_from is c5 in t"),
        ("anchors", {"scales": (1.0,)}, "misshapen: box_head/predict/bias, .*classification_he"),
        ("model", {"norm_epsilon": 1.0}, r"network; config\.model\.norm_epsilon is .* and 1\.0 "),
        ("model", {"stride_in_1x1": False}, r"network; config\.model\.stride_in_1x1 is True"),
        ("anchors", {"offset": 0.0}, r"network; config\.anchors\.offset is 0\.5 in .* and 0\.0"),
        (
            "input",
            {"order": "rgb"},
            r"network; config\.input\.order is bgr in the checkpoint and rgb in t",
        ),
    ],
)
def test_any_other_difference_is_refused_by_name(
    source, shapes_of, toy_config, section, change, message
):
    toy_config[section].update(change)
    plan = transfer.plan_transfer(source, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match=rf"5: the weights do not fit .*{message}") as error:
        transfer.check_transfer(plan, source, toy_config)
    assert "\n" not in str(error.value)
    # The table has every name.
    table = transfer.format_table(plan, source, NEW)
    assert all(name in table for group in plan[1:] for name in group)


def test_chosen_anchors_are_transferred_to_if_their_number_is_the_same(
    source, shapes_of, toy_config
):
    toy_config.anchors.update(base_scale=2.0, ratios=(0.4, 0.9, 2.5))
    plan = transfer.plan_transfer(source, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match=r"config\.anchors\.base_scale is 4\.0 in the checkpoint"):
        transfer.check_transfer(plan, source, toy_config)
    toy_config.choose_anchors = True
    transfer.check_transfer(plan, source, toy_config)
    toy_config.anchors.offset = 0.0  # which is not chosen
    with pytest.raises(ValueError, match=r"config\.anchors\.offset is 0\.5"):
        transfer.check_transfer(plan, source, toy_config)
    toy_config.anchors.update(offset=0.5, ratios=(1.0,))
    plan = transfer.plan_transfer(source, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match="misshapen: box_head/predict/bias"):
        transfer.check_transfer(plan, source, toy_config)


def test_arrays_that_the_configs_do_not_explain_are_refused_too(source, shapes_of, toy_config):
    del source.variables["params"]["fpn"]["p6"]["bias"]
    source.variables["params"]["fpn"]["p8"] = {"bias": np.zeros(1)}
    plan = transfer.plan_transfer(source, shapes_of(NEW), NEW)
    with pytest.raises(ValueError, match=r"missing: fpn/p6/bias; unexpected: fpn/p8/bias\. Use"):
        transfer.check_transfer(plan, source, toy_config)


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_compiles(
    source, toy_config, tmp_path, monkeypatch
):
    checkpoint.write_imported(tmp_path / "run", source.variables, source.config, OLD)
    toy_config.init.update(source="checkpoint", path=str(tmp_path / "run"))
    toy_config.input.order = "rgb"
    optimizer = make_optimizer(toy_config)
    checked = assert_only_traced(initialization.random_train_state)
    monkeypatch.setattr(initialization, "random_train_state", checked)
    with pytest.raises(
        ValueError, match=r"config\.input\.order is bgr in the checkpoint and rgb in this"
    ):
        initialization.initial_train_state(toy_config, NEW, optimizer)
    toy_config.init.path = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        initialization.initial_train_state(toy_config, NEW, optimizer)


def assert_only_traced(function):
    """The function, failing unless it is traced only for shapes."""

    def checked(*arguments):
        result = function(*arguments)
        assert isinstance(result.step, jax.core.Tracer), "compiled"
        return result

    return checked


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_detector_is_fine_tuned_to_other_classes(
    source, toy_config, synthetic_dataset, tmp_path, capsys
):
    """Two steps in this process; frozen arrays stay bit for bit equal to the checkpoint's."""
    content = json.loads((synthetic_dataset / "instances.json").read_text())
    names = [category["name"] for category in content["categories"]]
    old = (Category(1, "dog"), Category(2, names[2]), Category(3, names[0]))
    checkpoint.write_imported(tmp_path / "old", source.variables, source.config, old)
    dataset = dict(
        source="coco",
        annotations=str(synthetic_dataset / "instances.json"),
        images=str(synthetic_dataset / "images"),
    )
    toy_config.data.train.update(dataset)
    toy_config.data.eval.update(dataset)
    toy_config.init.update(source="checkpoint", path=str(tmp_path / "old"))
    toy_config.model.frozen_stages = 2
    toy_config.update(total_steps=2, checkpoint_every=1, evaluate_every=2)
    toy_config.optimizer.warmup_steps = 0
    initial_states = []
    initial_train_state = initialization.initial_train_state

    def recorded(*arguments):
        initial_states.append(initial_train_state(*arguments))
        return jax.tree.map(lambda x: x.copy(), initial_states[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialization, "initial_train_state", recorded)
        loop.train(toy_config, tmp_path / "new", evaluates=False)
    printed = capsys.readouterr().out
    assert f"for 2 classes of the same name: {names[0]}, {names[2]}" in printed

    saved, start = flat(source.variables), flat(jax.device_get(initial_states[0].variables))
    after = checkpoint.load(tmp_path / "new")
    assert [category.name for category in after.categories] == names
    end = flat(after.variables)
    for path, value in start.items():
        if path not in (KERNEL, BIAS):
            np.testing.assert_array_equal(value, saved[path])
        if path[2].startswith(("stem", "stage2")):
            np.testing.assert_array_equal(end[path], saved[path])
    for path in (KERNEL, BIAS):
        old_rows, new_rows = (
            value.reshape(*value.shape[:-1], NUM_ANCHORS, -1)
            for value in (saved[path], start[path])
        )
        np.testing.assert_array_equal(new_rows[..., 2], old_rows[..., 1])
        np.testing.assert_array_equal(new_rows[..., 0], old_rows[..., 2])
        assert np.any(end[path] != start[path])

    # The run itself is resumed like any other; the weights are read once.
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    toy_config.update(total_steps=3)
    loop.train(toy_config, tmp_path / "new", evaluates=False)
    # Training cannot resume in the folder of the imported weights.
    with pytest.raises(ValueError, match="imported weights, which training cannot resume from"):
        loop.train(toy_config, tmp_path / "elsewhere", evaluates=False)
