"""The plan's laws: exact epochs, resumability, and buckets that hold what is put in them."""

import collections
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.data.buckets import make_buckets, own_buckets, smallest_bucket
from retinanet_jax.data.plan import BatchPlan, EvalPlan, TrainPlan
from retinanet_jax.data.sizes import resized_size

COCO_BUCKETS = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
SEVEN_BUCKETS = (
    (800, 928),
    (800, 1088),
    (800, 1216),
    (800, 1344),
    (1088, 800),
    (1216, 800),
    (1344, 800),
)
SIZES = np.array([[480, 640], [640, 480], [500, 500], [333, 640], [640, 200], [20, 30]])
SIDES = {"short_side": 800, "long_side": 1333}
NO_COLOR_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
COLOR_JITTER = {"brightness": 0.4, "contrast": 0.2, "saturation": 1.5, "hue": 0.1}

augmentations = st.fixed_dictionaries(
    {
        "short_side_sampling": st.sampled_from(["choice", "range"]),
        "flip": st.booleans(),
        "scale_jitter": st.sampled_from([None, (0.7, 1.4), (0.1, 2.0)]),
        "crop_size": st.sampled_from([None, (128, 192), (100, 60)]),
        "rot90": st.booleans(),
        "color_jitter": st.sampled_from([NO_COLOR_JITTER, COLOR_JITTER]),
        "resize": st.sampled_from(["bilinear", "bilinear_float", "pillow"]),
    }
)


def train_plan(sizes, **changes) -> TrainPlan:
    recipe = {
        "seed": 0,
        "batch_size": 4,
        "buckets": ((128, 192), (192, 128)),
        "resize": "bilinear",
        "short_sides": (96, 128),
        "short_side_sampling": "choice",
        "long_side": 192,
        "flip": True,
        "scale_jitter": (0.7, 1.4),
        "crop_size": None,
        "rot90": False,
        "color_jitter": NO_COLOR_JITTER,
    }
    return TrainPlan(np.asarray(sizes), **recipe | changes)


def random_sizes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 700, (count, 2))


def drawn(plan: TrainPlan, field: str) -> np.ndarray:
    """One field of all pictures of the first epoch."""
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    return np.concatenate([getattr(batch, field)[batch.weights == 1] for batch in batches])


def turned_size(batch: BatchPlan) -> np.ndarray:
    return np.where(batch.turns[:, None] % 2, batch.resized[:, ::-1], batch.resized)


def bits(plan: BatchPlan) -> bytes:
    return repr(plan.bucket).encode() + b"".join(field.tobytes() for field in plan[2:])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 640 * 800 / 480 = 1066.7
        ((640, 480), (1067, 800)),
        ((300, 600), (667, 1333)),  # the long side rules: 300 * 1333 / 600 = 666.5, half up
        ((1000, 1000), (800, 800)),
        ((1, 2000), (1, 1333)),  # never less than a pixel
    ],
)
def test_resized_size_by_hand(size, expected):
    assert resized_size(*size, **SIDES, resize="bilinear") == expected


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((480, 640), "bilinear_float", (800, 1066)),  # 1066.7, cut
        ((300, 600), "bilinear_float", (666, 1333)),
        # 800 / 289 is not a float64, and 289 times the nearest one is below 800.
        ((289, 300), "bilinear_float", (799, 830)),
        ((1, 2000), "bilinear_float", (1, 1333)),
        ((480, 640), "pillow", (800, 1067)),
        ((640, 480), "pillow", (1067, 800)),
        ((300, 600), "pillow", (667, 1333)),  # 800 * (1333 / 1600) is 666.5
        ((620, 210), "pillow", (1333, 451)),  # 451.5, but 800 * (1333 / 2361.9) is just below
        ((612, 612), "pillow", (800, 800)),
    ],
)
def test_the_peers_sizes_by_hand(size, resize, expected):
    """As torchvision 0.28 and detectron2 0.6 give them."""
    assert resized_size(*size, **SIDES, resize=resize) == expected


def test_own_buckets_by_hand():
    sizes = np.array([[800, 1066], [801, 32], [799, 1060], [1, 1], [32, 801]])
    assert own_buckets(sizes).tolist() == [[32, 32], [32, 832], [832, 32], [800, 1088]]
    recipe = {"buckets": (), "short_side": 64, "long_side": 96, "resize": "bilinear"}
    plan = EvalPlan(np.array([[64, 65], [64, 96], [70, 64], [64, 64]]), batch_size=1, **recipe)
    buckets = [plan.batch(step).bucket for step in range(plan.num_batches)]
    assert sorted(buckets) == [(64, 64), (64, 96), (64, 96), (96, 64)]


def test_buckets_are_sorted_and_the_last_holds_what_any_holds():
    assert make_buckets(COCO_BUCKETS).tolist() == [
        [800, 1088],
        [1088, 800],
        [800, 1344],
        [1344, 800],
        [1344, 1344],
    ]
    assert make_buckets(((64, 64), (32, 64))).tolist() == [[32, 64], [64, 64]]


def test_smallest_bucket_by_hand():
    sizes = np.array([[800, 1000], [801, 799], [800, 1089], [1000, 1000], [1345, 1]])
    assert smallest_bucket(sizes, make_buckets(COCO_BUCKETS)).tolist() == [0, 1, 2, 4, -1]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 50),
    hosts=st.integers(1, 3),
    rows=st.integers(1, 5),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
    recipe=augmentations,
)
def test_an_epoch_has_each_picture_once_whatever_the_hosts(count, hosts, rows, epoch, seed, recipe):
    plan = train_plan(random_sizes(count, seed), batch_size=hosts * rows, seed=seed, **recipe)
    assert plan.steps_per_epoch == -(-count // (hosts * rows))
    seen = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        batch = plan.batch(step)
        for host in range(hosts):
            part = batch.rows(host, hosts)
            assert part.bucket == batch.bucket
            assert len(part.index) == rows
            seen += part.index[part.weights == 1].tolist()
    assert sorted(seen) == list(range(count))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40), seed=st.integers(0, 9), start=st.integers(0, 30), recipe=augmentations
)
def test_any_step_is_the_same_from_wherever_one_starts(count, seed, start, recipe):
    sizes = random_sizes(count, seed)
    running, resumed = (train_plan(sizes, seed=seed, **recipe) for _ in range(2))
    one_by_one = [bits(running.batch(step)) for step in range(start + 3)]
    assert one_by_one[start:] == [bits(resumed.batch(step)) for step in range(start, start + 3)]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40), seed=st.integers(0, 9), step=st.integers(0, 30), recipe=augmentations
)
def test_a_batch_takes_the_smallest_bucket_that_holds_it(count, seed, step, recipe):
    plan = train_plan(random_sizes(count, seed), seed=seed, **recipe)
    batch = plan.batch(step)
    needed = batch.size.max(axis=0)
    holding = [one for one in plan.buckets.tolist() if (needed <= one).all()]
    assert list(batch.bucket) == min(holding, key=lambda one: one[0] * one[1])


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40), seed=st.integers(0, 9), step=st.integers(0, 30), recipe=augmentations
)
def test_the_window_lies_in_the_turned_picture(count, seed, step, recipe):
    batch = train_plan(random_sizes(count, seed), seed=seed, **recipe).batch(step)
    turned, crop = turned_size(batch), recipe["crop_size"]
    assert np.array_equal(batch.size, np.minimum(turned, crop) if crop else turned)
    assert (batch.offset >= 0).all()
    assert (batch.offset + batch.size <= turned).all()
    assert recipe["rot90"] or not batch.turns.any()
    assert recipe["flip"] or not batch.flip.any()
    if recipe["color_jitter"] is NO_COLOR_JITTER:
        assert (batch.colors == (1, 1, 1, 0)).all()
    names = "int32 int32 bool int32 int32 int32 float32 float32"
    assert " ".join(field.dtype.name for field in batch[2:]) == names


def test_fillers_repeat_a_picture_of_their_batch():
    plan = train_plan(random_sizes(5), batch_size=4)
    batches = [plan.batch(step) for step in range(2)]
    short = min(batches, key=lambda batch: batch.weights.sum())
    assert short.weights.tolist() == [1, 0, 0, 0]
    assert len(set(short.index.tolist())) == 1


def test_only_leftovers_are_promoted():
    """64 landscapes and 64 portraits in batches of 8: no batch needs the square bucket."""
    sizes = np.array([[100, 150], [150, 100]] * 64)
    plan = train_plan(sizes, batch_size=8, short_sides=(128,), scale_jitter=None)
    buckets = [plan.batch(step).bucket for step in range(plan.steps_per_epoch)]
    assert sorted(buckets) == [(128, 192)] * 8 + [(192, 128)] * 8


def test_epochs_differ_and_seeds_differ():
    sizes = random_sizes(64)
    plan = train_plan(sizes)
    first, second = (
        np.concatenate([plan.batch(step).index for step in range(start, start + 16)])
        for start in (0, 16)
    )
    assert not np.array_equal(first, second)
    assert bits(plan.batch(0)) != bits(train_plan(sizes, seed=1).batch(0))


def test_the_draws_of_a_seed_stay_what_they_were():
    """Else a run that goes on with a newer version would see some pictures twice."""
    plan = train_plan(SIZES)
    first, second, last = (plan.batch(step) for step in (0, 1, 5))
    assert first.bucket == (128, 192)
    assert first.index.tolist() == [0, 2, 5, 3]
    assert first.resized.tolist() == [[126, 167], [107, 107], [91, 136], [100, 192]]
    assert second.bucket == (192, 192)
    assert second.index.tolist() == [4, 1, 1, 1]
    assert second.resized[:2].tolist() == [[155, 48], [192, 144]]
    assert last.index[:2].tolist() == [4, 0]
    assert last.resized[:2].tolist() == [[192, 60], [108, 144]]
    flips = [int(flip) for step in range(4, 8) for flip in plan.batch(step).flip]
    assert flips == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]


EVERYTHING = {"crop_size": (64, 64), "rot90": True, "color_jitter": COLOR_JITTER}


@pytest.mark.parametrize(
    ("switched_off", "changed"),
    [
        ({"flip": False}, {"flip"}),
        ({"rot90": False}, {"turns", "offset", "size"}),
        ({"crop_size": None}, {"offset", "size", "resized"}),
        ({"scale_jitter": None}, {"resized", "offset", "size"}),
        ({"color_jitter": COLOR_JITTER | {"brightness": 0.0}}, {"colors"}),
    ],
)
def test_an_augmentation_switched_off_leaves_the_others_drawn_as_before(switched_off, changed):
    # One bucket for all, so that the batches hold the same pictures.
    sizes, recipe = random_sizes(40), EVERYTHING | {"buckets": ((192, 192),)}
    full, less = train_plan(sizes, **recipe), train_plan(sizes, **recipe | switched_off)
    for field in set(BatchPlan._fields) - {"bucket", "resize", "weights"}:
        assert np.array_equal(drawn(full, field), drawn(less, field)) == (field not in changed)
    if "colors" in changed:
        assert np.array_equal(drawn(full, "colors")[:, 1:], drawn(less, "colors")[:, 1:])


def test_what_is_drawn_has_the_stated_distribution():
    sizes = np.full((4000, 2), 100)
    plan = train_plan(sizes, scale_jitter=None)
    assert abs(drawn(plan, "flip").mean() - 0.5) < 0.04
    sides = drawn(plan, "resized")[:, 0]
    assert set(sides.tolist()) == {96, 128}
    assert abs((sides == 96).mean() - 0.5) < 0.04

    plan = train_plan(sizes, short_sides=(90, 99), short_side_sampling="range", scale_jitter=None)
    counts = collections.Counter(drawn(plan, "resized")[:, 0].tolist())
    assert sorted(counts) == list(range(90, 100))
    assert all(abs(count - 400) < 80 for count in counts.values())

    plan = train_plan(sizes, short_sides=(100,), scale_jitter=(0.5, 1.5))
    sides = drawn(plan, "resized")[:, 0]
    assert sides.min() in (50, 51)
    assert sides.max() in (149, 150)
    assert abs(sides.mean() - 100) < 2

    turns = drawn(train_plan(sizes, rot90=True), "turns")
    counts = np.bincount(turns)
    assert len(counts) == 4
    assert (abs(counts - 1000) < 120).all()


def test_colour_factors_have_the_stated_distribution():
    colors = drawn(train_plan(np.full((4000, 2), 100), color_jitter=COLOR_JITTER), "colors")
    lowest, highest = np.array([0.6, 0.8, 0.0, -0.1]), np.array([1.4, 1.2, 2.5, 0.1])
    width = highest - lowest
    assert (colors >= lowest - 1e-6).all()
    assert (colors <= highest + 1e-6).all()
    np.testing.assert_allclose(colors.min(axis=0), lowest, atol=0.01 * width.max())
    np.testing.assert_allclose(colors.max(axis=0), highest, atol=0.01 * width.max())
    assert (abs(colors.mean(axis=0) - (lowest + highest) / 2) < 0.02 * width).all()
    # Drawn apart from each other.
    assert abs(np.corrcoef(colors.T) - np.eye(4)).max() < 0.06


def test_large_scale_jitter_by_hand():
    """480 x 640 in 640 x 640 at 0.1 to 2.0 is 48 x 64 to 960 x 1280, of which 640 x 640 is kept."""
    plan = train_plan(
        np.tile([[480, 640]], (2000, 1)),
        buckets=((640, 640),),
        short_sides=(640,),
        long_side=640,
        scale_jitter=(0.1, 2.0),
        crop_size=(640, 640),
    )
    resized, size, offset = (drawn(plan, field) for field in ("resized", "size", "offset"))
    assert resized.min(axis=0).tolist() in ([48, 64], [49, 65])
    assert (resized.max(axis=0) > (958, 1277)).all()
    assert (resized.max(axis=0) <= (960, 1280)).all()
    assert abs(resized[:, 1].mean() - 640 * 1.05) < 20
    assert np.array_equal(size, np.minimum(resized, 640))
    room = resized - size
    assert abs((offset[room > 50] / room[room > 50]).mean() - 0.5) < 0.02
    assert not offset[room == 0].any()


def test_every_offset_of_the_crop_is_as_likely():
    recipe = {"short_sides": (102,), "scale_jitter": None, "crop_size": (100, 101)}
    offset = drawn(train_plan(np.full((3000, 2), 102), **recipe), "offset")
    for y in range(3):
        for x in range(2):
            assert abs((offset == (y, x)).all(axis=1).sum() - 500) < 80


def test_scale_jitter_stops_where_the_turned_picture_is_held():
    """128 x 192 holds 480 x 640 as 128 x 171, on its side as 128 x 96."""
    plan = train_plan(
        np.tile([[480, 640]], (64, 1)),
        buckets=((128, 192),),
        short_sides=(64,),
        scale_jitter=(4.0, 4.0),
        rot90=True,
    )
    turns, size = drawn(plan, "turns"), drawn(plan, "size")
    assert {(int(turn) % 2, *one) for turn, one in zip(turns, size.tolist(), strict=True)} == {
        (0, 128, 171),
        (1, 128, 96),
    }


def test_scale_jitter_stops_at_the_largest_bucket():
    plan = train_plan(SIZES, scale_jitter=(3.0, 3.0))
    for step in range(4):
        batch = plan.batch(step)
        assert (batch.size <= batch.bucket).all()
        # As large as (192, 192), the last bucket, lets it be, in its own proportions.
        assert (batch.resized.max(axis=1) == 192).all()


@pytest.mark.parametrize("buckets", [(), ((128, 192), (192, 128))])
@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float", "pillow"])
def test_evaluation_sees_each_picture_once_in_a_bucket_of_its_own_size(buckets, resize):
    sizes = random_sizes(37)
    recipe = {"buckets": buckets, "short_side": 128, "long_side": 192, "resize": resize}
    plan = EvalPlan(sizes, batch_size=4, **recipe)
    batches = [plan.batch(step) for step in range(plan.num_batches)]
    seen = np.concatenate([batch.index[batch.weights == 1] for batch in batches])
    assert sorted(seen.tolist()) == list(range(37))
    for batch in batches:
        assert not any(field.any() for field in (batch.flip, batch.turns, batch.offset))
        assert np.array_equal(batch.size, batch.resized)
        assert (batch.colors == (1, 1, 1, 0)).all()
        for row, index in enumerate(batch.index):
            alone = EvalPlan(sizes[[index]], batch_size=1, **recipe).batch(0)
            assert alone.bucket == batch.bucket
            assert np.array_equal(alone.resized[0], batch.resized[row])
    with pytest.raises(IndexError):
        plan.batch(plan.num_batches)


def test_a_picture_that_no_bucket_holds_is_named_with_the_bucket_it_needs():
    with pytest.raises(ValueError, match=r"picture 1 of \(640, 480\).*\(1067, 800\).*\(1088, 800"):
        EvalPlan(SIZES, batch_size=1, buckets=((800, 1088),), **SIDES, resize="bilinear")
    with pytest.raises(ValueError, match=r"picture 0 .*no bucket of \[\[64, 64\]\]"):
        train_plan(SIZES, buckets=((64, 64),))
    lying = {"buckets": ((128, 192),), "short_sides": (128,)}
    train_plan(SIZES[:1], **lying)
    with pytest.raises(ValueError, match=r"picture 0 of \(480, 640\).*\(171, 128\).*\(192, 128\)"):
        train_plan(SIZES[:1], **lying, rot90=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ((800, 1333),)}, r"\(800, 1333\).*multiples of 32.*try \(800, 1344\)"),
        ({"buckets": ()}, "at least one"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -3}, "seed=-3"),
        ({"short_sides": ()}, r"short_sides=\(\)"),
        ({"long_side": 0}, "long_side=0"),
        ({"scale_jitter": (1.2, 0.8)}, r"scale_jitter=\(1.2, 0.8\)"),
        ({"sizes": np.zeros((0, 2), int)}, "at least one picture"),
        ({"resize": "bicubic"}, "resize='bicubic' must be one of 'bilinear', 'bilinear_float'"),
        ({"short_side_sampling": "any"}, "short_side_sampling='any' must be 'choice' or 'range'"),
        ({"short_side_sampling": "range", "short_sides": (96,)}, r"short_sides=\(96,\) must be"),
        ({"short_side_sampling": "range", "short_sides": (96, 64)}, r"lo <= hi where short_side_s"),
        ({"crop_size": (0, 64)}, r"crop_size=\(0, 64\) must be a positive"),
        ({"crop_size": (128, 200)}, r"crop_size=\(128, 200\).*\[192, 192\].*bucket \(128, 224\)"),
        ({"color_jitter": NO_COLOR_JITTER | {"hue": -0.1}}, r"color_jitter\['hue'\]=-0.1 must not"),
    ],
)
def test_a_wrong_recipe_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train_plan(**{"sizes": SIZES} | changes)


def test_a_batch_must_divide_among_the_hosts():
    with pytest.raises(ValueError, match="batch_size=4 does not divide among 3 processes; try 3"):
        train_plan(SIZES).batch(0).rows(0, 3)


def coco_like_sizes(count: int = 118_287) -> np.ndarray:
    """Simulated sizes: 60% in COCO's four most common forms, the rest spread.

    Of those the long side is 640 and the short one uniform from 300 to 640, 30% of them portraits.
    """
    rng = np.random.default_rng(0)
    common = np.array([[480, 640], [427, 640], [640, 480], [640, 427]])
    sizes = common[rng.choice(4, count, p=[0.39, 0.36, 0.14, 0.11])]
    rest = np.stack([rng.integers(300, 641, count), np.full(count, 640)], axis=1)
    portraits = rng.random(count) < 0.3
    rest[portraits] = rest[portraits, ::-1]
    return np.where(rng.random(count)[:, None] < 0.6, sizes, rest)


def test_a_simulated_coco_is_planned_in_seconds_and_pads_little():
    """All augmentation drawn; and the share of padding at 800/1333, by the buckets one has."""
    sizes = coco_like_sizes()
    tracemalloc.start()
    start = time.perf_counter()
    everything = {"rot90": True, "color_jitter": COLOR_JITTER}
    coco_plan(sizes, SEVEN_BUCKETS, **everything).batch(0)
    seconds = time.perf_counter() - start
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"{len(sizes):,} simulated sizes: an epoch in {seconds:.1f} s, {megabytes:.0f} MB")
    assert seconds < 10
    assert megabytes < 1000

    shares = {}
    for buckets in (((1344, 1344),), ((800, 1344), (1344, 800)), SEVEN_BUCKETS):
        plan = coco_plan(sizes, buckets)
        batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
        pixels = sum(int(batch.size.prod(axis=1) @ batch.weights) for batch in batches)
        padded = sum(len(batch.index) * batch.bucket[0] * batch.bucket[1] for batch in batches)
        shares[len(buckets)] = 1 - pixels / padded
        print(f"{len(plan.buckets)} buckets: {shares[len(buckets)]:.1%} padding")
    assert len(plan.buckets) == 8  # the seven, and the one that holds what any holds
    assert shares[7] < 0.05
    assert 0.15 < shares[2] < 0.20
    assert shares[1] > 0.5


def coco_plan(sizes, buckets, **changes) -> TrainPlan:
    recipe = {"batch_size": 16, "short_sides": (800,), "long_side": 1333, "scale_jitter": None}
    return train_plan(sizes, buckets=buckets, **recipe | changes)
