"""Everything that needs torch: publishing, training, and models that follow a replica."""

from evergrad.pytorch.attach import Attached, attach
from evergrad.pytorch.module_of import module_of

__all__ = ["Attached", "attach", "module_of"]
