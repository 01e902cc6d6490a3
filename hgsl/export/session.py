"""An exported model as a PyTorch module, so that whatever measures a network measures it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.common.extras import require

INPUT, OUTPUT = "images", "embeddings"


class OnnxEmbedder(nn.Module):
    """Runs an exported file with ONNX Runtime on the CPU: (B, 3, H, W) float32 -> (B, D).

    Args:
        path: The ``.onnx`` file.
        threads: CPU threads; None takes as many as PyTorch has.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The extra is missing, or the file is damaged or no exported embedder.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"no ONNX file {path}: write one with tools/export.py RUN --format onnx")
        require("export", "running an ONNX file")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an exception class for each of its states
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{path} cannot be run by ONNX Runtime: {reason}") from None
        if [entry.name for entry in session.get_inputs()] != [INPUT]:
            raise InputError(f"{path} does not take {INPUT!r}: it was not written by tools/export.py")
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> (B, D)."""
        (found,) = self.session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(found)
