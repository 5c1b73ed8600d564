"""Small networks that double the size of pictures [N, 3, H, W], 0..1, to [N, 3, 2H, 2W]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


def espcn() -> nn.Module:
    """Plain convolutions and a pixel shuffle (Shi et al. 2016, arXiv 1609.05158)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


def fsrcnn(width: int = 56, narrow: int = 12) -> nn.Module:
    """Narrow convolutions with PReLU, and a transposed convolution at the end (Dong et al. 2016, arXiv 1608.00367)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 5, padding=2), nn.PReLU(width), nn.Conv2d(width, narrow, 1)]
    for _ in range(4):
        layers += [nn.PReLU(narrow), nn.Conv2d(narrow, narrow, 3, padding=1)]
    layers += [nn.PReLU(narrow), nn.Conv2d(narrow, width, 1), nn.PReLU(width)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 9, 2, 4, output_padding=1))


class Edsr(nn.Module):
    """Residual blocks without normalization (Lim et al. 2017, arXiv 1707.02921)."""

    def __init__(self, *, beside: bool = False, width: int = 32, blocks: int = 6) -> None:
        """beside: the network adds to a bilinear enlargement."""
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.beside = beside
        self.head, self.tail = conv(3, width), conv(width, width)
        self.body = nn.ModuleList(
            nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width)) for _ in range(blocks)
        )
        self.enlarge = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2), conv(width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = deep = self.head(x)
        for block in self.body:
            deep = deep + block(deep)
        picture: torch.Tensor = self.enlarge(self.tail(deep) + first)
        return picture + functional.interpolate(x, scale_factor=2, mode="bilinear") if self.beside else picture


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ESPCN": espcn,
    "EDSR, 6 blocks of 32": Edsr,
    "the same beside a bilinear enlargement": lambda: Edsr(beside=True),
    "FSRCNN": fsrcnn,
}
