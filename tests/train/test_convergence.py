"""Means with their standard errors, and what is said of convergence: how often it is said where it is not so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoresde.train import EarlyStopping, convergence
from scoresde.train.convergence import History, Judgement
from scoresde.train.standard_errors import Design, quantile, strata_of

RUNS = 80


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- standard errors ---------------------------------------------------------------------------------------------------


def test_the_standard_error_of_strata_by_hand() -> None:
    """Strata {1, 3} and {4, 4, 10}: variances 2 and 12, so (2·2 + 3·12)/5² where each draw is of another sample."""
    design = Design(torch.tensor([0, 0, 1, 1, 1]), torch.arange(5))
    mean, error = design.mean(torch.tensor([1.0, 3.0, 4.0, 4.0, 10.0]))
    assert mean == pytest.approx(4.4) and error == pytest.approx(math.sqrt(40) / 5)
    # the second sample has 3 and 10: residuals about the others of their strata 2 and 6, and 2·2·6 more
    shared = Design(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 3, 1]))
    assert shared.mean(torch.tensor([1.0, 3.0, 4.0, 4.0, 10.0]))[1] == pytest.approx(math.sqrt(64) / 5)
    # with -24 in its place the sum counts for nothing
    assert shared.mean(torch.tensor([3.0, 1.0, 4.0, 4.0, 10.0]))[1] == pytest.approx(math.sqrt(40) / 5)


@pytest.mark.parametrize("rounds", [1, 8])
@pytest.mark.parametrize("trend", [0.0, 6.0])
def test_the_standard_error_is_the_deviation_of_the_mean(rounds: int, trend: float) -> None:
    """Draws at random places of their cells, of samples that differ: over many repetitions (mean - truth)/error has
    variance 1, where the loss has a steep trend in the level, too; a plain standard error would then be far too large.
    """
    samples, repetitions = 64, 300
    ratios, plain = [], []
    for seed in range(repetitions):
        g = generator(seed)
        effect = torch.randn(samples, generator=g, dtype=torch.float64)  # of a sample, at all levels
        sample = torch.cat([torch.randperm(samples, generator=g) for _ in range(rounds)])
        count = len(sample)
        u = (torch.arange(count) + torch.rand(count, generator=g, dtype=torch.float64)) / count
        values = trend * u + effect[sample] + torch.randn(count, generator=g, dtype=torch.float64)
        mean, error = Design(strata_of(count, 8), sample).mean(values)
        ratios.append((mean - trend / 2) / error)
        plain.append((mean - trend / 2) / (values.std() / math.sqrt(count)))
    variance = torch.tensor(ratios).square().mean().item()
    # Student's t of about 50 degrees of freedom has variance 1.04; four deviations of the mean of 300 squares
    assert abs(variance - 1.04) < 4 * math.sqrt(2.2 / repetitions)
    if trend or rounds > 1:
        assert abs(torch.stack(plain).square().mean().item() - 1.04) > 4 * math.sqrt(2.2 / repetitions)


@pytest.mark.parametrize("freedom", [31, 100, 2000])
def test_quantiles_are_those_of_students_t(freedom: int) -> None:
    for probability in (0.05, 1e-3, 1e-6, 1e-9):
        expected = stats.t.isf(probability, freedom)
        assert quantile(probability, freedom) == pytest.approx(expected, rel=2e-4)  # the expansion, at 31 and 1e-9


def test_strata_hold_as_many_as_said_or_more() -> None:
    for count, size in ((1024, 8), (37, 8), (9, 8), (5, 8)):
        sizes = torch.bincount(strata_of(count, size))
        assert (
            int(sizes.sum()) == count and (int(sizes.min()) >= size or len(sizes) == 1) and int(sizes.max()) < 2 * size
        )


# -- the rule ----------------------------------------------------------------------------------------------------------


def judged(
    loss: Callable[[int], float],
    *,
    seed: int,
    evaluations: int = 30,
    draws: int = 256,
    change: float = 0.02,
    rule: EarlyStopping | None = None,
    walk: float = 0.0,
) -> tuple[list[Judgement], History]:
    """A run of so many evaluations, 100 steps apart, whose expected loss is known: draws differ by 30 %, and by
    ``change`` of noise at each evaluation, besides a random walk.
    """
    g = generator(seed)
    history = History(
        Design(strata_of(draws, 8), torch.randperm(draws, generator=g)), rule or EarlyStopping(), samples=draws
    )
    own = 1 + 0.3 * torch.randn(draws, generator=g, dtype=torch.float64)
    own = own / own.mean()  # the truth of these draws is the truth
    drift, found = torch.zeros(draws, dtype=torch.float64), []
    for k in range(1, evaluations + 1):
        drift = drift + walk * torch.randn(draws, generator=g, dtype=torch.float64)
        noise = change * torch.randn(draws, generator=g, dtype=torch.float64)
        found.append(history.judge(100 * k, own * loss(100 * k) + noise + drift))
        if found[-1].verdict in ("converged", "overfitting"):
            break
    return found, history


def verdicts(loss: Callable[[int], float], **options: float) -> tuple[Counter[str], float]:
    """How often what was said, and after how many evaluations on average."""
    runs = [judged(loss, seed=seed, **options)[0] for seed in range(RUNS)]  # type: ignore[arg-type]
    return Counter(run[-1].verdict for run in runs), sum(map(len, runs)) / RUNS


def at_the_tolerance(step: int) -> float:
    """Falls by just the tolerance, 1 % of itself, in each second half: never to be called converged."""
    return float(step ** -math.log2(1.01))


def test_converged_is_seldom_said_where_it_is_not_so() -> None:
    """In 5 % of runs at most, the hardest case; and never where the loss falls by twice the tolerance."""
    found, _ = verdicts(at_the_tolerance)
    # 5 % of 80, and three deviations of that number
    assert found["converged"] <= 4 + 3 * math.sqrt(4)
    assert not found["overfitting"]
    twice, _ = verdicts(lambda step: float(step ** -math.log2(1.02)), walk=0.01)
    assert not twice["converged"] and not twice["overfitting"]


@pytest.mark.parametrize("walk", [0.0, 0.01])
def test_overfitting_is_seldom_said_of_a_loss_that_rests(walk: float) -> None:
    """With a tolerance so small that it does not help, and noise alone between evaluations."""
    rule = EarlyStopping(tolerance=1e-9)
    runs = [judged(lambda step: 1.0, seed=seed, walk=walk, rule=rule)[0] for seed in range(RUNS)]
    said = sum(run[-1].verdict == "overfitting" for run in runs)
    assert said <= 4 + 3 * math.sqrt(4)


def test_the_alarms_of_all_evaluations_sum_to_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """At evaluation k each of k - 1 losses may be the lowest: Σ_k (k - 1) p_k = a Σ 1/(k (k - 1)) = a (1 - 1/n).

    Simulated runs do not tell: as all evaluations must agree, far fewer are wrong.
    """
    asked: list[float] = []
    monkeypatch.setattr(convergence, "quantile", lambda p, freedom: asked.append(p) or quantile(p, freedom))
    judged(lambda step: 1 + 1000 / step, seed=0, evaluations=40, rule=EarlyStopping(false_alarm=0.03))
    assert len(asked) == 39  # from the second on
    assert sum((k - 1) * p for k, p in enumerate(asked, 2)) == pytest.approx(0.03 * (1 - 1 / 40), rel=1e-9)


def test_what_is_so_is_said_soon() -> None:
    """Power: of 256 draws whose noise is 2 %. At rest it is said as soon as three evaluations are of the second half;
    a rise by 0.6 % from each to the next after one, two or three more than it takes to rise by 1 %.
    """
    rests, after = verdicts(lambda step: 1.0)
    assert rests["converged"] == RUNS and after < 6.1

    def rising(step: int) -> float:
        return 0.5 + 5 / math.sqrt(min(step, 1500)) + max(0, step - 1500) * 4e-5

    found, after = verdicts(rising)
    assert found["overfitting"] == RUNS and 18 < after < 23
    falls, _ = verdicts(lambda step: 5 * step**-0.5)
    assert falls["falling"] == RUNS


def test_a_network_that_fluctuates_has_not_converged_for_that() -> None:
    """Losses that fall by 2 % in each second half, and jump up and down by 1.5 % between evaluations."""
    found, _ = verdicts(lambda step: step ** -math.log2(1.02) * (1.015 if step % 200 else 1.0))
    assert not found["converged"] and not found["overfitting"]


def test_too_few_samples_say_undecided() -> None:
    """Of a loss at rest, whose paired differences spread by 5 %: 1 % cannot be told from nothing."""
    found, _ = verdicts(lambda step: 1.0, change=0.3, draws=64)
    assert found["converged"] + found["overfitting"] <= 4 + 3 * math.sqrt(4)
    assert found["undecided"] > 0.9 * RUNS


def test_a_judgement_compares_with_the_lowest_until_half_way_and_of_all() -> None:
    design = Design(strata_of(32, 8), torch.arange(32))
    history = History(design, EarlyStopping(patience=2), samples=32, begin=150)
    losses = {100: 1.0, 200: 3.0, 300: 2.0, 400: 2.5, 500: 2.6, 600: 2.7}
    seen: dict[int, Judgement] = {}
    for step, loss in losses.items():
        seen[step] = history.judge(step, torch.full((32,), loss, dtype=torch.float64))
    assert [one.before for one in seen.values()] == [None, None, None, 200, 200, 300]  # 100 is of the warm-up
    assert {one.best_step for one in seen.values()} == {100} and seen[400].above_best == 1.5
    assert [seen[step].fall for step in (400, 500, 600)] == [1.0, 1.0, -0.5]  # the lowest since: at 300, 300, 400
    assert history.judge(700, torch.full((32,), 0.5, dtype=torch.float64), kept=False).best_step == 700
    assert history.count == 6 and history.best == 100


def test_few_evaluations_are_kept_and_what_is_said_is_the_same(losses: int = 300) -> None:
    """However many there are: as with all of them, but for those that stand nearer than 1/32 of the steps; and a
    resumed history says what the uninterrupted one says.
    """
    whole, g = judged(lambda step: 10 * step**-0.5, seed=3, evaluations=losses)[1], generator(5)
    assert len(whole.steps) <= 36 and whole.count == losses
    other = History(whole._design, EarlyStopping(), samples=256)
    state, kept = whole.state()
    other.load_state(state["count"], state["steps"], kept)
    for k in range(losses + 1, losses + 60):
        values: Tensor = torch.rand(256, generator=g, dtype=torch.float64) + k % 3
        assert whole.judge(100 * k, values) == other.judge(100 * k, values)
    assert other.steps == whole.steps


@pytest.mark.parametrize("change", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"false_alarm": 2}, {"patience": 0}])
def test_a_rule_that_makes_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(EarlyStopping(), **change)
