"""What an ONNX file says about itself, without loading it and without an ONNX library.

A file is one protobuf message: fields, each a tag (number and wire type) and a value. Of those this reads the metadata
and whether there are model-local functions; the weights are skipped. Source: protobuf encoding, onnx.proto.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from statten_deploy.errors import InputError

METADATA_PROPS, FUNCTIONS = 14, 25
"""Fields of a ModelProto."""
KEY, VALUE = 1, 2
"""Fields of a StringStringEntryProto."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""
LARGEST_ENTRY = 1 << 24
"""Bytes of one metadata entry; anything longer is not ours."""


@dataclass
class FileFacts:
    """Metadata of a model, and whether it holds model-local functions."""

    metadata: dict[str, str] = field(default_factory=dict)
    functions: bool = False


class _MalformedError(Exception):
    """Not a protobuf message."""


def read_facts(path: Path) -> FileFacts:
    """Metadata of an ONNX file.

    Raises:
        InputError: no such file, or not ONNX.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected an ONNX file")
    facts = FileFacts()
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while stream.tell() < size:
                number, length = _field(stream, size)
                if number == METADATA_PROPS and length is not None:
                    if length > LARGEST_ENTRY:
                        raise _MalformedError
                    key, value = _entry(stream, stream.tell() + length)
                    facts.metadata[key] = value
                    continue
                facts.functions |= number == FUNCTIONS
                stream.seek(length or 0, os.SEEK_CUR)
    except (_MalformedError, UnicodeDecodeError):
        raise InputError(f"{path}: not an ONNX file; expected one that statten-export wrote") from None
    return facts


def _entry(stream: BinaryIO, end: int) -> tuple[str, str]:
    """Key and value of one metadata entry that ends at `end`."""
    found = {KEY: "", VALUE: ""}
    while stream.tell() < end:
        number, length = _field(stream, end)
        content = stream.read(length or 0)
        if number in found:
            found[number] = content.decode()
    return found[KEY], found[VALUE]


def _field(stream: BinaryIO, end: int) -> tuple[int, int | None]:
    """Number of the next field, and how many bytes of content follow; None where it has been read (a varint)."""
    tag = _varint(stream)
    number, kind = tag >> 3, tag & 7
    if kind == VARINT:
        _varint(stream)
        length = None
    elif kind == BYTES:
        length = _varint(stream)
    elif kind in (FIXED64, FIXED32):
        length = 8 if kind == FIXED64 else 4
    else:
        raise _MalformedError
    if number == 0 or stream.tell() + (length or 0) > end:
        raise _MalformedError
    return number, length


def _varint(stream: BinaryIO) -> int:
    """Seven bits a byte, lowest first; at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise _MalformedError
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise _MalformedError
