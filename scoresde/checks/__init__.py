"""What every entry point asks of its arguments, said once.

    steps = checks.count(steps, name="steps")       # an int, from a whole number of Python, NumPy or torch
    checks.state(x, values=True)                    # a floating tensor (B, *event), finite
    time = checks.time(t, sde.t_max)                # float64, () or (B,), in range
    checks.positive(scale, name="scale")
    checks.fields(self)                             # of a frozen dataclass, by their annotations

A check raises before any work is done and says what came in, what was expected and how to mend it: TypeError for
another kind of thing, ValueError for one out of range. Values are read only from tensors in main memory: reading one
back from an accelerator would stall it on every call.
"""

from scoresde.checks.plain import (
    count,
    device,
    dtype,
    fields,
    flag,
    fraction,
    function,
    got,
    instance,
    not_negative,
    number,
    numbers,
    one_of,
    path,
    positive,
    seed,
    shape,
    unboxed,
    whole,
)
from scoresde.checks.tensors import (
    brought,
    finite,
    followed,
    grid,
    has_float64,
    integers,
    readable,
    real,
    refuse_without_float64,
    result_dtype,
    rounding,
    same_batch,
    same_shape,
    sent,
    single,
    state,
    time,
    time_beside,
    transformed,
)

__all__ = [
    "brought",
    "count",
    "device",
    "dtype",
    "fields",
    "finite",
    "flag",
    "followed",
    "fraction",
    "function",
    "got",
    "grid",
    "has_float64",
    "instance",
    "integers",
    "not_negative",
    "number",
    "numbers",
    "one_of",
    "path",
    "positive",
    "readable",
    "real",
    "refuse_without_float64",
    "result_dtype",
    "rounding",
    "same_batch",
    "same_shape",
    "seed",
    "sent",
    "shape",
    "single",
    "state",
    "time",
    "time_beside",
    "transformed",
    "unboxed",
    "whole",
]
