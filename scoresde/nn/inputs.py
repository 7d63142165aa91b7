"""Checks of what reaches a network: each error says what came in, what was expected and how to mend it."""

from __future__ import annotations

import torch
from torch import Tensor

TIME_HINT = "one number per sample, c = log(sigma/alpha); for one common time pass c.expand(len(x))"


def check_event(x: Tensor, channels: int, event_dims: int) -> None:
    """Raise unless x is a floating tensor (B, channels, *spatial) with event_dims spatial axes."""
    spatial = ", ".join(["H", "H, W", "D, H, W"][event_dims - 1 : event_dims])
    if x.ndim != event_dims + 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this network was built with event_dims={event_dims} and expects "
            f"(B, {channels}, {spatial}). Add the missing batch or channel axis, or change event_dims."
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"x has {x.shape[1]} channels (shape {tuple(x.shape)}), but this network was built with "
            f"channels={channels}. Channels come second: (B, {channels}, {spatial})."
        )
    check_floating(x)


def check_vector(x: Tensor, dim: int) -> None:
    """Raise unless x is a floating tensor (B, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}; this network was built with dim={dim} and expects (B, {dim}).")
    check_floating(x)


def check_floating(x: Tensor, name: str = "x") -> None:
    """Raise unless x holds real floating-point numbers."""
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; expected a floating-point tensor, e.g. {name}.float().")


def readable(x: Tensor) -> bool:
    """Whether the values of x can be looked at without stalling a device or breaking a transform."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):  # vmap may sit below a derivative
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return True


def check_rows(values: Tensor, name: str, row: str) -> None:
    """Raise unless each row of a condition is finite, or all NaN for "not given"; in main memory only.

    values is (B, ...), one row per sample, or with row="token" (B, L, E), one row per token.
    """
    if not values.numel() or not readable(values):
        return
    rows = values.detach().flatten(0, 1) if row == "token" else values.detach().flatten(1)
    finite = rows.isfinite()
    bad = ~(finite.all(1) | rows.isnan().all(1))
    if bad.any():
        kinds = "infinite values" if rows.isinf().any() else f"NaN in part of a {row}"
        length = values.shape[1] if row == "token" else 1
        samples = sorted({int(i) // length for i in bad.nonzero()[:, 0]})[:5]
        absent = "padding" if row == "token" else "not given"
        raise ValueError(
            f"{name} holds {kinds}, first in samples {samples}; expected finite numbers, or NaN in the whole {row} "
            f'for "{absent}". Repair the data, or fill such a {row} with float("nan").'
        )


def check_tokens(tokens: Tensor, name: str, vocabulary: int) -> None:
    """Raise unless all tokens are 0 ... vocabulary; in main memory only."""
    if not tokens.numel() or not readable(tokens):
        return
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high > vocabulary:
        raise ValueError(
            f"tokens of {name} run from {low} to {high}; expected 1 to {vocabulary} for words and 0 for padding. "
            "Encode with the Vocabulary that the network was built for."
        )


def check_time(c: Tensor, batch: int) -> None:
    """Raise unless c is a floating tensor (batch,)."""
    if c.shape != (batch,):
        raise ValueError(f"c has shape {tuple(c.shape)}; expected ({batch},): {TIME_HINT}.")
    if not c.is_floating_point():
        raise TypeError(f"c has dtype {c.dtype}; expected a floating-point tensor: {TIME_HINT}.")


def check_label(label: Tensor | None, batch: int, num_classes: int | None, device: torch.device) -> Tensor | None:
    """Return the labels to embed: those given, or the null label num_classes for everybody.

    The range [0, num_classes] is checked for labels on the CPU only: elsewhere the check would make the host
    wait for the device at every call (there the embedding's own device-side assertion fires instead).
    """
    if num_classes is None:
        if label is not None:
            raise ValueError(
                "this network was built without classes (num_classes=None) but got a label. Leave label out, "
                "or build the network with num_classes."
            )
        return None
    if label is None:
        return torch.full((batch,), num_classes, dtype=torch.long, device=device)
    if not isinstance(label, Tensor):
        raise TypeError(f"label is {label!r}; expected a LongTensor ({batch},), e.g. torch.tensor([3, 1]).")
    if label.device != device:
        raise ValueError(f"label is on {label.device} but x is on {device}; pass label.to(x.device).")
    if label.dtype != torch.long:
        raise TypeError(f"label has dtype {label.dtype}; expected torch.int64. Convert it with label.long().")
    if label.shape != (batch,):
        raise ValueError(f"label has shape {tuple(label.shape)}; expected ({batch},), one class per sample.")
    if batch > 0 and readable(label):
        low, high = (int(end) for end in label.aminmax())
        if low < 0 or high > num_classes:
            raise ValueError(
                f"labels run from {low} to {high}; expected 0 to {num_classes - 1}, "
                f"or {num_classes} for the null label (no class)."
            )
    return label


def check_positive(**numbers: int) -> None:
    """Raise unless each constructor argument is a positive whole number."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}={value!r}: expected a positive whole number, got {type(value).__name__}.")
        if value < 1:
            raise ValueError(f"{name}={value}: expected a positive whole number.")


def check_probability(**numbers: float) -> None:
    """Raise unless each constructor argument p satisfies 0 <= p < 1."""
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}: expected a probability, 0 <= {name} < 1.")
