"""An optimizer of the user's own: its rule, its learning rates, its state in checkpoints, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import mlp, points, weights
from torch import Tensor, nn, optim

from scoresde.models import ScoreModel
from scoresde.train import CheckpointError, learning_rate, train
from scoresde.train.own_optimizer import OwnOptimizer

OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 8, "progress": False, "ema": 0.9, "cpu": True}


class Counting(optim.Optimizer):
    """Keeps a number and a list of its own beside a tensor, and a number in its group, as some newer rules do."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "total": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["total"] += 1.0
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["count"] = state.get("count", 0) + 1
                    state["sum"] = state.get("sum", torch.zeros(3, dtype=torch.float64)) + group["total"]
                    p -= group["lr"] * state["count"] / group["total"] * p.grad * state["sum"][0].float()


RULES: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.01),
    "SGD with momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW of tensors": lambda p: optim.AdamW(p, lr=torch.tensor(0.01)),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "one with numbers": Counting,
}


def trained(model: ScoreModel | None = None, **options: Any) -> ScoreModel:
    run = train(mlp() if model is None else model, points(), **{**OPTIONS, **options})
    list(run)
    return run.model


def test_adamw_as_an_instance_or_a_function_is_the_default() -> None:
    expected = weights(trained(lr=0.01, weight_decay=0.1))
    made = lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True)  # noqa: E731
    assert torch.equal(weights(trained(optimizer=made)), expected)
    model = mlp()
    assert torch.equal(weights(trained(model, optimizer=made(model.parameters()))), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_with_any_rule_equals_the_uninterrupted_one(rule: str, tmp_path: Path) -> None:
    expected = weights(trained(optimizer=RULES[rule]))
    assert not torch.equal(weights(mlp()), expected)
    run = train(mlp(), points(), optimizer=RULES[rule], folder=tmp_path, save_every=3, **OPTIONS)
    for record in run:
        if record.step == 4:
            break
    run.close()
    again = trained(mlp(seed=2), optimizer=RULES[rule], folder=tmp_path, resume=True)
    assert torch.equal(weights(again), expected)


def test_groups_have_rates_of_their_own_which_warm_up_and_decay_multiply() -> None:
    seen: list[list[float]] = []

    def groups(parameters: Any) -> optim.Optimizer:
        first, *rest = parameters
        return optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest}], lr=0.02)

    def watch(run: Any, record: Any) -> None:
        seen.append([group["lr"] for group in run.optimizer.param_groups])
        assert record.lr == seen[-1][0]

    trained(optimizer=groups, warmup=2, decay="cosine", callbacks=[watch])
    bases = (0.1, 0.02)
    assert seen == [[learning_rate(k, lr=b, steps=6, warmup=2, decay="cosine") for b in bases] for k in range(6)]
    seen.clear()
    trained(optimizer=groups, callbacks=[watch])  # left alone
    assert seen == [[0.1, 0.02]] * 6


def test_without_warmup_and_decay_a_callback_rules_the_rate() -> None:
    def half(run: Any, record: Any) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = 0.1 * 0.5**record.step

    run = train(mlp(), points(), optimizer=lambda p: optim.SGD(p, lr=0.1), callbacks=[half], **OPTIONS)
    assert [record.lr for record in run] == [0.1 * 0.5**k for k in range(6)]


@pytest.mark.parametrize("rule", ["SGD with momentum", "Adam", "AdamW of tensors"])
def test_what_a_callback_set_comes_back_on_resuming(rule: str, tmp_path: Path) -> None:
    """Learning rate, and what else is a number in a group: the checkpoint of step 3 is of after the callback."""

    def change(run: Any, record: Any) -> None:
        for group in run.optimizer.param_groups:
            group.update({key: value for key, value in {"momentum": 0.5, "betas": (0.5, 0.9)}.items() if key in group})
            group["lr"] = 1 if run.step == 1 else 0.01 * 0.5**run.step  # a whole number is a rate as well

    options: dict[str, Any] = {"optimizer": RULES[rule], "callbacks": [change], "save_every": 3}
    expected = weights(trained(folder=tmp_path / "whole", **options))
    run = train(mlp(), points(), folder=tmp_path / "parts", **{**OPTIONS, **options})
    for record in run:
        if record.step == 3:
            break
    run.close()
    assert torch.equal(weights(trained(mlp(seed=1), folder=tmp_path / "parts", resume=True, **options)), expected)


def test_an_instance_can_be_used_again_after_a_schedule() -> None:
    """Its rates are then those that it came with, and not the end of the cosine."""
    model = mlp()
    rule = optim.SGD(model.parameters(), lr=0.1)
    wanted = [learning_rate(k, lr=0.1, steps=6, warmup=0, decay="cosine") for k in range(6)]
    for _ in range(2):
        run = train(model, points(), optimizer=rule, decay="cosine", **OPTIONS)
        assert [record.lr for record in run] == wanted


def test_other_rates_on_resuming_are_told(tmp_path: Path) -> None:
    trained(folder=tmp_path, optimizer=lambda p: optim.SGD(p, lr=0.1))
    with pytest.warns(UserWarning, match=r"optimizer_rates: \[0.1\] -> \[0.2\]"):
        trained(folder=tmp_path, resume=True, optimizer=lambda p: optim.SGD(p, lr=0.2))
    with pytest.raises(CheckpointError, match="the state is that of SGD, and optimizer is AdamW now"):
        trained(folder=tmp_path, resume=True)


def other_parameters(p: Any) -> optim.Optimizer:
    return optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)


class Holding(Counting):
    """Whose state no file of tensors can hold."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["history"] = [1, 2]


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a class without arguments": (lambda p: optim.SGD, {}, TypeError, "returned .*SGD"),
    "a name": ("sgd", {}, TypeError, "optimizer must be a torch.optim.Optimizer, or a function"),
    "others": (other_parameters, {}, ValueError, "1 that are none of the model's.*leaves out"),
    "some": (lambda p: optim.SGD(p[:1], lr=0.1), {}, ValueError, "leaves out net"),
    "a closure": (lambda p: optim.LBFGS(p), {}, ValueError, "closure"),
    "a list in its state": (Holding, {}, TypeError, "holds history/.*tensors and numbers alone"),
    "lr beside it": (RULES["SGD"], {"lr": 0.1}, ValueError, "lr=0.1 is AdamW's"),
    "weight decay beside it": (RULES["SGD"], {"weight_decay": 0.1}, ValueError, "weight_decay=0.1 is AdamW's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_step_is_refused_before_training(case: str) -> None:
    optimizer, options, error, message = REFUSED[case]
    with pytest.raises(error, match=f"(?s){message}"):
        trained(optimizer=optimizer, **options)


def test_a_checkpoint_of_another_rule_is_not_gone_on_with(tmp_path: Path) -> None:
    trained(optimizer=RULES["Adagrad"], folder=tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="is nothing that SGD keeps"):
        trained(optimizer=RULES["SGD with momentum"], folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError):
        trained(folder=tmp_path, resume=True)


def test_a_changed_file_is_refused_in_words() -> None:
    model = mlp()
    optimizer = OwnOptimizer(model, RULES["one with numbers"])
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.rule.step()
    state = optimizer.state()
    optimizer.load_state(state, 1)
    name = next(key for key in state if key.startswith("number.count"))
    wrong: dict[str, dict[str, Tensor]] = {
        "must be .*int64": {**state, name: torch.tensor([1, 2])},
        "is nothing that Counting keeps": {**state, "more/net.weight": torch.zeros(2)},
        "must be finite": {**state, "number.group/0/total": torch.tensor(torch.nan, dtype=torch.float64)},
        "there is no state": {},
    }
    for message, saved in wrong.items():
        with pytest.raises(ValueError, match=message):
            optimizer.load_state(saved, 1)
