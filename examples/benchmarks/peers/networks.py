"""U-Nets of other libraries for 32x32 pictures, each net(x, c) for one number c a sample, at any width.

Three levels of w, 2w and 2w channels with two residual blocks on the way down, as the usual networks for this size,
and a conditioning vector of 4w. diffusers and denoising-diffusion-pytorch attend at 16x16 and 8x8; azula's U-Net has no
attention.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[int], nn.Module]


class _Called(nn.Module):
    """Someone's network under net(x, c)."""

    def __init__(self, net: nn.Module, answer: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.net, self.answer, self.parts = net, answer, nn.ModuleDict(parts)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.answer(self.net, x, c, **self.parts)


def diffusers(width: int) -> nn.Module:
    """UNet2DModel with scale and shift; heads of w channels."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    net = UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=width,
        norm_num_groups=width // 4,
        resnet_time_scale_shift="scale_shift",
    )
    return _Called(net, lambda net, x, c: net(x, c).sample)


def denoising_diffusion_pytorch(width: int) -> nn.Module:
    """Its Unet, full attention at the two coarser levels; linear attention at the finest, which it cannot omit."""
    importlib.import_module("diffusers")  # asks whether torchvision is there: before that is answered falsely
    with _pretended("torchvision", "torchvision.transforms", "torchvision.utils", "torchvision.datasets"):
        unet = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch").Unet
    return unet(width, dim_mults=(1, 2, 2), full_attn=(False, True, True))  # type: ignore[no-any-return]


def azula(width: int, blocks: tuple[int, ...] = (3, 3, 3)) -> nn.Module:
    """Its UNet with group norm of groups of 4 channels, and its three blocks a level."""
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet

    net = UNet(
        3,
        3,
        hid_channels=(width, 2 * width, 2 * width),
        hid_blocks=blocks,
        mod_features=4 * width,
        norm="group",
        groups=width // 4,
    )
    embed = nn.Sequential(
        SineEncoding(2 * width), nn.Linear(2 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
    )
    return _Called(net, lambda net, x, c, embed: net(x, embed(c)), embed=embed)


def matched(build: Build, parameters: int) -> tuple[int, nn.Module]:
    """The width, a multiple of 4, at which a network has the number of parameters that is nearest, and that network."""

    def off(width: int) -> int:
        with torch.device("meta"):
            return abs(size(build(width)) - parameters)

    width = min(range(16, 400, 4), key=off)
    return width, build(width)


def size(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


@contextmanager
def _pretended(*names: str) -> Iterator[None]:
    """Inside, empty modules stand in for those that are imported, not used, and not installed."""
    missing = [name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None]
    modules: dict[str, Any] = {name: ModuleType(name) for name in missing}
    for name, module in modules.items():
        package, _, part = name.rpartition(".")
        if package:
            setattr(modules[package], part, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
