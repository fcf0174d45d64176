"""A reader beside a writer that appends and removes, and data far larger than the memory a process may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import NotInHistory
from evergrad.history import History
from tests.builders import begin_history

WRITE = """
import sys
import numpy as np
from evergrad.history import History
history = History(sys.argv[1], keep_rows=400)
for number in range(600):
    count = number % 7
    rows = np.arange(history.end, history.end + count)
    history.append({"y": rows, "text": [f"row {row}" for row in rows]}, float(number))
    if number % 50 == 9:
        history.exclude(history.first, history.first + 1)
print(history.end)
"""
COLUMNS = [{"name": "y", "kind": "fixed", "dtype": "<i8"}, {"name": "text", "kind": "text", "dtype": "|u1"}]


def test_reader_beside_a_writer_sees_whole_batches_and_true_rows(tmp_path: Path) -> None:
    begin_history(tmp_path, 40, 1000, COLUMNS)
    reader, rng = History(tmp_path, read_only=True), np.random.default_rng(1)
    ends, refused, seen = [0], 0, 0
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        while writer.poll() is None or reader.refresh() > ends[-1]:
            ends.append(reader.refresh())
            if not len(reader):
                continue
            ids = rng.integers(reader.first, reader.end, 16)
            try:
                found, times = reader.gather(ids), reader.arrived_us(ids)
            except NotInHistory:
                refused += 1
                continue
            seen += 1
            assert found["y"].tolist() == ids.tolist()
            assert [found["text"].row(each) for each in range(16)] == [f"row {each}" for each in ids]
            assert (np.diff(times[np.argsort(ids)]) >= 0).all()
            assert reader.batch(reader.batches - 1).stop == reader.end
        output, _ = writer.communicate()
    assert ends == sorted(ends)
    assert int(output) == reader.refresh() == sum(number % 7 for number in range(600))
    assert reader.first > 0
    assert reader.excluded_ranges
    assert seen > refused


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from evergrad.history import History

def now(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

kind = getattr(resource, sys.argv[2])
room = 96 << 20
limit = now("VmSize" if sys.argv[2] == "RLIMIT_AS" else "VmData") + room
resource.setrlimit(kind, (limit, limit))
rows, count, width = 40, 80, 100_000
history = History(sys.argv[1])
for batch in range(count):
    ids = np.arange(batch * rows, (batch + 1) * rows)
    x = np.repeat(ids[:, None], width, 1).astype("u1")
    history.append({"x": x, "y": ids, "t": [str(each) * 9 for each in ids]})
size = rows * count * width
assert size >= 3 * room, size
rng = np.random.default_rng(0)
for opened in (history, History(sys.argv[1], read_only=True)):
    for _ in range(40):
        ids = rng.integers(0, opened.end, 128)
        found = opened.gather(ids)
        assert found["y"].tolist() == ids.tolist()
        assert (found["x"][:, 0] == ids % 256).all() and (found["x"][:, -1] == ids % 256).all()
        assert [found["t"].row(each) for each in range(128)] == [str(each) * 9 for each in ids]
try:
    bytearray(2 * room)
    raise SystemExit("there was no limit")
except MemoryError:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_data_larger_than_memory_is_written_and_drawn_from(tmp_path: Path, limit: str) -> None:
    columns = [
        {"name": "x", "kind": "fixed", "dtype": "|u1", "shape": [100_000]},
        {"name": "y", "kind": "fixed", "dtype": "<i8"},
        {"name": "t", "kind": "text", "dtype": "|u1"},
    ]
    begin_history(tmp_path, 70, 1 << 20, columns)
    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path), limit],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
