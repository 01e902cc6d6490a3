"""SHA-256 fingerprints of network weights, and checksums of files."""

import hashlib
from pathlib import Path

import torch
from torch import nn


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
