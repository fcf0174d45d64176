"""Random courses of a history, its reader and its reopenings, against plain lists."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrad.errors import NotInHistory
from evergrad.history import History, Ragged
from tests.builders import begin_history

COLUMNS = [
    {"name": "x", "kind": "fixed", "dtype": "<i4", "shape": [2]},
    {"name": "flag", "kind": "fixed", "dtype": "|b1"},
    {"name": "text", "kind": "text", "dtype": "|u1"},
    {"name": "tokens", "kind": "numbers", "dtype": "<u2"},
]
WORDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=9)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), WORDS, st.floats(-5, 30)),
        st.tuples(st.just("exclude"), st.integers(0, 40), st.integers(0, 5)),
        st.tuples(st.just("reopen"), st.none(), st.none()),
        st.tuples(st.just("refresh"), st.none(), st.none()),
        st.tuples(st.just("sync"), st.none(), st.none()),
    ),
    min_size=2,
    max_size=25,
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={"keep_rows": st.integers(1, 30), "keep_bytes": st.integers(1, 900), "keep_s": st.floats(0.5, 60)},
)


@dataclass
class Model:
    """What a history must hold."""

    words: list[str] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    batches: list[range] = field(default_factory=list)
    excluded: set[int] = field(default_factory=set)

    def append(self, words: list[str], at_us: int) -> dict[str, Any]:
        first = len(self.words)
        self.words += words
        self.times_us += [max([at_us, *self.times_us[-1:]])] * len(words)
        self.batches.append(range(first, len(self.words)))
        ids = np.arange(first, len(self.words))
        return {
            "x": np.stack([ids, -ids], axis=1).astype("i4"),
            "flag": ids % 3 == 0,
            "text": words,
            "tokens": [np.arange(len(word), dtype="u2") for word in words],
        }

    def must_keep_from(self, limits: dict[str, Any]) -> int:
        """The oldest id that is beyond none of the limits."""
        firsts = []
        if "keep_rows" in limits:
            firsts.append(max(0, len(self.words) - limits["keep_rows"]))
        if "keep_s" in limits and self.times_us:
            oldest_us = self.times_us[-1] - limits["keep_s"] * 1e6
            firsts.append(next(i for i, us in enumerate(self.times_us) if us >= oldest_us))
        if "keep_bytes" in limits:
            size, first = 0, len(self.words)
            while first and size < limits["keep_bytes"]:
                first -= 1
                word = self.words[first]
                size += 8 + 1 + 8 + 8 + 8 + len(word.encode()) + 2 * len(word)
            firsts.append(first)
        return max(firsts, default=0)

    def agrees(self, history: History, end: int, batches: int) -> None:
        """The history, as far as it was known then, holds the same."""
        first = history.first
        assert (history.end, history.batches, len(history)) == (end, batches, end - first)
        ids = np.arange(first, end)[::-1]
        found = history.gather(ids)
        assert found["x"].tolist() == [[i, -i] for i in ids]
        assert found["flag"].tolist() == [i % 3 == 0 for i in ids]
        text, tokens = found["text"], found["tokens"]
        assert isinstance(text, Ragged)
        assert [text.row(row) for row in range(len(ids))] == [self.words[i] for i in ids]
        assert [tokens.row(row).tolist() for row in range(len(ids))] == [list(range(len(self.words[i]))) for i in ids]
        assert history.arrived_us(ids).tolist() == [self.times_us[i] for i in ids]
        for number, batch in enumerate(self.batches[:batches]):
            if batch.start >= first:
                assert history.batch(number) == batch
            else:
                with pytest.raises(NotInHistory):
                    history.batch(number)
        for outside in (first - 1, end):
            with pytest.raises(NotInHistory):
                history.gather(np.array([outside]))
        times = self.times_us[first:end]
        for us in {0, *times, *(us + 1 for us in times)}:
            assert history.since(us) == first + sum(time < us for time in times)


@settings(max_examples=40)
@given(STEPS, LIMITS, st.integers(1, 6), st.integers(1, 20))
def test_history_holds_what_a_list_would(
    steps: list[tuple[Any, ...]], limits: dict[str, Any], rows: int, size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        begin_history(Path(folder), rows, size, COLUMNS)
        take_course(Path(folder), steps, limits)


def take_course(path: Path, steps: list[tuple[Any, ...]], limits: dict[str, Any]) -> None:
    model, seen, now_s, first = Model(), (0, 0), 0.0, 0
    history, reader = History(path, **limits), History(path, read_only=True)
    for kind, what, number in steps:
        if kind == "append":
            now_s += number
            batch = model.append(what, round(now_s * 1e6))
            assert history.append(batch, now_s) == model.batches[-1]
            assert first <= history.first
            assert history.first <= model.must_keep_from(limits)
        elif kind == "exclude":
            chosen = range(min(what, history.end), min(what + number, history.end))
            history.exclude(chosen.start, chosen.stop)
            model.excluded |= set(chosen)
        elif kind == "reopen":
            history.close()
            history = History(path, **limits)
        elif kind == "sync":
            history.sync()
        else:
            seen = reader.refresh(), history.batches
            model.agrees(reader, *seen)
            assert set(np.flatnonzero(reader.excluded(np.arange(len(model.words))))) == model.excluded
        first = history.first
        model.agrees(history, len(model.words), len(model.batches))
        assert set(np.flatnonzero(history.excluded(np.arange(len(model.words))))) == model.excluded
    history.close()
    reader.close()
