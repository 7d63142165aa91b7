"""From captions and token embeddings to the one sequence of tokens that cross-attention looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.attention import Context, number_of_heads
from scoresde.nn.conditions import Caption


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
        self.linear = nn.Linear(size, context)
        self.first = nn.Parameter(torch.randn(context))

    def forward(self, embeddings: Tensor) -> Context:
        """Map embeddings (B, L, E) to a context of 1 + L tokens."""
        absent = embeddings.isnan().all(2)
        known = embeddings.masked_fill(absent[..., None], 0).to(self.linear.weight.dtype)
        return _prepend(self.first, self.linear(known), ~absent)


class ContextEncoder(nn.Module):
    """All captions and embeddings of a call to one context: for each its learned token, then its own tokens.

    Args:
        captions: the caption conditions.
        embeddings: sizes of the embedding conditions, which follow the captions.
        context: width of the context.
    """

    def __init__(self, captions: Iterable[Caption], embeddings: Iterable[int], context: int) -> None:
        super().__init__()
        self.captions = nn.ModuleList(CaptionEncoder(caption, context) for caption in captions)
        self.sizes = list(embeddings)
        self.embeddings = nn.ModuleList(EmbeddingEncoder(size, context) for size in self.sizes)

    def forward(self, x: Tensor, captions: Sequence[Tensor | None], embeddings: Sequence[Tensor | None]) -> Context:
        """Join the contexts of conditions (B, L) and (B, L, E); None is a condition without tokens."""
        batch = len(x)
        parts = [
            encode(torch.zeros(batch, 0, dtype=torch.long, device=x.device) if tokens is None else tokens)
            for encode, tokens in zip(self.captions, captions, strict=True)
        ]
        for encode, value, size in zip(self.embeddings, embeddings, self.sizes, strict=True):
            parts.append(encode(x.new_zeros(batch, 0, size) if value is None else value))
        return Context(torch.cat([part.tokens for part in parts], 1), torch.cat([part.present for part in parts], 1))


def _prepend(first: Tensor, tokens: Tensor, present: Tensor) -> Context:
    batch = tokens.shape[0]
    token = first.to(tokens.dtype).expand(batch, 1, -1)
    return Context(torch.cat([token, tokens], 1), torch.cat([present.new_ones(batch, 1), present], 1))
