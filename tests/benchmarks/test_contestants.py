"""Who takes part in the comparison, and what becomes of those that are absent or fail.

Oracles: the files that make up a peer, the recipe's own fields, a driver that is not installed.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from benchmarks import contestants, peers, stock
from benchmarks.models import MODELS
from toolchain.core.errors import InputError
from toolchain.formats.recipe import Recipe

DRIVERS = Path(peers.__file__).parent / "drivers"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    return tmp_path


def test_every_part_left_out_is_another_recipe():
    recipes = [Recipe.parse({"quantize": change}) for change in contestants.ABLATIONS.values()]
    assert len({recipe.model_dump_json() for recipe in [Recipe(), *recipes]}) == len(recipes) + 1


def test_rows_are_those_asked_for():
    def rows(*chosen):
        return [variant.name for variant in contestants.variants(MODELS["svhn_cnn"], *chosen)]

    assert rows((), ()) == ["ours"]
    assert rows(("exactness", "races"), ()) == ["ours", "ours without exactness", "ours without races"]
    everything = rows(tuple(contestants.ABLATIONS), contestants.OTHERS)
    assert len(everything) == len(set(everything))
    assert {f"quantize_static {name}" for name in stock.VARIANTS} <= set(everything)
    assert {row for peer in peers.QUANTIZERS.values() for row in peer.rows} <= set(everything)


def test_the_legend_tells_the_settings_of_those_that_take_part():
    assert contestants.legend(()) == ""
    assert "NNCF" in contestants.legend(("nncf",))
    assert "Olive" not in contestants.legend(("nncf", "quantize_static"))


def test_transformers_are_told_apart():
    (word,) = {variant.hows[0][1] for variant in contestants.variants(MODELS["minilm_l6"], (), ("quark",))[1:]}
    (other,) = {variant.hows[0][1] for variant in contestants.variants(MODELS["ppocr_rec"], (), ("quark",))[1:]}
    assert (word, other) == (True, False)


def test_an_absent_peer_is_a_row_and_no_error(tmp_path):
    variant = contestants.variants(MODELS["svhn_cnn"], (), ("nncf",))[1]
    made = contestants.quantize(variant, tmp_path / "model.onnx", tmp_path, tmp_path / "out.onnx")
    assert made.missing
    assert made.file is None
    assert "not installed" in made.error


def test_the_first_error_is_told(tmp_path):
    variant = contestants.Variant("broken", stock.quantize, (("U8S8", True), ("nothing", False)))
    (tmp_path / "model.onnx").write_text("no model")
    made = contestants.quantize(variant, tmp_path / "model.onnx", tmp_path, tmp_path / "out.onnx")
    assert (made.file, made.missing) == (None, False)
    assert made.error.startswith("DecodeError")


def test_an_environment_counts_only_as_pinned(empty_cache):
    folder = empty_cache / "peers" / "nncf"
    assert peers.interpreter("nncf") is None
    folder.mkdir(parents=True)
    (folder / peers.INSTALLED).write_text("nncf==1.0\n")
    assert peers.interpreter("nncf") is None
    (folder / peers.INSTALLED).write_text((DRIVERS / "requirements" / "nncf.txt").read_text())
    assert peers.interpreter("nncf") == str(folder / "bin" / "python")


def test_an_unknown_peer_is_one_sentence():
    with pytest.raises(InputError, match="no peer 'nncff'"):
        peers.known("nncff")


@pytest.mark.parametrize("name", peers.QUANTIZERS)
def test_a_peer_is_whole(name):
    """Pins of everything it has, torch for the CPU; a driver that needs nothing of ours but what needs nothing."""
    lines = (DRIVERS / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"].endswith("+cpu")
    assert not any(package.startswith("nvidia") for package in pins)
    assert {"numpy", "onnx", "onnxruntime"} <= pins.keys()
    for file in (
        DRIVERS / f"{name}.py",
        DRIVERS / "graphs.py",
        DRIVERS.parent / "feeds.py",
        DRIVERS.parent / "child.py",
    ):
        assert not [module for module in imported(ast.parse(file.read_text())) if module.startswith("toolchain")]
    functions = [
        node for node in ast.parse((DRIVERS / f"{name}.py").read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    (quantize,) = [node for node in functions if node.name == "quantize"]
    assert [arg.arg for arg in quantize.args.args] == ["model", "samples", "output", "how", "transformer"]


def imported(tree):
    """Modules that a file imports when it runs, not when its types are checked."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_child_needs_the_standard_library_alone():
    tree = ast.parse((DRIVERS.parent / "child.py").read_text())
    assert {module.partition(".")[0] for module in imported(tree)} <= sys.stdlib_module_names
