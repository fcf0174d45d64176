"""The core works where torch cannot be imported, and says what to install where it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from evergrad.log import open_log
from tests.builders import Writer

BLOCK_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

sys.meta_path.insert(0, NoTorch())
"""


def without_torch(code: str, *args: str, optimized: bool = False) -> str:
    """What `code` prints in a process of its own in which torch cannot be imported."""
    flags = ["-W", "error", *(["-O"] if optimized else [])]
    command = [sys.executable, *flags, "-c", BLOCK_TORCH + code, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_works() -> None:
    assert "No module named 'torch'" in without_torch("try:\n  import torch\nexcept ImportError as e:\n  print(e)")


FOLLOW = """
import evergrad
replica = evergrad.Replica(sys.argv[1])
print(replica.sync(), f"{replica.digest:016x}", float(replica.weights["w"].sum()))
"""


def test_replica_follows_a_log_to_the_same_digest(tmp_path: Path) -> None:
    place = f"file:{tmp_path / 'log'}"
    writer = Writer(open_log(place, create=True)).begin().append(5)
    expected = f"5 {writer.state.digest:016x} {float(writer.state.tensors()['w'].sum())}\n"
    for optimized in (False, True):
        assert without_torch(FOLLOW, place, optimized=optimized) == expected


REFUSE = """
from evergrad import Replica, errors
try:
    Replica(sys.argv[1]).sync()
except errors.CorruptRecord as error:
    print(error.name)
"""


def test_damage_is_refused_under_dash_o_too(tmp_path: Path) -> None:
    Writer(open_log(str(tmp_path), create=True)).begin().append(2)
    path = tmp_path / "updates" / "000000000002.eg"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    for optimized in (False, True):
        assert without_torch(REFUSE, str(tmp_path), optimized=optimized) == "updates/000000000002.eg\n"


CORE = """
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
print("all")
"""


def test_every_module_below_the_training_floor_is_imported() -> None:
    units = [
        "budget",
        "codec",
        "config",
        "doctor",
        "errors",
        "gate",
        "history",
        "log",
        "metrics",
        "records",
        "replica",
        "sampling",
        "schema",
    ]
    units += ["stream", "stream.feedback", "stream.files", "stream.late", "testing", "trigger", "update"]
    assert without_torch(CORE, *(f"evergrad.{unit}" for unit in units)) == "all\n"


TRAIN = """
import evergrad
try:
    evergrad.Publisher
except evergrad.errors.MissingDependency as error:
    print(error.package, error.extra, error)
"""


def test_publisher_without_torch_says_what_to_install() -> None:
    found = without_torch(TRAIN)
    assert found.startswith("torch torch ")
    assert "pip install 'evergrad[torch]'" in found
