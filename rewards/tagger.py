"""The server of taggers under the name that `actors/` imports."""

from rewards.taggers.server import TaggerServer

__all__ = ["TaggerServer"]
