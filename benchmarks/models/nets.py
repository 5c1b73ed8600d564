"""The torch architectures, named so that the packaged weights fit. The only file here that imports torch at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Net = TypeVar("Net", bound=nn.Module)


def loaded(net: Net, weights: Path, entry: str | None = None) -> Net:
    """Load the weights of a ``.pth``, ``.pt``, ``.safetensors`` or Chainer's ``.npz`` file into `net`, in eval mode.

    Entries that the network does not have (training state) are ignored; all of the network's must be in the file.

    Args:
        net: the network.
        weights: the file.
        entry: the entry of a ``.pth`` or ``.pt`` file that holds the weights; None for the whole file.
    """
    readers = {".safetensors": _safetensors, ".npz": _chainer}
    read = readers.get(weights.suffix)
    state = read(weights) if read else torch.load(weights, "cpu", weights_only=True)
    if entry is not None:
        state = state[entry]
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    net.eval()
    return net


def _safetensors(file: Path) -> dict[str, Tensor]:
    """Read little-endian u64 length, JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes."""
    blob = file.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header: dict[str, dict[str, list[int]]] = json.loads(blob[8:start])
    dtypes = {"F32": np.float32, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(blob[start + begin : start + end], dtypes[str(entry["dtype"])])
            tensors[name] = torch.tensor(flat.reshape(entry["shape"]))
    return tensors


def _chainer(file: Path) -> dict[str, Tensor]:
    """Read Chainer's arrays: ``res1/conv1/W`` is torch's ``res1.conv1.weight``."""
    ends = {"W": "weight", "b": "bias"}
    with np.load(file) as arrays:
        paths = {name: name.split("/") for name in arrays.files}
        return {".".join([*path[:-1], ends[path[-1]]]): torch.tensor(arrays[name]) for name, path in paths.items()}


class MobileNetV2(nn.Module):
    """[n, 3, 224, 224] → [n, 1000] logits (arXiv 1801.04381, table 2), named as in torchvision."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 32, 3, stride=2)]
        width = 32
        for expansion, out, repeats, stride in self.STAGES:
            for index in range(repeats):
                layers.append(InvertedResidual(width, out, stride if index == 0 else 1, expansion))
                width = out
        self.features = nn.Sequential(*layers, _unit(width, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where the shapes are equal."""

    def __init__(self, width: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        widen = [_unit(width, hidden)] if expansion > 1 else []
        narrow = [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*widen, _unit(hidden, hidden, 3, stride, groups=hidden), *narrow)
        self.skip = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.skip else y


def _unit(width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


class MnistCnn(nn.Module):
    """[n, 1, 28, 28] → [n, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class SvhnCnn(nn.Module):
    """[n, 3, 32, 32] → [n, 10] logits: three blocks of two convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def layer(width: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]

        self.features = nn.Sequential(
            *(
                nn.Sequential(*layer(width, out), *layer(out, out), nn.MaxPool2d(2))
                for width, out in ((3, 32), (32, 64), (64, 128))
            )
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Crepe(nn.Module):
    """[n, 1024] samples at 16 kHz → [n, 360] pitch probabilities (arXiv 1802.06182); the norm comes after the ReLU.

    widen: width as a multiple of the tiny model's.
    """

    WIDTHS = (128, 16, 16, 16, 32, 64)

    def __init__(self, widen: int = 1) -> None:
        super().__init__()
        widths = (1, *(widen * width for width in self.WIDTHS))
        for index in range(1, 7):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            conv = nn.Conv2d(widths[index - 1], widths[index], (kernel, 1), (stride, 1))
            self.add_module(f"conv{index}", conv)
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(widths[index], eps=1e-3))
        self.classifier = nn.Linear(4 * widths[-1], 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for index in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{index}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{index}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.transpose(1, 2).flatten(1)))


class SpeakerEncoder(nn.Module):
    """[n, 160, 40] mel frames → [n, 256] unit vectors (GE2E, arXiv 1710.10467): three LSTM layers, the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(functional.relu(self.linear(hidden[-1])), dim=1)


class MiniLm(nn.Module):
    """Token ids and mask, int64 [n, length] each → [n, 384] unit vectors: a 6-layer BERT, mean over the tokens."""

    def __init__(self, vocabulary: int = 30522, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary, width),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(width) for _ in range(layers))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        parts = self.embeddings
        x = parts["word_embeddings"](input_ids) + parts["token_type_embeddings"].weight[0]
        x = parts["LayerNorm"](x + parts["position_embeddings"].weight[: input_ids.shape[1]])
        # The dtype's minimum, not -inf, hides padding in every exported BERT; so calibrators meet it here as well.
        hidden = torch.where(attention_mask[:, None, None, :] > 0, 0.0, torch.finfo(x.dtype).min)
        for layer in self.encoder["layer"]:
            x = layer(x, hidden)
        weight = attention_mask[:, :, None].to(x.dtype)
        return functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


class BertLayer(nn.Module):
    """Post-norm self-attention and feed-forward (arXiv 1810.04805), attention written out."""

    def __init__(self, width: int, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        attend = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(attend), "output": _output(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = _output(4 * width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        query, key, value = (
            self.attention["self"][name](x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5 + hidden
        mixed = (scores.softmax(3) @ value).transpose(1, 2).flatten(2)
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](mixed) + x)
        wide = functional.gelu(self.intermediate["dense"](x))
        y: Tensor = self.output["LayerNorm"](self.output["dense"](wide) + x)
        return y


def _output(width: int, out: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width, out), "LayerNorm": nn.LayerNorm(out, eps=1e-12)})


class UpResNet10(nn.Module):
    """[n, 3, h, w] → [n, 3, 2h − 52, 2w − 52], 0..1: an image at twice its size, less 13 pixels of context a side.

    waifu2x's network (github.com/tsurumeso/waifu2x-chainer): unpadded convolutions, residual blocks with
    squeeze-excite, and a transposed convolution at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_pre = nn.Conv2d(3, 64, 3)
        self.res1, self.res2, self.res3, self.res4, self.res5 = (UnpaddedBlock(64) for _ in range(5))
        self.conv_bridge = nn.Conv2d(64, 64, 3)
        self.conv_post = nn.ConvTranspose2d(64, 3, 4, 2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.leaky_relu(self.conv_pre(x), 0.1)
        deep = first
        for block in (self.res1, self.res2, self.res3, self.res4, self.res5):
            deep = block(deep)
        joined = functional.leaky_relu(self.conv_bridge(deep), 0.1) + first[:, :, 11:-11, 11:-11]
        image: Tensor = self.conv_post(joined)
        return image


class UnpaddedBlock(nn.Module):
    """[n, c, h, w] → [n, c, h − 4, w − 4]: two convolutions, squeeze-excite, and the middle of the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.fc1, self.fc2 = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        own = functional.leaky_relu(self.conv2(functional.leaky_relu(self.conv1(x), 0.1)), 0.1)
        share = torch.sigmoid(self.fc2(functional.relu(self.fc1(own.mean((2, 3))))))
        return own * share[:, :, None, None] + x[:, :, 2:-2, 2:-2]
