"""Dry run: splits and steps of a run, and its time and memory as estimated from two measured steps."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from hgsl.common import ranks
from hgsl.common.cores import available_cores
from hgsl.common.errors import InputError
from hgsl.common.memory import named_memory_errors
from hgsl.common.modules import evaluation_mode
from hgsl.common.random_state import seed_all
from hgsl.common.tables import count_of
from hgsl.config import Config
from hgsl.engine.driver import Driver
from hgsl.engine.loop.state import build_state
from hgsl.engine.loop.step import train_step
from hgsl.engine.parts.freeze import train_mode
from hgsl.engine.problem import Problem
from hgsl.engine.runtime import Runtime, build_runtime
from hgsl.engine.session import MEMORY_ADVICE
from hgsl.evaluation.extract import forward

MEASURED_STEPS = 2  # after one that loads libraries and allocates memory


class EstimatedRun(Protocol):
    """A run with data and model built, and nothing written."""

    driver: Driver

    def embedding_count(self) -> int:
        """Returns the number of images that the network embeds, or classifies, besides the training steps."""


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run.

    Attributes:
        epochs: Name of each stage -> its epochs.
        steps_per_epoch: Batches in an epoch.
        evaluated_images: Images that are embedded besides the steps.
        training_seconds, evaluation_seconds: The time of the steps, and of these images.
        memory_bytes: Peak of GPU memory, or of this process on a CPU.
        disk_bytes: Size of the saved states and the model.
    """

    epochs: Mapping[str, int]
    steps_per_epoch: int
    evaluated_images: int
    training_seconds: float
    evaluation_seconds: float
    memory_bytes: int
    disk_bytes: int

    def text(self, runtime: Runtime, folder: Path, runs: int = 1) -> str:
        """Returns the estimate in words.

        Args:
            runtime: Device and loader processes of the run.
            folder: The run folder.
            runs: How many such runs follow each other.
        """
        seconds = self.training_seconds + self.evaluation_seconds
        owner = "on the GPU" if runtime.device.type == "cuda" else "in this process"
        workers = f", beside {count_of(runtime.workers, 'loader process', 'loader processes')}" * bool(runtime.workers)
        stages = ", ".join(f"{name}: {epochs}" for name, epochs in self.epochs.items())
        epochs = count_of(sum(self.epochs.values()), "epoch") + f" ({stages})" * (len(self.epochs) > 1)
        lines = [
            "dry run: nothing is written",
            f"{epochs} of {count_of(self.steps_per_epoch, 'step')}, estimated from two of them",
            f"time: about {duration(seconds)}, {duration(self.training_seconds)} of it for the steps and "
            f"{duration(self.evaluation_seconds)} for {count_of(self.evaluated_images, 'embedding')}",
            f"memory: {self.memory_bytes / 2**30:.1f} GB at the peak {owner}{workers}",
            f"disk: {self.disk_bytes / 2**20:,.0f} MB in {folder}",
        ]
        return "\n".join(lines + [f"{runs} runs: {runs} times as long, about {duration(runs * seconds)}"] * (runs > 1))


def dry_run(config: Config, folder: Path, build: Callable[..., EstimatedRun], *, runs: int = 1) -> Estimate:
    """Builds data and model, takes three training steps in memory, prints the estimate and returns it.

    Args:
        config: The settings of the run.
        folder: Its run folder, which stays as it is.
        build: (config=, runtime=) -> the run; it writes nothing.
        runs: How many such runs follow each other.

    Raises:
        InputError: Settings or data are not usable, or there are several processes.
    """
    if ranks.launched_world_size() > 1:
        raise InputError("--dry-run measures one process: start it without torchrun")
    if config.loss.teacher is not None:
        raise InputError("--dry-run: the embeddings of loss.teacher are stored before the first step: leave it out")
    runtime = build_runtime(config)
    with named_memory_errors(MEMORY_ADVICE), runtime.float32_products():
        seed_all(config.run.seed)
        # Images are read in this process, whose time is measured, and no cache of resized ones is written.
        uncached = replace(config, data=replace(config.data, cache="none"))
        run = build(config=uncached, runtime=replace(runtime, workers=0))
        if not run.driver.problem.uses_loaders:
            runtime = replace(runtime, workers=0)
        result = _estimate(run, config, runtime)
    ranks.print_main(f"\n{result.text(runtime, folder, runs)}", result=True)
    return result


def duration(seconds: float) -> str:
    """Returns a time in words.

    >>> duration(42.3), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _estimate(run: EstimatedRun, config: Config, runtime: Runtime) -> Estimate:
    """The estimate, in which the steps of all stages take the time of the first, whose masks cost the most."""
    driver, embeddings = run.driver, run.embedding_count()
    epochs = {stage.name: stage.epochs for stage in driver.stages}
    head = config.train.mode == "head"  # its steps on stored features take no time to speak of
    step = 0.0 if head else _step_seconds(driver, config, runtime)
    image = _embedding_seconds(driver.problem, runtime)
    on_gpu = runtime.device.type == "cuda"
    # In bytes on macOS, in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Estimate(
        epochs=epochs,
        steps_per_epoch=driver.problem.steps_per_epoch,
        evaluated_images=embeddings,
        training_seconds=step * driver.problem.steps_per_epoch * sum(epochs.values()),
        evaluation_seconds=image * embeddings,
        memory_bytes=torch.cuda.max_memory_allocated(runtime.device) if on_gpu else peak,
        disk_bytes=driver.bytes_on_disk(),
    )


def _step_seconds(driver: Driver, config: Config, runtime: Runtime) -> float:
    """The time of a step, of which the first is left out, with its share of the time to read images."""
    problem, stage = driver.problem, driver.stages[0]
    state = build_state(config, problem, stage, runtime, driver.masks)
    options = driver.loop_options(stage)
    train_mode(state.model, options.frozen, options.frozen_depth)
    problem.objective.start_epoch(0)
    batches = problem.batches(stage.seed, 0, stage.epochs)
    reading, computing = [], []
    for _ in range(min(1 + MEASURED_STEPS, problem.steps_per_epoch * stage.epochs)):
        started = time.perf_counter()
        batch = next(batches)
        read = time.perf_counter()
        float(train_step(state, batch, options, runtime)[0])  # waits for the device
        reading.append(read - started)
        computing.append(time.perf_counter() - read)
    if not computing:
        return 0.0
    return _overlapped(min(computing[1:] or computing), min(reading[1:] or reading), runtime)


def _embedding_seconds(problem: Problem, runtime: Runtime) -> float:
    """The time of an embedding, with its share of the time to read the image, from one batch."""
    started = time.perf_counter()
    batch = problem.evaluation_batch()
    read = time.perf_counter()
    with evaluation_mode(problem.model), torch.inference_mode():
        channels_last = problem.model.prefers_channels_last(runtime.device)
        forward(problem.model, runtime.prepare(batch, channels_last), runtime.dtype)
    return _overlapped(time.perf_counter() - read, read - started, runtime) / len(batch)


def _overlapped(computing: float, reading: float, runtime: Runtime) -> float:
    """The time of a batch whose images other processes read meanwhile, on the same cores if the device is the CPU."""
    if not runtime.workers:
        return computing + reading
    longest = max(computing, reading / runtime.workers)
    if runtime.device.type != "cpu":
        return longest
    return max(longest, (computing * torch.get_num_threads() + reading) / available_cores())
