"""A split keeps the images of one scene on one side, and holds out the fraction that was asked."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.data.sources.similarity import hash_images, near_pairs
from retinanet_jax.data.sources.split import split_by_groups, split_by_hash


class NamedSource(Source):
    """Images with given names and pixels; each has one object of a given class."""

    def __init__(self, file_names, pixels=None, classes=None):
        self._pixels = pixels
        listed = ObjectList()
        for index, k in enumerate(classes or [0] * len(file_names)):
            listed.append(index, index, k, (1.0, 1.0, 5.0, 5.0))
        super().__init__(
            "named",
            image_ids=list(range(len(file_names))),
            file_names=list(file_names),
            sizes=np.tile(np.array([[32, 48]], np.int32), (len(file_names), 1)),
            categories=[Category(k, f"c{k}") for k in range(10)],
            objects=listed.to_objects(),
        )

    def read(self, index):
        return None

    def image(self, index):
        return noise(index) if self._pixels is None else self._pixels[index]


def noise(seed, height=32, width=48):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(seed, height=96, width=128):
    """Return a random image without fine detail, as photographs are."""
    small = noise(seed, 24, 32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def split(source, fraction, rule="auto"):
    parts = split_by_groups(source, fraction, rule, lambda count: None)
    assert sorted([*parts[0].file_names, *parts[1].file_names]) == sorted(source.file_names)
    return parts


@pytest.mark.parametrize(
    "pattern",
    [
        "video{}_frame_{:06d}.jpg",
        "clip {}/{}.png",
        "scene{}-{:04d}_jpg.rf.0a1b2c3d4e5f.jpg",
        "2024-05-0{}_1200{:02d}.jpg",
    ],
)
def test_the_frames_of_a_video_stay_on_one_side(pattern):
    source = NamedSource([pattern.format(v, f) for v in range(5) for f in range(6)])
    train, validation = split(source, 0.2)
    assert len(validation) == 6
    length = pattern.index("{") + 1  # up to the number of the video
    videos = [{name[:length] for name in part.file_names} for part in (train, validation)]
    assert len(videos[0] | videos[1]) == 5
    assert not videos[0] & videos[1]


@pytest.mark.parametrize("pattern", ["frame_{:04d}.jpg", "scene 1/{:04d}.jpg", "shot{:04d}.jpg"])
def test_a_single_video_is_split_into_runs_of_frames(pattern):
    source = NamedSource([pattern.format(k) for k in range(100)])
    validation = split(source, 0.2)[1]
    assert len(validation) == 20
    numbers = sorted(int(name[-8:-4]) for name in validation.file_names)
    assert np.count_nonzero(np.diff(numbers) > 1) <= 1  # two runs of ten frames at most


@pytest.mark.parametrize(
    "pattern",
    ["IMG_{:04d}.JPG", "{:012d}.jpg", "cat{}.jpg", "cats/{:03d}.jpg"],
)
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_series_of_photographs_are_split_one_by_one_and_exactly(pattern, fraction):
    source = NamedSource([pattern.format(k) for k in range(100)])
    _, validation = split(source, fraction)
    assert len(validation) == round(fraction * 100)
    # Those with the smallest hashes, which were held out before, too.
    before = split_by_hash(source, fraction)[1].file_names
    both = set(before) & set(validation.file_names)
    assert len(both) == min(len(before), len(validation))


def test_a_year_is_no_number_of_a_video():
    source = NamedSource([f"20{y:02d}_{k:06d}.jpg" for y in range(5, 12) for k in range(10)])
    validation = split(source, 0.2)[1]
    assert len(validation) == 14
    assert len({name[:4] for name in validation.file_names}) > 2


def test_augmented_copies_stay_with_their_original():
    originals = [f"dog{k}" for k in range(40)]
    suffixes = [".jpg", "_aug1.jpg", "_jpg.rf.0123456789abcdef0123.jpg", "-flipped.png"]
    source = NamedSource([name + suffix for name in originals for suffix in suffixes])
    train, validation = split(source, 0.25)
    of = [
        {re.match(r"dog\d+", name)[0] for name in part.file_names} for part in (train, validation)
    ]
    assert not of[0] & of[1]
    assert len(validation) == 40


def test_a_regular_expression_names_the_group():
    source = NamedSource([f"{k}-patient{k % 10}.png" for k in range(60)])
    train, validation = split(source, 0.3, rule=r"(patient\d+)")
    of = [{name.split("-")[1] for name in part.file_names} for part in (train, validation)]
    assert not of[0] & of[1]
    assert len(validation) == 18
    with pytest.raises(ValueError, match=r"data.split_groups='\(' is neither auto nor none"):
        split(source, 0.3, rule="(")


def test_nearly_identical_images_stay_together_whatever_their_names():
    scenes = [smooth(k) for k in range(20)]
    copies = [
        np.asarray(Image.fromarray(scene).resize((64, 48), Image.Resampling.BOX)).astype(np.int16)
        for scene in scenes
    ]
    brighter = [np.clip(scene + 12, 0, 255).astype(np.uint8) for scene in copies]
    names = [f"{chr(97 + k)}{part}.jpg" for part in "xy" for k in range(20)]
    source = NamedSource(names, [*scenes, *brighter])
    train, validation = split(source, 0.3)
    assert len(validation) == 12
    assert not {name[0] for name in train.file_names} & {name[0] for name in validation.file_names}


def test_images_without_content_are_not_similar():
    flat = [np.full((32, 48, 3), value, np.uint8) for value in range(10)]
    source = NamedSource([f"{k}.png" for k in range(10)], flat)
    hashes = hash_images(source, lambda count: None)
    assert not hashes.mask.any()
    assert near_pairs(hashes).shape == (0, 2)
    assert len(split(source, 0.3)[1]) == 3


def test_if_all_images_are_alike_they_are_split_one_by_one():
    scene = smooth(0)
    source = NamedSource([f"{chr(97 + k)}.png" for k in range(10)], [scene] * 10)
    assert len(split(source, 0.3)[1]) == 3


def test_the_last_group_of_a_category_is_trained_on():
    names = [f"{k}.png" for k in range(50)]
    first = split(NamedSource(names), 0.2)[1].file_names  # with one category for all
    classes = [1 + first.index(name) % 9 if name in first else 0 for name in names]
    train, _ = split(NamedSource(names, classes=classes), 0.2)
    trained = set(train.objects.classes.tolist())
    assert trained == set(classes)


def test_an_object_is_among_the_validation_images_if_training_can_spare_one():
    names = [f"{k}.png" for k in range(40)]
    for first in range(10):
        source = NamedSource(names)
        objects = source.objects.select(np.array([first, first + 20]))
        few = NamedSource(names)
        few.objects = objects
        few._bounds = np.searchsorted(objects.image_index, np.arange(41))
        train, validation = split(few, 0.2)
        assert len(validation) == 8
        assert train.object_mask.sum() == validation.object_mask.sum() == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=30), st.floats(0.05, 0.6))
def test_every_image_is_in_one_part_and_no_group_in_both(sizes, fraction):
    names = [f"clip{g}_{k:03d}.jpg" for g, size in enumerate(sizes) for k in range(size)]
    train, validation = split(NamedSource(names), fraction, rule=r"(clip\d+)_")
    of = [{name.split("_")[0] for name in part.file_names} for part in (train, validation)]
    assert len(train) > 0
    assert len(validation) > 0
    assert not of[0] & of[1]
    target = round(fraction * len(names))
    assert abs(len(validation) - target) <= max(sizes)


def test_pairs_across_two_datasets():
    first = NamedSource([f"{k}.png" for k in range(4)], [smooth(k) for k in range(4)])
    second = NamedSource([f"{k}.png" for k in range(3)], [smooth(k) for k in (7, 2, 9)])
    hashes = [hash_images(source, lambda count: None) for source in (first, second)]
    assert near_pairs(*hashes).tolist() == [[2, 1]]


def test_a_jpeg_and_a_png_of_one_image_are_similar(encode):
    class FileSource(NamedSource):
        def read(self, index):
            return encoded[index]

    pixels, file = smooth(1, 480, 640), io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    encoded = [file.getvalue(), encode(pixels, "PNG"), encode(smooth(2, 480, 640), "PNG")]
    source = FileSource(["a.jpg", "b.png", "c.png"], [pixels] * 3)
    assert near_pairs(hash_images(source, lambda count: None)).tolist() == [[0, 1]]


def test_images_beyond_pillows_limit_of_pixels_are_compared_too(encode, monkeypatch):
    class FileSource(NamedSource):
        def read(self, index):
            return encoded[index]

    encoded = [encode(smooth(1), "JPEG"), encode(smooth(1), "PNG")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 128 // 3)
    source = FileSource(["a.jpg", "b.png"])
    assert near_pairs(hash_images(source, lambda count: None)).tolist() == [[0, 1]]
