"""Bad calls of sampling, likelihood, and codes."""

from __future__ import annotations

import torch
from bad_calls import COUNT, FLAG, LITERAL, NOISE, POSITIVE, SOLVER, STATE, Call
from right_values import score, state

from scoresde import DDIM, VP, EulerMaruyama, PerSampleNoise, bits_per_dim, grids, likelihood, log_prob, sample
from scoresde.solvers import ProbabilityFlow

START = STATE.but(**{"another shape": lambda right: torch.ones(2, 4), "another batch": lambda right: torch.ones(3, 3)})
FLOW = SOLVER.but(**{"a solver with steps": lambda right: DDIM(), "fixed steps": lambda right: ProbabilityFlow("rk4")})
QUICK = ProbabilityFlow("dopri5", 1e-2, 1e-2)
# a source of noise is also a seed here, so that a number is right
SEEDED = NOISE.but(**{"None": lambda right: None})

CALLS = [
    Call(
        sample,
        lambda: {
            "score": score(),
            "shape": (2, 3),
            "solver": EulerMaruyama(),
            "steps": 2,
            "grid": grids.karras,
            "eta": 1.0,
            "seed": 1,
            "denoise": True,
            "trajectory": False,
            "callback": None,
            "progress": False,
            "dtype": torch.float32,
            "device": "cpu",
        },
        answer=lambda solution: solution.x,
    ),
    Call(
        sample,
        lambda: {
            "score": score(),
            "shape": (2, 3),
            "steps": 2,
            "noise": PerSampleNoise(0),
            "x": torch.ones(2, 3),
            "dtype": torch.float32,
            "device": "cpu",
            "callback": None,
        },
        kinds={"x": START.but("None")},
        answer=lambda solution: solution.x,
        name="sample with a start",
    ),
    Call(
        sample,
        lambda: {
            "score": score(),
            "shape": (2, 3),
            "solver": DDIM(),
            "steps": 2,
            "grid": grids.karras(VP(), 2),
            "progress": False,
            "callback": lambda progress: None,
        },
        answer=lambda solution: solution.x,
        name="sample on times",
    ),
    Call(
        log_prob,
        lambda: {"score": score(), "x": state(), "divergence": "exact", "noise": 0, "probes": 1, "solver": QUICK},
        kinds={"noise": SEEDED, "solver": FLOW, "probes": COUNT},
    ),
    Call(
        log_prob,
        lambda: {"score": score(), "x": state(), "divergence": "hutchinson", "noise": PerSampleNoise(0), "probes": 2},
        kinds={"noise": SEEDED},
        name="log_prob with probes",
    ),
    Call(
        bits_per_dim,
        lambda: {
            "score": score(),
            "x": state(),
            "bin_width": 0.1,
            "noise": 0,
            "dequantize": True,
            "divergence": "exact",
            "solver": QUICK,
            "probes": 1,
        },
        kinds={
            "bin_width": POSITIVE,
            "noise": SEEDED,
            "divergence": LITERAL,
            "solver": FLOW,
            "dequantize": FLAG,
            "probes": COUNT,
            "x": STATE.but(**{"no numbers": lambda right: torch.ones(2, 0)}),
        },
    ),
    Call(likelihood.encode, lambda: {"score": score(), "x": state(), "solver": QUICK}, kinds={"solver": FLOW}),
    Call(likelihood.decode, lambda: {"score": score(), "z": state(), "solver": QUICK}, kinds={"solver": FLOW}),
]
NOT_CALLED: dict[str, str] = {}
