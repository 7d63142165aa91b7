"""Networks of sizes that suit common data sets, with their numbers of parameters.

Each function returns a fresh `UNet`, or the `MagnitudeUNet` or `DiT` that its name ends in. A class-conditional one has
4 * width * (num_classes + 1) parameters more than documented; a transformer width * (num_classes + 1). What a preset
does not say is the network's default. To change anything else, start from its `config`::

    net = presets.digits(num_classes=10)
    net = UNet(**{**presets.digits().config, "width": 48})
"""

from __future__ import annotations

from scoresde.nn.dit import DiT
from scoresde.nn.magnitude_unet import MagnitudeUNet
from scoresde.nn.unet import UNet


def digits(channels: int = 1, num_classes: int | None = None, dropout: float = 0.0) -> UNet:
    """Return a U-Net for 8x8 pictures: 8, 4, 2; one block a level; no attention; width 32.

    785 633 parameters for 1 channel: small enough to learn scikit-learn's digits in a minute or two on two CPU
    cores. The convolutions at 2x2 see the whole picture already, so that attention would only cost time; two blocks
    a level cost twice as much, for 0.4 % fewer bits.
    """
    return UNet(channels, width=32, blocks=1, attention_levels=(), num_classes=num_classes, dropout=dropout)


def digits_edm2(channels: int = 1, num_classes: int | None = None, dropout: float = 0.0) -> MagnitudeUNet:
    """Return a magnitude-preserving U-Net for 8x8 pictures: 8, 4, 2; no attention; width 32.

    1 690 486 parameters for 1 channel.
    """
    return MagnitudeUNet(channels, width=32, attention_levels=(), num_classes=num_classes, dropout=dropout)


def digits_dit(channels: int = 1, num_classes: int | None = None, dropout: float = 0.0) -> DiT:
    """Return a transformer for 8x8 pictures: 16 patches of 2x2, width 128, 6 blocks.

    1 864 580 parameters for 1 channel.
    """
    return DiT(channels, width=128, depth=6, head_width=32, num_classes=num_classes, dropout=dropout)


def captioned(channels: int = 3, *, vocabulary: int, length: int, dropout: float = 0.0) -> UNet:
    """Return a U-Net for 16x16 pictures with a condition "caption": 16, 8, 4; attention at 8x8 and 4x4; width 32.

    1 786 435 parameters for 3 channels, 24 words and captions of up to 6. The caption encoder is 64 wide, with 2
    blocks, and two heads look at it: small enough to train in minutes on two CPU cores.

    Args:
        channels: channels of the pictures.
        vocabulary: number of words, len() of the `Vocabulary`.
        length: most words in a caption.
        dropout: as for `UNet`.
    """
    caption = {"vocabulary": vocabulary, "length": length, "width": 64, "layers": 2}
    return UNet(
        channels, width=32, attention_levels=(1, 2), head_width=32, dropout=dropout, captions={"caption": caption}
    )


def mnist(channels: int = 1, num_classes: int | None = None, dropout: float = 0.0) -> UNet:
    """Return a U-Net for 28x28 pictures: 28, 14, 7; attention at 7x7; width 64.

    5 528 577 parameters for 1 channel.
    """
    return UNet(channels, width=64, attention_levels=(-1,), num_classes=num_classes, dropout=dropout)


def cifar_small(channels: int = 3, num_classes: int | None = None, dropout: float = 0.1) -> UNet:
    """Return a small U-Net for 32x32 pictures: 32, 16, 8; attention at 16x16 and 8x8; width 96.

    13 023 363 parameters for 3 channels.
    """
    return UNet(channels, width=96, attention_levels=(1, 2), num_classes=num_classes, dropout=dropout)


def cifar_base(channels: int = 3, num_classes: int | None = None, dropout: float = 0.1) -> UNet:
    """Return a U-Net for 32x32 pictures: 32, 16, 8, 4; attention at 16x16 and 8x8; width 128.

    43 660 163 parameters for 3 channels. Width and multipliers are those of Ho et al. 2020.
    """
    return _deep(channels, (1, 2, 2, 2), (1, 2), num_classes, dropout)


def cifar_edm2(channels: int = 3, num_classes: int | None = None, dropout: float = 0.1) -> MagnitudeUNet:
    """Return a magnitude-preserving U-Net for 32x32 pictures: 32, 16, 8; attention at 16x16 and 8x8; width 80.

    11 998 662 parameters for 3 channels, about as many as `cifar_small`.
    """
    return MagnitudeUNet(channels, width=80, attention_levels=(1, 2), num_classes=num_classes, dropout=dropout)


def cifar_dit(channels: int = 3, num_classes: int | None = None, dropout: float = 0.0) -> DiT:
    """Return a transformer for 32x32 pictures: 256 patches of 2x2, width 256, 12 blocks.

    14 471 436 parameters for 3 channels, about as many as `cifar_small`.
    """
    return DiT(channels, width=256, depth=12, num_classes=num_classes, dropout=dropout)


def image64(channels: int = 3, num_classes: int | None = None, dropout: float = 0.1) -> UNet:
    """Return a U-Net for 64x64 pictures: 64, 32, 16, 8; attention at 16x16 and 8x8; width 128.

    102 295 043 parameters for 3 channels. Multipliers and blocks are those of Dhariwal and Nichol 2021.
    """
    return _deep(channels, (1, 2, 3, 4), (2, 3), num_classes, dropout)


def _deep(
    channels: int, multipliers: tuple[int, ...], attention: tuple[int, ...], num_classes: int | None, dropout: float
) -> UNet:
    return UNet(
        channels,
        width=128,
        multipliers=multipliers,
        blocks=3,
        attention_levels=attention,
        num_classes=num_classes,
        dropout=dropout,
    )
