"""Head training, masks, several seeds, and the files of a finished run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hgsl.cli import compare, eval_retrieval, train
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from tests.helpers import SMALL, fails

HEAD = ["--train.mode", "head", "--model.embedding_size", "8"]


@pytest.fixture(autouse=True)
def _own_cache(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path / "cache"))


@pytest.mark.slow
def test_the_head_trains_on_stored_features(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(images=6)
    words = [*SMALL, *HEAD, "--data.root", str(root), "--eval.whiten", "null"]
    assert train.main([*words, "--train.epochs", "0", "--run.dir", "start"]) == 0
    kept = sorted(Path("cache/hgsl/features").glob("*/embeddings.npy"))
    assert len(kept) == 2, "training and searched images"
    times = [path.stat().st_mtime_ns for path in kept]
    assert train.main([*words, "--train.epochs", "8", "--run.dir", "out"]) == 0
    assert [path.stat().st_mtime_ns for path in sorted(Path("cache/hgsl/features").glob("*/embeddings.npy"))] == times

    start, end = load_file("start/model.safetensors"), load_file("out/model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"projection.weight", "projection.bias"}
    losses = [record["loss"] for record in read_metrics(Path("out/metrics.jsonl"))]
    assert sum(losses[-4:]) < sum(losses[:4])

    # The checkpoint is a normal embedder: from images it finds what the head found from features.
    assert eval_retrieval.main(["--checkpoint", "out", "--json", "again.json"]) == 0
    after, again = json.loads(Path("out/report.json").read_text())["after"], json.loads(Path("again.json").read_text())
    assert after["map@r"] == pytest.approx(again["map@r"], abs=1e-9)

    image = next(root.glob("kind_00/*.jpg"))
    image.write_bytes(image.read_bytes() + b"\0")
    assert train.main([*words, "--run.dir", "changed"]) == 0
    assert len(list(Path("cache/hgsl/features").glob("*/embeddings.npy"))) == 3, (
        "a changed file has features of its own"
    )


CONTRADICTIONS = {
    "nothing to train": (["--train.mode", "head"], "model.embedding_size is empty"),
    "head and masks": ([*HEAD, "--sparsify.granularity", "weight"], "set sparsify.granularity none"),
    "head and checkpointing": ([*HEAD, "--model.checkpointing", "true"], "leave out model.checkpointing"),
    "head and layer decay": ([*HEAD, "--optim.layer_decay", "0.7"], "optim.layer_decay"),
    "masks and the best epoch": (
        ["--sparsify.granularity", "weight", "--train.select", "best", "--data.val_fold", "0"],
        "use 'last'",
    ),
    "masks and a running mean": (["--sparsify.granularity", "weight", "--train.ema", "0.9"], "train.ema"),
    "no seeds": (["--seeds", "0"], "--seeds must be at least 1"),
    "seeds that are no number": (["--seeds", "three"], "--seeds: expected a whole number, found 'three'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS, ids=lambda name: name.replace(" ", "_"))
def test_contradictions_are_refused(
    name: str, photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    more, message = CONTRADICTIONS[name]
    assert message in fails(train.main, [*SMALL, "--data.root", str(photo_folder()), *more], capsys)
    assert not Path("runs").exists()


def test_masks_close_weights_of_the_backbone(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.epochs", "3", "--optim.lr", "1e-2"]
    words += ["--sparsify.granularity", "weight", "--sparsify.mask_initial_value", "0.02", "--sparsify.mask_lr", "0.05"]
    assert train.main([*words, "--run.dir", "out"]) == 0
    records = [record for record in read_metrics(Path("out/metrics.jsonl")) if "density" in record]
    assert [record["temperature"] for record in records] == pytest.approx([1, 200**0.5, 200], rel=1e-4)
    assert 0 < records[-1]["density"] < 1
    assert "lr/masks" in records[-1]
    model = load_file("out/model.safetensors")
    assert not any("scores" in name for name in model), "the saved network is a plain one"
    kernels = [value for name, value in model.items() if name.startswith("backbone.") and value.ndim == 4]
    zeros = sum(int((kernel == 0).sum()) for kernel in kernels) / sum(kernel.numel() for kernel in kernels)
    assert 1 - zeros == pytest.approx(records[-1]["density"], abs=0.02)
    assert eval_retrieval.main(["--checkpoint", "out", "--json", "again.json"]) == 0
    after, again = json.loads(Path("out/report.json").read_text())["after"], json.loads(Path("again.json").read_text())
    assert after["map@r"] == again["map@r"]


@pytest.mark.slow
def test_several_seeds_report_mean_and_deviation(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    root = photo_folder()
    words = [*SMALL, *HEAD, "--data.root", str(root), "--run.dir", "out", "--run.seed", "3"]
    assert train.main([*words, "--seeds", "2"]) == 0
    assert "mean and standard deviation" in capsys.readouterr().out
    scores = [json.loads(Path(f"out/seed_{seed}/report.json").read_text())["after"]["map@r"] for seed in (3, 4)]
    found = json.loads(Path("out/seeds.json").read_text())
    assert found["seeds"] == [3, 4]
    assert found["mean"]["map@r"] == pytest.approx(sum(scores) / 2)
    assert found["std"]["map@r"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert "--overwrite" in fails(train.main, [*words, "--seeds", "2"], capsys)

    first = Path("out/seed_3/report.json").stat().st_mtime_ns
    assert train.main([*words, "--seeds", "3", "--resume"]) == 0
    assert Path("out/seed_3/report.json").stat().st_mtime_ns == first, "finished seeds are not trained again"
    assert json.loads(Path("out/seeds.json").read_text())["seeds"] == [3, 4, 5]
    summary = Path("out/seeds.json").read_bytes()
    assert train.main([*words, "--seeds", "2", "--resume"]) == 0
    assert Path("out/seeds.json").read_bytes() == summary, "the seeds beyond those asked for stay in the summary"
    assert "3 seeds, in percent" in capsys.readouterr().out
    one = [*SMALL, *HEAD, "--data.root", str(root), "--run.dir", "one", "--run.seed", "4"]
    assert train.main(one) == 0
    assert Path("one/model.safetensors").read_bytes() == Path("out/seed_4/model.safetensors").read_bytes()


def test_a_finished_run_can_be_inspected_and_compared(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.keep", "3", "--train.save_every", "2"]
    assert train.main([*words, "--run.dir", "one", "--eval.page", "true", "--eval.ks", "[1, 3]"]) == 0
    printed = capsys.readouterr().out
    for part in ("Recall@3", "6 steps in", "loss ", "alpha 0.4", "cosine of nearest centers", "one/report.html"):
        assert part in printed
    page = Path("one/report.html").read_text()
    assert "<h1>one on folder</h1>" in page
    assert "kind_" in page
    assert Path("one/curves.png").read_bytes().startswith(b"\x89PNG")
    last = read_metrics(Path("one/metrics.jsonl"))[-1]
    assert -1 <= last["center_similarity"] <= 1

    # Saved after steps 2, 3 (an epoch), 4, 6 (also an epoch): the last three are kept, the newest is the state itself.
    kept = sorted(path.name for path in Path("one/states").iterdir())
    assert kept == ["000000003.safetensors", "000000004.safetensors", "000000006.safetensors"]
    assert load_state(Path("one/states") / kept[0])["train"]["step"] == 3
    assert Path("one/state.safetensors").read_bytes() == (Path("one/states") / kept[-1]).read_bytes()

    assert train.main([*words, "--run.dir", "two", "--run.seed", "1", "--eval.ks", "[1, 3]"]) == 0
    assert not Path("two/report.html").exists()
    capsys.readouterr()
    assert compare.main(["one", "two", "--bootstrap", "50"]) == 0
    assert "minus one, points with 95% interval" in capsys.readouterr().out
    assert train.main([*words, "--run.dir", "one", "--resume"]) == 0
    again = capsys.readouterr().out
    assert "one is finished" in again
    assert "6 steps in" in again


MASKS = [
    "--sparsify.granularity",
    "channel",
    "--sparsify.mask_initial_value",
    "0.02",
    "--sparsify.mask_lr",
    "0.05",
    "--loss.centers",
    "random",
]


@pytest.mark.parametrize(
    "mode", [["--train.ema", "0.9"], HEAD, pytest.param(MASKS, marks=pytest.mark.slow)], ids=["mean", "head", "masks"]
)
def test_an_earlier_state_resumes_to_the_same_end(photo_folder: Callable[..., Path], mode: list[str]) -> None:
    words = [*SMALL, *mode, "--data.root", str(photo_folder()), "--train.keep", "9", "--train.save_every", "2"]
    words += ["--run.dir", "a"]
    assert train.main(words) == 0
    end = Path("a/model.safetensors").read_bytes()
    losses = [record["loss"] for record in read_metrics(Path("a/metrics.jsonl"))]
    Path("a/state.safetensors").write_bytes(Path("a/states/000000004.safetensors").read_bytes())
    Path("a/report.json").unlink()
    Path("a/model.safetensors").unlink()
    assert train.main([*words, "--resume"]) == 0
    assert Path("a/model.safetensors").read_bytes() == end
    assert [record["loss"] for record in read_metrics(Path("a/metrics.jsonl"))] == losses
