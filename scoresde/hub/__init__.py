"""Trained models as folders to keep, to share and to load by name; the hub itself needs the extra ``hub``::

    model = scoresde.pretrained("digits")                       # ships with the library
    model.save_pretrained("my-digits", licence="mit")           # weights, what they are, a model card
    model = ScoreModel.from_pretrained("my-digits")             # or a run's folder, or "owner/name" of a hub
    model.push_to_hub("owner/my-digits", licence="mit")

A saved folder is a checkpoint: whatever reads one, as :func:`scoresde.train.load_model` and
:func:`scoresde.train.describe` do, reads it by the same rule. :func:`locate` finds the
folder that a path, a name or an id means. No file that is read can run code: JSON with its own hash, and safetensors.
"""

from scoresde.hub.loading import from_pretrained, locate
from scoresde.hub.pushing import push_to_hub
from scoresde.hub.saving import save_pretrained
from scoresde.hub.shipped import pretrained

__all__ = ["from_pretrained", "locate", "pretrained", "push_to_hub", "save_pretrained"]
