"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from command import FAST, CommandLine, content, samples, save_net

from toolchain.bench import emulator

# Set up once for the machine, unlike the caches below.
os.environ.setdefault("TOOLCHAIN_EMULATOR", str(emulator.folder()))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Every test gets an empty cache of its own."""
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


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
def refused(toolchain, workplace):
    """Runs a command that must be refused; returns the sentence. Nothing in the current folder may change."""

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
    """A module of the user's, ``mine``: ``code("def net(): ...")``."""

    def write(text):
        Path("mine.py").write_text(text)
        sys.modules.pop("mine", None)

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    sys.modules.pop("mine", None)
    while str(workplace) in sys.path:
        sys.path.remove(str(workplace))
