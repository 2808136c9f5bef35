"""Checkpoints of runs: written by Orbax, verified when they are read."""

from fgd.checkpoint._checkpoints import Checkpoints as Checkpoints
