"""Before a run its processes compare what they work on; if they differ, all end with one line."""

import shutil
from concurrent import futures

import numpy as np
import pytest

from retinanet_jax import input_pipeline
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.hosts import comparison


class DictStore:
    """A store for threads that stand for processes."""

    def __init__(self):
        self._texts: dict[str, futures.Future] = {}

    def _text(self, key):
        return self._texts.setdefault(key, futures.Future())

    def set(self, key, value):
        self._text(key).set_result(value)

    def wait_for(self, key, seconds):
        return self._text(key).result(seconds)


def verdicts(*facts):
    """Return the error message of each process, or None."""
    store = DictStore()

    def process(index):
        try:
            comparison.compare(facts[index], store, index, len(facts))
        except ValueError as error:
            return str(error)

    with futures.ThreadPoolExecutor(len(facts)) as threads:
        return list(threads.map(process, range(len(facts))))


def test_equal_processes_agree():
    assert verdicts({"config.seed": "1"}, {"config.seed": "1"}, {"config.seed": "1"}) == [None] * 3


def test_all_processes_end_with_the_same_line_if_one_differs():
    first, second = {"config.seed": "1", "a": "x"}, {"config.seed": "2", "a": "x"}
    line = (
        "the hosts differ: config.seed is 1 on host 0 and 2 on host 2. "
        "Start the same command on each host, with the same data and versions."
    )
    assert verdicts(first, first, second, first) == [line] * 4


def test_a_long_difference_is_cut():
    facts = [{str(field): f"{host}" * 500 for field in range(9)} for host in (3, 4)]
    line, _ = verdicts(*facts)
    assert f"0 is {'3' * 77}... on host 0" in line
    assert "; 6 more differences. Start" in line
    assert len(line) < 800
    assert "extra is missing on host 0 and 1 on host 1" in verdicts({}, {"extra": "1"})[0]


def test_a_host_that_never_comes_is_named():
    class LateStore(DictStore):
        def wait_for(self, key, seconds):
            raise RuntimeError("DEADLINE_EXCEEDED")

    for process, missing in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=rf"^host {missing} has not opened .* 30 minutes"):
            comparison.compare({}, LateStore(), process, 2)


@pytest.fixture
def facts(config, synthetic_dataset):
    """A function `(folder, step) -> facts` of a run on a dataset."""

    def facts(folder=synthetic_dataset, step=0):
        source = CocoSource(folder / "instances.json", folder / "images")
        plan = input_pipeline.train_plan(config, source)
        return comparison.run_facts(config, {"data.train": source, "data.eval": None}, step, plan)

    return facts


def test_hosts_may_have_their_own_copies_of_a_dataset_and_numbers_of_threads(
    config, facts, synthetic_dataset, tmp_path
):
    before = facts()
    assert before["the dataset data.train"].startswith("20 images with ")
    assert before["the dataset data.eval"] == "missing"
    config.data.threads = 3
    config.data.train.images = str(tmp_path)
    assert facts(shutil.copytree(synthetic_dataset, tmp_path / "copy")) == before


def differing(before, after):
    return {name for name in before if before[name] != after[name]}


def test_each_difference_is_named(config, facts, monkeypatch):
    before = facts()
    assert differing(before, facts(step=4)) == {
        "the checkpoint in the workdir",
        "the plan of the next batch",
    }
    config.loss.gamma = 1.5
    assert differing(before, facts()) == {"config.loss.gamma"}
    config.loss.gamma = 2.0
    config.seed += 1
    assert differing(before, facts()) == {"config.seed", "the plan of the next batch"}
    config.seed -= 1
    monkeypatch.setattr(comparison.retinanet_jax, "__version__", "0.0.1")
    assert differing(before, facts()) == {"the version of retinanet_jax"}


def test_hosts_with_another_augmentation_have_another_plan(config, facts):
    plain = facts()
    config.data.augmentation = "strong"
    strong = facts()
    assert strong == facts()
    assert differing(plain, strong) == {"config.data.augmentation", "the plan of the next batch"}


def test_a_dataset_is_its_images_and_objects(synthetic_dataset):
    def source():
        return CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")

    before, changed = comparison.dataset_fingerprint(source()), source()
    changed.objects.boxes[3, 2] += 0.01
    assert comparison.dataset_fingerprint(source()) == before
    assert comparison.dataset_fingerprint(changed) != before
    changed = source()
    changed.file_names = [*changed.file_names[1:], "other.png"]
    assert comparison.dataset_fingerprint(changed) != before
    # Ids larger than 64 bits are compared by their values, too.
    ids = np.array([2**70, 1], object)
    assert comparison.digest(ids) == comparison.digest(np.array([2**70, 1], object))
    assert comparison.digest(ids) != comparison.digest(ids[::-1])
