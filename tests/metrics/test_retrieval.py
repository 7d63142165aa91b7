"""Recall at k: by hand, by all orders of ties, and of similarities that know nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from scoresde.metrics import recall_at


def test_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.1, 0.7, 0.6]])
    right = torch.eye(3, dtype=torch.bool)
    assert [recall_at(similarity, right, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 1, 1])
    # several right answers: one of them is enough
    right[1, 2] = True
    assert recall_at(similarity, right, 1) == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_ties_come_in_random_order(k: int) -> None:
    similarity = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    right = torch.tensor([[False, True, False, True, True]])
    hits = []
    for order in itertools.permutations(range(5)):  # ties by the order, a sort that is stable
        ranked = sorted(range(5), key=lambda i: (-similarity[0, i].item(), order[i]))
        hits.append(any(right[0, i] for i in ranked[:k]))
    assert recall_at(similarity, right, k) == pytest.approx(sum(hits) / len(hits))


def test_what_knows_nothing_scores_chance() -> None:
    right = torch.eye(7, dtype=torch.bool)
    assert recall_at(torch.zeros(7, 7), right, 3) == pytest.approx(3 / 7)
    assert recall_at(torch.zeros(7, 7), right, 9) == 1.0  # more than there are
    many = torch.zeros(2, 50_000)
    right = many.bool()
    right[:, 7] = True
    # logarithms of factorials of 5e4 are 5e5, to 1e-16 of that: 1e-10 beside a chance of 2e-5
    assert recall_at(many, right, 1) == pytest.approx(1 / 50_000, rel=1e-4)


def test_bad_arguments_are_refused() -> None:
    similarity, right = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"similarity must be \(N, M\)"):
        recall_at(similarity[0], right[0])
    with pytest.raises(TypeError, match="right must be a bool tensor"):
        recall_at(similarity, right.float())
    with pytest.raises(ValueError, match="as the similarity is"):
        recall_at(similarity, right[:, :2])
    right[1] = False
    with pytest.raises(ValueError, match=r"without any in rows \[1\]"):
        recall_at(similarity, right)
