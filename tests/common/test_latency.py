import time
from collections.abc import Iterator

import pytest

from hgsl.common.latency import fastest_seconds


def test_calls_alternate_and_the_fastest_after_the_warm_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call advances a fake clock by the next of its durations."""
    now, order = [0.0], []

    def call(name: str, durations: Iterator[float]) -> None:
        order.append(name)
        now[0] += next(durations)

    durations = {"a": iter([1.0, 5.0, 3.0, 4.0]), "b": iter([0.5, 7.0, 9.0, 8.0])}  # the first warms up
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls = {name: lambda name=name: call(name, durations[name]) for name in durations}
    assert fastest_seconds(calls, repeats=3) == {"a": 3.0, "b": 7.0}
    assert order == ["a", "b"] * 4
