"""What a network says of its conditions: all of their kinds, by name, or their null values alone.

A network of ours holds :class:`Conditions`; one of anybody's says its ``null_conditions``, and may hold them, too::

    conditions = Conditions.joined(Label.named(10), Vector.named({"size": 2}))
    given = conditions.read({"label": y}, x)      # {"label": (B,), "size": None}, checked
    conditions.nulls                              # {"label": 10, "size": nan}
    conditions.config                             # {"num_classes": 10, "vectors": {"size": 2}}

    nulls_of(net), names_of(net), kinds_of(net)   # of any network, as far as it says
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from scoresde import checks
from scoresde.models.conditions.kinds import Condition, Label
from scoresde.models.conditions.rows import as_given, check_name

Kind = TypeVar("Kind", bound=Condition)


class Conditions(Mapping[str, Condition]):
    """All conditions of one network, by name, in the order in which the network lists them.

    Args:
        named: the conditions by name.

    Raises:
        TypeError, ValueError: no conditions by name, or a name that cannot be a keyword of net(x, c, ...).
    """

    def __init__(self, named: Mapping[str, Condition] | None = None) -> None:
        self._named: dict[str, Condition] = dict(as_given(named, name="named"))
        for name, one in self._named.items():
            check_name(name)
            checks.instance(one, Condition, name=f"named[{name!r}]")

    @classmethod
    def joined(cls, *groups: Mapping[str, Condition]) -> Conditions:
        """Those of several groups, each for example from one argument of a network.

        Raises:
            ValueError: a name that occurs twice, or that cannot be a keyword.
        """
        found: dict[str, Condition] = {}
        for group in groups:
            for name, one in group.items():
                if name in found:
                    raise ValueError(
                        f"the condition {name!r} is in {found[name].argument} and in {one.argument}; give each its own "
                        "name."
                    )
                found[name] = one
        return cls(found)

    def __getitem__(self, name: str) -> Condition:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        return f"Conditions({self._named})"

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """Those of exactly this kind, by name."""
        return {name: one for name, one in self._named.items() if type(one) is kind}

    @property
    def nulls(self) -> dict[str, float]:
        """What stands for "not given", by name: a network's ``null_conditions``."""
        return {name: one.null for name, one in self._named.items()}

    @property
    def config(self) -> dict[str, Any]:
        """The network's arguments that describe them, as JSON; kinds of which there are none are left out."""
        kinds = dict.fromkeys(type(one) for one in self._named.values())
        return {kind.argument: kind.described(self.of_kind(kind)) for kind in kinds}

    def read(self, given: Mapping[str, Tensor | None], x: Tensor) -> dict[str, Tensor | None]:
        """The conditions of a call for x (B, *event): all names, each checked and with a row for each sample.

        What is left out, or None, is what the kind says of it (:meth:`Condition.absent`). Values are looked at in main
        memory only.

        Raises:
            TypeError: an unknown name, no tensor, or a dtype that does not fit.
            ValueError: a shape, a device or a value that does not fit.
        """
        checks.state(x)
        for name in as_given(given, name="given"):
            if name not in self._named:
                takes = f"takes {', '.join(self._named)}" if self._named else "was built without any"
                raise TypeError(
                    f"unknown condition {name!r}: this network {takes}. Check the spelling, leave it out, or build the "
                    f"network with it, for example vectors={{{name!r}: 2}}, or num_classes=10 for a label."
                )
        return {name: one.read(name, given.get(name), x) for name, one in self._named.items()}


def nulls_of(net: object) -> dict[str, Any]:
    """What stands for "not given", by name, as the network's ``null_conditions`` say; {} for one that says nothing."""
    own = getattr(net, "null_conditions", None)
    return dict(own) if isinstance(own, Mapping) else {}


def names_of(net: object) -> list[str]:
    """The names of a network's conditions, as far as they can be read: its null_conditions and its signature."""
    known = list(nulls_of(net))
    further = (p.name for p in parameters_after_c(net) or () if p.kind not in STARS)
    return known + [name for name in further if name not in known]


STARS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def parameters_after_c(net: object) -> list[inspect.Parameter] | None:
    """The parameters of net(x, c, ...) after these two; None where there is nothing to read."""
    try:
        forward: Any = getattr(net, "forward", net)
        return list(inspect.signature(forward).parameters.values())[2:]
    except (TypeError, ValueError):
        return None


def kinds_of(net: object) -> dict[str, Condition]:
    """The kinds of a network's conditions by name, as far as it tells.

    It tells by an attribute ``conditions``, which is :class:`Conditions`. A null of "label" that is a whole number is
    its number of classes, too.
    """
    own = getattr(net, "conditions", None)
    found: dict[str, Condition] = dict(own) if isinstance(own, Conditions) else {}
    classes = nulls_of(net).get("label")
    if "label" not in found and isinstance(classes, int) and not isinstance(classes, bool) and classes > 0:
        found["label"] = Label(classes)
    return found


def check_values(kinds: Mapping[str, Condition], given: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError unless labels and tokens in main memory are in the network's range.

    Args:
        kinds: by name, from :func:`kinds_of`.
        given: tensors by name, of a batch or of a whole data set; those of other names are left alone.
        where: which, for the message.
    """
    for name, kind in kinds.items():
        if name in given:
            kind.check_values(name, given[name], where)
