"""A batch that is made of images has all fields, with the right shapes, dtypes and defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from retinanet_jax.data.batch import Batch

SIZES = np.float32([[60, 64], [64, 50]])


@pytest.mark.parametrize("library", [np, jnp])
def test_the_fields_are_arrays_of_the_images_library(library):
    images = library.zeros((2, 64, 64, 3), np.uint8)
    batch = Batch.of_images(images, library.asarray(SIZES), library.ones((2, 2), np.float32))
    assert {type(field) for field in batch} == {type(images)}
    assert " ".join(field.dtype.name for field in batch) == (
        "uint8 float32 float32 float32 int32 bool float32 bool float32 int32 float32 int32"
    )


def test_the_defaults_are_images_without_ground_truth_and_with_unchanged_colors():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    batch = Batch.of_images(images, SIZES, np.ones_like(SIZES), num_boxes=8, num_crowd=1)
    assert batch.boxes.shape == (2, 8, 4)
    assert batch.classes.shape == batch.mask.shape == (2, 8)
    assert batch.crowd_boxes.shape == (2, 1, 4)
    assert batch.crowd_mask.shape == (2, 1)
    for field in (batch.boxes, batch.classes, batch.mask, batch.crowd_boxes, batch.crowd_mask):
        assert not field.any()
    assert batch.colors.tolist() == [[1, 1, 1, 0]] * 2
    assert batch.weights.tolist() == [1, 1]
    assert batch.index.tolist() == [0, 1]
    assert batch.dropped.tolist() == [0, 0]
    assert Batch.of_images(images, SIZES, SIZES).boxes.shape == (2, 0, 4)


def test_fields_that_a_compiled_function_does_not_read_are_not_computed():
    """An exported program can therefore make a batch, of any symbolic size, from its images."""

    def sums(images, sizes):
        batch = Batch.of_images(images, sizes, sizes)
        return batch.images.sum(axis=(1, 2, 3)), batch.sizes

    (batch_size,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(sums))(
        jax.ShapeDtypeStruct((batch_size, 8, 8, 3), np.float32),
        jax.ShapeDtypeStruct((batch_size, 2), np.float32),
    )
    assert "iota" not in exported.mlir_module()
    assert (
        exported.call(np.ones((3, 8, 8, 3), np.float32), np.ones((3, 2), np.float32))[0].tolist()
        == [192] * 3
    )
