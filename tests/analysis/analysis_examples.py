"""A hand-made analysis with all of its parts, and an empty one, for the tests of the page."""

import base64
import io
import itertools

from PIL import Image

from retinanet_jax.evaluation.coco_metrics import METRICS

# Names that break a page, a plot or a script that does not escape them.
HOSTILE = (
    "<script>document.title='injected'</script>",
    '"><img src=x onerror="document.title=\'injected\'">',
    "';document.title='injected';//",
    "</script><script>document.title='injected'</script>",
    "two\nlines\tand a tab",
    "$\\alpha$ {{ 7 * 7 }} {% raw %}",
    "_hidden from legends",
    "#000011 & #000001",
    "\x00\x1b[31mcontrol\x7f",
    "surrogate \udcff",
    "猫 кошка قط 🐈",
    "-- > ]]> <!-- comment",
    "very long " * 500,
    "",
)
REASONS = ("missing annotation", "wrong category", "inaccurate box", "duplicate")
TYPES = ("class", "localization", "both", "duplicate", "background", "missed")


def data_uri(color=(90, 140, 60)):
    file = io.BytesIO()
    Image.new("RGB", (320, 240), color).save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def curve(name):
    precision = [1 - 0.008 * i for i in range(101)]
    recall = [i / 100 for i in range(101)]
    return {"category": name, "recall": recall, "precision": precision, "f1_threshold": 0.4}


def category(index, name, count):
    """Return a category; the higher its index, the higher its AP. The second has no objects."""
    undefined = index == 1
    return {
        "name": name,
        "AP": None if undefined else round(0.1 + 0.8 * index / count, 4),
        "AP50": None if undefined else round(0.2 + 0.8 * index / count, 4),
        "AR": None if undefined else 0.5,
        "objects": 0 if undefined else (index * 37) % 101 + 1,
        "images": index + 2,
        "detections": index * 10,
        "missed": index % 5,
        "threshold": None if undefined else 0.35,
        "F1": None if undefined else 0.6,
        "precision": None if undefined else 0.7,
        "recall": None if undefined else 0.5,
        "worst_error": None if undefined else TYPES[index % 6],
    }


def image(index, names):
    """Return an image with errors of one category and one type, which depend on its index."""
    name, error = names[index % len(names)], TYPES[index % 6]
    unreadable = index == 5
    return {
        "image_id": index,
        "file_name": f"{name[:40]} {index}.jpg",
        "width": 640,
        "height": 480,
        "missed": int(error == "missed"),
        "false": int(error != "missed"),
        "correct": 2,
        "F1": 0.8,
        "errors": {error: 1},
        "categories": [name],
        "category_errors": {name: ["correct", error]},
        "ground_truth": None if unreadable else data_uri(),
        "detections": None if unreadable else data_uri((60, 90, 140)),
        "unreadable": f"{name[:40]} is missing" if unreadable else None,
    }


def suspicious(index, names):
    return {
        "reason": REASONS[index % 4],
        "image_id": index,
        "file_name": f"{names[index % len(names)][:60]}.jpg",
        "category": None if index % 4 == 0 else names[index % len(names)],
        "detected_as": names[(index + 1) % len(names)],
        "box": [10.0, 20.0, 110.5, 220.25],
        "object_box": None if index % 4 == 0 else [12.0, 20.0, 110.0, 218.0],
        "score": 0.97 - index / 500,
        "iou": None if index % 4 == 0 else 0.93,
    }


def example_analysis(names=("circle", "square", "triangle")):
    """Return an analysis with every part, and with categories of these names."""
    first = list(names[:30])
    size = len(first) + 1
    gamma = {str(g): [min(1.0, (i / 100) ** (1 + g)) for i in range(101)] for g in (0, 0.5, 1, 2)}
    scores = [i / 100 for i in range(101)]
    return {
        "provenance": {
            "retinanet_jax": "0.6.0",
            "hotcoco": "1.3.0",
            "command": f"retinanet-jax analyze --data='{first[0][:50]}'",
            "created": "2026-11-26T14:00:00+00:00",
            "checkpoint": "runs/shapes/checkpoints/900",
            "step": 900,
            "detections": None,
            "dataset": {
                **{"name": first[0], "images": 120, "objects": 900, "categories": len(names)},
                "sha256": "9f" * 32,
            },
            "settings": {"score_threshold": 0.05, "max_detections": 100},
        },
        "summary": {
            "metrics": {name: None if name == "APl" else 0.61 for name in METRICS},
            "intervals": {"AP": [0.583, 0.637], "AP50": [0.81, 0.85]},
            "confidence": 0.95,
            "bootstrap": 1000,
            **{"threshold": 0.42, "F1": 0.71, "precision": 0.78, "recall": 0.65},
            **{"images": 120, "objects": 900, "detections": 4300},
        },
        "errors": [
            {"type": name, "count": 13 * i, "delta_ap": 0.02 * i} for i, name in enumerate(TYPES)
        ],
        "confusion": {
            "categories": first,
            "num_omitted": len(names) - len(first),
            "matrix": [[60 if i == j else (i + j) % 3 for j in range(size)] for i in range(size)],
            "score_threshold": 0.42,
            "pairs": [
                {"object": name, "detected_as": other, "count": 7, "fraction": 0.07}
                for name, other in itertools.pairwise(first)
            ],
        },
        "curves": [curve(None), *map(curve, first)],
        "threshold_curve": {
            "threshold": scores,
            "precision": [0.5 + s / 2 for s in scores[:-1]] + [None],
            "recall": [0.9 - s * 0.9 for s in scores],
            "F1": [0.7 - (s - 0.42) ** 2 for s in scores],
        },
        "calibration": {
            "ece": 0.061,
            "mce": 0.21,
            "bins": [
                {
                    **{"lower": i / 10, "upper": (i + 1) / 10, "count": 0 if i == 3 else 50},
                    "confidence": None if i == 3 else i / 10 + 0.05,
                    "accuracy": None if i == 3 else i / 11,
                }
                for i in range(10)
            ],
            "categories": dict.fromkeys(first, 0.05),
        },
        "categories": [category(i, name, len(names)) for i, name in enumerate(names)],
        "image_properties": [
            {"property": "brightness", "group": group, "images": 40, "AP": ap, "delta": delta}
            for group, ap, delta in (("dark", 0.5, -0.11), ("light", None, None))
        ],
        "missed": {
            "by_size": [
                {"label": "< 16", "lower": 0, "upper": 16, "objects": 40, "missed": 25},
                {"label": "16-64", "lower": 16, "upper": 64, "objects": 500, "missed": 60},
                {"label": "> 64", "lower": 64, "upper": None, "objects": 0, "missed": 0},
            ],
            "by_anchor_iou": [
                {"label": "0.4-0.5", "lower": 0.4, "upper": 0.5, "objects": 80, "missed": 31}
            ],
        },
        "offsets": [
            {"category": None, "matches": 9, "dy": 0.4, "dx": -0.2, "height": 1.01, "width": 1},
            *(
                {"category": name, "matches": 0}
                | dict.fromkeys(("dy", "dx", "height", "width"), None)
                for name in first[:3]
            ),
        ],
        "suspicious_labels": [suspicious(i, first) for i in range(40)],
        "advice": [
            {
                "title": f"{first[0]} is never detected",
                "text": f"None of the 40 objects of {first[0]} is detected: check its labels.",
                "number": "0 of 40",
                "severity": severity,
            }
            for severity in ("error", "warning", "info")
        ],
        "images": [image(i, first) for i in range(24)],
        "comparison": {
            "other": first[0],
            "metrics": {
                "AP": {"difference": 0.012, "low": -0.003, "high": 0.02, "probability": 0.9}
            },
            "categories": [{"name": name, "difference": 0.01} for name in first],
        },
        "focal_loss": {
            **{"gammas": [0, 0.5, 1, 2], "foreground": gamma, "background": gamma, "images": 8}
        },
    }


def empty_analysis():
    """Return the analysis of a dataset without any object and without detections."""
    analysis = example_analysis()
    summary = analysis["summary"]
    summary.update(
        metrics=dict.fromkeys(summary["metrics"]),
        intervals={},
        **dict.fromkeys(("threshold", "F1", "precision", "recall")),
        **dict.fromkeys(("images", "objects", "detections"), 0),
    )
    analysis["errors"] = [{"type": name, "count": 0, "delta_ap": None} for name in TYPES]
    analysis["confusion"] = {
        **{"categories": [], "num_omitted": 0, "matrix": [[0]], "score_threshold": None},
        "pairs": [],
    }
    nothing = dict.fromkeys(("precision", "recall", "F1"), [None] * 101)
    analysis["threshold_curve"].update(nothing)
    analysis["calibration"] = {"ece": None, "mce": None, "bins": [], "categories": {}}
    analysis["missed"] = {"by_size": [], "by_anchor_iou": None}
    for part in ("curves", "categories", "image_properties", "offsets", "images", "advice"):
        analysis[part] = []
    return analysis | {"suspicious_labels": [], "comparison": None, "focal_loss": None}
