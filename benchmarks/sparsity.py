"""Benchmark of masks in training and of tickets in inference.

    python benchmarks/sparsity.py overhead                       # training step of ResNet-50, masked and dense
    python benchmarks/sparsity.py tickets --backbone resnet18    # dense, weight tickets, compacted channel tickets

``overhead`` times whole steps (forward, cross entropy plus penalty, backward, SGD) of dense and masked networks in turn
and compares the fastest of each. ``tickets`` closes weights and channels at random: it measures time, size and
operations, but not accuracy, which ``hgsl sparsify`` measures on data.
"""

import argparse
import platform
import warnings
from functools import partial

import timm
import torch
from torch import Tensor, nn

from hgsl.common.device import pick_device, pick_precision
from hgsl.common.latency import fastest_seconds
from hgsl.sparsity import Masks, benchmark, compact, sparsify
from hgsl.sparsity.benchmark import table


def train_step(model: nn.Module, masks: Masks | None, images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    """Forward, loss, backward and one optimizer step."""
    parameters = model.parameters() if masks is None else [*masks.weight_parameters(), *masks.mask_parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.0)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = nn.functional.cross_entropy(model(images), labels)
    if masks is not None:
        loss = loss + 1e-8 * masks.penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def overhead(backbone: str, batch: int, size: int, repeats: int) -> str:
    """Returns a table of the seconds per training step of the dense network and of both types of masks."""
    device = pick_device("auto")
    dtype = pick_precision("auto", device)
    torch.manual_seed(0)
    dense = timm.create_model(backbone, num_classes=1000).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    networks: dict[str, tuple[nn.Module, Masks | None]] = {"dense": (dense, None)}
    networks["weight masks"] = sparsify(dense)
    networks["channel masks"] = sparsify(dense, granularity="channel", example=images[:2])
    steps = {name: partial(train_step, *network, images, labels, dtype) for name, network in networks.items()}
    fastest = fastest_seconds(steps, repeats, device=device)
    precision = str(dtype).removeprefix("torch.")
    lines = [
        f"{backbone}, batch {batch}, {size} px, {device}, {precision}, fastest of {repeats} steps",
        "",
        "| network | seconds/step | relative to dense |",
        "| --- | --- | --- |",
        *(f"| {name} | {value:.3f} | {value / fastest['dense']:.2f}x |" for name, value in fastest.items()),
    ]
    return "\n".join(lines)


def tickets(backbone: str, batch: int, size: int, repeats: int, densities: list[float]) -> str:
    """Returns a table of the costs of the dense network and of tickets with random masks."""
    device = pick_device("auto")
    torch.manual_seed(0)
    dense = timm.create_model(backbone, num_classes=1000).to(device).eval()
    images = torch.randn(batch, 3, size, size, device=device)
    networks: dict[str, nn.Module] = {"dense": dense}
    for granularity in ("weight", "channel"):
        for density in densities:
            masked, masks = sparsify(dense, granularity=granularity, example=images[:2])  # type: ignore[arg-type]
            close_at_random(masks, density)
            name = f"{granularity} ticket, density {masks.density():.2f}"
            networks[name] = masks.finalize() if granularity == "weight" else compact(masked, images[:2])
    title = f"{backbone}, batch {batch}, {size} px, {device}, float32, {torch.get_num_threads()} threads, random masks"
    return f"{title}\n\n{table(benchmark(networks, images, repeats))}"


@torch.no_grad()
def close_at_random(masks: Masks, density: float) -> None:
    """Sets the scores so that a random share ``density`` of each mask is open, and the ticket mode."""
    for scores in masks.mask_parameters():
        order = torch.rand(scores.shape, device=scores.device).flatten().argsort().reshape(scores.shape)
        scores.copy_((order < density * scores.numel()).to(scores.dtype) - 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fully closed layers
        masks.ticket = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "tickets"])
    parser.add_argument("--backbone", default=None, help="timm name; resnet50, for tickets tf_efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    sizes = (arguments.batch, arguments.size, arguments.repeats)
    if arguments.what == "overhead":
        print(overhead(arguments.backbone or "resnet50", *sizes))
    else:
        print(tickets(arguments.backbone or "tf_efficientnet_lite0", *sizes, arguments.densities))


if __name__ == "__main__":
    main()
