"""A learned feature space in a folder, so that runs of different days measure in the same one::

    save_features(features, "runs/features")
    features = load_features("runs/features")               # the same fingerprint, or an error

config.json holds the architecture, how it was trained, and SHA-256 of itself and of features.safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scoresde import checks
from scoresde.files import PathName, make_writable
from scoresde.metrics.feature_net import KINDS, FeatureNet, NetFeatures
from scoresde.train import CheckpointError
from scoresde.train import folder as folders
from scoresde.train.draws import seeded
from scoresde.train.tensors import check_equal, read_layout, read_values, writer

FORMAT, VERSION, WEIGHTS = "scoresde features", 1, "features.safetensors"
_MOST = 1 << 14  # of any size in a file


def save_features(features: NetFeatures, folder: PathName) -> Path:
    """Write a learned feature space into a new or empty folder.

    Args:
        features: what ``train_features`` returned.
        folder: made with those above it.

    Returns:
        The folder.

    Raises:
        TypeError: another feature space: a module is saved by whoever made it. ValueError: the folder cannot be
            written. CheckpointError: it holds something already.
    """
    checks.instance(features, NetFeatures, name="features", hint="train_features(dataset) makes one.")
    place = make_writable(checks.path(folder, name="folder"))
    if any(place.iterdir()):
        raise CheckpointError(f"folder {place} holds something already: give a new or an empty one.")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "kind": features.kind,
        "net": features.net.config,
        "trained": features.trained,
        "fingerprint": features.fingerprint,
    }
    try:
        folders.fill(place, config, {WEIGHTS: writer(features.net.state_dict())})
    except OSError as error:
        raise CheckpointError(f"could not write the features into {place}: {error}.") from error
    return place


def load_features(folder: PathName, *, device: torch.device | str = "cpu") -> NetFeatures:
    """Read a feature space that :func:`save_features` wrote.

    Args:
        folder: it was given.
        device: where the features are computed.

    Raises:
        CheckpointError: none, damaged, or something else.
    """
    place, device = checks.path(folder, name="folder"), checks.device(device)
    fields, fail = folders.read_sealed(place, folders.CONFIG), folders.damaged(place, folders.CONFIG)
    if fields.text("format") != FORMAT or fields.whole("version") != VERSION:
        raise fail(f"it must be of the format {FORMAT!r}, version {VERSION}: save_features writes it.")
    shape, file = fields.object("net"), fields.object("files").object(WEIGHTS)
    path = folders.verified(place, WEIGHTS, file.whole("bytes"), file.text("sha256"))
    with seeded(torch.device("cpu"), 0):
        net = FeatureNet(
            shape.wholes("event", most_items=4, least=1, most=_MOST),
            shape.whole("outputs", most=_MOST),
            width=shape.whole("width", least=1, most=_MOST),
            features=shape.whole("features", least=1, most=_MOST),
        )
    damaged = folders.damaged(place, WEIGHTS)
    check_equal(read_layout(path, damaged), net.state_dict(), damaged, dtypes=True)
    net.load_state_dict(read_values(path, damaged))
    trained = fields.object("trained")
    told = {name: trained.number(name) for name in trained.names(most=20)}
    found = NetFeatures(net, fields.one_of("kind", KINDS), told).to(device)
    if found.fingerprint != fields.text("fingerprint"):
        raise fail(f"its fingerprint is {fields.text('fingerprint')!r}, and the weights beside it give another.")
    return found
