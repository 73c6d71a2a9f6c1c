"""The search for the largest batch size that fits."""

import pytest

from retinanet_jax.compilation import exhausted_bytes
from retinanet_jax.planning.largest_batch import find_largest_batch
from retinanet_jax.planning.programs import Program


def search(needed, first, units, limit, *, verifies=True, rejects=False):
    """Return the result, and the batch sizes that were compiled after the first one."""
    compiled = []

    def compile_batch(batch_size):
        compiled.append(batch_size)
        size = needed(batch_size)
        memory = None if rejects and size > limit else {"peak": size}
        return Program((64, 64), batch_size, 1.0, size, memory, None)

    largest = find_largest_batch(
        compile_batch, compile_batch(first), units=units, limit=limit, verifies=verifies
    )
    return largest, compiled[1:]


def linear(batch_size):
    return 100 + 10 * batch_size


@pytest.mark.parametrize("rejects", [False, True])  # as a GPU's compiler, or a TPU's
@pytest.mark.parametrize("first", [16, 160])
def test_the_estimate_is_right_where_memory_is_linear(first, rejects):
    largest, _ = search(linear, first, [8], 1000, rejects=rejects)
    assert (largest.batch_size, largest.needed, largest.is_verified) == (88, 980, True)


def test_an_estimate_compiles_one_more_program():
    largest, compiled = search(linear, 16, [8], 1000, verifies=False)
    assert (largest.batch_size, largest.needed, largest.is_verified) == (88, 980, False)
    assert compiled == [8]


def test_a_batch_that_needs_more_than_estimated_is_lowered():
    # Above 50 images the program needs 15% more.
    largest, compiled = search(lambda n: int(linear(n) * (1 + 0.15 * (n > 50))), 16, [1], 1000)
    assert largest.is_verified
    assert 70 <= largest.batch_size <= 77
    assert len(compiled) <= 4


def test_memory_that_falls_with_the_size_does_not_end_the_search_early():
    # Measured for an H100 in float32: 47 images need more than 48, which just do not fit.
    needs = {47: 1005, 48: 1001}
    largest, _ = search(lambda n: needs.get(n, 10 + 20 * n), 16, [1], 1000)
    assert 40 <= largest.batch_size <= 49
    assert search(lambda n: 10 + 20 * n + 40 * (n >= 44), 16, [1], 1000)[0].batch_size >= 43


def test_a_size_that_does_not_fit_is_halved_until_it_does():
    largest, compiled = search(linear, 640, [8], 1000, rejects=True)
    assert largest.batch_size == 88
    assert compiled[:4] == [320, 160, 80, 40]


def test_the_preferred_multiple_is_only_required_where_it_fits():
    assert search(linear, 16, [32, 4], 1000)[0].batch_size == 64
    assert search(linear, 16, [32, 4], 400)[0].batch_size == 28


def test_no_size_fits():
    largest, _ = search(linear, 4, [4], 50, rejects=True)
    assert largest.batch_size == 0


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (126.50G) exceeds available HBM (15.75G).",
            126.5,
        ),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 17.25G of 15.75G hbm.", 17.25),
        ("RESOURCE_EXHAUSTED: something else", 0),
    ],
)
def test_the_need_of_a_rejected_program_is_in_the_message(message, gib):
    assert exhausted_bytes(message) == gib * 2**30
