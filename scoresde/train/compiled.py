"""The network of a run, compiled by ``torch.compile`` for its training steps alone::

    compiled = Compiled(model.net, sizes={128}, device=device)     # whether there is a compiler is found out here
    with compiled.used():
        loss = objective(x0, t, eps, weight, given)                # the first such call compiles, which takes a minute
        loss.backward()

Inside, calls of the network go through its compiled form; outside, it is the plain module with the plain names of its
weights: what a callback samples at another batch size, the averages, copies and checkpoints know nothing of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from scoresde import checks

BACKEND = "inductor"
"""Of ``torch.compile``."""


class NotCompiled(RuntimeError):
    """What ``compile=True`` asks for cannot be done: no compiler, or a network that torch fails on."""


class Compiled:
    """A network that is compiled when it is first called inside :meth:`used`.

    Args:
        net: the network.
        sizes: numbers of samples that it will be called with. Where there is one, the code is made for it alone;
            where there are several, torch makes one for the first, and for the second one of any size.
        device: where it computes.

    Attributes:
        seconds: what the first use took, most of it compiling; None before.

    Raises:
        TypeError: no module. ValueError: compiled already. RuntimeError: nothing can be compiled here.
    """

    def __init__(self, net: Any, sizes: Set[int], device: torch.device) -> None:
        module = checks.instance(net, nn.Module, name="the network", hint="compile=True compiles modules.")
        if module._compiled_call_impl is not None:
            raise ValueError(
                "the network is compiled already, by net.compile(): leave compile=True out, and training uses it as it "
                "is."
            )
        check_compiler(device.type)
        self._net = module
        module.compile(dynamic=False if len(sizes) == 1 else None, backend=BACKEND)
        self._call = module.__dict__.pop("_compiled_call_impl")  # put back for the time of a step
        self.seconds: float | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the network computes in its compiled form.

        Raises:
            NotCompiled: it cannot be compiled.
        """
        start = time.perf_counter()
        self._net._compiled_call_impl = self._call
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise NotCompiled(
                f"compile=True: torch.compile failed on {type(self._net).__name__}: {error}. Leave compile out; or "
                "compile those parts of it that can be, by their own .compile(), before training."
            ) from error
        finally:
            self._net.__dict__.pop("_compiled_call_impl", None)
        if self.seconds is None:
            self.seconds = time.perf_counter() - start


@functools.cache
def check_compiler(device: str) -> None:
    """Raise unless ``torch.compile`` makes a function of one line run on this kind of device; takes seconds, once.

    Raises:
        NotCompiled: it does not; which usually is for want of a C++ compiler, or of Triton.
    """
    try:
        with torch.no_grad():
            torch.compile(_one_more, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # of Python, of a compiler, of the system: whatever is missing
        wanted = "a C++ compiler (g++ or clang++) in PATH" if device == "cpu" else "Triton and a C compiler"
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise NotCompiled(
            f"compile=True: torch.compile does not work here on {device!r}: {line}. It needs {wanted}; without, leave "
            "compile out: the run is the same but for rounding."
        ) from error


def _one_more(x: torch.Tensor) -> torch.Tensor:
    return x + 1
