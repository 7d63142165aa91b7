"""What finds which fault: the faults are what they are called, and the tests find the coarse ones."""

from __future__ import annotations

import torch

import faults


def test_faults_are_what_they_are_called() -> None:
    training, samples, data = faults.thirds(0)
    assert len(training) == len(samples) == len(data) == 599
    made = faults.spoilt(samples, training, 0)
    assert torch.equal(made["nothing"], samples[:]["x"])
    assert len(made["a class missing"]) == int((samples.label != 9).sum())  # type: ignore[union-attr]
    assert len(made["a quarter, repeated"].unique(dim=0)) <= 599 // 4
    assert float(made["blur"].std() / made["nothing"].std()) < 1  # it takes contrast away, and no light
    inside = made["nothing"][:, :, 1:-1, 1:-1]
    assert abs(float(made["blur"][:, :, 1:-1, 1:-1].mean() - inside.mean())) < 0.05
    known = training[:]["x"].flatten(1)
    found = faults.copying(known)["memorised share"](made["a third copied"].flatten(1), data[:]["x"].flatten(1))
    assert found.statistic > 0.33 and found.p_value < 1e-6


def test_a_row_is_the_power_in_percent() -> None:
    config = faults.Config(size=40, repeats=3)
    spoilt = {"nothing": torch.zeros(50, 2), "all": torch.ones(50, 2)}
    test = faults.tests_of(19, 0)["sliced Wasserstein"]
    assert faults.row(test, spoilt, torch.zeros(60, 2), config) == ["0", "100"]
    assert abs(faults.above(1.6449) - 0.05) < 1e-4
