"""Embeddings from a network: equal vectors however they are computed, and no side effects."""

import hashlib
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.evaluation import embed
from tests.helpers import launch, launch_ranks


class Squares(torch.utils.data.Dataset):
    """Images computed by a formula; the reads can be counted."""

    def __init__(self, count, record=None):
        self.count, self.record = count, record

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.record:
            with open(self.record, "a") as log:
                log.write(f"{index}\n")
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, 8, 8, generator=generator), index % 5, index + 1000


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 7))


def digest(found):
    return [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in found]


def test_vectors_labels_and_ids_come_in_order_whatever_the_workers(tmp_path):
    model, data = network(), Squares(21)
    found = embed(model, data, batch_size=4)
    model.eval()
    with torch.no_grad():
        expected = model(torch.stack([data[i][0] for i in range(21)]))
    np.testing.assert_allclose(found.embeddings, expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.arange(21) % 5)
    np.testing.assert_array_equal(found.ids, np.arange(21) + 1000)
    assert found.embeddings.dtype == np.float32
    assert digest(embed(model, data, batch_size=4, num_workers=2)) == digest(found)
    assert digest(embed(model, data, batch_size=4, store=tmp_path / "store")) == digest(found)


def test_a_store_whose_files_were_renamed_in_part_is_completed(tmp_path):
    expected = digest(embed(network(), Squares(8), batch_size=4, store=tmp_path))
    for name in ("embeddings", "labels"):  # killed after the first of three
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name}.part.npy")
    assert digest(embed(network(), Squares(8), batch_size=4, store=tmp_path)) == expected
    assert not list(tmp_path.glob("*.part.npy"))


class Careless(Squares):
    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_random_state_and_modes_are_left_as_they_were(workers):
    model = network().train()
    model[1].eval()  # a frozen batch norm
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    embed(model, Careless(9), batch_size=4, num_workers=workers)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model[1].num_batches_tracked == 0


def test_no_images_and_no_matrix_are_refused():
    with pytest.raises(InputError, match="no images"):
        embed(network(), Squares(0))
    with pytest.raises(InputError, match=r"must return one vector per image.*\(4, 6, 6, 6\)"):
        embed(nn.Conv2d(3, 6, 3), Squares(4))


@pytest.mark.parametrize("name", ["embeddings", "labels", "ids"])
def test_a_flipped_bit_of_a_finished_store_is_found(tmp_path, name):
    embed(network(), Squares(8), batch_size=4, store=tmp_path)
    content = bytearray((tmp_path / f"{name}.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{name}.npy").write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.npy is damaged: remove the folder and embed the images again"):
        embed(network(), Squares(8), batch_size=4, store=tmp_path)


def test_a_store_of_something_else_is_refused(tmp_path):
    embed(network(), Squares(8), batch_size=4, store=tmp_path / "store")
    for options in ({"batch_size": 2}, {"batch_size": 4, "identity": "another split"}):
        with pytest.raises(InputError, match="another network, data set or setting"):
            embed(network(), Squares(8), store=tmp_path / "store", **options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(InputError, match="holds other files"):
        embed(network(), Squares(8), store=tmp_path / "photos")


class Other(Squares):
    def __init__(self, element):
        super().__init__(4)
        self.element = element

    def __getitem__(self, index):
        return self.element


@pytest.mark.parametrize(
    ("element", "names"),
    [
        ((torch.zeros(3, 8, 8), 1), r"\(torch.float32, torch.int64\)"),
        ((torch.zeros(3, 8, 8), "owl", 1), r"\(torch.float32, tuple, torch.int64\)"),
        ((torch.zeros(3, 8, 8), 1, "a.jpg"), r"\(torch.float32, torch.int64, tuple\)"),
        ((torch.zeros(3, 8, 8), 0.5, 1), r"\(torch.float32, torch.float64, torch.int64\)"),
        (torch.zeros(3, 8, 8), r"\(torch.float32\)"),
    ],
)
def test_elements_of_another_form_are_refused(element, names):
    with pytest.raises(InputError, match=r"must return \(image tensor, label, id\), .*hold " + names):
        embed(network(), Other(element))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": "4"}, {"num_workers": -1}])
def test_counts_of_another_form_are_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be "):
        embed(network(), Squares(4), **options)


KILLED = """
import os, signal, sys
import hgsl.evaluation.store
from hgsl.evaluation import embed
from test_extract import Squares, network
hgsl.evaluation.store.FLUSH_SECONDS = 0
class Fatal(Squares):
    def __getitem__(self, index):
        if index == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
embed(network(), Fatal(21), batch_size=4, store=sys.argv[1])
"""


def test_a_killed_extraction_resumes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    assert launch(script, tmp_path / "store").returncode == -signal.SIGKILL
    assert not (tmp_path / "store" / "embeddings.npy").exists()
    found = embed(network(), Squares(21, tmp_path / "read.txt"), batch_size=4, store=tmp_path / "store")
    read = [int(line) for line in (tmp_path / "read.txt").read_text().split()]
    assert read == list(range(12, 21))  # three batches of four were safe
    assert isinstance(found.embeddings, np.memmap)
    assert digest(found) == digest(embed(network(), Squares(21), batch_size=4))
    again = embed(network(), Squares(21, tmp_path / "more.txt"), batch_size=4, store=tmp_path / "store")
    assert digest(again) == digest(found)
    assert not (tmp_path / "more.txt").exists()  # a finished store is read, not computed


RANKS = """
import sys
import torch
import torch.distributed as dist
from hgsl.evaluation import embed
from test_extract import Squares, digest, network
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
found = [digest(embed(network(), Squares(21), batch_size=8, store=store)) for store in (None, sys.argv[1])]
if dist.get_rank() == dist.get_world_size() - 1:  # not the one that writes
    print(*found[0], *found[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_same_bits(tmp_path, ranks):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = digest(embed(network(), Squares(21), batch_size=8))
    finally:
        torch.set_num_threads(threads)
    result = launch_ranks(script, tmp_path / "store", processes=ranks)
    assert (result.returncode, result.stdout.split()) == (0, expected * 2)  # 3 batches: of 4 ranks one has none
