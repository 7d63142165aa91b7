r"""The loss on samples that are never trained on, at each noise level, with the same noise at every evaluation::

    feed, samples = held_out_of(feed, options, processes)   # what is trained on, and what is not
    held = HeldOut(task, samples, options, processes)
    losses = held.evaluate()                                # of each draw, the same on all processes
    held.curve(losses.level, step=100), held.design.mean(losses.training)

Each held-out sample is drawn twice or more: at levels that are spread evenly over log(σ/α), for the loss at each level,
and at times of the training's own density, for the training's own loss. Samples, times, noise, dequantisation and which
conditions are dropped are functions of the seed and of the number of the draw alone. Nothing is mirrored. Noise that
training couples with the data (:mod:`scoresde.losses.coupling`) is coupled here too, among about as many draws as a
step has samples: pairs that are independent are of another law than those that such a network learns from.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.data import Dataset
from scoresde.losses import Coupling
from scoresde.models.conditions import drop_conditions
from scoresde.sde import SDE, has_signal
from scoresde.train.atomic import as_it_was
from scoresde.train.batches import Batch, MapDataset, seeded_everywhere
from scoresde.train.compatibility import bin_width, check_dataset, entries
from scoresde.train.contents import describe_data
from scoresde.train.describe import Model
from scoresde.train.draws import derive, is_of_ours, named_uniforms, seeded_where, step_noise
from scoresde.train.feeds import Feed, feed_of
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes
from scoresde.train.standard_errors import Design, strata_of
from scoresde.warning import warn_user

LEAST_SAMPLES = 32
"""From fewer no standard error is known well enough to go by."""
LEAST_DRAWS = 1024
"""For the levels, and as many for the training's loss: fewer samples are drawn several times."""
LEVELS = 32
"""At which the curve tells the loss."""
STRATUM = 8
"""Neighbouring draws of which the spread is taken for that of one level."""
SHARE = 0.05
"""Of the time of training, which evaluations take unless ``held_out_every`` says more, or less."""
MOST_KEPT = 1 << 28
"""Bytes of samples of a data set of somebody's own that are kept; more are read at each evaluation."""
BEYOND = 1000.0
"""σ/α in deviations of the data, at which levels end where there is no signal at T."""


@dataclass(frozen=True)
class HeldOutSamples:
    """Samples that are not trained on.

    Attributes:
        dataset: of which they are,
        places: where in it (N,); None for all of it.
    """

    dataset: MapDataset
    places: Tensor | None

    def __len__(self) -> int:
        return len(self.dataset) if self.places is None else len(self.places)


def held_out_of(feed: Feed, options: TrainOptions, processes: Processes) -> tuple[Feed, HeldOutSamples | None]:
    """The feed of what is trained on, and the samples that are not.

    Raises:
        TypeError, ValueError: a share of data that are no data set, or of too few; data that are a stream.
    """
    held = options.held_out
    if held is None:
        return feed, None
    if isinstance(held, float):
        only = getattr(feed, "only", None)
        if only is None:
            raise TypeError(
                f"held_out={held:g} takes a share of data with len(d) and d[i], and these are a stream or a loader: "
                "give held_out=... a data set of its own."
            )
        size = len(feed.look)
        count = round(held * size)
        _enough(count, f"held_out={held:g} of {size} samples are {count}")
        if count == size:
            raise ValueError(f"held_out={held:g} of {size} samples leaves none to train on; take a smaller share.")
        generator = torch.Generator("cpu").manual_seed(derive(options.seed, "held out"))
        order = torch.randperm(size, generator=generator, device="cpu")
        return only(order[count:].sort().values), HeldOutSamples(feed.look, order[:count].sort().values)
    own = feed_of(held, options, processes)
    if not hasattr(own, "only"):
        raise TypeError(
            f"held_out must be a share, or a data set with len(d) and d[i], got {checks.got(held)}: a list of its "
            "first samples is one."
        )
    with own.seeded(derive(options.seed, "checks")), feed.seeded(derive(options.seed, "checks")):
        check_dataset(own.look)
        _enough(len(own.look), f"held_out has {len(own.look)} samples")
        _same_data(feed.look, own.look)
    return feed, HeldOutSamples(own.look, None)


def _enough(count: int, told: str) -> None:
    if count < LEAST_SAMPLES:
        raise ValueError(f"{told}: at least {LEAST_SAMPLES} are needed for a standard error that means something.")


def _same_data(trained: MapDataset, held: MapDataset) -> None:
    """Raise unless both tell the same of themselves, as far as both tell."""
    known, found = describe_data(trained), describe_data(held)
    shapes = {name: tuple(data[0]["x"].shape) for name, data in (("trained", trained), ("held", held))}
    if shapes["trained"] != shapes["held"]:
        raise ValueError(f"held_out has samples {shapes['held']}, and those of training are {shapes['trained']}.")
    for name, mend in (
        ("scaling", "give it that of the data of training, from_tensors(..., scaling=dataset.scaling)"),
        ("class_names", "give it the classes of the data of training, from_tensors(..., class_names=...)"),
    ):
        if known[name] is not None and found[name] is not None and known[name] != found[name]:
            shown = {"scaling": "other units", "class_names": "other classes"}[name]
            raise ValueError(
                f"held_out is in {shown} than the data of training, {found[name]!s:.200} and {known[name]!s:.200}: "
                f"{mend}; or let held_out be a share."
            )


@dataclass(frozen=True)
class DrawLosses:
    """The losses of all draws, float64 on the CPU.

    Attributes:
        level: (M,), at levels that increase, in the units of a :class:`~scoresde.curve.LossCurve`.
        training: (M,), of the training.
    """

    level: Tensor
    training: Tensor


class HeldOut(Generic[Model]):
    """Held-out samples with their noise.

    Args:
        task: a model and its loss.
        samples: that are not trained on.
        options: of the run.
        processes: that share the draws.

    Attributes:
        count: draws M of each kind.
        design: of them, for standard errors.
        samples: how many there are.
        every: steps between evaluations.

    Raises:
        TypeError, ValueError: samples that do not hold what the loss takes.
    """

    def __init__(
        self, task: Objective[Model], samples: HeldOutSamples, options: TrainOptions, processes: Processes
    ) -> None:
        self._task: Objective[Model] = task
        self._options, self._processes = options, processes
        self._dataset, self._places = samples.dataset, samples.places
        self._seed = derive(options.seed, "held out")
        self.samples = len(samples)
        self._kept: dict[int, dict[str, Any]] = {}
        self._bytes = 0
        with seeded_everywhere(derive(self._seed, "checks")):
            task.check_data(samples.dataset)
        if options.dequantize:
            bin_width(samples.dataset)
        rounds = -(-LEAST_DRAWS // self.samples)
        self.count = rounds * self.samples
        generator = torch.Generator("cpu").manual_seed(derive(self._seed, "order"))

        def order() -> Tensor:
            # a round after the other over the cells: a sample has its draws at different levels
            return torch.cat([torch.randperm(self.samples, generator=generator, device="cpu") for _ in range(rounds)])

        at_levels, at_times = order(), order()
        self._drawn = torch.cat([at_levels, at_times])
        bins = (torch.arange(self.count) * LEVELS) // self.count
        inner = [strata_of(int(n), STRATUM) for n in torch.bincount(bins, minlength=LEVELS)]
        strata = torch.cat([one + k * self.count for k, one in enumerate(inner)])
        self._bins, self._at_levels = bins, Design(strata, at_levels)
        self.design = Design(strata_of(self.count, STRATUM), at_times)
        places = torch.arange(self.count, dtype=torch.float64)
        offsets = torch.rand(2, self.count, dtype=torch.float64, generator=generator, device="cpu")
        cells = (places + offsets) / self.count
        sde: SDE = task.model.sde
        # of the times too, whatever the density: it may be one that training changes
        self._times, self._weight = options.times.sample(sde, cells[1])
        uniforms = named_uniforms(self._seed, 0, 2 * self.count, "condition dropout")
        self._dropped = task.dropped(uniforms, seed=self._seed, step=0)
        self._sigma_data = self._scale()
        low, high = level_range(sde, self._sigma_data)
        self._levels = low + (high - low) * cells[0]
        self._edges = low + (high - low) * torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS
        groups = max(1, round(self.count / options.batch_size))
        self._groups = [kind * self.count + k * self.count // groups for kind in (0, 1) for k in range(groups)]
        self._coupled: tuple[int, Tensor] | None = None  # of the group that was looked at last
        parts = processes.count * options.accumulate
        self._block = max(1, -(-options.batch_size // parts))
        total = 2 * self.count
        # a step of training costs as much as three evaluations of the network for each of its samples
        default = math.ceil(total / (3 * SHARE * options.batch_size))
        self.every: int = default if options.held_out_every is None else options.held_out_every

    def evaluate(self) -> DrawLosses:
        """The losses of the model as it is now, in evaluation mode, without gradients; the same on all processes.

        Raises:
            ValueError: samples that do not make a batch, or are out of the network's range.
        """
        processes, total = self._processes, 2 * self.count
        kind = torch.float64 if checks.has_float64(processes.device) else torch.float32
        losses = torch.zeros(total, dtype=kind, device=processes.device)
        rows = processes.rows(total)
        with processes.together(), torch.no_grad(), as_it_was(self._task):
            sde = self._task.model.sde
            times = torch.cat([sde.t_of_log_snr(-2 * self._levels).clamp(sde.t_min, sde.T).cpu(), self._times.cpu()])
            first = rows.start
            while first < rows.stop:
                end = min(first + self._block, rows.stop, self.count if first < self.count else total)
                losses[first:end] = self._losses(first, times)[: end - first]
                first = end
        found = processes.sum(losses).cpu().double()
        return DrawLosses(found[: self.count], found[self.count :])

    def curve(self, losses: Tensor, *, step: int) -> LossCurve | None:
        """The mean of the losses (M,) at each level, of the levels where all are finite; None where there are none."""
        found = []
        centres = (self._edges[1:] + self._edges[:-1]) / 2
        for k in range(LEVELS):
            rows = self._bins == k
            if bool(losses[rows].isfinite().all()):
                mean, error = self._at_levels.part(rows).mean(losses[rows])
                found.append((centres[k].item(), mean, error, int(rows.sum())))
        if not found:
            return None
        levels, means, errors, counts = zip(*found, strict=True)
        return LossCurve(levels, means, errors, counts, self._normalised, step)

    def not_finite(self, losses: DrawLosses) -> str | None:
        """In words, at which levels there are losses that are not finite; None where there are none."""
        bad = self._bins[~losses.level.isfinite()].unique().tolist()
        some = [f"{self._edges[k]:.2f} to {self._edges[k + 1]:.2f}" for k in bad]
        if some:
            more = f" and {len(some) - 5} more" if len(some) > 5 else ""
            return f"at log(σ/α) {', '.join(some[:5])}{more}"
        if not bool(losses.training.isfinite().all()):
            t = self._times[~losses.training.isfinite().to(self._times.device)]
            return f"at {len(t)} of the times of training, from t = {t.min():g} to {t.max():g}"
        return None

    @property
    def _normalised(self) -> float | None:
        return self._sigma_data if self._task.of_squares else None

    def fingerprint(self) -> list[int]:
        """Numbers that tell these draws from others: of a resumed run's the same."""
        x = self._read([0, self.samples // 2, self.samples - 1])["x"].detach().float().flatten()
        words = [x.sum(dtype=torch.float64).item(), x.square().sum(dtype=torch.float64).item()]
        return [self.samples, self.count, derive(self._seed, *map(repr, words), repr(self._levels[0].item()))]

    # -- one block of draws --------------------------------------------------------------------------------------------

    def _losses(self, first: int, times: Tensor) -> Tensor:
        """The losses (block,) of draws of one kind, from ``first`` on; those past the last are not used.

        All blocks have one size: a compiled network is compiled once.
        """
        task = self._task
        draws = (first + torch.arange(self._block)) % (2 * self.count)
        x0, given = self._prepared(draws, first)
        t = checks.time_beside(times[draws], x0)
        eps = step_noise(self._seed, 0, first, x0) if self._options.coupling is None else self._coupled_noise(draws)
        with (
            seeded_where(task.draws, x0.device, derive(self._seed, "network", first)),
            torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=task.autocast),
        ):
            if first < self.count:
                return task.at_levels(x0, t, eps, given, self._sigma_data)
            losses = task.per_sample(x0, t, eps, given) / task.divisor(x0)
            return losses * checks.sent(self._weight[draws % self.count], losses.device).to(losses.dtype)

    def _coupled_noise(self, draws: Tensor) -> Tensor:
        """The noises of these draws, dealt out in groups of neighbouring draws, whichever process asks for them."""
        place, size = int(draws[0]), len(draws)
        stop = min(place + size, self.count if place < self.count else 2 * self.count)
        found: list[Tensor] = []
        while place < stop:
            group = bisect_right(self._groups, place) - 1
            begin, end = self._groups[group], (*self._groups, 2 * self.count)[group + 1]
            if self._coupled is None or self._coupled[0] != group:
                x0, given = self._prepared(torch.arange(begin, end), begin)
                coupling = cast(Coupling, self._options.coupling)
                with seeded_where(not is_of_ours(coupling), x0.device, derive(self._seed, "coupling", begin)):
                    self._coupled = group, coupling(x0, step_noise(self._seed, 0, begin, x0), given)
            found.append(self._coupled[1][place - begin : stop - begin])
            place = end
        eps = torch.cat(found)
        return torch.cat([eps, eps[-1:].expand(size - len(eps), *eps.shape[1:])])  # past the last: not used

    def _prepared(self, draws: Tensor, first: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x_0 and conditions of these draws, on the device."""
        task: Objective[Any] = self._task
        batch = self._read(self._drawn[draws].tolist())
        try:
            task.check_batch(batch, 0)
        except (TypeError, ValueError) as error:
            error.add_note("This is about the held-out samples.")
            raise
        parameter = next(p for p in task.model.parameters() if p.requires_grad)
        both = entries(batch, ("x", *task.names), parameter)
        x0 = both.pop("x")
        if self._options.dequantize:
            normal = step_noise(self._seed, 0, first, x0, name="dequantize")
            x0 = x0 + bin_width(self._dataset) * (torch.special.ndtr(normal) - 0.5)
        lost = {name: where[draws].to(x0.device) for name, where in self._dropped.items()}
        return x0, drop_conditions(both, task.nulls, lost)

    def _read(self, samples: list[int]) -> Batch:
        """Held-out samples as a batch, on the CPU."""
        places = samples if self._places is None else self._places[samples].tolist()
        if type(self._dataset) is Dataset:  # which draws nothing, and is in memory
            return self._dataset.gather(torch.tensor(places))
        try:
            found: Batch = default_collate([self._sample(i) for i in places])
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"held-out samples, the first {places[:5]}, do not make a batch: {error}.") from error
        return found

    def _sample(self, place: int) -> Any:
        """One sample; what the data set draws starts from its place."""
        if place in self._kept:
            return self._kept[place]
        with seeded_everywhere(derive(self._seed, "data set", place)):
            sample = self._dataset[place]
        if isinstance(sample, Mapping):
            sample = {name: sample[name] for name in ("x", *self._task.names)}
            size = sum(v.numel() * v.element_size() if isinstance(v, Tensor) else 64 for v in sample.values())
            if self._bytes + size <= MOST_KEPT:
                self._bytes += size
                self._kept[place] = sample
        return sample

    def _scale(self) -> float:
        """σ_data: the model's, or the root mean square of held-out samples."""
        known = getattr(self._task.model, "sigma_data", None)
        if known is not None:
            return float(known)
        x = self._read(list(range(min(self.samples, LEAST_DRAWS))))["x"]
        return float(x.double().square().mean().sqrt()) or 1.0


def level_range(sde: SDE, scale: float) -> tuple[float, float]:
    """log(σ/α) at t_min and at T; where there is no signal at T, that of σ/α = 1000 deviations of the data."""
    with torch.no_grad():
        ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
        low, high = (-0.5 * sde.log_snr(ends)).tolist()
        if not has_signal(sde.alpha(ends[1:]), sde.sigma(ends[1:])):
            high = max(math.log(BEYOND * scale), low + 1.0)
    return low, high


def warn_not_finite(step: int, told: str) -> None:
    """Say loudly that a held-out loss is not finite, and what becomes of the run."""
    warn_user(
        f"after step {step} the held-out loss is not finite {told}. Training goes on, and this evaluation counts for "
        "nothing in what is said of convergence. Look at the held-out samples and at the averaged weights there: "
        "sample(run.ema_model(), ...)."
    )
