"""Sequential Monte Carlo: weighted particles that reach the density which guidance alone only points to.

    particles = tilted(classifier_free(model, {"label": y}, scale=3.0), (2 * 256, *event), groups=2, steps=150)
    particles = twisted(pigdm(score, measurement), (512, *event), moves=2)
    particles.mean(), particles.draw(100, noise=0), particles.effective.amin(0), particles.log_normalizer

:func:`tilted` corrects a :class:`~scoresde.guidance.LinearGuidance`, a sum of scores, and :func:`twisted` a
:class:`~scoresde.guidance.TwistedGuidance`, a score with a known ψ_t. Their keywords are those of
:class:`ParticleOptions`; both answer :class:`Particles`.
"""

from scoresde.particles.population import CollapseWarning, Particles
from scoresde.particles.resample import effective_sample_size, multinomial, residual, stratified, systematic
from scoresde.particles.start import ParticleOptions
from scoresde.particles.tilted import tilted
from scoresde.particles.twisted import twisted

__all__ = [
    "CollapseWarning",
    "ParticleOptions",
    "Particles",
    "effective_sample_size",
    "multinomial",
    "residual",
    "stratified",
    "systematic",
    "tilted",
    "twisted",
]
