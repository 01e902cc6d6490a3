"""Synthetic butterflies: reproducible images, distinct classes, and checked arguments."""

import itertools
import pickle
import random
import subprocess
import sys
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.data import build_dataset, load_manifest
from hgsl.data.synthetic import butterflies, butterfly, species
from hgsl.data.synthetic.shared_images import SharedImages


def pixels(*arguments: int) -> np.ndarray:
    return np.asarray(butterflies.draw(*arguments)).astype(int)


def test_an_image_depends_on_its_four_numbers_alone():
    forward = [pixels(label, image, 48, 3) for label in range(3) for image in range(2)]
    backward = [pixels(label, image, 48, 3) for label in (2, 1, 0) for image in (1, 0)]
    assert all(np.array_equal(one, other) for one, other in zip(forward, backward[::-1], strict=True))
    for changed in ((4, 1, 48, 3), (1, 2, 48, 3), (1, 1, 48, 4)):
        assert np.abs(pixels(*changed) - pixels(1, 1, 48, 3)).mean() > 3


@pytest.mark.slow
def test_another_process_draws_the_same_bytes():
    code = "from hgsl.data.synthetic import butterflies; print(butterflies.draw(5, 7, 40, 2).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert bytes.fromhex(other.stdout) == butterflies.draw(5, 7, 40, 2).tobytes()


def test_species_and_images_are_the_same_in_every_version():
    traits = species.traits(7, seed=0)
    spots = ["".join(str(int(traits[f"{wing}_spot_{i}"])) for i in range(n)) for wing, n in species.CELLS.items()]
    assert spots == ["011100", "1100010"]
    assert [traits["hue"], traits["fore_band"], traits["club"]] == pytest.approx(
        [0.378108, 0.389944, 0.018279], abs=1e-6
    )
    blocks = pixels(7, 1, 64, 0).reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).reshape(4, 3)
    expected = [[113.2, 152.3, 130.3], [149.5, 187.7, 185.7], [141.6, 167.1, 171.6], [175.1, 207.8, 205.5]]
    np.testing.assert_allclose(blocks, expected, atol=1.0)  # room for another rounding of a few pixels


def test_drawing_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    butterflies.draw(0, 0, 32)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_species_of_a_genus_are_a_step_apart_and_no_two_classes_are_the_same():
    species_traits = [species.traits(label, seed=5) for label in range(2 * species.GENERA * species.SPECIES)]
    numbers = np.array([[traits[name] for name in species.TRAITS] for traits in species_traits])
    low, high, step = np.array(list(species.TRAITS.values())).T
    assert np.all((numbers >= low - step - 1e-9) & (numbers <= high + step + 1e-9))
    genera = np.array([species.genus(label) for label in range(len(species_traits))])
    for genus in range(2 * species.GENERA):
        members = numbers[genera == genus]
        assert len(members) == species.SPECIES
        assert np.all(np.ptp(members, axis=0) <= 2 * step + 1e-9)
    every = np.array([list(traits.values()) for traits in species_traits])
    apart = (np.abs(every[:, None] - every[None]) > 1e-9).sum(-1)  # in how many traits two classes differ
    np.fill_diagonal(apart, len(every))
    assert apart.min() >= 8


def test_an_image_shows_the_traits_of_its_class():
    """Painted in one pose, species of a genus are alike, those of two genera less so, and a class is like itself."""
    pose = butterfly.Pose(0.0, 0.0, 0.0, 0.8, 1.0, 1.0, 0.0, 0.0)
    painted = [butterfly.paint(64, species.traits(label), pose)[0] for label in range(4 * species.GENERA)]
    distance = {
        pair: float(np.abs(painted[pair[0]] - painted[pair[1]]).mean())
        for pair in itertools.combinations(range(len(painted)), 2)
    }
    same = [value for (a, b), value in distance.items() if species.genus(a) == species.genus(b)]
    other = [value for (a, b), value in distance.items() if species.genus(a) != species.genus(b)]
    assert min(same) > 0.004
    assert np.median(same) < 0.7 * np.median(other)


def test_the_coverage_of_a_specimen_follows_its_pose():
    traits = species.traits(3)
    flat = butterfly.Pose(0.0, 0.0, 0.0, 0.8, 1.0, 1.0, 0.0, 0.0)
    color, cover = butterfly.paint(96, traits, flat)
    assert color.shape == (3, 96, 96)
    assert color.dtype == cover.dtype == np.float32
    assert cover.min() == 0
    assert cover.max() == pytest.approx(1, abs=1e-6)
    assert np.all(color[:, cover == 0] == 0)
    np.testing.assert_allclose(cover, cover[:, ::-1], atol=1e-4)  # both sides alike
    np.testing.assert_allclose(color, color[:, :, ::-1], atol=1e-3)
    turned = butterfly.paint(96, traits, flat._replace(angle=np.pi / 2))[1]
    np.testing.assert_allclose(turned, np.rot90(cover), atol=1e-2)
    half = butterfly.paint(96, traits, flat._replace(scale=0.4))[1]
    assert half.sum() == pytest.approx(cover.sum() / 4, rel=0.03)
    raised = butterfly.paint(96, traits, flat._replace(left=0.5))[1]
    assert raised[:, :48].sum() < 0.7 * cover[:, :48].sum()
    np.testing.assert_allclose(raised[:, 48:], cover[:, 48:], atol=1e-6)


@pytest.mark.parametrize("size", [16, 33, 224])
def test_any_size(size):
    image = butterflies.draw(2, 3, size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert np.asarray(image).std() > 10
    small = butterflies.draw(2, 3, size).resize((8, 8), 4)
    reference = butterflies.draw(2, 3, 96).resize((8, 8), 4)
    assert np.corrcoef(np.ravel(small), np.ravel(reference))[0, 1] > 0.6  # the same scene, drawn finer or coarser


def test_the_manifest_lists_every_image_once():
    manifest = butterflies.load(num_classes=7, images_per_class=3, image_size=32, seed=4)
    assert len(manifest) == 21
    assert np.bincount(manifest.labels).tolist() == [3] * 7
    assert manifest.groups is not None
    assert manifest.groups.reshape(7, 3)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert manifest.render is not None
    for row in (0, 4, 20):
        expected = butterflies.draw(row // 3, row % 3, 32, 4)
        assert manifest.render(row).tobytes() == expected.tobytes()
        assert pickle.loads(pickle.dumps(manifest.render))(row).tobytes() == expected.tobytes()


def test_a_change_of_an_image_leaves_the_cache_alone():
    render = butterflies.load(num_classes=2, images_per_class=2, image_size=32).render
    assert render is not None
    before = render(1).tobytes()
    render(1).paste((0, 0, 0), (0, 0, 32, 32))
    assert render(1).tobytes() == before


def test_an_image_drawn_by_a_forked_process_is_not_drawn_again():
    images = SharedImages(partial(butterflies.draw, 1, image_size=32), 3, 32)
    worker = get_context("fork").Process(target=images, args=(2,))
    worker.start()
    worker.join()
    images.draw = lambda row: Image.new("RGB", (32, 32))
    assert images(2).tobytes() == butterflies.draw(1, 2, 32).tobytes()
    assert not np.asarray(images(1)).any()


def test_incomplete_pixels_are_drawn_again():
    images = SharedImages(partial(butterflies.draw, 1, image_size=32), 3, 32)
    expected = images(2).tobytes()
    assert images._pixels is not None
    images._pixels[2, 31] = 0
    assert images(2).tobytes() == expected


def test_a_data_set_too_large_to_share_is_drawn_each_time():
    images = SharedImages(lambda row: Image.new("RGB", (16, 16), (row, 0, 0)), 10**6, 16)
    assert np.asarray(images(7))[0, 0].tolist() == [7, 0, 0]
    images.draw = lambda row: Image.new("RGB", (16, 16))
    assert not np.asarray(images(7)).any()


def test_more_classes_and_images_leave_the_others_unchanged():
    few = butterflies.load(num_classes=3, images_per_class=2, image_size=16)
    many = butterflies.load(num_classes=200, images_per_class=5, image_size=16)
    assert few.class_names == many.class_names[:3]
    assert few.render is not None
    assert many.render is not None
    assert few.render(2 * 2 + 1).tobytes() == many.render(2 * 5 + 1).tobytes()


def test_names_are_unique_and_a_genus_shares_its_first_word():
    names = [species.class_name(label) for label in range(20_000)]
    assert len(set(names)) == len(names)
    for label in (0, 5, 95, 96, 12_345):
        mates = {names[i].split()[0] for i in range(len(names)) if species.genus(i) == species.genus(label)}
        assert mates == {names[label].split()[0]}


def test_other_images_have_another_split_hash():
    def split_hash(**options: int) -> str:
        return load_manifest("synthetic", num_classes=8, images_per_class=2, **options).split_hash

    assert split_hash() == split_hash()
    assert len({split_hash(), split_hash(seed=1), split_hash(image_size=64)}) == 3


def test_a_subset_draws_the_images_of_its_rows():
    test = build_dataset("synthetic", split="test", num_classes=8, images_per_class=2, image_size=32)
    image, label, row = test[3]
    assert (label, row) == (1, 11)
    assert image.tobytes() == butterflies.draw(5, 1, 32).tobytes()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("images_per_class", -1),
        ("image_size", 15),
        ("seed", -1),
        ("num_classes", 2.5),
        ("seed", True),
    ],
)
def test_a_wrong_number_is_refused_by_name(argument, value):
    with pytest.raises(InputError, match=f"{argument} {value} must be a whole number of at least"):
        butterflies.load(**{argument: value})


@pytest.mark.parametrize("wrong", [(-1, 0), (0, -1), (0, 0, 8), (0, 0, 32, -2), (0.5, 0)])
def test_impossible_images_are_refused(wrong):
    with pytest.raises(InputError, match="must be a whole number of at least"):
        butterflies.draw(*wrong)
