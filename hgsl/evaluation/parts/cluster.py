"""Embedding of parts by Ray Data: processes with the model take one part after the other and write its file."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.common.files import PARTIAL
from hgsl.common.progress import progress_bar
from hgsl.common.workers import end_with_parent
from hgsl.evaluation.parts.part import Columns, Part, PartContent, write_part
from hgsl.evaluation.parts.ray_session import ray_session

ATTEMPTS = 3  # at a part whose process was killed; then the command ends, and continues when it is run again


class PartEmbedder(Protocol):
    """The model with its way to read images; it is pickled and sent to the processes of the cluster."""

    def open(self, device: torch.device) -> None:
        """Prepares the model, once in each process."""
        ...

    def __call__(self, columns: Columns) -> PartContent:
        """Embeds the images of a part.

        Raises:
            InputError: It cannot be embedded; the message is shown to the user.
        """
        ...


@dataclass(frozen=True)
class RayCluster:
    """A cluster of Ray, or processes on this machine.

    Attributes:
        address: Of the cluster; see :func:`hgsl.evaluation.parts.ray_session.ray_session`.
        device: ``auto`` is a GPU for each process if the cluster has some, else the CPU; or ``cuda`` or ``cpu``.
    """

    address: str | None = None
    device: str = "auto"


class _Resources(NamedTuple):
    """The processes that embed, and what each of them needs of its machine."""

    processes: int
    cores: int
    gpus: int


def embed_parts(
    parts: Sequence[Part],
    embedder: PartEmbedder,
    folder: Path,
    record: Mapping[str, Any],
    cluster: RayCluster,
    *,
    progress: bool = True,
) -> None:
    """Embeds parts on a cluster, and writes each to a folder as soon as it is complete.

    Args:
        parts: The parts that are missing.
        embedder: The model.
        folder: Of the files; every machine of the cluster has it under this path.
        record: Entries of the record of each part.
        cluster: The cluster.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        InputError: Ray is not installed or cannot be reached, the device is absent, an image cannot be read, or
            processes were killed. Parts that are complete stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ray_session(cluster.address) as ray:
        resources = _resources(ray, cluster.device, len(parts))
        total = sum(map(len, parts))
        with progress_bar(shown=progress, log_lines=True, total=total, desc="embedding", unit="image") as bar:
            done = 0
            try:
                for row in _results(ray, parts, embedder, folder.absolute(), record, cluster.device, resources):
                    if row["error"]:
                        raise InputError(row["error"])
                    done += 1
                    bar.update(row["images"])
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"Ray ended with {_last_line(error)!r}: {done} of {len(parts)} parts are complete in {folder}, run "
                    "the command again to continue"
                ) from None


def _resources(ray: Any, device: str, parts: int) -> _Resources:
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    if device not in ("auto", "cuda", "cpu"):
        raise InputError(f"device {device!r}: with --engine ray, Ray assigns the GPUs: use auto, cuda or cpu")
    if device == "cuda" and not gpus:
        raise InputError("device 'cuda': no machine of the Ray cluster has a GPU: use --device cpu or auto")
    if gpus and device != "cpu":
        return _Resources(min(parts, gpus), 1, 1)
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    cores = max(1, min(torch.get_num_threads(), largest))
    return _Resources(max(1, min(parts, int(total.get("CPU", 1)) // cores)), cores, 0)


def _results(
    ray: Any,
    parts: Sequence[Part],
    embedder: PartEmbedder,
    folder: Path,
    record: Mapping[str, Any],
    device: str,
    resources: _Resources,
) -> Iterator[Mapping[str, Any]]:
    """A row per part, as they are completed: its number of images, and its error, if it has one."""
    import ray.data as ray_data

    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    items = [{"path": str(part.path(folder)), "columns": json.dumps(dict(part.columns))} for part in parts]
    reference = ray.put(embedder)
    dataset = ray_data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_args=([reference], dict(record), device, torch.get_num_threads()),
        batch_size=1,
        compute=ray_data.ActorPoolStrategy(size=resources.processes),
        num_cpus=resources.cores,
        num_gpus=resources.gpus,
    )
    yield from dataset.iter_rows()


class _Actor:
    """A process of the cluster.

    Args:
        reference: To the embedder, in a list: Ray would replace a plain one by its value.
        record: Entries of the record of each part.
        device: The device, which is the GPU that Ray has assigned for ``auto`` and ``cuda``.
        threads: Of PyTorch on a CPU, as many as without a cluster, since sums depend on it.
    """

    def __init__(self, reference: list[Any], record: Mapping[str, Any], device: str, threads: int) -> None:
        import ray

        end_with_parent()  # Ray's own check takes up to a minute, in the middle of a part
        torch.set_num_threads(threads)
        self.record = record
        self.embedder: PartEmbedder = ray.get(reference[0])
        self.embedder.open(pick_device(device))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        path, columns = Path(str(batch["path"][0])), json.loads(str(batch["columns"][0]))
        images = len(next(iter(columns.values())))
        try:
            with _attempt(path):
                write_part(path, self.embedder(columns), self.record)
        except (InputError, OSError) as error:
            return {"images": [images], "error": [f"{error}"]}
        return {"images": [images], "error": [""]}


@contextmanager
def _attempt(path: Path) -> Iterator[None]:
    """Counts how often a process began a part and was killed, since Ray would begin it again forever.

    Raises:
        InputError: Too often.
    """
    marks = [path.with_name(f".{path.stem}.{number}{PARTIAL}") for number in range(ATTEMPTS)]
    mark = next((mark for mark in marks if not mark.exists()), None)
    if mark is None:
        raise InputError(
            f"{ATTEMPTS} processes were killed while they embedded {path.stem}, perhaps for lack of memory: use a "
            "smaller --batch-size, or run the command again to continue"
        )
    mark.touch()
    try:
        yield
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _last_line(error: Exception) -> str:
    """The end of a traceback from another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
