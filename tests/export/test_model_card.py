"""The model card: the checkpoint, its AP, and what was exported."""

import hashlib
import json

import pytest

from retinanet_jax.checkpoint import Thresholds
from retinanet_jax.export import model_card
from retinanet_jax.export.comparison import DetectionDifference
from retinanet_jax.export.verification import Verification

EQUAL = Verification(DetectionDifference(4, 8), DetectionDifference(), None)


@pytest.fixture
def write_card(servable, tmp_path):
    """`write_card(evaluation)` returns card.json and README.md, given the text of an evaluation."""

    def write_card(evaluation: str | None = None) -> tuple[dict, str]:
        if evaluation is not None:
            folder = servable.checkpoint.folder.parent.parent / "eval"
            folder.mkdir(parents=True)
            (folder / "12.json").write_text(evaluation)
        folder = tmp_path / "artifact"
        folder.mkdir()
        (folder / "weights").write_text("a")
        model_card.write(folder, "stablehlo", servable, (), EQUAL)
        card = json.loads((folder / model_card.FILE).read_text())
        return card, (folder / model_card.README).read_text()

    return write_card


def test_the_card_describes_the_checkpoint_and_the_artifact(write_card, servable):
    servable.config.detections.update(score_threshold=0.25, max_detections=3)
    card, page = write_card()
    assert card["checkpoint"]["step"] == 12
    assert card["checkpoint"]["config"]["model"]["backbone"] == "toy"
    assert card["categories"] == [{"id": 3, "name": "egg"}, {"id": 7, "name": "hen"}]
    assert (card["image_size"], card["score_threshold"]) == ([64, 96], 0.25)
    assert card["score_thresholds"] is None
    assert card["verified"]["from_predict"]["num_detections"] == 8
    assert card["sha256"] == {"weights": hashlib.sha256(b"a").hexdigest()}
    assert "| images | uint8 | any x 64 x 96 x 3 |" in page
    assert "3 egg, 7 hen" in page
    assert "Verified: 8 detections on 4 images equal those of predict, boxes within 0" in page
    assert "AP not measured" in page


DATASET = {"name": "farm/val.json", "num_images": 1}


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        (json.dumps({"AP": 0.5, "AP50": 0.75}), "step 12: AP 0.500, AP50 0.750."),
        (
            json.dumps({"AP": 0.5, "AP50": 0.75, "dataset": DATASET}),
            "step 12: AP 0.500, AP50 0.750 on farm/val.json (1 image).",
        ),
        (json.dumps({"AP": 0, "AP50": None}), "step 12: AP 0.000, AP50 undefined."),
        (json.dumps({"AP": None, "AP50": None}), "step 12: AP undefined, AP50 undefined."),
        ('{"AP": NaN, "AP50": -1.0}', "step 12: AP undefined, AP50 undefined."),
        (json.dumps({"AP": "0.5", "AP75": 0.5}), "step 12: AP undefined, AP50 undefined."),
        (json.dumps({"AP": 0.5, "AP50": 1, "dataset": "val"}), "step 12: AP 0.500, AP50 1.000."),
        ("{}", "step 12: AP undefined, AP50 undefined."),
        ("[0.5]", "step 12: AP not measured."),
        ('{"AP": 0.5', "step 12: AP not measured."),
        ("", "step 12: AP not measured."),
    ],
)
def test_the_ap_of_the_card_may_be_undefined_or_unreadable(write_card, evaluation, expected):
    card, page = write_card(evaluation)
    assert expected in page
    assert ("not measured" in expected) == (card["checkpoint"]["metrics"] is None)


def changes(servable) -> str:
    return "; ".join(model_card.changes_since_evaluation(servable))


def test_the_card_lists_the_differences_from_what_was_evaluated(servable, write_card):
    assert changes(servable) == ""
    servable.config.detections.score_threshold = 0.25
    text = "config.detections.score_threshold is 0.25 instead of 0.05"
    assert changes(servable) == text
    card, page = write_card(json.dumps({"AP": 0.5, "AP50": 0.75}))
    assert card["changed_since_evaluation"] == [text]
    assert f"AP50 0.750. AP was measured differently: {text}." in page


def test_the_card_has_the_thresholds_of_the_categories(servable, tmp_path):
    stored = Thresholds(0.25, {"egg": 0.625})
    servable = servable._replace(checkpoint=servable.checkpoint._replace(thresholds=stored))
    model_card.write(tmp_path, "stablehlo", servable, (), EQUAL)
    card = json.loads((tmp_path / model_card.FILE).read_text())
    page = (tmp_path / model_card.README).read_text()
    assert card["score_thresholds"] == {"egg": 0.625, "hen": 0.25}
    assert "Scores are above the threshold of their category; there are" in page
    assert "Categories (score threshold): 3 egg (0.625), 7 hen (0.25)." in page
    assert changes(servable) == (
        "only detections above the score threshold of their category are returned, instead of all "
        "above 0.05"
    )


def test_a_smaller_input_or_another_padding_is_not_what_was_evaluated(servable):
    assert "are resized to a smaller one" in changes(servable._replace(image_size=(32, 96)))
    for config in (servable.config, servable.checkpoint.config):
        config.model.padding = "plain"
    assert "padded to 64 x 96 pixels instead of to their buckets" in changes(servable)
    assert changes(servable._replace(image_size=(64, 64))) == ""  # the only bucket
