"""Losses and miners of pytorch-metric-learning that can be trained with; the others are never offered."""

from collections.abc import Iterable

# They need another loss or the output of several augmentations, or do not train on embeddings and labels.
NOT_TRAINABLE = {
    *("CrossBatchMemory", "DynamicSoftMarginLoss", "EmbeddingsAlreadyPackagedAsTriplets", "GenericPairLoss"),
    *("ManifoldLoss", "MultipleLosses", "SelfSupervisedLoss", "VICRegLoss"),
}


def trainable(names: Iterable[str]) -> list[str]:
    """Returns the names without base classes, mixins and those that cannot be trained with.

    >>> trainable(["BaseMiner", "ProxyAnchorLoss", "WeightRegularizerMixin"])
    ['ProxyAnchorLoss']
    """
    return [
        name
        for name in names
        if not name.startswith("Base") and not name.endswith("Mixin") and name not in NOT_TRAINABLE
    ]
