"""Rules of the channel graph: the effect of each ATen operator on channels, by operator name.

A rule adds one operator to the graph and returns True, or returns False for a form that it does not cover.
"""

from functools import partial

from hgsl.sparsity.channels.rules.arguments import Rule
from hgsl.sparsity.channels.rules.elementwise import binary, clamp, getitem, power, unary
from hgsl.sparsity.channels.rules.layers import batch_norm, convolution, linear, prelu, spatial
from hgsl.sparsity.channels.rules.shapes import concatenation, constant_pad, pad, permute, reduction, selection, view


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(convolution, "conv1d conv2d conv3d"),
    **_rules(linear, "linear"),
    **_rules(batch_norm, "_native_batch_norm_legit_no_training"),
    **_rules(prelu, "prelu"),
    "<built-in function getitem>": getitem,
    # f(0) = 0
    **_rules(unary, "relu relu6 silu gelu hardswish mish tanh leaky_relu elu selu celu softsign abs neg sqrt square"),
    **_rules(unary, "erf log1p expm1 sin sign clone contiguous alias detach to _to_copy dropout"),
    # f(0) != 0
    **_rules(partial(unary, kind="opaque"), "sigmoid hardsigmoid exp softplus log_sigmoid cos rsqrt reciprocal"),
    **_rules(clamp, "clamp clamp_min"),
    **_rules(partial(clamp, default=(-1.0, 1.0)), "hardtanh"),
    **_rules(power, "pow"),
    **_rules(spatial, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices"),
    **_rules(spatial, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d"),
    **_rules(spatial, "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa"),
    **_rules(pad, "pad"),
    **_rules(constant_pad, "constant_pad_nd"),
    **_rules(partial(binary, kind="sum"), "add sub"),
    **_rules(partial(binary, kind="product"), "mul"),
    **_rules(partial(binary, kind="quotient"), "div"),
    **_rules(concatenation, "cat"),
    **_rules(view, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze"),
    **_rules(permute, "permute transpose"),
    **_rules(reduction, "mean sum amax amin"),
    **_rules(selection, "slice select"),
}
