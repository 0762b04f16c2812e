"""Work in threads beside the one that needs it."""

import threading
import time

import pytest

from ssd.runtime.threads import in_threads


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
