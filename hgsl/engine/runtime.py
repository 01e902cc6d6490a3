"""Device, precision and loader processes of a run."""

from dataclasses import dataclass

import torch

from hgsl.common.device import dtype_name, pick_device, pick_precision
from hgsl.common.memory import keep_freed_memory
from hgsl.config import Config
from hgsl.engine.loop.loader import default_workers


@dataclass(frozen=True)
class Runtime:
    """Device and dtype of the network's computation, and the number of loader processes."""

    device: torch.device
    dtype: torch.dtype
    workers: int

    def __str__(self) -> str:
        return f"{self.device}, {dtype_name(self.dtype)}, {torch.get_num_threads()} threads"

    def prepare(self, images: torch.Tensor, channels_last: bool) -> torch.Tensor:
        """Moves a batch, of images or of their features, to the device, in the memory format of the model."""
        images = images.to(self.device, non_blocking=True)
        channels_last = channels_last and images.ndim == 4
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def build_runtime(config: Config) -> Runtime:
    """Picks device, precision and workers, and sets PyTorch's threads and, on a CPU, the reuse of freed memory."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    device = pick_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    workers = default_workers() if config.data.workers is None else config.data.workers
    return Runtime(device, pick_precision(config.run.precision, device), workers)
