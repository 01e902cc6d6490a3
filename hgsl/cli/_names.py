"""Names of parts in the settings, checked against the dicts of the packages before torch is imported."""

import ast
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hgsl.common.data_options import check_data_options
from hgsl.common.errors import InputError, unknown
from hgsl.common.extras import EXTRAS, require
from hgsl.common.library_parts import trainable
from hgsl.common.model_source import check_backbone_source, is_timm_name
from hgsl.common.suggestions import nearest
from hgsl.config import Config, SparsifyConfig

# Setting -> module and names of the tables that list its values.
TABLES = {
    "data.name": ("hgsl.data.adapters", "DATASETS"),
    "data.protocol": ("hgsl.data.protocols", "PROTOCOLS"),
    "data.sampler": ("hgsl.data.samplers", "SAMPLERS"),
    "model.pooling": ("hgsl.models.pooling", "POOLINGS", "CHOICES"),
    "optim.name": ("hgsl.engine.parts.optim", "OPTIMIZERS", "TIMM_OPTIMIZERS"),
    "optim.schedule": ("hgsl.engine.parts.optim", "SCHEDULES"),
}


def check_names(config: Config) -> None:
    """Checks that the tables of the packages contain the names of the parts.

    Raises:
        InputError: The message names the nearest one.
    """
    classifies = isinstance(config.sparsify, SparsifyConfig) and config.sparsify.task == "classification"
    for setting, (module, *tables) in TABLES.items():
        if classifies and setting.startswith(("data.", "model.")):
            continue
        section, _, name = setting.partition(".")
        value = getattr(getattr(config, section), name)
        known = [name for table in tables for name in names_in(module, table)]
        if value not in known:
            raise unknown(setting, value, known)
    known = names_in("hgsl.engine.trackers", "TRACKERS")
    for name in config.run.trackers:
        if name not in known:
            raise unknown("run.trackers", name, known)
        if name in EXTRAS:
            require(name, f"run.trackers {name}")
    if not classifies:
        _check_data_options(config.data.name, config.data.options)
    _check_loss("loss.name", config.loss.name, "losses", names_in("hgsl.losses", "LOSSES"))
    if config.loss.miner is not None:
        _check_loss("loss.miner", config.loss.miner, "miners", [])
    if not (classifies and config.model.backbone == "resnet20"):
        _check_backbone(config.model.backbone)
    if config.loss.teacher is not None and is_timm_name(config.loss.teacher):
        _check_backbone(config.loss.teacher, "loss.teacher: no folder and no timm model is named")


def names_in(module: str, table: str) -> list[str]:
    """Returns the names in a table of a module, read from its source if the module is not loaded.

    Args:
        module: A module of hgsl; importing it would import torch, which takes seconds.
        table: A dict display with string keys, or a tuple of strings.
    """
    if loaded_module := sys.modules.get(module):
        return list(getattr(loaded_module, table))
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets: list[Any] = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            value: Any = node.value  # type: ignore[attr-defined]
            entries = value.keys if isinstance(value, ast.Dict) else value.elts
            return [ast.literal_eval(entry) for entry in entries if entry is not None]
    raise LookupError(f"{source} has no table {table}")


def option_types(dataset: str) -> dict[str, Any]:
    """Returns the type of each option of a data set, read from the source of its adapter."""
    package = Path(__file__).parents[2]
    table = ast.parse((package / "hgsl/data/adapters/__init__.py").read_text(encoding="utf-8"))
    sources = {
        alias.name: package.joinpath(*str(node.module).split("."), f"{alias.name}.py")
        for node in table.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    adapters = next(node.value for node in ast.walk(table) if isinstance(node, ast.AnnAssign))
    assert isinstance(adapters, ast.Dict)
    names = [ast.literal_eval(key) for key in adapters.keys if key is not None]
    module, _, function = ast.unparse(adapters.values[names.index(dataset)]).partition(".")
    body = ast.parse(sources[module].read_text(encoding="utf-8")).body
    load = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    parameters = [*load.args.args, *load.args.kwonlyargs]
    return {parameter.arg: _type_of(parameter.annotation) for parameter in parameters if parameter.arg != "root"}


def _type_of(annotation: ast.expr | None) -> Any:
    if isinstance(annotation, ast.BinOp):
        return _type_of(annotation.left) | _type_of(annotation.right)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return type(None)
    known = {"bool": bool, "float": float, "int": int, "str": str, "Path": Path}
    return known.get(ast.unparse(annotation), object) if annotation else object


def _check_data_options(name: str, options: Mapping[str, Any]) -> None:
    if "hgsl.data" in sys.modules:
        return  # which checks them, with the adapters that a caller has added
    check_data_options(name, options, option_types(name), source="data.options")


def _check_loss(setting: str, name: str, part: str, package_names: list[str]) -> None:
    """Checks that this package or pytorch-metric-learning has the name, if the latter is installed."""
    package = find_spec("pytorch_metric_learning")
    if name in package_names or package is None or package.origin is None:
        return
    source = (Path(package.origin).parent / part / "__init__.py").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    known = [*package_names, *(alias.asname or alias.name for node in imports for alias in node.names)]
    if name not in known:
        raise unknown(setting, name, trainable(known))


def _check_backbone(name: str, problem: str = "unknown model.backbone") -> None:
    """Checks that a name occurs in timm's sources, which contain all model names and take seconds to import."""
    if ":" in name:
        check_backbone_source(name)
        return
    package = find_spec("timm")
    if "timm" in sys.modules or package is None or package.origin is None:
        return  # checked when the model is built
    base = name.partition(".")[0]
    sources = [path.read_text(encoding="utf-8") for path in (Path(package.origin).parent / "models").glob("*.py")]
    if any(f"def {base}(" in source or f"'{base}'" in source or f'"{base}"' in source for source in sources):
        return
    models = [model for source in sources for model in re.findall(r"^def ([a-z]\w*)\(pretrained", source, re.MULTILINE)]
    close = nearest(name, models)
    hint = f"did you mean {close!r}?" if close else "any model name of timm is accepted, see timm.list_models()"
    raise InputError(f"{problem} {name!r}: {hint}")
