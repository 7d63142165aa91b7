"""The way in: options are checked, a Run comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from scoresde import losses
from scoresde.guidance import ClassifierModel
from scoresde.losses import Weighting
from scoresde.score import ScoreModel
from scoresde.times import TimeDensity, UniformTime
from scoresde.train.batches import MapDataset
from scoresde.train.classification import Classification
from scoresde.train.loop import Run
from scoresde.train.objective import Denoising
from scoresde.train.options import Options, Precision, ScoreOptions
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
    label_dropout: float | Mapping[str, float] | None = None,
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
) -> Run[ScoreModel]:
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
            conditions. Floating conditions reach the network in the dtype of x, which is that of the weights.
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
            given, 0 for networks without ``null_conditions``. It acts on every condition in training that has a null,
            not on labels alone: the name is from when there were labels only, and stays for compatibility. A number
            drops all conditions of a sample together, so that the network learns the joint conditional and the
            unconditional score. A mapping such as {"label": 0.1, "caption": 0.2} drops each one named on its own, for
            guidance by some of them, and never those that it does not name.
        conditions: names of the entries of a batch that the network takes as keywords; those of its
            ``null_conditions`` unless given.
        flip: mirror each sample along its last axis with probability 1/2, and with it those conditions that the
            network lists in ``image_conditions``.
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
    options = ScoreOptions(
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
    return Run(Denoising(model, options.weighting, options.label_dropout, options.conditions), dataset, options)


def train_classifier(
    model: ClassifierModel,
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
    times: TimeDensity | None = None,
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
) -> Run[ClassifierModel]:
    """Train a noise-conditional classifier by the cross-entropy -log p(label | x_t), x_t = α x_0 + σ ε, at random t::

        run = train_classifier(ClassifierModel(net, sde, sigma_data=1.0), dataset, steps=2000, batch_size=128)
        for step in run:
            ...
        guided = classifier(score, run.ema_model(), scale=2.0, label=3)

    for classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4). The loop is that of ``train``: see
    there for how it runs, resumes and draws. Steps report the mean cross-entropy in nats. Whether the probabilities
    mean what they say is a question for :func:`scoresde.guidance.calibration`.

    Args:
        model: trained in place: a NoiseClassifier, or any network (x, c) -> logits (B, K), with its SDE.
        dataset: with labels 0 ... K - 1, as for ``train``.
        times: density of training times; its weights multiply the cross-entropy. Uniform in t unless given.
        flip: mirror each sample with probability 1/2; the label stays.
        steps, batch_size, lr, betas, weight_decay, warmup, decay, clip, ema, ema_warmup, dequantize, seed, folder,
            resume, save_every, keep, log_every, max_seconds, mixed_precision, accumulate, num_workers, cpu, progress:
            as for ``train``.

    Raises:
        TypeError, ValueError: an argument, the model or the data set is not as described, or they do not fit: no
            labels, labels out of range, another number of logits than of classes.
        CheckpointError, ModuleNotFoundError, FloatingPointError: as for ``train``.
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
        times=UniformTime() if times is None else times,
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
    return Run(Classification(model), dataset, options)
