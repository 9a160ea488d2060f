"""Small files that unpack to much, or declare it; read in forked children: ``python -m tests.untrusted.bombs FOLDER``.

Prints one line of JSON for each: [name, outcome, message, MiB that reading added, seconds].
"""

import io
import json
import os
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file

from statten_deploy.events import read_events
from statten_deploy.export.nir import read_nir
from statten_deploy.models.checkpoint import load_model
from statten_deploy.models.config import read_yaml
from statten_deploy.runtime import check_structure
from statten_deploy.train.data import InputSpec, open_source
from statten_deploy.train.data.images import read_picture
from tests.untrusted.formats import FORMATS, _ckpt, _read_bundle, _read_sidecar, _stranger
from tests.untrusted.server import outcome

GIB = 1 << 30
NPY = b"\x93NUMPY"


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return NPY + b"\x01\x00" + struct.pack("<H", len(text)) + text


def zeros_zip(path: Path, members: dict[str, tuple[bytes, int]], method: int = zipfile.ZIP_DEFLATED) -> None:
    """Members of a beginning and then so many zeros."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, (head, zeros) in members.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(head)
                for _ in range(zeros >> 20):
                    stream.write(bytes(1 << 20))


def npz_of_zeros(path: Path) -> None:
    zeros_zip(path, {"x.npy": (npy_header(f"({GIB // 256}, 1, 8, 8)", "|u1"), GIB)})


def npz_that_understates(path: Path) -> None:
    """The directory says 64 kB; the stream holds a gigabyte."""
    npz_of_zeros(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 16)
    path.write_bytes(data)


def npy_of_header(path: Path) -> None:
    path.write_bytes(NPY + b"\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{")


def npz_of_header(path: Path) -> None:
    zeros_zip(path, {"x.npy": (NPY + b"\x02\x00" + struct.pack("<I", GIB - 1), GIB)})


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """The pickle of a checkpoint, with one part exchanged."""
    torch.save({"a": torch.arange(10.0), "b": torch.ones(4, 4)}, path)
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new, 1)
            target.writestr(member.filename, content)


def pt_bytearray(path: Path) -> None:
    number = b"J" + struct.pack("<i", GIB)
    rewritten(path, b"ccollections\nOrderedDict\nq\n)R", b"cbuiltins\nbytearray\nq\n" + number + b"\x85R")


def pt_huge_shape(path: Path) -> None:
    rewritten(path, b"K\n\x85q\x08", b"\x8a\x08" + struct.pack("<q", 1 << 60) + b"\x85q\x08")


def pt_expanded(path: Path) -> None:
    _ckpt(path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.head.bias"] = torch.zeros(1).expand(GIB)
    torch.save(content, path)


def pt_deflated(path: Path) -> None:
    _ckpt(path)
    with zipfile.ZipFile(path) as source:
        parts = {name: (source.read(name), GIB if name.endswith("data/0") else 0) for name in source.namelist()}
    zeros_zip(path, parts)


def pt_overlapping(path: Path) -> None:
    """A thousand entries of the directory lead to one part of a megabyte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(1 << 20))
        first = archive.infolist()[0]
        for number in range(1, 1000):
            again = zipfile.ZipInfo(f"a/data/{number}")
            again.file_size = again.compress_size = first.file_size
            again.CRC, again.header_offset = first.CRC, first.header_offset
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True  # type: ignore[attr-defined]


def pt_legacy_storage(path: Path) -> None:
    torch.save({"a": torch.zeros(16)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    number = b"\x8a\x08" + struct.pack("<q", 1 << 50)
    path.write_bytes(data.replace(b"K\x10N", number + b"N", 1))


def safetensors_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def safetensors_shape(path: Path) -> None:
    save_file({"a": torch.zeros(4)}, path)
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"[4]", b"[" + str(1 << 60).encode() + b"]").replace(data[:8], struct.pack("<Q", 0), 0)
    )


def laughs(path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))


def merged(path: Path) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    path.write_text("\n".join(lines))


def deflate_chunk(path: Path, name: str, shape: tuple[int, ...], kind: str) -> None:
    """One chunk of few numbers whose stream unpacks to a gigabyte."""
    stream = zlib.compressobj(9)
    packed = b"".join(stream.compress(bytes(1 << 20)) for _ in range(1024)) + stream.flush()
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        dataset = file.create_dataset(name, shape, kind, chunks=shape, compression="gzip")
        dataset.id.write_direct_chunk((0,) * len(shape), packed)


def nir_chunk(path: Path) -> None:
    _stranger(path)
    deflate_chunk(path, "node/nodes/lif/tau", (3, 6, 6), "f4")


def nir_declared(path: Path) -> None:
    _stranger(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/lif/tau"]
        file.create_dataset("node/nodes/lif/tau", (1 << 20, 1 << 20, 1 << 20), "f4", chunks=(64, 64, 64))


def nir_large_chunk(path: Path) -> None:
    _stranger(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/lif/tau"]
        space = h5py.h5s.create_simple((8,), (h5py.h5s.UNLIMITED,))
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((1 << 28,))
        h5py.h5d.create(file["node/nodes/lif"].id, b"tau", h5py.h5t.NATIVE_DOUBLE, space, options)


def hdf5_events(path: Path, count: int) -> None:
    with h5py.File(path, "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", (count,), "i8", chunks=(min(count, 1 << 16),))


def hdf5_event_chunk(path: Path) -> None:
    hdf5_events(path, 1000)
    deflate_chunk(path, "events/t", (1000,), "i8")


def onnx_file(path: Path, **changes: Any) -> None:
    nodes = changes.get("nodes", [helper.make_node("Identity", ["x"], ["y"])])
    shape = changes.get("shape", ["batch", 4])
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ports, initializer=changes.get("tensors", []))
    model = helper.make_model(graph)
    model.metadata_props.add(key="layout", value="sequence")
    path.write_bytes(model.SerializeToString())


def onnx_shape(path: Path) -> None:
    tensor = TensorProto(name="w", dims=[1 << 30, 1 << 30], data_type=TensorProto.FLOAT, raw_data=bytes(64))
    onnx_file(path, tensors=[tensor])


def onnx_constant_of_shape(path: Path) -> None:
    sizes = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "s")
    onnx_file(path, tensors=[sizes], nodes=[helper.make_node("ConstantOfShape", ["s"], ["y"])])


def onnx_external(path: Path) -> None:
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    onnx_file(path, tensors=[tensor])


def onnx_loop(path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "b",
        [helper.make_tensor_value_info(n, k, []) for n, k in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    onnx_file(path, nodes=[helper.make_node("Loop", ["", "t"], [], body=body)])


def onnx_deep(path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("Scan", ["x"], ["y"], body=graph, num_scan_inputs=1)], "g", [], [])
    onnx_file(path, nodes=list(graph.node))


def png_of_pixels(path: Path) -> None:
    """A valid picture of 20000 x 20000 pixels in 50 kB."""
    Image.new("1", (20000, 20000)).save(path)


def text_file(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def lava_weights(path: Path) -> None:
    zeros_zip(path, {"encoder/zero_point.npy": (npy_header(f"({GIB},)", "|u1"), GIB)})


def _npz(path: Path) -> None:
    open_source(path, InputSpec((1, 8, 8), 3))


def _picture(path: Path) -> None:
    read_picture(path, 3)


Bomb = tuple[str, Callable[[Path], None], Callable[[Path], Any]]
BOMBS: dict[str, Bomb] = {
    "npz of a gigabyte of zeros": (".npz", npz_of_zeros, _npz),
    "npz that understates its size": (".npz", npz_that_understates, _npz),
    "npz whose header is a gigabyte": (".npz", npz_of_header, _npz),
    "npz compressed twice as well": (
        ".npz",
        lambda p: zeros_zip(p, {"x.npy": (npy_header("(8,)"), 1 << 26)}, zipfile.ZIP_LZMA),
        _npz,
    ),
    "npy that declares 2^60 events": (
        ".npy",
        lambda p: p.write_bytes(npy_header(f"({1 << 60}, 4)")) and None,
        read_events,
    ),
    "npy whose header is 4 GiB": (".npy", npy_of_header, read_events),
    "pt with a bytearray of a gigabyte": (".pt", pt_bytearray, load_model),
    "pt with 2^60 values": (".pt", pt_huge_shape, load_model),
    "pt with an expanded tensor": (".ckpt", pt_expanded, load_model),
    "pt with compressed weights": (".ckpt", pt_deflated, load_model),
    "pt with overlapping parts": (".pt", pt_overlapping, load_model),
    "pt of old with 2^50 values": (".pt", pt_legacy_storage, load_model),
    "safetensors with a header of 2^60 bytes": (".safetensors", safetensors_header, load_model),
    "safetensors with 2^60 values": (".safetensors", safetensors_shape, load_model),
    "yaml of a billion laughs": (".yaml", laughs, read_yaml),
    "yaml of merged maps": (".yaml", merged, read_yaml),
    "yaml that is nested": (".yaml", text_file("a: " + "[" * 30000), read_yaml),
    "yaml of one number": (".yaml", text_file("a: " + "9" * 60000), read_yaml),
    "yaml that is large": (".yaml", text_file("a: 1\n" * 100_000), read_yaml),
    "sidecar that is nested": (".json", text_file("[" * 1_000_000), _read_sidecar),
    "sidecar that is large": (".json", text_file('{"sha256": "' + "x" * (20 << 20) + '"}'), _read_sidecar),
    "nir that declares 2^62 bytes": (".nir", nir_declared, read_nir),
    "nir with a chunk that swells": (".nir", nir_chunk, read_nir),
    "nir with a chunk of 2 GiB": (".nir", nir_large_chunk, read_nir),
    "events of 2^40 in HDF5": (".h5", lambda p: hdf5_events(p, 1 << 40), read_events),
    "events in a chunk that swells": (".h5", hdf5_event_chunk, read_events),
    "onnx with 2^60 weights": (".onnx", onnx_shape, check_structure),
    "onnx with an input of 2^60 values": (
        ".onnx",
        lambda p: onnx_file(p, shape=["b", 1 << 30, 1 << 30]),
        check_structure,
    ),
    "onnx that makes 2^40 values": (".onnx", onnx_constant_of_shape, check_structure),
    "onnx with weights elsewhere": (".onnx", onnx_external, check_structure),
    "onnx with a loop": (".onnx", onnx_loop, check_structure),
    "onnx that is nested": (".onnx", onnx_deep, check_structure),
    "png of 400 megapixels": (".png", png_of_pixels, _picture),
    "toml that is nested": (".toml", text_file("a = " + "[" * 30000), FORMATS["toml-profile"].read),
    "toml of one number": (".toml", text_file("a = " + "9" * 60000), FORMATS["toml-chip"].read),
    "toml that is large": (".toml", text_file("# \n" * 30000), FORMATS["toml-chip"].read),
    "lava weights of a gigabyte of zeros": (".npz", lava_weights, _read_bundle("weights.npz", True)),
}


def main(folder: Path) -> None:
    for name, (suffix, make, read) in BOMBS.items():
        path = folder / f"bomb{suffix}"
        make(path)
        pid = os.fork()
        if pid == 0:
            started, chosen = time.monotonic(), FORMATS["yaml"]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            what, text = outcome(type(chosen)(suffix, make, read), path)
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            # a child that reads first counts as well, less what Python and HDF5 take
            grown = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - (100 << 10)) >> 10
            line = json.dumps([name, what, text, grown, round(time.monotonic() - started, 2), path.stat().st_size])
            os.write(1, (line + "\n").encode())
            os._exit(0)
        os.waitpid(pid, 0)
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
