"""TFLite files and frozen graphs as sources: the model that their readers find, with the user's options."""

from pathlib import Path

from ..model import Model
from ..storage.folder import Stored
from . import frozen_graph, tflite
from .source import Options, finish


def read_tflite(path: Path, options: Options) -> Stored:
    """Returns the parts of a TFLite file's model; raises as `tflite.read`."""
    return _stored(path, "TFLite", tflite.read(path, allow_nonfinite=options.allow_nonfinite), options)


def read_frozen_graph(path: Path, options: Options) -> Stored:
    """Returns the parts of a frozen graph's model; raises as `frozen_graph.read`."""
    model = frozen_graph.read(path, allow_nonfinite=options.allow_nonfinite)
    return _stored(path, "TensorFlow frozen graph", model, options)


def _stored(path: Path, title: str, model: Model, options: Options) -> Stored:
    notes = dict(model.notes["imported"])
    if options.scaling:
        notes["pixel scaling"] = f"{options.scaling}, as asked for"
    return finish(
        path,
        title,
        model.network,
        model.tensors,
        options,
        labels=model._labels,
        preprocessing=vars(model.preprocessing),
        notes=notes,
    )
