"""Event files in the formats as they are on disk, written here byte by byte, come back event by event."""

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.events import READERS, Events, read_events
from statten_deploy.events.readers import aedat4_child, aedat_files
from tests.events.encoders import (
    EVT3_HEADER,
    aedat2_bytes,
    aedat3_bytes,
    bin_bytes,
    dat_bytes,
    evt2_bytes,
    evt3_bytes,
    rows,
    some_events,
    write,
)

SIZE = (20, 34)
AEDAT4 = Path(__file__).parents[1] / "data/events.aedat4"
"""Written by iniVation's dv-processing (tests/data/README.md)."""


def same(found: Events, expected: Events, size: tuple[int, int] | None) -> None:
    assert rows(found) == rows(expected)
    assert found.size == size
    assert (found.t.dtype, found.x.dtype, found.y.dtype, found.p.dtype) == (np.int64, np.uint16, np.uint16, np.bool_)


def write_hdf5(path: Path, events: Events, layout: str = "events", **compression: object) -> Path:
    with h5py.File(path, "w") as file:
        if layout == "CD":
            table = np.zeros(len(events), [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
            for name in "xypt":
                table[name] = getattr(events, name)
            file.create_dataset("CD/events", data=table, **compression)
            file.attrs["geometry"] = "34x20"
        else:
            file["t_offset"] = 1000
            for name in "xypt":
                column = getattr(events, name).astype(np.uint32 if name == "t" else np.uint16)
                file.create_dataset(f"events/{name}", data=column, **compression)
    return path


def structured(events: Events) -> np.ndarray:
    table = np.zeros(len(events), [("timestamp", "<i8"), ("x", "<i2"), ("y", "<i2"), ("polarity", "i1")])
    table["timestamp"], table["x"], table["y"], table["polarity"] = events.t, events.x, events.y, events.p
    return table


BYTES: dict[str, tuple[Callable[[Events], bytes], str, tuple[int, int] | None]] = {
    "bin": (bin_bytes, ".bin", None),
    "dat": (dat_bytes, ".dat", SIZE),
    "evt2": (evt2_bytes, ".raw", SIZE),
    "evt3": (evt3_bytes, ".raw", SIZE),
    "aedat2": (aedat2_bytes, ".aedat", (128, 128)),
    "aedat3": (aedat3_bytes, ".aedat", None),
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("count", [2, 500])
def test_every_event_comes_back(tmp_path: Path, kind: str, count: int) -> None:
    encode, suffix, size = BYTES[kind]
    events = some_events(count)
    same(read_events(write(tmp_path / f"a{suffix}", encode(events))), events, size)


def test_structured_array_and_columns(tmp_path: Path) -> None:
    events = some_events()
    np.save(tmp_path / "s.npy", structured(events))
    same(read_events(tmp_path / "s.npy"), events, None)
    np.save(tmp_path / "c.npy", np.array(rows(events), dtype=np.float64))
    same(read_events(tmp_path / "c.npy"), events, None)
    minus = np.array(rows(events), dtype=np.int32)
    minus[:, 3] = 2 * minus[:, 3] - 1
    np.save(tmp_path / "m.npy", minus)
    same(read_events(tmp_path / "m.npy"), events, None)


def test_npz_with_and_without_size(tmp_path: Path) -> None:
    events = some_events()
    columns = {name: getattr(events, name) for name in "txyp"}
    np.savez(tmp_path / "a.npz", **columns)
    same(read_events(tmp_path / "a.npz"), events, None)
    same(read_events(tmp_path / "a.npz", size=SIZE), events, SIZE)
    np.savez_compressed(tmp_path / "b.npz", **columns, width=34, height=20)
    same(read_events(tmp_path / "b.npz"), events, SIZE)


@pytest.mark.parametrize("compression", [{}, {"compression": "gzip"}, "blosc"])
def test_hdf5_layouts(tmp_path: Path, compression: object) -> None:
    if compression == "blosc":
        import hdf5plugin

        compression = dict(hdf5plugin.Blosc(cname="zstd"))
    assert isinstance(compression, dict)
    events = some_events()
    same(read_events(write_hdf5(tmp_path / "a.h5", events, "CD", **compression)), events, SIZE)
    later = Events(events.t + 1000, events.x, events.y, events.p)
    same(read_events(write_hdf5(tmp_path / "b.hdf5", events, **compression)), later, None)


def test_aedat4_of_the_makers_library() -> None:
    events = some_events(300)
    later = Events(events.t + 1_000_000, events.x, events.y, events.p)
    same(read_events(AEDAT4), later, SIZE)


# the same files through readers that others wrote


def test_of_two_cameras_in_an_aedat4_file_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the other's packets come before it, and packets that hold no events between."""
    first, other = some_events(6), some_events(4, seed=1)
    fields = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")]

    def packet(number: int, events: Events) -> dict[str, object]:
        return {"stream_id": number, "events": np.array(rows(events), fields)}

    class Decoder:
        def __init__(self, path: str) -> None:
            self.packets = [packet(5, other), packet(2, first[:4]), {"stream_id": 1, "frame": {}}, packet(2, first[4:])]

        def id_to_stream(self) -> dict[int, dict[str, object]]:
            side = {"type": "events", "width": 34, "height": 20}
            return {5: {**side, "width": 99}, 1: {"type": "frame", "width": 34, "height": 20}, 2: side}

        def __iter__(self) -> Iterator[dict[str, object]]:
            return iter(self.packets)

    monkeypatch.setitem(sys.modules, "aedat", SimpleNamespace(Decoder=Decoder))
    same(aedat4_child.decode(Path("two.aedat4"), 100), first, SIZE)


def test_prophesee_files_as_expelliarmus_reads_and_writes_them(tmp_path: Path) -> None:
    from expelliarmus import Wizard

    events = some_events(2000, (480, 640), last_us=3_000_000)
    table = np.zeros(len(events), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    for name in "txyp":
        table[name] = getattr(events, name)
    # Not EVT 3.0: it writes one time word only, and reads a clock's carry twice.
    for encoding, suffix in (("dat", ".dat"), ("evt2", ".raw")):
        theirs = tmp_path / f"{encoding}{suffix}"
        Wizard(encoding=encoding).save(theirs, table)
        same(read_events(theirs), events, None)
    small = some_events()
    read = Wizard(encoding="dat").read(write(tmp_path / "ours.dat", dat_bytes(small)))
    assert rows(small) == [tuple(map(int, row)) for row in read[["t", "x", "y", "p"]]]


def test_bin_files_as_tonic_and_spikingjelly_read_them(tmp_path: Path) -> None:
    from spikingjelly.datasets.utils import load_ATIS_bin
    from tonic.io import events_struct, read_mnist_file

    events = some_events()
    path = write(tmp_path / "a.bin", bin_bytes(events))
    theirs = read_mnist_file(str(path), dtype=events_struct)
    assert rows(read_events(path)) == [tuple(map(int, row)) for row in theirs[["t", "x", "y", "p"]]]
    early = some_events(last_us=1 << 13)  # SpikingJelly knows nothing of a clock that wraps
    theirs = load_ATIS_bin(write(path, bin_bytes(early)))
    assert rows(read_events(path)) == list(zip(*(theirs[name].tolist() for name in "txyp"), strict=True))


def test_aedat_files_as_spikingjelly_reads_them(tmp_path: Path) -> None:
    from spikingjelly.datasets.cifar10_dvs import _load_origin_data
    from spikingjelly.datasets.utils import load_aedat_v3

    events = some_events(300, (128, 128))
    path = write(tmp_path / "a.aedat", aedat2_bytes(events))
    theirs = _load_origin_data(path)
    assert rows(read_events(path)) == list(zip(*(theirs[name].tolist() for name in "txyp"), strict=True))
    theirs = load_aedat_v3(write(path, aedat3_bytes(events)))
    ours = set(rows(read_events(path)))
    told = set(zip(*(theirs[name].tolist() for name in "txyp"), strict=True))
    assert ours <= told  # it also keeps the events that are marked invalid
    assert {row[1:3] for row in told - ours} == {(5, 5)}


def test_vectors_of_evt3(tmp_path: Path) -> None:
    words = [0x8001, 0x6002, 0x0007, 0x3 << 12 | 1 << 11 | 3, 0x4 << 12 | 0b1000_0000_0101, 0x5 << 12 | 0b11]
    path = write(tmp_path / "a.raw", EVT3_HEADER.encode() + struct.pack("<6H", *words))
    t = (1 << 12) + 2
    assert rows(read_events(path)) == [(t, x, 7, 1) for x in (3, 5, 14, 15, 16)]


# clocks


@pytest.mark.parametrize(
    ("kind", "wrap"), [("evt3", 1 << 24), ("evt2", 1 << 34), ("dat", 1 << 32), ("aedat2", 1 << 32)]
)
def test_clock_that_wraps(tmp_path: Path, kind: str, wrap: int) -> None:
    encode, suffix, size = BYTES[kind]
    events = some_events()
    late = Events(events.t + wrap - 25_000, events.x, events.y, events.p)
    same(read_events(write(tmp_path / f"a{suffix}", encode(late))), late, size)


@pytest.mark.parametrize("encode", [evt2_bytes, evt3_bytes])
def test_raw_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: Callable[[Events], bytes]) -> None:
    events = some_events()
    path = write(tmp_path / "a.raw", encode(events))
    monkeypatch.setattr("statten_deploy.events.readers.prophesee.BLOCK_BYTES", 36)
    same(read_events(path), events, SIZE)


# what is refused


def refused(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as error:
        read_events(path, **options)  # type: ignore[arg-type]
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("kind", BYTES)
def test_truncated(tmp_path: Path, kind: str) -> None:
    encode, suffix, _ = BYTES[kind]
    content = encode(some_events(50))
    assert "truncated" in refused(write(tmp_path / f"a{suffix}", content[:-1])) or kind == "aedat3"


def test_truncated_aedat3_at_every_place(tmp_path: Path) -> None:
    content = aedat3_bytes(some_events(10), packet=5)
    header = content.index(b"END-HEADER\r\n") + 12
    counts = {header: 0, header + 28 + 8: 0, header + 36 + 28 + 6 * 8: 5, len(content): 10}  # between packets
    for end in range(header, len(content) + 1):
        path = write(tmp_path / "a.aedat", content[:end])
        if end in counts:
            assert len(read_events(path)) == counts[end]
        else:
            refused(path)


@pytest.mark.parametrize("kind", BYTES)
def test_too_many(tmp_path: Path, kind: str) -> None:
    encode, suffix, _ = BYTES[kind]
    path = write(tmp_path / f"a{suffix}", encode(some_events(500)))
    assert "at most 499 are read" in refused(path, max_events=499)


def test_too_many_in_library_files(tmp_path: Path) -> None:
    events = some_events(500)
    np.save(tmp_path / "a.npy", structured(events))
    np.savez(tmp_path / "a.npz", **{name: getattr(events, name) for name in "txyp"})
    write_hdf5(tmp_path / "a.h5", events)
    for name in ("a.npy", "a.npz", "a.h5"):
        assert "at most 499 are read" in refused(tmp_path / name, max_events=499)
    with pytest.raises(InputError, match="holds 300 events, at most 299 are read"):
        read_events(AEDAT4, max_events=299)


def test_events_outside_the_sensor_are_damage(tmp_path: Path) -> None:
    events = some_events(50, (64, 64))
    for kind in ("dat", "evt2", "evt3"):
        encode, suffix, _ = BYTES[kind]
        assert "outside a sensor" in refused(write(tmp_path / f"a{suffix}", encode(events)))
    assert "outside a sensor" in refused(write(tmp_path / "a.bin", bin_bytes(events)), size=SIZE)
    small = write(tmp_path / "b.dat", dat_bytes(some_events(50)))
    assert "34x20" in refused(small, size=(21, 34))
    same(read_events(small, size=SIZE), some_events(50), SIZE)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.raw", b"no header at all", "lines of text that start with %"),
        ("a.raw", b"% evt 2.1\n% end\n", "evt 2.1"),
        ("a.raw", b"% format EVT21;height=20\n% end\n", "EVT21"),
        ("a.raw", b"% evt 2.0\n% end\n" + struct.pack("<I", 0x5 << 28), "unknown type 5"),
        ("a.dat", b"% x\n", "event type none"),
        ("a.dat", b"% x\n\x0e\x08", "event type 0e"),
        ("a.aedat", b"% x\n", "not an AEDAT file"),
        ("a.aedat", b"#!AER-DAT7.0\r\n", "'7.0'"),
        ("a.aedat", b"#!AER-DAT2.0\r\n" + struct.pack(">II", 1 << 20, 0), "another camera than the DVS128"),
        ("a.aedat", b"#!AER-DAT3.1\r\n" + struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, 1 << 28, 1, 1), "a packet of 2,147"),
        ("a.aedat4", b"#!AER-DAT4.0\r\n", "not a readable AEDAT 4 file"),
        ("a.npy", b"\x93NUMPY", "not a readable .npy file"),
        ("a.npz", b"PK", "not a readable .npz file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "not a readable HDF5 file"),
        ("a.txt", b"", "not a known kind of event file"),
    ],
)
def test_damaged(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in refused(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((3, 3)), "expected a structured array"),
        (np.array([(0, 40_000, 0, 1)]), "x of event 0 is 40000"),
        (np.array([(0, -1, 0, 1)]), "x of event 0 is -1"),
        (np.array([(0, 0, 0, 2)]), "polarities other than"),
        (np.array([(0.5, 0, 0, 1)]), "whole numbers"),
        (np.array([(np.nan, 0, 0, 1)]), "whole numbers"),
        (np.array([(2.0**63, 0, 0, 1)]), "times beyond"),
        (np.zeros(3, [("t", "<i8"), ("x", "<i2"), ("y", "<i2")]), "expected t, x, y and p"),
        (np.array([None, "x"], dtype=object), "expected a structured array"),
    ],
)
def test_arrays_that_hold_no_events(tmp_path: Path, array: np.ndarray, expected: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    assert expected in refused(path)


def test_hdf5_of_something_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros(3)
    assert "expected arrays events/t, x, y, p" in refused(tmp_path / "a.h5")


def test_hdf5_with_an_unknown_filter(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", some_events(), "CD", compression="gzip")
    with h5py.File(path, "r") as file:
        assert file["CD/events"].id.get_create_plist().get_filter(0)[0] == 1
    content = path.read_bytes()
    at = content.index(b"deflate") - 8  # number of the filter, length of its name, flags, number of values
    assert content[at : at + 2] == b"\x01\x00"
    path.write_bytes(content[:at] + struct.pack("<H", 36559) + content[at + 2 :])  # Prophesee's ECF
    assert "HDF5 filter 36559" in refused(path)


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_small_file_that_declares_much(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (8000000, 4), }".ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    else:
        with h5py.File(path, "w") as file:
            for name in "txyp":
                file.create_dataset(f"events/{name}", (1 << 30,), "i8", chunks=(1 << 16,))
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(sorted(BYTES)), how=st.integers(0, 2))
def test_damage_gives_events_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, how: int
) -> None:
    encode, suffix, _ = BYTES[kind]
    content = bytearray(encode(some_events(40)))
    rng = np.random.default_rng(seed)
    if how == 0:
        del content[int(rng.integers(len(content))) :]
    for _ in range(5 if how else 0):
        content[int(rng.integers(len(content) if how == 1 else min(150, len(content))))] = int(rng.integers(256))
    path = write(tmp_path_factory.getbasetemp() / f"damaged{suffix}", bytes(content))
    try:
        read_events(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_damaged_aedat4_ends_a_child_at_most(tmp_path: Path) -> None:
    """The decoder ends its process on some of these; a few, as each costs a process."""
    content = AEDAT4.read_bytes()
    for end in (20, 900, len(content) // 2):
        refused(write(tmp_path / "a.aedat4", content[:end]))
    rng = np.random.default_rng(3)
    for _ in range(6):
        broken = bytearray(content)
        for at in rng.integers(14, 1000, 4):
            broken[at] = int(rng.integers(256))
        refused(write(tmp_path / "a.aedat4", bytes(broken)))


def test_decoder_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "statten_deploy.untrusted.child.START", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    )
    with pytest.raises(InputError, match="the reader was ended by signal 6"):
        read_events(AEDAT4)


def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evt3", None)
    path = write(tmp_path / "a.raw", evt3_bytes(some_events()))
    with pytest.raises(UnsupportedError, match=r"needs evt3, which is not installed: pip install 'statten-deploy\[e"):
        read_events(path)
    monkeypatch.setattr(aedat_files, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs aedat, which is not installed"):
        read_events(AEDAT4)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "a.bin")
    assert "is a folder" in refused(tmp_path)


def test_the_room_needs_numpy_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import statten_deploy.events, numpy;"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "['numpy', 'statten_deploy']"
    assert len(READERS) == 9
