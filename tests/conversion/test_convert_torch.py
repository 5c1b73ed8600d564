"""torch modules and .pt2 files. The exporter takes a second or more each time, so almost all of it is slow."""

import hashlib
import sys

import numpy as np
import onnx
import pytest

from toolchain.conversion.inputs import parse_input
from toolchain.conversion.source import convert
from toolchain.core.errors import GateError, InputError, ModelError
from toolchain.graph import io, query, run

torch = pytest.importorskip("torch")
nn = torch.nn


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Text(nn.Module):
    """The Embedding is named like the output, and the outputs leave in a dictionary."""

    def __init__(self):
        super().__init__()
        self.output = nn.Embedding(50, 6)
        self.pooled = nn.LSTM(6, 4, batch_first=True)

    def forward(self, ids, mask=None):
        tokens = self.output(ids)
        if mask is not None:
            tokens = tokens * mask[..., None].to(tokens.dtype)
        states, _ = self.pooled(tokens)
        return {"output": states, "pooled": states.mean(1), "nothing": None}


class Trapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.output(x))


class Copies(nn.Module):
    def forward(self, x, y):
        z = x + y
        return x, z, z


class Branch(nn.Module):
    """Always the same branch, which only tracing can export."""

    def forward(self, x):
        return x * 2 if float(x.abs().sum()) >= 0 else x


class Flip(nn.Module):
    """Takes either branch, so a trace is wrong."""

    def forward(self, x):
        return x * 2 if float(x.flatten()[0]) > 0 else x - 1


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Fixed(nn.Module):
    """Its code holds the batch fast."""

    def forward(self, x):
        return x.reshape(2, 3) + 1


def names(model):
    return [spec.name for spec in io.inputs(model)], [spec.name for spec in io.outputs(model)]


def make(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


# --- refused before the exporter runs ---


def test_inputs_must_be_known():
    with pytest.raises(
        InputError, match=r"ConvNet: the shapes of its inputs are not known \(forward takes x\); give --input x:"
    ):
        convert(make(ConvNet))


def test_inputs_must_fit_forward():
    with pytest.raises(InputError, match=r"cannot take the inputs a, b, c \(too many positional arguments\)"):
        convert(make(Text), inputs=[parse_input(f"{name}:1x3") for name in "abc"])
    with pytest.raises(InputError, match="missing a required argument: 'ids'"):
        convert(make(Text), inputs=[parse_input("mask:1x3:int64")])


def test_a_module_that_does_not_run():
    with pytest.raises(
        ModelError, match=r"ConvNet: raised RuntimeError: .*channels.*it was run on x \[1, 4, 9, 9\]: check --input"
    ):
        convert(make(ConvNet), inputs=[parse_input("x:1x4x9x9")])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)

def build(): return Net()
def number(): return 3
def fails(): raise FileNotFoundError("weights.pth")
ready = Net()
"""
    (tmp_path / "own_net.py").write_text(text)
    yield "own_net"
    sys.modules.pop("own_net", None)


def test_callables_that_give_no_module(own_module):
    with pytest.raises(ModelError, match=r"own_net:number: returns an object of type int, not a torch\.nn\.Module"):
        convert("own_net:number")
    with pytest.raises(ModelError, match=r"own_net:fails: raised FileNotFoundError: weights\.pth \(own_net\.py line"):
        convert("own_net:fails")
    with pytest.raises(ModelError, match="has no 'bild'; did you mean 'build'"):
        convert("own_net:bild")
    with pytest.raises(ModelError, match="there is no module 'own_nett'"):
        convert("own_nett:build")
    with pytest.raises(ModelError, match=r"returns an object of type int, not a torch\.nn\.Module"):
        convert(3)


def test_without_torch(own_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"torch is not installed; pip install 'edge-toolchain\[torch\]'"):
        convert("own_net:build")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_damaged_pt2(tmp_path, content, capfd):
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.pt2: is not a program saved by torch\.export\.save, or it is damaged"):
        convert(tmp_path / "net.pt2")
    assert capfd.readouterr() == ("", "")


# --- exported ---


@pytest.mark.slow
def test_conv_net(tmp_path):
    module = make(ConvNet)
    module.head.eval()
    got = convert(module, inputs=[parse_input("image:-1x3x17x17")])
    assert got.exporter.endswith("dynamo")
    assert got.notes == ()
    assert got.source.kind == "torch"
    assert got.parity is not None
    assert got.parity.samples >= 3
    assert got.parity.max_rel_error < 1e-5
    assert module.training  # left as it was found, part by part
    assert not module.head.training
    assert names(got.model) == (["image"], ["output"])
    assert io.inputs(got.model)[0].dims == ("batch", 3, 17, 17)
    assert query.opset(got.model) == 18
    x = np.random.default_rng(5).standard_normal((5, 3, 17, 17), np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run.run(got.model, [{"image": x}])[0][0], expected, atol=1e-5)
    text = str(onnx.load_from_string(io.to_bytes(got.model)))
    assert "test_convert_torch" not in text  # no stack traces, no paths of this machine
    with torch.no_grad():  # the model keeps its own weights
        module.head.weight.zero_()
    np.testing.assert_allclose(run.run(got.model, [{"image": x}])[0][0], expected, atol=1e-5)
    assert convert(module, inputs=[parse_input("image:-1x3x17x17")]).source.sha256 != got.source.sha256


@pytest.mark.slow
def test_text_model_with_two_dynamic_axes():
    got = convert(make(Text), inputs=[parse_input("mask:batch,seq:int64"), parse_input("ids:batch,seq:int64")])
    assert got.exporter.endswith("dynamo")
    inputs, outputs = names(got.model)
    assert sorted(inputs) == ["ids", "mask"]
    assert outputs == ["output", "pooled"]
    assert {spec.dims for spec in io.inputs(got.model)} == {("batch", "seq")}
    assert got.parity is not None
    assert got.parity.samples == 8  # one of them with the sequence twice as long


@pytest.mark.slow
def test_output_named_like_an_embedding(tmp_path):
    got = convert(make(Trapped), inputs=[parse_input("x:-1x5:int64")], freeze={"batch": 1})
    assert names(got.model) == (["x"], ["output"])
    assert io.outputs(got.model)[0].dims == (1, 5, 2)
    assert "fixed batch = 1" in got.notes
    io.save(got.model, tmp_path / "net.onnx")
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)


@pytest.mark.slow
def test_outputs_that_are_inputs_or_twice_the_same():
    got = convert(make(Copies), inputs=[parse_input("y:2x3"), parse_input("out:2x3")])  # `y` is forward's second name
    assert names(got.model) == (["y", "out"], ["output_0", "output_1", "output_2"])
    feed = {"y": np.ones((2, 3), np.float32), "out": np.full((2, 3), 2, np.float32)}
    assert [a.flat[0] for a in run.run(got.model, [feed])[0]] == [1, 3, 3]


@pytest.mark.slow
def test_fallback_gives_its_reason():
    got = convert(make(Branch), inputs=[parse_input("x:-1x3")])
    assert got.exporter.endswith("torchscript")
    assert len(got.notes) == 1
    assert got.notes[0].startswith("the dynamo exporter failed (")
    assert "branches that depend on data always take the path" in got.notes[0]
    assert names(got.model) == (["x"], ["output"])
    assert got.parity is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (Flip, GateError, "output 'output': differs .* so branches that depend on data always take"),
        (Noise, ModelError, "two different results for one input"),
    ],
)
def test_wrong_exports_are_refused(kind, error, said, capfd):
    """Nothing is printed, though torch prints the graphs that it cannot export."""
    with pytest.raises(error, match=said):
        convert(make(kind), inputs=[parse_input("x:-1x3")])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape"), [(lambda: nn.Linear(3, 2), "1x3"), (lambda: nn.Conv2d(3, 2, 3), "1x3x8x8")]
)
def test_weights_without_values_are_one_sentence(layer, shape):
    """The exporters end in exceptions of any kind."""
    with torch.device("meta"):
        module = layer()
    with pytest.raises(ModelError, match="; change the module, or export it to ONNX yourself"):
        convert(module, inputs=[parse_input(f"x:{shape}")])


@pytest.mark.slow
def test_module_callable(own_module):
    for source in ("own_net:build", "own_net:Net", "own_net:ready"):
        got = convert(source, inputs=[parse_input("x:2x3")])
        assert got.source.name == source


@pytest.mark.slow
def test_pt2(tmp_path):
    module = make(ConvNet).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.zeros(2, 3, 17, 17),), dynamic_shapes=({0: batch},))
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    got = convert(path)
    assert got.source.kind == "pt2"
    assert got.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [spec.dims for spec in (*io.inputs(got.model), *io.outputs(got.model))] == [
        ("batch", 3, 17, 17),
        ("batch", 5),
    ]
    assert names(got.model) == (["x"], ["output"])
    assert got.parity is not None
    assert got.parity.samples >= 3
    frozen = convert(path, freeze={"batch": 1})
    assert io.outputs(frozen.model)[0].dims == (1, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_pt2_with_keywords_and_constants(tmp_path):
    ids = torch.zeros(2, 6, dtype=torch.int64)
    program = torch.export.export(make(Text).eval(), (), {"mask": torch.ones_like(ids), "ids": ids})
    torch.export.save(program, tmp_path / "text.pt2")
    got = convert(tmp_path / "text.pt2")
    assert sorted(names(got.model)[0]) == ["ids", "mask"]
    assert names(got.model)[1] == ["output", "pooled"]
    assert got.parity is not None
