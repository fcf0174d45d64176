"""What pytest leaves out where the packages for it are not there."""

from __future__ import annotations

import importlib.util

# Triton's wheels are for Linux alone.
collect_ignore = [] if importlib.util.find_spec("triton") else ["src/evergrad/pytorch/triton_kernels.py"]
