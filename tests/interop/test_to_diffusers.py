"""Solvers inside the pipelines of diffusers: images equal to `sample`'s, whatever pipeline, solver and schedule."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDIM,
    EDM,
    VE,
    VP,
    ChainSDE,
    EulerMaruyama,
    Gaussian,
    Heun,
    RectifiedFlow,
    ScoreModel,
    Solver,
    SpectralMultistep,
    Spectrum,
    grids,
    sample,
)
from scoresde.guidance import classifier_free, clip, threshold
from scoresde.interop import from_diffusers, to_diffusers
from scoresde.interop.written import as_json, read_solver
from scoresde.sde import Chain
from scoresde.solvers import (
    DEIS,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverPP,
    PredictorCorrector,
    StochasticRungeKutta,
    Tuning,
    UniPC,
    Wrapping,
    catalogue,
)

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

F64 = torch.float64
NAMED: dict[str, Solver] = {
    "default": SpectralMultistep(),
    "DDIM": DDIM(),
    "DPMSolverPP": DPMSolverPP(),
    "UniPC": UniPC(),
    "DEIS": DEIS(),
    "EulerMaruyama": EulerMaruyama(),
    "Ancestral": Ancestral(),
    "Heun": Heun(),
}
STEPPING = [kind() for kind in catalogue.classes() if kind().steps_on_grid]
# The network is told its timestep in float32, by the pipeline and by the score here from c: 1e-7 of 1000 each, which
# its sinusoids turn into 1e-4 of a radian at most; on outputs of size 1e-1 that leaves 1e-5 of images of size 1.
SAME = 3e-5


# -- small random networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a pipeline of Stable Diffusion is made of, but for its scheduler."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )
    )  # fmt: skip
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    for module in (text, net, vae):
        module.eval().requires_grad_(False)
    return {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": net}


LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def stable_diffusion(parts: dict[str, Any], solver: Solver, kind: str = "StableDiffusionPipeline") -> Any:
    """The pipeline, into which the solver is put by the one line for users."""
    scheduler = diffusers.DDIMScheduler(**LATENT, clip_sample=False)
    pipe = getattr(diffusers, kind)(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = to_diffusers(solver, pipe)
    return pipe


def chain_of(scheduler: Any) -> ChainSDE:
    """Level i at i/N is timestep i - 1, by ᾱ of the scheduler of theirs."""
    bar = scheduler.alphas_cumprod.double()
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    ratio = bar / before
    n = len(bar)
    return ChainSDE(Chain(torch.arange(1, n + 1, dtype=F64) / n, ratio.sqrt(), 1 - ratio))


def score_of(net: Callable[[Tensor, Tensor], Tensor], sde: ChainSDE, predicts: str = "noise") -> ScoreModel:
    """A network told timesteps, as a score: between levels linear in log(σ/α), as diffusers' Euler takes them."""
    levels = (sde.chain.sigma / sde.chain.alpha).log()

    def told(x: Tensor, c: Tensor) -> Tensor:
        i = torch.searchsorted(levels, c[:1].double()).clamp(1, len(levels) - 1)
        part = ((c[:1].double() - levels[i - 1]) / (levels[i] - levels[i - 1])).clamp(0, 1)
        return net(x, (i - 1 + part).float().expand(len(x)))

    return ScoreModel(told, sde, predicts)


def steps_of(solver: Solver, n: int) -> int:
    """n evaluations, one of them the denoising step; the default's first step needs none."""
    return n if isinstance(solver, SpectralMultistep) else n - 1


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=SAME, rtol=SAME)


# -- pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", STEPPING, ids=catalogue.label)
def test_ddpm_pipeline(unet: Any, solver: Solver) -> None:
    """Every solver that steps, in a batch: x_T and the solver's noise from one generator, as in `sample`."""
    theirs = diffusers.DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipe = diffusers.DDPMPipeline(unet, theirs)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = to_diffusers(solver, pipe)
    generator = torch.Generator().manual_seed(3)
    n = 5 if type(solver) in map(type, NAMED.values()) else 3
    images = pipe(batch_size=2, num_inference_steps=n, generator=generator, output_type="pt").images
    sde = chain_of(theirs)
    score = score_of(lambda x, k: unet(x, k).sample, sde, "v")
    again = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=again)  # the pipeline's x_T has deviation 1, not σ(T)
    if isinstance(solver, SpectralMultistep):
        x = x * (sde.prior_std.item() / pipe.scheduler.init_noise_sigma)  # the first step is behind
    run = sample(score, (2, 3, 8, 8), solver=solver, steps=steps_of(solver, n), x=x, noise=again)
    assert len(pipe.scheduler.timesteps) == run.nfe
    expected = run.x / 2 + 0.5
    inside = (expected > 0) & (expected < 1)
    assert inside.float().mean() > 0.05  # or nothing would be compared
    assert_same(images, expected.clamp(0, 1))


def guided(pipe: Any, scale: float, prompts: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """The pipeline's network with its guidance, by the formula of Ho & Salimans 2022."""
    positive, negative = pipe.encode_prompt(prompts, "cpu", 1, True)
    unet = pipe.unet

    def net(x: Tensor, k: Tensor) -> Tensor:
        off = unet(x, k, encoder_hidden_states=negative).sample
        return off + scale * (unet(x, k, encoder_hidden_states=positive).sample - off)

    return net


PROMPTS = ["a cat", "dogs"]


@pytest.mark.parametrize("name", NAMED)
def test_stable_diffusion(parts: dict[str, Any], name: str) -> None:
    solver = NAMED[name]
    pipe = stable_diffusion(parts, solver)
    ask = {"prompt": PROMPTS, "num_inference_steps": 5, "guidance_scale": 3.0}
    latents = pipe(**ask, generator=torch.Generator().manual_seed(5), output_type="latent").images
    images = pipe(**ask, generator=torch.Generator().manual_seed(5), output_type="pt").images
    score = score_of(guided(pipe, 3.0, PROMPTS), chain_of(diffusers.DDIMScheduler(**LATENT)))
    steps = 4  # also of the default: SD's σ/α starts at 14.6, below three of the largest deviations of 4 x 8 x 8
    run = sample(score, (2, 4, 8, 8), solver=solver, steps=steps, noise=torch.Generator().manual_seed(5))
    assert_same(latents, run.x)
    decoded = pipe.vae.decode(run.x / pipe.vae.config.scaling_factor).sample
    assert_same(images, (decoded / 2 + 0.5).clamp(0, 1))


def test_the_default_knows_the_guidance_that_it_is_told() -> None:
    """At a scale of 9 the plan of few steps is another one; `sample` asks it of the guidance itself."""
    theirs = diffusers.DDIMScheduler(clip_sample=False)
    model = from_diffusers(lambda x, timestep, by: torch.tanh(x + by) * (1 + timestep[:, None] / 1000), theirs)
    by, x = (
        torch.tensor([[0.5, -0.2]], dtype=F64),
        torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double(),
    )
    score = classifier_free(model, {"by": by}, 9.0, negative={"by": -by})
    ends = {}
    for scale in (1.0, 9.0):
        scheduler = to_diffusers(None, theirs, shape=(2,), guidance_scale=scale)
        scheduler = type(scheduler).from_config(json.loads(scheduler.to_json_string()))
        scheduler.set_timesteps(8)
        y = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            on, off = (torch.tanh(y + each) * (1 + t.double() / 1000) for each in (by, -by))
            y = scheduler.step(off + 9.0 * (on - off), t, y).prev_sample
        ends[scale] = y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eight steps are few
        run = sample(score, (3, 2), x=x * model.sde.prior_std, steps=len(scheduler.grid) - 1).x
    torch.testing.assert_close(ends[9.0], run, rtol=1e-5, atol=1e-5)  # timesteps of theirs are float32
    assert not torch.allclose(ends[1.0], run, rtol=1e-2)


@pytest.mark.parametrize("name", NAMED)
def test_image_to_image(parts: dict[str, Any], name: str) -> None:
    """The run starts at the noised image, on the rest of the grid; noise, image and steps draw from one generator."""
    solver = NAMED[name]
    pipe = stable_diffusion(parts, solver, "StableDiffusionImg2ImgPipeline")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    latents = pipe(
        prompt="a cat", image=image, strength=0.6, num_inference_steps=5, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    sde, again = chain_of(diffusers.DDIMScheduler(**LATENT)), torch.Generator().manual_seed(5)
    x0 = pipe.vae.encode(2 * image - 1).latent_dist.sample(again) * pipe.vae.config.scaling_factor
    noise = torch.randn(1, 4, 8, 8, generator=again)
    grid = pipe.scheduler.grid[2:]  # of 5 the last 3
    x = sde.alpha(grid[0]) * x0 + sde.sigma(grid[0]) * noise
    made = solver.made_for(score_of(guided(pipe, 3.0, ["a cat"]), sde), (4, 8, 8))
    run = sample(score_of(guided(pipe, 3.0, ["a cat"]), sde), (1, 4, 8, 8), solver=made, grid=grid, x=x, noise=again)
    assert_same(latents, run.x)


@dataclass(frozen=True)
class Blended(Wrapping):
    """Inpainting by replacement, as pipelines do it: after each step what is known is put in at the new noise level."""

    solver: Solver
    put: Any = None

    def step(self, process: Any, x: Tensor, t: Tensor, s: Tensor, noise: Any, state: Any) -> Any:
        x, state = self.solver.step(process, x, t, s, noise, state)
        return self.put(x, s), state


@pytest.mark.parametrize("name", ["default", "DPMSolverPP", "UniPC", "Ancestral"])
def test_inpainting_hands_in_another_state(parts: dict[str, Any], name: str) -> None:
    solver = NAMED[name]
    pipe = stable_diffusion(parts, solver, "StableDiffusionInpaintPipeline")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    latents = pipe(
        prompt="a cat", image=image, mask_image=mask, height=16, width=16, strength=1.0, num_inference_steps=5,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    sde, again = chain_of(diffusers.DDIMScheduler(**LATENT)), torch.Generator().manual_seed(5)
    x0 = pipe.vae.encode(2 * image - 1).latent_dist.sample(again) * pipe.vae.config.scaling_factor
    noise, small = torch.randn(1, 4, 8, 8, generator=again), mask[..., ::2, ::2]
    pipe.vae.encode((2 * image - 1) * (mask < 0.5)).latent_dist.sample(again)  # drawn by the pipeline, and not used

    def put(x: Tensor, t: Tensor) -> Tensor:
        return (1 - small) * (sde.alpha(t) * x0 + sde.sigma(t) * noise) + small * x

    score = score_of(guided(pipe, 3.0, ["a cat"]), sde)
    made = Blended(solver.made_for(score, (4, 8, 8)), put)
    run = sample(score, (1, 4, 8, 8), solver=made, grid=pipe.scheduler.grid, x=noise * sde.prior_std, noise=again)
    assert_same(latents, (1 - small) * x0 + small * run.x)


# -- their own schedulers, on their own times ----------------------------------------------------------------------


def ddpm_images(unet: Any, scheduler: Any, *, steps: int = 10) -> Tensor:
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images: Tensor = pipe(2, num_inference_steps=steps, generator=generator, output_type="pt").images
    return images


@pytest.mark.parametrize(
    ("solver", "theirs", "options"),
    [
        (DDIM(), "DDIMScheduler", {}),
        (DDIM(), "DDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}),
        (DDIM(), "DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
        (Ancestral(), "DDPMScheduler", {}),
        (Ancestral(), "DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        (DDIM(), "DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
)
def test_equal_to_their_scheduler_on_its_times(unet: Any, solver: Solver, theirs: str, options: dict[str, Any]) -> None:
    """DDIM is DDIM, Ancestral DDPM's Algorithm 2, draws included; to the rounding of their float32 coefficients."""
    settings = {"clip_sample": False, "prediction_type": "v_prediction", **options}
    scheduler = getattr(diffusers, theirs)(**settings)
    denoise = settings.get("set_alpha_to_one", True)
    ours = to_diffusers(solver, scheduler.config, grid="scheduler", denoise=denoise)
    assert_same(ddpm_images(unet, ours), ddpm_images(unet, scheduler))
    assert ours.timesteps.tolist() == scheduler.timesteps.tolist()


def drive(scheduler: Any, net: Callable[[Tensor, Tensor], Tensor], x: Tensor, **options: Any) -> Tensor:
    """The loop of a pipeline."""
    shown = getattr(scheduler, "scale_model_input", lambda x, t: x)  # flow matching's schedulers have none
    for t in scheduler.timesteps:
        output = net(shown(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def wave(x: Tensor, k: Tensor) -> Tensor:
    """A smooth network of any size of sample, told timesteps."""
    return (1.3 * x).sin() * 0.4 + 0.3 * x + 0.05 * (0.01 * k.float())[:, None].sin()


def start(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_heun_is_their_heun_with_its_second_evaluation() -> None:
    """At whole timesteps, 999 = 9 x 111 apart; their state is x/α."""
    theirs = diffusers.HeunDiscreteScheduler(timestep_spacing="linspace", prediction_type="v_prediction")
    theirs.set_timesteps(10)
    ours = to_diffusers(Heun(), theirs.config)
    ours.set_timesteps(timesteps=[999 - 111 * i for i in range(10)])
    assert ours.order == 2 and ours.timesteps.tolist() == theirs.timesteps.tolist()
    noise = start(3, 2)
    mine = drive(ours, wave, noise * ours.init_noise_sigma)
    # 1e-5: they round σ to float32, and take differences of values that it multiplies, 157 at first
    torch.testing.assert_close(mine, drive(theirs, wave, noise * theirs.sigmas[0]), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_ddim_is_euler_of_flow_matching(options: dict[str, Any]) -> None:
    """x_s = α_s x̂_0 + σ_s ε̂ is x + (s - t) v on the straight path; times, shift and terms are the scheduler's own."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    ours = to_diffusers(DDIM(), theirs.config)
    mu = {"mu": 0.7} if "use_dynamic_shifting" in options else {}
    for asked in ({"num_inference_steps": 6}, {"sigmas": [1.0, 0.8, 0.5, 0.2]}):
        theirs.set_timesteps(**asked, **mu)
        ours.set_timesteps(**asked, **mu)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, atol=1e-3, rtol=1e-6)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, atol=1e-6, rtol=1e-6)
        x = start(3, 2)
        torch.testing.assert_close(drive(ours, wave, x), drive(theirs, wave, x), atol=1e-5, rtol=1e-5)
    t = ours.timesteps[1:2]
    theirs.set_timesteps(**asked, **mu)
    theirs.set_begin_index(1)
    torch.testing.assert_close(ours.scale_noise(2 * x, t, x), theirs.scale_noise(2 * x, t, x), atol=1e-5, rtol=1e-5)


def test_flux_pipeline() -> None:
    """A pipeline of flow matching that hands in its own σ, and the shift for the size of the picture."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=4, pooled_projection_dim=4, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=1, sample_size=8,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))  # fmt: skip
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    missing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(scheduler=theirs, vae=vae, transformer=transformer.eval(), **missing)
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt_embeds": start(1, 3, 4), "pooled_prompt_embeds": start(1, 4), "height": 8, "width": 8}

    def latents() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found: Tensor = pipe(**asked, num_inference_steps=4, generator=generator, output_type="latent").images
        return found

    expected = latents()
    for solver, same in ((DDIM(), True), (Heun(), False)):
        pipe.scheduler = to_diffusers(solver, theirs)
        assert torch.allclose(latents(), expected, atol=1e-5) is same
    assert len(pipe.scheduler.timesteps) == 6  # from σ = 1, where x says nothing of x_0, the first step asks once


def test_ddim_is_euler_of_edm() -> None:
    """EDM's networks see x / sqrt(σ² + σ_data²); their c_noise and σ are in the scheduler's config."""
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(6)
    ours = to_diffusers(DDIM(), theirs.config)
    ours.set_timesteps(sigmas=theirs.sigmas)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, atol=1e-5, rtol=1e-5)
    x = start(3, 2) * theirs.sigmas[0]
    torch.testing.assert_close(drive(ours, wave, x), drive(theirs, wave, x), atol=1e-4, rtol=1e-4)


# -- what the network predicts, and under which schedule -----------------------------------------------------------


GAUSSIAN = Gaussian(torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([0.6, 0.2], dtype=F64))


def exact_net(sde: Any, time_of: Callable[[Tensor], Tensor], predicts: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact answer of a network for Gaussian data, by what it predicts."""
    score = GAUSSIAN.score(sde)

    def net(x: Tensor, k: Tensor) -> Tensor:
        t = time_of(k[0].double())
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        noise, x0 = score.noise(x, t), score.denoise(x, t)
        return {
            "epsilon": noise,
            "sample": x0,
            "v_prediction": alpha * noise - sigma * x0,
            "flow_prediction": noise - x0,
        }[predicts]

    return net


SCHEDULES: dict[str, Any] = {
    "VP": VP(),
    "RectifiedFlow": RectifiedFlow(),
    "EDM": EDM(t_min=0.02),
    "VE": VE(0.02, 30.0),
}


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_under_every_schedule(name: str, predicts: str) -> None:
    """An SDE of ours: the network is told 1000 t/T. float64 throughout, but for the timesteps' float32."""
    sde = SCHEDULES[name]
    scheduler = to_diffusers(DPMSolverPP(), sde, prediction_type=predicts)
    scheduler.set_timesteps(8)
    x = start(5, 2).double() * sde.prior_std
    net = exact_net(sde, lambda k: (k * sde.T / 1000).clamp_max(sde.T), predicts)
    # the timestep's rounding is 6e-8 of T, which σ of VE at small t feels most, 2e-4 of it
    expected = sample(GAUSSIAN.score(sde), (5, 2), solver=DPMSolverPP(), steps=7, x=x).x
    torch.testing.assert_close(drive(scheduler, net, x), expected, atol=2e-5, rtol=2e-5)


def test_a_chain_of_ours_is_told_its_levels_from_zero() -> None:
    chain = VP().discretize(50)
    scheduler = to_diffusers(Ancestral(), ChainSDE(chain), grid="uniform")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == pytest.approx(list(range(49, -1, -1)), abs=1e-4)
    assert len(scheduler) == 50


def test_noise_alone_says_nothing_of_x0_without_signal() -> None:
    config = diffusers.DDIMScheduler(rescale_betas_zero_snr=True).config
    with pytest.raises(ValueError, match="says nothing of x_0 where α"):
        to_diffusers(DDIM(), config).set_timesteps(5)


@pytest.mark.parametrize("thresholding", [False, True])
def test_clipping_of_the_config_is_followed(thresholding: bool) -> None:
    options = {"clip_sample": not thresholding, "thresholding": thresholding, "sample_max_value": 1.5}
    theirs = diffusers.DDPMScheduler(**options, clip_sample_range=0.4, dynamic_thresholding_ratio=0.7)
    scheduler = to_diffusers(DEIS(), theirs.config)
    scheduler.set_timesteps(6)
    sde = chain_of(theirs)
    score = score_of(wave, sde)
    bent = threshold(score, 0.7, largest=1.5) if thresholding else clip(score, 0.4)
    x = start(4, 6)
    assert_same(drive(scheduler, wave, x), sample(bent, (4, 6), solver=DEIS(), steps=5, x=x).x)
    assert (drive_again(scheduler, x) <= (1.0 if thresholding else 0.4) + 1e-6).all()


def drive_again(scheduler: Any, x: Tensor) -> Tensor:
    scheduler.set_timesteps(3)
    return drive(scheduler, wave, x).abs()


# -- noise, precision, the middle ----------------------------------------------------------------------------------


BETAS = diffusers.DDPMScheduler(clip_sample=False, prediction_type="v_prediction").config


@pytest.mark.parametrize("solver", [Ancestral(), StochasticRungeKutta(), Heun(churn=10.0), AnnealedLangevin(steps=2)])
def test_a_generator_for_each_sample(solver: Solver) -> None:
    """Sample i of a batch is what its generator gives it alone."""
    scheduler = to_diffusers(solver, BETAS)
    x = start(2, 3)

    def run(x: Tensor, generator: Any) -> Tensor:
        scheduler.set_timesteps(4)
        return drive(scheduler, wave, x, generator=generator)

    def seeded(i: int) -> torch.Generator:
        return torch.Generator().manual_seed(i)

    both = run(x, [seeded(0), seeded(1)])
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], run(x[i : i + 1], seeded(i)), atol=1e-6, rtol=1e-6)
    assert not torch.equal(run(x, seeded(0)), run(x, seeded(1)))


def test_without_a_generator_the_draws_are_torchs() -> None:
    """As everything else that a pipeline without a generator draws."""
    scheduler = to_diffusers(Ancestral(), BETAS)
    scheduler.set_timesteps(4)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        free = drive(scheduler, wave, start(2, 3))
    scheduler.set_timesteps(4)
    assert torch.equal(free, drive(scheduler, wave, start(2, 3), generator=torch.Generator().manual_seed(11)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_state_is_kept(dtype: torch.dtype) -> None:
    """Shown in half precision, carried in float32: 40 steps round x once, at the end, and the network's input."""
    scheduler = to_diffusers(DPMSolverPP(), BETAS)
    scheduler.set_timesteps(40)
    x = start(64, 3).to(dtype)

    def rounded(x: Tensor, k: Tensor) -> Tensor:
        return wave(x.float(), k).to(dtype)

    found = drive(scheduler, rounded, x)
    assert found.dtype == dtype
    sde = chain_of(diffusers.DDPMScheduler())
    score = score_of(lambda x, k: rounded(x.to(dtype), k), sde, "v")
    run = sample(score, (64, 3), solver=DPMSolverPP(), steps=39, x=x.float())
    eps = torch.finfo(dtype).eps
    # half a unit of the result's own rounding; timesteps differ by float32, which may turn a rounding of the network's
    torch.testing.assert_close(found.float(), run.x, atol=2 * eps, rtol=2 * eps)


@pytest.mark.parametrize("solver", [DPMSolverPP(), Heun(), SpectralMultistep(Spectrum(0.3, 0.4)), DPMSolver()])
def test_a_loop_from_the_middle_starts_there(solver: Solver) -> None:
    """Without set_begin_index the first timestep says where: on the rest of the grid, as a run from that state."""
    scheduler = to_diffusers(solver, BETAS)
    scheduler.set_timesteps(7)
    score = score_of(wave, chain_of(diffusers.DDPMScheduler()), "v")
    k, x = 3 * scheduler.order, start(2, 3)
    rest, t = scheduler.timesteps[k:], scheduler.times[k]
    grid = scheduler.grid[int((scheduler.grid > t + 1e-9).sum()) :]
    state = x
    for timestep in rest:
        state = scheduler.step(wave(state, timestep.expand(2)), timestep, state).prev_sample
    assert_same(state, sample(score, (2, 3), solver=solver, grid=grid, x=x).x)


def test_a_default_that_needs_no_evaluation_at_first_begins_in_the_middle_too() -> None:
    """Near T its first step needs none, so the run begins a step above, by the multiple that the step makes of x."""
    scheduler = to_diffusers(SpectralMultistep(Spectrum(0.3, 0.4)), BETAS)
    scheduler.set_timesteps(9)
    assert len(scheduler.timesteps) == 9 and scheduler.timesteps[0] < 999
    scheduler.set_begin_index(1)
    x = start(2, 3)
    for timestep in scheduler.timesteps[1:]:
        x = scheduler.step(wave(x, timestep.expand(2)), timestep, x).prev_sample
    assert bool(x.isfinite().all()) and float(x.abs().max()) < 5


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(), UniPC(), DEIS(), SpectralMultistep(Spectrum(1.0, 1.0))])
def test_the_state_is_what_is_handed_in(solver: Solver) -> None:
    """Everywhere, and not where a mask hides it: a callback that shrinks the latents after each step."""
    scheduler = to_diffusers(solver, BETAS)
    scheduler.set_timesteps(6)
    x = start(2, 3)
    for timestep in scheduler.timesteps:
        y = scheduler.step(wave(x, timestep.expand(2)), timestep, x).prev_sample
        x = 0.8 * y + 0.1
    made = Blended(solver, lambda x, t: 0.8 * x + 0.1)
    grid = scheduler.grid
    first = start(2, 3)
    if isinstance(solver, SpectralMultistep):  # its first step is behind when the pipeline begins
        made = Blended(solver, lambda x, t: x if t == grid[1] else 0.8 * x + 0.1)
        first = first * (scheduler.sde.prior_std.item() / scheduler.init_noise_sigma)
    score = score_of(wave, chain_of(diffusers.DDPMScheduler()), "v")
    assert_same(y, sample(score, (2, 3), solver=made, grid=grid, x=first).x)


def test_a_state_handed_in_within_a_step_of_heun() -> None:
    """Inpainting moves the place of the second evaluation, too: Heun's formula in x/α and σ/α, with both replaced."""
    scheduler = to_diffusers(Heun(), BETAS)
    scheduler.set_timesteps(4)
    sde = chain_of(diffusers.DDPMScheduler())

    def noise_of(x: Tensor, t: Tensor) -> Tensor:
        """ε̂ of a network that predicts v: (α v + σ x)/(α² + σ²)."""
        k, total = scheduler.timesteps[(scheduler.times - t).abs().argmin()], sde.alpha(t) ** 2 + sde.sigma(t) ** 2
        return (sde.alpha(t) * wave(x, k.expand(len(x))) + sde.sigma(t) * x) / total

    def put(x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[:, :1], 0.3), x[:, 1:]], 1)

    x = y = start(2, 3).double()
    for timestep in scheduler.timesteps:
        x = put(scheduler.step(wave(x, timestep.expand(2)), timestep, x).prev_sample)
    grid = scheduler.grid
    for t, s in itertools.pairwise(grid):
        first, second = sde.sigma(t) / sde.alpha(t), sde.sigma(s) / sde.alpha(s)
        slope = noise_of(y, t)
        inner = put(sde.alpha(s) * (y / sde.alpha(t) + (second - first) * slope))
        mean = 0.5 * (slope + noise_of(inner, s))
        y = put(sde.alpha(s) * (y / sde.alpha(t) + (second - first) * mean))
    t = grid[-1]
    y = put((y - sde.sigma(t) * noise_of(y, t)) / sde.alpha(t))
    torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)  # 1e-16, times (σ/α)² = 157² and a few operations


def test_a_state_handed_in_where_noise_was_added_first() -> None:
    """Heun with churn asks at the raised level: what is handed in is the state there, and the draws stay."""
    scheduler = to_diffusers(Heun(churn=10.0), BETAS)

    def run(move: bool) -> tuple[Tensor, Tensor]:
        scheduler.set_timesteps(4)
        x, generator = start(2, 3), torch.Generator().manual_seed(1)
        for i, timestep in enumerate(scheduler.timesteps):
            x = x + 1e-3 if move and i == 2 else x
            before = x
            x = scheduler.step(wave(x, timestep.expand(2)), timestep, x, generator=generator).prev_sample
            if i == 2:
                slope = x
        return slope, before

    (moved, _), (plain, _) = run(True), run(False)
    # one stage further the move has grown or shrunk by a factor near one, everywhere
    change = (moved - plain) / 1e-3
    assert bool(((change > 0.2) & (change < 3)).all())


def test_moving_a_state_and_back_changes_nothing() -> None:
    """The slope by which the state follows is right where noise or a factor comes before the first evaluation."""
    for solver in (Heun(churn=10.0), AnnealedLangevin(steps=2), DPMSolverPP()):
        results = []
        for nudge in (0.0, 1e-7):
            scheduler = to_diffusers(solver, BETAS)
            scheduler.set_timesteps(4)
            if not solver.follows_process and nudge:
                continue
            x, generator = start(2, 3).double(), torch.Generator().manual_seed(1)
            for timestep in scheduler.timesteps:
                x = x + nudge
                x = scheduler.step(wave(x, timestep.expand(2)), timestep, x, generator=generator).prev_sample
            results.append(x)
        if len(results) == 2:
            assert 0 < float((results[0] - results[1]).abs().max()) < 1e-5


def test_whole_timesteps_move_the_grid() -> None:
    """Karras' 12 times crowd below one timestep near the data; moved, they are apart, and the solver knows them so."""
    for solver in (DPMSolverPP(), Heun()):
        scheduler = to_diffusers(solver, BETAS, integer_timesteps=True)
        scheduler.set_timesteps(12)
        assert scheduler.timesteps.dtype == torch.int64
        assert scheduler.timesteps[0] == 999
        of_grid = (1000 * scheduler.grid).round().long() - 1
        torch.testing.assert_close(1000 * scheduler.grid, (of_grid + 1).double(), atol=1e-9, rtol=0)
        assert len(set(of_grid.tolist())) == 12 and set(of_grid.tolist()) == set(scheduler.timesteps.tolist())
        score = score_of(wave, chain_of(diffusers.DDPMScheduler()), "v")
        x = start(2, 3)
        expected = sample(score, (2, 3), solver=solver, grid=scheduler.grid, x=x).x
        assert_same(drive(scheduler, wave, x), expected)
    with pytest.raises(ValueError, match="evaluates between the times of the grid"):
        to_diffusers(DPMSolver(), BETAS, integer_timesteps=True).set_timesteps(5)
    scheduler = to_diffusers(DDIM(), diffusers.DDPMScheduler(num_train_timesteps=8).config, integer_timesteps=True)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == list(range(7, -1, -1))
    with pytest.raises(ValueError, match="leaves 8 whole timesteps"):
        scheduler.set_timesteps(9)


def test_one_step_is_the_denoising_step() -> None:
    scheduler = to_diffusers(Heun(), BETAS)
    scheduler.set_timesteps(1)
    x = start(2, 3)
    sde = chain_of(diffusers.DDPMScheduler())
    assert_same(drive(scheduler, wave, x), score_of(wave, sde, "v").denoise(x, 1.0))


def test_without_denoising_the_run_ends_at_the_first_level() -> None:
    scheduler = to_diffusers(UniPC(), BETAS, denoise=False)
    scheduler.set_timesteps(6)
    score, x = score_of(wave, chain_of(diffusers.DDPMScheduler()), "v"), start(2, 3)
    run = sample(score, (2, 3), solver=UniPC(), steps=6, x=x, denoise=False)
    assert_same(drive(scheduler, wave, x), run.x)
    assert len(scheduler.timesteps) == 6 and scheduler.sigmas[-1] > 0


# -- training, configs, files --------------------------------------------------------------------------------------


def test_the_forward_process_is_theirs() -> None:
    theirs = diffusers.DDPMScheduler()
    ours = to_diffusers(DDIM(), theirs.config)
    x0, noise, k = start(4, 3), start(4, 3).flip(0), torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(ours.add_noise(x0, noise, k), theirs.add_noise(x0, noise, k), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.get_velocity(x0, noise, k), theirs.get_velocity(x0, noise, k), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)
    torch.testing.assert_close(ours.betas, theirs.betas, atol=1e-7, rtol=2e-4)  # of ᾱ in float32, differences
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() and len(ours) == len(theirs)
    with pytest.raises(ValueError, match="0 to 999; got 1000"):
        ours.add_noise(x0, noise, k + 1)
    # between levels as the network is told: the timestep of a time is the time of the timestep
    ours.set_timesteps(20)
    from_timestep = ours.add_noise(torch.ones(20, 1, dtype=F64), torch.zeros(20, 1, dtype=F64), ours.timesteps)
    torch.testing.assert_close(from_timestep[:, 0], ours.sde.alpha(ours.times), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", [DEIS(order=2, interpolates="noise_level"), Heun(churn=1.0), PredictorCorrector()])
def test_a_config_makes_the_same_scheduler(solver: Solver, tmp_path: Path) -> None:
    made = to_diffusers(solver, BETAS, shape=(3, 4, 4), grid="log_snr", sigma_data=0.7)
    made.save_pretrained(tmp_path)
    for other in (type(made).from_pretrained(tmp_path), type(made).from_config(made.config), copy.deepcopy(made)):
        kept, same = ({k: v for k, v in each.config.items() if k[0] != "_"} for each in (made, other))
        assert other.solver == made.solver and kept == same
        made.set_timesteps(4)
        other.set_timesteps(4)
        assert torch.equal(other.times, made.times)


def test_every_solver_that_steps_can_be_written() -> None:
    """And those that do not are refused by name."""
    for solver in [*catalogue.variants(), SpectralMultistep(Spectrum(0.5, 3.0), Tuning((5,), ((0.1, 0.2, 0.3),)))]:
        if solver.steps_on_grid:
            assert read_solver(json.loads(json.dumps(as_json(solver)))) == solver
            continue
        with pytest.raises(ValueError, match=f"^{type(solver).__name__} is not made of the grid's steps"):
            to_diffusers(solver, BETAS)


def test_what_no_config_says_is_not_read() -> None:
    for given, match in (
        ({"class": "os.system"}, 'the "class" of solver must be one of'),
        ({"class": "DDIM", "steps": 3}, "the config of solver gives it steps as well"),
        ({"class": "Spectrum", "scale": 1.0, "largest": 2.0}, "solver must be"),
        ({"class": "DPMSolverPP", "order": 9}, "order must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            read_solver(given)


def test_options_change_in_from_config() -> None:
    made = to_diffusers(DDIM(), VP(beta_max=15.0), num_train_timesteps=100, prediction_type="v_prediction")
    other = type(made).from_config(made.config, solver=Heun(), grid="uniform", prediction_type="sample")
    assert (other.solver, other.sde) == (Heun(), VP(beta_max=15.0)) and len(other) == 100
    assert other.config["prediction_type"] == "sample"
    made, rest = type(made).from_config(other.config, return_unused_kwargs=True, revision="main")
    assert rest == {"revision": "main"} and made.solver == Heun()
    for rule in ("scheduler", "karras"):  # as a saved pipeline has it
        kept = to_diffusers(DDIM(), diffusers.DDIMScheduler(**LATENT), grid=rule)
        again = type(kept).from_config(json.loads(kept.to_json_string()))
        kept.set_timesteps(10), again.set_timesteps(10)
        assert torch.equal(again.grid, kept.grid) and again.config.solver_options["grid"] == rule
    theirs = diffusers.DPMSolverMultistepScheduler(beta_start=0.001, beta_schedule="scaled_linear")
    ours = type(made).from_config(theirs.config, solver=UniPC())
    back = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    torch.testing.assert_close(back.alphas_cumprod, theirs.alphas_cumprod)


def test_defaults_of_their_class_are_not_lost() -> None:
    """LMS and Heun differ in the default of beta_start; a config notes which values were defaults."""
    theirs = diffusers.HeunDiscreteScheduler()
    assert theirs.config.beta_start != diffusers.DDPMScheduler().config.beta_start
    torch.testing.assert_close(to_diffusers(DDIM(), theirs.config).alphas_cumprod, theirs.alphas_cumprod)
    torch.testing.assert_close(to_diffusers(DDIM(), theirs).alphas_cumprod, theirs.alphas_cumprod)


@dataclass(frozen=True)
class Mine(Wrapping):
    """A solver that no config can name."""

    solver: Solver

    def step(self, process: Any, x: Tensor, t: Tensor, s: Tensor, noise: Any, state: Any) -> Any:
        return self.solver.step(process, x, t, s, noise, state)


def test_a_solver_of_ones_own_steps_and_is_not_written(tmp_path: Path) -> None:
    scheduler = to_diffusers(Mine(DDIM()), BETAS)
    scheduler.set_timesteps(3)
    assert "Mine" in repr(scheduler)
    assert drive(scheduler, wave, start(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="solver of this scheduler cannot be written"):
        scheduler.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="from_config\\(config, solver="):
        type(scheduler).from_config(scheduler.config)
    assert type(scheduler).from_config(scheduler.config, solver=DDIM()).solver == DDIM()
    rule = to_diffusers(DDIM(), BETAS, grid=lambda sde, steps: grids.uniform(sde, steps))
    with pytest.raises(ValueError, match="grid of this scheduler"):
        rule.save_config(tmp_path)


def test_a_pipeline_is_saved_and_loaded_with_it(unet: Any, tmp_path: Path) -> None:
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(prediction_type="v_prediction"))
    pipe.scheduler = to_diffusers(None, pipe)
    assert pipe.scheduler.config.solver_options["shape"] == [3, 8, 8]
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler.solver, SpectralMultistep) and loaded.scheduler.config.clip_sample
    pipes = []
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
        pipes.append(each(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt").images)
    assert_same(*pipes)


def test_their_pipelines_may_change_the_config(parts: dict[str, Any]) -> None:
    """StableDiffusionPipeline turns clip_sample off, after the scheduler is made."""
    scheduler = to_diffusers(DDIM(), diffusers.DDIMScheduler(**LATENT, clip_sample=True).config)
    with pytest.warns(FutureWarning, match="clip_sample"):
        pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False)  # fmt: skip
    pipe.scheduler.set_timesteps(3)
    k = pipe.scheduler.timesteps[0]
    found = pipe.scheduler.step(torch.full((1, 2), 5.0), k, torch.ones(1, 2))
    assert float(found.pred_original_sample.abs().max()) > 2


# -- what is refused -----------------------------------------------------------------------------------------------


def test_calls_out_of_turn() -> None:
    scheduler = to_diffusers(DPMSolverPP(), BETAS)
    x = start(2, 3)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.set_begin_index(1)
    scheduler.set_timesteps(4)
    first, second, *rest = scheduler.timesteps
    with pytest.raises(ValueError, match="timestep must be one of"):
        scheduler.step(x, 500, x)
    x = scheduler.step(x, first, x).prev_sample
    with pytest.raises(ValueError, match="timestep must be the next of"):
        scheduler.step(x, first, x)
    with pytest.raises(ValueError, match="timestep must be the next of"):
        scheduler.step(x, rest[0], x)
    with pytest.raises(ValueError, match="sample must be"):
        scheduler.step(x[:1], second, x[:1])
    with pytest.raises(ValueError, match="model_output must have the shape"):
        scheduler.step(x[:, :2], second, x)
    with pytest.raises(TypeError, match="generator must be"):
        scheduler.step(x, second, x, generator=3)
    with pytest.raises(ValueError, match="one for all samples"):
        scheduler.step(x, second.expand(2), x)
    for timestep in (second, *rest):  # what was refused has left no trace
        x = scheduler.step(wave(x, timestep.expand(2)), timestep, x).prev_sample
    with pytest.raises(ValueError, match="the run is over"):
        scheduler.step(x, rest[-1], x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="begin_index must be one of the 4"):
        scheduler.set_begin_index(4)


def test_a_refused_call_leaves_the_run_as_it_was() -> None:
    results = []
    for spoil in (False, True):
        scheduler = to_diffusers(Ancestral(), BETAS)
        scheduler.set_timesteps(4)
        x, generator = start(2, 3), torch.Generator().manual_seed(1)
        for timestep in scheduler.timesteps:
            if spoil:
                with pytest.raises(ValueError, match="timestep must be"):
                    scheduler.step(x, 12.5, x, generator=generator)
            if spoil and timestep != scheduler.timesteps[-1]:  # the last evaluation draws nothing
                with pytest.raises(ValueError, match="one for each of 2 samples"):
                    scheduler.step(x, timestep, x, generator=[generator])
            x = scheduler.step(wave(x, timestep.expand(2)), timestep, x, generator=generator).prev_sample
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("solver", "begin", "match"),
    [
        (Heun(), 1, "first evaluation of a step"),
        (UniPC(predictor=4), 12, "a method whose start takes evaluations of its own"),
        (Heun(churn=1.0), 2, "whose steps depend on how many there are"),
    ],
)
def test_where_a_run_cannot_begin(solver: Solver, begin: int, match: str) -> None:
    scheduler = to_diffusers(solver, BETAS)
    scheduler.set_timesteps(8)
    with pytest.raises(ValueError, match=match):
        scheduler.set_begin_index(begin)
    scheduler.set_begin_index(0)


def test_states_that_do_not_follow_the_process_are_not_replaced() -> None:
    scheduler = to_diffusers(AnnealedLangevin(steps=2), BETAS)
    scheduler.set_timesteps(3)
    x = start(2, 3)
    for i, timestep in enumerate(scheduler.timesteps[:2]):
        if i:
            with pytest.raises(ValueError, match="do not follow the process"):
                scheduler.step(x, timestep, x + 1, generator=torch.Generator())
        x = scheduler.step(x, timestep, x, generator=torch.Generator()).prev_sample


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: to_diffusers(SpectralMultistep(), BETAS), ValueError, "pass shape"),
        (lambda: to_diffusers("heun", BETAS), TypeError, "solver must be"),
        (lambda: to_diffusers(DDIM(), None), TypeError, "schedule must say"),
        (lambda: to_diffusers(DDIM(), 3), TypeError, "schedule must be"),
        (lambda: to_diffusers(DDIM(), diffusers.LCMScheduler()), ValueError, "LCMScheduler"),
        (lambda: to_diffusers(DDIM(), VP(), prediction_type="noise"), ValueError, "prediction_type must be"),
        (lambda: to_diffusers(DDIM(), BETAS, prediction_type="flow"), ValueError, "prediction_type"),
        (lambda: to_diffusers(DDIM(), BETAS, grid="leading"), ValueError, "grid must be"),
        (lambda: to_diffusers(DDIM(), VP(), grid="scheduler"), ValueError, "times of a scheduler"),
        (lambda: to_diffusers(DDIM(), BETAS, num_train_timesteps=10), ValueError, "belongs to an SDE"),
        (lambda: to_diffusers(Ancestral(), BETAS, eta=0.0), ValueError, "eta = 1"),
        (lambda: to_diffusers(DDIM(), BETAS, denoise=2), TypeError, "denoise"),
        (lambda: to_diffusers(DDIM(), ChainSDE(VP().discretize(30)), num_train_timesteps=9), ValueError, "30, the lev"),
    ],
)
def test_what_cannot_be_made(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "num_inference_steps must be given"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"timesteps": [500, 600]}, "timesteps must lead from noise to data"),
        ({"timesteps": [1000.0, 3.0]}, "0 to 999; got 1000"),
        ({"timesteps": []}, "at least 1"),
        ({"timesteps": [5.0], "sigmas": [1.0]}, "not both"),
        ({"sigmas": [1e3, 1.0]}, "and at most 157"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "sigmas must lead from noise to data"),
        ({"sigmas": [1e-5]}, "at least 0.01"),
        ({"num_inference_steps": 3, "mu": 1.0}, "mu belongs to flow matching"),
        ({"num_inference_steps": 3, "timesteps": [9.0, 1.0]}, "are of 2"),
    ],
)
def test_times_that_are_refused(options: dict[str, Any], match: str) -> None:
    scheduler = to_diffusers(DDIM(), BETAS)
    with pytest.raises(ValueError, match=match):
        scheduler.set_timesteps(**options)


def test_published_lists_of_times_are_taken() -> None:
    """Align Your Steps for Stable Diffusion: σ/α from 14.615, rounded up from 14.6146, and timesteps."""
    from diffusers.schedulers import AysSchedules

    scheduler = to_diffusers(DPMSolverPP(), diffusers.DDIMScheduler(**LATENT).config)
    scheduler.set_timesteps(sigmas=AysSchedules["StableDiffusionSigmas"])
    assert len(scheduler.timesteps) == 10 and scheduler.timesteps[0] == 999
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(AysSchedules["StableDiffusionSigmas"]), atol=1e-3, rtol=0)
    scheduler.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    assert scheduler.timesteps.tolist() == AysSchedules["StableDiffusionTimesteps"]
