"""Results are computed ahead, by threads or on the device, and yielded in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet_jax.utils.threads import grouped, in_order, map_ahead, one_in_flight


@given(st.lists(st.integers(0, 3)), st.integers(1, 5), st.integers(0, 8))
def test_a_group_has_one_key_and_waits_no_longer_than_its_patience(keys, size, patience):
    taken = []

    def items():
        for index, key in enumerate(keys):
            taken.append(index)
            yield key

    groups = []
    for group in grouped(items(), lambda key: key, size=size, patience=patience):
        indices = [index for index, _ in group]
        assert indices == sorted(indices)
        assert {key for _, key in group} == {keys[index] for index in indices}
        assert len({keys[index] for index in indices}) == 1
        is_full, is_last = len(group) == size, taken[-1] == len(keys) - 1
        assert is_full or is_last or taken[-1] - indices[0] >= patience
        groups.append(group)
    assert sorted(index for group in groups for index, _ in group) == list(range(len(keys)))
    assert list(in_order(groups)) == keys


def test_map_ahead_keeps_the_order_of_results_and_errors():
    assert list(map_ahead(lambda x: 10 / x, range(1, 50), num_ahead=3)) == [
        10 / x for x in range(1, 50)
    ]
    values = map_ahead(lambda x: 10 / x, (1, 0, 2), num_ahead=3)
    assert next(values) == 10
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_an_item_in_flight_is_yielded_after_the_next_has_started():
    started = []
    results = one_in_flight(started.append(i) or i for i in range(3))
    assert started == []
    assert [(result, tuple(started)) for result in results] == [
        (0, (0, 1)),
        (1, (0, 1, 2)),
        (2, (0, 1, 2)),
    ]
    assert list(one_in_flight([])) == []
