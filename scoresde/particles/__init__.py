"""Sequential Monte Carlo: weighted particles that reach the density which guidance alone only points to."""

from scoresde.particles.kernel import VelocityStep
from scoresde.particles.population import CollapseWarning, Particles
from scoresde.particles.resample import multinomial, residual, stratified, systematic
from scoresde.particles.tilted import tilted
from scoresde.particles.twisted import twisted
from scoresde.particles.weights import effective_sample_size

__all__ = [
    "CollapseWarning",
    "Particles",
    "VelocityStep",
    "effective_sample_size",
    "multinomial",
    "residual",
    "stratified",
    "systematic",
    "tilted",
    "twisted",
]
