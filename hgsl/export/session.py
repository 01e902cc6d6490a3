"""An exported model as a PyTorch module, so that whatever measures a network measures it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line
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
        # Its threads would go on spinning after each call, and take the cores from PyTorch's in the same process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an exception class for each of its states
            raise InputError(f"{path} cannot be run by ONNX Runtime: {first_line(error)}") from None
        if [entry.name for entry in session.get_inputs()] != [INPUT]:
            raise InputError(f"{path} does not take {INPUT!r}: it was not written by tools/export.py")
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> (B, D)."""
        (found,) = self.session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(found)
