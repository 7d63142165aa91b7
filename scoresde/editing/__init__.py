"""Editing: pictures changed under the same process that makes them. Without autograd unless gradients=True."""

from scoresde.editing.counterfactual import Counterfactual, counterfactual
from scoresde.editing.diffedit import DiffEdit, diffedit, diffedit_mask
from scoresde.editing.interpolation import interpolate
from scoresde.editing.inversion import Inversion, invert
from scoresde.editing.prompt_to_prompt import PromptToPrompt, prompt_to_prompt
from scoresde.editing.sdedit import sdedit

__all__ = [
    "Counterfactual",
    "DiffEdit",
    "Inversion",
    "PromptToPrompt",
    "counterfactual",
    "diffedit",
    "diffedit_mask",
    "interpolate",
    "invert",
    "prompt_to_prompt",
    "sdedit",
]
