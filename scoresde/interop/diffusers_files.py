"""Networks and schedulers of diffusers from folders on this machine, and from their pipelines.

A folder is what their ``save_pretrained`` writes: of a network (``config.json``), of a scheduler
(``scheduler_config.json``) or of a pipeline (``model_index.json``). Weights are read from safetensors only, classes are
those of the installed diffusers, and nothing is downloaded::

    net, scheduler = network_and_scheduler("runs/ddpm-cats")     # of a pipeline
    net = load_network("runs/ddpm-cats/unet")
    scheduler = scheduler_of("runs/ddpm-cats/scheduler")    # also a config, or a scheduler as it is
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde import checks
from scoresde.extras import needs
from scoresde.files import Fields, PathName, read_json, refusing

PARTS = ("unet", "transformer")
"""The networks of a pipeline that predict, by the names that pipelines give them; the first that is there."""

# What a scheduler's config may be taken for where it does not say its class; the first that knows all of its fields.
_BY_FIELDS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "LMSDiscreteScheduler",
)


def network_and_scheduler(given: object) -> tuple[Any, Any]:
    """Network and scheduler of a pipeline, or of its folder.

    Raises:
        TypeError: neither.
        ValueError: a folder of something else, or a pipeline without such a network.
        FileNotFoundError: no such folder.
    """
    if isinstance(given, (str, os.PathLike)):
        folder = _folder(given, "net")
        index = folder / "model_index.json"
        if not index.exists():
            raise ValueError(
                f"{folder} holds no model_index.json, so it is no pipeline; of a network alone give its scheduler, "
                "too: from_diffusers(net, scheduler)."
            )
        return load_network(folder / _part(folder)), scheduler_of(folder / "scheduler")
    net = next((found for name in PARTS if (found := getattr(given, name, None)) is not None), None)
    scheduler = getattr(given, "scheduler", None)
    if net is None or scheduler is None:
        raise TypeError(
            "net alone must be a pipeline with a scheduler and one of unet, transformer, or the folder of one; got "
            f"{checks.got(given)}. Of a network alone give its scheduler, too: from_diffusers(net, scheduler)."
        )
    return net, scheduler


def _part(folder: Path) -> str:
    """Which network of a pipeline's folder predicts."""
    fields = Fields(read_json(index := folder / "model_index.json", fail := refusing(index)), fail)
    part = next((name for name in PARTS if not fields.null(name)), None)
    if part is None or fields.null("scheduler"):
        raise fail(f"a pipeline with a scheduler and one of {', '.join(PARTS)} is expected; those are not in it.")
    return part


def load_network(given: PathName) -> Any:
    """The network that their ``save_pretrained`` wrote into a folder, or a pipeline's, in evaluation mode.

    Raises:
        ValueError: no such folder of a network, a class that the installed diffusers does not have, or weights that
            are not safetensors.
        FileNotFoundError: no such folder.
    """
    folder = _folder(given, "net")
    if (folder / "model_index.json").exists():
        folder = folder / _part(folder)
    config = folder / "config.json"
    if not config.exists():
        raise ValueError(
            f"{folder} holds no config.json, so it is not what save_pretrained of a network writes; its content: "
            f"{_content(folder)}."
        )
    fields = Fields(read_json(config, fail := refusing(config)), fail)
    weights = sorted(path.name for path in folder.iterdir() if path.name.endswith(".safetensors"))
    if not weights:
        raise ValueError(
            f"{folder} holds no weights as safetensors, only {_content(folder)}. Pickled weights may run any code and "
            "are not read; where you trust their source, convert them once: "
            f'{fields.text("_class_name")}.from_pretrained("{folder}", use_safetensors=False)'
            f'.save_pretrained("{folder}").'
        )
    variants = {name.split(".safetensors")[0].partition(".")[2].partition("-")[0] for name in weights}
    if "" not in variants and len(variants) > 1:
        raise ValueError(f"{folder} holds weights of several kinds, {', '.join(weights)}; leave one of them there.")
    cls = _class(fields, "ModelMixin", fail)
    variant = None if "" in variants else next(iter(variants))
    return cls.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, variant=variant).eval()


def scheduler_of(given: object, *, name: str = "scheduler") -> Any:
    """A scheduler as it is, or made from its config: a mapping, its JSON file, or the folder of it or of its pipeline.

    A mapping without ``_class_name``, as ``scheduler.config`` is, is taken for the first class that knows its fields.

    Raises:
        TypeError: none of these.
        ValueError: a file of another kind, or a class or fields that the installed diffusers does not have.
        FileNotFoundError: no such file.
    """
    if isinstance(given, (str, os.PathLike)):
        path = checks.path(given, name=name)
        if path.is_dir():
            found = [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
            path = next((p for p in found if p.exists()), found[0])
        if not path.exists():
            raise _missing(given, name)
        fields = Fields(read_json(path, fail := refusing(path)), fail)
        cls = _class(fields, "SchedulerMixin", fail)
        return cls.from_config({key: fields.value(key) for key in fields.names()})
    if isinstance(given, Mapping):
        return _of_config(given, name)
    if isinstance(given, type) or not (hasattr(given, "config") and callable(getattr(given, "set_timesteps", None))):
        raise TypeError(
            f"{name} must be a scheduler of diffusers such as DDPMScheduler(), its config, or the path of its folder; "
            f"got {checks.got(given)}."
        )
    return given


def _of_config(config: Mapping[str, Any], name: str) -> Any:
    with needs("diffusers"):
        import diffusers

    def fail(text: str) -> Exception:
        return ValueError(f"{name}: {text}")

    if config.get("_class_name") is not None:
        return _class(Fields(config, fail), "SchedulerMixin", fail).from_config(dict(config))
    own = {key for key in config if isinstance(key, str) and not key.startswith("_")}
    known = {cls: set(inspect.signature(getattr(diffusers, cls)).parameters) for cls in _BY_FIELDS}
    same = [cls for cls, fields in known.items() if own == fields] or [cls for cls, f in known.items() if own <= f]
    if not own or not same:
        raise fail(
            "its config must say _class_name, as scheduler_config.json does, where its fields belong to none of "
            f"{', '.join(_BY_FIELDS)}; got the fields {', '.join(sorted(own)) or 'none'}. Give the scheduler itself."
        )
    return getattr(diffusers, same[0]).from_config({key: config[key] for key in own})


def _class(fields: Fields, base: str, fail: Any) -> Any:
    """The class of diffusers that a config names."""
    with needs("diffusers"):
        import diffusers
    named = fields.text("_class_name", most=200)
    cls = getattr(diffusers, named, None) if named.isidentifier() else None
    if not isinstance(cls, type) or not issubclass(cls, getattr(diffusers, base)):
        raise fail(
            f"_class_name must be a {base} of the installed diffusers, {diffusers.__version__}; got {named!r}. Install "
            "the version that has it; code beside the weights is not run."
        )
    return cls


def _folder(given: PathName, name: str) -> Path:
    folder = checks.path(given, name=name)
    if not folder.is_dir():
        raise _missing(given, name)
    return folder


def _missing(given: PathName, name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} must be a folder on this machine where it is a path, and there is none at {given}. What is on a hub "
        f'is brought here by huggingface_hub.snapshot_download("{given}"), which returns the folder.'
    )


def _content(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
