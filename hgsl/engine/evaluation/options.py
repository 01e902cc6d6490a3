"""Options of an evaluation."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hgsl.common.errors import InputError
from hgsl.common.eval_checks import check_options, checked_ks
from hgsl.config import EvalConfig
from hgsl.engine.runtime import Runtime
from hgsl.evaluation.parts.cluster import RayCluster


@dataclass(frozen=True)
class EvalOptions:
    """How a model, or embeddings, are evaluated. The defaults are plain exact search.

    Attributes:
        ks: The K of Recall@K, Precision@K and mAP@K.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        index: ``Flat`` is exact; any other FAISS factory string is approximate, such as ``IVF4096,Flat nprobe=32``.
        max_memory: Bytes that the search may use beyond the embeddings; on a GPU, also half of what is free there.
        batch_size: Images per forward pass.
        num_workers: Loader processes; 0 loads in this one.
        device: Device of the network and of an exact search; None leaves the network where it is and searches on the
            CPU.
        dtype: Dtype of the network's computation.
        flip: Average each embedding with that of the mirrored image.
        crops: 1 is the whole image; 5 averages the center and the four corner crops.
        ignore_same_group: Exclude gallery images of a query's class and group, such as its camera.
        whiten: PCA-whiten to this many dimensions, fitted on training images; 0 keeps all, None does not whiten.
        augment_gallery: Database augmentation with this many neighbors.
        query_expansion: alpha query expansion with this many neighbors.
        expansion_alpha: alpha of both: the weight of a neighbor is similarity^alpha.
        rerank: k-reciprocal re-ranking of the first 100 neighbors.
        no_match: False-accept rate for which to calibrate a threshold on validation images.
        cluster: Add NMI and AMI of a k-means clustering of the queries.
        bootstrap: Bootstrap samples of the 95% intervals; 0 leaves them out.
        store: Folder to keep the embeddings in; a killed extraction continues from there.
        ray: The cluster that embeds the evaluated images, into ``store``; None embeds in this process.
        progress: Show progress bars on stderr, if that is a terminal.

    Raises:
        InputError: A value is out of range, or two contradict each other.
    """

    ks: int | Sequence[int] = (1, 2, 4, 8)
    metric: str = "cosine"
    index: str = "Flat"
    max_memory: int = 1 << 30
    batch_size: int = 64
    num_workers: int = 0
    device: torch.device | str | None = None
    dtype: torch.dtype = torch.float32
    flip: bool = False
    crops: int = 1
    ignore_same_group: bool = False
    whiten: int | None = None
    augment_gallery: int | None = None
    query_expansion: int | None = None
    expansion_alpha: float = 3.0
    rerank: bool = False
    no_match: float | None = None
    cluster: bool = False
    bootstrap: int = 0
    store: str | os.PathLike[str] | None = None
    ray: RayCluster | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_options(vars(self))
        if self.ray is not None and self.store is None:
            raise InputError("ray needs store, a folder that all machines share: give it as well")
        object.__setattr__(self, "ks", checked_ks(self.ks))

    @classmethod
    def of_training(cls, settings: EvalConfig, runtime: Runtime) -> "EvalOptions":
        """The options of the evaluations of a training run."""
        return cls(
            ks=settings.ks,
            batch_size=settings.batch_size,
            num_workers=runtime.workers,
            device=runtime.device,
            dtype=runtime.dtype,
        )
