"""Small networks in the manner of well-known architectures, with random weights: what users bring and nobody tuned on.

Each is a torch module with the layout, operators and oddities of the real one, and the shape of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Unseen:
    """A network: the function that makes it, the shape of one sample without batch, and its vocabulary (0: floats)."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0


def conv(inner: int, outer: int, size: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None):
    """Convolution, batch normalization and activation."""
    layers = [nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*layers, *([act] if act is not None else []))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.body, self.skip, self.after = body, skip or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.skip(x) + self.body(x))


def bottleneck(inner: int, middle: int, outer: int, stride: int = 1) -> Residual:
    body = nn.Sequential(
        conv(inner, middle, 1, act=nn.ReLU()), conv(middle, middle, 3, stride, act=nn.ReLU()), conv(middle, outer, 1)
    )
    return Residual(body, conv(inner, outer, 1, stride) if inner != outer else None, nn.ReLU())


def resnet() -> nn.Module:
    return nn.Sequential(
        conv(3, 32, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1), bottleneck(32, 32, 64), bottleneck(64, 32, 64),
        bottleneck(64, 64, 128, 2), bottleneck(128, 64, 128), head(128),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, middle: int, act: nn.Module, gate: nn.Module):
        super().__init__()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), act, gate
        self.down, self.up = nn.Conv2d(channels, middle, 1), nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


def inverted(inner, middle, outer, act, gate, size=3, stride=1, squeeze=True):
    layers = [conv(inner, middle, 1, act=act), conv(middle, middle, size, stride, middle, act=act)]
    if squeeze:
        layers.append(SqueezeExcite(middle, middle // 4, nn.ReLU() if gate is not nn.Sigmoid else act, gate()))
    body = nn.Sequential(*layers, conv(middle, outer, 1))
    return Residual(body) if inner == outer and stride == 1 else body


def mobilenet_v3() -> nn.Module:
    act, gate = nn.Hardswish(), nn.Hardsigmoid
    return nn.Sequential(
        conv(3, 16, 3, 2, act=act), inverted(16, 32, 16, nn.ReLU(), gate), inverted(16, 64, 24, act, gate, 5, 2),
        inverted(24, 96, 24, act, gate, 5), inverted(24, 96, 48, act, gate, 3, 2, squeeze=False),
        conv(48, 128, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 128), act, nn.Dropout(),
        nn.Linear(128, 10),
    )  # fmt: skip


def efficientnet() -> nn.Module:
    act, gate = nn.SiLU(), nn.Sigmoid
    return nn.Sequential(
        conv(3, 16, 3, 2, act=act), inverted(16, 64, 24, act, gate, 3, 2), inverted(24, 96, 24, act, gate, 3),
        inverted(24, 96, 40, act, gate, 5, 2), inverted(40, 160, 40, act, gate, 5), conv(40, 128, 1, act=act),
        head(128),
    )  # fmt: skip


class Shuffle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1, act=nn.ReLU()), conv(half, half, 3, 1, half), conv(half, half, 1, act=nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        x = torch.cat([first, self.branch(second)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])


def shufflenet() -> nn.Module:
    return nn.Sequential(
        conv(3, 32, 3, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1), Shuffle(32), Shuffle(32), Shuffle(32),
        conv(32, 128, 1, act=nn.ReLU()), Mean(), nn.Linear(128, 10),
    )  # fmt: skip


class Dense(nn.Module):
    def __init__(self, inner: int, growth: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> nn.Module:
    between = [nn.BatchNorm2d(80), nn.ReLU(), nn.Conv2d(80, 48, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(
        conv(3, 32, 3, 2, act=nn.ReLU()), Dense(32, 16), Dense(48, 16), Dense(64, 16), *between, Dense(48, 16),
        nn.BatchNorm2d(64), nn.ReLU(), head(64),
    )  # fmt: skip


def double(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(conv(inner, outer, act=nn.ReLU()), conv(outer, outer, act=nn.ReLU()))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = double(3, 16), double(16, 32), double(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.back2, self.back1, self.last = double(64, 32), double(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.max_pool2d(two, 2))
        two = self.back2(torch.cat([two, self.up2(three)], 1))
        return self.last(self.back1(torch.cat([one, self.up1(two)], 1)))


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.scale = nn.LayerNorm(channels, 1e-6), nn.Parameter(torch.full((channels,), 0.5))
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.widen(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4), LayerNorm2d(48), ConvNeXt(48), ConvNeXt(48), LayerNorm2d(48), nn.Conv2d(48, 96, 2, 2),
        ConvNeXt(96), ConvNeXt(96), Mean(), nn.LayerNorm(96), nn.Linear(96, 10),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False, joint: bool = True):
        super().__init__()
        self.heads, self.causal, self.out = heads, causal, nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width) if joint else None
        self.each = None if joint else nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        parts = self.qkv(x).chunk(3, -1) if self.qkv is not None else [layer(x) for layer in self.each or ()]
        q, k, v = (part.view(n, t, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """A transformer block. first: normalize before each half, as in ViT and GPT-2; otherwise after it, as in BERT."""

    def __init__(self, width: int, heads: int, *, first: bool = True, causal: bool = False, tanh: bool = False):
        super().__init__()
        self.attention, self.first = Attention(width, heads, causal, joint=first), first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        act = nn.GELU(approximate="tanh" if tanh else "none")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), act, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class ViT(nn.Module):
    def __init__(self, width: int = 96, side: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.places = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.1)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Language(nn.Module):
    """A decoder like GPT-2, or an encoder like BERT."""

    def __init__(self, width: int = 96, length: int = 64, *, decoder: bool):
        super().__init__()
        self.words, self.places = nn.Embedding(200, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4, first=decoder, causal=decoder, tanh=decoder) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 200 if decoder else 12, bias=not decoder)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.words(x) + places)))


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.words, self.layer = nn.Embedding(200, 64), kind(64, 64, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.words(x))[0])


class C2f(nn.Module):
    """Split, two short branches, concatenation."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.first, self.last = conv(inner, outer, 1, act=nn.SiLU()), conv(3 * outer // 2, outer, 1, act=nn.SiLU())
        half = outer // 2
        self.inner = nn.Sequential(conv(half, half, act=nn.SiLU()), conv(half, half, act=nn.SiLU()))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        return self.last(torch.cat([*parts, parts[1] + self.inner(parts[1])], 1))


class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.stem = nn.Sequential(conv(3, 16, 3, 2, act=act), conv(16, 32, 3, 2, act=act), C2f(32, 32))
        self.deep = nn.Sequential(conv(32, 64, 3, 2, act=act), C2f(64, 64))
        self.squeeze, self.join = conv(64, 32, 1, act=act), C2f(96, 32)
        self.heads = nn.ModuleList([nn.Conv2d(32, 4 + 6, 1), nn.Conv2d(64, 4 + 6, 1)])

    def pooled(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([x, F.max_pool2d(x, 5, 1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        deep = self.pooled(self.deep(fine))
        fine = self.join(torch.cat([F.interpolate(deep, scale_factor=2.0, mode="nearest"), fine], 1))
        found = [layer(level).flatten(2) for layer, level in zip(self.heads, (fine, deep), strict=True)]
        boxes, scores = torch.cat(found, 2).split([4, 6], 1)
        return torch.cat([boxes, scores.sigmoid()], 1)


class Temporal(nn.Module):
    """A causal dilated convolution as in a TCN, gated as in WaveNet."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.pad = 2 * dilation
        self.filter = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, (self.pad, 0))
        return x + self.out(torch.tanh(self.filter(y)) * torch.sigmoid(self.gate(y)))


class Chomp(nn.Module):
    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.cut = 2 * dilation
        self.conv, self.act = nn.Conv1d(channels, channels, 3, padding=2 * dilation, dilation=dilation), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.act(self.conv(x)[:, :, : -self.cut]))


def tcn() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 32, 16, 8), nn.ReLU(), Chomp(32, 1), Chomp(32, 2), Temporal(32, 4), Temporal(32, 8),
        nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


UNSEEN = {
    "resnet": Unseen(resnet, (3, 64, 64)),
    "mobilenet_v3": Unseen(mobilenet_v3, (3, 64, 64)),
    "efficientnet": Unseen(efficientnet, (3, 64, 64)),
    "shufflenet": Unseen(shufflenet, (3, 64, 64)),
    "densenet": Unseen(densenet, (3, 64, 64)),
    "unet": Unseen(UNet, (3, 48, 48)),
    "convnext": Unseen(convnext, (3, 64, 64)),
    "vit": Unseen(ViT, (3, 64, 64)),
    "bert": Unseen(lambda: Language(decoder=False), (64,), 200),
    "gpt2": Unseen(lambda: Language(decoder=True), (64,), 200),
    "lstm": Unseen(lambda: Tagger(nn.LSTM), (48,), 200),
    "gru": Unseen(lambda: Tagger(nn.GRU), (48,), 200),
    "yolo": Unseen(Yolo, (3, 64, 64)),
    "tcn": Unseen(tcn, (1, 2048)),
}


def made(name: str) -> nn.Module:
    """Make a network in evaluation mode, with batch statistics of random data, so that every layer has an effect."""
    torch.manual_seed(0)
    chosen = UNSEEN[name]
    module = chosen.make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    if not chosen.vocabulary:
        with torch.no_grad():
            module.train()(torch.randn(16, *chosen.shape))
    return module.eval()
