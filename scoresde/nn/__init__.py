"""Networks: plain torch modules net(x, c, label=None) that know no SDE, only c = log(sigma/alpha).

`UNet` for signals, images and volumes, `MLP` for vectors, `NoiseClassifier` for guidance, and `presets`.
Each has `config`, from which its constructor rebuilds it, and the generators `null_conditions`.
"""

from scoresde.nn import presets
from scoresde.nn.attention import AttentionPool, SelfAttention
from scoresde.nn.classifier import NoiseClassifier
from scoresde.nn.embeddings import ConditionEmbedding, FourierFeatures, SinusoidalFeatures
from scoresde.nn.encoder import Encoder
from scoresde.nn.mlp import MLP
from scoresde.nn.unet import UNet

__all__ = [
    "MLP",
    "AttentionPool",
    "ConditionEmbedding",
    "Encoder",
    "FourierFeatures",
    "NoiseClassifier",
    "SelfAttention",
    "SinusoidalFeatures",
    "UNet",
    "presets",
]
