"""Generate from a trained model, with any solver and any grid of the library.

    scoresde sample --checkpoint runs/my-images
    scoresde sample --checkpoint runs/my-images --labels cat dog --guidance 2
    scoresde sample --checkpoint runs/posterior --condition obs=0.3,1.2
    scoresde sample --checkpoint runs/my-images --solver euler-maruyama --grid log-snr --steps 500
    scoresde sample --checkpoint runs/my-images --fitted five.json              # what `scoresde fit` wrote

Sample i depends on the seed and on i alone: the same pictures whatever the batch size (to rounding; adaptive solvers
agree to their tolerance). Under torchrun or `accelerate launch` the processes share the batches, and the main one
writes the same files as one process would:

    torchrun --nproc-per-node 4 -m scoresde sample --checkpoint runs/my-images --samples 50000 --batch-size 500
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli.choices import SDES, SOLVERS, GridName, SDEName, SolverName, build, grid_named
from scoresde.cli.conditions import asked_conditions
from scoresde.cli.config import flags_beside, remember
from scoresde.cli.costs import expect, parameters_of_model, through
from scoresde.cli.flags import CheckpointFlags, Repeated, at_least
from scoresde.cli.outputs import brief, save_array, say, told
from scoresde.cli.pictures import draw_samples
from scoresde.cli.trained import Trained, trained_of
from scoresde.data import Scaling, load
from scoresde.files import make_writable, write_json
from scoresde.models import captured
from scoresde.models.score import check_independent
from scoresde.solvers.defaults import chosen_solver
from scoresde.solvers.fitted import Fitted
from scoresde.train import sample_sharded
from scoresde.train.processes import Processes
from scoresde.train.shared_sampling import several_processes

# Up to so many classes are drawn in columns of their own.
COLUMNS = 16
# So many samples are drawn unless told; of vectors, which are points, more.
DRAWN, POINTS = 64, 2000


@dataclass(frozen=True, kw_only=True)
class SampleConfig(CheckpointFlags):
    """Generate samples from a checkpoint folder: samples.npy, samples.png, report.json."""

    out: Path | None = None
    """Folder for everything that is written; default samples in the run's folder."""
    samples: int = 64
    """How many."""
    batch_size: int = 64
    """How many at a time; the samples are the same for any."""
    labels: tuple[str, ...] = ()
    """Classes, by name or number, that the samples take in turn; default all of them."""
    condition: Repeated = ()
    """Another condition, as name=numbers with commas or name=file.npy, whose rows the samples take in turn; repeat it
    for several."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 0 is unconditional, 1 conditional, larger is guided; 1 unless told."""
    solver: SolverName | None = None
    """The numerical method; the library's default unless told (SpectralMultistep: one evaluation a step)."""
    solver_options: tuple[str, ...] = ()
    """Its options, as name=value: churn=40, corrector.snr=0.1, method=rk4, ..."""
    grid: GridName | None = None
    """Where the steps are; what goes with the solver unless told."""
    grid_options: tuple[str, ...] = ()
    """Its options, as name=value: rho=5, t_end=0.01, ..."""
    steps: int = 25
    """Steps; adaptive solvers choose their own."""
    fitted: Path | None = None
    """A sampler that `scoresde fit` made for this model, sampler.json: it brings its own steps and takes the place of
    --solver."""
    eta: float | None = None
    """From the probability-flow ODE, 0, to the reverse SDE, 1, and beyond; the solver's own unless told."""
    sde: SDEName | None = None
    """Generate under another SDE than the one trained under: the same score by a change of variables."""
    sde_options: tuple[str, ...] = ()
    """Its parameters, as name=value; they need --sde."""
    noise: Literal["per-sample", "brownian"] = "per-sample"
    """Fresh for each step, or one Brownian path for any number of steps."""
    denoise: bool = True
    """End with the denoised sample, one evaluation more."""
    graphs: bool = False
    """Replay the network from CUDA graphs, which is faster where batches are small; the samples are the same."""
    drawn: int | None = None
    """How many of the samples samples.png shows; 64, or 2000 vectors, unless told."""
    data: Path | None = None
    """Real vectors, drawn beside the samples; those that the run learned, where they still are, unless told."""
    seed: int = 0
    """Of the samples."""

    def check(self) -> None:
        at_least(self, samples=1, batch_size=1, drawn=1, steps=1)
        if self.sde_options and self.sde is None:
            raise ValueError("--sde-options say which parameters another SDE has; name it by --sde, or leave them out.")
        for name in ("solver", "grid"):
            if getattr(self, f"{name}_options") and getattr(self, name) is None:
                raise ValueError(f"--{name}-options are those of a {name}; name it by --{name}, or leave them out.")
            if getattr(self, name) is not None and self.fitted is not None:
                raise ValueError(f"--fitted brings its own {name}; leave --{name} out.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"--guidance must be a finite number, got {self.guidance}.")
        if self.guidance == 0 and self.labels:
            raise ValueError("--guidance 0 generates without labels; leave --labels out, or take another scale.")


def classes_in_turn(config: SampleConfig, trained: Trained) -> list[int] | None:
    """The classes that samples take in turn; None for a model without classes.

    Raises:
        ValueError: labels or guidance for such a model, or a class that it does not know.
    """
    if trained.classes is None:
        for name, given in (("labels", bool(config.labels)), ("guidance", config.guidance is not None)):
            if given and (name == "labels" or not trained.conditions):
                raise ValueError(
                    f"--{name} needs a model that knows classes, and {trained.path} was trained without labels; leave "
                    "it out."
                )
        return None
    return trained.indices(config.labels) or list(range(len(trained.classes)))


def conditions_of(config: SampleConfig, trained: Trained, turn: list[int] | None) -> dict[str, Tensor]:
    """All conditions of all samples, by name (samples, ...), on the model's device.

    Raises:
        ValueError: one that the model does not take, or none where it was always trained with one.
    """
    given = asked_conditions(config.condition, trained, config.samples)
    known = trained.trained_with
    for name in trained.conditions:
        if name not in given and (known is None or known.dropout.get(name, 0.0) == 0):
            raise ValueError(
                f"the model in {trained.path} was always told {name}: give it, --condition {name}=..., as numbers or "
                "as a file."
            )
    if turn is not None:
        labels = torch.tensor(turn).repeat(-(-config.samples // len(turn)))[: config.samples]
        given["label"] = labels.to(trained.device)
    return given


def real_vectors(config: SampleConfig, trained: Trained) -> Tensor | None:
    """Vectors in model units to be drawn beside samples: those of ``--data``, or of the run as its flags tell of them.

    Raises:
        FileNotFoundError, TypeError, ValueError: ``--data`` is no file of such vectors.
    """
    if len(trained.event) != 1:
        if config.data is not None:
            raise ValueError(f"--data are drawn beside vectors, and samples here are {trained.event}; leave it out.")
        return None
    if config.data is not None:
        return _vectors(config.data, trained)
    flags = flags_beside(trained.home)
    place = flags.get("data") or flags.get("theta")
    try:
        return _vectors(Path(str(place)), trained) if place else None
    except (OSError, TypeError, ValueError):  # moved or changed since: the picture does without
        return None


def _vectors(path: Path, trained: Trained) -> Tensor:
    try:
        dataset = load(path, scaling=trained.scaling)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--data {path} cannot be drawn beside samples {trained.event}: {error}") from error
    if dataset.event_shape != trained.event:
        raise ValueError(f"--data {path} holds {dataset.event_shape}, and samples are {trained.event}.")
    return dataset[:POINTS]["x"]


def noise_of(config: SampleConfig, sde: ss.SDE, first: int) -> ss.Noise:
    """The randomness of the samples from number ``first`` on."""
    if config.noise == "brownian":
        return ss.BrownianNoise(config.seed, sde.T, first=first)
    return ss.PerSampleNoise(config.seed, first=first)


def generate(
    config: SampleConfig,
    model: ss.ScoreModel,
    solver: ss.Solver | None,
    times: Tensor | None,
    trained: Trained,
    given: Mapping[str, Tensor],
    *,
    quiet: bool = False,
) -> tuple[Tensor | None, int]:
    """All samples in model units, on the CPU of the main process, and evaluations of the network for each of them."""
    scale = 1.0 if config.guidance is None else config.guidance
    if not quiet:
        each = (config.steps + config.denoise) * (1 if scale in (0, 1) else 2)
        expect(trained, each, config.samples, config.batch_size)

    def score(rows: slice) -> ss.Score:
        some = {name: value[rows] for name, value in given.items()}
        return ss.classifier_free(model, some, scale=scale) if some else model

    with captured(model) if config.graphs else nullcontext():
        found = sample_sharded(
            score,
            (config.samples, *trained.event),
            batch_size=config.batch_size,
            noise=lambda first: noise_of(config, model.sde, first),
            around=lambda batches: through(batches, quiet=quiet),
            cpu=config.cpu,
            solver=solver,
            steps=config.steps,
            grid=times,
            eta=config.eta,
            denoise=config.denoise,
            device=trained.device,
        )
    return found.x, found.nfe


def in_data_units(x: Tensor, scaling: Scaling) -> np.ndarray[Any, Any]:
    """Samples as the data are: rounded to their levels if they have some, else floating."""
    data = scaling.to_data(x)
    if scaling.levels is None:
        return data.numpy()
    levels = data.round().clamp(0, scaling.levels - 1)
    return levels.to(torch.uint8 if scaling.levels <= 256 else torch.int32).numpy()


def main(config: SampleConfig) -> dict[str, Any]:
    """Generate and write; returns what report.json holds."""
    config.ready()
    solver: ss.Solver | None = None
    if config.solver is not None:
        solver = build(SOLVERS, config.solver, config.solver_options)
    elif config.fitted is not None:
        solver = Fitted.load(config.fitted)
    processes = Processes(config.cpu) if several_processes() else None  # each then has a GPU of its own
    quiet = processes is not None and not processes.main
    trained = trained_of(config)
    if config.graphs and trained.device.type != "cuda":
        raise ValueError(f"--graphs are CUDA's, and the model is on {trained.device}: leave it out.")
    turn = classes_in_turn(config, trained)
    model = trained.model
    if config.sde is not None:
        model = model.under(build(SDES, config.sde, config.sde_options))
    rule = None if config.grid is None else grid_named(config.grid, config.grid_options)
    times = None if rule is None else rule(model.sde, config.steps)
    runs = chosen_solver(solver, model, config.eta)  # what it refuses it refuses before anything is written
    process = ss.Reverse(model, runs.default_eta if config.eta is None else config.eta)
    runs.check(process)
    if runs.draws_noise(process):
        check_independent(model, what=f"{type(runs).__name__}, which draws noise,")
    given = conditions_of(config, trained, turn)
    real = real_vectors(config, trained)
    out = trained.home / "samples" if config.out is None else config.out
    if not quiet:
        remember(config, make_writable(out))
    left_out = [name for name in trained.conditions if name not in given]
    note = f"; {' and '.join(left_out)} left out" if left_out else ""
    size = f"{parameters_of_model(model):,} parameters"
    if not quiet:
        say(f"{config.samples} samples of {trained.event} by {size}, {brief(model.sde)}{note}")

    start = time.perf_counter()
    x, evaluations = generate(config, model, solver, times, trained, given, quiet=quiet)
    if x is None:  # the main process has them all, and writes; till then nobody leaves
        if processes is not None:
            processes.wait()
        return {}
    seconds = time.perf_counter() - start
    save_array(out / "samples.npy", in_data_units(x, trained.scaling))
    heads: list[str] = []
    if turn is not None and trained.classes is not None:
        save_array(out / "labels.npy", given["label"].cpu().numpy())
        if config.guidance != 0 and len(turn) <= COLUMNS:
            heads = [trained.classes[k] for k in turn]
    name = config.solver or ("fitted" if solver is not None else "default solver")
    title = f"{name}, {evaluations} evaluations, {trained.name}"
    drawn = config.drawn or (POINTS if len(trained.event) == 1 else DRAWN)
    draw_samples(out / "samples.png", x[:drawn], trained.scaling, heads, title, data=real)
    report = {
        "config": told(config, out),
        **trained.told(),
        "sde": repr(model.sde),
        "solver": repr(runs),
        "samples": len(x),
        "nfe": evaluations,
        "seconds": seconds,
    }
    write_json(out / "report.json", report)
    say(f"{len(x)} samples, {evaluations} evaluations each, {seconds:.1f} s; they are in {out}")
    if processes is not None:
        processes.wait()
    return report
