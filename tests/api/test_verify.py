"""`verify`: the certificate says how much an export may differ elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toolchain.api.verify import FLOAT_TOLERANCE, STEP_TOLERANCE, verify
from toolchain.core.files import sha256
from toolchain.formats.manifest import Manifest
from toolchain.packaging.golden import Golden, load_golden, save_golden


@pytest.fixture
def folder(exported):
    return Path("out/host")


def moved(folder, part):
    """The golden outputs moved by a part of their largest value, and the manifest that vouches for them."""
    golden = load_golden(folder / "golden.npz")
    outputs = tuple({name: y + part * np.abs(y).max() for name, y in of.items()} for of in golden.outputs)
    save_golden(Golden(golden.feeds, outputs), folder / "golden.npz")
    manifest = Manifest.load(folder / "manifest.json")
    path = folder / "golden.npz"
    files = tuple(
        entry.model_copy(update={"sha256": sha256(path)}) if entry.name == path.name else entry
        for entry in manifest.files
    )
    manifest.model_copy(update={"files": files}).save(folder / "manifest.json")


@pytest.mark.parametrize(
    ("named", "steps", "tolerance"),
    [((), False, 0.0), (("Softmax",), False, FLOAT_TOLERANCE), (("Softmax",), True, STEP_TOLERANCE)],
)
def test_the_tolerance_is_what_the_certificate_allows(folder, named, steps, tolerance):
    manifest = Manifest.load(folder / "manifest.json")
    exactness = manifest.exactness.model_copy(update={"exceptions": named, "steps": steps})
    manifest.model_copy(update={"exactness": exactness}).save(folder / "manifest.json")
    found = verify(folder)
    assert (found.mismatches, found.tolerance) == ((), tolerance)
    moved(folder, tolerance / 2 or 1e-6)
    assert bool(verify(folder).mismatches) == (tolerance == 0)
    moved(folder, 2 * tolerance)
    assert verify(folder).mismatches


def test_a_manifest_of_before_there_were_certificates_is_read(folder):
    manifest = Manifest.load(folder / "manifest.json")
    before = manifest.model_dump(mode="json")
    for key in ("steps", "proofs", "doubts"):
        del before["exactness"][key]
    assert Manifest.parse(before).exactness.proofs == ()
