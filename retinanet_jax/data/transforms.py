"""Decode, resize, flip, pad: pure functions that are told what to do, by the plan.

One definition of resizing (bilinear, half-pixel centres, no antialias), twice: in numpy, which
prediction uses and where TensorFlow is not installed, and (`tf_*`) in TensorFlow for the pipeline,
where it runs in parallel outside Python. A test holds the two equal.
"""

import io
from typing import TYPE_CHECKING

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
    transpose, flip_y, flip_x = ORIENTATIONS[shown_orientation(picture, name, size)]
    pixels = np.asarray(_to_rgb(picture, name))
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def shown_orientation(picture: Image.Image, name: str, size: tuple[int, int] | None) -> int:
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
    return shown_orientation(picture, name, size) == 1 and picture.mode in ("L", "RGB")


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear with half-pixel centres and no antialias, in float32, rounded half to even."""
    top, bottom, down = _taps(image.shape[0], height)
    left, right, across = _taps(image.shape[1], width)
    pixels = image.astype(np.float32)
    rows = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * across[:, None]
    resized = rows[top] + (rows[bottom] - rows[top]) * down[:, None, None]
    return np.rint(resized).astype(np.uint8)


def flip(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Left to right."""
    return image[:, ::-1]


def pad(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
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


def tf_decode_jpeg(data: "tf.Tensor | bytes") -> "tf.Tensor":
    """`decode_image` of a plain JPEG: the same inverse cosine transform as Pillow's."""
    import tensorflow as tf

    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def tf_resize(image: "tf.Tensor", size: "tf.Tensor") -> "tf.Tensor":
    """`resize` to (height, width)."""
    import tensorflow as tf

    resized = tf.image.resize(image, size, method="bilinear", antialias=False)
    return tf.cast(tf.round(resized), tf.uint8)


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


def _taps(
    size: int, new_size: int
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " new_size"]]:
    """For each new pixel the old ones before and after its centre, and its way between them."""
    scale = np.float32(size) / np.float32(new_size)
    centre = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    before = np.floor(centre)
    after = np.minimum(np.ceil(centre), size - 1).astype(int)
    return np.maximum(before, 0).astype(int), after, centre - before
