import sys

import pytest

from toolchain.core.errors import DataError, InputError
from toolchain.core.user_code import is_callable_spec, load_callable, user_code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module with a name nothing else has and steps into its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(text, name="own_module_for_loading"):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_spec_form():
    assert is_callable_spec("pkg.mod:fn")
    assert not is_callable_spec("C:/x")
    assert not is_callable_spec("data.npz")


def test_loads_from_the_current_folder(module):
    name = module("class Net:\n    @staticmethod\n    def make(): return 3")
    assert load_callable(f"{name}:Net.make")() == 3


def test_misspelt_attribute(module):
    name = module("def samples(): ...")
    with pytest.raises(InputError, match="has no 'sample'; did you mean 'samples'"):
        load_callable(f"{name}:sample")


def test_missing_module_and_missing_import_inside_are_told_apart(module):
    with pytest.raises(DataError, match="there is no module 'not_there_at_all'"):
        load_callable("not_there_at_all:f", error=DataError)
    name = module("import not_there_either\n")
    with pytest.raises(InputError, match=r"raised ModuleNotFoundError: .*not_there_either.*loading\.py line 1"):
        load_callable(f"{name}:f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:", r"SyntaxError: .*loading\.py, line 1\); "),
        ("exit('bye')", "raised SystemExit: bye"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("raise KeyError", "KeyError"),
    ],
)
def test_import_errors(module, text, said):
    name = module(text)
    with pytest.raises(InputError, match=said):
        load_callable(f"{name}:f")


def test_not_callable(module):
    with pytest.raises(InputError, match="is of type int and cannot be called"):
        load_callable(f"{module('f = 3')}:f")


def test_a_file_path_is_rewritten():
    for path in ("./pkg/my_data.py:samples", "pkg.my_data.py:samples"):
        with pytest.raises(InputError, match=r"write pkg\.my_data:samples"):
            load_callable(path)


def test_user_code_passes_our_errors_and_chains_others():
    with pytest.raises(DataError, match="as is"), user_code("here"):
        raise DataError("as is")
    with pytest.raises(InputError, match="here: raised ValueError: first") as caught, user_code("here"):
        raise ValueError("first\nsecond")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "second" not in str(caught.value)
