"""RetinaNet R50-FPN for TPUs and large machines: 640 x 640 pixels, batches of 256, bfloat16.

Command:  retinanet-jax train --config=configs/tpu_640.py --workdir=runs/tpu_640
          (on a pod the same on every host, with --distributed)
Expects:  what configs/r50_fpn.py does, and memory for 256 images over all devices; with less, lower
          --config.data.batch_size: the learning rate follows, --config.total_steps does not.
Batch:    A TPU is fast with a multiple of 8 images a chip; the compiler estimates 2.1 times as long
          an image with 4. With 16, a chip requires 4.3 GiB of memory. 8 a chip, for 36 epochs:

          chips              4       8      16      32     64
          data.batch_size   32      64     128     256    512
          total_steps  135_000  67_500  33_750  16_875  8_438
AP:       37.7 on val2017 is the number of srihari-humbarwadi/retinanet-tensorflow2.x for the run
          that this config follows (resnet50-640x640-3x-256); not measured here. TensorFlow's Model
          Garden, with similar settings but jitter of 0.8 to 1.2, has 34.3 after 12 epochs and 36.8
          after 72.
Hours:    not measured here. That run took 50 minutes on a TPU v3-32, at some 1,270 images/s.

36 epochs of large-scale jitter: each image is scaled by 0.5 to 2 and cropped to the square. gamma
1.5, no ignored range of IoU, P6 from P5, Huber loss of 0.1 with the weight 50 / 4 (the mean of the
four coordinates), which is smooth L1 at 50 / 4 * 0.1. Unlike that run: a cosine instead of drops at
11,250 and 15,000 steps, GroupNorm instead of the heads' batch norms per level, no Nesterov, 1,000
candidates per level, gradients clipped at norm 10.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import r50_fpn


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is "" or "tiny"."""
    config = r50_fpn.get_config().unlock()
    config.update(total_steps=16_875, checkpoint_every=500, evaluate_every=2_500)
    config.dtype = "bfloat16"
    config.data.update(
        batch_size=256,
        eval_batch_size=64,
        buckets=((640, 640),),
        short_sides=(640,),
        eval_short_side=640,
        long_side=640,
        scale_jitter=(0.5, 2.0),
        crop_size=(640, 640),
    )
    config.model.update(norm="batch", p6_from="p5", head_norm="group")
    config.matching.background_iou = 0.5
    config.loss.update(gamma=1.5, beta=0.1, box_weight=1.25)
    config.optimizer.update(
        learning_rate=0.32,
        reference_batch_size=256,
        warmup_steps=1_000,
        warmup_factor=0.021,
        schedule="cosine",
    )
    return r50_fpn.finished(config, arg)
