"""Vectors of a run's images that are computed once, and stored for every run with the same network and images."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from hgsl.common import ranks
from hgsl.common.files import locked_in_turn
from hgsl.common.fingerprint import fingerprint
from hgsl.common.locations import remote_states
from hgsl.common.transforms import Transform
from hgsl.data import Manifest, RetrievalDataset, default_cache_dir
from hgsl.data.files.cache import file_key
from hgsl.engine.runtime import Runtime
from hgsl.evaluation import embed
from hgsl.evaluation.extract import Embeddings
from hgsl.models import Embedder
from hgsl.models.storage.description import DATA_CONFIG

NETWORK = ("backbone", "model_args", "pooling", "output_stride")  # of an architecture, whatever the weights
VIEWS = ("flip", "scales")


def embed_once(
    network: nn.Module,
    model: Embedder,
    images: RetrievalDataset,
    name: str,
    runtime: Runtime,
    batch_size: int,
    *,
    views: bool,
) -> Embeddings:
    """Runs ``network`` over ``images``, or memory-maps the vectors stored by an earlier run.

    They are stored beside the cache of resized images, under a hash of the files, the weights and the transform, and
    verified when they are used again; a killed run continues where it stopped, and runs side by side take turns. They
    take 4 bytes per number.

    Args:
        network: ``model`` or a part of it.
        model: The embedder.
        images: The images, with the transform of an evaluation.
        name: What the vectors are, in the plural: the name of the folder that holds those of all networks.
        runtime: Device and precision.
        batch_size: Images per forward pass.
        views: Whether the vectors are those of all views of an evaluation.
    """
    settings: dict[str, Any] = {name: model.data_config[name] for name in DATA_CONFIG if name != "image_size"}
    assert isinstance(images.transform, Transform)
    settings |= {"resize": images.transform.resize.side, "batch": batch_size, "precision": runtime.precision}
    settings |= {name: model.architecture[name] for name in (*NETWORK, *(VIEWS if views else ()))}
    folder = default_cache_dir().with_name(name) / _key(network, images.manifest, settings)
    ranks.print_main(f"{name} of {len(images)} images in {folder}")
    with ExitStack() as stack:
        if ranks.is_main():
            stack.enter_context(locked_in_turn(folder.with_suffix(".lock")))
        ranks.barrier()
        return embed(
            network,
            images,
            batch_size=batch_size,
            num_workers=runtime.workers,
            device=runtime.device,
            dtype=runtime.dtype,
            store=folder,
        )


def _key(network: nn.Module, manifest: Manifest, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(fingerprint(network, json.dumps(settings, sort_keys=True, default=str)).encode())
    boxes = manifest.boxes.tolist() if manifest.boxes is not None and manifest.crop_to_boxes else [None] * len(manifest)
    if manifest.render is not None:  # its path determines the image
        keys = [
            f"{manifest.name}/{path}/{image}" for path, image in zip(manifest.paths, manifest.ids.tolist(), strict=True)
        ]
    else:
        locations = [manifest.location(row) for row in range(len(manifest))]
        states = remote_states(locations)
        keys = [file_key(location, box, states=states) for location, box in zip(locations, boxes, strict=True)]
    for key in keys:
        digest.update(key.encode())
    digest.update(manifest.ids.tobytes() + manifest.labels.tobytes())  # they are stored with the vectors
    return digest.hexdigest()[:32]
