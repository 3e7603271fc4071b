"""TensorFlow's GraphDef, a frozen graph's .pb file: nodes by name with their inputs and attributes.

Field numbers are those of tensorflow/core/framework: graph.proto, node_def.proto, attr_value.proto, tensor.proto.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .protobuf import Message

_FLOAT, _INT32 = 1, 3  # DataType
_MAX_FILLED = 1 << 20  # elements of a constant that is one value over and over
_MAX_NODES = 20_000  # slim's largest MobileNet has some 1,500


@dataclass(frozen=True)
class Node:
    """Is a node: its operation, the names of the nodes it takes, and its attributes' messages by name."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Message]

    def text(self, name: str) -> str:
        """Returns an attribute that is a string, "" where it is absent."""
        return self._attribute(name).text(2)

    def number(self, name: str, default: float = 0.0) -> float:
        """Returns an attribute that is a float."""
        found = self._attribute(name).floats(4) if name in self.attributes else np.empty(0, np.float32)
        return float(found[-1]) if found.size else default

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns an attribute that is true or false."""
        return bool(self._attribute(name).integer(5, int(default)))

    def integers(self, name: str) -> list[int]:
        """Returns an attribute that is a list of integers, [] where it is absent."""
        return self._attribute(name).message(1).integers(3)

    def shape(self, name: str) -> list[int] | None:
        """Returns an attribute that is a shape, -1 for sides left open, None where it is absent or has no rank."""
        shape = self._attribute(name).message(7)
        return None if name not in self.attributes or shape.integer(3) else _sides(shape)

    def constant(self) -> NDArray[Any]:
        """Returns the value of a Const node.

        Raises:
            ModelError: its type is another than float32 or int32, or its data has another size than its shape.
        """
        tensor = self._attribute("value").message(8)
        kind, shape = tensor.integer(1), _sides(tensor.message(2))
        if kind not in (_FLOAT, _INT32) or not all(0 <= side < 1 << 32 for side in shape) or len(shape) > 8:
            raise ModelError(f"TensorFlow graph: constant {self.name!r} has type {kind} and shape {shape}")
        raw = tensor.contents(4)
        values: NDArray[Any]
        if len(raw):
            if len(raw) % 4:
                raise ModelError(f"TensorFlow graph: constant {self.name!r} has {len(raw):,} bytes, not 4 a value")
            values = np.frombuffer(raw, "<f4" if kind == _FLOAT else "<i4")
        else:
            values = tensor.floats(5) if kind == _FLOAT else np.array(tensor.integers(7), np.int64).astype(np.int32)
        size = math.prod(shape)
        if values.size == 1 and 1 < size <= _MAX_FILLED:
            return np.broadcast_to(values, shape)  # takes no memory
        if values.size != size:
            raise ModelError(f"TensorFlow graph: constant {self.name!r} has {values.size:,} values for shape {shape}")
        return values.reshape(shape)

    def _attribute(self, name: str) -> Message:
        return self.attributes.get(name, Message(memoryview(b"")))


def read(data: bytes) -> dict[str, Node]:
    """Returns the nodes of a GraphDef by name, in the order of the file.

    Raises:
        ModelError: the file is no GraphDef, has no nodes, or has two of one name.
    """
    nodes: dict[str, Node] = {}
    messages = Message(memoryview(data)).messages(1)
    if len(messages) > _MAX_NODES:
        raise ModelError(f"TensorFlow graph: it has {len(messages):,} nodes, at most {_MAX_NODES:,} are allowed")
    for message in messages:
        node = _node(message)
        if not node.op or node.name in nodes:
            raise ModelError(f"TensorFlow graph: node {node.name[:100]!r} has no operation, or is there twice")
        nodes[node.name] = node
    if not nodes:
        raise ModelError("TensorFlow graph: it has no nodes; needed is a frozen graph (a GraphDef with constants)")
    return nodes


def _node(message: Message) -> Node:
    # "name:0" is the node's first output; "^name" only orders the computation.
    inputs = (text for text in message.texts(3) if not text.startswith("^"))
    attributes = {entry.text(1): entry.message(2) for entry in message.messages(5)}
    return Node(message.text(1), message.text(2), tuple(text.removesuffix(":0") for text in inputs), attributes)


def _sides(shape: Message) -> list[int]:
    return [side.integer(1) for side in shape.messages(2)]
