"""Mistakes that the commands of training find before they import torch or read data."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from matplotlib.backend_bases import FigureCanvasBase

from hgsl.cli._names import option_types
from hgsl.common.eval_checks import FIGURE_SUFFIXES
from hgsl.config import Config
from hgsl.data import DATASETS
from hgsl.engine.folder import run_folder

MISTAKES = {
    "data set": (["--data.name", "floder"], "unknown data.name 'floder': did you mean 'folder'?"),
    "root": (["--data.name", "folder", "--data.root", "nowhere"], "nowhere does not exist"),
    "root of images that are drawn": (
        ["--data.root", "photos"],
        "photos is not read by data.name synthetic, which draws",
    ),
    "folder without its flag": (["photos"], "unexpected argument 'photos': a value follows its flag (--config FILE"),
    "no root": (["--data.name", "folder"], "data.root is not given, and its default for folder, "),
    "root is a file": (
        ["--data.name", "folder", "--data.root", "file"],
        "file is a file: data.name folder reads a folder",
    ),
    "protocol": (["--data.protocol", "zeroshot"], "unknown data.protocol 'zeroshot': did you mean 'zero-shot'?"),
    "sampler": (["--data.sampler", "per_class"], "unknown data.sampler 'per_class': did you mean 'm_per_class'?"),
    "pooling": (["--model.pooling", "maxagv"], "unknown model.pooling 'maxagv': did you mean 'maxavg'?"),
    "backbone": (
        ["--model.backbone", "resnet5O", "--model.weights", "none"],
        "unknown model.backbone 'resnet5O': did you mean 'resnet50'?",
    ),
    "weights": (["--model.weights", "best.pth"], "no weights file best.pth in "),
    "loss": (["--loss.name", "ProxyAnchrLoss"], "unknown loss.name 'ProxyAnchrLoss': did you mean 'ProxyAnchorLoss'?"),
    "teacher": (
        ["--loss.teacher", "resnet5O"],
        "loss.teacher: no folder and no timm model is named 'resnet5O': did you mean 'resnet50'?",
    ),
    "no run of a teacher": (["--loss.teacher", "photos/a"], "loss.teacher: no model at photos/a: expected"),
    "folder of a teacher": (["--loss.teacher", "photos"], "loss.teacher: no model.json in photos"),
    "miner": (
        ["--loss.name", "TripletMarginLoss", "--loss.miner", "TripletMiner"],
        "unknown loss.miner 'TripletMiner': did you mean 'TripletMarginMiner'?",
    ),
    "optimizer": (["--optim.name", "lionn"], "unknown optim.name 'lionn': did you mean 'lion'?"),
    "schedule": (["--optim.schedule", "cosin"], "unknown optim.schedule 'cosin': did you mean 'cosine'?"),
    "data option": (
        ["--data.options.foo", "1"],
        "unknown option of data set synthetic in data.options 'foo': use one of: image_size, images_per_class",
    ),
    "data option's value": (
        ["--data.options.num_classes", "many"],
        "option num_classes of data set synthetic in data.options must be int, found 'many'",
    ),
    "device": (["--run.device", "auto:1"], "unknown run.device 'auto:1': use auto, cpu, mps, cuda or cuda:N"),
    "absent device": (["--run.device", "mps"], "run.device 'mps' is not present on this machine: use auto or cpu"),
    "recipe": (["--config", "foldr"], "did you mean --config folder?"),
    "folder in use": (["--run.dir", "taken"], "run folder taken exists: --overwrite replaces it"),
    "folder of something else": (["--run.dir", "photos"], "photos holds other files and is no run folder"),
    "nothing to resume": (["--run.dir", "new", "--resume"], "no run to resume in new"),
    "other settings": (["--run.dir", "taken", "--resume"], "and the run in taken began with"),
    "a file": (["--run.dir", "file/run"], "is a file: name another with --run.dir"),
    "read-only": (["--run.dir", "/proc/run"], "run folder /proc/run: /proc cannot be written"),
}
EMBEDDINGS = ["--embeddings", "e.npy", "--labels", "l.npy"]
MODEL = ["--model", "resnet50", "--model.weights", "none"]
EVAL_MISTAKES = {
    "crops": ([*MODEL, "--crops", "3"], "crops must be 1 (the whole image) or 5 (center and corners), found 3"),
    "bootstrap": ([*EMBEDDINGS, "--bootstrap", "-3"], "bootstrap must be at least 0, found -3"),
    "one sample": ([*EMBEDDINGS, "--bootstrap", "1"], "bootstrap needs at least 2 samples, found 1"),
    "no match": ([*EMBEDDINGS, "--no-match", "1.5"], "no_match is a false-accept rate from 0 to below 1, found 1.5"),
    "whiten": ([*EMBEDDINGS, "--whiten", "-1"], "whiten must be at least 0, found -1"),
    "query expansion": ([*EMBEDDINGS, "--query-expansion", "0"], "query_expansion must be at least 1, found 0"),
    "expansion alpha": (
        [*EMBEDDINGS, "--query-expansion", "3", "--expansion-alpha", "-1"],
        "expansion_alpha must be at least 0, found -1",
    ),
    "infinite alpha": (
        [*EMBEDDINGS, "--query-expansion", "3", "--expansion-alpha", ".inf"],
        "expansion_alpha must be finite, found inf",
    ),
    "memory": ([*EMBEDDINGS, "--max-memory", "0"], "--max-memory must be a positive number of GB, found 0"),
    "memory nan": ([*EMBEDDINGS, "--max-memory", ".nan"], "--max-memory must be a positive number of GB, found nan"),
    "metric": ([*EMBEDDINGS, "--metric", "cosin"], "unknown metric 'cosin': did you mean 'cosine'?"),
    "metric and rerank": ([*EMBEDDINGS, "--metric", "l2", "--rerank"], "rerank works with cosine similarities"),
    "no labels": (["--embeddings", "e.npy"], "--embeddings needs --labels: one label per image"),
    "no embeddings": (["--embeddings", "none.npy", "--labels", "l.npy"], "none.npy: no such file"),
    "no such labels": (["--embeddings", "e.npy", "--labels", "none.npy"], "none.npy: no such file"),
    "no such gallery": (
        [*EMBEDDINGS, "--gallery-embeddings", "none.npy", "--gallery-labels", "l.npy"],
        "none.npy: no such file",
    ),
    "no gallery labels": ([*EMBEDDINGS, "--gallery-embeddings", "e.npy"], "--gallery-labels: 0 files for 1 galleries"),
    "folder of embeddings": (["--embeddings", "photos", "--labels", "l.npy"], "photos is a folder: name a .npy"),
    "format of embeddings": (["--embeddings", "file", "--labels", "l.npy"], "file: expected a .npy, .npz"),
    "calibration labels": (
        [*EMBEDDINGS, "--no-match", "0.1", "--calibration-embeddings", "e.npy"],
        "--calibration-embeddings needs --calibration-labels",
    ),
    "nothing to whiten on": ([*EMBEDDINGS, "--whiten", "2"], "--whiten on files needs --training-embeddings"),
    "nothing to calibrate on": ([*EMBEDDINGS, "--no-match", "0.1"], "--no-match on files needs --calibration-embed"),
    "factory": ([*EMBEDDINGS, "--index", "IFV16,Flat"], "FAISS cannot build the index 'IFV16,Flat': could not parse"),
    "factory for the metric": ([*EMBEDDINGS, "--index", "LSH"], "FAISS cannot build the index 'LSH'"),
    "factory parameter": (
        [*EMBEDDINGS, "--index", "IVF16,Flat nprobes=3"],
        "FAISS cannot build the index 'IVF16,Flat nprobes=3': ",
    ),
    "file of a run": (["--checkpoint", "file"], "file is a file: name its folder, ."),
    "run without its flag": (["photos"], "unexpected argument 'photos': a value follows its flag (--checkpoint"),
    "unfinished run": (["--checkpoint", "photos"], "no model.json in photos: expected the folder of a finished run"),
    "absent device": ([*EMBEDDINGS, "--run.device", "mps"], "run.device 'mps' is not present on this machine"),
    "k": ([*EMBEDDINGS, "--k", "0"], "ks: each K must be an integer of at least 1, found 0"),
    "ks": ([*EMBEDDINGS, "--eval.ks", "[0]"], "eval.ks must be positive numbers, found [0]"),
    "sheet of files": ([*EMBEDDINGS, "--sheet", "s.png"], "--sheet belongs to --checkpoint or --model"),
    "sheet": ([*MODEL, "--sheet", "x.txt"], "--sheet x.txt: a file of suffix '.txt' cannot be written"),
    "curves": ([*EMBEDDINGS, "--curves", "x.txt"], "--curves x.txt: a file of suffix '.txt' cannot be written"),
    "html": ([*EMBEDDINGS, "--html", "."], "--html . is a folder: name a file in it"),
    "in a file": ([*EMBEDDINGS, "--json", "file/r.json"], "Not a directory: file/r.json"),
    "read-only": ([*EMBEDDINGS, "--csv", "/proc/none/r.csv"], "/proc/none/r.csv"),
    "store": ([*MODEL, "--save-embeddings", "file"], "Not a directory: file"),
    "store in use": ([*MODEL, "--save-embeddings", "photos"], "photos: holds other files: name an empty folder"),
    "device": ([*EMBEDDINGS, "--run.device", "gpu"], "unknown run.device 'gpu': use auto, cpu, mps, cuda or cuda:N"),
    "data option": (
        [*MODEL, "--data.name", "folder", "--data.root", "photos", "--data.options.sed", "1"],
        "unknown option of data set folder in data.options 'sed': did you mean 'seed'?",
    ),
}
SEARCH = ["index", "--images", "photos", "--out", "index", "--checkpoint", "photos"]
DUPLICATES = ["folder", "--root", "photos", "--duplicates", "duplicates.html"]
COMMANDS = {
    "train": MISTAKES,
    "eval_retrieval": EVAL_MISTAKES,
    "sparsify": {
        "dense run": (
            ["--config", "flowers17_cs", "--sparsify.dense_run", "nowhere"],
            "sparsify.dense_run: nowhere does not exist",
        )
    },
    "prepare_dataset": {
        "similarity": (
            [*DUPLICATES, "--similarity", "95"],
            "--similarity is a cosine similarity from -1 to 1, found 95",
        ),
        "device": ([*DUPLICATES, "--device", "gpu"], "unknown --device 'gpu': use auto, cpu, mps, cuda or cuda:N"),
    },
    "search": {
        "index type": ([*SEARCH, "--milvus-index", "FLAT"], "index is given with --faiss, not --milvus-index ('FLAT')"),
    },
}
# Calls a command with one list of arguments after the other: [status, errors, whether it imported torch] of each.
IN_TURN = """
import contextlib, io, json, sys
sys.platform = 'linux'
from hgsl.cli.{command} import main
results = []
for words in json.loads(sys.argv[1]):
    before, errors = 'torch' in sys.modules, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main(words)
    results.append([status, errors.getvalue(), not before and 'torch' in sys.modules])
print(json.dumps(results))
"""
Result = tuple[int, str, bool]


def results_of(command: str, *arguments: list[str], folder: Path) -> list[Result]:
    code = [sys.executable, "-c", IN_TURN.format(command=command), json.dumps(arguments)]
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Result]]:
    """Command -> mistake -> its result."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "photos").mkdir()
    for name in ("photos/a.jpg", "file", "e.npy", "l.npy"):
        (folder / name).write_bytes(b"x")
    run_folder.create(folder / "taken", Config(), {}, overwrite=False)
    (folder / "taken" / run_folder.STATE).write_bytes(b"x")
    results = {}
    for command, mistakes in COMMANDS.items():
        arguments = [words for words, _ in mistakes.values()]
        results[command] = dict(zip(mistakes, results_of(command, *arguments, folder=folder), strict=True))
    return results


@pytest.mark.parametrize(
    ("command", "mistake"), [(command, mistake) for command, mistakes in COMMANDS.items() for mistake in mistakes]
)
def test_a_mistake_is_one_line_before_torch_is_imported(
    command: str, mistake: str, results: dict[str, dict[str, Result]]
) -> None:
    status, errors, imports_torch = results[command][mistake]
    assert (status, imports_torch) == (2, False)
    assert errors.startswith("error: ")
    assert COMMANDS[command][mistake][1] in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", DATASETS)
def test_options_in_the_sources_are_those_of_the_adapters(name: str) -> None:
    hints = get_type_hints(DATASETS[name])
    parameters = inspect.signature(DATASETS[name]).parameters
    assert option_types(name) == {option: hints[option] for option in parameters if option != "root"}


def test_matplotlib_writes_the_formats_of_figures() -> None:
    assert set(FigureCanvasBase.get_supported_filetypes()) >= FIGURE_SUFFIXES >= {"png", "pdf", "svg"}


def test_a_wrong_report_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"map@r": 0.5, "split_hash": "0", "protocol": "p", "num_queries": 2}')
    [(status, errors, imports_torch)] = results_of("compare", ["a.json", "b.json"], folder=tmp_path)
    assert (status, imports_torch) == (2, False)
    assert errors.startswith("error: b.json: no such report; expected a file of hgsl eval --json")


def test_real_names_of_timm_pass(tmp_path: Path) -> None:
    code = (
        "from hgsl.cli._names import _check_backbone as check; import sys\n"
        "for name in ('resnet50', 'vit_small_patch16_224.augreg_in1k', 'test_vit', 'hf-hub:timm/a'): check(name)\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
