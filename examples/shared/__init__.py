"""What the scripts of examples/ share beyond scoresde.cli, from which they have their flags, pictures and reports.

    training              a small model learned
    digits, toys          data
    readers, measures     judges of what is drawn, figures
    plane                 pictures in the plane

and in a package each, the tasks of conditional.py, the tasks and methods of inverse.py, and the edits of edit.py.
"""
