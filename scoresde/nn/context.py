"""From captions and token embeddings to the one sequence of tokens that cross-attention looks at.

A sequence of a kind of its own is one more encoder here::

    conditions = Conditions({"text": Caption(24, length=6), "clip": Embedding(512)})
    encode = ContextEncoder(conditions, width=256)
    context = encode(conditions.read({"text": tokens, "clip": z}, x))
    context.tokens, context.present                     # (B, 1 + 6 + 1 + L, 256), and which of them count
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions, Embedding, split_absent
from scoresde.nn.attention import Context, edit_of, number_of_heads


class TokenBlock(nn.Module):
    """Transformer block with the norms first, for tokens (B, N, width) of which some are padding.

        h   = x + proj(attention(norm1(x)))
        out = h + linear2(silu(linear1(norm2(h))))

    (Vaswani et al. 2017, arXiv:1706.03762, with the norms of Xiong et al. 2020, arXiv:2002.04745). Tokens that are
    not present are looked at by nobody.
    """

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = number_of_heads(width, head_width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Map x (B, N, width) and present (B, N) bool to (B, N, width)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None, :])
        h = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return h + self.linear2(F.silu(self.linear1(self.norm2(h))))


class CaptionEncoder(nn.Module):
    """Tokens (B, L) to a context (B, 1 + L, context): embeddings of token and position, then transformer blocks.

    A learned token comes first. It is always present, so that a caption that is all padding, or left out, has
    something to be read from; it sees the whole caption.

    Args:
        caption: vocabulary, most tokens, width and number of blocks.
        context: width of the result.
    """

    def __init__(self, caption: Caption, context: int) -> None:
        super().__init__()
        checks.instance(caption, Caption, name="caption")
        context = checks.count(context, name="context")
        self.words = nn.Embedding(caption.vocabulary + 1, caption.width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(caption.length, caption.width))
        self.first = nn.Parameter(torch.randn(caption.width))
        self.blocks = nn.ModuleList(TokenBlock(caption.width) for _ in range(caption.layers))
        self.norm = nn.LayerNorm(caption.width)
        self.linear = nn.Linear(caption.width, context)

    def forward(self, tokens: Tensor) -> Context:
        """Map tokens (B, L) to a context of 1 + L tokens."""
        words = self.words(tokens) + self.positions[: tokens.shape[1]]
        h, present = _prepend(self.first, words, tokens != 0)
        for block in self.blocks:
            h = block(h, present)
        return Context(self.linear(self.norm(h)), present)


class EmbeddingEncoder(nn.Module):
    """A user's embeddings (B, L, E) to a context (B, 1 + L, context) by a linear map, after one learned token.

    A token that is all NaN is padding. Order carries no meaning here beyond what the embeddings hold.

    Args:
        size: size E of the embeddings.
        context: width of the result.
    """

    def __init__(self, size: int, context: int) -> None:
        super().__init__()
        size, context = checks.count(size, name="size"), checks.count(context, name="context")
        self.linear = nn.Linear(size, context)
        self.first = nn.Parameter(torch.randn(context))

    def forward(self, embeddings: Tensor) -> Context:
        """Map embeddings (B, L, E) to a context of 1 + L tokens."""
        known, absent = split_absent(embeddings, 2)
        return _prepend(self.first, self.linear(known.to(self.linear.weight.dtype)), ~absent)


class ContextEncoder(nn.Module):
    """All captions and embeddings of a call to one context: for each its learned token, then its own tokens.

    Args:
        conditions: those of the network: captions, then embeddings, are encoded, each in its order.
        width: of the context.
    """

    def __init__(self, conditions: Conditions, width: int) -> None:
        super().__init__()
        checks.instance(conditions, Conditions, name="conditions")
        width = checks.count(width, name="width")
        captions, embeddings = conditions.of_kind(Caption), conditions.of_kind(Embedding)
        self.names = [*captions, *embeddings]
        self.told_of = tuple(self.names)
        self.captions = nn.ModuleList(CaptionEncoder(caption, width) for caption in captions.values())
        self.embeddings = nn.ModuleList(EmbeddingEncoder(one.size, width) for one in embeddings.values())

    def forward(self, given: Mapping[str, Tensor | None]) -> Context:
        """Join the contexts of the checked conditions of a call, (B, L) and (B, L, E)."""
        encoders = [*self.captions, *self.embeddings]
        parts = [encode(given[name]) for encode, name in zip(encoders, self.names, strict=True)]
        whole = Context(torch.cat([part.tokens for part in parts], 1), torch.cat([part.present for part in parts], 1))
        edit = edit_of(self)
        return whole if edit is None else edit(whole)


def _prepend(first: Tensor, tokens: Tensor, present: Tensor) -> Context:
    batch = tokens.shape[0]
    token = first.to(tokens.dtype).expand(batch, 1, -1)
    return Context(torch.cat([token, tokens], 1), torch.cat([present.new_ones(batch, 1), present], 1))
