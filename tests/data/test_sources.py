"""Subsets of a dataset are datasets, and its split is reproducible."""

import pytest

from retinanet_jax.data.sources.base import split_by_hash, subset


def names(source) -> list[str]:
    return [source.file_name(index) for index in range(len(source))]


@pytest.fixture
def twelve_images(folder):
    for index in range(12):
        folder.add_image(40 + index, 60)
        folder.add_box(index + 1, [index, 0, 10, 10])
    return folder


def test_a_subset_is_the_source_at_those_indices(twelve_images):
    source = twelve_images.load()
    part = subset(source, [7, 2])
    assert len(part) == 2
    assert list(part.image_ids) == [8, 3]
    assert part.sizes.tolist() == [[47, 60], [42, 60]]
    assert part.read(1) == source.read(2)
    assert part.annotations(0).boxes.tolist() == source.annotations(7).boxes.tolist()
    truth = part.ground_truth()
    assert [image["id"] for image in truth["images"]] == [3, 8]
    assert [annotation["image_id"] for annotation in truth["annotations"]] == [3, 8]
    assert len(truth["categories"]) == 2
    assert names(subset(part, [1])) == ["3.img"]


def test_a_split_has_every_image_in_one_part(twelve_images):
    source = twelve_images.load()
    train, validation = split_by_hash(source, 0.3)
    assert sorted(names(train) + names(validation)) == sorted(names(source))
    assert len(train) > 0
    assert len(validation) > 0


def test_an_image_stays_in_its_part_when_others_are_added(twelve_images):
    before = split_by_hash(twelve_images.load(), 0.4)
    for _ in range(30):
        twelve_images.add_image(40, 60)
    after = split_by_hash(twelve_images.load(), 0.4)
    for part in (0, 1):
        assert set(names(before[part])) <= set(names(after[part]))


def test_the_split_is_the_same_on_every_machine(twelve_images):
    # The sha256 of these names, as a fraction of 2^256, is below 0.3.
    expected = ["4.img", "7.img", "10.img", "11.img"]
    assert names(split_by_hash(twelve_images.load(), 0.3)[1]) == expected


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_no_part_is_ever_empty(twelve_images, fraction):
    train, validation = split_by_hash(twelve_images.load(), fraction)
    assert min(len(train), len(validation)) == 1


def test_a_single_image_cannot_be_split(folder):
    folder.add_image(40, 60)
    with pytest.raises(ValueError, match="1 images cannot be split"):
        split_by_hash(folder.load(), 0.5)
    with pytest.raises(ValueError, match=r"fraction=1\.5 must lie between 0 and 1"):
        split_by_hash(folder.load(), 1.5)
