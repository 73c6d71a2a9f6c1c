"""The flags of test-time augmentation, --tta and --tta_merge, and evaluation with it."""

import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import Source
from retinanet_jax.inference.augmented import DEFAULT_MERGE, MERGES
from retinanet_jax.inference.views import DEFAULT_VIEWS, make_views


class _ViewsParser(flags.ArgumentParser):
    """Parses names of views; absl passes "true" for a bare --tta, and "false" for --notta."""

    def parse(self, argument: str) -> tuple[str, ...] | None:
        if argument == "false":
            return None
        names = DEFAULT_VIEWS if argument == "true" else argument
        return tuple(view.name for view in make_views(names))


def define_tta(values: flags.FlagValues) -> None:
    """Define --tta, which may be given without a value, and --tta_merge."""
    help_text = (
        "Test-time augmentation: detect the objects in several views of each image, and merge "
        "them. --tta=VIEW,... names the views in addition to the image itself: flip (left to "
        "right), vflip (upside down), rot90, rot180, rot270, a scale such as 0.75, or both as in "
        f"flip@0.75. --tta without a value is --tta={','.join(DEFAULT_VIEWS)}. Each view takes the "
        "time of an image of its size. The default is the image itself only."
    )
    flags.DEFINE_flag(
        flags.Flag(_ViewsParser(), None, "tta", None, help_text, boolean=True), flag_values=values
    )
    flags.DEFINE_enum(
        "tta_merge",
        None,
        MERGES,
        "How the detections of the views of --tta are merged: wbf, weighted box fusion, averages "
        "the boxes and scores of an object; nms, class-wise non-maximum suppression, selects its "
        f"best box. The default is {DEFAULT_MERGE}.",
        flag_values=values,
    )


def tta_options(values: Any) -> dict[str, Any] | None:
    """Return the flags of `define_tta` as arguments of `Detector.augmented`; None without --tta.

    Raises:
        ValueError: If only --tta_merge is given.
    """
    if values.tta is None:
        if values.tta_merge:
            raise ValueError(f"--tta_merge={values.tta_merge} is only used with --tta; add it.")
        return None
    return {"views": values.tta, "merge": values.tta_merge or DEFAULT_MERGE}


def evaluate_augmented(
    config: ConfigDict, workdir: pathlib.Path, *, views: tuple[str, ...], merge: str
) -> None:
    """Evaluate the checkpoint of a working directory with test-time augmentation.

    Args:
        config: As in `evaluator.evaluate`.
        workdir: As in `evaluator.evaluate`.
        views: As in `Detector.augmented`.
        merge: As in `Detector.augmented`.

    Raises:
        ValueError: As in `evaluator.evaluate` and `Detector.augmented`.
    """
    from retinanet_jax.detector import Detector
    from retinanet_jax.evaluation.evaluator import evaluate
    from retinanet_jax.inference.evaluating import dataset_results

    def compute(trained: Checkpoint, config: ConfigDict, source: Source) -> list[dict[str, Any]]:
        detector = Detector(trained._replace(config=config, thresholds=None))
        augmented = detector.augmented(views, merge=merge)
        named = ", ".join(view.name for view in augmented.views)
        print(f"test-time augmentation: the views {named}, merged by {merge}", flush=True)
        return dataset_results(augmented, source, config.data.eval_batch_size)

    settings = {"tta.views": list(views), "tta.merge": merge}
    evaluate(config, workdir, compute=compute, settings=settings)
