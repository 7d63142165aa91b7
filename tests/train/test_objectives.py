"""What a run minimises: a weighting learned along, times that adapt, couplings; on, off, resumed and told."""

from __future__ import annotations

import json
import shutil
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import classifier, mlp, points, trained, weights
from torch import Tensor

from scoresde import times
from scoresde.losses import OptimalTransport, Uncertainty, coupled_noise, dsm_loss, edm, simple
from scoresde.models import ScoreModel
from scoresde.models.conditions import TrainedWith
from scoresde.train import CheckpointError, Run, TrainOptions, describe, load_model, train, train_classifier
from scoresde.train.draws import DataOrder, Uniforms, step_noise
from scoresde.train.folder import sealed
from scoresde.train.objective import Denoising

SGD = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "clip": None, "condition_dropout": 0.0}
ADAPTIVE = times.Stratified(times.AdaptiveTimes(times.LogSNRTime(), cells=4, every=3))


def companion(run: Run) -> Tensor:
    found = run._task.companion
    assert found is not None
    return found.weight.detach().clone()


def step_by_hand(run: Run, *, eps: Any = None) -> tuple[Any, ...]:
    """x_0, t, weights, noises and labels of the first step."""
    options, data = run.options, points()
    rows = DataOrder(len(data), options.batch_size, options.seed).indices(0)
    x0, label = data.data[rows], data.label[rows]  # type: ignore[index]
    t, weight = options.times.sample(run.model.sde, Uniforms.draw(options.seed, 0, options.batch_size).time)
    return x0, t, weight, step_noise(options.seed, 0, 0, x0), label


# -- the weighting that is learned along -------------------------------------------------------------------------------


def test_a_step_with_a_learned_weighting_is_that_of_the_loss_it_states() -> None:
    """Mean of L e^{-u} + u for each number; its gradient moves the model and u in one step of one optimizer."""
    given: dict[str, Any] = {"weighting": Uncertainty(edm(0.7)), "times": times.LogSNRTime(), "progress": False, **SGD}
    run = train(mlp(), points(), steps=2, batch_size=8, **given)
    u, model = Uncertainty(edm(0.7)).network(), mlp()
    u.load_state_dict(run._task.companion.state_dict())  # type: ignore[union-attr]
    x0, t, weight, eps, label = step_by_hand(run)
    per_number = dsm_loss(model, x0, t, eps, edm(0.7), conditions={"label": label}) / 2
    loss = (weight * u.weigh(per_number, model.sde, t)).mean()
    loss.backward()
    assert next(run).loss == pytest.approx(loss.item(), rel=1e-6)  # float32, in another order
    expected = torch.cat([(p - 0.1 * (0 if p.grad is None else p.grad)).detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(run.model), expected, rtol=1e-5, atol=1e-7)
    assert u.weight.grad is not None and u.weight.grad.any()
    torch.testing.assert_close(companion(run), -0.1 * u.weight.grad, rtol=1e-5, atol=1e-8)


def test_it_is_resumed_and_not_in_the_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weighting": Uncertainty("x0"), "decay": "cosine", "steps": 6}
    whole = trained(**options)
    trained(folder=tmp_path, save_every=3, keep=5, **options)
    shutil.rmtree(tmp_path / "step-00000006")
    again = trained(mlp(seed=1), folder=tmp_path, resume=True, **options)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert torch.equal(companion(again), companion(whole)) and companion(whole).any()
    assert set(load_model(tmp_path).state_dict()) == set(mlp().state_dict())
    assert "weighting.safetensors" in describe(tmp_path).files
    path = describe(tmp_path).path / "weighting.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"weighting\.safetensors"):
        trained(folder=tmp_path, resume=True, **options)


def test_a_weighting_that_was_learned_must_be_given_again(tmp_path: Path) -> None:
    trained(steps=2, folder=tmp_path, weighting=Uncertainty())
    with pytest.raises(CheckpointError, match=r"learned along: give weighting=losses\.Uncertainty"):
        trained(steps=4, folder=tmp_path, resume=True)


def test_a_weighting_that_was_not_learned_before_begins_with_a_warning(tmp_path: Path) -> None:
    trained(folder=tmp_path)
    with pytest.warns(UserWarning, match="weighting: 'simple' -> 'Uncertainty"):
        again = trained(steps=6, folder=tmp_path, resume=True, weighting=Uncertainty())
    assert companion(again).any()


def test_its_seed_is_the_runs() -> None:
    frequencies = [Denoising(mlp(), TrainOptions(steps=1, batch_size=2, weighting=Uncertainty(), seed=seed)).companion
                   for seed in (0, 0, 1)]  # fmt: skip
    first, same, other = (one.frequency for one in frequencies if one is not None)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_an_instance_of_an_optimizer_cannot_know_of_it() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"leaves out weighting\.weight"):
        trained(model, weighting=Uncertainty(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_classifier_has_none_of_these() -> None:
    for name, value in {"weighting": Uncertainty(), "coupling": OptimalTransport()}.items():
        with pytest.raises(TypeError, match=f"{name} is an option of training a score model"):
            train_classifier(classifier(), points(), steps=1, batch_size=8, **{name: value})


# -- times that adapt --------------------------------------------------------------------------------------------------


def test_the_density_learns_from_the_losses_of_the_run_and_is_resumed(tmp_path: Path) -> None:
    """After each third step from the sums since; in the middle of three, too, a resumed run has them."""
    options: dict[str, Any] = {"times": ADAPTIVE, "steps": 10, "batch_size": 16}
    whole = trained(**options)
    learned = whole._gradient.times.density
    assert isinstance(learned, times.Stratified) and isinstance(learned.density, times.AdaptiveTimes)
    counts = 16 * 3 * (0.9**2 + 0.9 + 1)  # of three refreshes
    assert sum(learned.density.counts) == pytest.approx(counts, rel=1e-12)
    assert learned.density.masses.max() > 2 * learned.density.masses.min()
    trained(folder=tmp_path, save_every=5, keep=5, **options)
    shutil.rmtree(tmp_path / "step-00000010")
    assert json.loads((tmp_path / "step-00000005" / "training.json").read_text())["times"]["since"] is not None
    again = trained(mlp(seed=1), folder=tmp_path, resume=True, **options)
    assert again._gradient.times.density == learned
    assert torch.equal(weights(again.model), weights(whole.model))


def test_a_density_of_other_cells_begins_anew_with_a_warning(tmp_path: Path) -> None:
    trained(times=times.AdaptiveTimes(cells=4, every=2), folder=tmp_path)
    with pytest.warns(UserWarning, match="cells=4.*cells=8"):
        again = trained(times=times.AdaptiveTimes(cells=8, every=2), folder=tmp_path, resume=True, steps=7)
    learned: Any = again._gradient.times.density
    assert len(learned.squares) == 8


def test_it_starts_as_its_base() -> None:
    plain = trained(times=times.Stratified(times.LogSNRTime()), steps=3)
    adaptive = trained(times=ADAPTIVE, steps=3)
    torch.testing.assert_close(weights(adaptive.model), weights(plain.model), rtol=1e-5, atol=1e-7)  # times by rounding


def test_what_it_notes_are_the_weighted_losses_of_each_number() -> None:
    density = times.AdaptiveTimes(cells=2, every=1)
    run = train(mlp(), points(), steps=2, batch_size=8, times=density, progress=False, **SGD)
    x0, t, weight, eps, label = step_by_hand(run)
    terms = weight * dsm_loss(mlp(), x0, t, eps, simple, conditions={"label": label}) / 2
    uniforms = Uniforms.draw(0, 0, 8).time
    expected = density.seen(uniforms, terms.detach())
    next(run)
    found = torch.tensor(run._gradient.times.density.learned(), dtype=torch.float64)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "bad", [{"learned": [[1.0], [1.0]], "since": None}, {"learned": [], "since": 3}, {"since": None}]
)
def test_numbers_of_another_density_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    options: dict[str, Any] = {"times": ADAPTIVE, "folder": tmp_path}
    trained(**options)
    path = tmp_path / "step-00000004"
    content = json.loads((path / "training.json").read_text())
    (path / "training.json").write_text(json.dumps({**content, "times": bad}))
    config = json.loads((path / "config.json").read_text())
    data = (path / "training.json").read_bytes()
    config["files"]["training.json"] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (path / "config.json").write_text(json.dumps(sealed(config)))
    with pytest.raises(CheckpointError, match=r"training\.json"):
        trained(steps=6, resume=True, **options)


# -- couplings ---------------------------------------------------------------------------------------------------------


def test_a_coupled_step_has_the_noises_that_the_coupling_answers() -> None:
    run = train(mlp(), points(), steps=2, batch_size=8, coupling=OptimalTransport(), progress=False, **SGD)
    x0, t, _, eps, label = step_by_hand(run)
    eps = coupled_noise(x0, eps, conditions={"label": label})
    expected = dsm_loss(mlp(), x0, t, eps, conditions={"label": label}).mean() / 2
    plain = next(train(mlp(), points(), steps=2, batch_size=8, progress=False, **SGD)).loss
    found = next(run).loss
    assert found == pytest.approx(expected.item(), rel=1e-6) and abs(found / plain - 1) > 1e-3


def test_dropped_labels_are_coupled_among_themselves() -> None:
    """The coupling sees the conditions that the network sees."""
    seen: list[Tensor] = []

    def watch(x0: Tensor, eps: Tensor, conditions: Any) -> Tensor:
        seen.append(conditions["label"])
        return coupled_noise(x0, eps, conditions=conditions)

    run = trained(coupling=watch, condition_dropout=0.5, batch_size=32, steps=1)
    assert (seen[-1] == 3).sum() > 5 and run.model.coupling is not None and "watch" in run.model.coupling


def test_a_coupled_run_is_resumed_and_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "coupling": OptimalTransport(),
        "steps": 4,
        "folder": tmp_path,
        "save_every": 2,
        "keep": 5,
    }
    whole = trained(**options)
    shutil.rmtree(tmp_path / "step-00000004")
    again = trained(mlp(seed=1), resume=True, **options)
    assert torch.equal(weights(again.model), weights(whole.model))
    loaded = load_model(tmp_path)
    assert loaded.coupling == "optimal transport" and loaded.trained_with == whole.model.trained_with
    card = (loaded.save_pretrained(tmp_path.parent / f"{tmp_path.name}-shared") / "README.md").read_text()
    assert "for solvers of the ODE alone" in card
    assert ScoreModel.from_pretrained(tmp_path.parent / f"{tmp_path.name}-shared").coupling == "optimal transport"
    with pytest.warns(UserWarning, match="coupling"):
        train(mlp(), points(), batch_size=8, ema=0.9, progress=False, resume=True, steps=4, folder=tmp_path)


@pytest.mark.parametrize(
    ("coupling", "message"),
    [
        (OptimalTransport, "parentheses|got <class"),
        ("ot", "coupling must be a coupling"),
        (lambda x0, eps, conditions: eps[:1], "shaped like eps"),
        (lambda x0, eps, conditions: 2 * eps, "each once"),
        (lambda x0, eps, conditions: 1 / 0, "coupling failed"),
    ],
)
def test_what_is_no_coupling_is_refused_before_any_work(coupling: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        train(mlp(), points(), steps=1, batch_size=8, coupling=coupling, progress=False)


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "told"),
    [("min_snr", "min_snr"), (edm(0.7), "edm(sigma_data=0.7)"), (simple, "simple"),
     (Uncertainty("x0", 16), "Uncertainty(base=x0, channels=16)")],
)  # fmt: skip
def test_the_weighting_is_told(weighting: Any, told: str, tmp_path: Path) -> None:
    run = trained(weighting=weighting, steps=1, folder=tmp_path)
    for known in (run.model.trained_with, load_model(tmp_path).trained_with, describe(tmp_path).trained_with):
        assert known is not None and known.weighting == told and known.coupling is None


def test_files_of_before_tell_neither() -> None:
    plain = TrainedWith(("label",), {"label": 0.1}, True)
    assert set(plain.to_json()) == {"conditions", "dropout", "together"}
    assert TrainedWith.from_json(plain.to_json()) == plain
    full = TrainedWith(("label",), {}, True, "edm", "optimal transport")
    assert TrainedWith.from_json(json.loads(json.dumps(full.to_json()))) == full
    for bad in ({"weighting": 3}, {"coupling": "x" * 2000}, {"colour": "red"}):
        with pytest.raises((TypeError, ValueError)):
            TrainedWith.from_json({**plain.to_json(), **bad})


def test_defaults_change_nothing() -> None:
    """A run without these options and one that says their defaults are the same, and warn of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(weights(trained().model), weights(trained(coupling=None, snapshots=None, ema=[0.9]).model))
