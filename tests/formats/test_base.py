"""Documents are strict, and every refusal is one sentence saying what, where and what to do."""

from __future__ import annotations

import gzip
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest

from toolchain.core.errors import ConfigError
from toolchain.formats.base import Document, Record
from toolchain.formats.tensor_spec import TensorSpec


class Engine(Record):
    kind: Literal["petrol", "electric"]
    power_kw: float = pydantic.Field(gt=0)


class Wheel(Record):
    diameter_mm: int


class Radio(Record):
    system: Literal["radio"]
    channels: Literal["all"] | tuple[float, ...] = "all"


class Hook(Record):
    system: Literal["hook"]
    load_kg: int


Extra = Annotated[Radio | Hook, pydantic.Field(discriminator="system")]


class Car(Document):
    KIND: ClassVar[str] = "car"

    schema_version: Literal[1] = 1
    name: str
    engine: Engine
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    tags: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()

    @pydantic.model_validator(mode="after")
    def _balanced(self) -> Car:
        if len(self.wheels) == 1:
            raise ValueError("one wheel does not make a car")
        return self


GOOD = {
    "name": "a",
    "engine": {"kind": "electric", "power_kw": 3},
    "wheels": [{"diameter_mm": 400}, {"diameter_mm": 400}],
    "tags": ["x", "y"],
}


def test_a_good_document_is_read_and_written_back(tmp_path):
    car = Car.parse(GOOD)
    assert car.wheels == (Wheel(diameter_mm=400),) * 2
    assert car.engine.power_kw == 3.0
    car.save(tmp_path / "car.json")
    assert Car.load(tmp_path / "car.json") == car


def test_a_compressed_document_is_the_same_bytes_every_time(tmp_path):
    car, files = Car.parse(GOOD), [tmp_path / "a.json.gz", tmp_path / "b.json.gz"]
    for file in files:
        car.save(file)
        assert Car.load(file) == car
    assert files[0].read_bytes() == files[1].read_bytes()
    assert gzip.decompress(files[0].read_bytes()).decode() == car.to_json()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"!" * 20, lambda data: b"{}"])
def test_a_damaged_archive_is_one_sentence(tmp_path, damage):
    file = tmp_path / "car.json.gz"
    Car.parse(GOOD).save(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match="cannot be read as a"):
        Car.load(file)


def test_toml_and_json_say_the_same(tmp_path):
    (tmp_path / "car.toml").write_text(
        'name = "a"\ntags = ["x", "y"]\nwheels = [{diameter_mm = 400}, {diameter_mm = 400}]\n'
        '[engine]\nkind = "electric"\npower_kw = 3\n'
    )
    assert Car.load(tmp_path / "car.toml") == Car.parse(GOOD)


def test_documents_are_immutable():
    with pytest.raises(pydantic.ValidationError):
        Car.parse(GOOD).name = "b"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nam": "b"}, "car.toml: nam: unknown key; did you mean 'name'?"),
        (
            {"zzz": 1},
            "car.toml: zzz: unknown key; choose one of: engine, extras, name, schema_version, spare, tags, wheels",
        ),
        (
            {"engine": {"kind": "petrol", "power": 3}},
            "car.toml: engine.power: unknown key; did you mean 'power_kw'?",
        ),
        (
            {"wheels": [{"diameter_mm": 1}, {"diameter": 1}]},
            "car.toml: wheels.1.diameter: unknown key; did you mean 'diameter_mm'?",
        ),
        ({"spare": {"diametr_mm": 1}}, "car.toml: spare.diametr_mm: unknown key; did you mean 'diameter_mm'?"),
        ({"engine": {"kind": "petrol"}}, "car.toml: engine.power_kw: is missing from this car; add it"),
        (
            {"engine": {"kind": "electrik", "power_kw": 3}},
            "car.toml: engine.kind: 'electrik' is not allowed; did you mean 'electric'?",
        ),
        (
            {"engine": {"kind": "petrol", "power_kw": "3"}},
            'car.toml: engine.power_kw: is "3"; give a number',
        ),
        (
            {"engine": {"kind": "petrol", "power_kw": -1}},
            "car.toml: engine.power_kw: is -1; give a number above 0",
        ),
        (
            {"wheels": [{"diameter_mm": 1.5}, {"diameter_mm": 1}]},
            "car.toml: wheels.0.diameter_mm: is 1.5; give a whole number",
        ),
        ({"name": True}, "car.toml: name: is true; give text in quotes"),
        ({"wheels": [{"diameter_mm": 1}]}, "car.toml: one wheel does not make a car; correct the value"),
        ({"extras": [{"load_kg": 1}]}, "car.toml: extras.0.system: is missing from this car; add it"),
        ({"extras": [{"system": "hok"}]}, "car.toml: extras.0.system: 'hok' is not allowed; did you mean 'hook'?"),
        ({"extras": [{"system": "hook"}]}, "car.toml: extras.0.load_kg: is missing from this car; add it"),
        (
            {"extras": [{"system": "hook", "load": 1}]},
            "car.toml: extras.0.load: unknown key; did you mean 'load_kg'?",
        ),
        (
            {"extras": [{"system": "radio", "channels": "al"}]},
            "car.toml: extras.0.channels: is \"al\"; give 'all' or a list",
        ),
        (
            {"extras": [{"system": "radio", "channels": [1, "x"]}]},
            'car.toml: extras.0.channels.1: is "x"; give a number',
        ),
        (
            {"schema_version": 2},
            "car.toml: schema_version: is 2, and this release reads version 1; use the release that wrote the file",
        ),
    ],
)
def test_a_fault_is_one_sentence(change, sentence):
    with pytest.raises(ConfigError) as caught:
        Car.parse({**GOOD, **change}, where="car.toml")
    assert str(caught.value) == sentence
    assert caught.value.exit_code == 2


class Everything(Document):
    KIND: ClassVar[str] = "test"

    schema_version: Literal[1] = 1
    flag: bool = True
    table: dict[str, int] = pydantic.Field(default_factory=dict)
    names: tuple[str, ...] = pydantic.Field(default=(), min_length=2)
    size: int | tuple[int, int] | None = None
    share: float = pydantic.Field(default=0.5, lt=1)
    level: Literal[1, 2] = 1
    inputs: tuple[TensorSpec, ...] = ()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"flag": "yes"}, 'flag: is "yes"; give true or false'),
        ({"flag": None}, "flag: is null; give true or false"),
        ({"table": []}, "table: is []; give a table of keys and values"),
        ({"table": {"a": "x"}}, 'table.a: is "x"; give a whole number'),
        ({"names": "ab"}, 'names: is "ab"; give a list'),
        ({"names": ["a"]}, 'names: is ["a"]; give a list with at least 2 entries'),
        ({"size": "x"}, 'size: is "x"; give a whole number or a list'),
        ({"size": [1, 2, 3]}, "size: is [1, 2, 3]; give a whole number or a list with at most 2 entries"),
        ({"share": 1}, "share: is 1; give a number below 1"),
        ({"level": 3}, "level: is 3; give 1 or 2"),
        ({"inputs": [3]}, "inputs.0: is 3; give a table of keys and values"),
        (
            {"inputs": [{"name": "x", "dtyp": "int8", "dims": []}]},
            "inputs.0.dtyp: unknown key; did you mean 'dtype'?",
        ),
        (
            {"inputs": [{"name": "x", "dtype": "flaot32", "dims": []}]},
            "inputs.0.dtype: 'flaot32' is not the name of a numpy dtype, such as 'float32'; correct the value",
        ),
        ({"level": "x" * 80}, f"level: '{'x' * 80}' is not allowed; choose one of: 1, 2"),
        ({"share": "x" * 80}, f'share: is "{"x" * 59}…; give a number'),
    ],
)
def test_a_value_is_shown_as_it_is_written_with_what_to_give(data, sentence):
    with pytest.raises(ConfigError) as caught:
        Everything.parse(data)
    assert str(caught.value) == sentence


def test_a_misspelt_required_key_is_called_misspelt_not_missing():
    with pytest.raises(ConfigError, match=r"engin: unknown key; did you mean 'engine'\?"):
        Car.parse({"name": "a", "engin": {}})


def test_what_is_not_a_table_is_refused():
    with pytest.raises(ConfigError, match=r"^x\.json: is \[1, 2\]; give a table of keys and values"):
        Car.parse([1, 2], where="x.json")


def test_without_a_file_the_kind_stands_for_the_place():
    with pytest.raises(ConfigError, match=r"^car: one wheel"):
        Car.parse({**GOOD, "wheels": [{"diameter_mm": 1}]})


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("car.toml", 'name = "a', r"car\.toml: cannot be read as a car \(.+\); correct the file"),
        ("car.json", '{"name": ', r"car\.json: cannot be read as a car \(.+\); correct the file"),
        ("car.json", "", r"car\.json: cannot be read as a car"),
    ],
)
def test_a_file_that_does_not_parse(tmp_path, name, text, what):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=what):
        Car.load(tmp_path / name)


def test_a_missing_file_a_folder_and_bytes(tmp_path):
    with pytest.raises(ConfigError, match=r"car\.json: no such car file; check the path"):
        Car.load(tmp_path / "car.json")
    with pytest.raises(ConfigError, match="cannot be read as a car"):
        Car.load(tmp_path)
    (tmp_path / "car.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a car"):
        Car.load(tmp_path / "car.json")
