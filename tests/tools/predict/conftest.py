"""The writer of checkpoints."""

from tests.backbones.checkpoints import write

__all__ = ["write"]
