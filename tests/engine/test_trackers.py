"""Trackers: what reaches them, also of a resumed run, and that none can end a training."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hgsl.cli import train
from hgsl.common import extras
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.trackers import TRACKERS
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun
from hgsl.engine.trackers.tracking import Tracking
from tests.helpers import SMALL, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")


class Recorder:
    """Records what a tracker is told."""

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.records: list[Record] = []
        self.files: list[str] = []
        self.ends: list[Scores | None] = []

    def start(self, run: TrackedRun) -> str | None:
        self.runs.append(run)
        return run.key or "key 7"

    def log(self, records: Sequence[Record]) -> None:
        self.records += records

    def artifact(self, path: Path) -> None:
        self.files.append(path.name)

    def finish(self, scores: Scores | None) -> None:
        self.ends.append(scores)


@pytest.fixture
def words(photo_folder: Callable[..., Path]) -> list[str]:
    return [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(TRACKERS, "recorder", lambda: recorder)
    return recorder


def report() -> dict[str, Any]:
    return json.loads(Path("out/report.json").read_text())


def test_a_tracker_gets_settings_numbers_files_and_scores(words: list[str], recorder: Recorder) -> None:
    words += ["--run.trackers", "[recorder]", "--eval.page", "true", "--train.keep", "9"]
    assert train.main(words) == 0
    (run,) = recorder.runs
    assert run.key is None
    assert run.config["train"]["batch_size"] == 4
    assert len(run.facts["split_hash"]) == 16
    assert run.facts["start"]["date"]
    lines = read_metrics(Path("out/metrics.jsonl"))
    assert [{"step": step, **values} for step, values in recorder.records] == lines
    assert {"config.yaml", "report.json", "report.html", "curves.png", "split.jsonl.gz"} <= set(recorder.files)
    (scores,) = recorder.ends
    assert scores is not None
    assert list(scores) == ["after"]
    assert scores["after"]["map@r"] == report()["after"]["map@r"]
    assert not Path("out/tensorboard").exists()

    # Resumed in its middle: the same run goes on, after the step of the state.
    state = sorted(Path("out/states").iterdir())[0]
    Path("out/state.safetensors").write_bytes(state.read_bytes())
    Path("out/report.json").unlink()
    recorder.records.clear()
    assert train.main([*words, "--resume"]) == 0
    assert recorder.runs[1].key == "key 7"
    assert recorder.runs[1].step == int(state.stem)
    assert recorder.records[0][0] == int(state.stem) + 1


def test_an_interrupted_run_ends_its_tracking(words: list[str], recorder: Recorder) -> None:
    words += ["--run.trackers", "[recorder]", "--optim.lr", "1e38", "--optim.name", "sgd", "--optim.warmup", "0"]
    assert train.main(words) == 2
    assert recorder.ends == [None]
    assert recorder.files == []


def test_a_tracker_that_fails_is_left_out_with_one_warning(words: list[str], recorder: Recorder) -> None:
    def broken(records: Sequence[Record]) -> None:
        raise ConnectionError("no route to host\nmore")

    recorder.log = broken  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="run.trackers recorder failed") as warned:
        assert train.main([*words, "--run.trackers", "[recorder, tensorboard]", "--train.save_every", "1"]) == 0
    messages = [str(entry.message) for entry in warned if "recorder" in str(entry.message)]
    assert len(messages) == 1
    assert "(no route to host)" in messages[0]
    assert recorder.files == []
    assert report()["after"]["map@r"] > 0
    assert EventAccumulator("out/tensorboard").Reload().Scalars("loss")


def test_records_are_passed_on_in_batches() -> None:
    recorder = Recorder()
    calls: list[int] = []
    recorder.log = lambda records: calls.append(len(records))  # type: ignore[method-assign]
    tracking = Tracking({"recorder": recorder})
    for step in range(120):
        tracking.write(step, {"loss": 1.0})
    tracking.flush()
    tracking.flush()
    assert calls == [50, 50, 20]


def test_a_tracker_that_cannot_start_is_refused(
    words: list[str], recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(run: TrackedRun) -> str | None:
        raise ConnectionError("no login")

    recorder.start = refuse  # type: ignore[method-assign]
    first = Recorder()
    monkeypatch.setitem(TRACKERS, "first", lambda: first)
    message = fails(train.main, [*words, "--run.trackers", "[first, recorder]"], capsys)
    assert "run.trackers recorder cannot be started (no login)" in message
    assert first.ends == [None], "the tracking that was started is ended"
    assert "did you mean 'wandb'" in fails(train.main, [*words, "--run.trackers", "[wanbd]"], capsys)
    assert "names one twice" in fails(train.main, [*words, "--run.trackers", "[wandb, wandb]"], capsys)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    message = fails(train.main, [*words, "--run.trackers", "[wandb]"], capsys)
    assert message == "error: run.trackers wandb needs wandb: pip install 'hgsl[wandb]'\n"


def test_tensorboard_shows_settings_scores_and_curves(words: list[str]) -> None:
    assert train.main([*words, "--train.epochs", "1", "--eval.page", "true"]) == 0
    board = EventAccumulator("out/tensorboard").Reload()
    assert {"loss", "lr/backbone"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["curves"]
    texts = {
        name: board.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("config", "facts", "scores")
    }
    assert "batch_size: 4" in texts["config"]
    assert "split_hash: " in texts["facts"]
    assert f"{report()['after']['map@r']:.4f}" in texts["scores"]


@pytest.mark.slow
def test_wandb_writes_everything_offline(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words += ["--run.trackers", "[wandb]", "--eval.page", "true", "--train.keep", "9"]
    assert train.main(words) == 0
    wandb.teardown()  # its own process has then written the file to its end
    (folder,) = Path("out/wandb").glob("offline-run-*")
    content = wandb_records(folder)
    assert json.loads(content["config"]["train"])["batch_size"] == 4
    assert len(json.loads(content["config"]["facts"])["split_hash"]) == 16
    steps = [int(row["_step"]) for row in content["history"] if "loss" in row]
    assert steps == [line["step"] for line in read_metrics(Path("out/metrics.jsonl"))]
    assert float(content["summary"]["after/map@r"]) == pytest.approx(report()["after"]["map@r"])
    assert {"scores", "curves", "report"} <= {name.partition("/")[0] for row in content["history"] for name in row}
    assert {"report.html", "curves.png", "config.yaml"} <= set(os.listdir(folder / "files/run_folder"))

    key = json.loads(Path("out/trackers.json").read_text())["wandb"]
    Path("out/state.safetensors").write_bytes(sorted(Path("out/states").iterdir())[0].read_bytes())
    Path("out/report.json").unlink()
    assert train.main([*words, "--resume"]) == 0
    assert all(path.name.endswith(key) for path in Path("out/wandb").glob("offline-run-*"))


def wandb_records(folder: Path) -> dict[str, Any]:
    """The settings, rows and summary in the file of a run that was kept offline."""
    from wandb.proto import wandb_internal_pb2

    content: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    (path,) = folder.glob("run-*.wandb")
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        part = record.WhichOneof("record_type")
        if part == "run":
            content["config"] |= {item.key: item.value_json for item in record.run.config.update}
        elif part == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            content["history"].append(row)
        elif part == "summary":
            content["summary"] |= {
                item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update
            }
    return content


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, of which records fill several."""
    position, parts = 7, []  # after the header of the file
    while position < len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, position)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if part in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_mlflow_writes_everything_to_its_store(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/runs.db")
    words += ["--run.trackers", "[mlflow]", "--eval.page", "true", "--train.keep", "9"]
    assert train.main(words) == 0
    key = json.loads(Path("out/trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(key)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "out"
    assert run.data.params["train.batch_size"] == "4"
    assert len(run.data.params["split_hash"]) == 16
    assert run.data.metrics["after/map_at_r"] == pytest.approx(report()["after"]["map@r"])
    lines = read_metrics(Path("out/metrics.jsonl"))
    logged = [(metric.step, metric.value) for metric in client.get_metric_history(key, "loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    files = {entry.path for entry in client.list_artifacts(key)}
    assert {"scores.md", "report.html", "curves.png", "config.yaml", "report.json"} <= files

    Path("out/state.safetensors").write_bytes(sorted(Path("out/states").iterdir())[0].read_bytes())
    Path("out/report.json").unlink()
    assert train.main([*words, "--resume"]) == 0
    assert len(client.search_runs(["1"])) == 1
    assert client.get_run(key).info.status == "FINISHED"


@pytest.mark.slow
def test_trackio_writes_to_its_database(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").absolute()))
    pytest.importorskip("trackio")
    words += ["--run.trackers", "[trackio]", "--eval.page", "true"]
    assert train.main(words) == 0
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("hgsl")
    assert name == json.loads(Path("out/trackers.json").read_text())["trackio"]
    rows = SQLiteStorage.get_logs("hgsl", name)
    assert [row["step"] for row in rows if "loss" in row] == [
        line["step"] for line in read_metrics(Path("out/metrics.jsonl"))
    ]
    (score,) = [row["after/map@r"] for row in rows if "after/map@r" in row]
    assert score == pytest.approx(report()["after"]["map@r"])
