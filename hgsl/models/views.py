"""Views of an image at test time: the image and its mirror image, at several scales."""

from collections.abc import Sequence
from numbers import Real

from torch import Tensor
from torch.nn import functional as F

from hgsl.common.errors import InputError

MAX_SCALE = 8.0


def check_views(flip: object, scales: object) -> None:
    """Checks the views of a model.

    Raises:
        InputError: ``flip`` is not a bool, or ``scales`` is not a list of different numbers above 0 and up to
            ``MAX_SCALE``.
    """
    if not isinstance(flip, bool):
        raise InputError(f"flip must be True or False, found {flip!r}")
    is_list = isinstance(scales, Sequence) and not isinstance(scales, str) and len(scales) > 0
    numbers = list(scales) if is_list else []  # type: ignore[call-overload]
    are_numbers = all(isinstance(scale, Real) and not isinstance(scale, bool) for scale in numbers)
    if not numbers or not are_numbers or not all(0 < scale <= MAX_SCALE for scale in numbers):
        raise InputError(f"scales must be one or more numbers above 0 and at most {MAX_SCALE:g}, found {scales!r}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"scales {numbers} name a scale twice")


def image_views(images: Tensor, flip: bool, scales: Sequence[float]) -> list[Tensor]:
    """Returns the views of images (B, 3, H, W), each (B, 3, h, w): every scale, then its mirror image if ``flip``.

    Scale s has round(s H) x round(s W) pixels, by bilinear interpolation without antialiasing, which ONNX has as well.
    """
    views = []
    for scale in scales:
        view = images if scale == 1 else _resized(images, scale)
        views += [view, view.flip(-1)] if flip else [view]
    return views


def _resized(images: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
