"""Pixels are compared with what Pillow and torchvision's documented arithmetic give, written out here."""

import numpy as np
import PIL.Image
import pytest

from toolchain.core.errors import ConfigError, DataError
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
    got = PIPELINES["unit"].fitted((1, 3, 60, 90))(path)
    assert got.shape == (1, 3, 60, 90)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0].transpose(1, 2, 0) * 255, pixels, atol=1e-4)


def test_signed_spans_minus_one_to_one(tmp_path):
    PIL.Image.fromarray(np.array([[[0, 128, 255]]], np.uint8)).save(tmp_path / "p.png")
    got = PIPELINES["signed"].fitted(("n", 3, 1, 1))(tmp_path / "p.png")
    np.testing.assert_allclose(got.ravel(), [-1, 128 / 127.5 - 1, 1], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (257, 256), (256, 256), (40, 401)])
def test_imagenet_against_torchvision_arithmetic(picture, height, width):
    path, pixels = picture(height, width)
    got = load_preprocess("imagenet").fitted((1, 3, 224, 224))(path)
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
    np.testing.assert_array_equal(bgr(path)[0], pixels[:, :, ::-1])
    assert Preprocess(resize="none", channels="L")(path).shape == (1, 1, 4, 5)
    assert Preprocess(resize="none")(picture(4, 5, "L", "grey.png")[0]).shape == (1, 3, 4, 5)
    assert Preprocess(resize="none")(picture(4, 5, "RGBA", "alpha.png")[0]).shape == (1, 3, 4, 5)


def test_toml(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("resize = 'squash'\nsize = [32, 320]\nchannels = 'BGR'\nmean = [0.5]\nstd = [0.5]\n")
    assert load_preprocess(file).size == (32, 320)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resise = 'squash'", "unknown key; did you mean 'resize'"),
        ("resize = 'shortest'", "'shortest' is not allowed; did you mean 'shorter'"),
        ("mean = [0.1, 0.2]", "mean holds 2 numbers, but channels = 'RGB' needs 1 or 3"),
        ("std = [0.0]", "std holds a number that is not above 0"),
        ("resize = 'none'\nsize = 3", "takes no size"),
        ("resize = 'shorter'\nsize = [3, 4]", "takes one number"),
        ("crop = 0", "crop is below 1 pixel"),
        ("size = '224'", "size"),
        ("scale = ", "cannot be read"),
    ],
)
def test_bad_toml(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_preprocess(tmp_path / "own.toml")


def test_unknown_name():
    with pytest.raises(ConfigError, match="did you mean 'imagenet'"):
        load_preprocess("imagnet")
    with pytest.raises(ConfigError, match="no such preprocessing pipeline file"):
        load_preprocess("nowhere.toml")


def test_size_comes_from_the_model():
    assert PIPELINES["unit"].fitted((1, 3, 32, 64)).size == (32, 64)
    assert Preprocess(layout="NHWC").fitted((1, 32, 64, 3)).size == (32, 64)
    assert Preprocess(resize="shorter").fitted((1, 3, 32, 64)).size == 32


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ((1, 3, "h", "w"), "images of any size"),
        ((1, 80), "2 axes where images need 4"),
        ((1, 224, 224, 3), "gives RGB as NCHW, but axis 1"),
        ((1, 1, 28, 28), "is 1"),
    ],
)
def test_models_it_does_not_fit(dims, said):
    with pytest.raises(DataError, match=said):
        PIPELINES["unit"].fitted(dims)


def test_refused_pictures(picture, tmp_path):
    pipeline = Preprocess(resize="none", crop=50)
    with pytest.raises(DataError, match=r"p\.png: is 40 × 90 pixels .* smaller than the crop 50 × 50"):
        pipeline(picture(40, 90)[0])
    deep = tmp_path / "deep.png"
    PIL.Image.fromarray(np.zeros((60, 60), np.uint16)).save(deep)
    with pytest.raises(DataError, match="not 8 bits a channel"):
        pipeline(deep)
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        pipeline(text)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp", "p.bmp"])
def test_truncated_pictures(picture, name):
    path, _ = picture(name=name)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as an image"):
        Preprocess(resize="none")(path)


def test_without_pillow(picture, monkeypatch):
    path, _ = picture()
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install 'edge-toolchain\[images\]'"):
        PIPELINES["imagenet"](path)
