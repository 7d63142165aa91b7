"""The way in: options are checked, a Run comes out."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from scoresde import losses
from scoresde.losses import Weighting
from scoresde.score import ScoreModel
from scoresde.times import TimeDensity, UniformTime
from scoresde.train.batches import MapDataset
from scoresde.train.loop import Run
from scoresde.train.options import Options, Precision
from scoresde.train.schedule import Decay


def train(
    model: ScoreModel,
    dataset: MapDataset,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    warmup: int = 0,
    decay: Decay = "constant",
    clip: float | None = 1.0,
    ema: float = 0.9999,
    ema_warmup: bool = True,
    weighting: Weighting | str = losses.simple,
    times: TimeDensity | None = None,
    label_dropout: float | None = None,
    conditions: Sequence[str] | None = None,
    flip: bool = False,
    dequantize: bool = False,
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
    resume: bool = False,
    save_every: int | None = None,
    keep: int = 2,
    log_every: int = 50,
    max_seconds: float | None = None,
    mixed_precision: Precision | None = None,
    accumulate: int = 1,
    num_workers: int = 0,
    cpu: bool = False,
    progress: bool = True,
) -> Run:
    """Train ``model`` on ``dataset`` by denoising score matching; iterate to make it happen::

        run = train(model, dataset, steps=2000, batch_size=128, folder="run")
        for step in run:
            if step.step % 500 == 0:
                print(step.step, step.loss)
        averaged = run.ema_model()

    The same script runs on one CPU, one GPU, or many by ``accelerate launch`` or ``torchrun``. All randomness (order of
    the data, t, ε, dropped labels, mirrored images) is a pure function of (seed, step, position in the global
    batch): N processes train on what one process would have, and a resumed run equals the uninterrupted one, bit for
    bit on the same machine where its kernels are deterministic. Dropout inside the network is seeded by (seed, step,
    process): exact on resuming, but its masks depend on the number of processes. torch's default generators are
    left as they were. What a data set of your own draws from the default generators of torch, NumPy and Python starts
    anew from (seed, step, process) for each batch, too.

    Args:
        model: trained in place, on the device that Accelerate chooses (CUDA where present, else the CPU).
        dataset: from ``scoresde.data``, or anything of which ``dataset[i]`` is a dict of x (in model units) and
            conditions.
        steps: optimizer steps in all, earlier sessions of a resumed run included.
        batch_size: samples per step, over all processes and accumulated parts together.
        lr: AdamW's peak learning rate.
        betas: AdamW's.
        weight_decay: AdamW's.
        warmup: steps of linear warm-up of the learning rate.
        decay: "constant" or "cosine", see ``learning_rate``.
        clip: largest norm of the gradient; None leaves it as it is.
        ema: decay of the average of the weights; 0 for none.
        ema_warmup: forget faster at first, see ``average_decay``.
        weighting: of the loss over time, see ``scoresde.losses``.
        times: density of training times, see ``scoresde.times``; uniform in t unless given.
        label_dropout: probability that a sample's conditions become null (for classifier-free guidance): 0.1 unless
            given, 0 for networks without ``null_conditions``.
        conditions: names of the entries of a batch that the network takes as keywords; those of its
            ``null_conditions`` unless given.
        flip: mirror each sample along its last axis with probability 1/2.
        dequantize: add uniform noise of one bin to data that are levels, so that they have a density and bits per
            dimension mean something (Theis et al. 2016, arXiv:1511.01844, section 3.1). The data set's ``scaling``
            knows the bin.
        seed: of everything random here. Initial weights come with the model.
        folder: for checkpoints and log.jsonl; nothing is written without it.
        resume: continue from the last checkpoint in ``folder``, if there is one. Without it, a folder that holds
            checkpoints is refused.
        save_every: steps between checkpoints; one is written at the end in any case.
        keep: how many checkpoints to leave.
        log_every: steps between lines of log.jsonl, which hold the mean loss since the line before.
        max_seconds: stop (and save) after so much wall time of this session.
        mixed_precision: "bf16" runs the network in bfloat16 with float32 weights, "no" does not; what
            ``accelerate launch`` says unless given.
        accumulate: split each process's part of the batch into so many pieces, to save memory.
        num_workers: worker processes for data sets that compute their samples; 0 is best for data in memory.
        cpu: stay on the CPU although there is a GPU.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError: an argument, the model or the data set is not as described, or they do not fit.
        CheckpointError: the folder cannot be written, another process of this host trains into it, or its checkpoint
            cannot be resumed: it is damaged, or of another model or data set.
        ModuleNotFoundError: the extra ``train`` is not installed.
        FloatingPointError: from the iteration, when a loss or gradient is not finite; nothing is saved then.
    """
    options = Options(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        betas=betas,
        weight_decay=weight_decay,
        warmup=warmup,
        decay=decay,
        clip=clip,
        ema=ema,
        ema_warmup=ema_warmup,
        weighting=weighting,
        times=UniformTime() if times is None else times,
        label_dropout=label_dropout,
        conditions=conditions,
        flip=flip,
        dequantize=dequantize,
        seed=seed,
        folder=None if folder is None else Path(folder),
        resume=resume,
        save_every=save_every,
        keep=keep,
        log_every=log_every,
        max_seconds=max_seconds,
        mixed_precision=mixed_precision,
        accumulate=accumulate,
        num_workers=num_workers,
        cpu=cpu,
        progress=progress,
    )
    return Run(model, dataset, options)
