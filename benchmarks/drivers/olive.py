"""Olive's pass `OnnxStaticQuantization` with our samples, in its own environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization

from benchmarks import feeds
from benchmarks.drivers import graphs

SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "U8S8": {"precision": "int8", "activation_type": "uint8", "per_channel": True},
}


@Registry.register_dataset("folder_of_feeds")
def _dataset(folder: str) -> list[Any]:
    return [(feed, 0) for feed in feeds.read(Path(folder))]


@Registry.register_dataloader("one_by_one")
def _dataloader(dataset: list[Any]) -> list[Any]:
    return dataset


def quantize(model: str, samples: str, output: str, how: str, transformer: bool) -> dict[str, object]:
    """Quantize. how: a key of `SETTINGS`."""
    source = str(Path(output).with_suffix(".source.onnx"))
    onnx.save(graphs.upgraded(model), source)
    data = DataConfig(
        name="samples",
        load_dataset_config=DataComponentConfig(type="folder_of_feeds", params={"folder": samples}),
        dataloader_config=DataComponentConfig(type="one_by_one"),
    )
    options = {"data_config": data, **SETTINGS[how]}
    quantization = create_pass_from_dict(
        OnnxStaticQuantization, options, disable_search=True, accelerator_spec=DEFAULT_CPU_ACCELERATOR
    )
    done = quantization.run(ONNXModelHandler(source), str(Path(output).with_suffix("")))
    Path(done.model_path).replace(output)
    return {"notes": []}
