"""Triton kernels for the search of the nearest class centers: maxima of groups of cosines, and cosines within groups.

Neither writes the matrix of all cosines. With ``TRITON_INTERPRET=1`` they run on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 16  # centers of which only the largest cosine is written
# The fastest of ten tried on an H200; cards with less shared memory take two stages.
TILE = {"TILE_CENTERS": 128, "TILE_EMBEDDINGS": 128, "TILE_DIMENSIONS": 32, "num_warps": 4, "num_stages": 3}
SMALL_TILE = TILE | {"num_stages": 2}
LARGE_SHARED_MEMORY = ((8, 0), (9, 0), (10, 0))  # compute capabilities of A100, H100 and B200


def group_maxima(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest cosine in each group of ``GROUP`` successive centers, and the norms of the centers.

    Each factor is split into a bfloat16 number and a bfloat16 remainder, and three of the four products are summed in
    float32. That leaves an error of at most ``3 * 2^-16``, and usually of about ``10^-6``, at three times the cost of a
    bfloat16 product.

    Args:
        x: unit embeddings ``(B, D)`` float32.
        centers: ``(C, D)`` float32, contiguous.

    Returns:
        ``(B, C / GROUP)``, rounded up, and ``(C,)``, both float32.
    """
    count, dimensions = centers.shape
    high = x.bfloat16()
    low = (x - high.float()).bfloat16()
    maxima = x.new_empty(len(x), triton.cdiv(count, GROUP))
    norms = x.new_empty(count)
    on_cpu = x.device.type == "cpu"  # in Triton's interpreter, which cannot multiply bfloat16
    large = on_cpu or torch.cuda.get_device_capability(x.device) in LARGE_SHARED_MEMORY
    tile = TILE if large else SMALL_TILE
    grid = (triton.cdiv(len(x), tile["TILE_EMBEDDINGS"]), triton.cdiv(count, tile["TILE_CENTERS"]))
    sizes = len(x), count, dimensions, maxima.shape[1]
    operand = tl.float32 if on_cpu else tl.bfloat16
    _group_maxima[grid](high, low, centers, maxima, norms, *sizes, GROUP=GROUP, OPERAND=operand, **tile)
    return maxima, norms


def cosines_of_groups(x: Tensor, centers: Tensor, groups: Tensor) -> Tensor:
    """Returns the cosines of each embedding to the centers of some groups, from float32 products.

    Args:
        x: unit embeddings ``(B, D)`` float32.
        centers: ``(C, D)`` float32, contiguous.
        groups: ``(B, m)`` int64, of ``GROUP`` successive centers each.

    Returns:
        ``(B, m * GROUP)`` float32; ``-inf`` where there is no such center.
    """
    count, dimensions = centers.shape
    cosines = x.new_empty(len(x), groups.shape[1] * GROUP)
    block = min(256, triton.next_power_of_2(dimensions))
    _cosines_of_groups[groups.shape](
        x, centers, groups, cosines, count, dimensions, groups.shape[1], GROUP=GROUP, TILE_DIMENSIONS=block, num_warps=4
    )
    return cosines


@triton.jit
def _group_maxima(
    high,
    low,
    centers,
    maxima,
    norms,
    batch,
    count,
    dimensions,
    group_count,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
    TILE_CENTERS: tl.constexpr,
    TILE_EMBEDDINGS: tl.constexpr,
    TILE_DIMENSIONS: tl.constexpr,
):
    rows = tl.program_id(1) * TILE_CENTERS + tl.arange(0, TILE_CENTERS)
    columns = tl.program_id(0) * TILE_EMBEDDINGS + tl.arange(0, TILE_EMBEDDINGS)
    total = tl.zeros((TILE_CENTERS, TILE_EMBEDDINGS), dtype=tl.float32)
    squares = tl.zeros((TILE_CENTERS,), dtype=tl.float32)
    row_starts = rows.to(tl.int64) * dimensions
    for start in range(0, dimensions, TILE_DIMENSIONS):
        components = start + tl.arange(0, TILE_DIMENSIONS)
        inside = components[None, :] < dimensions
        center = tl.load(
            centers + row_starts[:, None] + components[None, :], mask=(rows[:, None] < count) & inside, other=0.0
        )
        offsets = columns[None, :] * dimensions + components[:, None]
        present = (columns[None, :] < batch) & (components[:, None] < dimensions)
        x_high = tl.load(high + offsets, mask=present, other=0.0).to(OPERAND)
        x_low = tl.load(low + offsets, mask=present, other=0.0).to(OPERAND)
        squares += tl.sum(center * center, axis=1)
        center_high = center.to(tl.bfloat16)
        center_low = (center - center_high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(center_low.to(OPERAND), x_high, total)
        total = tl.dot(center_high.to(OPERAND), x_low, total)
        total = tl.dot(center_high.to(OPERAND), x_high, total)
    norm = tl.sqrt(squares)
    if tl.program_id(0) == 0:
        tl.store(norms + rows, norm, mask=rows < count)
    cosines = total / tl.where(norm > 1e-12, norm, 1.0)[:, None]
    cosines = tl.where(rows[:, None] < count, cosines, float("-inf"))
    largest = tl.max(tl.reshape(cosines, (TILE_CENTERS // GROUP, GROUP, TILE_EMBEDDINGS)), axis=1)
    groups = tl.program_id(1) * (TILE_CENTERS // GROUP) + tl.arange(0, TILE_CENTERS // GROUP)
    targets = columns[None, :].to(tl.int64) * group_count + groups[:, None]
    tl.store(maxima + targets, largest, mask=(columns[None, :] < batch) & (groups[:, None] < group_count))


@triton.jit
def _cosines_of_groups(
    x,
    centers,
    groups,
    cosines,
    count,
    dimensions,
    groups_each,
    GROUP: tl.constexpr,
    TILE_DIMENSIONS: tl.constexpr,
):
    embedding, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = tl.load(groups + embedding * groups_each + number)
    rows = group * GROUP + tl.arange(0, GROUP)
    products = tl.zeros((GROUP,), dtype=tl.float32)
    squares = tl.zeros((GROUP,), dtype=tl.float32)
    for start in range(0, dimensions, TILE_DIMENSIONS):
        components = start + tl.arange(0, TILE_DIMENSIONS)
        values = tl.load(x + embedding * dimensions + components, mask=components < dimensions, other=0.0)
        present = (rows[:, None] < count) & (components[None, :] < dimensions)
        center = tl.load(centers + rows[:, None] * dimensions + components[None, :], mask=present, other=0.0)
        products += tl.sum(center * values[None, :], axis=1)
        squares += tl.sum(center * center, axis=1)
    norm = tl.sqrt(squares)
    result = tl.where(rows < count, products / tl.where(norm > 1e-12, norm, 1.0), float("-inf"))
    tl.store(cosines + (embedding * groups_each + number) * GROUP + tl.arange(0, GROUP), result)
