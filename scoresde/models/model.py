"""The model that turns a network's prediction into a score, and the same network under other schedules.

A :class:`ScoreModel` is a network, the SDE it was trained under and what its output means; it is a
:class:`~scoresde.models.Score`, so every solver and every guidance takes it::

    model = ScoreModel(net, VP(), predicts="v")             # net(x, c, **conditions) with c = log(σ/α)
    model(x, t, {"label": y})                               # the score; also model.noise, model.denoise
    score = model.bind(label=y)                             # a BoundScore: the conditions filled in
    model.under(EDM(t_min=0.02))                            # the same network under another schedule, without training

:func:`branches` evaluates one model under several sets of conditions in one call of the network; guidance uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import NOISE, SCORE, X0, Coefficient, Combination, as_number, combine
from scoresde.models.conditions import TrainedWith, as_given, check_bound, completed, expanded, given_names, nulls_for
from scoresde.models.network import NoiseLevelNetwork
from scoresde.models.predictions import PREDICTIONS, Affine, Prediction
from scoresde.models.rescheduled import in_schedule
from scoresde.models.score import DerivedScore, Score, Units, shaped_like
from scoresde.sde import SDE, Time, has_signal
from scoresde.spectrum import Spectrum
from scoresde.warning import warn_user

Given = Mapping[str, Any] | None
"""Conditions by name, as the network takes them; None for none."""


class ScoreModel(NoiseLevelNetwork, Score):
    r"""A network, the SDE it was trained under, and what it predicts: together a score.

    The network is called as ``net(x, c, **conditions)`` with c = log(σ/α), shape (B,), at least float32. As α enters
    only through this ratio and the scale of x, one trained network serves every other schedule: see :meth:`under`.
    Whatever is asked, its coefficients are composed with those of the prediction in float64, and x and the network's
    output meet once: what the network has in half precision is rounded there alone.

    Args:
        net: an ``nn.Module`` or any function ``(x, c, **conditions) -> F`` shaped like x.
        sde: the SDE.
        predicts: "noise", "x0", "v", "score", "velocity", "edm", or a function (see
            :data:`~scoresde.models.predictions.Prediction`). "noise" and "score" say nothing of x_0 where α(t) = 0.
        sigma_data: standard deviation of the data. With it the network sees x / sqrt(α² σ_data² + σ²), of unit
            variance; without it, x itself. "edm" always scales, with 0.5 unless told otherwise.
        spectrum: of the data, for the samplers; see :meth:`Spectrum.of <scoresde.spectrum.Spectrum.of>`.

    Attributes:
        trained_with: which conditions training gave the network, and how often it left them out; None where that is
            not known. :func:`~scoresde.train.train` sets it and checkpoints keep it; guidance warns by it.
        scaling: the map between x_0 and the data; ``train`` sets that of its data set, checkpoints keep it, and
            ``sample(model, ...).data`` are samples in the units of the data.
        condition_scalings: by name, the maps by which conditions are brought to the network's units, wherever the model
            is given them: set and kept likewise. A row of NaN, "not given", stays one.
        event_shape, class_names, vocabularies: shape of one sample, names of the classes, and the words of tokens by
            the name of their condition, where they are known: set and kept likewise.

    Raises:
        ValueError: an unknown prediction, or a sigma_data that is not positive.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        predicts: str | Prediction = "noise",
        sigma_data: float | None = None,
        spectrum: Spectrum | None = None,
    ) -> None:
        known_one = predicts in PREDICTIONS if isinstance(predicts, str) else callable(predicts)
        if not known_one or isinstance(predicts, type):
            known = f"one of {', '.join(PREDICTIONS)}, or a function"
            raise (ValueError if isinstance(predicts, str) else TypeError)(
                f"predicts must be {known}; got {checks.got(predicts)}."
            )
        if spectrum is not None:
            checks.instance(spectrum, Spectrum, name="spectrum", hint="Spectrum.of(x) measures it.")
        super().__init__(net, sde, 0.5 if sigma_data is None and predicts == "edm" else sigma_data)
        self.predicts = predicts
        self.spectrum = spectrum
        self.trained_with: TrainedWith | None = None
        self.scaling: Units | None = None
        self.condition_scalings: dict[str, Units] = {}
        self._prediction = PREDICTIONS[predicts] if isinstance(predicts, str) else predicts

    @property
    def coupling(self) -> str | None:  # type: ignore[override]
        """How data and noise were coupled in training; None where they were independent, or nobody told."""
        return None if self.trained_with is None else self.trained_with.coupling

    def evaluate(self, x: Tensor, t: Time, wanted: Combination, conditions: Given = None) -> Tensor:
        """The wanted combination, of x and one call of the network."""
        if self.trained_with is not None and not conditions and not torch.compiler.is_compiling():
            self.trained_with.warn_unless_seen((), what=type(self).__name__)
        alpha, sigma = self.levels(x, t)
        given = as_given(conditions)
        k = self._prediction(alpha, sigma, self.sigma_data if self.sigma_data is not None else 1.0)
        if k.__class__ is not Affine:
            checks.instance(k, Affine, name=f"what predicts={self.predicts!r} answers")
        p, q = map(as_number, wanted.of_predictions(alpha, sigma))
        of_x, of_out = _sum(p, k.x0_x, q, k.noise_x), _sum(p, k.x0_out, q, k.noise_out)
        if not has_signal(alpha, sigma):
            self._refuse_infinite(of_x, of_out)
        given = in_network_units(given, self.condition_scalings)
        out = shaped_like(self.answer(x, alpha, sigma, given), x, "the network")
        answer = combine((as_number(of_x), x), (as_number(of_out), out))
        # never the network's own tensor, which its next call may write to (CUDA graphs do), nor the caller's
        return answer.clone() if answer is out or answer is x else answer

    def forward(self, x: Tensor, t: Time, conditions: Given = None) -> Tensor:
        """The score ∇ log p_t(x), (B, *event).

        Args:
            x: (B, *event).
            t: () or (B,), where σ(t) > 0.
            conditions: by name, in their own units: those with a scaling are brought to the network's.
        """
        return self.evaluate(x, t, SCORE, conditions)

    def noise(self, x: Tensor, t: Time, conditions: Given = None) -> Tensor:
        """The predicted ε = E[ε | x_t] = -σ ∇ log p_t(x)."""
        return self.evaluate(x, t, NOISE, conditions)

    def denoise(self, x: Tensor, t: Time, conditions: Given = None) -> Tensor:
        """E[x_0 | x_t = x], Tweedie's formula."""
        return self.evaluate(x, t, X0, conditions)

    def bind(self, **conditions: Any) -> BoundScore:
        """The Score of this model under fixed conditions, e.g. ``model.bind(label=y)``.

        A number or one row (1, ...) is for the whole batch where the network's ``null_conditions`` name the condition;
        all else is passed on as it is. Conditions are given in their own units: a model that was trained on incomes in
        euros is asked ``model.bind(income=50_000.0)``. Warns where conditions are left out, or given, that training
        never did so.

        Raises:
            TypeError, ValueError: a condition that the network, as far as it tells, does not take, or a value that is
                not of its kind.
        """
        check_bound(self.net, conditions)
        if self.trained_with is not None:
            self.trained_with.warn_unless_seen(given_names(self.net, conditions), what="bind")
        return BoundScore(self, conditions)

    def under(self, sde: SDE) -> ScoreModel:
        """This model's score under another schedule, exactly, without training.

        The laws of x_t/α depend on σ/α alone, so with t' the time at which both ratios agree and c = α(t')/α_new(t),
        the predictions x̂_0 and ε̂ of the new schedule at (x, t) are those of the own one at (c x, t')::

            ∇ log p_new(x, t) = c ∇ log p(c x, t')

        Probability-flow trajectories of the two are the same up to the factor α_new/α.

        Args:
            sde: the other schedule. Asking it for a σ/α outside [0, T] of the trained one raises; for one that was
                not trained, a warning is given here.
        """
        return Transported(self, sde)

    def _refuse_infinite(self, *coefficients: Tensor) -> None:
        if any(checks.readable(c) and not bool(c.isfinite().all()) for c in coefficients):
            raise ValueError(
                f"a network that predicts {self.predicts!r} says nothing of x_0 where α(t) = 0, as at T = "
                f"{self.sde.T:g} of {type(self.sde).__name__}: x_t is noise there, whatever x_0 was. Start below that "
                "time (T = 0.999 loses nothing that training can see), or train a network that predicts x0, v, "
                "velocity or edm."
            )


def in_network_units(given: Mapping[str, Any], scalings: Mapping[str, Units]) -> Mapping[str, Any]:
    """Conditions, those that have a scaling by it, in the dtype that they came in."""
    if not scalings:
        return given

    def scaled(name: str, value: Any) -> Any:
        if name not in scalings or value is None:
            return value
        if not isinstance(value, Tensor):
            return scalings[name].to_model(torch.as_tensor(value, dtype=torch.float64)).float()
        return scalings[name].to_model(value).to(value.dtype if value.is_floating_point() else torch.float32)

    return {name: scaled(name, value) for name, value in given.items()}


def _sum(p: Coefficient, of_p: Tensor, q: Coefficient, of_q: Tensor) -> Tensor:
    """p of_p + q of_q, where a coefficient of 0 wins over an infinite one."""
    if not isinstance(q, Tensor) and q == 0.0:
        return _product(p, of_p)
    if not isinstance(p, Tensor) and p == 0.0:
        return _product(q, of_q)
    return _product(p, of_p) + _product(q, of_q)


def _product(wanted: Coefficient, known: Tensor) -> Tensor:
    if not isinstance(wanted, Tensor):
        return wanted * known if wanted else torch.zeros_like(known)
    none = wanted == 0
    return wanted * torch.where(none, torch.zeros_like(known), known)


class Transported(ScoreModel):
    """A model seen under another schedule; made by :meth:`ScoreModel.under`."""

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        checks.instance(sde, SDE, name="sde")
        super().__init__(model.net, sde, model.predicts, model.sigma_data, model.spectrum)
        self.trained_with = model.trained_with
        # for whoever asks; what is evaluated is the trained model, which brings conditions to the network's units
        self.scaling, self.condition_scalings = model.scaling, model.condition_scalings
        self.event_shape, self.class_names, self.vocabularies = model.event_shape, model.class_names, model.vocabularies
        self.condition_shapes, self.loss_curve = model.condition_shapes, model.loss_curve
        self.trained_under: SDE = model.trained_under if isinstance(model, Transported) else model.sde
        # In a tuple: as an attribute of its own, nn.Module would list the network's parameters a second time.
        self._inner: tuple[ScoreModel, ...] = model._inner if isinstance(model, Transported) else (model,)
        own, new = self.trained_under, sde
        asked, seen = ([s.log_snr(t).item() for t in (s.T, s.t_min)] for s in (new, own))
        if asked[0] < seen[0] - 1e-6 or asked[1] > seen[1] + 1e-6:
            warn_user(
                f"{type(new).__name__} runs over log-SNR [{asked[0]:.3g}, {asked[1]:.3g}], but the network was trained "
                f"under {type(own).__name__} on [{seen[0]:.3g}, {seen[1]:.3g}]. Narrow the new one's T and t_min (for "
                "example with its t_of_log_snr) to stay where the network has been."
            )

    def evaluate(self, x: Tensor, t: Time, wanted: Combination, conditions: Given = None) -> Tensor:
        """The same combination of the trained schedule's predictions at its own (x, t) with the same σ/α."""
        time = self.time(t, checks.state(x))
        return self._inner[0].evaluate(*in_schedule(self.sde, x, time, self.trained_under, wanted), conditions)


@dataclass(frozen=True, eq=False)
class BoundScore(DerivedScore):
    """A Score: a model with its conditions filled in."""

    model: ScoreModel
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.fields(self)
        as_given(self.conditions)

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self.model

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return self.model.evaluate(x, t, wanted, expanded(self.model.net, self.conditions, x))


@dataclass(frozen=True, eq=False)
class Branches:
    """One model under several sets of conditions, evaluated in one call of the network.

    Args:
        model: the model.
        given: for each branch, its conditions by name: tensors (B, ...), (1, ...), or a number for the whole batch.
            What one branch gives and another does not is the latter's null.
        nulls: what stands for "not given", by name, of a shape that broadcasts to the condition's.
    """

    model: ScoreModel
    given: tuple[Mapping[str, Any], ...]
    nulls: Mapping[str, Any]

    def warn_unless_trained(self, which: Sequence[int], *, what: str) -> None:
        """Warn where one of these branches asks the network for what it was never trained to do, as far as is known."""
        trained = self.model.trained_with
        for i in which if trained is not None else ():
            cast(TrainedWith, trained).warn_unless_seen(given_names(self.model.net, self.given[i]), what=what)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination, which: Sequence[int]) -> list[Tensor]:
        """The wanted combination in some branches, of which ``which`` holds the indices: (B, *event) for each."""
        return self.some(x, t, wanted, dict.fromkeys(which))

    def some(self, x: Tensor, t: Tensor, wanted: Combination, rows: Mapping[int, Tensor | None]) -> list[Tensor]:
        """The same for the samples ``rows[i]`` of branch i alone, an index (n_i,), or None for all: (n_i, *event)."""
        conditions, time = completed(self.given, self.nulls, x), torch.as_tensor(t)

        def joined(parts: list[Tensor]) -> Tensor:
            taken = [p if i is None else p[i.to(p.device)] for p, i in zip(parts, rows.values(), strict=True)]
            return taken[0] if len(taken) == 1 else torch.cat(taken)

        n = len(rows)
        answers = self.model.evaluate(
            joined([x] * n),
            joined([time] * n) if time.ndim else time,
            wanted.for_samples(lambda c: joined([c] * n)),
            {name: joined([conditions[i][name] for i in rows]) for name in conditions[0]},
        )
        return list(answers.split([len(x) if i is None else len(i) for i in rows.values()]))


def branches(model: ScoreModel, given: Sequence[Mapping[str, Any]], null: Any, *, what: str) -> Branches:
    """:class:`Branches` after all checks that need no x.

    Raises:
        TypeError: not a ScoreModel.
        ValueError: see :func:`~scoresde.models.conditions.nulls_for`.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, not bound, to which {what} gives several conditions; got {checks.got(model)}."
        )
    return Branches(model, tuple(dict(one) for one in given), nulls_for(model.net, given, null, what=what))
