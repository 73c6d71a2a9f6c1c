"""Weights are read from a checkpoint in any wrapper, and have the network's own names."""

import pickle

import numpy as np
import pytest
import torch_pickles
from torch_pickles import Call, Name, tensors

from retinanet_jax.weights import load_arrays
from retinanet_jax.weights.wrappers import WEIGHTS_KEYS

DETECTOR = {
    "backbone.body.conv1.weight": np.float32([1]),
    "backbone.body.layer1.0.conv1.weight": np.float32([2]),
    "backbone.body.layer2.0.conv1.weight": np.float32([3]),
    "head.classification_head.cls_logits.bias": np.float32([4]),
}
DETECTRON2 = {"backbone.bottom_up.res2.0.conv1.weight": np.float32([2]), "head.x": np.float32([1])}
CLASSIFIER = {"conv1.weight": np.float32([1]), "layer1.0.conv1.weight": np.float32([2])}
CONVERTED = {"stem.conv1.weight": np.float32([1]), "res2.0.conv1.weight": np.float32([2])}
MODELS = {
    "torchvision": DETECTOR,
    "detectron2": DETECTRON2,
    "torchvision classifier": CLASSIFIER,
    "detectron2 classifier": CONVERTED,
}
AVERAGED_KEYS = (
    *("model_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema_state"),
    *("swa_model", "averaged_model", "_average_model", "net.EMA", "model_avg"),
)
AVERAGED = {name: value + 10 for name, value in DETECTOR.items()}


@pytest.fixture
def read(tmp_path):
    """`read(content)`: the arrays of a checkpoint of PyTorch."""

    def read(content):
        torch_pickles.write_zip(tmp_path / "w.pth", content)
        return load_arrays(tmp_path / "w.pth")

    return read


@pytest.fixture
def warnings(caplog):
    """`warnings()`: the warnings so far, each one line."""
    return lambda: [record.getMessage() for record in caplog.records]


def prefixed(prefix, arrays=DETECTOR):
    return {prefix + name: value for name, value in arrays.items()}


def assert_equal(loaded, expected):
    assert list(loaded) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize("key", [*AVERAGED_KEYS, *WEIGHTS_KEYS, "detector"])
def test_the_state_dict_is_read_under_any_usual_key(read, warnings, key):
    rest = {"optimizer": {"state": {0: tensors({"m": np.zeros(1)})}, "param_groups": [{}]}}
    rest |= {"epoch": 3, "best": 0.4, "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "x": None}
    assert_equal(read({**rest, key: tensors(DETECTOR)}), DETECTOR)
    if key != "detector":
        assert_equal(read({key: {**rest, "state_dict": tensors(DETECTOR)}, **rest}), DETECTOR)
    assert not warnings()


def test_numbers_of_the_random_generator_next_to_a_state_dict_are_not_weights(read):
    assert_equal(
        read({"rng": tensors({"": np.zeros(3)})[""], "model": tensors(DETECTOR)}), DETECTOR
    )


def test_parts_that_were_saved_apart_are_joined(read):
    parts = {
        part: {n.removeprefix(f"{part}."): v for n, v in DETECTOR.items() if n.startswith(part)}
        for part in ("backbone", "head")
    }
    assert_equal(read({part: tensors(arrays) for part, arrays in parts.items()}), DETECTOR)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.model.", "_orig_mod.", "retinanet."]
)
@pytest.mark.parametrize("model", MODELS)
def test_a_prefix_of_all_names_is_removed(read, warnings, prefix, model):
    arrays = MODELS[model]
    assert_equal(read(tensors(arrays)), arrays)
    assert_equal(read({"state_dict": tensors(prefixed(prefix, arrays))}), arrays)
    averaged = prefixed(f"module.{prefix}", arrays) | {"n_averaged": np.int64(3)}
    assert_equal(read({"ema": tensors(averaged)}), arrays)
    assert not warnings()


@pytest.mark.parametrize(
    "wrapper",
    ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_fsdp_wrapped_module._orig_mod."],
)
def test_the_prefix_of_a_wrapped_part_is_removed_inside_names(read, warnings, wrapper):
    arrays = {
        name.replace("backbone.", f"backbone.{wrapper}", 1).replace(
            "layer1.", "layer1._checkpoint_wrapped_module.", 1
        ): value
        for name, value in prefixed("_orig_mod.module._orig_mod._orig_mod.").items()
    }
    assert_equal(read(tensors(arrays)), DETECTOR)
    assert not warnings()


@pytest.mark.parametrize("suffix", ["npz", "pkl", "safetensors"])
def test_a_prefix_is_removed_in_files_of_any_format(tmp_path, suffix):
    arrays, path = prefixed("module."), tmp_path / f"w.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    elif suffix == "pkl":
        path.write_bytes(pickle.dumps({"model": arrays}))
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    loaded = load_arrays(path)
    assert_equal({name: loaded[name] for name in DETECTOR}, DETECTOR)
    assert len(loaded) == len(DETECTOR)


def test_names_without_a_resnet_keep_what_no_wrapper_has_added(read):
    arrays = {"a.weight": np.float32([1]), "b.weight": np.float32([2])}
    assert_equal(read(tensors(prefixed("module.", arrays))), arrays)
    assert_equal(read({"model": tensors(prefixed("x.", arrays))}), prefixed("x.", arrays))


def test_a_network_next_to_other_modules_is_read_and_the_others_are_named(read, warnings):
    others = {"loss.weight": np.zeros(3), "metric.count": np.int64(2)}
    assert_equal(read({"state_dict": tensors(prefixed("model.") | others)}), DETECTOR)
    (warning,) = warnings()
    assert "w.pth: the arrays under 'state_dict.model.' are read; others are not of" in warning
    assert warning.endswith("network: 'loss.weight'.")  # a counter is no part of a network


@pytest.mark.parametrize("averaged", AVERAGED_KEYS)
def test_averaged_weights_are_read_where_there_are_both(read, warnings, averaged):
    both = {"model": tensors(DETECTOR), averaged: tensors(prefixed("module.", AVERAGED))}
    assert_equal(read(both), AVERAGED)
    (warning,) = warnings()
    assert (
        f"w.pth has several networks: the arrays under '{averaged}.' are read, and not those "
        "under 'model.'." in warning
    )


def test_averaged_weights_are_read_where_there_are_both_in_a_state_dict(read, warnings):
    counter = {"ema_model.n_averaged": np.int64(3)}
    arrays = prefixed("model.") | prefixed("ema_model.module.", AVERAGED) | counter
    assert_equal(read({"state_dict": tensors(arrays)}), AVERAGED)
    (warning,) = warnings()
    assert "under 'state_dict.ema_model.' are read, and not those under 'state_dict.mo" in warning


def test_averages_that_lightning_keeps_are_read(read):
    """Its callback exchanges the two state dicts, others keep the average in their own state."""
    raw, averaged = tensors(prefixed("model.")), tensors(prefixed("model.", AVERAGED))
    counter = {"averaging_state": tensors({"n_averaged": np.int64(3)})}
    assert_equal(read({"state_dict": averaged, "current_model_state": raw, **counter}), AVERAGED)
    assert_equal(
        read({"state_dict": raw, "callbacks": {"EMA": {"ema_weights": averaged}}}), AVERAGED
    )


def test_several_averages_are_an_error_that_names_them(read):
    with pytest.raises(ValueError, match=r"several networks, .* 'ema\.', 'model\.', 'swa\.'; save"):
        read({key: tensors(DETECTOR) for key in ("model", "ema", "swa")})


def test_an_average_without_names_is_mentioned(read, warnings):
    """As torch_ema saves it: a list of parameters."""
    average = {"decay": 0.9, "shadow_params": [*tensors({"": np.zeros(3)}).values()]}
    assert_equal(read({"model": tensors(DETECTOR), "ema": average}), DETECTOR)
    (warning,) = warnings()
    assert "under 'model.' are read; averages under 'ema.shadow_params.' are not, since" in warning


@pytest.mark.parametrize("wrap", [lambda x: [x, 3], lambda x: (3, x), lambda x: {"net": {"b": x}}])
def test_a_state_dict_is_read_at_any_depth(read, warnings, wrap):
    assert_equal(read(wrap(tensors(DETECTOR))), DETECTOR)
    assert not warnings()


def test_the_state_of_an_optimizer_by_names_is_no_network(read):
    state = {name: tensors({"exp_avg": value}) for name, value in DETECTOR.items()}
    assert_equal(read({"model": tensors(DETECTOR), "optimizer": {"state": state}}), DETECTOR)


def test_numbers_and_text_among_the_weights_are_left_out(read):
    rest = {"epoch": 3, "classes": ["a"], "x": None, "args": Call(Name("argparse", "Namespace"))}
    assert_equal(read(tensors(DETECTOR) | rest | tensors({"step": np.int64(3)})), DETECTOR)


def test_an_empty_average_is_passed_over(read, warnings):
    for empty in (None, {}, {"decay": 0.9, "shadow": None}):
        assert_equal(read({"model": tensors(DETECTOR), "ema": empty}), DETECTOR)
    assert not warnings()


def test_several_networks_are_an_error_that_names_them(read):
    with pytest.raises(
        ValueError, match=r"w\.pth has several networks, .*student\.', 'state_dict\.teacher\.';"
    ):
        read({"state_dict": tensors(prefixed("student.") | prefixed("teacher."))})


def test_the_extra_state_of_modules_is_no_array(read):
    assert_equal(read({"model": {**tensors(DETECTOR), "head._extra_state": {"x": 1}}}), DETECTOR)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1], "contains a list and not arrays by name"),
        ({}, "contains a dict and not arrays by name"),
        ({"epoch": 3}, "contains a dict and not arrays by name; give a file with a dict of arrays"),
        ({"model": {"lr": 0.1}}, "contains a dict and not arrays by name"),
        (
            {**tensors(DETECTOR), "head.weight": Call(Name("torch", "sparse"))},
            "contains a torch.sparse under 'head.weight'; only arrays by name are read",
        ),
    ],
)
def test_anything_but_arrays_by_name_is_an_error(read, content, match):
    with pytest.raises(ValueError, match=match):
        read(content)
