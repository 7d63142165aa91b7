"""Editing: pictures changed under the same process that makes them.

    sdedit(score, x0, t=0.5)                                          # noised, and made anew from there
    invert(score, x0, iterations=20)                                  # the latent that makes x0
    counterfactual(model.bind(label=3), model.bind(label=8), x0)      # this 3 as an 8
    diffedit(model.bind(label=3), model.bind(label=8), x0, t=0.5)     # only where the two disagree
    prompt_to_prompt(model, x, {"caption": a}, {"caption": b})        # the same layout under another caption
    null_text(model, found, {"caption": a}, scale=5.0)                # guided steps that lead back to a real picture
    interpolate(z1, z2, 0.5)                                          # between latents
    anomaly_map(score, x0, levels=[0.5])                              # where x0 is unlike what the score has seen

All run without autograd unless ``gradients=True``, and carry their states in float32 at least.
"""

from scoresde.editing.anomaly import Anomaly, anomaly_map
from scoresde.editing.counterfactual import Counterfactual, counterfactual
from scoresde.editing.diffedit import DiffEdit, diffedit, diffedit_mask
from scoresde.editing.interpolation import interpolate
from scoresde.editing.inversion import Inversion, Way, invert
from scoresde.editing.null_text import NullText, null_text
from scoresde.editing.prompt_to_prompt import PromptToPrompt, prompt_to_prompt
from scoresde.editing.sdedit import sdedit

__all__ = [
    "Anomaly",
    "Counterfactual",
    "DiffEdit",
    "Inversion",
    "NullText",
    "PromptToPrompt",
    "Way",
    "anomaly_map",
    "counterfactual",
    "diffedit",
    "diffedit_mask",
    "interpolate",
    "invert",
    "null_text",
    "prompt_to_prompt",
    "sdedit",
]
