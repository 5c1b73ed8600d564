"""Sessions refuse in one sentence; distances between outputs are what they say."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from toolchain.core.errors import ModelError
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run

F32, I64, BOOL = np.dtype("float32"), np.dtype("int64"), np.dtype("bool")
inf, nan = np.inf, np.nan


def twice():
    return small_models.model("y = Mul(x, two)", "float[N, 3] x", "float[N, 3] y", {"two": np.float32(2)})


def test_models_and_files_give_sessions(tmp_path):
    feed = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    io.save(twice(), tmp_path / "m.onnx")
    for source in (twice(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        [[y]] = run.run(run.session(source, threads=1), [feed])
        np.testing.assert_array_equal(y, 2 * feed["x"])
    [[y], [z]] = run.run(twice(), [feed, feed])
    np.testing.assert_array_equal(y, z)


def test_weights_too_big_for_one_message_go_through_a_file(monkeypatch):
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", 100)
    model = small_models.model(
        "y = MatMul(x, w)", "float[N, 300] x", "float[N, 2] y", {"w": np.ones((300, 2), np.float32)}
    )
    [[y]] = run.run(model, [{"x": np.ones((1, 300), np.float32)}])
    np.testing.assert_array_equal(y, [[300, 300]])


def test_settings_reach_the_session(tmp_path):
    run.session(
        small_models.model("a = Relu(x) y = Relu(a)", "float[2] x", "float[2] y"),
        threads=1,
        options={"session.disable_prepacking": "1"},
        optimized=tmp_path / "optimized.onnx",
        profile=tmp_path / "profile",
    ).end_profiling()
    assert onnx.load(tmp_path / "optimized.onnx").graph.node
    assert list(tmp_path.glob("profile*.json"))


@pytest.mark.parametrize(
    "body",
    ["y = NoSuchOperator(x)", "y = MatMul(x, x)", "y = Gelu(x)"],
    ids=["unknown operator", "impossible shapes", "opset too old"],
)
def test_a_model_the_runtime_refuses(body):
    source = ir.from_proto(small_models.proto(body, "float[2, 3] x", "float[2, 3] y"))
    with pytest.raises(ModelError, match=r"onnxruntime \S+ does not accept it .*; export it again") as caught:
        run.session(source, threads=1)
    assert "\n" not in str(caught.value)


def test_a_file_the_runtime_refuses_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"nonsense" * 9, b"\xff\xfe\x80" * 30):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime"):
            run.session(path)
    with pytest.raises(ModelError, match=r"none\.onnx: onnxruntime"):
        run.session(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("dims", "dynamic", "fits"),
    [
        (("N", 3, 512, 512), 8, True), (("N", "C", "H", "W"), 512, False), (("N", 3, "H", "W"), 128, True),
        ((1, 3, 8192, 8192), 2, True),  # no size is tried here, the model has it
    ],
)  # fmt: skip
def test_random_inputs_with_many_dynamic_axes_stay_small(dims, dynamic, fits):
    assert run.can_draw([TensorSpec("x", F32, dims), TensorSpec("n", I64, ())], dynamic) is fits


def test_random_feeds_fit_and_repeat():
    specs = [
        TensorSpec("x", F32, ("N", 3, None)),
        TensorSpec("ids", I64, ("N",)),
        TensorSpec("flag", np.dtype(bool), ()),
    ]
    feed = run.random_feed(specs, np.random.default_rng(0), dynamic=4)
    assert {name: (array.dtype, array.shape) for name, array in feed.items()} == {
        "x": (F32, (4, 3, 4)),
        "ids": (I64, (4,)),
        "flag": (BOOL, ()),
    }
    assert set(np.unique(feed["ids"])) <= {0, 1}
    again = run.random_feed(specs, np.random.default_rng(0), dynamic=4)
    np.testing.assert_array_equal(feed["x"], again["x"])


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 2.0], [[1.0, 2.0]], inf),
        ([1.0, nan], [1.0, nan], 0.0),
        ([1.0, nan], [1.0, 2.0], inf),
        ([1.0, 2.0], [1.0, nan], inf),
        ([1.0, -inf], [1.0, -inf], 0.0),
        ([1.0, -inf], [1.0, inf], inf),
        ([1.0, inf], [1.0, nan], inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(expected, got, error):
    assert run.relative_error(np.array(expected, np.float32), np.array(got, np.float32)) == error


def test_relative_error_of_integers_does_not_wrap():
    a, b = np.array([0, 250], np.uint8), np.array([5, 250], np.uint8)
    assert run.relative_error(a, b) == run.relative_error(b, a) == 0.02
    assert run.relative_error(np.array([True, False]), np.array([True, True])) == 1.0


def test_the_worst_output_of_all_feeds_is_named():
    a, b = np.array([1.0, 2.0]), np.array([10.0, 20.0])
    found = run.difference(["a", "b"], [[a, b], [a, b]], [[a, b + 1], [a + 0.5, b]])
    assert (found.output, found.error) == ("a", 0.25)
    assert run.difference(["a", "b"], [[a, b]], [[a, b]]).error == 0.0
