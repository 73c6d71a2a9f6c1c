"""Verification: which detections an artifact is compared with, and the summary of the result."""

import threading

import numpy as np
import pytest
from export_examples import EXPECTED, padded_outputs

from retinanet_jax.export import verification
from retinanet_jax.export.comparison import DetectionArrays
from retinanet_jax.export.servable import ArtifactOutputs

MOVED = DetectionArrays(EXPECTED.boxes + 0.5, EXPECTED.scores, EXPECTED.categories)
FITTING, TOO_LARGE = np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)


@pytest.fixture
def verify(servable, monkeypatch):
    """`verify(images, predict, checkpoint)` verifies an artifact that returns EXPECTED.

    The other arguments are the detections of `predict`, and of the checkpoint on the artifact's
    input.
    """
    servable.config.data.update(eval_short_side=64, long_side=96, buckets=((64, 96), (96, 64)))

    def verify(images, predict=EXPECTED, checkpoint=EXPECTED):
        expected = {"make_predict": predict, "make_reference": checkpoint}
        for name, detections in expected.items():
            monkeypatch.setattr(
                verification, name, lambda _, value=detections: lambda example: value
            )

        def run(images, sizes):
            return ArtifactOutputs(*(np.repeat(x, 2, 0) for x in padded_outputs(*EXPECTED)))

        return verification.verify(servable, run, images)

    return verify


def test_an_image_is_compared_with_predict_or_if_predict_resizes_it_otherwise_with_the_checkpoint(
    verify,
):
    outcome = verify([FITTING], checkpoint=MOVED)
    assert outcome.summary() == (
        "verified: 2 detections on 1 image equal those of predict, boxes within 0 pixels, scores "
        "within 0"
    )
    outcome = verify([TOO_LARGE, TOO_LARGE, TOO_LARGE], predict=MOVED)
    text = outcome.summary()
    assert "6 detections on 3 images equal those of the checkpoint on the artifact's input" in text
    assert ". 3 images cannot be compared with predict, because the input or" in text
    with pytest.raises(ValueError, match="differ from those of predict: boxes differ by"):
        verify([FITTING, TOO_LARGE], predict=MOVED)
    with pytest.raises(ValueError, match="differ from those of the checkpoint on the artifact's"):
        verify([FITTING, TOO_LARGE], checkpoint=MOVED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.padding": "plain"}, "config.model.padding='plain'"),
        ({"dtype": "bfloat16"}, "config.dtype='bfloat16'"),
    ],
)
def test_where_detections_depend_on_the_input_the_difference_from_predict_is_measured(
    verify, servable, change, reason
):
    servable.config.update_from_flattened_dict(change)
    outcome = verify([FITTING, TOO_LARGE], predict=MOVED)
    text = outcome.summary()
    assert "verified: 4 detections on 2 images equal those of the checkpoint on the art" in text
    assert "1 image cannot be compared with predict" in text
    assert (
        f"With {reason} they are not exactly those of predict, which has 2 on 1 image: boxes "
        "differ by up to 0.5 pixels, scores by up to 0, and 0 have no counterpart"
    ) in text
    with pytest.raises(ValueError, match="differ from those of the checkpoint"):
        verify([FITTING], checkpoint=MOVED)


def test_the_difference_from_predict_is_only_stated_of_detections_that_have_a_counterpart(
    verify, servable
):
    servable.config.model.padding = "plain"
    elsewhere = DetectionArrays(EXPECTED.boxes + 20, EXPECTED.scores, EXPECTED.categories)
    text = verify([FITTING], predict=elsewhere).summary()
    assert text.endswith("predict, which has 2 on 1 image: none has a counterpart")


def test_only_a_few_images_are_in_memory_at_once(servable, monkeypatch):
    """An artifact of one image per call reads at most a few of a hundred images ahead."""
    num_read, lock = 0, threading.Lock()

    def read_image(image, value_range):
        nonlocal num_read
        with lock:
            num_read += 1
        return image

    monkeypatch.setattr(verification, "read_image", read_image)
    servable = servable._replace(batch_size=1)
    outputs = padded_outputs(*EXPECTED)
    images = [FITTING] * 100
    results = verification.artifact_detections(servable, lambda images, sizes: outputs, images)
    for num_done, _ in zip(range(10), results, strict=False):
        assert num_read <= num_done + 5
