"""Labels that come back: joined once with what was served, by any worker, through deaths and full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import ConfigError, HistoryMismatch, HistoryUnavailable, RequestNotHeld
from evergrad.serve.access import Token
from evergrad.serve.client import InferenceClient
from evergrad.serve.feedback import Feedback, Labelling, Taken
from evergrad.serve.spool import SERVED, folders
from evergrad.stream import Batch
from evergrad.stream.feedback import FeedbackStream
from evergrad.testing import FakeClock
from tests.serve.support import BATCH, Training, ask, ask_json, command, said, serving, until

X, Y, OUTPUTS = np.arange(6.0).reshape(3, 2), np.array([0, 1, 2]), np.arange(3.0)[:, None]
FEEDBACK = "/v2/models/model/feedback"


def stream(folder: Path) -> list[Batch]:
    return list(FeedbackStream(path=str(folder), idle_s=0.0, poll_s=0.0))


@contextmanager
def labelling(folder: Path, worker: int = 1, clock: FakeClock | None = None, **more: float) -> Iterator[Labelling]:
    found = Labelling(Feedback(path=folder, **more), worker, clock or FakeClock())  # type: ignore[arg-type]
    try:
        yield found
    finally:
        found.close()


# -- what becomes of labels -------------------------------------------------------------------------------------------


def test_labels_find_their_requests_and_both_go_to_the_stream(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    with labelling(tmp_path, clock=clock) as one:
        assert one.served("a", X, OUTPUTS)
        assert one.served("b", X[:1] + 10, OUTPUTS[:1] + 10)
        clock.advance(5)
        assert one.label([("b", Y[:1]), ("a", Y)]) == Taken(2, 0, 0)
        assert one.example(X[:2], Y[:2], OUTPUTS[:2]) == Taken(2, 0, 1)
        first, second = stream(tmp_path)
        assert first.x.tolist() == [[10.0, 11.0], *X.tolist()]
        assert first.y.tolist() == [0, 0, 1, 2]
        assert first.outputs is not None
        assert first.outputs.ravel().tolist() == [10.0, 0.0, 1.0, 2.0]
        assert first.arrived_s == 105.0
        assert second.x.tolist() == X[:2].tolist()
        assert (one.stats().joined, one.stats().waiting) == (2, 0)


def test_a_label_told_again_is_a_duplicate_and_changes_nothing(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        one.served("a", X, OUTPUTS)
        assert one.label([("a", Y), ("a", Y)]) == Taken(1, 1, 0)
        assert one.label([("a", Y)]) == Taken(0, 1, None)
        assert len(stream(tmp_path)) == 1


def test_one_unknown_id_refuses_all_and_the_rest_may_come_again(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        one.served("a", X, OUTPUTS)
        with pytest.raises(RequestNotHeld) as caught:
            one.label([("a", Y), ("never", Y)])
        assert caught.value.args == ("never", 1, 2)
        assert stream(tmp_path) == []
        assert one.label([("a", Y)]) == Taken(1, 0, 0)


def test_who_waits_too_long_is_counted_and_unknown(tmp_path: Path) -> None:
    clock = FakeClock()
    with labelling(tmp_path, clock=clock, timeout_s=60) as one:
        one.served("early", X, OUTPUTS)
        clock.advance(59)
        one.served("late", X, OUTPUTS)
        clock.advance(2)
        with pytest.raises(RequestNotHeld):
            one.label([("early", Y)])
        assert one.label([("late", Y)]).joined == 1
        assert (one.stats().expired, one.stats().joined) == (1, 1)


def test_no_more_wait_than_the_limit_and_the_disk_is_given_back(tmp_path: Path) -> None:
    clock = FakeClock()
    with labelling(tmp_path, clock=clock, limit=16) as one:
        for number in range(100):
            clock.advance(0.001)
            one.served(str(number), X[:1], OUTPUTS[:1])
        assert (one.stats().waiting, one.stats().dropped) == (16, one.stats().predicted - 16)
        assert len(folders(tmp_path / SERVED)) <= 10
        assert one.label([("84", Y[:1])]).joined == 1
        with pytest.raises(RequestNotHeld):
            one.label([("83", Y[:1])])


def test_folders_of_workers_that_are_gone_are_removed(tmp_path: Path) -> None:
    clock = FakeClock()
    with labelling(tmp_path, worker=7, clock=clock, timeout_s=8) as gone:
        gone.served("a", X, OUTPUTS)
    clock.advance(9.5)
    with labelling(tmp_path, worker=1, clock=clock, timeout_s=8) as one:
        one.served("b", X, OUTPUTS)
        assert [path.name.partition("-")[0] for path in folders(tmp_path / SERVED)] == ["1"]


# -- several workers, and their deaths --------------------------------------------------------------------------------


def test_any_worker_joins_what_another_has_answered_and_once(tmp_path: Path) -> None:
    clock = FakeClock()
    with labelling(tmp_path, 1, clock) as one, labelling(tmp_path, 2, clock) as two:
        one.served("a", X, OUTPUTS)
        two.served("b", X, OUTPUTS)
        assert two.label([("a", Y)]) == Taken(1, 0, 0)
        assert one.label([("a", Y), ("b", Y)]) == Taken(1, 1, 1)
        assert two.label([("b", Y)]) == Taken(0, 1, None)
        assert [batch.y.tolist() for batch in stream(tmp_path)] == [[0, 1, 2]] * 2
        assert one.stats() == two.stats()


def test_a_worker_that_is_started_again_knows_what_was_answered_and_joined(tmp_path: Path) -> None:
    clock = FakeClock()
    with labelling(tmp_path, 1, clock) as before:
        before.served("a", X, OUTPUTS)
        before.served("b", X, OUTPUTS)
        before.label([("a", Y)])
        with labelling(tmp_path, 1, clock) as again:
            assert again.label([("a", Y), ("b", Y)]) == Taken(1, 1, 1)


def test_a_follower_begins_anywhere_and_sees_what_comes(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        came, clock = iter(range(3)), FakeClock()

        def teach(_: float) -> None:
            clock.advance(0.9)
            number = next(came, None)
            if number is not None:
                one.example(X + number, Y, OUTPUTS)

        follower = FeedbackStream(path=str(tmp_path), idle_s=1.0, clock=clock, sleep=teach)
        assert [batch.x[0, 0] for batch in follower] == [0.0, 1.0, 2.0]
        assert [batch.x[0, 0] for batch in FeedbackStream(path=str(tmp_path), idle_s=0.0).starting_at(1)] == [1.0, 2.0]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_labels_that_do_not_fit_are_refused_whole(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        for name in "abc":
            one.served(name, X, OUTPUTS)
        with pytest.raises(HistoryMismatch, match="3 rows, as the input of 'a'"):
            one.label([("a", Y[:2])])
        with pytest.raises(HistoryMismatch, match="rows of int64"):
            one.label([("a", Y), ("b", Y.astype(float))])
        with pytest.raises(HistoryMismatch, match="x"):
            one.example(X[:0], Y[:0], OUTPUTS[:0])
        assert one.label([("a", Y)]).joined == 1
        with pytest.raises(HistoryMismatch, match="column 'y'"):
            one.label([("b", Y[:, None])])
        assert one.label([("b", Y)]).joined == 1
        assert len(stream(tmp_path)) == 2


def test_answers_that_cannot_be_kept_are_given_all_the_same(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        assert one.served("a", X, OUTPUTS)
        assert not one.served("another shape", X[:, :1], OUTPUTS)
        assert not one.served("no rows", np.float64(1.0), OUTPUTS)
        assert not one.served("x" * 257, X, OUTPUTS)
        assert one.label([("a", Y)]).joined == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with labelling(tmp_path) as one:
        one.served("a", X, OUTPUTS)
        one.example(X, Y, OUTPUTS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            with pytest.raises(HistoryUnavailable):
                one.example(np.tile(X, (10, 1)), np.tile(Y, 10), np.tile(OUTPUTS, (10, 1)))
            assert not one.served("b", np.tile(X, (10, 1)), np.tile(OUTPUTS, (10, 1)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "answers are not kept" in caplog.text
        assert len(stream(tmp_path)) == 1
        assert one.label([("a", Y)]) == Taken(1, 0, 1)
        assert one.served("b", X, OUTPUTS)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoryUnavailable, match="file"):
        Labelling(Feedback(path=tmp_path / "file"))
    with pytest.raises(ConfigError, match="timeout_s"):
        Feedback(path=tmp_path, timeout_s=0)
    with pytest.raises(ConfigError, match="limit"):
        Feedback(path=tmp_path, limit=0)


def test_closed_it_refuses_and_counts_on(tmp_path: Path) -> None:
    with labelling(tmp_path) as one:
        one.served("a", X, OUTPUTS)
        assert one.stats().waiting == 1
    with pytest.raises(HistoryUnavailable, match="closed"):
        one.label([("a", Y)])
    assert one.stats().waiting == 1


# -- over HTTP --------------------------------------------------------------------------------------------------------


def test_over_http_with_metrics(tmp_path: Path) -> None:
    training = Training(tmp_path / "log")
    with serving(training.servable(), feedback=Feedback(path=tmp_path / "feedback")) as (server, client):
        until(client.ready)
        answer = client.infer(BATCH)
        named = client.infer(BATCH + 1, request_id="mine")
        assert named.id == "mine"
        assert client.label({answer.id: Y[:2], "mine": Y[1:]}) == {"joined": 2, "duplicates": 0, "batch": 0}
        assert client.teach(BATCH, Y[:2]) == {"joined": 2, "duplicates": 0, "batch": 1}
        assert client.label({"mine": Y[1:]}) == {"joined": 0, "duplicates": 1, "batch": None}
        first, second = stream(tmp_path / "feedback")
        assert np.array_equal(first.x, np.concatenate([BATCH, BATCH + 1]))
        assert np.array_equal(first.outputs, np.concatenate([answer.outputs, named.outputs]))  # type: ignore[arg-type]
        assert np.array_equal(second.outputs, training.outputs())  # type: ignore[arg-type]
        client.infer(BATCH, version=0)
        text = ask(server.url, "GET", "/metrics")[2].decode()
        for line in ('feedback_total{model_name="model",outcome="joined"} 2', 'outcome="example"} 2',
                     'outcome="duplicate"} 1', 'feedback_waiting{model_name="model"} 0',
                     'feedback_expired_total{model_name="model"} 0'):  # fmt: skip
            assert line in text


TENSOR = {"shape": [2], "datatype": "INT64", "data": [1, 2]}
REFUSED = {
    "not JSON": (b"{", 400, "not feedback"),
    "nothing": (b"{}", 400, "either labels"),
    "no labels": (b'{"labels": []}', 400, "either labels"),
    "both": (json.dumps({"labels": [{"id": "a", "y": TENSOR}], "examples": {"x": TENSOR, "y": TENSOR}}), 400, "either"),
    "a key too many": (b'{"label": []}', 400, "not feedback"),
    "a label without a value": (b'{"labels": [{"id": "a"}]}', 400, "not feedback"),
    "data that do not fill the shape": (
        json.dumps({"labels": [{"id": "a", "y": {**TENSOR, "shape": [3]}}]}), 400, "takes 3 values"),
    "an unknown datatype": (json.dumps({"labels": [{"id": "a", "y": {**TENSOR, "datatype": "X"}}]}), 400, "datatype"),
    "an unknown request": (json.dumps({"labels": [{"id": "a", "y": TENSOR}]}), 404, "the first is 'a'"),
    "too few labels": (
        json.dumps({"labels": [{"id": "known", "y": {**TENSOR, "shape": [1], "data": [1]}}]}), 400, "2 rows"),
    "an input that the model cannot take": (json.dumps({"examples": {"x": TENSOR, "y": TENSOR}}), 400, "does not take"),
    "too large": (b'{"labels": "' + b"x" * 5000 + b'"}', 413, "at most 4096 bytes"),
}  # fmt: skip


def test_refusals_are_the_protocol_s_and_the_server_stays_up(tmp_path: Path) -> None:
    settings = {"feedback": Feedback(path=tmp_path / "feedback"), "max_request_bytes": 4096}
    with serving(Training(tmp_path / "log").servable(), **settings) as (server, client):
        until(client.ready)
        client.infer(BATCH, request_id="known")
        for case, (body, expected, problem) in REFUSED.items():
            data = body if isinstance(body, bytes) else body.encode()
            status, _, answer = ask(server.url, "POST", FEEDBACK, data, {"Content-Type": "application/json"})
            assert status == expected, case
            found = json.loads(answer)
            assert list(found) == ["error"], case
            assert problem in found["error"], case
            assert "Traceback" not in found["error"], case
        assert ask_json(server.url, "POST", "/v2/models/other/feedback", {})[0] == 404
        assert client.label({"known": Y[:2]})["joined"] == 1


def test_a_disk_that_refuses_is_a_503_and_it_may_come_again(tmp_path: Path) -> None:
    with serving(Training(tmp_path / "log").servable(), feedback=Feedback(path=tmp_path / "f")) as (server, client):
        until(client.ready)
        (tmp_path / "f" / "joined").touch()  # where a folder would have to be made
        client.infer(BATCH, request_id="a")
        content = {"labels": [{"id": "a", "y": TENSOR}]}
        status, found = ask_json(server.url, "POST", FEEDBACK, content)
        assert status == 503
        assert "refused" in found["error"] or "cannot be used" in found["error"]
        (tmp_path / "f" / "joined").unlink()
        assert ask_json(server.url, "POST", FEEDBACK, content)[0] == 200


def test_without_a_folder_there_is_none_and_with_a_token_it_is_asked_for(tmp_path: Path) -> None:
    training = Training(tmp_path / "log")
    with serving(training.servable()) as (server, _):
        status, found = ask_json(server.url, "POST", FEEDBACK, {"labels": [{"id": "a", "y": TENSOR}]})
        assert status == 404
        assert "--feedback" in found["error"]
    with serving(training.servable(), token=Token("s" * 20), feedback=Feedback(path=tmp_path / "f")) as (
        server,
        client,
    ):
        until(client.ready)
        assert ask_json(server.url, "POST", FEEDBACK, {"labels": [{"id": "a", "y": TENSOR}]})[0] == 401
        assert client.teach(BATCH, Y[:2])["joined"] == 2


# -- real processes ---------------------------------------------------------------------------------------------------


def test_two_workers_join_each_other_s_answers_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path / "log")
    options = ("--model", "tests.serve.support:make_model", "--port", "0", "--feedback", str(tmp_path / "f"))
    acknowledged = 0
    with command("serve", training.url, *options, "--workers", "2") as parent:
        url = said(parent).split(" on ")[1].strip()
        said(parent)
        for number in range(20):  # a connection each: the kernel spreads them
            with InferenceClient(url, timeout_s=60) as client:
                client.infer(BATCH, request_id=str(number))
        for number in range(10):
            with InferenceClient(url, timeout_s=60) as client:
                acknowledged += client.label({str(number): Y[:2]})["joined"]
        assert acknowledged == 10
        parent.send_signal(signal.SIGKILL)
    with command("serve", training.url, *options) as again:
        url = said(again).split(" on ")[1].strip()
        with InferenceClient(url, timeout_s=60) as client:
            assert client.label({str(number): Y[:2] for number in range(20)}) == {
                "joined": 10, "duplicates": 10, "batch": 10
            }  # fmt: skip
        os.kill(again.pid, signal.SIGKILL)
    assert sum(len(batch) for batch in stream(tmp_path / "f")) == 40
