"""Optional parts of the installation: what each extra brings, and the one line a user gets where it is missing."""

from importlib.util import find_spec

from hgsl.common.errors import InputError

# Extra -> the modules it is needed for, as they are imported; setup.cfg names the packages they come from.
EXTRAS: dict[str, tuple[str, ...]] = {
    "pml": ("pytorch_metric_learning",),
    "serve": ("fastapi", "uvicorn"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "docs": ("mkdocs", "material", "mkdocstrings"),
    "dev": ("hypothesis", "mypy", "playwright", "pytest", "ruff"),
}


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed; nothing is imported to find out."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require(extra: str, purpose: str) -> None:
    """Passes if every module of ``extra`` is installed.

    Args:
        extra: One of ``EXTRAS``.
        purpose: What the user wanted, as the subject of the message.

    Raises:
        InputError: Some are not; the message says how to install them.
    """
    absent = missing(extra)
    if absent:
        raise InputError(f"{purpose} needs {', '.join(absent)}: pip install 'hgsl[{extra}]'")
