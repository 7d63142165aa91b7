"""Trained models as folders to keep, to share and to load by name::

from scoresde import hub
"""
