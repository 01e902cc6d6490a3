"""The term of a teacher in the objective, with the projection to the size of the teacher's embeddings."""

from typing import Any, Protocol

from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.collectives import gather_rows, gather_with_gradient
from hgsl.common.errors import InputError
from hgsl.config import LossConfig
from hgsl.engine.parts.feature_matching import FeatureMatching
from hgsl.losses.distillation import embedding_distillation, similarity_distillation


class TeacherEmbeddings(Protocol):
    """The embeddings of a teacher for the images of a run.

    Attributes:
        features: The comparison of the blocks of model and teacher; None without one.
    """

    features: FeatureMatching | None

    def __call__(self, ids: Tensor, images: Tensor) -> Tensor:
        """Returns the embeddings (B, D') of a batch, of these ids and augmented images, on the device of the run."""

    def count_unlabeled(self, ids: Tensor) -> int:
        """Returns the number of images without labels in a batch, which are its last ones."""


class Distillation(nn.Module):
    """Embeddings (B, D) and those of the teacher (B, D') -> weighted scalar.

    The similarities are those among the images of all processes.

    Args:
        settings: Kind, weight and temperature.
        embedding_size: D.
        teacher_size: D'.
        teacher_id: Fingerprint of the teacher, which must be the same when a run is resumed.
        features: The comparison of the blocks of model and teacher, recorded in each step; None without one.
    """

    def __init__(
        self,
        settings: LossConfig,
        embedding_size: int,
        teacher_size: int,
        teacher_id: str,
        features: FeatureMatching | None = None,
    ) -> None:
        super().__init__()
        self.features, self.features_weight = features, settings.teacher_features
        self.kind, self.weight, self.temperature = (
            settings.teacher_kind,
            settings.teacher_weight,
            settings.teacher_temperature,
        )
        self.teacher_id = teacher_id
        self.projection: nn.Module = nn.Identity()
        if self.kind == "embedding" and embedding_size != teacher_size:
            if settings.sharded and ranks.world_size() > 1:
                raise InputError(
                    f"loss.teacher has {teacher_size}-d embeddings and the model {embedding_size}-d ones, and the "
                    "projection between them is not trained by several processes with loss.sharded: set "
                    "loss.teacher_kind similarities, or loss.sharded false"
                )
            self.projection = nn.Linear(embedding_size, teacher_size, bias=False)
            nn.init.orthogonal_(self.projection.weight)  # preserves inner products, as far as the sizes allow

    def forward(self, embeddings: Tensor, teacher: Tensor) -> Tensor:
        loss = self._of_embeddings(embeddings, teacher)
        return loss + self.features_weight * self.features.loss() if self.features else loss

    def _of_embeddings(self, embeddings: Tensor, teacher: Tensor) -> Tensor:
        if self.kind == "embedding":
            return self.weight * embedding_distillation(self.projection(embeddings), teacher)
        if ranks.world_size() > 1:
            embeddings, teacher = gather_with_gradient(embeddings), gather_rows(teacher)
        return self.weight * similarity_distillation(embeddings, teacher, self.temperature)

    def get_extra_state(self) -> dict[str, Any]:
        return {"teacher": self.teacher_id}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Compares the teacher with that of the saved state.

        Raises:
            InputError: It is another one.
        """
        if state["teacher"] != self.teacher_id:
            raise InputError(
                "loss.teacher is not the network that the run began with: restore its weights, or start again with "
                "--overwrite"
            )
