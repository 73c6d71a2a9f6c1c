"""Subsets and the stable split."""

import pytest

from retinanet_jax.data.sources.base import split_by_hash, subset


def names(source) -> list[str]:
    return [source.file_name(index) for index in range(len(source))]


@pytest.fixture
def twelve(folder):
    for number in range(12):
        folder.add_image(40 + number, 60)
        folder.add_box(number + 1, [number, 0, 10, 10])
    return folder


def test_a_subset_is_the_source_at_its_indices(twelve):
    source = twelve.load()
    part = subset(source, [7, 2])
    assert len(part) == 2
    assert list(part.image_ids) == [8, 3]
    assert part.sizes.tolist() == [[47, 60], [42, 60]]
    assert part.read(1) == source.read(2)
    assert part.annotations(0).boxes.tolist() == source.annotations(7).boxes.tolist()
    truth = part.ground_truth()
    assert [image["id"] for image in truth["images"]] == [3, 8]
    assert [one["image_id"] for one in truth["annotations"]] == [3, 8]
    assert len(truth["categories"]) == 2
    assert names(subset(part, [1])) == ["3.img"]


def test_a_split_parts_all_pictures(twelve):
    source = twelve.load()
    train, validation = split_by_hash(source, 0.3)
    assert sorted(names(train) + names(validation)) == sorted(names(source))
    assert len(train) > 0
    assert len(validation) > 0


def test_a_picture_keeps_its_side_when_others_come(twelve):
    before = split_by_hash(twelve.load(), 0.4)
    for _ in range(30):
        twelve.add_image(40, 60)
    after = split_by_hash(twelve.load(), 0.4)
    for side in (0, 1):
        assert set(names(before[side])) <= set(names(after[side]))


def test_the_split_is_the_same_on_every_machine(twelve):
    # Those whose names' sha256, as a fraction of 2^256, is below 0.3.
    expected = ["4.img", "7.img", "10.img", "11.img"]
    assert names(split_by_hash(twelve.load(), 0.3)[1]) == expected


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_ever_empty(twelve, fraction):
    train, validation = split_by_hash(twelve.load(), fraction)
    assert min(len(train), len(validation)) == 1


def test_one_picture_cannot_be_parted(folder):
    folder.add_image(40, 60)
    with pytest.raises(ValueError, match="1 pictures cannot be parted"):
        split_by_hash(folder.load(), 0.5)
    with pytest.raises(ValueError, match=r"fraction=1\.5 must lie between 0 and 1"):
        split_by_hash(folder.load(), 1.5)
