"""Mistakes that the commands of training find before they import torch or read data."""

import subprocess
import sys
from pathlib import Path

import pytest

from hgsl.config import Config
from hgsl.engine.folder import run_folder

MISTAKES = {
    "data set": (["--data.name", "floder"], "unknown data.name 'floder': did you mean 'folder'?"),
    "root": (["--data.root", "nowhere"], "nowhere does not exist"),
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
    "miner": (
        ["--loss.name", "TripletMarginLoss", "--loss.miner", "TripletMiner"],
        "unknown loss.miner 'TripletMiner': did you mean 'TripletMarginMiner'?",
    ),
    "optimizer": (["--optim.name", "adamx"], "unknown optim.name 'adamx': did you mean 'adamw'?"),
    "schedule": (["--optim.schedule", "cosin"], "unknown optim.schedule 'cosin': did you mean 'cosine'?"),
    "device": (["--run.device", "auto:1"], "unknown run.device 'auto:1': use auto, cpu, mps, cuda or cuda:N"),
    "recipe": (["--config", "foldr"], "did you mean --config folder?"),
    "folder in use": (["--run.dir", "taken"], "run folder taken exists: --overwrite replaces it"),
    "folder of something else": (["--run.dir", "photos"], "photos holds other files and is no run folder"),
    "nothing to resume": (["--run.dir", "new", "--resume"], "no run to resume in new"),
    "other settings": (["--run.dir", "taken", "--resume"], "and the run in taken began with"),
    "a file": (["--run.dir", "file/run"], "is a file: name another with --run.dir"),
    "read-only": (["--run.dir", "/proc/run"], "run folder /proc/run: /proc cannot be written"),
}
IMPORTS = """
import sys
from hgsl.cli.{command} import main
code = main(sys.argv[1:])
print('torch' in sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "_"))
def test_a_mistake_is_one_line_before_torch_is_imported(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.jpg", "file"):
        (tmp_path / name).write_bytes(b"x")
    run_folder.create(tmp_path / "taken", Config(), {}, overwrite=False)
    (tmp_path / "taken" / run_folder.STATE).write_bytes(b"x")
    words, message = MISTAKES[mistake]
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(command="train"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout.splitlines()[-1] == "False"
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_report_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"map@r": 0.5, "split_hash": "0", "protocol": "p", "num_queries": 2}')
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(command="compare"), "a.json", "b.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout.splitlines()[-1] == "False"
    assert result.stderr.startswith("error: b.json: no such report; expected a file of hgsl eval --json")


def test_real_names_of_timm_pass(tmp_path: Path) -> None:
    code = (
        "from hgsl.cli._names import _check_backbone as check; import sys\n"
        "for name in ('resnet50', 'vit_small_patch16_224.augreg_in1k', 'test_vit', 'hf-hub:timm/a'): check(name)\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_finished_run_of_a_ticket_search_is_needed_beside_it(tmp_path: Path) -> None:
    code = IMPORTS.format(command="sparsify")
    words = ["--config", "flowers17_cs", "--sparsify.dense_run", "nowhere"]
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout.strip()) == (2, "False")
    assert "sparsify.dense_run: nowhere does not exist" in result.stderr
    assert result.stderr.count("\n") == 1
