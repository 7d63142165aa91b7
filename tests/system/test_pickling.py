"""All public objects pickle and are copied, and what comes back answers the same, bit for bit."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from public_objects import ALL, NOISES, exact, minus, model, of_noise, same

import scoresde
from scoresde import as_score, sample
from scoresde.noise import IndependentNoise
from scoresde.sde import VP

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
    "deepcopy": copy.deepcopy,
}


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)  # networks that are made here start from torch's own generator


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ALL)
def test_what_comes_back_answers_the_same(name: str, way: str) -> None:
    entry = ALL[name]
    it = entry.make()
    back = WAYS[way](it)
    assert type(back) is type(it)
    assert same(entry.ask(back), entry.ask(it))
    # and once more after use, when whatever it keeps has been made
    if name not in NOISES:
        assert same(entry.ask(WAYS[way](it)), entry.ask(it))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NOISES)
def test_a_noise_comes_back_where_it_stood(name: str, way: str) -> None:
    noise = NOISES[name].make()
    of_noise(noise)
    back = WAYS[way](noise)
    first, second = of_noise(back), of_noise(noise)
    assert same(first, second) and not same(first, of_noise(noise))  # each has a stream of its own from now on


# Public classes of which the table needs no instance, and why.
ELSEWHERE = {
    "Run": "is refused, below",
    "EMA": "follows the parameters of a model: below, together with it",
    "PowerEMA": "an EMA", "ProfileFit": "a tuple",
    "HeldOutLoss": "plain numbers and a curve", "Judgement": "plain numbers",
    "StepRecord": "below", "TrainOptions": "below", "Description": "below",
    "Certificate": "of certify, below", "CertificateRow": "of certify, below", "Costs": "of certify, below",
    "SampledOrder": "plain numbers", "Slope": "plain numbers", "ToleranceSlope": "plain numbers",
    "Iteration": "plain numbers, for callbacks", "Progress": "for callbacks", "Move": "a tuple of tensors",
    "AdaptedReport": "inside adapted", "FloorCell": "inside Floor", "PlusPlus": "inside cfg++",
    "Tuning": "inside adapted grids", "Ending": "fields of Solution", "BoundScore": "by the name bound",
    "Affine": "by predictions", "Part": "a tuple", "Twist": "a tuple",
    "Context": "a tuple", "Architecture": "inside networks", "TimeDensity": "a protocol", "Times": "a tuple",
    "Fields": "a reader of one file", "Source": "beside the data of a reader", "Units": "a protocol",
    "Estimate": "a tuple", "TwoSampleTest": "a tuple", "ClassifierTest": "a tuple", "PrecisionRecall": "a tuple",
    "DensityCoverage": "a tuple", "Combination": "a protocol", "Corrector": "a protocol",
    "PriorMismatch": "two numbers",
    "SharedSamples": "plain tensors",
    "AutoencoderRun": "is refused, as Run", "AutoencoderStep": "a number for each term",
}  # fmt: skip


def _inside(it: object, found: set[str], depth: int = 0) -> set[str]:
    found |= {kind.__name__ for kind in type(it).__mro__[:-1]}
    if depth < 4:
        for part in vars(it).values() if hasattr(it, "__dict__") else ():
            _inside(part, found, depth + 1)
        if isinstance(it, torch.nn.Module):
            for part in it.modules():
                found |= {kind.__name__ for kind in type(part).__mro__[:-1]}
    return found


def test_the_table_has_every_public_class() -> None:
    public = set()
    for package in ("", *(f".{m.name}" for m in pkgutil.iter_modules(scoresde.__path__) if not m.name.startswith("_"))):
        module = importlib.import_module(f"scoresde{package}")
        for name in getattr(module, "__all__", ()):
            one = getattr(module, name)
            plain = inspect.isclass(one) and not issubclass(one, (BaseException, Warning)) and not _typed(one)
            if plain and not inspect.isabstract(one) and one.__module__.startswith("scoresde"):
                public.add(name)
    made: set[str] = set()
    for entry in ALL.values():
        _inside(entry.make(), made)
    assert public - made - set(ELSEWHERE) == set()


def _typed(kind: type) -> bool:
    return hasattr(kind, "__total__")


def test_training_objects(tmp_path: Any) -> None:
    from scoresde import data, losses, train

    dataset = data.from_tensors(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))
    net = scoresde.nn.MLP(2, width=8, depth=1)
    options = train.TrainOptions(
        steps=2, batch_size=4, weighting=losses.edm(0.7), ema=0.9, folder=tmp_path, progress=False, cpu=True
    )
    assert pickle.loads(pickle.dumps(options)) == options == copy.deepcopy(options)
    run = train.train(scoresde.ScoreModel(net, VP()), dataset, options)
    records = list(run)
    assert [r.loss for r in pickle.loads(pickle.dumps(records))] == [r.loss for r in records]
    for way in WAYS.values():
        averaged, followed = way((run.ema, run.model))
        assert same(averaged.state(), run.ema.state())
        with torch.no_grad():
            next(followed.parameters()).add_(1.0)
        averaged.update()  # it follows the model that came with it
        assert not same(averaged.state(), run.ema.state())
        with pytest.raises(TypeError, match="Run"):
            way(run)
    described = train.describe(tmp_path)
    assert same(pickle.loads(pickle.dumps(described)), described)


def test_a_certificate() -> None:
    from scoresde.certify import certify

    found = certify(scoresde.DDIM())
    for way in WAYS.values():
        assert str(way(found)) == str(found)


def test_what_is_a_users_lambda_raises_the_error_of_pickle() -> None:
    score = as_score(lambda x, t: -x, VP())
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(score)
    assert same(copy.deepcopy(score)(torch.ones(1, 2), 0.3), score(torch.ones(1, 2), 0.3))


def test_a_generator_that_is_shared_stays_shared() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = copy.deepcopy((IndependentNoise(generator), IndependentNoise(generator)))
    draws = [noise.normal(torch.zeros(2, 2)) for noise in (first, second)]
    assert not torch.equal(*draws)  # one stream, which both continue


def drawn(score: Any) -> Any:
    return sample(score, (3, 2), steps=4, seed=1).x.numpy()


def test_another_process_gets_the_same_samples() -> None:
    scores = [exact(), model().bind(label=1), as_score(minus, VP())]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(drawn, scores)
    for score, x in zip(scores, found, strict=True):
        assert same(torch.from_numpy(x), torch.from_numpy(drawn(score)))
