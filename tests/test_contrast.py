"""The contrastive loss: against a double loop, at its least value, its gradient, and the information it vouches for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.losses import contrastive_loss, information_bound

F64 = torch.float64


def logits_of(batch: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(batch, batch, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same_of(words: Tensor) -> Tensor:
    return words[:, None] == words[None]


def test_it_is_the_divergence_that_a_double_loop_finds() -> None:
    words = torch.tensor([0, 1, 0, 2, 1, 0])
    s, same = logits_of(6), same_of(words)
    loss = contrastive_loss(s, same)
    for i in range(6):
        mates = [j for j in range(6) if words[j] == words[i]]
        total = 0.0
        for row in (s[i].tolist(), s[:, i].tolist()):
            norm = math.log(sum(math.exp(value) for value in row))
            total += 0.5 * sum(math.log(1 / len(mates)) - (row[j] - norm) for j in mates) / len(mates)
        assert loss[i].item() == pytest.approx(total, rel=1e-12)  # float64


def test_without_equal_captions_it_is_the_cross_entropy_of_both_directions() -> None:
    s, labels = logits_of(5), torch.arange(5)
    wanted = 0.5 * (F.cross_entropy(s, labels, reduction="none") + F.cross_entropy(s.T, labels, reduction="none"))
    torch.testing.assert_close(contrastive_loss(s), wanted)
    torch.testing.assert_close(contrastive_loss(s, torch.eye(5, dtype=torch.bool)), wanted)


def test_equal_captions_cost_nothing_where_the_logits_know_them() -> None:
    words = torch.tensor([0, 1, 0, 2, 1, 0])
    same = same_of(words)
    perfect = torch.where(same, 50.0, -50.0).to(F64)
    assert contrastive_loss(perfect, same).abs().max() < 1e-12
    # as negatives of each other they could not be told apart
    assert contrastive_loss(perfect)[0].item() == pytest.approx(math.log(3))
    # all equal: nothing to learn
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert contrastive_loss(torch.zeros(4, 4), everything).tolist() == pytest.approx([0.0] * 4, abs=1e-7)  # float32


def test_equal_captions_share_the_pull_of_their_pictures() -> None:
    """Of columns that are equal, as equal captions make them, the gradients with and without ``same`` add up alike."""
    words = torch.tensor([0, 1, 0, 2])
    table = logits_of(4)[:, :3]
    found = []
    for same in (same_of(words), None):
        leaf = table.clone().requires_grad_()
        contrastive_loss(leaf[:, words], same).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1])


def test_the_gradient_of_the_temperature_in_closed_form() -> None:
    words = torch.tensor([0, 1, 0, 2, 3])
    cosines, same = logits_of(5).tanh(), same_of(words)
    tau = torch.tensor(1.3, dtype=F64, requires_grad=True)
    contrastive_loss(tau.exp() * cosines, same).mean().backward()  # type: ignore[no-untyped-call]
    s = tau.detach().exp() * cosines
    target = same.double() / same.sum(1, keepdim=True)
    # d/dτ of -Σ_j T_ij log softmax_j(e^τ c_ij) is Σ_j (softmax_ij - T_ij) e^τ c_ij
    wanted = 0.5 * (((s.softmax(1) - target) * s).sum(1) + ((s.T.softmax(1) - target) * s.T).sum(1)).mean()
    assert tau.grad is not None
    assert tau.grad.item() == pytest.approx(wanted.item(), rel=1e-10)  # float64


JOINT = torch.tensor([[0.20, 0.02, 0.03], [0.02, 0.25, 0.03], [0.05, 0.05, 0.10], [0.03, 0.18, 0.04]], dtype=F64)
PMI = (JOINT / (JOINT.sum(1, keepdim=True) * JOINT.sum(0))).log()
INFORMATION = float((JOINT * PMI).sum())


def pairs_of(batches: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures and captions (batches, size) of a discrete law, whose captions repeat all the time."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.multinomial(JOINT.flatten(), batches * size, replacement=True, generator=draw)
    return (cells // 3).reshape(batches, size), (cells % 3).reshape(batches, size)


def of_table(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return contrastive_loss(table[x][:, y], same_of(y))


def test_the_information_that_it_vouches_for_is_that_of_the_pairs() -> None:
    """The bound of the best logits rises to the mutual information with the batch, and none goes beyond it."""
    bounds = {}
    for size in (2, 8, 64):
        x, y = pairs_of(4096 // size, size)
        each = torch.stack([information_bound(of_table(PMI, a, b), same_of(b)) for a, b in zip(x, y, strict=True)])
        bounds[size] = each.mean().item()
        error = each.std().item() / math.sqrt(len(each))
        assert bounds[size] < INFORMATION + 4 * error  # a bound, but for sampling
        # other logits vouch for less
        for other in (0 * PMI, 0.5 * PMI, PMI + torch.tensor([0.0, 1.0, 0.0, -1.0], dtype=F64)[:, None]):
            few = [information_bound(of_table(other, a, b), same_of(b)) for a, b in zip(x, y, strict=True)]
            gap = each - torch.stack(few)
            assert gap.mean().item() > 0, size
    assert bounds[2] < bounds[8] < bounds[64]
    # what a batch of 64 misses is of order 1/64 of the variance of e^PMI, and 4096 pairs leave 0.01
    assert bounds[64] == pytest.approx(INFORMATION, abs=0.03)
    # the number of equal captions is counted: as if they were negatives, the same bound
    x, y = pairs_of(1, 64)
    s = PMI[x[0]][:, y[0]]
    plain = information_bound(contrastive_loss(s)).item()
    assert information_bound(of_table(PMI, x[0], y[0]), same_of(y[0])).item() == pytest.approx(plain, rel=1e-10)


def test_its_minimiser_is_the_log_ratio_of_densities() -> None:
    table = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    x, y = pairs_of(100, 64, seed=1)
    descent = torch.optim.LBFGS([table], lr=1, max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        loss = torch.stack([of_table(table, a, b).mean() for a, b in zip(x, y, strict=True)]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    descent.step(closure)  # type: ignore[no-untyped-call]
    found = table.detach() - table.detach().mean()
    # up to a constant; the rarest cell, of probability 0.02, is seen 128 times: 4 standard errors of its logarithm
    assert (found - (PMI - PMI.mean())).abs().max() < 4 / math.sqrt(128)
    assert (found - (PMI - PMI.mean())).square().mean().sqrt() < 0.12


def test_half_precision_is_summed_in_float32() -> None:
    s = logits_of(8).float().bfloat16()
    assert contrastive_loss(s).dtype == torch.float32
    torch.testing.assert_close(contrastive_loss(s), contrastive_loss(s.float()))


def test_bad_arguments_are_refused() -> None:
    s, same = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"logits must be \(B, B\)"):
        contrastive_loss(s[:2])
    with pytest.raises(TypeError, match="same must be a dense bool tensor"):
        contrastive_loss(s, same.float())
    with pytest.raises(ValueError, match="each two pairs"):
        contrastive_loss(s, same[:2])
    with pytest.raises(ValueError, match="the same as itself"):
        contrastive_loss(s, ~same)
    lopsided = same.clone()
    lopsided[0, 1] = True
    with pytest.raises(ValueError, match="symmetric"):
        contrastive_loss(s, lopsided)
    with pytest.raises(ValueError, match="one number for each pair"):
        information_bound(s)
