"""Null-text inversion: closed forms where guidance is linear in the null, exact starts, independence, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor, nn

from scoresde import grids
from scoresde.editing import NullText, invert, null_text, prompt_to_prompt
from scoresde.editing.null_steps import optimised
from scoresde.guidance import classifier_free
from scoresde.guidance.parts import parts_of
from scoresde.models import ScoreModel
from scoresde.models.combination import SCORE
from scoresde.nn import MLP, AttentionMaps, DiT, MagnitudeUNet, UNet, lora
from scoresde.nn.attention_maps import cross_attention
from scoresde.nn.blocks import ResidualBlock
from scoresde.nn.encodings import encoders_of, encodings_of, shifted, towards
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, RectifiedFlow
from scoresde.solvers import DDIM, EulerMaruyama, Heun

SPREAD = 0.7  # the deviation of each law below


def net(x: Tensor, c: Tensor, mean: Tensor) -> Tensor:
    """E[x_0 | x_t] of N(mean, SPREAD²) from x/α and σ/α: the exact conditional score, linear in the condition."""
    gain = SPREAD**2 / (SPREAD**2 + torch.exp(2 * c))[:, None]
    return mean + gain * (x - mean)


class OfTheRatio(nn.Module):
    """The same for x of any scale: the model hands x, and c alone says nothing of α."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    def forward(self, x: Tensor, c: Tensor, mean: Tensor) -> Tensor:
        alpha = self.sde.alpha(self.sde.t_of_log_snr(-2 * c.double()))[:, None].to(x.dtype)
        return net(x / alpha, c, mean)


def exact(sde: SDE) -> ScoreModel:
    return ScoreModel(OfTheRatio(sde), sde, predicts="x0")


MEAN = normal(3, 2, seed=2) * 0.5
X0 = MEAN + SPREAD * normal(3, 2, seed=3)
NULL = {"mean": 0.0}


def of_pictures(sde: SDE, scale: float = 5.0, *, way: dict[str, Any] | None = None, **options: Any) -> NullText:
    model, conditions = exact(sde), {"mean": MEAN}
    found = invert(model.bind(**conditions), X0, **{"steps": 6, "trajectory": True, **(way or {})})
    return null_text(model, found, conditions, scale, null=NULL, **options)


# -- the optimum -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), VE(), EDM(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_the_nulls_lead_along_the_inversion(sde: SDE) -> None:
    """Guidance of laws N(m, s²) is the score of N((1 - w) ∅ + w y, s²), and a DDIM step is affine in that mean.

    So the null that leads to the inversion's state is known, and how far another null ends from there.
    """
    way = {"t": 0.9 * sde.T} if isinstance(sde, RectifiedFlow) else {}
    found, model = of_pictures(sde, way=way, iterations=25, rate=0.5, tolerance=1e-9), exact(sde)
    path = invert(model.bind(mean=MEAN), X0, steps=6, trajectory=True, **way).trajectory
    states = DDIM().solve(Reverse(found.score(), 0.0), found.x, found.grid, trajectory=True).trajectory
    assert path is not None and states is not None
    for i, (t, s) in enumerate(itertools.pairwise(found.grid)):
        grid, size = torch.stack([t, s]), float(torch.hypot(sde.alpha(s), sde.sigma(s)))

        def led(mean: Tensor, x: Tensor = states[i], grid: Tensor = grid) -> Tensor:
            return DDIM().solve(Reverse(model.bind(mean=mean), 0.0), x, grid).x

        start, slope = led(torch.zeros_like(MEAN)), led(torch.ones_like(MEAN)) - led(torch.zeros_like(MEAN))
        wanted = (path[i + 1] - start) / slope  # the mean under which the step leads to the inversion's state
        null = (wanted - found.scale * MEAN) / (1 - found.scale)
        missed = (1 - found.scale) * slope * (found.nulls["mean"][i] - null) / size
        # float64; slopes of 1e-3, by which a state was divided
        torch.testing.assert_close(missed.square().mean(1).sqrt(), found.residual[i], rtol=1e-6, atol=1e-9)
    # 25 iterations of Adam get so far on a quadratic; a sign wrong anywhere leads away
    assert float(found.round_trip.max()) < 0.1 * float(found.plain.min())


def test_of_an_exact_inversion_the_null_is_the_condition_itself() -> None:
    """Unguided steps lead back along it, and guidance is none where both branches are the same."""
    way = {"iterations": 200, "tolerance": 1e-13}
    begun = of_pictures(VP(), way=way, start=1.0)
    assert torch.equal(begun.nulls["mean"], MEAN.expand(6, -1, -1))
    assert float(begun.round_trip.max()) < 1e-10
    assert begun.nfe == 2 + 6 * 4  # to start; each step the conditional branch, one null, and both for the plain one


def test_more_iterations_come_nearer_and_the_tolerance_ends_them() -> None:
    few, many = (of_pictures(VP(), iterations=n, rate=0.2) for n in (3, 20))
    assert bool((many.round_trip < few.round_trip).all()) and bool((few.round_trip < few.plain).all())
    loose = of_pictures(VP(), iterations=20, rate=0.2, tolerance=0.05)
    assert loose.nfe < many.nfe and float(loose.residual.max()) <= 0.05 < 0.1 < float(loose.plain.max())


def test_each_sample_stands_alone() -> None:
    together = of_pictures(VP(), iterations=8)
    model = exact(VP())
    for i in range(len(X0)):
        found = invert(model.bind(mean=MEAN[i : i + 1]), X0[i : i + 1], steps=6, trajectory=True)
        alone = null_text(model, found, {"mean": MEAN[i : i + 1]}, null=NULL, iterations=8)
        torch.testing.assert_close(alone.nulls["mean"][:, 0], together.nulls["mean"][:, i], rtol=1e-5, atol=1e-6)


def test_the_best_seen_is_answered_and_what_is_near_enough_stays() -> None:
    seen: list[Tensor] = []

    def reached(null: Any) -> Tensor:
        seen.append(null["a"].detach())
        return null["a"] ** 2

    first, target = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.9]])
    best = optimised(reached, target, {"a": first}, {"a": torch.ones(2, 1)}, iterations=5, rate=3.0, tolerance=0.0)
    # steps of 3 only lead away from 2, whose square misses by 0.1; the first is there from the beginning
    assert torch.equal(best.null["a"], first) and best.calls == len(seen) == 6
    assert float(best.distance[1]) == pytest.approx(0.1, abs=1e-6)


# -- the score and the way back --------------------------------------------------------------------------------


def test_decoded_is_the_reconstruction_and_the_plain_null_is_classifier_free_guidance() -> None:
    found = of_pictures(VP(), iterations=4)
    back = found.decoded()
    torch.testing.assert_close(back.x, found.reconstruction, rtol=1e-6, atol=1e-6)  # a sum in another order
    torch.testing.assert_close((back.x - X0).square().mean(1).sqrt(), found.round_trip, rtol=1e-4, atol=1e-6)
    guided = classifier_free(exact(VP()), {"mean": MEAN}, 5.0, null=NULL)
    plain = DDIM().solve(Reverse(guided, 0.0), found.x, found.grid).x
    torch.testing.assert_close((plain - X0).square().mean(1).sqrt(), found.plain, rtol=1e-6, atol=1e-7)


def test_the_score_has_the_null_of_its_step() -> None:
    found = of_pictures(VP(), 3.0, iterations=4)
    score, model, x = found.score(), exact(VP()), normal(3, 2, seed=5)
    inside = (found.grid[1:] + found.grid[:-1]) / 2
    for t, step in [(found.grid[0], 0), (found.grid[2], 2), (inside[2], 2), (found.grid[-1], 5), (inside[5], 5)]:
        null = found.nulls["mean"][step]
        wanted = -2 * model.bind(mean=null)(x, t) + 3 * model.bind(mean=MEAN)(x, t)
        torch.testing.assert_close(score(x, t), wanted, rtol=1e-9, atol=1e-9)
    each = torch.stack([inside[0], inside[3], inside[5]])
    rows = torch.stack([score(x, t)[i] for i, t in enumerate(each)])
    torch.testing.assert_close(score(x, each), rows, rtol=1e-9, atol=1e-9)
    weights = [part.weight for part in parts_of(score, x, inside[0], SCORE)]
    assert weights == [-2.0, 3.0] and score.amplification == 5.0
    with pytest.raises(ValueError, match="as many samples as there are nulls, 3"):
        score(x[:2], 0.5)


@pytest.mark.parametrize("solver", [DDIM(), EulerMaruyama()])
def test_any_solver_of_one_evaluation_and_any_grid(solver: Any) -> None:
    sde = VP()
    grid = torch.cat([grids.log_snr(sde, 7), torch.zeros(1, dtype=torch.float64)])
    grid = grid[grid.diff(prepend=torch.tensor([2.0])) < 0]
    found = of_pictures(sde, 2.0, way={"grid": grid, "steps": 50}, solver=solver, iterations=20, rate=0.3)
    assert float(found.round_trip.mean()) < 0.1 * float(found.plain.mean())


def test_a_step_from_where_there_is_no_signal() -> None:
    sde = RectifiedFlow()
    model = ScoreModel(WithoutRatio(), sde, predicts="x0")
    found = invert(model.bind(mean=MEAN), X0, grid=torch.linspace(1, 0.1, 5, dtype=torch.float64), trajectory=True)
    real = null_text(model, found, {"mean": MEAN}, 2.0, null=NULL, iterations=20, rate=0.3)
    assert float(sde.alpha(found.grid[0])) == 0
    assert float(real.round_trip.mean()) < 0.1 * float(real.plain.mean())


class WithoutRatio(nn.Module):
    """Some denoiser that is right for no law, and finite where α = 0."""

    def forward(self, x: Tensor, c: Tensor, mean: Tensor) -> Tensor:
        return mean + 0.3 * (x - mean) * torch.sigmoid(-c)[:, None]


# -- encoders --------------------------------------------------------------------------------------------------

WORDS = {"caption": {"vocabulary": 6, "length": 3, "width": 8, "layers": 1}}
A, B = torch.tensor([[1, 2, 3], [4, 2, 0]]), torch.tensor([[1, 5, 3], [6, 2, 0]])


def awake(module: nn.Module) -> nn.Module:
    """Layers that start at zero have been given weights."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        if not p.detach().any():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return module.eval()


def captioned(**further: Any) -> ScoreModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_levels": (0,)}
    return ScoreModel(awake(UNet(1, captions=WORDS, **shape, **further)), VP(), predicts="edm")


def labelled() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(awake(MLP(2, width=16, depth=1, num_classes=3, vectors={"size": 2})), VP(), predicts="edm")


def transformer() -> ScoreModel:
    torch.manual_seed(0)
    made = DiT(1, patch=2, width=16, depth=1, head_width=8, num_classes=6, embeddings={"clip": 3})
    return ScoreModel(awake(made), VP(), predicts="edm")


def magnitudes() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(awake(MagnitudeUNet(1, width=8, multipliers=(1,), blocks=1, num_classes=6)), VP(), predicts="edm")


PICTURES = normal(2, 1, 4, 4, dtype=torch.float32)
CASES: dict[str, tuple[Callable[[], ScoreModel], Tensor, dict[str, Tensor]]] = {
    "captions": (captioned, PICTURES, {"caption": A}),
    "captions and labels": (lambda: captioned(num_classes=4), PICTURES, {"caption": A, "label": torch.tensor([1, 3])}),
    "labels and vectors": (
        labelled,
        normal(2, 2, dtype=torch.float32),
        {"label": torch.tensor([0, 2]), "size": torch.ones(2, 2)},
    ),
    "embeddings": (transformer, PICTURES, {"clip": normal(2, 3, 3, dtype=torch.float32), "label": A[:, 0]}),
    "magnitudes": (magnitudes, PICTURES, {"label": torch.tensor([1, 3])}),
}


@pytest.mark.parametrize("kind", CASES)
def test_encodings_lie_between_the_null_and_the_condition(kind: str) -> None:
    """Shifted by nothing of the way it is the null's branch, by all of it the conditional one, tokens and all."""
    make, x, given = CASES[kind]
    model, t = make(), torch.tensor(0.4, dtype=torch.float64)
    nulls = {name: model.net.null_conditions[name] for name in given}  # type: ignore[union-attr, index]
    none = {name: torch.full_like(value, nulls[name]) for name, value in given.items()}
    encoders = encoders_of(model, given)
    with torch.no_grad():
        plain, wanted = model(x, t, none), model(x, t, given)
        own, other = (encodings_of(encoders, lambda c=c: model(x, t, c)) for c in (none, given))
        for share, answer in ((0.0, plain), (1.0, wanted)):
            moves = {place: towards(own[place], other[place], share) for place in encoders}
            present = {place: counted for place, (_, counted) in moves.items() if counted is not None}
            with shifted(encoders, {place: shift for place, (shift, _) in moves.items()}, present):
                found = model(x, t, none)
            # the same sums with equal tokens more: roundings of float32
            torch.testing.assert_close(found, answer, rtol=1e-4, atol=1e-4)
    assert float((plain - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("null", [torch.tensor([[4, 0, 0]]), torch.tensor([[4, 5, 1]])], ids=["shorter", "longer"])
def test_a_null_of_several_words_starts_where_it_says(null: Tensor) -> None:
    """A negative prompt for the null: tokens that are copied, or left over, would weigh more than they did."""
    model, given, t = captioned(), torch.tensor([[1, 2, 0]]), torch.tensor(0.4, dtype=torch.float64)
    encoders = encoders_of(model, ["caption"])
    x = PICTURES[:1]
    with torch.no_grad():
        calls = [lambda c=c: model(x, t, {"caption": c}) for c in (null, given)]
        own, other = (encodings_of(encoders, call) for call in calls)
        for share, wanted in ((0.0, calls[0]()), (1.0, calls[1]())):
            (place,) = encoders
            shift, present = towards(own[place], other[place], share)
            assert present is not None
            with shifted(encoders, {place: shift}, {place: present}):
                # equal sums but for roundings of the shift, float32
                torch.testing.assert_close(calls[0](), wanted, rtol=1e-5, atol=1e-5)
        assert float((calls[0]() - calls[1]()).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nulls_of_networks_bring_the_picture_back(kind: str, dtype: torch.dtype) -> None:
    make, x0, given = CASES[kind]
    model = make().to(dtype)
    model.requires_grad_(True)
    found = invert(model.bind(**given), x0, steps=3, trajectory=True)
    real = null_text(model, found, given, 3.0, iterations=6)
    # nothing but the direction of descent is claimed of networks without training
    assert bool((real.round_trip < real.plain).all())
    assert all(p.grad is None for p in model.parameters())
    assert not any(value.requires_grad for value in real.nulls.values()) and real.reconstruction.dtype == x0.dtype


def test_checkpointed_blocks_stay_so_and_adapters_act_beside_the_nulls() -> None:
    """Nulls are made before all blocks, so that these may be run again; adapters are those of the merged network."""
    runs: dict[tuple[bool, bool], Any] = {}
    calls = [0]
    for again, merged in ((False, False), (True, False), (False, True)):
        model = captioned(checkpoint=again)
        net: Any = model.net
        adapter = lora(net, 2)
        with torch.no_grad():
            for i, p in enumerate(adapter.parameters):
                p.copy_(0.3 * normal(*p.shape, seed=i))
        if merged:
            adapter.merge()
        blocks = [part for part in net.modules() if isinstance(part, ResidualBlock)]
        found = invert(model.bind(caption=A), PICTURES, steps=3, trajectory=True)
        calls[0] = 0
        hooks = [one.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)) for one in blocks]
        real = null_text(model, found, {"caption": A}, 3.0, iterations=4, tolerance=1e-9)
        runs[again, merged] = real.reconstruction, real.decoded({"caption": B}).x, calls[0]
        for hook in hooks:
            hook.remove()
    for other in ((True, False), (False, True)):
        for one, two in zip(runs[False, False][:2], runs[other][:2], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)  # float32, sums in another order
    assert runs[False, True][2] == runs[False, False][2] < runs[True, False][2]


def test_prompts_share_the_nulls() -> None:
    model = captioned()
    found = invert(model.bind(caption=A), PICTURES, steps=4, trajectory=True)
    real = null_text(model, found, {"caption": A}, 3.0, iterations=4)
    way: dict[str, Any] = {"grid": real.grid, "solver": DDIM(), "denoise": False}
    both = prompt_to_prompt(model, real.x, {"caption": A}, {"caption": B}, null=real, until=0.0, **way)
    torch.testing.assert_close(both.source, real.reconstruction, rtol=1e-5, atol=1e-5)  # sums in another order
    torch.testing.assert_close(both.x, real.decoded({"caption": B}).x, rtol=1e-5, atol=1e-5)
    same = prompt_to_prompt(model, real.x, {"caption": A}, {"caption": B}, null=real, until=1.0, scale=2.0, **way)
    alone = real.decoded({"caption": A}, 2.0).x
    # the map is formed where it is edited, and by the fused kernel where it is not
    torch.testing.assert_close(same.source, alone, rtol=1e-4, atol=1e-4)
    assert float((same.x - both.x).abs().max()) > 1e-3
    seen: list[Tensor] = []

    def own_one(source: Tensor, own: Tensor) -> Tensor:
        seen.append(own)
        return own

    left = prompt_to_prompt(model, real.x, {"caption": A}, {"caption": B}, null=real, until=1.0, edit=own_one, **way)
    torch.testing.assert_close(left.x, both.x, rtol=1e-4, atol=1e-4)
    # one call of the two is edited: that with the caption
    assert len(seen) == (len(real.grid) - 1) * len(cross_attention(model))
    other = AttentionMaps()
    with other.recording(model), torch.no_grad():
        model.bind(caption=B)(real.x, real.grid[0])
    torch.testing.assert_close(seen[0], other.layers[0][0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be \(3,\) for each picture, .* got \(2,\)"):
        real.decoded({"caption": B[:, :2]})
    for bad, match in (
        ({"null": real, "scale": 1.0}, "scale must not be 1"),
        ({"null": of_pictures(VP(), iterations=1)}, "same model"),
    ):
        with pytest.raises(ValueError, match=match):
            prompt_to_prompt(model, real.x, {"caption": A}, {"caption": B}, **way, **bad)


# -- bad input -------------------------------------------------------------------------------------------------


def test_what_it_refuses() -> None:
    model = exact(VP())
    kept = invert(model.bind(mean=MEAN), X0, steps=2, trajectory=True)
    lost = invert(model.bind(mean=MEAN), X0, steps=2)
    pictured = ScoreModel(UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), images={"low": 1}), VP())
    low = invert(pictured.bind(low=PICTURES), PICTURES, steps=2, trajectory=True)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: null_text(model, lost, {"mean": MEAN}, null=NULL), ValueError, "trajectory=True"),
        (lambda: null_text(model, kept, {"mean": MEAN}, 1.0, null=NULL), ValueError, "scale must not be 1"),
        (lambda: null_text(model, kept, {"mean": MEAN}), ValueError, "null"),
        (lambda: null_text(exact(VE()), kept, {"mean": MEAN}, null=NULL), ValueError, "schedule"),
        (lambda: null_text(pictured, low, {"low": PICTURES}), ValueError, "grey picture"),
        (lambda: null_text(model, kept, {"mean": MEAN}, null=NULL, solver=Heun()), TypeError, "OneStep"),
        (lambda: null_text(model, kept, {"mean": MEAN}, null=NULL).score({"size": MEAN}), ValueError, "same names"),
    ]
    for call, error, match in cases:
        with pytest.raises(error, match=match):
            call()
    real = null_text(pictured, low, {"low": PICTURES}, 2.0, null={"low": 0.0}, iterations=2)
    assert real.nulls["low"].shape == (2, *PICTURES.shape)
