"""State files: tensors come back to the bit, and no file executes code when it is loaded."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from toolchain.core.errors import InputError

torch = pytest.importorskip("torch")

from toolchain.training.engine.state_file import STATE_FORMAT, load_state, save_state


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_state_comes_back_to_the_bit(tmp_path):
    random = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    state = {
        "weights": {"a": random, "mask": random > 0, "codes": (random * 9).to(torch.uint8)},
        "steps": 7,
        "loss": 0.1,
        "best": None,
        "checkpoints": [{"share": 0.5, "ok": True}],
        "adam": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
    }
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    for name, tensor in state["weights"].items():
        assert loaded["weights"][name].dtype == tensor.dtype
        assert torch.equal(loaded["weights"][name], tensor)
    assert loaded["adam"]["state"][0]["step"] == 3
    assert {key: loaded[key] for key in ("steps", "loss", "best", "checkpoints")} == {
        key: state[key] for key in ("steps", "loss", "best", "checkpoints")
    }


@pytest.mark.parametrize("as_torch", [True, False], ids=["torch.save", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, as_torch):
    file, mark = tmp_path / "s.pt", tmp_path / "executed"
    content = {"format": STATE_FORMAT, "state": {"steps": Touch(mark)}}
    if as_torch:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"s\.pt: is not a training state that can be loaded safely; delete it"):
        load_state(file)
    assert not mark.exists()
    torch.load(file, weights_only=False) if as_torch else pickle.loads(file.read_bytes())
    assert mark.exists(), "the file would have executed code"


def test_a_state_of_another_version_is_refused(tmp_path):
    torch.save({"now": {}, "best": {}, "found": {"steps": 3}}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="was not written by this version of the toolchain; delete it"):
        load_state(tmp_path / "s.pt")
    torch.save([1, 2], tmp_path / "s.pt")
    with pytest.raises(InputError, match="was not written by this version"):
        load_state(tmp_path / "s.pt")


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04"], ids=["empty", "text", "cut off"])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "s.pt").write_bytes(content)
    with pytest.raises(InputError, match="is not a training state"):
        load_state(tmp_path / "s.pt")


def test_a_state_that_was_cut_off_is_refused(tmp_path):
    save_state(tmp_path / "s.pt", {"a": torch.zeros(1000)})
    assert zipfile.is_zipfile(tmp_path / "s.pt")
    os.truncate(tmp_path / "s.pt", 2000)
    with pytest.raises(InputError, match="is not a training state"):
        load_state(tmp_path / "s.pt")
