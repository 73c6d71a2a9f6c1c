"""Unpacked COCO archives with a few images, which TFDS's own builders prepare."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

from retinanet_jax.data.sources.coco import COCO_CATEGORIES

CATEGORIES = [category._asdict() for category in COCO_CATEGORIES]
# For each of TFDS's splits: the folder of its images, and whether it is annotated.
SPLITS = {
    2014: {
        "train": ("train2014", True),
        "validation": ("val2014", True),
        "test": ("test2014", False),
        "test2015": ("test2015", False),
    },
    2017: {
        "train": ("train2017", True),
        "validation": ("val2017", True),
        "test": ("test2017", False),
    },
}


class Archives:
    """The folders that COCO's zip files of a year unpack to.

    Args:
        path: The folder to create.
        year: 2014 or 2017.
        contents: The JSON and the image folder of `train` and of `validation`. Splits without
            annotations have the images of `validation`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        year: int,
        contents: Mapping[str, tuple[dict[str, Any], pathlib.Path]],
    ):
        self.path, self.year = path, year
        (path / "annotations").mkdir(parents=True)
        for split, (folder, annotated) in SPLITS[year].items():
            content, images = contents[split if annotated else "validation"]
            if not annotated:
                content = {k: v for k, v in content.items() if k != "annotations"}
            self.official(split).write_text(json.dumps(content))
            (path / folder).symlink_to(images, target_is_directory=True)

    def official(self, split: str) -> pathlib.Path:
        """Return the path of a split's JSON."""
        folder, annotated = SPLITS[self.year][split]
        content = "instances" if annotated else "image_info"
        return self.path / "annotations" / f"{content}_{folder}.json"

    def prepare(self, data_dir: pathlib.Path, file_format: str, *, shards: int = 1) -> None:
        """Do what `tfds.builder("coco/YEAR").download_and_prepare()` does after the download."""
        prepare(f"coco/{self.year}", self.path, data_dir, file_format, shards=shards)


def prepare(
    builder: str,
    unpacked: pathlib.Path,
    data_dir: pathlib.Path,
    file_format: str = "tfrecord",
    *,
    shards: int = 1,
) -> None:
    """Run the builder, with all of its archives unpacked in one folder."""
    import tensorflow_datasets as tfds

    with mock.patch.object(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, urls: dict.fromkeys(urls, str(unpacked)),
    ):
        tfds.builder(builder, data_dir=data_dir).download_and_prepare(
            file_format=file_format,
            download_config=tfds.download.DownloadConfig(num_shards=shards),
        )


def prepare_own(
    data_dir: pathlib.Path, features: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> None:
    """Prepare the dataset `own` with one split, `train`, of these features."""
    import tensorflow_datasets as tfds

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    Own(data_dir=data_dir).download_and_prepare()
