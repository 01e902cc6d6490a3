"""OpenVINO files: conversion from ONNX, and the module that runs them."""

import errno
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.extras import require
from hgsl.export.session import INPUT, OUTPUT, check_images

# By default OpenVINO computes float32 networks in bfloat16 where the processor has instructions for it.
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEmbedder(nn.Module):
    """Runs an exported OpenVINO file on the CPU: (B, 3, H, W) float32 -> (B, D).

    Args:
        path: The ``.xml`` file.
        weights: The ``.bin`` file; None for that of the same name.
        threads: Number of CPU threads; None takes that of PyTorch.
        precision: Precision of the computation, float32 or bfloat16; input and output are float32.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: The extra is missing, a file is damaged, it is not an exported embedder, or an unknown precision.
    """

    def __init__(
        self,
        path: str | Path,
        weights: str | Path | None = None,
        *,
        threads: int | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISION_HINTS:
            raise unknown("precision", precision, PRECISION_HINTS)
        weights = Path(path).with_suffix(".bin") if weights is None else weights
        for file in (path, weights):
            if not Path(file).is_file():
                raise FileNotFoundError(f"no OpenVINO file {file}: write it with hgsl-export RUN --format openvino")
        require("openvino", "running an OpenVINO file")
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        try:
            network = core.compile_model(core.read_model(str(path), str(weights)), "CPU", options)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be run by OpenVINO: {first_line(error)}") from None
        if [entry.get_any_name() for entry in network.inputs] != [INPUT]:
            raise InputError(f"{path} does not take {INPUT!r}: it was not written by hgsl-export")
        self.side = network.inputs[0].partial_shape[-1].get_length()
        self.request = network.create_infer_request()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 on any device -> embeddings (B, D) on the same device.

        Raises:
            InputError: The images are of another shape or dtype.
        """
        check_images(images, self.side)
        outputs = self.request.infer({INPUT: images.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(outputs[OUTPUT]).to(images.device)


def convert(source: Path, path: Path, weights: Path) -> None:
    """Writes the ONNX file ``source`` as OpenVINO's pair of files, an XML file of the graph and its float32 weights."""
    import openvino

    network = openvino.Core().read_model(str(source))
    with TemporaryDirectory() as folder:
        try:
            openvino.serialize(network, f"{folder}/model.xml", f"{folder}/model.bin")
        except RuntimeError as error:  # without the cause, such as a full disk
            raise OSError(errno.EIO, f"OpenVINO cannot write ({first_line(error)})", folder) from error
        for target, name in ((path, "model.xml"), (weights, "model.bin")):
            target.write_bytes(Path(folder, name).read_bytes())
