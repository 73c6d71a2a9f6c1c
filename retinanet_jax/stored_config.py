"""The config that a checkpoint stores: its JSON, its version, and how it differs from another."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import retinanet_jax
from retinanet_jax.config import default_config, flatten, unknown_field
from retinanet_jax.config_versions import ADDED_FIELDS, CONFIG_VERSION, RENAMED_FIELDS

# Sections that determine what a network computes from its weights, often without changing the shape
# of any array. The other sections affect only data and training.
NETWORK_SECTIONS = ("model", "anchors", "input")
# Fields of these sections that only affect training.
TRAINING_FIELDS = (
    "model.frozen_stages",
    "model.frozen_parts",
    "model.remat",
    "model.prior_probability",
)
BATCH_NORMS = {"frozen_batch", "batch"}  # norms with the same four arrays


class FieldDifference(NamedTuple):
    """A field with different values in two configs; None if a config lacks the field."""

    name: str  # dotted, such as model.norm
    saved: Any
    current: Any


def config_flag(name: str, value: Any) -> str:
    """Return the flag that sets a config field, quoted for a shell.

    Args:
        name: The field's dotted name, without "config.".
        value: Its value, of JSON or a config.
    """

    def as_tuple(value: Any) -> Any:  # JSON has no tuples
        return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value

    return shlex.quote(f"--config.{name}={as_tuple(value)}")


def config_to_json(config: ConfigDict) -> dict[str, Any]:
    """Return the fields and the versions of config and package, as a checkpoint stores them."""
    versions = {"config_version": CONFIG_VERSION, "package_version": retinanet_jax.__version__}
    return {**versions, **plain(config)}


def config_from_json(stored: Mapping[str, Any]) -> ConfigDict:
    """Return the config, unlocked, that a checkpoint of this or an earlier version has stored.

    Fields are renamed, and new fields get the value that reproduces the earlier behavior.

    Raises:
        ValueError: If a field is unknown or missing; the message contains the writer's version.
    """
    fields = dict(stored)
    version, writer = fields.pop("config_version", 1), fields.pop("package_version", "0.1.0")
    values = dict(flatten(fields))
    for later in range(version + 1, CONFIG_VERSION + 1):
        renamed = RENAMED_FIELDS[later]
        values = {renamed.get(name, name): value for name, value in values.items()}
        values |= ADDED_FIELDS[later]
    config = default_config()
    known = dict(flatten(config))
    for name in sorted(values.keys() ^ known.keys()):
        error = unknown_field(name) if name in values else f"config.{name} is missing."
        raise ValueError(
            f"written by retinanet_jax {writer}, read by {retinanet_jax.__version__}: {error} "
            f"Install retinanet_jax {writer} to read it."
        )
    config.update_from_flattened_dict(values)
    return config


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return the fields as JSON represents them: nested dicts, and lists instead of tuples."""
    return json.loads(config.to_json())


def differences(saved: ConfigDict, current: ConfigDict) -> list[FieldDifference]:
    """Return the fields with different values, sorted by name; lists and tuples are equal."""
    before, now = dict(flatten(plain(saved))), dict(flatten(plain(current)))
    return [
        FieldDifference(name, before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def flag_of(name: str, value: Any) -> str:
    """Return the flag that sets a field of a config, as in a shell.

    Args:
        name: The field's name, such as "data.buckets".
        value: As `plain` represents it.
    """

    def as_tuples(item: Any) -> Any:
        return tuple(map(as_tuples, item)) if isinstance(item, list) else item

    text = f'"{as_tuples(value)}"' if isinstance(value, list) else value
    return f"--config.{name}={text}"


def network_differences(saved: ConfigDict, current: ConfigDict) -> list[FieldDifference]:
    """Return the differences that change what a network computes from its weights."""
    return [
        difference
        for difference in differences(saved, current)
        if difference.name.partition(".")[0] in NETWORK_SECTIONS
        if difference.name not in TRAINING_FIELDS
        if not (difference.name == "model.norm" and {*difference[1:]} <= BATCH_NORMS)
    ]
