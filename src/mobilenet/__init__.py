"""MobileNet V1 and V2, from formula to labels.

    import mobilenet

    network = mobilenet.v2(alpha=0.5, resolution=160, classes=10)  # or v1; an architecture, no weights
    print(mobilenet.cost(network))
    model = mobilenet.load("flowers/")  # or mobilenet.create(network)
    model.predict("rose.jpg").top(5)

Names are imported when they are first asked for: numpy comes with the first model, torch with the first training.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arch import Conventions as Conventions
    from .arch import Layer as Layer
    from .arch import Network as Network
    from .arch import Shape as Shape
    from .arch import conventions as conventions
    from .arch import sources as sources
    from .arch import v1 as v1
    from .arch import v2 as v2
    from .budget import choose as choose
    from .convert import convert as convert
    from .convert.keras_model import keras_model as keras_model
    from .cost import cost as cost
    from .engine import Engine as Engine
    from .errors import DataError as DataError
    from .errors import DatasetError as DatasetError
    from .errors import GateError as GateError
    from .errors import MobileNetError as MobileNetError
    from .errors import ModelError as ModelError
    from .errors import PhotoError as PhotoError
    from .errors import UsageError as UsageError
    from .export import Exported as Exported
    from .export import export as export
    from .model import MobileNet as MobileNet
    from .model import MobileNetV2 as MobileNetV2
    from .model import Model as Model
    from .model import Prediction as Prediction
    from .model import create as create
    from .model import load as load
    from .photos.preprocessing import Preprocessing as Preprocessing

__version__ = "0.1.0"

_HOMES = {
    "arch": ("Conventions", "Layer", "Network", "Shape", "conventions", "sources", "v1", "v2"),
    "budget": ("choose",),
    "convert": ("convert",),
    "convert.keras_model": ("keras_model",),
    "cost": ("cost",),
    "engine": ("Engine",),
    "errors": (
        "DataError",
        "DatasetError",
        "GateError",
        "MobileNetError",
        "ModelError",
        "PhotoError",
        "UsageError",
    ),
    "export": ("Exported", "export"),
    "model": ("MobileNet", "MobileNetV2", "Model", "Prediction", "create", "load"),
    "photos.preprocessing": ("Preprocessing",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module `mobilenet.cost` would put the module in the place of the function of the same name.
        if _HOME.get(name) != name:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
