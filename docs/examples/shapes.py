"""A small image classifier to try the toolchain on: it tells circles, squares and crosses apart.

`python shapes.py` writes everything that the pages of this site use:

    samples.npz     400 images without labels, for calibration
    labelled.npz    400 images with labels, for training
    photos/         100 of the images as PNG files

The network itself is trained in a few seconds when it is first asked for, and kept in `shapes.pt`.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

SIDE = 64
KINDS = ("circle", "square", "cross")


def images(count, seed):
    """Draw `count` images, float32 [count, 3, 64, 64] from 0 to 1, and their labels, int64 [count]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    labels = rng.integers(0, len(KINDS), count)
    drawn = np.empty((count, 3, SIDE, SIDE), np.float32)
    for image, label in zip(drawn, labels, strict=True):
        y, x = rng.uniform(20, SIDE - 20, 2)
        size = rng.uniform(6, 18)
        down, right = np.abs(rows - y), np.abs(columns - x)
        shape = (
            np.hypot(down, right) < size,
            np.maximum(down, right) < size,
            (np.minimum(down, right) < size / 4) & (np.maximum(down, right) < size),
        )[label]
        background, ink = rng.uniform(0, 0.4, (3, 1, 1)), rng.uniform(0.5, 1, (3, 1, 1))
        image[:] = np.where(shape, ink, background) + rng.normal(0, 0.12, image.shape)
    return drawn.clip(0, 1), labels


class Net(nn.Module):
    """Five convolutions and a linear layer; takes [batch, 3, 64, 64], gives scores [batch, 3]."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 64, 96)
        layers = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.scores = nn.Linear(widths[-1], len(KINDS))

    def forward(self, image):
        return self.scores(self.features(image).mean((2, 3)))


def build_model():
    """Return the trained network; the first call trains it and keeps its weights in shapes.pt."""
    weights = Path("shapes.pt")
    torch.manual_seed(0)
    net = Net()
    if weights.exists():
        net.load_state_dict(torch.load(weights, weights_only=True))
        return net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    x, labels = map(torch.from_numpy, images(1600, seed=0))
    for _ in range(8):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(net.state_dict(), weights)
    return net.eval()


def samples():
    """Yield 400 samples for calibration, each a dictionary from input name to an array with a batch axis."""
    for image in images(400, seed=1)[0]:
        yield {"image": image[None]}


def accuracy(run):
    """Return the share of 500 labelled images that a model classifies correctly.

    `run` takes a dictionary from input name to array and returns the list of output arrays.
    """
    x, labels = images(500, seed=2)
    answers = [run({"image": image[None]})[0].argmax() for image in x]
    return float(np.mean(np.array(answers) == labels))


def main():
    """Write samples.npz, labelled.npz and photos/."""
    from PIL import Image

    x, labels = images(400, seed=1)
    np.savez("samples.npz", image=x)
    np.savez("labelled.npz", image=x, labels=labels)
    Path("photos").mkdir(exist_ok=True)
    for number, image in enumerate(x[:100]):
        pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(f"photos/{number:03}.png")


if __name__ == "__main__":
    main()
