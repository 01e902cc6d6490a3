"""Test-time augmentation: the embedding of an image is the mean over several views of it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError
from hgsl.common.eval_checks import check_crops


class AveragedViews(nn.Module):
    """Embeds flipped and cropped views and returns their mean direction, (B, 3, H, W) -> (B, D), unit norm.

    Args:
        model: (B, 3, H, W) -> (B, D) unit vectors.
        flip: Whether to add the mirror image of each view.
        crops: 1 uses the whole image, 5 the center and the four corner crops.
        share: Side of a crop over the side of the image; a crop is scaled back to the image's size.

    Raises:
        InputError: ``crops`` is neither 1 nor 5, or ``share`` is outside 0 to 1.
    """

    def __init__(self, model: nn.Module, *, flip: bool = True, crops: int = 1, share: float = 0.875) -> None:
        super().__init__()
        check_crops(crops)
        if not 0 < share <= 1:
            raise InputError(f"share must be above 0 and at most 1, found {share}")
        self.model, self.flip, self.crops, self.share = model, flip, crops, share

    @property
    def description(self) -> str:
        """The name of this step in reports."""
        return " + ".join((["5 crops"] if self.crops == 5 else []) + (["flip"] if self.flip else [])) or "one view"

    def forward(self, images: Tensor) -> Tensor:
        views = self._cropped(images) if self.crops == 5 else [images]
        if self.flip:
            views = views + [view.flip(-1) for view in views]
        return F.normalize(torch.stack([self.model(view).float() for view in views]).mean(0), dim=1)

    def _cropped(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        h, w = max(1, round(self.share * height)), max(1, round(self.share * width))
        corners = [
            (0, 0),
            (0, width - w),
            (height - h, 0),
            (height - h, width - w),
            ((height - h) // 2, (width - w) // 2),
        ]
        crops = [images[..., top : top + h, left : left + w] for top, left in corners]
        return [F.interpolate(crop, (height, width), mode="bilinear", antialias=True) for crop in crops]
