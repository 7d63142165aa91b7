"""Which tensors a computation uses that were there before it: what a gradient must reach besides the arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


class Listener(TorchDispatchMode):
    """Notes every tensor that requires a gradient and enters an operation while the mode is on.

    The computation runs without gradients, so that what it makes itself requires none; exceptions are graphs of its
    own, such as a guidance's, whose tensors :meth:`outside` leaves out: they are younger or dead by then. An operation
    is seen below autograd, wherever it was called from: Python, a module, a script.

    Attributes:
        drew: whether random numbers were drawn otherwise than from a generator that was named.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = WeakTensorKeyDictionary()
        self.step = 0
        self.drew = False
        with torch.enable_grad():
            youngest = torch.zeros((), requires_grad=True) * 1.0
        assert youngest.grad_fn is not None
        self._mark = youngest.grad_fn._sequence_nr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", (torch.Tag.nondeterministic_seeded,)):
            self.drew |= not any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self._note(value)
            elif isinstance(value, (list, tuple)):
                for part in value:
                    if isinstance(part, Tensor):
                        self._note(part)
        return func(*args, **kwargs)

    def _note(self, value: Tensor) -> None:
        if value.requires_grad:
            first, _ = self._seen.get(value, (self.step, self.step))
            self._seen[value] = (first, self.step)

    def outside(self) -> list[tuple[Tensor, int, int]]:
        """The tensors from outside, each with the first and the last step that used it."""
        return [
            (value, first, last)
            for value, (first, last) in self._seen.items()
            if value.grad_fn is None or value.grad_fn._sequence_nr() < self._mark
        ]


def derived(values: Iterable[Tensor]) -> list[int]:
    """The indices of those among ``values`` that were computed from others among them."""
    values = list(values)
    leaves = {id(value) for value in values if value.grad_fn is None}
    marked = {value.grad_fn for value in values if value.grad_fn is not None}
    reaches: dict[Any, bool] = {}

    def known(node: Any) -> bool:
        return node in marked or id(getattr(node, "variable", None)) in leaves or reaches.get(node, False)

    for value in values:
        # depth first without recursion: graphs are deeper than Python's stack
        stack = [value.grad_fn] if value.grad_fn is not None else []
        while stack:
            node = stack[-1]
            below = [other for other, _ in node.next_functions if other is not None]
            new = [other for other in below if other not in reaches]
            if node in reaches or not new:
                reaches[node] = any(known(other) for other in below)
                stack.pop()
            else:
                stack.extend(new)
    return [i for i, value in enumerate(values) if value.grad_fn is not None and reaches[value.grad_fn]]


@contextmanager
def stopped(values: Iterable[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Inside, a gradient that reaches one of ``values`` is put into the answer, by id, and goes no further.

    Without it the gradient of an ancestor would hold what came through its descendants a second time.
    """
    caught: dict[int, Tensor] = {}

    def catch(value: Tensor) -> Any:
        def hook(gradient: Tensor) -> Tensor:
            caught[id(value)] = gradient
            return torch.zeros_like(gradient)

        return value.register_hook(hook)

    handles = [catch(value) for value in values]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
