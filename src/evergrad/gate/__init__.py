"""Whether a training step may reach the replicas now: held, let through, or taken back.

A held step is not lost: the publisher folds it into the next update that is let through, or the trainer goes back to
where it was when the hold began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.gate.evidence import Floats
from evergrad.gate.hold import Hold
from evergrad.gate.reference import HIGHEST_TOLERANCE, LARGE, Reference, Rise

__all__ = ["Decision", "Gate", "Verdict"]

Verdict = Literal["publish", "hold", "release", "rollback"]
_LEAST_MOVES = 100
_CALM = math.log(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done with the trainer's updates now.

    Attributes:
        verdict: publish: updates go out. hold: they do not. release: a hold ends, and what was held goes out, folded.
            rollback: a hold ends, and the trainer goes back to where it was when the hold began.
        alert: this is news: a hold begins, changes or ends. One record and one call of whoever wants to know.
        reason: in words; "" while nothing changes.
        suspect: ids of the first and last example that look wrong; at the end of a hold: that no training batch
            should draw any more. None: there are none (the labels of a hold that ends so were right).
        first, last: ids of the batch that it was made on.
        held: examples since the hold began, this batch included; 0 outside of one.
        evidence: of the test that decided, as a power of ten: 6 is a million to one. 0: no test did.
    """

    verdict: Verdict
    alert: bool = False
    reason: str = ""
    suspect: tuple[int, int] | None = None
    first: int
    last: int
    held: int = 0
    evidence: float = 0.0


class _Memory:
    """All that a gate has seen."""

    reference: Reference
    rise: Rise
    hold: Hold | None = None

    def __init__(self) -> None:
        self.moves: list[float] = []


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Holds updates back while fresh labels say that something is wrong.

    Per batch, before it is trained on, it is told the losses of the *served* model (what replicas hold) and, during a
    hold, of the *candidate* (the trainer's copy, which goes on learning). Of a loss it asks only whether it is larger
    than all but 1, 2, 5, 10, 20 or 50% of the usual ones: the last `reference` losses of the served model, without the
    newest `reference` / 4, which wait, so that a slow rise does not become usual before it is noticed.

    **A hold begins** where losses beyond the usual 99, 98, 95, 90 or 80% come more than `tolerance` times as often as
    they did: an e-CUSUM over a mixture of ten bets (Shin, Ramdas, Rinaldo 2024, "E-detectors"). As long as, whatever
    came before, the chance that the next loss is beyond all but a share q of the usual ones is at most `tolerance` x q,
    for each of these five q, the mean number of examples until a false alarm is at least 1 / `alpha`, and the chance of
    one within n examples at most n x `alpha`. Nothing else is assumed: losses may have any distribution, depend on each
    other, and drift, within that. What breaks it are batches of a kind that the reference has not seen: all of one hard
    class, for example. A loss that is no number, or a move out of bounds (`judge_move`), holds at once.

    **A hold ends** in one of these ways, where "large" is a loss beyond the usual 90%:

    - *The served model recovers*: large losses are nearer to their usual share again than to what the alarm saw. While
      they are not, the chance of this in `patience` examples is at most 1% (an e-CUSUM again). Then both models are
      compared on the examples from there on, in pairs, by bets on a bounded difference (Waudby-Smith, Ramdas 2024):
      the mean of three indicators, whether a loss is beyond the usual 90, 80 and 50%. *release*: the candidate's mean
      is less than 0.05 above the served model's. *rollback*: it is above it, or neither is shown within `patience` / 4.
      Each test errs with a chance of 1%. Either way the stretch is named and should not be sampled any more: its labels
      contradict those before and after it. Where large losses come back meanwhile, the stretch goes on.
    - *It does not, for `patience` examples on end*. From then on *release* where the candidate has fewer large losses,
      and after twice `patience` also where it has fewer beyond the usual 99% (each with an error of 1% in `patience`
      examples). The labels have changed for good, and what it learned is right.
    - *Neither, for four times `patience`* (nobody can predict such labels, or the history outweighs them). Then they
      are taken at their word: *release*, unless the candidate's median loss is above the served model's, which is a
      fault of the training: *rollback*.

    What it cannot know: labels that are wrong for longer than `patience`, and can be learned, look like a change of the
    world; a world that changes for less than `patience` and back looks like wrong labels. Slow harm, within `tolerance`
    while the reference is renewed, passes. Until `reference` / 2 losses are known only those that are no numbers hold.

    Where only a batch's mean loss is known, give that, as an array of one. Evidence then counts batches, not examples:
    an alarm takes about 5 of them, and the end of a hold some hundred.

    Args:
        alpha: the rate of false alarms, per example.
        patience: how long labels may be wrong, in examples, and be told from a change of the world.
        reference: how many losses tell what is usual.
        tolerance: how many times as often may losses beyond the usual ones come, 1 to 4.
        largest_move: how many times as far as the farthest so far may one step move the served weights.
    """

    alpha: float = 1e-6
    patience: int = 1000
    reference: int = 1000
    tolerance: float = 2.0
    largest_move: float = 10.0
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError("gate.alpha", f"must lie between 0 and 1, not {self.alpha}")
        if self.patience < 1:
            raise ConfigError("gate.patience", f"must be 1 or more, not {self.patience}")
        if self.reference < 100:
            raise ConfigError("gate.reference", f"must be 100 or more, not {self.reference}")
        if not 1 <= self.tolerance <= HIGHEST_TOLERANCE:
            raise ConfigError("gate.tolerance", f"must lie in 1 to {HIGHEST_TOLERANCE:g}, not {self.tolerance}")
        if not self.largest_move >= 1:
            raise ConfigError("gate.largest_move", f"must be 1 or more, not {self.largest_move}")
        self._memory.reference, self._memory.rise = Reference(self.reference), Rise(self.tolerance)

    @property
    def held(self) -> int:
        """Examples since the present hold began; 0 while nothing is held."""
        return self._memory.hold.examples if self._memory.hold else 0

    def judge(
        self, served: npt.ArrayLike, candidate: npt.ArrayLike | None = None, *, first: int, last: int
    ) -> Decision:
        """Takes in the losses of the newest batch, and decides on all updates not sent yet.

        Call it before the batch is trained on: with a hold, the weights to go back to are those of that moment.

        Args:
            served: the served model's losses [examples], or its mean loss as [1]; float.
            candidate: the trainer's, for the same examples; only asked for during a hold, where `served` is of a model
                that stands still. None: not known; such a hold ends with a rollback, or after four times `patience`.
            first, last: the batch's ids; they grow from batch to batch.

        Raises:
            ValueError: the two are not of one length.
        """
        own, other = _losses(served), None if candidate is None else _losses(candidate)
        if other is not None and own.shape != other.shape:
            raise ValueError(f"served and candidate are losses of the same examples; found {own.shape}, {other.shape}")
        memory = self._memory
        if not len(own):
            return Decision(verdict="hold" if memory.hold else "publish", first=first, last=last, held=self.held)
        if memory.hold:
            return self._during(memory.hold, own, other, first, last)
        evidence = self._suspicion(own, first)
        if evidence is None:
            memory.reference.add(own, first)
            return Decision(verdict="publish", first=first, last=last)
        began = memory.rise.began(first)
        stretch = np.concatenate((memory.reference.drop_from(began), own))
        memory.hold = self._begin(began, last, self._bad_share(stretch), last - first + 1)
        return self._news("hold", memory.hold, self._what(stretch), first, last, evidence)

    def judge_move(self, size: float, *, first: int, last: int) -> Decision:
        """Takes in how far a step moves the served weights (the 2-norm of all differences), before that goes out.

        A size that is no number, or above `largest_move` times the largest of the newest `reference` ones, begins a
        hold in which both models are compared at once; nothing but the former does while there are fewer than 100
        (steps that move nothing do not count). The state to go back to is the one before that step.

        Args:
            first, last: ids of the new examples that the step was taken on.
        """
        memory = self._memory
        if memory.hold:
            return Decision(verdict="hold", first=first, last=last, held=self.held)
        bound = self.largest_move * max(memory.moves) if len(memory.moves) >= _LEAST_MOVES else math.inf
        if math.isfinite(size) and size <= bound:
            memory.moves = [*memory.moves, size][-self.reference :] if size > 0 else memory.moves
            return Decision(verdict="publish", first=first, last=last)
        memory.hold = self._begin(first, last, 1.0, last - first + 1)
        memory.hold.recovered = True
        what = f"a step moves the served weights by {size:.4g}; {bound:.4g} is the bound"
        return self._news("hold", memory.hold, what, first, last, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All that it has seen, as numbers, lists and dicts of them: JSON keeps it exactly."""
        memory = self._memory
        return {
            "reference": memory.reference.state_dict(),
            "rise": memory.rise.evidence.state_dict(),
            "moves": list(memory.moves),
            "hold": memory.hold.state_dict() if memory.hold else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; the settings may differ from those it was made with."""
        memory = self._memory
        memory.reference.load_state_dict(state["reference"])
        memory.rise.evidence.load_state_dict(state["rise"])
        memory.moves = list(state["moves"])
        memory.hold = Hold.of(state["hold"]) if state["hold"] is not None else None

    def _suspicion(self, served: Floats, first: int) -> float | None:
        """The logarithm of the evidence for an alarm; None where there is none."""
        highest = self._memory.rise.add(self._memory.reference.above(served), first)
        return highest if highest >= -math.log(self.alpha) or not np.isfinite(served).all() else None

    def _begin(self, first: int, last: int, bad_share: float, examples: int) -> Hold:
        self._memory.rise = Rise(self.tolerance)
        return Hold(
            patience=self.patience, keep=self.reference // 2, suspect_first=first, suspect_last=last,
            bad_share=bad_share, examples=examples, since=examples,
        )  # fmt: skip

    def _during(self, hold: Hold, served: Floats, candidate: Floats | None, first: int, last: int) -> Decision:
        memory, examples = self._memory, last - first + 1
        hold.remember(served, candidate)
        if hold.recovered:
            evidence = self._suspicion(served, first)
            if evidence is not None:
                memory.rise = Rise(self.tolerance)
                hold.again(self._bad_share(served), examples, last)
                return self._news("hold", hold, f"once more: {self._what(served)}", first, last, evidence)
        calm = memory.rise.evidence.value < _CALM
        own = memory.reference.above(served)
        other = None if candidate is None else memory.reference.above(candidate)
        verdict, reason = hold.take(own, other, calm=calm, examples=examples, last=last)
        if verdict == "hold" and not reason:
            return Decision(verdict="hold", first=first, last=last, held=hold.examples)
        if verdict != "hold":
            memory.hold, memory.rise = None, Rise(self.tolerance)
            if not hold.recovered:
                memory.reference.restart(hold.newest if verdict == "release" else hold.served, first)
        return self._news(verdict, hold, reason, first, last, hold.evidence)

    def _news(self, verdict: Verdict, hold: Hold, reason: str, first: int, last: int, evidence: float) -> Decision:
        named = verdict == "hold" or hold.recovered
        return Decision(
            verdict=verdict, alert=True, reason=reason, first=first, last=last, held=hold.examples,
            suspect=(hold.suspect_first, hold.suspect_last) if named else None, evidence=evidence / math.log(10),
        )  # fmt: skip

    def _bad_share(self, losses: Floats) -> float:
        """How often losses are large in a stretch that was chosen for that, which is why it is counted low."""
        if not np.isfinite(losses).all():
            return 1.0
        return float(self._memory.reference.above(losses)[:, LARGE].sum() / (len(losses) + 4))

    def _what(self, losses: Floats) -> str:
        if not np.isfinite(losses).all():
            return "a loss is not finite"
        reference = self._memory.reference
        count = int(reference.above(losses)[:, LARGE].sum())
        return f"{count} of {len(losses)} losses are above {reference.limit:.4g}, where 1 in 10 is usual"


def _losses(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)
