"""The data set `digits-events`, and event files as samples."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from statten_deploy.errors import InputError
from statten_deploy.events import frames_by_number
from statten_deploy.train.data import InputSpec, load_arrays, open_source
from statten_deploy.train.data.digits_events import DigitEvents, digit_recordings
from statten_deploy.train.data.event_files import split_sensor
from tests.events.encoders import bin_bytes, dat_bytes, evt2_bytes, some_events, write

SPEC = InputSpec((8, 2, 16, 16), 10)
SMALL = InputSpec((4, 2, 10, 17), 2)


@pytest.fixture(scope="module")
def test_split() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_arrays("digits-events", "test", SPEC)
    assert y is not None
    return x, y


def test_sizes_and_types(test_split: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = test_split
    assert (x.shape, x.dtype, y.dtype) == ((360, 8, 2, 16, 16), np.float32, np.int64)
    assert np.array_equal(x, np.floor(x))
    assert 2000 < x.sum((1, 2, 3, 4)).mean() < 4000
    frames = x.sum((2, 3, 4))
    assert (frames[:, :7] == frames[:, :1]).all()  # by number
    assert len(open_source("digits-events", SPEC).train or ()) == 1437


def test_no_test_digit_is_in_the_training_split() -> None:
    """Both data sets are the same digits, divided alike."""
    events, images = open_source("digits-events", SPEC), open_source("digits", InputSpec((1, 16, 16), 10))
    train, test = events.train, events.test
    assert isinstance(train, DigitEvents)
    assert isinstance(test, DigitEvents)
    assert not set(train.indices) & set(test.indices)
    assert len(set(train.indices) | set(test.indices)) == 1797
    for ours, theirs in ((train, images.train), (test, images.test)):
        assert theirs is not None
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.indices, np.sort(ours.indices))


def test_frames_never_change(test_split: tuple[np.ndarray, np.ndarray]) -> None:
    """They are part of what the shipped checkpoint's accuracy means."""
    x, y = test_split
    assert hashlib.sha256(x.astype(np.uint8).tobytes() + y.tobytes()).hexdigest() == FRAMES


FRAMES = "b7b1e806ffb49704ec607e940764f449ac8f099676de2dcad9d3d17cdd2b06cf"


def test_recordings_are_those_of_the_frames(test_split: tuple[np.ndarray, np.ndarray]) -> None:
    recordings, labels = digit_recordings("test")
    assert np.array_equal(labels, test_split[1])
    assert len(recordings) == 360
    assert np.array_equal(frames_by_number(recordings[5], 8, (16, 16)), test_split[0][5])
    with pytest.raises(IndexError):
        recordings[360]


@pytest.mark.parametrize(
    ("shape", "classes", "expected"),
    [
        ((1, 16, 16), 10, "set input: frames, in_channels: 2"),
        ((8, 1, 16, 16), 10, "[8, 1, 16, 16]"),
        ((8, 2, 33, 33), 10, "up to 32x32"),
        ((8, 2, 16, 16), 7, "10 classes"),
    ],
)
def test_another_network_is_refused(shape: tuple[int, ...], classes: int, expected: str) -> None:
    with pytest.raises(InputError) as error:
        open_source("digits-events", InputSpec(shape, classes))
    assert expected in str(error.value)


def test_any_number_of_steps_and_any_size() -> None:
    part = open_source("digits-events", InputSpec((10, 2, 32, 20), 10)).test
    assert part is not None
    assert part.sample(0).shape == (10, 2, 32, 20)
    assert part.sample(0).sum() == open_source("digits-events", SPEC).test.sample(0).sum()  # type: ignore[union-attr]


# files


def write_folder(root: Path, name: str = "{}.dat", count: int = 3) -> Path:
    for label, folder in enumerate(("left", "right")):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            write(root / folder / name.format(i), dat_bytes(some_events(40 + i, seed=10 * label + i)))
    return root


def test_folder_of_event_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "rec")
    x, y = load_arrays(root, "evaluation", SMALL)
    assert y is not None
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(x[4], frames_by_number(some_events(41, seed=11), 4, (10, 17)))
    assert [len(load_arrays(root, split, SMALL)[0]) for split in ("train", "test")] == [4, 2]
    with pytest.raises(InputError, match="found 2 class folders"):
        load_arrays(root, "evaluation", InputSpec(SMALL.shape, 3))


def test_folder_with_its_own_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=1)
    assert [len(load_arrays(tmp_path, split, SMALL)[0]) for split in ("train", "test", "evaluation")] == [6, 2, 2]


def test_one_file_and_a_flat_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.raw", evt2_bytes(some_events(50)))
    x, y = load_arrays(path, "evaluation", SMALL)
    assert (x.shape, y) == ((1, 4, 2, 10, 17), None)
    shutil.copy(path, tmp_path / "b.raw")
    x, y = load_arrays(tmp_path, "calibration", SMALL)
    assert (x.shape[0], y) == (1, None)  # 80 % of two
    assert np.array_equal(x[0], load_arrays(path, "evaluation", SMALL)[0][0])


def test_sensor_that_the_format_does_not_tell(tmp_path: Path) -> None:
    events = some_events(50)
    path = write(tmp_path / "a.bin", bin_bytes(events))
    with pytest.raises(InputError, match=r"add it to the name of the data, such as .*a\.bin@34x34"):
        load_arrays(path, "evaluation", SMALL)
    x, _ = load_arrays(f"{path}@34x20", "evaluation", SMALL)
    assert np.array_equal(x[0], frames_by_number(events, 4, (10, 17)))
    with pytest.raises(InputError, match="outside a sensor"):
        load_arrays(f"{path}@30x20", "evaluation", SMALL)
    with pytest.raises(InputError, match="have 10 rows and the sensor 8") as error:
        load_arrays(f"{write(tmp_path / 'b.bin', bin_bytes(some_events(50, (8, 34))))}@34x8", "evaluation", SMALL)
    assert "b.bin: " in str(error.value)
    assert split_sensor("a@b@34x20") == (Path("a@b"), (20, 34))
    with pytest.raises(InputError, match="only those have a sensor"):
        load_arrays("digits@3x3", "test", SMALL)


def test_npz_of_events_and_npz_of_frames(tmp_path: Path) -> None:
    events = some_events(50)
    np.savez(tmp_path / "e.npz", t=events.t, x=events.x, y=events.y, p=events.p, width=34, height=20)
    x, _ = load_arrays(tmp_path / "e.npz", "evaluation", SMALL)
    np.savez(tmp_path / "f.npz", x=x, y=[1])
    again, y = load_arrays(tmp_path / "f.npz", "evaluation", SMALL)
    assert np.array_equal(again, x)
    assert y is not None


def test_folder_of_images_with_an_array_beside_them_holds_images(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "a.png")
        np.save(tmp_path / folder / "a.npy", np.zeros((3, 4)))
    x, _ = load_arrays(tmp_path, "evaluation", InputSpec((1, 8, 8), 2))
    assert x.shape == (2, 1, 8, 8)


def test_networks_without_event_frames_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", dat_bytes(some_events()))
    for shape in ((1, 16, 16), (4, 3, 16, 16)):
        with pytest.raises(InputError, match="input: frames and in_channels: 2"):
            load_arrays(path, "evaluation", InputSpec(shape, 2))


def test_reading_events_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "rec")
    code = (
        "import sys; from statten_deploy.train.data import InputSpec, load_arrays;"
        f"load_arrays({str(root)!r}, 'test', InputSpec((4, 2, 10, 17), 2));"
        "load_arrays('digits-events', 'test', InputSpec((4, 2, 16, 16)), samples=1);"
        "print([m for m in ('torch', 'lightning', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
