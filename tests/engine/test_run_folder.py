"""Run folder: when it is free, what overwriting removes, what resuming requires."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hgsl.cli import train
from hgsl.config import Config, DataConfig, EvalConfig, LossConfig, RunConfig, TrainConfig
from hgsl.engine.folder import resume_checks, run_folder
from hgsl.engine.folder.logging import read_metrics
from tests.helpers import SMALL

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(name="ArcFaceLoss", options={"margin": 5.0}),
        LossConfig(top_k_schedule={0: None, 1: 2}),
        LossConfig(alpha=0.2),
    ],
    ids=["options", "schedule", "alpha"],
)
def test_settings_must_be_the_same_to_resume(loss: LossConfig) -> None:
    default, other = Config(), Config(loss=loss)
    for first, second in ((default, other), (other, default)):
        Path(run_folder.CONFIG).write_text(first.to_yaml())
        resume_checks.check_same(Path(), first)
        with pytest.raises(ValueError, match=r"loss\..* and the run in \. began with"):
            resume_checks.check_same(Path(), second)


def test_a_setting_that_the_run_lacked_counts_as_another() -> None:
    Path(run_folder.CONFIG).write_text("sparsify: null")
    with pytest.raises(ValueError, match=r"and the run in \. began with not given"):
        resume_checks.check_same(Path(), Config())


def test_device_and_workers_may_change_on_resuming() -> None:
    Path(run_folder.CONFIG).write_text(Config(run=RunConfig(device="cpu"), data=DataConfig(workers=0)).to_yaml())
    resume_checks.check_same(Path(), Config(run=RunConfig(device="cuda"), data=DataConfig(workers=4)))


def test_a_resumed_run_is_evaluated_as_before_training() -> None:
    """Scores before training with mirrored images, and after it without them, would look like a loss of training."""
    Path(run_folder.CONFIG).write_text(Config(eval=EvalConfig(flip=True)).to_yaml())
    for other in (EvalConfig(), EvalConfig(flip=True, scales=[1.0, 1.25]), EvalConfig(flip=True, image_size="1.2x")):
        with pytest.raises(ValueError, match=r"eval\..* and the run in \. began with"):
            resume_checks.check_same(Path(), Config(eval=other))
    resume_checks.check_same(Path(), Config(eval=EvalConfig(flip=True, ks=[1, 10], page=False, batch_size=7)))


@pytest.mark.parametrize(("select", "may_change"), [("last", True), ("best", False)])
def test_the_evaluated_epochs_may_change_unless_one_of_them_is_chosen(select: str, may_change: bool) -> None:
    train = TrainConfig(select=select)
    Path(run_folder.CONFIG).write_text(Config(train=train).to_yaml())
    assert (resume_checks.difference(Path(), Config(train=train, eval=EvalConfig(every=2))) is None) == may_change


def test_partial_files_of_a_killed_process_are_removed() -> None:
    folder = Path("run")
    (folder / "states").mkdir(parents=True)
    half = [folder / ".state.0123abcd.partial.safetensors", folder / "states/.000000003.0123abcd.partial.safetensors"]
    half += [folder / ".tmpAVvdbv", folder / "states/.tmp01xyZA"]  # of safetensors, within its own write
    for path in [*half, folder / ".mine"]:
        path.write_bytes(b"x")
    with run_folder.locked(folder):
        assert not any(path.exists() for path in half)
        assert (folder / ".mine").is_file()


def test_a_run_that_took_the_folder_meanwhile_is_not_removed() -> None:
    folder = Path("run")
    folder.mkdir()
    for name in (".config.0123abcd.partial.yaml", ".tmpAVvdbv"):  # of a process that was killed at its start
        (folder / name).write_text("")
    run_folder.check_free(folder, overwrite=False)
    with run_folder.locked(folder):
        run_folder.create(folder, Config(), {}, overwrite=False)
        (folder / run_folder.STATE).write_bytes(b"x")
        with pytest.raises(ValueError, match="--overwrite replaces it"):
            run_folder.create(folder, Config(run=RunConfig(seed=2)), {}, overwrite=False)
        assert (folder / run_folder.CONFIG).read_text() == Config().to_yaml()


@pytest.mark.parametrize("seeds", [False, True])
def test_a_run_that_saved_nothing_leaves_a_free_folder(seeds: bool) -> None:
    folder = Path("run")
    run_folder.create(folder, Config(), {}, overwrite=False)
    (folder / run_folder.METRICS).write_text('{"step": 1}\n')
    inner = folder / "seed_0" if seeds else folder
    if seeds:
        run_folder.create(inner, Config(), {}, overwrite=False)
    resume_checks.check(folder, Config(), overwrite=False, resume=False)
    resume_checks.check(folder, Config(), overwrite=False, resume=True)
    for name in ("state.safetensors", "model.safetensors", "notes.txt"):
        (inner / name).write_bytes(b"x")
        with pytest.raises(ValueError, match="--overwrite replaces it"):
            resume_checks.check(folder, Config(), overwrite=False, resume=False)
        (inner / name).unlink()
    run_folder.create(folder, Config(), {}, overwrite=False)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "environment.json"}


def test_ctrl_c_before_the_first_save_blocks_neither_resume_nor_a_plain_run(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]
    assert train.main(words) == 0
    expected = Path("out/model.safetensors").read_bytes()
    for flags in (["--resume"], []):
        for path in Path("out").iterdir():
            if path.name not in ("config.yaml", "environment.json", "metrics.jsonl", "tensorboard"):
                path.unlink()
        assert train.main([*words, *flags]) == 0
        assert Path("out/model.safetensors").read_bytes() == expected
        assert [record["step"] for record in read_metrics(Path("out/metrics.jsonl"))] == list(range(1, 7))


def test_a_disk_without_room_for_the_state_is_refused_before_training(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    assert train.main([*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]) == 2
    error = capsys.readouterr().err
    assert "for the state of this run: No space left on device (1,048,576 bytes are free, 1" in error
    assert error.endswith("are needed): free some space, or name another folder with --run.dir\n")
    assert not Path("out/config.yaml").exists()


def test_every_precision_of_a_resumed_run_is_reported(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.keep", "2"]
    assert train.main(words) == 0
    assert json.loads(Path("out/report.json").read_text())["precision"] == "float32"
    first_epoch = sorted(Path("out/states").iterdir())[0]
    Path("out/state.safetensors").write_bytes(first_epoch.read_bytes())
    Path("out/report.json").unlink()
    assert train.main([*words, "--run.precision", "bfloat16", "--resume"]) == 0
    assert json.loads(Path("out/report.json").read_text())["precision"] == "float32, then bfloat16"


def test_overwriting_removes_the_runs_of_earlier_seeds() -> None:
    folder = Path("run")
    run_folder.create(folder, Config(), {}, overwrite=False)
    earlier = ("seed_2/config.yaml", "seeds.json", "no_match.json", "compact.safetensors")
    for name in (*earlier, "seed_mine/notes.txt", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    run_folder.create(folder, Config(), {}, overwrite=True)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "environment.json", "notes.txt", "seed_mine/notes.txt"}


def test_an_overwriting_that_is_killed_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("run")
    run_folder.create(folder, Config(), {}, overwrite=False)
    for name in (run_folder.STATE, "notes.txt"):
        (folder / name).write_text("x")
    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_folder.create(folder, Config(), {}, overwrite=True)
    run_folder.create(folder, Config(run=RunConfig(seed=2)), {}, overwrite=True)
    assert (folder / run_folder.CONFIG).read_text() == Config(run=RunConfig(seed=2)).to_yaml()


def test_a_resumed_run_logs_every_step_once(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.save_every", "1", "--train.keep", "3"]
    assert train.main([*words, "--run.dir", "whole"]) == 0
    kept = sorted(Path("whole/states").iterdir())[0]
    step = int(kept.stem)
    Path("whole/state.safetensors").write_bytes(kept.read_bytes())
    Path("whole/report.json").unlink()
    assert train.main([*words, "--run.dir", "whole", "--resume"]) == 0
    board = EventAccumulator("whole/tensorboard")
    board.Reload()
    logged = [event.step for event in board.Scalars("loss")]
    assert logged == list(range(1, logged[-1] + 1))
    assert step < logged[-1]
    assert {"lr/backbone", "grad_norm", "alpha", "center_similarity"} <= set(board.Tags()["scalars"])


def test_a_run_that_diverges_in_its_last_step_is_reported(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--optim.clip", "null"]
    words += ["--train.epochs", "1", "--train.batch_size", "48", "--optim.lr", "1e30", "--optim.warmup", "0"]
    assert train.main(words) == 2
    assert "its training has diverged" in capsys.readouterr().err


def test_stored_and_recomputed_activations_train_alike(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.epochs", "1"]
    losses = []
    for checkpointing in ("false", "true"):
        more = ["--model.freeze", "batch_norm", "--model.checkpointing", checkpointing]
        assert train.main([*words, *more, "--run.dir", checkpointing]) == 0
        losses.append(Path(checkpointing, "model.safetensors").read_bytes())
    assert losses[0] == losses[1]
    assert train.main([*words, "--model.freeze", "none", "--model.checkpointing", "true", "--run.dir", "no"]) == 2
    assert "batch norms would count every image twice" in capsys.readouterr().err


def test_a_run_that_is_resumed_with_other_ks_draws_its_curves(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--eval.before", "true"]
    assert train.main(words) == 0
    Path("out/report.json").unlink()
    assert train.main([*words, "--resume", "--eval.ks", "[1,3]", "--eval.page", "true"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert ("recall@3" in report["before"], "recall@3" in report["after"]) == (False, True)
    assert Path("out/curves.png").is_file()
