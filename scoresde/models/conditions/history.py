"""With which conditions a network was trained, and how often it had to do without them::

    model.trained_with = TrainedWith(("label",), {"label": 0.1}, together=True)     # train() sets it, files keep it
    model.trained_with.share({"label"}), model.trained_with.share(())               # 0.9, 0.1
    model.trained_with.warn_unless_seen((), what="bind")                            # nothing: this was trained

A network answers whatever it is asked. Guidance compares it with and without its conditions, and what it says without
them means nothing where it was never trained so: that is known, and said.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from scoresde import checks
from scoresde.models.conditions.dropping import Dropout
from scoresde.warning import warn_user


@dataclass(frozen=True)
class TrainedWith:
    """What a training told its network.

    Attributes:
        names: of the conditions it was given; it has not learnt those of other names.
        dropout: probability with which a sample was trained without a condition, by name; one that is not here was
            always given.
        together: whether all that ``dropout`` names were left out at once, with the one probability that each has;
            else each on its own.
        weighting: of the loss over noise levels, in words, where it is known.
        coupling: of data and noise, in words; None where they were independent. Of a model that was trained with one,
            η = 0 alone is right: see :mod:`scoresde.losses.coupling`.
    """

    names: tuple[str, ...]
    dropout: Mapping[str, float]
    together: bool
    weighting: str | None = None
    coupling: str | None = None

    @classmethod
    def of(cls, names: Collection[str], dropout: Dropout, droppable: Collection[str]) -> Self:
        """From the option: a probability for all together, or one by name, for those that can be dropped."""
        if isinstance(dropout, Mapping):
            return cls(tuple(names), {name: float(p) for name, p in dropout.items() if p > 0}, False)
        return cls(tuple(names), dict.fromkeys(droppable, float(dropout)) if dropout > 0 else {}, True)

    def share(self, given: Collection[str]) -> float:
        """The probability with which a sample was trained with exactly these conditions."""
        if any(name not in self.names for name in given):
            return 0.0
        without = {name for name in self.names if name not in given}
        if not self.together:
            p = [self.dropout.get(name, 0.0) for name in self.names]
            return math.prod(q if name in without else 1 - q for name, q in zip(self.names, p, strict=True))
        p_all = next(iter(self.dropout.values()), 0.0)
        return 1 - p_all if not without else p_all if without == set(self.dropout) else 0.0

    def warn_unless_seen(self, given: Collection[str], *, what: str) -> None:
        """Warn where the network is to be asked with exactly these conditions and was never trained so.

        Args:
            given: names of the conditions that are not null.
            what: asks it, for the message.
        """
        if self.share(given) > 0:
            return
        foreign = [name for name in given if name not in self.names]
        never = [name for name in self.names if name not in given and name not in self.dropout]
        if foreign:
            trained = f"{list(self.names)}" if self.names else "no condition"
            why = f"with {_listed(foreign)}, which it never was in training (it was given {trained})"
            mend = f"train it with conditions={[*self.names, *foreign]}"
        elif never:
            why = f"without {_listed(never)}, which it was always given in training (a condition_dropout of 0 for it)"
            mend = f"train it with condition_dropout=0.1, or {{{never[0]!r}: 0.1, ...}}, or give it {_listed(never)}"
        else:
            together = sorted(self.dropout)
            asked = f"with {_listed(sorted(given))} alone" if given else "without conditions"
            why = f"{asked}, but in training {_listed(together)} were left out together or not at all"
            mend = (
                f"give all of them, or train it with condition_dropout={{{together[0]!r}: 0.1, ...}}, each on its own"
            )
        warn_user(
            f"{what} asks the network {why}; what it answers then was never trained and means nothing. To mend it: "
            f"{mend}."
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON; :meth:`from_json` is the inverse."""
        told = {"weighting": self.weighting, "coupling": self.coupling}
        known = {name: value for name, value in told.items() if value is not None}
        return {"conditions": list(self.names), "dropout": dict(self.dropout), "together": self.together, **known}

    @classmethod
    def from_json(cls, given: Any) -> Self:
        """From JSON of anybody's.

        Raises:
            TypeError, ValueError: it is none that :meth:`to_json` writes.
        """
        needed, known = {"conditions", "dropout", "together"}, {"weighting", "coupling"}
        if not isinstance(given, dict) or not needed <= set(given) <= needed | known:
            raise ValueError(f"expected conditions, dropout and together, got {checks.got(given)}")
        for name in known & set(given):
            if not isinstance(given[name], str) or len(given[name]) > _LONGEST:
                raise TypeError(
                    f"{name}: expected a text of at most {_LONGEST} characters, got {checks.got(given[name])}"
                )
        names, dropout = given["conditions"], given["dropout"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"conditions: expected names, got {checks.got(names)}")
        if not isinstance(dropout, dict) or not all(name in names for name in dropout):
            raise ValueError(f"dropout: expected probabilities of {names}, got {checks.got(dropout)}")
        for name, probability in dropout.items():
            checks.fraction(probability, name=f"dropout[{name!r}]")
        together = checks.flag(given["together"], name="together")
        return cls(tuple(names), dict(dropout), together, given.get("weighting"), given.get("coupling"))


_LONGEST = 1000  # characters of a weighting or a coupling in words


def _listed(names: Collection[str]) -> str:
    return " and ".join(map(repr, names))
