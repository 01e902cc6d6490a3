import copy
import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from hgsl.common.fingerprint import BLOCK, file_checksum, fingerprint, word_sum


def test_a_fingerprint_covers_settings_names_dtypes_shapes_and_every_bit() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    changed = copy.deepcopy(network)
    changed[1].running_mean[2] = -0.0  # equal to 0, and yet other bits
    renamed = nn.Sequential()
    renamed.add_module("a", network[0])
    renamed.add_module("b", network[1])
    reshaped = copy.deepcopy(network)
    reshaped[0].weight = nn.Parameter(reshaped[0].weight.detach().reshape(2, 3))
    others = [changed, renamed, reshaped, copy.deepcopy(network).double()]
    prints = {fingerprint(network, "32 px"), fingerprint(network, "64 px"), *(fingerprint(n, "32 px") for n in others)}
    assert len(prints) == 6
    assert fingerprint(copy.deepcopy(network).eval(), "32 px") == fingerprint(network, "32 px")


def test_fingerprints_stored_in_files_stay_valid() -> None:
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, -2.0]])
    expected = hashlib.sha256(b"settingsweight torch.float32 (1, 2)\0\0\x80\x3f\0\0\0\xc0").hexdigest()
    assert fingerprint(network, "settings") == expected


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_checksum_of_a_file(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "a").write_bytes(b"hgsl" * 100_000)
    assert file_checksum(tmp_path / "a", algorithm) == hashlib.new(algorithm, b"hgsl" * 100_000).hexdigest()


def test_a_word_sum_differs_after_every_kind_of_damage(tmp_path: Path) -> None:
    content = torch.arange(2 * BLOCK + 5, dtype=torch.int64).mul(0x9E3779B97F4A7C15 - 2**64).numpy().tobytes() + b"end"
    flipped = bytearray(content)
    flipped[12_345] ^= 0x80
    first, second = content[: 8 * BLOCK], content[8 * BLOCK : 16 * BLOCK]
    damaged = [flipped, content[:-1], content + b"\0", second + first + content[16 * BLOCK :], b"", bytes(len(content))]
    sums = set()
    for version in (content, *damaged):
        (tmp_path / "a").write_bytes(version)
        sums.add(word_sum(tmp_path / "a"))
    assert len(sums) == 1 + len(damaged)
    (tmp_path / "a").write_bytes((3).to_bytes(8, "little") + (4).to_bytes(8, "little") + b"\1")
    assert word_sum(tmp_path / "a") == f"17-{8:016x}-{8:016x}"
