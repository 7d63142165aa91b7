"""Null-text inversion: what stands for "no condition" is learned for one picture, so that guided steps lead back to it.

    found = invert(model.bind(caption=source), x0, steps=50, trajectory=True)      # unguided, where it is right
    real = null_text(model, found, {"caption": source}, scale=5.0)
    real.round_trip, real.plain                             # the guided way back, and what it was with the plain null
    real.decoded({"caption": target}).x                     # the picture under another caption
    prompt_to_prompt(model, real.x, {"caption": source}, {"caption": target}, null=real, grid=real.grid, ...)

Guidance leaves the path of the inversion, by scale - 1 times what the condition says. For each step of the grid and
each picture a null of its own is found that brings it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.inputs import graph, root_mean_square, widened
from scoresde.editing.inversion import Inversion
from scoresde.editing.null_steps import Learned, optimised
from scoresde.guidance.classifier_free import pair
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.models.combination import X0, Combination
from scoresde.models.conditions import completed
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.model import Branches, ScoreModel
from scoresde.models.score import DerivedScore, Score, same_sde
from scoresde.nn.encodings import Encoding, encoders_of, encodings_of, shifted, towards
from scoresde.noise import IndependentNoise
from scoresde.reverse import Reverse
from scoresde.solvers.incomplete import each, finite_rows, without
from scoresde.solvers.one_step import DDIM, OneStep
from scoresde.solvers.progress import Bar
from scoresde.solvers.solution import Solution

_MOST_ITERATIONS = 1_000_000


@dataclass(frozen=True)
class NullText:
    """The nulls of some pictures, and where they lead.

    Attributes:
        model: the model. conditions: those of the pictures. scale: of guidance.
        x: (B, *event) the latent, the state at grid[0].
        grid: (n + 1,) the times, decreasing.
        nulls: (n, B, ...) each, one null for each step: by the name of a condition its value, or by the place of an
            encoder in the model what is added to what that makes of the null.
        present: (B, N) each, by the place of an encoder of tokens: which of them count.
        reconstruction: (B, *event) where guided steps with these nulls lead from the latent to grid[-1].
        round_trip: (B,) the root of the mean square of reconstruction - x_0 of each sample, in units of x.
        plain: (B,) the same with the plain null at every step.
        residual: (n, B) how far each step ends from the inversion's state, relative to sqrt(α² + σ²).
        nfe: evaluations of one branch of the model, those for ``plain`` included; iterations count each.
        solver: what leads back.
    """

    model: ScoreModel
    conditions: Mapping[str, Any]
    scale: float
    x: Tensor
    grid: Tensor
    nulls: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    reconstruction: Tensor
    round_trip: Tensor
    plain: Tensor
    residual: Tensor
    nfe: int
    solver: OneStep
    null: Mapping[str, Any] | None = None

    def score(self, conditions: Mapping[str, Any] | None = None, scale: float | None = None) -> Score:
        """The guided score of B pictures with these nulls, default towards their own conditions at their own scale.

        At a time t it has the null of the step that begins at t, or in which t lies.

        Raises:
            TypeError, ValueError: bad conditions, or others by name or length than those of the pictures.
        """
        given = self.conditions if conditions is None else conditions
        checks.instance(given, Mapping, name="conditions", hint='Write {"caption": tokens}.')
        if set(given) != set(self.conditions):
            raise ValueError(
                f"the null stands for {', '.join(self.conditions)}, and conditions has {', '.join(given) or 'none'}: "
                "give the same names, and repeat the values of those that stay."
            )
        strength = self.scale if scale is None else finite_scale(scale)
        both = pair(self.model, given, self.null, None, what="NullText.score")
        null = _Null(both, self.present)
        for name, value in given.items():
            was, now = (tuple(getattr(one, "shape", ())) for one in (self.conditions[name], value))
            if name not in null.values and len(was) == len(now) and was[1:] != now[1:]:
                raise ValueError(
                    f"conditions[{name!r}] must be {was[1:]} for each picture, as those that the null was learned "
                    f"with, got {now[1:]}: pad captions to one length before null_text."
                )
        return NullGuided(null, strength, self.grid, self.nulls)

    def decoded(self, conditions: Mapping[str, Any] | None = None, scale: float | None = None) -> Solution:
        """Where the same steps lead from the latent to grid[-1], default back; see :meth:`score`."""
        return self.solver.solve(Reverse(self.score(conditions, scale), eta=0.0), self.x, self.grid)


@dataclass(frozen=True, eq=False)
class _Null:
    """The branches without and with conditions, the first with another null where one is given.

    Attributes:
        branches: the two.
        present: see :class:`NullText`; its keys and those of ``encoders`` are places of encoders.
    """

    branches: Branches
    present: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def encoders(self) -> dict[str, nn.Module]:
        """Those of the conditions whose null is no value that could be changed a little."""
        return encoders_of(self.branches.model, [name for name in self.branches.nulls if name not in self.values])

    @cached_property
    def values(self) -> list[str]:
        """The names of the conditions whose null is a value of finite floating numbers."""
        return [name for name, value in self.branches.nulls.items() if _is_value(value)]

    def answer(self, x: Tensor, t: Tensor, wanted: Combination, learned: Learned | None) -> Tensor:
        """The wanted combination in the branch without conditions, of this null or of the plain one."""
        model = self.branches.model
        given = completed(self.branches.given, self.branches.nulls, x)[0]
        if learned is None:
            return model.evaluate(x, t, wanted, given)
        values = {name: learned[name].to(given[name].dtype) for name in self.values}
        encoders = self.encoders
        with shifted(encoders, {place: learned[place] for place in encoders}, self.present):
            return model.evaluate(x, t, wanted, {**given, **values})

    def conditional(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        """The same in the branch with conditions."""
        return self.branches.evaluate(x, t, wanted, [1])[0]

    def started(self, x: Tensor, t: Tensor, share: float) -> tuple[dict[str, Tensor], dict[str, Tensor], _Null]:
        """The null ``share`` of the way to the conditions, the size of each of its parts (B, ...), and who uses it."""
        none, some = completed(self.branches.given, self.branches.nulls, x)
        first = {name: torch.lerp(widened(none[name]), widened(some[name]), share) for name in self.values}
        sizes = {name: _size(widened(none[name])) for name in self.values}
        present: dict[str, Tensor] = {}
        encoders, model = self.encoders, self.branches.model
        own, other = (encodings_of(encoders, partial(model.evaluate, x, t, X0, given)) for given in (none, some))
        for place in encoders:
            first[place], counted = towards(own[place], other[place], share)
            sizes[place] = _size(_vectors(own[place]))
            if counted is not None:
                present[place] = counted
        return first, sizes, _Null(self.branches, present)


def _is_value(null: Any) -> bool:
    value = torch.as_tensor(null)
    return value.is_floating_point() and bool(value.isfinite().all())


def _vectors(encoding: Encoding) -> Tensor:
    """A vector for each sample, or the first token of each, which counts in a null."""
    return widened(encoding if isinstance(encoding, Tensor) else encoding.tokens[:, :1])


def _size(value: Tensor) -> Tensor:
    """The root mean square of each sample, 1 where that is 0, with an axis for each of the value's."""
    size = root_mean_square(value)
    return each(torch.where(size > 0, size, torch.ones_like(size)), value)


@dataclass(frozen=True, eq=False)
class NullGuided(DerivedScore, LinearGuidance):
    """Classifier-free guidance with a null of its own for each sample, that changes at the times of a grid.

    s(x, t, ∅_t) + scale · (s(x, t, y) - s(x, t, ∅_t)); made by :meth:`NullText.score`.

    Attributes:
        CONDITIONAL: the number of the call of the network, of an evaluation's two, that has the conditions.
    """

    CONDITIONAL: ClassVar[int] = 0

    null: _Null
    scale: float
    grid: Tensor
    nulls: Mapping[str, Tensor]

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self.null.branches.model

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return abs(self.scale) + abs(1 - self.scale)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """The branch without conditions times 1 - scale, and the one with them times scale."""
        learned = self._at(t, x)
        some = self.null.conditional(x, t, wanted)
        none = self.null.answer(x, t, wanted, learned)
        return [Part(1 - self.scale, none), Part(self.scale, some)]

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        none, some = (part.value for part in self.parts(x, t, wanted))
        return torch.lerp(none, some, self.scale)

    def _at(self, t: Tensor, x: Tensor) -> Learned:
        for value in self.nulls.values():
            if value.shape[1] != len(x):
                raise ValueError(
                    f"x must be as many samples as there are nulls, {value.shape[1]}, one for each; got {len(x)} "
                    f"samples, {tuple(x.shape)}."
                )
        inner = self.grid[1:-1].to(t.device)
        step = (inner >= t[..., None]).sum(-1)  # steps that lie wholly above t
        if not step.ndim:
            return {name: value[int(step)] for name, value in self.nulls.items()}
        rows = torch.arange(len(x), device=x.device)
        return {name: value[step.to(value.device), rows] for name, value in self.nulls.items()}


@in_evaluation_mode("model")
@answering()
def null_text(
    model: ScoreModel,
    found: Inversion,
    conditions: Mapping[str, Any],
    scale: float = 5.0,
    *,
    null: Mapping[str, Any] | Any = None,
    solver: OneStep | None = None,
    iterations: int = 10,
    rate: float = 0.1,
    tolerance: float = 1e-3,
    start: float = 0.0,
    progress: bool = False,
) -> NullText:
    r"""Null-text inversion (Mokady et al. 2022, arXiv:2211.09794, algorithm 1), for any condition.

    From the latent x_T of the inversion down its states x*_t, with Φ the solver's step under guidance::

        ∅_t = argmin |Φ(x_t; t, s, ∅_t, y) - x*_s|²,        x_s = Φ(x_t; t, s, ∅_t, y)

    where s(x, t, ∅_t) + scale · (s(x, t, y) - s(x, t, ∅_t)) guides. The step is the same combination of a step under
    each branch, so that the one with conditions is evaluated once for each step, and the other once for each iteration,
    with the graph of that one evaluation. Each ∅_t begins where the one before has ended.

    What is optimised is, for each picture, what the network makes of "no condition": the vector of labels, vectors,
    sets and series, the tokens of captions and embeddings. Where the null is a value of finite floating numbers, as the
    embeddings of an empty prompt are, it is that value. By Adam (Kingma & Ba 2014, arXiv:1412.6980), each sample on its
    own: it stops at ``tolerance``, and what it has found is the best that it has seen.

    Args:
        model: trained with its conditions dropped at random.
        found: the inversion of the pictures by ``invert(model.bind(**conditions), x0, trajectory=True)``, under the
            conditions without guidance.
        conditions: what the pictures are, by name.
        scale: of classifier-free guidance.
        null: what stands for "no condition", as in ``classifier_free``; default the network's own.
        solver: default DDIM; any other of one evaluation a step, on the ODE.
        iterations: at most so many for each step.
        rate: the length of Adam's first iteration of a step, of each number, in units of the null's root mean square;
            it falls to 0 over the iterations.
        tolerance: where a sample's step stops: its root mean square distance to x*_s, relative to sqrt(α_s² + σ_s²).
        start: where ∅_T starts, of the way from the null (0, the paper's) to the conditions (1). At 1 the steps begin
            as without guidance, where DDIM's own error is all that is left to mend (Miyake et al. 2023,
            arXiv:2305.16807); edits are then pushed away from the conditions, not from the mean of all.
        progress: show a bar.

    Raises:
        TypeError, ValueError: bad input; an inversion without its states, or of another schedule; scale 1, at which the
            null does not matter; a null that is neither a value nor made by an encoder of the network.
        FloatingPointError: no sample's end is finite.

    Warns:
        IncompleteWarning: names samples whose end is not finite; they are NaN.
    """
    checks.instance(found, Inversion, name="found", hint="Write invert(model.bind(...), x0, trajectory=True).")
    scale = finite_scale(scale)
    plain = _Null(pair(model, conditions, null, None, what="null_text"))
    plain.branches.warn_unless_trained([0, 1] if null is None else [1], what="null_text")
    solver = DDIM() if solver is None else solver
    checks.instance(solver, OneStep, name="solver", hint="It is made of steps of one evaluation each: DDIM().")
    iterations = checks.count(iterations, name="iterations", most=_MOST_ITERATIONS)
    rate, tolerance = checks.positive(rate, name="rate"), checks.positive(tolerance, name="tolerance")
    start, progress = checks.fraction(start, name="start"), checks.flag(progress, name="progress")
    states = _states(model, found, scale)
    _check_null(plain)
    with graph(False):
        return _learned(plain, found, states, scale, solver, iterations, rate, tolerance, start, progress)


def _states(model: ScoreModel, found: Inversion, scale: float) -> Tensor:
    """The inversion's states, after all checks of it."""
    if found.sde is not None:
        same_sde({"found, an Inversion,": found.sde, "the model": model.sde})
    if found.trajectory is None:
        raise ValueError(
            "found must be an Inversion with its states, which null_text follows, and this one kept none: write "
            "invert(..., trajectory=True)."
        )
    if scale == 1:
        raise ValueError(
            f"scale must not be {scale:g}, at which the null does not matter: take the inversion itself, "
            "found.decoded(...)."
        )
    return checks.state(found.trajectory, name="found.trajectory")


def _check_null(plain: _Null) -> None:
    reached = {name for part in plain.encoders.values() for name in part.told_of}  # type: ignore[union-attr]
    lost = [name for name in plain.branches.nulls if name not in plain.values and name not in reached]
    if lost:
        raise ValueError(
            f"the null of {', '.join(lost)} can be neither changed a little nor found inside the network: give one of "
            "finite floating numbers, null={...}, such as the embeddings of an empty prompt or a grey picture."
        )


@dataclass(frozen=True, eq=False)
class _Branch(DerivedScore):
    """One branch as a Score: that with conditions, or the other with a null."""

    null: _Null
    learned: Learned | None = None
    conditional: bool = False

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        return self.null.branches.model

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if self.conditional:
            return self.null.conditional(x, t, wanted)
        return self.null.answer(x, t, wanted, self.learned)


def _learned(
    plain: _Null,
    found: Inversion,
    states: Tensor,
    scale: float,
    solver: OneStep,
    iterations: int,
    rate: float,
    tolerance: float,
    start: float,
    progress: bool,
) -> NullText:
    model, grid = plain.branches.model, found.grid
    wide = widened(states)
    x = y = wide[0]
    sizes_of_states = torch.hypot(model.sde.alpha(grid), model.sde.sigma(grid)).tolist()
    unused = IndependentNoise(0)
    learned: list[Learned] = []
    started, sizes, null = plain.started(x, grid[0], start)
    first: Learned = started
    _, plan = solver.start(Reverse(_Branch(plain, conditional=True), 0.0), x, grid, unused)
    nfe, left = 2, []

    def step(branch: _Branch, x: Tensor, t: Tensor, s: Tensor, plan: Any) -> tuple[Tensor, Any]:
        return solver.step(Reverse(branch, 0.0), x, t, s, unused, plan)

    with Bar(progress, "null_text", model.sde, grid[0], grid[-1], len(grid) - 1) as bar:
        for i, (t, s) in enumerate(itertools.pairwise(grid.unbind())):
            given, further = step(_Branch(plain, conditional=True), x, t, s, plan)

            def reached(moved: Learned, x: Tensor = x, given: Tensor = given, t: Tensor = t, s: Tensor = s) -> Tensor:
                return torch.lerp(step(_Branch(null, moved), x, t, s, plan)[0], given, scale)  # noqa: B023

            close = tolerance * sizes_of_states[i + 1]
            best = optimised(reached, wide[i + 1], first, sizes, iterations=iterations, rate=rate, tolerance=close)
            first, x = best.null, best.x
            learned.append(first)
            left.append(best.distance / sizes_of_states[i + 1])
            none, some = (step(_Branch(plain, conditional=c), y, t, s, plan)[0] for c in (False, True))
            y, plan = torch.lerp(none, some, scale), further
            nfe += best.calls + 3
            bar.stepped()
    finite = finite_rows(x)
    if not bool(finite.all()):
        x = without(
            x, finite, "null_text ended with NaN or infinite values", "Take a smaller rate or scale, or more steps."
        )
    return NullText(
        model=model,
        conditions=dict(plain.branches.given[1]),
        scale=scale,
        x=found.x,
        grid=grid,
        nulls={name: torch.stack([one[name] for one in learned]) for name in first},
        present=null.present,
        reconstruction=x.to(states.dtype),
        round_trip=root_mean_square(x - wide[-1]),
        plain=root_mean_square(y - wide[-1]),
        residual=torch.stack(left),
        nfe=nfe,
        solver=solver,
        null=dict(plain.branches.nulls),
    )
