"""A join against a model of it in a few lines, which keeps all that it was ever told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evergrad.stream.late import Join

TIMEOUT_S, LIMIT = 10, 4

ids = st.lists(st.integers(0, 8), max_size=6)
calls = st.lists(st.tuples(st.sampled_from(["predicted", "labelled", "restart"]), ids, st.integers(-3, 8)), max_size=40)


@dataclass
class Model:
    """All predictions in the order in which they came, each with its fate; time never goes back."""

    fates: list[list] = field(default_factory=list)  # id, number, since, fate, when joined
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def waiting(self) -> list[list]:
        return [one for one in self.fates if one[3] == "waiting"]

    def expire(self, now: int) -> None:
        for one in self.waiting():
            if now - one[2] > TIMEOUT_S:
                one[3] = "expired"

    def lately(self, name: int, now: int) -> bool:
        joined = sorted((one for one in self.fates if one[3] == "joined"), key=lambda one: one[4])
        return any(one[0] == name and now - one[4][0] <= TIMEOUT_S for one in joined[-LIMIT:])

    def predicted(self, name: int, number: int, now: int) -> None:
        if any(one[0] == name for one in self.waiting()) or self.lately(name, now):
            self.count("duplicate_predictions")
            return
        if len(self.waiting()) == LIMIT:
            self.waiting()[0][3] = "dropped"
        self.fates.append([name, number, now, "waiting", None])

    def labelled(self, name: int, now: int, order: int) -> list[int]:
        for one in self.waiting():
            if one[0] == name:
                one[3], one[4] = "joined", (now, order)
                return [one[1]]
        self.count("duplicate_labels" if self.lately(name, now) else "unknown")
        return []

    def stats(self) -> dict[str, int]:
        fates = [one[3] for one in self.fates]
        found = {fate: fates.count(fate) for fate in ("joined", "expired", "dropped", "waiting")}
        rest = {key: self.counts.get(key, 0) for key in ("unknown", "duplicate_predictions", "duplicate_labels")}
        return {"predicted": len(fates), **found, **rest}


@given(calls)
def test_join_does_what_the_model_does(told: list[tuple[str, list[int], int]]) -> None:
    join, model, number = Join(timeout_s=TIMEOUT_S, limit=LIMIT), Model(), 0
    clock = true = latest = 0  # what is told; the same, but for setting the clock back; the latest of that
    join.predicted([], np.zeros(0), np.zeros(0), 0.0)
    for call, names, passed in told:
        clock, true = clock + passed, true + passed
        if call == "restart":
            state, join = join.state_dict(), Join(timeout_s=TIMEOUT_S, limit=LIMIT)
            join.load_state_dict(state)
            continue
        true = latest if true < latest - TIMEOUT_S else true
        latest = max(latest, true)
        model.expire(latest)
        if call == "predicted":
            numbers = np.arange(number, number + len(names))
            join.predicted(names, numbers[:, None], numbers * 2, float(clock))
            for name, one in zip(names, numbers.tolist(), strict=True):
                model.predicted(name, one, latest)
        else:
            batch = join.labelled(names, np.arange(len(names)), float(clock))
            expected = [
                (one, place) for place, name in enumerate(names) for one in model.labelled(name, latest, number + place)
            ]
            x, y, outputs = (batch.x, batch.y, batch.outputs) if batch else (np.zeros((0, 1)), np.zeros(0), np.zeros(0))
            assert list(zip(x[:, 0].tolist(), y.tolist(), strict=True)) == expected
            assert outputs is not None
            assert (outputs == x[:, 0] * 2).all()
        number += len(names)
        assert asdict(join.stats()) == model.stats()
