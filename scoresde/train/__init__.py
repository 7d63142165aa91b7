"""Training on Hugging Face Accelerate: the loop, averaged weights, checkpoints. Needs the extra ``train``::

    run = train(model, dataset, steps=2000, batch_size=128, folder="run")     # options: see TrainOptions
    for step in run:                                                          # iterating does the steps
        print(step.step, step.loss)
    model = load_model("run")                                                 # the averaged weights, later

:func:`train` learns scores, :func:`train_classifier` noise-conditional classifiers and :func:`train_contrastive` which
caption belongs to what, in one loop and with one object of options, :class:`TrainOptions`. A run is exact: resumed, it
takes the steps that it would have taken, and several processes take those of one. With ``held_out`` the loss on samples
that are never trained on tells of convergence: :class:`HeldOutLoss`, :class:`EarlyStopping`. Checkpoints are JSON and
safetensors; :func:`describe` reads what they say of themselves, and :func:`save` writes one of a model that was trained
elsewhere. :func:`train_autoencoder` learns the latents of a latent diffusion model, in a loop of its own.
:func:`save_adapter` writes what was learned beside a network alone; :func:`prior_set` draws what a model shall not
forget. :func:`sample_sharded` has several processes draw samples together.
"""

from scoresde.train.adapters import load_adapter, save_adapter
from scoresde.train.autoencoder import AutoencoderRun, AutoencoderStep, train_autoencoder
from scoresde.train.autoencoder_files import load_autoencoder, save_autoencoder
from scoresde.train.autoencoder_options import AutoencoderOptions
from scoresde.train.autoencoder_terms import Adversary, Perceptual
from scoresde.train.callbacks import Callback
from scoresde.train.checkpoint import load_classifier, load_contrastive, load_model, save
from scoresde.train.contents import Description, describe
from scoresde.train.convergence import EarlyStopping, HeldOutLoss
from scoresde.train.ema import EMA, PowerEMA, average_decay, ema_model, exponent_of, width_of
from scoresde.train.folder import CheckpointError
from scoresde.train.loop import Run
from scoresde.train.optimizer import learning_rate
from scoresde.train.options import TrainOptions
from scoresde.train.posthoc import Snapshots, reconstruct_ema, save_snapshot, snapshot_steps
from scoresde.train.preservation import prior_set
from scoresde.train.profiles import ProfileFit, fit_profile
from scoresde.train.record import StepRecord
from scoresde.train.shared_sampling import SharedSamples, sample_sharded
from scoresde.train.signals import Terminated
from scoresde.train.start import train, train_classifier, train_contrastive
from scoresde.train.tensorboard import TensorBoard

__all__ = [
    "EMA",
    "Adversary",
    "AutoencoderOptions",
    "AutoencoderRun",
    "AutoencoderStep",
    "Callback",
    "CheckpointError",
    "Description",
    "EarlyStopping",
    "HeldOutLoss",
    "Perceptual",
    "PowerEMA",
    "ProfileFit",
    "Run",
    "SharedSamples",
    "Snapshots",
    "StepRecord",
    "TensorBoard",
    "Terminated",
    "TrainOptions",
    "average_decay",
    "describe",
    "ema_model",
    "exponent_of",
    "fit_profile",
    "learning_rate",
    "load_adapter",
    "load_autoencoder",
    "load_classifier",
    "load_contrastive",
    "load_model",
    "prior_set",
    "reconstruct_ema",
    "sample_sharded",
    "save",
    "save_adapter",
    "save_autoencoder",
    "save_snapshot",
    "snapshot_steps",
    "train",
    "train_autoencoder",
    "train_classifier",
    "train_contrastive",
    "width_of",
]
