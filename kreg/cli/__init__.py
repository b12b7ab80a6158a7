"""The command ``kreg``: a module for each of its commands, whose docstring is its help.

Nothing here imports Keras before a command needs it, so that ``kreg --help`` answers at once.
"""

from kreg.cli.command import main

__all__ = ["main"]
