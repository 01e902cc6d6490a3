"""Counts and durations of requests in the text format of Prometheus."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
OTHER = "other"  # route of requests that no route answers

Labels = Mapping[str, object]


class Metrics:
    """The requests that a server has answered, by route."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: Counter[str] = Counter()

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests[method, route, status] += 1
        self._durations[route][bisect_left(BOUNDS, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

    def lines(self) -> list[str]:
        """The lines of counters and histograms."""
        counts = [
            ({"method": method, "route": route, "status": status}, count)
            for (method, route, status), count in sorted(self._requests.items())
        ]
        lines = series("hgsl_requests_total", "counter", "Requests answered.", counts)
        lines += _head("hgsl_request_seconds", "histogram", "Seconds until the answer is sent.")
        for route, buckets in sorted(self._durations.items()):
            total = 0
            for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
                total += count
                lines.append(_sample("hgsl_request_seconds_bucket", {"route": route, "le": bound}, total))
            lines.append(_sample("hgsl_request_seconds_sum", {"route": route}, self._seconds[route]))
            lines.append(_sample("hgsl_request_seconds_count", {"route": route}, total))
        return lines


class MetricsMiddleware:
    """ASGI middleware that counts each request under the pattern of its route, of which there are few."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else OTHER
            self.metrics.add(method, route, status, time.perf_counter() - start)


def series(name: str, kind: str, description: str, samples: Iterable[tuple[Labels, float]]) -> list[str]:
    """The lines of one metric.

    >>> series("images", "gauge", "Images.", [({"index": "a"}, 3)])
    ['# HELP images Images.', '# TYPE images gauge', 'images{index="a"} 3']
    """
    return [*_head(name, kind, description), *(_sample(name, labels, value) for labels, value in samples)]


def _head(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _sample(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
