"""Distillation of intermediate maps: those of a model and of a teacher of the same architecture, block by block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile

from timm.models import group_parameters
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.losses.distillation import feature_distillation


class FeatureMatching:
    """The distance of the outputs of a model's blocks to those of a teacher's.

    The blocks are timm's fine groups of layers that are one module each: the residual blocks of a convolutional network
    or the blocks of a transformer.

    Args:
        model: The backbone that is trained.
        teacher: The frozen backbone.

    Raises:
        InputError: The backbones differ in their blocks, or timm does not define any.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        names = _blocks(model)
        if not names or names != _blocks(teacher):
            raise InputError(
                "loss.teacher_features compares the blocks of two networks of one architecture, but those of "
                f"{type(model).__name__} and the teacher's {type(teacher).__name__} differ: set it to 0"
            )
        self._blocks = [[network.get_submodule(name) for name in names] for network in (model, teacher)]
        self._outputs: list[list[Tensor]] = [[], []]
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the outputs of both networks' blocks within the context, in which each of them runs once."""
        self._outputs = [[], []]
        with ExitStack() as stack:
            for blocks, outputs in zip(self._blocks, self._outputs, strict=True):
                for block in blocks:
                    stack.callback(block.register_forward_hook(partial(_append, outputs)).remove)
            yield

    def loss(self) -> Tensor:
        """Returns the distance of the recorded outputs, a scalar."""
        return feature_distillation(*self._outputs, channels_last=self._channels_last)


def _append(outputs: list[Tensor], block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    outputs.append(output)


def _blocks(backbone: nn.Module) -> Sequence[str]:
    """The names of the modules that hold all parameters of a fine group of layers, in the order of the network."""
    groups = group_parameters(backbone, backbone.group_matcher(coarse=False))  # type: ignore[operator]
    names = [_common_module(groups[group]) for group in sorted(groups)]
    modules = dict(backbone.named_modules())
    return [name for name in names if name and not isinstance(modules[name], nn.ModuleList)]


def _common_module(parameters: Sequence[str]) -> str:
    """The name of the innermost module that holds all these parameters."""
    paths = zip(*(name.split(".")[:-1] for name in parameters), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, paths))
