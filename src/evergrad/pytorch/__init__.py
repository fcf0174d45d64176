"""Everything that needs torch: publishing, training, and models that follow a replica."""

from evergrad.pytorch.attach import Attached, attach

__all__ = ["Attached", "attach"]
