"""The embedding model: backbone -> pooling -> projection -> L2 normalization -> whitening, if it was fitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError
from hgsl.common.transforms import Transform, eval_transform, train_transform
from hgsl.models.activations import activations_in_place
from hgsl.models.backbone import has_depthwise, is_convolutional
from hgsl.models.encode import ImageInput, encode
from hgsl.models.features import pool_features, pooled_width
from hgsl.models.image_size import check_image_size
from hgsl.models.views import check_views, image_views
from hgsl.models.whitening import Whitening


class Embedder(nn.Module):
    """Maps images (B, 3, H, W) to unit vectors (B, D), in float32 whatever the precision of the backbone.

    In evaluation mode the embedding is the mean direction over the views of :meth:`set_views`, whitened where
    :meth:`set_whitening` was called; in training mode it is that of the image alone, before whitening.

    Attributes:
        backbone: The timm model, without a classifier.
        pooling: One of :data:`hgsl.models.POOLINGS`.
        projection: A linear layer to ``embedding_size``, or the identity.
        whitening: A :class:`hgsl.models.whitening.Whitening`, or the identity.
        embedding_size: D, in evaluation mode.
        data_config: Preprocessing in timm's terms (``mean``, ``std``, ``interpolation``, ``crop_pct``, ...), and
            ``image_size``, the side in pixels of the square input. Saved and loaded with the model.
        architecture: The arguments of ``create_embedder`` that build this model again, without its weights.
        is_convolutional: Whether most weights are in convolutions.
        has_depthwise: Whether some convolutions have a filter for each channel.
    """

    def __init__(
        self, backbone: nn.Module, pooling: nn.Module, embedding_size: int | None, architecture: dict[str, Any]
    ):
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        pooled = pooled_width(backbone, pooling)
        self.projection = nn.Identity() if embedding_size is None else nn.Linear(pooled, embedding_size)
        self.whitening: nn.Module = nn.Identity()
        self.pooled_size = pooled
        self.embedding_size = pooled if embedding_size is None else embedding_size
        self.data_config: dict[str, Any] = timm.data.resolve_model_data_config(backbone)
        self.data_config["image_size"] = self.data_config["input_size"][-1]
        self.architecture = architecture
        self.is_convolutional = is_convolutional(backbone)
        self.has_depthwise = has_depthwise(backbone)
        self._in_place = activations_in_place(backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Embedder":
        """Sets the mode; in training no activation works in place if autograd would then keep a copy of its input."""
        super().train(mode)
        for activation in self._in_place:
            activation.inplace = not mode
        return self

    def prefers_channels_last(self, device: torch.device) -> bool:
        """Whether the channels-last memory format is the faster one on ``device``: for networks of convolutions.

        Not on an NVIDIA GPU with depthwise convolutions: there, cuDNN prepared EfficientNet-Lite0 in bfloat16 for 15 s
        in the first step, against 1 s for contiguous tensors, and the further steps took equally long.
        """
        return self.is_convolutional and not (device.type == "cuda" and self.has_depthwise)

    def transform(self, train: bool = False, image_size: int | None = None) -> Transform:
        """Returns the transform from an RGB image of any size to the input (3, S, S) of this model.

        Args:
            train: Whether to return the random transform of training instead of the fixed one of evaluation.
            image_size: S in pixels; None takes ``data_config["image_size"]``.
        """
        side = self.data_config["image_size"] if image_size is None else image_size
        if train:
            return train_transform(self.data_config, side)
        return eval_transform(self.data_config, side, crop_pct=self.data_config["crop_pct"])

    def pooled(self, images: Tensor) -> Tensor:
        """Returns the features before projection and normalization: (B, 3, H, W) -> (B, C').

        Raises:
            InputError: One image in training mode, where batch norm has a single value per channel.
        """
        if self.training and len(images) == 1:
            return self._pooled_of_one(images)
        return self._pool(images)

    def _pool(self, images: Tensor) -> Tensor:
        width = self.projection.in_features if isinstance(self.projection, nn.Linear) else self.pooled_size
        return pool_features(self.backbone, self.pooling, images, width)

    def _pooled_of_one(self, image: Tensor) -> Tensor:
        try:
            return self._pool(image)
        except ValueError as error:  # raised by torch.nn.functional.batch_norm
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"a batch of one image of {image.shape[-1]} pixels has a single value per channel, too few for batch "
                "norm in training mode: use larger batches or images, or model.eval()"
            ) from error

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 64,
        *,
        workers: int = 0,
        progress: bool = True,
    ) -> NDArray[np.float32]:
        """Embeds images as an evaluation does: (N, D) float32, of unit norm, in the order of the images.

        >>> hgsl.load_embedder("runs/folder").encode(["a.jpg", "b.jpg"])  # doctest: +SKIP

        Args:
            images: Paths, or PIL images of any mode and size, of which each is rotated by its EXIF orientation; or one
                of them.
            batch_size: Images per forward pass, on the device of the model.
            workers: Processes that read the images; 0 reads in this one.
            progress: Whether to show a progress bar on stderr, if that is a terminal.

        Raises:
            InputError: An image is missing or damaged, and is named; or an argument is of another type.
        """
        return encode(self, images, batch_size, workers=workers, progress=progress)

    def head(self, pooled: Tensor) -> Tensor:
        """Projects and normalizes: (B, C') -> (B, D), unit norm."""
        return F.normalize(self.projection(pooled).float(), dim=1)

    def views(self, images: Tensor) -> list[Tensor]:
        """Returns the views of images (B, 3, H, W) that an embedding in evaluation mode is the mean of."""
        return image_views(images, self.architecture["flip"], self.architecture["scales"])

    def combine(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Returns the whitened mean direction of the embeddings of all views, V times (B, D') -> (B, D)."""
        if len(embeddings) == 1:
            return self.whitening(embeddings[0])
        return self.whitening(F.normalize(torch.stack(list(embeddings)).mean(0), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.head(self.pooled(images))
        return self.combine([self.head(self.pooled(view)) for view in self.views(images)])

    def set_views(self, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> None:
        """Sets the views of evaluation mode, which are saved, searched and exported with the model.

        An embedding costs one forward pass per view; the mirror image doubles their number.

        Args:
            flip: Whether each view is joined by its mirror image.
            scales: Sides of the views, relative to the input.

        Raises:
            InputError: A value of another form, or a scale that the backbone does not take.
        """
        check_views(flip, scales)
        for scale in scales:
            if scale != 1:
                side = max(1, round(scale * self.data_config["image_size"]))
                check_image_size(self, side, f"scale {scale:g} of {self.data_config['image_size']} pixels")
        self.architecture.update(flip=flip, scales=[float(scale) for scale in scales])

    def set_whitening(self, mean: Tensor, matrix: Tensor | None = None) -> None:
        """Sets the mean (D',) and the projection (D', D) of the embeddings; they are saved and exported with the model.

        Args:
            mean: Subtracted from each embedding.
            matrix: Applied to the difference; None removes the mean alone.

        Raises:
            InputError: D' is not the size of the embeddings before whitening.
        """
        width = self.architecture["embedding_size"] or self.pooled_size
        shapes = [tuple(tensor.shape) for tensor in (mean, matrix) if tensor is not None]
        if shapes[0] != (width,) or (matrix is not None and (matrix.ndim != 2 or len(matrix) != width)):
            raise InputError(
                f"mean and matrix of shapes {', '.join(map(str, shapes))} do not fit embeddings of {width} dimensions: "
                f"expected ({width},) and ({width}, D)"
            )
        self.build_whitening("mean" if matrix is None else matrix.shape[1], len(mean))
        assert isinstance(self.whitening, Whitening)
        with torch.no_grad():
            self.whitening.mean.copy_(mean)
            if self.whitening.matrix is not None and matrix is not None:
                self.whitening.matrix.copy_(matrix)
        self.whitening.to(next(self.backbone.parameters()).device)

    def build_whitening(self, whitening: int | str | None, width: int | None = None) -> None:
        """Adds the module of a whitening to E dimensions or, with "mean", of mean removal; its values are zero."""
        self.architecture["whitening"] = whitening
        if whitening is None:
            return
        width = self.embedding_size if width is None else width
        dimensions = None if whitening == "mean" else int(whitening)
        self.whitening = Whitening(width, dimensions)
        self.embedding_size = width if dimensions is None else dimensions
