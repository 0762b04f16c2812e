"""Work in threads beside the one that needs it."""

import threading
import time

import pytest

from ssd.runtime.threads import ReadAhead, in_threads


def test_results_come_in_the_order_of_the_items():
    def slow(i):
        time.sleep(0.002 * (i % 3))
        return i, threading.get_ident()

    results = list(in_threads(slow, range(40), workers=3, ahead=5))
    assert [i for i, _ in results] == list(range(40))
    assert threading.get_ident() not in {ident for _, ident in results}
    assert list(in_threads(slow, [], workers=2, ahead=1)) == []


def test_no_more_items_are_taken_than_may_be_ahead():
    taken, seen = [], 0
    for _ in in_threads(lambda i: i, (taken.append(i) or i for i in range(30)), workers=2, ahead=4):
        seen += 1
        assert len(taken) <= seen + 4
    assert seen == 30


def test_threads_work_while_the_caller_does():
    started = threading.Event()
    results = in_threads(lambda i: started.set() if i == 1 else None, range(3), workers=1, ahead=1)
    next(results)
    assert started.wait(10)  # the second item, which nobody has asked for
    results.close()


@pytest.mark.parametrize("leave", ["error", "close"])
def test_an_error_comes_in_place_of_its_result_and_ends_the_rest(leave):
    done = []

    def work(i):
        if i == 3 and leave == "error":
            raise ValueError("item 3")
        time.sleep(0.01)
        done.append(i)
        return i

    results = in_threads(work, range(1000), workers=2, ahead=100)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    if leave == "error":
        with pytest.raises(ValueError, match="item 3"):
            next(results)
    results.close()
    assert len(done) < 50
    assert threading.active_count() < 20


def test_a_thread_of_the_pool_may_end_the_rest():
    """As the garbage collector does, if it runs there and nobody uses the results any more."""
    waits, errors = threading.Event(), []

    def work(item):
        if item == 1:
            waits.wait(10)
            try:
                results.close()
            except RuntimeError as error:
                errors.append(error)
        return item

    results = in_threads(work, iter(range(9)), workers=1, ahead=1)
    assert next(results) == 0
    threads = threading.active_count()
    waits.set()
    for _ in range(100):
        if threading.active_count() < threads:
            break
        time.sleep(0.1)
    assert threading.active_count() < threads
    assert not errors
    assert list(results) == []


def test_items_are_read_ahead_and_no_more_than_may_wait():
    read, all_read = [], threading.Event()

    def items():
        for i in range(20):
            read.append(i)
            if i == 3:
                all_read.set()
            yield i

    with ReadAhead(items(), 3) as ahead:
        assert all_read.wait(10)  # three that wait, and one that finds no place
        time.sleep(0.05)
        assert read == [0, 1, 2, 3]
        assert ahead.take(2) == [0, 1]
        assert ahead.take(100) == list(range(2, 20))  # waits for those that are not read yet
        assert ahead.take(1) == []
    assert ahead.dropped == 0
    with ReadAhead(range(5), 2) as ahead:
        assert list(ahead) == [0, 1, 2, 3, 4]


def test_only_the_newest_items_wait():
    all_read, more = threading.Event(), threading.Event()

    def items():
        yield from range(10)
        all_read.set()
        more.wait(10)
        yield 10

    with ReadAhead(items(), 2, newest=True) as ahead:
        assert all_read.wait(10)
        assert ahead.take(5, full=False) == [8, 9]
        assert ahead.dropped == 8
        more.set()
        assert ahead.take(5, full=False) == [10]
        assert ahead.take(5, full=False) == []


def test_what_reading_raises_comes_after_the_items_before_it():
    def items():
        yield from (0, 1)
        raise ValueError("item 2")

    with ReadAhead(items(), 5) as ahead:
        assert ahead.take(1) == [0]
        assert ahead.take(5) == [1]
        for _ in range(2):
            with pytest.raises(ValueError, match="item 2"):
                ahead.take(1)


def test_a_signal_ends_a_wait_for_items():
    resumed, stopping, waited = threading.Event(), [], []

    def items():
        yield 0
        waited.append(resumed.wait(30))

    with ReadAhead(items(), 2) as ahead:
        assert ahead.take(1) == [0]
        threading.Timer(0.05, stopping.append, [1]).start()
        assert ahead.take(3, stopping=stopping) == []
        assert waited == []  # the items still do not come
        resumed.set()


def test_closing_ends_the_thread():
    read = []
    with ReadAhead((read.append(i) for i in range(10**9)), 3) as ahead:
        ahead.take(1)
    time.sleep(0.05)
    so_far = len(read)
    time.sleep(0.05)
    assert len(read) == so_far < 10
