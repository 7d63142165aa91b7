"""A network of diffusers as a network here: called as ``net(x, c, **conditions)``, c = log(σ/α).

:class:`DiffusersNetwork` knows how their networks are called (UNets, transformers, any module or function with
(sample, timestep, ...)), what they answer, and how noise levels become timesteps::

    net = DiffusersNetwork(unet, ChainTimesteps(levels))
    net(x, c, encoder_hidden_states=prompts)        # unet(x, timestep, encoder_hidden_states=prompts).sample

:func:`~scoresde.interop.from_diffusers` makes one and puts it into a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.interop.timesteps import Rounding, Timesteps, brought_to
from scoresde.models.conditions import Conditions, Label
from scoresde.warning import warn_user

# Transformers whose pipelines hand them t = timestep/N in place of the scheduler's timestep; by the name of the class.
_UNIT_TIME = frozenset(
    {
        "AuraFlowTransformer2DModel",
        "BriaFibo2Transformer2DModel",
        "ChromaTransformer2DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "Krea2Transformer2DModel",
        "LongCatImageTransformer2DModel",
        "OvisImageTransformer2DModel",
        "PRXTransformer2DModel",
        "QwenImage21Transformer2DModel",
        "QwenImageTransformer2DModel",
    }
)
# Networks whose pipelines change the sign of the answer, run time backwards, or pass several states or times.
_OTHERWISE = frozenset(
    {
        "AnyFlowFARTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "CosmosTransformer3DModel",
        "GlmImageTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "LuminaNextDiT2DModel",
        "Lumina2Transformer2DModel",
        "NucleusMoEImageTransformer2DModel",
        "ZImageTransformer2DModel",
        "StableCascadeUNet",
        "UVit2DModel",
    }
)
# Those whose pipelines hand on the scheduler's timestep as it is. UNets all do.
_AS_COUNTED = frozenset(
    {
        "AllegroTransformer3DModel",
        "BriaFiboTransformer2DModel",
        "BriaTransformer2DModel",
        "ChronoEditTransformer3DModel",
        "CogVideoXTransformer3DModel",
        "CogView3PlusTransformer2DModel",
        "CogView4Transformer2DModel",
        "ConsisIDTransformer3DModel",
        "DiTTransformer2DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "LatteTransformer3DModel",
        "MochiTransformer3DModel",
        "MotifVideoTransformer3DModel",
        "OmniGenTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "Transformer2DModel",
        "WanTransformer3DModel",
    }
)


class DiffusersNetwork(nn.Module):
    """One of their networks, called as those here are.

    Conditions go on by their own names; a number, or one row (1, ...), is for all samples. Names that are not among
    the network's arguments go into its ``added_cond_kwargs``, where it has these (``text_embeds`` and ``time_ids`` of
    SDXL). What the network answers is a tensor, a tuple whose first entry is one, or an object with ``sample``; of
    twice the channels of x, as for a learned variance, it is the first half.

    Args:
        net: called as net(sample, timestep, ...); the timestep by its name where it is not the second argument.
        timesteps: from c to timesteps.
        rounding: "fractional"; "rounded" or "truncated" to whole numbers, int64.
        fixed: arguments of every call, by name, which are no conditions: flags, or tensors without a row for each
            sample (``img_ids``). Tensors move with the module.
        unit_time: by how much their timestep is larger than what a network of the _UNIT_TIME kind takes.

    Attributes:
        null_conditions: {"class_labels": n} where the network has a row for "no class"; absent where it says nothing.

    Raises:
        TypeError, ValueError: not a network, one that works otherwise, or fixed arguments that it does not take.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        timesteps: Timesteps,
        *,
        rounding: Rounding = "fractional",
        fixed: Mapping[str, Any] | None = None,
        unit_time: float = 1.0,
    ) -> None:
        super().__init__()
        checks.function(net, name="net", what="(sample, timestep, ...), such as a UNet2DModel")
        kinds = {cls.__name__ for cls in type(net).__mro__}
        if kinds & _OTHERWISE:
            raise ValueError(
                f"net must be called as net(sample, timestep, ...) and answer what its scheduler takes; the pipelines "
                f"of {type(net).__name__} change its arguments or the sign of its answer. Wrap it in a module that "
                "does the same, and give that."
            )
        if type(net).__module__.startswith("diffusers.models.transformers") and not kinds & (_UNIT_TIME | _AS_COUNTED):
            warn_user(
                f"how the pipelines of {type(net).__name__} hand it the time is not known here: it is given the "
                "scheduler's timestep as it is. Compare with what its pipeline passes, and wrap it in a module "
                "net(sample, timestep, ...) where that is another number or the answer has another sign."
            )
        self.net = net
        self.timesteps, self.rounding = (
            timesteps,
            checks.one_of(rounding, ("fractional", "rounded", "truncated"), name="timesteps"),
        )
        self.unit_time = unit_time if kinds & _UNIT_TIME else 1.0
        self._names, self._timestep, self._open = _called(net)
        self._fixed: dict[str, Any] = dict(checks.instance({} if fixed is None else fixed, Mapping, name="fixed"))
        self._check_names(self._fixed, "fixed")
        for name, value in self._fixed.items():
            if isinstance(value, Tensor):
                self.register_buffer(f"fixed_{name}", value, persistent=False)
        channels = [getattr(getattr(net, "config", None), name, None) for name in ("in_channels", "out_channels")]
        if all(isinstance(c, int) for c in channels) and channels[1] not in (channels[0], 2 * channels[0]):  # type: ignore[operator]
            raise ValueError(
                f"net takes {channels[0]} channels and answers {channels[1]}: it is shown more than x. Wrap it in a "
                "module net(sample, timestep, extra) that joins them, and give that, with extra as a condition."
            )
        if (classes := _null_class(net)) is not None:
            self.null_conditions: dict[str, int] = {"class_labels": classes}
            self.conditions = Conditions({"class_labels": Label(classes)})

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The network's answer, shaped like x.

        Args:
            x: (B, *event).
            c: (B,) log(σ/α).
            conditions: by the names of their network.

        Raises:
            TypeError: a condition that the network does not take.
            ValueError: an answer of another shape.
        """
        self._check_names(conditions, "the network")
        timestep = brought_to(self.rounding, self.timesteps(c))
        if self.unit_time != 1.0:
            timestep = timestep / self.unit_time
        given = {name: _for_all(value, x) for name, value in conditions.items() if value is not None}
        added = {name: given.pop(name) for name in [*given] if not self._open and name not in self._names}
        if added:
            given["added_cond_kwargs"] = {**given.get("added_cond_kwargs", {}), **added}
        given = {**{name: getattr(self, f"fixed_{name}", value) for name, value in self._fixed.items()}, **given}
        if self._timestep is None:
            answer = self.net(x, timestep, **given)
        else:
            answer = self.net(x, **{self._timestep: timestep}, **given)
        return _mean(_tensor(answer), x)

    def _check_names(self, given: Mapping[str, Any], what: str) -> None:
        if self._open or "added_cond_kwargs" in self._names:
            return
        unknown = [name for name in given if name not in self._names]
        if unknown:
            raise TypeError(
                f"{what} takes no {', '.join(map(repr, unknown))}; the arguments of {type(self.net).__name__} are "
                f"{', '.join(self._names) or 'none but x and the timestep'}."
            )


def _called(net: object) -> tuple[tuple[str, ...], str | None, bool]:
    """The names a network takes beside x and the timestep, that of the timestep unless it is second, and **others."""
    try:
        forward = net.forward if isinstance(net, nn.Module) else net
        parameters = list(inspect.signature(forward).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return (), None, True
    after = [p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_name = next((name for name in ("timestep", "timesteps") if name in after[1:]), None)
    names = [name for name in after if name not in (by_name, after[0] if by_name is None else None)]
    return tuple(names), by_name, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _null_class(net: object) -> int | None:
    """The class that stands for "no class", where a table of labels has a row more than there are classes."""
    for module in net.modules() if isinstance(net, nn.Module) else ():
        classes, table = getattr(module, "num_classes", None), getattr(module, "embedding_table", None)
        if isinstance(classes, int) and isinstance(table, nn.Embedding) and table.num_embeddings == classes + 1:
            return classes
    return None


def _for_all(value: Any, x: Tensor) -> Any:
    """A number or one row (1, ...) in a row for each sample; inside mappings, too; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: _for_all(one, x) for name, one in value.items()}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = checks.sent(torch.as_tensor(value, dtype=x.dtype if isinstance(value, float) else None), x.device)
    if isinstance(value, Tensor) and (not value.ndim or (len(value) == 1 and len(x) != 1)):
        return value.expand(len(x), *value.shape[1:])
    return value


def _tensor(answer: Any) -> Any:
    """The tensor in a tuple, or in an output object."""
    if isinstance(answer, Tensor):
        return answer
    sample = getattr(answer, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    return answer[0] if isinstance(answer, (tuple, list)) and answer else answer


def _mean(answer: Any, x: Tensor) -> Any:
    """The first half of the channels where the second is a learned variance."""
    doubled = isinstance(answer, Tensor) and x.ndim > 1 and answer.ndim == x.ndim
    if doubled and answer.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        return answer[:, : x.shape[1]]
    return answer
