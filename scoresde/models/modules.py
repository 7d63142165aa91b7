"""The modules and parameters behind a score, wherever they are held.

:func:`modules_of` finds every ``nn.Module`` through bound conditions, guidances, dataclasses, partials and bound
methods; :func:`parameters_of` lists their parameters, each once, and :func:`dtype_behind` the dtype of the first::

    guided = classifier_free(model, {"label": y}, scale=2.0)
    modules_of(guided), parameters_of(guided)

Solvers use them to find the device of a score and the parameters of the adjoint method. What a plain function or a
lambda has closed over is not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.sde import SDE

# Where an object that is no dataclass may hold a module; the last four are functools.partial's and a bound method's.
_HOLDERS = ("score", "model", "net", "log_prob", "classifier", "func", "args", "keywords", "__self__")


def modules_of(score: object) -> tuple[nn.Module, ...]:
    """Every module behind a score: its model's, a classifier's, through bound conditions and guidance.

    Looks into the fields of dataclasses (such as the library's own guidances), ``functools.partial``, bound methods,
    containers, and attributes called score, model, net, log_prob or classifier. Not seen: what a plain function or a
    lambda has closed over; make such a function an ``nn.Module``, or an object with one of these attributes.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def look(part: object) -> None:
        if part is None or isinstance(part, (Tensor, SDE, str, int, float)) or id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found[id(part)] = part
        if isinstance(part, Mapping):
            inside = list(part.values())
        elif isinstance(part, (tuple, list)):
            inside = list(part)
        else:
            names = [f.name for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
            inside = [getattr(part, name, None) for name in [*names, *_HOLDERS]]
        for other in inside:
            look(other)

    look(score)
    return tuple(found.values())


def parameters_of(score: object) -> tuple[nn.Parameter, ...]:
    """The parameters of :func:`modules_of`, each once."""
    return tuple({id(p): p for module in modules_of(score) for p in module.parameters()}.values())


def dtype_behind(function: object) -> torch.dtype | None:
    """That of the first floating parameter of :func:`parameters_of`; None where there is none."""
    return next((p.dtype for p in parameters_of(function) if p.is_floating_point()), None)
