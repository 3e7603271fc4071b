"""Checkpoints of a training: one file each, named with the SHA-256 of its bytes, written whole or not at all.

A checkpoint is a safetensors file of flat float32 vectors with JSON facts in its metadata. The hash in the name makes
damage anywhere in the file, its header included, visible before a byte of it is used. The two newest are kept, so
that there is one to go back to.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..common.files import read_regular, shown, write_atomic
from ..errors import DataError, ModelError

KEPT = 2

_FORMAT = {"format": "mobilenet-checkpoint", "version": "1"}
_NAME = re.compile(r"step-(\d{8,12})-([0-9a-f]{64})\.safetensors")
_HEADER_LIMIT = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Holds the state of a training after `step` steps: flat vectors by name, and facts that JSON can say."""

    step: int
    vectors: Mapping[str, NDArray[np.float32]]
    facts: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint and returns its path; of the others only the newest from an earlier step is kept.

    Files of the same or later steps go: a training that writes this one has gone back behind them.

    Raises:
        MobileNetError: names the path and the system's reason; the checkpoints from before are as they were.
    """
    metadata = _FORMAT | {"step": str(checkpoint.step), "facts": json.dumps(checkpoint.facts, allow_nan=False)}
    data = save_tensors(dict(checkpoint.vectors), metadata)
    path = folder / f"step-{checkpoint.step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    write_atomic(path, data)
    before = [found for step, _, found in _list(folder) if step < checkpoint.step][: KEPT - 1]
    for _, _, found in _list(folder):
        if found not in (path, *before):
            with contextlib.suppress(OSError):  # one too many does no harm
                os.unlink(found)
    return path


def newest(folder: Path, sizes: Mapping[str, int]) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest whole checkpoint (None where there is none) and a sentence about each damaged one.

    Args:
        folder: may be missing.
        sizes: the vectors that a checkpoint of this training has, with their lengths.

    Raises:
        ModelError: a whole checkpoint has other vectors than `sizes`; names it and the vector.
    """
    limit = 4 * sum(sizes.values()) + _HEADER_LIMIT
    troubles: list[str] = []
    for step, digest, path in _list(folder):
        try:
            data = read_regular(path, limit, follow_symlinks=False)
        except DataError as error:
            troubles.append(str(error))
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return _parse(path, step, data, sizes), troubles
        troubles.append(f"{shown(path)}: is damaged: its bytes don't have the SHA-256 that is in its name")
    return None, troubles


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of writers that were killed; only for who holds the training's lock."""
    for path in folder.glob(".*.tmp"):
        os.unlink(path)


def _list(folder: Path) -> list[tuple[int, str, Path]]:
    """Returns (step, hash, path) of the files with a checkpoint's name, newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(((int(m[1]), m[2], folder / m[0]) for m in matches), reverse=True)


def _parse(path: Path, step: int, data: bytes, sizes: Mapping[str, int]) -> Checkpoint:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header["__metadata__"]
        facts = json.loads(metadata["facts"])
        vectors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: is not a checkpoint: {error}") from error
    if metadata != _FORMAT | {"step": str(step), "facts": metadata["facts"]} or not isinstance(facts, dict):
        raise ModelError(f"{shown(path)}: is not a checkpoint of this version at step {step}")
    for name in sorted(sizes.keys() | vectors.keys()):
        found = f"{vectors[name].dtype} {list(vectors[name].shape)}" if name in vectors else "nothing"
        needed = f"float32 [{sizes[name]}]" if name in sizes else "nothing"
        if found != needed:
            raise ModelError(f"{shown(path)}: holds {found} as {name!r}, the training needs {needed}")
    return Checkpoint(step, vectors, facts)
