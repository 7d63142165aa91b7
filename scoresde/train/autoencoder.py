r"""Training of an :class:`~scoresde.nn.Autoencoder`, as an iterator: each ``next`` is one step of the optimizer::

    run = train_autoencoder(net, dataset, steps=4000, batch_size=64, folder="ae", save_every=500)
    for step in run:
        print(step.step, step.terms)                        # nats per number of x
    net = run.averaged()                                    # or load_autoencoder("ae")
    standardise_latents(net, dataset)                       # of scoresde.interop

It minimises, in nats for each of the D numbers of an event,

    E_x [-log p(x | z) + w penalty] / D + perceptual + adversarial,         z drawn of the bottleneck,

which for w = 1 and a KLBottleneck is the bound on -log p(x) of Kingma & Welling 2013 (arXiv:1312.6114, equation 3).
What a step draws depends on the seed and its number alone: a resumed run takes the steps of an uninterrupted one.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data import Dataset, random_flip
from scoresde.nn import Autoencoder, PatchDiscriminator
from scoresde.train import folder as folders
from scoresde.train.atomic import uninterrupted
from scoresde.train.autoencoder_files import Saved, autoencoder_config
from scoresde.train.autoencoder_options import AutoencoderOptions
from scoresde.train.contents import AVERAGE, MODEL, OPTIMIZER
from scoresde.train.draws import DataOrder, derive, draws_itself, named_uniforms, seeded, seeded_where, step_noise
from scoresde.train.ema import EMA, ema_model
from scoresde.train.folder import CheckpointError
from scoresde.train.optimizer import Optimizer
from scoresde.train.owner import Owner
from scoresde.train.record import Log
from scoresde.train.tensors import check_equal
from scoresde.train.writing import Content, write_whole
from scoresde.warning import warn_user

ADVERSARY, ADVERSARY_OPTIMIZER = "adversary.safetensors", "adversary-optimizer.safetensors"


@dataclass(frozen=True)
class AutoencoderStep:
    """One optimizer step of an autoencoder.

    Attributes:
        step: number of steps done, this one included.
        samples: seen so far.
        lr: learning rate of this step.
        seconds: wall time of training so far, earlier sessions included.
    """

    step: int
    samples: int
    lr: float
    seconds: float
    _terms: Mapping[str, Tensor] = field(repr=False)

    @property
    def terms(self) -> dict[str, float]:
        """The parts of the loss, weighted, by name: reconstruction, penalty and, where there are any, perceptual,
        adversarial and the discriminator's own. On a GPU, reading them waits for the step to finish.
        """
        return {name: value.item() for name, value in self._terms.items()}

    @property
    def loss(self) -> float:
        """Their sum, without the discriminator's."""
        return sum(value for name, value in self.terms.items() if name != "discriminator")


def train_autoencoder(
    net: Autoencoder, dataset: Dataset, options: AutoencoderOptions | None = None, **changes: Any
) -> AutoencoderRun:
    """Train an autoencoder: iterating what comes back does the steps.

    Args:
        net: in training; it goes to the GPU, where there is one, unless ``cpu``.
        dataset: of :mod:`scoresde.data`; its x are what is learned.
        options: an :class:`AutoencoderOptions`, or
        changes: its fields by keyword.

    Raises:
        TypeError, ValueError: no autoencoder, no data set, samples that do not fit, options out of their range; before
            anything is done.
        CheckpointError: the folder cannot be written, holds checkpoints that are not to be resumed, or others.
    """
    if options is not None and not isinstance(options, AutoencoderOptions):
        raise TypeError(f"options must be AutoencoderOptions(...), got {checks.got(options)}.")
    unknown = [name for name in changes if name not in AutoencoderOptions.__dataclass_fields__]
    if unknown:
        known = ", ".join(AutoencoderOptions.__dataclass_fields__)
        raise TypeError(f"train_autoencoder has no option {unknown[0]!r}; there are {known}.")
    if options is None and "steps" not in changes:
        raise TypeError("steps must be given: how many steps of the optimizer, in all.")
    chosen = AutoencoderOptions(**changes) if options is None else replace(options, **changes)
    return AutoencoderRun(net, dataset, chosen)


class AutoencoderRun(Iterator[AutoencoderStep]):
    """A training run of an autoencoder, made by :func:`train_autoencoder`.

    A step is done wholly or not at all: after an error or Ctrl-C the run is as it was before it, and goes on when it is
    iterated again.

    Attributes:
        net: in training.
        ema: the average of its weights.
        step: optimizer steps done.
        options: of the run.
        discriminator: of the adversary, where there is one.
    """

    def __init__(self, net: Autoencoder, dataset: Dataset, options: AutoencoderOptions) -> None:
        self.net = checks.instance(net, Autoencoder, name="net")
        self.options, self.step = checks.instance(options, AutoencoderOptions, name="options"), 0
        self._dataset = checks.instance(
            dataset, Dataset, name="dataset", hint="scoresde.data.from_tensors(x) makes one."
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
        self.discriminator: PatchDiscriminator | None = None
        self._check()
        self._path = None if options.folder is None else Path(options.folder)
        saved = None if self._path is None else self._opened(self._path)
        self._owner: Owner | None = None
        if self._path is not None:
            self._claim(self._path)
        try:
            self._begin(saved)
        except BaseException:
            self.close()
            raise

    def _begin(self, saved: Saved | None) -> None:
        """Make what a run holds, as it was saved; the folder is ours."""
        net, dataset, options = self.net, self._dataset, self.options
        net.to(self._device)
        if options.adversary is not None:
            with seeded(torch.device("cpu"), derive(options.seed, "adversary")):
                self.discriminator = options.adversary.discriminator(net.channels, net.event_dims)
            self.discriminator.to(self._device)
        self._network_draws = draws_itself(net)
        self._order = DataOrder(len(dataset), options.batch_size, options.seed)
        self._optimizer = Optimizer(net, options.betas, options.weight_decay)
        self._other = None
        if self.discriminator is not None:
            self._other = Optimizer(self.discriminator, options.betas, options.weight_decay)
        self._seconds, self._sum, self._count = 0.0, torch.zeros((), device=self._device), 0
        self._written: int | None = None
        if saved is not None:
            self._load_weights(saved)
        self.ema = EMA(net, options.ema)
        if saved is not None:
            self._load(saved)
        net.scaling = dataset.scaling
        self._log = None if self._path is None else Log(self._path / folders.LOG, self.step)

    def __iter__(self) -> AutoencoderRun:
        return self

    def __next__(self) -> AutoencoderStep:
        if self.step >= self.options.steps:
            self.close()
            raise StopIteration
        if self._path is not None and self._owner is None:
            self._claim(self._path)
        self.ema.refuse_if_applied("iterating the run")
        with torch.inference_mode(False), torch.enable_grad():
            record = self._advance()
        done = self.step == self.options.steps
        if self.step % self.options.log_every == 0 or done:
            self._log_line(record)
        if self._path is not None and (done or (self.options.save_every and self.step % self.options.save_every == 0)):
            self.save()
        if done:
            self.close()
        return record

    def __reduce__(self) -> NoReturn:
        """Raises TypeError: a run holds a folder, of which there cannot be two."""
        raise TypeError(
            "an AutoencoderRun cannot be pickled or copied: it owns its folder. Save a checkpoint, run.save(), and go "
            "on from it by the same call of train_autoencoder with resume=True; or copy run.net and run.ema."
        )

    def averaged(self) -> Autoencoder:
        """A copy of the autoencoder with the averaged weights, in evaluation mode."""
        copied = ema_model(self.net, self.ema)
        copied.scaling = self.net.scaling
        return copied.eval()

    def close(self) -> None:
        """Give up the folder."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def save(self) -> Path:
        """Write a checkpoint of the present step, and return its folder.

        Raises:
            ValueError: the run has no folder. CheckpointError: it cannot be written. FloatingPointError: a weight is
                not finite.
        """
        if self._path is None:
            raise ValueError("this run has no folder; pass folder=... to train_autoencoder, or use save_autoencoder.")
        self.ema.refuse_if_applied("saving the run")
        tensors: dict[str, Mapping[str, Tensor]] = {MODEL: self.net.state_dict(), AVERAGE: self.ema.state()}
        if state := self._optimizer.state():
            tensors[OPTIMIZER] = state
        if self.discriminator is not None and self._other is not None:
            tensors[ADVERSARY] = self.discriminator.state_dict()
            if state := self._other.state():
                tensors[ADVERSARY_OPTIMIZER] = state
        config = {
            **autoencoder_config(self.net, self._dataset.scaling),
            "step": self.step,
            "samples": len(self._dataset),
            "seconds": self._seconds,
            "ema_updates": self.ema.updates,
            "loss": {"sum": float(self._sum), "steps": self._count},
            "options": self.options.recorded(),
        }
        path = write_whole(self._path, Content(self.step, config, tensors, {}, self.options.keep, ()))
        self._written = self.step
        return path

    # -- a step ------------------------------------------------------------------------------------------------

    def _advance(self) -> AutoencoderStep:
        options, began = self.options, time.perf_counter()
        for parameter in self.net.parameters():
            parameter.grad = None
        if not self.net.training:
            self.net.train()
        x = self._batch()
        with seeded_where(self._network_draws, self._device, derive(options.seed, "network", self.step)):
            terms, h = self._gradients(x)
        norm = self._optimizer.gradient_norm()
        if self._device.type == "cpu" or self.step % options.log_every == 0:  # a look stalls a GPU
            self._stop_if_bad(terms, norm)
        (rate,) = self._optimizer.rates(
            self.step, lr=options.lr, steps=options.steps, warmup=options.warmup, decay=options.decay
        )
        codes = self._uniforms(self.net.bottleneck.draws, "codes")
        with uninterrupted():
            self._optimizer.step(rate, norm, options.clip)
            if "discriminator" in terms and self._other is not None and options.adversary is not None:
                self._other.step(rate * options.adversary.lr, self._other.gradient_norm(), options.clip)
            self.net.bottleneck.learn(h, codes)
            self.ema.update()
            self.step += 1
            self._seconds += time.perf_counter() - began
            self._sum += sum(value for name, value in terms.items() if name != "discriminator")
            self._count += 1
        return AutoencoderStep(self.step, self.step * options.batch_size, rate, self._seconds, terms)

    def _batch(self) -> Tensor:
        options, dtype = self.options, next(self.net.parameters()).dtype
        x = self._dataset.gather(self._order.indices(self.step))["x"]
        if options.flip:
            x = random_flip(x, named_uniforms(options.seed, self.step, options.batch_size, "flip"))
        if self._device.type == "cuda":
            return x.pin_memory().to(self._device, non_blocking=True).to(dtype)
        return x.to(dtype)

    def _gradients(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Put the gradients into ``.grad``; the weighted terms and what the bottleneck was given, without a graph."""
        options, net, size = self.options, self.net, math.prod(x.shape[1:])
        z = x.new_empty(net.latent_shape(tuple(x.shape)))
        eps = step_noise(options.seed, self.step, 0, z, name="bottleneck")
        with self._narrow():
            decoded, penalty, h = net(x, eps)
        weight = net.penalty if options.penalty is None else options.penalty
        terms = {
            "reconstruction": -net.log_likelihood(x, decoded).mean() / size,
            "penalty": weight * penalty.mean() / size,
        }
        if options.perceptual is not None:
            with self._narrow():
                distance = options.perceptual.distance(x, decoded)
            terms["perceptual"] = options.perceptual.weight * distance.mean()
        adversary, judge = options.adversary, self.discriminator
        acts = adversary is not None and judge is not None and self.step >= adversary.start
        if acts and adversary is not None and judge is not None:
            last = net.decoder.last_weight
            with self._narrow():
                term = adversary.to_mislead(judge, decoded)
            before = terms["reconstruction"] + terms.get("perceptual", 0.0)
            terms["adversarial"] = adversary.weight * adversary.balance(before, term, last) * term
        # of these parameters alone: neither those of the features nor the discriminator's
        torch.stack(list(terms.values())).sum().backward(inputs=self._optimizer.parameters)
        if acts and adversary is not None and judge is not None and self._other is not None:
            for parameter in judge.parameters():
                parameter.grad = None
            with self._narrow():
                terms["discriminator"] = adversary.to_tell(judge, x, decoded)
            terms["discriminator"].backward()
        return {name: value.detach() for name, value in terms.items()}, h.detach()

    def _narrow(self) -> torch.autocast:
        """Around what networks compute."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.options.mixed_precision == "bf16")

    def _uniforms(self, count: int, name: str) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(derive(self.options.seed, name, self.step))
        return torch.rand(count, generator=generator, device="cpu")

    def _stop_if_bad(self, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        values = torch.stack([*terms.values(), norm.to(next(iter(terms.values())).dtype)])
        if not bool(values.isfinite().all()):
            told = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            kept = "nothing was saved before" if self._written is None else f"step {self._written} was saved"
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {self.step + 1} ({told}), with learning rate "
                f"{self.options.lr:g}; {kept}. Lower lr, lengthen warmup, or look for extreme values in the data."
            )

    def _log_line(self, record: AutoencoderStep) -> None:
        if self._log is None or not self._count:
            return
        terms, mean = record.terms, float(self._sum) / self._count
        if not all(map(math.isfinite, (*terms.values(), mean))):
            raise FloatingPointError(f"the loss is not finite at step {record.step}: {terms}. Lower lr.")
        line = {"step": record.step, "loss": mean, "lr": record.lr, "seconds": round(record.seconds, 3)}
        self._log.write({**line, "samples": record.samples, **terms})
        self._sum, self._count = torch.zeros_like(self._sum), 0

    # -- before the first step ---------------------------------------------------------------------------------

    def _check(self) -> None:
        """Whether all fits together; nothing is changed."""
        net, options, event = self.net, self.options, self._dataset.event_shape
        for name, parameter in net.named_parameters():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} is {parameter.dtype}: weights are trained in float32 or float64; net.float()."
                )
            if parameter.is_meta:
                raise ValueError(f"{name} is on the meta device and holds no numbers; build the network on the CPU.")
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ValueError(
                "net must have weights to train, and all of its are frozen, as those of averaged() are: call "
                "net.requires_grad_() first."
            )
        if options.adversary is not None and not net.decoder.last_weight.requires_grad:
            raise ValueError(
                "adversary needs a decoder that is trained, by the gradients of whose last layer its term is weighed, "
                "and that is frozen: call net.decoder.requires_grad_(), or leave adversary out."
            )
        if len(event) != net.event_dims + 1 or event[0] != net.channels:
            raise ValueError(
                f"dataset must hold events ({net.channels}, ...) with {net.event_dims} spatial axes, which net was "
                f"built for, got {event}."
            )
        net.latent_shape((1, *event))
        some = self._dataset.gather(torch.arange(min(2, len(self._dataset))))["x"]
        if options.perceptual is not None:
            options.perceptual.check(some.to(self._device))
        if options.adversary is not None:
            with seeded(torch.device("cpu"), 0), torch.no_grad():
                options.adversary.discriminator(net.channels, net.event_dims)(some)

    def _opened(self, path: Path) -> Saved | None:
        folders.prepare(path)
        found = folders.checkpoints(path)
        if found and not self.options.resume:
            raise CheckpointError(
                f"{path} holds checkpoints already (the last is {found[-1].name}). Pass resume=True to continue that "
                "run, or choose another folder."
            )
        if not found:
            return None
        saved = Saved.at(found[-1])
        told = saved.fields.object("net")
        before = {name: told.value(name) for name in told.names(most=100)}
        differ = [name for name, value in self.net.config.items() if before.get(name) != value]
        if differ and not all(name.startswith("latents_") or name == "checkpoint" for name in differ):
            raise CheckpointError(
                f"{saved.path} is of another autoencoder, which differs in {', '.join(differ)}: build it as before, or "
                "choose another folder."
            )
        if saved.fields.whole("samples") != len(self._dataset):
            raise CheckpointError(
                f"{saved.path} was trained on {saved.fields.whole('samples')} samples, and dataset holds "
                f"{len(self._dataset)}: give the same data, or choose another folder."
            )
        if saved.fields.whole("step") > self.options.steps:
            raise CheckpointError(
                f"{saved.path} is past the end of this run, steps={self.options.steps}: give more steps."
            )
        for name in saved.fields.object("files").names(most=20):  # before a weight is changed
            saved.file(name)
        return saved

    def _load_weights(self, saved: Saved) -> None:
        state = saved.tensors(MODEL)
        check_equal(state, self.net.state_dict(), folders.damaged(saved.path, MODEL), dtypes=True)
        self.net.load_state_dict(state)

    def _load(self, saved: Saved) -> None:
        fields, now = saved.fields, self.options.recorded()
        told = fields.object("options")
        differ = [name for name in now if name not in told.names(most=100) or told.value(name) != now[name]]
        if differ:
            warn_user(
                f"resuming {saved.path} with other settings ({', '.join(differ)}): the run will differ from an "
                "uninterrupted one."
            )
        self.step = self._written = fields.whole("step")
        self.ema.load_state(saved.tensors(AVERAGE), fields.whole("ema_updates", most=self.step))
        self._optimizer.load_state(
            saved.tensors(OPTIMIZER) if saved.has(OPTIMIZER) else {}, self.step, folders.damaged(saved.path, OPTIMIZER)
        )
        if self.discriminator is not None and self._other is not None and saved.has(ADVERSARY):
            state = saved.tensors(ADVERSARY)
            check_equal(state, self.discriminator.state_dict(), folders.damaged(saved.path, ADVERSARY), dtypes=True)
            self.discriminator.load_state_dict(state)
            if saved.has(ADVERSARY_OPTIMIZER):
                fail = folders.damaged(saved.path, ADVERSARY_OPTIMIZER)
                self._other.load_state(saved.tensors(ADVERSARY_OPTIMIZER), self.step, fail)
        self._seconds = fields.number("seconds", least=0)
        self._sum = self._sum + fields.object("loss").number("sum")
        self._count = fields.object("loss").whole("steps", most=self.step)

    def _claim(self, path: Path) -> None:
        self._owner = Owner(path)
        weakref.finalize(self, self._owner.release)
