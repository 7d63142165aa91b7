"""The one home of conditions: names, shapes, null values, dropping, broadcasting over the batch and checking.

A network takes its conditions as keywords, ``net(x, c, label=y)``; everywhere else they are a mapping by name. What a
network says of them is one attribute, which any network may have, and for ours follows from their kinds::

    net.null_conditions = {"label": 10, "size": float("nan")}            # what stands for "not given"
    net.conditions = Conditions({"label": Label(10), "size": Vector(2)})  # what a call may hold

- :mod:`~scoresde.models.conditions.kinds`: one class for each kind of condition, and how to write another.
- :mod:`~scoresde.models.conditions.described`: what a network says of all of its conditions; the names they may have.
- :mod:`~scoresde.models.conditions.batch`: conditions brought to a row for each sample, and sets of them completed.
- :mod:`~scoresde.models.conditions.dropping`: null values in the place of some rows, as training does.
- :mod:`~scoresde.models.conditions.history`: which of them a network was trained with, and without.
- :mod:`~scoresde.models.conditions.rows`: rows of NaN, which say "not given", and conditions as a data set stores them.
"""

from scoresde.models.conditions.batch import as_conditions, check_bound, completed, expanded, given_names, nulls_for
from scoresde.models.conditions.described import Conditions, check_values, kinds_of, names_of, nulls_of
from scoresde.models.conditions.dropping import Dropout, check_droppable, drop_conditions, dropped_rows
from scoresde.models.conditions.history import TrainedWith
from scoresde.models.conditions.kinds import (
    Caption,
    Condition,
    Embedding,
    Image,
    Label,
    Series,
    Set,
    Vector,
    check_classes,
)
from scoresde.models.conditions.rows import as_given, check_name, split_absent, stored_conditions

__all__ = [
    "Caption",
    "Condition",
    "Conditions",
    "Dropout",
    "Embedding",
    "Image",
    "Label",
    "Series",
    "Set",
    "TrainedWith",
    "Vector",
    "as_conditions",
    "as_given",
    "check_bound",
    "check_classes",
    "check_droppable",
    "check_name",
    "check_values",
    "completed",
    "drop_conditions",
    "dropped_rows",
    "expanded",
    "given_names",
    "kinds_of",
    "names_of",
    "nulls_for",
    "nulls_of",
    "split_absent",
    "stored_conditions",
]
