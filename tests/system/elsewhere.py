"""Stand-ins for devices that this machine has not: tensors that live in main memory and say that they are elsewhere.

Inside :func:`device` what is made on the device, or moved there, is an :class:`OnDevice`, whose numbers a CPU tensor
holds. It refuses operations with tensors of another device, but for numbers (), and what else the device refuses:
:data:`MPS`, as Apple's, has no float64. :data:`AFAR` computes in everything, as CUDA does; what makes the host wait
for it is told to whoever listens, by :func:`waits`.

To torch's own code, which is not built with them on this machine, they are on "meta", which needs no driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

MPS, AFAR = torch.device("mps", 0), torch.device("maia", 0)
WIDE = (torch.float64, torch.complex128)
MAY_MIX = {"to", "_to_copy", "copy_", "_local_scalar_dense", "set_", "_copy_from"}  # these move numbers between devices
LOOKS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "multinomial", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd",
    "linalg_eig", "linalg_lstsq", "nonzero_static", "is_nonzero", "item", "histc",
}  # fmt: skip
"""What a CUDA kernel's caller reads numbers for: the size of what comes out, whether a factorisation succeeded."""


class _Now:
    """The device that is there, and who hears of waits for it."""

    device: torch.device = MPS
    heard: Callable[[str], None] | None = None


class OnDevice(torch.Tensor):
    """A tensor of the device; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if _Now.device is MPS and held.dtype in WIDE:
            raise TypeError(f"a tensor of {held.dtype} {tuple(held.shape)} was made on a device that has none")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta",
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: _Now.device)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_mps = property(lambda self: _Now.device is MPS)  # type: ignore[assignment]

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
    leaves = _tensors((args, kwargs), [])
    name = func._schema.name.split("::")[-1]
    if name not in MAY_MIX:
        for one in leaves:
            if not isinstance(one, OnDevice) and one.ndim and not (name.startswith("index") and one is not leaves[0]):
                kind = _Now.device.type
                raise RuntimeError(f"{name} of tensors on {kind} and {one.device}, {[tuple(x.shape) for x in leaves]}")
    device = kwargs.get("device")
    there = (bool(leaves) and any(isinstance(one, OnDevice) for one in leaves)) if device is None else _is_here(device)
    inner = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    plain_args, plain_kwargs = _held(args), _held(inner)
    if _Now.heard is not None:
        why = waits(name, leaves, args, kwargs, there)
        if why:
            _Now.heard(why)
    if _Now.device is MPS and there and kwargs.get("dtype") in WIDE:
        raise TypeError(f"{name} makes a tensor of {kwargs['dtype']} on a device that has none")
    if name == "copy_" and not isinstance(args[0], OnDevice):
        func(*plain_args, **plain_kwargs)
        return args[0]
    out = func(*plain_args, **plain_kwargs)
    if not there:
        return out
    out = (
        OnDevice(out)
        if isinstance(out, Tensor)
        else tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, out)
    )
    return return_and_correct_aliasing(func, args, kwargs, out) if leaves and name != "to" else out


def waits(name: str, leaves: list[Tensor], args: Any, kwargs: Any, there: bool) -> str:
    """Why the host would wait for a GPU that does this: what ``torch.cuda.set_sync_debug_mode`` would tell of."""
    far = [isinstance(one, OnDevice) for one in leaves]
    if name in LOOKS and any(far):
        return name
    if name in ("to", "_to_copy", "copy_", "_copy_from") and leaves:
        source = isinstance(args[0] if name in ("to", "_to_copy") else args[1], OnDevice)
        target = there if name in ("to", "_to_copy") else isinstance(args[0], OnDevice)
        relaxed = kwargs.get("non_blocking") or (len(args) > 2 and args[2]) if name not in ("to", "_to_copy") else None
        relaxed = kwargs.get("non_blocking", False) if relaxed is None else relaxed
        if source and not target:
            return f"{name} to main memory {tuple(leaves[-1].shape)}"
        if target and not source and not relaxed:
            return f"{name} from main memory {tuple(leaves[-1].shape)}"
    if name == "where" and any(far) and not all(far):
        return "where with a number () of main memory"
    if name.startswith(("index", "_index_put", "_unsafe_index")) and any(far):
        indices = _tensors(args[1], []) if len(args) > 1 else []
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
            return f"{name} by a mask"
        if not all(far):
            return f"{name} by indices of main memory"
    if name == "repeat_interleave" and any(far) and kwargs.get("output_size") is None:
        return "repeat_interleave by a tensor"
    return ""


def _held(part: Any) -> Any:
    """The same arguments of the tensors in main memory; torch's own tree_map takes most of a test's time."""
    if isinstance(part, OnDevice):
        return part.held
    if isinstance(part, (tuple, list)):
        return type(part)([_held(one) for one in part])
    return {key: _held(one) for key, one in part.items()} if isinstance(part, dict) else part


def _tensors(part: Any, found: list[Tensor]) -> list[Tensor]:
    if isinstance(part, Tensor):
        found.append(part)
    elif isinstance(part, (tuple, list, dict)):
        for one in part.values() if isinstance(part, dict) else part:
            _tensors(one, found)
    return found


def _is_here(device: Any) -> bool:
    return torch.device(device).type in (_Now.device.type, "meta")


class Device(TorchDispatchMode):
    """While active, the device is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        # torch's own derivatives ask for the shapes of what they make by tensors of that device
        about_shapes = func is torch.ops.aten.to.dtype_layout and str(asked) == "meta"
        if asked is not None and _is_here(asked) and not about_shapes:
            return carried_out(func, args, kwargs)
        return func(*args, **kwargs)


class Made(TorchFunctionMode):
    """``torch.tensor`` and the like, which make a tensor before anybody can step in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            asked = kwargs["device"]
            if _is_here(asked) and not isinstance(args[0], OnDevice):
                return func(*args, **{**kwargs, "device": "cpu"}).to(asked)
        if func is Tensor.tolist and isinstance(args[0], OnDevice):  # torch refuses it of subclasses
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


@contextmanager
def device(which: torch.device = MPS, heard: Callable[[str], None] | None = None) -> Iterator[torch.device]:
    """Inside, the device is there; ``heard`` is told of all that makes the host wait for it."""
    swap, before = torch.__future__.get_swap_module_params_on_conversion(), (_Now.device, _Now.heard)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _Now.device, _Now.heard = which, heard
    try:
        with Made(), Device():
            yield which
    finally:
        _Now.device, _Now.heard = before
        torch.__future__.set_overwrite_module_params_on_conversion(swap)
