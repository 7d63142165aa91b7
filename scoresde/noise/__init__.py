"""Where randomness comes from: independent draws, one stream per sample, or one Brownian path.

A solver asks its noise for standard normals: ``initial`` for the prior, ``between`` for the Wiener increment of a
step, ``normal`` for anything that belongs to no time interval (Langevin steps, churn). Nothing reads or moves torch's
global generators.

A seed means an independent stream for each use: the prior's normals, a solver's, a likelihood's probes and a data
set's samples share nothing, though all are given the same integer. See :meth:`Noise.stream`. ::

    noise = PerSampleNoise(seed=0)                 # the same sample in any batch; what a seed means
    path = BrownianNoise(seed=0, T=sde.T)          # the same path for every solver and step size
"""

from __future__ import annotations

from scoresde.noise.base import Noise, drawn_seed
from scoresde.noise.counter import counter_normal
from scoresde.noise.path import BrownianNoise, brownian_path
from scoresde.noise.sources import IndependentNoise, PerSampleNoise, as_noise, chosen_noise

__all__ = [
    "BrownianNoise",
    "IndependentNoise",
    "Noise",
    "PerSampleNoise",
    "as_noise",
    "brownian_path",
    "chosen_noise",
    "counter_normal",
    "drawn_seed",
]
