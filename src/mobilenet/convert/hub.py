"""Published ImageNet weights from the Hugging Face hub, by short names: fetched on first use, cached, checked.

The hub's client keeps the cache and honours HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. The file of weights is checked
each time against the hash that the hub gave for it, which is its name in the cache.
"""

import difflib
import hashlib
import re
from pathlib import Path

from ..common.files import shown
from ..errors import MobileNetError, ModelError, UsageError
from ..model import PUBLISHED
from .model_folder import CONFIG, PROCESSOR, WEIGHTS, labels

_LABELS = "google/mobilenet_v2_1.0_224"  # whose config has ImageNet's labels, after that of the background
_CHUNK = 1 << 20


# timm's are the more accurate ones, where there is one; 75.4% and 72.9% top-1 for alpha 1. Its "d" are deeper, its "h"
# has a head convolution.
REPOSITORIES = {
    "v1-1.25-224": "timm/mobilenetv1_125.ra4_e3600_r224_in1k",
    "v1-1.0h-224": "timm/mobilenetv1_100h.ra4_e3600_r224_in1k",
    "v1-1.0-224": "timm/mobilenetv1_100.ra4_e3600_r224_in1k",
    "v1-0.75-192": "google/mobilenet_v1_0.75_192",
    "v2-1.4-224": "timm/mobilenetv2_140.ra_in1k",
    "v2-1.2d-224": "timm/mobilenetv2_120d.ra_in1k",
    "v2-1.1d-224": "timm/mobilenetv2_110d.ra_in1k",
    "v2-1.0-224": "timm/mobilenetv2_100.ra_in1k",
    "v2-0.75-160": "google/mobilenet_v2_0.75_160",
    "v2-0.5-224": "timm/mobilenetv2_050.lamb_in1k",
    "v2-0.35-96": "google/mobilenet_v2_0.35_96",
}


def fetch(name: str) -> tuple[Path, list[str] | None]:
    """Returns the folder of published weights, as "imagenet/v2-1.0-224", in the hub's cache.

    With it come ImageNet's 1000 labels where the folder's own config has none.

    Raises:
        UsageError: the name is unknown, names the nearest; or huggingface_hub is not installed.
        MobileNetError: the hub can't be reached, and the cache does not have it.
        ModelError: a cached file is damaged.
    """
    short = name.removeprefix(PUBLISHED)
    if short not in REPOSITORIES:
        near = difflib.get_close_matches(short, REPOSITORIES, n=1)
        hint = f"did you mean {PUBLISHED}{near[0]}?" if near else f"known are {', '.join(REPOSITORIES)}"
        raise UsageError(f"weights: {shown(name)} is not published; {hint}")
    repository = REPOSITORIES[short]
    folder = _download(repository, CONFIG).parent
    weights = _download(repository, WEIGHTS)
    _check(weights)
    if repository.startswith("timm/"):
        return folder, (labels(_download(_LABELS, CONFIG)) or [])[1:]
    _download(repository, PROCESSOR)
    return folder, None


def _download(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise UsageError(
            f"{repository}: fetching published weights needs huggingface_hub: pip install 'mobilenet[hub]'"
        ) from None
    try:
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError as error:
        raise MobileNetError(
            f"{repository}: the hub can't be reached and {file} is not in its cache; connect once, or convert a "
            "file that you have"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise MobileNetError(f"{repository}: the hub has no {file} there (any more)") from error
    except (HfHubHTTPError, OSError) as error:
        raise MobileNetError(f"{repository}: {file} can't be fetched: {shown(str(error))}") from error


def _check(path: Path) -> None:
    """Raises unless the file has the hash that the hub names it by: SHA-256, or git's for small files."""
    name = path.resolve().name
    size = path.stat().st_size
    if re.fullmatch("[0-9a-f]{64}", name):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", name):
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        raise ModelError(f"{shown(path)}: the cache does not tell its hash; it is not used")
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != name:
        raise ModelError(
            f"{shown(path.resolve())}: damaged: its hash is {digest.hexdigest()}, the hub's {name}; remove it and it "
            "is fetched anew"
        )
