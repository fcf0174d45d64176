"""The JavaScript client knows only docs/format.md: where it and the Python library agree, that page says enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evergrad.codec import decode, encode, encode_snapshot, split
from evergrad.errors import LogUnavailable
from evergrad.log import UpdateLog
from evergrad.schema import STORAGE
from evergrad.testing import FaultyStore
from tests.builders import copy_of, snapshot_of
from tests.clients.conftest import CLIENT, Node
from tests.clients.mutants import flipped, mutants, verdict
from tests.clients.random_log import FIRST_VERSION, every_dtype, random_updates, whole_state, write_folder
from tests.clients.web import Writer, served

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
CLI = CLIENT / "cli.mjs"
Output = Callable[..., str]


def test_the_clients_own_tests_pass(output: Output) -> None:
    output("--test", cwd=CLIENT)


def test_random_updates_of_every_kind_lead_to_the_same_digests(output: Output, tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(12)]
    expected = [write_folder(folder, seed, 15) for seed, folder in enumerate(folders)]
    found = [json.loads(line) for line in output("replay.mjs", *folders).splitlines()]
    assert found == expected
    schema = every_dtype()
    files = [path.read_bytes() for folder in folders for path in folder.glob("*.eg")]
    updates = [decode(data, schema) for data in files]
    sections = [section for update in updates for section in update.sections]
    said = {(type(section).__name__, section.dtype) for section in sections}
    assert {("Values", dtype) for dtype in STORAGE} | {("Differences", dtype) for dtype in STORAGE} < said
    assert 60 < sum(update.examples is None for update in updates) < 120
    first = {body[0] >> 4 for _, body in map(split, files) if body}
    assert first == {0, 1, 2, 3, 8, 9, 10, 11}  # every kind, and each with runs


def test_golden_files_lead_to_the_digests_that_they_had(output: Output) -> None:
    expected = dict(json.loads((GOLDEN / "digests.json").read_text()))
    found = json.loads(output("replay.mjs", GOLDEN))
    assert {name: found.get(name) for name in expected} == expected


def test_broken_updates_become_of_what_they_do_in_python(output: Output, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder, 0, 0)
    rng = np.random.default_rng(1)
    state = whole_state(every_dtype(), rng)
    (folder / "snapshot.safetensors").write_bytes(encode_snapshot(snapshot_of(state, FIRST_VERSION)))
    broken: list[bytes] = []
    while len(broken) < 4000:
        update = next(random_updates(copy_of(state), rng, 1))
        if update.sections:
            broken += mutants(encode(update), rng, 60)
    (folder / "updates.hex").write_text("\n".join(f"x{data.hex()}" for data in broken))
    expected = [verdict(state, FIRST_VERSION, data) for data in broken]
    assert {"CorruptRecord", "UnsupportedFormat", "BaseMismatch"} < {*expected}
    assert output("judge.mjs", folder).splitlines() == expected


def test_broken_snapshots_are_refused(output: Output, tmp_path: Path) -> None:
    write_folder(tmp_path / "model", 0, 0)
    data = (tmp_path / "model/snapshot.safetensors").read_bytes()
    head = 8 * (8 + int.from_bytes(data[:8], "little"))
    cuts = [data[:at] for at in (0, 7, 8, head // 8, len(data) - 1)]
    bits = (*range(80), *range(80, head, 7), 8 * len(data) - 1)
    broken = [flipped(data, bit) for bit in bits] + cuts + [data + b"\0"]
    (tmp_path / "model/snapshots.hex").write_text("\n".join(f"x{data.hex()}" for data in broken))
    verdicts = output("judge.mjs", tmp_path / "model").splitlines()
    assert len(verdicts) == len(broken)
    assert set(verdicts[:80]) == {"CorruptRecord"}  # flips of the length and of the first signs
    assert set(verdicts[-7:]) == {"CorruptRecord"}
    good = "digest " + json.loads(data[8 : head // 8])["__metadata__"]["evergrad.digest"]
    assert set(verdicts) <= {"CorruptRecord", good}  # the latter: metadata that nobody reads


def test_it_follows_a_log_over_http_while_versions_are_appended(node: Node, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with served(tmp_path) as (url, asked), node(CLI, url, "--until", "25") as process:
        for version in range(25):
            if version % 6 == 0:
                asked.wait_for(f"updates/{version + 1:012d}.eg")
            writer.append()
        printed, errors = process.communicate(timeout=60)
    assert (json.loads(printed), errors) == (writer.told, "")


def test_it_catches_up_by_folds(output: Output, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(256 + 16 + 3)
    with served(tmp_path) as (url, asked):
        assert json.loads(output(CLI, url)) == writer.told
    last = [f"updates/{version:012d}.eg" for version in (273, 274, 275)]
    assert [name for name in asked.names if name.endswith(".eg") and (tmp_path / name).exists()] == [
        "folds/000000000000-000000000256.eg", "folds/000000000256-000000000272.eg", *last,
    ]  # fmt: skip
    assert "updates/000000000001.eg" not in asked.names


def test_it_goes_around_a_damaged_fold(output: Output, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(18)
    fold = tmp_path / "folds/000000000000-000000000016.eg"
    fold.write_bytes(fold.read_bytes()[:-1])
    with served(tmp_path) as (url, asked):
        assert json.loads(output(CLI, url)) == writer.told
    assert "updates/000000000001.eg" in asked.names


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_it_continues_from_a_newer_snapshot(output: Output, tmp_path: Path, damage: str) -> None:
    writer = Writer(tmp_path)
    latest = (tmp_path / "latest.json").read_bytes()
    writer.append(5, folds=False)
    writer.snapshot()
    writer.append(2, folds=False)
    lost = writer.update_path(3)
    lost.unlink() if damage == "deleted" else lost.write_bytes(lost.read_bytes()[:-1])
    newest = (tmp_path / "latest.json").read_bytes()
    (tmp_path / "latest.json").write_bytes(latest)  # it begins before the snapshot
    with served(tmp_path) as (url, asked):
        asked.when("updates/000000000003.eg", lambda: (tmp_path / "latest.json").write_bytes(newest))
        assert json.loads(output(CLI, url)) == writer.told
    assert "snapshots/000000000005.safetensors" in asked.names


def test_it_keeps_its_version_until_a_snapshot_heals_the_log(node: Node, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(4, folds=False)
    writer.update_path(3).write_bytes(b"EG\1, and then nothing of use")
    with served(tmp_path) as (url, asked), node(CLI, url, "--until", "4") as process:
        for _ in range(2):
            asked.wait_for("updates/000000000003.eg")
        writer.snapshot()
        printed, errors = process.communicate(timeout=60)
    assert json.loads(printed) == writer.told
    assert "CorruptRecord" in errors


def test_it_begins_anew_with_the_log(node: Node, tmp_path: Path) -> None:
    old = Writer(tmp_path)
    old.append(3)
    with served(tmp_path) as (url, asked), node(CLI, url, "--until", "5") as process:
        asked.wait_for("updates/000000000004.eg")
        new = old.begun_anew()
        new.append(5)
        printed, _errors = process.communicate(timeout=60)
    assert json.loads(printed) == new.told


def test_it_goes_on_with_a_model_that_has_grown(node: Node, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(3)
    with served(tmp_path) as (url, asked), node(CLI, url, "--until", "22") as process:
        asked.wait_for("updates/000000000004.eg")
        writer.grow()
        writer.append(18)
        printed, _errors = process.communicate(timeout=60)
        assert json.loads(printed) == writer.told
        assert writer.version == 22
        with node(CLI, url) as fresh:
            printed, errors = fresh.communicate(timeout=60)
    assert (json.loads(printed), errors) == (writer.told, "")


def test_it_keeps_its_version_while_a_generation_is_begun(node: Node, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(3)
    store = FaultyStore(writer.log.store, fail_create={"evergrad.json"})
    writer.log = UpdateLog(store, writer.log.url)
    with served(tmp_path) as (url, asked), node(CLI, url, "--until", "5") as process:
        asked.wait_for("updates/000000000004.eg")
        with pytest.raises(LogUnavailable):
            writer.grow()
        for _ in range(2):
            asked.wait_for("updates/000000000004.eg")
        store.fail_create.clear()
        writer.grow()
        writer.append()
        printed, errors = process.communicate(timeout=60)
    assert json.loads(printed) == writer.told
    assert "BaseMismatch" in errors


def test_it_says_what_is_wrong(node: Node, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "damaged")
    writer.append(2, folds=False)
    writer.update_path(2).write_bytes(b"")
    with served(tmp_path) as (url, _asked):
        for place, word in {"nowhere": "LogNotFound", "damaged": "CorruptRecord"}.items():
            with node(CLI, f"{url}/{place}") as process:
                printed, errors = process.communicate(timeout=60)
            assert (process.returncode, printed) == (1, "")
            assert word in errors
    with node(CLI, "http://127.0.0.1:9/") as process:
        assert "LogUnavailable" in process.communicate(timeout=60)[1]
