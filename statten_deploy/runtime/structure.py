"""Whether an ONNX file is made of what statten-export writes, before an engine sees it. No ONNX library needed.

An engine is a large C++ library in this process: what it does with a file made to harm it, nobody can promise. So a
file is taken apart here first. It must be one message in itself (no external data, no training, no sparse or quantised
annotations), of operators in `OPERATORS` and functions of its own, with tensors that hold exactly the numbers they
declare, and constants that make no operator produce more than the limit. Source: protobuf encoding, onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from statten_deploy.errors import InputError
from statten_deploy.untrusted.limits import MAX_JSON_BYTES, MAX_NAME, check_bytes
from statten_deploy.untrusted.text import shown

# fmt: off
OPERATORS = frozenset({
    "Add", "And", "AveragePool", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "DequantizeLinear", "Div", "Equal", "Flatten", "Floor", "Gather", "Gemm", "GlobalAveragePool",
    "Greater", "GreaterOrEqual", "Identity", "LessOrEqual", "MatMul", "MatMulInteger", "Max", "MaxPool", "Min",
    "Mul", "Neg", "Not", "Pad", "QuantizeLinear", "ReduceMean", "ReduceSum", "Reshape", "Round", "Scan", "Shape",
    "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
"""Operators of ONNX's own domain that our files hold."""
OWN_DOMAIN = "statten"
"""Operators of this domain are functions in the file itself."""

ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""Bytes of an element by ONNX's number of its type; texts and four-bit types are not ours."""
INT64 = 7
MAX_DEPTH = 8
"""Graphs inside graphs, the bodies of Scan; and functions that call functions."""
MAX_NODES = 1_000_000
MAX_INLINED = 250_000
"""Nodes that an engine makes of calls of functions: eight, each calling the next six times, are a million."""
MAX_FIELDS = 20_000_000
MAX_RANK = 16
SHAPE_INPUT = {"ConstantOfShape": 0, "Tile": 1, "Pad": 1}
"""Operators whose output is as large as the numbers of a constant input say, and which input that is."""
SHAPE_VALUES = 2 * MAX_RANK

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


class _RefusedError(Exception):
    """What is wrong, in words."""


Fields = Iterator[tuple[int, int | tuple[int, int]]]
"""Number of a field, and its number or where its bytes lie."""


def check_structure(path: Path) -> None:
    """Whether an engine may see this file.

    Raises:
        InputError: it is not one that statten-export writes; the message says what is strange about it.
    """
    length = path.stat().st_size
    if length == 0:
        raise InputError(f"{path}: empty; expected an ONNX file that statten-export wrote")
    if length >= 1 << 31:
        raise InputError(f"{path}: larger than 2 GiB, which no ONNX file can be; export again")
    check_bytes(path, length)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Model(path, data).check()
        except _RefusedError as error:
            raise InputError(f"{path}: not loaded: {error}; expected an ONNX file that statten-export wrote") from None


@dataclass
class _Model:
    """One file; `scopes` hold the small integer constants by name, one dictionary for each graph around.

    `functions` has what each function calls, `own` its nodes; `calls` is the list of the one that is looked at.
    """

    path: Path
    data: mmap.mmap
    nodes: int = 0
    seen: int = 0
    functions: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=dict)
    scopes: list[dict[str, list[int]]] = field(default_factory=list)

    def check(self) -> None:
        graphs: list[tuple[int, int]] = []
        bodies: list[tuple[int, int]] = []
        for number, value in self.fields(0, len(self.data)):
            if number == 7:
                graphs.append(_span(value))
            elif number == 25:
                bodies.append(_span(value))
            elif number == 20:
                raise _RefusedError("it holds a training program")
            elif number in (2, 3, 4, 6):
                self.text(value)
            elif number == 14:
                for _, entry in self.fields(*_span(value)):
                    self.text(entry, MAX_JSON_BYTES)
        if len(graphs) != 1:
            raise _RefusedError(f"it holds {len(graphs)} graphs")
        for body in bodies:
            name = next((self.text(value) for number, value in self.fields(*body) if number == 1), "")
            if name in self.functions:
                raise _RefusedError(f"two functions are called {shown(name)}")
            self.functions[name] = []
        for name, body in zip(self.functions, bodies, strict=True):
            self.scopes.append({})
            self.calls, before = self.functions[name], self.nodes
            self.steps([_span(value) for number, value in self.fields(*body) if number == 7], 1)
            self.own[name] = self.nodes - before
            self.scopes.pop()
        self.calls = []
        self.graph(*graphs[0], 0)
        self.inlined()

    def inlined(self) -> None:
        """How many nodes the calls of functions become: an engine puts each one's body in place of the call."""
        sizes: dict[str, int] = {}
        total = sum(self.unfolded(name, sizes, 1) for name in self.calls)
        for name in self.functions:  # those that nobody calls, too
            self.unfolded(name, sizes, 1)
        if total > MAX_INLINED:
            raise _RefusedError(f"its functions unfold to more than {MAX_INLINED:,} nodes")

    def unfolded(self, name: str, sizes: dict[str, int], depth: int) -> int:
        """Nodes of a function with those that it calls."""
        if name not in sizes:
            if depth > MAX_DEPTH:
                raise _RefusedError(f"functions call themselves, or one another more than {MAX_DEPTH} deep")
            sizes[name] = self.own[name] + sum(self.unfolded(inner, sizes, depth + 1) for inner in self.functions[name])
        return sizes[name]

    def graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _RefusedError(f"graphs are nested more than {MAX_DEPTH} deep")
        nodes: list[tuple[int, int]] = []
        constants: dict[str, list[int]] = {}
        self.scopes.append(constants)
        for number, value in self.fields(start, end):
            if number == 1:
                nodes.append(_span(value))
            elif number == 5:
                name, numbers = self.tensor(*_span(value))
                if numbers is not None:
                    constants[name] = numbers
            elif number in (11, 12, 13):
                self.value_info(*_span(value))
            elif number in (2, 10):
                self.text(value)
            elif number in (14, 15):
                raise _RefusedError("it holds sparse tensors or annotations of quantisation")
        self.steps(nodes, depth)
        self.scopes.pop()

    def steps(self, nodes: list[tuple[int, int]], depth: int) -> None:
        self.nodes += len(nodes)
        if self.nodes > MAX_NODES:
            raise _RefusedError(f"it has more than {MAX_NODES:,} nodes")
        for node in nodes:
            self.node(*node, depth)

    def node(self, start: int, end: int, depth: int) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        kind = domain = ""
        attributes: list[tuple[int, int]] = []
        for number, value in self.fields(start, end):
            if number == 1:
                inputs.append(self.text(value))
            elif number == 2:
                outputs.append(self.text(value))
            elif number == 4:
                kind = self.text(value)
            elif number in (3, 6, 8):
                self.text(value)
            elif number == 5:
                attributes.append(_span(value))
            elif number == 7:
                domain = self.text(value)
        if kind not in (self.functions if domain == OWN_DOMAIN else OPERATORS if domain == "" else ()):
            raise _RefusedError(f"operator {shown(f'{domain}.{kind}' if domain else kind)} is none of ours")
        if domain == OWN_DOMAIN:
            self.calls.append(kind)
        for attribute in attributes:
            numbers = self.attribute(*attribute, depth)
            if kind == "Constant" and outputs and numbers is not None:
                self.scopes[-1][outputs[0]] = numbers
        if kind in SHAPE_INPUT and len(inputs) > SHAPE_INPUT[kind] and domain == "":
            numbers = self.known(inputs[SHAPE_INPUT[kind]])
            if numbers is not None:
                factors = [max(1, abs(value)) for value in numbers]
                check_bytes(self.path, (sum(factors) if kind == "Pad" else prod(factors)) * 4, f"a {kind}")

    def known(self, name: str) -> list[int] | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def attribute(self, start: int, end: int, depth: int) -> list[int] | None:
        """The small integers that an attribute holds as a tensor, if it does."""
        numbers = None
        for number, value in self.fields(start, end):
            if number in (1, 13, 21):
                self.text(value)
            elif number in (5, 10):
                numbers = self.tensor(*_span(value))[1]
            elif number in (6, 11):
                self.graph(*_span(value), depth + 1)
            elif number in (22, 23):
                raise _RefusedError("it holds sparse tensors")
        return numbers

    def tensor(self, start: int, end: int) -> tuple[str, list[int] | None]:
        """Name of a tensor, and its numbers where it is a small one of int64."""
        dims: list[int] = []
        kind, name = 0, ""
        raw: tuple[int, int] | None = None
        typed = 0
        numbers: list[int] = []
        for number, value in self.fields(start, end):
            if number == 1:
                dims += self.whole(value)
                if len(dims) > MAX_RANK:
                    raise _RefusedError(f"a tensor has more than {MAX_RANK} axes")
            elif number == 2:
                kind = value if isinstance(value, int) else 0
            elif number == 8:
                name = self.text(value)
            elif number == 9:
                raw = _span(value)
            elif number in (4, 5, 7, 10, 11):
                typed += (value[1] - value[0]) if isinstance(value, tuple) else 1
                if number == 7 and typed <= 10 * SHAPE_VALUES:
                    numbers += self.whole(value)
            elif number in (3, 6, 13) or (number == 14 and value != 0):
                raise _RefusedError("it keeps a tensor elsewhere (external data), in parts or as text")
        if kind not in ITEM_BYTES or any(side < 0 for side in dims):
            raise _RefusedError(f"tensor {shown(name)} has type {kind} and shape {shown(dims)}")
        count, stored = prod(dims), typed if raw is None else raw[1] - raw[0]
        exact = raw is None or stored == count * ITEM_BYTES[kind]
        if not exact or count > stored:
            raise _RefusedError(f"tensor {shown(name)} declares {shown(dims)} values, {stored:,} bytes are there")
        if kind != INT64 or count > SHAPE_VALUES:
            return name, None
        if raw is not None:
            content = self.data[raw[0] : raw[1]]
            numbers = [int.from_bytes(content[i : i + 8], "little", signed=True) for i in range(0, len(content), 8)]
        return name, numbers

    def value_info(self, start: int, end: int) -> None:
        """Whether the sizes that an input, output or value declares can be held; free ones count as one."""
        for number, value in self.fields(start, end):
            if number in (1, 3):
                self.text(value)
        for kind in self.inner((start, end), 2):
            for tensor in self.inner(kind, 1):
                for shape in self.inner(tensor, 2):
                    told = [
                        value for axis in self.inner(shape, 1) for number, value in self.fields(*axis) if number == 1
                    ]
                    sides = [max(1, abs(_signed(value))) for value in told if isinstance(value, int)]
                    check_bytes(self.path, prod(sides) * 4, "a value")

    def inner(self, span: tuple[int, int], wanted: int) -> list[tuple[int, int]]:
        """Where the messages under one number of a message lie."""
        return [_span(value) for number, value in self.fields(*span) if number == wanted]

    def whole(self, value: int | tuple[int, int]) -> list[int]:
        """Whole numbers, one by one or packed."""
        if isinstance(value, int):
            return [_signed(value)]
        numbers, at = [], value[0]
        while at < value[1]:
            number, at = self.varint(at, value[1])
            numbers.append(_signed(number))
            if len(numbers) > SHAPE_VALUES:
                break
        return numbers

    def text(self, value: int | tuple[int, int], most: int = MAX_NAME) -> str:
        start, end = _span(value)
        if end - start > most:
            raise _RefusedError(f"a name of {end - start:,} bytes")
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise _RefusedError("a name in it is no text") from None

    def fields(self, at: int, end: int) -> Fields:
        """The fields between `at` and `end`."""
        while at < end:
            self.seen += 1
            if self.seen > MAX_FIELDS:
                raise _RefusedError(f"it has more than {MAX_FIELDS:,} fields")
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, value
                continue
            if wire == BYTES:
                length, at = self.varint(at, end)
            elif wire in (FIXED64, FIXED32):
                length = 8 if wire == FIXED64 else 4
            else:
                raise _RefusedError("it is damaged (no ONNX message)")
            if number == 0 or at + length > end:
                raise _RefusedError("it is damaged or truncated")
            yield number, (at, at + length)
            at += length

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Seven bits a byte, lowest first; at most ten bytes."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _RefusedError("it is damaged or truncated")
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise _RefusedError("it is damaged (no ONNX message)")


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise _RefusedError("it is damaged (no ONNX message)")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
