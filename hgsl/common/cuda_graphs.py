"""Capture of CUDA graphs, and work on a stream of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def capture(step: Callable[[], None], stream: torch.cuda.Stream | None) -> Callable[[], None]:
    """Captures ``step`` as a CUDA graph, without computing it, and returns the function that replays it."""
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        # The loader's thread pins memory meanwhile, which the default mode would not allow.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except BaseException:
        generator.graphsafe_set_state(before)  # a failed capture leaves a state that refuses to draw
        raise
    return graph.replay


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs the context on ``stream``, after the current stream's work and before what follows on it."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
