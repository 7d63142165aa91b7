"""What the values of training options must be: one check for each kind, named in the options' ``Annotated``::

    lr: Annotated[float, is_number(above=0)] = 1e-3
    steps: Annotated[int, is_whole(1)]

A check is called with the name of the option and its value, and raises TypeError or ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, get_args

from torch import optim

from scoresde import checks, losses
from scoresde.data import Augmentation, Scaling
from scoresde.data.columns import check_columns
from scoresde.losses import WEIGHTINGS, Uncertainty
from scoresde.train.posthoc import Snapshots

Precision = Literal["no", "bf16"]
Sharding = Literal["no", "full"]
Check = Callable[[str, Any], None]
"""(name, value) -> nothing, or it raises. A value of None is not shown to it where the type allows None."""


def is_whole(least: int | None = None) -> Check:
    """A whole number, of at least so much."""

    def check(name: str, value: Any) -> None:
        checks.whole(value, name=name, least=least)

    return check


def is_number(*, above: float = -math.inf, least: float = -math.inf, below: float = math.inf) -> Check:
    """A finite number, in its range."""
    ends = {"above": above, "at least": least, "below": below}
    words = " and ".join(["finite", *(f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end))])

    def check(name: str, value: Any) -> None:
        given = checks.number(value, name=name)
        if not (math.isfinite(given) and above < given and least <= given < below):
            raise ValueError(f"{name} must be {words}, got {given:g}.")

    return check


def are_betas(name: str, value: Any) -> None:
    """Two numbers in [0, 1)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers in [0, 1), got {checks.got(value)}.")
    if not all(0 <= checks.number(beta, name=f"each of {name}") < 1 for beta in value):
        raise ValueError(f"{name} must be two numbers in [0, 1), got {value}.")


def are_decays(name: str, value: Any) -> None:
    """A number in [0, 1), or a few different ones."""
    if isinstance(value, (tuple, list)):
        if not 1 <= len(value) <= MOST_DECAYS:
            raise ValueError(f"{name} must be 1 to {MOST_DECAYS} decays, got {len(value)}.")
        if len({checks.number(one, name=f"each of {name}") for one in value}) < len(value):
            raise ValueError(f"{name} must be different decays, got {value}.")
    for one in value if isinstance(value, (tuple, list)) else [value]:
        is_number(least=0, below=1)(name, one)


MOST_DECAYS = 8
"""Averages of the weights that one run follows."""


def is_snapshots(name: str, value: Any) -> None:
    """When averages are kept for later."""
    checks.instance(value, Snapshots, name=name, hint="Snapshots(every=1000).")


def is_precision(name: str, value: Any) -> None:
    """A format of the network's computations that needs no scaling of the loss."""
    if not (value is None or isinstance(value, str)) or value not in get_args(Precision):
        hint = " float16 needs loss scaling, which this loop does not do." if str(value) == "fp16" else ""
        allowed = ", ".join(map(repr, get_args(Precision)))
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.{hint}")


def is_sharding(name: str, value: Any) -> None:
    """How processes divide the weights."""
    checks.one_of(value, get_args(Sharding), name=name)


def is_density(name: str, value: Any) -> None:
    """A density of training times."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a density, got the class {value.__name__}; add its parentheses.")
    if not callable(getattr(value, "sample", None)):
        raise TypeError(
            f"{name} must be a density of scoresde.times, such as UniformTime() or Stratified(LogNormalSigma()), "
            f"got {value!r}."
        )


def is_weighting(name: str, value: Any) -> None:
    """A weighting of the loss, or the name of one."""
    if isinstance(value, str):
        if value not in WEIGHTINGS:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, WEIGHTINGS))}, got {value!r}. A function (sde, t) -> (B,) "
                "will do as well."
            )
    elif value is losses.edm or value is losses.min_snr:
        maker = words(value)
        raise TypeError(f"losses.{maker} makes a weighting: call it, {name}=losses.{maker}(...).")
    elif not (callable(value) or isinstance(value, Uncertainty)) or isinstance(value, type):
        raise TypeError(f"{name} must be a name, a function (sde, t) -> (B,), or losses.Uncertainty(), got {value!r}.")


def is_coupling(name: str, value: Any) -> None:
    """A coupling of data and noise."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"{name} must be a coupling of scoresde.losses, such as OptimalTransport(), or a function (x0, eps, "
            f"conditions) -> eps, got {value!r}."
        )


def is_dropout(name: str, value: Any) -> None:
    """A probability, or probabilities by name."""
    for key, probability in (value if isinstance(value, Mapping) else {None: value}).items():
        if key is not None and not isinstance(key, str):
            raise TypeError(f"{name} must be by the names of conditions, texts; got the name {checks.got(key)}.")
        called = name if key is None else f"{name}[{key!r}]"
        try:
            given = checks.number(probability)
        except TypeError as error:
            text = f"{called} must be a number, or numbers by the names of conditions, got {checks.got(probability)}."
            raise TypeError(text) from error
        if not 0 <= given < 1:
            raise ValueError(f"{called} must be a probability in [0, 1), got {probability}.")


def are_names(name: str, value: Any) -> None:
    """A list of names, each once."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a list of names, got {value!r}; write [{value!r}].")
    if not isinstance(value, (Sequence, Set)) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} must be a list of names, got {checks.got(value)}.")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must name each condition once, got {value}.")


def is_path(name: str, value: Any) -> None:
    """A path as text, or an object that is one."""
    checks.path(value, name=name)


def are_columns(name: str, value: Any) -> None:
    """Ours by theirs."""
    check_columns(value, name=name)


def is_scaling(name: str, value: Any) -> None:
    """A map to model units."""
    checks.instance(value, Scaling, name=name, hint="Such as Scaling(shift=mean, scale=deviation).")


def is_augmentation(name: str, value: Any) -> None:
    """What moves pictures about."""
    checks.instance(value, Augmentation, name=name, hint="Such as Augmentation(0.12).")


def is_optimizer(name: str, value: Any) -> None:
    """An instance, or a function that makes one."""
    if isinstance(value, optim.Optimizer):
        return
    if not callable(value):
        raise TypeError(
            f"{name} must be a torch.optim.Optimizer, or a function of the parameters that returns one, such as "
            f"lambda p: torch.optim.SGD(p, lr=0.1); got {checks.got(value)}."
        )


def is_held_out(name: str, value: Any) -> None:
    """A share, or a data set with random access."""
    if isinstance(value, (str, bytes, type, bool, Mapping)):
        raise TypeError(
            f"{name} must be a share in (0, 1), or a data set with len(d) and d[i]; got {checks.got(value)}."
        )
    axes: int | None = getattr(value, "ndim", None)
    if hasattr(value, "__len__") and hasattr(value, "__getitem__") and axes != 0:
        return
    if hasattr(value, "__iter__") and axes != 0:
        raise TypeError(
            f"{name} must be a share in (0, 1), or a data set with len(d) and d[i], as a list of the first samples of "
            f"a stream is one; got {checks.got(value)}."
        )
    share = checks.number(value, name=name)
    if not 0 < share < 1:
        raise ValueError(f"{name} must be a share in (0, 1), or a data set with len(d) and d[i]; got {share:g}.")


def words(value: object) -> str:
    """A function's name, else what it says of itself."""
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else repr(value)
