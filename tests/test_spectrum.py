"""What is known of the data: measured as by NumPy, assumed by the size of a sample, taken from where it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoresde import grids
from scoresde.models import ScoreModel, as_score
from scoresde.sampling import sample
from scoresde.sde import EDM, VP
from scoresde.solvers import PredictorCorrector, SpectralMultistep
from scoresde.spectrum import Spectrum


def test_measured_as_by_the_singular_values() -> None:
    x = torch.randn(300, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 1.0, 2.0, 0.1]) + 5.0
    found = Spectrum.of(x)
    flat = x.double().flatten(1).numpy()
    flat = flat - flat.mean(0)
    assert found.scale == pytest.approx(math.sqrt((flat**2).mean()), rel=1e-12)
    largest = np.linalg.svd(flat, compute_uv=False)[0] / math.sqrt(300)
    assert found.largest == pytest.approx(float(largest), rel=1e-2)  # the second singular value is near


def test_single_numbers_have_one_deviation() -> None:
    x = torch.tensor([1.0, 3.0, 8.0])
    assert Spectrum.of(x).scale == Spectrum.of(x).largest == pytest.approx(float(x.std(correction=0)), rel=1e-6)


def test_assumed_by_the_size() -> None:
    assert Spectrum.assumed(()) == Spectrum.assumed((2,)) == Spectrum(1.0, 1.0)
    images = Spectrum.assumed((3, 32, 32), 0.5)
    assert images.scale == 0.5 and images.largest == pytest.approx(0.5 * math.sqrt(0.273 * 3072))


def test_the_sampler_takes_what_is_known() -> None:
    """The solver's own before the score's, the score's before what is assumed; through wrappers and conditions too."""
    own, known, sde = Spectrum(1.0, 7.0), Spectrum(0.4, 3.0), VP()
    informed = ScoreModel(lambda x, c: x, sde, "x0", 0.4, spectrum=known)
    told = ScoreModel(lambda x, c: x, sde, "x0", 0.4)
    for score, solver, expected in (
        (informed, SpectralMultistep(own), own),
        (informed, SpectralMultistep(), known),
        (informed.bind(), PredictorCorrector(SpectralMultistep()), known),
        (informed.under(EDM(T=80.0, t_min=0.02)), SpectralMultistep(), known),
        (told, SpectralMultistep(), Spectrum.assumed((50,), 0.4)),
        (as_score(lambda x, t: -x, sde), SpectralMultistep(), Spectrum.assumed((50,))),
    ):
        run = sample(score, (2, 50), solver=solver, steps=6)
        assert torch.equal(run.grid, grids.spectral(score.sde, 6, spectrum=expected))
        made = solver.made_for(score, (50,))
        inner = made.solver if isinstance(made, PredictorCorrector) else made
        assert isinstance(inner, SpectralMultistep) and inner.spectrum == expected
        assert torch.equal(sample(score, (2, 50), solver=made, steps=6).x, run.x)


def test_bad_spectra() -> None:
    for bad in ((0.0, 1.0), (1.0, math.nan), (-1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match=r"positive|at least that of a coordinate"):
            Spectrum(*bad)
    constant = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(9, 5)
    assert isinstance(Spectrum(torch.tensor(0.5), torch.tensor(2.0)).scale, float)  # type: ignore[arg-type]
    for x in (constant, torch.zeros(1, 3), torch.ones(4, 3), torch.full((3, 2), math.inf)):
        with pytest.raises(ValueError, match=r"two samples|the same|finite"):
            Spectrum.of(x)
