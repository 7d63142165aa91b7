"""The model card: README.md of a saved folder, for people, with a header that hubs read::

    text = model_card(model, config, name="digits", source="owner/digits", licence="mit", figures={"accuracy": 0.99})

It is made of what config.json says and of what the caller adds: schedule, network, data and their units, conditions,
how to load and sample, figures, licence. Names that come from data are escaped: a card is a page that browsers show.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

import scoresde
from scoresde import checks
from scoresde.curve import curve_in_words
from scoresde.data import Scaling
from scoresde.models import ClassifierModel, ContrastiveModel, ScoreModel
from scoresde.models.conditions import nulls_of

CARD = "README.md"

_IDENTIFIERS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
lgpl-lr
"""
_LICENCES = frozenset(_IDENTIFIERS.split())
"""Identifiers that the Hugging Face hub knows; what is none of these is "other", with its name."""

_KINDS = {
    "score": ("ScoreModel", ["score-based", "diffusion"]),
    "classifier": ("ClassifierModel", ["noise-conditional-classifier"]),
    "contrastive": ("models.ContrastiveModel", ["contrastive", "zero-shot-image-classification"]),
}
"""Of each kind of model its class, as code that imports the library as ss calls it, and its tags."""

_MOST_LETTERS = 500
_COUNT = 10  # samples that the code of a card draws
_MOST_SHOWN = 30  # classes or words that a card lists


def model_card(
    model: ScoreModel | ClassifierModel | ContrastiveModel,
    config: Mapping[str, Any],
    *,
    name: str,
    source: str,
    bytes: int | None = None,
    licence: str | None = None,
    figures: Mapping[str, Any] | None = None,
    notes: str | None = None,
    picture: str | None = None,
) -> str:
    """The card of a model, Markdown with a YAML header.

    Args:
        model: the model.
        config: what its config.json says.
        name: title of the card.
        source: what ``from_pretrained`` is given: the folder, or an id.
        bytes: of the weights, as stored.
        licence: an identifier such as "mit", or the name of another licence.
        figures: numbers or texts by name, or a mapping of such for each row.
        notes: Markdown for the top.
        picture: a file beside the card.

    Raises:
        TypeError, ValueError: a licence that is no text, or figures that are not finite numbers or texts.
    """
    header = {"library_name": "scoresde", **licence_fields(licence), **_task(model), "tags": _tags(model, config)}
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())  # JSON is YAML
    parts = [f"---\n{yaml}\n---\n", f"# {_plain(name)}\n"]
    parts += [notes.strip() + "\n"] if notes else []
    parts += [f"![Samples]({picture})\n"] if picture else []
    parts += [_use(model, config, source), _what(model, config, bytes), _data(model, config)]
    table = checked_figures(figures)
    if table:
        parts.append("## Figures\n\n" + _table(table))
    parts.append("## Licence\n\n" + _licence_words(licence))
    parts.append(f"*Written by scoresde {scoresde.__version__}.*\n")
    return "\n".join(parts)


def licence_fields(licence: str | None) -> dict[str, str]:
    """What the header says of a licence; nothing where none is given.

    Raises:
        TypeError: no text. ValueError: an empty one, or of more than a line.
    """
    if licence is None:
        return {}
    if not isinstance(licence, str):
        raise TypeError(f"licence must be a text such as 'mit' or 'cc-by-4.0', got {checks.got(licence)}.")
    text = licence.strip()
    if not text or len(text) > 100 or not text.isprintable():
        raise ValueError(f"licence must be the name of a licence, such as 'mit' or 'cc-by-4.0', got {licence!r:.120}.")
    slug = re.sub(r"[^a-z0-9.+-]+", "-", text.lower()).strip("-")
    if slug in _LICENCES:
        return {"license": slug}
    return {"license": "other", "license_name": slug or "other"}


def checked_figures(figures: Mapping[str, Any] | None) -> list[list[str]]:
    """The rows of the table of figures, the first of them its head; none without figures.

    Raises:
        TypeError: no mapping of names to finite numbers and texts, or to mappings of such.
        ValueError: NaN or infinity.
    """
    if figures is None or (isinstance(figures, Mapping) and not figures):
        return []
    checks.instance(figures, Mapping, name="figures", hint="Write {'accuracy': 0.99}.")
    nested = [isinstance(value, Mapping) for value in figures.values()]
    for key in figures:
        _named(key, "figures")
    if any(nested) and not all(nested):
        flat = next(key for key, value in figures.items() if not isinstance(value, Mapping))
        raise TypeError(
            f"figures must be all numbers and texts, or all mappings of such; got {flat!r} beside mappings."
        )
    if not any(nested):
        return [["", "value"], *([str(key), _figure(value, f"figures[{key!r}]")] for key, value in figures.items())]
    columns = list(dict.fromkeys(_named(column, f"figures[{key!r}]") for key, row in figures.items() for column in row))
    rows = [
        [str(key), *(_figure(row[c], f"figures[{key!r}][{c!r}]") if c in row else "" for c in columns)]
        for key, row in figures.items()
    ]
    return [["", *columns], *rows]


def _named(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{name} must have texts as names, got {checks.got(key)}.")
    return key


def _figure(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = checks.number(value, name=name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}: a card shows what was measured.")
    return f"{int(number)}" if number.is_integer() and abs(number) < 1e15 else f"{number:.4g}"


def _task(model: ScoreModel | ClassifierModel | ContrastiveModel) -> dict[str, str]:
    """What the hub lists it under, for pictures."""
    event = model.event_shape
    if not isinstance(model, ScoreModel) or event is None or len(event) != 3 or event[0] not in (1, 3, 4):
        return {}
    return {"pipeline_tag": "text-to-image" if model.vocabularies else "unconditional-image-generation"}


def _tags(model: ScoreModel | ClassifierModel | ContrastiveModel, config: Mapping[str, Any]) -> list[str]:
    return ["scoresde", *_KINDS[config["model"]["kind"]][1], _short(config["model"]["sde"]["class"]).lower()]


def _use(model: ScoreModel | ClassifierModel | ContrastiveModel, config: Mapping[str, Any], source: str) -> str:
    """How it is loaded and asked, as code that runs."""
    own = _own_parts(config)
    given = "".join(f", {argument}={argument}" for argument in own)
    kind = _KINDS[config["model"]["kind"]][0]
    lines = ["import torch", "", "import scoresde as ss", ""]
    lines += [f"# {argument} = ...  # your own {words}, which no file rebuilds" for argument, words in own.items()]
    lines.append(f"model = ss.{kind}.from_pretrained({json.dumps(source, ensure_ascii=False)}{given})")
    if isinstance(model, ScoreModel) and model.event_shape is not None:
        lines += _sampling(model, config)
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```\n"


def _sampling(model: ScoreModel, config: Mapping[str, Any]) -> list[str]:
    """Lines that draw samples, where all conditions are known."""
    trained = model.trained_with
    names = [name for name in nulls_of(model.net) if trained is None or name in trained.names]
    given = {name: _example(model, name, config["data"]["conditions"].get(name)) for name in names}
    if None in given.values():
        return []
    drawn = f"({_COUNT}, *model.event_shape), seed=0)" + (".data" if model.scaling is not None else ".x")
    if not given:
        return [f"samples = ss.sample(model, {drawn}"]
    guided = trained is not None and trained.share(()) > 0
    score = "ss.classifier_free(model, conditions, scale=2.0)" if guided else "model.bind(**conditions)"
    listed = ", ".join(f"{json.dumps(name)}: {value}" for name, value in given.items())
    return [f"conditions = {{{listed}}}", f"samples = ss.sample({score}, {drawn}"]


def _example(model: ScoreModel, name: str, told: Mapping[str, Any] | None) -> str | None:
    """A value for a condition, as code; None where too little is known of it."""
    if name == "label" and model.class_names is not None:
        return f"torch.arange({_COUNT}) % {len(model.class_names)}"
    if told is None:
        return None
    shape = ", ".join(map(str, (_COUNT, *told["shape"])))
    if name in model.vocabularies and len(told["shape"]) == 1:
        length = told["shape"][0]
        text = json.dumps(" ".join(model.vocabularies[name].words[: min(3, length)]), ensure_ascii=False)
        return f"model.vocabularies[{json.dumps(name)}].encode([{text}] * {_COUNT}, length={length})"
    return f"torch.zeros({shape})" if told["dtype"].startswith("float") else f"torch.ones({shape}, dtype=torch.long)"


def _own_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """What a file does not rebuild, by the argument that takes it: the class in words."""
    described = config["model"]
    found = {}
    if described["net"]["config"] is None:
        found["net"] = f"network {described['net']['class']}"
    if described["sde"]["fields"] is None:
        found["sde"] = f"SDE {described['sde']['class']}"
    if described["kind"] == "score" and described["predicts"] is None:
        found["predicts"] = "prediction function"
    return found


def _what(model: ScoreModel | ClassifierModel | ContrastiveModel, config: Mapping[str, Any], bytes: int | None) -> str:
    described = config["model"]
    sde = model.sde
    told = (described["sde"]["fields"] or {}).items()
    fields = ", ".join(f"{key}={getattr(sde, key) if isinstance(value, dict) else value}" for key, value in told)
    times = (float(sde.T), float(sde.t_min))
    ends = [sde.log_snr(torch.tensor(t, dtype=torch.float64)).detach().item() for t in times]
    arguments = ", ".join(f"{key}={value}" for key, value in (described["net"]["config"] or {}).items())
    count = sum(p.numel() for p in model.parameters())
    rows = [
        ["Schedule", f"{_short(described['sde']['class'])}({fields})"],
        ["log-SNR", f"{ends[0]:.3g} at T = {float(sde.T):g} to {ends[1]:.3g} at t_min = {float(sde.t_min):g}"],
        ["Network", f"{_short(described['net']['class'])}({arguments})"],
        ["Parameters", f"{count:,}"],
    ]
    if isinstance(model, ScoreModel):
        rows.append(["Predicts", described["predicts"] or "a function of its own"])
        if model.coupling is not None:
            told = f"coupled with the data in training ({model.coupling}): for solvers of the ODE alone, no score"
            rows.append(["Noise", told])
    if described["sigma_data"] is not None:
        rows.append(["sigma_data", f"{described['sigma_data']:.6g}"])
    if described.get("spectrum"):
        spectrum = described["spectrum"]
        rows.append(["Spectrum", f"deviation {spectrum['scale']:.6g}, largest {spectrum['largest']:.6g}"])
    if model.loss_curve is not None:
        rows.append(["Held-out loss", curve_in_words(model.loss_curve)])
    rows.append(["Weights", _stored(model, config, bytes)])
    return "## Model\n\n" + _table([["", ""], *rows])


def _stored(
    model: ScoreModel | ClassifierModel | ContrastiveModel, config: Mapping[str, Any], bytes: int | None
) -> str:
    stored = config.get("stored", {})
    own = str(model.dtype).removeprefix("torch.") if model.dtype is not None else "none"
    which = "averaged over training" if stored.get("averaged") else "as the model has them"
    size = "" if bytes is None else f", {bytes:,} bytes"
    narrowed = f", stored in {stored['dtype']}" if stored.get("dtype") else ""
    return f"{which}{size}, computing in {own}{narrowed}"


def _data(model: ScoreModel | ClassifierModel | ContrastiveModel, config: Mapping[str, Any]) -> str:
    told, rows = config["data"], []
    if told["event_shape"] is not None:
        rows.append(["Shape of a sample", str(tuple(told["event_shape"]))])
    if isinstance(model.scaling, Scaling):
        rows.append(["Units", f"data to model: {model.scaling}"])
    names = told["class_names"]
    if names is not None:
        more = f", ... ({len(names)} in all)" if len(names) > _MOST_SHOWN else ""
        rows.append(["Classes", ", ".join(name[:60] for name in names[:_MOST_SHOWN]) + more])
    for name, one in told["conditions"].items():
        rows.append([f"Condition {name}", f"{one['dtype']}, shape {tuple(one['shape'])} for each sample"])
    for name, scaling in model.condition_scalings.items():
        rows.append([f"Units of {name}", f"brought to the network's by the model: {scaling}"])
    for name, words in told.get("vocabularies", {}).items():
        more = f", ... ({len(words)} in all)" if len(words) > _MOST_SHOWN else ""
        rows.append([f"Words of {name}", ", ".join(words[:_MOST_SHOWN]) + more])
    trained = model.trained_with if isinstance(model, ScoreModel) else None
    if trained is not None and trained.names:
        left = ", ".join(f"{name} {share:g}" for name, share in trained.dropout.items())
        words = f"left out with probability {left}" if left else "never left out"
        rows.append(["Trained with", f"{', '.join(trained.names)}; {words}"])
    if not rows:
        return "## Data\n\nNothing is noted of the data.\n"
    return "## Data\n\n" + _table([["", ""], *rows])


def _licence_words(licence: str | None) -> str:
    if licence is None:
        return "No licence is stated: ask who published this before you use it.\n"
    return f"{_plain(licence.strip())}\n"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]]) + "\n"


def _plain(text: str) -> str:
    """A text as one line of Markdown that shows it as it is."""
    line = " ".join(text.split())
    line = line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..."
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", line)


def _short(name: str) -> str:
    return name.rpartition(".")[2]
