"""Pixels are compared with what Pillow and torchvision's documented arithmetic give, written out here."""

import numpy as np
import PIL.Image
import pytest

from toolchain.core.errors import DataError
from toolchain.data.images import read_image
from toolchain.formats.preprocess import PIPELINES, Preprocess, load_preprocess


@pytest.fixture
def picture(tmp_path):
    def write(height=60, width=90, mode="RGB", name="p.png"):
        channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
        PIL.Image.fromarray(pixels.squeeze(), mode).save(tmp_path / name)
        return tmp_path / name, pixels

    return write


def test_unit_keeps_every_pixel(picture):
    path, pixels = picture()
    got = read_image(path, PIPELINES["unit"].fitted((1, 3, 60, 90)))
    assert got.shape == (1, 3, 60, 90)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0].transpose(1, 2, 0) * 255, pixels, atol=1e-4)


def test_signed_spans_minus_one_to_one(tmp_path):
    PIL.Image.fromarray(np.array([[[0, 128, 255]]], np.uint8)).save(tmp_path / "p.png")
    got = read_image(tmp_path / "p.png", PIPELINES["signed"].fitted(("n", 3, 1, 1)))
    np.testing.assert_allclose(got.ravel(), [-1, 128 / 127.5 - 1, 1], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (257, 256), (256, 256), (40, 401)])
def test_imagenet_against_torchvision_arithmetic(picture, height, width):
    path, pixels = picture(height, width)
    got = read_image(path, load_preprocess("imagenet").fitted((1, 3, 224, 224)))
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    resized = np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BILINEAR), np.float64)
    top, left = round((size[1] - 224) / 2.0), round((size[0] - 224) / 2.0)
    crop = resized[top : top + 224, left : left + 224] / 255
    expected = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_channels_and_layout(picture):
    path, pixels = picture(4, 5)
    bgr = Preprocess(resize="none", channels="BGR", layout="NHWC", scale=1.0)
    assert bgr.raw
    np.testing.assert_array_equal(read_image(path, bgr)[0], pixels[:, :, ::-1])
    assert read_image(path, Preprocess(resize="none", channels="L")).shape == (1, 1, 4, 5)
    assert read_image(picture(4, 5, "L", "grey.png")[0], Preprocess(resize="none")).shape == (1, 3, 4, 5)
    assert read_image(picture(4, 5, "RGBA", "alpha.png")[0], Preprocess(resize="none")).shape == (1, 3, 4, 5)


def test_refused_pictures(picture, tmp_path):
    pipeline = Preprocess(resize="none", crop=50)
    with pytest.raises(DataError, match=r"p\.png: is 40 × 90 pixels .* smaller than the crop 50 × 50"):
        read_image(picture(40, 90)[0], pipeline)
    deep = tmp_path / "deep.png"
    PIL.Image.fromarray(np.zeros((60, 60), np.uint16)).save(deep)
    with pytest.raises(DataError, match="not 8 bits a channel"):
        read_image(deep, pipeline)
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(text, pipeline)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp", "p.bmp"])
def test_truncated_pictures(picture, name):
    path, _ = picture(name=name)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(path, Preprocess(resize="none"))


def test_without_pillow(picture, monkeypatch):
    path, _ = picture()
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install 'edge-toolchain\[images\]'"):
        read_image(path, PIPELINES["imagenet"])
