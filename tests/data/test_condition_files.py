"""Conditions in files beside the data: read, counted, standardised, and known to the trained model and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.data import Scaling, from_tensors, load
from scoresde.models import ScoreModel
from scoresde.nn import MLP
from scoresde.sde import VP
from scoresde.train import describe, load_model, train

N = 40
RNG = np.random.default_rng(0)
THETA, OBS = RNG.normal(size=(N, 2)), RNG.normal(size=(N, 3)) * [1.0, 5.0, 2000.0] + [0.3, 4.0, 30_000.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "theta.npy", THETA)
    np.save(tmp_path / "obs.npy", OBS)
    return tmp_path


def test_each_column_of_a_condition_in_a_file_is_standardised(folder: Path) -> None:
    data = load(folder / "theta.npy", conditions={"obs": folder / "obs.npy"})
    scaling = data.condition_scalings["obs"]
    # mean and deviation of columns that were stored in float32
    assert torch.allclose(torch.as_tensor(scaling.shift), torch.from_numpy(OBS.mean(0)), rtol=1e-6)
    assert torch.allclose(torch.as_tensor(scaling.scale), torch.from_numpy(OBS.std(0)), rtol=1e-6)
    assert torch.equal(data.conditions["obs"], torch.from_numpy(OBS).float())  # handed out in units of its own
    assert torch.equal(data[:]["x"], load(folder / "theta.npy")[:]["x"])


def test_unit_sized_columns_numbers_and_tokens(folder: Path) -> None:
    np.savez(folder / "more.npz", mass=RNG.normal(size=N) + 3.0, token=np.arange(2 * N).reshape(N, 2), other=OBS)
    files: Any = {"mass": folder / "more.npz", "token": str(folder / "more.npz")}
    data = load(folder / "theta.npy", conditions=files)
    assert list(data.condition_scalings) == ["mass"] and data.conditions["token"].dtype == torch.int64
    plain = from_tensors(torch.from_numpy(THETA), conditions={"mass": data.conditions["mass"]})
    assert not plain.condition_scalings  # in memory it is of about unit size, and left alone
    kept = load(folder / "theta.npy", conditions={"mass": files["mass"]}, condition_scalings={"mass": None})
    assert not kept.condition_scalings
    own = Scaling(3.0, 0.5)
    given = load(folder / "theta.npy", conditions={"mass": files["mass"]}, condition_scalings={"mass": own})
    assert given.condition_scalings == {"mass": own}


def test_the_model_and_its_files_know_the_units(folder: Path) -> None:
    data = load(folder / "theta.npy", conditions={"obs": folder / "obs.npy"})
    model = ScoreModel(MLP(2, width=8, depth=1, vectors={"obs": 3}), VP())
    run = train(model, data, steps=2, batch_size=8, progress=False, folder=folder / "run", cpu=True)
    list(run)
    loaded = load_model(folder / "run")
    assert describe(folder / "run").condition_scalings["obs"] == data.condition_scalings["obs"]
    assert loaded.condition_scalings["obs"] == data.condition_scalings["obs"]
    x, t, obs = torch.zeros(4, 2), 0.5, data.conditions["obs"][:4]
    direct = loaded.net(x, torch.full((4,), float((VP().sigma(t) / VP().alpha(t)).log())),
                        obs=data.condition_scalings["obs"].to_model(obs).float())  # fmt: skip
    # a score of a network that predicts the noise: -ε/σ, in float32
    assert torch.allclose(loaded.bind(obs=obs)(x, t), -direct / VP().sigma(t).float(), rtol=1e-5, atol=1e-6)


def broken(kind: str, folder: Path) -> dict[str, Any]:
    wrong = OBS.copy()
    if kind == "nan":
        wrong[3] = np.nan
    elif kind == "infinite":
        wrong[5, 1] = np.inf
    np.save(folder / "wrong.npy", wrong[: N - 1] if kind == "rows" else wrong)
    np.savez(folder / "wrong.npz", other=OBS)
    return {
        "nan": {"conditions": {"obs": folder / "wrong.npy"}},
        "infinite": {"conditions": {"obs": folder / "wrong.npy"}},
        "rows": {"conditions": {"obs": folder / "wrong.npy"}},
        "no array": {"conditions": {"obs": folder / "wrong.npz"}},
        "no file": {"conditions": {"obs": folder / "nothing.npy"}},
        "another file": {"conditions": {"obs": folder}},
        "a name": {"conditions": {"x": folder / "obs.npy"}},
        "no mapping": {"conditions": folder / "obs.npy"},
        "an array": {"conditions": {"obs": OBS}},
        "scalings alone": {"condition_scalings": {"obs": None}},
        "scalings of others": {"conditions": {"obs": folder / "obs.npy"}, "condition_scalings": {"y": None}},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "nan": r"NaN or infinity in 1 rows of .*wrong.npy, the first of them \[3\]",
        "infinite": r"NaN or infinity in 1 rows of .*\[5\]",
        "rows": "one row for each of the 40 samples",
        "no array": r"an array of that name in .*holds \['other'\]",
        "no file": "no data at .*nothing.npy",
        "another file": "must be an .npy or .npz file",
        "a name": "'x'",
        "no mapping": "conditions must map names to files",
        "an array": r"conditions\['obs'\] must be the path",
        "scalings alone": "there are no conditions",
        "scalings of others": "condition_scalings name y",
    }.items(),
)
def test_what_does_not_belong_to_the_data_is_refused(kind: str, message: str, folder: Path) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        load(folder / "theta.npy", **broken(kind, folder))


def test_samples_that_were_left_out_leave_no_rows_behind(folder: Path) -> None:
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("L", (4, 4), 10 * i).save(pictures / f"{i}.png")
    np.save(folder / "size.npy", np.array([1.0, 2.0, 3.0]))
    data = load(pictures, conditions={"size": folder / "size.npy"})
    assert torch.equal(data.conditions["size"], torch.tensor([1.0, 2.0, 3.0]))
    (pictures / "1.png").write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="not known which rows of the conditions"),
    ):
        load(pictures, conditions={"size": folder / "size.npy"}, skip_bad=True)
