"""SHA-256 fingerprints of network weights, and checksums of files."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def fingerprint(network: nn.Module, settings: str) -> str:
    """Returns 64 hex digits that stand for the tensors of a network and for ``settings``.

    They cover the names, dtypes, shapes and bytes of the state dict, on whatever device it is.

    Args:
        network: Its weights and buffers count, its class does not.
        settings: Whatever else decides the outputs, as text that is the same in every process.
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
