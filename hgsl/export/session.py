"""Exported models as PyTorch modules, so that they can be evaluated and timed like any network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line
from hgsl.common.extras import require

INPUT, OUTPUT = "images", "embeddings"


class OnnxEmbedder(nn.Module):
    """Runs an exported ONNX file with ONNX Runtime on the CPU: (B, 3, H, W) float32 -> (B, D).

    Args:
        path: The ``.onnx`` file.
        threads: Number of CPU threads; None takes that of PyTorch.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The extra is missing, the file is damaged, or it is not an exported embedder.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"no ONNX file {path}: write one with hgsl-export RUN --format onnx")
        require("export", "running an ONNX file")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Threads that spin after each call would compete with those of PyTorch in the same process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has many exception classes
            raise InputError(f"{path} cannot be run by ONNX Runtime: {first_line(error)}") from None
        if [entry.name for entry in session.get_inputs()] != [INPUT]:
            raise InputError(f"{path} does not take {INPUT!r}: it was not written by hgsl-export")
        self.session = session
        self.side = session.get_inputs()[0].shape[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 on any device -> embeddings (B, D) on the same device.

        Raises:
            InputError: The images are of another shape or dtype.
        """
        check_images(images, self.side)
        (embeddings,) = self.session.run([OUTPUT], {INPUT: images.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(embeddings).to(images.device)


def check_images(images: Tensor, side: int) -> None:
    """Checks for (B, 3, side, side) float32: a runtime may compute nothing, without an error, for others."""
    if not isinstance(images, Tensor):
        raise InputError(f"images: expected a tensor, found {type(images).__name__}: convert with torch.as_tensor")
    if images.dtype != torch.float32 or images.shape[1:] != (3, side, side) or not len(images):
        raise InputError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: this file takes float32 "
            f"(B, 3, {side}, {side}), as transform of its model and the JSON beside it prepare them"
        )
