"""Guidance scales as others write them.

    to_scale(2.0, "ho-salimans")                    # 3.0 here: 0 is unconditional, 1 conditional
    from_scale(3.0, "ho-salimans")                  # 2.0

:func:`to_scale` lists the conventions that are known.
"""

from __future__ import annotations

from scoresde import checks
from scoresde.guidance.parts import finite_scale

# Our scale minus the number written there. Each from the equation named; ε̂ stands for whatever is combined.
_OFFSETS = {
    "ho-salimans": 1.0,  # (1 + w) ε̂(y) - w ε̂(∅): arXiv:2207.12598, eq. 6
    "imagen": 0.0,  # w ε̂(y) + (1 - w) ε̂(∅): Saharia et al. 2022, arXiv:2205.11487, eq. 2
    "glide": 0.0,  # ε̂(∅) + s (ε̂(y) - ε̂(∅)): Nichol et al. 2022, arXiv:2112.10741, section 2.3
    "diffusers": 0.0,  # the pipelines' guidance_scale, Imagen's w; up to 1 turns guidance off
    "diffusers-original": 1.0,  # its guider with use_original_formulation: ε̂(y) + w (ε̂(y) - ε̂(∅))
    "dhariwal": 0.0,  # ε̂ - s σ ∇ log p(y | x) on an unconditional model: arXiv:2105.05233, section 4.3
    "dhariwal-conditional": 1.0,  # the same on ε̂(y)
    "edm2-autoguidance": 0.0,  # w D_1 + (1 - w) D_0: arXiv:2406.02507
    "apg": 0.0,  # D(y) + (w - 1) ΔD: arXiv:2410.02416
}


def to_scale(value: float, convention: str) -> float:
    """Our scale (0 unconditional, 1 conditional) for a number in another convention.

    Args:
        value: the number as written there.
        convention: "ho-salimans", "imagen", "glide", "diffusers" (where values up to 1 mean no guidance: scale 1),
            "diffusers-original", "dhariwal" and "dhariwal-conditional" (the gradient scale of a classifier, on an
            unconditional and on a conditional model; equal to classifier-free guidance where the classifier is
            exact), "edm2-autoguidance" or "apg".

    Raises:
        ValueError: an unknown convention, or a value that is not a finite number.
    """
    scale = finite_scale(value, name="value") + _offset(convention)
    return max(scale, 1.0) if convention == "diffusers" else scale


def from_scale(scale: float, convention: str) -> float:
    """The number that another convention writes for our ``scale``: the inverse of :func:`to_scale`.

    Raises:
        ValueError: as there; a scale below 1 in "diffusers", which cannot say it.
    """
    scale = finite_scale(scale)
    value = scale - _offset(convention)
    if convention == "diffusers" and scale < 1:
        raise ValueError(
            f"diffusers' pipelines turn guidance off at values up to 1, so they cannot say a scale of {scale:g}; its "
            "guider can, see 'diffusers-original'."
        )
    return value


def _offset(convention: str) -> float:
    if not isinstance(convention, str) or convention not in _OFFSETS:
        raise ValueError(f"convention must be one of {', '.join(_OFFSETS)}; got {checks.got(convention)}.")
    return _OFFSETS[convention]
