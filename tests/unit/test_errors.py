"""The tree in the docstring is the tree, and every error says its facts and survives a trip between processes."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import pytest

from evergrad import errors
from evergrad.errors import EvergradError

CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, EvergradError)]
FACTS: dict[str, Any] = {"int": 7, "float": 0.5, "str": "fact", "list[int]": [3, 5]}
LEAVES = [c for c in CLASSES if "__init__" in vars(c)]


def make(cls: type[EvergradError]) -> tuple[EvergradError, dict[str, Any]]:
    """The error with a fact of the right type for each argument."""
    wanted = list(inspect.signature(cls).parameters.values())
    facts = {p.name: f"fact-{p.name}" if p.annotation == "str" else FACTS[p.annotation] for p in wanted}
    return cls(*facts.values()), facts


def test_docstring_draws_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").split("```")[1].strip().splitlines():
        found = re.match(r"([│├└─ ]*)(\w+)", line)
        assert found
        depth = len(found[1]) // 4
        parents[depth:] = [found[2]]
        drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {c.__name__: c.__base__.__name__ for c in CLASSES if c.__base__}


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_error_carries_its_arguments_and_says_them(cls: type[EvergradError]) -> None:
    error, facts = make(cls)
    assert {name: getattr(error, name) for name in facts} == facts
    assert error.args == tuple(facts.values())
    for name, fact in facts.items():
        if isinstance(fact, list):
            words = [str(fact[0]), str(fact[-1])]
        else:
            words = [f"{fact:016x}" if cls is errors.DigestMismatch and name != "version" else str(fact)]
        assert all(word in str(error) for word in words), f"{name} is not in the message"


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_error_survives_a_trip_between_processes(cls: type[EvergradError]) -> None:
    error, facts = make(cls)
    again = copy.copy(error)  # by __reduce__, as between processes
    assert type(again) is cls
    assert again is not error
    assert str(again) == str(error)
    assert {name: getattr(again, name) for name in facts} == facts


def test_every_class_has_a_docstring_and_branches_are_bare() -> None:
    assert all(c.__doc__ for c in CLASSES)
    parents = {c.__base__ for c in CLASSES}
    assert not parents & set(LEAVES)
