"""Operations and layers that preserve magnitude: what has mean square 1 goes on with mean square 1.

    h = mp_silu(conv(x))                             # E[x^2] = 1 gives E[h^2] = 1
    h = mp_sum(x, h, 0.3)                            # 0.7 of the one and 0.3 of the other
    h = mp_cat(h, skip)                              # channels of both, each with its share of the magnitude

With them a network needs neither group norms nor biases, and every weight has the same learning rate relative to its
size all through training (Karras et al. 2024, arXiv:2312.02696, section 2 and appendix B). Weights act by their
direction alone, and :meth:`MagnitudeConv.after_step` gives each its length back after a step of the optimizer:
:func:`~scoresde.train.train` calls it. In a loop of your own::

    optimizer.step()
    for module in net.modules():
        getattr(module, "after_step", lambda: None)()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Conditions, Label, Series, Set, Vector, split_absent
from scoresde.nn.attention import Context, edit_of, number_of_heads
from scoresde.nn.embeddings import FourierFeatures, encoder_of

SILU_MAGNITUDE = 0.5964692111
"""sqrt(E[silu(x)^2]) for x ~ N(0, 1)."""

_SMALL = 1e-4  # added to magnitudes that are divided by, which are of order 1


def unit_magnitude(x: Tensor, *dims: int) -> Tensor:
    """x / sqrt(mean of x^2 over ``dims``), computed in at least float32.

    1e-4 is added to the divisor, so that zeros stay zeros.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    count = math.prod([x.shape[dim] for dim in dims])  # a list: torch.compile takes no generator here
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=exact)
    return x / (_SMALL + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (equation 81), of magnitude 1 for x ~ N(0, 1)."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (equation 88), of magnitude 1 for uncorrelated a and b that are."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """The channels of a (B, N, ...) and b (B, M, ...), each with half of the squared magnitude (equation 103, t = 1/2).

    sqrt((N + M) / 2) [a / sqrt(N), b / sqrt(M)]
    """
    n, m = a.shape[1], b.shape[1]
    half = math.sqrt((n + m) / 2)
    return torch.cat([a * (half / math.sqrt(n)), b * (half / math.sqrt(m))], 1)


class MagnitudeConv(nn.Module):
    """A convolution, or linear map, without bias whose weights act by their direction alone.

        y_j = gain * (w_j / |w_j|) * x       (equation 47)

    For inputs that are uncorrelated and of magnitude 1 so is each output. w_j is held with a mean square of 1, which
    ``after_step`` restores: forced weight normalisation (equation 66). Without it w_j would grow, as its gradient is
    orthogonal to it, and so learn ever more slowly.

    Args:
        inputs: channels, or size of vectors.
        outputs: the same of the output.
        kernel: size of the kernel along each axis; odd.
        event_dims: number of spatial axes; 0 for a linear map of the last axis.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, event_dims: int = 0) -> None:
        super().__init__()
        inputs, outputs = checks.count(inputs, name="inputs"), checks.count(outputs, name="outputs")
        kernel = checks.count(kernel, name="kernel")
        event_dims = checks.whole(event_dims, name="event_dims", least=0, most=3)
        if kernel % 2 == 0 or (kernel > 1 and not event_dims):
            raise ValueError(f"kernel={kernel} along {event_dims} axes: expected an odd size, and 1 for a linear map.")
        self.event_dims, self.padding = event_dims, kernel // 2
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * event_dims))
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Give each w_j mean square 1, its direction as it is; called after each step of the optimizer.

        One that is frozen stays as it is, to the last bit.
        """
        if self.weight.requires_grad:
            self.weight.copy_(self.weight / _magnitude(self.weight))

    def acting(self) -> Tensor:
        """The w whose directions act."""
        return self.weight

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map x (B, inputs, *spatial), or (..., inputs) for a linear map, times ``gain``."""
        w = self.acting()
        direction = w / (_magnitude(w) * math.sqrt(w[0].numel()))
        weight = (direction * gain).to(self.weight.dtype)
        if not self.event_dims:
            return F.linear(x, weight)
        return (F.conv1d, F.conv2d, F.conv3d)[self.event_dims - 1](x, weight, padding=self.padding)


def _magnitude(w: Tensor) -> Tensor:
    """The root mean square of each w_j, at least float32."""
    exact = torch.promote_types(w.dtype, torch.float32)
    norm = torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True, dtype=exact)
    return norm / math.sqrt(w[0].numel())


class MagnitudeVector(nn.Module):
    """A condition (B, size) of numbers of order one to (B, width) of magnitude 1; a row of NaN is not given.

        linear2(mp_silu(linear1(sqrt((d + 2)/(d + 1)) [v, 1, 0])))      given
        linear2(mp_silu(linear1(sqrt((d + 2)/(d + 1)) [0, 0, sqrt(d + 1)])))      not given

    for d = size: the entries of the bracket stand for a bias and for the absence, and its mean square is 1 either way.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = checks.count(size, name="size")
        self.linear1 = MagnitudeConv(size + 2, width)
        self.linear2 = MagnitudeConv(width, width)

    def forward(self, value: Tensor) -> Tensor:
        """Map value (B, size) to (B, width)."""
        known, absent = split_absent(value)
        there = (~absent)[:, None].to(value.dtype)
        bracket = torch.cat([known, there, (1 - there) * math.sqrt(self.size + 1)], 1)
        bracket = bracket * math.sqrt((self.size + 2) / (self.size + 1))
        return self.linear2(mp_silu(self.linear1(bracket.to(self.linear1.weight.dtype))))


class MagnitudeEmbedding(nn.Module):
    """One vector per sample: mp_silu of the sum of its k parts, divided by sqrt(k), each of magnitude 1.

    The parts are a linear map of Fourier features of c; that of sqrt(n + 1) one_hot(label), of n + 1 classes with "no
    class"; a `MagnitudeVector` for each vector; and for each set and series what its encoder says, brought to
    magnitude 1.

    Args:
        features: number of time features.
        width: size of the vector.
        conditions: those of the network.
    """

    def __init__(self, features: int, width: int, conditions: Conditions) -> None:
        super().__init__()
        label, vectors = conditions.of_kind(Label).get("label"), conditions.of_kind(Vector)
        sets, series = conditions.of_kind(Set), conditions.of_kind(Series)
        self.features = FourierFeatures(features)
        self.time = MagnitudeConv(features, width)
        self.classes = None if label is None else MagnitudeConv(label.num_classes + 1, width)
        self.names, self.encoded = list(vectors), [*sets, *series]
        self.told_of = (*conditions.of_kind(Label), *self.names, *self.encoded)
        self.vectors = nn.ModuleList(MagnitudeVector(one.size, width) for one in vectors.values())
        self.encoders = nn.ModuleList([encoder_of(one, width) for one in sets.values()])
        self.encoders.extend(encoder_of(one, width) for one in series.values())

    def forward(self, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        """Map c (B,) and the checked conditions of a call, None where left out, to (B, width)."""
        dtype = self.time.weight.dtype
        parts = [self.time(self.features(c).to(dtype))]
        if self.classes is not None:
            n = self.classes.weight.shape[1]
            label: Any = given["label"]
            one_hot = label[:, None] == torch.arange(n, device=c.device)
            parts.append(self.classes(one_hot.to(dtype) * math.sqrt(n)))
        embed: Any
        for embed, name in zip(self.vectors, self.names, strict=True):
            value = given[name]
            parts.append(embed(c.new_full((len(c), embed.size), torch.nan) if value is None else value))
        for embed, name in zip(self.encoders, self.encoded, strict=True):
            value = given[name]
            e = embed.absent.expand(len(c), -1) if value is None else embed(value)
            parts.append(unit_magnitude(e, 1))
        h = sum(parts[1:], parts[0]) / math.sqrt(len(parts))
        edit = edit_of(self)
        return mp_silu(h if edit is None else edit(h))


class MagnitudeAttention(nn.Module):
    """mp_sum(x, proj(attention(x)), 0.3) with queries, keys and values of magnitude 1: cosine attention.

    Each head's query and key are normalised, so that their product divided by sqrt(d) is sqrt(d) times the cosine of
    their angle, and no logit can grow without bound (section 2.2 of arXiv:2312.02696). Averaging values loses
    magnitude, by at most what independent ones lose.

    Args:
        channels: number of channels C.
        head_width: least number of channels per head; a single head where C is smaller.
        event_dims: number of spatial axes.
        context: width of the tokens to attend to; 0 to let each position look at all others.
    """

    def __init__(self, channels: int, head_width: int, event_dims: int, context: int = 0) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_width)
        self.query = MagnitudeConv(channels, channels)
        self.kv = MagnitudeConv(context or channels, 2 * channels)
        self.proj = MagnitudeConv(channels, channels)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Map x (B, C, *spatial), and tokens (B, N, width) where there is a context, to the shape of x."""
        places = x.flatten(2).transpose(1, 2)  # (B, P, C)
        looked_at = places if context is None else unit_magnitude(context.tokens, 2)
        mask = None if context is None else context.present[:, None, None, :]
        q = self.query(places).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(looked_at).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q, k, v = (unit_magnitude(one, 3) for one in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, P, C / heads)
        out = self.proj(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
        return mp_sum(x, out, 0.3)
