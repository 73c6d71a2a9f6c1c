"""The check that all processes of a run have the same config, datasets, plan and versions.

Processes that differ would train on batches that nobody planned, or wait for each other for ever.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import retinanet_jax
from retinanet_jax.config import flatten
from retinanet_jax.data.plan import Plan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.objects import id_array
from retinanet_jax.hosts.store import JaxStore, Store
from retinanet_jax.stored_config import plain

# Fields that hosts may set differently: their threads, and the paths of their copies of a dataset.
OWN_FIELDS = ("data.threads", "data.prefetch", "data.train.", "data.eval.")
WAIT_SECONDS = 1800  # for a host that reads its datasets more slowly
MAX_DIFFERENCES = 3
MAX_LENGTH = 80  # characters of a value
DIGEST_LENGTH = 8  # hexadecimal digits
AGREED = "agreed"


def check_hosts_agree(
    config: ConfigDict, sources: Mapping[str, Source | None], step: int, plan: Plan | None = None
) -> None:
    """Check that all processes of a run work on the same; all of them must call this.

    Args:
        config: The run's config.
        sources: The run's datasets, by a name such as data.train; None for one that it lacks.
        step: The step of the checkpoint that the run reads; 0 for none.
        plan: The plan of the training; None for an evaluation.

    Raises:
        ValueError: On all hosts, if one of them differs from the first.
    """
    if jax.process_count() > 1:
        facts = run_facts(config, sources, step, plan)
        compare(facts, JaxStore(), jax.process_index(), jax.process_count())


def compare(facts: Mapping[str, str], store: Store, process_index: int, process_count: int) -> None:
    """Compare what the processes of a run work on.

    Args:
        facts: What this process works on, by name; see `run_facts`.
        store: The texts of all processes.
        process_index: The index of this process.
        process_count: The number of processes.

    Raises:
        ValueError: In all processes, if one of them differs from the first or is missing.
    """
    if process_index:
        store.set(f"comparison/facts/{process_index}", json.dumps(facts))
        outcome = wait_for(store, "comparison/outcome", host=0)
    else:
        # Only the first host reads what all have written.
        outcome = AGREED
        for other in range(1, process_count):
            stored = json.loads(wait_for(store, f"comparison/facts/{other}", host=other))
            if outcome == AGREED and stored != facts:
                outcome = describe_differences(facts, stored, other)
        store.set("comparison/outcome", outcome)
    if outcome != AGREED:
        raise ValueError(outcome)


def wait_for(store: Store, key: str, host: int) -> str:
    """Return a text that another host stores; raise ValueError if it does not do so in time."""
    try:
        return store.wait_for(key, WAIT_SECONDS)
    except RuntimeError:
        raise ValueError(
            f"host {host} has not opened its datasets after {WAIT_SECONDS // 60} minutes; see what "
            "it prints, and start all hosts again."
        ) from None


def describe_differences(facts: Mapping[str, str], others: Mapping[str, str], other: int) -> str:
    """Return the error line for a host with other facts than those of the first.

    Args:
        facts: The facts of the first host.
        others: The facts of the other one.
        other: The index of the other one.
    """
    names = [name for name in {**facts, **others} if facts.get(name) != others.get(name)]
    described = [
        f"{name} is {shorten(facts.get(name, 'missing'))} on host 0 and "
        f"{shorten(others.get(name, 'missing'))} on host {other}"
        for name in names[:MAX_DIFFERENCES]
    ]
    if len(names) > MAX_DIFFERENCES:
        described.append(f"{len(names) - MAX_DIFFERENCES} more differences")
    return (
        f"the hosts differ: {'; '.join(described)}. Start the same command on each host, with the "
        "same data and versions."
    )


def shorten(text: str) -> str:
    """Return a text, cut if it is longer than a value in an error line may be."""
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def run_facts(
    config: ConfigDict, sources: Mapping[str, Source | None], step: int, plan: Plan | None
) -> dict[str, str]:
    """Return what a process of a run works on: versions, config, checkpoint, datasets and plan.

    Args:
        config: As in `check_hosts_agree`.
        sources: As in `check_hosts_agree`.
        step: As in `check_hosts_agree`.
        plan: As in `check_hosts_agree`.
    """
    fields = {
        f"config.{name}": json.dumps(value)
        for name, value in flatten(plain(config))
        if not name.startswith(OWN_FIELDS)
    }
    # The arrays, since those of composed images have different shapes.
    next_batch = jax.tree.leaves(plan.batch(step)) if plan else []
    return {
        "the version of retinanet_jax": retinanet_jax.__version__,
        "the version of jax": jax.__version__,
        **fields,
        "the checkpoint in the workdir": f"that of step {step}" if step else "missing",
        **{f"the dataset {name}": dataset_fingerprint(source) for name, source in sources.items()},
        "the plan of the next batch": digest(*next_batch) if plan else "missing",
    }


def dataset_fingerprint(source: Source | None) -> str:
    """Return the number of images and objects of a dataset, and a digest of its annotations.

    The digest takes .2 s for COCO, because it reads no image.

    Args:
        source: The dataset; None for none.
    """
    if source is None:
        return "missing"
    objects = source.objects
    texts = json.dumps([source.categories, source.decoding, list(source.file_names)])
    contents = digest(texts, id_array(source.image_ids), source.sizes, *objects)
    return f"{len(source)} images with {len(objects.ids)} objects (SHA-256 {contents})"


def digest(*values: Any) -> str:
    """Return the first digits of the SHA-256 of texts and arrays."""
    total = hashlib.sha256()
    for value in map(np.asarray, values):
        # The bytes of Python objects, such as large ids, would be those of their addresses.
        is_number = value.dtype.kind in "biuf"
        total.update(value.tobytes() if is_number else str(value.tolist()).encode())
    return total.hexdigest()[:DIGEST_LENGTH]
