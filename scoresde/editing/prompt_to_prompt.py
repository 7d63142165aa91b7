"""Prompt-to-prompt: another caption, looked at in the places where the first one was.

    both = prompt_to_prompt(model, latent, {"caption": source}, {"caption": target}, until=0.8)
    both.x, both.source

Both captions are sampled together, from one latent and one noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.inputs import edit_grid, graph, source_of
from scoresde.editing.null_text import NullGuided, NullText
from scoresde.guidance.classifier_free import classifier_free
from scoresde.guidance.parts import finite_scale
from scoresde.guidance.sums import Composed
from scoresde.models.combination import Combination
from scoresde.models.conditions import as_given
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.model import ScoreModel, branches
from scoresde.models.score import DerivedScore, Score
from scoresde.nn.attention_maps import AttentionMaps, cross_attention
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.solvers.base import Solver
from scoresde.solvers.defaults import chosen_solver
from scoresde.solvers.wrapping import require_steps

MapEdit = Callable[[Tensor, Tensor], Tensor]
"""(map of the source, own map of the target), each (B, heads, positions, tokens), -> the map to use."""


@dataclass(frozen=True)
class PromptToPrompt:
    """The two pictures.

    Attributes:
        x: (B, *event) that of the target.
        source: (B, *event) that of the source, from the same latent and noise.
        nfe: score evaluations, of B pictures each.
        grid: (n + 1,) the times.
    """

    x: Tensor
    source: Tensor
    nfe: int
    grid: Tensor


@dataclass(frozen=True, eq=False)
class Lockstep(DerivedScore):
    """A Score of (2B, *event): the source's of the first half; of the second the target's, with the maps of the first.

    Maps are held for one evaluation, whatever the number of steps. They are used at times above ``stop``, and where
    an evaluation calls the network several times in its call number ``call`` alone.
    """

    source: Score
    target: Score
    net: nn.Module
    edit: MapEdit | None
    stop: float
    call: int | None = None

    @property
    def score(self) -> Score:  # type: ignore[override]
        """The source's."""
        return self.source

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        first, second = x.chunk(2)
        time = torch.as_tensor(t)
        at_first, at_second = time.chunk(2) if time.ndim else (time, time)
        of_first, of_second = (wanted.for_samples(half) for half in (_first_half, _second_half))
        if not bool((time > self.stop).all()):
            one = self.source.evaluate(first, at_first, of_first)
            return torch.cat([one, self.target.evaluate(second, at_second, of_second)])
        maps = AttentionMaps()
        with maps.recording(self.net):
            one = self.source.evaluate(first, at_first, of_first)

        def chosen(layer: int, call: int, own: Tensor) -> Tensor:
            if self.call not in (None, call):
                return own
            held = maps.layers[layer][call]
            return held if self.edit is None else self.edit(held, own)

        with maps.injecting(self.net, chosen):
            return torch.cat([one, self.target.evaluate(second, at_second, of_second)])


def _first_half(coefficient: Tensor) -> Tensor:
    return coefficient.chunk(2)[0]


def _second_half(coefficient: Tensor) -> Tensor:
    return coefficient.chunk(2)[1]


@in_evaluation_mode("model")
@answering()
def prompt_to_prompt(
    model: ScoreModel,
    x: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    edit: MapEdit | None = None,
    until: float = 0.8,
    scale: float | None = None,
    null: NullText | None = None,
    solver: Solver | None = None,
    steps: int = 25,
    grid: Tensor | Rule | None = None,
    eta: float | None = None,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    denoise: bool = True,
    gradients: bool = False,
) -> PromptToPrompt:
    r"""Two captions from one latent, the second with the cross-attention maps of the first (Hertz et al. 2022,
    arXiv:2208.01626, algorithm 1).

    Where each word is looked at decides the layout of the picture. Both captions are followed together, step by step;
    in the first ``until`` of the steps the network's maps M of the source stand in for those of the target (section
    3.2: τ counts them). Without an ``edit`` all of each map does, which is a word swap for captions of the same length.
    Others are made of ``scoresde.nn``'s parts::

        pairs = shared_tokens(a, b)                                  # refinement: only the words in common
        edit = lambda source, own: map_tokens(source, own, pairs)
        edit = lambda source, own: reweight_tokens(source, {3: 2.0})   # the third word counts twice

    A real picture is edited from its latent: ``found = invert(model.bind(**source), x0, iterations=20)``, then
    x=found.x, grid=found.grid, solver=DDIM(), denoise=False; the ``source`` answered is its reconstruction. Under
    guidance that leads elsewhere, unless by the nulls of :func:`~scoresde.editing.null_text`: null=real, x=real.x,
    grid=real.grid.

    Args:
        model: with cross-attention inside.
        x: (B, *event), the latent at the grid's first time, for both.
        source: conditions of the first, by name, e.g. {"caption": tokens}: (B, ...).
        target: conditions of the second, with the same names.
        edit: which map to use, from both.
        until: 0 leaves the target alone; 1 uses the maps to the very end.
        scale: of classifier-free guidance, for both; default 1, at which no null condition is asked for, or that of
            ``null``.
        null: the nulls of the pictures, which both captions share. Their own maps are left as they are.
        solver, steps, grid, eta, seed, noise, denoise: as in ``sample``; both share their noise.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated; the source's maps
            count as given.

    Raises:
        TypeError, ValueError: bad input; no cross-attention in the model; maps of different shapes; a solver that
            chooses its own steps; nulls of another model, or at scale 1.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, not bound, for both captions of prompt_to_prompt; got {checks.got(model)}."
        )
    checks.state(x, values=True)
    if edit is not None:
        checks.function(edit, name="edit", what="of two maps, (source, own) -> map", takes=2)
    scale, denoise = _chosen_scale(model, scale, null), checks.flag(denoise, name="denoise")
    share = checks.fraction(until, name="until, the share of the steps that use the source's maps,")
    for name, conditions in (("source", source), ("target", target)):
        checks.instance(conditions, Mapping, name=name, hint='Write {"caption": tokens}.')
        as_given(conditions, name=name)
    if set(source) != set(target):
        raise ValueError(
            f"source and target must have the same conditions, got {', '.join(source) or 'none'} and "
            f"{', '.join(target) or 'none'}; repeat those that stay the same."
        )
    solver = chosen_solver(solver, model, eta, grid)
    require_steps(solver, "which two captions would not share")
    one, other = (_under(model, scale, null, conditions) for conditions in (source, target))
    with graph(gradients):
        times = edit_grid(model, grid, steps, None, solver, tuple(x.shape[1:]))
        done = round(share * (len(times) - 1))
        stop = -1.0 if done == len(times) - 1 else float(times[done].detach())
        if done:
            cross_attention(model)  # raises before any work where there is none
        # learned nulls look at the picture, too, each at its own
        call = None if null is None else NullGuided.CONDITIONAL
        process = Reverse(Lockstep(one, other, model, edit, stop, call), solver.default_eta if eta is None else eta)
        run = solver.solve(process, torch.cat([x, x]), times, PairedNoise(source_of(seed, noise)), denoise=denoise)
        first, second = run.x.chunk(2)
        return PromptToPrompt(second, first, 2 * run.nfe, run.grid)


def _chosen_scale(model: ScoreModel, scale: float | None, null: NullText | None) -> float:
    """The scale given, or that of the nulls, or 1."""
    if null is None:
        return 1.0 if scale is None else finite_scale(scale)
    if checks.instance(null, NullText, name="null", hint="Write null_text(model, found, source).").model is not model:
        raise ValueError("null must be a NullText of the same model, and this one was learned with another.")
    if scale is not None and finite_scale(scale) == 1:
        raise ValueError(
            f"scale must not be {scale:g}, at which the null does not matter: leave it out, or take the null's own."
        )
    return null.scale if scale is None else finite_scale(scale)


def _under(model: ScoreModel, scale: float, null: NullText | None, conditions: Mapping[str, Any]) -> Score:
    """Classifier-free guidance, at scale 1 without a null."""
    if null is not None:
        return null.score(conditions, scale)
    if scale == 1:
        return Composed(branches(model, [conditions], None, what="prompt_to_prompt"), (1.0,))
    return classifier_free(model, conditions, scale)


class PairedNoise(Noise):
    """Draws of another source for the first half of a batch, and the same again for the second."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return _twice(self.noise.initial((shape[0] // 2, *shape[1:]), dtype=dtype, device=device))

    def normal(self, x: Tensor) -> Tensor:
        return _twice(self.noise.normal(x[: len(x) // 2]))

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return _twice(self.noise.between(x[: len(x) // 2], t, s))

    def stream(self, purpose: str) -> PairedNoise:
        """That of the other source, for both halves."""
        return PairedNoise(self.noise.stream(purpose))

    def path_key(self) -> tuple[tuple[int, ...], int]:
        """There is none that two halves share."""
        raise ValueError("a method that asks for a Brownian path of its own cannot share it between two runs.")

    def check(self, grid: Tensor) -> None:
        """That of the other source."""
        self.noise.check(grid)

    def position(self) -> object:
        """That of the other source."""
        return self.noise.position()

    def rewind(self, position: object) -> None:
        """That of the other source."""
        self.noise.rewind(position)


def _twice(draw: Tensor) -> Tensor:
    return torch.cat([draw, draw])
