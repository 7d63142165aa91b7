"""Training of contrastive models: the loss of declared draws, resuming, checkpoints and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import times
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.losses import contrastive_loss
from scoresde.models import ClassifierModel, ContrastiveModel
from scoresde.nn import MLP, DualEncoder, Vocabulary
from scoresde.sde import VP
from scoresde.train import (
    CheckpointError,
    Run,
    describe,
    load_contrastive,
    load_model,
    train_classifier,
    train_contrastive,
)
from scoresde.train.contrast import equal_rows
from scoresde.train.draws import DataOrder, Uniforms, seeded, step_noise

WORDS = Vocabulary(("red", "blue", "one", "two"))
TEXTS = ["red one", "blue one", "red two", "blue two"] * 8


def pictures(times: int = 1, **options: Any) -> Dataset:
    x = torch.randn(32 * times, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = WORDS.encode(TEXTS * times, 3)
    given: dict[str, Any] = {"conditions": {"caption": tokens}, "vocabularies": {"caption": WORDS}}
    return from_tensors(x, channels="first", scaling=Scaling(0.0, 1.0), **{**given, **options})


def model(seed: int = 0, **options: Any) -> ContrastiveModel:
    caption = {"vocabulary": 4, "length": 3, "width": 8, "layers": 1}
    with seeded(torch.device("cpu"), seed):
        net = DualEncoder(
            1,
            captions={"caption": caption},
            size=4,
            width=8,
            multipliers=(1,),
            blocks=1,
            attention_levels=(),
            **options,
        )
    return ContrastiveModel(net, VP(), sigma_data=1.0)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(given: ContrastiveModel | None = None, dataset: Any = None, **options: Any) -> Run[ContrastiveModel]:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "ema": 0.9, "cpu": True, **options}
    run = train_contrastive(model() if given is None else given, pictures() if dataset is None else dataset, **settings)
    for _ in run:
        pass
    return run


def test_the_first_step_is_the_loss_of_its_declared_draws() -> None:
    dataset, size, seed, density = pictures(), 8, 5, times.LogSNRTime()
    options: dict[str, Any] = {"steps": 1, "batch_size": size, "seed": seed, "times": density, "cpu": True}
    (step,) = list(train_contrastive(model(), dataset, progress=False, **options))
    fresh = model()
    batch, u = dataset.batch(DataOrder(len(dataset), size, seed).indices(0)), Uniforms.draw(seed, 0, size)
    t, weight = density.sample(fresh.sde, u.time)
    x, tokens = batch["x"], batch["caption"]
    alpha, sigma = (v[:, None, None, None].float() for v in (fresh.sde.alpha(t), fresh.sde.sigma(t)))
    logits = fresh(alpha * x + sigma * step_noise(seed, 0, 0, x), t, tokens)
    same = (tokens[:, None] == tokens[None]).all(2)
    assert bool(same.triu(1).any())  # captions repeat in this batch
    loss = (contrastive_loss(logits, same) * weight).mean()
    # the same float32 operations in another order
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)


def test_equal_rows() -> None:
    tokens = torch.randint(0, 2, (9, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(equal_rows(tokens), (tokens[:, None] == tokens[None]).all(2))


def test_the_scale_is_held_in_training() -> None:
    given = model()
    with torch.no_grad():
        given.net.log_scale.fill_(6.0)  # type: ignore[union-attr, operator]
    assert trained(given, steps=1).model.scale.item() == pytest.approx(100, rel=1e-5)  # float32


def test_a_resumed_run_is_the_uninterrupted_one_and_its_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    whole = trained(steps=4, seed=3)
    trained(steps=2, seed=3, folder=tmp_path)
    # the options differ in the number of steps alone, which decides nothing without a decay
    again = trained(steps=4, seed=3, folder=tmp_path, resume=True)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert torch.equal(weights(again.ema_model()), weights(whole.ema_model()))
    loaded = load_contrastive(tmp_path)
    assert torch.equal(weights(loaded), weights(whole.ema_model())) and not loaded.training
    assert loaded.vocabularies == {"caption": WORDS} and loaded.event_shape == (1, 4, 4)
    assert describe(tmp_path).model["kind"] == "contrastive"
    with pytest.raises(CheckpointError, match="load it with load_contrastive"):
        load_model(tmp_path)
    kept = ContrastiveModel.from_pretrained(loaded.save_pretrained(tmp_path / "kept"))
    x, t, tokens = torch.ones(2, 1, 4, 4), torch.tensor(0.3), WORDS.encode(["red one", "blue two"], 3)
    assert torch.equal(kept(x, t, tokens), loaded(x, t, tokens))
    assert "models.ContrastiveModel.from_pretrained" in (tmp_path / "kept" / "README.md").read_text(encoding="utf-8")


def test_held_out_pairs_are_measured() -> None:
    run = trained(dataset=pictures(8), held_out=0.25, held_out_every=2)
    assert run.held_out is not None and math.isfinite(run.held_out.loss)


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes the conditions \['caption'\]"):
        trained(dataset=pictures(conditions={"other": torch.ones(32, 3, dtype=torch.long)}, vocabularies=None))
    with pytest.raises(ValueError, match="tokens of caption in the data set run from 1 to 5"):
        trained(dataset=pictures(conditions={"caption": 1 + WORDS.encode(TEXTS, 3)}, vocabularies=None))
    with pytest.raises(ValueError, match="at most length=3"):
        trained(dataset=pictures(conditions={"caption": WORDS.encode(TEXTS, 5)}), folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="nothing to be told from"):
        trained(batch_size=1)
    with pytest.raises(ValueError, match="nothing to be told from"):
        trained(batch_size=4, accumulate=4)
    with pytest.raises(ValueError, match="'green' is not among the 4 words"):
        WORDS.encode(["green one"], 3)
    with pytest.raises(TypeError, match="condition_dropout is an option of training a score model"):
        trained(condition_dropout=0.1)
    with pytest.raises(TypeError, match="ClassifierModel"):
        train_classifier(model(), pictures(), steps=1, batch_size=4)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="ContrastiveModel"):
        trained(ClassifierModel(MLP(2, out_dim=2), VP()))  # type: ignore[arg-type]
