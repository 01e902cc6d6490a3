"""Every image of a manifest opened once: what is broken, what is odd, and what is there twice."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.fft import dctn
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.data.files.images import DAMAGED, to_rgb
from hgsl.data.manifest import Manifest

HUGE = 50_000_000  # pixels
NEAR = 4  # bits of 64 in which the perceptual hashes of near duplicates differ at most
FLAT = 4.0  # gray levels of 255: a thumbnail of a smaller deviation has no features to compare

# Kind of finding: its heading, and whether it makes the audit fail.
KINDS = {
    "missing": ("missing files", True),
    "empty": ("empty files", True),
    "unreadable": ("not readable as an image", True),
    "damaged": ("truncated or damaged", True),
    "huge": (f"more than {HUGE // 1_000_000} megapixels", False),
    "gray": ("grayscale", False),
    "cmyk": ("CMYK", False),
    "same_across": ("exact duplicates across the split", True),
    "same_within": ("exact duplicates within a split", False),
    "near_across": ("near duplicates across the split", True),
    "near_within": ("near duplicates within a split", False),
}


@dataclass
class Audit:
    """Findings by kind (see ``KINDS``): a path each, or the paths of a pair.

    Attributes:
        images: How many were looked at.
        findings: Kind -> list of paths, or of pairs of paths.
    """

    images: int
    findings: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that spoils a training or a measurement."""
        return not any(self.findings[kind] for kind, (_, fails) in KINDS.items() if fails)

    def table(self, examples: int = 3) -> str:
        """One line a kind: how many, and the first few."""
        lines = [f"{'finding':36} {'count':>7}  first ones"]
        for kind, (heading, fails) in KINDS.items():
            found = self.findings[kind]
            some = "; ".join(" = ".join(paths) for paths in found[:examples])
            lines.append(f"{heading + (' (!)' if fails and found else ''):36} {len(found):>7,}  {some}")
        verdict = "no problem found" if self.ok else "problems found, marked (!)"
        return "\n".join([*lines, f"{self.images:,} images looked at: {verdict}"])


@dataclass(frozen=True)
class Look:
    """What one file turned out to be."""

    kinds: tuple[str, ...]
    digest: bytes = b""
    print64: int | None = None


def audit(manifest: Manifest, workers: int | None = None) -> Audit:
    """Opens every image, in parallel.

    Duplicates are exact if the bytes of the files are equal, and near if their perceptual hashes differ in at most
    ``NEAR`` of 64 bits; "across" means that the two are in different splits, so that a test image was trained on.

    Raises:
        InputError: The images are drawn, not read from files.
    """
    if manifest.render is not None:
        raise InputError(f"{manifest.name} draws its images: there are no files to audit")
    paths = [manifest.root / path for path in manifest.paths]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        looks = list(tqdm(pool.map(look, paths), total=len(paths), desc="audit", unit="image", disable=None))
    result = Audit(len(paths), {kind: [] for kind in KINDS})
    for path, seen in zip(manifest.paths, looks, strict=True):
        for kind in seen.kinds:
            result.findings[kind].append([path])
    same = _same([seen.digest for seen in looks])
    for what, pairs in (("same", same), ("near", _near(looks, same))):
        for a, b in pairs:
            where = "within" if manifest.split[a] == manifest.split[b] else "across"
            result.findings[f"{what}_{where}"].append([manifest.paths[a], manifest.paths[b]])
    return result


def look(path: Path) -> Look:
    """Reads one file."""
    try:
        content = path.read_bytes()
    except OSError:
        return Look(("missing",))
    if not content:
        return Look(("empty",))
    digest = hashlib.sha256(content).digest()
    opened = False
    try:
        with Image.open(path) as image:
            opened = True
            kinds = ["huge"] if image.width * image.height > HUGE else []
            kinds += ["cmyk"] if image.mode == "CMYK" else []
            image.draft("RGB", (64, 64)) if image.mode != "CMYK" else None
            image.load()
            small = to_rgb(ImageOps.exif_transpose(image)).resize((32, 32), Image.Resampling.BOX)
    except Image.DecompressionBombError:
        return Look(("huge",), digest)
    except DAMAGED:
        return Look(("damaged" if opened else "unreadable",), digest)
    pixels = np.asarray(small, np.int16)
    if np.ptp(pixels, axis=2).max() <= 1:
        kinds.append("gray")
    return Look(tuple(kinds), digest, perceptual_hash(np.asarray(small.convert("L"), np.float64)))


def perceptual_hash(gray: NDArray[np.float64]) -> int | None:
    """64 bits of a gray thumbnail (32, 32): which of its 8 x 8 lowest frequencies lie above their median.

    None for a thumbnail that is nearly of one color: its frequencies are noise.
    """
    if gray.std() < FLAT:
        return None
    low = dctn(gray, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the mean brightness, low[0], says nothing about the picture
    return int.from_bytes(np.packbits(bits).tobytes())


def _same(digests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Pairs of equal digests: each later row with the first of its kind."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    return [(group[0], other) for group in rows.values() for other in group[1:]]


def _near(looks: Sequence[Look], same: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of near hashes: each row with every earlier one.

    A file that is an exact copy is left out, since its original stands for it.
    """
    copies = {b for _, b in same}
    rows = np.array([i for i, seen in enumerate(looks) if seen.print64 is not None and i not in copies], np.int64)
    prints = np.array([looks[i].print64 for i in rows], np.uint64)
    pairs = []
    for start in range(0, len(rows), 1024):
        block = prints[start : start + 1024, None] ^ prints[None, start:]  # (<= 1024, N - start)
        near = np.argwhere(np.bitwise_count(block) <= NEAR)
        pairs += [(int(rows[start + a]), int(rows[start + b])) for a, b in near if a < b]
    return pairs
