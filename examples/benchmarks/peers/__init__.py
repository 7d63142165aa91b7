"""The peers: samplers of other libraries, each a function from noise, noise levels and a counted denoiser to an end.

:mod:`peers.peer` says what a peer is. Each library has a module with functions ``ode`` and ``sde``;
:mod:`peers.grids` are their rules for the noise levels, and :mod:`peers.tournament` runs all on all. A library is added
by its module, which :mod:`peers.tournament` names. :mod:`peers.overhead` are the libraries as they are, to be timed.
"""
