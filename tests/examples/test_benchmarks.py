"""The pieces of examples/benchmarks/ that every comparison rests on, without the peers."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor

import contest
import ode
import overhead
import report
import scoresde as ss
import sde
from contest import Result, Setting, problems, timing
from contest.problems import Mixture
from peers import edm, kdiffusion, tournament
from peers import grids as peer_grids
from peers.peer import Oracle, Peer
from scoresde import grids
from scoresde.data import from_tensors
from scoresde.nn import MLP
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
    ends = problems.end_points(problem, x, cache=tmp_path)
    torch.testing.assert_close(ends, exact, rtol=0, atol=1e-10)  # what the docstring promises
    (file,) = tmp_path.iterdir()
    torch.save(torch.zeros_like(x), file)
    assert not problems.end_points(problem, x, cache=tmp_path).any()  # read back
    assert problems.end_points(problem, x + 1, cache=tmp_path).any()  # another question
    assert not torch.equal(problem.law(4, 0), problem.law(4, 1))


def test_a_trained_network_is_a_problem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1, num_classes=3)
    data = from_tensors(torch.randn(12, 2), torch.arange(12) % 3)
    for _ in train(ss.ScoreModel(net, ss.VP()), data, steps=5, batch_size=4, lr=0.1, folder=tmp_path, progress=False):
        pass
    problem = problems.problem(str(tmp_path))
    assert isinstance(problem, problems.Learned) and problem.dimension == 2
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


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_lines_explain_themselves(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script of examples/benchmarks/, found by looking there."""
    config = importlib.import_module(script).Config
    with pytest.raises(SystemExit) as done:
        tyro.cli(config, args=["--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert all(f"--{field.name.replace('_', '-')}" in shown for field in dataclasses.fields(config))
