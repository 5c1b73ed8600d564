"""State of an unfinished training run in a file that holds data only.

The file is written by ``torch.save`` and read with ``weights_only=True``: tensors, numbers, strings, None, lists,
tuples and dictionaries. A file with anything else, such as a pickle that would run code, is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from toolchain.core.errors import InputError
from toolchain.core.files import replacing

STATE_FORMAT = "edge-toolchain training state 2"
"""Stored in every file. Files without it were written by another version or another program."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, completely or not at all.

    Args:
        path: the file.
        state: tensors, numbers, strings, lists, tuples and dictionaries of them.
    """
    import torch

    with replacing(path) as folder:
        torch.save({"format": STATE_FORMAT, "state": state}, folder / path.name)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state without executing code from the file.

    Raises:
        InputError: the file is damaged, was written by another version, or holds more than plain data.
    """
    import torch

    hint = "delete it, or leave --resume out to start again"
    try:
        content = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError("is not a training state that can be loaded safely", where=path, hint=hint) from error
    if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
        raise InputError("was not written by this version of the toolchain", where=path, hint=hint)
    state: dict[str, Any] = content["state"]
    return state
