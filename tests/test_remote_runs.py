"""Runs, data and weights in remote storage, for which object_store.py stands."""

import json
import pathlib

import jax
import numpy as np
import object_store as stand_in
import pytest

from retinanet_jax import checkpoint, datasets
from retinanet_jax.checkpoint import FOLDER
from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.input_pipeline import pack_datasets
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import copy_path, local_folder
from retinanet_jax.weights import load_arrays, named


@pytest.fixture
def remote_dataset(object_store, synthetic_dataset) -> str:
    """Return the URL of a copy of the synthetic dataset."""
    for path in filter(lambda path: path.is_file(), synthetic_dataset.rglob("*")):
        key = f"bucket/shapes/{path.relative_to(synthetic_dataset).as_posix()}"
        object_store.write(key, path.read_bytes())
    return "gs://bucket/shapes"


# ---- data


def test_remote_data_is_detected_and_read_like_local_data(
    remote_dataset, config, synthetic_dataset
):
    line = datasets.use_dataset(config, to_path(remote_dataset), given=())
    assert line.startswith("data: COCO: gs://bucket/shapes/instances.json")
    # The config names the remote files, so that it means the same on every host.
    assert config.data.train.annotations == "gs://bucket/shapes/instances.json"
    assert config.data.train.images == "gs://bucket/shapes/images"
    source = datasets.open_source(config, "train", workdir=to_path("gs://bucket/run"))
    local = CocoSource(
        synthetic_dataset / synthetic.ANNOTATIONS, synthetic_dataset / synthetic.IMAGES
    )
    assert source.categories == local.categories
    assert [source.read(index) for index in range(20)] == [local.read(i) for i in range(20)]
    np.testing.assert_array_equal(source.objects.boxes, local.objects.boxes)


def test_a_packed_dataset_may_be_remote_although_its_file_is_mapped_to_memory(
    object_store, synthetic_dataset, config, tmp_path
):
    config.data.train.update(
        source="coco",
        annotations=str(synthetic_dataset / synthetic.ANNOTATIONS),
        images=str(synthetic_dataset / synthetic.IMAGES),
    )
    pack_datasets(config, ("train",), tmp_path / "packed")
    for path in (tmp_path / "packed/train").iterdir():
        object_store.write(f"bucket/packed/{path.name}", path.read_bytes())
    config.data.train.update(source="packed", annotations="", images="gs://bucket/packed")
    source = datasets.open_source(config, "train", tmp_path)
    assert len(source) == 20


def test_generated_data_of_a_remote_run_is_local(object_store, config):
    config.data.train.update(
        source="shapes", annotations="", images="", count=2, image_size=32, seed=7
    )
    workdir = to_path("gs://bucket/run")
    source = datasets.open_source(config, "train", workdir)
    assert source.path(0).is_relative_to(local_folder(workdir, "data"))
    assert object_store.keys() == []


# ---- weights


def test_a_remote_file_of_weights_is_read_from_its_copy(object_store, tmp_path):
    np.savez(tmp_path / "w.npz", kernel=np.arange(3.0))
    object_store.write("bucket/w.npz", (tmp_path / "w.npz").read_bytes())
    path = named.locate("gs://bucket/w.npz")
    assert path == copy_path("gs://bucket/w.npz")
    np.testing.assert_array_equal(load_arrays(path)["kernel"], np.arange(3.0))


# ---- refusals


def test_what_cannot_be_remote_is_refused_in_one_line(error_line, remote_dataset, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    for arguments, message in {
        ("train", "--workdir=s3://bucket/x"): "checkpoints cannot be written to s3://, only to a "
        "local disk or gs://",
        ("train", "--workdir=ftp://host/x"): "ftp://host/x: ftp:// is no known remote storage",
        ("train", "--workdir=az://box/x"): "checkpoints cannot be written to az://",
        ("train", workdir, "--data=ftp://host/x"): "ftp:// is no known remote storage",
        ("train", workdir, "--data=az://box/x"): "az:// requires adlfs, not installed here; ",
        ("train", workdir, "--weights=ftp://host/x"): "ftp:// is no known remote storage",
        (
            "train",
            workdir,
            "--config.data.train.source=coco",
            "--config.data.train.images=a://b",
            "--config.data.train.annotations=ftp://h/x",
        ): "ftp:// is no known remote storage",
        ("train", workdir, "--data=gs://bucket/none"): "gs://bucket/none: there is no such file",
        ("train", workdir, f"--data={remote_dataset}/instances.json"): "give that of this file "
        "and its images",
        ("train", workdir, f"--data={remote_dataset}/images"): f"--data={remote_dataset}/images: "
        "a folder of",
        ("convert", f"--data={remote_dataset}", "--output=o.json"): "must be on a local disk",
        ("pack", f"--data={remote_dataset}", "--output=gs://bucket/p"): "--output=gs://bucket/p: "
        "must be on a local disk",
        ("predict", "--weights=ftp://h/x", "--output=o", "x.jpg"): "x.jpg: no such image",
        (
            "predict",
            "--weights=gs://bucket/none",
            "--output=o",
            f"{remote_dataset}/images",
        ): "gs://bucket/none",
    }.items():
        assert message in error_line(*arguments), arguments


def test_a_remote_working_directory_without_a_checkpoint_is_named(error_line, object_store):
    line = error_line("evaluate", "--config=configs/shapes.py:tiny", "--workdir=gs://bucket/run")
    assert line.startswith("error: gs://bucket/run: no checkpoint here")


# ---- a run


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_remote_run_is_killed_resumed_evaluated_and_used(
    program, tiny_run, tmp_path, object_store
):
    root, url = tmp_path / "objects", "gs://bucket/run"
    local = local_folder(to_path(url), "x").parent
    local.mkdir(parents=True)
    program.use_shared_cache(local)

    def start(command, *arguments):
        return program.start(command, *arguments, preamble=stand_in.preamble(root))

    def run(command, *arguments) -> str:
        process = start(command, *arguments)
        stdout, stderr = process.communicate(timeout=1200)
        lines = [line for line in stderr.splitlines() if "AUTH_TOKEN_FOR_TESTING" not in line]
        assert (process.returncode, lines) == (0, [])
        return stdout

    # Killed between two checkpoints.
    training = start("main", *tiny_run.arguments, f"--workdir={url}")
    for line in training.stdout:
        if line.startswith("step 6/8"):
            break
    training.kill()
    training.communicate()
    assert object_store.keys("bucket/run/checkpoints/4/")

    run("main", *tiny_run.arguments, f"--workdir={url}")
    folder = tmp_path / "copy"
    for key in object_store.keys("bucket/run/"):
        path = folder / key.removeprefix("bucket/run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(object_store.file(key).read_bytes())
    for step in (4, 8):
        here, expected = (
            checkpoint.load(workdir / FOLDER / str(step)).variables
            for workdir in (folder, tiny_run.workdir)
        )
        jax.tree.map(np.testing.assert_array_equal, here, expected)
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records] == list(range(1, 9))
    assert list((folder / "tensorboard").iterdir())
    assert not pathlib.Path("gs:").exists()

    assert "written to gs://bucket/run/eval/8.json" in run(
        "evaluate", *tiny_run.arguments, f"--workdir={url}"
    )
    images = sorted((local / "data").rglob("*.jpg"))[:2]
    for image in images:
        object_store.write(f"bucket/photos/{image.name}", image.read_bytes())
    results = []
    for weights, source in ((url, "gs://bucket/photos"), ("s3://bucket/run", images[0].parent)):
        output = tmp_path / f"out{len(results)}"
        run("predict", f"--weights={weights}", f"--output={output}", "--nodraw", source)
        results.append(json.loads((output / "detections.json").read_text()))
    assert results[0][0]["file_name"] == f"gs://bucket/photos/{images[0].name}"
    assert [(r["score"], r["bbox"]) for r in results[0]] == [
        (r["score"], r["bbox"]) for r in results[1] if r["image_id"] <= len(images)
    ]
