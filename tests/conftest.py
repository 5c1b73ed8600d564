"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command import FAST, CommandLine, content, samples, save_net
from skips import pytest_sessionfinish, pytest_terminal_summary

from toolchain.benchmark import emulator
from toolchain.benchmark.stats import Estimate
from toolchain.latency.race import Race
from toolchain.pruning import speed

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary"]

# The emulator is set up once for the machine, unlike the caches below.
os.environ.setdefault("TOOLCHAIN_EMULATOR", str(emulator.folder()))


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch):
    """Every test has its own cache, a folder that is made when it is needed."""
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(next(_caches)))


@pytest.fixture
def toolchain(capfd):
    """Runs a command: ``toolchain("convert net.onnx -o out.onnx")``."""
    return CommandLine(capfd)


@pytest.fixture
def workplace(tmp_path_factory, monkeypatch):
    """The current folder, with ``net.onnx``, ``samples.npz`` for it, and the recipe ``fast.toml``."""
    folder = tmp_path_factory.mktemp("workplace")
    monkeypatch.chdir(folder)
    save_net(folder / "net.onnx")
    np.savez(folder / "samples.npz", x=samples())
    (folder / "fast.toml").write_text(FAST)
    return folder


@pytest.fixture
def always_faster(monkeypatch):
    """Every pruned model is measured as faster: the net is too small for any width to be faster for certain."""
    meter = speed.SpeedMeter(
        lambda before, after, feed: Race((1.2,) * 7, (1.0,) * 7),
        lambda before, after, feed: speed.Speed(1.2, Estimate(1.2, 1.19, 1.21)),
    )
    monkeypatch.setattr(speed, "HERE", meter)


@pytest.fixture(scope="session")
def _export():
    """The result of :func:`exported`, kept by the first test that uses it."""
    return {}


@pytest.fixture
def exported(toolchain, workplace, tmp_path_factory, _export):
    """Export the net for two targets into ``out`` once, and copy it for every test; the command's result."""
    if not _export:
        done = toolchain("export net.onnx -t host -t raspberry-pi-5 -c samples.npz --recipe fast.toml -o out --json")
        assert done.code == 0, done.err
        kept = tmp_path_factory.mktemp("exported") / "out"
        shutil.copytree("out", kept)
        _export.update(done=done, folder=kept)
    else:
        shutil.copytree(_export["folder"], "out")
    return _export["done"]


@pytest.fixture
def refused(toolchain, workplace):
    """Run a command that must be refused and return its sentence; nothing in the current folder may change."""

    def run(line, *more):
        before = content(workplace)
        importlib.invalidate_caches()
        done = toolchain(line, *more)
        assert done.code == 2, done
        after = {name: data for name, data in content(workplace).items() if "__pycache__" not in name}
        assert after == before
        return done.sentence

    return run


@pytest.fixture
def code(workplace):
    """Write the user's module ``mine``: ``code("def net(): ...")``."""

    def write(text):
        Path("mine.py").write_text(text)
        sys.modules.pop("mine", None)

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    sys.modules.pop("mine", None)
    while str(workplace) in sys.path:
        sys.path.remove(str(workplace))
