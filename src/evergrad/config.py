"""TOML to the dataclasses that their owners define. The settings themselves live with their owners, not here."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from evergrad.errors import ConfigError

T = TypeVar("T")


def load_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ConfigError: no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), str(error)) from error


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Makes the dataclass `cls` from a table, field by field.

    Args:
        where: the table's name, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing one, or a value of a wrong type.
    """
    require_known(table, [f.name for f in dataclasses.fields(cls) if f.init], where)  # type: ignore[arg-type]
    try:
        return msgspec.convert(dict(table), cls)
    except msgspec.ValidationError as error:
        raise ConfigError(where or "configuration", str(error)) from error


def build_one_of(kinds: Mapping[str, type[T]], table: Mapping[str, Any], where: str) -> T:
    """Makes one of several dataclasses: the table's `kind` says which, its other keys are that one's fields."""
    kind = str(table.get("kind"))
    if kind not in kinds:
        raise ConfigError(f"{where}.kind", f"must be one of {', '.join(kinds)}, not {kind!r}")
    return build(kinds[kind], {key: value for key, value in table.items() if key != "kind"}, where)


def require_kind(state: Mapping[str, Any], kind: str, where: str) -> None:
    """Refuses a saved state that is not of the kind that shall go on from it."""
    if state.get("kind") != kind:
        raise ConfigError(
            f"{where}.kind", f"is {kind}, and {state.get('kind')} in the saved state; resume with the same"
        )


def require_known(table: Mapping[str, Any], known: list[str], where: str) -> None:
    """Refuses a table with a key that nobody knows."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where}.{key}".lstrip("."), f"unknown key; {hint}")


def import_object(path: str, where: str) -> Any:
    """What the import path `package.module:name` names.

    Raises:
        ConfigError: not of that form, no such module, or no such name in it.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name) or module_name.startswith("."):
        raise ConfigError(where, f"{path!r} must have the form package.module:name")
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(where, f"{path!r} cannot be imported: {error}") from error
    return found
