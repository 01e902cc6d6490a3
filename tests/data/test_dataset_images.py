"""Images from file to tensor: orientation, color modes, damage, boxes, decoding at a smaller size, the cache."""

import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hgsl.common.errors import InputError
from hgsl.common.images import IMAGE_SUFFIXES, UnreadableImageError, read_image, to_pixels
from hgsl.data import RetrievalDataset, build_dataset, eval_transform, load_manifest, train_transform
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.cache import cached, file_key
from hgsl.data.manifest import Manifest
from hgsl.data.protocols import cut_to_boxes

CONFIG = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, so that a color gives its position."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8))


def one(path: Path, **columns: object) -> Manifest:
    return make_manifest("toy", path.parent, [path.name], [0], ["a"], **columns)


TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 8: "ROTATE_270"}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_honored(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = gradient(64, 40)
    stored = upright.transpose(Image.Transpose[TURNS[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif, quality=95)
    for min_side in (None, 8):
        image = read_image(tmp_path / f"a{suffix}", min_side)
        difference = np.asarray(image.resize(upright.size), int) - np.asarray(upright, int)
        assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_suffix_is_read_and_so_is_its_content_under_another_name(tmp_path: Path, suffix: str) -> None:
    if suffix in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    formats = {".hif": "HEIF", ".jfif": "JPEG", ".apng": "PNG", ".jpc": "JPEG2000", ".pnm": "PPM", ".pbm": "PPM"}
    gradient(64, 48).save(tmp_path / "image.bin", formats.get(suffix) or Image.registered_extensions()[suffix])
    shutil.copy(tmp_path / "image.bin", tmp_path / f"image{suffix}")
    for name in ("image.bin", f"image{suffix}"):
        image = read_image(tmp_path / name)
        assert (image.mode, image.size) == ("RGB", (64, 48))
        np.testing.assert_allclose(np.asarray(image, int), np.asarray(gradient(64, 48), int), atol=40)


def test_a_heic_image_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    monkeypatch.setattr("hgsl.common.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("needs pillow_heif: pip install 'hgsl[heic]'")):
        read_image(tmp_path / "phone.jpg")


def test_modes_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (200, 10, 10))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("P").save(tmp_path / "palette.gif")
    Image.new("L", (8, 8), 90).save(tmp_path / "gray.jpg", quality=100)
    Image.fromarray(np.full((8, 8), 90 * 256 + 7, np.uint16)).save(tmp_path / "deep.png")
    clear = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
    clear.putpixel((0, 0), (200, 10, 10, 255))
    clear.save(tmp_path / "clear.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    expected = {
        "cmyk.jpg": (200, 10, 10),
        "palette.gif": (200, 10, 10),
        "gray.jpg": (90, 90, 90),
        "deep.png": (90, 90, 90),
        "bit.png": (255, 255, 255),
        "clear.png": (255, 255, 255),  # white behind transparent pixels, not the hidden color
    }
    for name, color in expected.items():
        image = read_image(tmp_path / name)
        assert image.mode == "RGB"
        assert np.abs(np.subtract(image.getpixel((4, 4)), color)).max() <= 12, name
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (200, 10, 10)


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))
SCALED = {
    "8 bits": (RAMP * 255).astype(np.uint8),
    "10 bits in 16": (RAMP * 1023).astype(np.uint16),
    "12 bits in 16": (RAMP * 4095).astype(np.uint16),
    "16 bits": (RAMP * 65535).astype(np.uint16),
    "17 bits in 32": (RAMP * (2**17 - 1)).astype(np.int32),
    "24 bits in 32": (RAMP * (2**24 - 1)).astype(np.int32),
    "signed": (RAMP * 4000 - 2000).astype(np.int32),
    "float 0..1": RAMP.astype(np.float32),
    "float 0..4095": (RAMP * 4095).astype(np.float32),
    "float -1..1": (RAMP * 2 - 1).astype(np.float32),
    "float 0..1.2": (RAMP * 1.2).astype(np.float32),
    "float to 1e30": (RAMP * 1e30).astype(np.float32),
}


@pytest.mark.parametrize("name", SCALED)
def test_a_gray_ramp_is_the_same_however_it_is_stored(tmp_path: Path, name: str) -> None:
    Image.fromarray(SCALED[name]).save(tmp_path / "ramp.tif")
    pixels = np.asarray(read_image(tmp_path / "ramp.tif"))
    assert np.abs(pixels.astype(int) - SCALED["8 bits"][..., None]).max() <= 1
    assert len(np.unique(pixels)) == 64


@pytest.mark.parametrize("values", [(RAMP * 65535).astype(np.uint16), RAMP.astype("f4")])
def test_a_tiff_in_which_zero_is_white_is_inverted(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "ramp.tif", tiffinfo={262: 0})
    pixels = np.asarray(read_image(tmp_path / "ramp.tif"))[..., 0].astype(int)
    assert np.abs(pixels - (255 - SCALED["8 bits"].astype(int))).max() <= 1


def test_signed_bytes_of_a_tiff_do_not_wrap(tmp_path: Path) -> None:
    values = (RAMP * 255 - 128).astype(np.int8)
    Image.fromarray(values.view(np.uint8)).save(tmp_path / "ramp.tif", tiffinfo={339: 2})
    pixels = np.asarray(read_image(tmp_path / "ramp.tif")).astype(int)
    assert np.abs(pixels - SCALED["8 bits"].astype(int)[..., None]).max() <= 1


def test_dark_values_of_a_known_range_stay_dark(tmp_path: Path) -> None:
    for values in (RAMP.astype(np.float32) * 0.25, (RAMP * 0.3 * 65535).astype(np.uint16)):
        Image.fromarray(values).save(tmp_path / "dark.tif")
        assert np.asarray(read_image(tmp_path / "dark.tif")).max() in (64, 76)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 5] = value
    Image.fromarray(values).save(tmp_path / "map.tif")
    with pytest.raises(InputError, match=r"cannot read image .*map.tif: some of its pixels are not finite numbers"):
        read_image(tmp_path / "map.tif")


def png_16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit color (H, W, 3), which Pillow can read but not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_color_of_16_bits_keeps_its_levels_or_is_refused_by_name(tmp_path: Path) -> None:
    color = np.stack([RAMP, RAMP.T, RAMP], axis=2)
    (tmp_path / "full.png").write_bytes(png_16(color * 65535))
    assert len(np.unique(np.asarray(read_image(tmp_path / "full.png")))) == 64
    (tmp_path / "camera.png").write_bytes(png_16(color * 4095))
    with pytest.raises(InputError, match=r"camera.png: 16-bit color of 12 bits or fewer"):
        read_image(tmp_path / "camera.png")


@pytest.mark.parametrize("size", [(60_000, 1), (1, 300_000), (5_000, 40)])
def test_extreme_shapes_are_refused_by_name_before_decoding(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", size, 128).save(tmp_path / "strip.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        InputError, match=rf"strip.png: of its {size[0]:,} x {size[1]:,} pixels, one side is more than 100"
    ):
        read_image(tmp_path / "strip.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tif"])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(tmp_path / f"whole{suffix}")
    content = (tmp_path / f"whole{suffix}").read_bytes()
    for name, damaged, reason in (
        ("cut", content[: len(content) // 2], ""),
        ("head", content[:9], ""),
        ("text", b"no image", "the file is no image, or of an unsupported format "),
        ("empty", b"", "the file is empty "),
    ):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"cannot read image .*{name}\\{suffix}: {reason}") as caught:
            RetrievalDataset(one(path))[0]
        assert str(caught.value).count(f"{name}{suffix}") == 1
        assert str(caught.value).endswith("--data.broken skip leaves out those of the training split)")
        with pytest.raises(UnreadableImageError, match=f"{name}\\{suffix}: {reason.strip()}") as caught:
            read_image(path)
        assert "hgsl" not in str(caught.value), "a query is no part of a data set"
    with pytest.raises(InputError, match=r"image .*gone.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")


def test_a_worker_passes_the_error_on(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    data = RetrievalDataset(one(tmp_path / "bad.jpg"), eval_transform(CONFIG, 16))
    with pytest.raises(InputError) as caught:
        next(iter(DataLoader(data, num_workers=1)))
    assert "bad.jpg" in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (401, 799), (160, 160), (120, 300)])
def test_a_jpeg_is_decoded_no_smaller_than_needed(tmp_path: Path, width: int, height: int) -> None:
    gradient(width, height).save(tmp_path / "a.jpg")
    for side in (50, 100, 160, 300):
        small = read_image(tmp_path / "a.jpg", side)
        assert min(small.size) >= min(side, width, height)
        scale = round(width / small.width)
        assert scale in (1, 2, 4, 8)
        assert min(small.size) < 2 * side or scale in (1, 8)


def test_images_are_cropped_to_boxes_only_on_request(tmp_path: Path) -> None:
    gradient(100, 80).save(tmp_path / "a.png")
    manifest = one(tmp_path / "a.png", boxes=[[10.4, 20, 59.2, 200]])
    assert RetrievalDataset(manifest)[0][0].size == (100, 80)
    image = RetrievalDataset(cut_to_boxes(manifest))[0][0]
    assert image.size == (50, 60)
    assert image.getpixel((0, 0)) == gradient(100, 80).getpixel((10, 20))
    outside = one(tmp_path / "a.png", boxes=[[100, 0, 120, 20]])
    strip = one(tmp_path / "a.png", boxes=[[0, 10, 100, 10.5]])
    assert RetrievalDataset(cut_to_boxes(strip))[0][0].size == (100, 1)
    gradient(201, 80).save(tmp_path / "a.png")
    strip = one(tmp_path / "a.png", boxes=[[0, 10, 201, 10.5]])
    with pytest.raises(InputError, match=r"the box .* of .*a.png: of its 201 x 1 pixels, one side is more than 100"):
        RetrievalDataset(cut_to_boxes(strip))[0]
    gradient(100, 80).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=r"the box \[100.0, 0.0, 120.0, 20.0\] of .*a.png lies outside the image of 100 x 80"
    ):
        RetrievalDataset(cut_to_boxes(outside))[0]


@pytest.mark.parametrize("recipe", ["resize_random_crop", "random_resized_crop", "eval"])
@pytest.mark.parametrize("boxes", [None, [[5, 5, 190, 150]] * 12])
def test_the_cache_changes_no_pixel(tmp_path: Path, recipe: str, boxes: object) -> None:
    paths = [f"{i}.jpg" for i in range(12)]
    for i, path in enumerate(paths):
        gradient(200 + 31 * i, 330 - 7 * i).save(tmp_path / path)
    manifest = make_manifest("toy", tmp_path, paths, [0] * 12, ["a"], boxes=boxes)
    manifest = cut_to_boxes(manifest) if boxes else manifest
    transform = eval_transform(CONFIG, 48) if recipe == "eval" else train_transform(CONFIG, 48, recipe)
    plain = RetrievalDataset(manifest, transform)
    with_cache = RetrievalDataset(manifest, transform, tmp_path / "cache")

    def epoch(data: RetrievalDataset) -> torch.Tensor:
        torch.manual_seed(3)
        return torch.stack([data[i][0] for i in range(12)])

    expected = epoch(plain)
    assert torch.equal(epoch(with_cache), expected)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 12
    assert torch.equal(epoch(with_cache), expected)


def test_the_cache_follows_the_file_and_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = RetrievalDataset(one(path), eval_transform(CONFIG, 8), tmp_path / "cache")

    def red_after(color: int, time: int) -> float:
        Image.new("RGB", (8, 8), (color, 0, 0)).save(path)
        os.utime(path, ns=(time, time))
        return round(float(data[0][0][0].mean() * CONFIG["std"][0] + CONFIG["mean"][0]) * 255)

    assert red_after(10, 1) == 10
    assert red_after(99, 2) == 99  # the time differs, whatever the size in bytes
    path.unlink()
    with pytest.raises(InputError, match=r"a.png does not exist"):
        data[0]
    Image.new("RGB", (8, 8)).save(path)
    assert file_key(path, 8) != file_key(path, 9)


def test_a_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    made = []

    expected = to_pixels(gradient(9, 7))

    def make() -> torch.Tensor:
        made.append(1)
        return expected

    for _ in range(2):
        assert torch.equal(cached(tmp_path, "abcd", make), expected)
    assert len(made) == 1
    (file,) = tmp_path.rglob("*.npy")
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:4], b"", b"x" * 300):
        file.write_bytes(damaged)
        assert torch.equal(cached(tmp_path, "abcd", make), expected)
        assert file.read_bytes() == whole
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]  # no temporary file stays


def test_processes_share_a_cache(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    root, cache = photo_folder(classes=6, images=4), tmp_path / "cache"
    data = build_dataset("folder", root, "all", transform=eval_transform(CONFIG, 16), cache_dir=cache)
    serial = torch.cat([batch[0] for batch in DataLoader(RetrievalDataset(data.manifest, data.transform), 5)])
    for _ in range(2):
        loader = DataLoader(data, 5, num_workers=2)
        assert torch.equal(torch.cat([batch[0] for batch in loader]), serial)
    assert len(list(cache.rglob("*.npy"))) == 24


def test_rendered_images_need_no_file(tmp_path: Path) -> None:
    manifest = make_manifest(
        "drawn",
        tmp_path,
        [f"{i}.png" for i in range(8)],
        np.arange(8) // 2,
        list("abcd"),
        split=["train"] * 4 + ["test"] * 4,
        render=lambda row: Image.new("RGB", (8, 8), (row, 0, 0)),
    )
    data = RetrievalDataset(manifest.subset("test"), eval_transform(CONFIG, 8), tmp_path / "cache")
    assert RetrievalDataset(data.manifest)[1][0].getpixel((0, 0)) == (5, 0, 0)
    image, label, row = data[1]
    assert (image.shape, label, row) == ((3, 8, 8), 0, 5)
    assert not (tmp_path / "cache").exists()


def test_synthetic_images_go_through_the_same_data_set() -> None:
    data = build_dataset(
        "synthetic", None, "test", transform=eval_transform(CONFIG, 32), num_classes=8, images_per_class=2
    )
    assert (len(data), data.num_classes) == (8, 4)
    assert data[3][0].shape == (3, 32, 32)
    assert torch.equal(data[3][0], data[3][0])
    assert load_manifest("synthetic", num_classes=8, images_per_class=2).render is not None
