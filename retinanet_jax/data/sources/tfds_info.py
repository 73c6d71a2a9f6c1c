"""The metadata of a dataset that TFDS has prepared: its features, splits and files.

Reading it requires the package tensorflow_datasets, but not TensorFlow.
"""

import os
from typing import Any

from retinanet_jax.utils.packages import import_optional


def read_info(builder: str, data_dir: str | os.PathLike | None) -> Any:
    """Read the `DatasetInfo` of a prepared dataset, without downloads or code of its builder.

    Args:
        builder: The dataset's name as for `tfds.builder`, such as coco/2017 or voc/2007:5.0.0.
        data_dir: The folder that it was prepared in; None means TFDS's default.

    Raises:
        FileNotFoundError: If it is not prepared there; the message contains the command for that.
        ValueError: If tensorflow_datasets is missing, `data_dir` is remote, or `builder` is not the
            name of a dataset.
    """
    core = import_optional("tensorflow_datasets.core", builder, "tensorflow-datasets")
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    if folder and "://" in folder:
        raise ValueError(
            f"data_dir={folder}: shards are read from a local folder; mount it, or copy the "
            "dataset."
        )
    try:
        return core.read_only_builder.builder_from_files(builder, data_dir=folder).info
    except core.registered.DatasetNotFoundError:
        arguments = repr(builder) + (f", data_dir={folder!r}" if folder else "")
        raise FileNotFoundError(
            f"{builder}: is not prepared in {folder or 'the default folder of TFDS'}; run python "
            f'-c "import tensorflow_datasets as tfds; tfds.builder({arguments})'
            '.download_and_prepare()"'
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{builder!r}: is not a dataset of TFDS ({str(error).splitlines()[0]}); write it as "
            "name/config or name/config:version, such as coco/2017."
        ) from None


def detection_features(name: str, features: Any) -> dict[str, Any]:
    """Return the features of a detection dataset by key, such as objects/bbox.

    Args:
        name: The dataset's name in messages.
        features: The `features` of a `DatasetInfo`.

    Raises:
        ValueError: If the features are not those of a detection dataset.
    """
    import tensorflow_datasets as tfds

    flat: dict[str, Any] = {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(inner, tfds.features.FeaturesDict):
            flat |= {f"{key}/{inner_key}": value for inner_key, value in inner.items()}
        else:
            flat[key] = feature
    box = flat.get("objects/bbox")
    if (
        isinstance(flat.get("image"), tfds.features.Image)
        and isinstance(flat.get("objects/label"), tfds.features.ClassLabel)
        and isinstance(box, tfds.features.BBoxFeature)
        # Datasets that are older than TFDS's choice of box formats have None.
        and (box.bbox_format is None or box.bbox_format.name == "REL_YXYX")
    ):
        return flat
    listed = ", ".join(f"{key} ({type(flat[key]).__name__})" for key in sorted(flat))
    raise ValueError(
        f"{name}: has the features {listed}; give a detection dataset, with image (Image), "
        "objects/bbox (BBoxFeature, relative yxyx) and objects/label (ClassLabel)."
    )
