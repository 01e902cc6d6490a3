"""Makes every picture of README and docs again, with the tools, from images that the package draws itself.

    python docs/make_pictures.py [--run runs/quickstart] [loss retrievals tutorial]

Without names it makes all. ``retrievals`` trains the quickstart first (2 minutes on 2 cores) unless ``--run`` is there.
``tutorial`` runs the tutorial on images that it draws, in about 5 minutes on 2 cores; it needs playwright, a Chromium
and the extras [serve] and [export], and prints what the tutorial quotes.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from screenshots import Tutorial

from hgsl.losses.functional import hard_global_softmin_loss

CLONE = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
INK, RIGHT, WRONG = "#1c1917", "#15803d", "#c2410c"
LARGEST = 150_000  # bytes of a committed picture
WIDEST = 1400  # pixels


def tool(name: str, *words: object) -> None:
    """Runs a command of ``tools/`` as a user does."""
    subprocess.run([sys.executable, str(CLONE / "tools" / name), *map(str, words)], check=True, cwd=CLONE)


def save(picture: Image.Image, name: str) -> None:
    """Keeps a picture as WebP, at most ``WIDEST`` wide and at the best quality that is small enough."""
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, WIDEST * picture.height // picture.width), Image.Resampling.LANCZOS)
    for quality in (90, 80, 70, 60, 50, 40, 30):
        picture.convert("RGB").save(IMAGES / name, quality=quality, method=6)
        if (IMAGES / name).stat().st_size <= LARGEST:
            print(f"written: docs/images/{name} ({(IMAGES / name).stat().st_size:,} bytes)", flush=True)
            return
    raise SystemExit(f"{name} is larger than {LARGEST:,} bytes at any quality")


def draw_loss(run: Path) -> None:
    """Left: which centers push an embedding, by K and alpha. Right: where the gradient moves it, on a circle."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1.5, 1))
    _draw_shares(left)
    _draw_circle(right)
    figure.tight_layout()
    with tempfile.TemporaryDirectory() as folder:
        figure.savefig(Path(folder) / "loss.png", dpi=110)
        with Image.open(Path(folder) / "loss.png") as picture:
            save(picture, "loss.webp")
    plt.close(figure)


def _draw_shares(axes: plt.Axes) -> None:
    """The share that each center has in the push, by its rank, for one embedding among 100 random centers."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(100, 16, generator=generator)
    embedding = torch.randn(1, 16, generator=generator)
    for alpha, top_k, style in ((0.1, None, "-"), (0.4, None, "-"), (1.0, None, "-"), (1.0, 5, "o")):
        learned = centers.clone().requires_grad_()
        far = (torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(centers).T).argmin()[None]
        hard_global_softmin_loss(embedding, learned, far, alpha, top_k, "negatives").backward()
        push = learned.grad.norm(dim=1)
        push[far] = 0
        share = (push / push.sum()).sort(descending=True).values[:20]
        label = f"alpha {alpha}, K = {'all' if top_k is None else top_k}"
        axes.plot(np.arange(1, 21), 100 * share, style, label=label, lw=1.6, ms=4)
    axes.set(xlabel="centers of other classes, the nearest first", ylabel="share of the push, %", xticks=(1, 5, 10, 20))
    axes.set_title("small alpha: the nearest center alone;\nlarge alpha: many, unless K cuts them off", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_circle(axes: plt.Axes) -> None:
    """One embedding in the plane: its own center pulls, the K = 2 nearest others push, the rest do nothing."""
    angles = np.deg2rad([95, 20, -15, 190, 250])
    centers = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1), dtype=torch.float32)
    start = np.deg2rad(42)
    embedding = torch.tensor([[np.cos(start), np.sin(start)]], dtype=torch.float32, requires_grad=True)
    loss = hard_global_softmin_loss(embedding, centers, torch.tensor([0]), 2.0, 2, "negatives")
    (gradient,) = torch.autograd.grad(loss, embedding)
    step = -gradient[0].numpy() / np.linalg.norm(gradient) * 0.45
    point = embedding[0].detach().numpy()
    circle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(circle), np.sin(circle), color="#d6d3d1", lw=1)
    colors = [RIGHT, WRONG, WRONG, "#a8a29e", "#a8a29e"]
    names = ["its class", "hard", "hard", "not among the K", "not among the K"]
    for center, color, name in zip(centers.numpy(), colors, names, strict=True):
        axes.plot(*center, marker="s", ms=9, color=color)
        axes.text(*(1.14 * center), name, ha="left" if center[0] > 0 else "right", va="center", color=color, fontsize=9)
    axes.plot(*point, marker="o", ms=9, color=INK)
    axes.annotate("", point + step, point, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 2})
    axes.text(*(point * 0.62), "image", color=INK, fontsize=9, ha="center")
    axes.set(xlim=(-1.75, 1.75), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_title("a step of gradient descent", fontsize=10)
    axes.axis("off")


def draw_retrievals(run: Path) -> None:
    """The contact sheet of the evaluation: queries with their neighbors, right and wrong."""
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        tool("eval_retrieval.py", "--checkpoint", run, "--sheet", sheet)
        with Image.open(sheet) as picture:
            half = picture.crop((0, 0, picture.width, picture.height * 5 // 8))  # five of its eight rows
            save(half.resize((900, 900 * half.height // half.width), Image.Resampling.LANCZOS), "retrievals.webp")


def draw_tutorial(run: Path) -> None:
    """Pictures of the steps of the tutorial, and, printed, the output that it quotes."""
    with tempfile.TemporaryDirectory() as folder:
        tutorial = Tutorial(Path(folder))
        save(tutorial.duplicates(), "tutorial_duplicates.webp")
        save(tutorial.curves(), "tutorial_curves.webp")
        report, pair = tutorial.report()
        save(report, "report.webp")
        save(pair, "tutorial_pair.webp")
        tutorial.print_comparison()
        unknown, known = tutorial.search()
        save(unknown, "tutorial_no_match.webp")
        save(known, "search.webp")
        save(tutorial.sheet(), "tutorial_sheet.webp")
        tutorial.print_hits()
        tutorial.print_export()


PICTURES: dict[str, Callable[[Path], None]] = {
    "loss": draw_loss,
    "retrievals": draw_retrievals,
    "tutorial": draw_tutorial,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all without one")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a trained quickstart")
    flags = parser.parse_args()
    names = flags.names or list(PICTURES)
    if set(names) - set(PICTURES):
        parser.error(f"unknown picture {sorted(set(names) - set(PICTURES))[0]!r}: use {', '.join(PICTURES)}")
    IMAGES.mkdir(exist_ok=True)
    run = flags.run.absolute()
    if "retrievals" in names and not (run / "report.json").is_file():
        tool("train.py", "--run.dir", run)
    for name in names:
        PICTURES[name](run)


if __name__ == "__main__":
    main()
