"""Figures: Recall@K of one or several runs, training curves, and scores of runs side by side."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from hgsl.common.files import atomic_path

Curve = Sequence[tuple[float, float]]  # (x, y)


def write_curves(
    path: str | os.PathLike[str],
    recall: Mapping[str, Mapping[int, float]],
    training: Mapping[str, Curve] | None = None,
    validation: Mapping[str, Curve] | None = None,
) -> None:
    """Draws Recall@K over K (logarithmic), and beside it curves over training steps where there are any.

    Args:
        path: A file with a suffix that Matplotlib supports: ``.png``, ``.pdf``, ``.svg``.
        recall: Name of a run -> K -> Recall@K in [0, 1].
        training: Name of a curve, such as "loss" -> (step, value) pairs.
        validation: Name of a score -> (step, score in [0, 1]) pairs.
    """
    panels = 1 + bool(training) + bool(validation)
    figure = Figure(figsize=(4.2 * panels, 3.2), layout="constrained", dpi=200)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    ks = sorted({k for scores in recall.values() for k in scores})
    for name, scores in recall.items():
        axes[0].plot(sorted(scores), [100 * scores[k] for k in sorted(scores)], marker="o", markersize=4, label=name)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(ks, [str(k) for k in ks])
    axes[0].minorticks_off()
    axes[0].set_xlabel("K")
    axes[0].set_ylabel("Recall@K (%)")
    for name, curve in (training or {}).items():
        axes[1].plot([x for x, _ in curve], [y for _, y in curve], linewidth=1.2, label=name)
    if training:
        axes[1].set_xlabel("training step")
        axes[1].set_ylabel("loss")
    for name, curve in (validation or {}).items():
        axes[-1].plot([x for x, _ in curve], [100 * y for _, y in curve], marker="o", markersize=4, label=name)
    if validation:
        axes[-1].set_xlabel("training step")
        axes[-1].set_ylabel("score (%)")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary)


def write_scores(
    path: str | os.PathLike[str], scores: Mapping[str, Mapping[str, Sequence[float]]], columns: Mapping[str, str]
) -> None:
    """Draws the scores of runs side by side: a point per seed, and a line from the lowest to the highest.

    Args:
        path: A file with a suffix that Matplotlib supports.
        scores: Name of a run -> key of a score -> the score of each seed, in [0, 1].
        columns: Key -> heading, a panel each.
    """
    names = list(scores)
    figure = Figure(figsize=(1.5 + 3.2 * len(columns), 1.0 + 0.35 * len(names)), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, (key, heading) in zip(axes, columns.items(), strict=True):
        for row, name in enumerate(names):
            values = [100 * value for value in scores[name].get(key, ())]
            if values:
                axis.plot([min(values), max(values)], [row, row], linewidth=1.2, alpha=0.5, color=f"C{row % 10}")
                axis.plot(values, [row] * len(values), "o", markersize=4, alpha=0.6, color=f"C{row % 10}")
                axis.plot(sum(values) / len(values), row, "|", markersize=14, color=f"C{row % 10}")
        axis.set_xlabel(f"{heading} (%)")
        axis.set_yticks(range(len(names)), names)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary)
