"""Files of what was learned beside a network: low-rank adapters and new words, a few kilobytes each::

    save_adapter("style.safetensors", style)                # what scoresde.nn.lora or learn_words returned
    style = load_adapter("style.safetensors", model.net)    # into a network of the same shape, or refused

safetensors, with what the adapter is as JSON beside its numbers, a fingerprint of the network that it is of, and a hash
of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde import checks
from scoresde.files import Fail, Fields, PathName, replacing
from scoresde.nn import LearnedWords, LoRA
from scoresde.nn.attached import Attached, attach, fingerprint
from scoresde.nn.low_rank_adapters import check_new_name
from scoresde.train.folder import CheckpointError
from scoresde.train.tensors import check_equal, check_finite, read_layout, read_metadata, read_values, writer

_ADAPTER = "scoresde adapter"
"""What the file says that it is."""

_FORMAT = "1"


def save_adapter(path: PathName, adapter: Attached) -> Path:
    """Write an adapter or learned words, and nothing of the network, into one file.

    One that is merged is written as it was learned. ``scale`` is kept.

    Args:
        path: of the file, which is replaced where there is one.
        adapter: what :func:`scoresde.nn.lora`, :func:`scoresde.nn.learn_words` or :func:`load_adapter` returned.

    Returns:
        The path.

    Raises:
        TypeError: something else.
        CheckpointError: the file cannot be written.
        FloatingPointError: a number of it is not finite.
    """
    place = checks.path(path, name="path")
    if not isinstance(adapter, (LoRA, LearnedWords)):
        raise TypeError(f"adapter must be what lora or learn_words returned, got {checks.got(adapter)}.")
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.state().items()}
    check_finite(tensors, "number", "in this adapter")
    told = json.dumps(adapter.describe())
    of = fingerprint(adapter.net)
    metadata = {"format": _ADAPTER, "version": _FORMAT, "library": scoresde.__version__, "told": told, "network": of}
    try:
        with replacing(place) as partial:
            writer(tensors, metadata={**metadata, "sha256": _seal(told, of, tensors)})(partial)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written ({error}). Choose a place that you may write.") from error
    return place


def load_adapter(path: PathName, net: nn.Module, *, name: str | None = None) -> Attached:
    """Put a saved adapter, or saved words, into a network of the shape that it was learned on.

    Which of the network's parameters are frozen stays as it is.

    Args:
        path: of the file.
        net: the network, such as ``model.net``; changed in place.
        name: for a low-rank adapter: what it is called here, where its own name is taken.

    Raises:
        TypeError: no network.
        CheckpointError: no such file, or it is no adapter, is damaged, or is of another network.
        ValueError: the network has an adapter of this name.
    """
    place = checks.path(path, name="path")
    checks.instance(net, nn.Module, name="net")

    def fail(text: str) -> Exception:
        return CheckpointError(f"{place}: {text}")

    try:
        metadata, layout = read_metadata(place, fail), read_layout(place, fail)
        if metadata.get("format") != _ADAPTER or metadata.get("version") != _FORMAT:
            raise fail("the file must hold an adapter, as save_adapter writes it, and does not say that it does.")
        values = read_values(place, fail)
    except FileNotFoundError as error:
        raise CheckpointError(f"path must be that of an adapter's file, and there is none at {place}.") from error
    told, of = metadata.get("told", ""), metadata.get("network", "")
    if metadata.get("sha256") != _seal(told, of, values):
        raise fail("the file is damaged or was changed: its hash is another one.")
    described = _read_told(told, fail)
    if of != fingerprint(net):
        raise fail(_of_another(described, layout, net))
    described = {**described, "on": True, "merged": False}
    if name is not None:
        if described["kind"] != "lora":
            raise ValueError(f"name must be left out for learned words, which have their own, got {name!r:.80}.")
        described["name"] = name
    check_new_name(net, described["name"])
    try:
        found = attach(net, described)
    except (TypeError, ValueError) as error:
        raise fail(str(error)) from error
    try:
        check_equal(values, found.state(), fail, dtypes=False)
    except Exception:
        found.remove()
        raise
    for own, value in found.state().items():
        value.copy_(values[own])
    return found


def _read_told(text: str, fail: Fail) -> dict[str, Any]:
    """What the adapter is, in the words of its file."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fail(f"what it says of itself is no JSON ({error}).") from error
    fields = Fields(told, fail)
    fields.text("name"), fields.one_of("kind", ("lora", "words"))
    if not fields.null("layers"):
        fields.texts("layers", most_items=100_000)
    return dict(told)


def _seal(told: str, network: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that the file says."""
    digest = hashlib.sha256(f"{told}\n{network}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _of_another(told: Mapping[str, Any], layout: Mapping[str, Tensor], net: nn.Module) -> str:
    """How the network differs from the one that an adapter is of, as far as its file tells."""
    own = dict(net.named_modules())
    missing = [layer for layer in told.get("layers", ()) if layer not in own]
    other = []
    for layer in (layer for layer in told.get("layers", ()) if {f"{layer}.down", f"{layer}.up"} <= layout.keys()):
        weight, down, up = getattr(own.get(layer), "weight", None), layout[f"{layer}.down"], layout[f"{layer}.up"]
        was = (up.shape[0], *down.shape[1:])
        if isinstance(weight, Tensor) and tuple(weight.shape) != was:
            other.append(f"{layer} is {tuple(weight.shape)} and was {was}")
    why = [f"it has no layer {missing[0]}"] if missing else other[:2]
    seen = f": {'; '.join(why)}" if why else ""
    return (
        f"the adapter is of another network than this {type(net).__name__}{seen}. Load it into the network that it "
        "was trained on, or one built by the same arguments."
    )
