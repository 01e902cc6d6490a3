"""Distillation losses: the distance of a model's embeddings, their similarities or intermediate maps to a teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.losses.checks import check_number, check_tensor


def embedding_distillation(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine distance of each embedding to that of the teacher.

    For unit vectors it is half the mean squared distance::

        L = mean_i (1 - x_i . t_i) = mean_i |x_i - t_i|^2 / 2        x_i, t_i of norm 1

    Args:
        embeddings: ``(B, D)`` of the model, of any norm; projected to the size of the teacher's where that differs.
        teacher: ``(B, D)``, of any norm.

    Returns:
        The loss, a scalar from 0 to 2.

    Raises:
        InputError: The shapes differ, are not ``(B, D)``, or the batch is empty.

    Source:
        Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (regression to a teacher's features through a
        projection), here of the embeddings.
    """
    _check(embeddings, teacher)
    if embeddings.shape != teacher.shape:
        raise InputError(
            f"embeddings are of shape {tuple(embeddings.shape)} and the teacher's of {tuple(teacher.shape)}: project "
            "them to the same size"
        )
    return 1 - F.cosine_similarity(embeddings, teacher, dim=1).mean()


def similarity_distillation(embeddings: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Divergence of the similarities among the images of a batch from those of the teacher.

    The cosines of an image to all others become a distribution, and the loss is the mean divergence of the model's::

        p_i = softmax over j != i of t_i . t_j / temperature         t_i of norm 1
        q_i = softmax over j != i of x_i . x_j / temperature         x_i of norm 1
        L   = mean_i sum_j p_ij log(p_ij / q_ij)

    Embedding sizes may differ: only similarities are compared.

    Args:
        embeddings: ``(B, D)`` of the model, of any norm.
        teacher: ``(B, D')``, of any norm.
        temperature: of both distributions; at a lower one only the nearest images count.

    Returns:
        The loss, a scalar; 0 for fewer than two images.

    Raises:
        InputError: The numbers of embeddings differ or are 0, or the temperature is not positive.

    Source:
        Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018 (divergence
        of the conditional probabilities of a batch). Related: Park et al., Relational Knowledge Distillation, CVPR
        2019 (distances and angles); Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (squared
        difference of similarities).
    """
    _check(embeddings, teacher)
    check_number("temperature", temperature)
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature}: use a positive number such as 0.1")
    if len(embeddings) < 2:
        return embeddings.sum() * 0
    p = _log_probabilities(teacher, temperature)
    q = _log_probabilities(embeddings, temperature)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def feature_distillation(
    features: Sequence[Tensor], teacher: Sequence[Tensor], *, channels_last: bool = False
) -> Tensor:
    """Mean squared distance of intermediate maps to those of a teacher, relative to the variance of the teacher's.

    ::

        L = mean over layers l of mean |f_l - t_l|^2 / mean over channels of var t_l

    Args:
        features: The outputs of the model's layers: maps ``(B, C, h, w)``, or tokens ``(B, N, C)``.
        teacher: Those of the teacher, of the same shapes.
        channels_last: Whether the shape of a map is ``(B, h, w, C)``, as in timm's Swin.

    Returns:
        The loss, a scalar; 1 is as far as the mean of the teacher's map.

    Raises:
        InputError: The numbers or the shapes of the maps differ.

    Source:
        Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015.
    """
    if isinstance(features, Tensor) or isinstance(teacher, Tensor):
        raise InputError(
            "features and those of the teacher: expected a list of tensors each, one per layer, found a tensor"
        )
    shapes, expected = ([tuple(tensor.shape) for tensor in tensors] for tensors in (features, teacher))
    if not shapes or shapes != expected:
        raise InputError(f"features are of shapes {shapes} and the teacher's of {expected}: give pairs of equal shapes")
    pairs = zip(features, teacher, strict=True)
    distances = [_relative_distance(f.float(), t.float(), channels_last) for f, t in pairs]
    return torch.stack(distances).mean()


def _relative_distance(features: Tensor, teacher: Tensor, channels_last: bool) -> Tensor:
    is_map = teacher.ndim > 3 and not channels_last
    positions = [0, *range(2, teacher.ndim)] if is_map else list(range(teacher.ndim - 1))
    deviations = teacher - teacher.mean(positions, keepdim=True)
    return (features - teacher).square().mean() / deviations.square().mean().clamp_min(1e-12)


def _log_probabilities(vectors: Tensor, temperature: float) -> Tensor:
    """Logarithms ``(B, B - 1)`` of the softmax over the cosines of each vector to all others."""
    unit = F.normalize(vectors, dim=1)
    count = len(unit)
    cosines = unit @ unit.T
    # Without the diagonal: after its first entry, each B + 1 entries of the flattened matrix end with a diagonal one.
    others = cosines.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
    return (others / temperature).log_softmax(dim=1)


def _check(embeddings: Tensor, teacher: Tensor) -> None:
    for name, value in {"embeddings": embeddings, "teacher": teacher}.items():
        check_tensor(name, value)
        if value.ndim != 2 or not torch.is_floating_point(value):
            raise InputError(f"{name}: expected floating-point (B, D), found {value.dtype} of {tuple(value.shape)}")
    if not len(embeddings):
        raise InputError("the batch is empty: the loss needs at least one embedding")
    if len(embeddings) != len(teacher):
        raise InputError(f"{len(embeddings)} embeddings and {len(teacher)} of the teacher: give one per image")
