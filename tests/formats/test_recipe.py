"""The recipe: recommended by default, strict in every field."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from toolchain.core.errors import ConfigError
from toolchain.formats.recipe import Bench, Calibrate, Quantize, Recipe


def test_an_empty_recipe_is_the_recommended_one(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    recipe = Recipe.load(tmp_path / "recipe.toml")
    assert recipe == Recipe()
    assert recipe.quantize.exact
    assert recipe.quantize.ranges == "auto"
    assert recipe.max_drop is None


def test_a_recipe_is_written_back_as_it_was_read(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        "max_drop = 0.01\n[calibrate]\nsamples = 64\n"
        '[quantize]\nranges = "percentile"\npercentile = 99.9\nkeep_float = ["Softmax", "node_7"]\n'
        "[bench]\nthreads = 2\nmin_runs = 5\n"
    )
    recipe = Recipe.load(tmp_path / "recipe.toml")
    assert (recipe.max_drop, recipe.calibrate.samples, recipe.bench.threads) == (0.01, 64, 2)
    assert recipe.quantize.keep_float == ("Softmax", "node_7")
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"quantise": {}}, "quantise: unknown key; did you mean 'quantize'?"),
        ({"quantize": {"range": "mse"}}, "quantize.range: unknown key; did you mean 'ranges'?"),
        ({"quantize": {"ranges": "minimax"}}, "quantize.ranges: 'minimax' is not allowed; did you mean 'minmax'?"),
        ({"quantize": {"exact": "yes"}}, 'quantize.exact: is "yes"; give true or false'),
        (
            {"quantize": {"percentile": 100.5}},
            "quantize.percentile: is 100.5; give 100 or less",
        ),
        (
            {"calibrate": {"samples": 0}},
            "calibrate.samples: is 0; give 1 or more",
        ),
        (
            {"calibrate": {"bins": 8}},
            "calibrate.bins: is 8; give 16 or more",
        ),
        (
            {"bench": {"min_runs": 2}},
            "bench.min_runs: is 2; give 3 or more",
        ),
        ({"max_drop": -0.1}, "max_drop: is -0.1; give 0 or more or 'off'"),
    ],
)
def test_a_fault_is_one_sentence(data, sentence):
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(data)
    assert str(caught.value) == sentence


def test_a_recipe_names_no_device():
    assert not {"target", "targets", "device"} & set(Recipe.model_fields)


def test_the_documented_recipe_is_the_default_one():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    block = text.partition("```toml")[2].partition("\n")[2].partition("```")[0]
    assert Recipe.parse(tomllib.loads(block)) == Recipe()
    for name, section in (("calibrate", Calibrate), ("quantize", Quantize), ("bench", Bench)):
        missing = [key for key in section.model_fields if f"\n{key} = " not in block and f"# {key} = " not in block]
        assert not missing, f"[{name}] {missing}"
