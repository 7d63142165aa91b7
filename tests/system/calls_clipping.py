"""Bad calls of clipping and thresholding."""

from __future__ import annotations

import math

from bad_calls import FRACTION, NUMBER, POSITIVE, Call
from right_values import score, state

from scoresde.guidance import clip, threshold


def at(made: object) -> object:
    """What a guided score answers."""
    return made(state(), 0.5)  # type: ignore[operator]


LIMIT = POSITIVE.but(
    one_end=lambda right: (1.0,),
    three_ends=lambda right: (0.0, 1.0, 2.0),
    reversed=lambda right: (1.0, -1.0),
    no_ends=lambda right: (-math.inf, math.inf),
    texts=lambda right: ("0", "1"),
)
CALLS = [
    Call(clip, lambda: {"score": score(), "limit": 1.0}, kinds={"limit": LIMIT}, answer=at),
    Call(
        clip,
        lambda: {"score": score(), "limit": (-0.5, 1.0)},
        kinds={"limit": LIMIT.but("a list").only()},
        answer=at,
        name="clip to two ends",
    ),
    Call(
        threshold,
        lambda: {"score": score(), "quantile": 0.9, "limit": 1.0, "largest": 3.0},
        kinds={
            "quantile": FRACTION,
            "limit": POSITIVE,
            "largest": NUMBER.but(below=lambda right: 0.5, negative=lambda right: -math.inf),
        },
        answer=at,
    ),
]
NOT_CALLED: dict[str, str] = {}
