"""The state before the first step: the weights of `config.init`, and errors before compiling."""

import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.training import initialization
from retinanet_jax.training.optimizer import make_optimizer


def test_an_imported_backbone_replaces_only_the_random_backbone():
    variables = {
        "params": {"backbone": {"a": jnp.zeros(2)}, "fpn": {"b": jnp.zeros(1)}},
        "batch_stats": {"backbone": {"mean": jnp.zeros(2)}},
    }
    backbone = {
        "params": {"a": np.ones(2)},
        "batch_stats": {"mean": np.ones(2)},
    }
    result = initialization.replace_backbone(variables, backbone, "w.npz")
    assert result["params"]["backbone"]["a"].tolist() == [1, 1]
    assert result["params"]["fpn"]["b"].tolist() == [0]
    assert result["batch_stats"]["backbone"]["mean"].tolist() == [1, 1]
    backbone["params"]["a"] = np.ones(3)
    with pytest.raises(ValueError, match=r"w\.npz: .*params/a \(3,\) \(config: \(2,\)\)"):
        initialization.replace_backbone(variables, backbone, "w.npz")


def test_a_missing_weights_file_is_an_error_before_anything_compiles(config, tmp_path, monkeypatch):
    config.init.path = str(tmp_path / "absent.npz")
    monkeypatch.setattr(initialization, "initialize", lambda *_: pytest.fail("compiled"))
    with pytest.raises(FileNotFoundError, match=r"absent\.npz does not exist; scripts/get_resnet"):
        initialization.initial_train_state(config, COCO_CATEGORIES, make_optimizer(config))
