"""What to try: sentences with the number that each is derived from, the worst first."""

from collections.abc import Sequence
from typing import Any

from retinanet_jax.analysis import detector_advice, label_advice
from retinanet_jax.analysis.facts import Facts
from retinanet_jax.data_report.findings import SEVERITIES

# The rules, each with the type of error that its advice is about. Of advice of the same severity,
# that of the first rules is first: causes before their effects.
RULES = {
    label_advice.check_content: "",
    label_advice.check_interchanged: "class",
    label_advice.check_displacement: "localization",
    label_advice.check_box_size: "localization",
    detector_advice.check_anchors: "missed",
    label_advice.check_undetected: "missed",
    label_advice.check_missing_annotations: "background",
    label_advice.check_confused: "class",
    detector_advice.check_duplicates: "duplicate",
    detector_advice.check_several_categories: "class",
    detector_advice.check_small_objects: "missed",
    detector_advice.check_dense: "",
    detector_advice.check_score_threshold: "",
}


def advise(facts: Facts, errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what to try, the worst first; nothing where nothing is wrong.

    Args:
        facts: From `facts.collect_facts`.
        errors: From `errors.error_table`.

    Returns:
        Dicts with a title, a text, the number that shows it, and the severity.
    """
    items = [(item, error_type) for rule, error_type in RULES.items() for item in rule(facts)]
    advice = [item for item, _ in items]
    explained = {error_type for _, error_type in items}
    advice += detector_advice.check_largest_error(errors, explained)
    advice.sort(key=lambda item: SEVERITIES.index(item.severity))
    return [item._asdict() for item in advice]
