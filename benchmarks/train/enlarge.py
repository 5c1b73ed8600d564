"""Trains small networks that double the size of photographs, and compares their int8 models:

    python -m benchmarks.train.enlarge [-o FOLDER]

Each is trained once for `STEPS` steps on cut-outs of eight photographs, which the calibration samples come from, too,
and tested on cut-outs of eight others. Ranges are min-max, those of least squared error, or what the accuracy steps
choose. The page is ``enlarge-CPU.md`` in FOLDER.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from benchmarks import tables
from benchmarks.models import images
from benchmarks.train.enlargers import NETWORKS
from toolchain.api.prepare import prepare
from toolchain.benchmark.host import describe_host
from toolchain.core.arrays import F32, F64
from toolchain.core.files import write_text
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io, run
from toolchain.latency.race import race
from toolchain.quantization.loop import quantize_model

SIDE = 96
STEPS = 1200
TRAINED, CALIBRATED, TESTED = 400, 64, 60
RANGES = {"min-max": "minmax", "least error": "mse", "ours": "auto"}
COLUMNS = ("network", "float", *(f"{name}, loss" for name in RANGES), "8-bit picture, loss", "speed-up")
LEGEND = (
    "float: PSNR in dB, mean over 60 pictures of 192 × 192. "
    "Loss: of PSNR in dB, with these ranges; in brackets over the pictures that float enlarges with less than 35 dB. "
    "8-bit picture: what float loses if only its result is rounded to 8 bits. "
    "Speed-up: ours over float, one thread, interleaved."
)


def pictures(count: int, part: int, seed: int) -> tuple[F32, F32]:
    """Photographs at half their size and the originals, float32 [count, 3, 96, 96] and [count, 3, 192, 192]."""
    rng = np.random.default_rng([seed, part])
    small, large = [], []
    for _ in range(count):
        original = images.wallpaper(rng, 2 * SIDE, 2 * SIDE, part)
        large.append(np.asarray(original))
        small.append(np.asarray(original.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    half, whole = (np.stack(side).transpose(0, 3, 1, 2) / np.float32(255) for side in (small, large))
    return half.astype(np.float32), whole.astype(np.float32)


def train(net: nn.Module) -> nn.Module:
    """Learn from cut-outs of 40 × 40, with the mean absolute error and a falling rate."""
    rng = np.random.default_rng(0)
    small, large = map(torch.from_numpy, pictures(TRAINED, 1, 0))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / STEPS) + 1e-5
        chosen = rng.integers(TRAINED, size=8)
        top, left = (int(place) for place in rng.integers(SIDE - 40, size=2))
        made = net(small[chosen, :, top : top + 40, left : left + 40])
        loss = functional.l1_loss(made, large[chosen, :, 2 * top : 2 * top + 80, 2 * left : 2 * left + 80])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def row(name: str, folder: Path) -> list[str]:
    """Train a network and measure its int8 models."""
    torch.manual_seed(0)
    file = folder / "float.onnx"
    example = torch.zeros(1, 3, SIDE, SIDE)
    net = train(NETWORKS[name]())
    torch.onnx.export(net, (example,), file, dynamo=True, external_data=False, input_names=["x"], verbose=False)
    model = prepare(file).model
    feeds = [{"x": picture[None]} for picture in pictures(CALIBRATED, 1, 1)[0]]
    small, large = pictures(TESTED, 0, 2)

    def answers(tried: ir.Model) -> F32:
        session = run.session(tried, threads=0)
        found = [session.run(None, {"x": picture[None]})[0] for picture in small]
        return np.concatenate(found).clip(0, 1)

    def psnr(found: F32) -> F64:
        return np.asarray(-10 * np.log10(np.mean(np.square(found - large, dtype=np.float64), axis=(1, 2, 3))))

    plain = answers(model)
    reference = psnr(plain)
    hard = reference < 35

    def loss(found: F32) -> str:
        lost = reference - psnr(found)
        return f"{lost.mean():.2f} ({lost[hard].mean():.2f})" if hard.any() else f"{lost.mean():.2f}"

    cells = []
    for ranges in RANGES.values():
        recipe = Recipe(quantize=Quantize(ranges=ranges))  # type: ignore[arg-type]
        quantized = quantize_model(model, open_data(feeds, io.inputs(model)), recipe)
        written = quantized.write(quantized.encoding)
        cells.append(loss(answers(written)))
    times = race(run.session(model, threads=1), run.session(written, threads=1), feeds[0], seconds=2.0).medians_s
    rounded = (np.rint(plain * 255) / 255).astype(np.float32)
    return [name, f"{reference.mean():.2f}", *cells, loss(rounded), f"{times[0] / times[1]:.2f}×"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, Path(folder)) for name in NETWORKS]
    host = describe_host()
    parts = [
        "# Enlarging photographs in int8",
        tables.describe(host),
        "`python -m benchmarks.train.enlarge`. " + LEGEND,
    ]
    write_text(output / f"enlarge-{tables.slug(host)}.md", "\n\n".join([*parts, tables.markdown(COLUMNS, rows)]) + "\n")


if __name__ == "__main__":
    main()
