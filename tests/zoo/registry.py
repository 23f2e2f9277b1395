"""The zoo: every model by name, small for tests or in its published size, with live random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from zoo import branches, mobile, residual, sequence, vision


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        factory: The class or function that makes it; called without arguments it has its published size.
        small: Arguments that make it small, of the same structure.
        shapes: Shapes of the small model's float inputs, or of token inputs where `words` is given.
        full_shapes: The same for the published size.
        words: Number of tokens of the small and of the full model where inputs are indices, else None.
    """

    factory: Callable[..., nn.Module]
    small: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    full_shapes: tuple[tuple[int, ...], ...]
    words: tuple[int, int] | None = None
    full: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A model in eval mode with inputs for a batch of two."""

    name: str
    model: nn.Module
    args: tuple[Tensor, ...]


def _images(side: int, channels: int = 3) -> tuple[tuple[int, ...], ...]:
    return ((3, channels, side, side),)


def _language(name: str) -> Callable[..., nn.Module]:
    """A factory of `zoo.language`, imported when it is called: that library takes seconds to load."""

    def make(**sizes: Any) -> nn.Module:
        from zoo import language

        return getattr(language, name)(**sizes)

    return make


TOKENS = ((2, 9),)
FULL_TOKENS = ((2, 64),)
PAIR = ((2, 1, 24, 24), (2, 1, 24, 24))

ZOO: dict[str, Entry] = {
    "resnet20_cifar": Entry(residual.CifarResNet, {"width": 8}, _images(16), _images(32)),
    "resnet56_cifar": Entry(
        residual.CifarResNet, {"width": 8, "blocks": 9}, _images(12), _images(32), full={"blocks": 9}
    ),
    "resnet18": Entry(residual.ResNet, {"width": 8, "classes": 7}, _images(32), _images(224)),
    "resnet34": Entry(
        residual.ResNet,
        {"depths": (3, 4, 6, 3), "width": 6, "classes": 7},
        _images(32),
        _images(224),
        full={"depths": (3, 4, 6, 3)},
    ),
    "resnet50": Entry(
        residual.ResNet,
        {"block": residual.Bottleneck, "depths": (3, 4, 6, 3), "width": 8, "classes": 7},
        _images(32),
        _images(224),
        full={"block": residual.Bottleneck, "depths": (3, 4, 6, 3)},
    ),
    "resnext50": Entry(
        residual.ResNet,
        {
            "block": residual.Bottleneck,
            "depths": (3, 4, 6, 3),
            "width": 16,
            "groups": 4,
            "group_width": 16,
            "classes": 7,
        },
        _images(32),
        _images(224),
        full={"block": residual.Bottleneck, "depths": (3, 4, 6, 3), "groups": 32, "group_width": 4},
    ),
    "mobilenet_v1": Entry(mobile.MobileNetV1, {"width": 0.25, "classes": 7}, _images(32), _images(224)),
    "mobilenet_v2": Entry(mobile.MobileNetV2, {"width": 0.35, "classes": 7}, _images(32), _images(224)),
    "mobilenet_v3": Entry(mobile.MobileNetV3, {"width": 0.25, "classes": 7}, _images(32), _images(224)),
    "efficientnet_b0": Entry(mobile.EfficientNet, {"width": 0.25, "classes": 7}, _images(32), _images(224)),
    "vgg16_bn": Entry(
        branches.Vgg,
        {"share": 8, "hidden": 48, "positions": 2, "classes": 7},
        _images(32),
        _images(224),
    ),
    "densenet": Entry(
        branches.DenseNet,
        {"growth": 6, "depths": (4, 6, 8, 5), "stem": 12, "classes": 7},
        _images(32),
        _images(224),
    ),
    "googlenet": Entry(branches.GoogLeNet, {"share": 8, "classes": 7}, _images(48), _images(224)),
    "squeezenet": Entry(branches.SqueezeNet, {"share": 8, "classes": 7}, _images(48), _images(224)),
    "shufflenet_v2": Entry(
        mobile.ShuffleNetV2,
        {"widths": (8, 16, 24, 40, 64), "classes": 7},
        _images(32),
        _images(224),
    ),
    "unet": Entry(branches.UNet, {"width": 6, "depth": 3}, _images(20), _images(256)),
    "deeplab": Entry(branches.DeepLab, {"width": 8, "pooled": 12, "classes": 4}, _images(32), _images(224)),
    "generator": Entry(branches.Generator, {"width": 4, "latent": 10}, ((2, 10),), ((2, 100),)),
    "yolo_v8": Entry(branches.Yolo, {"width": 8, "classes": 5, "bins": 4}, _images(64), _images(320)),
    "regnet_y": Entry(
        residual.RegNet,
        {"widths": (16, 24, 40, 64), "classes": 7},
        _images(32),
        _images(224),
    ),
    "convnext": Entry(
        vision.ConvNeXt,
        {"widths": (8, 12, 16, 24), "classes": 7},
        _images(32),
        _images(224),
    ),
    "vit": Entry(
        vision.VisionTransformer,
        {"image": 16, "patch": 4, "size": 24, "depth": 6, "heads": 3, "classes": 7},
        _images(16),
        _images(224),
    ),
    "vit_encoder_layers": Entry(
        vision.EncoderVit,
        {"image": 16, "patch": 4, "size": 24, "depth": 2, "heads": 3, "classes": 7},
        _images(16),
        _images(224),
    ),
    "swin": Entry(
        vision.Swin,
        {"image": 32, "size": 12, "depths": (2, 2, 6), "heads": (2, 2, 4), "window": 2, "classes": 7},
        _images(32),
        _images(224),
    ),
    "mlp_mixer": Entry(
        vision.MlpMixer,
        {"image": 16, "patch": 4, "size": 20, "depth": 6, "token_hidden": 12, "hidden": 40, "classes": 7},
        _images(16),
        _images(224),
    ),
    "edsr": Entry(vision.Espcn, {"width": 12}, _images(10), _images(64)),
    "bert": Entry(
        _language("bert"),
        {"size": 24, "layers": 4, "heads": 3, "words": 40, "places": 16},
        TOKENS,
        FULL_TOKENS,
        (40, 30522),
    ),
    "distilbert": Entry(
        _language("distilbert"),
        {"size": 24, "layers": 4, "heads": 3, "words": 40, "places": 16},
        TOKENS,
        FULL_TOKENS,
        (40, 30522),
    ),
    "electra": Entry(
        _language("electra"),
        {"size": 24, "layers": 3, "heads": 3, "words": 40, "places": 16},
        TOKENS,
        FULL_TOKENS,
        (40, 30522),
    ),
    "opt": Entry(
        _language("opt"),
        {"size": 24, "layers": 3, "heads": 3, "words": 40},
        TOKENS,
        FULL_TOKENS,
        (40, 50272),
    ),
    "gpt_neox": Entry(
        _language("gpt_neox"),
        {"size": 24, "layers": 3, "heads": 3, "words": 40},
        TOKENS,
        FULL_TOKENS,
        (40, 50432),
    ),
    "segformer": Entry(
        _language("segformer"),
        {"sizes": (8, 12, 16, 24), "heads": (1, 2, 2, 4), "decoder": 12, "classes": 4},
        _images(64),
        _images(128),
    ),
    "wav2vec2": Entry(
        _language("wav2vec2"),
        {"size": 24, "layers": 2, "heads": 3, "channels": 12, "words": 8},
        ((2, 800),),
        ((2, 16000),),
    ),
    "gpt2": Entry(
        _language("gpt2"),
        {"size": 24, "layers": 4, "heads": 3, "words": 40, "places": 16},
        TOKENS,
        FULL_TOKENS,
        (40, 50257),
    ),
    "llama": Entry(
        _language("llama"),
        {"size": 32, "layers": 4, "heads": 4, "groups": 2, "hidden": 44, "words": 40},
        TOKENS,
        FULL_TOKENS,
        (40, 32000),
    ),
    "qwen3": Entry(
        _language("qwen3"),
        {"size": 24, "layers": 4, "heads": 4, "groups": 2, "head": 8, "hidden": 44, "words": 40},
        TOKENS,
        FULL_TOKENS,
        (40, 32000),
    ),
    "t5": Entry(
        _language("t5"),
        {"size": 24, "layers": 4, "heads": 3, "head": 8, "hidden": 36, "words": 40},
        (*TOKENS, (2, 5)),
        (*FULL_TOKENS, (2, 32)),
        (40, 32128),
    ),
    "whisper": Entry(
        _language("whisper"),
        {"size": 24, "layers": 4, "heads": 3, "words": 40, "mels": 8, "places": 10},
        ((2, 8, 20), (2, 5)),
        ((2, 80, 3000), (2, 32)),
        (40, 51865),
    ),
    "lstm_tagger": Entry(
        sequence.Tagger,
        {"words": 40, "size": 12, "hidden": 10, "tags": 5},
        TOKENS,
        FULL_TOKENS,
        (40, 5000),
    ),
    "gru_tagger": Entry(
        sequence.Tagger,
        {"cell": nn.GRU, "words": 40, "size": 12, "hidden": 10, "tags": 5},
        TOKENS,
        FULL_TOKENS,
        (40, 5000),
        full={"cell": nn.GRU},
    ),
    "ds_cnn": Entry(mobile.DepthwiseSeparable, {"width": 16}, ((2, 1, 49, 10),), ((2, 1, 49, 10),)),
    "wavenet": Entry(
        sequence.WaveNet,
        {"channels": 8, "skip": 12, "layers": 3, "stacks": 2, "levels": 6},
        ((2, 1, 40),),
        ((2, 1, 2000),),
    ),
    "siamnet": Entry(sequence.SiamNet, {"width": 6, "hidden": 20}, PAIR, ((2, 1, 105, 105),) * 2),
    "mlp": Entry(sequence.PlainMlp, {"sizes": (36, 24, 16, 5)}, ((2, 1, 6, 6),), ((2, 1, 28, 28),)),
    "autoencoder": Entry(sequence.AutoEncoder, {"size": 32, "hidden": 16, "middle": 6}, ((2, 32),), ((2, 640),)),
}


def build(name: str, *, full: bool = False, seed: int = 0) -> Example:
    """Make a model of the zoo with its inputs; the same seed gives the same weights.

    Args:
        name: A name of `ZOO`.
        full: The published size instead of the small one.
        seed: Seed of weights and inputs.
    """
    entry = ZOO[name]
    torch.manual_seed(seed)
    model = entry.factory(**(entry.full if full else entry.small))
    words = None if entry.words is None else entry.words[full]
    args = tuple(_input(shape, words) for shape in (entry.full_shapes if full else entry.shapes))
    randomise(model)
    if not full:
        _set_statistics(model, args)
    return Example(name, model.eval().requires_grad_(False), args)


def _input(shape: tuple[int, ...], words: int | None) -> Tensor:
    return torch.randn(shape) if words is None or len(shape) > 2 else torch.randint(4, words, shape)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw every parameter so that signals neither die nor explode and no two channels are alike."""
    done: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in done:
                done.add(id(parameter))
                _draw(module, name, parameter)


def _draw(module: nn.Module, name: str, parameter: Tensor) -> None:
    if isinstance(module, nn.Embedding):
        parameter.normal_(0, 0.7)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and name == "bias":
        parameter.normal_(0.2, 0.3)  # few channels are dead behind a ReLU
    elif parameter.ndim == 1 and "bias" in name:
        parameter.normal_(0.15, 0.2)
    elif parameter.ndim == 1:
        parameter.uniform_(0.6, 1.4)
    elif type(module).__name__ == "Conv1D" or isinstance(module, nn.ConvTranspose2d):
        parameter.normal_(0, parameter.shape[0] ** -0.5)  # stored as (inputs, outputs)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        parameter.normal_(0, 1.4 * parameter[0].numel() ** -0.5)
    elif isinstance(module, nn.Linear | nn.RNNBase | nn.MultiheadAttention):
        parameter.normal_(0, 1.2 * parameter.shape[1] ** -0.5)
    else:
        parameter.normal_(0, 0.5)  # positions, class tokens, tables of relative positions


@torch.no_grad()
def _set_statistics(model: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Give batch normalisation the statistics of the inputs, shaken so that it is not an exact whitening."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(*args)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.6, 1.4)).add_(0.01)
