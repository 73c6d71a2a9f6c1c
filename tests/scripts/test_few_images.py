"""The comparison of ways to train on few images."""

import json
import pathlib

import pytest

from retinanet_jax.config import default_config, flatten

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "few_images.py"


@pytest.fixture
def script(load_script):
    return load_script(SCRIPT)


def test_rows_set_fields_of_the_config(script):
    fields = dict(flatten(default_config()))
    for flags in script.ROWS.values():
        assert {flag.removeprefix("--config.").partition("=")[0] for flag in flags} <= set(fields)


def test_a_finished_run_is_read_and_not_repeated(script, tmp_path, monkeypatch, capsys):
    """Minutes are steps times the median time of a step: 2 images at 3, 2 and 4 images a second."""
    workdir = tmp_path / "plain-seed0-20"
    for folder in ("eval", "checkpoints/20"):
        (workdir / folder).mkdir(parents=True)
    speeds = ({"step": 6, "images_per_second": speed} for speed in (3.0, 2.0, 4.0))
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, speeds)))
    for step, ap in ((9, 0.25), (20, 0.5)):
        (workdir / f"eval/{step}.json").write_text(json.dumps({"AP": ap, "AP50": 0.75}))
    (workdir / "eval/20_detections.json").write_text("[]")
    config = default_config()
    config.data.batch_size = 2
    monkeypatch.setattr(script, "newest_config", lambda workdir: config)
    arguments = [str(tmp_path), "--train=a.json", "--eval=b.json", "--rows=plain", "--steps=20"]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
    script.main()
    [result] = json.loads((tmp_path / "few_images.json").read_text())
    assert [(e["step"], e["AP"]) for e in result["evaluations"]] == [(9, 0.25), (20, 0.5)]
    assert result["evaluations"][1]["minutes"] == pytest.approx(20 * (2 / 3) / 60)
    assert "| plain | 0 | 20 | 0 | 0.500 | 0.750 |" in capsys.readouterr().out
    assert (tmp_path / "few_images.png").read_bytes().startswith(b"\x89PNG")
