"""The command `plan`: a config is compiled for devices that are not here."""

import json

import jax
import pytest

from retinanet_jax import sharding
from retinanet_jax.__main__ import main
from retinanet_jax.planning import report, topologies
from retinanet_jax.planning.programs import Program, Workload, train_state_shapes, tree_bytes
from retinanet_jax.planning.topologies import GIB, find_topology

TINY = "--config=configs/r50_fpn.py:tiny"


@pytest.fixture
def virtual_devices(monkeypatch):
    """Let four virtual CPU devices of this process stand for those of any topology."""
    monkeypatch.setattr("retinanet_jax.cli.plan.make_devices", lambda _: jax.devices()[:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give --topology=v5e-16; --help explains them."),
        (["--topology=v5e-4", "--num_classes=0"], "--num_classes=0 must be at least 1."),
        (
            ["--topology=v5e-4", "--buckets=96x128"],
            "--buckets=96x128 is no bucket of the config: 96x96.",
        ),
        (
            ["--topology=v5e-4", "--config.data.batch_size=6"],
            "data.batch_size=6 must be a multiple of the 4 devices that split the batch; try 8.",
        ),
        (
            ["--topology=v5e-4", "--mode=predict", "--config.data.eval_batch_size=6"],
            "data.eval_batch_size=6 must be a multiple of the 4 devices",
        ),
        (
            ["--topology=v5e-4", "--config.data.batch_size=12", "--config.optimizer.accumulate=2"],
            "12 must be a multiple of optimizer.accumulate=2 times the 4 devices",
        ),
        (["--topology=v5e-4", "--config.space=3"], "space=3 must divide the number of devices"),
    ],
)
@pytest.mark.usefixtures("virtual_devices")
def test_a_mistake_is_named_before_anything_is_compiled(error_line, arguments, message):
    assert message in error_line("plan", TINY, *arguments)


@pytest.mark.usefixtures("virtual_devices")
def test_an_existing_output_is_not_overwritten(error_line, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("mine")
    assert "exists" in error_line("plan", TINY, "--topology=v5e-4", f"--output={path}")
    assert path.read_text() == "mine"


def a_program(needed_gib, *, batch_size=32):
    return Program((800, 1344), batch_size, 12.0, int(needed_gib * GIB), {"peak": 1}, None)


def warnings_for(config, topology, program):
    mesh = sharding.make_mesh(1, devices=jax.devices()[:4])
    workload = Workload(config, "train", mesh, 80, 96, {})
    return " ".join(report.warnings(workload, [program], find_topology(topology)))


def test_a_tpu_is_best_with_multiples_of_eight_images(config):
    config.data.batch_size = 16
    text = warnings_for(config, "v5e-4", a_program(1))
    assert "4 images a chip is no multiple of 8" in text
    assert "--config.data.batch_size=32" in text
    assert "multiple of 8" not in warnings_for(config, "h100x4", a_program(1))


def test_parts_of_a_batch_need_less_memory_but_are_smaller(config):
    config.data.batch_size, config.shard_optimizer = 64, True
    text = warnings_for(config, "v5e-4", a_program(17))
    assert "--config.optimizer.accumulate=2 computes half as many images at once" in text
    assert "accumulate" not in warnings_for(config, "v5e-4", a_program(15))  # it fits
    config.optimizer.accumulate = 4
    text = warnings_for(config, "v5e-4", a_program(17))
    assert "--config.optimizer.accumulate=8" in text
    # 64 images on 4 chips in 4 parts are 4 a chip.
    assert "4 images a chip is no multiple of 8" in text
    assert "--config.data.batch_size=128" in text


def test_a_sharded_optimizer_is_proposed_where_it_lets_a_program_fit(config):
    # Momentum of 33.8 million trained parameters is .125 GiB, of which four devices save .094.
    config.data.batch_size = 32
    flag = "--config.shard_optimizer=True"
    assert flag in warnings_for(config, "v5e-4", a_program(15.8))
    assert flag not in warnings_for(config, "v5e-4", a_program(15.7))  # it fits as it is
    assert flag not in warnings_for(config, "v5e-4", a_program(16.0))


def test_the_fraction_of_a_gpu_that_jax_reserves_is_named_where_it_is_too_small(
    config, monkeypatch
):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    variable = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    assert variable in warnings_for(config, "h100x4", a_program(65))
    assert variable not in warnings_for(config, "h100x4", a_program(50))
    assert variable not in warnings_for(config, "h100x4", a_program(85))


def test_a_table_of_a_program_that_does_not_fit():
    program = Program((800, 1344), 64, 12.0, 126 * GIB, None, None)
    text = report.program_text(program, find_topology("v5e-4"), num_data=4)
    assert text.splitlines() == [
        "800 x 1344, batch size 64 (16 images a device)",
        "  memory a device  at least 126.00 of 15.75 GiB: does not fit",
        "  compile time     12 s",
    ]


@pytest.mark.slow  # 50 s of a processor
def test_a_config_is_compiled_for_tpus_that_are_not_here(program, tmp_path):
    if not topologies.has_compiler("tpu"):
        pytest.skip("libtpu is not installed: pip install 'retinanet_jax[tpu]'")
    output = tmp_path / "plan.json"
    arguments = (TINY, "--topology=v5e:2x2", "--largest_batch=none", f"--output={output}")
    status, stdout, stderr = program.run("plan", *arguments)
    assert status == 0, stderr
    assert "of 15.75 GiB: fits" in stdout
    assert "Nothing was run on these devices." in stdout
    written = json.loads(output.read_text())
    assert written["topology"]["devices"] == 4
    (compiled,) = written["programs"]
    assert compiled["fits"]
    groups = compiled["costs"]["groups"]
    assert {"input", "backbone", "fpn", "heads", "targets", "loss", "optimizer"} <= set(groups)
    assert all(groups[name]["flops"] > 0 for name in ("backbone", "fpn", "heads"))
    # The gradients of all trained parameters are summed over the devices.
    exchanged = sum(c["size"] for c in compiled["costs"]["collectives"])
    assert exchanged > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("train", marks=pytest.mark.exhaustive), "predict"])
@pytest.mark.usefixtures("virtual_devices")
def test_everything_that_was_computed_is_written(mode, tmp_path):
    """With the compiler for CPUs, which every machine has."""
    output = tmp_path / "plan.json"
    arguments = [TINY, "--topology=v5e-4", f"--mode={mode}", "--largest_batch=estimate"]
    assert main(["retinanet-jax", "plan", *arguments, f"--output={output}"]) == 0
    written = json.loads(output.read_text())
    (compiled,) = written["programs"]
    assert compiled["bucket"] == [96, 96]
    assert compiled["memory"]["peak"] > 0
    assert written["largest_batch"]["batch_size"] > 4
    assert ("detections" in compiled["costs"]["groups"]) == (mode == "predict")
    assert written["config"]["data"]["batch_size"] == 4


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_sharded_optimizer_needs_less_memory(toy_config):
    """With the compiler for CPUs: of four parts of the optimizer's state a device has one."""
    mesh = sharding.make_mesh(1, devices=jax.devices()[:4])

    def bytes_of_arguments(*, is_sharded):
        toy_config.shard_optimizer = is_sharded
        workload = Workload(toy_config, "train", mesh, 3, 8, {})
        return workload.compile((64, 64), 4).memory["arguments"]

    state = tree_bytes(train_state_shapes(toy_config, 3).opt_state)
    saved = bytes_of_arguments(is_sharded=False) - bytes_of_arguments(is_sharded=True)
    # Three quarters, but for arrays with no side that four devices can split: in this toy, many.
    assert 0.5 * state < saved <= 0.75 * state
