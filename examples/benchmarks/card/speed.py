"""How fast a card trains and samples with the presets: images a second, the share of its rate, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import scoresde as ss
from card.running import Bench
from scoresde import losses
from scoresde.models import captured
from scoresde.nn import UNet, presets

RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations a second by the makers' data sheets; of another card a large matrix product is the rate."""

Ways = dict[str, dict[str, Any]]
WAYS: Ways = {
    "float32": {},
    "TF32": {"tf32": True},
    "bfloat16": {"bf16": True, "tf32": True},
    "bfloat16, channels last": {"bf16": True, "tf32": True, "channels_last": True},
    "bfloat16, compiled": {"bf16": True, "tf32": True, "compiled": True},
    "bfloat16, compiled, channels last": {"bf16": True, "tf32": True, "compiled": True, "channels_last": True},
}


def rate_of(bench: Bench) -> tuple[float, str]:
    """Operations a second that bfloat16 could reach, and where that is from."""
    if bench.cuda:
        name = torch.cuda.get_device_name(bench.device)
        for known, rate in RATES.items():
            if known in name:
                return rate, f"data sheet of the {known}"
    n = 256 if bench.small else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / bench.timed(lambda: a @ b), f"a product of two {n} x {n} matrices"


def flops(net: nn.Module, x: Tensor, label: Tensor | None) -> float:
    """Of forward and backward, for one image."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(answer(net, x[:2], label).square().mean())
    net.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / 2


def answer(net: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
    """At one noise level."""
    given = {} if label is None else {"label": label[: len(x)]}
    out: Tensor = net(x, torch.zeros(len(x), device=x.device), **given)
    return out


class Trained:
    """One step of training a network: loss, gradient, AdamW, all on the device."""

    def __init__(self, net: nn.Module, bench: Bench, batch: int, size: int, **way: bool) -> None:
        self.way, self.device = way, bench.device
        self.format = torch.channels_last if way.get("channels_last") else torch.contiguous_format
        self.net = net.to(bench.device).train()
        for parameter in self.net.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=self.format)
        self.model = ss.ScoreModel(self.net, ss.VP(), "v", sigma_data=0.5)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-5, fused=bench.cuda)
        shape = (batch, 3, size, size)
        self.x, self.eps = (torch.randn(shape, device=bench.device).to(memory_format=self.format) for _ in range(2))
        self.t = torch.linspace(0.1, 0.9, batch, dtype=torch.float64, device=bench.device)
        self.label = torch.arange(batch, device=bench.device) % 10
        if way.get("compiled"):
            self.net.compile()

    def step(self) -> None:
        """Once."""
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.way.get("bf16") else nullcontext()
        with cast:
            loss = losses.dsm_loss(self.model, self.x, self.t, self.eps, conditions={"label": self.label})
        torch.autograd.backward(loss.mean())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def nets(bench: Bench) -> dict[str, tuple[Callable[[], UNet], int, int]]:
    """Presets, each with its batch and the size of its pictures, the one that bars are about first."""
    if bench.small:
        return {"digits": (lambda: presets.digits(3, num_classes=10), 4, 8)}
    return {
        "cifar_base (43 M)": (lambda: presets.cifar_base(num_classes=10), 256, 32),
        "cifar_small (13 M)": (lambda: presets.cifar_small(num_classes=10), 256, 32),
        "image64 (102 M)": (lambda: presets.image64(num_classes=10), 64, 64),
    }


def precise(tf32: bool) -> None:
    """TF32 in matrix products and convolutions, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def training(bench: Bench) -> Iterator[dict[str, Any]]:
    """Images a second of each preset in each way; compiling is timed apart."""
    rate, source = rate_of(bench)
    yield {"bfloat16 rate": rate, "by": source}
    for name, (make, batch, size) in nets(bench).items():
        each = flops(make().to(bench.device), torch.randn(2, 3, size, size, device=bench.device), _two_labels(bench))
        ways = {k: v for k, v in WAYS.items() if not (bench.small and v.get("compiled"))}
        for way, options in bench.among(list(ways.items()), 45.0 if not bench.small else 0.0):
            precise(bool(options.get("tf32")))
            trained = Trained(make(), bench, batch, size, **options)
            began = time.perf_counter()
            trained.step()
            bench.wait()
            first = time.perf_counter() - began
            memory = bench.memory(trained.step)
            seconds = bench.timed(trained.step, seconds=3.0)
            yield {
                "preset": name,
                "way": way,
                "batch": batch,
                "images/s": batch / seconds,
                "TFLOP/s": each * batch / seconds / 1e12,
                "share of the rate": each * batch / seconds / rate,
                "first step, s": first,
                "memory, MB": memory / 2**20,
            }
            del trained
    precise(False)


def _two_labels(bench: Bench) -> Tensor:
    return torch.zeros(2, dtype=torch.int64, device=bench.device)


def checkpointing(bench: Bench) -> Iterator[dict[str, Any]]:
    """Memory and time of a step with and without computing activations again, where the network can."""
    make, batch, size = next(iter(nets(bench).values()))
    config: dict[str, Any] = make().config
    for checkpoint in (False, True):
        try:
            net = UNet(**{**config, "checkpoint": checkpoint})
        except TypeError:
            yield {"left out": "this U-Net has no checkpoint="}
            return
        trained = Trained(net, bench, batch, size, bf16=True, tf32=True)
        trained.step()
        yield {
            "checkpoint": checkpoint,
            "memory, MB": bench.memory(trained.step) / 2**20,
            "images/s": batch / bench.timed(trained.step),
        }
        del trained


def sampling(bench: Bench) -> Iterator[dict[str, Any]]:
    """Samples a second at 25 evaluations of the 43 M network: eager, captured, compiled with CUDA graphs."""
    make, _, size = next(iter(nets(bench).values()))
    for batch in bench.among((2,) if bench.small else (1, 16, 256), 60.0 if not bench.small else 0.0):
        made = ss.ScoreModel(make().to(bench.device, torch.bfloat16).eval(), ss.VP(), "v", sigma_data=0.5)
        score = made.bind(label=1)

        def draw(score: ss.Score = score, batch: int = batch) -> None:
            ss.sample(score, (batch, 3, size, size), steps=2 if bench.small else 25, seed=0, device=bench.device)

        row: dict[str, Any] = {"batch": batch, "eager, samples/s": batch / bench.timed(draw)}
        if bench.cuda:
            with captured(made):
                row["captured, samples/s"] = batch / bench.timed(draw)
            net = made.net
            assert isinstance(net, nn.Module)
            net.compile(mode="reduce-overhead")
            began = time.perf_counter()
            draw()
            bench.wait()
            row["compiling, s"] = time.perf_counter() - began
            row["compiled, samples/s"] = batch / bench.timed(draw)
        yield row


def peers(bench: Bench) -> Iterator[dict[str, Any]]:
    """A step of diffusers' U-Net of the same size, where diffusers is installed."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        yield {"left out": "diffusers is not installed"}
        return
    _, batch, size = next(iter(nets(bench).values()))
    widths = (32, 64, 64) if bench.small else (128, 256, 256, 256)
    down = ["DownBlock2D"] * len(widths)
    down[1] = "AttnDownBlock2D"
    up = [name.replace("Down", "Up") for name in reversed(down)]
    net: Any = UNet2DModel(  # type: ignore[no-untyped-call]
        size, 3, 3, block_out_channels=widths, layers_per_block=2 if bench.small else 3,
        down_block_types=tuple(down), up_block_types=tuple(up), num_class_embeds=11,
    )  # fmt: skip

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            out: Tensor = self.net(x, c, class_labels=label).sample
            return out

    for way in ("bfloat16", "bfloat16, channels last"):
        trained = Trained(Peer(), bench, batch, size, **WAYS[way])
        parameters = sum(p.numel() for p in net.parameters())
        yield {
            "peer": "diffusers UNet2DModel",
            "parameters": parameters,
            "way": way,
            "images/s": batch / bench.timed(trained.step),
            "memory, MB": bench.memory(trained.step) / 2**20,
        }
