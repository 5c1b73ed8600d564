"""The public API: the ten commands are ten functions, with the same names, arguments, defaults and errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from small_models import proto, weights

import toolchain
from toolchain.cli.main import app as whole

COMMANDS = (
    "export", "convert", "optimize", "prune", "train", "quantize", "verify", "inspect", "bench", "compare",
)  # fmt: skip
EVERYWHERE = {"verbose", "quiet", "as_json"}
SHOWN_ONLY = {"bench": {"format"}}
"""Options that say how a result is shown; a function returns it instead."""


@pytest.fixture(scope="module")
def commands():
    """Parameters of each command, by its name in the help."""
    group = typer.main.get_command(whole)
    return {name: {p.name: p for p in member.params} for name, member in group.commands.items()}


def test_there_are_ten(commands):
    assert set(commands) - {"targets", "emulator"} == set(COMMANDS)
    assert all(inspect.isfunction(getattr(toolchain, name)) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_names_and_defaults_agree(commands, name):
    function = inspect.signature(getattr(toolchain, name)).parameters
    options = {key: p for key, p in commands[name].items() if key not in EVERYWHERE | SHOWN_ONLY.get(name, set())}
    assert set(options) == set(function) - {"progress"}
    for key, option in options.items():
        parameter = function[key]
        required = parameter.default is inspect.Parameter.empty
        assert required == option.required, key
        if not required:
            assert str(option.default or "") in (str(parameter.default or ""), ""), key
            assert bool(option.default) == bool(parameter.default), key


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_is_typed_and_described(name):
    function = getattr(toolchain, name)
    parameters = inspect.signature(function).parameters
    assert set(function.__annotations__) == {*parameters, "return"}
    text = inspect.getdoc(function)
    assert all(f"    {key}: " in text for key in parameters)
    assert "Raises:" in text
    assert "Returns:" in text


def test_all_dir_and_the_documentation_agree():
    assert dir(toolchain) == sorted(toolchain.__all__, key=toolchain.__all__.index)
    assert sorted(set(toolchain.__all__)) == sorted(toolchain.__all__)
    for name in toolchain.__all__:
        thing = getattr(toolchain, name)
        assert name == "__version__" or inspect.getdoc(thing)
    with pytest.raises(AttributeError, match="module 'toolchain' has no attribute 'quantise'"):
        _ = toolchain.quantise
    errors = [n for n in toolchain.__all__ if n.endswith("Error")]
    assert all(issubclass(getattr(toolchain, name), toolchain.ToolchainError) for name in errors)


def test_importing_it_is_light():
    code = (
        "import sys, time; before = time.process_time(); import toolchain; spent = time.process_time() - before\n"
        "heavy = {m.split('.')[0] for m in sys.modules} & {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic'}\n"
        "sys.stdout.write(f'{spent} {sorted(heavy)} {toolchain.__version__}')"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    spent = min(float(run.stdout.split()[0]) for run in runs)
    assert spent < 0.05
    assert "[]" in runs[0].stdout


# ------------------------------------------------------------------------------------------- the same errors

NET = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) g = GlobalAveragePool(r) y = Flatten(g)"


@pytest.mark.parametrize(
    ("line", "call"),
    [
        (
            "export net.onnx -t rpi -c samples.npz",
            lambda: toolchain.export("net.onnx", targets=["rpi"], calibration="samples.npz"),
        ),
        (
            "export net.onnx -t host -t host -c samples.npz",
            lambda: toolchain.export("net.onnx", targets=["host", "host"], calibration="samples.npz"),
        ),
        (
            "export net.onnx -t host -c samples.npz --prune 0.5",
            lambda: toolchain.export("net.onnx", targets=["host"], calibration="samples.npz", prune=0.5),
        ),
        (
            "quantize net.onnx -c gone.npz -o q.onnx",
            lambda: toolchain.quantize("net.onnx", calibration="gone.npz", output="q.onnx"),
        ),
        (
            "quantize net.onnx -c samples.npz -o q.onnx --max-drop -1",
            lambda: toolchain.quantize("net.onnx", calibration="samples.npz", output="q.onnx", max_drop=-1),
        ),
        (
            "quantize net.onnx -c samples.npz -o q.onnx --evaluate nowhere:score",
            lambda: toolchain.quantize(
                "net.onnx", calibration="samples.npz", output="q.onnx", evaluate="nowhere:score"
            ),
        ),
        (
            "convert net.onnx -o out.onnx --freeze batch",
            lambda: toolchain.convert("net.onnx", output="out.onnx", freeze=["batch"]),
        ),
        (
            "convert net.onnx -o out.onnx --input x",
            lambda: toolchain.convert("net.onnx", output="out.onnx", inputs=["x"]),
        ),
        ("optimize gone.onnx -o out.onnx", lambda: toolchain.optimize("gone.onnx", output="out.onnx")),
        (
            "prune net.onnx -c samples.npz -o p.onnx",
            lambda: toolchain.prune("net.onnx", calibration="samples.npz", output="p.onnx"),
        ),
        (
            "prune net.onnx -c samples.npz -o p.onnx --speedup 0.5",
            lambda: toolchain.prune("net.onnx", calibration="samples.npz", output="p.onnx", speedup=0.5),
        ),
        (
            "prune net.onnx -c samples.npz -o p.onnx --speedup 2 --keep 0.5",
            lambda: toolchain.prune("net.onnx", calibration="samples.npz", output="p.onnx", speedup=2, keep=0.5),
        ),
        (
            "train -m net.onnx -d samples.npz -r gone.toml",
            lambda: toolchain.train("net.onnx", data="samples.npz", recipe="gone.toml"),
        ),
        ("verify gone", lambda: toolchain.verify("gone")),
        ("verify gone --on moon", lambda: toolchain.verify("gone", on="moon")),
        ("inspect gone.onnx", lambda: toolchain.inspect("gone.onnx")),
        ("inspect net.onnx -t rpi", lambda: toolchain.inspect("net.onnx", target="rpi")),
        ("bench", toolchain.bench),
        ("bench net.onnx --threads 0", lambda: toolchain.bench(["net.onnx"], threads="0")),
        ("bench net.onnx --arena maybe", lambda: toolchain.bench("net.onnx", arena="maybe")),
        ("bench net.onnx --sustained 0", lambda: toolchain.bench("net.onnx", sustained=0)),
        ("bench net.onnx --max-regression 5%", lambda: toolchain.bench("net.onnx", max_regression="5%")),
        ("bench net.onnx --python x", lambda: toolchain.bench("net.onnx", python="x")),
        ("compare gone.json", lambda: toolchain.compare("gone.json")),
        ("compare gone.json --format tabel", lambda: toolchain.compare("gone.json", format="tabel")),
        ("compare gone.json --max-regression x", lambda: toolchain.compare("gone.json", max_regression="x")),
    ],
)
def test_the_same_mistake_gets_the_same_sentence(refused, line, call):
    with pytest.raises(toolchain.ToolchainError) as caught:
        call()
    assert refused(line) == str(caught.value)


# --------------------------------------------------------------------------------------------- what people pass


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A small net, and the samples it takes."""
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(
        proto(NET, "float[N, 3, 16, 16] x", "float[N, 16] y", weights(w=(16, 3, 3, 3))).SerializeToString()
    )
    return np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "source",
    [
        lambda array: {"x": array},
        lambda array: array,
        lambda array: ({"x": row[None]} for row in array),
        lambda array: lambda: ({"x": row[None]} for row in array),
        lambda array: [{"x": row[None]} for row in array],
    ],
    ids=["dictionary", "array", "generator", "function", "list"],
)
def test_calibration_data_of_every_kind_gives_the_same_file(net, source):
    recipe = toolchain.Recipe.model_validate({"quantize": {"measure": False}})
    toolchain.quantize("net.onnx", calibration={"x": net}, output="expected.onnx", recipe=recipe)
    written = toolchain.quantize("net.onnx", calibration=source(net), output="q.onnx", recipe=recipe)
    assert written.output.read_bytes() == Path("expected.onnx").read_bytes()


@pytest.mark.slow
def test_texts_dictionaries_and_objects_are_taken(net):
    seen = []

    def progress(what, done=0, total=0):
        seen.append(what)

    target = toolchain.load_target("raspberry-pi-4")
    exported = toolchain.export(
        "net.onnx",
        targets=[target, "host"],
        calibration={"x": net},
        freeze={"N": 1},
        evaluate=lambda run: float(run({"x": net[:1]})[0].shape[0]),
        recipe=toolchain.Recipe.model_validate(
            {"bench": {"min_time_s": 0.01, "min_runs": 3, "rounds": 1, "processes": 1, "warmup_s": 0}}
        ),
        progress=progress,
    )
    assert [row.target for row in exported.results.measurements] == ["host", "raspberry-pi-4", "host"]
    assert exported.results.measurements[0].score.value == 1.0
    assert {"converting", "optimizing", "packaging"} <= set(seen)
    assert toolchain.verify(exported.folder / "host").mismatches == ()
    assert toolchain.compare(exported.folder).regressions == ()
    toolchain.compare([exported.folder], format="markdown", output="table.md")
    assert "raspberry-pi-4" in Path("table.md").read_text()
    assert toolchain.inspect("net.onnx", groups=True).groups
    assert toolchain.inspect("net.onnx", target=target).fit.target == "raspberry-pi-4"
    for wrong, said in (
        ({"targets": "host"}, "targets: is the text 'host'"),
        ({"freeze": "N=1"}, "freeze: is the text"),
    ):
        with pytest.raises(toolchain.InputError, match=said):
            toolchain.export("net.onnx", **{"targets": ["host"], "calibration": {"x": net}, **wrong})


def test_a_torch_module_and_its_data_loader():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4))
    images = torch.randn(20, 3, 8, 8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(20)), 4, shuffle=True)
    assert toolchain.parse_input("image:batch,3,8,8").dims == ("batch", 3, 8, 8)
    with pytest.raises(toolchain.InputError, match="inputs: is the text"):
        toolchain.quantize(net, calibration=loader, inputs="image:batch,3,8,8", output="q.onnx")
