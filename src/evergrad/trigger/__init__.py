"""When to take a proactive training step: one file per family of triggers.

    arrivals    EveryN, EverySeconds, WhenIdle   by what has arrived, and when there is room
    loss        OnLoss                           by how bad the model is
    drift       OnDrift                          by whether the stream has changed (with river, an optional package)
    joined      AnyOf, AllOf                     several

A further trigger is one more file here.
"""

from __future__ import annotations

from evergrad.trigger.arrivals import EveryN, EverySeconds, WhenIdle
from evergrad.trigger.base import News, Trigger
from evergrad.trigger.drift import OnDrift
from evergrad.trigger.joined import AllOf, AnyOf
from evergrad.trigger.loss import OnLoss

__all__ = ["AllOf", "AnyOf", "EveryN", "EverySeconds", "News", "OnDrift", "OnLoss", "Trigger", "WhenIdle"]
