"""The no-match threshold of an index: its source, and its calibration on the images that are searched."""

import json

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.search import SearchIndex
from hgsl.search.folder import faiss_file
from hgsl.search.folder.snapshot import FolderSnapshot
from hgsl.search.folder.table import ImageTable
from hgsl.search.indexing.no_match import calibrated
from hgsl.search.stores.protocol import ImageFile, ImageRow

SOURCE = {"source": "run/no_match.json", "run_threshold": -1.0, "rate": 0.05}


def index_of(classes, images, labeled=True, seed=0):
    """Random unit vectors around a center per class: their labels as text, vectors, and labels as numbers."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    vectors = generator.standard_normal((classes, 16))[labels] + 0.7 * generator.standard_normal((len(labels), 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return [f"c{label}" if labeled else None for label in labels], vectors, labels


def calibrate(source, names, vectors, notes):
    """Calibrates on images with these labels and vectors."""
    table = ImageTable()
    rows = [ImageRow(ImageFile(f"{number:04}.jpg", 1, 1), name, {}) for number, name in enumerate(names)]
    table.append(range(len(rows)), rows)
    matrix = open_vectors(vectors)
    snapshot = FolderSnapshot({"index_type": "Flat", "columns": {}}, table, matrix, faiss_file.flat(matrix))
    return calibrated(source, snapshot, notes)


def test_the_calibration_accepts_the_share_that_was_asked_for():
    names, vectors, labels = index_of(classes=40, images=10)
    notes = []
    entry = calibrate(SOURCE, names, vectors, notes)
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    scores[labels[:, None] == labels] = -2
    best = scores.max(axis=1).astype(np.float32)
    assert (best >= np.float32(entry["threshold"])).mean() == entry["accepted"] <= 0.05
    highest_rejected = best[best < np.float32(entry["threshold"])].max()
    assert (best >= highest_rejected).mean() > 0.05  # equal scores, as those of mutual neighbors, are rejected together
    assert (entry["strangers"], entry["classes"]) == (400, 40)
    low, high = entry["interval"]
    assert 0 <= low < entry["accepted"] < high < 0.2
    assert "of 400 images of 40 classes" in notes[0]
    assert "so few classes" not in notes[0]


def test_the_interval_covers_the_share_among_new_classes():
    """Calibrated on 30 classes, the share of accepted images of 100 new ones lies in the interval, 95 of 100 times."""
    covered = []
    for seed in range(20):
        names, vectors, labels = index_of(classes=130, images=8, seed=seed)
        known = labels < 30
        part = [name for name, is_known in zip(names, known, strict=True) if is_known]
        entry = calibrate(SOURCE, part, vectors[known], [])
        share = ((vectors[~known] @ vectors[known].T).max(axis=1) >= entry["threshold"]).mean()
        covered.append(entry["interval"][0] <= share <= entry["interval"][1])
    assert np.mean(covered) >= 0.9


def test_a_larger_index_has_a_higher_threshold():
    thresholds = [calibrate(SOURCE, names, vectors, [])["threshold"]
                  for names, vectors, _ in (index_of(classes, 10) for classes in (5, 50, 500))]  # fmt: skip
    assert thresholds == sorted(thresholds)
    assert thresholds[2] > thresholds[0] + 0.1


def test_the_threshold_of_the_run_is_never_lowered():
    names, vectors, _ = index_of(classes=5, images=4)
    entry = calibrate({**SOURCE, "run_threshold": 0.999}, names, vectors, notes := [])
    assert (entry["threshold"], entry["accepted"]) == (0.999, 0)
    assert entry["interval"][0] == 0
    assert entry["interval"][1] == pytest.approx(1 - 0.05 ** (1 / 5))
    assert "so few classes give an unreliable estimate" in notes[0]


def test_trained_classes_are_no_strangers():
    names, vectors, labels = index_of(classes=40, images=10)
    trained = [f"c{number}" for number in range(20)]
    vectors[labels >= 20] = vectors[labels >= 20] + 0.4 * vectors[5]  # unseen classes are more alike
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entry = calibrate({**SOURCE, "trained_classes": trained}, names, vectors, notes := [])
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    scores[labels[:, None] == labels] = -2
    best = scores.max(axis=1).astype(np.float32)
    assert (best[labels >= 20] >= np.float32(entry["threshold"])).mean() == entry["accepted"] <= 0.05
    assert (entry["strangers"], entry["classes"], entry["trained_classes"]) == (200, 20, trained)
    assert "the 20 classes that the model was trained on are not among the strangers" in notes[0]
    trained += [f"c{number}" for number in range(20, 39)]
    entry = calibrate({**SOURCE, "trained_classes": trained}, names, vectors, notes := [])
    assert "trained on 39 of the 40 classes, which are easier strangers" in notes[0]
    assert entry["strangers"] == 400


@pytest.mark.parametrize("labels", [None, "all"])
def test_a_threshold_that_cannot_be_calibrated_is_dropped(labels):
    _, vectors, _ = index_of(classes=3, images=4)
    entry = calibrate(SOURCE, [labels] * 12, vectors, notes := [])
    assert entry["threshold"] is None
    assert "cannot be calibrated on this index and is not used: its images need labels of two classes" in notes[0]


def test_a_rate_that_so_few_images_cannot_tell_from_zero_drops_the_threshold():
    names, vectors, _ = index_of(classes=3, images=4)
    entry = calibrate({**SOURCE, "rate": 0.01}, names, vectors, notes := [])
    assert entry["threshold"] is None
    assert "0.01 cannot be measured on 12" in notes[0]


def test_the_threshold_comes_from_the_run_or_a_flag(build, tmp_path, run, photos, monkeypatch):
    folder = tmp_path / "index"
    monkeypatch.setenv("HOME", str(run.parent))

    def threshold(**options):
        report = build(folder, photos, **options)
        return SearchIndex.open(folder).threshold, report.notes

    assert threshold(checkpoint=run) == (None, [])
    content = {"threshold": 0.2, "metric": "cosine", "calibration": {"asked_rate": 0.25}}
    (run / "no_match.json").write_text(json.dumps(content))
    calibrated_threshold, notes = threshold(checkpoint=f"~/{run.name}")
    assert 0.2 < calibrated_threshold < 1
    assert "of 24 images of 6 classes" in notes[0]
    assert threshold() == (calibrated_threshold, [])  # nothing has changed
    record = json.loads((folder / "index.json").read_text())["no_match"]
    assert (record["run_threshold"], record["rate"], record["images"]) == (0.2, 0.25, 24)
    (photos / "kind_00/00.jpg").unlink()
    assert "of 23 images of 6 classes" in threshold()[1][0]  # calibrated again
    assert threshold(no_match=0.3) == (0.3, [])
    (photos / "kind_00/01.jpg").unlink()
    assert threshold() == (0.3, [])  # the user's own
    (run / "no_match.json").write_text(json.dumps({**content, "metric": "l2"}))
    value, notes = threshold(checkpoint=run)
    assert value == 0.3
    assert "calibrated for other scores" in notes[0]
    (run / "no_match.json").write_text(json.dumps({**content, "post_processing": ["PCA-whitening to 8 dimensions"]}))
    assert threshold(checkpoint=run)[0] == 0.3
    (run / "no_match.json").write_text("[]")
    with pytest.raises(InputError, match=r"no_match\.json holds a JSON list: expected a calibrated threshold"):
        threshold(checkpoint=run)
    with pytest.raises(InputError, match="from -1 to 1"):
        threshold(no_match=2)
