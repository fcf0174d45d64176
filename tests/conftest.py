"""Settings of all tests."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

# Tests start servers and other processes beside themselves; more compute threads than cores only wait for each other.
# This stands before torch is imported, or it has no effect.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton's kernels run in its interpreter where there is no GPU; this stands before they are defined.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Hypothesis without a clock: a slow machine must not fail a test.
settings.register_profile("evergrad", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evergrad")
