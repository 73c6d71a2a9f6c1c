"""Packing a config's datasets: the packed folders, and training on them without TensorFlow."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.data.sources.packed import PackedSource

WITHOUT_TENSORFLOW = "sys.modules.update(tensorflow=None, tensorflow_datasets=None)"


@pytest.fixture
def coco_config(toy_config, synthetic_dataset):
    """Return a config that trains and evaluates on the same synthetic images."""
    fields = {
        "source": "coco",
        "annotations": str(synthetic_dataset / "instances.json"),
        "images": str(synthetic_dataset / "images"),
    }
    toy_config.data.train.update(fields)
    toy_config.data.eval.update(fields)
    return toy_config


def apply_flags(config: ConfigDict, flags: list[str]) -> None:
    """Set the fields of a config that the flags name."""
    for flag in flags:
        name, value = flag.removeprefix("--config.").split("=")
        *sections, field = name.split(".")
        section = config
        for section_name in sections:
            section = section[section_name]
        section[field] = type(section[field])(value)


def test_the_printed_flags_open_the_same_data(coco_config, tmp_path, capsys):
    train, evaluation = datasets.open_sources(coco_config, tmp_path)
    coco_config.data.update(short_sides=(32, 64, 48), eval_short_side=40)
    apply_flags(
        coco_config, input_pipeline.pack_datasets(coco_config, ("train", "eval"), tmp_path / "out")
    )

    assert coco_config.data.loader == "numpy"
    opened = datasets.open_sources(coco_config, tmp_path)
    assert [source.name for source in opened] == [
        str(tmp_path / f"out/{part}") for part in datasets.PARTS
    ]
    for source, expected in zip(opened, (train, evaluation), strict=True):
        assert isinstance(source, PackedSource)
        assert source.ground_truth() == expected.ground_truth()
        np.testing.assert_array_equal(source.sizes, expected.sizes)
    assert opened[0].image(0).shape == (64, 64, 3)
    assert opened[1].image(0).shape == (40, 40, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 20/20 images")
    assert lines[1].startswith(f"{tmp_path}/out/train: 20 images of ")


def test_a_single_part_is_packed(coco_config, tmp_path):
    flags = input_pipeline.pack_datasets(coco_config, ("eval",), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]
    assert flags == [
        "--config.data.loader=numpy",
        "--config.data.eval.source=packed",
        f"--config.data.eval.images={tmp_path}/eval",
        "--config.data.eval.annotations=",
    ]


def test_several_sources_are_packed_as_one(coco_config, synthetic_dataset, tmp_path):
    coco_config.data.train.annotations = (
        f"{synthetic_dataset}/instances.json,{synthetic_dataset}/instances.json"
    )
    apply_flags(coco_config, input_pipeline.pack_datasets(coco_config, ("train", "eval"), tmp_path))
    train, _ = datasets.open_sources(coco_config, tmp_path)
    assert isinstance(train, PackedSource)
    assert len(train) == 40


def test_a_validation_fraction_is_packed_with_the_training_data(coco_config, tmp_path):
    coco_config.data.eval.update(annotations="", images="")
    coco_config.data.validation_fraction = 0.3
    parts = datasets.open_sources(coco_config, tmp_path)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.3 splits .*--part=both"):
        input_pipeline.pack_datasets(coco_config, ("train",), tmp_path)
    apply_flags(coco_config, input_pipeline.pack_datasets(coco_config, ("train", "eval"), tmp_path))
    opened = datasets.open_sources(coco_config, tmp_path)
    for source, expected in zip(opened, parts, strict=True):
        assert isinstance(source, PackedSource)
        assert source.image_ids == expected.image_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give --config=FILE --output=DIR"),
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
    (message,) = stderr.splitlines()
    assert message.startswith("error: ")
    assert line in message


@pytest.mark.slow
def test_a_run_from_packed_data_equals_one_from_the_files_without_tensorflow(program, tmp_path):
    """Pack, train and evaluate in processes where TensorFlow cannot be imported."""
    tiny = "--config=configs/shapes.py:tiny"
    status, stdout, stderr = program.run(
        "pack", tiny, f"--output={tmp_path / 'packed'}", preamble=WITHOUT_TENSORFLOW
    )
    assert status == 0, stderr
    flags = [line.strip() for line in stdout.splitlines() if line.startswith("  --")]
    assert len(flags) == 5

    def losses(name: str, *flags: str) -> list[float]:
        workdir = tmp_path / name
        workdir.mkdir()
        program.use_shared_cache(workdir)
        status, _, stderr = program.run(
            "main", tiny, f"--workdir={workdir}", *flags, preamble=WITHOUT_TENSORFLOW
        )
        assert status == 0, stderr
        assert "AP" in json.loads((workdir / "eval" / "8.json").read_text())
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    from_packed = losses("from_packed", *flags)
    assert len(from_packed) == 8
    assert from_packed == losses("from_files", "--config.data.loader=numpy")
