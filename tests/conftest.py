"""Settings that must stand before torch is imported."""

from __future__ import annotations

import os

# Tests start servers and other processes beside themselves; more compute threads than cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
