"""Model cards: architecture, usage, preprocessing, and the scores of the run with their protocol."""

from collections.abc import Mapping
from typing import Any

import yaml

from hgsl.common.tables import columns_of
from hgsl.common.transforms import is_squashed
from hgsl.models.storage.description import Description

SCORES = columns_of((1, 2, 4, 8))
TASK = "image-feature-extraction"

BODY = """---
{metadata}---

# {name}

Maps an image to an embedding of {embedding_size} dimensions and unit norm, such that images of the same fine-grained
class are near each other: {backbone}, {pooling} pooling, {projection}, trained with hgsl.

## Use

```python
import torch
from PIL import Image

from hgsl import load_embedder

model = load_embedder("{name}")
image = model.transform()(Image.open("photo.jpg").convert("RGB"))  # (3, {image_size}, {image_size})
with torch.inference_mode():
    vector = model(image[None])  # (1, {embedding_size})
```

## Images

RGB, shortest side resized to {resize} pixels ({interpolation}){squash}, center crop of
{image_size} x {image_size} pixels, values divided by 255, minus the mean {mean}, divided by the standard deviation
{std}.{inside}

## Scores

{scores}
"""

MEASURED = """{queries:,} queries, {gallery:,} images of {dataset}, in percent:

{table}

Protocol: {protocol}. Split: `{split_hash}`; compare scores on the same split only. Epoch chosen: {selection}.
Seed {seed}, {precision} on {device}, {versions}.{notes}"""


def model_card(
    name: str,
    description: Description,
    embedding_size: int,
    report: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Returns the ``README.md`` of a model, which starts with the Hub's metadata.

    Args:
        name: Name of the model, ``OWNER/NAME`` on the Hub.
        description: Architecture and preprocessing.
        embedding_size: D.
        report: Report of the run, with ``after`` and, if measured, ``before``; without one the card states no scores.
        license: License by its Hub name, or None.
    """
    architecture, data_config = description.architecture, description.data_config
    has_projection = architecture["embedding_size"] is not None
    return BODY.format(
        metadata=yaml.safe_dump(_metadata(name, architecture, report, license), sort_keys=False, allow_unicode=True),
        name=name,
        backbone=architecture["backbone"],
        pooling=architecture["pooling"],
        projection="a linear projection" if has_projection else "no projection",
        embedding_size=embedding_size,
        image_size=data_config["image_size"],
        resize=int(data_config["image_size"] / data_config["crop_pct"]),
        interpolation=data_config["interpolation"],
        squash=", then both sides" if is_squashed(data_config) else "",
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        inside=_inside(architecture),
        scores=_scores(report) if report and report["after"] else _unmeasured(report),
    )


def _inside(architecture: Mapping[str, Any]) -> str:
    """The sentences on what the model itself does with an image and its embedding."""
    scales, whitening = architecture["scales"], architecture["whitening"]
    views = [f"the scales {', '.join(f'{scale:g}' for scale in scales)}"] if scales != [1.0] else []
    views += ["the mirror image"] if architecture["flip"] else []
    sentences = [f"The model averages over {' and '.join(views)}."] if views else []
    if whitening is not None:
        name = "mean removal" if whitening == "mean" else f"PCA-whitening to {whitening} dimensions"
        sentences.append(f"The embedding is refined by {name}, fitted on training images.")
    return "".join(f"\n{sentence}" for sentence in sentences)


def _metadata(
    name: str, architecture: Mapping[str, Any], report: Mapping[str, Any] | None, license: str | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "hgsl", "pipeline_tag": TASK}
    if license:
        metadata["license"] = license
    metadata["tags"] = ["hgsl", "image-retrieval", "fine-grained", "metric-learning", architecture["backbone"]]
    if report and report["after"]:
        after = report["after"]
        result = {
            "task": {"type": TASK, "name": "Image retrieval"},
            "dataset": {"type": after["dataset"], "name": f"{after['dataset']}, {after['protocol']}"},
            "metrics": [
                {"type": key, "name": heading, "value": round(100 * after[key], 2)}
                for key, heading in SCORES.items()
                if key in after
            ],
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _unmeasured(report: Mapping[str, Any] | None) -> str:
    if not report or "trained_on_all" not in report:
        return "Not measured."
    data = report["trained_on_all"]
    return (
        f"Not measured: the model was trained on all {data['images']:,} images of {data['classes']:,} classes of "
        f"{data['dataset']}, so that no images of other classes are left."
    )


def _scores(report: Mapping[str, Any]) -> str:
    after = report["after"]
    columns = [key for key in SCORES if key in after]
    rows = {"before training": report.get("before"), "after training": after}
    lines = [
        "|  | " + " | ".join(SCORES[key] for key in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {row} | " + " | ".join(f"{100 * scores[key]:.2f}" for key in columns) + " |"
            for row, scores in rows.items()
            if scores
        ),
    ]
    return MEASURED.format(
        queries=after["num_queries"],
        gallery=after["num_gallery"],
        dataset=after["dataset"],
        table="\n".join(lines),
        protocol=after["protocol"],
        split_hash=after["split_hash"],
        selection=report.get("selection", {}).get("epoch_chosen", "unknown"),
        seed=report.get("seed", "unknown"),
        precision=report.get("precision", "unknown"),
        device=report.get("device", "unknown"),
        versions=", ".join(f"{package} {version}" for package, version in report.get("versions", {}).items()),
        notes="".join(f"\nNote: {note}." for note in after.get("notes", ())),
    )
