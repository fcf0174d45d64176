"""Which examples of the history join a training batch: one file per family of samplers.

    uniform     Uniform, Window                  every example alike
    recent      TimeBiased                       newer ones more
    reservoir   Reservoir                        a bounded, uniform memory of all
    classes     ClassBalanced                    every class alike
    weighted    LeastUsed, LossPrioritised       by how often they were drawn, by their loss
    mix         Mix                              two of them

A draw costs O(batch) or O(batch log n) plus, once, what arrived since the last one; never O(history). The new examples
of a batch are the trainer's part. A further sampler is one more file here.
"""

from __future__ import annotations

from evergrad.sampling.base import Examples, Feedback, Sampler
from evergrad.sampling.classes import ClassBalanced
from evergrad.sampling.mix import Mix
from evergrad.sampling.recent import TimeBiased
from evergrad.sampling.reservoir import Reservoir
from evergrad.sampling.uniform import Uniform, Window
from evergrad.sampling.weighted import LeastUsed, LossPrioritised

__all__ = [
    "ClassBalanced",
    "Examples",
    "Feedback",
    "LeastUsed",
    "LossPrioritised",
    "Mix",
    "Reservoir",
    "Sampler",
    "TimeBiased",
    "Uniform",
    "Window",
]
