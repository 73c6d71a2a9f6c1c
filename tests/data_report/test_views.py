"""The views of an epoch are those of the training step."""

import numpy as np

from retinanet_jax import datasets, input_pipeline
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data_report import sheet, views


def test_views_have_the_boxes_and_targets_of_the_batches(tmp_path, make_dataset, make_config):
    dataset = make_dataset(tmp_path / "train")
    rng = np.random.default_rng(0)
    for num_boxes in range(10):
        image_id = dataset.add_image()
        for _ in range(num_boxes):
            low, size = rng.uniform(0, 60, 2), rng.uniform(10, 35, 2)
            crowd = int(rng.random() < 0.2)
            dataset.add_box(image_id, [*low, *size], iscrowd=crowd)
    augmentation = {
        "rot90": True,
        "scale_jitter": (0.8, 2.0),
        "crop_size": (64, 64),
        "min_visible": 0.4,
        "buckets": ((64, 64),),
    }
    fields = dataset.write()
    config = make_config(fields, fields, **augmentation)
    source = datasets.open_training(config, tmp_path)
    plan = input_pipeline.train_plan(config, source)
    epoch = iter(views.epoch_views(source, plan, min_visible=0.4))
    match = views.make_matcher(config, (64, 64))
    loading = dict(start_step=0, num_steps=plan.steps_per_epoch, prefetch=1, num_threads=None)
    dropped = 0
    for batch in batches(source, plan, **loading, loader="numpy", min_visible=0.4):
        foreground = sheet.foreground_anchors(config, batch)
        for example in np.flatnonzero(batch.weights):
            view = next(epoch)
            assert (view.index, view.bucket) == (batch.index[example], (64, 64))
            assert view.size == tuple(batch.sizes[example])
            mask = batch.mask[example]
            np.testing.assert_array_equal(view.boxes, batch.boxes[example][mask])
            np.testing.assert_array_equal(view.classes, batch.classes[example][mask])
            crowd_boxes = batch.crowd_boxes[example][batch.crowd_mask[example]]
            np.testing.assert_array_equal(view.crowd_boxes, crowd_boxes)
            assert view.dropped == batch.dropped[example]
            dropped += view.dropped
            labels = np.asarray(match(view).labels)
            np.testing.assert_array_equal(
                labels >= 0, foreground.matched[example] | foreground.forced[example]
            )
            counts = np.asarray(views.label_counts(labels)).tolist()
            assert counts == [(labels >= 0).sum(), (labels == -1).sum(), (labels == -2).sum()]
            assert sum(counts) == len(labels)
    assert next(epoch, None) is None
    assert dropped > 0
