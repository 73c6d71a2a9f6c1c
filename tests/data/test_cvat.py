"""CVAT for images: every outline has a box, and the subsets of a project are its splits."""

import numpy as np
import pytest
from nine_formats import make_content, write_cvat, write_images

from retinanet_jax.data.sources.cvat import CvatSource
from retinanet_jax.data.sources.detection import detect_dataset

CONTENT = make_content(3)
LABELS = "".join(f"<label><name>{name}</name></label>" for name in ("dog", "cat"))


def write_shapes(folder, shapes, labels=LABELS):
    """Write an export of one image with these elements."""
    name, (height, width) = next(iter(CONTENT.sizes.items()))
    write_images(folder / "images", CONTENT._replace(sizes={name: (height, width)}))
    file = folder / "annotations.xml"
    file.write_text(
        f"<annotations><meta><job><labels>{labels}</labels></job></meta>"
        f'<image id="0" name="{name}" width="{width}" height="{height}">{shapes}</image>'
        "</annotations>"
    )
    return file


@pytest.mark.parametrize(
    ("shape", "yxyx"),
    [
        ('<box label="cat" xtl="1.5" ytl="2" xbr="30" ybr="40" occluded="1"/>', (2, 1.5, 40, 30)),
        # 10 x 20 around (20, 30), turned by 90 degrees.
        ('<box label="cat" xtl="15" ytl="20" xbr="25" ybr="40" rotation="90"/>', (25, 10, 35, 30)),
        ('<polygon label="cat" points="3,4;10.5,2;7,9"/>', (2, 3, 9, 10.5)),
        ('<ellipse label="cat" cx="20" cy="30" rx="5" ry="10"/>', (20, 15, 40, 25)),
        (
            '<mask label="cat" left="4" top="6" width="3" height="2" rle="6"/>',
            (6, 4, 8, 7),
        ),
    ],
)
def test_the_box_of_a_shape_is_the_smallest_that_contains_it(tmp_path, shape, yxyx):
    source = CvatSource(write_shapes(tmp_path, shape))
    np.testing.assert_allclose(source.objects.boxes, [yxyx], atol=1e-9)
    assert [category.name for category in source.categories] == ["dog", "cat"]
    assert source.objects.classes.tolist() == [1]


def test_shapes_without_a_box_are_counted_and_points_of_skeletons_are_no_categories(
    tmp_path, caplog
):
    shapes = (
        '<tag label="cat"/><points label="cat" points="1,2"/><polyline label="cat" points="1,2"/>'
        '<skeleton label="cat"><points label="nose" points="1,2"/></skeleton>'
        '<polygon label="cat" points="1,1;9,1;9,9"/>'
    )
    labels = LABELS + "<label><name>nose</name><parent>cat</parent></label>"
    source = CvatSource(write_shapes(tmp_path, shapes, labels))
    assert len(source.objects.ids) == 1
    assert [category.name for category in source.categories] == ["dog", "cat"]
    assert "3 shapes are not read (first: a points in photo 0.jpg)" in caplog.text


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ('<box label="cat" xtl="9" ytl="2" xbr="3" ybr="4"/>', "shape 1 has xtl=9 above xbr=3"),
        ('<box label="cat" xtl="9" ytl="2" xbr="30"/>', "shape 1 has ybr=None, not a finite"),
        ('<box label=" " xtl="1" ytl="2" xbr="3" ybr="4"/>', "shape 1 has label=' ', not a name"),
        ('<polygon label="cat" points="1,2,3;4"/>', "points='1,2,3;4', not x,y;x,y"),
        ('<box label="fox" xtl="1" ytl="2" xbr="3" ybr="4"/>', "'fox', but the categories are dog"),
    ],
)
def test_invalid_shapes_are_named(tmp_path, shape, words):
    with pytest.raises(ValueError, match=r"annotations.xml: ") as caught:
        CvatSource(write_shapes(tmp_path, shape))
    assert words in str(caught.value)


@pytest.mark.parametrize("in_folders", [True, False])
def test_the_subsets_of_a_project_are_its_splits(tmp_path, in_folders):
    file = write_cvat(tmp_path, CONTENT) / "annotations.xml"
    text = file.read_text()
    for k, subset in enumerate(("Train", "Validation", "Train")):
        text = text.replace(f'<image id="{k}"', f'<image id="{k}" subset="{subset}"')
        if in_folders:
            (tmp_path / "images" / subset).mkdir(exist_ok=True)
            name = f"photo {k}.jpg"
            (tmp_path / "images" / name).rename(tmp_path / "images" / subset / name)
    file.write_text(text)
    detected = detect_dataset(tmp_path)
    assert detected.train["split"] == "Train"
    assert detected.evaluation is not None
    assert detected.evaluation["split"] == "Validation"
    for split, images in (("Train", (1, 3)), ("Validation", (2,)), ("", (1, 2, 3))):
        source = CvatSource(file, split=split)
        assert source.image_ids == list(images)
        assert all(source.path(index).is_file() for index in range(len(source)))
    with pytest.raises(ValueError, match="no image of the subset 'test'; give one of Train, Val"):
        CvatSource(file, split="test")


def test_the_same_name_in_two_subsets_means_two_images(tmp_path):
    file = write_cvat(tmp_path, CONTENT) / "annotations.xml"
    text = file.read_text()
    for k, subset in enumerate(("a", "b", "c")):
        (tmp_path / "images" / subset).mkdir()
        (tmp_path / "images" / f"photo {k}.jpg").rename(tmp_path / "images" / subset / "0.jpg")
        text = text.replace(
            f'id="{k}" name="photo {k}.jpg"', f'id="{k}" subset="{subset}" name="0.jpg"'
        )
    file.write_text(text)
    assert CvatSource(file).file_names == ["a/0.jpg", "b/0.jpg", "c/0.jpg"]


def test_subsets_that_are_no_splits_are_read_together(tmp_path):
    file = write_cvat(tmp_path, CONTENT) / "annotations.xml"
    file.write_text(file.read_text().replace("<image id", '<image subset="default" id'))
    assert detect_dataset(file).train == {"source": "cvat", "annotations": str(file)}


def test_the_tracks_of_a_video_are_named(tmp_path):
    file = tmp_path / "annotations.xml"
    file.write_text('<annotations><meta/><track id="0" label="cat"/></annotations>')
    with pytest.raises(ValueError, match="tracks of a video, which have no image files; export"):
        CvatSource(file)
