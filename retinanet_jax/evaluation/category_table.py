"""AP by category for people: a table of bounded length, and scalars for the plots of a run."""

import heapq
import re
from collections.abc import Mapping
from typing import Any

from retinanet_jax.utils.progress import format_count, join_first, shorten

NUM_WORST, NUM_BEST = 15, 5  # rows of a table of many categories
MAX_NAME = 30  # characters of a category's name in the table
MAX_SCALARS = 100  # categories
COLUMNS = ("AP", "AP50", "AR", "objects", "images")


def category_table(categories: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the metrics of each category as a table, the lowest AP first.

    Of many categories it has the worst, a line for those in between, and the best. Further lines
    name the categories that have objects but an AP of 0, and those without objects.

    Args:
        categories: "categories" of `coco_metrics`.

    Returns:
        The table; "" if no category has objects.
    """
    measured = {name: row for name, row in categories.items() if row["AP"] is not None}
    if not measured:
        return ""
    order = sorted(measured, key=lambda name: (measured[name]["AP"], -measured[name]["objects"]))
    first, between, last = order, [], []
    if len(order) > NUM_WORST + NUM_BEST + 1:
        first, between, last = order[:NUM_WORST], order[NUM_WORST:-NUM_BEST], order[-NUM_BEST:]
    titles = {name: shorten(name, MAX_NAME) for name in [*first, *last]}
    width = max(map(len, titles.values()))
    header = "".join(f"{column:>9}" for column in COLUMNS)
    rows = [f"{title:<{width}}{_cells(measured[name])}" for name, title in titles.items()]
    if between:
        low, high = (measured[name]["AP"] for name in (between[0], between[-1]))
        rows.insert(NUM_WORST, f"... {len(between)} more with AP {low:.3f} to {high:.3f}")
    lines = ["AP by category, worst first:", f"{'':<{width}}{header}", *rows]
    unmeasured = [shorten(name) for name in categories if name not in measured]
    if unmeasured:
        lines.append(f"no objects, and so no AP: {join_first(unmeasured)}")
    zero = [name for name in order if round(measured[name]["AP"], 3) == 0]
    if len(zero) == len(order):
        lines.append("AP is 0 for all categories that have objects")
    elif zero:
        counts = [format_count(measured[name]["objects"], "object") for name in zero]
        named = [f"{shorten(name)} ({count})" for name, count in zip(zero, counts, strict=True)]
        lines.append(f"AP is 0 although there are objects: {join_first(named)}")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> str:
    """Return the numbers of a category, below the names of the columns."""
    return "".join(
        f"{row[column]:>9}" if isinstance(row[column], int) else f"{row[column]:>9.3f}"
        for column in COLUMNS
    )


def category_scalars(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the AP of each category under a name that any logger accepts.

    Of many categories, the result has the MAX_SCALARS with the most objects. Categories without
    objects, and so without AP, are left out.

    Args:
        categories: "categories" of `coco_metrics`.
    """
    tags = [re.sub(r"[^-\w ]+", "_", shorten(name)) for name in categories]
    if len(set(tags)) < len(tags):
        tags = [f"{k} {tag}" for k, tag in enumerate(tags)]
    rows = zip(tags, categories.values(), strict=True)
    measured = [(tag, row) for tag, row in rows if row["AP"] is not None]
    chosen = heapq.nlargest(MAX_SCALARS, measured, key=lambda pair: pair[1]["objects"])
    return {f"AP_by_category/{tag}": row["AP"] for tag, row in chosen}
