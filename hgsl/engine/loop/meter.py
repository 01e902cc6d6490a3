"""Meter of an epoch: mean loss, speed, and time spent waiting for images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Mean loss and speed of an epoch, and the share of its time that was spent waiting for images."""

    def __init__(self, world_size: int = 1) -> None:
        self.world_size = world_size
        self.started, self.waited = time.perf_counter(), 0.0
        self.loss_sum, self.steps, self.images = 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def add(self, loss: float, images: int) -> None:
        self.loss_sum += loss
        self.steps += 1
        self.images += images * self.world_size

    def mean_loss(self) -> float:
        return self.loss_sum / max(1, self.steps)

    def speed(self) -> float:
        """Images per second, over all processes."""
        return self.images / (time.perf_counter() - self.started)

    def wait_share(self) -> float:
        """Share of the time, in [0, 1], that this process waited for images."""
        return self.waited / (time.perf_counter() - self.started)

    def record(self) -> dict[str, float]:
        """The numbers of a log record."""
        return {"images_per_second": self.speed(), "data_wait_share": self.wait_share()}

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.started
        return (
            f"loss {self.mean_loss():.4f}  {self.speed():.0f} images/s  {seconds:.0f} s, "
            f"{100 * self.wait_share():.0f} % of it waiting for images"
        )
