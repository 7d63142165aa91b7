r"""A model of latents together with the autoencoder that made them: a Score over latents, whose samples are decoded::

    latent = Latent(model, autoencoder)
    pictures = sample(latent.bind(label=3), latent.latent_shape((16, 3, 64, 64))).data

    measurement = Measurement(y, latent.through(Mask(known)), noise_std=0.1)        # y of pictures, x_0 of latents
    pictures = sample(dps(latent, measurement), latent.latent_shape((16, 3, 64, 64)), steps=200).data

    z = latent.encode(x)                                # then an edit, or log_prob(latent, z), of latents

Factors, sizes and precision are those of :class:`~scoresde.interop.Autoencoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, overload

import torch
from torch import Tensor

from scoresde import checks
from scoresde.interop.autoencoder import Autoencoding, Factor
from scoresde.inverse.measurement import Forward
from scoresde.inverse.operators import LinearOperator
from scoresde.models import DerivedScore, Score, ScoreModel
from scoresde.models.combination import Combination
from scoresde.models.score import check_score
from scoresde.noise import Noise
from scoresde.noise.base import Shape
from scoresde.sde import SDE, Time


class Latent(Score):
    r"""A Score over latents z that knows how they are decoded (Rombach et al. 2022, arXiv:2112.10752).

    Sampling, guidance, editing and inverse problems run on latents, (B, \*latent), as with any Score; what they end
    with is decoded by ``Solution.data``, or by :meth:`decode`. Of a :class:`~scoresde.ScoreModel` it is a ScoreModel
    again: a module that holds the autoencoder too, takes conditions and goes under other schedules. Of another Score,
    such as a bound or a guided one, it is a Score.

    ``log_prob(latent, latent.encode(x))`` is the density of *latents* in the model's units. It is not that of pictures,
    which an autoencoder that loses something has none of: compare it between latents of one autoencoder only.

    Args:
        model: a Score over latents. Its own ``scaling``, if it has one, lies between its units and the latents.
        autoencoder: with ``encode`` and ``decode``; see :class:`~scoresde.interop.Autoencoding`.
        scaling_factor, shift_factor: those of the latents that the model was trained on; default what the autoencoder's
            config tells.
        chunk: how many samples go through the autoencoder at once; None for all.

    Attributes:
        autoencoding: both ways, and its sizes.

    Raises:
        TypeError, ValueError: no Score, one that is a Latent already, no autoencoder, or no factor that is known.
    """

    autoencoding: Autoencoding
    score: Score

    @overload
    def __new__(
        cls,
        model: ScoreModel,
        autoencoder: Any,
        *,
        scaling_factor: Factor | None = None,
        shift_factor: Factor | None = None,
        chunk: int | None = None,
    ) -> LatentModel: ...

    @overload
    def __new__(
        cls,
        model: Score,
        autoencoder: Any,
        *,
        scaling_factor: Factor | None = None,
        shift_factor: Factor | None = None,
        chunk: int | None = None,
    ) -> LatentScore: ...

    def __new__(
        cls,
        model: Score,
        autoencoder: Any,
        *,
        scaling_factor: Factor | None = None,
        shift_factor: Factor | None = None,
        chunk: int | None = None,
    ) -> Any:
        """The kind that suits the model, whose ``__init__`` takes the same."""
        check_score(model, name="model")
        return Score.__new__(LatentModel if isinstance(model, ScoreModel) else LatentScore)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        """The score's."""
        return self.score.evaluate(x, t, wanted)

    def encode(self, x: Tensor, noise: Noise | torch.Generator | int | None = None) -> Tensor:
        """The latents (B, *latent) of data x (B, *event): see :meth:`Autoencoding.encode`."""
        return self.autoencoding.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        """The data (B, *event) of latents z (B, *latent), differentiable in z."""
        return self.autoencoding.decode(z)

    def latent_shape(self, shape: Shape) -> Shape:
        """(B, *latent) for data ``shape`` (B, *event): what to ask :func:`~scoresde.sample` for."""
        return self.autoencoding.latent_shape(shape)

    def data_shape(self, shape: Shape) -> Shape:
        """(B, *event) for latents ``shape`` (B, *latent)."""
        return self.autoencoding.data_shape(shape)

    def through(self, operator: LinearOperator | Forward) -> ThroughDecoder:
        """An operator of the data as one of latents, z -> A(decode(z)), for a ``Measurement``.

        It is not linear, whatever A is: for :func:`~scoresde.inverse.dps`. That asks for signal at the first time:
        a flow from T = 1 goes ``under(RectifiedFlow())``, whose T is 0.999.
        """
        return ThroughDecoder(operator, self.autoencoding)


class LatentModel(Latent, ScoreModel):
    """A :class:`Latent` of a ScoreModel, made by it."""

    def __new__(cls, *given: Any, **options: Any) -> Self:
        return Score.__new__(cls)

    def __init__(
        self,
        model: ScoreModel,
        autoencoder: Any,
        *,
        scaling_factor: Factor | None = None,
        shift_factor: Factor | None = None,
        chunk: int | None = None,
    ) -> None:
        coding = _coding(model, autoencoder, scaling_factor, shift_factor, chunk)
        ScoreModel.__init__(self, model.net, model.sde, model.predicts, model.sigma_data, model.spectrum)
        self.trained_with, self.condition_scalings = model.trained_with, model.condition_scalings
        # In a tuple: as an attribute of its own, nn.Module would list the network's parameters a second time.
        self._inner: tuple[ScoreModel, ...] = (model,)
        self.autoencoder = autoencoder  # a module of this one, where it is one: moved and saved with it
        self.autoencoding = self.scaling = coding

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self._inner[0]

    def evaluate(self, x: Tensor, t: Time, wanted: Combination, conditions: Any = None) -> Tensor:
        """The model's."""
        try:
            return self._inner[0].evaluate(x, t, wanted, conditions)
        except RuntimeError as error:
            error.add_note(
                f"Here x are latents, got {tuple(x.shape)}: latent_shape tells their shape for data of any, encode "
                "makes them."
            )
            raise

    def under(self, sde: SDE) -> LatentModel:
        """The same latents under another schedule."""
        coding = self.autoencoding
        return LatentModel(
            self._inner[0].under(sde),
            self.autoencoder,
            scaling_factor=coding.scaling_factor,
            shift_factor=coding.shift_factor,
            chunk=coding.chunk,
        )


class LatentScore(Latent, DerivedScore):
    """A :class:`Latent` of any other Score, made by it."""

    def __new__(cls, *given: Any, **options: Any) -> Self:
        return Score.__new__(cls)

    def __init__(
        self,
        model: Score,
        autoencoder: Any,
        *,
        scaling_factor: Factor | None = None,
        shift_factor: Factor | None = None,
        chunk: int | None = None,
    ) -> None:
        self.autoencoding = _coding(model, autoencoder, scaling_factor, shift_factor, chunk)
        self.score = model

    @property
    def scaling(self) -> Autoencoding:  # type: ignore[override]
        """The autoencoding."""
        return self.autoencoding


def _coding(model: Score, autoencoder: Any, *options: Any) -> Autoencoding:
    scaling_factor, shift_factor, chunk = options
    if isinstance(model.scaling, Autoencoding):
        raise ValueError(
            f"model must be one of latents alone, got {type(model).__name__}, which has an autoencoder already: use it "
            "as it is."
        )
    return Autoencoding(autoencoder, scaling_factor, shift_factor, chunk, model.scaling)


@dataclass(frozen=True, eq=False)
class ThroughDecoder:
    r"""z -> A(decode(z)): an operator of data (B, \*event) as one of latents; made by :meth:`Latent.through`.

    Args:
        operator: A, a :class:`~scoresde.inverse.LinearOperator` or any function of a batch.
        autoencoding: the autoencoder.
    """

    operator: LinearOperator | Callable[[Tensor], Tensor]
    autoencoding: Autoencoding

    def __post_init__(self) -> None:
        checks.function(self.operator, name="operator", what="of a batch (B, *event), such as Mask(known)")
        checks.instance(self.autoencoding, Autoencoding, name="autoencoding")

    @property
    def event(self) -> Shape | None:
        """The shape of one sample's latents, where A tells that of its data."""
        event = getattr(self.operator, "event", None)
        return None if event is None else self.autoencoding.latent_shape((1, *event))[1:]

    @property
    def measured(self) -> Shape | None:
        """The shape of one answer, where A tells it."""
        return getattr(self.operator, "measured", None)

    def __call__(self, z: Tensor) -> Tensor:
        """A(decode(z)), (B, *measured)."""
        return self.operator(self.autoencoding.decode(z))
