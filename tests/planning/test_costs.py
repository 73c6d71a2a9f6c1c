"""The costs of a compiled program, by the names of its parts."""

import pytest

from retinanet_jax.planning.costs import Cost, Exchange, group_of_name, program_costs

PROGRAM = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (x: bf16[4,8], y: bf16[8,2]) -> bf16[4,2] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = bf16[8,2]{1,0} parameter(1)
  ROOT %dot = bf16[4,2]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(train_step)/jvp(RetinaNet)/backbone/stem/dot" stack_frame_id=1}
}

%body (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %state = (s32[], f32[2]{0}) parameter(0)
  %value = f32[2]{0} get-tuple-element(%state), index=1
  %max = f32[2]{0} maximum(%value, %value), \
metadata={op_name="jit(train_step)/jvp(loss)/targets/max"}
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %next = (s32[], f32[2]{0}) tuple(%count, %max)
}

%condition (state: (s32[], f32[2])) -> pred[] {
  %state = (s32[], f32[2]{0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%index, %limit), direction=LT
}

ENTRY %main (p: bf16[4,8], q: bf16[8,2], s: (s32[], f32[2])) -> bf16[4,2] {
  %p = bf16[4,8]{1,0} parameter(0), metadata={op_name="batch.images"}
  %q = bf16[8,2]{1,0} parameter(1), metadata={op_name="state.params['backbone']['stem']"}
  %s = (s32[], f32[2]{0}) parameter(2)
  %copy = bf16[8,2]{1,0} copy(%q)
  %fusion = bf16[4,2]{1,0} fusion(%p, %copy), calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"123"}}
  %loop = (s32[], f32[2]{0}) while(%s), condition=%condition, body=%body
  %reduced = (bf16[4,2]{1,0}, f32[2]{0}) all-reduce(%fusion, %mean), to_apply=%add, \
metadata={op_name="jit(train_step)/transpose(jvp(RetinaNet))/backbone/stem/sum"}
  %mean = f32[2]{0} get-tuple-element(%loop), index=1
  %start = f32[2]{0} all-reduce-start(%mean), to_apply=%add
  %done = f32[2]{0} all-reduce-done(%start)
  %gathered = f32[8]{0} all-gather(%done), dimensions={0}
  ROOT %out = bf16[4,2]{1,0} get-tuple-element(%reduced), index=0
}
"""


def test_costs_are_summed_by_the_part_of_the_model():
    groups = program_costs(PROGRAM).groups
    # The copy has no name of its own: it is that of the parameter that it copies.
    fusion, copy, reduction = 64 + 32 + 16, 32 + 32, 16 + 8 + 16 + 8
    assert groups["backbone"] == Cost(2 * 4 * 2 * 8, fusion + copy + reduction, 123)
    # The loop runs ten times, and reads one value twice. What is computed from its result has no
    # name: an all-reduce of 8 bytes and the all-gather.
    assert groups["targets"] == Cost(0, 10 * 24 + 16 + 40, 0)
    assert set(groups) == {"backbone", "targets"}


def test_the_total_is_the_sum_of_all_groups():
    costs = program_costs(PROGRAM)
    assert costs.total == Cost(*map(sum, zip(*costs.groups.values(), strict=True)))


def test_collectives_are_counted_by_name_and_type():
    assert program_costs(PROGRAM).exchanges == [
        Exchange("all-gather", "f32", 1, 32),
        Exchange("all-reduce", "bf16", 1, 16),
        Exchange("all-reduce", "f32", 2, 16),
    ]


@pytest.mark.parametrize(
    ("op_name", "group"),
    [
        ("jit(train_step)/jvp(RetinaNet)/backbone/stage2_block0/conv1/conv", "backbone"),
        ("jit(train_step)/transpose(jvp(RetinaNet))/fpn/add", "fpn"),
        ("jit(train_step)/transpose(jvp(RetinaNet))/box_head/predict/reduce_sum", "heads"),
        ("jit(train_step)/jvp(loss)/targets/while/body/max", "targets"),
        ("jit(train_step)/transpose(jvp(loss))/mul", "loss"),
        ("jit(train_step)/optimizer/mul", "optimizer"),
        ("state.opt_state.inner_states['trained'][0]['backbone']", "optimizer"),
        ("jit(train_step)/jvp(input)/sub", "input"),
        ("jit(detect)/detections/top_k", "detections"),
        ("jit(train_step)/jvp(RetinaNet)/RetinaNet._masks/lt", "other"),
        ("jit(train_step)/lossless/add", "other"),
    ],
)
def test_the_group_of_an_operation_is_in_its_name(op_name, group):
    assert group_of_name(op_name) == group
