"""Audit: every image of a manifest opened once, to find damaged, unusual and duplicate ones."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hgsl.common.cores import available_cores
from hgsl.common.errors import InputError
from hgsl.common.files import as_text
from hgsl.common.images import DAMAGED, MAX_ASPECT, check_shape, decode, open_with_pillow
from hgsl.common.locations import Location, read_bytes
from hgsl.common.progress import progress_bar
from hgsl.data.duplicates import exact_duplicates, is_flat, near_duplicates, perceptual_hash
from hgsl.data.manifest import Manifest

HUGE = 50_000_000  # pixels

# Name of a finding: its heading, and whether it makes the audit fail.
FINDINGS = {
    "missing": ("missing files", True),
    "empty": ("empty files", True),
    "unreadable": ("not readable as an image", True),
    "damaged": ("truncated or damaged", True),
    "shape": (f"one side over {MAX_ASPECT} times the other", True),
    "values": ("values that 8 bits cannot hold", True),
    "flat": ("nearly a single color", True),
    "huge": (f"more than {HUGE // 1_000_000} megapixels", False),
    "gray": ("grayscale", False),
    "cmyk": ("CMYK", False),
    "same_across": ("exact duplicates across splits", True),
    "same_within": ("exact duplicates within a split", False),
    "near_across": ("near duplicates across splits", True),
    "near_within": ("near duplicates within a split", False),
}


@dataclass
class Audit:
    """Findings of an audit.

    Attributes:
        images: How many images were opened.
        findings: Name of a finding in ``FINDINGS`` -> a list of paths, or of pairs of paths.
    """

    images: int
    findings: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no finding makes the audit fail."""
        return not any(self.findings[name] for name, (_, fails) in FINDINGS.items() if fails)

    def table(self, examples: int = 3) -> str:
        """One line per finding: its count and the first examples."""
        lines = [f"{'finding':36} {'count':>7}  examples"]
        for name, (heading, fails) in FINDINGS.items():
            paths = self.findings[name]
            first = as_text("; ".join(" = ".join(pair) for pair in paths[:examples]))
            lines.append(f"{heading + (' (!)' if fails and paths else ''):36} {len(paths):>7,}  {first}")
        verdict = "no problem" if self.ok else "problems are marked (!)"
        return "\n".join([*lines, f"{self.images:,} images opened: {verdict}"])


@dataclass(frozen=True)
class Inspection:
    """Findings on one file, the SHA-256 of its bytes, and its perceptual hash."""

    findings: tuple[str, ...]
    digest: bytes = b""
    image_hash: int | None = None


def audit(manifest: Manifest) -> Audit:
    """Opens every image, in a thread per core.

    Duplicates are exact if the bytes of the files are equal, and near if their perceptual hashes are. A pair "across
    splits" has its images in two splits, so that test images leak into training or validation.

    Raises:
        InputError: The images are rendered, not read from files.
    """
    results = inspect_images(manifest)
    report = Audit(len(results), {name: [] for name in FINDINGS})
    for path, result in zip(manifest.paths, results, strict=True):
        for name in result.findings:
            report.findings[name].append([path])
    same = exact_duplicates([result.digest for result in results])
    near = near_duplicates([result.image_hash for result in results], same)
    for name, pairs in (("same", same), ("near", near)):
        for a, b in pairs:
            relation = "within" if manifest.split[a] == manifest.split[b] else "across"
            report.findings[f"{name}_{relation}"].append([manifest.paths[a], manifest.paths[b]])
    return report


def inspect_images(manifest: Manifest) -> list[Inspection]:
    """Reads every file of a manifest, in a thread per core.

    Raises:
        InputError: The images are rendered, not read from files.
    """
    if manifest.render is not None:
        raise InputError(f"{manifest.name} draws its images: there are no files to audit")
    locations = [manifest.location(row) for row in range(len(manifest))]
    with ThreadPoolExecutor(available_cores()) as pool:  # decoding releases the GIL
        inspections = pool.map(inspect_file, locations)
        return list(progress_bar(inspections, total=len(locations), desc="audit", unit="image"))


def inspect_file(location: Location) -> Inspection:
    """Reads one file."""
    try:
        content = read_bytes(location)
    except FileNotFoundError:
        return Inspection(("missing",))
    except (OSError, InputError):  # such as a missing permission, or a server that does not answer
        return Inspection(("unreadable",))
    if not content:
        return Inspection(("empty",))
    digest = hashlib.sha256(content).digest()
    try:
        with open_with_pillow(io.BytesIO(content)) as image:
            findings, small = _thumbnail(image)
    except Image.DecompressionBombError:  # Pillow opens no image of so many pixels
        return Inspection(("huge", "unreadable"), digest)
    except DAMAGED:
        return Inspection(("unreadable",), digest)
    if small is None:
        return Inspection(findings, digest)
    pixels, gray = np.asarray(small, np.int16), np.asarray(small.convert("L"), np.float64)
    for name, present in (("gray", np.ptp(pixels, axis=2).max() <= 1), ("flat", is_flat(gray))):
        findings += (name,) if present else ()
    return Inspection(findings, digest, perceptual_hash(gray))


def _thumbnail(image: Image.Image) -> tuple[tuple[str, ...], Image.Image | None]:
    """Findings on an opened image, and its RGB thumbnail (32, 32), or None if the image cannot be used."""
    cmyk = image.mode == "CMYK"
    findings: tuple[str, ...] = ("huge",) if image.width * image.height > HUGE else ()
    findings += ("cmyk",) if cmyk else ()
    try:
        check_shape(*image.size)
    except InputError:
        return (*findings, "shape"), None
    try:
        if not cmyk:
            image.draft("RGB", (64, 64))
        return findings, decode(image).resize((32, 32), Image.Resampling.BOX)
    except InputError:
        return (*findings, "values"), None
    except DAMAGED:
        return (*findings, "damaged"), None
