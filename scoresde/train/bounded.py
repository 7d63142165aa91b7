"""What a stranger's description may make us build: no more than the file beside it holds.

A network of a billion layers takes for ever even where its weights take no memory. So the numbers in the description
are compared with the tensors that the file really holds, and while the network is built, without memory, its parts are
counted::

    check_arguments(config, layout, fail)                   # layout: the tensors of the file, by name
    with torch.device("meta"), at_most(layout, fail):
        net = MLP(**config)

``fail`` makes the error of a text (:mod:`scoresde.files`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_module

from scoresde.files import Fail

LEAST = 4096
"""A number up to which an argument need not be the size of a tensor; also the most entries of a list or mapping."""

_MODULES = 8  # of a network, and buffers that are not saved, for each tensor: ours have about one


def check_arguments(config: Mapping[str, Any], layout: Mapping[str, Tensor], fail: Fail) -> None:
    """Raise where an argument of a network is a number larger than any size of the tensors in the file, or a long list.

    Args:
        config: the arguments, from JSON.
        layout: the tensors of the file.
        fail: makes the error of a text.
    """
    largest = max((max(value.shape, default=1) for value in layout.values()), default=1)
    limit = max(LEAST, largest, len(layout))
    waiting: list[tuple[str, Any]] = [("model.net.config", config)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, (dict, list)):
            if len(value) > LEAST:
                raise fail(f"{at} has {len(value)} entries; the limit is {LEAST}.")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{at}.{key!s:.60}", one) for key, one in items]
        elif isinstance(value, int) and abs(value) > limit:
            raise fail(f"{at} is {value}; the limit is {limit}, for {len(layout)} tensors of sizes up to {largest}.")
        elif isinstance(value, str) and len(value) > LEAST:
            raise fail(f"{at} has {len(value)} characters; the limit is {LEAST}.")


@contextmanager
def at_most(layout: Mapping[str, Tensor], fail: Fail) -> Iterator[None]:
    """Inside, this thread builds no network of more parameters than these tensors; other threads are left alone."""
    thread, parameters, parts = threading.get_ident(), 0, 0
    limits = len(layout), 64 + _MODULES * len(layout)

    def parameter(owner: Any, name: str, value: Any) -> None:
        nonlocal parameters
        if threading.get_ident() == thread and value is not None:
            parameters += 1
            if parameters > limits[0]:
                raise fail(f"the network has more parameters than the {limits[0]} tensors in the file, the limit.")

    def part(owner: Any, name: str, value: Any) -> None:
        nonlocal parts
        if threading.get_ident() == thread:
            parts += 1
            if parts > limits[1]:
                raise fail(f"the network has more than {limits[1]} modules, the limit for {limits[0]} tensors.")

    with ExitStack() as hooks:
        for registered, hook in (
            (torch_module.register_module_parameter_registration_hook, parameter),
            (torch_module.register_module_module_registration_hook, part),
            (torch_module.register_module_buffer_registration_hook, part),
        ):
            hooks.callback(registered(hook).remove)
        yield
