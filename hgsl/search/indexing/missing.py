"""Vectors of the images that an index lacks: from parts that exist, from a cluster, or embedded in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgsl.evaluation.parts.cluster import RayCluster
from hgsl.search.encoder import Encoder
from hgsl.search.indexing.cluster import embed_on_cluster
from hgsl.search.indexing.embedding import embed_images
from hgsl.search.indexing.stored_embeddings import StoredEmbeddings, add_stored, open_stored
from hgsl.search.stores.protocol import ImageFile, ImageRow, Update


@dataclass(frozen=True)
class EmbedOptions:
    """How images are embedded.

    Attributes:
        batch_size: Images per forward pass.
        workers: Loader processes, or threads in each process of a cluster.
        progress: Whether to show progress bars.
        cluster: Embeds in place of this process, if there are ``parts``.
        parts: Folder of the parts that the cluster writes; None embeds in this process.
    """

    batch_size: int
    workers: int
    progress: bool
    cluster: RayCluster
    parts: Path | None = None


def embed_missing(
    missing: list[ImageRow],
    new: Sequence[ImageFile],
    root: Path | str,
    encoder: Encoder,
    update: Update,
    stored: StoredEmbeddings | None,
    options: EmbedOptions,
) -> dict[ImageFile, str]:
    """Adds images with their vectors to an index.

    Args:
        missing: The images.
        new: All images that the previous state of the index lacks, also those that an interrupted update has added: so
            the parts of a cluster are the same as in that update, and are not computed again.
        root: Of their paths.
        encoder: The model.
        update: The index.
        stored: Parts whose vectors are used.
        options: For the other images.

    Returns:
        Image file -> why it could not be embedded.
    """
    broken: dict[ImageFile, str] = {}
    if stored is not None:
        missing = add_stored(missing, stored.paths, encoder, update, options.progress)
    if options.parts is not None and missing:
        reasons = embed_on_cluster(
            new,
            root,
            encoder,
            options.parts,
            options.cluster,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=options.progress,
        )
        parts = open_stored(options.parts, encoder, skip_other_models=True)
        missing = add_stored(missing, parts.paths, encoder, update, options.progress)
        broken = {row.file: reasons[row.file] for row in missing if row.file in reasons}
        missing = [row for row in missing if row.file not in broken]
    return broken | embed_images(missing, root, encoder, update, options.batch_size, options.workers, options.progress)
