"""Data sets that users have on disk, in their published forms, through the readers that read the real ones."""

import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from statten_deploy.errors import InputError
from statten_deploy.events import frames_by_number, read_events
from statten_deploy.train.data import InputSpec, download, load_arrays, open_source, select, split_root
from statten_deploy.train.data.event_sets import EVENT_SETS, first_of_each_class
from statten_deploy.train.data.frame_files import RecordedFrames, read_recording, resize_frames
from tests.train import disk_sets

CIFAR = InputSpec((3, 32, 32), 10)
DVS = InputSpec((4, 2, 64, 64), 10)
CALTECH = InputSpec((4, 2, 64, 64), 101)
GESTURE = InputSpec((4, 2, 128, 128), 11)
NMNIST = InputSpec((4, 2, 34, 34), 10)


def recorded(data: str, spec: InputSpec, split: str) -> RecordedFrames:
    part = select(open_source(data, spec), split)
    assert isinstance(part, RecordedFrames)
    return part


# where data are


def test_a_name_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_root("cifar10") == ("cifar10", Path("data"))
    monkeypatch.setenv("STATTEN_DATA", "/sets")
    assert split_root("imagenet") == ("imagenet", Path("/sets"))
    assert split_root("torch/cifar100") == ("cifar100", Path("/sets"))
    assert split_root("cifar10-dvs:/here") == ("cifar10dvs", Path("/here"))
    assert split_root("nmnist:~/x") == ("nmnist", Path.home() / "x")
    assert split_root("folder:with/colon") == ("folder:with/colon", None)


@pytest.mark.parametrize(
    ("name", "spec", "put"),
    [
        ("cifar10", CIFAR, "cifar-10-python.tar.gz"),
        ("cifar100", InputSpec((3, 32, 32), 100), "cifar-100-python.tar.gz"),
        ("imagenet", InputSpec((3, 32, 32), 2), "train/ and val/"),
        ("cifar10dvs", DVS, "frames_number_4_split_by_number"),
        ("ncaltech101", CALTECH, "NCALTECH101"),
        ("dvs128gesture", GESTURE, "DVSGesture"),
        ("nmnist", NMNIST, "events_np"),
    ],
)
def test_what_is_missing_is_told_in_one_line(tmp_path: Path, name: str, spec: InputSpec, put: str) -> None:
    with pytest.raises(InputError) as error:
        open_source(f"{name}:{tmp_path}", spec)
    text = str(error.value)
    assert text.startswith(f"{name}: ")
    assert put in text
    assert "STATTEN_DATA" in text
    assert "\n" not in text
    assert not list(tmp_path.iterdir())


# CIFAR


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = disk_sets.write_cifar10(tmp_path, monkeypatch)
    for split, part in {"train": slice(0, 100), "calibration": slice(0, 100), "test": slice(100, 120)}.items():
        x, y = load_arrays(f"cifar10:{tmp_path}", split, CIFAR)
        assert np.array_equal(x, images[part].astype(np.float32) / np.float32(255))
        assert np.array_equal(y, labels[part])  # type: ignore[arg-type]
    monkeypatch.setenv("STATTEN_DATA", str(tmp_path))
    assert len(select(open_source("torch/cifar10", CIFAR), "evaluation")) == 20
    small = load_arrays("cifar10", "test", InputSpec((1, 16, 24), 10))[0]
    assert small.shape == (20, 1, 16, 24)
    with pytest.raises(InputError, match="cifar10: the data have 10 classes, the network has 100"):
        open_source("cifar10", InputSpec((3, 32, 32), 100))
    with pytest.raises(InputError, match=r"cifar10: gives still images"):
        open_source("cifar10", InputSpec((4, 2, 32, 32), 10))


def test_cifar100_has_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = disk_sets.write_cifar100(tmp_path / "cifar100", monkeypatch)
    spec = InputSpec((3, 32, 32), 100)
    for split, told in zip(("train", "test"), labels, strict=True):
        assert np.array_equal(load_arrays(f"cifar100:{tmp_path}", split, spec)[1], told)  # type: ignore[arg-type]


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("unpickled",))


def test_only_published_pickles_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_sets.write_cifar10(tmp_path, monkeypatch)
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        kept = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InputError, match=r"differ from the published ones .* unpack cifar-10-python.tar.gz again"):
            open_source(f"cifar10:{tmp_path}", CIFAR)
        path.write_bytes(kept)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(InputError, match="files are missing"):
        open_source(f"cifar10:{tmp_path}", CIFAR)


# ImageNet


def test_imagenet_is_fitted_as_timm_evaluates(tmp_path: Path) -> None:
    from timm.data.transforms_factory import transforms_imagenet_eval

    disk_sets.write_imagenet(tmp_path / "imagenet")
    spec = InputSpec((3, 40, 40), 2)
    source = open_source(f"imagenet:{tmp_path}", spec)
    test = select(source, "evaluation")
    assert len(test) == 6
    assert test.labels is not None
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = transforms_imagenet_eval(40, crop_pct=0.95, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    for index in range(6):
        path = tmp_path / f"imagenet/val/n{index // 3:08d}/ILSVRC2012_val_{index % 3:08d}.JPEG"
        told = expected(Image.open(path).convert("RGB"))
        assert np.array_equal(test.sample(index), told.numpy())


# event data


def test_cifar10dvs_from_recordings(tmp_path: Path) -> None:
    disk_sets.write_cifar10dvs(tmp_path / "cifar10-dvs", count=4)
    train = recorded(f"cifar10dvs:{tmp_path}", DVS, "train")
    assert len(train) == 40  # ceil(0.9 · 4) of every class
    with pytest.raises(InputError, match="the test split is empty"):
        recorded(f"cifar10dvs:{tmp_path}", DVS, "test")
    path = train.path(0)
    assert path.name == "cifar10_airplane_0.aedat"
    frames = frames_by_number(read_events(path), 4, (128, 128))
    quarter = frames.reshape(4, 2, 64, 2, 64, 2).mean((3, 5), dtype=np.float32)
    assert np.array_equal(train.sample(0), quarter)


def test_cifar10dvs_split_is_spikingjellys(tmp_path: Path) -> None:
    """The released code: ceil(0.9 n) of every class in SpikingJelly's order of files."""
    from spikingjelly.datasets.utils import split_to_train_test_set
    from torchvision.datasets import DatasetFolder

    disk_sets.write_cifar10dvs(tmp_path, count=11)
    train, test = (recorded(f"cifar10dvs:{tmp_path}", DVS, split) for split in ("train", "test"))
    folder = DatasetFolder(str(tmp_path / "extract"), loader=lambda path: path, extensions=(".aedat",))
    theirs = split_to_train_test_set(0.9, folder, 10)
    for ours, told in zip((train, test), theirs, strict=True):
        expected = [(Path(folder.samples[i][0]), folder.samples[i][1]) for i in told.indices]
        assert [(ours.path(i), int(ours.labels[i])) for i in range(len(ours))] == expected
    assert (len(train), len(test)) == (100, 10)


def test_ncaltech101_is_divided_and_resized_as_released(tmp_path: Path) -> None:
    from torchvision.transforms import InterpolationMode, Resize

    disk_sets.write_ncaltech101(tmp_path, counts=(3, 11))
    train, test = (recorded(f"ncaltech101:{tmp_path}", CALTECH, split) for split in ("train", "test"))
    # int(0.9 · 3) = 2, int(0.9 · 11) = 9
    assert np.bincount(train.labels)[:2].tolist() == [2, 9]
    assert np.bincount(test.labels)[:2].tolist() == [1, 2]
    frames = frames_by_number(read_recording(train.path(3), (180, 240)), 4, (180, 240))
    resized = Resize((64, 64), interpolation=InterpolationMode.NEAREST)(torch.from_numpy(frames))
    assert np.array_equal(train.sample(3), resized.numpy())


@pytest.mark.parametrize("name", ["ncaltech101", "nmnist", "dvs128gesture"])
def test_files_labels_and_events_are_tonics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """tonic's own class on the same folder: it needs to be told that these few files are the whole set."""
    import tonic.datasets

    kind = EVENT_SETS[name]
    base = tmp_path / kind.tonic
    {
        "ncaltech101": partial(disk_sets.write_ncaltech101, counts=(2,)),
        "nmnist": disk_sets.write_nmnist,
        "dvs128gesture": disk_sets.write_dvsgesture,
    }[name](base)
    theirs = getattr(tonic.datasets, kind.tonic)
    monkeypatch.setattr(theirs, "_check_exists", lambda self: True)
    size = (64, 64) if name == "ncaltech101" else kind.sensor
    source = open_source(f"{name}:{tmp_path}", InputSpec((4, 2, *size), kind.classes))
    seen = {}
    for options, part in [({"train": True}, source.train), ({"train": False}, source.test)]:
        assert isinstance(part, RecordedFrames)
        told = theirs(str(tmp_path), **(options if kind.parts else {}))
        index_of = {Path(path).resolve(): index for index, path in enumerate(told.data)}
        for i in range(0, len(part), 7):
            path = part.path(i).resolve()
            index = index_of[path]
            seen.setdefault(int(part.labels[i]), set()).add(told.targets[index])
            events, _ = told[index]
            ours = read_recording(path, kind.sensor)
            for axis in "xy":
                shift = getattr(ours, axis).min() if name == "ncaltech101" else 0  # tonic moves these to the corner
                assert np.array_equal(getattr(ours, axis) - shift, events[axis])
            assert np.array_equal(ours.t, events["t"])
            assert np.array_equal(ours.p, events["p"].astype(bool))
        if kind.parts:
            assert len(part) == len(told)
    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_gesture_classes_are_numbered_as_in_spikingjellys_folders(tmp_path: Path) -> None:
    """Folders 0, 1, 10, 2, ...: what released networks learnt. tonic's files give the same."""
    disk_sets.write_dvsgesture(tmp_path / "tonic", users=1)
    part = recorded(f"dvs128gesture:{tmp_path / 'tonic'}", GESTURE, "train")
    by_name = {part.path(i).stem: int(part.labels[i]) for i in range(len(part))}
    assert by_name == {str(n): label for label, n in enumerate([0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9])}


def test_spikingjelly_frames_are_used_as_they_are(tmp_path: Path) -> None:
    """frames_number_T_split_by_number wins over as many recordings; other numbers of frames are not looked at."""
    disk_sets.write_nmnist(tmp_path)
    for part, label in ((part, label) for part in ("train", "test") for label in range(10)):
        for index in range(2):
            folder = tmp_path / "frames_number_4_split_by_number" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / f"{index:05d}.npz", frames=np.full((4, 2, 34, 34), label + 0.5, np.float32))
    assert recorded(f"nmnist:{tmp_path}", NMNIST, "test").sample(19).max() == 9.5
    made = recorded(f"nmnist:{tmp_path}", InputSpec((5, 2, 34, 34), 10), "test")
    assert made.sample(19).sum() == 50
    np.savez(tmp_path / "frames_number_4_split_by_number/test/0/00000.npz", frames=np.zeros((3, 2, 34, 34)))
    with pytest.raises(InputError, match=r"00000.npz: has frames \[3, 2, 34, 34\] of float64; expected numbers \[4"):
        recorded(f"nmnist:{tmp_path}", NMNIST, "test").sample(0)


def test_smaller_grids_add_events_up(tmp_path: Path) -> None:
    disk_sets.write_nmnist(tmp_path)
    part = recorded(f"nmnist:{tmp_path}", InputSpec((3, 2, 10, 17), 10), "train")
    assert np.array_equal(part.sample(4), frames_by_number(read_recording(part.path(4), (34, 34)), 3, (10, 17)))
    assert resize_frames(np.ones((1, 2, 34, 34)), (7, 5), "sum").sum() == 2 * 34 * 34
    with pytest.raises(InputError, match="events cannot be enlarged"):
        open_source(f"nmnist:{tmp_path}", InputSpec((3, 2, 35, 34), 10))


# frames on disk


def test_frames_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_sets.write_nmnist(tmp_path)
    part = recorded(f"nmnist:{tmp_path}", NMNIST, "train")
    first = part.sample(3)
    kept = part.cached(3)
    assert kept == tmp_path / "statten_frames_number_4/Train/1/00001.npz"
    assert np.load(kept)["frames"].dtype == np.uint8
    assert [path.name for path in kept.parent.iterdir()] == ["00001.npz"]  # and no temporary file
    monkeypatch.setattr("statten_deploy.train.data.frame_files.read_recording", pytest.fail)
    assert np.array_equal(recorded(f"nmnist:{tmp_path}", NMNIST, "train").sample(3), first)


def test_kept_frames_beside_the_classes_are_no_class(tmp_path: Path) -> None:
    """tonic's CIFAR10DVS has its classes at the top, where the frames go too."""
    disk_sets.write_cifar10dvs(tmp_path / "CIFAR10DVS", below="", count=2)
    first = recorded(f"cifar10dvs:{tmp_path}", DVS, "train")
    x = first.sample(0)
    assert first.cached(0) == tmp_path / "CIFAR10DVS/statten_frames_number_4/airplane/cifar10_airplane_0.npz"
    assert first.cached(0).exists()
    again = recorded(f"cifar10dvs:{tmp_path}", DVS, "train")
    assert (len(again), np.array_equal(again.sample(0), x)) == (20, True)


@pytest.mark.parametrize("damage", ["cut", "older", "other"])
def test_a_kept_file_that_does_not_fit_is_made_again(tmp_path: Path, damage: str) -> None:
    disk_sets.write_nmnist(tmp_path)
    part = recorded(f"nmnist:{tmp_path}", NMNIST, "train")
    first, kept = part.sample(0), part.cached(0)
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-40])
    elif damage == "other":
        np.savez(kept, frames=np.zeros((2, 2, 34, 34), np.uint8))
    else:  # the recording was replaced since
        np.savez(kept, frames=np.zeros((4, 2, 34, 34), np.uint8))
        os.utime(kept, (1, 1))
    assert np.array_equal(part.sample(0), first)
    assert np.array_equal(np.load(kept)["frames"], first)


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    disk_sets.write_nmnist(tmp_path)
    part = recorded(f"nmnist:{tmp_path}", NMNIST, "train")
    (tmp_path / "statten_frames_number_4").write_text("in the way")
    assert part.sample(0).sum() == 50
    assert not part.cached(0).exists()


def test_a_kill_leaves_whole_files_only(tmp_path: Path) -> None:
    """A process that is killed while it makes frames leaves nothing that another one takes for frames."""
    disk_sets.write_nmnist(tmp_path)
    code = (
        "import os, sys, numpy as np; from pathlib import Path\n"
        "from statten_deploy.train.data import InputSpec, open_source\n"
        "part = open_source('nmnist:' + sys.argv[1], InputSpec((4, 2, 34, 34), 10)).train\n"
        "part.sample(0)\n"
        "real = np.savez_compressed\n"
        "def killed(stream, **arrays):\n"
        "    real(stream, **arrays); stream.flush(); os.kill(os.getpid(), 9)\n"
        "np.savez_compressed = killed\n"
        "part.sample(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    part = recorded(f"nmnist:{tmp_path}", NMNIST, "train")
    assert part.cached(0).exists()
    assert not part.cached(1).exists()
    assert part.sample(1).sum() == 50
    assert np.array_equal(np.load(part.cached(1))["frames"], part.sample(1))


def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    disk_sets.write_nmnist(tmp_path)
    part = recorded(f"nmnist:{tmp_path}", NMNIST, "train")
    part.path(0).write_bytes(b"1234567")
    part.path(1).write_bytes(bytes([40, 3, 0, 0, 1]))
    with pytest.raises(InputError, match=r"Train/0/00000.bin: "):
        part.sample(0)
    with pytest.raises(InputError, match=r"Train/0/00001.bin: x of event 0 is 40, outside a sensor of width 34"):
        part.sample(1)


def test_first_of_each_class() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1] * 2)
    kept, held = first_of_each_class(labels, int)
    assert kept.tolist() == [1, 4, 7, 0, 2, 3, 5, 6, 8, 9]
    assert held.tolist() == [10, 11]


# fetching


def test_nothing_else_can_be_fetched(tmp_path: Path) -> None:
    for data in ("imagenet", "digits", str(tmp_path)):
        with pytest.raises(InputError, match="cannot be fetched; these can: cifar10, cifar100, cifar10dvs"):
            download(data)


def test_download_fetches_what_torchvision_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from torchvision.datasets import CIFAR10

    disk_sets.write_cifar10(tmp_path / "made", monkeypatch, count=2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "made/cifar-10-batches-py", "cifar-10-batches-py")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/cifar.tar.gz").write_bytes(packed.getvalue())

    fetched = []

    class Slow(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            time.sleep(0.3)  # long enough for others to begin
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
        download(f"cifar10:{tmp_path / 'root'}")
        once = len(fetched)
        with ThreadPoolExecutor(3) as pool:  # as the processes of torchrun do
            list(pool.map(download, [f"cifar10:{tmp_path / 'shared'}"] * 3))
        assert len(fetched) == 2 * once
        assert len(select(open_source(f"cifar10:{tmp_path / 'root'}", CIFAR), "train")) == 10
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/none.tar.gz")
        with pytest.raises(InputError, match="--download: cifar10 cannot be fetched into"):
            download(f"cifar10:{tmp_path / 'other'}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", EVENT_SETS)
def test_event_sets_are_fetched_by_tonic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import tonic.datasets

    asked = []

    class Fetch:
        def __init__(self, save_to: str, **options: object) -> None:
            asked.append((save_to, options))

    monkeypatch.setattr(tonic.datasets, EVENT_SETS[name].tonic, Fetch)
    download(f"{name}:{tmp_path}")
    parts = [{"train": True}, {"train": False}] if EVENT_SETS[name].parts else [{}]
    assert asked == [(str(tmp_path), options) for options in parts]
