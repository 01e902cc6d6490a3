"""Settings of the evaluation, and of the views and the whitening that are saved with the model."""

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from hgsl.config.checks import check_finite, refuse

STEP = 32  # pixels; convolutional backbones have this output stride


@dataclass
class EvalConfig:
    """Evaluation of retrieval on the test split.

    Image size, views and whitening are saved with the model: search and export use them too.
    """

    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The K of Recall@K and Precision@K."""
    batch_size: int = 64
    """Images per forward pass."""
    image_size: int | str | None = None
    """Side of the square test image, in pixels or as a multiple of data.image_size such as 1.2x, which is rounded to a
    multiple of 32; empty means data.image_size. Crops of training show objects larger than whole test images do."""
    flip: bool = False
    """Whether the embedding of a test image is the mean direction of it and its mirror image, at twice the cost."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes of the views that an embedding is the mean direction of, relative to the test image; each costs a forward
    pass."""
    whiten: int | Literal["mean"] | None = None
    """Refinement of the embeddings, fitted on training images after training: mean removes their mean; a number also
    PCA-whitens to so many dimensions, 0 to all; empty does neither."""
    shrinkage: float = 0.0
    """Whitening: weight, from 0 to 1, of the mean variance in the variance of each direction."""
    every: int = 1
    """Epochs between two evaluations on the validation images during training, where there are some (data.val_share,
    val_fold, or a validation split of the data); 0 for none. The last epoch is always evaluated."""
    before: bool = True
    """Whether the model is also evaluated before training."""
    page: bool = True
    """Whether report.html and curves.png are written after training (up to 20,000 queries)."""

    def __post_init__(self) -> None:
        check_finite("eval", self)
        refuse(not self.ks or min(self.ks) < 1, f"eval.ks must be positive numbers, found {self.ks}")
        refuse(self.every < 0, f"eval.every cannot be negative, found {self.every}: 0 evaluates no epoch")
        refuse(self.batch_size < 1, f"eval.batch_size must be positive, found {self.batch_size}")
        if isinstance(self.image_size, str) and self.image_size.isdecimal():
            self.image_size = int(self.image_size)
        refuse(
            isinstance(self.image_size, str) and (not _is_multiple(self.image_size) or not 0 < self.factor < inf),
            f"eval.image_size must be a number of pixels, or a multiple of data.image_size such as 1.2x, "
            f"found {self.image_size!r}",
        )
        refuse(
            isinstance(self.image_size, int) and self.image_size < 1,
            f"eval.image_size must be positive or empty, found {self.image_size}",
        )
        refuse(
            not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales),
            f"eval.scales must be one or more different numbers above 0, found {self.scales}",
        )
        refuse(
            isinstance(self.whiten, int) and self.whiten < 0,
            f"eval.whiten must be mean, a number of dimensions, 0 for all, or empty, found {self.whiten}",
        )
        refuse(not 0 <= self.shrinkage <= 1, f"eval.shrinkage must lie from 0 to 1, found {self.shrinkage}")
        refuse(
            self.shrinkage > 0 and not isinstance(self.whiten, int),
            f"eval.shrinkage belongs to whitening, but eval.whiten is {self.whiten or 'empty'}: set a number of "
            "dimensions, or leave it out",
        )

    @property
    def factor(self) -> float:
        """The multiple of data.image_size, 1 where a number of pixels or nothing is set."""
        return float(self.image_size[:-1]) if isinstance(self.image_size, str) else 1.0

    def side(self, training_side: int) -> int:
        """Returns the side of a test image in pixels, given that of a training image."""
        if isinstance(self.image_size, str):
            return max(1, round(self.factor * training_side / STEP)) * STEP if self.factor != 1 else training_side
        return training_side if self.image_size is None else self.image_size

    def has_views(self) -> bool:
        """Whether an embedding is the mean over several views or of another scale."""
        return self.flip or self.scales != [1.0]


def _is_multiple(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)?x", text))
