"""Networks: plain torch modules net(x, c, label=None) that know no SDE, only c = log(sigma/alpha).

`UNet` for signals, images and volumes, `MLP` for vectors, `NoiseClassifier` for guidance, and `presets`.
Each has `config`, from which its constructor rebuilds it, and the generators `null_conditions`.
"""

from . import presets
from .attention import AttentionPool, SelfAttention
from .classifier import NoiseClassifier
from .embeddings import ConditionEmbedding, FourierFeatures, SinusoidalFeatures
from .encoder import Encoder
from .mlp import MLP
from .unet import UNet

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
