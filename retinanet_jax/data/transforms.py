"""Decode, resize, flip, turn, crop, pad: pure functions that are told what to do, by the plan.

One definition of each kind of resizing, twice: in numpy and Pillow, which prediction uses and where
TensorFlow is not installed, and (`tf_*`) in TensorFlow for the pipeline, where it runs in parallel
outside Python. A test holds the two equal.
"""

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    import tensorflow as tf

# What each EXIF orientation asks for: (transpose, then flip top to bottom, then left to right).
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


STRIP = 64  # rows that are resized at once: few enough to stay in the processor's cache

# The kinds of resizing, and the type of the pixels that come out.
# bilinear: half-pixel centres, no antialias, in float32, rounded half to even.
# bilinear_float: the same, not rounded, as torchvision's detectors resize.
# pillow: Pillow's bilinear, which is antialiased, as detectron2 resizes.
PIXEL_TYPES = {"bilinear": np.uint8, "bilinear_float": np.float32, "pillow": np.uint8}

Pixels = UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]  # RGB in 0..255


class Geometry(NamedTuple):
    """What becomes of one picture, in this order: one row of a `BatchPlan`."""

    resized: tuple[int, int]  # height and width of the upright picture once resized
    flip: bool  # left to right
    turns: int  # quarter turns counter-clockwise
    offset: tuple[int, int]  # y and x, in the turned picture, of the window that is kept
    size: tuple[int, int]  # height and width of that window


def decode_image(
    data: bytes, name: str, *, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """RGB, upright by its EXIF orientation; any kind of picture that Pillow reads.

    Transparency is dropped, 16 bits are cut to the upper 8. `size` is the declared (height,
    width): a picture that has it only before rotation was annotated so and stays unrotated.
    Raises ValueError with `name` where the picture is corrupt or truncated or not of that size.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Exception as error:  # broken content makes Pillow's decoders raise almost anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known picture format" if unknown else error
        raise ValueError(
            f"{name}: the picture is corrupt or truncated ({reason}); replace it, or remove it "
            "from the data set."
        ) from None
    return oriented_pixels(picture, name, size=size)


def oriented_pixels(
    picture: Image.Image, name: str, *, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """`decode_image` of a picture that Pillow has opened."""
    transpose, flip_y, flip_x = ORIENTATIONS[valid_orientation(picture, name, size)]
    pixels = np.asarray(_to_rgb(picture, name))
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def valid_orientation(picture: Image.Image, name: str, size: tuple[int, int] | None) -> int:
    """The EXIF orientation (1 to 8) in which the picture has the declared (height, width).

    Reads only the header. Raises ValueError where it has that size neither rotated nor unrotated.
    """
    orientation = _exif_orientation(picture)
    stored = (picture.height, picture.width)
    shown = stored[::-1] if ORIENTATIONS[orientation][0] else stored
    if size is None or shown == tuple(size):
        return orientation
    if stored == tuple(size):
        return 1
    raise ValueError(
        f"{name}: the picture has height and width {shown}, but is declared with {tuple(size)}; "
        "correct the annotations, or put the picture they were made for in its place."
    )


def is_plain_jpeg(data: bytes, name: str, size: tuple[int, int]) -> bool:
    """Whether `tf_decode_jpeg` decodes it as `decode_image` does: grey or colour, and upright.

    Reads only the header. Raises ValueError where the picture is not of the declared `size`.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    try:
        picture = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError):
        return False  # `decode_image` says what is wrong
    return valid_orientation(picture, name, size) == 1 and picture.mode in ("L", "RGB")


def transform_image(image: UInt8[np.ndarray, "H W 3"], geometry: Geometry, *, kind: str) -> Pixels:
    """Resized in a `kind` of PIXEL_TYPES, flipped, turned, cropped."""
    resized, mirrored, turns, offset, size = geometry
    # What the crop leaves out is not computed.
    window = _upright_windows(resized, offset, size)[mirrored][turns]
    if image.shape[:2] == tuple(resized):
        y, x, height, width = window
        image = image[y : y + height, x : x + width].astype(PIXEL_TYPES[kind], copy=False)
    else:
        image = _resize_window(image, resized, window, kind)
    return np.rot90(flip(image) if mirrored else image, turns)


def transform_boxes(
    boxes: Float32[np.ndarray, "n 4"], original: tuple[int, int], geometry: Geometry
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, " n"]]:
    """The boxes' way through what their picture of `original` (height, width) goes through.

    Returns them clipped to the window, in its pixels, and the share of each one's area that is
    inside; 0 for an empty box.
    """
    height, width = geometry.resized
    boxes = resize_boxes(boxes, np.divide(geometry.resized, original))
    if geometry.flip:
        boxes = flip_boxes(boxes, width)
    boxes = rot90_boxes(boxes, geometry.turns, height, width) - np.tile(geometry.offset, 2)
    inside = np.clip(boxes, 0, np.tile(geometry.size, 2))
    whole, kept = _areas(boxes), _areas(inside)
    visible = np.divide(kept, whole, out=np.zeros_like(whole), where=whole > 0)
    return inside.astype(np.float32), visible.astype(np.float32)


def resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int, *, kind: str) -> Pixels:
    """In a `kind` of PIXEL_TYPES; to its own size it changes no kind's values."""
    return _resize_window(image, (height, width), (0, 0, height, width), kind)


def flip(image: Pixels) -> Pixels:
    """Left to right."""
    return image[:, ::-1]


def pad(image: Pixels, height: int, width: int) -> Pixels:
    """Zeros below and to the right."""
    below, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, below), (0, right), (0, 0)))


def resize_boxes(
    boxes: Float32[np.ndarray, "n 4"], scale: Float[np.ndarray, " 2"]
) -> Float32[np.ndarray, "n 4"]:
    """Times the resized pixels per original pixel, (y, x)."""
    return (boxes * np.tile(scale, 2)).astype(np.float32)


def flip_boxes(boxes: Float32[np.ndarray, "n 4"], width: float) -> Float32[np.ndarray, "n 4"]:
    """Left to right in a picture `width` wide; boxes stay yxyx with x1 <= x2."""
    y1, x1, y2, x2 = boxes.T
    return np.stack([y1, width - x2, y2, width - x1], axis=1).astype(np.float32)


def rot90_boxes(
    boxes: Float32[np.ndarray, "n 4"], turns: int, height: float, width: float
) -> Float32[np.ndarray, "n 4"]:
    """Quarter turns counter-clockwise, as `np.rot90` turns a picture of `height` x `width`."""
    for _ in range(turns % 4):
        y1, x1, y2, x2 = boxes.T
        boxes = np.stack([width - x2, y1, width - x1, y2], axis=1).astype(np.float32)
        height, width = width, height
    return boxes


def tf_transform_image(
    image: "tf.Tensor",
    resized: "tf.Tensor",
    flip: "tf.Tensor",
    turns: "tf.Tensor",
    offset: "tf.Tensor",
    size: "tf.Tensor",
    *,
    kind: str,
) -> "tf.Tensor":
    """`transform_image`; the fields of its `Geometry` are tensors."""
    import tensorflow as tf

    edges = tf.unstack(resized), tf.unstack(offset), tf.unstack(size)
    window = tf.stack(_upright_windows(*edges))[tf.cast(flip, tf.int32), turns]
    image = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] == resized),
        lambda: tf.cast(_tf_crop(image, window), PIXEL_TYPES[kind]),
        lambda: _tf_resize_window(image, resized, window, kind),
    )
    image = tf.cond(flip, lambda: tf_flip(image), lambda: image)
    return tf.cond(turns > 0, lambda: tf.image.rot90(image, turns), lambda: image)


def tf_decode_jpeg(data: "tf.Tensor | bytes") -> "tf.Tensor":
    """`decode_image` of a plain JPEG: the same inverse cosine transform as Pillow's."""
    import tensorflow as tf

    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def tf_resize(image: "tf.Tensor", size: "tf.Tensor", *, kind: str) -> "tf.Tensor":
    """`resize` to (height, width)."""
    import tensorflow as tf

    return _tf_resize_window(image, size, tf.concat([[0, 0], size], axis=0), kind)


def tf_flip(image: "tf.Tensor") -> "tf.Tensor":
    """`flip`."""
    import tensorflow as tf

    return tf.reverse(image, axis=[1])


def tf_pad(image: "tf.Tensor", size: "tf.Tensor") -> "tf.Tensor":
    """`pad` to (height, width)."""
    import tensorflow as tf

    return tf.image.pad_to_bounding_box(image, 0, 0, size[0], size[1])


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        raise ValueError(
            f"{name}: has floating-point pixels, of no known brightness; save it as 8 bit."
        )
    if picture.mode.startswith("I"):
        # 16 bits of grey, which `convert` would saturate; of 16-bit colour Pillow itself keeps
        # the upper half.
        grey = np.clip(np.asarray(picture), 0, 2**16 - 1).astype(np.uint16) >> 8
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")  # a palette may be transparent, which RGB warns of
    return picture.convert("RGB")


def _exif_orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken tag block says nothing of the pixels; without it the picture stands as stored.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError):
        return 1
    return orientation if orientation in ORIENTATIONS else 1


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    y1, x1, y2, x2 = boxes.T
    return np.maximum(y2 - y1, 0) * np.maximum(x2 - x1, 0)


def _upright_windows(resized, offset, size) -> list[list[tuple]]:
    """The kept window's (y, x, height, width) in the resized picture, by [flip][turns].

    It lies at `offset` once that picture is flipped and turned. Numbers or scalar tensors.
    """
    (height, width), (y, x), (h, w) = resized, offset, size
    turned = [
        (y, x, h, w),
        (x, width - y - h, w, h),
        (height - y - h, width - x - w, h, w),
        (height - x - w, y, w, h),
    ]
    flipped = [(top, width - left - across, down, across) for top, left, down, across in turned]
    return [turned, flipped]


def _resize_window(
    image: UInt8[np.ndarray, "H W 3"],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    kind: str,
) -> Pixels:
    """The window (y, x, height, width) of the picture resized to `size`."""
    y, x, height, width = window
    if kind == "pillow":
        whole = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(whole)[y : y + height, x : x + width]
    rows = [tap[y : y + height] for tap in _taps(image.shape[0], size[0])]
    left, right, across = (tap[x : x + width] for tap in _taps(image.shape[1], size[1]))
    resized = np.empty((height, width, 3), PIXEL_TYPES[kind])
    for start in range(0, height, STRIP):
        top, bottom, down = (tap[start : start + STRIP] for tap in rows)
        first = top[0]
        pixels = image[first : bottom[-1] + 1].astype(np.float32)
        between = _between(pixels.take(left, axis=1), pixels.take(right, axis=1), across[:, None])
        strip = _between(
            between.take(top - first, axis=0),
            between.take(bottom - first, axis=0),
            down[:, None, None],
        )
        if kind == "bilinear":
            strip = np.rint(strip, out=strip)
        resized[start : start + STRIP] = strip
    return resized


def _between(
    before: Float32[np.ndarray, "*axes"],
    after: Float32[np.ndarray, "*axes"],
    way: Float32[np.ndarray, "..."],
) -> Float32[np.ndarray, "*axes"]:
    """before + (after - before) * way, in the memory of `after`: that halves the time."""
    after -= before
    after *= way
    after += before
    return after


def _taps(
    size: int, new_size: int
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " new_size"]]:
    """For each new pixel the old ones before and after its centre, and its way between them."""
    scale = np.float32(size) / np.float32(new_size)
    centre = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    before = np.floor(centre)
    after = np.minimum(np.ceil(centre), size - 1).astype(int)
    return np.maximum(before, 0).astype(int), after, centre - before


def _tf_resize_window(
    image: "tf.Tensor", size: "tf.Tensor", window: "tf.Tensor", kind: str
) -> "tf.Tensor":
    """`_resize_window`; only rounding is spared what lies outside."""
    import tensorflow as tf

    if kind == "pillow":

        def by_pillow(image: np.ndarray, size: np.ndarray, window: np.ndarray) -> np.ndarray:
            return _resize_window(image, tuple(size.tolist()), tuple(window.tolist()), kind)

        resized = tf.numpy_function(by_pillow, [image, size, window], tf.uint8)
        return tf.ensure_shape(resized, (None, None, 3))
    # Its kernel is twice as fast on float32 as on uint8.
    image = tf.cast(image, tf.float32)
    resized = tf.image.resize(image, size, method="bilinear", antialias=False)
    resized = _tf_crop(resized, window)
    return resized if kind == "bilinear_float" else tf.cast(tf.round(resized), tf.uint8)


def _tf_crop(image: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.concat([window[2:], [3]], axis=0))
