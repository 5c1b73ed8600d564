"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import numpy as np
import pytest
from command import FAST, CommandLine, samples, save_net

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
