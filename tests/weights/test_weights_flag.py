"""The commands with --weights=NAME: one command each, also for what goes wrong.

The published files are small ones of the same format, on a server that stands for the hosts.
"""

import json

import numpy as np
import pytest
from detector_examples import SMALL
from PIL import Image

from retinanet_jax import checkpoint, weights
from retinanet_jax.cli import predict, train
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.stored_config import differences
from retinanet_jax.weights import download, named

NAME = "torchvision_v2"
FILE = named.DETECTORS[NAME].file
FINETUNE = "--config=configs/finetune.py"
# Two steps on images of 64 x 64.
SMALL_RUN = (
    "--config.data.buckets=((64, 64),)",
    "--config.data.short_sides=(64,)",
    "--config.data.eval_short_side=64",
    "--config.data.long_side=64",
    "--config.data.eval_batch_size=1",
    "--config.total_steps=2",
)


@pytest.fixture
def data(synthetic_dataset):
    return (
        f"--config.data.train.annotations={synthetic_dataset / 'instances.json'}",
        f"--config.data.train.images={synthetic_dataset / 'images'}",
    )


@pytest.fixture
def config_of(monkeypatch):
    """`config_of(*flags)`: the config with which `train` would start."""

    def config_of(*flags):
        given = []

        def record(*arguments, **_):
            given.append(arguments)

        monkeypatch.setattr(train, "train_or_evaluate", record)
        run_command(train.COMMAND, ["program", "--workdir=run", *flags])
        return given[0][0]

    return config_of


# ---- the config


@pytest.mark.parametrize("flags", [(), (FINETUNE,)])
def test_without_another_config_it_is_finetune_with_the_network_of_the_weights(config_of, flags):
    config = config_of(*flags, "--weights=torchvision_v1", "--config.total_steps=7")
    changed = differences(load_config("configs/finetune.py:torchvision_v1"), config)
    assert [(name, now) for name, _, now in changed] == [("total_steps", 7)]
    assert config.is_locked
    config = config_of(*flags, "--weights=resnet50")
    assert not differences(load_config("configs/finetune.py:imagenet"), config)


def test_of_another_config_only_the_start_changes(config_of):
    config = config_of("--config=configs/torchvision.py:v2", f"--weights={NAME}")
    changed = differences(load_config("configs/torchvision.py:v2"), config)
    assert {name: now for name, _, now in changed} == {
        "init.source": "checkpoint",
        "init.path": NAME,
    }


def test_a_detector_that_was_trained_here_gives_its_network(config_of, toy_config, places):
    toy_config.model.norm = "batch"
    variables = {"params": {"kernel": np.zeros(3, np.float32)}}
    checkpoint.write_imported(places / "mine", variables, toy_config, COCO_CATEGORIES)
    config = config_of("--weights=mine")
    changed = differences(toy_config, config)
    names = {name for name, *_ in changed if name.startswith(("model.", "anchors.", "input."))}
    assert names == {"model.norm", "model.frozen_stages"}
    assert (config.model.norm, config.model.frozen_stages) == ("frozen_batch", 3)
    assert config.init.to_dict() == {"source": "checkpoint", "path": "mine"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/shapes.py", f"--weights={NAME}"], "the weights torchvision_v2 require"),
        (["--weights=torchvision_v3"], "did you mean torchvision_v2? The names are torchvision_v1"),
        (["--weights=runs/absent"], "runs/absent does not exist, and is no name of published"),
        ([f"--weights={NAME}", "--config.init.path=x"], "--weights and --config.init.path both na"),
        ([f"--weights={NAME}", "--config.init.source="], "--weights and --config.init.source bot"),
    ],
)
def test_weights_that_do_not_fit_or_exist_are_one_line(error_line, places, flags, message):
    assert message in error_line("train", *flags, f"--workdir={places / 'run'}")


@pytest.mark.parametrize("flags", [["--weights=a", "--checkpoint=b"], ["--weights=a"] * 2])
@pytest.mark.parametrize("command", ["predict", "export-weights"])
def test_weights_by_both_names_of_the_flag_are_one_line(error_line, places, command, flags):
    rest = (
        ["--output=o", "a.jpg"] if command == "predict" else ["--target=detectron2", "--output=o"]
    )
    (places / "a.jpg").write_bytes(b"")
    line = error_line(command, *flags, *rest)
    assert line == "error: --weights, or its other name --checkpoint, is given twice; give one."


# ---- what goes wrong with the file


@pytest.mark.usefixtures("one_device")
def test_without_a_network_fine_tuning_names_the_file_its_place_and_another_way(
    error_line, places, publish, monkeypatch, data
):
    publish()
    url = f"http://127.0.0.1:9/{FILE}"
    monkeypatch.setitem(download.KNOWN, FILE, download.Published(url, "sha256", "00000000"))
    line = error_line("train", FINETUNE, *data, *SMALL_RUN, f"--workdir={places / 'run'}")
    assert line.startswith(f"error: {url} cannot be reached (")
    assert line.endswith(
        f"put it at {places / 'cache/retinanet_jax' / FILE} and run this again. Without a network, "
        "--weights=DIR_OR_FILE starts from weights that are here."
    )


@pytest.mark.usefixtures("one_device")
def test_a_wrong_checksum_ends_each_command_in_one_line(
    error_line, places, publish, server, data, monkeypatch
):
    digest = publish()
    server.files[FILE] = b"others"
    message = f"but that of the published file begins with {digest}; the file was removed"
    run = (f"--weights={NAME}", *data, *SMALL_RUN, f"--workdir={places / 'run'}")
    assert message in error_line("train", *run)
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)
    Image.new("RGB", (64, 64)).save(places / "image.png")
    output = (f"--weights={NAME}", f"--output={places / 'out'}")
    assert message in error_line("predict", *output, places / "image.png")
    assert message in error_line("export", *output, "--format=stablehlo")
    assert not (places / "out").exists()


# ---- one command each


@pytest.fixture
def small_detector(publish, arrays_of, monkeypatch, places):
    """Torchvision's v2 on a small backbone, on the server."""
    for names in (named.DETECTORS, named.NAMES):
        monkeypatch.setitem(names, NAME, named.DETECTORS[NAME]._replace(backbone=SMALL))
    weights.save_arrays(places / "host" / FILE, arrays_of(NAME))
    publish(NAME, (places / "host" / FILE).read_bytes())


# What makes a process use the small detector.
PREAMBLE = """
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import download, named
ARCHITECTURES[{small!r}] = {settings!r}
for names in (named.DETECTORS, named.NAMES):
    names[{name!r}] = names[{name!r}]._replace(backbone={small!r})
download.KNOWN[{file!r}] = download.Published{published!r}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("small_detector")
def test_the_one_command_downloads_torchvision_v2_and_sets_what_is_left_open(
    program, server, places, synthetic_dataset
):
    """One command with data and a workdir: the variant, the batch size and the anchors are set."""
    workdir = places / "run"
    workdir.mkdir()
    program.use_shared_cache(workdir)
    preamble = PREAMBLE.format(
        small=SMALL,
        settings=ARCHITECTURES[SMALL],
        name=NAME,
        file=FILE,
        published=tuple(download.KNOWN[FILE]),
    )
    data = f"--data={synthetic_dataset / 'instances.json'}"
    automatic = ("--config.data.batch_size=auto", "--config.anchors=auto")
    command = ("train", data, *SMALL_RUN, *automatic, f"--workdir={workdir}", "--mode=train")
    status, printed, stderr = program.run(*command, preamble=preamble)
    print(printed)
    assert status == 0, stderr
    assert printed.count("downloading ") == len(server.requests) == 1
    assert "(step 0, 80 classes) for 6 classes\n  transferred " in printed
    assert "config: configs/finetune.py:cpu, because the device is cpu; " in printed
    assert "\nanchors: base_scale 1.41 chosen for the data, with which " in printed
    assert "\na training step of 1 image needs " in printed  # 16 images are left for training
    assert "starting from torchvision_v2\n" in printed
    tuned = checkpoint.load(workdir / "checkpoints" / "2")
    assert tuned.config.init.path == NAME
    assert (tuned.config.data.batch_size, tuned.config.anchors.base_scale) == (1, 1.41)
    # A frozen kernel is still that of the file.
    kernel = tuned.variables["params"]["backbone"]["stem_conv"]["kernel"]
    published = weights.load_arrays(places / "host" / FILE)["backbone.body.conv1.weight"]
    np.testing.assert_array_equal(kernel, published.transpose(2, 3, 1, 0))


@pytest.mark.slow
@pytest.mark.usefixtures("small_detector")
def test_predict_takes_a_name(server, places, monkeypatch, capsys):
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(places / "image.png")
    flags = [f"--weights={NAME}", "--output=out", "--score_threshold=0.001", "image.png"]
    assert run_command(predict.COMMAND, ["predict", *flags]) == 0
    detections = json.loads((places / "out" / "detections.json").read_text())
    assert detections
    assert {detection["category_id"] for detection in detections} <= {c.id for c in COCO_CATEGORIES}
    assert len(server.requests) == 1
