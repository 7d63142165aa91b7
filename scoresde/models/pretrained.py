"""Models that can be kept and shared: what a model knows of its data, and the methods that write and read folders::

    model.save_pretrained("digits", licence="mit", figures={"accuracy": 0.99})
    model = ScoreModel.from_pretrained("digits")            # or "owner/name" of a hub; averaged weights where there are
    model.event_shape, model.class_names, model.scaling     # what it learned from
    model.push_to_hub("owner/name", licence="mit")

:class:`Pretrained` is a base of :class:`~scoresde.models.ScoreModel` and :class:`~scoresde.models.ClassifierModel`. The
work is done by :mod:`scoresde.hub`, far above this module: its methods find it in the root when they are called, the
one place in the library where something lower asks something higher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import scoresde
from scoresde.curve import LossCurve
from scoresde.models.score import Units
from scoresde.sde import SDE

NOTHING: Mapping[str, Any] = {}  # of all models that know nothing; nobody writes into it


class Pretrained(nn.Module):
    """A model that knows what it learned from, and can be written and read.

    Attributes:
        scaling: the map between x_0 and the data, where it is known.
        condition_scalings: by name, the maps by which conditions are brought to the network's units.
        event_shape: shape of one sample, where it is known.
        class_names: the names of the classes, where there are any.
        vocabularies: the words of tokens, a :class:`~scoresde.nn.Vocabulary` by the name of the condition.
        condition_shapes: shape and dtype of each condition besides the label, by name, as checkpoints describe them.
        loss_curve: the loss at each noise level on samples that training held out, a
            :class:`~scoresde.curve.LossCurve` of the averaged weights; None where none was measured.
    """

    scaling: Units | None = None
    condition_scalings: Mapping[str, Units] = NOTHING
    event_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    vocabularies: Mapping[str, Any] = NOTHING
    condition_shapes: Mapping[str, Mapping[str, Any]] = NOTHING
    loss_curve: LossCurve | None = None

    @property
    def averaged(self) -> bool | None:
        """Whether the weights are an average over the steps of a training: ``ema_model`` and ``load_model`` say so.

        None where that is not known; also in a copy, and once a weight has been changed since.
        """
        told, at = self.__dict__.get("_averaged", (None, ()))
        return told if told is not None and at == self._changes() else None

    @averaged.setter
    def averaged(self, value: bool | None) -> None:
        self.__dict__["_averaged"] = (value, self._changes())

    def _changes(self) -> tuple[int, ...]:
        """How often each parameter was changed in place, as torch counts."""
        return tuple(-1 if is_lazy(p) or p.is_inference() else p._version for p in self.parameters())

    def save_pretrained(
        self,
        folder: str | PathLike[str],
        *,
        ema: Any = None,
        dtype: torch.dtype | None = None,
        licence: str | None = None,
        figures: Mapping[str, Any] | None = None,
        notes: str | None = None,
        picture: str | PathLike[str] | None = None,
        max_bytes: int | None = None,
        overwrite: bool = False,
        source: str | None = None,
    ) -> Path:
        """Write the model into a folder of its own, with a model card; see :func:`scoresde.hub.save_pretrained`."""
        given = _without(locals(), "folder")
        return _hub().save_pretrained(self, folder, **given)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        ema: bool | None = None,
        dtype: torch.dtype | None = None,
        net: Callable[..., Tensor] | None = None,
        sde: SDE | None = None,
        predicts: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        max_bytes: int = 20_000_000_000,
    ) -> Self:
        """The model in a folder or a repository of a hub, or one that ships with the library; see
        :func:`scoresde.hub.from_pretrained`.
        """
        given = _without(locals(), "path_or_id")
        return _hub().from_pretrained(path_or_id, kind=cls, **given)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        ema: Any = None,
        dtype: torch.dtype | None = None,
        licence: str | None = None,
        figures: Mapping[str, Any] | None = None,
        notes: str | None = None,
        picture: str | PathLike[str] | None = None,
        max_bytes: int | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        message: str | None = None,
        pull_request: bool = False,
    ) -> str:
        """Write the model into a repository of a hub, in one commit; see :func:`scoresde.hub.push_to_hub`."""
        given = _without(locals(), "repo_id")
        return _hub().push_to_hub(self, repo_id, **given)


def _hub() -> Any:
    return scoresde.hub


def _without(given: Mapping[str, Any], first: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("self", "cls", first)}
