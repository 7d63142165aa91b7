"""A device without float64, as Apple's MPS is: tensors that live in main memory and say that they are on "mps".

Inside :func:`device` what is made on "mps", or moved there, is an :class:`OnDevice`, whose numbers a CPU tensor holds.
It refuses what that device refuses: float64 on it, and operations with tensors of another device, but for numbers ().
To torch's own code, which is not built with MPS on this machine, they are on "meta", which needs no driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

MPS, STANDS_FOR = torch.device("mps", 0), ("mps", "meta")
WIDE = (torch.float64, torch.complex128)
MAY_MIX = {"_to_copy", "copy_", "_local_scalar_dense", "set_", "_copy_from"}  # these move numbers between devices


class OnDevice(torch.Tensor):
    """A tensor of the device; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if held.dtype in WIDE:
            raise TypeError(f"a tensor of {held.dtype} {tuple(held.shape)} was made on a device that has none")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta",
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: MPS)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_mps = property(lambda self: True)  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    def __tensor_flatten__(self) -> Any:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> OnDevice:
        return OnDevice(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


def carried_out(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation among whose arguments are tensors of the device, or that makes one there."""
    leaves = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    name = func._schema.name.split("::")[-1]
    if name not in MAY_MIX:
        for one in leaves:
            if not isinstance(one, OnDevice) and one.ndim:
                raise RuntimeError(f"{name} of tensors on mps and {one.device}, {[tuple(x.shape) for x in leaves]}")
    device = kwargs.get("device")
    there = (bool(leaves) and any(isinstance(one, OnDevice) for one in leaves)) if device is None else _is_mps(device)
    inner = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    plain_args, plain_kwargs = tree_map(_held, args), tree_map(_held, inner)
    if there and kwargs.get("dtype") in WIDE:
        raise TypeError(f"{name} makes a tensor of {kwargs['dtype']} on a device that has none")
    if name == "copy_" and not isinstance(args[0], OnDevice):
        func(*plain_args, **plain_kwargs)
        return args[0]
    out = func(*plain_args, **plain_kwargs)
    if not there:
        return out
    out = tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if leaves else out


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnDevice) else x


def _is_mps(device: Any) -> bool:
    return torch.device(device).type in STANDS_FOR


class Device(TorchDispatchMode):
    """While active, "mps" is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and _is_mps(asked):
            return carried_out(func, args, kwargs)
        return func(*args, **kwargs)


class Made(TorchFunctionMode):
    """``torch.tensor`` and the like, which make a tensor before anybody can step in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            asked = kwargs["device"]
            if _is_mps(asked) and not isinstance(args[0], OnDevice):
                return func(*args, **{**kwargs, "device": "cpu"}).to(asked)
        return func(*args, **kwargs)


@contextmanager
def device() -> Iterator[torch.device]:
    """Inside, the device is there."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Made(), Device():
            yield MPS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(swap)
