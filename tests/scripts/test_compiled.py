"""The costs of a compiled program by part of the detector, compared between two revisions."""

import argparse
import json
import sys

import pytest

from retinanet_jax.planning import topologies
from scripts import compiled

PROGRAM = """HloModule step, is_scheduled=true

%fused (x: bf16[1,4,4,8], k: bf16[1,1,8,2]) -> bf16[1,4,4,2] {
  %x = bf16[1,4,4,8]{3,2,1,0} parameter(0)
  %k = bf16[1,1,8,2]{3,2,1,0} parameter(1)
  ROOT %conv = bf16[1,4,4,2]{3,2,1,0} convolution(%x, %k), window={size=1x1}, \
dim_labels=b01f_01io->b01f, metadata={op_name="jit(f)/jvp(RetinaNet)/box_head/predict/conv"}
}

%body (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %state = (s32[], f32[2]{0}) parameter(0)
  %value = f32[2]{0} get-tuple-element(%state), index=1
  %max = f32[2]{0} maximum(%value, %value), metadata={op_name="jit(f)/loss/targets/max"}, \
backend_config={"estimated_cycles":"1000"}
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %next = (s32[], f32[2]{0}) tuple(%count, %max)
}

%condition (state: (s32[], f32[2])) -> pred[] {
  %state = (s32[], f32[2]{0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%index, %index), direction=LT
}

ENTRY %main (x: bf16[1,4,4,8], k: bf16[1,1,8,2], s: (s32[], f32[2])) -> f32[2] {
  %x = bf16[1,4,4,8]{3,2,1,0} parameter(0)
  %k = bf16[1,1,8,2]{3,2,1,0} parameter(1)
  %s = (s32[], f32[2]{0}) parameter(2)
  %fusion = bf16[1,4,4,2]{3,2,1,0} fusion(%x, %k), calls=%fused, \
backend_config={"estimated_cycles":"3000000"}
  %start = (bf16[1,4,4,2]{3,2,1,0}, bf16[1,4,4,2]{3,2,1,0}, u32[]) copy-start(%fusion)
  %copy = bf16[1,4,4,2]{3,2,1,0} copy-done(%start)
  %sum = bf16[1,4,4,2]{3,2,1,0} all-reduce(%copy), metadata={op_name="jit(f)/box_head/sum"}
  %sort = bf16[1,4,4,2]{3,2,1,0} sort(%sum), metadata={op_name="jit(f)/detections/top_k"}
  %loop = (s32[], f32[2]{0}) while(%s), condition=%condition, body=%body
  ROOT %out = f32[2]{0} get-tuple-element(%loop), index=1
}
"""
TRAIN = {
    "topology": "v5e-1",
    "config": "r50_fpn.py",
    "mode": "train",
    "dtype": "bfloat16",
    "size": [800, 1344],
    "images a device": 8,
    "iterations": 1,
}


def test_the_figures_of_a_program_by_hand():
    kernels, copied = 2 * (4 * 4 * 8 + 8 * 2 + 4 * 4 * 2), 2 * 2 * 4 * 4 * 2
    assert compiled.cost_figures(PROGRAM, iterations=1) == pytest.approx(
        {
            "arithmetic, TFLOP": 2 * 4 * 4 * 2 * 8 / 1e12,
            "operations": 5,  # fusion, copy, all-reduce, sort, maximum; names of memory are free
            "sorts": 1,
            "numbers sorted, millions": 32e-6,
            "all-reduce of bf16": 1,
            "all-reduce of bf16, MB": 64e-6,
            "traffic, GB": (kernels + 3 * copied + 3 * 8) / 1e9,
            "estimated Mcycles": 3.001,
            "estimated Mcycles: heads, convolutions": 3,
            "estimated Mcycles: targets": 0.001,
        }
    )


def test_a_sort_inside_a_fusion_counts():
    """As on GPUs."""
    sorting = """%sorting (y: bf16[1,4,4,2]) -> bf16[1,4,4,2] {
  %y = bf16[1,4,4,2]{3,2,1,0} parameter(0)
  ROOT %inner = bf16[1,4,4,2]{3,2,1,0} sort(%y)
}

ENTRY"""
    fused = PROGRAM.replace("ENTRY", sorting).replace("sort(%sum)", "fusion(%sum), calls=%sorting")
    assert compiled.cost_figures(fused, 1) == compiled.cost_figures(PROGRAM, 1)


def test_a_program_without_cycles_has_the_traffic_of_each_part():
    """As of GPUs."""
    figures = compiled.cost_figures(PROGRAM.replace("estimated_cycles", ""), iterations=1)
    copied = 2 * 2 * 4 * 4 * 2
    assert {name: value for name, value in figures.items() if ":" in name} == pytest.approx(
        {
            "traffic, GB: heads, convolutions": 2 * (4 * 4 * 8 + 8 * 2 + 4 * 4 * 2) / 1e9,
            # The copy has no name of its own, but that of the heads that it copies from.
            "traffic, GB: heads, other operations": 2 * copied / 1e9,
            "traffic, GB: detections, sorts": copied / 1e9,
            "traffic, GB: targets": 3 * 8 / 1e9,
        }
    )
    assert "estimated Mcycles" not in figures


def test_a_loop_that_depends_on_the_data_has_the_iterations_of_the_command_line():
    figures = compiled.cost_figures(PROGRAM, iterations=25)
    assert figures["estimated Mcycles: targets"] == pytest.approx(0.025)
    assert figures["operations"] == 4 + 25
    bounded = PROGRAM.replace("compare(%index, %index)", "compare(%index, %limit)").replace(
        "  ROOT %less", "  %limit = s32[] constant(3)\n  ROOT %less"
    )
    assert compiled.cost_figures(bounded, iterations=25)["operations"] == 4 + 3


def test_the_table_has_both_revisions_and_their_ratio():
    before = {"program": TRAIN, "figures": {"traffic, GB": 50.0, "sorts": 19}}
    after = {"program": TRAIN, "figures": {"traffic, GB": 40.0, "operations": 1234}}
    assert compiled.table(after, before).splitlines()[2:] == [
        "| traffic, GB | 50 | 40 | 0.80 |",
        "| sorts | 19 | 0 | 0.00 |",
        "| operations | 0 | 1,234 |  |",
    ]
    assert compiled.table(after).splitlines() == [
        "| training step of r50_fpn.py for v5e-1, 8 images of 800 x 1344 a device, bfloat16 "
        "| figure |",
        "| --- | ---: |",
        "| traffic, GB | 40 |",
        "| operations | 1,234 |",
    ]


def test_two_programs_are_compared_only_if_they_are_the_same():
    other = {"program": {**TRAIN, "images a device": 4}, "figures": {}}
    message = "--before is training step of .* 4 images .*, but this is .* 8 images .* the same"
    with pytest.raises(ValueError, match=message):
        compiled.table({"program": TRAIN, "figures": {}}, other)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (78, "78"), (23456.7, "23,457"), (3.14159, "3.14"), (0.00002, "2e-05")],
)
def test_numbers_have_three_digits(value, text):
    assert compiled.number(value) == text


def test_a_missing_compiler_ends_the_script_with_one_line(monkeypatch):
    monkeypatch.setattr(topologies, "has_compiler", lambda _: False)
    monkeypatch.setattr(sys, "argv", ["compiled.py", "--topology=v5e-1"])
    with pytest.raises(SystemExit) as raised:
        compiled.main()
    assert str(raised.value).startswith("error: --topology=v5e-1 requires the compiler for TPU")
    assert 'run `pip install "retinanet-jax[tpu]"`' in str(raised.value)


def test_a_size_is_height_and_width():
    assert compiled.parse_size("800x1344") == (800, 1344)
    with pytest.raises(argparse.ArgumentTypeError, match="'800' must be HEIGHTxWIDTH"):
        compiled.parse_size("800")


@pytest.mark.slow
@pytest.mark.exhaustive  # half a minute of a processor
def test_a_program_for_a_tpu_is_compared_with_itself(tmp_path, monkeypatch, capsys):
    if not topologies.has_compiler("tpu"):
        pytest.skip("libtpu is not installed: pip install 'retinanet_jax[tpu]'")
    path = tmp_path / "before.json"
    tiny = ["--config=configs/r50_fpn.py:tiny", "--size=96x96", "--images=1", "--mode=predict"]
    monkeypatch.setattr(sys, "argv", ["compiled.py", "--topology=v5e-1", *tiny, f"--json={path}"])
    compiled.main()
    assert json.loads(path.read_text())["figures"]["sorts"] > 0
    assert "heads, convolutions" in capsys.readouterr().out
