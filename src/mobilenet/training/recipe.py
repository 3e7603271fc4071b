"""The recipe of a training: from the `Settings` that a user asks for to the `Plan` that is done, every choice made.

Neither torch nor numpy is imported here. What a user leaves open is decided by `decide`, whose rules are the constants
above it, is written down in the training's `run.json`, and is not decided again on `--resume`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import arch
from ..arch import Network
from ..common.checks import boolean, exact_fields, fields
from ..errors import UsageError
from ..photos.preprocessing import Preprocessing
from .settings import OPERATION, Augment, Precision, Settings
from .settings import add_arguments as add_arguments
from .settings import settings_from as settings_from


@dataclass(frozen=True)
class Plan:
    """Holds every choice that the result of a training depends on, the photos apart.

    Attributes:
        network, preprocessing: of the model to be made.
        fine_tuning: whether the weights come from another model.

    The other fields are those of `Settings`.
    """

    network: Network
    preprocessing: Preprocessing
    fine_tuning: bool
    epochs: int
    minutes: float | None
    batch: int
    micro_batches: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    average: float
    clip: float
    augment: Augment
    precision: Precision
    patience: int
    validation: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, the inverse of `from_dict`."""
        shallow = {name: getattr(self, name) for name in fields(Plan)}
        return shallow | {"network": self.network.to_dict(), "preprocessing": self.preprocessing.to_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Plan":
        """Builds a plan from `to_dict`'s data: all fields, none unknown.

        Raises:
            UsageError, ModelError: names the field that is missing, unknown or outside its rule.
        """
        given = exact_fields("plan", data, Plan)
        given["network"] = Network.from_dict(given["network"])
        given["preprocessing"] = Preprocessing.from_dict(given["preprocessing"])
        boolean("fine_tuning", given["fine_tuning"])
        plan = Plan(**given)
        for left_out in ("epochs", "minutes"):  # the two exclude each other as settings
            Settings(**{name: getattr(plan, name) for name in _SHARED if name != left_out})
        return plan

    def refuse_other(self, settings: Settings) -> None:
        """Raises a UsageError that names the first field that `settings` wants otherwise than this plan."""
        network = self.network
        done = {name: getattr(self, name) for name in _SHARED} | {
            "family": network.family,
            "alpha": network.alpha,
            "resolution": (network.height, network.width),
            "downsampling": network.downsampling,
        }
        for name, value in settings.given().items():
            if name == "source":
                same = arch.conventions(network.family, value) == network.conventions
            elif name == "resolution":
                same = done[name] == (value if isinstance(value, tuple) else (value, value))
            else:
                same = name in OPERATION or done[name] == value
            if not same:
                raise UsageError(
                    f"{name}: the training was begun with {done.get(name, 'other conventions')}, not {value}; "
                    "resume without this setting, or begin anew in another folder"
                )


_SHARED = tuple(name for name in fields(Plan) if name in fields(Settings))


class Photos(NamedTuple):
    """Is what the rules need to know of the data: photos to train on, classes, and the median of the shorter sides."""

    train: int
    validation: int
    classes: int
    side: float


# Rules, by the photos' median shorter side: up to it, this resolution and this downsampling. A photo's pixels are not
# multiplied, and the last feature map has 4 x 4 to 5 x 5 positions.
SIZES = ((48, 32, 8), (96, 64, 16), (math.inf, 160, 32))
LARGEST_BATCH = 128
LEAST_STEPS = 16  # an epoch, as far as batches of 16 allow
EPOCHS = (20, 120)  # least and most, from scratch
PASSES = 1_000_000  # photos seen, between those limits
STEPS = 1_500  # least in all
FINE_TUNING = 0.25  # of the epochs and steps, when the weights come from another model
HEAD_START = 990  # steps that its batch norm's statistics are worth: 0.991 of them are kept in the first step
RATE = 0.1  # for LARGEST_BATCH, in proportion for others (arXiv 1706.02677)
FINE_RATE = 0.02
QUANTIZED = 0.05  # of the epochs and steps, when the model is to be int8
QUANTIZED_RATE = 0.002
WARM_UP = 0.05  # of the steps
PATIENCE = (5, 1 / 3)  # epochs, and share of them: at least both


def decide(settings: Settings, photos: Photos, processes: int = 1, source: "Source | None" = None) -> Plan:
    """Makes every choice that the settings leave open; see the constants above for the rules.

    Args:
        settings: what the user asked for.
        photos: what the data is like.
        processes: how many train together.
        source: the network and preprocessing to go on from, whose fields are then the defaults.

    Raises:
        UsageError: names the setting that can't be, and why: too many micro-batches, patience without validation, a
            network that is none.
    """
    network = _network(settings, photos, source)
    batch = settings.batch or _batch(photos.train)
    steps = steps_per_epoch(photos.train, batch)
    is_int8 = settings.precision == "int8"
    if is_int8 and source is None:
        raise UsageError("precision: int8 trains the int8 model of a trained one; needed is --from MODEL")
    scale = QUANTIZED if is_int8 else FINE_TUNING if source else 1.0
    epochs = settings.epochs or max(
        min(max(PASSES // photos.train, EPOCHS[0]), EPOCHS[1]) * scale, STEPS * scale / steps, 1
    )
    patience = max(math.ceil(epochs * PATIENCE[1]), PATIENCE[0]) if photos.validation else 0
    if settings.patience and not photos.validation:
        raise UsageError(f"patience: {settings.patience} epochs for a better validation, but no photos to validate on")
    rate = (QUANTIZED_RATE if is_int8 else FINE_RATE if source else RATE) * batch / LARGEST_BATCH

    def chosen(name: str, default: Any) -> Any:
        value = getattr(settings, name)
        return default if value is None else value

    plan = Plan(
        network=network,
        preprocessing=_preprocessing(network, source),
        fine_tuning=source is not None,
        epochs=math.ceil(epochs),
        minutes=settings.minutes,
        batch=batch,
        micro_batches=chosen("micro_batches", processes),
        learning_rate=chosen("learning_rate", rate),
        weight_decay=chosen("weight_decay", 1e-4),
        label_smoothing=chosen("label_smoothing", 0.1),
        average=chosen("average", 0.999),
        clip=chosen("clip", 0.0),
        augment=chosen("augment", "standard"),
        precision=chosen("precision", "f32"),
        patience=chosen("patience", patience),
        validation=chosen("validation", 0.15),
        seed=chosen("seed", 0),
    )
    check_micro_batches(plan, photos.train, processes)
    return plan


class Source(NamedTuple):
    """Is what another model gives to a training that begins from it, weights apart."""

    network: Network
    preprocessing: Preprocessing


def _network(settings: Settings, photos: Photos, source: Source | None) -> Network:
    if source is not None:
        given = settings.given()
        wanted: dict[str, Any] = {name: given[name] for name in ("family", "alpha", "downsampling") if name in given}
        if settings.resolution is not None:
            sides = settings.resolution
            wanted["height"], wanted["width"] = sides if isinstance(sides, tuple) else (sides, sides)
        if settings.source is not None:
            wanted["conventions"] = arch.conventions(wanted.get("family", source.network.family), settings.source)
        return source.network.replace(classes=photos.classes, **wanted)
    side, downsampling = next((side, down) for limit, side, down in SIZES if photos.side <= limit)
    family: arch.Family = settings.family or "v2"
    described = arch.v1 if family == "v1" else arch.v2
    conventions = arch.conventions(family, settings.source or "paper")
    if settings.resolution is not None and settings.downsampling is None:
        sides = settings.resolution
        smaller = sides if isinstance(sides, int) else min(sides)
        downsampling = next(down for limit, _, down in SIZES if smaller <= limit)
    return described(
        settings.alpha or 0.5,
        settings.resolution or side,
        photos.classes,
        downsampling=settings.downsampling or downsampling,
        conventions=dataclasses.replace(conventions, background=False),
    )


def _preprocessing(network: Network, source: Source | None) -> Preprocessing:
    if source is not None:
        return dataclasses.replace(source.preprocessing, height=network.height, width=network.width)
    mean, std = arch.SCALINGS[network.conventions.scaling]
    # Small photos are taken whole: there is no border to spare.
    crop, resize = (1.0, "squash") if max(network.height, network.width) <= 64 else (0.875, "crop")
    return Preprocessing(network.height, network.width, network.channels, crop, resize, "bilinear", mean, std)


def _batch(train: int) -> int:
    """Returns the largest power of two that gives an epoch `LEAST_STEPS` steps, from 16 to `LARGEST_BATCH`."""
    fitting = 1 << int(math.log2(max(train / LEAST_STEPS, 1)))
    return min(max(fitting, 16), LARGEST_BATCH, max(train, 2))


def steps_per_epoch(train: int, batch: int) -> int:
    """Returns the number of nearly equal batches of at most `batch` photos, without a tiny one at the end."""
    return -(-train // batch)


def check_micro_batches(plan: Plan, train: int, processes: int) -> None:
    """Raises a UsageError unless every process gets a micro-batch, and every micro-batch two photos for batch norm."""
    if plan.micro_batches < processes:
        raise UsageError(
            f"micro_batches: {plan.micro_batches} are fewer than the {processes} processes; start at most "
            f"{plan.micro_batches}, or begin a training with more micro-batches"
        )
    smallest = train // steps_per_epoch(train, plan.batch) // plan.micro_batches
    if smallest < 2:
        raise UsageError(
            f"micro_batches: {train} photos in batches of {plan.batch} leave {smallest} photo(s) for some of "
            f"{plan.micro_batches} micro-batches; batch norm needs two: take fewer micro-batches or another batch"
        )


def learning_rate(plan: Plan, step: int, steps: int) -> float:
    """Returns the learning rate of one of `steps` steps: linear warm-up, then half a cosine to 0 (arXiv 1608.03983)."""
    warm = max(round(steps * WARM_UP), 1)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def kept_share(decay: float, step: int, head_start: int = 0) -> float:
    """Returns the share of a moving average that a step keeps: less than `decay` in the beginning.

    Without it the first values, which mean nothing, would weigh on the average for 1 / (1 - decay) steps. The same
    warm-up as in TensorFlow's `ExponentialMovingAverage(num_updates=…)`. Values that do mean something get a head start
    of as many steps as they are worth.
    """
    return min(decay, (1 + head_start + step) / (10 + head_start + step))
