"""Networks of other libraries as models of this one, and its solvers as theirs::

    from scoresde import interop

Nothing here imports another library before it is asked for one of its objects.
"""
