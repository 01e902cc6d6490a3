"""The evaluation as a library: options, results at a prompt, files, and the number of searches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hgsl.cli import eval_retrieval
from hgsl.common.errors import InputError
from hgsl.engine.evaluation import EvalOptions, evaluate, evaluate_model
from hgsl.engine.evaluation.data import EvalData, ImageSet
from hgsl.engine.evaluation.outputs import EvalOutputs
from hgsl.evaluation import evaluate_embeddings, make_task, rank, ranking, threshold
from hgsl.evaluation.knn import knn
from hgsl.evaluation.refine import rerank
from tests.helpers import TINY, clusters

SYNTHETIC = [
    *("--model", "test_resnet", *TINY[2:], "--data.name", "synthetic", "--data.val_share", "0.5"),
    *("--data.options.num_classes", "8", "--data.options.images_per_class", "6"),
]


class Points(torch.utils.data.Dataset):
    """Vectors in place of images."""

    def __init__(self, seed=0, **options):
        self.vectors, self.labels = clusters(seed, center_seed=5, **options)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.from_numpy(self.vectors[index]), int(self.labels[index]), index


def data_of(seed=0, **more):
    vectors, labels = clusters(seed, center_seed=5)
    return EvalData("points", ImageSet(vectors, labels), metadata={"protocol": "p", "notes": []}, **more)


@pytest.fixture
def searches(monkeypatch):
    """The module that made each search."""
    calls = []
    for module in (ranking, rerank, threshold):

        def counting(*arguments, module=module, **options):
            calls.append(module.__name__.rpartition(".")[2])
            return knn.k_nearest(*arguments, **options)

        monkeypatch.setattr(module, "k_nearest", counting)
    return calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "runs/mine"}, "model: expected a network, such as load_embedder(...) returns, found 'runs/mine'"),
        ({"options": {"ks": 5}}, "options: expected EvalOptions(...), found dict"),
        ({"dataset": "photos"}, "dataset: expected a data set, such as build_dataset(...) returns, found 'photos'"),
        ({"dataset": [(1, 2)]}, "dataset: expected elements (image tensor, label, id), found (int, int)"),
        ({"training": [(Image.new("RGB", (8, 8)), 0, 0)]}, "training: expected elements (image tensor, label, id)"),
        ({"options": EvalOptions(no_match=0.1)}, "no_match needs validation images: give validation"),
        ({"options": EvalOptions(whiten=2)}, "whiten needs training images to fit on: give training"),
    ],
)
def test_arguments_of_another_form_are_named(arguments, message):
    with pytest.raises(InputError) as error:
        evaluate_model(**{"model": nn.Identity(), "dataset": Points(), **arguments})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstrap": 99.5}, "bootstrap must be a whole number of at least 0, found 99.5"),
        ({"whiten": True}, "whiten must be a whole number of at least 0, found True"),
        ({"max_memory": "1GB"}, "max_memory must be a whole number of at least 1, found '1GB'"),
        ({"rerank": "no"}, "rerank must be True or False, found 'no'"),
    ],
)
def test_options_of_another_type_are_refused(options, message):
    with pytest.raises(InputError) as error:
        EvalOptions(**options)
    assert str(error.value) == message


def test_one_command_searches_once_and_calibrates_once(searches, tmp_path):
    words = [*SYNTHETIC, "--rerank", "--no-match", "0.2", "--bootstrap", "50"]
    names = ("html", "sheet", "csv", "json", "curves")
    suffix = {"sheet": "png", "curves": "png"}
    files = [word for name in names for word in (f"--{name}", str(tmp_path / f"{name}.{suffix.get(name, name)}"))]
    assert eval_retrieval.main([*words, *files]) == 0
    assert searches == ["ranking", "threshold"]
    assert len(list(tmp_path.iterdir())) == 5
    report = json.loads((tmp_path / "json.json").read_text())
    assert report["no_match"]["calibration"]["num_classes"] == 2
    assert any("2 classes only" in note for note in report["notes"])


def test_a_model_and_a_data_set_are_enough():
    points = Points()
    evaluation = evaluate_model(nn.Identity(), points, EvalOptions(ks=5, rerank=True, whiten=4), training=Points(1))
    assert evaluation.result.ks == (5,)
    assert evaluation.data.steps[0] == "PCA-whitening to 4 dimensions"
    assert "re-ranking" in evaluation.to_dict()["post_processing"][1]
    plain = evaluate_model(nn.Identity(), points)
    assert plain.result.micro() == evaluate_embeddings(points.vectors, points.labels).micro()
    assert plain.summary()["protocol"] == "every image among all others"
    for text in (repr(plain), plain._repr_html_()):
        assert f"{100 * plain.result.map_at_r:.2f}" in text
        assert "mean over classes" in text


def test_categories_have_scores_of_their_own():
    data = data_of(categories={image: ("even", "odd")[image % 2] for image in range(100)})  # 20 images without one
    evaluation = evaluate(data, EvalOptions())
    rows = {row["category"]: row for row in evaluation.to_dict(per_class=True)["per_category"]}
    scores = evaluation.result.per_query["map@r"]
    for first, name in enumerate(("even", "odd")):
        assert rows[name]["queries"] == 50
        assert rows[name]["map@r"] == pytest.approx(scores[:100][first::2].mean())
    assert f"{100 * rows['even']['map@r']:.2f}" in evaluation.text(per_class=True)
    assert "per_category" not in evaluation.to_dict()
    assert "per_category" not in evaluate(data_of(), EvalOptions()).to_dict(per_class=True)


def test_a_threshold_is_calibrated_on_validation_images_in_the_searched_gallery():
    points, strangers = Points(), Points(3, classes=15)
    strangers.labels = strangers.labels + 100
    evaluation = evaluate_model(nn.Identity(), points, EvalOptions(no_match=0.2), validation=strangers)
    no_match = evaluation.to_dict()["no_match"]
    accepted = (np.float64(strangers.vectors) @ np.float64(points.vectors).T).max(axis=1) >= no_match["threshold"]
    assert no_match["calibration"]["false_accept_rate"] == pytest.approx(accepted.mean())
    assert no_match["calibration"]["num_gallery"] == 120
    low, high = no_match["calibration"]["interval"]
    assert 0 <= low < high <= 1
    with pytest.raises(InputError, match="needs validation images"):
        evaluate_model(nn.Identity(), points, EvalOptions(no_match=0.2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": 0}, "ks: each K must be an integer of at least 1, found 0"),
        ({"metric": "cosin"}, "did you mean 'cosine'"),
        ({"crops": 3}, "crops must be 1"),
        ({"bootstrap": 1}, "at least 2 samples"),
        ({"no_match": 1.5}, "no_match is a false-accept rate"),
        ({"query_expansion": 0}, "query_expansion must be at least 1, found 0"),
        ({"max_memory": 0}, "max_memory must be at least 1"),
        ({"rerank": True, "metric": "l2"}, "rerank works with cosine similarities"),
    ],
)
def test_invalid_options_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        EvalOptions(**options)


def test_outputs_are_checked_before_the_search(tmp_path, capsys, searches):
    (tmp_path / "folder.json").mkdir()
    np.save(tmp_path / "e.npy", clusters()[0])
    np.save(tmp_path / "l.npy", clusters()[1])
    files = ["--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "l.npy")]
    for words, message in (
        (["--json", str(tmp_path / "folder.json")], "is a folder: name a file in it"),
        (["--curves", str(tmp_path / "curves.xyz")], "suffix '.xyz' cannot be written"),
        (["--html", "/proc/page.html"], "/proc/page.html"),
    ):
        assert eval_retrieval.main([*files, *words]) == 2
        assert message in capsys.readouterr().err
    assert searches == []
    with pytest.raises(InputError, match="--sheet needs images"):
        EvalOutputs(sheet=str(tmp_path / "sheet.png")).check(has_images=False)
    with pytest.raises(InputError, match=r"suffix '\.txt' cannot be written"):
        EvalOutputs(sheet=str(tmp_path / "sheet.txt")).check(has_images=True)


def test_what_can_be_written_is_written_though_another_file_fails(tmp_path):
    def damaged(image):
        raise InputError("image 7 is damaged")

    evaluation = evaluate(data_of(load_image=damaged, class_names=list("abcdefghij")), EvalOptions())
    outputs = EvalOutputs(json=str(tmp_path / "r.json"), html=str(tmp_path / "r.html"), curves=str(tmp_path / "r.png"))
    with pytest.raises(InputError, match=r"r.html is not written \(image 7 is damaged\); written: .*r.json, .*r.png"):
        outputs.write(evaluation)
    assert json.loads((tmp_path / "r.json").read_text())["map@r"] == evaluation.result.map_at_r
    with Image.open(tmp_path / "r.png") as figure:
        assert figure.width > 0


def test_several_galleries_give_one_page_each(tmp_path):
    galleries = {f"g{seed}.npy": ImageSet(*clusters(seed, center_seed=5)) for seed in (1, 2)}
    evaluation = evaluate(data_of(galleries=galleries), EvalOptions())
    outputs = EvalOutputs(json=str(tmp_path / "r.json"), html=str(tmp_path / "r.html"), csv=str(tmp_path / "r.csv"))
    outputs.write(evaluation)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.g1.html", "r.g2.html", "r.g1.csv", "r.g2.csv"}
    assert set(json.loads((tmp_path / "r.json").read_text())["galleries"]) == set(galleries)
    with pytest.raises(InputError, match="2 galleries were searched"):
        _ = evaluation.result


def test_results_print_as_tables_and_turn_into_frames(monkeypatch):
    result = evaluate_embeddings(*clusters(), (1, 5))
    head, columns, queries, classes = repr(result).splitlines()
    assert head == "120 queries, 120 gallery images, in percent"
    assert columns.split() == ["Recall@1", "Recall@5", "R-Precision", "MAP@R"]
    assert queries.split()[-1] == f"{100 * result.map_at_r:.2f}"
    assert classes.split()[-1] == f"{100 * result.macro()['map@r']:.2f}"
    assert f"<td>{100 * result.map_at_r:.2f}</td>" in result._repr_html_()
    ranked = rank(make_task(*clusters()), 1, top=2)
    assert ranked.to_dict() == {**ranked.result.to_dict(), "metric": "cosine"}
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    for value in (result, ranked):
        with pytest.raises(InputError, match=r"to_frame\(\) needs pandas: pip install pandas"):
            value.to_frame()


def test_frames_have_a_row_per_query_and_per_neighbor():
    pytest.importorskip("pandas")
    vectors, labels = clusters()
    names = np.array([f"class {label}" for label in labels])
    ranked = rank(make_task(vectors, names), 1, top=2)
    table = ranked.result.to_frame()
    assert table["map@r"].mean() == pytest.approx(ranked.result.map_at_r)
    assert list(table["label"]) == names.tolist()
    neighbors = ranked.to_frame()
    assert len(neighbors) == 240
    assert neighbors.query("rank == 1")["hit"].mean() == ranked.result.recall[1]


def test_an_evaluation_of_a_stored_extraction_is_the_same(tmp_path):
    options = EvalOptions(store=tmp_path / "store", batch_size=50)
    first = evaluate_model(nn.Identity(), Points(), options)
    assert Path(tmp_path / "store" / "embeddings.npy").is_file()
    assert evaluate_model(nn.Identity(), Points(), options).result.micro() == first.result.micro()
