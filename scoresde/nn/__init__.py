"""Networks: plain torch modules net(x, c, label=None, **conditions) that know no SDE, only c = log(sigma/alpha).

`UNet` for signals, images and volumes, `MLP` for vectors, `NoiseClassifier` for guidance, and `presets`.
Each has `config`, from which its constructor rebuilds it, and the generators `null_conditions`.
`Vocabulary` makes tokens of captions; `AttentionMaps` records and replaces what they are used for.
"""

from scoresde.nn import presets
from scoresde.nn.attention import AttentionPool, Context, CrossAttention, SelfAttention
from scoresde.nn.attention_maps import AttentionMaps, map_tokens, reweight_tokens, shared_tokens
from scoresde.nn.captions import Vocabulary
from scoresde.nn.classifier import NoiseClassifier
from scoresde.nn.conditions import Caption, Conditions
from scoresde.nn.context import CaptionEncoder, ContextEncoder, EmbeddingEncoder
from scoresde.nn.embeddings import ConditionEmbedding, FourierFeatures, SinusoidalFeatures, VectorEmbedding
from scoresde.nn.encoder import Encoder
from scoresde.nn.mlp import MLP
from scoresde.nn.unet import UNet

__all__ = [
    "MLP",
    "AttentionMaps",
    "AttentionPool",
    "Caption",
    "CaptionEncoder",
    "ConditionEmbedding",
    "Conditions",
    "Context",
    "ContextEncoder",
    "CrossAttention",
    "EmbeddingEncoder",
    "Encoder",
    "FourierFeatures",
    "NoiseClassifier",
    "SelfAttention",
    "SinusoidalFeatures",
    "UNet",
    "VectorEmbedding",
    "Vocabulary",
    "map_tokens",
    "presets",
    "reweight_tokens",
    "shared_tokens",
]
