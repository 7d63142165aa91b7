"""What the scripts of examples/ share; each script is the place to start reading.

    choices, command_line, networks, training_flags    names and flags of a command line
    training, trained                                  a model learned, or loaded
    digits, toys, readers, measures                    data, judges of what is drawn, figures
    outputs, pictures, plane                           what is written

and in a package each, the tasks of conditional.py, the tasks and methods of inverse.py, and the edits of edit.py.
"""
