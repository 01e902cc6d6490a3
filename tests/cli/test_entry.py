"""The command ``hgsl``: version, extras, commands, and requirements of the installation."""

import configparser
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hgsl.cli import _summary, entry
from hgsl.common import extras
from hgsl.common.device import pick_device, pick_precision
from hgsl.version import __version__

SETUP = Path(__file__).parents[2] / "setup.cfg"


def test_version_names_packages_device_precision_and_extras() -> None:
    done = subprocess.run([sys.executable, "-m", "hgsl", "--version"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"hgsl {__version__}"
    assert all(name in lines[1] for name in ("python 3.", "torch 2.", "timm ", "faiss-cpu "))
    device = pick_device("auto")
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    assert f"device {device}" in lines[2]
    assert f"precision {precision}" in lines[2]
    assert [line.split()[1] for line in lines[3:]] == [f"[{extra}]:" for extra in extras.EXTRAS]


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    assert "extra [export]: missing onnxruntime: pip install 'hgsl[export]'" in _summary.about()


def test_without_arguments_it_lists_the_installed_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 0
    printed = capsys.readouterr().out
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    entries = re.findall(r"^([\w-]+) = ", setup["options.entry_points"]["console_scripts"], re.MULTILINE)
    assert set(entries) == {"hgsl", *(f"hgsl-{name}" for name in entry.COMMANDS)}
    assert all(f"  {name} " in printed for name in entry.COMMANDS)


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_a_command_of_hgsl_is_the_command_installed_under_its_own_name(name: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    scripts = dict(re.findall(r"^([\w-]+) = (.+)$", setup["options.entry_points"]["console_scripts"], re.MULTILINE))
    function = "evaluate" if name == "eval" else name
    assert scripts[f"hgsl-{name}"] == f"hgsl.cli.entry:{function}"
    code = f"import sys; from hgsl.cli.entry import {function}; sys.argv = ['hgsl-{name}', '--help']; {function}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: hgsl-{name} ")


# Ctrl-C arrives when the module that the second argument names is first imported.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from hgsl.cli import entry

class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

function, module, *sys.argv = sys.argv[1:]
sys.meta_path.insert(0, Interrupt)
getattr(entry, function)()
"""


@pytest.mark.parametrize(
    "words",
    [
        ["main", "hgsl.cli._summary", "hgsl"],
        ["main", "hgsl.cli.train", "hgsl", "train"],
        ["train", "jsonargparse", "hgsl-train"],
        ["evaluate", "hgsl.config", "hgsl-eval"],
        ["search", "PIL", "hgsl-search", "index"],
        ["prepare", "argparse", "hgsl-prepare"],
    ],
    ids=lambda words: words[1],
)
def test_an_interrupt_during_the_imports_of_a_command_is_one_line(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_entry_point_handles_an_interrupt_before_any_larger_import() -> None:
    code = f"import sys; sys.path.insert(0, {str(SETUP.parent)!r}); import hgsl.cli.entry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"typing", "argparse", "pathlib", "re", "multiprocessing"} & set(done.stdout.split())


def test_the_usage_names_the_command_as_it_was_typed() -> None:
    command = [sys.executable, "-m", "hgsl", "compare", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: hgsl compare ")


def test_an_unknown_command_is_one_line_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["trian", "--config", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'trian': did you mean 'train'?")


def test_the_extras_are_those_of_the_metadata() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(SETUP)
    declared = setup["options.extras_require"]
    assert set(declared) == set(extras.EXTRAS)
    for extra, modules in extras.EXTRAS.items():
        packages = declared[extra].replace("-", "_").replace("mkdocs_material", "mkdocs material").lower()
        for module in modules:
            assert module.lower() in packages, (extra, module)


def test_every_requirement_has_a_minimum_version() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(SETUP)
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(lists).split("\n"):
        assert not line.strip() or line.strip().startswith("%(") or ">=" in line, line
