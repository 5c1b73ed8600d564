"""Image pipelines: the named ones, TOML files, and the model's input."""

import pytest

from toolchain.core.errors import ConfigError, DataError
from toolchain.formats.preprocess import PIPELINES, Preprocess, load_preprocess


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
