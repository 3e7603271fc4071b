"""Weights as the files of other libraries, which `convert` writes, with the report that all exports give."""

from pathlib import Path

from ..convert import FORMATS
from ..convert import write as convert_write
from ..model import Model
from . import Exported


def write(model: Model, path: Path, format: str) -> Exported:
    """Writes a model as `convert.write` does, and raises as it does."""
    convert_write(model, path, format)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    sizes = {str(file): file.stat().st_size for file in files}
    return Exported(sizes, format, f"for {FORMATS[format].title}; it was not run there", None)
