"""The measurement of what a detector brings to other categories."""

import json
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "transfer.py"


@pytest.fixture
def script(load_script, monkeypatch):
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "POOL", 80)
    monkeypatch.setattr(script, "NUM_EVAL", 4)
    return script


def test_no_image_has_objects_of_both_groups_and_none_is_learned_and_evaluated(script, tmp_path):
    script.write_data(tmp_path, 2)
    parts = {
        name: json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("first", "few", "eval")
    }
    names = {name: {c["name"] for c in part["categories"]} for name, part in parts.items()}
    assert names["first"] == {"ellipse", "rectangle", "triangle"}
    assert names["few"] == names["eval"] == {"star", "ring", "cross"}
    images = {name: {image["id"] for image in part["images"]} for name, part in parts.items()}
    assert (len(images["few"]), len(images["eval"])) == (2, 4)
    assert not images["few"] & images["eval"]
    everything = json.loads((tmp_path / "pool" / "instances.json").read_text())["annotations"]
    for name, part in parts.items():
        allowed = {category["id"] for category in part["categories"]}
        objects = [a for a in everything if a["image_id"] in images[name]]
        assert objects == part["annotations"]
        assert {a["category_id"] for a in objects} <= allowed


def test_more_images_than_there_are_is_an_error(script, tmp_path):
    with pytest.raises(SystemExit, match=r"--images=500 must be from 1 to \d+"):
        script.write_data(tmp_path, 500)


def test_the_table_has_the_mean_and_the_range_of_the_seeds(script):
    results = [
        {"start": start, "seed": seed, "AP": 0.1 * seed, "AP50": 0.5}
        for start in script.STARTS
        for seed in (1, 3)
    ]
    lines = script.table(results).splitlines()
    assert lines[2] == "| random weights | 0.200 (0.100 to 0.300) | 0.500 (0.500 to 0.500) |"
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == list(script.STARTS)
