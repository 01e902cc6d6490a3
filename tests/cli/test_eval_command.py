"""The evaluation command: every flag, on files and on networks, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hgsl.cli import compare, eval_retrieval
from hgsl.cli._settings import build_parser, parse
from hgsl.evaluation import evaluate_embeddings
from hgsl.models import create_embedder, save_embedder
from tests.helpers import ROOT, clusters, fails, launch_ranks

CLASSES: dict[str, int] = {"count": 90, "classes": 9, "width": 12, "center_seed": 5}

NETWORK = [
    *("--model", "test_resnet", "--model.weights", "none", "--data.image_size", "32", "--data.workers", "0"),
    *("--data.name", "synthetic", "--data.options.num_classes", "8", "--data.options.images_per_class", "6"),
    *("--run.device", "cpu", "--run.precision", "float32", "--run.threads", "1"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A temporary working directory with two sets of embeddings."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("e", 0), ("g", 1)):
        vectors, labels = clusters(seed, **CLASSES)
        np.save(f"{name}.npy", vectors)
        np.save(f"{name}l.npy", labels)
    return tmp_path


def test_every_file_and_every_key(capsys):
    words = ["--embeddings", "e.npy", "--labels", "el.npy", "--k", "1", "5", "--bootstrap", "50", "--per-class"]
    files = ["--json", "out/r.json", "--csv", "out/r.csv", "--html", "out/r.html", "--curves", "out/r.pdf", "--cluster"]
    assert eval_retrieval.main([*words, *files]) == 0
    printed = capsys.readouterr().out
    for part in (
        "90 queries, 90 images",
        "Recall@5",
        "mean over classes",
        "queries, low",
        "NMI",
        "written: out/r.html",
    ):
        assert part in printed
    report = json.loads(Path("out/r.json").read_text())
    expected = evaluate_embeddings(*clusters(**CLASSES), (1, 5))
    assert report["recall@5"] == expected.recall[5]
    assert report["map@r"] == expected.map_at_r
    assert set(report) >= {
        *("recall@1", "recall@5", "precision@1", "precision@5", "map@1", "map@5", "mrr@5", "r_precision", "map@r"),
        *(
            "num_queries",
            "num_gallery",
            "num_skipped",
            "protocol",
            "split_hash",
            "index",
            "versions",
            "macro",
            "metric",
        ),
        *("nmi", "ami", "intervals", "per_class", "per_query", "post_processing"),
    }
    assert report["index"] == "Flat"
    assert len(report["per_query"]["map@r"]) == 90
    assert [row["queries"] for row in report["per_class"]] == [10] * 9
    rows = list(csv.DictReader(Path("out/r.csv").read_text().splitlines()))
    assert np.mean([float(row["map@r"]) for row in rows]) == pytest.approx(report["map@r"])
    assert "<!doctype html>" in Path("out/r.html").read_text()


def test_formats_of_files_give_the_same_scores(capsys):
    vectors, labels = clusters(**CLASSES)
    half = torch.from_numpy(vectors).bfloat16()
    np.savez("all.npz", embeddings=vectors, labels=labels)
    save_file({"embeddings": half, "labels": torch.from_numpy(labels)}, "all.safetensors")
    np.save("half.npy", half.float().numpy())
    for first, second in (
        (("e.npy", "el.npy"), ("all.npz", "all.npz")),
        (("half.npy", "el.npy"), ("all.safetensors",) * 2),
    ):
        tables = []
        for embeddings, names in (first, second):
            assert eval_retrieval.main(["--embeddings", embeddings, "--labels", names]) == 0
            tables.append(capsys.readouterr().out.splitlines()[-1])
        assert tables[0] == tables[1]


def test_several_galleries_are_searched_separately(capsys):
    words = ["--embeddings", "e.npy", "--labels", "el.npy", "--gallery-embeddings", "g.npy", "e.npy"]
    assert eval_retrieval.main([*words, "--gallery-labels", "gl.npy", "el.npy", "--json", "r.json"]) == 0
    galleries = json.loads(Path("r.json").read_text())["galleries"]
    (queries, labels), (gallery, gallery_labels) = clusters(**CLASSES), clusters(1, **CLASSES)
    expected = evaluate_embeddings(queries, labels, gallery_embeddings=gallery, gallery_labels=gallery_labels)
    assert galleries["g.npy"]["map@r"] == expected.map_at_r
    assert galleries["e.npy"]["recall@1"] == 1  # without ids, each query finds itself
    assert "90 images (g.npy)" in capsys.readouterr().out


def test_refinements_and_calibration_are_reported(capsys):
    words = ["--embeddings", "e.npy", "--labels", "el.npy", "--training-embeddings", "g.npy", "--whiten", "8"]
    more = ["--augment-gallery", "3", "--query-expansion", "5", "--rerank", "--index", "IVF4,Flat nprobe=3"]
    threshold = ["--no-match", "0.1", "--calibration-embeddings", "g.npy", "--calibration-labels", "gl.npy"]
    assert eval_retrieval.main([*words, *more, *threshold, "--json", "r.json"]) == 0
    report = json.loads(Path("r.json").read_text())
    steps, printed = " | ".join(report["post_processing"]), capsys.readouterr().out
    for step in ("PCA-whitening to 8", "database augmentation with 3", "query expansion with 5", "re-ranking"):
        assert step in steps
        assert step in printed
    assert 0.5 < report["index_overlap"] <= 1
    assert report["index"] == "IVF4,Flat nprobe=3"
    assert report["no_match"]["calibration"]["false_accept_rate"] <= 0.1
    assert {"threshold", "precision", "recall"} <= set(report["no_match"])


def test_groups_leave_out_images_of_the_same_label_and_group(capsys):
    vectors, labels = clusters(**CLASSES)
    np.save("groups.npy", np.zeros(90, dtype=np.int64))
    message = fails(
        eval_retrieval.main, ["--embeddings", "e.npy", "--labels", "el.npy", "--groups", "groups.npy"], capsys
    )
    assert "none of the 90 queries has another image of its label" in message
    np.save("groups.npy", np.arange(90) // 45)
    assert (
        eval_retrieval.main(["--embeddings", "e.npy", "--labels", "el.npy", "--groups", "groups.npy", "--json", "r"])
        == 0
    )
    expected = evaluate_embeddings(vectors, labels, groups=np.arange(90) // 45).map_at_r
    assert json.loads(Path("r").read_text())["map@r"] == expected


def test_a_network_without_training(capsys):
    outputs = ["--json", "r.json", "--sheet", "sheet.png", "--html", "r.html", "--save-embeddings", "kept"]
    assert eval_retrieval.main([*NETWORK, "--flip", *outputs]) == 0
    report = json.loads(Path("r.json").read_text())
    assert (report["dataset"], report["protocol"], report["model"]) == ("synthetic", "zero-shot", "test_resnet")
    assert report["post_processing"] == ["mean over views: flip"]
    assert report["num_queries"] == 24
    assert np.load("kept/embeddings.npy").shape[0] == 24
    with Image.open("sheet.png") as sheet:
        assert sheet.width > sheet.height / 3
    # What was kept gives the same scores by itself.
    words = ["--embeddings", "kept/embeddings.npy", "--labels", "kept/labels.npy", "--ids", "kept/ids.npy"]
    assert eval_retrieval.main([*words, "--json", "again.json"]) == 0
    assert json.loads(Path("again.json").read_text())["map@r"] == report["map@r"]
    assert "flip" in capsys.readouterr().out


def test_a_run_is_evaluated_at_the_image_size_that_is_given(capsys):
    run = Path("run")
    run.mkdir()
    config = parse(build_parser(""), ["--model.backbone", "test_resnet", *NETWORK[2:]])[0]
    (run / "config.yaml").write_text(config.to_yaml())
    save_embedder(create_embedder("test_resnet", weights="none", image_size=32), run)
    reports = {}
    for words in ([], ["--data.image_size", "32"], ["--data.image_size", "48"]):
        assert eval_retrieval.main(["--checkpoint", "run", *words, "--json", "r.json"]) == 0
        reports[" ".join(words)] = json.loads(Path("r.json").read_text())
    plain, same, larger = reports.values()
    assert plain == same
    assert larger["map@r"] != plain["map@r"]
    assert larger["notes"] == [*plain["notes"], "evaluated with image_size 48 (saved with 32)"]
    message = fails(eval_retrieval.main, ["--checkpoint", "run", "--model.pooling", "avg"], capsys)
    assert "--model.pooling has no effect on an evaluation by --checkpoint" in message


def test_a_network_calibrates_on_validation_classes(capsys):
    assert "val_share" in fails(eval_retrieval.main, [*NETWORK, "--no-match", "0.2"], capsys)
    assert eval_retrieval.main([*NETWORK, "--data.val_share", "0.5", "--no-match", "0.2", "--whiten", "0"]) == 0
    assert "no match below" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes_print_what_one_prints(capsys):
    assert eval_retrieval.main([*NETWORK, "--json", "one.json"]) == 0
    tool = ROOT / "tools" / "eval_retrieval.py"
    result = launch_ranks(tool, *NETWORK, "--json", "two.json", processes=2)
    assert result.returncode == 0, result.stderr
    assert Path("one.json").read_text() == Path("two.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to measure"),
        (["--embeddings", "e.npy", "--model", "resnet18", "--labels", "el.npy"], "name different things"),
        (["--embeddings", "e.npy"], "needs --labels"),
        (["--embeddings", "missing.npy", "--labels", "el.npy"], "missing.npy: no such file"),
        (["--embeddings", "e.npy", "--labels", "e.npy"], "labels: expected 90 integers"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--metric", "cosin"], "did you mean 'cosine'"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--k", "0"], "at least 1, found 0"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--index", "IVF4096,Flat"], "cannot be built for 90 vectors"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--flip"], "--flip belongs to --checkpoint or --model"),
        (
            ["--embeddings", "e.npy", "--labels", "el.npy", "--whiten", "3"],
            "files needs --training-embeddings",
        ),
        (
            ["--embeddings", "e.npy", "--labels", "el.npy", "--no-match", "0.1"],
            "needs --calibration-emb",
        ),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--bootstrap", "1"], "at least 2 samples"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--gallery-embeddings", "g.npy"], "give one for each"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--max-memory", "0"], "positive number of GB"),
        (["--embeddings", "text.npy", "--labels", "el.npy"], "text.npy: cannot be read as .npy"),
        (["--embeddings", "pickled.npy", "--labels", "el.npy"], "pickled.npy: cannot be read as .npy"),
        (["--embeddings", "e.txt", "--labels", "el.npy"], "expected a .npy, .npz or .safetensors file"),
        (["--embeddings", "two.npz", "--labels", "el.npy"], "holds no array named 'embeddings' (it holds: a, b)"),
        (["--embeddings", "nan.npy", "--labels", "el.npy"], "row 3 is not finite: are the images too small"),
        (["--embeddings", "e.npy", "--labels", "el.npy", "--eval.batch_size", "3"], "--eval.batch_size has no effect"),
        ([*NETWORK, "--loss.top_k", "3"], "--loss.top_k has no effect on an evaluation by --model: leave it out"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere does not exist"),
        (["--checkpoint", "a", "--checkpoint", "b"], "--checkpoint is given twice: evaluate one model at a time"),
        ([*NETWORK, "--labels", "el.npy"], "--labels belongs to --embeddings"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    vectors, _ = clusters(**CLASSES)
    Path("text.npy").write_text("not an array")
    Path("e.txt").write_text("0.1 0.2")
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez("two.npz", a=vectors, b=vectors)
    vectors[3, 2] = np.nan
    np.save("nan.npy", vectors)
    assert message in fails(eval_retrieval.main, words, capsys)


def write_reports():
    for name, noise in (("a", 1.2), ("b", 0.9)):
        np.save("v.npy", clusters(noise=noise, **CLASSES)[0])
        assert (
            eval_retrieval.main(["--embeddings", "v.npy", "--labels", "el.npy", "--json", f"runs/{name}/r.json"]) == 0
        )
    return ["runs/a/r.json", "runs/b/r.json"]


def test_compare_pairs_the_queries(capsys):
    paths = write_reports()
    capsys.readouterr()
    outputs = ["--json", "c.json", "--curves", "c.png", "--table", "c.tex", "--plot", "c.pdf"]
    assert compare.main([*paths, *outputs]) == 0
    printed = capsys.readouterr().out
    assert "minus a/r, points with 95% interval from resampled classes, of these models" in printed
    assert "*" in printed
    found = json.loads(Path("c.json").read_text())
    first, second = (json.loads(Path(path).read_text()) for path in paths)
    mean, low, high = found["differences"]["b/r"]["map@r"]
    assert mean == pytest.approx(second["map@r"] - first["map@r"])
    assert 0 < low < mean < high
    assert Path("c.png").stat().st_size > 2000
    assert Path("c.pdf").read_bytes().startswith(b"%PDF")
    table = Path("c.tex").read_text()
    assert rf"\textbf{{{100 * second['map@r']:.2f}}} \\" in table
    assert f"a/r & {100 * first['recall@1']:.2f} &" in table
    assert "ends in .md" in fails(compare.main, [*paths, "--table", "c.html"], capsys)


def test_compare_states_what_the_scores_of_one_report_include(capsys):
    first, second = write_reports()
    report = json.loads(Path(second).read_text())
    steps = {"post_processing": ["re-ranking"], "index": "IVF4,Flat"}
    Path(second).write_text(json.dumps({**report, **steps, "notes": ["chosen on test", "cropped to boxes"]}))
    report = json.loads(Path(first).read_text())
    Path(first).write_text(json.dumps({**report, "notes": ["cropped to boxes"]}))
    capsys.readouterr()
    assert compare.main([first, second]) == 0
    assert capsys.readouterr().out.startswith("note: b/r: re-ranking; index IVF4,Flat; chosen on test\n90 queries")


def test_compare_takes_folders_of_several_seeds(capsys):
    rng = np.random.default_rng(0)
    labels, ids = np.repeat(np.arange(9), 10).tolist(), list(range(90))
    scores = {}
    for name, level in (("ours", 0.7), ("theirs", 0.3)):
        for seed in range(3):
            values = np.clip(level + 0.02 * seed + 0.05 * rng.standard_normal(90), 0, 1)
            scores.setdefault(name, []).append(values)
            folder = Path(name, f"seed_{seed}")
            folder.mkdir(parents=True)
            report = {"split_hash": "h", "protocol": "p", "num_queries": 90, "num_gallery": 90, "map@r": values.mean()}
            (folder / "report.json").write_text(json.dumps({"before": {}, "after": report}))
            queries = {"id": ids[::-1], "label": labels[::-1], "map@r": values[::-1].tolist()}
            (folder / "per_query.json").write_text(json.dumps(queries))
        Path(name, "seeds.json").write_text(json.dumps({"seeds": [0, 1, 2]}))
    assert compare.main(["ours", "theirs", "--json", "c.json", "--table", "c.md", "--plot", "c.png"]) == 0
    printed = capsys.readouterr().out
    means = [values.mean() for values in scores["theirs"]]
    assert f"{100 * np.mean(means):.2f} +-{100 * np.std(means, ddof=1):.2f}" in printed
    assert "theirs (3 seeds)" in printed
    row = next(line for line in Path("c.md").read_text().splitlines() if line.startswith("| ours (3 seeds)"))
    mean = 100 * np.mean([values.mean() for values in scores["ours"]])
    assert f"**{mean:.2f} +-" in row
    content = json.loads(Path("c.json").read_text())
    mean, low, high = content["differences"]["theirs"]["map@r"]
    assert mean == pytest.approx(np.mean(scores["theirs"]) - np.mean(scores["ours"]))
    assert low < mean < high < 0
    assert high - low > 2 * 2.2 * 0.02 * np.sqrt(2 / 3)  # seeds are 2 points apart, regardless of the classes
    assert content["seeds"] == {"ours": 3, "theirs": 3}


def test_compare_refuses_what_cannot_be_compared(capsys):
    paths = write_reports()
    report = json.loads(Path(paths[1]).read_text())
    Path("other.json").write_text(json.dumps({**report, "split_hash": "0123"}))
    assert "only runs on the same split" in fails(compare.main, [paths[0], "other.json"], capsys)
    Path("other.json").write_text(json.dumps({**report, "per_query": {"id": [1], "map@r": [1]}}))
    assert "have different queries" in fails(compare.main, [paths[0], "other.json"], capsys)
    Path("other.json").write_text("{}")
    assert "not a retrieval report" in fails(compare.main, [paths[0], "other.json"], capsys)
    assert "give at least two" in fails(compare.main, [paths[0]], capsys)
    assert "given twice" in fails(compare.main, [paths[0], paths[0]], capsys)
    assert "no such report" in fails(compare.main, [paths[0], "nothing.json"], capsys)
    assert "--bootstrap needs at least 2 samples, found 1" in fails(compare.main, [*paths, "--bootstrap", "1"], capsys)
    assert "--seed must be at least 0, found -1" in fails(compare.main, [*paths[:2], "--seed", "-1"], capsys)
    for flag in ("--curves", "--plot"):
        assert "suffix '.txt' cannot be written" in fails(compare.main, [*paths[:2], flag, "c.txt"], capsys)


def test_compare_reads_the_report_of_a_run_and_names_what_is_missing(capsys):
    paths = write_reports()
    report = json.loads(Path(paths[1]).read_text())
    del report["per_query"]
    Path("run").mkdir()
    Path("run/report.json").write_text(json.dumps({"before": {}, "after": report}))
    capsys.readouterr()
    assert compare.main([paths[0], "run"]) == 0
    assert "no paired difference" in capsys.readouterr().out


def test_compare_names_folders_with_a_dot_and_the_working_directory(capsys, monkeypatch):
    report = {"split_hash": "h", "protocol": "p", "num_queries": 9, "num_gallery": 9, "map@r": 0.5}
    for folder in ("lr0.1", "lr0.2"):
        Path(folder).mkdir()
        Path(folder, "report.json").write_text(json.dumps({"before": {}, "after": report}))
    Path("lr0.2.json").write_text(json.dumps(report))
    for words, names in (
        (["lr0.1", "lr0.2"], ["lr0.1", "lr0.2"]),
        (["lr0.2", "lr0.2.json"], ["lr0.2", "lr0.2.json"]),
        (["./lr0.2.json", "lr0.1/report.json"], ["lr0.2", "report"]),
        (["lr0.1/.", "lr0.1/../lr0.2"], ["lr0.1", "lr0.2"]),
    ):
        assert compare.main([*words, "--json", "c.json"]) == 0
        assert list(json.loads(Path("c.json").read_text())["scores"]) == names
    monkeypatch.chdir("lr0.1")
    assert compare.main([".", "../lr0.2"]) == 0
    assert "minus" not in (printed := capsys.readouterr().out)
    assert "\nlr0.1 " in printed
