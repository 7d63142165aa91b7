"""Training of noise-conditional classifiers: the loss, the truth it reaches, its options, checkpoints and refusals."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import times
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.guidance import classifier
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.nn import MLP, NoiseClassifier
from scoresde.noise import IndependentNoise
from scoresde.problems import GaussianMixture
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.train import (
    CheckpointError,
    Run,
    TrainOptions,
    describe,
    load_classifier,
    load_model,
    save,
    train,
    train_classifier,
)
from scoresde.train.draws import DataOrder, Uniforms, seeded, step_noise

CLASSES = 3
MEANS = torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 1.5]])
DATA = GaussianMixture(torch.tensor([0.2, 0.3, 0.5]), MEANS, 0.2)


def points(count: int = 40, seed: int = 0) -> Dataset:
    x, label = DATA.sample_labelled(count, seed)
    return from_tensors(x, label, scaling=Scaling(0.0, 1.0), num_classes=CLASSES)


def model(seed: int = 0, *, out: int = CLASSES, dropout: float = 0.0) -> ClassifierModel:
    with seeded(torch.device("cpu"), seed):
        net = MLP(2, width=8, depth=1, out_dim=out, dropout=dropout)
        for parameter in net.parameters():  # networks start with outputs of zero, which hides what they see
            nn.init.normal_(parameter, std=0.2)
    return ClassifierModel(net, VP(), sigma_data=1.0)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(given: ClassifierModel | None = None, dataset: Any = None, **options: Any) -> Run[ClassifierModel]:
    """A run on tiny data, carried to its end."""
    settings: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "ema": 0.9, **options}
    run = train_classifier(model() if given is None else given, points() if dataset is None else dataset, **settings)
    for _ in run:
        pass
    return run


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_first_step_is_the_cross_entropy_of_its_declared_draws() -> None:
    dataset, size, seed, density = points(), 8, 5, times.LogSNRTime()
    (step,) = list(
        train_classifier(
            model(), dataset, steps=1, batch_size=size, seed=seed, times=density, flip=True, progress=False
        )
    )
    fresh = model()
    batch, u = dataset.batch(DataOrder(len(dataset), size, seed).indices(0)), Uniforms.draw(seed, 0, size)
    t, weight = density.sample(fresh.sde, u.time)
    assert weight.std() > 0.1
    x = torch.where((u.flip < 0.5)[:, None], batch["x"].flip(-1), batch["x"])
    alpha, sigma = (v[:, None].float() for v in (fresh.sde.alpha(t), fresh.sde.sigma(t)))
    log_p = fresh(alpha * x + sigma * step_noise(seed, 0, 0, x), t)
    loss = -(log_p.gather(1, batch["label"][:, None])[:, 0] * weight).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.cat([p.grad.flatten() for p in fresh.parameters() if p.grad is not None]).norm()
    # the same float32 operations in another order
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_a_network_that_says_nothing_costs_the_logarithm_of_the_number_of_classes() -> None:
    net = MLP(2, width=8, depth=1, out_dim=CLASSES)  # starts with logits of zero
    (step,) = list(train_classifier(ClassifierModel(net, VP()), points(), steps=1, batch_size=8, progress=False))
    assert step.loss == pytest.approx(math.log(CLASSES), rel=1e-6)  # float32


def test_training_reaches_the_exact_classifier_at_every_time() -> None:
    """The excess of the model's NLL over that of Bayes' rule is E[KL(exact | model)] >= 0."""
    with seeded(torch.device("cpu"), 0):
        given = ClassifierModel(MLP(2, width=48, depth=2, out_dim=CLASSES), VP(), sigma_data=1.3)
    run = trained(given, points(8192), steps=350, batch_size=256, lr=4e-3, warmup=20, decay="cosine", ema=0.95)
    found, exact = run.ema_model(), DATA.label_log_prob(VP())
    x0, label = DATA.sample_labelled(8192, 1)
    prior = -(DATA.weights * DATA.weights.log()).sum().item()
    noise = IndependentNoise(2)
    for t in (0.02, 0.1, 0.2, 0.35):
        mean, std = VP().marginal(x0, t)
        x = mean + std * noise.normal(x0)
        with torch.no_grad():
            log_p, log_q = (f(x, torch.tensor(t)).double() for f in (exact, found))
        bayes, excess = -log_p.gather(1, label[:, None]), (log_p - log_q).gather(1, label[:, None])
        error = excess.std().item() / math.sqrt(len(x0))
        # what Bayes' rule learns from x_t beyond the shares of the classes
        information = prior - bayes.mean().item()
        assert information > 0.2
        # of which at most a twentieth is missed; no classifier misses less than none, but for sampling (4 errors)
        assert -4 * error < excess.mean().item() < information / 20 + 4 * error, t


def test_the_result_guides() -> None:
    given, score = trained().ema_model(), DATA.score(VP())
    label = torch.tensor([0, 2])
    plain = sample(score, (2, 2), steps=4).x
    guided = sample(classifier(score, given, 3.0, label=label), (2, 2), steps=4).x
    assert guided.isfinite().all() and not torch.equal(plain, guided)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 1e-2},
        {"betas": (0.5, 0.999)},
        {"weight_decay": 0.5},
        {"warmup": 4},
        {"decay": "cosine"},
        {"clip": 1e-9},
        {"times": times.LogSNRTime()},
        {"flip": True},
        {"seed": 1},
        {"batch_size": 16},
        {"mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_options_change_the_weights(option: dict[str, Any]) -> None:
    assert not torch.equal(weights(trained(**option).model), weights(trained().model))


@pytest.mark.parametrize("option", [{"ema": 0.15}, {"ema_warmup": False}], ids=str)
def test_options_change_the_average_alone(option: dict[str, Any]) -> None:
    base, other = trained(), trained(**option)
    assert torch.equal(weights(base.model), weights(other.model))
    assert not torch.equal(weights(base.ema_model()), weights(other.ema_model()))


def test_pieces_workers_and_data_sets_of_ones_own_make_no_difference() -> None:
    expected = weights(trained().model)
    dataset = points()
    own = [{"x": dataset[i]["x"], "label": int(dataset[i]["label"])} for i in range(len(dataset))]
    assert torch.equal(weights(trained(dataset=own).model), expected)
    assert torch.equal(weights(trained(num_workers=1).model), expected)
    # another order of summation, which Adam magnifies to a share of lr = 1e-3 a step
    assert torch.allclose(weights(trained(accumulate=4).model), expected, rtol=0, atol=1e-5)


def test_levels_are_filled_with_noise() -> None:
    data = from_tensors(torch.randint(0, 5, (40, 2), generator=torch.Generator().manual_seed(0)),
                        torch.arange(40) % CLASSES, levels=5)  # fmt: skip
    plain, filled = (weights(trained(dataset=data, dequantize=on).model) for on in (False, True))
    assert not torch.equal(plain, filled)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 8, "save_every": 4, "decay": "cosine", "flip": True, "log_every": 3}
    whole = trained(model(dropout=0.5), folder=tmp_path / "whole", **options)
    for step in train_classifier(
        model(dropout=0.5), points(), batch_size=8, ema=0.9, progress=False, folder=tmp_path / "parts", **options
    ):
        if step.step == 6:
            break
    resumed = trained(model(seed=1, dropout=0.5), folder=tmp_path / "parts", resume=True, **options)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(weights(resumed.ema_model()), weights(whole.ema_model()))


def test_a_checkpoint_rebuilds_the_classifier(tmp_path: Path) -> None:
    run = trained(folder=tmp_path)
    description = describe(tmp_path)
    assert description.model["kind"] == "classifier" and description.class_names == ("0", "1", "2")
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
    averaged, last = load_classifier(tmp_path), load_classifier(tmp_path, ema=False)
    assert not averaged.training and averaged.sigma_data == 1.0 and averaged.sde == VP()
    assert torch.equal(averaged(x, t), run.ema_model()(x, t))
    assert torch.equal(weights(last), weights(run.model)) and not torch.equal(weights(last), weights(averaged))


def test_a_classifier_of_images_and_one_of_ones_own_come_back(tmp_path: Path) -> None:
    with seeded(torch.device("cpu"), 0):
        net = NoiseClassifier(1, CLASSES, width=8, multipliers=(1, 2), blocks=1)
        nn.init.normal_(net.head.weight)
    given = ClassifierModel(net, VP(beta_max=15.0)).eval()
    save(tmp_path / "image", given, step=1)
    x, t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
    back = load_classifier(tmp_path / "image", ema=False)
    assert torch.equal(back(x, t), given(x, t)) and back.sde == VP(beta_max=15.0) and back.sigma_data is None

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, CLASSES)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.head(x)

    run = trained(ClassifierModel(Own(), VP()), folder=tmp_path / "own")
    with pytest.raises(ValueError, match=r"pass it: net=Own"):
        load_classifier(tmp_path / "own")
    assert torch.equal(weights(load_classifier(tmp_path / "own", net=Own(), ema=False)), weights(run.model))
    with pytest.raises(ValueError, match="trained under"):
        load_classifier(tmp_path / "own", net=Own(), sde=VP(beta_max=3.0))


def test_a_classifier_and_a_score_model_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with seeded(torch.device("cpu"), 0):
        score = ScoreModel(MLP(2, width=8, depth=1, num_classes=CLASSES), VP(), sigma_data=1.0)
    options: dict[str, Any] = {"steps": 1, "batch_size": 4, "progress": False}
    trained(folder=tmp_path / "classifier", steps=1)
    list(train(score, points(), folder=tmp_path / "score", **options))
    with pytest.raises(ValueError, match="holds a classifier; load it with load_classifier"):
        load_model(tmp_path / "classifier")
    with pytest.raises(ValueError, match="holds a score model; load it with load_model"):
        load_classifier(tmp_path / "score")
    with pytest.raises(CheckpointError, match=r"another model.*kind \(saved: classifier, given: score\)"):
        train(score, points(), folder=tmp_path / "classifier", resume=True, **options)
    with pytest.raises(CheckpointError, match=r"another model.*kind \(saved: score, given: classifier\)"):
        train_classifier(model(), points(), folder=tmp_path / "score", resume=True, **options)
    with pytest.raises(TypeError, match=r"ClassifierModel\); train it with train_classifier"):
        train(model(), points(), **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a ClassifierModel, got .*ScoreModel.*NoiseClassifier"):
        train_classifier(score, points(), **options)  # type: ignore[arg-type]


# -- what is refused ---------------------------------------------------------------------------------------------------


def _rows(label: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"x": torch.zeros(2), "label": label(i)} for i in range(8)]


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"dataset": from_tensors(torch.randn(8, 2))}, ValueError, "learns from labels.*from_tensors"),
        ({"dataset": [{"x": torch.zeros(2)}] * 8}, ValueError, r"learns from labels, but samples hold only \['x'\]"),
        ({"dataset": _rows(float)}, TypeError, "one whole number for each sample, got torch.float32"),
        ({"dataset": _rows(lambda i: torch.zeros(2).long())}, TypeError, r"one whole number .* \(2,\)"),
        ({"dataset": from_tensors(torch.randn(8, 2), torch.zeros(8).long())}, ValueError, "one class only"),
        ({"model": model(out=4)}, ValueError, r"3 classes but the network answers 4 logits.*num_classes=4"),
        ({"model": model(out=2)}, ValueError, r"3 classes but the network answers 2 logits.*out_dim=3"),
        ({"model": ClassifierModel(nn.Bilinear(2, 1, 3), VP())}, ValueError, "no loss for dataset"),
        ({"model": ClassifierModel(MLP(3, out_dim=3), VP())}, ValueError, "dim=3"),
        ({"model": ClassifierModel(lambda x, c: x, VP())}, ValueError, "no parameters"),
        ({"model": model().half()}, TypeError, "mixed_precision='bf16'"),
        ({"model": nn.Linear(2, 3)}, TypeError, "must be a ClassifierModel, got .*Linear"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1"),
        ({"times": times.UniformTime}, TypeError, "add its parentheses"),
        ({"resume": True}, ValueError, "resume needs a folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_before_training(
    option: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = None if "resume" in option else tmp_path / "run"
    arguments = {"steps": 4, "batch_size": 4, "progress": False, "folder": folder, **option}
    given, dataset = arguments.pop("model", None) or model(), arguments.pop("dataset", None)
    with pytest.raises(error, match=message):
        train_classifier(given, points() if dataset is None else dataset, **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("weighting", "likelihood"), ("condition_dropout", 0.2), ("conditions", ["label"])]
)
def test_what_makes_no_sense_for_a_classifier_is_no_option(name: str, value: Any, tmp_path: Path) -> None:
    message = f"{name} is an option of training a score model; leave it out of train_classifier"
    options: dict[str, Any] = {"steps": 1, "batch_size": 4, "folder": tmp_path / "run"}
    default = getattr(TrainOptions(**options), name)
    for given in (value, default):  # by keyword, what is the default is refused, too
        with pytest.raises(TypeError, match=message):
            train_classifier(model(), points(), **options, **{name: given})
    with pytest.raises(TypeError, match=message):
        train_classifier(model(), points(), TrainOptions(**options, **{name: value}))
    assert name not in inspect.signature(train_classifier).parameters
    assert not (tmp_path / "run").exists()


class _Flat(nn.Module):
    """Answers one number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.weight * x.sum(1)


def test_an_answer_that_is_no_row_of_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floating logits \(2, K\); it answered torch.float32 \(2,\)"):
        train_classifier(ClassifierModel(_Flat(), VP()), points(), steps=1, batch_size=4)


@pytest.mark.parametrize(("bad", "text"), [(CLASSES, "0 to 3"), (-2, "-2 to 2")])
def test_labels_out_of_range_are_named(bad: int, text: str) -> None:
    data = [{"x": torch.zeros(2), "label": k} for k in (0, 1, 2, bad)]
    with pytest.raises(ValueError, match=f"labels of the batch of step 1 run from {text}.*built for {CLASSES} classes"):
        trained(dataset=data, batch_size=4)


@pytest.mark.parametrize("t", [0.0, torch.tensor([0.0, 0.5])], ids=["one", "each"])
def test_a_classifier_is_not_asked_where_the_noise_level_is_infinitely_low(t: Any) -> None:
    with pytest.raises(ValueError, match=r"no noise where σ\(t\) = 0.*t_min = "):
        model()(torch.zeros(2, 2), torch.as_tensor(t))
