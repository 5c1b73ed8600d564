"""Every structure of the zoo through inspect, optimize and quantize, some through export and verify: `zoo/table.py`."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import toolchain
from toolchain.core.errors import InputError, ToolchainError
from toolchain.formats.recipe import Bench, Quantize, Recipe
from zoo import oracle
from zoo.row import Row
from zoo.table import PENDING, ROWS

RECIPE = Recipe(
    quantize=Quantize(measure=False), bench=Bench(warmup_s=0, min_time_s=0, min_runs=3, rounds=1, processes=1)
)
"""Nothing is timed, so that the result is the same on every machine."""


def rows(step, chosen=lambda row: True):
    """The rows as parameters, with the marks of their tier and of what is not right yet."""
    found = []
    for name, row in ROWS.items():
        if chosen(row):
            marks = [] if row.fast else [pytest.mark.slow]
            if name in PENDING.get(step, ()):
                marks.append(
                    pytest.mark.xfail(raises=(AssertionError, ToolchainError), reason="not right yet", strict=False)
                )
            found.append(pytest.param(row, id=name, marks=marks))
    return found


@functools.cache
def source(row_name: str) -> bytes:
    return ROWS[row_name].model().SerializeToString()


@functools.cache
def truth(row_name: str) -> oracle.Answers:
    """The source's answers on fresh samples."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.onnx"
        path.write_bytes(source(row_name))
        return oracle.answers(path, ROWS[row_name].fresh_feeds())


@pytest.fixture
def saved(tmp_path):
    """Writes the file of a row into an empty folder."""

    def save(row: Row) -> Path:
        path = tmp_path / f"{row.name}.onnx"
        path.write_bytes(source(row.name))
        return path

    return save


def check_interface(row: Row, before: oracle.Answers, after: oracle.Answers, old: Path, new: Path) -> None:
    assert oracle.interface_changes(before, after) == []
    declared, now = oracle.declared_shapes(old), oracle.declared_shapes(new)
    for name, shape in declared.items():
        if name in now and shape is not None and all(isinstance(size, int) for size in shape):
            assert now[name] == shape, f"declared shape of {name}"


@pytest.mark.parametrize("row", rows("inspect"))
def test_inspect(row, saved):
    path = saved(row)
    if row.unreadable:
        with pytest.raises(InputError, match=row.unreadable):
            toolchain.inspect(path)
    else:
        assert toolchain.inspect(path).size_bytes == path.stat().st_size


@pytest.mark.parametrize("row", rows("optimize"))
def test_optimize(row, saved, tmp_path):
    path, output = saved(row), tmp_path / "optimized.onnx"
    if row.unreadable:
        with pytest.raises(InputError, match=row.unreadable):
            toolchain.optimize(path, output=output)
        assert not output.exists()
        return
    toolchain.optimize(path, output=output)
    before, after = truth(row.name), oracle.answers(output, row.fresh_feeds())
    check_interface(row, before, after, path, output)
    for (name, _), old, new in zip(before.outputs, before.arrays, after.arrays, strict=True):
        for a, b in zip(old, new, strict=True):
            assert_same(name, a, b, row.optimized_within)


def assert_same(name, a, b, within):
    if isinstance(a, list):
        assert len(a) == len(b), name
        for one, two in zip(a, b, strict=True):
            assert_same(name, one, two, within)
    elif np.asarray(a).dtype.kind == "f":
        finite = np.isfinite(a)
        size = float(np.abs(a[finite]).max()) if finite.any() else 0.0
        np.testing.assert_allclose(b, a, rtol=within, atol=within * size, err_msg=name)
    else:
        np.testing.assert_array_equal(b, a, err_msg=name)


@pytest.mark.parametrize("row", rows("quantize"))
def test_quantize(row, saved, tmp_path):
    path, output = saved(row), tmp_path / "int8.onnx"
    if row.refused or row.unreadable:
        with pytest.raises(InputError, match=row.refused or row.unreadable):
            toolchain.quantize(path, calibration=row.calibration_feeds(), output=output, recipe=RECIPE)
        assert not output.exists()
        return
    made = toolchain.quantize(path, calibration=row.calibration_feeds(), output=output, recipe=RECIPE)
    check_int8(row, path, output)
    reasons = " ".join(str(choice.reason) for choice in made.quantized.plan.choices)
    for words in row.float_because:
        assert words in reasons


def check_int8(row: Row, path: Path, output: Path) -> None:
    """Compare an int8 file with its source: interface, every part, number of int8 products, bytes."""
    before, after = truth(row.name), oracle.answers(output, row.fresh_feeds())
    check_interface(row, before, after, path, output)
    lost = [
        f"{part.name}: {part.value:.1f} dB" if part.decibels else f"{part.name}: {part.value:.2f} equal"
        for part in oracle.parts_left(before, after, row.parts, row.channels, row.sets)
        if part.value < row.demands(part)
    ]
    assert not lost, f"{len(lost)} parts are lost: " + "; ".join(lost[:5])
    assert oracle.int8_products(output) >= row.int8_at_least
    # A quantized tensor brings two nodes of about 100 bytes with their scale and zero point.
    nodes = len(onnx.load(path).graph.node)
    assert output.stat().st_size <= path.stat().st_size + 4096 + 500 * nodes


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("export", lambda row: row.exported))
def test_export_and_verify(row, saved, tmp_path):
    path, folder = saved(row), tmp_path / "exported"
    targets = ["host", "raspberry-pi-5"]
    toolchain.export(path, targets=targets, calibration=row.calibration_feeds(), output=folder, recipe=RECIPE)
    check_int8(row, path, folder / "host" / "model.onnx")
    for target in targets:
        assert toolchain.verify(folder / target).mismatches == ()


COMMANDS = {
    "yolov8_boxes_and_scores": 0, "wake_word_gemm_chain": 0, "output_that_is_an_input": 0,
    "quantized_already_as_pairs": 2, "dropout_left_in_training_mode": 2, "calibrated_on_zeros": 2,
}  # fmt: skip
"""Rows that also go through the command line, and the exit code of `quantize`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_command_line(name, toolchain, saved, tmp_path):
    row, samples, output = ROWS[name], tmp_path / "samples.npz", tmp_path / "int8.onnx"
    path = saved(row)
    feeds = row.calibration_feeds()
    np.savez(samples, **{key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("quantize.measure = false")
    done = toolchain("quantize", path, "--calibration", samples, "--recipe", recipe, "--output", output)
    assert done.code == COMMANDS[name], done.err
    assert output.exists() == (done.code == 0)
    if done.code == 0:
        check_int8(row, path, output)
    else:
        assert re.search(row.refused or row.unreadable, done.sentence)
