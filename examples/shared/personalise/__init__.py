"""The tasks of personalise.py, each a function of the flags, the bench and a folder that tunes, draws and measures.

A task is added by writing it, and naming it in :data:`TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.cli.outputs import file_name, show
from scoresde.nn import adapters, learned_words
from scoresde.nn.attached import Attached
from scoresde.train import save_adapter
from shared.conditional.caption import save_titled
from shared.personalise.task import Bench, Flags, measure
from shared.personalise.tuning import Tuned, adapted, full, inverted, untuned

ROOM = 24
"""Pictures on a sheet."""


def judged(flags: Flags, bench: Bench, tuned: Tuned, out: Path, name: str) -> dict[str, Any]:
    """The figures of a tuned model, its picture, and a file of what was learned beside the network."""
    figures, pictures = measure(flags, bench, tuned.model, tuned.phrase, tuned.vocabulary)
    figures["cost"] = tuned.figures(bench.parameters)
    for kind in ("subject", "class", "cost"):
        show(f"{name}: {kind}", figures[kind])
    draw_sheet(out / file_name(name, ".png"), bench, pictures, bench.asked.captions(tuned.phrase), name)
    net: Any = tuned.model.net
    if 0 < tuned.parameters < bench.parameters:
        parts: list[Attached] = [*learned_words(net).values(), *adapters(net).values()]
        for part in parts:
            path = save_adapter(out / file_name(f"{name} {part.name}", ".safetensors"), part)
            figures["cost"][f"bytes_{part.name}"] = path.stat().st_size
    return figures


def draw_sheet(path: Path, bench: Bench, pictures: Tensor, captions: list[str], title: str) -> None:
    """The first pictures, each under its caption."""
    pixels = bench.scaling.to_uint8(bench.scaling.to_model(pictures.float()))
    save_titled(path, pixels[:ROOM], captions[:ROOM], title)


def textual_inversion(flags: Flags, bench: Bench, out: Path) -> dict[str, Any]:
    """A word of one vector, and of as many as the flags say, beside the word that nothing was learned for."""
    report = {"untuned": judged(flags, bench, untuned(flags, bench), out, "untuned")}
    for count in dict.fromkeys((1, flags.vectors)):
        name = f"{count} vector{'s' if count > 1 else ''}"
        tuned = inverted(flags, bench, out / f"inversion-{count}", vectors=count)
        report[name] = judged(flags, bench, tuned, out, name)
    return report


def dreambooth(flags: Flags, bench: Bench, out: Path) -> dict[str, Any]:
    """All weights, with prior preservation and without, beside the model as it was."""
    report = {"untuned": judged(flags, bench, untuned(flags, bench), out, "untuned")}
    for name, preserve in (("without preservation", False), ("with preservation", True)):
        tuned = full(flags, bench, out / file_name(name, ""), preserve=preserve)
        report[name] = judged(flags, bench, tuned, out, name)
    return report


def low_rank(flags: Flags, bench: Bench, out: Path) -> dict[str, Any]:
    """Adapters of each rank, beside full tuning on the same pictures."""
    report = {"full tuning": judged(flags, bench, full(flags, bench, out / "full", preserve=True), out, "full tuning")}
    for rank in flags.ranks:
        name = f"rank {rank}"
        report[name] = judged(flags, bench, adapted(flags, bench, out / f"rank-{rank}", rank=rank), out, name)
    return report


TASKS: Mapping[str, Callable[[Flags, Bench, Path], dict[str, Any]]] = {
    "textual_inversion": textual_inversion,
    "dreambooth": dreambooth,
    "lora": low_rank,
}
