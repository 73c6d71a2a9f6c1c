"""Large files are read strip by strip, with the same pixels as any image."""

import io
import pathlib
import tempfile

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data import image_formats
from retinanet_jax.data.image_files import read_image
from retinanet_jax.inference import large_images
from retinanet_jax.inference.large_images import read_large, reduced


@pytest.fixture
def all_large(monkeypatch):
    """Let every image be large, and the strips few rows high."""
    monkeypatch.setattr(image_formats, "UNCHECKED_PIXELS", 10)
    monkeypatch.setattr(large_images, "STRIP_HEIGHT", 7)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


IMAGES = {
    "rgb.png": Image.fromarray(pixels(40, 30, 3)),
    "rgb.jpg": Image.fromarray(pixels(40, 30, 3)),
    "gray.jpg": Image.fromarray(pixels(40, 30)),
    "palette.png": Image.fromarray(pixels(40, 30, 3)).quantize(16),
    "alpha.png": Image.fromarray(pixels(40, 30, 4)),
    "cmyk.jpg": Image.fromarray(pixels(40, 30, 4), "CMYK"),
    "rgb.tif": Image.fromarray(pixels(40, 30, 3)),
    "deep.png": Image.fromarray(pixels(40, 30).astype(np.uint16) * 250),
}


def save(name: str, folder: pathlib.Path, orientation: int = 1) -> pathlib.Path:
    path = folder / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_lzw"} if path.suffix == ".tif" else {"exif": exif}
    IMAGES[name].save(path, **options)
    return path


@pytest.mark.parametrize("name", IMAGES)
def test_large_files_of_all_formats_have_the_pixels_of_any_image(name, config, all_large, tmp_path):
    path = save(name, tmp_path)
    large = read_large(path, config)
    np.testing.assert_array_equal(large, read_image(path))
    assert large.dtype == np.uint8
    assert type(large) is np.ndarray


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_large_files_are_oriented(orientation, config, all_large, tmp_path):
    path = save("rgb.jpg", tmp_path, orientation)
    large = read_large(str(path), config)
    np.testing.assert_array_equal(large, read_image(path))
    assert large.shape == ((40, 30, 3) if orientation == 3 else (30, 40, 3))


def test_other_images_are_read_as_always(config, all_large, tmp_path):
    config.data.value_range = "image"
    path = save("deep.png", tmp_path)
    np.testing.assert_array_equal(read_large(path, config), read_image(path, "image"))
    array = pixels(40, 30, 3)
    mapped = np.memmap(tmp_path / "a.raw", np.uint8, "w+", shape=array.shape)
    mapped[:] = array
    assert np.shares_memory(read_large(mapped, config), mapped)
    content = io.BytesIO(save("rgb.png", tmp_path).read_bytes())
    np.testing.assert_array_equal(read_large(content, config), array)


def test_files_that_cannot_be_read_are_errors(config, all_large, tmp_path, monkeypatch):
    missing = read_large(tmp_path / "missing.png", config)
    assert "missing.png: cannot be read (No such file" in str(missing)
    whole = save("rgb.png", tmp_path).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    assert "cut.png: the image is corrupt or truncated" in str(
        read_large(tmp_path / "cut.png", config)
    )

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    error = read_large(tmp_path / "rgb.png", config)
    assert "rgb.png: its 0.0 GB of pixels cannot be written to" in str(error)
    assert "(No space left on device); let TMPDIR be a folder with room." in str(error)


def test_reducing_returns_the_means_of_squares(all_large):
    """In strips as at once."""
    image = pixels(47, 31, 3)
    for factor in (2, 3, 9):
        expected = np.asarray(Image.fromarray(image).reduce(factor))
        np.testing.assert_array_equal(reduced(image, factor), expected)
    np.testing.assert_array_equal(
        reduced(np.full((5, 5, 3), 7, np.uint8), 4), np.full((2, 2, 3), 7)
    )
    assert reduced(image, 1) is image
