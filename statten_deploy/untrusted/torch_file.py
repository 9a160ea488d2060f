"""Files of ``torch.save``, read without running anything in them and without holding more than they hold.

Three fences, one behind the other. What the file refers to is read first, instruction by instruction, and nothing may
be among it beyond what weights and training states are made of. Then torch's own restricted loader reads it, with the
weights mapped from the file: a tensor cannot be larger than what lies there. Last, what came out is looked at: plain
tensors only, none that claims more numbers than it stores.
"""

import argparse
import pickletools  # takes a pickle apart into its instructions; runs none
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from statten_deploy.errors import CheckpointError
from statten_deploy.untrusted.limits import check_bytes, max_bytes

ALLOWED = frozenset(
    {
        "argparse.Namespace",  # timm-style files store their arguments so
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.Counter",
        "__builtin__.set",
        "builtins.set",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch._tensor._rebuild_from_type_v2",
        *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
        *(f"torch.{kind}Storage" for kind in ("Byte", "Bool")),
        "torch.storage.UntypedStorage",
        *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")),
        *(f"torch.{kind}" for kind in ("uint8", "bool", "strided")),
    }
)
"""What a file may refer to; torch's own list is longer, and holds what allocates any amount of memory."""

MAX_INSTRUCTIONS_BYTES = 1 << 26
"""Everything in a file but its numbers: 64 MiB are millions of tensors."""
MAGIC_PARTS = 5
"""Pickles that a file in torch's old format begins with: magic number, version, system, contents, keys."""


def read_torch_file(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of ``torch.save``. Its tensors may be mapped from the file: copy what is kept.

    Raises:
        CheckpointError: not such a file, damaged, too large, or it refers to something else than weights.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        for name in _references(path, zipped):
            if name not in ALLOWED:
                raise _refused(
                    path,
                    f"it refers to {name}, which is no part of weights and could run code; save a bare state_dict",
                )
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # torch, zipfile and pickletools raise nearly anything on a damaged file
        raise _refused(path, " ".join(str(error).split())[:160] or "damaged or truncated") from None
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}, expected a dictionary of weights")
    return raw


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whether these can be copied: plain tensors, each backed by as many numbers as it has, together within the limit.

    Raises:
        CheckpointError: names the first that is not.
    """
    total = 0
    for name, value in tensors.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.dtype.is_complex or type(value) not in (Tensor, torch.nn.Parameter):
            raise CheckpointError(f"{path}: {name!r} is no plain tensor of numbers; save a bare state_dict")
        stored, needed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
        if needed > stored:
            raise CheckpointError(f"{path}: {name!r} has {value.numel():,} values, of which the file holds fewer")
        total += value.numel() * max(4, value.element_size())  # as float32
    check_bytes(path, total)


def _refused(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read as a checkpoint ({detail})")


def _references(path: Path, zipped: bool) -> Iterator[str]:
    """Every class and function that unpickling would look up."""
    if not zipped:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                raise ValueError("truncated: its directory, which stands at the end, is missing")
        check_bytes(path, path.stat().st_size)  # the old format is read whole
        with path.open("rb") as stream:
            for _ in range(MAGIC_PARTS):
                yield from _names(stream)
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        if len(names) < len(members):
            raise ValueError("a name stands twice in it")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its parts are compressed, which torch.save does not do; save it again with torch.save")
        # parts may overlap, so that a small file unpacks to a large one
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        # the loader's own reader must see the same parts
        if {name.split("/", 1)[-1] for name in names} != set(torch._C.PyTorchFileReader(str(path)).get_all_records()):
            raise ValueError("it is two archives in one")
        pickles = [member for member in members if member.filename.endswith(".pkl")]
        if sum(member.file_size for member in pickles) > min(MAX_INSTRUCTIONS_BYTES, max_bytes()):
            raise ValueError(f"more than {MAX_INSTRUCTIONS_BYTES >> 20} MiB beside its weights")
        for member in pickles:
            with archive.open(member) as stream:
                yield from _names(stream)


def _names(stream: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID"):
            yield f"something by {opcode.name}"
