"""Overlap of host and GPU: copies ahead of the step, a limit of how far the host runs ahead, and cuDNN autotuning."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hgsl.engine.loop.train_state import Batch, LoopOptions
from hgsl.engine.runtime import Runtime

STEPS_AHEAD = 2  # steps that the host may queue before the GPU has finished one: enough to keep it busy


def copied_ahead(
    batches: Iterator[Batch], options: LoopOptions, runtime: Runtime, channels_last: bool
) -> Iterator[Batch]:
    """Copies batches on a stream of their own, while the GPU computes the step before, if the host runs ahead.

    Batches from pinned memory are copied without waiting. Those of other devices, and all with ``log_every`` 1, are
    passed on as they are.
    """
    if not overlaps(options, runtime):
        yield from batches
        return
    copies = torch.cuda.Stream(runtime.device)
    for images, labels, ids in batches:
        if images.device.type == "cuda":
            yield images, labels, ids
            continue
        with torch.cuda.stream(copies):
            on_device = runtime.prepare(images, channels_last), labels.to(runtime.device, non_blocking=True)
        steps = torch.cuda.current_stream(runtime.device)
        steps.wait_stream(copies)
        for tensor in on_device:
            tensor.record_stream(steps)  # its memory is not reused by the next copy before the step has read it
        yield *on_device, ids


def overlaps(options: LoopOptions, runtime: Runtime) -> bool:
    """Whether the host queues steps on a GPU without reading each."""
    return runtime.device.type == "cuda" and options.log_every > 1


class RunAhead:
    """Limits the steps that the host queues on the GPU, which bounds the memory of their batches."""

    def __init__(self, options: LoopOptions, runtime: Runtime) -> None:
        self.active = overlaps(options, runtime)
        self.device = runtime.device
        self._finished: deque[torch.cuda.Event] = deque()

    def limit(self) -> None:
        """Waits until at most ``STEPS_AHEAD`` steps are unfinished."""
        if not self.active:
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        self._finished.append(event)
        if len(self._finished) > STEPS_AHEAD:
            self._finished.popleft().synchronize()


@contextmanager
def tuned_convolutions(options: LoopOptions, runtime: Runtime) -> Iterator[None]:
    """Lets cuDNN time its algorithms within the context, with ``autotune`` on a GPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (options.autotune and runtime.device.type == "cuda")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
