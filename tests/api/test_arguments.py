"""Arguments of wrong types: refused in one sentence that names the argument, before anything is read or written."""

from __future__ import annotations

import inspect
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import toolchain
from toolchain.api.arguments import READERS, checked
from toolchain.core.errors import InputError

REQUIRED = {
    "export": {"source": "net.onnx", "targets": ["host"], "calibration": "samples.npz"},
    "convert": {"source": "net.onnx", "output": "out.onnx"},
    "optimize": {"model": "net.onnx", "output": "out.onnx"},
    "prune": {"source": "net.onnx", "calibration": "samples.npz", "output": "out.onnx"},
    "train": {"model": "net.onnx", "data": "samples.npz", "recipe": "training.toml"},
    "quantize": {"source": "net.onnx", "calibration": "samples.npz", "output": "out.onnx"},
    "verify": {"artifact": "exported/host"},
    "inspect": {"model": "net.onnx"},
    "bench": {"models": "net.onnx"},
    "compare": {"results": "results.json"},
}
"""The arguments that each function needs. None of the files exists: whatever reads one fails."""
EACH = [(name, argument) for name in REQUIRED for argument in inspect.signature(getattr(toolchain, name)).parameters]


def _refusal(name, **arguments):
    with pytest.raises(toolchain.InputError) as caught:
        getattr(toolchain, name)(**{**REQUIRED[name], **arguments})
    return str(caught.value)


@pytest.mark.parametrize(("name", "argument"), EACH)
@pytest.mark.parametrize("value", [object(), b"x", 1j], ids=["object", "bytes", "complex"])
def test_no_argument_takes_these(name, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = _refusal(name, **{argument: value})
    where = "calibration data" if argument in ("calibration", "data") else argument
    assert said.startswith(f"{where}: is ")
    assert "\n" not in said
    assert "; give " in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_none_is_taken_only_where_it_is_the_default(name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = inspect.signature(getattr(toolchain, name)).parameters[argument].default
    if default is not None:
        assert "is None" in _refusal(name, **{argument: None}) or argument in ("calibration", "data")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("export", {"targets": "host"}, "targets: is the text 'host'; give a list of targets"),
        ("export", {"targets": []}, "targets: is empty; give at least 1 of the targets"),
        ("export", {"targets": [3]}, "targets[0]: is 3; give the name or the path of a profile"),
        ("export", {"output": ""}, "output: is '', which names no file; give a path"),
        ("export", {"output": "a\0b"}, r"output: is 'a\x00b', which names no file; give a path"),
        ("export", {"explain": "no"}, "explain: is 'no'; give True or False"),
        ("export", {"max_drop": "0.01"}, "max_drop: is '0.01'; give a number, or 'off'"),
        ("export", {"max_drop": True}, "max_drop: is True; give a number, or 'off'"),
        ("export", {"max_drop": 10**400}, f"max_drop: is {10**400!r:.80}; give a number, or 'off'"),
        ("export", {"evaluate": 3}, "evaluate: is 3; give a function, or the text package.module:function"),
        ("export", {"source": dict}, "source: is the class dict; give an instance of it"),
        ("export", {"source": 3}, "source: is 3; give a path, package.module:function, or a torch module"),
        ("export", {"calibration": ""}, "calibration: is '', which names no file; give a path"),
        ("export", {"inputs": {"x": 3}}, "inputs: is of type dict; give a list of inputs"),
        ("export", {"inputs": ["x:1,3", 3]}, "inputs[1]: is 3; give a text such as image:batch,3,224,224"),
        ("export", {"freeze": {"batch": "1"}}, "freeze['batch']: is '1'; give a whole number"),
        ("export", {"freeze": {"batch": 1.5}}, "freeze['batch']: is 1.5; give a whole number"),
        ("export", {"freeze": {3: 1}}, "a name in freeze: is 3; give a text"),
        ("export", {"freeze": 0}, "freeze: is 0; give a list of texts such as batch=1, or a dictionary"),
        ("export", {"progress": None}, "progress: is None; give a function, or leave it out"),
        (
            "export",
            {"recipe": toolchain.TrainingRecipe.model_validate({"steps": ({"technique": "prune"},)})},
            "recipe: is of type TrainingRecipe; give the path of a recipe, or a toolchain.Recipe",
        ),
        (
            "train",
            {"recipe": toolchain.Recipe()},
            "recipe: is of type Recipe; give the path of a recipe, or a toolchain.TrainingRecipe",
        ),
        ("inspect", {"model": ["net.onnx"]}, "model: is of type list; give a path"),
        ("bench", {"threads": [2, None]}, "threads[1]: is None; give a whole number"),
        ("bench", {"threads": True}, "threads[0]: is True; give a whole number"),
        ("bench", {"models": {"a.onnx": 1}}, "models: is of type dict; give a list of paths"),
        ("compare", {"results": [None]}, "results[0]: is None; give a path"),
    ],
)
def test_sentences(name, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _refusal(name, **arguments) == said


@pytest.mark.parametrize(
    ("argument", "value", "taken"),
    [
        ("max_drop", np.float32(0.5), 0.5),
        ("max_drop", np.int64(1), 1.0),
        ("speedup", Fraction(3, 2), 1.5),
        ("explain", np.bool_(True), True),
        ("threads", np.int64(2), [2]),
        ("threads", (np.int32(1), 2), [1, 2]),
        ("threads", "1,2", "1,2"),
        ("sparsity", 0.5, 0.5),
        ("freeze", {"batch": np.int64(1)}, {"batch": 1}),
        ("freeze", ("batch=1",), ["batch=1"]),
        ("results", Path("a.json"), [Path("a.json")]),
        ("models", (Path(name) for name in ("a.onnx", "b.onnx")), [Path("a.onnx"), Path("b.onnx")]),
        ("targets", (Path("pi.toml"), "host"), [Path("pi.toml"), "host"]),
    ],
)
def test_values_of_other_libraries_become_pythons(argument, value, taken):
    read = READERS[argument](argument, value)
    assert read == taken
    assert type(read) is type(taken)


def test_a_path_of_another_class_is_taken():
    class Folder:
        def __fspath__(self):
            return "exported"

    assert READERS["output"]("output", Folder()) == "exported"


def test_a_target_may_be_a_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(toolchain.load_target("raspberry-pi-5").renamed("mine").to_toml())
    assert toolchain.load_target(path).name == "mine"


def test_python_itself_reports_arguments_that_do_not_exist():
    @checked()
    def function(output, *, groups=False):
        return output, groups

    assert function("a", groups=np.bool_(1)) == ("a", True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'group'"):
        function("a", group=True)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        function("a", "b")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        function()
    with pytest.raises(InputError, match="groups: is 1; give True or False"):
        function("a", groups=1)
