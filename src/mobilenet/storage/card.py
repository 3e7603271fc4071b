"""The model card: a README.md made of facts alone, what the network is and costs, and what the run noted."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..arch import Network
from ..common.text import bytes_text
from ..cost import cost

_SHOWN_LABELS = 20


def text(
    network: Network, labels: Sequence[str] | None, notes: Mapping[str, Any], int8_bytes: int | None = None
) -> str:
    """Returns the card in Markdown.

    Args:
        network: the architecture.
        labels: of the classes, or None.
        notes: section -> fact -> value, as {"Accuracy": {"top-1": 0.93}}; a value that is no section of its own stands
            in the section "Facts".
        int8_bytes: size of the weights of an int8 model; None for float32.
    """
    paper = {"v1": "arXiv 1704.04861", "v2": "arXiv 1801.04381"}[network.family]
    spent = cost(network, bytes_per_element=1 if int8_bytes else 4)
    facts = {
        "Architecture": f"{network} ({paper})",
        "Multiply-adds": f"{spent.macs:,}",
        "Parameters": f"{spent.params:,}",
        "Weights": bytes_text(int8_bytes or 4 * spent.total_params) + (", int8" if int8_bytes else ""),
        "Peak memory of activations": bytes_text(spent.peak_memory),
        "Classes": _classes(network, labels),
    }
    loose = {name: value for name, value in notes.items() if not isinstance(value, Mapping)}
    sections = {"Model": facts, "Facts": loose} | {n: v for n, v in notes.items() if isinstance(v, Mapping)}
    parts = [f"# {network}", _USE, *(_section(name, rows) for name, rows in sections.items() if rows)]
    return "\n\n".join(parts) + "\n"


_USE = """A model of [mobilenet](https://pypi.org/project/mobilenet/). Written with the weights, from facts of the run.

```sh
mobilenet predict . photo.jpg
```"""


def _classes(network: Network, labels: Sequence[str] | None) -> str:
    if not network.include_top:
        return "none, the network ends before its classifier"
    if labels is None:
        return f"{network.classes:,}, numbered"
    more = f" and {len(labels) - _SHOWN_LABELS:,} more" if len(labels) > _SHOWN_LABELS else ""
    return f"{network.classes:,}: {', '.join(labels[:_SHOWN_LABELS])}{more}"


def _section(name: str, facts: Mapping[str, Any]) -> str:
    return "\n".join([f"## {_cell(name)}", "", "| | |", "|---|---|", *_rows(facts)])


def _rows(facts: Mapping[str, Any]) -> Iterable[str]:
    return (f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())


def _cell(value: object) -> str:
    """Returns a value as text that can't leave its cell of the table, nor bring in a link or markup."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", re.sub(r"[\0-\x1f\x7f-\x9f\s]+", " ", plain))
