"""Pictures by caption: of seen pairs and unseen ones by every way there is, and of captions that leave things open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import guidance
from scoresde.cli.outputs import show
from shared.conditional.caption import save_titled
from shared.conditional.captioned import COLOURS, DIGITS, PLACES, Attributes
from shared.measures import rms_distance
from shared.unclip import decoder
from shared.unclip.sentences import COUNTS, KINDS, TEMPLATES, held_out, sentences
from shared.unclip.system import System


@dataclass(frozen=True)
class Asked:
    """Captions that say everything, of pairs that training has shown or of those it has not.

    Attributes:
        attributes: what they say. template: how. tokens: as networks read them.
    """

    attributes: Attributes
    template: Tensor
    tokens: Tensor

    @property
    def texts(self) -> list[str]:
        """The captions."""
        return sentences(self.attributes, torch.ones(len(self.attributes), 3, dtype=torch.bool), self.template)


def asked_for(system: System, count: int, seed: int, *, unseen: bool) -> Asked:
    """``count`` captions with the digits in turn."""
    draw = torch.Generator().manual_seed(seed)
    digit = torch.arange(count) % len(DIGITS)
    other = torch.randint(len(COLOURS) - 1, (count,), generator=draw)
    colour = (digit + (0 if unseen else 1 + other)) % len(COLOURS)
    attributes = Attributes(digit, colour, torch.randint(len(PLACES), (count,), generator=draw))
    assert bool((attributes.unseen == unseen).all())
    template = torch.randint(TEMPLATES, (count,), generator=draw)
    return Asked(attributes, template, system.captions.full(attributes, template))


def by_parts(system: System, asked: Asked) -> Tensor:
    """The sum of the scores of captions that say one attribute each: digit and colour and place."""
    flags, model = system.flags, system.decoder
    told = {}
    for i, kind in enumerate(KINDS):
        alone = torch.zeros(len(asked.attributes), 3, dtype=torch.bool)
        alone[:, i] = True
        told[kind] = system.captions(sentences(asked.attributes, alone, asked.template))

    def score_of(some: dict[str, Tensor]) -> ss.Score:
        terms = [(flags.guidance, {"caption": tokens}) for tokens in some.values()]
        return guidance.compose(model, terms)

    return decoder.drawn(flags, model, score_of, told, len(asked.attributes))


def by_similarity(system: System, asked: Asked) -> Tensor:
    """The decoder told nothing, guided by what the encoder of noisy pictures makes of the caption."""
    flags, model = system.flags, system.decoder

    def score_of(some: dict[str, Tensor]) -> ss.Score:
        return ss.classifier(model, system.noisy.similarity(some["caption"]), scale=flags.guidance)

    return decoder.drawn(flags, model, score_of, {"caption": asked.tokens}, len(asked.attributes))


def best_of(system: System, asked: Asked, draw: Callable[[int], Tensor]) -> Tensor:
    """Of several pictures of each caption the one that the encoder finds to fit it best."""
    count = len(asked.attributes)
    several = torch.stack([draw(k * count) for k in range(system.flags.choices)])
    best = torch.stack([system.fit(x, asked.tokens) for x in several]).argmax(0)
    return several[best, torch.arange(count)]


WAYS: dict[str, Callable[[System, Asked], Tensor]] = {
    "nothing told": lambda s, a: decoder.drawn(
        s.flags, s.decoder, lambda some: ss.classifier_free(s.decoder, some, scale=0.0), {"caption": a.tokens},
        len(a.attributes),
    ),
    "caption": lambda s, a: s.draw(a.tokens),
    "caption, by parts": by_parts,
    "caption, best of several": lambda s, a: best_of(s, a, lambda first: s.draw(a.tokens, first=first)),
    "similarity": by_similarity,
    "regression": lambda s, a: s.draw(u=s.expected(a.tokens)),
    "prior": lambda s, a: s.draw(u=s.imagined(a.tokens)),
    "prior and caption": lambda s, a: s.draw(a.tokens, s.imagined(a.tokens)),
    "prior and caption, best of several": lambda s, a: best_of(
        s, a, lambda first: s.draw(a.tokens, s.imagined(a.tokens, first=first), first=first)
    ),
}  # fmt: skip
"""By which pictures are made of captions."""


def compositions(system: System, out: Path) -> dict[str, Any]:
    """What is read in pictures of captions that say everything."""
    flags, report = system.flags, {}
    for name, unseen in (("seen", False), ("unseen", True)):
        asked = asked_for(system, flags.samples, flags.seed + unseen, unseen=unseen)
        real = system.scaling.to_model(held_out(system.held, asked.attributes, flags.seed).float())
        report[name] = {"real": system.figures(real, asked.attributes)}
        show(f"{name}, real", report[name]["real"])
        for way, draw in WAYS.items():
            x = draw(system, asked)
            report[name][way] = system.figures(x, asked.attributes)
            show(f"{name}, {way}", report[name][way])
            if way.startswith("prior and caption"):
                title = f"captions of {name} pairs: {way}"
                place = out / f"{name}-{way.replace(', ', '-').replace(' ', '-')}.png"
                save_titled(place, system.scaling.to_uint8(x[:40]), asked.texts[:40], title)
    return report


def open_captions(system: System, out: Path) -> dict[str, Any]:
    """How varied the pictures of captions are that leave something out, and whether they show what is said.

    Two figures of variety are taken between two pictures of one caption: how often an attribute that it does not say
    differs, and how far they are apart, both over that of real pictures.
    """
    flags = system.flags
    draw = torch.Generator().manual_seed(flags.seed)
    rows: list[tuple[tuple[int, int, int], tuple[bool, bool, bool]]] = []
    for i, count in enumerate(COUNTS):  # each attribute alone, and each digit in some place
        for k in range(count):
            values = [int(torch.randint(n, (), generator=draw)) for n in COUNTS]
            values[i] = k
            rows.append(((values[0], values[1], values[2]), (i == 0, i == 1, i == 2)))
    for k in range(COUNTS[0]):
        rows.append(((k, 0, k % COUNTS[2]), (True, False, True)))
    said = torch.tensor([which for _, which in rows])
    attributes = Attributes(*torch.tensor([row for row, _ in rows]).unbind(1))
    texts = sentences(attributes, said, torch.randint(TEMPLATES, (len(rows),), generator=draw))
    tokens, many = system.captions(texts).repeat(flags.draws, 1), flags.draws
    ways: dict[str, Callable[[], Tensor]] = {
        "real": lambda: _real(system, attributes, said),
        "caption": lambda: system.draw(tokens),
        "regression": lambda: system.draw(u=system.expected(tokens)),
        "regression and caption": lambda: system.draw(tokens, system.expected(tokens)),
        "prior": lambda: system.draw(u=system.imagined(tokens)),
        "prior and caption": lambda: system.draw(tokens, system.imagined(tokens)),
    }
    report: dict[str, Any] = {}
    for way, make in ways.items():
        x = make()
        found = variety(system, x.unflatten(0, (many, -1)), attributes, said)  # type: ignore[no-untyped-call]
        if way != "real":
            found["differ_over_real"] = found["differ"] / report["real"]["differ"]
            found["apart_over_real"] = found["apart"] / report["real"]["apart"]
            if way in ("prior", "regression"):
                some = x.unflatten(0, (many, -1))[:4, :10].transpose(0, 1).flatten(0, 1)  # type: ignore[no-untyped-call]
                heads = [texts[i] for i in range(10) for _ in range(4)]
                place, title = out / f"open-{way}.png", f"captions that leave things open, {way}"
                save_titled(place, system.scaling.to_uint8(some), heads, title)
        report[way] = found
        show(f"open captions, {way}", found)
    return report


def variety(system: System, x: Tensor, attributes: Attributes, said: Tensor) -> dict[str, float]:
    """The figures of pictures (draws, N, 3, 16, 16), of N captions."""
    many, count = x.shape[:2]
    read = system.read(x.flatten(0, 1))
    right, differ = [], []
    for i, kind in enumerate(KINDS):
        shown, asked = getattr(read, kind).reshape(many, count), getattr(attributes, kind)
        right.append((shown == asked) | ~said[:, i])
        # of all pairs of pictures of a caption, without those of a picture with itself
        pairs = (shown[:, None] != shown[None]).double().sum((0, 1)) / (many * (many - 1))
        differ.append(pairs[~said[:, i]])
    others = [rms_distance(x[k], x[(k + shift) % many]) for shift in range(1, many) for k in range(many)]
    return {
        "right": float(torch.stack(right).all(0).double().mean()),
        "differ": float(torch.cat(differ).mean()),
        "apart": float(torch.stack(others).mean()),
    }


def _real(system: System, attributes: Attributes, said: Tensor) -> Tensor:
    """Held-out pictures of open captions, what is unsaid by chance among the pairs that training has shown."""
    flags = system.flags
    draw = torch.Generator().manual_seed(flags.seed)
    shape = (flags.draws * len(said),)
    place = torch.where(said[:, 2], attributes.place, -1).repeat(flags.draws)
    digit = torch.where(said[:, 0], attributes.digit, -1).repeat(flags.draws)
    colour = torch.where(said[:, 1], attributes.colour, -1).repeat(flags.draws)
    place = torch.where(place < 0, torch.randint(COUNTS[2], shape, generator=draw), place)
    free_digit = torch.randint(COUNTS[0], shape, generator=draw)
    # of a colour that is said, a digit that it is shown with: the next one where chance has hit another
    free_digit = torch.where(free_digit % COUNTS[1] == colour, (free_digit + 1) % COUNTS[0], free_digit)
    digit = torch.where(digit < 0, free_digit, digit)
    free_colour = (digit + 1 + torch.randint(COUNTS[1] - 1, shape, generator=draw)) % COUNTS[1]
    chosen = Attributes(digit, torch.where(colour < 0, free_colour, colour), place)
    return system.scaling.to_model(held_out(system.held, chosen, flags.seed).float())
