"""The command line: ``scoresde train``, ``sample`` and more, each a function of its flags::

    from scoresde.cli.sample import SampleConfig, main

    report = main(SampleConfig(checkpoint="runs/my-images", samples=16))

A command is a file here: a frozen dataclass of flags, and ``main``, which takes one. They need the extra ``cli``.
"""
