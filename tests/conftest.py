"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Every test gets an empty cache of its own."""
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
