"""Feature spaces: pixels, modules of others with their preprocessing, and a network that is trained, saved and read."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import metrics
from scoresde.data import Dataset, from_tensors
from scoresde.metrics import (
    FeatureNet,
    ModuleFeatures,
    NetFeatures,
    PixelFeatures,
    load_features,
    save_features,
    train_features,
)
from scoresde.metrics.feature_training import contrast, view
from scoresde.train import CheckpointError


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Stand(nn.Module):
    """Instead of a network of torchvision or timm: takes three channels, normalises over the batch, drops out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


@pytest.fixture
def stand() -> Stand:
    torch.manual_seed(0)
    return Stand().eval()


# ---- pixels and modules ----


def test_pixels_are_the_samples() -> None:
    x = normals(5, 1, 2, 3)
    found = PixelFeatures()(x, batch_size=2)
    assert found.dtype == torch.float64 and torch.equal(found, x.flatten(1).double())
    assert PixelFeatures().fingerprint == PixelFeatures().fingerprint


def test_a_module_gets_what_it_was_trained_on(stand: Stand) -> None:
    """Grey in [-1, 1] to three channels of size 8 in [0, 1], less the mean, over the deviation."""
    x = normals(5, 1, 4, 4).clamp(-1, 1)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    features = ModuleFeatures(stand, "stand-in", size=8, channels=3, mean=mean, std=std)
    found = features(x, batch_size=2)
    assert [len(seen) for seen in stand.seen] == [2, 2, 1] and found.shape == (5, 5) and found.dtype == torch.float64
    wide = nn.functional.interpolate((x + 1) / 2, (8, 8), mode="bilinear", align_corners=False, antialias=True)
    for k in range(3):
        torch.testing.assert_close(torch.cat(stand.seen)[:, k], (wide[:, 0] - mean[k]) / std[k])
    # an image of one grey is the same at any size
    flat = ModuleFeatures(stand, "stand-in", channels=3, range=(0.0, 255.0))
    stand.seen.clear()
    flat(torch.full((1, 1, 6, 6), 51.0))
    torch.testing.assert_close(stand.seen[0], torch.full((1, 3, 6, 6), 0.2))


def test_fingerprints_tell_spaces_apart(stand: Stand) -> None:
    plain = ModuleFeatures(stand, "stand-in", size=8).fingerprint
    assert plain == ModuleFeatures(copy.deepcopy(stand), "another name", size=8).fingerprint and len(plain) == 12
    others = [ModuleFeatures(stand, "a", size=9), ModuleFeatures(stand, "a", size=8, mean=(0.5,))]
    changed = copy.deepcopy(stand)
    with torch.no_grad():
        changed.conv.bias[0] += 1e-6
    buffers = copy.deepcopy(stand)
    assert buffers.norm.running_mean is not None
    buffers.norm.running_mean[0] += 1
    others += [ModuleFeatures(changed, "a", size=8), ModuleFeatures(buffers, "a", size=8)]
    function = ModuleFeatures(lambda x: x.flatten(1), "flat")
    assert len({plain, function.fingerprint, *(one.fingerprint for one in others)}) == 6
    assert str(function) == f"flat ({function.fingerprint})"


def test_half_precision_is_measured_in_float64(stand: Stand) -> None:
    half = copy.deepcopy(stand).to(torch.bfloat16)
    x = normals(3, 3, 6, 6).double()
    found = ModuleFeatures(half, "half")(x)
    assert found.dtype == torch.float64 and half.seen[-1].dtype == torch.bfloat16
    torch.testing.assert_close(found, ModuleFeatures(stand, "full")(x), rtol=0.05, atol=0.05)  # 8 bits


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda s: ModuleFeatures(s.train(), "a"), "evaluation mode"),
        (lambda s: ModuleFeatures(s, ""), "name must be a text"),
        (lambda s: ModuleFeatures(s, "a", size=(3, 3, 3)), "height and width"),
        (lambda s: ModuleFeatures(s, "a", range=(1.0, -1.0)), "lower first"),
        (lambda s: ModuleFeatures(s, "a", std=(0.0,)), "std must be positive"),
        (lambda s: ModuleFeatures(3, "a"), "module must be a function"),
        (lambda s: ModuleFeatures(s, "a", mean=(1.0, 2.0))(normals(2, 3, 5, 5)), "mean must hold one number"),
        (lambda s: ModuleFeatures(s, "a")(normals(2, 3)), "images"),
        (lambda s: ModuleFeatures(s, "a", channels=3)(normals(2, 2, 5, 5)), "1 or 3 channels"),
        (lambda s: ModuleFeatures(lambda x: x, "a")(normals(2, 3, 5, 5)), r"must be floating \(B, d\)"),
        (lambda s: ModuleFeatures(lambda x: x.flatten(1) / 0, "a")(normals(2, 3, 5, 5)), "must be finite"),
        (lambda s: PixelFeatures()(normals(0, 3)), "hold samples"),
    ],
)
def test_what_is_wrong_is_said(stand: Stand, make: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        make(stand)


# ---- a network of our own ----


def stripes(n: int, seed: int = 0) -> Dataset:
    """Images of horizontal or vertical stripes, noisy: two classes that no mean tells apart."""
    label = torch.arange(n) % 2
    wave = torch.sin(torch.arange(8) * math.pi / 2 + 0.7)
    across, down = wave.expand(8, 8), wave[:, None].expand(8, 8)
    signs = 2 * (torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) < 0.5) - 1
    x = signs * torch.where(label[:, None, None, None] == 0, across, down) + 0.5 * normals(n, 1, 8, 8, seed=seed + 1)
    return from_tensors(x, label)


SMALL: dict[str, Any] = {"width": 8, "features": 6, "batch_size": 32}


def test_labels_are_learned_and_spread_the_classes() -> None:
    features = train_features(stripes(400), steps=60, **SMALL)
    assert features.name == "learned-labels" and features.trained["accuracy"] > 0.9 and features.trained["steps"] == 60
    new = stripes(200, seed=9)
    found = features(new[:]["x"])
    assert found.shape == (200, 6)
    low, high = found[new.label == 0], found[new.label == 1]  # type: ignore[index]
    # in pixels both classes have mean 0; in this space they are apart
    within = (low.std(0) + high.std(0)).square().mean().sqrt()
    assert float((low.mean(0) - high.mean(0)).square().mean().sqrt() / within) > 0.5


def test_without_labels_views_of_a_sample_come_together() -> None:
    dataset = stripes(400)
    unlabelled = Dataset(dataset.data, None, dataset.scaling, None)
    features = train_features(unlabelled, steps=80, **SMALL)
    assert features.name == "learned-views"
    fresh = train_features(unlabelled, steps=1, lr=1e-9, **SMALL)
    assert features.trained["loss"] < 0.8 * fresh.trained["loss"]
    # unlike a random network it makes the nearest other sample one of the same class more often
    x, label = stripes(200, seed=9)[:]["x"], torch.arange(200) % 2

    def agreement(space: NetFeatures) -> float:
        far = torch.cdist(space(x), space(x)).fill_diagonal_(math.inf)
        return float((label[far.argmin(1)] == label).double().mean())

    assert agreement(features) > agreement(fresh) + 0.05


@pytest.mark.parametrize("event", [(5,), (2, 12), (1, 6, 9), (1, 4, 4, 4)])
def test_samples_of_any_shape_have_features(event: tuple[int, ...]) -> None:
    dataset = from_tensors(normals(40, *event))
    features = train_features(dataset, steps=2, **SMALL)
    x = dataset[:7]["x"]
    found = features(x)
    assert found.shape == (7, 6)
    # of each sample alone: not of its batch
    torch.testing.assert_close(found, features(x, batch_size=1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="for this network"):
        features(normals(3, *event, 1))


def test_training_repeats_and_leaves_generators_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (train_features(stripes(60), steps=3, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert torch.equal(state, torch.get_rng_state())
    timed = train_features(stripes(60), steps=10**6, seconds=0.2, **SMALL)
    assert 0 < timed.trained["steps"] < 10**6


def test_contrast_is_the_papers_sum() -> None:
    one, other = normals(4, 3).double(), normals(4, 3, seed=1).double()
    z = torch.cat([one, other])
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(8):
        j = (i + 4) % 8
        among = [math.exp(float(z[i] @ z[k]) / 0.2) for k in range(8) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[j]) / 0.2) / sum(among))
    assert float(contrast(one, other)) == pytest.approx(total / 8, rel=1e-12)


def test_views_differ_and_keep_their_shape() -> None:
    for x in (normals(6, 5), normals(6, 2, 9), normals(6, 1, 8, 8)):
        one, other = (view(x, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert one.shape == x.shape and not torch.equal(one, other) and bool(one.isfinite().all())
        assert torch.equal(one, view(x, torch.Generator().manual_seed(0)))


# ---- files ----


def test_a_saved_space_is_the_same(tmp_path: Path) -> None:
    features = train_features(stripes(60), steps=2, **SMALL)
    save_features(features, tmp_path / "space")
    again = load_features(tmp_path / "space")
    x = normals(5, 1, 8, 8)
    assert torch.equal(again(x), features(x))
    assert (again.fingerprint, again.name, again.trained) == (features.fingerprint, features.name, features.trained)
    with pytest.raises(CheckpointError, match="holds something already"):
        save_features(features, tmp_path / "space")


def test_damaged_and_other_folders_are_refused(tmp_path: Path) -> None:
    place = save_features(NetFeatures(FeatureNet((2,), 0, width=8, features=4), "views"), tmp_path / "space")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"kind": "labels"}))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_features(place)
    (place / "config.json").write_text(json.dumps(config))
    weights = (place / "features.safetensors").read_bytes()
    (place / "features.safetensors").write_bytes(weights[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_features(place)
    with pytest.raises(CheckpointError, match="missing"):
        load_features(tmp_path)


def test_too_few_samples_and_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 samples"):
        train_features(stripes(19))
    with pytest.raises(TypeError, match="dataset must be a Dataset"):
        train_features(normals(30, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 8"):
        FeatureNet((2,), 3, width=12)
    with pytest.raises(ValueError, match="event must be"):
        FeatureNet((2, 0), 3)
    with pytest.raises(FloatingPointError, match="lower lr"):
        train_features(stripes(60), steps=150, lr=1e30, **SMALL)
    assert metrics.PixelFeatures().name == "pixels"
