"""Conversion of uploads to model input: the same pixels as those of an indexed file, and a bound on memory."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.models import create_embedder
from hgsl.search.encoder import Encoder
from hgsl.search.web import routes, uploads
from hgsl.search.web.errors import RequestError


@pytest.fixture(scope="module")
def encoder():
    model = create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32)
    return Encoder(model, torch.device("cpu"))


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 4)).astype(np.uint8))
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (90, 70)).astype(np.uint16))


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("image", [NOISE.convert("RGB"), NOISE, NOISE.convert("LA"), NOISE.convert("P"), DEEP])
def test_an_upload_becomes_the_same_tensor_as_a_file(encoder, tmp_path, monkeypatch, image, value):
    monkeypatch.setattr(uploads, "STRIP_PIXELS", 1000)  # several strips
    content = encoded(image, "PNG", exif=orientation(value))
    (tmp_path / "image.png").write_bytes(content)
    assert torch.equal(uploads.prepare(content, None, encoder), encoder.read(tmp_path / "image.png"))


def png(side, color, channels, depth=8):
    """A black PNG of few bytes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    compressor = zlib.compressobj(9)
    row = bytes(1 + side * channels * depth // 8)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    head = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", bytes(1)) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


LIGHT, HEAVY = int(uploads.MAX_PIXELS**0.5), int(uploads.MAX_PIXELS_HEAVY**0.5)
FRAMES = [Image.new("P", (1000, 1000), number) for number in range(99)]
LARGEST = {
    "rgb": lambda: png(LIGHT, 2, 3),
    "rgba": lambda: png(LIGHT, 6, 4),
    "palette": lambda: png(LIGHT, 3, 1),
    "rotated": lambda: encoded(Image.new("RGB", (LIGHT, LIGHT)), "PNG", exif=orientation(6)),
    "progressive jpeg": lambda: encoded(Image.new("RGB", (LIGHT, LIGHT)), "JPEG", progressive=True),
    "gif": lambda: encoded(Image.new("P", (LIGHT, LIGHT)), "GIF"),
    "gray of 16 bits": lambda: png(HEAVY, 0, 1, 16),
    "webp": lambda: encoded(Image.new("RGBA", (HEAVY, HEAVY)), "WEBP", method=0, lossless=True),
    "animation": lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
}


def memory(name):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST)
def test_the_memory_of_a_request_is_bounded(encoder, kind):
    content = LARGEST[kind]()
    assert len(content) < uploads.MAX_BYTES
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("this system cannot reset the peak of a process's memory")
    before = memory("VmRSS")
    assert uploads.prepare(content, None, encoder).shape == (3, 32, 32)
    assert memory("VmHWM") - before < uploads.MAX_REQUEST_MEMORY


LARGEST_FILES = {
    "rgb": (".png", LARGEST["rgb"]),
    "rgba": (".png", LARGEST["rgba"]),
    "gray of 16 bits": (".png", LARGEST["gray of 16 bits"]),
    "webp": (".webp", LARGEST["webp"]),
    "tiff": (".tif", lambda: encoded(Image.new("RGB", (LIGHT, LIGHT)), "TIFF", compression="tiff_lzw")),
    "float tiff": (".tif", lambda: encoded(Image.new("F", (HEAVY, HEAVY)), "TIFF", compression="tiff_lzw")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST_FILES)
def test_the_memory_of_a_shown_image_is_bounded(tmp_path, kind):
    suffix, make = LARGEST_FILES[kind]
    path = tmp_path / f"image{suffix}"
    path.write_bytes(make())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system cannot reset the peak of a process's memory")
    before = memory("VmRSS")
    assert routes._jpeg_response(path, 320, None).status_code == 200
    assert memory("VmHWM") - before < uploads.MAX_REQUEST_MEMORY


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_shown_image_of_too_many_pixels_is_refused(tmp_path, mode, monkeypatch):
    Image.new(mode, (90, 90)).save(tmp_path / "large.tif")
    assert routes._jpeg_response(tmp_path / "large.tif", 320, None).status_code == 200
    monkeypatch.setattr(uploads, "MAX_PIXELS", 8000)
    monkeypatch.setattr(uploads, "MAX_PIXELS_HEAVY", 8000)
    with pytest.raises(RequestError) as refusal:
        routes._jpeg_response(tmp_path / "large.tif", 320, None)
    assert refusal.value.status == 413


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (300_000, 2)])
def test_an_extreme_shape_is_refused_before_it_is_decoded(encoder, size, monkeypatch):
    content = encoded(Image.new("RGB", size), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(RequestError, match=f"{size[0]:,} x {size[1]:,} pixels") as caught:
        uploads.prepare(content, None, encoder)
    assert caught.value.status == 422


def test_every_failure_of_the_transform_is_an_error_of_the_client(encoder, monkeypatch):
    content = encoded(NOISE, "PNG")
    for error in (MemoryError(), RuntimeError("size"), OverflowError(), ZeroDivisionError(), ValueError("negative")):
        monkeypatch.setattr(uploads, "to_rgb", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(RequestError) as caught:
            uploads.prepare(content, None, encoder)
        assert caught.value.status == 422
