"""The lock of a replica: many readers or one writer, and nobody waits for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from evergrad.replica.lock import FairLock, ReadWriteLock

LONG_S = 60.0


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def writer_waits(lock: ReadWriteLock, wrote: threading.Event) -> threading.Thread:
    """A thread that wants to write while somebody reads, and already waits for it."""

    def write() -> None:
        with lock.exclusive():
            wrote.set()

    thread = started(write)
    pause = threading.Event()
    while not lock._writers_waiting:
        assert thread.is_alive(), "it did not wait"
        pause.wait(0.001)
    return thread


def test_readers_share_it_and_a_writer_waits_for_all_of_them() -> None:
    lock, wrote, both = ReadWriteLock(), threading.Event(), threading.Barrier(3, timeout=LONG_S)
    leave = [threading.Event(), threading.Event()]

    def read(number: int) -> None:
        with lock.shared():
            both.wait()
            assert leave[number].wait(LONG_S)

    readers = [started(lambda number=number: read(number)) for number in range(2)]
    both.wait()  # both are inside at once
    writer = writer_waits(lock, wrote)
    for number in range(2):
        assert not wrote.is_set()
        leave[number].set()
        readers[number].join(LONG_S)
    assert wrote.wait(LONG_S)
    writer.join(LONG_S)


def test_a_reader_may_read_inside_while_a_writer_waits() -> None:
    lock, wrote = ReadWriteLock(), threading.Event()
    with lock.shared():
        writer = writer_waits(lock, wrote)
        with lock.shared(), lock.shared():
            assert not wrote.is_set()
        assert not wrote.is_set(), "the outer one still holds"
    assert wrote.wait(LONG_S)
    writer.join(LONG_S)


def test_a_new_reader_waits_for_a_writer_that_waits() -> None:
    lock, wrote, order = ReadWriteLock(), threading.Event(), []

    def read() -> None:
        with lock.shared():
            order.append(wrote.is_set())

    with lock.shared():
        writer = writer_waits(lock, wrote)
        reader = started(read)
        assert order == []
    for thread in (reader, writer):
        thread.join(LONG_S)
    assert order == [True]


def test_who_writes_may_read_and_others_wait() -> None:
    lock, seen, inside = ReadWriteLock(), [], threading.Event()

    def read() -> None:
        inside.set()
        with lock.shared():
            seen.append("other")

    with lock.exclusive():
        with lock.shared():
            seen.append("own")
        reader = started(read)
        assert inside.wait(LONG_S)
        assert seen == ["own"]
    reader.join(LONG_S)
    assert seen == ["own", "other"]


@pytest.mark.parametrize("outer", ["shared", "exclusive"])
def test_who_would_wait_for_itself_is_told(outer: str) -> None:
    lock = ReadWriteLock()
    with getattr(lock, outer)():
        with pytest.raises(RuntimeError, match=r"end pin\(\)"), lock.exclusive():
            pass
        with pytest.raises(RuntimeError):
            lock.require_outside()
    lock.require_outside()
    with lock.exclusive():
        pass


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_an_error_inside_gives_it_back(kind: str) -> None:
    lock = ReadWriteLock()
    with pytest.raises(ValueError, match="inside"), getattr(lock, kind)():
        raise ValueError("inside")
    for again in (lock.exclusive, lock.shared):
        with again():
            pass


def test_the_fair_lock_is_given_in_the_order_of_asking() -> None:
    lock, order, asking = FairLock(), [], []

    def take(name: int) -> None:
        asking.append(name)
        with lock:
            order.append(name)

    threads = []
    with lock:
        for name in range(4):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while lock._next != name + 2:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_who_asks_again_at_once_keeps_nobody_out() -> None:
    lock, turns = FairLock(), []
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            with lock:
                turns.append("hog")

    thread = threading.Thread(target=hog)
    thread.start()
    for _ in range(100):
        with lock:
            turns.append("other")
    stop.set()
    thread.join()
    assert turns.count("other") == 100


def test_one_whose_wait_is_ended_is_passed_over() -> None:
    lock = FairLock()

    class Interrupted(threading.Condition):
        def wait_for(self, predicate: object, timeout: float | None = None) -> bool:  # type: ignore[override]
            raise KeyboardInterrupt

    with lock:
        patient = lock._condition
        lock._condition = Interrupted()
        with pytest.raises(KeyboardInterrupt), lock:
            raise AssertionError("not reached")
        lock._condition = patient
    with lock:
        pass
