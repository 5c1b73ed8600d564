"""Well-known architectures with random weights, small: as their libraries build them, or by hand where none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from unseen_models import UNSEEN, made


@dataclass(frozen=True)
class Architecture:
    """make: the module in evaluation mode. shape: of one sample. vocabulary: of token ids, 0 for floats."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0


class First(nn.Module):
    """The first output of a model that returns several by name."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, return_dict=False)[0]


def library(name: str):
    """Import a library of models, or skip the test. Operators of torchvision may be built for another torch; its
    classifiers need none of them.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        DEFINED.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            DEFINED[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip(name)


DEFINED: list[torch.library.Library] = []
"""Libraries of stand-in operators, kept so that their definitions last."""


def vision(name: str, size: int = 64, **settings) -> Architecture:
    """A model of torchvision, by the name of the function that builds it."""

    def make() -> nn.Module:
        return getattr(library("torchvision").models, name)(weights=None, num_classes=10, **settings)

    return Architecture(make, (3, size, size))


def vision_class(name: str, size: int = 64, **settings) -> Architecture:
    """A model of torchvision with fewer or narrower layers than those with a name."""

    def make() -> nn.Module:
        return getattr(library("torchvision").models, name)(num_classes=10, **settings)

    return Architecture(make, (3, size, size))


def convnext() -> nn.Module:
    models = library("torchvision").models.convnext
    blocks = [models.CNBlockConfig(32, 64, 2), models.CNBlockConfig(64, None, 2)]
    return models.ConvNeXt(blocks, num_classes=10, layer_scale=0.5)


def hugging(model: str, config: str, shape: tuple[int, ...], vocabulary: int = 0, **settings) -> Architecture:
    """A model of transformers, by the names of its classes."""

    def make() -> nn.Module:
        models = library("transformers")
        chosen = getattr(models, config)(attn_implementation="eager", **settings)
        return First(getattr(models, model)(chosen))

    return Architecture(make, shape, vocabulary)


class PixelShuffle(nn.Module):
    """Super-resolution: features at low resolution, pixels from channels at the end, a long skip."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(self.block(width) for _ in range(2)))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(width))
        self.down = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, width, 1))
        self.last = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    @staticmethod
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.body(x) + self.down(self.up(x)))


class Inception(nn.Module):
    """Branches of unequal kernels, joined."""

    def __init__(self, inner: int):
        super().__init__()

        def conv(a, b, kernel, padding=(0, 0)):
            return nn.Sequential(nn.Conv2d(a, b, kernel, padding=padding, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        self.branches = nn.ModuleList([
            conv(inner, 16, 1),
            nn.Sequential(conv(inner, 12, 1), conv(12, 16, 5, (2, 2))),
            nn.Sequential(conv(inner, 16, 1), conv(16, 24, (1, 7), (0, 3)), conv(24, 24, (7, 1), (3, 0))),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inner, 8, 1)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2), nn.BatchNorm2d(24), nn.ReLU(), Inception(24), nn.MaxPool2d(3, 2), Inception(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class AlexNet(nn.Module):
    """Flattened images in front of Linear layers, and convolutions in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.LocalResponseNorm(2), nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(32, 24, 3, padding=1, groups=2), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(24 * 6 * 6, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
PICTURE = {**TEXT, "image_size": 32, "patch_size": 8}
TOKENS = (24,)

ARCHITECTURES = {
    **{name: Architecture(lambda name=name: made(name), net.shape, net.vocabulary) for name, net in UNSEEN.items()},
    "torchvision resnet": vision("resnet18"),
    "torchvision mobilenet_v2": vision("mobilenet_v2", width_mult=0.5),
    "torchvision mobilenet_v3": vision("mobilenet_v3_small"),
    "torchvision efficientnet": vision("efficientnet_b0"),
    "torchvision shufflenet": vision("shufflenet_v2_x0_5"),
    "torchvision densenet": vision_class("DenseNet", growth_rate=8, block_config=(2, 3, 2), num_init_features=16),
    "torchvision squeezenet": vision("squeezenet1_1"),
    "torchvision regnet": vision("regnet_y_400mf"),
    "torchvision mnasnet": vision("mnasnet0_5"),
    "torchvision convnext": Architecture(convnext, (3, 64, 64)),
    "torchvision vit": vision_class(
        "VisionTransformer", 32, image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    ),
    "torchvision swin": vision_class(
        "SwinTransformer", 64, patch_size=[4, 4], embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4]
    ),
    "deit": hugging("DeiTForImageClassification", "DeiTConfig", (3, 32, 32), **PICTURE),
    "hugging bert": hugging("BertForSequenceClassification", "BertConfig", TOKENS, 200, vocab_size=200, **TEXT),
    "distilbert": hugging(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        TOKENS,
        200,
        vocab_size=200,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
    ),
    "minilm": hugging("BertModel", "BertConfig", TOKENS, 200, vocab_size=200, **TEXT),
    "hugging gpt2": hugging(
        "GPT2LMHeadModel", "GPT2Config", TOKENS, 200, vocab_size=200, n_embd=64, n_layer=2, n_head=4, use_cache=False
    ),
    "t5": hugging(
        "T5EncoderModel",
        "T5Config",
        TOKENS,
        200,
        vocab_size=200,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    ),
    "llama": hugging(
        "LlamaForCausalLM", "LlamaConfig", TOKENS, 200, vocab_size=200, num_key_value_heads=2, use_cache=False, **TEXT
    ),
    "qwen2": hugging(
        "Qwen2ForCausalLM", "Qwen2Config", TOKENS, 200, vocab_size=200, num_key_value_heads=2, use_cache=False, **TEXT
    ),
    "segformer": hugging(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        (3, 64, 64),
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
    ),
    "pixel shuffle": Architecture(PixelShuffle, (3, 16, 16)),
    "inception": Architecture(inception, (3, 48, 48)),
    "alexnet": Architecture(AlexNet, (3, 32, 32)),
}


def built(name: str) -> nn.Module:
    """Build an architecture in evaluation mode. Constant parameters get random values, as training would give them: a
    test cannot see that a bias of zeros was lost, and behind a last layer of zeros it sees nothing.
    """
    torch.manual_seed(0)
    module = ARCHITECTURES[name].make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter += 0.1 * torch.randn_like(parameter)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean += 0.1 * torch.randn_like(part.running_mean)
    return module
