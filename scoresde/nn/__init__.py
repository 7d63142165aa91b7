"""Networks: plain torch modules net(x, c, **conditions) that know no SDE, only c = log(sigma/alpha).

- :class:`UNet` for signals, images and volumes, :class:`MLP` for vectors, :class:`NoiseClassifier` for guidance; sizes
  that suit common data sets are in :mod:`~scoresde.nn.presets`. A network of your own may derive from
  :class:`ConditionalNetwork`, and need not.
- In the place of the U-Net: :class:`MagnitudeUNet` (EDM2), which preserves magnitudes, and :class:`DiT`, a transformer.
- :class:`Autoencoder`, with a :class:`KLBottleneck` or :class:`VQBottleneck`, for diffusion on latents.
- :class:`DualEncoder` brings events and captions into one space, for a contrastive model.
- :class:`SetEncoder` and :class:`SeriesEncoder` make vectors of several observations and of time series.
- Each has ``config``, from which its constructor rebuilds it, and ``null_conditions``; the kinds of conditions are in
  :mod:`scoresde.models.conditions`.
- :func:`lora` puts low-rank adapters into any network, :func:`learn_words` new words into one that reads captions.
- :class:`Vocabulary` makes tokens of captions, :class:`BytePairs` of any text; :class:`AttentionMaps` records and
  replaces what they are used for.

::

    net = UNet(1, width=32, attention_levels=(), num_classes=10)
    model = ScoreModel(net, VP(), predicts="edm", sigma_data=0.5)
    score = model.bind(label=torch.tensor([3, 1]))
"""

from scoresde.nn import presets
from scoresde.nn.attention import AttentionPool, Context, CrossAttention, SelfAttention
from scoresde.nn.attention_maps import AttentionMaps, map_tokens, reweight_tokens, shared_tokens
from scoresde.nn.autoencoder import Autoencoder
from scoresde.nn.bottlenecks import KLBottleneck, LatentPosterior, VQBottleneck
from scoresde.nn.byte_pairs import BytePairs
from scoresde.nn.captions import Vocabulary
from scoresde.nn.classifier import NoiseClassifier
from scoresde.nn.context import CaptionEncoder, ContextEncoder, EmbeddingEncoder
from scoresde.nn.discriminator import PatchDiscriminator
from scoresde.nn.dit import DiT
from scoresde.nn.dual_encoder import DualEncoder
from scoresde.nn.embeddings import ConditionEmbedding, FourierFeatures, SinusoidalFeatures, VectorEmbedding
from scoresde.nn.encoder import Architecture, Encoder, EncoderOptions
from scoresde.nn.errors import LaplaceErrors, NormalErrors
from scoresde.nn.low_rank_adapters import LoRA, adapters, lora
from scoresde.nn.magnitude_unet import MagnitudeUNet
from scoresde.nn.mlp import MLP
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.new_words import LearnedWords, learn_words, learned_words
from scoresde.nn.series import SeriesEncoder
from scoresde.nn.sets import SetEncoder
from scoresde.nn.unet import UNet

__all__ = [
    "MLP",
    "Architecture",
    "AttentionMaps",
    "AttentionPool",
    "Autoencoder",
    "BytePairs",
    "CaptionEncoder",
    "ConditionEmbedding",
    "ConditionalNetwork",
    "Context",
    "ContextEncoder",
    "CrossAttention",
    "DiT",
    "DualEncoder",
    "EmbeddingEncoder",
    "Encoder",
    "EncoderOptions",
    "FourierFeatures",
    "KLBottleneck",
    "LaplaceErrors",
    "LatentPosterior",
    "LearnedWords",
    "LoRA",
    "MagnitudeUNet",
    "NoiseClassifier",
    "NormalErrors",
    "PatchDiscriminator",
    "SelfAttention",
    "SeriesEncoder",
    "SetEncoder",
    "SinusoidalFeatures",
    "UNet",
    "VQBottleneck",
    "VectorEmbedding",
    "Vocabulary",
    "adapters",
    "learn_words",
    "learned_words",
    "lora",
    "map_tokens",
    "presets",
    "reweight_tokens",
    "shared_tokens",
]
