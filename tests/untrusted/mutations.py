"""Seeded damage: the same seed always gives the same file."""

import io
import re
import struct
import zipfile
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
EXTREMES = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 60) + 3,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
WORDS = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "9" * 5000,
    "0x" + "f" * 6000,
    "true",
    "null",
    "[]",
    "{}",
    '"../../x"',
    "'\\x1b[2J'",
)
WORDS += (
    "[" * 2000,
    "{" * 500,
    "*a",
    "&a [*a, *a]",
    "!!python/object/apply:os.system [id]",
    "<<",
    "2001-99-99",
    "1_0:99",
    "''",
)


def flips(data: bytes, rng: Rng) -> bytes:
    """One to eight bytes are others; often near the start, where headers are."""
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.6 else min(len(out), 600)
    for at in rng.integers(0, reach, int(rng.integers(1, 9))):
        out[at] ^= 1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
    return bytes(out)


def truncated(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data)))]


def lengths(data: bytes, rng: Rng) -> bytes:
    """A number of 1, 2, 4 or 8 bytes somewhere becomes an extreme one."""
    width = int(rng.choice([1, 2, 4, 8]))
    if len(data) <= width:
        return data
    reach = len(data) if rng.random() < 0.5 else min(len(data), 600)
    at = int(rng.integers(max(1, reach - width)))
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] & ((1 << 8 * width) - 1)
    return data[:at] + value.to_bytes(width, "little" if rng.random() < 0.5 else "big") + data[at + width :]


def spliced(data: bytes, rng: Rng) -> bytes:
    """A part is copied over, moved behind, or left out elsewhere."""
    size = int(rng.integers(1, min(400, len(data)) + 1))
    source, target = (int(v) for v in rng.integers(0, len(data) - size + 1, 2))
    part = data[source : source + size]
    how = int(rng.integers(3))
    return data[:target] + (b"" if how == 2 else part) + data[target + (0 if how == 1 else size) :]


def words(data: bytes, rng: Rng) -> bytes:
    """In a text: a word becomes another one, or a line stands twice, or is gone."""
    text = data.decode("utf-8", "replace")
    how = int(rng.integers(4))
    if how < 2:
        found = list(re.finditer(r"[-\w.]+|[\[\]{}:,\"']", text))
        at = found[int(rng.integers(len(found)))]
        return (text[: at.start()] + WORDS[int(rng.integers(len(WORDS)))] + text[at.end() :]).encode()
    lines = text.splitlines(keepends=True)
    at_line = int(rng.integers(len(lines)))
    lines[at_line : at_line + 1] = [] if how == 2 else [lines[at_line]] * 2
    return "".join(lines).encode()


def zip_member(data: bytes, rng: Rng) -> bytes:
    """The archive stays sound, one of its parts is damaged, renamed, compressed or doubled."""
    source = zipfile.ZipFile(io.BytesIO(data))
    members = source.infolist()
    chosen = int(rng.integers(len(members))) if rng.random() < 0.6 else 0
    how = int(rng.integers(8))
    out = io.BytesIO()
    import warnings

    with zipfile.ZipFile(out, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for index, member in enumerate(members):
            content, name, kind = source.read(member), member.filename, member.compress_type
            if index == chosen:
                if how == 0:
                    name = ["../" + name, "", name[::-1], "\x1b[2J", members[-1].filename][int(rng.integers(5))]
                elif how == 1:
                    kind = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA][int(rng.integers(3))]
                elif how == 2:
                    target.writestr(name, content)
                elif content:
                    content = [flips, truncated, lengths, spliced, pickled][how - 3](content, rng)
            target.writestr(zipfile.ZipInfo(name), content, kind)
    return out.getvalue()


def pickled(data: bytes, rng: Rng) -> bytes:
    """Names that a pickle refers to become others."""
    names = [
        b"builtins\nbytearray",
        b"os\nsystem",
        b"torch\nTensor",
        b"torch._utils\n_rebuild_sparse_tensor",
        b"builtins\neval",
    ]
    names += [
        b"torch\nHalfStorage",
        b"torch\nLongStorage",
        b"collections\nOrderedDict",
        b"torch\nSize",
        b"argparse\nNamespace",
    ]
    found = list(re.finditer(rb"c[\w.]+\n[\w.]+\n", data))
    if not found:
        return lengths(data, rng)
    at = found[int(rng.integers(len(found)))]
    return data[: at.start()] + b"c" + names[int(rng.integers(len(names)))] + b"\n" + data[at.end() :]


def header_text(data: bytes, rng: Rng) -> bytes:
    """The text that safetensors and ``.npy`` files begin with: a number or a name in it becomes another one."""
    end = min(len(data), 8 + struct.unpack("<Q", data[:8])[0]) if data[7:8] == b"\0" else 128
    start = data.find(b"{")
    head = words(data[start:end], rng)
    if data[7:8] == b"\0":
        return struct.pack("<Q", len(head)) + head + data[end:]
    return data[:start] + head[: end - start].ljust(end - start - 1) + b"\n" + data[end:]


Mutation = Callable[[bytes, Rng], bytes]
BINARY: tuple[Mutation, ...] = (flips, truncated, lengths, spliced)
TEXT: tuple[Mutation, ...] = (words, words, flips, truncated, spliced)
ZIP: tuple[Mutation, ...] = (*BINARY, zip_member, zip_member)


def mutate(data: bytes, seed: int, kinds: tuple[Mutation, ...]) -> bytes:
    """One mutation, sometimes two."""
    rng = np.random.default_rng(seed)
    for _ in range(1 if rng.random() < 0.8 else 2):
        if data:
            try:
                data = kinds[int(rng.integers(len(kinds)))](data, rng)
            except Exception:  # the first of two left no archive or text
                data = flips(data, rng)
    return data
