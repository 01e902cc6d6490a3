"""Results in order, errors, and threads that end, of work done ahead."""

import threading

import pytest

from hgsl.common.threads import map_ahead


def thread_names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_results_come_in_the_order_of_the_items(threads):
    assert list(map_ahead(lambda item: item**2, iter(range(20)), threads)) == [item**2 for item in range(20)]
    assert not thread_names()


def test_as_many_items_as_threads_are_in_work_at_a_time():
    all_started = threading.Barrier(3, timeout=30)
    assert len(list(map_ahead(lambda item: all_started.wait(), range(9), 3))) == 9


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_in_place_of_its_result(threads):
    taken = []

    def function(item):
        taken.append(item)
        return 1 // (item - 4)

    results = map_ahead(function, range(100), threads)
    assert [next(results) for _ in range(4)] == [1 // (item - 4) for item in range(4)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(taken) <= 4 + threads
    assert not thread_names()


def test_no_thread_is_left_where_the_caller_stops():
    results = map_ahead(str, range(100), 3)
    assert next(results) == "0"
    results.close()
    assert not thread_names()
