"""The command line: ``scoresde train``, ``sample`` and more::

scoresde --help
"""
