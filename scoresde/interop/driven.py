"""A solver driven from outside: it says where it wants the network evaluated, and is told what came out.

Libraries whose pipelines own the loop hand over one output of the network at a time. A :class:`DrivenRun` takes any
solver that steps on a grid, as it is, through such a loop::

    course = Course(DPMSolverPP(), reading, eta=0.0, grid=grid, denoise=True)
    run = DrivenRun(course, x_T)
    while run.asked is not None:                       # (x, t): where the network is to be evaluated
        run.tell(net(run.asked.x, run.asked.t), noise)
    run.x                                              # the end

Between two outputs the solver's own ``step`` is run from the state in which it began, with the outputs known so far and
the noise drawn so far, until it asks for an output that is not known: a step with k evaluations is begun k + 1 times,
and counted once. Nothing is asked of a solver but what :class:`~scoresde.solvers.Solver` says of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models import Prediction, Score, ScoreModel
from scoresde.models.combination import X0, Combination
from scoresde.models.score import DerivedScore
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.base import state_dtype
from scoresde.solvers.wrapping import require_process


@dataclass(frozen=True)
class Reading:
    """How an output of the network is read: the schedule, what it predicts, and what is made of the score after that.

    Args:
        sde: the SDE.
        predicts: see :class:`~scoresde.models.ScoreModel`.
        sigma_data: standard deviation of the data, where it is known.
        through: a function of the model's score to the one that the solver sees, such as a clipped one.
        guidance_scale: of classifier-free guidance, where the outputs are those after it.
    """

    sde: SDE
    predicts: str | Prediction
    sigma_data: float | None = None
    through: Callable[[Score], Score] | None = None
    guidance_scale: float = 1.0

    def score(self, network: Callable[..., Tensor]) -> Score:
        """The score of a network ``(x, c) -> output``."""
        model = ScoreModel(network, self.sde, self.predicts, self.sigma_data)
        score = model if self.through is None else self.through(model)
        scale = abs(self.guidance_scale) + abs(1 - self.guidance_scale)
        return score if scale == 1.0 else _Guided(score, scale)

    def x0(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor | None:
        """x̂_0 by the output of the network at (x, t); None where a network that predicts noise does not say it."""
        try:
            return self.score(lambda *given: output).evaluate(x, t, X0)
        except ValueError:  # α(t) = 0
            return None


@dataclass(frozen=True, eq=False)
class _Guided(DerivedScore):
    """A score by outputs that are sums of others, whose errors may come out larger by so much."""

    score: Score
    factor: float

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return self.factor

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return self.score.evaluate(x, t, wanted)


class Asked(NamedTuple):
    """Where the network is to be evaluated: x (B, *event) and t (), float64."""

    x: Tensor
    t: Tensor


class Evaluation(NamedTuple):
    """One evaluation of a run: its time, and the part of the run that asks for it."""

    t: float
    part: int


class Lead(NamedTuple):
    """The network is first evaluated at scale · x of the first x, plus noise where ``noisy``."""

    scale: float
    noisy: bool


@dataclass(frozen=True)
class Course:
    """What a run follows: the solver on times, and a last denoising step or none.

    Args:
        solver: one that steps on the grid, and is already made for the score.
        reading: how outputs are read.
        eta: the stochasticity.
        grid: (m + 1,) decreasing times, float64; of one time, only the denoising step is left.
        denoise: whether the run ends with E[x_0 | x] at the last time, where σ > 0.
    """

    solver: Solver
    reading: Reading
    eta: float
    grid: Tensor
    denoise: bool

    def process(self, score: Score) -> Reverse:
        """The reverse process of the score."""
        return Reverse(score, self.eta)

    @property
    def parts(self) -> int:
        """How many parts a run has: the start, m steps, the denoising step."""
        return (len(self.grid) if len(self.grid) > 1 else 0) + self.denoises

    @property
    def denoises(self) -> bool:
        """Whether there is anything to denoise at the end."""
        return self.denoise and self.reading.sde.sigma(self.grid[-1]).item() > 0

    def take(self, part: int, process: Reverse, x: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """One part, from the state before it."""
        if part == len(self.grid) or len(self.grid) == 1:
            return self.solver.denoised(process, x, self.grid[-1]), None
        if part == 0:
            return self.solver.start(process, x, self.grid, noise)
        return self.solver.step(process, x, self.grid[part - 1], self.grid[part], noise, state)

    def evaluations(self, event: tuple[int, ...]) -> list[Evaluation]:
        """Those of a run, in order, for samples of the shape ``event``; found by a run on an output of zeros.

        Raises:
            ValueError: what the solver raises of these times, or one that evaluates at a time for each sample.
        """
        run, found = DrivenRun(self, torch.ones(1, *event, dtype=torch.float64)), []
        while run.asked is not None:
            found.append(Evaluation(run.asked.t.item(), run.part))
            run.tell(torch.zeros_like(run.asked.x), Constant(0.0))
        return found

    def lead(self, event: tuple[int, ...]) -> Lead:
        """What becomes of the first x before the network is asked: nothing, but where a step or noise comes first.

        Raises:
            ValueError: the solver makes something else of it than a multiple.
        """
        of_x, of_zero, of_noise = (
            _Attempt(self, torch.full((1, *event), x, dtype=torch.float64), Constant(noise)).asked
            for x, noise in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))
        )
        if of_x is None or of_zero is None or of_noise is None:
            return Lead(1.0, False)
        scale = of_x.x.flatten()[0].item()
        if not (scale and bool((of_x.x == scale).all()) and bool((of_zero.x == 0).all())):
            raise ValueError(
                f"{type(self.solver).__name__} makes more of the first x than a multiple before it asks the network, "
                "so a loop that hands it to the network at once cannot drive it. Call sample(score, ...)."
            )
        return Lead(scale, bool((of_noise.x != 0).any()))


class _Unanswered(Exception):
    """The solver asks for an output that is not known yet; never seen outside."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked


class _Told(NamedTuple):
    """Where the network was evaluated, and what came out."""

    x: Tensor
    output: Tensor


class _Dictated(Score):
    """A score whose outputs are told, in the order in which they are asked for."""

    def __init__(self, reading: Reading, told: list[_Told]) -> None:
        self.sde, self.sigma_data = reading.sde, reading.sigma_data
        self._told, self._next, self._output = told, 0, torch.empty(0)
        self._read = reading.score(lambda *given: self._output)
        self.amplification = self._read.amplification

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if t.ndim:
            raise ValueError("a solver that evaluates each sample at a time of its own cannot be driven from outside.")
        if self._next == len(self._told):
            raise _Unanswered(Asked(x, t))
        at, self._output = self._told[self._next]
        self._next += 1
        return self._read.evaluate(at, t, wanted)


class Constant(Noise):
    """One number in place of noise."""

    def __init__(self, value: float) -> None:
        self._value = value

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, self._value, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self._value)


class _Recorded(Noise):
    """Draws of another noise, each made once and given again in the same order."""

    def __init__(self, drawn: list[Tensor], source: Noise) -> None:
        self._drawn, self._next, self._source = drawn, 0, source

    def _again(self, draw: Callable[[], Tensor]) -> Tensor:
        if self._next == len(self._drawn):
            self._drawn.append(draw())
        self._next += 1
        return self._drawn[self._next - 1]

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._again(lambda: self._source.initial(shape, dtype=dtype, device=device))

    def normal(self, x: Tensor) -> Tensor:
        return self._again(lambda: self._source.normal(x))

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self._again(lambda: self._source.between(x, t, s))


class _Attempt:
    """A run from a state, as far as the known outputs carry it."""

    def __init__(self, course: Course, x: Tensor, noise: Noise) -> None:
        self.course, self.x = course, x
        self.state: Any = None
        self.part = 0
        self.asked: Asked | None = None
        self.told: list[_Told] = []
        self.drawn: list[Tensor] = []
        self.go_on(noise)

    def go_on(self, noise: Noise) -> None:
        """Through all parts that the known outputs suffice for; where they do not, ``asked`` says what is missing."""
        while self.part < self.course.parts:
            try:
                x, state = self.once(self.x, noise)
            except _Unanswered as stop:
                self.asked = stop.asked
                return
            self.x, self.state, self.part = x, state, self.part + 1
            self.told, self.drawn = [], []
        self.asked = None

    def once(self, x: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The part at hand, from x, with what is known of it."""
        process = self.course.process(_Dictated(self.course.reading, self.told))
        return self.course.take(self.part, process, x, self.state, _Recorded(self.drawn, noise))


class DrivenRun(_Attempt):
    """One run from the x at which the network is first evaluated, whatever the solver does before: that is left out.

    Args:
        course: what it follows.
        x: (B, *event); the state is carried in float32 at least, in float64 where σ/α starts above 1e4.

    Attributes:
        asked: where the network is to be evaluated next; None at the end.
        x: at the end, what the run has come to; before, the state from which the part at hand began.
        part: which part of the course is at hand.
    """

    def __init__(self, course: Course, x: Tensor) -> None:
        first = x.to(state_dtype(course.reading.sde, course.grid, x.dtype))
        lead = course.lead(tuple(x.shape[1:]))
        super().__init__(course, first if lead.scale == 1.0 else first / lead.scale, Constant(0.0))
        if not lead.noisy:
            self.drawn = []  # drawn for what follows the first evaluation, and when that is known
        if self.asked is not None:
            self.asked = Asked(first, self.asked.t)  # what was handed in, to the last bit

    @property
    def shown(self) -> Tensor:
        """The x that whoever drives the run sees: where the network is evaluated next, at the end the end."""
        return self.x if self.asked is None else self.asked.x

    def move(self, x: Tensor) -> None:
        """Another state in place of the one shown, as where a known part of it is put in from outside.

        Where the solver asks for the first evaluation of a step the state itself is moved; within a step, the place of
        this evaluation alone.

        Raises:
            ValueError: the solver's states on the way do not follow the process.
        """
        assert self.asked is not None
        require_process(self.course.solver, "so nothing can be put in their place")
        x = x.to(self.asked.x.dtype)
        if not self.told:
            there = self.asked.x
            self.x = x if there is self.x else self.x + (x - there) / self._slope(there)
        self.asked = Asked(x, self.asked.t)

    def _slope(self, there: Tensor) -> float:
        """By how much the place of the part's first evaluation follows its state."""
        try:
            self.once(self.x + 1, Constant(0.0))
        except _Unanswered as stop:
            return float((stop.asked.x.double() - there.double()).mean())
        raise AssertionError("the part asked for nothing")

    def tell(self, output: Tensor, noise: Noise) -> None:
        """What came out of the network where it was asked for, and what the solver may draw from on its way on."""
        assert self.asked is not None
        told = [*self.told, _Told(self.asked.x, checks.state(output, name="output"))]
        before = self.x, self.state, self.part, self.asked, self.told, self.drawn
        try:
            self.told, self.drawn = told, [*self.drawn]
            self.go_on(noise)
        except BaseException:  # as if it had not been told
            self.x, self.state, self.part, self.asked, self.told, self.drawn = before
            raise
