"""The network for data of a shape: a preset, or a residual MLP for vectors and a U-Net or a kin of it for all else.

    net = network(flags, dataset.event_shape, dataset.num_classes)      # flags: NetworkFlags

A preset of :mod:`scoresde.nn.presets` is found by its name; an option of a network is one flag here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from scoresde.cli.choices import NETWORKS, PRESETS, NetworkName
from scoresde.cli.flags import as_flag
from scoresde.nn import MLP, UNet


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """What learns: beside ``network``, each flag is an option of a network, and changes it where given."""

    network: NetworkName = "auto"
    """A preset for images; unet, magnitude-unet (EDM2) or dit (a transformer) for signals, images and volumes of any
    size; or auto: an MLP for vectors, a U-Net for all else. The flags below change it."""
    width: int | None = None
    """Width of the network: channels at the finest level, or of all tokens."""
    multipliers: tuple[int, ...] | None = None
    """U-Net: channels of each level, finest first, in units of width; each level halves the sizes."""
    blocks: int | tuple[int, ...] | None = None
    """U-Net: residual blocks of all levels, or of each, finest first."""
    attention_levels: tuple[int, ...] | None = None
    """U-Net: levels with self-attention, 0 the finest, -1 the coarsest; without numbers none."""
    conditioning: Literal["adaptive", "add"] | None = None
    """U-Net: how time and class come in, by a scale and shift or by addition."""
    depth: int | None = None
    """MLP and transformer: number of residual blocks."""
    patch: int | None = None
    """Transformer: size of a patch along each axis."""
    time_features: Literal["sinusoidal", "fourier"] | None = None
    """How the noise level is shown to the network."""
    dropout: float | None = None
    """Probability of dropping an activation in training."""
    recompute: bool = False
    """U-Net: less than half the memory, a third more time: blocks run again for the backward pass."""


def network(
    flags: NetworkFlags, event: tuple[int, ...], classes: int | None, **conditions: Mapping[str, Any]
) -> torch.nn.Module:
    """The network for events of this shape.

    Args:
        flags: how it is built.
        event: shape of a sample.
        classes: how many, or None.
        conditions: what else it is told, by the network's argument: vectors={"obs": 3}.

    Raises:
        ValueError: a shape that no network takes, or a flag that this network does not have.
    """
    options = (f.name for f in fields(NetworkFlags) if f.name not in ("network", "recompute"))
    changes = {name: value for name in options if (value := getattr(flags, name)) is not None}
    if flags.recompute:
        changes["checkpoint"] = True  # the network's word, which for commands is a folder
    kind: type[torch.nn.Module]
    base: dict[str, Any]
    if flags.network in PRESETS:
        if len(event) != 3:
            raise ValueError(
                f"the preset {flags.network} is for images (C, H, W), and samples here are {event}; "
                "take --network auto."
            )
        with torch.device("meta"):  # only its arguments are wanted, no memory for its weights
            preset = PRESETS[flags.network](event[0], classes)
        kind, base = type(preset), preset.config
    elif len(event) == 1 and flags.network != "auto":
        raise ValueError(f"--network {flags.network} is for signals, images and volumes; samples are {event}: auto.")
    elif len(event) == 1:
        kind, base = MLP, {"dim": event[0], "num_classes": classes}
    elif len(event) <= 4:
        kind = NETWORKS.get(flags.network, UNet)
        base = {"channels": event[0], "event_dims": len(event) - 1, "num_classes": classes}
    else:
        raise ValueError(
            f"samples of shape {event} have {len(event)} axes; expected vectors (d,), signals (C, L), images (C, H, W) "
            "or volumes (C, D, H, W). For arrays without a channel axis say --channels none."
        )
    for name in conditions:
        if name not in inspect.signature(kind).parameters:
            numbers = " Whole numbers (N, L) are tokens; amounts are stored as floating ones, x.astype(float)."
            raise ValueError(
                f"--condition {next(iter(conditions[name]))} is one of {name}, which the {kind.__name__} that learns "
                f"samples of shape {event} does not take.{numbers if name == 'captions' else ''}"
            )
    unknown = [name for name in changes if name not in inspect.signature(kind).parameters]
    if unknown:
        flag = as_flag(unknown[0] if unknown[0] != "checkpoint" else "recompute")
        raise ValueError(
            f"{flag} says nothing about the {kind.__name__} that learns samples of shape {event}; leave it out."
        )
    return kind(**{**base, **changes, **conditions})
