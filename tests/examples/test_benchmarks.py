"""The pieces of examples/benchmarks/ that every comparison rests on, without the peers."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import save_file
from scipy.integrate import solve_ivp
from torch import Tensor, distributions

import card
import contest
import gpu
import loop_overhead
import ode
import overhead
import report
import roughness
import scoresde as ss
import sde
from contest import Result, Setting, learned, mixtures, problems, timing
from contest.problems import Guided, Mixture, Problem, Rough
from contest.reference import Accuracy, end_points, reference
from peers import edm, kdiffusion, tournament
from peers import grids as peer_grids
from peers.peer import Oracle, Peer
from scoresde import grids
from scoresde.data import from_tensors
from scoresde.nn import MLP, UNet
from scoresde.problems import Gaussian
from scoresde.train import train

SCRIPTS = sorted(path.stem for path in Path(ode.__file__).parent.glob("*.py"))


def gaussian(process: ss.SDE) -> Mixture:
    """A problem whose flow is known in closed form."""
    axes = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    return Mixture("gaussian", process, Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), axes))


RESULT = Result("mixture2d-edm", 4, 4, "peer", "karras", 8, 1e-9, 1e-9)
SDES = [ss.VP(0.1, 20.0, t_min=1e-3), ss.EDM(T=80.0, t_min=0.002)]


@pytest.fixture(scope="module")
def small() -> Setting:
    """Sixty-four samples of the plane under EDM."""
    return contest.setting("mixture2d-edm", 64, cache=None)


def test_the_mixtures_are_as_described() -> None:
    plane, digits = problems.mixture2d(), problems.digits64()
    assert plane.event == (2,) and len(plane.weights) == 8 and digits.event == (64,) and len(digits.weights) == 10
    assert float(plane.weights.max() / plane.weights.min()) > 1.2
    spread = plane._spectrum.sqrt()
    assert 0.1 <= float(spread.min()) < float(spread.max()) <= 0.3
    x = digits.sample(4000, 0)
    # the mean variance is 1 + ridge; of 4000 x 64 correlated coordinates it has a relative error of about 1/sqrt(4000)
    assert float(x.var(0).mean()) == pytest.approx(1.01, abs=0.06)
    assert problems.problem("digits64-vp").dimension == 64
    with pytest.raises(ValueError, match="the problems are"):
        problems.problem("digits64")


@pytest.mark.parametrize("process", SDES, ids=lambda s: type(s).__name__)
def test_the_denoiser_that_peers_get_is_that_of_the_score(process: ss.SDE) -> None:
    problem = Mixture("plane", process, problems.mixture2d())
    x = problem.start(16)
    for t in (process.T, 0.3 * process.T, process.t_min):
        alpha, sigma = process.alpha(t), process.sigma(t)
        expected = (x + sigma**2 * problem.score(x, torch.tensor(t, dtype=torch.float64))) / alpha
        # the two ways differ by rounding, which σ²/α magnifies by at most 80²
        torch.testing.assert_close(problem.denoise(x / alpha, float(sigma / alpha)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", SDES, ids=lambda s: type(s).__name__)
def test_the_end_points_are_the_flow_s(process: ss.SDE, tmp_path: Path) -> None:
    problem = gaussian(process)
    x = problem.start(8)
    exact = problem.mixture.flow(process, x, process.T, process.t_min)  # type: ignore[attr-defined]
    ends = end_points(problem, x, cache=tmp_path)
    torch.testing.assert_close(ends, exact, rtol=0, atol=1e-10)  # a hundredth of what two runs may differ by, and more
    (file,) = tmp_path.iterdir()
    kept = torch.load(file, weights_only=True)
    assert kept["agreement"] <= problem.accuracy.tolerance and kept["steps"] >= 2 * problem.accuracy.first
    torch.save({**kept, "ends": torch.zeros_like(x)}, file)
    assert not end_points(problem, x, cache=tmp_path).any()  # read back
    assert end_points(problem, x + 1, cache=tmp_path).any()  # another question
    assert not torch.equal(problem.law(4, 0), problem.law(4, 1))


def test_a_trained_network_is_a_problem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1, num_classes=3)
    data = from_tensors(torch.randn(12, 2), torch.arange(12) % 3)
    for _ in train(ss.ScoreModel(net, ss.VP()), data, steps=5, batch_size=4, lr=0.1, folder=tmp_path, progress=False):
        pass
    problem = problems.problem(str(tmp_path))
    assert isinstance(problem, learned.Learned) and problem.dimension == 2
    x, t, model = problem.start(5), torch.tensor(0.4, dtype=torch.float64), problem.model
    alpha, sigma = problem.sde.alpha(t), problem.sde.sigma(t)
    label = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(problem.score(x, t), model(x, t, {"label": label}))
    # σ/α and back to t costs rounding
    torch.testing.assert_close(
        problem.denoise(x / alpha, sigma / alpha), model.denoise(x, t, {"label": label}), rtol=1e-9, atol=1e-9
    )
    assert not torch.equal(model(x, t, {"label": label}), model(x, t, {"label": label.roll(1)}))  # labels matter to it
    order = ["k-diffusion heun", "k-diffusion lms order 2", "k-diffusion euler", "k-diffusion dpm_2"]
    results = [dataclasses.replace(RESULT, solver=name, rms=1.0 + i) for i, name in enumerate(order)]
    assert {n for n, _, g in ode.field(problem.name, RESULT.budget, results) if g == RESULT.grid} == set(order[:3])
    assert len(ode.field(RESULT.problem, RESULT.budget, results)) > 500


@pytest.mark.parametrize("name", peer_grids.GRIDS)
@pytest.mark.parametrize("problem", ["mixture2d-vp", "mixture2d-edm"])
def test_peer_grids_run_down_from_end_to_end(name: str, problem: str) -> None:
    at = problems.problem(problem)
    for steps in (1, 2, 11):
        ratios = peer_grids.GRIDS[name](at, steps)
        assert ratios.dtype == torch.float64 and len(ratios) == steps + 1
        assert (float(ratios[0]), float(ratios[-1])) == at.ratios and bool((ratios.diff() < 0).all())


def test_peer_grids_that_we_have_too() -> None:
    for name in ("mixture2d-vp", "mixture2d-edm"):
        at = problems.problem(name)
        for theirs, ours in (("karras", grids.karras), ("exponential", grids.log_snr)):
            times = ours(at.sde, 9)
            torch.testing.assert_close(peer_grids.GRIDS[theirs](at, 9), at.sde.sigma(times) / at.sde.alpha(times))
    at = problems.problem("mixture2d-vp")
    times = grids.uniform(at.sde, 9)
    torch.testing.assert_close(peer_grids.GRIDS["vp"](at, 9), at.sde.sigma(times) / at.sde.alpha(times))


def test_evaluate_spends_what_it_may_and_converges(small: Setting) -> None:
    errors = {}
    for nfe in (7, 80, 160):
        result = contest.evaluate(ss.Heun(), grids.karras, small, nfe)
        assert result.nfe == nfe - nfe % 2 and result.samples == 64 and result.problem == "mixture2d-edm"
        assert result.trimmed < result.rms and result.solver.startswith("scoresde Heun") and result.grid == "karras"
        errors[nfe] = result.rms
    assert 1.7 < math.log2(errors[80] / errors[160]) < 2.3  # second order
    other = contest.evaluate(ss.Heun(), contest.parsed("Heun@karras(rho=3.0)")[1], small, 80)
    assert other.rms != errors[80] and other.grid == "karras(rho=3.0)"
    with pytest.raises(ValueError, match="for one step"):
        contest.evaluate(ss.Heun(), grids.karras, small, 1)


def test_most_steps() -> None:
    for used in (lambda n: n, lambda n: 2 * n, lambda n: 2 * n - 1, lambda n: 3 * n - n // 2, lambda n: n // 3 + 1):
        steps = contest.most(used, 11, "x")
        assert used(steps) <= 11 and (steps == 12 or used(steps + 1) > 11)  # 12: one step may be free


def test_the_default_is_sample_s(small: Setting) -> None:
    result = contest.evaluate(None, None, small, 12)
    assert result.nfe <= 12 and math.isfinite(result.rms) and result.solver == "scoresde default"


def test_names_of_solvers_and_grids() -> None:
    solver, grid = contest.parsed("Heun(churn=0.5)@log_snr")
    assert solver == ss.Heun(churn=0.5) and grid is grids.log_snr
    assert contest.parsed("default") == (None, None)
    for bad in ("Haun@karras", "Heun@carras", "Heun(3)", "Heun+1"):
        with pytest.raises(ValueError, match=r"has no|give a solver"):
            contest.parsed(bad)


def test_distance_and_its_trimmed_form() -> None:
    exact = torch.zeros(100, 4)
    x = exact.clone()
    x[:5] = 3.0  # the worst 5 %
    x[5:] = 1.0
    rms, trimmed = contest.distance(x, exact)
    assert rms == pytest.approx(math.sqrt(0.05 * 9 + 0.95)) and trimmed == pytest.approx(1.0)
    x[0] = math.nan
    assert contest.distance(x, exact)[0] == math.inf


def test_edm_heun_is_ours_with_an_euler_step_at_the_end() -> None:
    problem = gaussian(ss.EDM(T=80.0, t_min=0.002))
    x = problem.start(8)
    grid = grids.karras(problem.sde, 6)
    process = ss.Reverse(problem.score, 0.0)
    before = ss.Heun().solve(process, x, grid[:-1]).x
    expected = ss.DDIM().solve(process, before, grid[-2:]).x
    oracle = Oracle(problem)
    y = edm.heun(oracle, x, grid)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    assert oracle.calls == 11
    (peer,) = edm.ode().values()
    assert [peer.steps(n) for n in (10, 11)] == [5, 6]


def test_a_tournament_finds_the_best_and_counts(small: Setting) -> None:
    def spend(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
        return edm.heun(oracle, y, torch.cat([ratios, 0.5 * ratios[-1:]]))

    (heun,) = edm.ode().values()
    field = {
        "EDM Heun": heun,
        "fixed": dataclasses.replace(heun, any_grid=False),
        "needs 9": Peer("", heun.run, 1, 0, 9),
    }
    everybody = tournament.best_of(tournament.entries(field), small, 8, screen=64, keep=1)
    assert len(everybody) == len(peer_grids.GRIDS) + 1 and {r.nfe for r in everybody} == {7}
    assert {r.grid for r in everybody if r.solver == "fixed"} == {"its own"}
    few = tournament.best_of(tournament.entries(field), small, 8, screen=32, keep=2)
    assert contest.best(few).rms == contest.best(everybody).rms and len(few) < len(everybody)
    with pytest.raises(AssertionError, match="took"):
        tournament.measure("spender", Peer("", spend, per_step=2, last_free=1), "karras", small, 7)


def test_nested_noise_is_one_path() -> None:
    noise = kdiffusion.NestedNoise(torch.empty(100_000, dtype=torch.float64))
    torch.manual_seed(0)
    a, b, c = torch.tensor(3.0), torch.tensor(2.0), torch.tensor(0.5)
    first, whole, later = noise(a, b), noise(a, c), noise(c, torch.tensor(0.1))
    # standard errors of a variance and a correlation of 1e5 draws: 4.5e-3 and 3.2e-3, four of each
    assert float(first.var()) == pytest.approx(1, abs=0.018) and float(whole.var()) == pytest.approx(1, abs=0.018)
    assert float((first * whole).mean()) == pytest.approx(math.sqrt(1.0 / 2.5), abs=0.018)
    assert float((whole * later).mean()) == pytest.approx(0, abs=0.013)


def test_the_law_of_a_sampler() -> None:
    problem = problems.mixture("mixture2d-vp")
    least = sde.floor(problem, 500, 2, 16)
    assert least.distance == pytest.approx(math.sqrt(sum(d**2 for d in least.each) / 2))
    coarse, fine = (
        sde.evaluate(ss.EulerMaruyama(), grids.karras, problem, n, samples=500, repeats=1, slices=16) for n in (4, 60)
    )
    assert coarse.distance > 2 * fine.distance and (coarse.nfe, fine.nfe) == (4, 60)
    two = sde.evaluate(ss.PredictorCorrector(), grids.karras, problem, 7, samples=50, repeats=1, slices=4)
    assert two.nfe <= 7


def test_the_training_loops_take_turns_on_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = (lambda: UNet(1, width=4, multipliers=(1,), blocks=1, attention_levels=(), num_classes=10), (1, 4, 4))
    monkeypatch.setattr(loop_overhead, "NETWORKS", {"tiny": tiny})
    found = loop_overhead.measured("tiny", 4, 3, "cpu")
    assert found.low <= found.overhead <= found.high and found.bare_ms > 0
    assert "tiny | 4 |" in loop_overhead.table([found])


def test_the_overhead_s_contestants_and_timing() -> None:
    names = {type(s).__name__ for s in overhead.fixed_step()}
    assert {"EulerMaruyama", "DDIM", "Heun", "Ancestral"} <= names and not names & {"ProbabilityFlow", "TorchSDE"}
    order: list[str] = []
    seconds = timing.fastest({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and set(seconds) == {"a", "b"} and all(s < 1 for s in seconds.values())
    ratios = overhead.noise_ratios(overhead.Config(batch=2, event=(4,), steps=2, repeats=1))
    assert {r.name for r in ratios} >= {"BrownianNoise", "torchsde.BrownianInterval"}
    assert "met" in overhead.table([overhead.Ratio("g", "n", 1.0, "o", 1.25)])
    assert "missed" in overhead.table([overhead.Ratio("g", "n", 1.3, "o", 1.25)])


def test_results_go_through_files_into_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer, tuned = RESULT, dataclasses.replace(RESULT, grid="karras rho=3", rms=1e-10)
    contest.write(tmp_path / "peers_ode.jsonl", [peer, tuned])
    assert contest.read(tmp_path / "peers_ode.jsonl", Result) == [peer, tuned]
    files: dict[str, Any] = {
        "peers": tmp_path / "peers_ode.jsonl",
        "out": tmp_path / "ours_ode.jsonl",
        "cache": tmp_path,
    }
    ode.main(ode.Config(("Heun@karras",), ("mixture2d-edm",), (4,), samples=8, **files))  # the peers are not run again
    assert "peer, karras | 1.00e-09" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- ode -->\nold\n<!-- end ode -->\nafter\n", "utf-8")
    report.main(report.Config(tmp_path, page))
    text = page.read_text("utf-8")
    assert "old" not in text and "peer, karras rho=3 | 1.00e-10" in text and text.endswith("-->\nafter\n")
    with pytest.raises(ValueError, match="no place for the table"):
        report.filled("empty", {"ode": ""})


# -- the field's problems ----------------------------------------------------------------------------------------------


def density(problem: Mixture, t: float, label: Tensor | None = None) -> Any:
    """p_t, or that of one component for each sample, by torch.distributions: nothing of the library's formulas."""
    alpha, sigma, law = float(problem.sde.alpha(t)), float(problem.sde.sigma(t)), problem.mixture
    k, d = law.means.shape
    cov = law.covariances
    full = cov if cov.ndim == 3 else torch.diag_embed(cov.reshape(k, -1).expand(k, d))
    parts = distributions.MultivariateNormal(
        alpha * law.means, alpha**2 * full + sigma**2 * torch.eye(d, dtype=torch.float64)
    )
    if label is not None:
        return distributions.MultivariateNormal(parts.loc[label], parts.covariance_matrix[label])
    return distributions.MixtureSameFamily(distributions.Categorical(law.weights), parts)


def gradient(law: Any, x: Tensor) -> Tensor:
    """∇ log p(x), by autograd."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(law.log_prob(x).sum(), x)[0]


def by_scipy(problem: Problem, x: Tensor) -> Tensor:
    """The end points by steps that another program chooses."""

    def slope(log_ratio: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat).reshape(x.shape)
        return (y - problem.denoise(y, float(np.exp(log_ratio)))).numpy().ravel()

    y, span = x / problem.sde.alpha(problem.sde.T), tuple(math.log(r) for r in problem.ratios)
    run = solve_ivp(slope, span, y.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return torch.from_numpy(run.y[:, -1]).reshape(x.shape) * problem.sde.alpha(problem.sde.t_min)


def small_spectral(schedule: str = "vp") -> Mixture:
    return Mixture("small", problems.SDES[schedule](), mixtures.spectral(4, 48))


def test_the_laws_are_as_described() -> None:
    law = mixtures.spectral()
    variances, axes = mixtures.directions(law)
    assert law.event == (3072,) and axes is None and len(law.weights) == 10
    i = torch.arange(1, 3073, dtype=torch.float64)
    power = 1 / (i**1.3 * (1 + (i / 150) ** 1.2))
    # ten components of random loudness: the whole spectrum follows the power law to a factor
    level = (variances / power).log()
    assert float(level.std()) < 0.3 and float(variances[0] / variances[-1]) > 1e5
    assert [int(n) for n in law.means.shape] == [10, 3072]
    x = mixtures.heavy().sample(20_000, 0)
    # kurtosis 3 E[s⁴]/E[s²]² of one coordinate
    s2 = torch.tensor([0.1, 0.25, 0.6, 1.5, 4.0]) ** 2
    w = torch.tensor([0.3, 0.3, 0.2, 0.15, 0.05])
    expected = float(3 * (w * s2**2).sum() / (w * s2).sum() ** 2)
    assert expected > 20 and float((x[:, 0] / x[:, 0].std()).pow(4).mean()) == pytest.approx(expected, rel=0.2)
    assert float(x[:, 15].var() / x[:, 0].var()) == pytest.approx(1 / 16, rel=0.1)
    plane = mixtures.scales2d()
    near = torch.cdist(plane.means, plane.means).fill_diagonal_(torch.inf).amin(1)
    assert len(plane.weights) == 18 and float(near.max()) < 0.3 and float(plane.means.norm(dim=1).min()) > 0.5


@pytest.mark.parametrize("name", ["small", "heavy-edm", "scales2d-vp", "digits64-guided4-vp", "digits64-guided2-edm"])
def test_the_scores_are_gradients_of_the_densities(name: str) -> None:
    problem = small_spectral() if name == "small" else problems.mixture(name)
    x = problem.start(12)
    for t in (0.9 * problem.sde.T, 0.3 * problem.sde.T, 0.02 * problem.sde.T):
        at = problem.sde.alpha(t) * problem.mixture.sample(12, 1) + problem.sde.sigma(t) * x / x.std()
        expected = gradient(density(problem, t), at)
        if isinstance(problem, Guided):
            alone = gradient(density(problem, t, torch.arange(12) % 10), at)
            expected = expected + problem.scale * (alone - expected)
        # torch.distributions factorises the covariance, of a condition of up to 1e5
        torch.testing.assert_close(problem.score(at, t), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        alpha, sigma = problem.sde.alpha(t), problem.sde.sigma(t)
        by_score = (at + sigma**2 * expected) / alpha
        torch.testing.assert_close(problem.denoise(at / alpha, float(sigma / alpha)), by_score, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["small", "heavy-edm", "scales2d-edm", "digits64-guided8-vp", "digits64-rough-edm"])
def test_the_reference_is_another_method_s_too(name: str) -> None:
    problem = small_spectral("edm") if name == "small" else problems.problem(name)
    x = problem.start(3, 1)
    torch.testing.assert_close(reference(problem, x).ends, by_scipy(problem, x), rtol=0, atol=1e-8)


def test_a_reference_of_which_two_runs_do_not_agree_is_refused() -> None:
    class Hasty(Mixture):
        @property
        def accuracy(self) -> Accuracy:
            return Accuracy(1e-9, 2, 8)

    hasty = Hasty("hasty", problems.SDES["edm"](), problems.mixture2d())
    with pytest.raises(RuntimeError, match="runs of 4 and 8 steps differ by"):
        reference(hasty, hasty.start(4))


def test_what_a_sample_is_asked_about_does_not_depend_on_who_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems.mixture("mixture2d-guided2-vp")  # of eight components
    x, t = problem.start(20), torch.linspace(0.1, 1.0, 20, dtype=torch.float64)
    monkeypatch.setattr("contest.reference.GROUP", 12)
    together = reference(problem, x).ends  # eight, eight and four
    for first in (8, 16):
        alone = reference(problem, x[first : first + 4]).ends
        torch.testing.assert_close(together[first : first + 4], alone, rtol=0, atol=1e-9)
    whole = problem.score(x, t)
    monkeypatch.setattr(problems, "CHUNK", 12 * problem.mixture.means.numel())
    pieces = problem.score
    assert isinstance(pieces, problems.Piecewise) and pieces.rows == 8
    torch.testing.assert_close(pieces(x, t), whole)
    torch.testing.assert_close(pieces(x, 0.5)[8:16], problem.score(x[8:16], 0.5))


@pytest.mark.parametrize("name", ["digits64-rough-vp", "mixture2d-rough-edm"])
def test_a_rough_score_errs_by_what_it_says(name: str) -> None:
    rough = problems.mixture(name)
    exact = problems.mixture(name.replace("-rough", ""))
    assert isinstance(rough, Rough) and rough.fingerprint() != exact.fingerprint()
    waves, scale = rough.waves, float(mixtures.directions(rough.mixture)[0].mean().sqrt())
    sizes = []
    for t in (0.9 * rough.sde.T, 0.5 * rough.sde.T, 0.05 * rough.sde.T):
        alpha, sigma = rough.sde.alpha(t), rough.sde.sigma(t)
        y = (alpha * rough.mixture.sample(200, 0) + sigma * torch.randn(200, rough.dimension)) / alpha
        r = float(sigma / alpha)
        off = rough.denoise(y, r) - exact.denoise(y, r)
        unknown = scale * r / math.sqrt(scale**2 + r**2)
        each = off.square().mean(1).sqrt() / (problems.ROUGHNESS * unknown)
        assert float(each.max()) <= math.sqrt(2) + 1e-9  # the bound
        sizes.append(float(each.square().mean().sqrt()))
        torch.testing.assert_close(rough.score.denoise(alpha * y, t), rough.denoise(y, r), rtol=1e-8, atol=1e-9)
        # smooth: half a step changes it by half as much
        near, nearer = (waves(y * (1 + h), r) - waves(y, r) for h in (1e-4, 5e-5))
        torch.testing.assert_close(near, 2 * nearer, rtol=0, atol=1e-3 * float(near.abs().max()))
    assert all(0.7 < size < 1.3 for size in sizes)
    levels = torch.tensor([0.3, 3.0], dtype=torch.float64)
    both = rough.denoise(y[:2], levels)
    torch.testing.assert_close(both[1:], rough.denoise(y[1:2], 3.0))


def test_how_long_an_error_lasts() -> None:
    angle = 0.01 * torch.arange(400, dtype=torch.float64)
    turning = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    ratios = (-0.02 * torch.arange(400, dtype=torch.float64)).exp().tolist()
    assert roughness.half_life(turning, ratios) == pytest.approx(2 * math.acos(0.5), abs=0.02)
    assert roughness.half_life(torch.ones(5, 1, 2), ratios[:5]) == math.inf
    cells = roughness.row(0.1 * turning, ratios, torch.ones(400, dtype=torch.float64))
    assert cells[4] == "0.0707" and len(cells) == 6


def test_bands_add_up_to_the_whole() -> None:
    at = contest.setting("digits64-vp", 8, cache=None)
    x = at.exact + torch.randn(8, 64) * torch.linspace(0.1, 1.0, 64)
    found = contest.bands(x, at)
    variances, axes = at.problem.directions or (torch.empty(0), None)
    torch.testing.assert_close((axes * variances) @ axes.mT, moments(problems.digits64()), rtol=1e-9, atol=1e-9)  # type: ignore[operator, union-attr]
    mean = variances.mean()
    many = [int((variances >= mean).sum()), 0, int((variances < 0.01 * mean).sum())]
    many[1] = 64 - many[0] - many[2]
    assert found is not None and min(many) > 0
    whole = sum(n * band**2 for n, band in zip(many, found, strict=True) if band is not None) / 64
    assert math.sqrt(whole) == pytest.approx(contest.distance(x, at.exact)[0])
    plane = contest.setting("heavy-vp", 2, cache=None)
    assert (contest.bands(plane.exact, plane) or [])[2] is None  # heavy tails have no direction that is so weak
    x[0, 0] = math.nan
    assert contest.bands(x, at) == [math.inf] * 3


def moments(law: Any) -> Tensor:
    """The covariance of a mixture of full ones."""
    w, mean = law.weights, (law.weights[:, None] * law.means).sum(0)
    second = (w[:, None, None] * (law.covariances + law.means[:, :, None] * law.means[:, None])).sum(0)
    return second - mean[:, None] * mean


def weights_folder(folder: Path, net: MLP | UNet, **about: Any) -> ss.ScoreModel:
    """What somebody might publish: a description and weights of half the precision, without the constants."""
    model = ss.ScoreModel(net, ss.VP(0.1, 12.0), "edm", 0.4)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.1 * torch.randn_like(p)).bfloat16())
    told = {"network": type(net).__name__, "config": dict(net.config), "sde": "VP(beta_min=0.1, beta_max=12.0)"}
    told |= {"predicts": "edm", "sigma_data": 0.4, **about}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    save_file(
        {k: v.detach().bfloat16().contiguous() for k, v in model.named_parameters()}, folder / "weights.safetensors"
    )
    return model


def test_a_folder_of_weights_is_a_problem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = weights_folder(tmp_path / "net", MLP(3, width=8, depth=1, num_classes=4), event_shape=[3])
    place, label, t = str(tmp_path / "net"), torch.tensor([0, 1, 2, 3, 0]), torch.tensor(0.4, dtype=torch.float64)
    plain, guided, free = (problems.problem(place + more) for more in ("", "@guided2", "@unconditional"))
    x = plain.start(5)
    expected = {plain: model.bind(label=label), free: model.bind()}
    expected[guided] = ss.classifier_free(model, {"label": label}, 2.0)
    found = {}
    for problem, score in expected.items():
        found[problem] = problem.score.denoise(x, t)
        assert found[problem].dtype == torch.float64 and problem.directions is None
        torch.testing.assert_close(found[problem], score.denoise(x.float(), t).double(), rtol=1e-5, atol=1e-5)
        alpha, sigma = problem.sde.alpha(t), problem.sde.sigma(t)
        torch.testing.assert_close(problem.denoise(x / alpha, sigma / alpha), found[problem], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(problem.score(x, t), (alpha * found[problem] - x) / sigma**2)
    assert not torch.allclose(found[plain], found[free]) and not torch.allclose(found[plain], found[guided])
    assert len({problem.fingerprint() for problem in expected}) == 3
    double = problems.problem(place + "@float64,guided2")
    assert isinstance(double, learned.Learned) and (plain.period, double.period, free.period) == (4, 4, 1)
    ends = {problem: reference(problem, x) for problem in (guided, double)}
    torch.testing.assert_close(ends[guided].ends, ends[double].ends, rtol=0, atol=1e-4)
    assert ends[double].agreement < 1e-7 and guided.accuracy != double.accuracy
    assert contest.evaluate(ss.Heun(), None, Setting(guided, x, ends[guided].ends), 40).bands is None


def test_a_folder_that_does_not_tell_enough(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights_folder(tmp_path, UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=()))
    place = str(tmp_path)
    shapes = [getattr(problems.problem(place + more), "event", None) for more in ("", "@1x8x8")]
    assert shapes == [(1, 32, 32), (1, 8, 8)]
    at = problems.problem(place + "@1x8x8")
    assert at.score(at.start(2), torch.tensor(0.5, dtype=torch.float64)).shape == (2, 64)
    for more, message in (
        ("@guided2", "no classes"),
        ("@twice", "after the @"),
        ("@guided2,unconditional", "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            problems.problem(place + more)
    weights_folder(tmp_path, MLP(3, width=8, depth=1))
    for change, message in (
        ({}, "does not tell the shape"),
        ({"predicts": None}, "does not tell predicts"),
        ({"network": "Sequential"}, "no network"),
        ({"sde": "VP(0.1)"}, "written as"),
        ({"sde": "Score()"}, "no SDE"),
        ({"network": "MLP", "config": {"dim": 3, "width": 8, "depth": 2}}, "not those of its network"),
    ):
        config = tmp_path / "config.json"
        before = json.loads(config.read_text())
        config.write_text(json.dumps({k: v for k, v in (before | change).items() if v is not None}))
        with pytest.raises(ValueError, match=message):
            learned.learned.__wrapped__(place)
        config.write_text(json.dumps(before))


def test_old_results_are_read_and_those_of_other_problems_stay(tmp_path: Path) -> None:
    line = {k: v for k, v in dataclasses.asdict(RESULT).items() if k != "bands"}
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(line) + "\n")
    assert contest.read(file, Result) == [RESULT] and RESULT.bands is None
    new = dataclasses.replace(RESULT, problem="spectral-vp", bands=[0.1, None, math.inf])
    flags = contest.ContestFlags(("default",), ("spectral-vp",), (4,), out=file)
    for _ in range(2):
        contest.compete(flags, lambda _: [], lambda *_: new, lambda *_: "")
    assert contest.read(file, Result) == [RESULT, new]


def test_tables_of_bands_compare_like_with_like() -> None:
    ours = dataclasses.replace(RESULT, bands=[0.2, 0.1, 0.3])
    peer = dataclasses.replace(RESULT, solver="first", bands=[0.1, 0.2, 0.3])
    worse = dataclasses.replace(peer, solver="second", rms=1.0, trimmed=1.0)
    other = dataclasses.replace(peer, solver="third", samples=9, rms=1e-12, trimmed=1e-12)
    table = ode.banded(RESULT.problem, [worse, peer, other], [ours])
    assert "first" in table and "2.0e-01 / 1.0e-01 = 2 |" in table and "= 0.5 |" in table
    assert "third" not in ode.table(RESULT.problem, [other, worse, peer], [ours])
    assert "| – | – | – |" in ode.table(RESULT.problem, [other], [ours])
    for without in (RESULT, dataclasses.replace(ours, bands=[0.2, 0.1, None])):
        assert ode.banded(RESULT.problem, [peer], [without]) == ""


def test_fewer_samples_and_peers_where_an_evaluation_takes_long() -> None:
    assert ode.sizes(ode.Config(), "digits64-vp") == (1000, 128) and ode.sizes(ode.Config(), "spectral-vp") == (16, 2)
    assert sde.sizes(sde.Config(samples=50), problems.mixture("spectral-edm")) == (50, 200)
    name = "digits64-guided2-vp"
    few = ode.field(name, RESULT.budget, [dataclasses.replace(RESULT, solver="k-diffusion heun")], few=True)
    assert [(n, g) for n, _, g in few] == [("k-diffusion heun", "karras")]
    assert (
        len(ode.field(name, RESULT.budget, [])) == len(ode.field("heavy-vp", RESULT.budget, [RESULT], few=True)) > 500
    )


def test_the_law_of_thousands_of_coordinates() -> None:
    problem = sde.law("spectral-edm")
    few = sde.evaluate(ss.EulerMaruyama(), grids.karras, problem, 3, samples=12, repeats=1, slices=4)
    assert few.nfe == 3 and math.isfinite(few.distance)
    for name in ("digits64-guided2-vp", "digits64-rough-vp"):
        with pytest.raises(ValueError, match="laws that are known"):
            sde.law(name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_lines_explain_themselves(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script of examples/benchmarks/, found by looking there."""
    config = importlib.import_module(script).Config
    with pytest.raises(SystemExit) as done:
        tyro.cli(config, args=["--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert all(f"--{field.name.replace('_', '-')}" in shown for field in dataclasses.fields(config))


def test_the_script_for_a_gpu_keeps_to_its_seconds_and_loses_nothing(tmp_path: Path) -> None:
    """What fails is told, what does not fit is left out, and the file is whole after each section."""

    def one(bench: card.Bench) -> Any:
        yield {"figure": 1.0}
        assert json.loads((tmp_path / "gpu.json").read_text())["sections"] == {}

    def fails(bench: card.Bench) -> Any:
        yield {"figure": 2.0}
        assert "one" in json.loads((tmp_path / "gpu.json").read_text())["sections"]
        raise RuntimeError("out of memory")

    sections = [card.Section("one", 1, one), card.Section("fails", 1, fails), card.Section("long", 1e6, one)]
    found = card.run_sections(sections, card.Bench(torch.device("cpu"), 60.0, tmp_path))
    assert found == json.loads((tmp_path / "gpu.json").read_text())
    of = found["sections"]
    assert of["one"]["rows"] == [{"figure": 1.0}] and "error" not in of["one"]
    assert of["fails"]["rows"] == [{"figure": 2.0}] and "out of memory" in of["fails"]["error"]
    assert of["long"]["rows"] == [] and "were left of 1000000" in of["long"]["left out"]


@pytest.mark.parametrize("section", ["graphs", "checkpointing", "sampling"])
def test_sections_for_a_gpu_run_on_a_cpu(section: str, tmp_path: Path) -> None:
    """The smoke test; the sections with many cases are `--device cpu --small`."""
    gpu.main(gpu.Config(device="cpu", small=True, out=tmp_path, sections=(section,)))
    said = json.loads((tmp_path / "gpu.json").read_text())["sections"][section]
    assert said["rows"] and "error" not in said


def test_the_script_for_a_gpu_says_what_it_lacks() -> None:
    with pytest.raises(SystemExit, match="there is no section other"):
        gpu.main(gpu.Config(device="cpu", sections=("other",)))
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="there is no GPU here"):
            gpu.main(gpu.Config())
