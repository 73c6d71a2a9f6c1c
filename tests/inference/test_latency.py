"""Prepared variables have the detections of the network's own, in a smaller program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import modeling
from retinanet_jax.compilation import known_options
from retinanet_jax.data.batch import Batch
from retinanet_jax.inference import latency

NUM_CLASSES = 3


def random_batch() -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    sizes = np.array([[64, 64], [40, 56]], np.float32)
    return Batch.of_images(images, sizes=sizes, scales=np.ones((2, 2), np.float32))


def random_variables(config):
    """Return variables with norms that differ from the identity, and scores around .5."""
    variables = modeling.initialize(config, NUM_CLASSES, seed=0)
    key = jax.random.key(1)
    variables["batch_stats"] = jax.tree.map(
        lambda x: x + 0.3 * jax.random.uniform(key, x.shape), variables["batch_stats"]
    )
    predict = variables["params"]["classification_head"]["predict"]
    predict["bias"] = jnp.zeros_like(predict["bias"])
    return variables


@pytest.fixture
def like_gpu(monkeypatch):
    """The preparation for a GPU, on this platform; programs have no options of GPUs."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        patch.setattr(latency, "OPTIONS", {})
        yield


def prepare(config, variables):
    model = modeling.build_model(config, NUM_CLASSES, platform="cpu")
    return latency.prepare_detect(variables, model, config)


def detect(config, variables, batch):
    """Return the detections without preparation."""
    model = modeling.build_model(config, NUM_CLASSES, platform="cpu")
    return jax.jit(lambda v, b: modeling.detect(v, b, model, config))(variables, batch)


@pytest.mark.parametrize(
    ("norm", "head_norm", "dtype"),
    [
        ("frozen_batch", "none", "float32"),
        ("frozen_batch", "group", "float32"),
        ("frozen_batch", "none", "bfloat16"),
        ("batch", "none", "bfloat16"),
        ("group", "group", "float32"),
    ],
)
@pytest.mark.usefixtures("like_gpu")
def test_prepared_variables_have_the_detections_of_the_network(toy_config, norm, head_norm, dtype):
    toy_config.dtype = dtype
    toy_config.model.update(norm=norm, head_norm=head_norm)
    toy_config.detections.score_threshold = 0.0
    variables, batch = random_variables(toy_config), random_batch()
    plain = detect(toy_config, variables, batch)
    model = modeling.build_model(toy_config, NUM_CLASSES, platform="cpu")
    fast = latency.compile_detect(variables, model, toy_config)(batch)
    assert np.sum(plain.mask) > 20
    assert len(np.unique(np.asarray(plain.scores))) > 10
    np.testing.assert_array_equal(fast.classes, plain.classes)
    np.testing.assert_allclose(fast.scores, plain.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast.boxes, plain.boxes, rtol=1e-5, atol=2e-3)


def test_without_a_gpu_nothing_is_prepared(toy_config):
    variables = {"params": {}}
    assert prepare(toy_config, variables)[1] is variables


@pytest.mark.usefixtures("like_gpu")
def test_frozen_norms_are_one_array_and_kernels_have_the_compute_dtype(toy_config):
    toy_config.dtype, toy_config.model.norm = "bfloat16", "frozen_batch"
    variables = random_variables(toy_config)
    function, prepared = prepare(toy_config, variables)
    scales = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
        if path[-1].key == "scale"
    ]
    assert prepared.norms.shape == (2 * sum(map(len, scales)),)
    assert not jax.tree.leaves(prepared.variables["batch_stats"])
    dtypes = {
        path[-1].key: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(prepared.variables)
    }
    assert dtypes == {"kernel": jnp.bfloat16, "bias": jnp.float32}
    # What depends only on the weights is not computed in the program.
    assert "rsqrt" not in jax.jit(function).lower(prepared, random_batch()).as_text()


@pytest.mark.usefixtures("like_gpu")
def test_a_gpu_reads_the_kernels_in_the_layout_of_its_convolutions(toy_config):
    variables, batch = random_variables(toy_config), random_batch()
    function, prepared = prepare(toy_config, variables)
    program = jax.jit(function).lower(prepared, batch).compile()
    formats = program.input_formats[0][0].variables["params"]["box_head"]["predict"]
    assert formats["kernel"].layout.major_to_minor == (3, 0, 1, 2)


def test_xla_knows_the_options():
    assert known_options(latency.OPTIONS) == latency.OPTIONS
    doubled = jax.jit(lambda x: 2 * x, compiler_options=dict(latency.OPTIONS))
    np.testing.assert_array_equal(doubled(np.arange(3)), [0, 2, 4])
    unknown = jax.jit(lambda x: 2 * x, compiler_options={"xla_gpu_no_such_flag": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        unknown(np.arange(3))
