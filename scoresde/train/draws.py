"""The randomness of a training step as a pure function of (seed, step, position in the global batch).

Nothing here has a state worth saving: a resumed run draws what the uninterrupted one would have drawn, and each of N
processes draws its own rows of the batch that one process would have seen.

:class:`DataOrder` says which samples a step has, :class:`Uniforms` and :func:`step_noise` what it draws, and
:func:`derive` makes the seed of a named stream::

    indices = DataOrder(len(dataset), batch_size=128, seed=0).indices(step)
    uniforms = Uniforms.draw(seed, step, batch_size=128)            # .time, .condition_dropout, .flip, each (128,)
    eps = step_noise(seed, step, rows.start, x0)                    # for rows of the batch, shaped like x0
    with seeded_where(draws_itself(net), device, derive(seed, "network", step, rank)):
        ...                                                         # nn.Dropout draws from torch's generators

:class:`~scoresde.train.Run` calls them at each step, which is counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde.noise import counter_normal
from scoresde.noise.base import digest


def derive(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the stream named ``key``, by hashing."""
    return digest(repr((seed, *key))) >> 1


class DataOrder:
    """Every epoch a fresh permutation, batches running across the borders: any step's samples, at random access.

    Args:
        size: of the data set.
        batch_size, seed: of the run.
        places: (size,) int64, the samples, where they are some of a larger data set.
    """

    def __init__(self, size: int, batch_size: int, seed: int, places: Tensor | None = None) -> None:
        self._size, self._batch_size, self._seed, self._places = size, batch_size, seed, places
        self._permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """The samples of a step (counted from 0), (batch_size,) int64."""
        position, wanted = step * self._batch_size, self._batch_size
        pieces = []
        while wanted:
            epoch, offset = divmod(position, self._size)
            piece = self._permutation(epoch)[offset : offset + wanted]
            pieces.append(piece)
            position, wanted = position + len(piece), wanted - len(piece)
        found = torch.cat(pieces)
        return found if self._places is None else self._places[found]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {k: v for k, v in self._permutations.items() if k == epoch - 1}
            generator = torch.Generator("cpu").manual_seed(derive(self._seed, "order", epoch))
            self._permutations[epoch] = torch.randperm(self._size, generator=generator, device="cpu")
        return self._permutations[epoch]


@dataclass(frozen=True)
class Uniforms:
    """Uniforms in [0, 1) of one step, each (batch_size,) float64 on the CPU, for the whole global batch."""

    time: Tensor
    condition_dropout: Tensor
    flip: Tensor

    @classmethod
    def draw(cls, seed: int, step: int, batch_size: int) -> Uniforms:
        """Those of a step."""
        generator = torch.Generator("cpu").manual_seed(derive(seed, "uniforms", step))
        return cls(*torch.rand(3, batch_size, dtype=torch.float64, generator=generator, device="cpu"))


def named_uniforms(seed: int, step: int, batch_size: int, name: str) -> Tensor:
    """Uniforms in [0, 1) of one step for one more use, (batch_size,) float64 on the CPU, for the whole global batch."""
    generator = torch.Generator("cpu").manual_seed(derive(seed, name, step))
    return torch.rand(batch_size, dtype=torch.float64, generator=generator, device="cpu")


def step_noise(seed: int, step: int, first: int, like: Tensor, *, name: str = "noise") -> Tensor:
    """N(0, I) of the rows first ... first + B - 1 of the global batch, shaped like ``like`` (B, *event).

    Streams of different ``name`` are independent.
    """
    key = (derive(seed, name), step)
    return counter_normal(tuple(like.shape), key, first=first, dtype=like.dtype, device=like.device)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, torch's default generators (those of nn.Dropout) start from ``seed``; outside they are untouched.

    What torch.random.fork_rng and torch.manual_seed do, for the two generators that matter: those visit every
    backend, which costs more than the rest of the loop.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    apple = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        for generator in generators:
            generator.manual_seed(seed)
        if apple is not None:
            torch.mps.manual_seed(seed % 2**32)
        yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seeded_where(draws: bool, device: torch.device, seed: int) -> AbstractContextManager[None]:
    """``seeded`` where something draws from torch's generators, else nothing: another thread may be drawing from them.

    They belong to the whole process. What another thread draws while they are seeded is not what it would have drawn.
    """
    return seeded(device, seed) if draws else nullcontext()


def draws_itself(module: nn.Module) -> bool:
    """Whether a module may draw from torch's generators in training.

    Those of torch and of this library are known: dropout of a positive probability does, and what is named in
    ``_RANDOM``. Anything that somebody else wrote, a class or a hook, may.
    """
    return any(_draws(part) for part in module.modules())


_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def _draws(part: nn.Module) -> bool:
    if not type(part).__module__.startswith(("torch.nn.", "scoresde.")) or "forward" in vars(part):
        return True
    if any(vars(part).get(hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
        return True
    rates = [getattr(part, name, 0) for name in ("dropout", "p")]
    return isinstance(part, _RANDOM) or any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def is_of_ours(function: object) -> bool:
    """Whether a function, or an object and what it holds, is of this library: such draw from what they are given."""
    if function is None or isinstance(function, (int, float, str, Tensor)):
        return True
    if isinstance(function, tuple):
        return all(map(is_of_ours, function))
    home = getattr(function, "__module__", None) or type(function).__module__
    return str(home).startswith("scoresde.") and all(map(is_of_ours, getattr(function, "__dict__", {}).values()))
