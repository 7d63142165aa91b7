"""Networks of other libraries as models of this one, and its solvers as theirs::

    model = from_diffusers(unet, scheduler)             # diffusers: a network and its scheduler, or a pipeline's folder
    model = from_denoiser(D)                            # EDM, EDM2, k-diffusion: D(x, sigma, **conditions)
    model = from_score_sde(net, VP())                   # Song et al. 2021: net(x, labels)
    model = from_velocity(v, data_at=1)                 # flow matching: v(x, t)
    model = from_noise(net, betas)                      # DDPM: net(x, step)
    latent = Latent(model, autoencoder)                 # a model of latents, whose samples are decoded
    latents = latent_dataset(autoencoder, dataset)      # to train one on

    sample(model, (4, 3, 32, 32), **diffusers_sampling(scheduler, 50))                  # their sampler's very run
    pipe.scheduler = to_diffusers(DPMSolverPP(), pipe.scheduler.config)                 # ours, in their pipelines

Each model is a :class:`~scoresde.ScoreModel`: every solver, guidance, edit and inverse problem takes it, and
``sample(model, shape)`` draws from it. Nothing here imports another library before it is asked for one of its objects.
"""

from scoresde.interop.autoencoder import Autoencoding
from scoresde.interop.denoiser import from_denoiser
from scoresde.interop.diffusers_models import from_diffusers
from scoresde.interop.diffusers_sampling import diffusers_grid, diffusers_sampling
from scoresde.interop.dpm_solver_2m import DPMSolver2M
from scoresde.interop.evidence import evidence_bound
from scoresde.interop.foreign import ForeignModel, ForeignNetwork
from scoresde.interop.latent import Latent
from scoresde.interop.latent_data import latent_dataset, standardise_latents
from scoresde.interop.noise_steps import from_noise
from scoresde.interop.outwards import to_diffusers
from scoresde.interop.score_sde import from_score_sde
from scoresde.interop.velocity import from_velocity

__all__ = [
    "Autoencoding",
    "DPMSolver2M",
    "ForeignModel",
    "ForeignNetwork",
    "Latent",
    "diffusers_grid",
    "diffusers_sampling",
    "evidence_bound",
    "from_denoiser",
    "from_diffusers",
    "from_noise",
    "from_score_sde",
    "from_velocity",
    "latent_dataset",
    "standardise_latents",
    "to_diffusers",
]
