"""Training and evaluation commands in miniature: from the command line to the report, and every known mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hgsl.cli import eval_retrieval, train
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.loop import state
from hgsl.engine.run import TrainingRun
from tests.helpers import TINY, fails

WORDS = [*TINY, "--train.epochs", "2", "--train.batch_size", "4", "--eval.page", "false"]
ON_FOLDER = ["--config", "configs/folder.yaml", *WORDS, "--model.freeze", "none", "--loss.top_k", "2"]
SCORES = ("recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "precision@1")


@pytest.fixture(autouse=True)
def _in_clone_like_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary working directory with configs/ in it, as in a clone."""
    (tmp_path / "configs").symlink_to(Path(train.__file__).parents[1] / "configs")
    monkeypatch.chdir(tmp_path)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_quickstart_in_miniature(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--data.options.num_classes", "8", "--data.options.images_per_class", "4", "--loss.top_k", "2"]
    assert train.main([*words, "--model.freeze", "none"]) == 0
    printed = capsys.readouterr().out
    for part in ("4 classes", "before training", "after training", "Recall@1", "MAP@R", "run folder: runs/quickstart"):
        assert part in printed
    run = Path("runs/quickstart")
    report = json.loads((run / "report.json").read_text())
    for moment in ("before", "after"):
        assert all(0 <= report[moment][key] <= 1 for key in SCORES)
        assert report[moment]["num_queries"] == report[moment]["num_gallery"] == 16
    assert report["after"]["protocol"] == "zero-shot"
    assert len(report["after"]["split_hash"]) == 16
    assert report["seed"] == 0
    assert report["versions"]["torch"] == version("torch")
    expected = {"config.yaml", "model.safetensors", "model.json", "metrics.jsonl", "report.json", "environment.json"}
    assert expected < tree(run)
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {"loss", "grad_norm", "images_per_second", "lr/backbone", "lr/centers"} < set(records[0])
    assert any(name.startswith("tensorboard/events") for name in tree(run))


def test_evaluation_repeats_the_end_of_training(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    root = str(photo_folder())
    assert train.main([*ON_FOLDER, "--data.root", root, "--run.dir", "out"]) == 0
    end_of_training = capsys.readouterr().out
    assert eval_retrieval.main(["--checkpoint", "out", "--data.root", root, "--json", "scores/report.json"]) == 0
    after = json.loads(Path("out/report.json").read_text())["after"]
    scores = json.loads(Path("scores/report.json").read_text())
    assert {key: scores[key] for key in after} == after
    assert (scores["precision"], scores["device"]) == ("float32", "cpu")
    row = capsys.readouterr().out.splitlines()
    numbers = next(line for line in row if line.startswith("out ")).split()[1:]
    assert numbers == next(line for line in end_of_training.splitlines() if line.startswith("after")).split()[2:]


def test_the_summary_of_a_folder_comes_first(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    root = photo_folder(classes=7)
    (root / "kind_00" / "notes.txt").write_text("x")
    (root / "empty").mkdir()
    for number in (1, 2, 3):
        (root / "kind_01" / f"{number:02}.jpg").unlink()
    assert train.main([*ON_FOLDER, "--data.root", str(root)]) == 0
    first = capsys.readouterr().out.split("test_resnet,")[0]
    assert "classes" in first
    assert "kind_00/notes.txt" in first
    assert "empty/" in first
    assert "1 class has a single image" in first
    report = json.loads(Path("runs/folder/report.json").read_text())
    assert report["after"]["num_queries"] + report["after"]["num_skipped"] == report["after"]["num_gallery"]


def test_training_lowers_the_loss(photo_folder: Callable[..., Path]) -> None:
    root = str(photo_folder(classes=6, images=6))
    assert train.main([*ON_FOLDER, "--data.root", root, "--train.epochs", "8", "--run.dir", "out"]) == 0
    losses = [record["loss"] for record in read_metrics(Path("out/metrics.jsonl"))]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_same_seed_same_weights_and_accumulation_is_one_batch(photo_folder: Callable[..., Path]) -> None:
    common = [*ON_FOLDER, "--data.root", str(photo_folder()), "--model.freeze", "batch_norm", "--loss.both_sides", "0"]
    for name, more in {
        "a": [],
        "b": ["--data.workers", "2"],
        "c": ["--train.accumulate", "2"],
        "d": ["--run.seed", "1"],
    }.items():
        assert train.main([*common, "--run.dir", name, *more]) == 0
    a, b, c, d = (load_file(f"{name}/model.safetensors") for name in "abcd")
    assert all(torch.equal(a[key], b[key]) for key in a)
    for key in a:
        torch.testing.assert_close(a[key], c[key], atol=2e-4, rtol=1e-3)
    assert any(not torch.equal(a[key], d[key]) for key in a)


MISTAKES = {
    "a missing root": (["--data.root", "nowhere"], "nowhere does not exist"),
    "an unknown flag": (["--train.epoch", "3"], "did you mean '--train.epochs'"),
    "an unknown data set": (["--data.name", "floder"], "did you mean 'folder'"),
    "an unknown backbone": (["--model.backbone", "test_resnt"], "did you mean 'test_resnet'"),
    "a missing weights file": (["--model.weights", "w.pth"], "no weights file w.pth"),
    "a size the backbone refuses": (["--model.backbone", "test_vit", "--data.image_size", "50"], "data.image_size"),
    "a negative seed": (["--run.seed", "-1"], "run.seed must lie from 0 to 4294967295, found -1"),
    "a negative seed of the split": (["--data.options.seed", "-1"], "seed cannot be negative"),
    "an unknown option": (["--data.options.sed", "1"], "did you mean 'seed'"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "_"))
def test_a_mistake_is_one_line_and_writes_nothing(
    mistake: str, photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    more, message = MISTAKES[mistake]
    words = [*ON_FOLDER, "--data.root", str(photo_folder()), *more]
    assert message in fails(train.main, words, capsys)
    assert not Path("runs").exists()


def test_too_few_classes(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    message = fails(train.main, [*ON_FOLDER, "--data.root", str(photo_folder(classes=3))], capsys)
    assert "3 classes" in message
    assert "needs 4" in message


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image_is_named(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture, workers: str
) -> None:
    root = photo_folder(size=200)
    for path in root.glob("*/02.jpg"):
        path.write_bytes(path.read_bytes()[:2000])
    message = fails(train.main, [*ON_FOLDER, "--data.root", str(root), "--data.workers", workers], capsys)
    assert "02.jpg" in message
    assert "truncated" in message


@pytest.mark.slow
def test_an_infinite_loss_stops_and_records_the_images(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*ON_FOLDER, "--data.root", str(photo_folder()), "--run.dir", "out"]
    message = fails(train.main, [*words, "--optim.lr", "1e38", "--optim.name", "sgd", "--eval.before", "false"], capsys)
    assert "nonfinite_batch.txt" in message
    assert "lower optim.lr" in message
    listed = Path("out/nonfinite_batch.txt").read_text().splitlines()
    assert len(listed) == 4
    assert all(name.endswith(".jpg") for name in listed)
    assert not Path("out/model.safetensors").exists()


def test_an_existing_run_is_refused_then_replaced(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*ON_FOLDER, "--data.root", str(photo_folder()), "--run.dir", "out"]
    assert train.main(words) == 0
    Path("out/my_notes.txt").write_text("mine")
    before = Path("out/report.json").read_bytes()
    assert "--overwrite" in fails(train.main, words, capsys)
    assert Path("out/report.json").read_bytes() == before
    assert train.main([*words, "--overwrite"]) == 0
    assert Path("out/my_notes.txt").read_text() == "mine"
    assert "one of the two" in fails(train.main, [*words, "--overwrite", "--resume"], capsys)


def test_a_folder_of_something_else_is_never_overwritten(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    root = photo_folder()
    message = fails(train.main, [*ON_FOLDER, "--data.root", str(root), "--run.dir", str(root), "--overwrite"], capsys)
    assert "is no run folder" in message
    assert len(tree(root)) == 24


def test_evaluation_mistakes(tmp_path: Path, photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    def refused(*words: str) -> str:
        return fails(eval_retrieval.main, list(words), capsys)

    assert "nothing to measure: give --checkpoint RUN" in refused()
    assert "--checkpoint nowhere does not exist" in refused("--checkpoint", "nowhere")
    root = str(photo_folder())
    assert train.main([*ON_FOLDER, "--data.root", root, "--run.dir", "out"]) == 0
    assert "did you mean '--json'" in refused("--checkpoint", "out", "--jsn", "x")
    weights = Path("out/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in refused("--checkpoint", "out")
    weights.unlink()
    assert "model.safetensors" in refused("--checkpoint", "out")


def python(*words: str, **options: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from hgsl.cli.train import main; raise SystemExit(main())", *words]
    # Background jobs of a shell ignore Ctrl-C, and their child processes inherit that.
    return subprocess.Popen(
        command, env=environment, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options
    )


@pytest.mark.slow
def test_resume_after_sigterm_ends_with_the_same_bits(photo_folder: Callable[..., Path]) -> None:
    """Stopped in the middle of an epoch, with warm optimizer, augmentation and batch norm in motion."""
    words = [*ON_FOLDER, "--data.root", str(photo_folder(images=8)), "--train.epochs", "9"]
    assert train.main([*words, "--run.dir", "whole"]) == 0
    process = python(*words, "--run.dir", "cut", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 2/9"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "--resume continues from it" in errors
    assert "Traceback" not in errors
    assert not Path("cut/model.safetensors").exists()
    assert train.main([*words, "--run.dir", "cut", "--resume"]) == 0
    whole, cut = load_file("whole/model.safetensors"), load_file("cut/model.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    records = [read_metrics(Path(f"{name}/metrics.jsonl")) for name in ("whole", "cut")]
    assert [(r["step"], r["loss"]) for r in records[0]] == [(r["step"], r["loss"]) for r in records[1]]
    reports = [json.loads(Path(f"{name}/report.json").read_text()) for name in ("whole", "cut")]
    assert reports[0]["before"] == reports[1]["before"]
    assert reports[0]["after"] == reports[1]["after"]


def stopped_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leaves in ``out`` a run that was stopped at the end of its only epoch; returns its arguments."""
    words = [*ON_FOLDER, "--data.root", str(root), "--train.epochs", "1", "--run.dir", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_after_epoch", lambda *given: os.kill(os.getpid(), signal.SIGINT) or {})
        assert train.main(words) == 128 + signal.SIGINT
    return words


def test_a_run_resumes_only_with_its_own_settings_and_images(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = photo_folder()
    words = stopped_run(root, monkeypatch)
    capsys.readouterr()
    other = fails(train.main, [*words, "--resume", "--optim.lr", "0.5"], capsys)
    assert "optim.lr is 0.5, and the run in out began with 0.00015" in other
    one = sorted(root.glob("*/*"))[0]
    shutil.copy(one, one.with_stem("more"))
    content = one.read_bytes()
    one.write_bytes(content + b" ")
    changed = fails(train.main, [*words, "--resume"], capsys)
    assert "image is changed since the training: kind_00/00.jpg: restore them" in changed
    one.unlink()
    assert "image is gone since the training: kind_00/00.jpg" in fails(train.main, [*words, "--resume"], capsys)
    one.write_bytes(content)
    root = root.rename(root.with_name("elsewhere"))
    assert train.main([*words, "--resume", "--data.root", str(root), "--train.save_every", "7"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("note: 1 image is new since the training and left out: kind_00/more.jpg")
    assert printed.count("3 classes       12 images") == 2


def test_ctrl_c_after_the_last_step_stops_the_run(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = stopped_run(photo_folder(), monkeypatch)
    assert "--resume continues from it" in capsys.readouterr().err
    assert not Path("out/report.json").exists()
    assert train.main([*words, "--resume"]) == 0
    assert Path("out/report.json").exists()


def test_a_step_that_a_float16_scaler_skips_has_no_norm_to_log(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-30)  # the first step alone overflows
    monkeypatch.setattr(state, "GradScaler", lambda *_, **__: scaler)
    assert train.main([*ON_FOLDER, "--data.root", str(photo_folder()), "--run.dir", "out"]) == 0
    records = read_metrics(Path("out/metrics.jsonl"))
    assert ["grad_norm" in record for record in records] == [False] + [True] * (len(records) - 1)
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


@pytest.mark.slow
def test_ctrl_c_before_training_is_one_line(photo_folder: Callable[..., Path]) -> None:
    process = python(*[*ON_FOLDER, "--data.root", str(photo_folder())], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_hard_set_larger_than_the_classes_is_all_of_them(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*ON_FOLDER, "--data.root", str(photo_folder())]
    assert train.main([*words, "--loss.top_k", "99", "--run.dir", "a"]) == 0
    assert "loss.top_k 99 is not below the 3 training classes: all of them are used" in capsys.readouterr().out
    assert train.main([*words, "--loss.top_k", "3", "--run.dir", "b"]) == 0
    a, b = load_file("a/model.safetensors"), load_file("b/model.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_larger_than_the_data_is_all_of_it(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*ON_FOLDER, "--data.root", str(photo_folder()), "--run.dir", "a", "--train.batch_size", "500"]
    assert train.main(words) == 0
    assert "train.batch_size 500 is more than the 12 training images: a step takes 12" in capsys.readouterr().out


def test_images_may_be_of_any_mode(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder()
    Image.new("L", (40, 50), 90).save(root / "kind_00" / "gray.png")
    Image.new("RGBA", (40, 50), (9, 9, 9, 0)).save(root / "kind_01" / "clear.png")
    Image.new("CMYK", (40, 50)).save(root / "kind_02" / "print.jpg")
    assert train.main([*ON_FOLDER, "--data.root", str(root)]) == 0
