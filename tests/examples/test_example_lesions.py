"""examples/lesions.py in process, with tiny settings: blobs as they are said to be, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lesions
from shared.digits import load
from shared.lesions.blobs import CONTRAST, SEEN, with_blobs
from shared.lesions.maps import Found, figures, smoothed

SMALL: dict[str, Any] = {"count": 10, "samples": 2, "steps": 1, "levels": (0.5,), "cpu": True}


@pytest.mark.parametrize("channels", [1, 3])
def test_blobs_are_what_their_masks_say(channels: int) -> None:
    x = torch.rand(50, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ill = with_blobs(x, 3)
    changed = (ill.x - x).abs().amax(1, keepdim=True)
    assert torch.equal(ill.mask, changed >= SEEN) and ill.x.min() >= -1 and ill.x.max() <= 1
    rows, columns = ((ill.mask.any(axis)).flatten(1).sum(1) for axis in (3, 2))
    # a disc of radius 0.11 to 0.21 of 16 pixels, half a pixel more at its edge
    assert int(torch.maximum(rows, columns).max()) <= 2 * (0.21 * 16 + 0.5) + 1
    assert ill.mask.flatten(1).any(1).all()
    whole = [(ill.x[i] - x[i])[:, changed[i, 0] > 0].mean(1).abs().max() for i in range(50)]
    assert min(map(float, whole)) > CONTRAST / 2  # against what it covers, with its soft edge
    assert torch.equal(with_blobs(x, 3).x, ill.x) and not torch.equal(with_blobs(x, 4).x, ill.x)
    digits = load(0)[1][:20]["x"]
    levels = (with_blobs(digits, 0, levels=17).x + 1) * 8
    assert torch.equal(levels, levels.round())


def test_figures_of_maps_that_are_known() -> None:
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:5, 3:6] = True
    right = figures(Found(mask.float()), mask, 1)
    assert right["auc"] == right["auc_smoothed"] == right["auc_by_picture"] == 1.0 and right["best_dice"] > 0.9
    assert figures(Found(1 - mask.float()), mask, 1)["auc"] == 0.0
    flat = torch.full((1, 1, 5, 5), 0.3)
    torch.testing.assert_close(smoothed(flat, 3), flat)
    spike = torch.zeros(1, 1, 5, 5)
    spike[..., 2, 2] = 16.0
    assert smoothed(spike, 1)[0, 0, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_it_measures_every_map_and_writes_them(tmp_path: Path) -> None:
    report = lesions.main(lesions.Config(out=tmp_path, **SMALL))
    assert json.loads((tmp_path / "report.json").read_text())["maps"].keys() == report["maps"].keys()
    assert (tmp_path / "lesions.png").read_bytes()[:4] == b"\x89PNG"
    maps = report["maps"]
    assert {"chance", "unusual pixels", "counterfactuals", "counterfactuals, label", "denoiser, one step"} < set(maps)
    assert maps["denoiser, one step"]["nfe"] == 2 and maps["counterfactuals"]["nfe"] == 4
    # ten pictures with blobs, by the shipped model; noise knows nothing of them
    assert maps["denoiser, one step, label"]["auc"] > 0.8 and 0.3 < maps["chance"]["auc"] < 0.7


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"count": 1}, "--count"),
        ({"samples": 1}, "--samples"),
        ({"smoothing": -1}, "--smoothing"),
        ({"levels": ()}, "--levels"),
        ({"levels": (0.5, -1.0)}, "--levels"),
        ({"data": Path("x")}, "go together"),
        ({"checkpoint": "runs/x"}, "go together"),
    ],
)
def test_bad_flags(flags: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        lesions.main(lesions.Config(out=tmp_path, **{**SMALL, **flags}))
