"""Natural images from data to a table: train, judge, draw with many samplers, and leave results that can be carried.

    python examples/cifar.py --data cifar/train.parquet --test cifar/test.parquet --quick    # all of it, in two minutes
    python examples/cifar.py --data cifar-10-batches-bin --network cifar-base --train-seconds 480 --mixed-precision bf16
    python examples/cifar.py --data cifar/train.parquet --test cifar/test.parquet --checkpoint runs/cifar/checkpoints

--data is what `scoresde train` reads: Parquet, a folder of images, CIFAR's binary files, arrays; --test is of the same
kind. The same call again goes on after a kill, or after --train-seconds: with training first, then with the rows of
table.jsonl that are missing. What is there in the end, in --out:

    checkpoints/, log.jsonl    the run, see `scoresde train`
    judge/                     the network whose features the distances are taken in, trained on --data alone
    table.jsonl, table.md      one row for each kind of score, sampler and number of evaluations, other libraries beside
    KIND.png                   pictures, a column for each class
    results/                   all that is worth carrying, in pieces of at most --most-bytes
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli import train as training
from scoresde.cli.choices import NetworkName
from scoresde.cli.command import command
from scoresde.cli.costs import in_batches
from scoresde.cli.evaluate import rounded
from scoresde.cli.flags import MachineFlags, at_least
from scoresde.cli.outputs import finish, told
from scoresde.cli.pictures import draw_samples
from scoresde.cli.trained import Trained, open_checkpoint
from scoresde.data import Dataset, load
from scoresde.solvers import ProbabilityFlow
from shared.recipe import pieces, samplers
from shared.recipe.judge import Judge
from shared.recipe.table import Rows, markdown

OURS = ("default", "ddim", "heun", "dpm-solverpp", "euler-maruyama", "ancestral")
OTHERS = (
    "diffusers dpmsolver++ 2M midpoint karras",
    "diffusers UniPC 2 bh2 x0 karras",
    "k-diffusion dpmpp_2m karras",
    "k-diffusion dpmpp_2m_sde midpoint karras",
    "azula DDIM cosine",
    "EDM Heun karras",
)


@dataclass(frozen=True, kw_only=True)
class Config(MachineFlags):
    """Train on pictures, draw with many samplers, judge, and leave the results in pieces."""

    data: Path
    """Training pictures."""
    test: Path
    """Held-out pictures, to which samples are compared; the judge and the model never see them."""
    out: Path = Path("runs/cifar")
    """Folder for everything that is written."""
    checkpoint: str | None = None
    """A trained model, as of `scoresde sample`; no training then."""
    network: NetworkName = "cifar-small"
    """The network to train, a preset of scoresde.nn.presets."""
    steps: int = 100_000
    """Training steps in all."""
    batch_size: int = 256
    """Pictures in a training step."""
    lr: float = 5e-4
    """Peak learning rate."""
    train_seconds: float | None = None
    """Train so long at most in this call; the next call goes on."""
    mixed_precision: str | None = None
    """bf16 on cards that have it."""
    guidance: tuple[float, ...] = (2.0,)
    """Scales of classifier-free guidance."""
    samplers: tuple[str, ...] = (*OURS, *OTHERS)
    """Names of samplers: those of `scoresde sample --solver`, default, and those of other libraries with a grid."""
    nfe: tuple[int, ...] = (10, 20, 50)
    """Evaluations at most."""
    samples: int = 10_000
    """Pictures of each row of the table, at most as many as --test holds."""
    seeds: int = 1
    """Sets of pictures, over which the deviations are."""
    sample_batch: int = 500
    """Pictures drawn at a time."""
    bits: int = 200
    """Test pictures whose bits/dim are measured; 0 for none."""
    judge_steps: int = 2000
    """Training steps of the judge."""
    most_bytes: int = 16_000_000
    """Size of the pieces."""
    seed: int = 0
    """Of everything."""
    quick: bool = False
    """A network of 0.1 M parameters for 20 steps, a judge for 20, 64 pictures: to see that all of it runs."""

    def check(self) -> None:
        at_least(self, steps=1, batch_size=1, samples=16, seeds=1, sample_batch=1, bits=0, judge_steps=1, most_bytes=1)
        if not self.nfe or min(self.nfe) < 1:
            raise ValueError(f"--nfe must be whole numbers of at least 1, got {self.nfe}.")
        for path in (self.data, self.test):
            if not path.expanduser().exists():
                raise FileNotFoundError(f"no data at {path}.")
        absent = samplers.missing(self.samplers)
        for name in self.samplers:
            if name not in absent:
                samplers.sampler(name)


def trained_model(config: Config) -> Trained:
    """The model of --checkpoint, or the one that is trained here; a run that was cut short goes on."""
    if config.checkpoint is not None:
        return open_checkpoint(config.checkpoint, ema=True, cpu=config.cpu)
    flags: dict[str, Any] = {
        "network": config.network,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "flip": True,
        "max_seconds": config.train_seconds,
        "mixed_precision": config.mixed_precision,
        "resume": True,
        "seed": config.seed,
        "cpu": config.cpu,
        "threads": config.threads,
    }
    if config.quick:
        flags.update(steps=20, batch_size=16, width=16, attention_levels=())
    training.main(training.TrainConfig(data=config.data, out=config.out, **flags))
    return open_checkpoint(config.out, ema=True, cpu=config.cpu)


def scores(config: Config, trained: Trained, labels: Tensor | None) -> Iterator[tuple[str, ss.Score]]:
    """Each kind of score that the model has, by its name, of pictures with these labels."""
    model = trained.model
    if trained.classes is None or labels is None:
        yield "unconditional", model
        return
    given = {"label": labels.to(trained.device)}
    yield "conditional", model.bind(**given)
    for scale in config.guidance:
        yield f"guided {scale:g}", ss.classifier_free(model, given, scale=scale)
    yield "unconditional", ss.classifier_free(model, given, scale=0.0)


def drawn(config: Config, trained: Trained, kind: str, labels: Tensor | None, name: str, nfe: int, seed: int) -> Any:
    """Pictures in model units at the levels of the data, on the CPU; the evaluations taken, and the seconds."""
    run, parts, taken, start = samplers.sampler(name), [], 0, time.perf_counter()
    total = len(labels) if labels is not None else config.samples
    for rows in in_batches(total, config.sample_batch):
        score = dict(scores(config, trained, None if labels is None else labels[rows]))[kind]
        shape = (rows.stop - rows.start, *trained.event)
        noise = ss.PerSampleNoise(seed, first=rows.start)
        x = trained.model.sde.prior_sample(shape, noise, device=trained.device)
        with torch.no_grad():
            x, used = run(samplers.Start(score, x, seed=seed * 1_000_003 + rows.start), nfe)
        parts.append(x.float().cpu())
        taken = max(taken, used)
    return rounded(torch.cat(parts), trained.scaling), taken, time.perf_counter() - start


def fill(config: Config, trained: Trained, judge: Judge, held: Dataset, rows: Rows) -> None:
    """Draw and measure what the table lacks."""
    count, labels = min(config.samples, len(held)), held.label
    labels = None if labels is None else labels[:count]
    absent = samplers.missing(config.samplers)
    for name, module in absent.items():
        print(f"left out: {name} ({module} is not installed)")
    common = {"step": trained.step, "samples": count, "features": judge.name}
    for kind, _ in scores(config, trained, labels):
        for name in config.samplers:
            for nfe in config.nfe:
                for seed in range(config.seed, config.seed + config.seeds):
                    key = {**common, "kind": kind, "sampler": name, "nfe at most": nfe, "seed": seed}
                    if name in absent or rows.has(key):
                        continue
                    try:
                        x, taken, seconds = drawn(config, trained, kind, labels, name, nfe, seed)
                    except ValueError as error:  # a step that takes more
                        print(f"{kind}, {name}, {nfe}: {error}")
                        continue
                    rows.add(key, {"nfe": taken, **judge(x), "ms a picture": 1000 * seconds / len(x)})
                    print(f"{kind:16s}{name:42s}{taken:4d}  {judge.told(rows.all()[-1]['figures'])}", flush=True)
                    picture = config.out / f"{kind.replace(' ', '-')}.png"
                    if name == config.samplers[0] and nfe == max(config.nfe):
                        draw(trained, x, labels, f"{kind}, {name}, {taken} evaluations", picture)


def draw(trained: Trained, x: Tensor, labels: Tensor | None, title: str, path: Path) -> None:
    """Eight pictures of each class, or 64."""
    if labels is None or trained.classes is None:
        draw_samples(path, x[:64], trained.scaling, [], title)
        return
    columns = [x[labels == k][:8] for k in range(len(trained.classes))]
    height = min(map(len, columns))
    if height:
        sheet = torch.stack([column[:height] for column in columns], 1).flatten(0, 1)
        draw_samples(path, sheet, trained.scaling, list(trained.classes), title)


def bits(config: Config, trained: Trained, held: Dataset, rows: Rows) -> None:
    """Bits/dim of test pictures by the probability-flow ODE, for each kind of score that is a density."""
    width = held.scaling.bin_width
    if not config.bits or width is None:
        return
    count = min(config.bits, len(held))
    batch = held[:count]
    for kind, _ in scores(config, trained, held.label):
        key = {"kind": kind, "step": trained.step, "pictures": count, "seed": config.seed}
        if kind.startswith("guided") or rows.has(key):
            continue
        found = []
        for part in in_batches(count, min(config.sample_batch, 50)):
            labels = None if held.label is None else batch["label"][part]
            score = dict(scores(config, trained, labels))[kind]
            x, solver = batch["x"][part].to(trained.device), ProbabilityFlow(rtol=1e-3, atol=1e-3)
            with torch.no_grad():
                found.append(ss.bits_per_dim(score, x, width, noise=config.seed + part.start, solver=solver).cpu())
        values = torch.cat(found).double()
        rows.add(key, {"bits/dim": values.mean().item(), "standard error": values.std().item() / count**0.5})
        print(f"{kind}: {values.mean().item():.3f} bits/dim of {count} test pictures")


def main(config: Config) -> dict[str, Any]:
    """Train, judge, draw, measure, gather."""
    start = time.perf_counter()
    out = config.begin(config.out)
    trained = trained_model(config)
    known, held = load(config.data), load(config.test)
    if held.event_shape != trained.event:
        raise ValueError(f"--test {config.test} holds {held.event_shape}, and the model draws {trained.event}.")
    judge = Judge.trained(
        known,
        held,
        out / "judge",
        steps=20 if config.quick else config.judge_steps,
        seed=config.seed,
        most=config.samples,
        device=trained.device,
    )
    rows, likelihoods = Rows(out / "table.jsonl"), Rows(out / "bits.jsonl")
    real = {"step": trained.step, "samples": min(config.samples, len(held)), "features": judge.name}
    if not rows.has({**real, "kind": "training pictures"}):
        rows.add({**real, "kind": "training pictures"}, judge(judge.training))
    fill(config, trained, judge, held, rows)
    bits(config, trained, held, likelihoods)
    table = markdown(rows.all()) + ("\n" + markdown(likelihoods.all()) if likelihoods.all() else "")
    (out / "table.md").write_text(table, "utf-8")
    print(table)
    model = trained.model.save_pretrained(out / "model", dtype=torch.bfloat16, overwrite=True)
    made = [
        *out.glob("*.md"),
        *out.glob("*.jsonl"),
        *out.glob("*.png"),
        *model.glob("*.safetensors"),
        model / "config.json",
    ]
    report = {
        "config": told(config, out),
        **trained.told(),
        "pieces": pieces.gather(out / "results", made, most=config.most_bytes),
    }
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
