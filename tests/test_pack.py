"""Packing a config's data: what is written, and that a run reads it where TensorFlow is not."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.data.sources.packed import PackedSource

WITHOUT_TENSORFLOW = "sys.modules.update(tensorflow=None, tensorflow_datasets=None)"


@pytest.fixture
def own_data(toy_config, drawn):
    """A config that trains on the drawn pictures and evaluates on the same."""
    given = {
        "source": "coco",
        "annotations": str(drawn / "instances.json"),
        "images": str(drawn / "images"),
    }
    toy_config.data.train.update(given)
    toy_config.data.eval.update(given)
    return toy_config


def follow(config: ConfigDict, new_flags: list[str]) -> None:
    """Does to a config what the flags would."""
    for flag in new_flags:
        name, value = flag.removeprefix("--config.").split("=")
        *sections, field = name.split(".")
        section = config
        for one in sections:
            section = section[one]
        section[field] = type(section[field])(value)


def test_the_flags_lead_to_the_same_data(own_data, tmp_path, capsys):
    train, evaluation = input_pipeline.open_sources(own_data, tmp_path)
    own_data.data.update(short_sides=(32, 64, 48), eval_short_side=40)
    follow(own_data, input_pipeline.pack_datasets(own_data, ("train", "eval"), tmp_path / "out"))

    assert own_data.data.loader == "numpy"
    opened = input_pipeline.open_sources(own_data, tmp_path)
    assert [source.name for source in opened] == [
        str(tmp_path / f"out/{p}") for p in input_pipeline.PARTS
    ]
    for ours, theirs in zip(opened, (train, evaluation), strict=True):
        assert isinstance(ours, PackedSource)
        assert ours.ground_truth() == theirs.ground_truth()
        np.testing.assert_array_equal(ours.sizes, theirs.sizes)
    assert opened[0].image(0).shape == (64, 64, 3)
    assert opened[1].image(0).shape == (40, 40, 3)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("train: 20/20 pictures  ")
    assert told[1].startswith(f"{tmp_path}/out/train: 20 pictures of ")


def test_one_part_alone(own_data, tmp_path):
    new = input_pipeline.pack_datasets(own_data, ("eval",), tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["eval"]
    assert new == [
        "--config.data.loader=numpy",
        "--config.data.eval.source=packed",
        f"--config.data.eval.images={tmp_path}/eval",
        "--config.data.eval.annotations=",
    ]


def test_several_sources_become_one(own_data, drawn, tmp_path):
    own_data.data.train.annotations = f"{drawn}/instances.json,{drawn}/instances.json"
    follow(own_data, input_pipeline.pack_datasets(own_data, ("train", "eval"), tmp_path))
    train, _ = input_pipeline.open_sources(own_data, tmp_path)
    assert isinstance(train, PackedSource)
    assert len(train) == 40


def test_a_share_that_is_held_out_stays_so(own_data, tmp_path):
    own_data.data.eval.update(annotations="", images="")
    own_data.data.validation_fraction = 0.3
    parts = input_pipeline.open_sources(own_data, tmp_path)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.3 parts .*--part=both"):
        input_pipeline.pack_datasets(own_data, ("train",), tmp_path)
    follow(own_data, input_pipeline.pack_datasets(own_data, ("train", "eval"), tmp_path))
    for ours, theirs in zip(input_pipeline.open_sources(own_data, tmp_path), parts, strict=True):
        assert isinstance(ours, PackedSource)
        assert ours.image_ids == theirs.image_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give --config=FILE and --output=DIR"),
        (
            ("--config=configs/shapes.py", "--output=o", "--part=test"),
            "--part=test: value should be one",
        ),
        (("--config=configs/r50_fpn.py", "--output=o", "--config.data.train.annotations=n"), "n:"),
        (("--config=configs/shapes.py", "--output=o", "--config.data.sead=1"), "sead"),
    ],
)
def test_a_mistake_ends_in_one_line(program, arguments, line):
    status, _, stderr = program.run("pack", *arguments)
    assert status == 1
    (told,) = stderr.splitlines()
    assert told.startswith("error: ")
    assert line in told


@pytest.mark.slow
def test_a_run_from_packed_data_equals_one_from_the_files_and_needs_no_tensorflow(
    program, tmp_path
):
    """Packing, training and evaluating, in processes where TensorFlow cannot be imported."""
    tiny = "--config=configs/shapes.py:tiny"
    status, stdout, stderr = program.run(
        "pack", tiny, f"--output={tmp_path / 'packed'}", preamble=WITHOUT_TENSORFLOW
    )
    assert status == 0, stderr
    new = [line.strip() for line in stdout.splitlines() if line.startswith("  --")]
    assert len(new) == 5

    def losses(name: str, *flags: str) -> list[float]:
        workdir = tmp_path / name
        workdir.mkdir()
        program.share_compiled(workdir)
        status, _, stderr = program.run(
            "main", tiny, f"--workdir={workdir}", *flags, preamble=WITHOUT_TENSORFLOW
        )
        assert status == 0, stderr
        assert "AP" in json.loads((workdir / "eval" / "8.json").read_text())
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    from_packed = losses("from_packed", *new)
    assert len(from_packed) == 8
    assert from_packed == losses("from_files", "--config.data.loader=numpy")
