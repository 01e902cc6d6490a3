"""Ticket search from config to files: stages against a written-out oracle, rewinding, bit-exact resuming."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgsl.cli import eval_retrieval
from hgsl.cli._eval_flags import eval_parser
from hgsl.cli._settings import CONFIGS, parse_as, settings_of_run
from hgsl.cli._training import read, training_parser
from hgsl.cli.sparsify import main
from hgsl.common.errors import InputError
from hgsl.common.progress import quiet_mode
from hgsl.common.random_state import seed_all
from hgsl.config import (
    Config,
    DataConfig,
    EvalConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SparsifyConfig,
    SparsifyRunConfig,
    TrainConfig,
)
from hgsl.data.cifar10 import MEAN, STD
from hgsl.engine import driver
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.loop.loader import mixed_seed
from hgsl.engine.parts.build import build_eval_set, build_manifest
from hgsl.engine.runtime import build_runtime
from hgsl.engine.sparsify import report as sparsify_report
from hgsl.engine.sparsify.problems import PROBLEMS, Classifier, SparsifyProblem, classification
from hgsl.engine.sparsify.search import search
from hgsl.models import load_embedder
from hgsl.sparsity import load, sparsify


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of noisy patterns in the official binary format."""
    root = tmp_path_factory.mktemp("cifar")
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (10, 3, 8, 8)).repeat(4, 2).repeat(4, 3)

    def records(count: int) -> bytes:
        noisy = [patterns[i % 10] + generator.normal(0, 20, (3, 32, 32)) for i in range(count)]
        return b"".join(bytes([i % 10]) + x.clip(0, 255).astype(np.uint8).tobytes() for i, x in enumerate(noisy))

    for number in range(1, 6):
        (root / f"data_batch_{number}.bin").write_bytes(records(10))
    (root / "test_batch.bin").write_bytes(records(20))
    return root


def settings(root: Path, **sparsify_options: Any) -> SparsifyRunConfig:
    return SparsifyRunConfig(
        run=RunConfig(device="cpu", precision="float32", threads=1),
        data=DataConfig(name="cifar10", root=str(root), val_share=0.2, workers=0),
        model=ModelConfig(backbone="test_resnet", weights="none"),
        optim=OptimConfig(name="sgd", nesterov=True, lr=0.05, schedule="constant", warmup=0.0, clip=None),
        train=TrainConfig(epochs=3, batch_size=10, save_every=3),
        eval=EvalConfig(batch_size=8),
        sparsify=SparsifyConfig(
            **{"task": "classification", "rounds": 2, "rewind_epoch": 1, "exclude": ["*.fc"], **sparsify_options}
        ),
    )


def retrieval_settings(**sparsify_options: Any) -> SparsifyRunConfig:
    """Two rounds of two epochs of two steps, of channels."""
    return SparsifyRunConfig(
        run=RunConfig(device="cpu", precision="float32", threads=1),
        data=DataConfig(
            name="synthetic",
            image_size=32,
            workers=0,
            options={"num_classes": 6, "images_per_class": 6, "image_size": 32},
        ),
        model=ModelConfig(backbone="test_resnet", weights="none"),
        optim=OptimConfig(lr=1e-3, warmup=0.0),
        train=TrainConfig(epochs=2, batch_size=9, ema=0.5, save_every=3),
        eval=EvalConfig(batch_size=8),
        sparsify=SparsifyConfig(
            **{
                "rounds": 1,
                "granularity": "channel",
                "mask_initial_value": 0.1,
                "mask_lr": 0.2,
                "lmbda": 1e-5,
                "rewind_epoch": 0,
                "curve_every": 2,
                **sparsify_options,
            }
        ),
    )


def problem_of(config: SparsifyRunConfig) -> SparsifyProblem:
    seed_all(config.run.seed)
    return PROBLEMS[config.sparsify.task](config, build_runtime(config))


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are no part of a mask."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: t for name, t in tensors.items() if not name.endswith((".scores", ".temperature", ".initial_value"))}


def slow_search(config: SparsifyRunConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Continuous Sparsification written out: the ticket's tensors, and the density after each epoch of a round."""
    problem, settings = problem_of(config), config.sparsify
    network, masks = sparsify(problem.model, settings.mask_initial_value, exclude=settings.exclude, inplace=True)
    scores, checkpoint, densities = masks.mask_parameters(), {}, []
    weights = [weight for weight in network.parameters() if all(weight is not s for s in scores)]
    for stage in range(settings.rounds + 1):
        ticket = stage == settings.rounds
        groups = [{"params": weights, "weight_decay": 1e-4}, *([] if ticket else [{"params": scores}])]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        if ticket:
            for name, tensor in weights_of(network).items():
                tensor.data.copy_(checkpoint[name])
            masks.ticket = True
        batches = problem.batches(mixed_seed(config.run.seed, stage), 0, 3)
        for epoch in range(3):
            masks.temperature = 200 ** (epoch / 2)
            if (stage, epoch) == (0, settings.rewind_epoch):
                checkpoint = {name: tensor.detach().clone() for name, tensor in weights_of(network).items()}
            network.train()
            for _ in range(problem.steps_per_epoch):
                images, labels, _ = next(batches)
                loss = torch.nn.functional.cross_entropy(network(images), labels)
                if not ticket:
                    loss = loss + settings.lmbda * masks.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not ticket:
                kept = sum(int((s > 0).sum()) for s in scores)
                densities.append(kept / sum(s.numel() for s in scores))
        if stage + 1 < settings.rounds:
            for s in scores:
                s.data = (200 * s.data).clamp(max=settings.mask_initial_value)
    return masks.finalize().state_dict(), densities


def test_rounds_and_ticket_follow_the_algorithm_step_by_step(cifar: Path, tmp_path: Path) -> None:
    config = settings(cifar, mask_initial_value=0.05, lmbda=1e-3)
    report = search(config, tmp_path / "run")
    expected, densities = slow_search(config)
    problem = problem_of(config)
    untrained = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    load(problem.model, tmp_path / "run" / "ticket.safetensors")
    ticket = problem.model.state_dict()
    torch.testing.assert_close(ticket, expected)
    assert not torch.equal(ticket["network.fc.weight"], untrained["network.fc.weight"])

    stages = [(record["stage"], record["epoch"]) for record in report["history"]]
    assert stages == [(stage, epoch) for stage in ("round 1", "round 2", "ticket") for epoch in (1, 2, 3)]
    assert [record["density"] for record in report["history"][:6]] == pytest.approx(densities)
    assert {record["density"] for record in report["history"][6:]} == {densities[-1]} == {report["density"]}
    assert 0 < report["density"] < report["overall_density"] < 1
    temperatures = [record.get("temperature") for record in report["history"]]
    assert temperatures[:6] == pytest.approx([1, 200**0.5, 200] * 2, rel=1e-4)
    assert temperatures[6:] == [None] * 3


class StopHere(Exception):
    """Ends a run right after a save, like a kill."""


def stop_at_save(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    done, write = [], driver.save_state

    def save_and_stop(path: Path, content: dict[str, Any]) -> None:
        write(path, content)
        done.append(content["stage"])
        if len(done) == saves:
            raise StopHere

    monkeypatch.setattr(driver, "save_state", save_and_stop)


@pytest.mark.parametrize("saves", [2, 8, pytest.param(13, marks=pytest.mark.slow)])
def test_a_resumed_search_ends_the_same_to_the_bit(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_run: Path, saves: int
) -> None:
    """Saves fall after steps 3, 4, 6, 8, 9, 12 of each stage: in the first epoch, at its end, in later stages."""
    config, folder = settings(cifar), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(StopHere):
        stop_at_save(patch, saves)
        search(config, folder)
    with pytest.raises(InputError, match=r"optim.lr is 0.2, and the run in .* began with 0.05"):
        search(replace(config, optim=replace(config.optim, lr=0.2)), folder, resume=True)
    report = search(replace(config, eval=EvalConfig(batch_size=9)), folder, resume=True)
    assert (folder / "ticket.safetensors").read_bytes() == (whole_run / "ticket.safetensors").read_bytes()
    expected = json.loads((whole_run / "report.json").read_text())
    assert report["history"] == expected["history"]
    assert report["layers"] == expected["layers"]


@pytest.fixture(scope="module")
def whole_run(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("runs") / "whole", settings(cifar)
    search(replace(config, train=replace(config.train, keep=4)), folder)
    return folder


def test_the_run_folder(cifar: Path, whole_run: Path) -> None:
    report = json.loads((whole_run / "report.json").read_text())
    assert set(report["costs"]) == {"dense", "ticket"}
    assert report["costs"]["ticket"]["accuracy"] == report["scores"]["accuracy"]
    assert report["costs"]["ticket"]["nonzero"] < report["costs"]["dense"]["nonzero"]
    assert report["scores"]["images"] == 20
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = (whole_run / "layers.md").read_text().splitlines()
    assert len(rows) == 2 + len(report["layers"])
    assert sum(row["remaining"] for row in report["layers"]) / sum(row["weights"] for row in report["layers"]) == (
        pytest.approx(report["density"])
    )
    lines = (whole_run / "stages" / "round-2" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert {"loss", "lr/masks", "lr/weights"} <= set(json.loads(lines[0]))
    assert {"density", "temperature", "score"} <= set(json.loads(lines[3]))

    config = settings(cifar)
    task = classification(config, build_runtime(config))
    load(task.model, whole_run / "ticket.safetensors")
    assert task.final(task.model)["accuracy"] == report["scores"]["accuracy"]
    assert search(config, whole_run, resume=True) == report, "a finished run is only reported"


@pytest.mark.slow
def test_no_rounds_train_the_dense_network(cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_mode():
        report = search(settings(cifar, rounds=0), tmp_path / "dense")
    accuracy = 100 * report["scores"]["accuracy"]
    assert capsys.readouterr().out == f"\naccuracy {accuracy:.2f}, in percent, with 100.0 % of the masked weights\n"
    assert report["density"] == 1.0
    assert [record["stage"] for record in report["history"]] == ["dense"] * 3
    assert list(report["costs"]) == ["dense"]
    beside = search(settings(cifar, rounds=1, dense_run=str(tmp_path / "dense")), tmp_path / "ticket")
    assert beside["costs"]["dense"]["accuracy"] == report["scores"]["accuracy"]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (None, "holds no report.json: let that run finish first"),
        ("{", "is not valid JSON"),
        ('{"after": {"recall@1": 0.9}}', "holds no scores accuracy: give a run of the same task"),
        ('{"scores": {"recall@1": 0.9}}', "holds no scores accuracy"),
    ],
)
def test_a_wrong_dense_run_is_refused_before_the_search(
    cifar: Path, tmp_path: Path, report: str | None, message: str
) -> None:
    dense = tmp_path / "dense"
    if report:
        dense.mkdir()
        (dense / "report.json").write_text(report)
    with pytest.raises(InputError, match=message):
        search(settings(cifar, dense_run=str(dense)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"weights": "/nonexistent/file"}, "model.weights '/nonexistent/file'.*set model.weights none"),
        ("model", {"weights": "timm"}, "set model.weights none"),
        ("model", {"freeze": "backbone"}, "model.freeze 'backbone' has no effect on sparsify.task classification"),
        ("model", {"embedding_size": 64}, "model.embedding_size 64"),
        ("loss", {"centers": "class_means"}, "loss.centers 'class_means'"),
        ("data", {"image_size": 64}, "data.image_size 64"),
        ("optim", {"layer_decay": 0.75}, "optim.layer_decay 0.75"),
    ],
)
def test_a_classifier_refuses_settings_that_it_does_not_use(
    cifar: Path, section: str, change: dict[str, Any], message: str
) -> None:
    config = settings(cifar)
    config = replace(config, **{section: replace(getattr(config, section), **change)})
    with pytest.raises(InputError, match=message):
        classification(config, build_runtime(config))


def test_the_published_config_is_accepted(cifar: Path) -> None:
    words = ["--config", str(CONFIGS / "cifar10_cs.yaml"), "--data.root", str(cifar), "--train.batch_size", "10"]
    config, _, _ = read(SparsifyRunConfig, training_parser("", SparsifyRunConfig), words)
    assert classification(config, build_runtime(config)).steps_per_epoch == 4


def test_a_classifier_normalizes_bytes_channel_by_channel() -> None:
    values = Classifier(torch.nn.Identity(), MEAN, STD)(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    for channel in range(3):
        assert values[0, channel].numpy() == pytest.approx((0.2 - MEAN[channel]) / STD[channel], rel=1e-5)


@pytest.mark.slow
def test_a_search_that_cannot_be_compacted_is_reported(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(model: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
        raise InputError("Classifier cannot be traced\nat length")

    monkeypatch.setattr(sparsify_report, "compact", refuse)
    config = settings(cifar, rounds=1, rewind_epoch=0, granularity="channel")
    report = search(replace(config, train=replace(config.train, epochs=1)), tmp_path)
    assert report["notes"] == ["no compacted ticket: Classifier cannot be traced"]
    assert report["notes"][0] in capsys.readouterr().out
    assert list(report["costs"]) == ["dense", "ticket"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "ticket.safetensors").is_file()
    assert not (tmp_path / "compact.safetensors").exists()


def test_class_centers_start_at_the_means_of_their_classes() -> None:
    config = replace(retrieval_settings(granularity="weight"), loss=LossConfig(centers="class_means"))
    problem = problem_of(config)
    assert problem.start() == {}
    model, centers = problem.model, problem.objective.loss_fn.centers.detach()
    images = build_eval_set(config.data, build_manifest(config.data), model, "train")
    with torch.inference_mode():
        embeddings = model.eval()(torch.stack([image for image, _, _ in images]))
    labels = torch.tensor([label for _, label, _ in images])
    means = torch.stack([embeddings[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(centers, means), torch.ones(3))


def test_an_earlier_state_leads_to_the_same_ticket(cifar: Path, tmp_path: Path, whole_run: Path) -> None:
    """Saves fall after steps 3, 4, 6, 8, 9, 12 of each stage of 12; the last four are kept."""
    assert sorted(path.stem for path in (whole_run / "states").iterdir()) == [f"{n:09}" for n in (30, 32, 33, 36)]
    folder = shutil.copytree(whole_run, tmp_path / "run")
    (folder / "report.json").unlink()
    shutil.copy(folder / "states" / "000000030.safetensors", folder / "state.safetensors")
    search(settings(cifar), folder, resume=True)
    assert (folder / "ticket.safetensors").read_bytes() == (whole_run / "ticket.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_search_finds_the_same(cifar: Path, tmp_path: Path) -> None:
    """Round and ticket are compiled separately; another summation order flips the signs of a few scores near zero."""
    plain = settings(cifar, rounds=1)
    plain = replace(plain, model=replace(plain.model, backbone="test_resnet"))
    expected = search(plain, tmp_path / "plain")
    torch._dynamo.utils.counters.clear()
    found = search(replace(plain, run=replace(plain.run, compile=True)), tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    for row, wanted in zip(found["history"], expected["history"], strict=True):
        assert row["density"] == pytest.approx(wanted["density"], abs=0.005)
        assert row.get("temperature") == wanted.get("temperature")


def test_batches_can_start_at_any_step(cifar: Path) -> None:
    config = settings(cifar)
    task = classification(config, build_runtime(config))
    assert task.steps_per_epoch == 4
    whole, late = task.batches(0, 0, 3), task.batches(0, 6, 3)
    batches = [next(whole) for _ in range(9)]
    for expected, found in zip(batches[6:], (next(late) for _ in range(3)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    first, second = (torch.cat([rows for _, _, rows in batches[i : i + 4]]) for i in (0, 4))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()
    other = next(task.batches(1, 0, 3))
    assert not torch.equal(other[0], batches[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("saves", [2, 5])
def test_a_resumed_search_for_channels_ends_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Saves fall after steps 2, 3 and 4 of each stage: the second and the fifth are in the middle of an epoch."""
    monkeypatch.setattr(
        sparsify_report, "compact", lambda model, example: model
    )  # whose trace takes seconds, and which reads only the ticket
    config, folder = retrieval_settings(), tmp_path / "run"
    expected = search(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StopHere):
        stop_at_save(patch, saves)
        search(config, folder)
    report = search(config, folder, resume=True)
    assert (report["history"], report["scores"]) == (expected["history"], expected["scores"])
    for name in ("ticket.safetensors", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.5, "penalty": "time", "lmbda": 1e-4},
        {"method": "reconstruction", "target": 0.6, "penalty": "time", "rewind_epoch": None},
    ],
)
def test_a_resumed_search_keeps_the_times_measured_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    measurements = []

    def seconds_of_layers(network: torch.nn.Module, example: torch.Tensor) -> tuple[dict[str, float], float]:
        measurements.append(len(example))
        names = [name for name, tensor in network.named_parameters() if name.endswith("weight")]
        seconds = {name: 1.0 + row * (7 if len(measurements) > 2 else 1) % 5 for row, name in enumerate(names)}
        return seconds, sum(seconds.values())

    monkeypatch.setattr(import_module("hgsl.sparsity.sparsify"), "seconds_of_layers", seconds_of_layers)
    monkeypatch.setattr(sparsify_report, "compact", lambda model, example: model)
    config, folder = retrieval_settings(**options), tmp_path / "run"
    expected = search(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StopHere):
        stop_at_save(patch, 2)
        search(config, folder)
    report = search(config, folder, resume=True)
    assert measurements == [8, 8, 8], "batches of eval.batch_size images"
    assert (report["history"], report["scores"]) == (expected["history"], expected["scores"])
    assert (folder / "ticket.safetensors").read_bytes() == (tmp_path / "whole" / "ticket.safetensors").read_bytes()
    assert report["history"][-1]["share"] <= 0.6 + 1e-6 or not options.get("method")


def test_the_settings_of_a_search_are_read_by_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for config in (retrieval_settings(), Config()):
        path.write_text(config.to_yaml())
        settings = settings_of_run(tmp_path)
        assert parse_as(settings, eval_parser(settings), ["--config", str(path)])[0] == config


@pytest.mark.slow
def test_weights_removed_by_reconstruction_stay_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("hgsl.engine.sparsify.search"), "RECONSTRUCTION_IMAGES", 36)
    include = ["backbone.layer1.*", "backbone.layer2.*"]
    options = {"method": "reconstruction", "granularity": "weight", "target": 0.6, "rewind_epoch": None}
    report = search(retrieval_settings(include=include, **options), tmp_path)
    assert [record["stage"] for record in report["history"]] == ["ticket", "ticket"]
    assert 0.59 < report["density"] <= 0.6
    weights = {row["layer"]: row for row in report["layers"]}
    model = load_embedder(tmp_path)
    for name, row in weights.items():
        assert int(model.get_submodule(name).weight.count_nonzero()) == row["remaining"]


@pytest.mark.slow
def test_channel_tickets_for_retrieval(tmp_path: Path) -> None:
    report = search(retrieval_settings(), tmp_path)
    assert {"recall@1", "map@r"} <= set(report["scores"])
    dense, ticket, small = (report["costs"][name] for name in ("dense", "ticket", "ticket, compacted"))
    assert ticket["parameters"] == dense["parameters"] > small["parameters"]
    assert small["map@r"] == pytest.approx(ticket["map@r"], abs=1e-6)
    assert small["flops"] < dense["flops"]
    assert [("score" in record) for record in report["history"]] == [False, True] * 2
    assert eval_retrieval.main(["--checkpoint", str(tmp_path), "--json", str(tmp_path / "eval.json")]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["map@r"] == report["scores"]["map@r"]
    model = load_embedder(tmp_path)
    assert model.data_config["image_size"] == 32
    assert not [name for name in model.state_dict() if "parametrizations" in name]
    smaller = load_embedder(tmp_path)
    load(smaller, tmp_path / "compact.safetensors", shrink=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewind_epoch": 3}, "rewind_epoch 3 lies outside a round of train.epochs 3"),
        ({"final_temp": 0.0}, "final_temp must be positive"),
        ({"final_temp": float("inf")}, "final_temp must be finite, found inf"),
        ({"lmbda": -1.0}, "lmbda cannot be negative"),
        ({"lmbda": float("nan")}, "lmbda must be finite, found nan"),
        ({"mask_initial_value": 11.0}, "mask_initial_value must be from -10 to 10, found 11.0"),
        ({"task": "retrieval"}, "cifar10 is for classification"),
        ({"target": 1.0}, "sparsify.target is a share between 0 and 1"),
        ({"target": 0.5, "lmbda": 0.0}, "target adapts sparsify.lmbda, whose first value is 0"),
        ({"penalty": "time"}, "closed weights take as long as open ones"),
        ({"method": "reconstruction"}, "down to a share: set sparsify.target, such as 0.6"),
        (
            {"method": "reconstruction", "granularity": "channel", "target": 0.6},
            "for the cost that they save: set sparsify.penalty operations or time",
        ),
    ],
)
def test_settings_that_contradict(cifar: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(cifar, **change)


def test_a_search_is_not_told_to_leave_out_its_masks() -> None:
    with pytest.raises(ValueError, match=r"train.mode 'head' does not train: use full"):
        SparsifyRunConfig(train=TrainConfig(mode="head"))
    with pytest.raises(ValueError, match=r"freezes the weights that sparsify masks: set model.lora.rank 0"):
        SparsifyRunConfig(model=ModelConfig(lora=LoraConfig(rank=4)))


def test_a_dense_network_has_no_round_to_rewind_in(cifar: Path) -> None:
    assert settings(cifar, rounds=0, rewind_epoch=5).sparsify.rounds == 0
    with pytest.raises(ValueError, match="rewind_epoch 0 lies outside"):
        replace(settings(cifar, rewind_epoch=0), train=TrainConfig(epochs=0))


@pytest.mark.slow
def test_the_command_takes_the_published_flags(cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {name: cifar10, val_share: 0.2}\nmodel: {backbone: test_resnet, weights: none}\n"
        "optim: {name: sgd, schedule: constant, warmup: 0.0}\nsparsify: {task: classification}\n"
    )
    words = ["--config", str(path), "--data.root", str(cifar), "--run.dir", str(tmp_path / "run"), "--run.threads=1"]
    flags = "--rounds 1 --epochs 2 --batch-size 20 --mask-initial-value=-0.1 --final-temp 50 --rewind-epoch 1 --lr 0.1"
    assert main([*words, *flags.split(), "--lmbda", "1e-9", "--decay", "0", "--seed", "3"]) == 0
    written = load_state(tmp_path / "run" / "state.safetensors")
    assert written["stage"] == 1
    text = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("mask_initial_value: -0.1", "final_temp: 50.0", "lmbda: 1.0e-09", "rewind_epoch: 1", "seed: 3"):
        assert line in text
    assert "| layer | weights | remaining | density |" in capsys.readouterr().out

    assert main([*words, "--rounds", "1"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--sparsify.granularty", "weight"]) == 2
    assert "did you mean '--sparsify.granularity'" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--sparsify.exclude", "['*.fcc']"]) == 2
    assert "layer pattern '*.fcc' matches no layer" in capsys.readouterr().err
    assert main([]) == 2
    assert "--config cifar10_cs" in capsys.readouterr().err
