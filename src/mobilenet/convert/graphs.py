"""TFLite files and frozen graphs as sources: the model that their readers find, with the user's options."""

import dataclasses
from pathlib import Path

from ..errors import UsageError
from ..model import Model
from ..storage.folder import Stored
from . import frozen_graph, tflite
from .source import Options, finish


def read_tflite(path: Path, options: Options) -> Stored:
    """Returns the parts of a TFLite file's model; raises as `tflite.read`.

    Raises:
        UsageError: a pixel scaling or another resolution is asked for of a network of whole numbers.
    """
    model = tflite.read(path, allow_nonfinite=options.allow_nonfinite, rescale=options.rescale)
    return _stored(path, "TFLite", model, options)


def read_frozen_graph(path: Path, options: Options) -> Stored:
    """Returns the parts of a frozen graph's model; raises as `frozen_graph.read`."""
    model = frozen_graph.read(path, allow_nonfinite=options.allow_nonfinite)
    return _stored(path, "TensorFlow frozen graph", model, options)


def _stored(path: Path, title: str, model: Model, options: Options) -> Stored:
    notes = dict(model.notes["imported"])
    tensors = model.tensors
    if model.precision == "int8":
        if options.scaling:
            raise UsageError(f"scaling: got {options.scaling!r}, but to this network of whole numbers the bytes "
                             "are the input; needed is none")  # fmt: skip
        own = (model.network.height, model.network.width)
        if options.sides(own) != own:
            raise UsageError(f"resolution: got {options.resolution!r}, but this network of whole numbers is one for "
                             f"{own[0]}x{own[1]} alone")  # fmt: skip
        model = model if options.include_top else model.without_top()
        options, tensors = dataclasses.replace(options, include_top=True), {}
    if options.scaling:
        notes["pixel scaling"] = f"{options.scaling}, as asked for"
    stored = finish(
        path,
        title,
        model.network,
        tensors,
        options,
        labels=model._labels,
        preprocessing=vars(model.preprocessing),
        notes=notes,
    )
    if model.precision == "int8":
        return stored._replace(tensors=model.tensors, precision=model.precision, rescale=model.rescale)
    return stored
