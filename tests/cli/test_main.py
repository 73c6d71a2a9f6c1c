"""The door: every mistake ends in one line that names the culprit and the fix."""

import jax
import pytest

from retinanet_jax import main
from retinanet_jax.cli import common
from retinanet_jax.configs import r50_fpn
from retinanet_jax.utils import files

TINY = "--config=configs/shapes.py:tiny"
BATCH = "--config.data.batch_size=8"  # one for each virtual device


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def config_file(tmp_path):
    """`config_file(line)`: the path of a config that differs from the paper's by one line."""

    def write(line: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(
            "from retinanet_jax.configs import r50_fpn\n\n\n"
            "def get_config():\n"
            "    config = r50_fpn.get_config('tiny').unlock()\n"
            f"    {line}\n"
            "    return config\n"
        )
        return str(path)

    return write


@pytest.mark.parametrize(
    ("flag", "culprit"),
    [
        ("--config.optimizer.leraning_rate=0.1", "--config.optimizer.leraning_rate: there is no"),
        ("--config.optimiser.learning_rate=0.1", 'no such field. Did you mean "optimizer"'),
        ("--config.total_step=7", 'Did you mean "total_steps"'),
        ("--config.total_steps=many", "total_steps"),
        ("--config.data.buckets=3", "config.data.buckets=(3,) must be of the kind of ((800, 928)"),
        ("--config.batch_size=2", "no such field. Did you mean --config.data.batch_size?"),
        ("--wrokdir=x", "wrokdir"),
        ("--mode=eval", "train_and_evaluate|train|evaluate"),
    ],
)
def test_a_mistaken_flag_is_named(refusal, tmp_path, flag, culprit):
    assert culprit in refusal(main, TINY, f"--workdir={tmp_path / 'run'}", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "config.optimizer.leraning_rate = 0.1",
            "config.optimizer.leraning_rate is not a field of configs/r50_fpn.py; "
            "did you mean config.optimizer.learning_rate?",
        ),
        ("config.xyzzy = 1", "config.xyzzy is not a field of configs/r50_fpn.py."),
        (
            "del config.loss.gamma",
            "config.loss.gamma is missing; configs/r50_fpn.py has",
        ),
        (
            "config.lock().total_step = 1",
            'AttributeError: Key "total_step" does not exist and cannot be added since the config '
            'is locked. Did you mean "total_steps" instead of "total_step"?',
        ),
        ('{}["a"]', "error: --config: KeyError: a"),
    ],
)
def test_a_misspelt_field_in_a_file_is_named(refusal, config_file, tmp_path, line, told):
    workdir = tmp_path / "run"
    assert told in refusal(main, f"--config={config_file(line)}", f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("configs/shapes.py:tinny", "'tinny'"),
        ("configs/shpes.py", "configs/shpes.py"),
    ],
)
def test_a_config_that_is_not_there_is_named(refusal, tmp_path, config, told):
    assert told in refusal(main, f"--config={config}", f"--workdir={tmp_path}")


def test_without_a_workdir_nothing_begins(refusal):
    assert "no --workdir" in refusal(main, TINY)


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_workdir_that_cannot_be_written_is_named(refusal, tmp_path, below):
    (tmp_path / "file").write_text("")
    line = refusal(main, TINY, f"--workdir={tmp_path / below}")
    assert f"--workdir={tmp_path / below} can't be written (" in line
    assert "give another folder" in line


def test_a_workdir_without_permission_is_named(tmp_path, monkeypatch):
    """Whoever runs the tests as root may write anywhere."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match="can't be written .Permission denied.; give another folder"):
        main.writable(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--config=configs/finetune.py", BATCH],
            "no data: source='coco' needs --config.data.train.annotations=",
        ),
        (["--config=configs/r50_fpn.py"], "instances_train2017.json"),
        ([TINY, "--mode=evaluate"], "no checkpoint here"),
        (
            ["--config=configs/r50_fpn.py:tinny"],
            "Error whilst parsing config file: config argument 'tinny' is unknown; this config",
        ),
        ([TINY, "--config.space=3"], "space=3 must divide the number of devices of a host (8)"),
        ([TINY, "--config.data.batch_size=5"], "data.batch_size=5 must be a multiple of the 8"),
    ],
)
def test_a_mistake_in_the_recipe_ends_in_one_line(refusal, tmp_path, arguments, told):
    assert told in refusal(main, *arguments, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num_processes=2"], "--num_processes=2 is of use with --distributed only; add it."),
        (["--process_id=0"], "--process_id=0 is of use with --distributed only"),
        (["--distributed"], "--distributed found no hosts to join (nobody here); by hand they are"),
    ],
)
def test_hosts_that_cannot_be_joined_are_told(refusal, tmp_path, monkeypatch, arguments, told):
    def initialize(**_):
        raise ValueError("nobody here")

    monkeypatch.setattr(main.jax.distributed, "initialize", initialize)
    assert told in refusal(main, TINY, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_told_with_the_script_that_writes_them(refusal, drawn, tmp_path):
    data = "--config.data.train"
    line = refusal(
        main,
        "--config=configs/finetune.py",
        f"--workdir={tmp_path / 'run'}",
        f"{data}.annotations={drawn / 'instances.json'}",
        f"{data}.images={drawn / 'images'}",
        BATCH,
        f"--config.init.path={tmp_path / 'absent.npz'}",
    )
    assert f"{tmp_path / 'absent.npz'} does not exist; scripts/get_resnet50.py" in line


def test_a_traceback_is_shown_on_request(refusal, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        refusal(main, TINY, "--mode=evaluate", f"--workdir={tmp_path}", "--traceback")


def test_a_word_that_is_no_flag_is_told():
    with pytest.raises(SystemExit, match="error: 'runs/x' is no flag; flags are --NAME=VALUE"):
        common.parse_flags(["program", "--workdir", "runs", "runs/x"])


def test_too_small_a_memory_is_told_with_what_to_lower():
    told = pytest.raises(SystemExit, match="too small for this run; lower --batch_size or")
    with told, common.errors_in_one_line(smaller="--batch_size"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
    # A defect of ours keeps its traceback.
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), common.errors_in_one_line():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_after_an_interrupt_it_is_said_how_to_go_on(capsys):
    ended = pytest.raises(SystemExit, match=str(common.INTERRUPTED))
    with ended, common.errors_in_one_line(stopped="stopped; run it again"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; run it again\n"


def test_deterministic_operations_are_asked_of_xla(refusal, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    refusal(main, TINY, "--deterministic")
    assert main.os.environ["XLA_FLAGS"] == (
        "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    )


def test_the_mode_decides_what_is_done(monkeypatch, tmp_path):
    from retinanet_jax.evaluation import evaluator
    from retinanet_jax.training import loop

    done = []
    monkeypatch.setattr(main.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(loop, "train", lambda *_, evaluates: done.append(("train", evaluates)))
    monkeypatch.setattr(evaluator, "evaluate", lambda *_: done.append("evaluate"))
    for mode in ("train_and_evaluate", "train", "evaluate"):
        main.run(r50_fpn.get_config("tiny"), str(tmp_path / "run"), mode)
    assert done == [("train", True), ("train", False), "evaluate"]
    assert (tmp_path / "run").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("config", [[TINY], []])
def test_the_program_itself_ends_with_status_1_and_no_traceback(program, tmp_path, config):
    status, stdout, stderr = program.run(
        "main", *config, f"--workdir={tmp_path}", "--config.optimizer.leraning_rate=0.1"
    )
    assert (status, stdout) == (1, "")
    (line,) = stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "leraning_rate" in line


@pytest.mark.slow
def test_another_model_or_other_classes_than_the_checkpoints_are_refused(tiny_run, program):
    """Resuming and evaluating, each in the working directory of a finished run."""
    command = ("main", *tiny_run.arguments, f"--workdir={tiny_run.workdir}")
    for more, told in (
        (("--config.model.fpn_channels=16",), "trained with config.model.fpn_channels=32"),
        (("--mode=evaluate", "--config.input.order=bgr"), "trained with config.input.order=rgb"),
        (("--config.optimizer.name=sgd",), "optimizer"),
    ):
        status, _, stderr = program.run(*command, *more)
        assert status == 1
        assert "Traceback" not in stderr
        (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert told in line
