"""What a run sets itself: its length in epochs, its batch size and its anchors."""

import types

import jax
import numpy as np
import pytest

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.training import automatic, batch_choice, summary
from retinanet_jax.utils.progress import CLOCK

GIB = 2**30


class Images(Source):
    """Images of 64 x 64 that do not exist, with a box each."""

    def __init__(self, count):
        objects = ObjectList()
        for index in range(count):
            objects.append(index, index, 0, (8.0, 8.0, 40.0, 40.0))
        super().__init__(
            "images",
            image_ids=list(range(count)),
            file_names=[f"{index}.png" for index in range(count)],
            sizes=np.full((count, 2), 64, np.int32),
            categories=[Category(1, "egg")],
            objects=objects.to_objects(),
        )

    def read(self, index):
        raise AssertionError("no image is read")


def mesh_of(num_data):
    return types.SimpleNamespace(shape={"data": num_data, "space": 1})


def choose(config, count, saved=None, mesh=None):
    return automatic.set_automatic_fields(config, saved, Images(count), mesh or mesh_of(1))


# ---- the length


def test_a_config_without_fields_to_set_is_the_same_object(toy_config):
    assert choose(toy_config, 20) is toy_config


@pytest.mark.parametrize(
    ("fields", "steps", "interval"),
    [
        ({"epochs": 40}, 200, 20),  # 18 images in batches of 4 are 5 steps; 4 epochs between
        ({"epochs": 1}, 5, 5),  # not less than an epoch
        ({"epochs": 14}, 70, 5),
        ({"total_steps": 203}, 203, 20),
    ],
)
def test_steps_follow_from_epochs_and_intervals_are_whole_epochs(
    toy_config, fields, steps, interval
):
    toy_config.update(fields, checkpoint_every=0, evaluate_every=0)
    chosen = choose(toy_config, 18)
    assert (chosen.total_steps, chosen.checkpoint_every, chosen.evaluate_every) == (
        steps,
        interval,
        interval,
    )


def test_intervals_that_are_given_stay(toy_config):
    toy_config.update(epochs=40, checkpoint_every=3, evaluate_every=6)
    chosen = choose(toy_config, 18)
    assert (chosen.checkpoint_every, chosen.evaluate_every) == (3, 6)


# ---- the batch size


@pytest.mark.parametrize(
    ("count", "num_data", "fields", "sizes"),
    [
        (1000, 1, {}, [16, 8, 4, 2, 1]),  # the reference batch size is 16
        (300, 1, {}, [16, 8, 4, 2, 1]),
        (100, 1, {}, [4, 2, 1]),  # an epoch of at least 16 steps
        (5, 1, {}, [1]),
        (1000, 8, {}, [16, 8]),  # a batch is split over the devices,
        (100, 8, {}, [8]),  # so that it has at least an image for each
        (1000, 2, {"optimizer.accumulate": 2}, [16, 8, 4]),
        (1000, 1, {"loss.ema_images": 3}, [12, 6, 3]),
    ],
)
def test_the_batch_sizes_to_choose_from(toy_config, count, num_data, fields, sizes):
    toy_config.update_from_flattened_dict({"optimizer.reference_batch_size": 16, **fields})
    assert batch_choice.batch_sizes(toy_config, count, mesh_of(num_data)) == sizes


@pytest.fixture
def measured(monkeypatch):
    """`measured(usable)`: the batch sizes that are tried; a step needs 1 + .5 n GiB."""
    tried = []

    def step_memory(config, *_):
        tried.append(config.data.batch_size)
        return int((1 + 0.5 * config.data.batch_size) * GIB), GIB

    def measured(usable):
        monkeypatch.setattr(batch_choice, "usable_memory", lambda _: int(usable * GIB))
        monkeypatch.setattr(batch_choice, "step_memory", step_memory)
        return tried

    return measured


@pytest.mark.parametrize(
    ("usable", "size", "tried"),
    [
        (9.0, 16, [16]),  # one program, the run's own
        (8.9, 8, [16, 8]),
        (5.0, 8, [16, 8]),
        (2.1, 2, [16, 2]),  # without trying all sizes between
        (1.5, 1, [16, 1]),
    ],
)
def test_the_batch_size_is_the_largest_that_fits(toy_config, measured, usable, size, tried):
    toy_config.data.batch_size, toy_config.optimizer.reference_batch_size = 0, 16
    sizes = measured(usable)
    assert choose(toy_config, 300).data.batch_size == size
    assert sizes == tried


def test_the_step_that_is_tried_has_the_length_of_the_run(toy_config, measured, monkeypatch):
    """Otherwise its program would not be the run's, which would compile once more."""
    toy_config.data.batch_size, toy_config.optimizer.reference_batch_size = 0, 16
    toy_config.epochs = 3
    measured(2.1)
    step_memory, lengths = batch_choice.step_memory, {}

    def record(config, *arguments):
        lengths[config.data.batch_size] = config.total_steps
        return step_memory(config, *arguments)

    monkeypatch.setattr(batch_choice, "step_memory", record)
    assert choose(toy_config, 300).total_steps == 450
    assert lengths == {16: 57, 2: 450}


def test_the_time_of_the_choice_is_that_of_compiling(toy_config, measured, clock):
    """It is neither a stall nor the start of the run."""
    toy_config.data.batch_size, toy_config.optimizer.reference_batch_size = 0, 16
    measured(9.0)
    step_memory, before = batch_choice.step_memory, CLOCK.stopped_seconds()

    def compile_slowly(*arguments):
        clock.seconds += 70
        return step_memory(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_choice, "step_memory", compile_slowly)
        choose(toy_config, 300)
    assert CLOCK.stopped_seconds() - before == 70


def test_too_small_a_memory_is_one_line_with_what_helps(toy_config, measured):
    toy_config.data.batch_size = 0
    measured(1.4)
    message = r"^a batch of 1 images? does not fit into the memory: it needs 1\.50 GiB, .*lower"
    with pytest.raises(ValueError, match=message) as error:
        choose(toy_config, 300)
    assert "\n" not in str(error.value)


def test_several_hosts_need_a_number(toy_config, monkeypatch):
    toy_config.data.batch_size = 0
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="auto is for a run of one host; give a number"):
        choose(toy_config, 300)


def test_the_memory_of_a_computer_is_divided_among_its_virtual_devices(monkeypatch):
    monkeypatch.setattr(batch_choice, "available_memory", lambda: 800)
    devices = [types.SimpleNamespace(platform="cpu", **{"device_kind": "cpu"})] * 8
    assert batch_choice.usable_memory(types.SimpleNamespace(local_devices=devices)) == 60


@pytest.mark.parametrize(
    ("stats", "usable"), [({"bytes_limit": 1000, "bytes_in_use": 100}, 810), (None, None)]
)
def test_the_memory_of_an_accelerator_is_what_it_reports(stats, usable):
    device = types.SimpleNamespace(
        platform="gpu", memory_stats=lambda: stats, **{"device_kind": "NVIDIA Z"}
    )
    mesh = types.SimpleNamespace(local_devices=[device])
    if usable:
        assert batch_choice.usable_memory(mesh) == usable
        return
    with pytest.raises(ValueError, match=r"NVIDIA Z does not report its memory.*give a number"):
        batch_choice.usable_memory(mesh)


# ---- a run that resumes


def test_a_run_that_resumes_has_the_anchors_and_the_batch_size_of_its_checkpoint(toy_config):
    """Whatever the memory is now; its length is that of its own config."""
    saved = toy_config.copy_and_resolve_references()
    saved.data.batch_size, saved.anchors.base_scale = 3, 1.5
    toy_config.update(choose_anchors=True, epochs=2)
    toy_config.data.batch_size = 0
    toy_config.anchors.offset = 0.25  # is not chosen: the checkpoint's network has another
    chosen = choose(toy_config, 30, saved)
    assert (chosen.data.batch_size, chosen.anchors.base_scale) == (3, 1.5)
    assert chosen.anchors.offset == 0.25
    assert chosen.total_steps == 20


def test_a_batch_size_that_is_given_wins_over_that_of_the_checkpoint(toy_config):
    saved = toy_config.copy_and_resolve_references()
    saved.data.batch_size = 3
    toy_config.update(epochs=2)
    toy_config.data.batch_size = 5
    assert choose(toy_config, 30, saved).data.batch_size == 5


# ---- the screen


def test_the_summary_names_the_augmentation_that_is_on(toy_config):
    toy_config.data.update(flip=False, rot90=True, scale_jitter=(0.8, 1.2))
    toy_config.data.color_jitter.hue = 0.1
    assert summary.augmentation_text(toy_config) == (
        "color_jitter.hue 0.1, rot90, scale_jitter (0.8, 1.2)"
    )
    toy_config.data.update(rot90=False, scale_jitter=(1.0, 1.0))
    toy_config.data.color_jitter.hue = 0.0
    assert summary.augmentation_text(toy_config) == "none"
    toy_config.data.augmentation = "light"
    assert summary.augmentation_text(toy_config).startswith("light: affine.scale (0.8, 1.25), ")


@pytest.mark.parametrize(
    ("steps", "patience", "text"),
    [
        (100, 0, "100 steps: 4 epochs, 25 steps per epoch, an evaluation every 50"),
        (
            25,
            3,
            "25 steps: 1 epoch, 25 steps per epoch, an evaluation every 50, to the end after 3",
        ),
    ],
)
def test_the_summary_has_the_length_in_steps_and_epochs(config, steps, patience, text):
    config.update(total_steps=steps, evaluate_every=50, patience=patience)
    plan = types.SimpleNamespace(steps_per_epoch=25)
    assert summary.length_text(config, plan, evaluates=True).startswith(text)
