"""Training steps of the U-Net beside those of other libraries: images a second and memory at matched parameters.

    python examples/benchmarks/training.py                                        # this CPU, float32
    python examples/benchmarks/training.py --device cuda --batch 256 --bf16 --compile

A step is forward, mean squared error, backward and a fused AdamW on pictures 3x32x32 of noise. The contestants take
turns, so that a ratio is of two steps that ran one after the other; given is the median ratio and its quartiles. Widths
of the peers are the multiples of 4 that come nearest to our number of parameters. Memory is the most that was allocated
during the forward and backward pass, beyond weights and input, gradients included.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import contest
from contest import timing
from peers import networks
from scoresde.nn import UNet, presets

SIZES = {"digits": 8, "mnist": 28, "cifar_small": 32, "cifar_base": 32, "image64": 64}
"""Of the pictures that a preset is for."""
RATES = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
}
"""Dense bfloat16 TFLOP/s that makers state, by what a card's name holds; the first that fits."""


@dataclass
class Config:
    """Time training steps of U-Nets."""

    batch: int = 16
    """Pictures a step."""
    turns: int = 8
    """Steps of each contestant that count, after two that do not."""
    device: str = "cpu"
    """Where: cpu or cuda."""
    threads: int = 1
    """Threads of the CPU. With one, processor time is measured, which other programs do not lengthen."""
    bf16: bool = False
    """Autocast to bfloat16."""
    formats: tuple[Literal["contiguous", "channels-last"], ...] = ("contiguous", "channels-last")
    """Memory formats of weights and pictures; each contestant runs in each of them."""
    compile: bool = False
    """torch.compile all contestants."""
    peers: bool = True
    """Run the peers beside."""
    presets: tuple[str, ...] = ()
    """Time these presets too, e.g. digits mnist cifar_small cifar_base image64."""
    card_rate: float | None = None
    """Bfloat16 TFLOP/s of the card, where it is not among the known ones."""
    out: Path = contest.CACHE / "training.json"
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """A network's step.

    Attributes:
        group: contestants of one group took turns.
        name: of the network.
        parameters: their number.
        gflop: of a forward and backward pass for one picture.
        images: a second, median.
        memory: MiB, see the head of this file.
        ratio: images a second of the group's first network, in the last format, over those of this one, median over
            the turns.
        low: quartile of that ratio.
        high: the other.
        share: of the card's bfloat16 rate; 0 where it has none that is known.
    """

    group: str
    name: str
    parameters: int
    gflop: float
    images: float
    memory: float
    ratio: float
    low: float
    high: float
    share: float


def step_of(net: nn.Module, x: Tensor, config: Config) -> Callable[[], None]:
    """A function that takes one training step."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    c = torch.linspace(-3, 3, len(x), device=x.device)
    target = torch.randn_like(x)
    run: Any = torch.compile(net) if config.compile else net

    def forward_backward() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
            loss = (run(x, c).float() - target).square().mean()
        loss.backward()

    def step() -> None:
        forward_backward()
        optimizer.step()
        optimizer.zero_grad()

    step.forward_backward = forward_backward  # type: ignore[attr-defined]
    return step


def prepared(net: nn.Module, size: int, form: str, config: Config) -> tuple[nn.Module, Tensor]:
    """A copy of the network, and pictures of noise, where and in the memory format that is asked for."""
    channels = int(net.config["channels"]) if isinstance(net, UNet) else 3
    x = torch.randn(config.batch, channels, size, size, device=config.device)
    net = copy.deepcopy(net).to(config.device).train()
    if form == "channels-last":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, x


def now(config: Config) -> float:
    """Seconds: processor time of one thread, else the clock's, when all work has been done."""
    if config.device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if config.threads == 1 else time.perf_counter()


def turns(steps: dict[str, Callable[[], None]], config: Config) -> dict[str, list[float]]:
    """Seconds of each step of each contestant, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(config.turns + 2):
        for name, step in steps.items():
            start = now(config)
            step()
            if turn > 1:
                seconds[name].append(now(config) - start)
    return seconds


def gflop(net: nn.Module, x: Tensor) -> float:
    """Of a forward and backward pass for one picture, as torch counts them: matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        net(x[:1], torch.zeros(1, device=x.device)).square().mean().backward()
    net.zero_grad()
    return float(counter.get_total_flops()) / 1e9


def memory(step: Any, config: Config) -> float:
    """MiB that a forward and backward pass takes at its peak, beyond what was there before."""
    gc.collect()
    if config.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.forward_backward()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step.forward_backward()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(file))
        events = json.loads(file.read_text("utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    now_, most = 0, 0
    for _, change in changes:
        now_ += change
        most = max(most, now_)
    return most / 2**20


def rate_of(config: Config) -> float:
    """The card's bfloat16 FLOP/s, 0 where it is not known."""
    if config.card_rate is not None:
        return 1e12 * config.card_rate
    name = torch.cuda.get_device_name() if config.device != "cpu" else ""
    return 1e12 * next((rate for known, rate in RATES.items() if known in name), 0.0)


def contend(group: str, nets: dict[str, nn.Module], size: int, config: Config) -> list[Row]:
    """The rows of networks that take turns in each memory format; ratios are to the first network in the last."""
    made = {
        f"{name}, {form}": prepared(net, size, form, config) for name, net in nets.items() for form in config.formats
    }
    flops = {name: gflop(net, x) for name, (net, x) in made.items()}
    steps = {name: step_of(net, x, config) for name, (net, x) in made.items()}
    seconds = turns(steps, config)
    rows, first, rate = [], f"{next(iter(nets))}, {config.formats[-1]}", rate_of(config)
    for name, (net, _) in made.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds[first], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        images = config.batch / statistics.median(seconds[name])
        net.zero_grad()
        row = Row(
            group,
            name,
            networks.size(net),
            flops[name],
            images,
            memory(steps[name], config),
            middle,
            low,
            high,
            images * flops[name] * 1e9 / rate if rate else 0.0,
        )
        rows.append(row)
        print(row, flush=True)
    return rows


def unet(**options: Any) -> UNet:
    """Three levels, of two blocks each at the width of the small preset unless told."""
    usual: dict[str, Any] = {"width": 96, "blocks": (2, 2, 2), "attention_levels": (1, 2)}
    return UNet(3, multipliers=(1, 2, 2), **{**usual, **options})


def peer(name: str, build: networks.Build, parameters: int) -> dict[str, nn.Module]:
    """The peer at its nearest width, or nothing where it is not installed."""
    try:
        width, net = networks.matched(build, parameters)
    except ModuleNotFoundError as missing:
        print(f"{name} is left out: {missing}")
        return {}
    return {f"{name}, width {width}": net}


def rows_of(config: Config) -> list[Row]:
    """Everything that the flags ask for."""
    rows = []
    shapes: dict[str, dict[str, Any]] = {  # as many parameters, in wider levels
        "the usual shape": {"blocks": (2, 2, 2), "width": 96},
        "one block where pictures are large": {"blocks": (1, 1, 2), "width": 108},
    }
    for shape, options in shapes.items():
        blocks, unseeing = options["blocks"], {**options, "attention_levels": ()}
        looking, blind = unet(**options), unet(**unseeing)
        with_attention: dict[str, nn.Module] = {
            f"scoresde, blocks {blocks}": looking,
            f"scoresde, blocks {blocks}, checkpoint": unet(**options, checkpoint=True),
        }
        without: dict[str, nn.Module] = {
            f"scoresde, blocks {blocks}": blind,
            f"scoresde, blocks {blocks}, checkpoint": unet(**unseeing, checkpoint=True),
        }
        if config.peers:
            size = networks.size(looking)
            with_attention |= peer("diffusers", networks.diffusers, size)
            with_attention |= peer("denoising-diffusion-pytorch", networks.denoising_diffusion_pytorch, size)
            without |= peer("azula, blocks (3, 3, 3)", networks.azula, networks.size(blind))
            if blocks != (2, 2, 2):
                without |= peer(f"azula, blocks {blocks}", partial(networks.azula, blocks=blocks), networks.size(blind))
        rows += contend(f"{shape}, attention at 16x16 and 8x8", with_attention, 32, config)
        rows += contend(f"{shape}, no attention", without, 32, config)
    for name in config.presets:
        kept, again = (UNet(**{**getattr(presets, name)().config, "checkpoint": flag}) for flag in (False, True))
        rows += contend(f"preset {name}", {name: kept, f"{name}, checkpoint": again}, SIZES[name], config)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    heads = ["Group", "Network", "Parameters:", "GFLOP a picture:", "Pictures a second:", "Memory, MiB:"]
    heads += ["Time, ours = 1:", "Share of the card's rate:"]
    return contest.markdown(
        heads,
        (
            [
                r.group,
                r.name,
                f"{r.parameters / 1e6:.2f} M",
                f"{r.gflop:.2f}",
                f"{r.images:.3g}",
                f"{r.memory:.0f}",
                f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})",
                f"{r.share:.1%}" if r.share else "",
            ]
            for r in rows
        ),
    )


def main(config: Config) -> None:
    """Print and keep the figures."""
    timing.warm_up()
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    rows = rows_of(config)
    contest.write_array(config.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
