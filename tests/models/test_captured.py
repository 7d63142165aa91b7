"""Recording and replaying of networks, with a recorder that has no device: as a CUDA graph does, it runs the work once
and then repeats it into the same memory, whatever Python has been handed since."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import editing, particles
from scoresde.guidance import classifier, classifier_free
from scoresde.models import ClassifierModel, ScoreModel, captured
from scoresde.models.captured import Replays, replaying
from scoresde.nn import MLP, UNet
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.solvers import DDIM, EulerMaruyama, Heun

CPU = torch.device("cpu")


class Tape:
    """Records by running the work once; a replay runs it again and writes over what the first run answered."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        answer = work()

        def replay() -> None:
            for held, new in zip(_flat(answer), _flat(work()), strict=True):
                held.copy_(new)

        return replay, answer


def _flat(part: Any) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, (tuple, list)) else ()
    return [x for one in parts for x in _flat(one)]


def weighted(net: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def model() -> ScoreModel:
    return ScoreModel(weighted(MLP(2, width=8, depth=1, num_classes=3)), VP(), "v", sigma_data=1.0)


RUNS: dict[str, Callable[[ScoreModel], Tensor]] = {
    "one label": lambda m: sample(m.bind(label=1), (3, 2), steps=4, seed=0).x,
    "a label each": lambda m: sample(m.bind(label=torch.tensor([0, 1, 2])), (3, 2), steps=4, seed=0).x,
    "guided": lambda m: sample(classifier_free(m, {"label": 1}, 3.0), (3, 2), solver=Heun(), steps=4, seed=0).x,
    "two sizes": lambda m: torch.cat([sample(m.bind(label=1), (n, 2), steps=3, seed=0).x for n in (2, 5, 2)]),
    "noise": lambda m: sample(m.bind(label=1), (3, 2), solver=EulerMaruyama(), steps=4, seed=0).x,
    "another schedule": lambda m: sample(m.under(VP(beta_max=15.0, T=0.9)).bind(label=1), (3, 2), steps=4, seed=0).x,
    "half precision": lambda m: sample(m.bind(label=1), (3, 2), steps=4, seed=0, dtype=torch.bfloat16).x,
    "an edit": lambda m: editing.invert(m.bind(label=1), torch.ones(3, 2), steps=3).x,
    "particles": lambda m: particles.tilted(classifier_free(m, {"label": 1}, 2.0), (8, 2), steps=4, seed=0).mean(),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_replayed_run_is_the_run_itself(name: str) -> None:
    """To the last bit: the same kernels on the same numbers. Each shape is recorded once, and all calls are replays."""
    made, run, tape = model(), RUNS[name], Tape()
    plain = run(made)
    with replaying(made.net, tape) as replays:  # type: ignore[arg-type]
        found = run(made)
    assert torch.equal(found, plain)
    sizes = 2 if name in ("two sizes", "guided") else 1
    assert tape.recordings == replays.recorded <= sizes and replays.replayed > 3
    assert "forward" not in vars(made.net)
    assert torch.equal(run(made), plain)


def test_no_two_steps_share_an_answer() -> None:
    """The trajectory holds what each call answered, though each replay writes to the same memory."""
    made = model()
    plain = sample(made.bind(label=1), (3, 2), solver=DDIM(), steps=4, seed=0, trajectory=True).trajectory
    with replaying(made.net, Tape()) as replays:  # type: ignore[arg-type]
        found = sample(made.bind(label=1), (3, 2), solver=DDIM(), steps=4, seed=0, trajectory=True).trajectory
        with torch.no_grad():
            first = replays(torch.ones(3, 2), torch.zeros(3), label=torch.tensor([0, 1, 2]))
            kept = first.clone()
            replays(-torch.ones(3, 2), torch.ones(3), label=torch.tensor([2, 1, 0]))
    assert found is not None and plain is not None and torch.equal(found, plain)
    assert torch.equal(first, kept)


def test_gradients_run_as_ever() -> None:
    """A classifier is differentiated by x: its network runs, and that of the score is replayed."""
    made = model()
    judge = ClassifierModel(weighted(MLP(2, width=8, depth=1, out_dim=3)), VP(), sigma_data=1.0)
    score = classifier(made.bind(label=0), judge, 2.0, label=1)
    plain = sample(score, (3, 2), steps=4, seed=0).x
    with replaying(made.net, Tape()) as one, replaying(judge.net, Tape()) as other:  # type: ignore[arg-type]
        assert torch.equal(sample(score, (3, 2), steps=4, seed=0).x, plain)
        assert one.replayed > 3 and other.replayed == 0 == other.recorded
        x = torch.ones(3, 2)
        made(x, 0.5, {"label": torch.tensor([0, 1, 2])}).sum().backward()
    assert all(p.grad is not None for p in made.net.parameters())  # type: ignore[union-attr]


def doubled(x: Tensor, c: Tensor, flag: Any = None, **named: Any) -> Any:
    return x * c[:, None] * (2.0 if flag else 1.0)


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "another shape": ((torch.ones(4, 2), torch.ones(4)), {}),
    "another dtype": ((torch.ones(3, 2, dtype=torch.float64), torch.ones(3)), {}),
    "another format": ((torch.ones(2, 3).mT, torch.ones(3)), {}),
    "another number": ((torch.ones(3, 2), torch.ones(3)), {"flag": 1}),
    "a number of another kind": ((torch.ones(3, 2), torch.ones(3)), {"flag": 1.0}),
    "another name": ((torch.ones(3, 2), torch.ones(3)), {"v": torch.ones(3)}),
    "a tensor in a mapping": ((torch.ones(3, 2), torch.ones(3)), {"v": {"a": torch.ones(3)}}),
    "a tensor in a list": ((torch.ones(3, 2), torch.ones(3)), {"v": [torch.ones(3)]}),
    "None": ((torch.ones(3, 2), torch.ones(3)), {"v": None}),
}


def test_each_kind_of_call_is_recorded_once() -> None:
    tape = Tape()
    replays = Replays(doubled, CPU, tape, most=20)
    for _ in range(2):
        replays(torch.ones(3, 2), torch.ones(3))
        for args, kwargs in CALLS.values():
            assert torch.equal(replays(*args, **kwargs), doubled(*args, **kwargs))
    assert tape.recordings == 1 + len(CALLS) and replays.replayed == 2 * (1 + len(CALLS))


def test_new_numbers_of_the_same_kind_are_a_replay() -> None:
    tape = Tape()
    replays = Replays(doubled, CPU, tape)
    for seed in range(4):
        x, c = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)), torch.full((), 0.5 + seed).expand(3)
        assert torch.equal(replays(x, c, v={"a": x}), doubled(x, c))
    assert tape.recordings == 1


def test_autocast_and_moved_parameters_are_other_kinds() -> None:
    net, tape = nn.Linear(2, 2), Tape()
    with replaying(net, tape), torch.no_grad():
        x = torch.ones(3, 2)
        plain = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype == torch.bfloat16
        assert tape.recordings == 2
        net.weight.mul_(2.0)  # in place: the same memory
        assert torch.equal(net(x), x @ net.weight.mT + net.bias) and tape.recordings == 2
        net.weight.data = torch.zeros(2, 2)
        assert torch.equal(net(x), net.bias.expand(3, 2)) and tape.recordings == 3
        assert not torch.equal(plain, net(x))


def test_modes_and_replaced_parts_are_other_kinds() -> None:
    """Dropout of one mode is not replayed in the other, nor weights that the network no longer has."""
    net, tape, x = nn.Sequential(nn.Linear(2, 2), nn.Dropout(1.0)), Tape(), torch.ones(3, 2)
    with replaying(net, tape), torch.no_grad():
        assert not net.train()(x).any() and tape.recordings == 1
        assert net.eval()(x).any() and tape.recordings == 2
        assert not net.train()(x).any() and tape.recordings == 2
        net.eval()[0].weight = nn.Parameter(torch.eye(2))
        net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)}, assign=True)
        assert torch.equal(net(x), x) and tape.recordings == 3
        net[0] = nn.Identity()
        assert torch.equal(net(x), x) and tape.recordings == 4
    net[0] = nn.Linear(2, 2).requires_grad_(False)
    with replaying(net, tape) as replays:
        net[0].requires_grad_()  # a gradient is wanted from now on
        net(x).sum().backward()
        assert net[0].weight.grad is not None and replays.replayed == 0


def test_the_oldest_kind_is_forgotten() -> None:
    tape = Tape()
    replays = Replays(doubled, CPU, tape, most=2)
    for n in (1, 2, 1, 3, 1, 2):  # 3 puts out 2, which is then recorded anew
        replays(torch.ones(n, 2), torch.ones(n))
    assert tape.recordings == 4


def test_answers_of_several_parts_are_copied() -> None:
    def parts(x: Tensor) -> Any:
        return {"a": x + 1, "b": (x * 2, [x - 1]), "c": None, "d": 3}

    replays = Replays(parts, CPU, Tape())
    first = replays(torch.zeros(2))
    replays(torch.ones(2))
    assert torch.equal(first["a"], torch.ones(2)) and torch.equal(first["b"][1][0], -torch.ones(2))
    assert first["c"] is None and first["d"] == 3
    with pytest.raises(TypeError, match="takes and answers tensors"):
        Replays(lambda x: object(), CPU, Tape())(torch.ones(2))


def test_inference_mode_and_threads() -> None:
    """What one thread records under inference mode another replays outside of it; no answer is lost to another's."""
    replays, wrong = Replays(doubled, CPU, Tape()), []
    with torch.inference_mode():
        assert replays(torch.ones(3, 2), torch.ones(3)).sum() == 6

    def work(value: float) -> None:
        for _ in range(50):
            with torch.no_grad():
                if replays(torch.full((3, 2), value), torch.ones(3)).sum() != 6 * value:
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong and replays.recorded == 1


def test_an_error_puts_the_network_back() -> None:
    net = nn.Linear(2, 2)
    with contextlib.suppress(KeyError), replaying(net, Tape()):
        assert "forward" in vars(net)
        raise KeyError
    assert "forward" not in vars(net)
    vars(net)["forward"] = own = lambda x: x
    with replaying(net, Tape()), replaying(net, Tape()):
        assert torch.equal(net(torch.ones(2)), torch.ones(2))
    assert vars(net)["forward"] is own


def test_a_conditional_unet_in_channels_last() -> None:
    net = weighted(UNet(1, width=8, multipliers=(1, 2), blocks=1, attention_levels=(-1,), num_classes=3))
    made = ScoreModel(net.to(memory_format=torch.channels_last), VP(), "v", sigma_data=1.0)
    score = classifier_free(made, {"label": torch.tensor([0, 1])}, 2.0)
    plain = sample(score, (2, 1, 8, 8), steps=2, seed=0).x
    with replaying(net, Tape()):
        assert torch.equal(sample(score, (2, 1, 8, 8), steps=2, seed=0).x, plain)


def test_what_cannot_be_captured_is_refused() -> None:
    made = model()
    with (
        pytest.raises(ValueError, match=r"MLP is on cpu\. Call model\.to\('cuda'\) first"),
        captured(made.bind(label=1)),
    ):
        pass
    with pytest.raises(TypeError, match="at least one score"), captured():
        pass
    with pytest.raises(TypeError, match=r"network that is an nn\.Module"), captured(VP()):
        pass
    with pytest.raises(TypeError, match="no module"), captured(ScoreModel(lambda x, c: x, VP())):
        pass
    with pytest.raises(ValueError, match=r"most must be"), captured(made, most=0):
        pass


class Script:
    """Records the operations of the work alone, and repeats those: no Python of the network, as a CUDA graph does."""

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        done: list[tuple[Any, Any, Any, Any]] = []

        class Listed(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = function(*args, **(kwargs or {}))
                done.append((function, args, kwargs or {}, out))
                return out

        with Listed():
            answer = work()

        def replay() -> None:
            for function, args, kwargs, out in done:
                for held, new in zip(_flat(out), _flat(function(*args, **kwargs)), strict=True):
                    if held.data_ptr() != new.data_ptr():
                        held.copy_(new)

        return replay, answer


@pytest.mark.parametrize("frozen", [False, True])
def test_edited_maps_and_nulls_are_never_replayed(frozen: bool) -> None:
    """A replay asks nobody in Python: it would pass edits by, and of a frozen network the gradients to its nulls."""
    words = {"caption": {"vocabulary": 5, "length": 3, "width": 8}}
    net = weighted(UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(0,), captions=words))
    made = ScoreModel(net.requires_grad_(not frozen), VP(), "edm", sigma_data=0.5)
    source, target = {"caption": torch.tensor([[1, 2, 0]])}, {"caption": torch.tensor([[1, 3, 4]])}
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def run() -> list[Tensor]:
        found = editing.invert(made.bind(**source), x, steps=2, trajectory=True)
        real = editing.null_text(made, found, source, 3.0, iterations=2)
        edited = editing.prompt_to_prompt(made, x, source, target, steps=3, seed=0)
        return [found.x, real.reconstruction, real.decoded(target).x, edited.source, edited.x]

    plain = run()
    with replaying(net, Script()) as replays:
        got = run()
    assert replays.replayed > replays.recorded > 0  # the inversion, and what no map of which is edited
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
