"""Labels of photos that are called after them, behind the first "_" of their names."""

from collections.abc import Sequence
from pathlib import Path


def read(path: Path | None) -> list[str]:
    """Returns the labels of a text file with one a line, as `index` compares them; none without a file."""
    return [_plain(line) for line in path.read_text().splitlines()] if path else []


def index(photo: Path, labels: Sequence[str]) -> int:
    """Returns the index of a photo's own label."""
    return labels.index(_plain(photo.stem.partition("_")[2]))


def _plain(label: str) -> str:
    """Returns a label's first name, without signs."""
    return label.partition(",")[0].lower().replace("_", " ").replace("-", " ").replace("'", "")
