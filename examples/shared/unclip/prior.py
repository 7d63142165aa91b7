"""From captions to embeddings of pictures: a diffusion prior, and the regression that it is compared with.

Both are the same transformer on the same captions and embeddings, a :class:`~scoresde.nn.DiT` of one token that attends
to the words and is told the embedding of the whole caption; both predict the clean embedding. The prior is trained at
all noise levels, the regression where all is noise: there the best prediction is the mean of what a caption allows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import scoresde as ss
from scoresde import losses
from scoresde.cli.choices import SDES
from scoresde.data import Dataset, from_tensors
from scoresde.nn import DiT
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train
from shared.training import trained
from shared.unclip.flags import Dalle2Flags
from shared.unclip.sentences import Captions

LAYERS = 3


def embeddings_of(u: Tensor, v: Tensor, tokens: Tensor) -> Dataset:
    """Embeddings of pictures (N, d) as events (d, 1), each number standardised, with the tokens and the embeddings
    (N, d) of their captions.
    """
    return from_tensors(
        scaled(u)[:, :, None], channels="first", scaling="channel",
        conditions={"caption": tokens, "sentence": scaled(v)},
    )  # fmt: skip


def scaled(u: Tensor) -> Tensor:
    """Unit vectors with numbers of mean square 1, as networks are told them."""
    return u * math.sqrt(u.shape[1])


def learn(
    flags: Dalle2Flags, captions: Captions, dataset: Dataset, folder: Path, *, kind: Literal["prior", "regression"]
) -> ss.ScoreModel:
    """The model with averaged weights; checkpoints in ``folder``."""
    torch.manual_seed(flags.seed)
    net = DiT(
        flags.size, event_dims=1, patch=1, width=flags.prior_width, depth=LAYERS, head_width=32,
        captions={"caption": captions.condition}, vectors={"sentence": flags.size},
    )  # fmt: skip
    sde, some = SDES[flags.sde](), dataset[:1024]["x"]
    ends = -0.5 * sde.log_snr(torch.tensor((sde.t_min, sde.T), dtype=torch.float64))
    # the square error of x0 is weighted alike at all levels, see losses.x0
    times = LogNormalSigma(float(ends[1]), 0.1) if kind == "regression" else LogNormalSigma(0.0, 1.6)
    return trained(
        train,
        ss.ScoreModel(net, sde, predicts="x0", sigma_data=float(some.std())),
        dataset,
        steps=flags.prior_steps,
        batch_size=flags.prior_batch,
        lr=flags.lr / 2,
        betas=(0.9, 0.99),
        weighting=losses.x0,
        times=Stratified(times),
        condition_dropout={"caption": 0.1, "sentence": 0.1} if kind == "prior" else 0.0,
        seed=flags.seed,
        resume=flags.resume,
        cpu=flags.cpu,
        folder=folder,
    )


def drawn(flags: Dalle2Flags, model: ss.ScoreModel, told: dict[str, Tensor], *, first: int = 0) -> Tensor:
    """Unit vectors (N, d) of the prior, on the CPU: sample i depends on the seed and ``first`` + i alone."""
    device, count = next(model.parameters()).device, len(told["caption"])
    score = ss.classifier_free(model, {k: v.to(device) for k, v in told.items()}, scale=flags.prior_guidance)
    noise = ss.PerSampleNoise(flags.seed + 1, first=first)
    x = ss.sample(score, (count, flags.size, 1), steps=flags.sampling_steps, noise=noise).x
    return _unit(model, x)


def regressed(flags: Dalle2Flags, model: ss.ScoreModel, told: dict[str, Tensor]) -> Tensor:
    """Unit vectors (N, d) of the regression, on the CPU."""
    device, count = next(model.parameters()).device, len(told["caption"])
    x = model.sde.prior_sample((count, flags.size, 1), ss.PerSampleNoise(flags.seed), device=device)
    with torch.no_grad():
        found = model.bind(**{k: v.to(device) for k, v in told.items()}).denoise(x, model.sde.T)
    return _unit(model, found)


def _unit(model: ss.ScoreModel, x: Tensor) -> Tensor:
    """Embeddings (N, d) on the CPU, of events (N, d, 1) in model units."""
    assert model.scaling is not None
    return F.normalize(model.scaling.to_data(x)[:, :, 0].cpu(), dim=1)


def told_of(captions: Tensor, v: Tensor) -> dict[str, Any]:
    """What both are told of captions: tokens (N, L), and embeddings (N, d)."""
    return {"caption": captions, "sentence": scaled(v)}
