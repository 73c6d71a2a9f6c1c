"""The command line: every mistake ends the program with one line that names its cause and fix."""

import os
import subprocess
import sys

import jax
import pytest

from retinanet_jax.__main__ import COMMANDS, main
from retinanet_jax.cli import common, configs, predict, train
from retinanet_jax.config import config_files, load_config
from retinanet_jax.utils import files

TINY = "--config=configs/shapes.py:tiny"
BATCH = "--config.data.batch_size=8"  # one image for each virtual device


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
    ("flag", "message"),
    [
        (
            "--config.optimizer.leraning_rate=0.1",
            "config.optimizer.leraning_rate is not a config field; did you mean "
            "config.optimizer.learning_rate? config.optimizer has accumulate, clip_norm, "
            "decay_biases, drop_factor, drops, ema_decay, layer_decay, learning_rate, ",
        ),
        ("--config.optimiser.lr=1", "config.optimizer."),  # codespell:ignore
        ("--config.total_step=7", "did you mean config.total_steps?"),
        ("--config.total_steps=many", "--config.total_steps=many must be an integer."),
        ("--config.total_steps=1e3", "--config.total_steps=1e3 must be an integer."),
        ("--config.loss.gamma=x", "--config.loss.gamma=x must be a number."),
        ("--config.data.flip=maybe", "--config.data.flip=maybe must be true or false."),
        ("--config.data.scale_jitter=None", "config.data.scale_jitter=(None,) must have elements"),
        ("--config.data.short_sides=a", "config.data.short_sides=('a',) must have elements"),
        (
            "--config.data.buckets=3",
            "config.data.buckets=(3,) must have elements of the type of ((800, 928)",
        ),
        ("--config.batch_size=2", "did you mean config.data.batch_size?"),
        ("--config.learning_rate=2", "did you mean config.optimizer.learning_rate?"),
        ("--config.xyzzy=2", "config.xyzzy is not a config field. config has anchors, checkpoint_"),
        ("--config.optimizer=sgd", "config.optimizer is not a config field; did you mean config.o"),
        (
            "--config.data.quarter_turns=True",
            "config.data.quarter_turns is called config.data.rot90 since retinanet_jax 0.2.0.",
        ),
        (
            "--config.data.validation_share=.2",
            "config.data.validation_share is called config.data.validation_fraction since",
        ),
        ("--wrokdir=x", "wrokdir"),
        ("--mode=eval", "train_and_evaluate|train|evaluate"),
    ],
)
def test_a_wrong_flag_is_named(error_line, tmp_path, flag, message):
    assert message in error_line("train", TINY, f"--workdir={tmp_path / 'run'}", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [None, 2.0, "(1, 2)", ("a", "b"), ((1, 2), (3, 4)), (1, (2, 3))])
def test_a_wrong_value_in_a_config_file_is_named(error_line, tmp_path, value):
    path = tmp_path / "config.py"
    path.write_text(
        "from retinanet_jax.configs import shapes\n"
        "def get_config(argument=''):\n"
        "    config = shapes.get_config('tiny')\n"
        "    with config.unlocked(), config.ignore_type():\n"
        f"        config.data.scale_jitter = {value!r}\n"
        "    return config\n"
    )
    line = error_line("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert line.startswith(f"error: config.data.scale_jitter={value} must have elements of the typ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.optimizer.leraning_rate = 0.1",
            "config.optimizer.leraning_rate is not a config field; "
            "did you mean config.optimizer.learning_rate?",
        ),
        ("config.xyzzy = 1", "config.xyzzy is not a config field. config has anchors"),
        (
            "config.data.validation_share = 0.5",
            "config.data.validation_share is called config.data.validation_fraction since",
        ),
        ("del config.loss.gamma", "config.loss.gamma is missing; start from config.default_config"),
        (
            "config.lock().total_step = 1",
            'AttributeError: Key "total_step" does not exist and cannot be added since the config '
            'is locked. Did you mean "total_steps" instead of "total_step"?',
        ),
        ('{}["a"]', "error: --config: KeyError: a"),
    ],
)
def test_a_wrong_field_in_a_config_file_is_named(error_line, config_file, tmp_path, line, message):
    workdir = tmp_path / "run"
    assert message in error_line("train", f"--config={config_file(line)}", f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/shapes.py:tinny", "'tinny'"),
        (
            "configs/shpes.py",
            "configs/shpes.py: no such file; the package has configs/ablations",
        ),
        ("elsewhere/shapes.py", "elsewhere/shapes.py: no such file"),
    ],
)
def test_a_missing_config_is_named(error_line, tmp_path, config, message):
    assert message in error_line("train", f"--config={config}", f"--workdir={tmp_path}")


@pytest.mark.parametrize("spec", ["configs/shapes.py:tiny", "shapes.py:tiny"])
def test_packaged_configs_load_from_any_folder(monkeypatch, tmp_path, spec):
    expected = load_config("configs/shapes.py:tiny")
    monkeypatch.chdir(tmp_path)
    assert load_config(spec).to_json() == expected.to_json()


def test_a_config_in_the_working_folder_comes_first(monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes.py").write_text("def get_config(arg):\n    return arg\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/shapes.py:mine") == "mine"


def test_the_config_flag_accepts_a_space_for_the_equals_sign(error_line):
    assert "no --workdir" in error_line("train", "--config", "configs/shapes.py:tiny")


def test_a_workdir_is_required(error_line):
    assert "no --workdir" in error_line("train", TINY)


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_workdir_that_cannot_be_written_is_named(error_line, tmp_path, below):
    (tmp_path / "file").write_text("")
    line = error_line("train", TINY, f"--workdir={tmp_path / below}")
    assert f"--workdir={tmp_path / below} cannot be written (" in line
    assert "give another folder" in line


def test_a_workdir_with_metrics_of_another_program_is_left_as_it_is(error_line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert "contains a metrics.jsonl that no run" in error_line(
        "train", TINY, f"--workdir={tmp_path}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_workdir_without_permission_is_named(tmp_path, monkeypatch):
    """The tests may run as root, who may write anywhere."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        OSError, match=r"cannot be written .Permission denied.; give another folder"
    ):
        train.create_workdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/finetune.py", BATCH],
            "source='coco' requires --config.data.train.annotations=",
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
def test_a_mistake_in_the_config_ends_in_one_line(error_line, tmp_path, arguments, message):
    assert message in error_line("train", *arguments, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "--num_processes=2 is only used with --distributed; add it."),
        (["--process_id=0"], "--process_id=0 is only used with --distributed"),
        (["--distributed"], "--distributed found no hosts to join (nobody here); without a cluste"),
    ],
)
def test_hosts_that_cannot_be_joined_are_an_error(
    error_line, tmp_path, monkeypatch, arguments, message
):
    def initialize(*_, **__):
        raise ValueError("nobody here")

    monkeypatch.setattr(train.jax.distributed, "initialize", initialize)
    assert message in error_line("train", TINY, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_named_with_those_that_can_be_had(
    error_line, synthetic_dataset, tmp_path
):
    data = "--config.data.train"
    line = error_line(
        "train",
        "--config=configs/finetune.py:imagenet",
        f"--workdir={tmp_path / 'run'}",
        f"{data}.annotations={synthetic_dataset / 'instances.json'}",
        f"{data}.images={synthetic_dataset / 'images'}",
        BATCH,
        f"--config.init.path={tmp_path / 'absent.npz'}",
    )
    assert f"{tmp_path / 'absent.npz'} does not exist, and is no name of published" in line
    assert "or a name such as torchvision_v2 or resnet50." in line


def test_a_traceback_is_printed_on_request(error_line, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        error_line("train", TINY, "--mode=evaluate", f"--workdir={tmp_path}", "--traceback")


def test_an_argument_that_is_not_a_flag_is_an_error(error_line):
    line = error_line("train", "--workdir", "runs", "runs/x")
    assert line == "error: 'runs/x' is not a flag; flags are --NAME=VALUE, without spaces."


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train", "evaluate", "plan", "configs"}))
def test_a_command_names_the_flags_it_needs(error_line, name):
    line = error_line(name)
    assert line.startswith("error: give --")
    assert "--output=" in line


def test_too_small_a_memory_names_the_flag_to_lower():
    error = pytest.raises(SystemExit, match="too small for this run; lower --batch_size or")
    with error, common.errors_in_one_line(predict.COMMAND, traceback=False):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
    # A defect of ours keeps its traceback.
    defect = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL")
    with defect, common.errors_in_one_line(predict.COMMAND, traceback=False):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_an_interrupt_prints_how_to_resume(capsys):
    ended = pytest.raises(SystemExit, match="130")
    with ended, common.errors_in_one_line(train.COMMAND, traceback=False):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == (
        "stopped; the same command resumes from the newest checkpoint\n"
    )


def test_deterministic_operations_are_requested_of_xla(error_line, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    error_line("train", TINY, "--deterministic")
    assert os.environ["XLA_FLAGS"] == (
        "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    )


@pytest.fixture
def done(monkeypatch) -> list:
    """The calls of `train` and `evaluate`, which are replaced by functions that do nothing."""
    from retinanet_jax.evaluation import evaluator
    from retinanet_jax.training import loop

    calls = []
    monkeypatch.setattr(train.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(
        loop, "train", lambda *_, evaluates, **__: calls.append(("train", evaluates))
    )
    monkeypatch.setattr(evaluator, "evaluate", lambda *_: calls.append("evaluate"))
    return calls


def test_the_mode_decides_what_is_done(done, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    for mode in ("train_and_evaluate", "train", "evaluate"):
        assert main(["retinanet-jax", "train", TINY, workdir, f"--mode={mode}"]) == 0
    assert main(["retinanet-jax", "evaluate", TINY, workdir]) == 0
    assert done == [("train", True), ("train", False), "evaluate", "evaluate"]
    assert (tmp_path / "run").is_dir()


def test_flags_of_jax_are_applied(done, tmp_path, monkeypatch):
    applied = []
    monkeypatch.setattr(
        type(jax.config), "parse_flags_with_absl", lambda _: applied.append(sys.argv)
    )
    arguments = ["train", TINY, f"--workdir={tmp_path}", "--jax_debug_nans=True"]
    assert main(["retinanet-jax", *arguments]) == 0
    assert len(applied) == len(done) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_in_full_sentences(name, capsys):
    assert main(["retinanet-jax", name, "--help"]) == 0
    usage, description, *flags = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: retinanet-jax {name}")
    assert description[0].isupper()
    assert description.endswith(".")
    for paragraph in "\n".join(flags).split("\n  --")[1:]:
        assert paragraph.rstrip().endswith("."), paragraph


def test_the_help_lists_every_command(capsys):
    assert main(["retinanet-jax", "--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert name in out
        assert summary in out


def test_the_error_for_an_unknown_command_lists_all_commands():
    with pytest.raises(
        SystemExit, match="'tain' is not a command; the commands are train, evaluate, "
    ):
        main(["retinanet-jax", "tain"])


def test_the_configs_are_listed_with_their_results(capsys):
    assert main(["retinanet-jax", "configs"]) == 0
    out = capsys.readouterr().out
    for path in config_files():
        text = configs.describe(path)
        assert text in out
        assert "AP" in text, path
        assert "Command: " in text, path


def test_the_version_is_that_of_the_package_and_its_dependencies(capsys):
    assert main(["retinanet-jax", "--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("retinanet-jax 0.")
    assert f"jax {jax.__version__}" in out


def test_the_help_does_not_wait_for_jax():
    code = (
        "import sys\nfrom retinanet_jax.__main__ import main\nmain(['retinanet-jax', '--help'])\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [("configs", "1"), ("inspect --help", "1"), ("--version", "")]
)
def test_a_reader_that_ends_early_is_no_error(arguments, unbuffered):
    """As that of `| true`: nothing can be written, at once or when Python ends."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "retinanet_jax", *arguments.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env=environment, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


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
def test_another_model_than_that_of_the_checkpoint_is_refused(tiny_run, program):
    """Resuming and evaluating, each in the working directory of a finished run."""
    command = ("main", *tiny_run.arguments, f"--workdir={tiny_run.workdir}")
    for more, message in (
        (
            ("--config.model.fpn_channels=16", "--config.total_steps=9"),
            "trained with config.model.fpn_channels=32",
        ),
        (("--mode=evaluate", "--config.input.order=bgr"), "trained with config.input.order=rgb"),
        (("--config.optimizer.name=sgd", "--config.total_steps=9"), "optimizer"),
    ):
        status, _, stderr = program.run(*command, *more)
        assert status == 1
        assert "Traceback" not in stderr
        (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert message in line
