"""Reading compiled programs: sizes with padding, memory traffic, loops and arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from retinanet_jax.planning import hlo
from retinanet_jax.planning.arithmetic import arithmetic


def read(lines, *others):
    """Return a program with an entry of these lines, and other computations {name: lines}."""
    texts = ["HloModule test, is_scheduled=true", ""]
    for name, body in [*others, ("ENTRY %main", lines)]:
        texts += [f"{name} (a: f32[2]) -> f32[2] {{", *(f"  {line}" for line in body), "}", ""]
    return hlo.read_module("\n".join(texts))


def traffic_of(module, name):
    return hlo.traffic(module, module.entry, module.computations[module.entry][name])


@pytest.mark.parametrize(
    ("text", "size", "padded_size"),
    [
        ("f32[3,5]{1,0}", 60, 60),
        ("bf16[8,4]{1,0:T(8,128)(2,1)}", 64, 8 * 128 * 2),
        ("f32[2,100,4]{2,1,0:T(8,128)}", 3200, 2 * 104 * 128 * 4),
        ("f32[2,100,4]{1,2,0:T(4,128)}", 3200, 2 * 128 * 4 * 4),  # 100 is the minor dimension
        ("u8[4,800,1344,3]{2,1,3,0:T(32,128)(4,1)}", 12902400, 4 * 3 * 800 * 1408),
        ("f32[]{:T(128)}", 4, 4),
        ("pred[7]", 7, 7),
        ("token[]", 0, 0),
    ],
)
def test_an_array_has_the_padding_of_its_layout(text, size, padded_size):
    (array,) = hlo.read_arrays(text)
    assert (array.size, array.padded_size) == (size, padded_size)
    assert array.traffic == padded_size


def test_a_tuple_has_several_arrays_and_memory_on_the_chip_is_no_traffic():
    first, second = hlo.read_arrays("(f32[8]{0:T(128)S(1)}, /*index=1*/s32[4]{0})")
    assert (first.size, first.traffic, second.traffic) == (32, 0, 16)


def test_an_instruction_is_read_with_its_operands_and_name():
    module = read(
        [
            '%p = f32[2]{0} parameter(0), metadata={op_name="batch.images"}',
            'ROOT %add.1 = f32[2]{0} add(%p, f32[2]{0} %p), metadata={op_name="jit(f)/loss/add"}',
        ]
    )
    add = module.computations[module.entry]["add.1"]
    assert (add.opcode, add.operands, add.op_name) == ("add", ("p", "p"), "jit(f)/loss/add")


def test_traffic_is_what_operations_read_and_write():
    module = read(
        [
            "%p = f32[1000]{0} parameter(0)",
            "%q = f32[1000]{0} negate(%p)",
            "%b = f32[10,100]{1,0} bitcast(%q)",
            "%s = f32[10]{0} slice(%q), slice={[0:10]}",
            "%c = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]{:S(2)}) copy-start(%q)",
            "ROOT %d = f32[1000]{0:S(1)} copy-done(%c)",
        ]
    )
    names = ("p", "q", "b", "s", "c", "d")
    # The copy to a memory on the chip only reads the main memory.
    assert [traffic_of(module, name) for name in names] == [0, 8000, 0, 80, 4000, 0]


def test_a_fusion_reads_only_what_it_slices_and_writes_what_it_updates():
    fused = [
        "%x = f32[100,8]{1,0} parameter(0)",
        "%u = f32[1,8]{1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "%row = f32[1,8]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,8}",
        "%sum = f32[1,8]{1,0} add(%row, %u)",
        "ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%x, %sum, %i, %i)",
    ]
    module = read(
        [
            "%p = f32[100,8]{1,0} parameter(0)",
            "%q = f32[1,8]{1,0} parameter(1)",
            "%j = s32[] parameter(2)",
            "ROOT %f = f32[100,8]{1,0} fusion(%p, %q, %j), calls=%fused",
        ],
        ("%fused", fused),
    )
    assert traffic_of(module, "f") == 32 + 32 + 4 + 32


LOOP = "%w = (s32[], f32[2]) while(%p), condition=%cond, body=%body"
KNOWN = ', backend_config={"known_trip_count":{"n":"7"}}'


@pytest.mark.parametrize(("suffix", "count"), [(KNOWN, 7), ("", 96)])
def test_the_body_of_a_loop_counts_as_often_as_it_runs(suffix, count):
    condition = [
        "%c = s32[]{:T(128)} constant(96)",
        "%i = s32[] parameter(0)",
        "ROOT %lt = pred[] compare(%i, %c), direction=LT",
    ]
    module = read(
        ["%p = (s32[], f32[2]) parameter(0)", LOOP + suffix],
        ("%cond", condition),
        ("%body", ["%x = f32[2]{0} parameter(0)"]),
    )
    assert list(hlo.executed(module)) == [("main", 1), ("body", count)]


CONVOLUTION = (
    "%c = {result} convolution(%x, %k), window={{{window}}}, dim_labels={labels}, "
    'metadata={{op_name="jit(f)/backbone/conv"}}'
)


@pytest.mark.parametrize(
    ("image", "kernel", "result", "window", "products"),
    [
        # 2 images of 5 x 5 with 3 channels, 4 outputs, 3 x 3: without padding 9 places.
        ("2,5,5,3", "3,3,3,4", "2,3,3,4", "size=3x3", 2 * 4 * 3 * 9 * 9),
        # With padding, 13 of 15 products along each side are with pixels.
        ("2,5,5,3", "3,3,3,4", "2,5,5,4", "size=3x3 pad=1_1x1_1", 2 * 4 * 3 * 13 * 13),
        # Stride 2: of places -1..1, 1..3 and 3..5, 8 of 9.
        ("1,5,5,1", "3,3,1,1", "1,3,3,1", "size=3x3 stride=2x2 pad=1_1x1_1", 8 * 8 - 15),
        # The gradient of a stride of 2: every second pixel of the dilated image is a hole.
        ("1,2,2,1", "1,1,1,1", "1,3,3,1", "size=1x1 lhs_dilate=2x2", 4),
    ],
)
def test_the_arithmetic_of_a_convolution_is_without_padding(
    image, kernel, result, window, products
):
    line = CONVOLUTION.format(result=f"f32[{result}]", window=window, labels="b01f_01io->b01f")
    module = read(
        [
            f"%x = f32[{image}]{{3,2,1,0}} parameter(0)",
            f"%k = f32[{kernel}]{{3,2,1,0}} parameter(1)",
            line,
        ]
    )
    scope = module.computations["main"]
    assert arithmetic(scope, scope["c"]) == 2 * products


@pytest.mark.parametrize(
    ("target", "result", "operands"),
    [
        ("Forward", "2,5,5,4", ("2,5,5,3", "4,3,3,3")),
        ("BackwardInput", "2,5,5,3", ("2,5,5,4", "4,3,3,3")),
        ("BackwardFilter", "4,3,3,3", ("2,5,5,3", "2,5,5,4")),
    ],
)
def test_a_convolution_of_cudnn_and_its_gradients_have_equal_arithmetic(target, result, operands):
    module = read(
        [
            f"%x = f32[{operands[0]}]{{3,2,1,0}} parameter(0)",
            f"%k = f32[{operands[1]}]{{3,2,1,0}} parameter(1)",
            f"%c = (f32[{result}]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %k), "
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
            f'custom_call_target="__cudnn$conv{target}"',
        ]
    )
    scope = module.computations["main"]
    assert arithmetic(scope, scope["c"]) == 2 * 2 * 4 * 3 * 13 * 13


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 6 * 7 * 5),
        (
            'custom-call(%x, %y), custom_call_target="__cublas$gemm", backend_config='
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}',
            2 * 6 * 7 * 5,
        ),
        ("add(%x, %y)", 0),
    ],
)
def test_the_arithmetic_of_a_matrix_product(line, expected):
    module = read(
        [
            "%x = f32[6,5]{1,0} parameter(0)",
            "%y = f32[5,7]{1,0} parameter(1)",
            f"%z = f32[6,7]{{1,0}} {line}",
        ]
    )
    scope = module.computations["main"]
    assert arithmetic(scope, scope["z"]) == expected


def test_a_program_of_this_version_of_jax_is_read():
    def step(x, kernel):
        with jax.named_scope("backbone"):
            return jax.lax.conv(x, kernel, (2, 2), "SAME") ** 2

    compiled = jax.jit(step).lower(jnp.ones((2, 3, 9, 9)), jnp.ones((4, 3, 3, 3))).compile()
    module = hlo.read_module(compiled.as_text() or "")
    (name,) = (
        instruction.op_name
        for scope in module.computations.values()
        for instruction in scope.values()
        if arithmetic(scope, instruction) == 2 * 2 * 4 * 3 * 13 * 13
    )
    assert "backbone" in name
