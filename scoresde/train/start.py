"""Where training starts: options are checked, a :class:`~scoresde.train.Run` comes out.

:func:`train` trains a :class:`~scoresde.models.ScoreModel` by denoising score matching, :func:`train_classifier` a
:class:`~scoresde.models.ClassifierModel` by cross-entropy, :func:`train_contrastive` a
:class:`~scoresde.models.ContrastiveModel` by InfoNCE. Options are keywords, or a
:class:`~scoresde.train.TrainOptions` with changes by keyword::

    run = train(model, dataset, steps=2000, batch_size=128, folder="run", resume=True)
    for step in run:                                        # iterating does the steps
        print(step.step, step.loss)
    averaged = run.ema_model()

:class:`Training` is the type of all. ``help(train)`` lists the options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast, overload

from scoresde.models import ClassifierModel, ContrastiveModel, ScoreModel
from scoresde.train.classification import Classification
from scoresde.train.contrast import Contrast
from scoresde.train.describe import CLASSIFIER, CONTRASTIVE, SCORE, Model
from scoresde.train.feeds import Data, chosen_batch_size
from scoresde.train.loop import Run
from scoresde.train.objective import Denoising
from scoresde.train.options import TrainOptions, chosen_options, documented, option_fields

Keywords = ParamSpec("Keywords")


class Training(Protocol[Model, Keywords]):
    """How a training is called: the options as one object, with changes by keyword, or all by keyword."""

    @overload
    def __call__(self, model: Model, dataset: Data, options: TrainOptions, **changes: Any) -> Run[Model]: ...
    @overload
    def __call__(
        self, model: Model, dataset: Data, /, *args: Keywords.args, **options: Keywords.kwargs
    ) -> Run[Model]: ...


def _with_options(
    kind: str, keywords: Callable[Keywords, TrainOptions]
) -> Callable[[Callable[[Model, Data, TrainOptions], Run[Model]]], Training[Model, Keywords]]:
    """Let a function of (model, dataset, options) be called with options by keyword, as its signature and help tell.

    Args:
        kind: of training, which decides what options it has.
        keywords: TrainOptions itself, from whose fields type checkers read the keywords.
    """

    def decorated(function: Callable[[Model, Data, TrainOptions], Run[Model]]) -> Training[Model, Keywords]:
        name = function.__name__

        @functools.wraps(function)
        def start(model: Model, dataset: Data, options: TrainOptions | None = None, **changes: Any) -> Run[Model]:
            size = chosen_batch_size(dataset) if options is None and "batch_size" not in changes else None
            if size is not None:
                changes["batch_size"] = size
            return function(model, dataset, chosen_options(name, kind, options, changes))

        own = inspect.signature(function, eval_str=True)
        model, dataset, options = own.parameters.values()
        empty, keyword = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
        fields: list[inspect.Parameter] = [
            inspect.Parameter(o.name, keyword, default=empty if o.required else o.default, annotation=o.type)
            for o in option_fields().values()
            if o.kind in (None, kind)
        ]
        optional = options.replace(default=None, annotation=TrainOptions | None)
        signature = own.replace(parameters=[model, dataset, optional, *fields])
        start.__signature__ = signature  # type: ignore[attr-defined]
        start.__doc__ = documented(function.__doc__, kind)
        return cast(Any, start)

    return decorated


@_with_options(SCORE, TrainOptions)
def train(model: ScoreModel, dataset: Data, options: TrainOptions) -> Run[ScoreModel]:
    """Train ``model`` on ``dataset`` by denoising score matching; iterate to make it happen::

        run = train(model, dataset, steps=2000, batch_size=128, folder="run")
        for step in run:
            if step.step % 500 == 0:
                print(step.step, step.loss)
        averaged = run.ema_model()

    The same script runs on one CPU, one GPU, or many by ``accelerate launch`` or ``torchrun``. All randomness (order of
    the data, t, ε, dropped conditions, mirrored images) is a pure function of (seed, step, position in the global
    batch): N processes train on what one process would have, and a resumed run equals the uninterrupted one, bit for
    bit on the same machine where its kernels are deterministic. Dropout inside the network is seeded by (seed, step,
    process): exact on resuming, but its masks depend on the number of processes. What a data set of your own draws from
    the default generators of torch, NumPy and Python starts anew from (seed, step, process) for each batch, too. The
    default generators are left as they were. Where something may draw from them (dropout, a module, hook, weighting or
    density of your own, a data set of your own) they are set for a moment, which another thread that draws would
    notice; else they are not touched. Batch normalisation sees the samples of one process and one piece at a time.

    Ctrl-C leaves the run as it was before the step under way, or after it: iterate again, and it goes on. What the end
    needs, a copy with the averaged weights and a checkpoint, is tried before the first step.

    Args:
        model: trained in place, on the device that Accelerate chooses (CUDA where present, else the CPU).
        dataset: from ``scoresde.data``; anything of which ``dataset[i]`` is a dict of x (in model units) and
            conditions; an iterable of such dicts, or a function that returns one, gone through pass after pass
            (:mod:`scoresde.train.streams` says what is promised then); a DataLoader, whose batch size is the step's
            unless ``batch_size`` is given (:mod:`scoresde.train.loaders`); a data set of Hugging Face's ``datasets``,
            local or streaming. ``columns`` names what is called otherwise there. Floating conditions reach the network
            in the dtype of x, which is that of the weights.
        options: a TrainOptions; what is given by keyword changes it, or takes its place:

    Raises:
        TypeError, ValueError: an argument, the model or the data set is not as described, or they do not fit.
        CheckpointError: the folder cannot be written, another process of this host trains into it, or its checkpoint
            cannot be resumed: it is damaged, or of another model or data set.
        ModuleNotFoundError: the extra ``train`` is not installed.
        FloatingPointError: from the iteration, when a loss or gradient is not finite; nothing is saved then.
    """
    return Run(Denoising(model, options), dataset, options)


@_with_options(CLASSIFIER, TrainOptions)
def train_classifier(model: ClassifierModel, dataset: Data, options: TrainOptions) -> Run[ClassifierModel]:
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
        dataset: with labels 0 ... K - 1, as for ``train``; where x is mirrored, the label stays.
        options: as for ``train``, but for those of scores alone, which are refused:

    Raises:
        TypeError, ValueError: an argument, the model or the data set is not as described, or they do not fit: no
            labels, labels out of range, another number of logits than of classes.
        CheckpointError, ModuleNotFoundError, FloatingPointError: as for ``train``.
    """
    return Run(Classification(model), dataset, options)


@_with_options(CONTRASTIVE, TrainOptions)
def train_contrastive(model: ContrastiveModel, dataset: Data, options: TrainOptions) -> Run[ContrastiveModel]:
    """Train a contrastive model by InfoNCE of x_t = α x_0 + σ ε and captions, at random t::

        net = DualEncoder(3, captions={"caption": {"vocabulary": len(words), "length": 8}})
        run = train_contrastive(ContrastiveModel(net, sde, sigma_data=0.5), dataset, steps=1000, batch_size=128)
        for step in run:
            ...
        guided = classifier(score, run.ema_model().similarity(tokens), scale=2.0)

    with :func:`scoresde.losses.contrastive_loss` (Radford et al. 2021, arXiv:2103.00020). The loop is that of
    ``train``: see there for how it runs, resumes and draws. Which noise it learns to read through is decided by
    ``times``: ``LogNormalSigma`` over the levels at which it is to guide, or narrow and low for clean events alone.
    Steps report the mean loss in nats; log(batch_size) is that of a model that knows nothing. The others of the batch
    are the negatives, those with the same caption excepted, so that the batch size is part of what is learned; with
    ``accumulate`` or several processes it is the size of a part.

    Args:
        model: trained in place.
        dataset: with the caption that the network takes, tokens (N, L), as for ``train``; where x is mirrored, the
            caption stays.
        options: as for ``train``, but for those of scores alone, which are refused:

    Raises:
        TypeError, ValueError: an argument, the model or the data set is not as described, or they do not fit: no
            captions, tokens out of range or of longer captions than the network takes, parts of one sample.
        CheckpointError, ModuleNotFoundError, FloatingPointError: as for ``train``.
    """
    return Run(Contrast(model, options), dataset, options)
