"""Fixtures of several packages: small images, real images, limits of the disk, a browser. Tests use one thread."""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that import torch


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and annotation files; the test is skipped if there is none."""
    folder = os.environ.get("HGSL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "real photos are not here: set HGSL_TEST_DATA to the folder that holds flowers17/, annotations/, ..."
        )
    return Path(folder)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that creates ROOT/kind_NN/MM.jpg: one color per class, random noise per image."""

    def make(classes: int = 6, images: int = 4, size: int = 48, name: str = "photos") -> Path:
        generator = np.random.default_rng(0)
        root = tmp_path / name
        for kind in range(classes):
            folder = root / f"kind_{kind:02}"
            folder.mkdir(parents=True)
            color = generator.integers(40, 216, 3)
            for number in range(images):
                pixels = (color + generator.integers(-40, 40, (size, size + 8, 3))).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.jpg")
        return root

    return make


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes the working directory to ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit of 64 KiB per file, which fails a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def watched():
    """Returns a function that lists the script errors of a tab and its requests to addresses that are not allowed."""

    def watch(tab, *allowed: str) -> list[str]:
        trouble: list[str] = []
        tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("dialog", lambda dialog: trouble.append(dialog.message))
        within = ("data:", *allowed)
        tab.on("request", lambda request: None if request.url.startswith(within) else trouble.append(request.url))
        return trouble

    return watch


@pytest.fixture
def check_colors():
    """Returns a check that a page has text of sufficient contrast in dark and in light mode (WCAG AAA)."""

    def contrast(page, scheme: str) -> tuple[float, float]:
        page.emulate_media(color_scheme=scheme)
        body = "getComputedStyle(document.body)"
        light = []
        for color in page.evaluate(f"[{body}.color, {body}.backgroundColor]"):
            channels = np.array([float(part) for part in color[4:-1].split(",")]) / 255
            linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
            light.append(linear @ [0.2126, 0.7152, 0.0722])
        return (max(light) + 0.05) / (min(light) + 0.05), light[1]

    def check(page) -> None:
        (dark, dark_paper), (bright, bright_paper) = contrast(page, "dark"), contrast(page, "light")
        assert dark_paper < 0.05 < 0.9 < bright_paper
        assert min(dark, bright) > 7

    return check
