"""A network that static int8 hurts, whatever is done for accuracy: small, of SiLU, for digits of all exposures.

Every image is as much brighter or darker as a lognormal number says, as where nobody sets the exposure. The few bright
ones stretch the range of every tensor, the many dark ones live in a few of its steps, and SiLU, unlike ReLU, lets no
channel be rescaled. To clip the bright ones would do no harm, but no statistic of a tensor tells that; a gradient does.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from benchmarks.train import digits
from toolchain.convert import convert
from toolchain.graph import run
from toolchain.optimize import optimize
from toolchain.tensors import TensorSpec

WIDTH, BLOCKS, EPOCHS, BATCH, RATE = 4, 3, 10, 64, 2e-2
SPREAD = 1.0
"""Of the logarithm of the exposure."""


@functools.cache
def data(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [N, 1, 14, 14] and classes int64 [N]: 4000 to train on or 2000 to test with."""
    with np.load(digits.tests() if test else digits.data()) as arrays:
        x, labels = arrays["x"], arrays["labels"]
    exposure = np.random.default_rng(2 if test else 1).lognormal(0, SPREAD, len(x)).astype(np.float32)
    small = functional.avg_pool2d(torch.from_numpy(x), 2).numpy()
    return small * exposure[:, None, None, None], labels


def trained(seed: int) -> ir.Model:
    """A network of depthwise and pointwise convolutions, trained in half a minute; optimized."""
    torch.manual_seed(seed)
    net, (x, labels) = _net(), (torch.from_numpy(array) for array in data(test=False))
    adam = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    batches = len(x) // BATCH
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, EPOCHS * batches)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x)).split(BATCH)[:batches]:
            adam.zero_grad()
            functional.cross_entropy(net(x[part]), labels[part]).backward()
            adam.step()
            rates.step()
    spec = TensorSpec("x", np.dtype(np.float32), ("batch", 1, 14, 14))
    return optimize(convert(net.eval(), inputs=[spec]).model).model


def _net() -> nn.Sequential:
    layers, channels = [nn.Conv2d(1, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.SiLU()], WIDTH
    for stage in range(3):
        for block in range(BLOCKS):
            stride, more = 2 if stage and not block else 1, 2 * WIDTH * (stage + 1)
            depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
            layers += [depthwise, nn.BatchNorm2d(channels), nn.SiLU()]
            layers += [nn.Conv2d(channels, more, 1, bias=False), nn.BatchNorm2d(more), nn.SiLU()]
            channels = more
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def accuracy(model: ir.Model) -> float:
    """Top-1 in percent."""
    x, labels = data(test=True)
    [scores] = run.session(model, threads=1).run(None, {"x": x})
    return 100 * float(np.mean(scores.argmax(-1) == labels))
