"""Networks of diffusers as models: each of their schedulers' own loops against ours, from the same noise.

Tolerances of the loops: both sides are float32 (their schedulers cast to it) with coefficients that agree to about
1e-7. A state of size m is rounded by 6e-8 m at each of the ~10 to 20 steps, and a step of a random network passes on
what it gets; 1e-5 m, where m is the largest value that either side ends with, is ten times what that comes to.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import VP, Reverse, ScoreModel, classifier_free, dsm_loss, guidance, sample
from scoresde.data import from_tensors
from scoresde.interop import DPMSolver2M, diffusers_grid, diffusers_sampling, from_diffusers
from scoresde.interop.timesteps import ChainTimesteps, StraightTimesteps
from scoresde.noise import Noise
from scoresde.problems import Gaussian
from scoresde.sde import EDM, VE, ChainSDE, RectifiedFlow
from scoresde.solvers import DDIM, Ancestral, UniPC
from scoresde.train import load_model, train

diffusers = pytest.importorskip("diffusers")

F64 = torch.float64
SHAPE = (2, 2, 4, 4)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_unet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    common = {"sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (4,), "layers_per_block": 1}
    return diffusers.UNet2DModel(**{**common, **blocks, "norm_num_groups": 2, "add_attention": False, **options}).eval()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture(scope="module")
def dit() -> nn.Module:
    """With classes, one row for none of them, and a learned variance in the second half of its channels."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    net = diffusers.DiTTransformer2DModel(
        **sizes, in_channels=2, out_channels=4, num_embeds_ada_norm=10, norm_num_groups=4
    ).eval()
    for p in net.parameters():  # some start at zero, and the class would not matter
        nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel()))
    return net


class Told(Noise):
    """Normals that are given, in their order."""

    def __init__(self, values: list[Tensor]) -> None:
        self.values, self.at = values, 0

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise AssertionError("the start is given")

    def normal(self, x: Tensor) -> Tensor:
        self.at += 1
        return self.values[self.at - 1].to(x)

    def position(self) -> object:
        return self.at

    def rewind(self, position: Any) -> None:
        self.at = position


NOISES = [normals(*SHAPE, seed=100 + i) for i in range(40)]


def their_run(monkeypatch, scheduler, net, steps, step_options=None, *, dtype=torch.float32, **options) -> Tensor:
    """The loop of their pipelines, with NOISES in the place of what it would draw."""
    scheduler, drawn = copy.deepcopy(scheduler), iter(NOISES)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(drawn).to(dtype))
    scheduler.set_timesteps(steps, **options)
    x = normals(*SHAPE).to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            answer = net(shown, t)
            answer = getattr(answer, "sample", answer)
            x = scheduler.step(answer, t, x, **(step_options or {})).prev_sample
    return x


def our_run(
    scheduler,
    net,
    steps,
    *,
    wrap=lambda model: model,
    model_options=None,
    in_frame=False,
    dtype=torch.float32,
    **options,
) -> Tensor:
    """The two lines of the documentation, from the same start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clipping: see below
        model = from_diffusers(net, scheduler, **(model_options or {}))
    run = diffusers_sampling(scheduler, steps, **options)
    prepared = copy.deepcopy(scheduler)
    options.pop("eta", None)
    prepared.set_timesteps(steps, **options)
    start = normals(*SHAPE).to(dtype) * getattr(prepared, "init_noise_sigma", 1.0)
    first, last = (model.sde.alpha(run["grid"][i]) for i in (0, -1))
    found = sample(wrap(model), SHAPE, x=start * first.to(dtype) if in_frame else start, noise=Told(NOISES), **run)
    assert found.nfe <= 2 * len(run["grid"])
    return found.x / last if in_frame and not run["denoise"] else found.x


def assert_equal(ours: Tensor, theirs: Tensor, *, within: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within * max(1.0, theirs.abs().max().item()))


BETAS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01 + 0.001 * i for i in range(40)], "num_train_timesteps": 40},
    {"num_train_timesteps": 100},
]
TYPES = ["epsilon", "v_prediction", "sample"]
PLAIN = {"clip_sample": False}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(monkeypatch, unet, kind, eta) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, **PLAIN)
    theirs = their_run(monkeypatch, scheduler, unet, 10, {"eta": eta})
    assert_equal(our_run(scheduler, unet, 10, eta=eta), theirs)


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_ddim_for_every_kind_of_betas(monkeypatch, unet, betas) -> None:
    scheduler = diffusers.DDIMScheduler(**betas, **PLAIN)
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_ddim_begins_and_ends_where_theirs_does(monkeypatch, unet, options) -> None:
    scheduler = diffusers.DDIMScheduler(**options, **PLAIN)
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(monkeypatch, unet, kind, variance) -> None:
    scheduler = diffusers.DDPMScheduler(prediction_type=kind, variance_type=variance, **PLAIN)
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


@pytest.mark.parametrize("betas", [*BETAS, {"beta_schedule": "sigmoid"}], ids=str)
def test_ddpm_for_every_kind_of_betas(monkeypatch, unet, betas) -> None:
    scheduler = diffusers.DDPMScheduler(**betas, **PLAIN)
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


def test_ddpm_at_timesteps_of_ones_own(monkeypatch, unet) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=30, **PLAIN)
    options = {"timesteps": [29, 20, 12, 3]}
    assert_equal(our_run(scheduler, unet, None, **options), their_run(monkeypatch, scheduler, unet, None, **options))


@pytest.mark.parametrize("kind", TYPES)
def test_ddpm_and_ddim_in_float64(monkeypatch, unet, kind) -> None:
    """Those two compute in what their levels are stored in: in float64, on all levels, the loops are equal to 1e-10.

    In float32 theirs takes β = 1 - ᾱ_t/ᾱ_s, which loses 6e-8/β of it: where all levels are visited, 1e-4 of x̂_0.
    """
    net = copy.deepcopy(unet).double()
    for cls in (diffusers.DDPMScheduler, diffusers.DDIMScheduler):
        scheduler = cls(num_train_timesteps=30, prediction_type=kind, **PLAIN)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        theirs = their_run(monkeypatch, scheduler, net, 30, dtype=F64)
        # a hundred roundings of 1e-16, times σ/α of at most 1e2, and β with 12 digits
        assert_equal(our_run(scheduler, net, 30, dtype=F64), theirs, within=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        *({"prediction_type": kind} for kind in TYPES),
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"},
        # of linear betas the last levels have less signal than the 2^-24 that theirs puts at the end
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "sample"},
    ],
    ids=str,
)
def test_euler(monkeypatch, unet, options) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**options)  # 8 steps: "linspace" gives fractions of timesteps
    assert_equal(our_run(scheduler, unet, 8, in_frame=True), their_run(monkeypatch, scheduler, unet, 8))


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_levels_beyond_a_finite_end_of_zero_signal_are_left_out(unet, kind) -> None:
    scheduler = getattr(diffusers, kind)(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    model, bar = from_diffusers(unet, scheduler), scheduler.alphas_cumprod.double()
    kept = [i for i in range(1000) if i == 999 or bar[i] > bar[999]]
    assert len(kept) == 997 and model.sde.chain.n == 997
    times = (torch.tensor(kept, dtype=F64) + 1) / 1000
    torch.testing.assert_close(model.sde.alpha(times) ** 2, bar[kept], rtol=1e-12, atol=0)  # products in float64
    c = (model.sde.sigma(times) / model.sde.alpha(times)).log()
    assert model.net.timesteps(c).tolist() == kept
    with pytest.raises(ValueError, match="must fall; got 4096 and then 7668"):
        diffusers_sampling(scheduler, 500)


def test_euler_in_continuous_time(monkeypatch, unet) -> None:
    """Stable Video Diffusion's: any σ, timestep log(σ)/4, v-prediction."""
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    # at σ = 700 their state and ours are rounded by 4e-5, of which the v-prediction passes little on
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


def test_ancestral_euler_and_heun(monkeypatch, unet) -> None:
    for cls in (diffusers.EulerAncestralDiscreteScheduler, diffusers.HeunDiscreteScheduler):
        scheduler = cls(prediction_type="v_prediction")
        assert_equal(our_run(scheduler, unet, 8, in_frame=True), their_run(monkeypatch, scheduler, unet, 8))


@pytest.mark.parametrize(
    "options",
    [
        *({"prediction_type": kind} for kind in TYPES),
        {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1},
        {"solver_order": 1, "timestep_spacing": "trailing"},
        {"final_sigmas_type": "sigma_min"},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [6, 16])
def test_dpm_solver_multistep(monkeypatch, unet, options, steps) -> None:
    """Below 15 steps, and above, where their last step to a noise level is of another order."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**options)
    assert_equal(our_run(scheduler, unet, steps), their_run(monkeypatch, scheduler, unet, steps))


@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ({"use_karras_sigmas": True}, "rounded"),
        ({"use_exponential_sigmas": True}, "truncated"),
        ({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}, "truncated"),
    ],
)
def test_whole_timesteps_where_theirs_are(monkeypatch, unet, options, rounding) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**options)
    ours = our_run(scheduler, unet, 8, model_options={"timesteps": rounding})
    assert_equal(ours, their_run(monkeypatch, scheduler, unet, 8))


@pytest.mark.parametrize(
    ("options", "run"),
    [
        ({}, {}),
        ({"shift": 3.0}, {}),
        ({"use_dynamic_shifting": True}, {"mu": 0.8}),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 0.8}),
        ({"invert_sigmas": True}, {}),
        ({"use_karras_sigmas": True}, {}),
        ({"shift": 2.0, "shift_terminal": 0.1}, {}),
    ],
    ids=str,
)
def test_flow_matching_euler(monkeypatch, unet, options, run) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    assert_equal(our_run(scheduler, unet, 10, **run), their_run(monkeypatch, scheduler, unet, 10, **run))


@pytest.mark.parametrize("options", [{}, {"prediction_type": "v_prediction", "sigma_data": 1.0}], ids=str)
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm(monkeypatch, unet, name, options, end) -> None:
    scheduler = getattr(diffusers, name)(final_sigmas_type=end, **options)
    assert_equal(our_run(scheduler, unet, 10), their_run(monkeypatch, scheduler, unet, 10))


@pytest.mark.parametrize("sigma_max", [3.0, 77.7, 123.4])
def test_ends_of_edm_survive_the_rounding_of_float32(sigma_max) -> None:
    grid = diffusers_grid(diffusers.EDMEulerScheduler(sigma_max=sigma_max), 5)
    assert grid[0] <= sigma_max and grid[0] == pytest.approx(sigma_max, rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "CosineDPMSolverMultistepScheduler"])
def test_the_denoiser_of_edm(unet, name, kind) -> None:
    scheduler = getattr(diffusers, name)(prediction_type=kind, sigma_data=0.7)
    model, x = from_diffusers(unet, scheduler), normals(*SHAPE)
    for sigma in (0.3, 1.0, 50.0):
        level = torch.tensor(sigma)
        answer = unet(scheduler.precondition_inputs(x, level), scheduler.precondition_noise(level)).sample
        expected = scheduler.precondition_outputs(x, answer, level)
        # one network in float32, shown the same numbers to its rounding
        torch.testing.assert_close(model.denoise(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_clipping_and_thresholding_are_guidance(monkeypatch, unet) -> None:
    ddpm, ddim = diffusers.DDPMScheduler(), diffusers.DDIMScheduler(clip_sample_range=0.8)
    assert_equal(our_run(ddpm, unet, 10, wrap=guidance.clip), their_run(monkeypatch, ddpm, unet, 10))
    # as in GLIDE, where ε̂ is that of the clipped x̂_0; without it theirs moves by a pair that belongs to no score
    theirs = their_run(monkeypatch, ddim, unet, 10, {"use_clipped_model_output": True})
    assert_equal(our_run(ddim, unet, 10, wrap=lambda m: guidance.clip(m, 0.8)), theirs)
    bent = {"thresholding": True, "sample_max_value": 2.5, "dynamic_thresholding_ratio": 0.9}
    for cls in (diffusers.DDPMScheduler, diffusers.DPMSolverMultistepScheduler):
        ours = our_run(cls(**bent), unet, 10, wrap=lambda m: guidance.threshold(m, 0.9, largest=2.5))
        assert_equal(ours, their_run(monkeypatch, cls(**bent), unet, 10))


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        (diffusers.DDPMScheduler(), r"guidance\.clip\(model, 1\)"),
        (diffusers.DDIMScheduler(clip_sample_range=2.0), r"guidance\.clip\(model, 2\)"),
        (diffusers.DDPMScheduler(thresholding=True), r"guidance\.threshold\(model, 0\.995, largest=1\)"),
    ],
)
def test_what_a_scheduler_does_beside_is_said_with_the_line_that_does_it(unet, scheduler, line) -> None:
    with pytest.warns(UserWarning, match=line) as caught:
        from_diffusers(unet, scheduler)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_diffusers(unet, diffusers.EulerDiscreteScheduler())


# ---- the time that the network is told ----


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("betas", BETAS[:4], ids=str)
def test_levels_of_a_chain_are_whole_numbers_exactly(betas, dtype) -> None:
    told = []
    net = nn.Linear(1, 1).to(dtype)

    def spy(x: Tensor, timestep: Tensor) -> Tensor:
        told.append(timestep)
        return x

    net.forward = spy
    scheduler = diffusers.DDIMScheduler(**betas, **PLAIN)
    model = from_diffusers(net, scheduler)
    n = scheduler.config.num_train_timesteps
    times = torch.arange(1, n + 1, dtype=F64) / n
    model(torch.zeros(n, 1, dtype=dtype), times)
    assert torch.equal(told[0], torch.arange(n).to(dtype))
    # between them in order, and a fraction
    model(torch.zeros(n - 1, 1, dtype=dtype), times[:-1] + 0.3 / n)
    assert bool((told[1] > torch.arange(n - 1)).all()) and bool((told[1] < torch.arange(1, n)).all())


def test_levels_are_those_of_the_scheduler(unet) -> None:
    for scheduler in (diffusers.DDPMScheduler(**PLAIN), diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **PLAIN)):
        sde, bar = from_diffusers(unet, scheduler).sde, scheduler.alphas_cumprod.double()
        times = torch.arange(1, 1001, dtype=F64) / 1000
        # a product of a thousand ratios in float64
        torch.testing.assert_close(sde.alpha(times) ** 2, bar, rtol=1e-12, atol=0)
        torch.testing.assert_close(sde.sigma(times) ** 2, 1 - bar, rtol=1e-11, atol=0)


def test_between_levels_linear_in_log_or_in_sigma() -> None:
    levels = torch.tensor([-2.0, 0.0, 1.0], dtype=F64)
    c = torch.tensor([-3.0, -2.0, -1.5, 0.0, 0.25, 1.0, 5.0], dtype=F64)
    log = torch.tensor([0.0, 0.0, 0.25, 1.0, 1.25, 2.0, 2.0], dtype=F64)
    torch.testing.assert_close(ChainTimesteps(levels)(c), log, rtol=0, atol=1e-15)
    s, e = c.exp(), levels.exp()
    sigma = torch.where(c < 0, (s - e[0]) / (e[1] - e[0]), 1 + (s - e[1]) / (e[2] - e[1])).clamp(0, 2)
    torch.testing.assert_close(ChainTimesteps(levels, "sigma")(c), sigma, rtol=0, atol=1e-15)
    inside = torch.tensor([-1.5, 0.3], dtype=F64, requires_grad=True)
    square = torch.where(c < 0, (s**2 - e[0] ** 2) / (e[1] ** 2 - e[0] ** 2), 1 + (s**2 - 1) / (e[2] ** 2 - 1)).clamp(
        0, 2
    )
    torch.testing.assert_close(ChainTimesteps(levels, "time")(c), square, rtol=0, atol=1e-15)
    for how in ("log", "sigma", "time"):
        assert torch.autograd.gradcheck(ChainTimesteps(levels, how), (inside,))
    at = torch.tensor([-2.0, 0.0], dtype=F64, requires_grad=True)
    # a level has the slope of the side that is searched first: steps of 1 in 2 below 0, and from -2 up
    assert torch.autograd.grad(ChainTimesteps(levels)(at).sum(), at)[0].tolist() == [0.5, 0.5]
    assert torch.equal(ChainTimesteps(levels[:1])(c), 0 * c)


def test_the_straight_path_reaches_both_ends() -> None:
    c = torch.tensor([0.0, 18.5, -40.0], dtype=F64)
    torch.testing.assert_close(StraightTimesteps(1000)(c), torch.tensor([500.0, 1000.0, 0.0], dtype=F64))
    assert StraightTimesteps(1000)(c)[1] == 1000 and StraightTimesteps(1000, True)(c)[1] == 0


def test_a_network_that_looks_timesteps_up_gets_whole_numbers() -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, **PLAIN)
    learned = tiny_unet(time_embedding_type="learned", num_train_timesteps=50)
    x = normals(*SHAPE)
    found = from_diffusers(learned, scheduler).noise(x, 0.304)  # between timestep 14 and 15
    torch.testing.assert_close(found, learned(x, 14).sample, rtol=1e-6, atol=1e-6)  # the same network in float32
    told = []
    plain = from_diffusers(lambda x, t: (told.append(t), x)[1], scheduler, timesteps="truncated")
    plain.noise(x, 0.339)
    assert told[0].dtype == torch.int64 and told[0].tolist() == [15, 15]


# ---- networks, and what they answer ----


@pytest.mark.parametrize("answer", [lambda y: y, lambda y: (y,), lambda y: SimpleNamespace(sample=y)])
def test_answers_of_every_form(answer) -> None:
    model = from_diffusers(lambda x, t: answer(x * t[0]), diffusers.DDIMScheduler(**PLAIN))
    x = normals(*SHAPE)
    assert torch.equal(model.noise(x, 0.5), x * 499)


def test_a_transformer_with_classes_and_a_learned_variance(monkeypatch, dit) -> None:
    scheduler = diffusers.DDIMScheduler(**PLAIN)
    model, x, y = from_diffusers(dit, scheduler), normals(*SHAPE), torch.tensor([3, 7])
    cond, none = (dit(x, torch.tensor([499, 499]), class_labels=k).sample[:, :2] for k in (y, torch.tensor([10, 10])))
    assert not torch.allclose(cond, none)
    rounding = {"rtol": 1e-5, "atol": 1e-5}  # one network in float32, in batches of 2 and of 4
    torch.testing.assert_close(model.bind(class_labels=y).noise(x, 0.5), cond, **rounding)
    torch.testing.assert_close(model.bind(class_labels=10).noise(x, 0.5), none, **rounding)
    guided = classifier_free(model, {"class_labels": y}, 4.0)
    torch.testing.assert_close(guided.noise(x, 0.5), none + 4 * (cond - none), rtol=1e-4, atol=1e-4)
    theirs = their_run(
        monkeypatch, scheduler, lambda x, t: dit(x, t.expand(2), class_labels=y).sample[:, :2], 10, {"eta": 0.0}
    )
    run = diffusers_sampling(scheduler, 10)
    assert_equal(sample(model.bind(class_labels=y), SHAPE, x=x, **run).x, theirs)
    with pytest.raises(ValueError, match="0 to 9"):
        model.bind(class_labels=torch.tensor([3, 11]))


def test_a_conditional_unet_with_prompts() -> None:
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 2 + 3,
    ).eval()
    model = from_diffusers(net, diffusers.EulerDiscreteScheduler())
    x, prompts, empty = normals(*SHAPE), normals(2, 5, 4, seed=1), normals(1, 5, 4, seed=2)
    added = {"text_embeds": normals(2, 3, seed=3), "time_ids": torch.tensor([[8.0, 8.0]]).expand(2, 2)}
    both = [net(x, 499, e, added_cond_kwargs=added).sample for e in (prompts, empty.expand(2, 5, 4))]
    rounding = {"rtol": 1e-4, "atol": 1e-4}  # one network in float32, in batches of 2 and of 4, times 7.5
    score = model.bind(encoder_hidden_states=prompts, added_cond_kwargs=added)
    torch.testing.assert_close(score.noise(x, 0.5), both[0], **rounding)
    given = {"encoder_hidden_states": prompts, **added}
    negative = {"encoder_hidden_states": empty, **added}
    guided = classifier_free(model, given, 7.5, negative=negative)
    torch.testing.assert_close(guided.noise(x, 0.5), both[1] + 7.5 * (both[0] - both[1]), **rounding)


def test_a_transformer_of_flow_matching(monkeypatch) -> None:
    """SD3's: its timestep is the fourth argument."""
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=4,
        caption_projection_dim=8,
        pooled_projection_dim=3,
        pos_embed_max_size=4,
    ).eval()
    prompts, pooled = normals(2, 5, 4, seed=1), normals(2, 3, seed=2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    score = from_diffusers(net, scheduler).bind(encoder_hidden_states=prompts, pooled_projections=pooled)

    def called(x: Tensor, t: Tensor) -> Tensor:
        return net(x, encoder_hidden_states=prompts, pooled_projections=pooled, timestep=t.expand(2)).sample

    ours = sample(score, SHAPE, x=normals(*SHAPE), **diffusers_sampling(scheduler, 8))
    assert_equal(ours.x, their_run(monkeypatch, scheduler, called, 8))


def test_a_transformer_that_takes_time_in_units_of_its_own(monkeypatch) -> None:
    """Flux: t from 0 to 1, and positions that are no conditions."""
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=4,
        pooled_projection_dim=3,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    fixed = {"img_ids": torch.arange(18.0).reshape(6, 3), "txt_ids": torch.zeros(5, 3)}
    prompts, pooled, x = normals(2, 5, 4, seed=1), normals(2, 3, seed=2), normals(2, 6, 4)
    model = from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler(), fixed=fixed)
    score = model.bind(encoder_hidden_states=prompts, pooled_projections=pooled)
    told = {"encoder_hidden_states": prompts, "pooled_projections": pooled, **fixed}
    velocity = net(x, timestep=torch.tensor([0.3, 0.3]), **told).sample
    # ε - x_0 of the model, in float32; a wrong unit of time would change the answer by its own size
    torch.testing.assert_close(score.expect(x, 0.3, -1.0, 1.0), velocity, rtol=1e-4, atol=1e-5)
    half = copy.deepcopy(model).bfloat16()
    assert half.net.fixed_img_ids.dtype == torch.bfloat16 and set(half.state_dict()) == set(model.state_dict())


def test_scores_of_the_variance_exploding_networks_of_score_sde(unet) -> None:
    model = from_diffusers(unet, diffusers.ScoreSdeVeScheduler(sigma_max=50.0))
    assert isinstance(model.sde, VE)
    x, t = normals(*SHAPE), 0.4
    sigma = model.sde.sigma(t).float()
    torch.testing.assert_close(model(x, t), unet(x, sigma.expand(2)).sample, rtol=1e-4, atol=1e-5)  # float32


def test_unknown_conditions_and_networks_that_work_otherwise_are_refused(unet, dit) -> None:
    model = from_diffusers(unet, diffusers.EulerDiscreteScheduler())
    with pytest.raises(TypeError, match=r"'prompt'.*class_labels"):
        model.bind(prompt=normals(2, 3)).denoise(normals(*SHAPE), 0.5)
    with pytest.raises(TypeError, match="fixed takes no 'ids'"):
        from_diffusers(unet, diffusers.EulerDiscreteScheduler(), fixed={"ids": 1})
    with pytest.raises(ValueError, match="9 channels and answers 4"):
        from_diffusers(
            diffusers.UNet2DModel(
                in_channels=9,
                out_channels=4,
                block_out_channels=(8,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=4,
            ),
            diffusers.EulerDiscreteScheduler(),
        )

    class ZImageTransformer2DModel(nn.Module):
        def forward(self, x, t):
            return x

    with pytest.raises(ValueError, match="sign of its answer"):
        from_diffusers(ZImageTransformer2DModel(), diffusers.FlowMatchEulerDiscreteScheduler())
    place = {"__module__": "diffusers.models.transformers.new"}
    new = type("NewTransformer2DModel", (nn.Identity,), place)()
    with pytest.warns(UserWarning, match="pipelines of NewTransformer2DModel hand it the time is not known"):
        from_diffusers(new, diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(TypeError, match="a score already"):
        from_diffusers(model, diffusers.EulerDiscreteScheduler())


# ---- a model like any other ----


def test_it_is_a_module_that_trains_copies_and_pickles(unet) -> None:
    net = copy.deepcopy(unet).train()
    model = from_diffusers(net, diffusers.DDIMScheduler(**PLAIN))
    assert isinstance(model, ScoreModel) and isinstance(model, nn.Module) and model.training
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    x0, eps = normals(*SHAPE), normals(*SHAPE, seed=1)
    t = torch.tensor([0.5, 0.123], dtype=F64)
    dsm_loss(model, x0, t, eps).mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    model.zero_grad()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.eval(), model.eval()
        assert torch.equal(other.denoise(x0, t), model.denoise(x0, t))
    double = copy.deepcopy(model).double()
    assert double.denoise(x0.double(), t).dtype == F64
    half = copy.deepcopy(model).bfloat16()
    # bfloat16 keeps 8 bits of a network's answer
    torch.testing.assert_close(half.noise(x0, t), model.noise(x0, t), rtol=0.1, atol=0.1)


def test_all_of_its_modules_are_in_evaluation_mode_while_samples_are_drawn(unet) -> None:
    net = copy.deepcopy(unet).train()
    model = from_diffusers(net, diffusers.DDIMScheduler(**PLAIN))
    modes = []
    net.conv_out.register_forward_hook(lambda module, *_: modes.append({m.training for m in net.modules()}))
    sample(model, SHAPE, solver=DDIM(), steps=2, seed=0)
    assert modes == [{False}] * 3 and all(m.training for m in model.modules())


def test_a_trained_checkpoint_is_loaded_around_the_network(tmp_path, unet) -> None:
    scheduler = diffusers.DDIMScheduler(**PLAIN)
    model = from_diffusers(copy.deepcopy(unet), scheduler)
    for _ in train(model, from_tensors(normals(8, *SHAPE[1:])), steps=2, batch_size=4, folder=tmp_path, progress=False):
        pass
    fresh = from_diffusers(copy.deepcopy(unet), scheduler)
    back = load_model(tmp_path, net=fresh.net, sde=fresh.sde, ema=False)
    assert same(back, model.eval()) and not same(back, from_diffusers(unet, scheduler))


def test_it_is_seen_under_other_schedules(unet) -> None:
    model = from_diffusers(unet, diffusers.DDIMScheduler(**PLAIN))
    other = model.under(VP(t_min=0.01))
    x, t = normals(*SHAPE), 0.6
    own = model.sde.t_of_log_snr(other.sde.log_snr(t))
    # VP and the chain are both variance preserving: the same x
    torch.testing.assert_close(other.noise(x, t), model.noise(x, own), rtol=1e-5, atol=1e-5)
    assert sample(other, SHAPE, steps=4, seed=0).x.isfinite().all()


# ---- schedulers by config and by path, networks and pipelines by path ----


def same(model: ScoreModel, other: ScoreModel) -> bool:
    x, t = normals(*SHAPE), 0.37
    return torch.equal(model.denoise(x, t), other.denoise(x, t))


@pytest.mark.parametrize(
    ("scheduler", "sde"),
    [
        (diffusers.DDIMScheduler(beta_schedule="scaled_linear", **PLAIN), ChainSDE),
        (diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"), ChainSDE),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), RectifiedFlow),
        (diffusers.EDMEulerScheduler(sigma_data=0.7), EDM),
    ],
)
def test_a_scheduler_by_its_config_and_its_files(tmp_path, unet, scheduler, sde) -> None:
    model = from_diffusers(unet, scheduler)
    assert isinstance(model.sde, sde)
    scheduler.save_pretrained(tmp_path / "scheduler")
    for given in (
        scheduler.config,
        tmp_path / "scheduler",
        str(tmp_path),
        tmp_path / "scheduler/scheduler_config.json",
    ):
        assert same(from_diffusers(unet, given), model)
    given = diffusers_grid(tmp_path, 10)
    assert torch.equal(given, diffusers_grid(scheduler, 10))
    assert scheduler.num_inference_steps is None if hasattr(scheduler, "num_inference_steps") else True


def test_a_network_and_a_pipeline_by_path(tmp_path, unet) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **PLAIN)
    model = from_diffusers(unet, scheduler)
    pipeline = diffusers.DDIMPipeline(unet, scheduler)
    assert same(from_diffusers(pipeline), from_diffusers(unet, pipeline.scheduler))
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    assert same(from_diffusers(pipeline, other), from_diffusers(unet, other))
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    assert same(from_diffusers(tmp_path / "pipe"), model)
    assert same(from_diffusers(str(tmp_path / "pipe" / "unet"), tmp_path / "pipe"), model)
    assert same(from_diffusers(tmp_path / "pipe", other), from_diffusers(unet, other))
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        from_diffusers(tmp_path / "pipe" / "unet")
    with pytest.raises(FileNotFoundError, match="snapshot_download"):
        from_diffusers("google/ddpm-cat-256")
    weights = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert same(from_diffusers(tmp_path / "pipe"), model)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path, unet) -> None:
    unet.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"safetensors.*UNet2DModel\.from_pretrained\(.*use_safetensors=False"):
        from_diffusers(tmp_path, diffusers.DDIMScheduler(**PLAIN))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ('{"_class_name": "Exploit"}', "must be a SchedulerMixin of the installed diffusers"),
        ('{"_class_name": "UNet2DModel"}', "must be a SchedulerMixin"),
        ('{"_class_name": "os.system"}', "must be a SchedulerMixin"),
        ('{"beta_start": 0.1}', "_class_name is missing"),
    ],
)
def test_files_of_strangers_are_refused(tmp_path, unet, text, words) -> None:
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        from_diffusers(unet, tmp_path)


# ---- what is not served is refused by name ----


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (diffusers.LCMScheduler(), "LCMScheduler: its networks are distilled"),
        (diffusers.KarrasVeScheduler(), r"KarrasVeScheduler: its pipeline shows the network \(x \+ 1\)/2"),
        (diffusers.VQDiffusionScheduler(num_vec_classes=4), "discrete"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), "prediction_type"),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="v_prediction", use_flow_sigmas=True),
            "prediction_type",
        ),
        (diffusers.DDPMScheduler(trained_betas=[0.1, 0.0, 0.1], num_train_timesteps=3), "alphas_cumprod must fall"),
        ({"num_vec_classes": 4}, "must say _class_name"),
    ],
)
def test_schedulers_that_are_not_served(unet, scheduler, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_diffusers(unet, scheduler)


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (diffusers.UniPCMultistepScheduler(), "UniPCMultistepScheduler are those of no solver here"),
        (diffusers.PNDMScheduler(), "PNDMScheduler asks its network between"),
        (diffusers.DPMSolverMultistepScheduler(solver_order=3), "solver_order=3"),
        (
            diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
            "'dpmsolver'",
        ),
        (diffusers.DDPMScheduler(variance_type="learned_range"), "learned_range"),
        (diffusers.DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing"), "fixed_large"),
        (diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "mu must be given"),
        (diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"), "log_linear"),
    ],
)
def test_runs_that_are_not_served(scheduler, words) -> None:
    with pytest.raises(ValueError, match=words):
        diffusers_sampling(scheduler, 10)


def test_times_alone_for_a_solver_of_ones_choice(unet) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="v_prediction")
    grid = diffusers_grid(scheduler, 10)
    scheduler.set_timesteps(10)
    torch.testing.assert_close(grid, (scheduler.timesteps.double() + 1) / 1000, rtol=0, atol=0)
    assert sample(from_diffusers(unet, scheduler), SHAPE, solver=UniPC(), grid=grid, seed=0).nfe == 10


def test_steps_that_miss_their_own_next_timestep_are_said() -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace", **PLAIN)
    with pytest.warns(UserWarning, match="steps to timestep 899 and then asks its network at 888"):
        diffusers_grid(scheduler, 10)
    with pytest.raises(ValueError, match="eta is an option of DDIM"):
        diffusers_sampling(diffusers.DDPMScheduler(**PLAIN), 10, eta=0.5)
    with pytest.raises(TypeError, match=r"set_timesteps beside the steps, timesteps; got mu"):
        diffusers_grid(diffusers.DDPMScheduler(), 10, mu=0.5)
    with pytest.raises(ValueError, match="refuses them"):
        diffusers_grid(diffusers.DDPMScheduler(), 2000)
    with pytest.raises(ValueError, match="one evaluation"):
        diffusers_grid(diffusers.DDPMScheduler(), 1)


def test_the_counterparts_of_their_schedulers() -> None:
    found = diffusers_sampling(diffusers.DDPMScheduler(**PLAIN), 10)
    assert found["solver"] == Ancestral() and found["denoise"] and found["eta"] == 1.0
    assert diffusers_sampling(diffusers.DDIMScheduler(**PLAIN), 10, eta=0.3)["solver"] == DDIM(eta=0.3)
    ends = diffusers_sampling(diffusers.DDIMScheduler(set_alpha_to_one=False, steps_offset=1, **PLAIN), 10)
    assert not ends["denoise"] and ends["grid"][-2:].tolist() == [0.002, 0.001]


# ---- DPM-Solver++ (2M) by the formulas of its paper ----


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize(("eta", "order"), [(0.0, 2.0)])
def test_the_solver_has_its_order(kind, eta, order) -> None:
    """On a Gaussian, whose probability-flow ODE is solved in closed form."""
    sde, x = VP(), torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    score = Gaussian(torch.tensor([1.0, -2.0], dtype=F64), torch.diag(torch.tensor([0.25, 4.0], dtype=F64))).score(sde)

    def solved(steps: int, solver) -> Tensor:
        grid = sde.t_of_log_snr(torch.linspace(float(sde.log_snr(0.8)), float(sde.log_snr(0.05)), steps + 1, dtype=F64))
        return solver.solve(Reverse(score, eta=eta), x, grid, denoise=False).x

    truth = solved(400, UniPC())  # of order 3: errors of 1e-8
    errors = [(solved(n, DPMSolver2M(kind)) - truth).abs().max().item() for n in (20, 40, 80)]
    rates = [torch.log2(torch.tensor(a / b)).item() for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.25 for rate in rates), (errors, rates)


def test_the_solver_steps_to_the_data_where_the_grid_does() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    model = from_diffusers(lambda x, t: 0.1 * x, scheduler)
    grid = diffusers_grid(scheduler, 6)
    x = normals(*SHAPE)
    for eta in (0.0, 1.0):
        process, noise = Reverse(model, eta=eta), 0
        to_end = DPMSolver2M().solve(process, x, torch.cat([grid, torch.zeros(1, dtype=F64)]), noise, denoise=False)
        torch.testing.assert_close(
            to_end.x, DPMSolver2M().solve(process, x, grid, noise, denoise=True).x, rtol=1e-5, atol=1e-5
        )
