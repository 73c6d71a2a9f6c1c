"""Several sources as one: no object is lost, no two classes are mixed, every id is unique."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.merged import merge
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.evaluation.coco_metrics import coco_metrics

CAT, DOG, EMU = Category(7, "cat"), Category(3, "dog"), Category(9, "emu")


class ConstantSource(Source):
    """A source without files, in which all pixels of the image with id k are k."""

    def __init__(self, name, categories, image_ids, objects=()):
        """Make the objects from tuples of (annotation id, image index, category id)."""
        class_of = {category.id: k for k, category in enumerate(sorted(categories))}
        listed = ObjectList()
        for annotation_id, image_index, category_id in objects:
            listed.append(annotation_id, image_index, class_of[category_id], (1.0, 2.0, 5.0, 8.0))
        super().__init__(
            name,
            image_ids=list(image_ids),
            file_names=[f"{name}{index}.jpg" for index in range(len(image_ids))],
            sizes=np.array([[10 + index, 20] for index in range(len(image_ids))], np.int32),
            categories=categories,
            objects=listed.to_objects(),
        )

    def read(self, index):
        return None

    def image(self, index):
        return np.full((*self.sizes[index], 3), self.image_ids[index], np.uint8)


def annotated(source) -> list[tuple[str, str]]:
    """Return (file name, category name) of every object from `annotations`."""
    return [
        (source.file_name(index), source.categories[k].name)
        for index in range(len(source))
        for k in source.annotations(index).classes.tolist()
    ]


def evaluated(source) -> list[tuple[str, str]]:
    """Return (file name, category name) of every object from `ground_truth`."""
    truth = source.ground_truth()
    file_of = {image["id"]: image["file_name"] for image in truth["images"]}
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    return sorted(
        (file_of[annotation["image_id"]], name_of[annotation["category_id"]])
        for annotation in truth["annotations"]
    )


def test_a_single_source_is_returned_unchanged():
    source = ConstantSource("a", [CAT, DOG], [5, 6])
    assert merge([source]) is source


def test_ids_without_conflicts_are_unchanged(caplog):
    both = merge(
        [
            ConstantSource("a", [CAT, DOG], [5, 6], [(1, 0, 7), (2, 1, 3)]),
            ConstantSource("b", [CAT, DOG], [8], [(3, 0, 3)]),
        ]
    )
    assert both.name == "a + b"
    assert both.categories == (DOG, CAT)
    assert list(both.image_ids) == [5, 6, 8]
    assert both.sizes.tolist() == [[10, 20], [11, 20], [10, 20]]
    assert [both.file_name(index) for index in range(3)] == ["a0.jpg", "a1.jpg", "b0.jpg"]
    assert [int(both.image(index)[0, 0, 0]) for index in range(3)] == [5, 6, 8]
    assert both.read(2) is None
    assert [both.annotations(index).classes.tolist() for index in range(3)] == [[1], [0], [0]]
    assert [annotation["id"] for annotation in both.ground_truth()["annotations"]] == [1, 2, 3]
    assert not caplog.messages


def test_ids_are_renumbered_if_two_sources_use_the_same():
    both = merge(
        [
            ConstantSource("a", [CAT], [1, 2], [(1, 0, 7), (2, 1, 7)]),
            ConstantSource("b", [CAT], [2, 9], [(2, 0, 7), (5, 1, 7)]),
        ]
    )
    truth = both.ground_truth()
    assert list(both.image_ids) == [1, 2, 3, 4]
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4]
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]
    assert [annotation["image_id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]


def test_a_category_gets_the_id_of_the_first_source_with_its_name():
    other = ConstantSource(
        "b", [Category(1, "dog"), Category(3, "emu")], [2], [(1, 0, 1), (2, 0, 3)]
    )
    both = merge([ConstantSource("a", [CAT, DOG], [1], [(1, 0, 3)]), other])
    # emu's 3 is already dog's, so it gets 8, the next id above 7.
    assert both.categories == (DOG, CAT, Category(8, "emu"))
    assert annotated(both) == [("a0.jpg", "dog"), ("b0.jpg", "dog"), ("b0.jpg", "emu")]
    assert evaluated(both) == annotated(both)
    assert [annotation["category_id"] for annotation in both.ground_truth()["annotations"]] == [
        3,
        3,
        8,
    ]


def test_a_warning_names_the_categories_that_a_source_lacks(caplog):
    both = merge([ConstantSource("a", [CAT, DOG], [1]), ConstantSource("b", [DOG, EMU], [2])])
    assert both.categories == (DOG, CAT, EMU)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("a: lacks 1 categories of the datasets")
    assert "(first: emu)" in caplog.messages[0]
    assert "(first: cat)" in caplog.messages[1]


def test_files_and_annotations_of_the_merged_sources(folder):
    """Both sources are COCO's and have ids from 1."""
    folder.add_image(40, 60)
    folder.add_box(1, [10, 5, 20, 30], category_id=7, iscrowd=1, area=17)
    source = folder.load()
    both = merge([source, source])
    assert both.read(1) == source.read(0)
    np.testing.assert_array_equal(both.image(1), source.image(0))
    assert both.annotations(1).crowd.tolist() == [True]
    assert both.ground_truth()["annotations"][1] == {
        "id": 2,
        "image_id": 2,
        "category_id": 7,
        "bbox": [10, 5, 20, 30],
        "iscrowd": 1,
        "area": 17,
    }


def test_detections_equal_to_the_merged_ground_truth_have_ap_1():
    other = ConstantSource("b", [Category(3, "cat")], [1], [(1, 0, 3)])
    both = merge([ConstantSource("a", [CAT, DOG], [1], [(1, 0, 3)]), other])
    perfect = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in both.ground_truth()["annotations"]
    ]
    assert coco_metrics(both.ground_truth(), perfect)[0]["AP"] == pytest.approx(1)


names = st.sampled_from(("ant", "bee", "cow", "doe", "emu"))
ids = st.integers(1, 7)


@st.composite
def sources(draw):
    sources = []
    for name in "abc"[: draw(st.integers(2, 3))]:
        categories = draw(
            st.dictionaries(ids, names, min_size=1).filter(
                lambda name_of: len(set(name_of.values())) == len(name_of)
            )
        )
        image_ids = draw(st.lists(ids, unique=True, min_size=1, max_size=4))
        indices = st.integers(0, len(image_ids) - 1)
        objects = draw(
            st.lists(
                st.tuples(ids, indices, st.sampled_from(sorted(categories))),
                unique_by=lambda entry: entry[0],
                max_size=5,
            )
        )
        listed = [Category(*category) for category in categories.items()]
        sources.append((name, listed, image_ids, objects))
    return sources


@settings(deadline=None)
@given(contents=sources())
def test_no_object_changes_its_image_or_category_name(contents):
    sources = [ConstantSource(*content) for content in contents]
    everything = merge(sources)
    assert len(everything) == sum(map(len, sources))
    assert annotated(everything) == [pair for source in sources for pair in annotated(source)]
    assert evaluated(everything) == sorted(pair for source in sources for pair in evaluated(source))
    truth = everything.ground_truth()
    for section in ("images", "annotations", "categories"):
        entry_ids = [entry["id"] for entry in truth[section]]
        assert len(set(entry_ids)) == len(entry_ids)
    assert [image["id"] for image in truth["images"]] == list(everything.image_ids)
    assert [Category(**category) for category in truth["categories"]] == list(everything.categories)
    assert list(everything.categories) == sorted(everything.categories)
    pixels = [int(everything.image(index)[0, 0, 0]) for index in range(len(everything))]
    assert pixels == [image_id for source in sources for image_id in source.image_ids]
