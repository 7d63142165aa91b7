r"""Denoisers of NVlabs' EDM and EDM2, and of k-diffusion: D(x, σ) = E[x_0 | x_0 + σ ε = x]::

    model = from_denoiser(D)                                     # D(x, sigma, class_labels=...), D(x, sigma, cond=...)
    sample(model.bind(label=3), shape, solver=Heun(), grid=partial(grids.karras, rho=7.0), steps=18)

The module is called as it is, with its own preconditioning: what it answers is x̂_0 under :class:`~scoresde.EDM`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.interop.foreign import ForeignModel, ForeignNetwork, network_times
from scoresde.models import ScoreModel
from scoresde.models.conditions import Conditions
from scoresde.models.modules import dtype_behind
from scoresde.sde import EDM

_DEFAULTS = (0.002, 80.0)
"""σ_min and σ_max of Karras et al. 2022, table 1, where a denoiser tells no others."""


class Denoiser(ForeignNetwork):
    """D(x, σ) as net(x, c): σ = e^c under EDM's schedule, where α = 1.

    Args:
        net: the denoiser.
        classes: its number of classes, where it takes one-hot vectors ``class_labels``; 0 where it takes none.
        dtype: that of σ; default x's own, at least float32.
        null_conditions: see :func:`from_denoiser`.
        keywords: see :func:`from_denoiser`.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        classes: int | None = None,
        dtype: torch.dtype | None = None,
        null_conditions: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        what = "(x, sigma, **conditions)"
        super().__init__(net, name="D", what=what, null_conditions=null_conditions, keywords=keywords)
        self.classes, self.dtype = classes, dtype
        if classes == 0 and null_conditions is None:
            self.conditions = Conditions()  # says that it takes none: class_labels would be left aside without a word
        elif classes is not None and null_conditions is None:
            self.null_conditions = {"label": classes, "class_labels": 0.0}  # zeros stand for "no class"

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """D(x, e^c), (B, *event)."""
        if self.classes and "label" in conditions:
            conditions["class_labels"] = self._one_hot(x, conditions.pop("label"), conditions.get("class_labels"))
        if self.classes and conditions.get("class_labels") is not None:
            self._check(conditions["class_labels"], x)
        sigma = network_times(c.double().exp(), x)
        return self.ask(x, sigma if self.dtype is None else sigma.to(self.dtype), **conditions)

    def _check(self, vectors: Any, x: Tensor) -> None:
        """EDM's modules reshape what they are given to rows of so many numbers, whatever it was."""
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else ()
        if len(shape) != 2 or shape[0] not in (1, len(x)) or shape[1] != self.classes:
            raise ValueError(
                f"class_labels must be one-hot vectors ({len(x)}, {self.classes}), or (1, {self.classes}) for all; got "
                f"{checks.got(vectors)}. Classes themselves are called label."
            )

    def _one_hot(self, x: Tensor, label: Any, vectors: Any) -> Tensor:
        """(B, classes); zeros for "no class"."""
        if vectors is not None:
            raise ValueError("label and class_labels say the same, a class and its one-hot vector: give one of them.")
        wide = torch.promote_types(x.dtype, torch.float32)
        label = checks.sent(torch.as_tensor(label), x.device)
        if label.is_floating_point() or label.dtype == torch.bool or label.ndim > 1:
            raise TypeError(f"label must be classes (B,), whole numbers; got {checks.got(label)}.")
        return (label.reshape(-1, 1) == torch.arange(self.classes or 0, device=x.device)).to(wide)


def from_denoiser(
    D: Callable[..., Tensor],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float | None = None,
    dtype: torch.dtype | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""A preconditioned denoiser D(x, σ) as a ScoreModel under ``EDM`` (Karras et al. 2022, arXiv:2206.00364).

    ``EDM(T=sigma_max, t_min=sigma_min)`` has α = 1 and σ = t, so that D's answer at (x, t) is x̂_0 itself. Of D, and of
    the modules that it wraps as ``inner_model``, these attributes are read where they are there: ``sigma_min`` and
    ``sigma_max`` (0 and infinity, as of EDM's own networks, say nothing), ``sigma_data``, and ``label_dim``, the
    number of classes. With it conditions are a class by name, ``model.bind(label=3)``, or EDM's one-hot vectors,
    ``class_labels``; zeros, its null, are the label ``label_dim``. All other conditions go to D by their names.

    Args:
        D: called as ``D(x, sigma, **conditions)`` with x (B, *event) and sigma (B,); answers like x.
        sigma_min: smallest σ it is asked for; default its own, else 0.002.
        sigma_max: largest; default its own, else 80. Churn, which raises σ, needs room above the grid's first time.
        sigma_data: standard deviation of the data, for samplers; default its own.
        dtype: that of x and σ as D is given them. Default that of D's weights, but at least float32: EDM's modules,
            also under ``use_fp16``, bring x to float16 after scaling it, in which no digits are lost. A module of
            k-diffusion whose weights are in half precision casts nothing: for it say ``torch.bfloat16``.
        null_conditions: what stands for "not given", by name, where D does not tell by itself.
        keywords: options that go along with every call, such as ``{"force_fp32": True}``.

    Raises:
        TypeError, ValueError: D cannot be called, or a range that is none.
    """
    checks.function(D, name="D", what="(x, sigma, **conditions), such as a module")
    low = _chosen("sigma_min", sigma_min, D, _DEFAULTS[0])
    high = _chosen("sigma_max", sigma_max, D, _DEFAULTS[1])
    if not low < high:
        raise ValueError(f"sigma_min must lie below sigma_max, got {low:g} and {high:g}; give them by name.")
    scale = _chosen("sigma_data", sigma_data, D, None)
    own = dtype_behind(D)
    takes = None if own is None else torch.promote_types(own, torch.float32)
    if dtype is not None:
        takes = checks.dtype(dtype)
    adapter = Denoiser(D, classes=_classes(D), dtype=dtype, null_conditions=null_conditions, keywords=keywords)
    return ForeignModel(adapter, EDM(T=high, t_min=low), "x0", sigma_data=scale, takes=takes)


def _told(D: object, name: str) -> Any:
    """An attribute of D, or of what it wraps; None where none has it."""
    part = D
    for _ in range(10):  # modules wrap one another a few times at most
        value = getattr(part, name, None)
        if value is not None or part is None:
            return value
        part = getattr(part, "inner_model", getattr(part, "module", None))
    return None


def _chosen(name: str, given: float | None, D: object, default: Any) -> Any:
    """The number given, else the one that D tells, where it is positive and finite, else the default."""
    if given is not None:
        return checks.positive(given, name=name)
    told = _told(D, name)
    if told is None:
        return default
    number = checks.number(told, name=f"D.{name}")
    return number if 0 < number < math.inf else default


def _classes(D: object) -> int | None:
    """``label_dim``: of EDM's modules 0 where they take no labels."""
    told = _told(D, "label_dim")
    return None if told is None else checks.count(told, name="D.label_dim", least=0)
