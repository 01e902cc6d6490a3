"""Rank and size of the process group; one process without a group is rank 0 of 1."""

import os

import torch.distributed as dist


def is_initialized() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all processes of the run."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if is_initialized() else 1


def launched() -> int:
    """How many processes torchrun has started, whether they have joined a group yet or not; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def print_main(text: str) -> None:
    """Prints a result, on one process only."""
    if is_main():
        print(text, flush=True)
