"""Training of autoencoders: its loss by hand, exact resumption, terms, files, and what is refused before any work."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.metrics import FeatureNet, NetFeatures
from scoresde.nn import Autoencoder, KLBottleneck, LaplaceErrors, VQBottleneck
from scoresde.train import (
    Adversary,
    AutoencoderOptions,
    CheckpointError,
    Perceptual,
    load_autoencoder,
    load_model,
    save_autoencoder,
    train_autoencoder,
)
from scoresde.train.draws import derive, named_uniforms, step_noise

KINDS = [KLBottleneck(), VQBottleneck(6)]


def pictures(count: int = 20) -> Dataset:
    x = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return from_tensors(x.to(torch.uint8), levels=256)


def small(**options: Any) -> Autoencoder:
    torch.manual_seed(1)
    given: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "latent_channels": 2, **options}
    return Autoencoder(1, **given)


def features() -> NetFeatures:
    torch.manual_seed(2)
    return NetFeatures(FeatureNet((1, 8, 8), 3, width=8, features=4), "labels")


def run_of(net: Autoencoder, steps: int = 4, **options: Any) -> Any:
    return train_autoencoder(net, pictures(), **{"steps": steps, "batch_size": 6, "cpu": True, "seed": 3, **options})


def test_the_loss_is_the_bound_in_nats_per_number() -> None:
    net = small(errors=LaplaceErrors())
    before = copy.deepcopy(net)
    run = run_of(net, penalty=0.5)
    x = pictures()[run._order.indices(0)]["x"]
    step = next(run)
    law = before.posterior(x)
    decoded = before.decode(law.draw(step_noise(3, 0, 0, law.mean, name="bottleneck")))
    b = torch.ones(())  # the learned scale starts at 1
    reconstruction = ((x - decoded).abs() / b + (2 * b).log()).mean()
    penalty = 0.5 * (0.5 * (law.mean**2 + law.std**2 - 1) - law.std.log()).sum() / (6 * 64)
    assert step.terms["reconstruction"] == pytest.approx(float(reconstruction.detach()), rel=1e-5)  # float32
    assert step.terms["penalty"] == pytest.approx(float(penalty.detach()), rel=1e-5)
    assert step.loss == pytest.approx(sum(step.terms.values())) and step.samples == 6 and step.step == 1


@pytest.mark.parametrize(("kind", "factor"), [(KINDS[0], 1e-3), (KINDS[1], 1.0)], ids=["kl", "vq"])
def test_steps_are_those_of_a_loop_by_hand(kind: Any, factor: float) -> None:
    """All options together: weights, averages, codes and discriminator after four steps of torch's own AdamW."""

    def seen(x: Tensor) -> Tensor:
        return torch.cat([x, x**2], 1)

    net = small(bottleneck=kind).double()
    own = copy.deepcopy(net).train()
    run = run_of(
        net, 4, lr=0.01, warmup=2, betas=(0.8, 0.95), weight_decay=0.1, clip=0.5, ema=0.15, flip=True,
        perceptual=Perceptual(seen, 2.0), adversary=Adversary(0.7, start=1, width=4, layers=2, lr=3.0),
    )  # fmt: skip
    judge = copy.deepcopy(run.discriminator)
    first, second = ([p for p in part.parameters() if p.requires_grad] for part in (own, judge))
    adam, other = (torch.optim.AdamW(some, betas=(0.8, 0.95), weight_decay=0.1) for some in (first, second))
    average, last = [p.detach().clone() for p in first], own.decoder.last_weight
    for k, (step, rate) in enumerate(
        zip(run, (0.005, 0.01, 0.01, 0.005), strict=True)
    ):  # a cosine of two steps at last
        x = pictures()[run._order.indices(k)]["x"].double()
        mirrored = (named_uniforms(3, k, 6, "flip") < 0.5)[:, None, None, None]
        x = torch.where(mirrored, x.flip(3), x)
        decoded, penalty, h = own(x, step_noise(3, k, 0, x.new_empty(6, 2, 4, 4), name="bottleneck"))
        each = own.errors.log_prob(x - decoded, own.log_scale)
        seen_of = F.normalize(seen(x), dim=1) - F.normalize(seen(decoded), dim=1)
        likeness = -each.mean() / 64 + 2 * seen_of.square().sum(1).mean()
        loss = likeness + factor * penalty.mean() / 64
        if k >= 1:
            misled = -judge(decoded).mean()
            (a,), (b,) = (torch.autograd.grad(term, last, retain_graph=True) for term in (likeness, misled))
            loss = loss + 0.7 * float(a.norm() / (b.norm() + 1e-4)) * misled
        assert step.loss == pytest.approx(float(loss.detach()), rel=1e-6) and step.lr == pytest.approx(rate)
        grads = [torch.autograd.grad(loss, first)]
        if k >= 1:
            told = 0.5 * (F.relu(1 - judge(x)).mean() + F.relu(1 + judge(decoded.detach())).mean())
            grads.append(torch.autograd.grad(told, second))
        for some, found, rule, times in zip((first, second), grads, (adam, other), (1.0, 3.0), strict=False):
            norm = float(sum(float(g.square().sum()) for g in found)) ** 0.5
            for p, g in zip(some, found, strict=True):
                p.grad = g * min(1.0, 0.5 / norm)
            rule.param_groups[0]["lr"] = times * rate
            rule.step()
        uniforms = torch.rand(own.bottleneck.draws, generator=torch.Generator().manual_seed(derive(3, "codes", k)))
        own.bottleneck.learn(h, uniforms)
        decay = min(0.15, (1 + k) / (10 + k))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, first, strict=True)]
    # float64 but for the discriminator, whose gradients in float32 are 1e-7 of theirs; steps are of 1e-2
    for found, wanted in (
        (run.net.state_dict(), own.state_dict()),
        (run.discriminator.state_dict(), judge.state_dict()),
        (run.ema.state(), dict(zip(dict(own.named_parameters()), average, strict=True))),
    ):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS, ids=["kl", "vq"])
def test_the_loss_falls(kind: Any) -> None:
    run = run_of(small(bottleneck=kind), 40, lr=3e-3)
    losses = [step.loss for step in run]
    assert losses[-1] < losses[0] - 0.05
    assert run.step == 40 and len(list(run)) == 0


@pytest.mark.parametrize("kind", KINDS, ids=["kl", "vq"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: Any, tmp_path: Path) -> None:
    """Bit for bit: weights, averages, codes, discriminator and log; with dropout and mirrored samples."""
    options: dict[str, Any] = {
        "flip": True, "warmup": 2, "adversary": Adversary(start=1, width=4, layers=2), "log_every": 1,
        "perceptual": Perceptual(features().compute), "save_every": 2,
    }  # fmt: skip
    net: dict[str, Any] = {"bottleneck": kind, "dropout": 0.2}
    whole = run_of(small(**net), 6, folder=tmp_path / "whole", **options)
    list(whole)
    first = run_of(small(**net), 6, folder=tmp_path / "parts", **options)
    for step in first:
        if step.step == 3:  # a step past the last checkpoint is done again
            break
    first.close()
    torch.rand(3)  # the global generator is nobody's business
    second = run_of(small(**net), 6, folder=tmp_path / "parts", resume=True, **options)
    assert second.step == 2
    list(second)
    for a, b in ((whole.net, second.net), (whole.averaged(), second.averaged())):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert whole.discriminator is not None and second.discriminator is not None
    others = second.discriminator.state_dict()
    assert all(torch.equal(v, others[k]) for k, v in whole.discriminator.state_dict().items())
    logs = [[json.loads(line) for line in (tmp_path / f / "log.jsonl").read_text().splitlines()] for f in
            ("whole", "parts")]  # fmt: skip
    for log in logs:
        for line in log:
            line.pop("seconds")
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "parts").glob("step-*"))) == 2  # keep


def test_resuming_with_other_settings_is_told(tmp_path: Path) -> None:
    list(run_of(small(), 2, folder=tmp_path))
    with pytest.warns(UserWarning, match=r"other settings \(steps, lr\)"):
        run_of(small(), 3, folder=tmp_path, resume=True, lr=5e-4).close()
    with pytest.raises(CheckpointError, match="another autoencoder, which differs in width"):
        run_of(small(width=16), 3, folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="holds checkpoints already"):
        run_of(small(), 3, folder=tmp_path)
    with pytest.raises(CheckpointError, match="past the end"):
        run_of(small(), 1, folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="20 samples"):
        train_autoencoder(small(), pictures(19), steps=3, folder=tmp_path, resume=True, cpu=True)
    assert run_of(small(), 2, folder=tmp_path, resume=True).step == 2  # done: nothing left to do


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    run = run_of(small(), folder=tmp_path)
    with pytest.raises(CheckpointError, match="in use"):
        run_of(small(), folder=tmp_path)
    next(run)
    run.save()
    other = small(dropout=0.0)
    kept = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="in use"):
        run_of(other, folder=tmp_path, resume=True)
    run.close()
    average = run.save() / "ema.safetensors"
    whole = average.read_bytes()
    average.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        run_of(other, folder=tmp_path, resume=True)
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())  # of what is refused


def test_what_is_frozen_is_told() -> None:
    run = run_of(small(), 1)
    list(run)
    with pytest.raises(ValueError, match=r"all of its are frozen, .* net\.requires_grad_\(\)"):
        run_of(run.averaged())
    net = small()
    net.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="adversary needs a decoder that is trained"):
        run_of(net, adversary=Adversary(width=4, layers=2))
    assert len(list(run_of(net))) == 4  # the encoder alone


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must have a name of its own"):
        save_autoencoder(".", small())
    assert load_autoencoder(save_autoencoder("ae", small())).factor == 2


# -- terms -------------------------------------------------------------------------------------------------------------


def test_a_perceptual_distance_by_hand() -> None:
    def seen(x: Tensor) -> list[Tensor]:
        return [torch.cat([x, x**2], 1), x.flatten(1)]

    x, y = pictures()[:3]["x"], pictures()[3:6]["x"]
    expected = torch.zeros(3)
    for i in range(3):
        a, b = (F.normalize(torch.cat([v[i], v[i] ** 2]), dim=0) for v in (x, y))
        expected[i] = (a - b).square().sum(0).mean()
        expected[i] += (x[i] / x[i].norm() - y[i] / y[i].norm()).square().sum()
    torch.testing.assert_close(Perceptual(seen).distance(x, y), expected)
    assert float(Perceptual(seen).distance(x, x).max()) == 0.0


def test_features_and_discriminator_are_left_alone_by_the_autoencoder() -> None:
    judge = features()
    run = run_of(small(), perceptual=Perceptual(judge.compute, 2.0), adversary=Adversary(start=2, width=4, layers=2))
    kept = {name: value.clone() for name, value in run.discriminator.state_dict().items()}
    terms = [next(run).terms for _ in range(4)]
    assert all(p.grad is None for p in judge.net.parameters()) and not judge.net.training
    assert ["adversarial" in one for one in terms] == [False, False, True, True]
    assert all("perceptual" in one for one in terms)
    assert any(not torch.equal(value, kept[name]) for name, value in run.discriminator.state_dict().items())


def test_the_discriminator_does_not_learn_before_the_start() -> None:
    run = run_of(small(), 2, adversary=Adversary(start=2, width=4, layers=2))
    kept = {name: value.clone() for name, value in run.discriminator.state_dict().items()}
    list(run)
    assert all(torch.equal(value, kept[name]) for name, value in run.discriminator.state_dict().items())


def test_hinge_and_balance_by_hand() -> None:
    adversary, judge = Adversary(), nn.Linear(2, 1)
    x, made = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])
    real, fake = judge(x).flatten().tolist(), judge(made).flatten().tolist()
    expected = 0.5 * sum(max(0.0, 1 - d) for d in real) / 2 + 0.5 * sum(max(0.0, 1 + d) for d in fake) / 2
    assert float(adversary.to_tell(judge, x, made).detach()) == pytest.approx(expected)
    assert float(adversary.to_mislead(judge, made).detach()) == pytest.approx(-sum(fake) / 2)
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    ratio = adversary.balance((2 * last**2).sum() / 2, 0.1 * last.sum(), last)
    assert float(ratio) == pytest.approx(10 / (0.1 * math.sqrt(2) + 1e-4))  # |2 w| = 10; the least of the denominator
    assert float(adversary.balance(1e9 * last.sum(), last.sum(), last)) == 1e4 and not ratio.requires_grad


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=["kl", "vq"])
def test_saved_and_loaded_it_answers_the_same(kind: Any, tmp_path: Path) -> None:
    net = small(bottleneck=kind).eval()
    net.describe_latents([0.5, 1 / 3], [2.0, 0.7])
    net.scaling = Scaling.to_unit_range(256)
    assert save_autoencoder(tmp_path / "ae", net) == tmp_path / "ae"
    back, x = load_autoencoder(tmp_path / "ae"), pictures()[:3]["x"]
    assert torch.equal(back.encode(x), net.encode(x)) and torch.equal(back.decode(back.encode(x)), net.decode(
        net.encode(x)))  # fmt: skip
    assert back.config == net.config and back.scaling == net.scaling and not back.training
    narrow = save_autoencoder(tmp_path / "narrow", copy.deepcopy(net).bfloat16())
    assert {p.dtype for p in load_autoencoder(narrow).parameters()} == {torch.bfloat16}
    with pytest.raises(CheckpointError, match="holds something already"):
        save_autoencoder(tmp_path / "ae", net)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_autoencoder(tmp_path / "ae", ema=True)


def test_a_run_is_loaded_with_its_averages(tmp_path: Path) -> None:
    run = run_of(small(), 3, folder=tmp_path)
    list(run)
    averaged, last, x = load_autoencoder(tmp_path), load_autoencoder(tmp_path, ema=False), pictures()[:2]["x"]
    assert torch.equal(averaged.encode(x), run.averaged().encode(x)) and averaged.scaling == pictures().scaling
    assert torch.equal(last.encode(x), run.net.eval().encode(x)) and not torch.equal(last.encode(x), averaged.encode(x))


def test_what_is_no_autoencoder_or_is_damaged_is_refused(tmp_path: Path) -> None:
    net = small()
    folder = save_autoencoder(tmp_path / "ae", net)
    with pytest.raises(CheckpointError):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_autoencoder(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config["net"]["width"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged"):
        load_autoencoder(folder)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_autoencoder(tmp_path / "nothing")
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        save_autoencoder(tmp_path / "nan", net)
    assert not (tmp_path / "nan").exists()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "dataset", "options", "error", "match"),
    [
        (nn.Linear(1, 1), None, {}, TypeError, "net must be"),
        (None, torch.zeros(4, 1, 8, 8), {}, TypeError, "dataset"),
        (None, from_tensors(torch.randn(8, 3, 8, 8), channels="first"), {}, ValueError, r"events \(1, \.\.\.\)"),
        (None, from_tensors(torch.randn(8, 1, 7, 8), channels="first"), {}, ValueError, "multiple of 2"),
        (small().half(), None, {}, ValueError, "float32 or float64"),
        (None, None, {"steps": 0}, ValueError, "steps"),
        (None, None, {"ema": 1.0}, ValueError, "ema"),
        (None, None, {"betas": (0.9, 1.0)}, ValueError, "betas"),
        (None, None, {"warmup": 5}, ValueError, "longer than the whole run"),
        (None, None, {"penalty": -1.0}, ValueError, "penalty"),
        (None, None, {"decay": "linear"}, ValueError, "decay"),
        (None, None, {"nonsense": 1}, TypeError, "no option 'nonsense'"),
        (None, None, {"adversary": Adversary(layers=4)}, ValueError, "halved 4 times"),
        (None, None, {"perceptual": Perceptual(lambda x: x.detach().flatten(1))}, ValueError, "differentiable"),
        (None, None, {"perceptual": Perceptual(lambda x: x.sum())}, ValueError, "features must be floating"),
    ],
)
def test_bad_input_stops_before_any_work(
    net: Any, dataset: Any, options: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(error, match=match):
        given = {"steps": 4, "folder": folder, "cpu": True, **options}
        train_autoencoder(small() if net is None else net, pictures() if dataset is None else dataset, **given)
    assert not folder.exists()


@pytest.mark.parametrize("kind", KINDS, ids=["kl", "vq"])
def test_in_bfloat16_it_learns_the_same(kind: Any) -> None:
    """Weights stay float32; the first loss is that of float32 but for 2^-8 of what each layer makes."""
    options: dict[str, Any] = {"adversary": Adversary(start=0, width=4, layers=2), "lr": 3e-3}
    wide, narrow = (run_of(small(bottleneck=kind), 12, mixed_precision=p, **options) for p in ("no", "bf16"))
    losses = [[step.terms["reconstruction"] for step in run] for run in (wide, narrow)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02) and losses[1] != losses[0]
    assert losses[1][-1] < losses[1][0] and {p.dtype for p in narrow.net.parameters()} == {torch.float32}


def test_a_run_is_not_copied() -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(run_of(small()))


def test_options_are_one_object_or_keywords(tmp_path: Path) -> None:
    options = AutoencoderOptions(steps=2, batch_size=4, cpu=True)
    one = list(train_autoencoder(small(), pictures(), options))
    other = list(train_autoencoder(small(), pictures(), steps=2, batch_size=4, cpu=True))
    changed = train_autoencoder(small(), pictures(), options, seed=9)
    assert [a.loss for a in one] == [b.loss for b in other] != [c.loss for c in changed]
    with pytest.raises(TypeError, match="steps must be given"):
        train_autoencoder(small(), pictures())
    with pytest.raises(TypeError, match="options must be"):
        train_autoencoder(small(), pictures(), {"steps": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a folder"):
        train_autoencoder(small(), pictures(), steps=2, resume=True)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    net = small()
    run = run_of(net)
    next(run)
    with torch.no_grad():
        net.to_latents.bias.fill_(math.inf)  # type: ignore[union-attr, operator]
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        next(run)
    assert run.step == 1 and all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
