"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests start servers and other processes beside themselves; more compute threads than cores only wait for each other.
# This stands before torch is imported, or it has no effect.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis without a clock: a slow machine must not fail a test.
settings.register_profile("evergrad", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evergrad")
