"""Several sources as one: nothing lost, no two classes mixed, every id unique."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.data.sources.base import Annotations, Category, Source
from retinanet_jax.data.sources.merged import merged
from retinanet_jax.evaluation.coco_metrics import coco_metrics

CAT, DOG, EMU = Category(7, "cat"), Category(3, "dog"), Category(9, "emu")


class Held(Source):
    """Pixels, not files: the picture of id k is all k."""

    def __init__(self, name, categories, image_ids, objects=()):
        self.name = name
        self.categories = tuple(sorted(categories))
        self.image_ids = list(image_ids)
        self.sizes = np.array([[10 + row, 20] for row in range(len(image_ids))], np.int32)
        self.objects = list(objects)  # (annotation id, row, category id)

    def annotations(self, index):
        class_of = {category.id: k for k, category in enumerate(self.categories)}
        own = [class_of[kind] for _, row, kind in self.objects if row == index]
        boxes = np.tile(np.array([[1, 2, 5, 8]], np.float32), (len(own), 1))
        return Annotations(boxes, np.array(own, np.int32), np.zeros(len(own), bool))

    def file_name(self, index):
        return f"{self.name}{index}.jpg"

    def read(self, index):
        return None

    def image(self, index):
        return np.full((*self.sizes[index], 3), self.image_ids[index], np.uint8)

    def ground_truth(self):
        return {
            "images": [
                {"id": number, "file_name": self.file_name(row)}
                | {"height": int(self.sizes[row, 0]), "width": 20}
                for row, number in enumerate(self.image_ids)
            ],
            "categories": [category._asdict() for category in self.categories],
            "annotations": [
                {"id": number, "image_id": self.image_ids[row], "category_id": kind}
                | {"bbox": [2, 1, 6, 4], "area": 24, "iscrowd": 0}
                for number, row, kind in self.objects
            ],
        }


def shown(source) -> list[tuple[str, str]]:
    """(file name, category name) of every object, by what the pipeline is given."""
    return [
        (source.file_name(row), source.categories[k].name)
        for row in range(len(source))
        for k in source.annotations(row).classes.tolist()
    ]


def judged(source) -> list[tuple[str, str]]:
    """The same by what pycocotools is given."""
    truth = source.ground_truth()
    file_of = {image["id"]: image["file_name"] for image in truth["images"]}
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    found = [
        (file_of[one["image_id"]], name_of[one["category_id"]]) for one in truth["annotations"]
    ]
    return sorted(found)


def test_one_source_is_itself():
    source = Held("a", [CAT, DOG], [5, 6])
    assert merged([source]) is source


def test_where_nothing_contradicts_all_ids_stay(caplog):
    both = merged(
        [
            Held("a", [CAT, DOG], [5, 6], [(1, 0, 7), (2, 1, 3)]),
            Held("b", [CAT, DOG], [8], [(3, 0, 3)]),
        ]
    )
    assert both.name == "a + b"
    assert both.categories == (DOG, CAT)
    assert list(both.image_ids) == [5, 6, 8]
    assert both.sizes.tolist() == [[10, 20], [11, 20], [10, 20]]
    assert [both.file_name(row) for row in range(3)] == ["a0.jpg", "a1.jpg", "b0.jpg"]
    assert [int(both.image(row)[0, 0, 0]) for row in range(3)] == [5, 6, 8]
    assert both.read(2) is None
    assert [both.annotations(row).classes.tolist() for row in range(3)] == [[1], [0], [0]]
    assert [one["id"] for one in both.ground_truth()["annotations"]] == [1, 2, 3]
    assert not caplog.messages


def test_ids_that_two_sources_share_are_numbered_anew():
    both = merged(
        [
            Held("a", [CAT], [1, 2], [(1, 0, 7), (2, 1, 7)]),
            Held("b", [CAT], [2, 9], [(2, 0, 7), (5, 1, 7)]),
        ]
    )
    truth = both.ground_truth()
    assert list(both.image_ids) == [1, 2, 3, 4]
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4]
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4]
    assert [one["image_id"] for one in truth["annotations"]] == [1, 2, 3, 4]


def test_the_first_source_of_a_name_gives_its_id():
    other = Held("b", [Category(1, "dog"), Category(3, "emu")], [2], [(1, 0, 1), (2, 0, 3)])
    both = merged([Held("a", [CAT, DOG], [1], [(1, 0, 3)]), other])
    # emu's 3 is dog's already: the next above 7.
    assert both.categories == (DOG, CAT, Category(8, "emu"))
    assert shown(both) == [("a0.jpg", "dog"), ("b0.jpg", "dog"), ("b0.jpg", "emu")]
    assert judged(both) == shown(both)
    assert [one["category_id"] for one in both.ground_truth()["annotations"]] == [3, 3, 8]


def test_categories_that_a_source_lacks_are_warned_of(caplog):
    both = merged([Held("a", [CAT, DOG], [1]), Held("b", [DOG, EMU], [2])])
    assert both.categories == (DOG, CAT, EMU)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("a: lacks 1 categories of the data")
    assert "(first: emu)" in caplog.messages[0]
    assert "(first: cat)" in caplog.messages[1]


def test_files_and_their_pictures(folder):
    """Through a JSON's source, whose own ids begin with 1 in both."""
    folder.add_image(40, 60)
    folder.add_box(1, [10, 5, 20, 30], category_id=7, iscrowd=1, area=17)
    source = folder.load()
    both = merged([source, source])
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


def test_pycocotools_finds_in_the_merged_what_is_there():
    other = Held("b", [Category(3, "cat")], [1], [(1, 0, 3)])
    both = merged([Held("a", [CAT, DOG], [1], [(1, 0, 3)]), other])
    perfect = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for one in both.ground_truth()["annotations"]
    ]
    assert coco_metrics(both.ground_truth(), perfect)[0]["AP"] == pytest.approx(1)


names = st.sampled_from(("ant", "bee", "cow", "doe", "emu"))
ids = st.integers(1, 7)


@st.composite
def sources(draw):
    found = []
    for name in "abc"[: draw(st.integers(2, 3))]:
        kinds = draw(
            st.dictionaries(ids, names, min_size=1).filter(lambda d: len(set(d.values())) == len(d))
        )
        image_ids = draw(st.lists(ids, unique=True, min_size=1, max_size=4))
        rows = st.integers(0, len(image_ids) - 1)
        objects = st.tuples(ids, rows, st.sampled_from(sorted(kinds)))
        drawn = draw(st.lists(objects, unique_by=lambda one: one[0], max_size=5))
        found.append(Held(name, [Category(*kind) for kind in kinds.items()], image_ids, drawn))
    return found


@settings(deadline=None)
@given(sources=sources())
def test_no_object_changes_its_picture_or_its_name(sources):
    everything = merged(sources)
    assert len(everything) == sum(map(len, sources))
    assert shown(everything) == [one for source in sources for one in shown(source)]
    assert judged(everything) == sorted(one for source in sources for one in judged(source))
    truth = everything.ground_truth()
    for section in ("images", "annotations", "categories"):
        numbers = [one["id"] for one in truth[section]]
        assert len(set(numbers)) == len(numbers)
    assert [image["id"] for image in truth["images"]] == list(everything.image_ids)
    assert [(one["id"], one["name"]) for one in truth["categories"]] == list(everything.categories)
    assert list(everything.categories) == sorted(everything.categories)
    pictures = [int(everything.image(row)[0, 0, 0]) for row in range(len(everything))]
    assert pictures == [number for source in sources for number in source.image_ids]
