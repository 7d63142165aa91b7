"""Bar 5 of training: what the loop adds to the network, the loss, AdamW and the average, per step.

    python examples/benchmarks/loop_overhead.py --batch 128 8

A step of ``scoresde.train`` beside one of a hand-written loop with the same network, the same loss, fused AdamW,
clipping and moving average, and torch's own generators; the two take turns, one step each. The loop's has draws that do
not depend on the number of processes, stratified times, a look at whether all is finite, and what lets it go on after
Ctrl-C. One thread; the ratio is the median over pairs of neighbouring steps, in processor time, with its quartiles. On
a GPU (``--device cuda``) in wall time, and the loop's steps are taken with torch's sync debug mode at "error": a step
that waited for the device would raise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest import timing
from scoresde import losses
from scoresde.data import Dataset, from_tensors
from scoresde.nn import UNet, presets
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import EMA, train

NETWORKS: dict[str, tuple[Callable[[], UNet], tuple[int, int, int]]] = {
    "digits, 0.8 M": (lambda: presets.digits(num_classes=10, dropout=0.1), (1, 8, 8)),
    "CIFAR, 13 M": (lambda: presets.cifar_small(num_classes=10, dropout=0.1), (3, 32, 32)),
}
LR, BETAS, DECAY, CLIP = 2e-3, (0.9, 0.99), 0.9999, 1.0


@dataclass
class Config:
    """Measure the overhead of the training loop."""

    batch: tuple[int, ...] = (128, 8)
    """Samples in a step, for the digits network and for the CIFAR one."""
    pairs: tuple[int, ...] = (60, 12)
    """Pairs of steps, likewise."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    out: Path = contest.CACHE / "loop_overhead.json"
    """File for the figures."""


@dataclass(frozen=True)
class Overhead:
    """Median of the loop's time over the bare loop's, minus 1, with its quartiles; ``bar`` is the most it should be."""

    network: str
    batch: int
    bare_ms: float
    overhead: float
    low: float
    high: float
    bar: float


def pictures(event: tuple[int, int, int]) -> Dataset:
    """Data that cost what data cost."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2048, *event), dtype=torch.uint8, generator=generator)
    return from_tensors(x, torch.arange(len(x)) % 10, channels="first")


def bare(model: ss.ScoreModel, dataset: Dataset, batch: int, times: LogNormalSigma) -> Iterator[Tensor]:
    """A loop as one writes it."""
    weighting, device = losses.edm(0.5), next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, fused=True)
    ema, null = EMA(model, DECAY), 10
    parameters = list(model.parameters())
    model.train()
    for _ in itertools.count():
        rows = dataset[torch.randint(len(dataset), (batch,))]
        x0, label = rows["x"].to(device), rows["label"].to(device)
        label = torch.where(torch.rand(batch, device=device) < 0.1, null, label)
        t, weight = times.sample(model.sde, torch.rand(batch, dtype=torch.float64))
        x0 = x0 + (2 / 255) * (torch.rand_like(x0) - 0.5)
        loss = ss.dsm_loss(model, x0, t.to(device), torch.randn_like(x0), weighting, conditions={"label": label})
        loss = (loss * weight.to(device)).mean() / x0[0].numel()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
        yield loss.detach()


def ours(model: ss.ScoreModel, dataset: Dataset, batch: int, times: LogNormalSigma, device: str) -> Iterator[object]:
    """The library's."""
    return train(
        model,
        dataset,
        steps=10**6,
        batch_size=batch,
        lr=LR,
        betas=BETAS,
        ema=DECAY,
        clip=CLIP,
        weighting=losses.edm(0.5),
        times=Stratified(times),
        dequantize=True,
        progress=False,
        log_every=50,
        cpu=device == "cpu",
    )


def measured(name: str, batch: int, pairs: int, device: str) -> Overhead:
    """Steps in turns."""
    make, event = NETWORKS[name]
    dataset, times = pictures(event), LogNormalSigma(mean=-0.6, std=1.4)

    def model() -> ss.ScoreModel:
        torch.manual_seed(0)
        return ss.ScoreModel(make(), ss.VP(), "edm", 0.5).to(device)

    loops = (bare(model(), dataset, batch, times), ours(model(), dataset, batch, times, device))
    cuda = device == "cuda"

    def seconds(loop: Iterator[object], strict: bool) -> float:
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
        start = time.perf_counter() if cuda else time.process_time()
        next(loop)
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        return (time.perf_counter() if cuda else time.process_time()) - start

    for _ in range(3):
        for loop in loops:
            next(loop)
    found = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 else (1, 0)  # who comes second finds other caches
        took = {i: seconds(loops[i], strict=i == 1) for i in order}
        found.append((took[0], took[1]))
    ratios = torch.tensor([b / a - 1 for a, b in found], dtype=torch.float64)
    low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Overhead(name, batch, 1e3 * min(a for a, _ in found), middle, low, high, 0.02)


def table(rows: list[Overhead]) -> str:
    """Markdown."""
    cells = (
        [
            r.network,
            str(r.batch),
            f"{r.bare_ms:.1f}",
            f"{100 * r.overhead:+.2f} % ({100 * r.low:+.2f} … {100 * r.high:+.2f})",
            contest.verdict(r.overhead, r.bar),
        ]
        for r in rows
    )
    return contest.markdown(["Network", "Batch", "Bare step, ms", "The loop adds (quartiles)", "Bar"], cells)


def main(config: Config) -> None:
    """Print and keep the figures."""
    timing.warm_up()
    torch.set_num_threads(1)
    rows = [
        measured(name, batch, pairs, config.device)
        for name, batch, pairs in zip(NETWORKS, config.batch, config.pairs, strict=True)
    ]
    contest.write_array(config.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
