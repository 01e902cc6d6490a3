"""Every flag of the evaluation command: it changes the result, or it is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.cli import eval_retrieval
from hgsl.cli._eval_flags import eval_parser
from hgsl.cli._settings import build_parser, parse
from hgsl.engine.evaluation import settings as evaluation_settings
from hgsl.evaluation.parts.part import write_part
from hgsl.models import create_embedder, save_embedder
from tests.helpers import TINY, clusters, fails

Words = dict[str, list[str]]
BASE = ["--data.test_share", "0.25", "--data.val_share", "0.34", "--no-match", "0.5"]
# Flag -> its words; another value than in BASE or the run.
RESULTS: Words = {
    "--data.name": ["synthetic", "--data.options.num_classes", "8", "--data.options.images_per_class", "3"],
    "--data.root": ["other.csv"],
    "--data.options": ["{group_column: camera}", "--ignore-same-group"],
    "--data.test_share": ["0.5"],
    "--data.val_share": ["0.5"],
    "--data.image_size": ["48"],
    "--data.crop_pct": ["0.5"],
    "--data.crop_to_boxes": ["true"],
    "--eval.image_size": ["48"],
    "--eval.flip": ["true"],
    "--eval.scales": ["[1.0, 1.5]"],
    "--run.precision": ["bfloat16"],
    "--eval.ks": ["[3]"],
    "--k": ["3"],
    "--metric": ["l2"],
    "--index": ["IVF2,Flat"],
    "--ignore-same-group": [],
    "--flip": [],
    "--crops": ["5"],
    "--whiten": ["2"],
    "--query-expansion": ["3"],
    "--augment-gallery": ["2"],
    "--expansion-alpha": ["1"],
    "--rerank": [],
    "--no-match": ["0.3"],
    "--per-class": [],
    "--bootstrap": ["10"],
    "--cluster": [],
}
FILES: Words = {
    "--html": ["p.html"], "--csv": ["p.csv"], "--sheet": ["p.png"], "--curves": ["p.pdf"],
    "--save-embeddings": ["kept"],
}  # fmt: skip
# They change the page: flag -> its words, and how many entries of the page's data come of it.
PAGE: dict[str, tuple[list[str], str, int]] = {"--heat": ([], "heat", 1), "--map-images": (["3"], "map", 3)}
# They decide how it is computed, not what.
RESOURCES: Words = {
    "--max-memory": ["0.5"], "--run.device": ["auto"], "--run.threads": ["2"], "--run.deterministic": ["true"],
    "--data.cache": ["resized"], "--data.workers": ["1"], "--eval.batch_size": ["3"],
}  # fmt: skip
OTHERS = {"--checkpoint", "--model", "--embeddings", "--config", "--json", "--help", "-h", "--print_config"}
CLUSTER = {"--engine", "--address"}
REFUSED: Words = {
    "--data.protocol": ["closed-set"], "--data.val_fold": ["1"], "--run.seed": ["1"], "--run.compile": ["true"],
    "--model.pooling": ["avg"], "--model.embedding_size": ["8"], "--model.weights": ["timm"],
    "--model.output_stride": ["16"], "--model.backbone": ["resnet18"], "--data.recipe": ["resize_random_crop"],
    "--loss.top_k": ["1"], "--optim.lr": ["1"], "--train.epochs": ["1"], "--sparsify.lmbda": ["1"],
    "--data": ["x.yaml"], "--run": ["x.yaml"],
    "--labels": ["l.npy"], "--ids": ["l.npy"], "--groups": ["l.npy"], "--gallery-embeddings": ["e.npy"],
    "--gallery-labels": ["l.npy"], "--gallery-ids": ["l.npy"], "--gallery-groups": ["l.npy"],
    "--training-embeddings": ["e.npy"], "--calibration-embeddings": ["e.npy"], "--calibration-labels": ["l.npy"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained network on a table of boxes and groups, and embeddings in files."""
    folder = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    lines = ["path,label,category,camera,x_1,y_1,x_2,y_2"]
    for number in range(64):
        pixels = generator.integers(0, 255, (48, 56, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,c{number // 8},{number % 2},{number % 4},4,4,{30 + number % 9},40")
    (folder / "list.csv").write_text("\n".join(lines))
    (folder / "other.csv").write_text("\n".join(lines[:-6]))
    words = [*TINY, "--data.name", "csv", "--data.root", str(folder / "list.csv")]
    config = parse(build_parser(""), words)[0]
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(config.to_yaml())
    save_embedder(create_embedder("test_resnet", weights="none", image_size=32), folder / "run")
    for name, array in zip(("e.npy", "l.npy"), clusters(count=40, classes=5), strict=True):
        np.save(folder / name, array)
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert eval_retrieval.main([*words, "--json", "r.json"]) == 0
    report = json.loads(Path("r.json").read_text())
    return report, capsys.readouterr().out


@pytest.fixture(scope="module")
def earlier() -> dict[tuple[str, ...], tuple[dict[str, Any], str]]:
    """The outcomes of the arguments to which tests add a flag; an evaluation of the same run is the same each time."""
    return {}


def replaced(base: list[str], flag: str, values: list[str]) -> list[str]:
    """``base`` with the flag's own value in place of the one it has there."""
    if flag in base:
        position = base.index(flag)
        base = [*base[:position], *base[position + 2 :]]
    return [*base, flag, *values]


def test_every_flag_is_tested() -> None:
    shown = {action.option_strings[0] for action in eval_parser()._actions if action.help != "==SUPPRESS=="}
    assert shown - OTHERS - CLUSTER <= {*RESULTS, *FILES, *PAGE, *RESOURCES, *REFUSED}


def test_the_flags_of_a_cluster(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'hgsl[parquet]'")
    monkeypatch.setattr("hgsl.cli._eval_flags.require", lambda *_: None)  # Ray itself is not needed
    calls = []

    def embed_parts(parts: Any, embedder: Any, folder: Any, record: Any, cluster: Any, progress: bool) -> None:
        calls.append((cluster.address, cluster.device))
        embedder.open(torch.device("cpu"))
        for part in parts:
            write_part(part.path(folder), embedder(part.columns), record)

    monkeypatch.setattr("hgsl.evaluation.parts.dataset.embed_parts", embed_parts)
    base = ["--checkpoint", "run", *BASE]
    before = outcome(base, capsys)[0]
    words = ["--save-embeddings", "parts", "--engine", "ray", "--address", "host:6379"]
    assert outcome([*base, *words], capsys)[0]["recall@1"] == before["recall@1"]
    assert calls == [("host:6379", "cpu")]
    assert outcome([*base, *words], capsys)[0]["recall@1"] == before["recall@1"]
    assert len(calls) == 1  # the embeddings are complete
    for words, message in (
        (["--engine", "ray"], "--engine has no effect without --save-embeddings"),
        (["--save-embeddings", "s", "--address", "auto"], "--address has no effect without --engine"),
        (["--save-embeddings", "s", "--engine", "spark"], "unknown --engine 'spark'"),
    ):
        assert message in fails(eval_retrieval.main, [*base, *words], capsys)


@pytest.mark.parametrize("flag", RESULTS)
def test_a_flag_changes_the_result(
    flag: str, capsys: pytest.CaptureFixture[str], earlier: dict[tuple[str, ...], tuple[dict[str, Any], str]]
) -> None:
    base = ["--checkpoint", "run", *BASE, *(["--query-expansion", "2"] if flag == "--expansion-alpha" else [])]
    if tuple(base) not in earlier:
        earlier[tuple(base)] = outcome(base, capsys)
    before, after = earlier[tuple(base)], outcome(replaced(base, flag, RESULTS[flag]), capsys)
    assert before[0] != after[0]
    if flag.startswith(("--data.image", "--data.crop", "--flip", "--crops", "--whiten", "--run.precision")):
        assert before[0]["no_match"]["threshold"] != after[0]["no_match"]["threshold"]


@pytest.mark.parametrize("flag", FILES)
def test_a_flag_writes_its_file(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = outcome(["--checkpoint", "run", flag, *FILES[flag]], capsys)
    assert f"written: {FILES[flag][0]}" in printed
    assert Path(FILES[flag][0]).exists()


@pytest.mark.parametrize("flag", PAGE)
def test_a_flag_changes_the_page(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, key, least = PAGE[flag]
    data = []
    for name, more in (("plain.html", []), ("changed.html", [flag, *words])):
        outcome(["--checkpoint", "run", "--html", name, *more], capsys)
        text = Path(name).read_text().split('id="data">')[1].split("</script>")[0]
        data.append(json.loads(text)[key])
    assert len(data[1]) >= least
    assert len(data[0]) != len(data[1])
    assert eval_retrieval.main(["--checkpoint", "run", flag, *words]) == 2
    assert "--html" in capsys.readouterr().err


@pytest.mark.parametrize("flag", RESOURCES)
def test_a_flag_decides_how_it_is_computed(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(evaluation_settings, "evaluate_settings", lambda *arguments: given.append(arguments[:2]))
    for words in ([], [flag, *RESOURCES[flag]]):
        assert eval_retrieval.main(["--checkpoint", "run", *words]) == 0
    assert given[0] != given[1]


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_without_effect_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_retrieval.main(["--checkpoint", "run", flag, *REFUSED[flag]]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert flag in message or flag == "--data.protocol"
    if flag == "--data.protocol":
        assert "closed-set needs" in message


@pytest.mark.parametrize("flag", [flag for flag in {**RESULTS, **REFUSED} if "." in flag and flag != "--eval.ks"])
def test_embeddings_in_files_take_no_settings_of_images(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--embeddings", "e.npy", "--labels", "l.npy", flag, *({**RESULTS, **REFUSED}[flag][:1])]
    assert eval_retrieval.main(words) == 2
    assert "has no effect on an evaluation by --embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--training-embeddings", ["e.npy"]),
        ("--calibration-embeddings", ["e.npy"]),
        ("--calibration-labels", ["l.npy"]),
        ("--expansion-alpha", ["2"]),
    ],
)
def test_a_flag_that_another_needs_is_refused_without_it(
    flag: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_retrieval.main(["--embeddings", "e.npy", "--labels", "l.npy", flag, *values]) == 2
    assert f"{flag} has no effect without --" in capsys.readouterr().err
