"""Reads a source tree and says where it breaks the rules of the house. It imports nothing of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLOORS = [
    {"errors"},
    {"schema", "metrics", "records", "config", "stateful"},
    {"update", "history", "trigger"},
    {"codec", "sampling", "report", "gate", "budget"},
    {"log", "stream"},
    {"replica", "testing"},
    {"adapters", "pytorch", "serve", "maintain", "doctor", "lineage"},
    {"scale", "dashboard"},
    {"pipeline"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

EVERYWHERE = {"numpy", "msgspec", "xxhash"}
SERVE = ("serve/",)
CLI = ("cli/",)
OWNERS = {
    "torch": ("pytorch/", "demo/lenet.py"),
    "numba": ("pytorch/kernels.py",),
    "triton": ("pytorch/triton_kernels.py",),
    "kserve": SERVE,
    "fastapi": SERVE,
    "starlette": SERVE,
    "uvicorn": SERVE,
    "grpc": SERVE,
    "prometheus_client": SERVE,
    "matplotlib": ("report.py",),
    "sklearn": ("demo/digits.py",),
    "scipy": ("demo/digits.py",),
    "typer": CLI,
    "rich": CLI,
    "obstore": ("log/store.py",),
    "onnxruntime": ("adapters/onnx.py",),
    "river": ("trigger/drift.py",),
    "pyarrow": ("history/arrow.py", "history/parquet.py"),
}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """One file: where it is, its dotted name without the package's, and its syntax tree."""

    path: str
    module: str
    tree: ast.Module
    lines: int

    @property
    def unit(self) -> str:
        return self.module.partition(".")[0]


def sources(package: Path) -> list[Source]:
    found = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        parts = path.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = file.read_text(encoding="utf-8")
        found.append(Source(path.as_posix(), module, ast.parse(text), len(text.splitlines())))
    return found


def imports(source: Source, package: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that it imports, anywhere; names in the package as deep as modules."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = source.path.endswith("__init__.py")
                here = [package, *filter(None, source.module.split("."))]
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                inside = deeper.removeprefix(f"{package}.")
                yield node.lineno, deeper if inside in modules or base == package else base


def check(package: Path) -> list[str]:
    """All broken rules below `package`, each as `path:line: what`."""
    found = sources(package)
    modules = {source.module for source in found}
    graph: dict[str, set[str]] = {source.module: set() for source in found}
    problems: list[str] = []
    for source in found:
        problems += [f"{source.path}:{line}: {what}" for line, what in _style(source)]
        if source.module and source.unit not in FLOOR_OF:
            problems.append(f"{source.path}:1: {source.unit} has no floor")
        for_types = _lines_for_types(source)
        for line, name in imports(source, package.name, modules):
            top, _, inside = name.partition(".")
            if top != package.name and line in for_types:
                continue
            if top != package.name:
                what = _foreign(source, top)
            else:
                graph[source.module].add(inside)
                what = _floors(source, inside)
            if what:
                problems.append(f"{source.path}:{line}: {what}")
    return problems + _cycles(graph)


def _lines_for_types(source: Source) -> set[int]:
    """The lines under `if TYPE_CHECKING:`, where another package may be named that is not there at run time."""
    blocks = [
        statement
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
    ]
    return {line for block in blocks for line in range(block.lineno, (block.end_lineno or block.lineno) + 1)}


def _foreign(source: Source, top: str) -> str | None:
    if top in PICKLES:
        return f"{top} can run code"
    if top in sys.stdlib_module_names or top in EVERYWHERE:
        return None
    owners = OWNERS.get(top)
    if owners is None:
        return f"{top} has no owner"
    mine = any(source.path == owner or (owner.endswith("/") and source.path.startswith(owner)) for owner in owners)
    return None if mine else f"{top} belongs to {' and '.join(owners)}"


def _floors(source: Source, inside: str) -> str | None:
    unit = inside.partition(".")[0]
    if not source.module or unit == source.unit or unit.startswith("__version"):
        return None
    if unit not in FLOOR_OF:
        return f"{unit or 'the package itself'} has no floor"
    if FLOOR_OF[unit] >= FLOOR_OF.get(source.unit, len(FLOORS)):
        return f"{unit} is not below {source.unit}"
    return None


def _style(source: Source) -> Iterator[tuple[int, str]]:
    if source.lines > MAX_FILE_LINES:
        yield 1, f"{source.lines} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, FUNCTIONS) and _length(node) > MAX_FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {_length(node)} lines"
        elif isinstance(node, ast.Assert):
            yield node.lineno, "assert vanishes under -O"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
            yield node.value.lineno, "allow_pickle"


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines, those of its docstring aside."""
    documented = ast.get_docstring(function) is not None
    prose = function.body[0] if documented else None
    docstring = (prose.end_lineno or 0) - prose.lineno + 1 if prose else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _cycles(graph: dict[str, set[str]]) -> list[str]:
    """One line per cycle of modules; the package's own `__init__` is no part of any."""
    done: set[str] = set()
    found: list[str] = []

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(f"cycle: {' -> '.join([*path[path.index(module) :], module])}")
        elif module not in done:
            for other in sorted(graph.get(module, set()) - {module}):
                walk(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        if module:
            walk(module, [])
    return found
