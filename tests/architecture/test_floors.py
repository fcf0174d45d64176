"""The house keeps its rules, and each rule can be broken and found."""

from __future__ import annotations

from pathlib import Path

import pytest

import evergrad
from tests.architecture.checker import FLOOR_OF, FLOORS, MAX_FILE_LINES, MAX_FUNCTION_LINES, OWNERS, check, sources

PACKAGE = Path(evergrad.__file__).parent
LONG = "".join(f"    x = {i}\n" for i in range(MAX_FUNCTION_LINES))


def test_the_sources_keep_every_rule() -> None:
    assert check(PACKAGE) == []


def test_it_reads_all_sources_and_their_imports() -> None:
    found = {source.path for source in sources(PACKAGE)}
    assert {"__init__.py", "codec/wire.py", "log/__init__.py", "log/store.py", "pytorch/publisher.py"} <= found


def test_each_unit_stands_on_one_floor() -> None:
    assert sum(len(units) for units in FLOORS) == len(FLOOR_OF)


def tree(root: Path, files: dict[str, str]) -> Path:
    package = root / "evergrad"
    for path, text in {
        "__init__.py": "from evergrad.pipeline import run\n",
        "pipeline.py": "run = 1\n",
        **files,
    }.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    return package


GOOD = {
    "errors.py": "import os.path\n",
    "schema.py": "import numpy as np\nfrom evergrad.errors import ConfigError\n",
    "log/__init__.py": "from evergrad.log.store import Store\n",
    "log/store.py": "import obstore\nfrom evergrad import errors\ndef f():\n    from evergrad.codec import decode\n",
    "codec.py": "import xxhash\nimport evergrad.schema\n",
    "pytorch/trainer.py": "import torch\nfrom . import select\nfrom .select import k\nfrom ..log import store\n",
    "pytorch/select.py": "import torch\n",
    "demo/lenet.py": "import torch\n",
    "cli/__init__.py": "import typer\nfrom evergrad import __version__, pipeline\n",
    "__main__.py": "from evergrad.cli import main\n",
    "stream/files.py": "import numpy\n\nnumpy.load('x', allow_pickle=False)\n",
    "config.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import nn\n",
    "gate.py": 'def f():\n    """a\n    b\n    """\n' + LONG[: LONG.rindex("    x")] + "x = 1\n" * 300,
}


def test_tree_that_keeps_the_rules_is_accepted(tmp_path: Path) -> None:
    assert check(tree(tmp_path, GOOD)) == []


BROKEN = {
    "upwards": ("codec.py", "from evergrad.log import open_log\n", "codec.py:1: log is not below codec"),
    "upwards by another form": ("codec.py", "import evergrad.log.store\n", "codec.py:1: log is not below codec"),
    "upwards by name": ("codec.py", "from evergrad import log\n", "codec.py:1: log is not below codec"),
    "upwards relative": ("codec.py", "from .log import store\n", "codec.py:1: log is not below codec"),
    "upwards out of a folder": ("log/x.py", "from ..replica import x\n", "log/x.py:1: replica is not below log"),
    "sideways": ("schema.py", "import evergrad.config\n", "schema.py:1: config is not below schema"),
    "inside a function": ("errors.py", "def f():\n    import evergrad.log\n", "errors.py:2: log is not below errors"),
    "beside types": (
        "errors.py",
        "if TYPE_CHECKING:\n    x = 1\nelse:\n    import torch\n",
        "errors.py:4: torch belongs to",
    ),
    "inside a try": ("errors.py", "try:\n    import torch\nexcept: ...\n", "errors.py:2: torch belongs to"),
    "for types only": (
        "errors.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from evergrad.log import x\n",
        "errors.py:3: log is not below errors",
    ),
    "the package itself": ("codec.py", "import evergrad\n", "codec.py:1: the package itself has no floor"),
    "a public name of the package": ("codec.py", "from evergrad import Replica\n", "codec.py:1: Replica has no floor"),
    "unknown unit": ("helpers.py", "", "helpers.py:1: helpers has no floor"),
    "unknown folder": ("helpers/a.py", "", "helpers/a.py:1: helpers has no floor"),
    "import of an unknown unit": ("codec.py", "import evergrad.helpers\n", "codec.py:1: helpers has no floor"),
    "cycle in a folder": (
        "log/store.py",
        "import evergrad.log\n",
        "cycle: log -> log.store -> log",
    ),
    "unknown package": ("codec.py", "import pandas\n", "codec.py:1: pandas has no owner"),
    "owned by another file": ("log/layout.py", "import obstore\n", "log/layout.py:1: obstore belongs to log/store.py"),
    "name that begins alike": ("report2.py", "import matplotlib\n", "report2.py:1: matplotlib belongs to report.py"),
    "pipeline and torch": ("pipeline.py", "import torch\n", "pipeline.py:1: torch belongs to pytorch/"),
    "package __init__ and torch": ("__init__.py", "import torch\n", "__init__.py:1: torch belongs to pytorch/"),
    "pickle": ("pytorch/x.py", "import pickle\n", "pytorch/x.py:1: pickle can run code"),
    "part of pickle": ("pytorch/x.py", "from pickle import loads\n", "pytorch/x.py:1: pickle can run code"),
    "allow_pickle": ("codec.py", "f(x, allow_pickle=True)\n", "codec.py:1: allow_pickle"),
    "allow_pickle perhaps": ("codec.py", "f(x,\n  allow_pickle=y)\n", "codec.py:2: allow_pickle"),
    "assert": ("codec.py", "def f(x):\n    assert x\n", "codec.py:2: assert vanishes under -O"),
    "long function": ("gate.py", f"x = 1\ndef f():\n{LONG}", f"gate.py:2: f has {MAX_FUNCTION_LINES + 1} lines"),
    "long method": (
        "gate.py",
        "class A:\n    async def f(self):\n" + LONG.replace("    ", "        "),
        f"gate.py:2: f has {MAX_FUNCTION_LINES + 1} lines",
    ),
    "long file": ("gate.py", "x = 1\n" * (MAX_FILE_LINES + 1), f"gate.py:1: {MAX_FILE_LINES + 1} lines"),
}


@pytest.mark.parametrize(("path", "text", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rule_is_found(tmp_path: Path, path: str, text: str, problem: str) -> None:
    found = check(tree(tmp_path, {**GOOD, path: text}))
    assert any(line.startswith(problem) for line in found), found


@pytest.mark.parametrize("package", OWNERS)
def test_optional_package_outside_its_owner_is_found(tmp_path: Path, package: str) -> None:
    found = check(tree(tmp_path, {"replica.py": f"def f():\n    import {package}.x\n"}))
    assert found == [f"replica.py:2: {package} belongs to {' and '.join(OWNERS[package])}"]
    owner = OWNERS[package][0]
    path = f"{owner}x.py" if owner.endswith("/") else owner
    assert check(tree(tmp_path, {"replica.py": "", path: f"import {package}\n"})) == []
