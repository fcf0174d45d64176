"""A hold: what happens from the first suspicion until the held updates go out or are taken back.

```
bad ──── the served model's losses are usual again ────> comparing ── as good ──────────────> release
 │  ^──────────────── they rise once more ────────────────   │
 │                                                           └─────── worse, or not shown ──> rollback
 ├── `patience` over, and the candidate has fewer large losses ────────────────────────────> release
 ├── 2 x `patience` over, and the candidate has fewer very large losses ───────────────────> release
 └── 4 x `patience` over ──────────────────────────────────────────────────────────────────> release
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evergrad.gate.evidence import Evidence, Floats, gain_evidence, gain_factors, share_factors
from evergrad.gate.reference import COMPARED, LARGE, LARGE_SHARE, VERY_LARGE, finite

Flags = npt.NDArray[np.bool_]
Outcome = tuple[Literal["hold", "release", "rollback"], str]

ERROR = 0.01
"""The chance that one decision within a hold is wrong, where its test's assumption holds."""
MARGIN = 0.05
"""A candidate is as good while fewer than this more of its losses are beyond the usual 90, 80 and 50% (their mean)."""
LONGEST = 4
"""A hold without recovery ends after so many times the patience."""


@dataclass(kw_only=True)
class Hold:
    """The state of a hold, and its decisions.

    "Large" is a loss as the reference at the hold's beginning has it, which does not change meanwhile.

    Attributes:
        patience: in examples.
        keep: how many of the newest losses are kept, to begin a new reference with.
        suspect_first, suspect_last: the examples that look wrong.
        bad_share: how often losses were large when the alarm came.
        recovered: whether the served model's losses are usual again.
        examples, since: in this hold; since it began or last changed between bad and comparing.
        notice: after so many bad examples the next word is due.
        evidence: the logarithm of the evidence for the last decision.
    """

    patience: int
    keep: int
    suspect_first: int
    suspect_last: int
    bad_share: float
    recovered: bool = False
    examples: int = 0
    since: int = 0
    notice: int = 0
    evidence: float = 0.0
    served: Floats = field(default_factory=lambda: np.zeros(0))
    candidate: Floats = field(default_factory=lambda: np.zeros(0))
    recovery: Evidence = field(default_factory=lambda: Evidence(2, restarts=True))
    better: Evidence = field(default_factory=lambda: gain_evidence(restarts=True))
    less_bad: Evidence = field(default_factory=lambda: gain_evidence(restarts=True))
    worse: Evidence = field(default_factory=lambda: gain_evidence(restarts=False))
    as_good: Evidence = field(default_factory=lambda: gain_evidence(restarts=False))

    def take(self, served: Flags, candidate: Flags | None, *, calm: bool, examples: int, last: int) -> Outcome:
        """Takes in which losses of a batch are beyond the usual ones; reason "" where nothing changed.

        Args:
            served, candidate: what `Reference.above` gave for each; None: not known.
            calm: nothing suspicious is in the served model's newest losses.
            examples, last: the batch's count, and the id of its last one.
        """
        self.examples += examples
        self.since += examples
        if self.recovered:
            return self._compare(served, candidate, calm=calm)
        return self._endure(served, candidate, last)

    def again(self, bad_share: float, examples: int, last: int) -> None:
        """The served model's losses have risen once more."""
        self.recovered, self.bad_share, self.suspect_last = False, bad_share, last
        self.examples += examples
        self.since, self.notice = examples, 0
        self.recovery = Evidence(2, restarts=True)
        self.better, self.less_bad = gain_evidence(restarts=True), gain_evidence(restarts=True)

    def remember(self, served: Floats, candidate: Floats | None) -> None:
        """Keeps the newest losses of both."""
        self.served = np.concatenate((self.served, finite(served)))[-self.keep :]
        if candidate is not None:
            self.candidate = np.concatenate((self.candidate, finite(candidate)))[-self.keep :]

    @property
    def newest(self) -> Floats:
        """The newest losses of what goes out with a release."""
        return self.candidate if len(self.candidate) else self.served

    def _endure(self, served: Flags, candidate: Flags | None, last: int) -> Outcome:
        sure = math.log(self.patience / ERROR)
        # Nearer to the usual share of large losses than to what the alarm saw.
        null = max((LARGE_SHARE + self.bad_share) / 2, 2 * LARGE_SHARE)
        usual = np.array([LARGE_SHARE, math.sqrt(LARGE_SHARE * null)])
        large = served[:, LARGE, None]
        self.evidence = self.recovery.add(share_factors(large, np.full(2, null), usual), last)
        better, less_bad = 0.0, 0.0
        if candidate is not None:
            gains = served.astype(np.float64) - candidate
            better = self.better.add(gain_factors(gains[:, LARGE]), last)
            less_bad = self.less_bad.add(gain_factors(gains[:, VERY_LARGE]), last)
        if self.evidence >= sure:
            self.recovered, self.since = True, 0
            self.suspect_last = max(self.suspect_last, self.recovery.mark)
            self.worse, self.as_good = gain_evidence(restarts=False), gain_evidence(restarts=False)
            return "hold", "the served model's losses are usual again: the candidate is compared with it"
        self.suspect_last = last
        self.evidence = max(better, less_bad) if self.since >= 2 * self.patience else better
        if self.since >= self.patience and self.evidence >= sure:
            return "release", "the labels have changed for good: the candidate predicts them better"
        if self.since >= LONGEST * self.patience:
            return self._give_up()
        if self.since >= (self.notice or self.patience):
            self.notice = 2 * (self.notice or self.patience)
            return "hold", f"no end after {self.examples} examples, and the candidate is not better"
        return "hold", ""

    def _give_up(self) -> Outcome:
        if len(self.candidate) and np.median(self.candidate) > np.median(self.served):
            return "rollback", f"no end after {self.examples} examples, and the candidate is worse"
        return "release", f"no end after {self.examples} examples: the labels are taken at their word"

    def _compare(self, served: Flags, candidate: Flags | None, *, calm: bool) -> Outcome:
        sure = -math.log(ERROR)
        if candidate is None:
            return "rollback", "the suspicious stretch is over, and no losses of the candidate are known"
        losses = (candidate.astype(np.float64) - served)[:, COMPARED].mean(axis=1)
        worse = self.worse.add(gain_factors(losses), 0)
        self.evidence = self.as_good.add(gain_factors(MARGIN - losses), 0)
        if self.evidence >= sure and calm:
            return "release", "the suspicious stretch is over: the candidate is as good as the served model"
        if worse >= sure:
            self.evidence = worse
            return "rollback", "the suspicious stretch is over: the candidate is worse than the served model"
        if 4 * self.since >= self.patience:
            return "rollback", "the suspicious stretch is over: the candidate is not shown to be as good"
        return "hold", ""

    def state_dict(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in (f.name for f in fields(self))}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Hold:
        """What `state_dict` described."""
        hold = cls(**{name: value for name, value in state.items() if not isinstance(value, dict | list)})
        for name, value in state.items():
            if isinstance(value, dict):
                getattr(hold, name).load_state_dict(value)
            elif isinstance(value, list):
                setattr(hold, name, np.array(value, dtype=np.float64))
        return hold


def _plain(value: Any) -> Any:
    if isinstance(value, Evidence):
        return value.state_dict()
    return value.tolist() if isinstance(value, np.ndarray) else value
