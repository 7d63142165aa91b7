r"""Latents of a whole data set: their mean and spread, and a data set of them, encoded once::

standardise_latents(net, dataset)                       # of each channel, noted in net.config
latents = latent_dataset(net, dataset)                  # mean 0 and spread 1, with labels and conditions
latents = latent_dataset(net, dataset, file="z.npy")    # in a file, mapped into memory; the second time at once
run = train(model, latents, steps=4000)
latent = Latent(run.ema_model(), net)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.data.numpy_files import map_npy, mapped_tensor
from scoresde.files import PathName, make_writable, read_format, refusing, replacing, write_format
from scoresde.interop.autoencoder import Autoencoding
from scoresde.models import evaluating
from scoresde.models.modules import parameters_of
from scoresde.nn import Autoencoder

_FORMAT, _VERSION = "scoresde latents", 1


def standardise_latents(net: Autoencoder, dataset: Dataset, *, batch_size: int = 256) -> None:
    """Measure mean and spread of each latent channel over the data, in float64, and note them in the autoencoder.

    They are those of ``net.encode(x)``, over samples and positions. From then on an :class:`Autoencoding` and a
    :class:`Latent` of ``net`` give a model latents of mean 0 and spread 1, as its noise has at the end (Rombach et al.
    2022, arXiv:2112.10752, appendix G, who take one number for all channels).

    Args:
        net: trained.
        dataset: what it was trained on.
        batch_size: samples that are encoded at once.

    Raises:
        TypeError, ValueError: no autoencoder of ours, no data set, samples that do not fit, or a channel of one number
            only.
    """
    checks.instance(net, Autoencoder, name="net")
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    with torch.no_grad(), evaluating(net):
        for x in _batches(net, dataset, checks.count(batch_size, name="batch_size")):
            z = checks.brought(net.encode(x), torch.float64).cpu().movedim(1, 0).flatten(1)
            n, some = z.shape[1], z.mean(1)
            # Chan's update of a mean and of squares around it: nothing is lost to a mean that is far from 0
            total, away = count + n, some - mean
            squares = squares + (z - some[:, None]).square().sum(1) + away.square() * count * n / total
            mean, count = mean + away * n / total, total
    if not bool(mean.isfinite().all() & squares.isfinite().all()):
        raise ValueError("net must encode these data to finite latents, got NaN or infinity: look at its weights.")
    net.describe_latents(mean, (squares / count).sqrt())


def latent_dataset(
    autoencoder: Autoencoding | nn.Module,
    dataset: Dataset,
    *,
    file: PathName | None = None,
    batch_size: int = 256,
) -> Dataset:
    r"""The data set of latents (N, \*latent) of a data set, in its order, with its labels and conditions.

    Latents are those of :meth:`Autoencoding.encode`, the mean, in float32, in the units that a :class:`Latent` of the
    same autoencoder expects of its model. Mirroring them is not mirroring pictures: encode mirrored ones as well.

    Args:
        autoencoder: an :class:`Autoencoding`, or an autoencoder whose config tells its factors.
        dataset: what to encode.
        file: an .npy file for the latents, which is mapped into memory; beside it lies a .json that says of what they
            were made. Where both are there they are opened, not made again.
        batch_size: samples that are encoded at once.

    Raises:
        TypeError, ValueError: no autoencoder, no data set, samples that do not fit, another ending, a file that was
            made of other data or by another autoencoder.
    """
    coding = autoencoder if isinstance(autoencoder, Autoencoding) else Autoencoding(autoencoder)
    checks.instance(dataset, Dataset, name="dataset", hint="scoresde.data.from_tensors(x) makes one.")
    batch_size = checks.count(batch_size, name="batch_size")
    if coding.units is not None:
        raise ValueError(
            "autoencoder must be one before a model is there, got the autoencoding of a Latent with units of its own: "
            "give the autoencoder."
        )
    shape = coding.latent_shape((len(dataset), *dataset.event_shape))
    if file is None:
        return _dataset(torch.cat(list(_encoded(coding, dataset, batch_size))), dataset, mapped=False)
    place = checks.path(file, name="file").expanduser()
    if place.suffix != ".npy":
        raise ValueError(f"file must be the name of an .npy file, got {str(place)!r}.")
    told, origin = place.with_suffix(".json"), _origin(coding, dataset)
    if not told.exists():
        if place.exists():
            raise ValueError(
                f"{place} is there already, and {told.name}, which would say what it was made of, is not: choose "
                "another name for file, or remove it."
            )
        make_writable(place.parent)
        with replacing(place) as partial:
            held = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            first = 0
            for z in _encoded(coding, dataset, batch_size):
                held[first : first + len(z)] = z.numpy()
                first += len(z)
            held.flush()
            del held
        write_format(told, format=_FORMAT, version=_VERSION, content={"origin": origin})
    mend = f"Remove {told.name} and {place.name} to encode anew."
    found = read_format(told, refusing(told), format=_FORMAT, version=_VERSION, what="latents", mend=mend)
    if found.get("origin") != origin:
        raise ValueError(
            f"{place} was encoded of other data or by another autoencoder: choose another name for file, or remove "
            f"{told.name} and {place.name}."
        )
    latents = mapped_tensor(map_npy(place), place)
    if tuple(latents.shape) != shape or latents.dtype != torch.float32:
        raise ValueError(f"{place} must hold float32 {shape}, got {checks.got(latents)}. {mend}")
    return _dataset(latents, dataset, mapped=True)


def _dataset(latents: Tensor, dataset: Dataset, *, mapped: bool) -> Dataset:
    made = from_tensors(
        latents,
        dataset.label,
        channels="first",
        scaling=Scaling(0.0, 1.0),
        class_names=dataset.class_names,
        conditions=dataset.conditions,
        condition_scalings={name: dataset.condition_scalings.get(name) for name in dataset.conditions},
        vocabularies=dataset.vocabularies,
        mapped=mapped,
    )
    made.source = dataset.source
    return made


def _encoded(coding: Autoencoding, dataset: Dataset, batch_size: int) -> Iterator[Tensor]:
    """Latents of some samples each, float32 on the CPU."""
    with torch.no_grad(), evaluating(coding.autoencoder):
        for x in _batches(coding.autoencoder, dataset, batch_size):
            z = coding.encode(x).float().cpu()
            checks.finite(z, name="latents", hint="Look at the weights of the autoencoder.")
            yield z


def _batches(autoencoder: object, dataset: Dataset, batch_size: int) -> Iterator[Tensor]:
    """The samples in order, in model units, on the device of the autoencoder."""
    checks.instance(dataset, Dataset, name="dataset", hint="scoresde.data.from_tensors(x) makes one.")
    own = parameters_of(autoencoder)
    device = own[0].device if own else torch.device("cpu")
    for first in range(0, len(dataset), batch_size):
        yield dataset.batch(slice(first, first + batch_size))["x"].to(device)


def _origin(coding: Autoencoding, dataset: Dataset) -> str:
    """A digest of the autoencoder, its factors and the samples."""
    digest = hashlib.sha256()

    def add(name: str, value: Tensor) -> None:
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)

    module = coding.autoencoder
    digest.update(repr((type(module).__qualname__, dataset.scaling)).encode())
    for name, value in module.state_dict().items() if isinstance(module, nn.Module) else ():
        add(name, value)
    for name in ("scaling_factor", "shift_factor"):
        add(name, torch.as_tensor(getattr(coding, name), dtype=torch.float64))
    for rows in dataset.data.split(max(1, 2**22 // max(1, dataset.data[0].numel()))):
        add("data", rows)
    return digest.hexdigest()
