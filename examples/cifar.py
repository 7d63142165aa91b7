"""Natural images from data to a table: train, judge, draw with many samplers, and leave results that can be carried.

    python examples/cifar.py --data cifar/train.parquet --test cifar/test.parquet --quick    # all of it, in minutes
    python examples/cifar.py --data cifar/train.parquet --test cifar/test.parquet --train-seconds 480 \
        --table-seconds 300 --steps 12000 --compile --bf16                                    # a quarter of an hour
    python examples/cifar.py --data cifar/train.parquet --test cifar/test.parquet --checkpoint runs/cifar/model

--data is what `scoresde train` reads: Parquet, a folder of images, CIFAR's binary files, arrays; --test is of the same
kind. The same call again goes on after a kill, or where its seconds ended: with training first, then with the rows of
table.jsonl that are missing. What is there in the end, in --out:

    step-.../, log.jsonl       the run, see `scoresde train`
    loss.png, held-out.png     the losses of training and, at each noise level, of pictures that are held out of it
    model/                     the averaged weights, in bfloat16
    judge-.../                 the network whose features the distances are taken in, trained on --data alone
    bits.jsonl                 bits/dim of test pictures
    table.jsonl, table.md      one row for each kind of score, sampler and number of evaluations, other libraries beside
    KIND.png                   pictures, a column for each class
    results/                   all that is worth carrying, in pieces of at most --most-bytes

results/ is there as soon as there is a model, is brought up to date every half minute, and at the end, whatever ends
the call: its seconds, an error or SIGTERM.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli import train as training
from scoresde.cli.choices import NETWORKS, PRESETS, NetworkName
from scoresde.cli.command import command
from scoresde.cli.costs import in_batches
from scoresde.cli.evaluate import rounded
from scoresde.cli.flags import MachineFlags, as_flag, at_least
from scoresde.cli.outputs import finish, told
from scoresde.cli.pictures import by_class, draw_samples
from scoresde.cli.trained import Trained, open_checkpoint
from scoresde.data import Dataset, load
from scoresde.files import replacing
from scoresde.nn import DiT, UNet
from scoresde.solvers import ProbabilityFlow
from scoresde.train import Terminated
from scoresde.train.signals import STATUS
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
SAMPLERS = tuple(itertools.chain(*zip(OURS, OTHERS, strict=True)))
"""In turns, so that a table that time cuts short has both."""
EVERY = 30.0
"""Seconds after which results/ is brought up to date."""


@dataclass(frozen=True, kw_only=True)
class Config(MachineFlags):
    """Train on pictures, draw with many samplers, judge, and leave the results in pieces."""

    data: Path
    """Training pictures."""
    test: Path
    """Held-out pictures, to which samples are compared; the judge and the model never see them."""
    out: Path | None = None
    """Folder for everything that is written; runs/cifar, or runs/cifar-quick, unless told."""
    checkpoint: str | None = None
    """A trained model, as of `scoresde sample`; no training then."""

    network: NetworkName = "cifar-small"
    """The network to train, as of `scoresde train`."""
    steps: int = 100_000
    """Training steps in all. The learning rate falls to 0 over them, so give what --train-seconds allow."""
    batch_size: int = 256
    """Pictures in a training step."""
    lr: float = 5e-4
    """Peak learning rate."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does."""
    compile: bool = False
    """Compile the network for training: a minute at first, faster steps then."""
    bf16: bool = False
    """Train and draw with the network in bfloat16, on cards that have it; bits/dim stay in float32."""
    channels_last: bool | None = None
    """Keep channels innermost in training; what suits unless told."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products in training."""
    augment: float | None = None
    """Probability of each transformation of training pictures, of which the network is told."""
    held_out: float = 0.02
    """Share of --data that is not trained on, whose loss at each noise level is measured; 0 for none."""
    early_stopping: bool = False
    """End training when that loss has converged."""

    train_seconds: float | None = None
    """Train so long at most in this call, compiling included."""
    table_seconds: float | None = None
    """Begin nothing new so long after training: judge, bits/dim, rows."""
    guidance: tuple[float, ...] = (2.0,)
    """Scales of classifier-free guidance."""
    samplers: tuple[str, ...] = SAMPLERS
    """Names of samplers: those of `scoresde sample --solver`, default, and those of other libraries with a grid."""
    nfe: tuple[int, ...] = (10, 20, 50)
    """Evaluations at most."""
    samples: int = 10_000
    """Pictures of each row of the table, at most as many as --test holds; to these of --test they are compared."""
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
    """A network of 0.1 M parameters or so for 20 steps, a judge for 20, 128 pictures, 10 evaluations, bits/dim of 4: to
    see that all of it runs."""

    def check(self) -> None:
        at_least(self, steps=1, batch_size=1, samples=16, seeds=1, sample_batch=1, bits=0, judge_steps=1, most_bytes=1)
        for name in ("train_seconds", "table_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{as_flag(name)} must be positive, got {seconds}.")
        if not all(map(math.isfinite, self.guidance)):
            raise ValueError(f"--guidance must be finite numbers, got {self.guidance}.")
        if self.early_stopping and not self.held_out:
            raise ValueError("--early-stopping looks at the held-out loss, and --held-out 0 leaves none; give a share.")
        if not self.nfe or min(self.nfe) < 1:
            raise ValueError(f"--nfe must be whole numbers of at least 1, got {self.nfe}.")
        for path in (self.data, self.test):
            if not path.expanduser().exists():
                raise FileNotFoundError(f"no data at {path}.")
        absent = samplers.missing(self.samplers)
        for name in self.samplers:
            if name not in absent:
                samplers.sampler(name)

    @property
    def folder(self) -> Path:
        """Where all is written."""
        return self.out or Path("runs/cifar-quick" if self.quick else "runs/cifar")

    def in_small(self) -> Config:
        """What --quick makes of it."""
        if not self.quick:
            return self
        return replace(
            self,
            samples=min(self.samples, 128),
            bits=min(self.bits, 4),
            nfe=(min(*self.nfe, 10),),
            steps=20,
            batch_size=16,
            judge_steps=20,
        )


def pictures(config: Config) -> tuple[Dataset, Dataset]:
    """Those to learn from, and those to compare with: as many as samples, at random, for folders are sorted.

    Raises:
        ValueError: the one are not of the kind of the other.
    """
    known, held = load(config.data), load(config.test)
    for what in ("event_shape", "class_names", "scaling"):
        ours, theirs = getattr(known, what), getattr(held, what)
        if ours != theirs:
            raise ValueError(f"--data and --test must be of one kind: their {what} are {ours} and {theirs}.")
    if len(known.event_shape) != 3:
        raise ValueError(f"--data must be pictures (C, H, W), and samples are {known.event_shape}.")
    return known, some(held, config.samples, config.seed)


def some(dataset: Dataset, count: int, seed: int) -> Dataset:
    """So many of the samples at most, drawn without replacement."""
    if count >= len(dataset):
        return dataset
    return dataset.subset(torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count])


def trained_model(config: Config, known: Dataset) -> Trained:
    """The model of --checkpoint, or the one that is trained here; a run that was cut short goes on.

    Raises:
        ValueError: a checkpoint of other data.
    """
    if config.checkpoint is not None:
        trained = open_checkpoint(config.checkpoint, ema=True, cpu=config.cpu)
        if trained.event != known.event_shape:
            raise ValueError(f"--data holds {known.event_shape}, and the model of --checkpoint draws {trained.event}.")
        if trained.classes is not None and trained.classes != known.class_names:
            raise ValueError(f"--data have the classes {known.class_names}, and the model knows {trained.classes}.")
        return trained
    flags: dict[str, Any] = {
        "network": config.network,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "decay": config.decay,
        "compile": config.compile,
        "channels_last": config.channels_last,
        "tf32": config.tf32,
        "augment": config.augment,
        "held_out": config.held_out or None,
        "early_stopping": config.early_stopping,
        "flip": True,
        "max_seconds": config.train_seconds,
        "mixed_precision": "bf16" if config.bf16 else None,
        "resume": True,
        "seed": config.seed,
        "cpu": config.cpu,
        "threads": config.threads,
    }
    if config.quick:
        flags.update(small(config.network))
    training.main(training.TrainConfig(data=config.data, out=config.folder, **flags))
    return open_checkpoint(config.folder, ema=True, cpu=config.cpu)


def small(name: str) -> dict[str, Any]:
    """Flags that make a network small, whatever it is."""
    with torch.device("meta"):
        kind = type(PRESETS[name](3, None)) if name in PRESETS else NETWORKS.get(name, UNet)
    return {"width": 64, "depth": 1} if kind is DiT else {"width": 16, "blocks": 1, "attention_levels": ()}


def fingerprint(model: torch.nn.Module) -> str:
    """Of the weights as results/ has them, in bfloat16: so that rows of two models are told apart."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        held = value.detach().cpu()
        held = held.bfloat16() if held.is_floating_point() else held
        digest.update(name.encode() + held.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class Results:
    """What is carried away: gathered now and then, and when all is over.

    Args:
        config: how.
        rows: of the table.
        likelihoods: bits/dim.
    """

    def __init__(self, config: Config, rows: Rows, likelihoods: Rows) -> None:
        self._config, self._rows, self._likelihoods = config, rows, likelihoods
        self._model: list[Path] = []
        self._last = -math.inf
        self.index: dict[str, Any] = {}

    def keep(self, trained: Trained) -> None:
        """The weights, and all there is."""
        folder = self._config.folder / "model"
        trained.model.save_pretrained(folder, dtype=torch.bfloat16, overwrite=True)
        self._model = [*folder.glob("*.safetensors"), folder / "config.json"]
        self.gather()

    def gather(self) -> None:
        """All there is."""
        out = self._config.folder
        with replacing(out / "table.md") as partial:
            partial.write_text(self.table(), "utf-8")
        made = [*out.glob("*.md"), *out.glob("*.jsonl"), *out.glob("*.png"), *self._model]
        self.index = pieces.gather(out / "results", made, most=self._config.most_bytes)
        self._last = time.monotonic()

    def now_and_then(self) -> None:
        """The same, where the last time is long ago."""
        if time.monotonic() - self._last > EVERY:
            self.gather()

    def table(self) -> str:
        """In Markdown, bits/dim below."""
        return "\n".join(markdown(part.all()) for part in (self._rows, self._likelihoods) if part.all())


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process as an error does: what is to be cleared up is."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(STATUS)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """Pictures in model units at the levels of the data, on the CPU; the evaluations taken, and the seconds.

    Raises:
        ValueError: a step of the sampler takes more evaluations. FloatingPointError: it diverged.
    """
    run, parts, taken, start = samplers.sampler(name), [], 0, time.perf_counter()
    total = config.samples if labels is None else len(labels)
    for rows in in_batches(total, config.sample_batch):
        score = dict(scores(config, trained, None if labels is None else labels[rows]))[kind]
        shape = (rows.stop - rows.start, *trained.event)
        noise = ss.PerSampleNoise(seed, first=rows.start)
        x = trained.model.sde.prior_sample(shape, noise, device=trained.device)
        with torch.no_grad(), torch.autocast(trained.device.type, torch.bfloat16, enabled=config.bf16):
            x, used = run(samplers.Start(score, x, seed=seed * 1_000_003 + rows.start), nfe)
        parts.append(x.float().cpu())
        taken = max(taken, used)
    x = torch.cat(parts)
    if not x.isfinite().all():
        raise FloatingPointError("there are samples that are not finite.")
    return rounded(x, trained.scaling), taken, time.perf_counter() - start


def fill(
    config: Config, trained: Trained, judge: Judge, held: Dataset, results: Results, rows: Rows, end: float
) -> int:
    """Draw and measure what the table lacks, for as long as time allows; how many rows it lacks then."""
    labels, lacks = held.label, 0
    config = replace(config, samples=len(held))
    absent = samplers.missing(config.samplers)
    for name, module in absent.items():
        print(f"left out: {name} ({module} is not installed)")
    common = {**about(config, trained), "samples": len(held), "features": judge.name}
    kinds = [kind for kind, _ in scores(config, trained, labels)]
    seeds = range(config.seed, config.seed + config.seeds)
    for seed, name, kind, nfe in itertools.product(seeds, config.samplers, kinds, config.nfe):
        key = {**common, "kind": kind, "sampler": name, "nfe at most": nfe, "seed": seed}
        if name in absent or rows.has(key):
            continue
        if time.monotonic() > end:
            lacks += 1
            continue
        try:
            x, taken, seconds = drawn(config, trained, kind, labels, name, nfe, seed)
        except (ValueError, FloatingPointError) as error:
            print(f"{kind}, {name}, {nfe}: {error}")
            continue
        rows.add(key, {"nfe": taken, **judge(x), "ms a picture": 1000 * seconds / len(x)})
        print(f"{kind:16s}{name:42s}{taken:4d}  {judge.told(rows.all()[-1]['figures'])}", flush=True)
        if name == config.samplers[0] and nfe == max(config.nfe):
            picture = config.folder / f"{kind.replace(' ', '-')}.png"
            draw(trained, x, labels, f"{kind}, {name}, {taken} evaluations", picture)
        results.now_and_then()
    return lacks


def about(config: Config, trained: Trained) -> dict[str, Any]:
    """What all rows of one model have in common."""
    return {
        "weights": fingerprint(trained.model),
        "drawn in": "bfloat16" if config.bf16 else "float32",
    }


def draw(trained: Trained, x: Tensor, labels: Tensor | None, title: str, path: Path) -> None:
    """Eight pictures of each class, or 64."""
    if labels is None or trained.classes is None:
        draw_samples(path, x[:64], trained.scaling, [], title)
        return
    classes = len(trained.classes)
    height = min(8, int(labels.bincount(minlength=classes).min()))
    if height:
        draw_samples(path, by_class(x, labels, classes, height), trained.scaling, list(trained.classes), title)


def bits(config: Config, trained: Trained, held: Dataset, rows: Rows, end: float) -> None:
    """Bits/dim of test pictures by the probability-flow ODE, for each kind of score that is a density."""
    width = held.scaling.bin_width
    if not config.bits or width is None:
        return
    few = some(held, config.bits, config.seed)
    batch, count = few[: len(few)], len(few)
    for kind, _ in scores(config, trained, few.label):
        key = {"weights": fingerprint(trained.model), "kind": kind, "pictures": count, "seed": config.seed}
        if kind.startswith("guided") or rows.has(key) or time.monotonic() > end:
            continue
        found = []
        for part in in_batches(count, min(config.sample_batch, 50)):
            labels = None if few.label is None else batch["label"][part]
            score = dict(scores(config, trained, labels))[kind]
            x, solver = batch["x"][part].to(trained.device), ProbabilityFlow(rtol=1e-3, atol=1e-3)
            with torch.no_grad():
                found.append(ss.bits_per_dim(score, x, width, noise=config.seed + part.start, solver=solver).cpu())
        values = torch.cat(found).double()
        error = {"standard error": values.std().item() / count**0.5} if count > 1 else {}
        rows.add(key, {"bits/dim": values.mean().item(), **error})
        print(f"{kind}: {values.mean().item():.3f} bits/dim of {count} test pictures", flush=True)


def main(config: Config) -> dict[str, Any]:
    """Train, judge, draw, measure, gather."""
    start = time.perf_counter()
    config.ready()
    config = config.in_small()
    known, held = pictures(config)
    out = config.begin(config.folder)
    rows, likelihoods = Rows(out / "table.jsonl"), Rows(out / "bits.jsonl")
    results = Results(config, rows, likelihoods)
    try:
        trained = trained_model(config, known)
    except Terminated:
        results.keep(open_checkpoint(out, ema=True, cpu=config.cpu))
        raise
    end = math.inf if config.table_seconds is None else time.monotonic() + config.table_seconds
    with ended_by_sigterm():
        results.keep(trained)
        try:
            judge = Judge.trained(
                known,
                held,
                out / f"judge-{config.judge_steps}-{config.seed}",
                steps=config.judge_steps,
                seed=config.seed,
                device=trained.device,
            )
            count = {"samples": len(judge.training), "features": judge.name}
            real = {**about(config, trained), **count, "kind": "training pictures"}
            if not rows.has(real):
                rows.add(real, judge(judge.training))
            bits(config, trained, held, likelihoods, end)
            lacks = fill(config, trained, judge, held, results, rows, end)
        finally:
            results.gather()
    print(results.table())
    if lacks:
        print(f"--table-seconds are over; {lacks} rows are missing, which the same call again goes on with")
    report = {"config": told(config, out), **trained.told(), "rows missing": lacks, "pieces": results.index}
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
