"""Distillation in runs: the teacher's embeddings, their cache, resuming, tickets, processes, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hgsl.cli import sparsify, train
from hgsl.common.errors import InputError
from hgsl.config import Config, DataConfig, EvalConfig, LossConfig, RunConfig
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.loop.loader import RunBatches
from hgsl.engine.parts.build import build_manifest
from hgsl.engine.parts.distillation import Distillation
from hgsl.engine.parts.feature_matching import FeatureMatching
from hgsl.engine.parts.objective import build_objective
from hgsl.engine.parts.optim import parameter_groups
from hgsl.engine.parts.teacher import Teacher
from hgsl.engine.runtime import Runtime
from hgsl.models import create_embedder, load_embedder, save_embedder
from tests.helpers import ROOT, SMALL, fails, launch_ranks

DISTILLED = [*SMALL, "--train.batch_size", "8", "--train.ema", "0.9", "--loss.teacher", "teacher"]
RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0)


@pytest.fixture(autouse=True)
def _cache(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path / "cache"))


def save_teacher(folder: str = "teacher", seed: int = 1, embedding_size: int | None = 12) -> None:
    torch.manual_seed(seed)
    model = create_embedder("test_resnet", embedding_size=embedding_size, weights="none", image_size=48)
    model.set_views(flip=True)
    save_embedder(model, folder)


def losses(run: str) -> list[float]:
    return [record["loss"] for record in read_metrics(Path(run) / "metrics.jsonl")]


def stored() -> list[Path]:
    return sorted(Path("cache/hgsl/teachers").glob("*/embeddings.npy"))


def test_the_embeddings_of_the_teacher_are_those_of_the_whole_image_and_of_all_views(
    photo_folder: Callable[..., Path],
) -> None:
    save_teacher()
    config = Config(
        run=RunConfig(precision="float32"),
        data=DataConfig(name="folder", root=str(photo_folder()), cache="none"),
        loss=LossConfig(teacher="teacher"),
        eval=EvalConfig(batch_size=5),
    )
    manifest = build_manifest(config.data)
    teacher = Teacher(config, manifest, RUNTIME, {})
    teacher.prepare()
    ids = manifest.subset("train").ids[[3, 0, 5]]
    images = [manifest.root / manifest.paths[row] for row in ids]
    expected = load_embedder("teacher").encode(images)
    assert teacher.embedding_size == expected.shape[1] == 12
    np.testing.assert_allclose(teacher(torch.from_numpy(ids), torch.empty(0)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [48, 32])
def test_a_teacher_of_augmented_images_sees_those_of_the_step(photo_folder: Callable[..., Path], size: int) -> None:
    save_teacher()
    config = Config(
        run=RunConfig(precision="float32"),
        data=DataConfig(name="folder", root=str(photo_folder()), cache="none"),
        loss=LossConfig(teacher="teacher", teacher_input="augmented"),
    )
    network = load_embedder("teacher")
    mean, std = (
        [value * factor for value in network.data_config[name]] for name, factor in (("mean", 0.5), ("std", 2))
    )
    teacher = Teacher(config, build_manifest(config.data), RUNTIME, {"mean": mean, "std": std})
    teacher.prepare()
    pixels = torch.rand(3, 3, size, size)

    def normalized(mean: list[float], std: list[float]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    embeddings = teacher(torch.tensor([0, 1, 2]), normalized(mean, std))
    images = normalized(network.data_config["mean"], network.data_config["std"])
    expected = network.eval().head(network.pooled(images))  # of one view, though the teacher has two
    torch.testing.assert_close(embeddings, expected.detach(), atol=1e-5, rtol=1e-4)
    assert not embeddings.requires_grad
    assert not stored(), "nothing is cached"


def test_the_blocks_of_model_and_teacher_are_compared_in_each_step() -> None:
    torch.manual_seed(0)
    model, other = (create_embedder("test_resnet", weights="none").backbone for _ in range(2))
    matching = FeatureMatching(model, other)
    images = torch.rand(4, 3, 32, 32)
    with matching.recorded():
        model.train()(images), other.eval()(images)
    assert matching.loss().item() > 0.1
    other.load_state_dict(model.state_dict())
    with matching.recorded():
        model.eval()(images), other(images)
    assert matching.loss().item() == 0
    model.layer2[0].conv1.weight.data.mul_(2)
    maps = []
    with matching.recorded():
        for network in (model, other):
            handles = [
                getattr(network, f"layer{i}")[0].register_forward_hook(lambda m, x, y: maps.append(y))
                for i in (2, 3, 4)
            ]
            network(images)
            for handle in handles:
                handle.remove()
    distances = [
        (f - t).square().mean() / t.var((0, 2, 3), correction=0).mean() for f, t in zip(maps[:3], maps[3:], strict=True)
    ]
    assert matching.loss().item() == pytest.approx(sum(distances).item() / 4, rel=1e-4)
    assert not model.layer1[0]._forward_hooks
    with pytest.raises(InputError, match="blocks of two networks of one architecture"):
        FeatureMatching(model, create_embedder("test_vit", weights="none").backbone)


@pytest.mark.parametrize("kind", ["embedding", "similarities"])
def test_a_distilled_run_resumes_to_the_bit_and_reads_the_stored_embeddings(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    save_teacher()
    words = [*DISTILLED, "--data.root", str(photo_folder(images=8)), "--loss.teacher_kind", kind, "--run.dir", "out"]
    assert train.main([*words, "--train.save_every", "2", "--train.keep", "9"]) == 0
    [file] = stored()
    written = file.stat().st_mtime_ns
    whole, whole_losses = Path("out/model.safetensors").read_bytes(), losses("out")
    rates = read_metrics(Path("out/metrics.jsonl"))[0]
    assert ("lr/teacher_projection" in rates) == (kind == "embedding")

    states = {int(path.stem): path for path in Path("out/states").iterdir()}
    step = min(step for step in states if step % (len(whole_losses) // 2))
    Path("out/state.safetensors").write_bytes(states[step].read_bytes())
    for name in ("report.json", "model.safetensors"):
        Path("out", name).unlink()
    save_teacher(seed=2)
    assert "loss.teacher is not the network that the run began with" in fails(train.main, [*words, "--resume"], capsys)
    save_teacher()
    assert train.main([*words, "--resume"]) == 0
    assert losses("out") == whole_losses
    assert Path("out/model.safetensors").read_bytes() == whole
    assert file.stat().st_mtime_ns == written


def test_the_term_is_added_with_its_weight_and_trains_its_projection() -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", embedding_size=8, weights="none")
    settings = LossConfig(top_k=2, alpha=0.4, teacher="x", teacher_weight=3.0)
    plain, distilled = (build_objective(settings, 4, 8) for _ in range(2))
    distilled.load_state_dict(plain.state_dict())
    distilled.distillation = Distillation(settings, 8, 12, "id")
    embeddings, teacher, labels = torch.randn(6, 8), torch.randn(6, 12), torch.tensor([0, 0, 1, 1, 2, 3])
    cosines = torch.cosine_similarity(embeddings @ distilled.distillation.projection.weight.T, teacher)
    difference = distilled(embeddings, labels, teacher) - plain(embeddings, labels)
    assert difference.item() == pytest.approx(3 * (1 - cosines).mean().item(), abs=1e-5)

    groups = {group["name"]: group["params"] for group in parameter_groups(model, distilled, Config().optim)}
    assert [weight.shape for weight in groups["teacher_projection"]] == [(12, 8)]
    assert [weight.shape for weight in groups["centers"]] == [(4, 8)]


def test_several_processes_with_sharded_centers_train_no_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgsl.engine.parts.distillation.ranks.world_size", lambda: 2)
    settings = LossConfig(sharded=True, teacher="x")
    Distillation(settings, 8, 8, "id")
    with pytest.raises(InputError, match=r"loss.teacher has 12-d embeddings and the model 8-d ones.*similarities"):
        Distillation(settings, 8, 12, "id")


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher", ["", "--loss.teacher_input augmented --loss.teacher_features 1 --loss.weight 0 --train.accumulate 2"]
)
def test_a_ticket_is_searched_and_trained_with_the_dense_run_as_teacher(
    photo_folder: Callable[..., Path], teacher: str
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--sparsify.rounds"]
    words = [word for word in words if word not in ("--eval.before", "--eval.page", "false")]
    words[words.index("--loss.top_k") : words.index("--loss.top_k") + 2] = ["--loss.top_k", "2", "--eval.flip", "false"]
    assert sparsify.main([*words, "0", "--run.dir", "dense"]) == 0
    words += ["1", "--sparsify.mask_initial_value", "0.1", "--sparsify.rewind_epoch", "null"]
    words += ["--loss.teacher", "dense", "--sparsify.ticket_epochs", "3", "--run.dir", "ticket"]
    words += teacher.split()
    assert sparsify.main(words) == 0
    report = json.loads(Path("ticket/report.json").read_text())
    assert [record["stage"] for record in report["history"]] == ["round 1"] * 2 + ["ticket"] * 3
    rates = [record["lr/backbone"] for record in read_metrics(Path("ticket/stages/ticket/metrics.jsonl"))]
    assert len(rates) % 3 == 0
    assert rates[-1] < 0.05 * max(rates), "the schedule ends with the last epoch of the ticket"
    assert len(stored()) == (0 if teacher else 1)


def test_a_teacher_that_knows_the_images_held_out_is_refused(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.epochs", "1"]
    assert train.main([*words, "--run.dir", "teacher"]) == 0
    message = fails(train.main, [*words, "--data.options.seed", "7", "--loss.teacher", "teacher"], capsys)
    assert "loss.teacher teacher was trained on " in message
    assert "images that this run holds out" in message
    assert not Path("runs").exists()
    assert train.main([*words, "--loss.teacher", "teacher", "--run.dir", "out"]) == 0
    assert "note: loss.teacher" not in capsys.readouterr().out
    own = [*words, "--loss.teacher", "out", "--run.dir", "out", "--overwrite"]
    assert "loss.teacher out is the run folder itself" in fails(train.main, own, capsys)


def test_unlabeled_images_follow_the_teacher_alone_and_resume_to_the_bit(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_teacher()
    photo_folder(classes=1, images=7, name="unlabeled", size=40)
    words = [*DISTILLED, "--data.root", str(photo_folder(images=8)), "--loss.teacher_images", "unlabeled"]
    words += ["--train.accumulate", "2", "--run.dir", "out"]
    assert train.main([*words, "--train.save_every", "2", "--train.keep", "9"]) == 0
    whole, whole_losses = Path("out/model.safetensors").read_bytes(), losses("out")
    assert len(stored()) == 2
    alone = [word for word in words if word not in ("--loss.teacher_images", "unlabeled")]
    assert train.main([*alone, "--run.dir", "alone"]) == 0
    assert len(losses("alone")) == len(whole_losses)
    assert losses("alone")[0] < whole_losses[0], "the term of the unlabeled images is added"

    step = min(step for path in Path("out/states").iterdir() if (step := int(path.stem)) % (len(whole_losses) // 2))
    Path("out/state.safetensors").write_bytes(Path(f"out/states/{step:09}.safetensors").read_bytes())
    Path("out/report.json").unlink()
    assert train.main([*words, "--resume"]) == 0
    assert losses("out") == whole_losses
    assert Path("out/model.safetensors").read_bytes() == whole

    for path in Path("photos").rglob("*.jpg"):
        Path("unlabeled", f"copy_{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    message = fails(train.main, [*words, "--run.dir", "leak"], capsys)
    assert "images that this run holds out for evaluation are in unlabeled" in message


def test_every_unlabeled_image_is_taken_once_a_pass() -> None:
    plan = RunBatches(np.repeat(np.arange(3), 4), 4, epochs=4, seed=5, unlabeled=10)
    batches = [[position for _, position in batch] for batch in plan]
    assert all(len(batch) == 8 and max(batch[:4]) < 12 <= min(batch[4:]) for batch in batches)
    taken = [position for batch in batches for position in batch[4:]]
    assert sorted(taken[:10]) == sorted(taken[10:20]) == list(range(12, 22))
    assert taken[:10] != taken[10:20]
    plan.start_step = 5
    assert [[position for _, position in batch] for batch in plan] == batches[5:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "similarities"])
def test_two_distilled_processes_follow_one(photo_folder: Callable[..., Path], kind: str) -> None:
    save_teacher()
    words = [*DISTILLED, "--data.root", str(photo_folder(images=8)), "--loss.teacher_kind", kind]
    words += ["--model.freeze", "batch_norm", "--loss.both_sides", "0", "--train.epochs", "1", "--optim.name", "sgd"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    result = launch_ranks(ROOT / "tools" / "train.py", *words, "--run.dir", "two", processes=2)
    assert result.returncode == 0, result.stderr
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)
    one, two = load_file("one/model.safetensors"), load_file("two/model.safetensors")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-5)
