"""Bad calls of saved models and of what finds them; those that need a hub are in tests/hub/test_hub.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bad_calls import COUNT, FLAG, FUNCTION, MAPPING, PATH, SCORE, SDE, Call, Kind

from scoresde import VP, ScoreModel, nn, pretrained
from scoresde.hub import from_pretrained, locate, save_pretrained
from scoresde.train import EMA

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)


def model() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(nn.MLP(3, 4, 1), VP())


save_pretrained(model(), FOLDER / "saved", ema=EMA(model()))
(FOLDER / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n...")

TEXT = Kind(
    {
        "a number": lambda right: 3,
        "a list": lambda right: [right],
        "bytes": lambda right: b"mit",
        "a tensor": lambda right: torch.ones(2),
        "a class": lambda right: str,
    }
)
FIGURES = MAPPING.but(
    nan=lambda right: {"a": float("nan")},
    infinite_inside=lambda right: {"a": {"b": float("inf")}},
    of_tensors=lambda right: {"a": torch.ones(2)},
    of_None=lambda right: {"a": None},
    no_name=lambda right: {3: 1.0},
    half_mappings=lambda right: {"a": 1.0, "b": {"c": 1.0}},
)
CHOICE = FLAG.but("None")
REVISION = TEXT.but(empty=lambda right: "", of_a_folder=lambda right: "v1")
MODEL_KIND = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "ScoreModel",
        "a subclass": lambda right: type("Mine", (ScoreModel,), {}),
        "another class": lambda right: VP,
        "a model": lambda right: model(),
    }
)
WHERE = PATH.but(
    empty=lambda right: "",
    nothing_there=lambda right: FOLDER / "none",
    no_name=lambda right: "no such model",
)

CALLS = [
    Call(
        save_pretrained,
        lambda: {
            "model": model(),
            "folder": Path(tempfile.mkdtemp(dir=FOLDER)) / "saved",
            "ema": EMA(model()),
            "dtype": torch.bfloat16,
            "licence": "mit",
            "figures": {"energy": 0.5},
            "notes": "For tests.",
            "picture": FOLDER / "picture.png",
            "max_bytes": 10_000,
            "overwrite": False,
            "source": "owner/name",
        },
        kinds={
            "model": SCORE,
            "ema": SCORE.but("None"),
            "licence": TEXT.but(empty=lambda right: " ", lines=lambda right: "a\nb"),
            "figures": FIGURES,
            "notes": TEXT,
            "picture": PATH.but(none_there=lambda right: "none.png", of_no_kind=lambda right: __file__),
            "max_bytes": COUNT.but("None", too_few=lambda right: 10),
            "source": TEXT,
        },
        answer=None,
    ),
    Call(
        from_pretrained,
        lambda: {
            "path_or_id": FOLDER / "saved",
            "kind": ScoreModel,
            "ema": True,
            "dtype": torch.float64,
            "net": nn.MLP(3, 4, 1),
            "sde": VP(),
            "predicts": "noise",
            "revision": None,
            "token": None,
            "cache_dir": FOLDER / "cache",
            "local_files_only": True,
            "max_bytes": 10_000,
        },
        kinds={
            "path_or_id": WHERE,
            "kind": MODEL_KIND,
            "ema": CHOICE,
            "net": FUNCTION.but("None"),
            "sde": SDE.but("None"),
            "predicts": TEXT,
            "revision": REVISION,
            "token": TEXT,
            "cache_dir": PATH,
            "max_bytes": COUNT.but(too_few=lambda right: 10),
        },
        answer=lambda found: [p.sum().item() for p in found.parameters()],
    ),
    Call(
        locate,
        lambda: {
            "path_or_id": FOLDER / "saved",
            "ema": False,
            "revision": None,
            "token": False,
            "cache_dir": FOLDER / "cache",
            "local_files_only": False,
            "max_bytes": 10_000,
        },
        kinds={
            "path_or_id": WHERE,
            "ema": CHOICE,
            "revision": REVISION,
            "token": TEXT,
            "cache_dir": PATH,
            "max_bytes": COUNT.but(too_few=lambda right: 10),
        },
    ),
    Call(
        pretrained,
        lambda: {"name": "digits"},
        kinds={"name": TEXT.but(another=lambda right: "Digits", empty=lambda right: "")},
        answer=None,
    ),
]
NOT_CALLED = {
    "scoresde.hub.pushing.push_to_hub": "asks a hub; called wrongly in tests/hub/test_hub.py, where there is one",
}
