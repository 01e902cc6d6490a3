"""Pictures and printed output of the tutorial's steps, from one run of its commands on synthetic butterflies."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

import hgsl

CLONE = Path(__file__).parents[1]
MIRRORED, SMALLER, MISLABELED = 62, 82, 5  # rows of images with a copy, and of one in the folder of another class
CLASSES, IMAGES_PER_CLASS, SIDE = 24, 12, 200  # pixels
UNKNOWN = 20  # the class that is not among the photos


class Tutorial:
    """The commands of docs/tutorial.md in a folder of its own, and the pictures that they lead to.

    The methods are called in the order in which they are defined.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos = folder, folder / "my/photos"
        write_butterflies(self.photos)
        self._plant_errors()
        unknown = sorted(self.photos.iterdir())[UNKNOWN]
        shutil.copy(min(unknown.iterdir()), folder / "my/unknown.jpg")
        shutil.rmtree(unknown)

    def duplicates(self) -> Image.Image:
        """Step 1: the page of near duplicates."""
        self._hgsl(
            "prepare", "folder", "--root", "my/photos", "--duplicates", "duplicates.html", "--similarity", "0.95"
        )
        with browser_page((self.folder / "duplicates.html").as_uri(), height=860) as tab:
            return screenshot(tab)

    def curves(self) -> Image.Image:
        """Step 2: the curves of the training."""
        self._train("mine")
        return open_image(self.folder / "runs/mine/curves.png")

    def report(self) -> tuple[Image.Image, Image.Image]:
        """Step 3: the first screen of the report, and the pair of the wrong label with heat maps."""
        self._hgsl("eval", "--checkpoint", "runs/mine", "--json", "scores.json", "--html", "report.html", "--heat")
        with browser_page((self.folder / "report.html").as_uri()) as tab:
            first = screenshot(tab)
            tab.click("#pair-list button:has-text('moved_')")
            tab.keyboard.press("w")
            tab.wait_for_timeout(300)
            return first, screenshot(tab)

    def print_comparison(self) -> None:
        """Step 5: what the comparison of two settings prints."""
        self._train("softer", "--loss.alpha", "1.0")
        self._hgsl("eval", "--checkpoint", "runs/softer", "--json", "softer.json")
        self._hgsl("compare", "scores.json", "softer.json")

    def search(self) -> tuple[Image.Image, Image.Image]:
        """Steps 4 and 6: the search page with an image of an unknown class, and with a butterfly of a known one."""
        self._hgsl("eval", "--checkpoint", "runs/mine", "--no-match", "0.05")
        shutil.move(sorted(self.photos.rglob("*.jpg"))[7], self.folder / "my/query.jpg")
        words = ("--images", "my/photos", "--labels", "folders", "--out", "my/index")
        self._hgsl("search", "index", "--checkpoint", "runs/mine", *words)
        with self._served() as address:
            unknown = self._answer(address, "my/unknown.jpg")
            return unknown.crop((0, 0, unknown.width, 600)), self._answer(address, "my/query.jpg")  # the rest is empty

    def sheet(self) -> Image.Image:
        """Step 6: the contact sheet of a query."""
        self._hgsl("search", "query", "--index", "my/index", "my/query.jpg", "-k", "5", "--sheet", "found.png")
        return open_image(self.folder / "found.png")

    def print_hits(self) -> None:
        """Step 7: what the Python code prints."""
        for hit in hgsl.SearchIndex.open(self.folder / "my/index").search(self.folder / "my/query.jpg", k=3)[0]:
            print(f"{hit.similarity:.3f}  {hit.label}  {hit.path}")

    def print_export(self) -> None:
        """Step 8: what the export prints."""
        self._hgsl("export", "runs/mine", "--format", "onnx")

    def _train(self, name: str, *words: str) -> None:
        settings = ("--config", "folder", "--data.root", "my/photos", "--data.val_share", "0.2")
        self._hgsl("train", *settings, "--run.dir", f"runs/{name}", *words)

    def _plant_errors(self) -> None:
        """Adds a mirrored copy of one image and a smaller one of another, and moves a third to the next class."""
        paths = sorted(self.photos.rglob("*.jpg"))
        ImageOps.mirror(open_image(paths[MIRRORED])).save(paths[MIRRORED].with_name("mirrored.jpg"), quality=95)
        smaller = open_image(paths[SMALLER]).resize((SIDE * 3 // 4, SIDE * 3 // 4))
        smaller.save(paths[SMALLER].with_name("smaller.jpg"), quality=95)
        target = paths[MISLABELED + IMAGES_PER_CLASS].parent
        paths[MISLABELED].rename(target / f"moved_{paths[MISLABELED].name}")

    def _answer(self, address: str, name: str) -> Image.Image:
        with browser_page(address) as tab:
            tab.set_input_files("input[type=file]", str(self.folder / name))
            tab.wait_for_load_state("networkidle")
            tab.wait_for_timeout(1500)
            return screenshot(tab)

    @contextmanager
    def _served(self) -> Iterator[str]:
        """The search server on a free port of this machine."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = self._command("search", "serve", "--index", "my/index", "--port", str(port))
        server = subprocess.Popen(words, **self._process())
        address = f"http://127.0.0.1:{port}/"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait()

    def _hgsl(self, *words: str) -> None:
        """Runs a command, after printing it."""
        print("\nhgsl", *words, flush=True)
        subprocess.run(self._command(*words), check=True, **self._process())

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hgsl", *words]

    def _process(self) -> dict[str, Any]:
        paths = os.pathsep.join([str(CLONE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {"cwd": self.folder, "env": {**os.environ, "PYTHONPATH": paths}}


def write_butterflies(folder: Path) -> None:
    """Writes images of classes that the quickstart does not have as JPEGs, one folder per class."""
    options = {"num_classes": CLASSES, "images_per_class": IMAGES_PER_CLASS, "image_size": SIDE, "seed": 5}
    data = hgsl.build_dataset("synthetic", split="all", **options)
    for row in range(len(data)):
        image, label, number = data[row]
        path = folder / data.class_names[label] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)


@contextmanager
def browser_page(address: str, height: int = 800) -> Iterator[Any]:
    """The address in a headless Chromium, 1200 pixels wide."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": height})
        tab.goto(address)
        tab.wait_for_load_state("networkidle")
        tab.wait_for_timeout(500)
        yield tab
        browser.close()


def screenshot(tab: Any) -> Image.Image:
    """Returns what the tab shows."""
    return open_image(io.BytesIO(tab.screenshot()))


def open_image(source: Path | io.BytesIO) -> Image.Image:
    """Returns the image of a file as RGB."""
    with Image.open(source) as image:
        return image.convert("RGB")
