"""SHA-256 fingerprints of network weights, and checksums of files: SHA-256, and a word sum for gigabytes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

BLOCK = 1 << 17  # 64-bit words that a word sum reads at a time


def fingerprint(network: nn.Module, settings: str) -> str:
    """Returns the SHA-256 of the state dict of a network and of ``settings``, 64 hex digits.

    It covers names, dtypes, shapes and bytes of the tensors, and does not depend on their device.

    Args:
        network: The network; its class is not part of the fingerprint.
        settings: Everything else that determines the outputs, as text that is the same in every process.
    """
    digest = hashlib.sha256(settings.encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_checksum(path: Path, algorithm: str = "sha256") -> str:
    """Returns the checksum of a file in hex digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def word_sum(path: Path) -> str:
    """Returns a checksum of a file that takes a tenth of the time of SHA-256, which detects damage, not forgery.

    It is the sum of the file's 64-bit words, and that of its blocks' sums, each times its number; both modulo 2^64. Any
    change within one word is detected, and so are cut, repeated and exchanged blocks.
    """
    with path.open("rb") as file:
        return _word_sum(iter(lambda: file.read(8 * BLOCK), b""))


def array_sum(array: NDArray[Any]) -> str:
    """Returns the word sum of the bytes of an array, which may be mapped from a file."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _word_sum(content[start : start + 8 * BLOCK].tobytes() for start in range(0, len(content), 8 * BLOCK))


def _word_sum(blocks: Iterable[bytes]) -> str:
    total = weighted = size = 0
    for number, content in enumerate(blocks, 1):
        words = np.frombuffer(content.ljust(-(-len(content) // 8) * 8, b"\0"), dtype="<u8")
        block = int(words.sum(dtype=np.uint64))
        total, weighted, size = total + block, weighted + number * block, size + len(content)
    return f"{size}-{total % 2**64:016x}-{weighted % 2**64:016x}"
