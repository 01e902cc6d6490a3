"""Device, precision and loader processes of a run."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from hgsl.common import ranks
from hgsl.common.depthwise import Float32DepthwiseBackward
from hgsl.common.device import cpu_has_amx, dtype_name, pick_device, pick_precision
from hgsl.common.memory import keep_freed_memory
from hgsl.common.precision import float32_products
from hgsl.common.tables import count_of
from hgsl.config import Config
from hgsl.engine.loop.loader import default_workers
from hgsl.models.depthwise import has_depthwise_convolutions


@dataclass(frozen=True)
class Runtime:
    """Device and precision of the network's computation, and the number of loader processes.

    Attributes:
        device: The device.
        dtype: Dtype of the network's autocast.
        workers: Loader processes.
        tf32: Whether float32 products of the network are computed in TensorFloat-32.
    """

    device: torch.device
    dtype: torch.dtype
    workers: int
    tf32: bool = False

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}, {count_of(torch.get_num_threads(), 'thread')}"

    @property
    def precision(self) -> str:
        """The name of the precision, as in ``run.precision``."""
        return "tf32" if self.tf32 else dtype_name(self.dtype)

    def prepare(self, images: torch.Tensor, channels_last: bool) -> torch.Tensor:
        """Moves a batch, of images or of their features, to the device, in the memory format of the model."""
        images = images.to(self.device, non_blocking=True)
        channels_last = channels_last and images.ndim == 4
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Computes a network in ``dtype`` within the context, which need not include the backward pass."""
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32))
            if self.device.type == "cpu" and self.dtype == torch.bfloat16:
                stack.enter_context(Float32DepthwiseBackward())
            yield

    def float32_products(self) -> AbstractContextManager[None]:
        """The arithmetic of float32 products of a run: see :mod:`hgsl.common.precision`."""
        return float32_products(self.tf32)


def build_runtime(config: Config) -> Runtime:
    """Picks device, precision and workers, and sets PyTorch's threads and, on a CPU, the reuse of freed memory."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    if config.run.deterministic:  # without it, PyTorch raises an error in the first matrix product on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = pick_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    workers = default_workers() if config.data.workers is None else config.data.workers
    return Runtime(device, _dtype(config, device), workers, tf32=config.run.precision == "tf32")


def agree_on_precision(runtime: Runtime) -> Runtime:
    """Returns the runtime, in float32 if the precision that ``auto`` picked differs between the processes."""
    if len(set(ranks.all_gather_object(runtime.precision))) == 1:
        return runtime
    return replace(runtime, dtype=torch.float32)


def _dtype(config: Config, device: torch.device) -> torch.dtype:
    """Returns the dtype of the settings; ``auto`` is float32 on some CPUs for networks with depthwise convolutions.

    A depthwise convolution is no matrix product, and the networks that have them were measured to gain from bfloat16
    only where matrix units speed up their other layers. The choice depends on processor and backbone alone, so that a
    resumed run and an evaluation have the same.
    """
    dtype = pick_precision(config.run.precision, device)
    if config.run.precision == "auto" and device.type == "cpu" and dtype != torch.float32 and not cpu_has_amx():
        return torch.float32 if has_depthwise_convolutions(config.model.backbone) else dtype
    return dtype
