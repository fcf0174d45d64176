"""Tables become the dataclasses of their owners, and every mistake is told by its key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evergrad.config import build, build_one_of, import_object, load_toml, require_known
from evergrad.errors import ConfigError
from evergrad.gate import Gate
from evergrad.sampling import Sampler, Uniform, Window
from evergrad.trigger import EveryN, EverySeconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    size: int
    rate: float = 0.5
    names: list[str] = field(default_factory=list)
    _seen: int = field(default=0, init=False)


SAMPLERS: dict[str, type[Sampler]] = {"uniform": Uniform, "window": Window}


def refused(call: Any, *args: Any) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert str(caught.value) == f"{caught.value.key}: {caught.value.problem}"
    return caught.value.key, caught.value.problem


def test_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[gate]\npatience = 3\nname = "ü"\n', encoding="utf-8")
    assert load_toml(path) == {"gate": {"patience": 3, "name": "ü"}}


@pytest.mark.parametrize("content", [None, b"[gate", b"name = '\xff'"], ids=["missing", "no toml", "no utf-8"])
def test_toml_that_cannot_be_read_is_told_by_its_path(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    assert refused(load_toml, path)[0] == str(path)


def test_table_becomes_the_dataclass_with_its_defaults() -> None:
    assert build(Settings, {"size": 3, "names": ["a"]}) == Settings(size=3, rate=0.5, names=["a"])
    assert build(Settings, {"size": 3, "rate": 2}).rate == 2.0
    assert build(EveryN, {"n": 4}) == EveryN(4)
    assert build(Window, {"seconds": 3}) == Window(seconds=3.0)
    assert build(Gate, {"tolerance": 3}) == Gate(tolerance=3.0)
    assert build(EverySeconds, {"seconds": 4}) == EverySeconds(4.0)


def test_unknown_key_is_told_with_the_nearest_known_one() -> None:
    assert refused(build, Settings, {"sise": 3}, "data") == ("data.sise", "unknown key; did you mean 'size'?")
    assert refused(build, Settings, {"zzz": 3}) == ("zzz", "unknown key; known are size, rate, names")
    assert refused(build, Settings, {"size": 3, "_seen": 1}, "data")[0] == "data._seen"


@pytest.mark.parametrize(
    ("table", "problem"),
    [({}, "`size`"), ({"size": "3"}, "Expected `int`, got `str`"), ({"size": 1.5}, "Expected `int`"),
     ({"size": 1, "names": "a"}, "$.names")],
)  # fmt: skip
def test_missing_and_wrong_values_are_told_in_their_table(table: dict[str, object], problem: str) -> None:
    key, found = refused(build, Settings, table, "data")
    assert key == "data"
    assert problem in found
    assert refused(build, Settings, table)[0] == "configuration"


def test_value_out_of_range_is_told_by_its_owner() -> None:
    assert refused(build, Window, {"size": 0}, "sampler") == ("sampler.size", "must be 1 or more, not 0")


def test_kind_says_which_of_several() -> None:
    assert build_one_of(SAMPLERS, {"kind": "window", "size": 5, "seed": 2}, "sampler") == Window(size=5, seed=2)
    assert build_one_of(SAMPLERS, {"kind": "uniform"}, "sampler") == Uniform()
    for table in ({}, {"kind": "best"}, {"kind": 3}):
        key, problem = refused(build_one_of, SAMPLERS, table, "sampler")
        assert key == "sampler.kind"
        assert "must be one of uniform, window" in problem
    assert refused(build_one_of, SAMPLERS, {"kind": "uniform", "size": 5}, "sampler")[0] == "sampler.size"


def test_known_keys_are_accepted() -> None:
    require_known({"a": 1}, ["a", "b"], "")
    assert refused(require_known, {"c": 1}, ["a", "b"], "where")[0] == "where.c"


def test_import_path_gives_the_object_however_deep() -> None:
    assert import_object("evergrad.gate:Gate", "model") is Gate
    assert import_object("evergrad.gate:Gate.judge", "model") is Gate.judge


@pytest.mark.parametrize(
    "path",
    ["", "evergrad.gate", "evergrad.gate:", ":Gate", "evergrad.nowhere:x", "evergrad.gate:Nothing",
     "evergrad.gate:Gate.nothing", ".gate:Gate", "..:x", "evergrad..gate:Gate", "evergrad.gate:Gate..judge"],
)  # fmt: skip
def test_import_path_that_names_nothing_is_told_where_it_stands(path: str) -> None:
    key, problem = refused(import_object, path, "model.factory")
    assert key == "model.factory"
    assert repr(path) in problem
