"""Data sets: fixed splits, shapes, and one clear line for everything that does not fit."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from statten_deploy.errors import InputError
from statten_deploy.models.config import ModelConfig
from statten_deploy.train.data import SPLITS, InputSpec, load_arrays, open_source, stratified_split
from statten_deploy.train.data.digits import read_digits
from statten_deploy.train.data.split import fixed_order

DIGITS = ModelConfig(image_size=16, in_channels=1, num_classes=10, embed_dim=16, num_heads=2)
RGB = InputSpec((3, 8, 10), 2)


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# digits


def test_digits_sizes_and_types() -> None:
    for split, count in {"train": 1437, "calibration": 1437, "test": 360, "evaluation": 360}.items():
        x, y = load_arrays("digits", split, DIGITS)
        assert (x.shape, x.dtype) == ((count, 1, 16, 16), np.float32)
        assert y is not None
        assert (y.shape, y.dtype) == ((count,), np.int64)
        assert x.min() == 0
        assert x.max() == 1


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = read_digits()
    np.testing.assert_array_equal(images, load_digits().images)
    np.testing.assert_array_equal(labels, load_digits().target)


def test_digits_without_scikit_learn_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statten_deploy.train.data.digits.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"digits: .*digits\.csv\.gz: no such file; .*pip install scikit-learn"):
        load_arrays("digits", "test", DIGITS)


def test_digits_splits_are_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    train, test = (load_arrays("digits", split, DIGITS)[0] for split in ("train", "test"))
    everything = load_digits().images
    # Pixels of the 8x8 original come back from the enlarged image exactly, so samples can be told apart.
    seen = sorted(x.tobytes() for x in np.concatenate([train, test]))
    assert len(seen) == len(everything) == len(set(seen))
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}


def test_digits_test_split_is_stratified() -> None:
    labels = load_arrays("digits", "test", DIGITS)[1]
    everything = np.concatenate([labels, load_arrays("digits", "train", DIGITS)[1]])  # type: ignore[list-item]
    share = np.bincount(labels) / np.bincount(everything)
    assert np.all(np.abs(np.bincount(labels) - 0.2 * np.bincount(everything)) <= 1)
    assert np.allclose(share, 0.2, atol=0.006)


def test_digits_split_never_changes() -> None:
    """The split is part of what the shipped checkpoints' accuracy means."""
    x, y = load_arrays("digits", "test", DIGITS)
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()  # type: ignore[union-attr]
    assert digest == "02178b8c2e1e36f145b72886e739629a8640e027defc30601aacef4a74d46b67"


def test_digits_enlargement_is_bilinear() -> None:
    import torch
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images.astype(np.float32) / 16)[:, None]
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    ours = np.concatenate([load_arrays("digits", split, DIGITS)[0] for split in ("train", "test")])
    assert {x.tobytes() for x in ours} == {x.numpy().tobytes() for x in large}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 32}, "image_size: 16"),
        ({"in_channels": 3}, "[1, 16, 16]"),
        ({"input": "frames"}, "[4, 1, 16, 16]"),
        ({"num_classes": 7}, "10 classes"),
    ],
)
def test_digits_refuses_another_network(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as error:
        load_arrays("digits", "test", DIGITS.model_copy(update=changes | _size(changes)))
    assert expected in one_line(error)


def _size(changes: dict[str, object]) -> dict[str, object]:
    return {"image_size": (32, 32)} if "image_size" in changes else {}


def test_samples_are_a_fixed_mixture() -> None:
    x, y = load_arrays("digits", "test", DIGITS, samples=50)
    again, _ = load_arrays("digits", "test", DIGITS, samples=50)
    assert x.shape[0] == 50
    assert np.array_equal(x, again)
    assert len(np.unique(y)) == 10  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        load_arrays("digits", "test", DIGITS, samples=0)


# splits


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 5),
)
def test_stratified_split_properties(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels, dtype=np.int64)
    kept, held = stratified_split(y, fraction, seed)
    assert len(held) == int(np.ceil(fraction * len(y)))
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(y)))
    for c in np.unique(y):
        assert abs(np.sum(y[held] == c) - np.sum(y == c) * len(held) / len(y)) < 1
    again = stratified_split(y, fraction, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held, again[1])


def test_order_depends_on_no_library() -> None:
    assert fixed_order(8, 0).tolist() == ORDER
    assert sorted(fixed_order(100, 1).tolist()) == list(range(100))


ORDER = [7, 4, 3, 2, 6, 0, 5, 1]


def test_unknown_split_and_data() -> None:
    with pytest.raises(InputError, match=f"expected one of {', '.join(SPLITS)}"):
        load_arrays("digits", "validation", DIGITS)
    with pytest.raises(
        InputError, match=r"cifar11: no such data; expected a built-in data set \(digits, digits-events, "
    ):
        load_arrays("cifar11", "test", DIGITS)


def test_reading_data_needs_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from statten_deploy.train.data import InputSpec, load_arrays;"
        "load_arrays('digits', 'test', InputSpec((1, 16, 16)));"
        "print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# .npz


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_npz_is_divided_without_leaks(tmp_path: Path) -> None:
    x = np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1) * np.ones((1, 3, 8, 10), np.float32)
    path = save(tmp_path / "d.npz", x=x, y=np.arange(50) % 2)
    parts = {split: set(load_arrays(path, split, RGB)[0][:, 0, 0, 0]) for split in SPLITS}
    assert parts["train"] == parts["calibration"]
    assert not parts["calibration"] & parts["test"]
    assert len(parts["test"]) == 10
    assert parts["evaluation"] == parts["train"] | parts["test"]


def test_npz_without_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((5, 3, 8, 10), np.float64))
    x, y = load_arrays(path, "evaluation", RGB)
    assert (x.shape, x.dtype, y) == ((5, 3, 8, 10), np.float32, None)
    assert len(load_arrays(path, "calibration", RGB)[0]) == 4


def test_npz_eight_bit_images_are_scaled_and_counts_are_not(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.full((1, 3, 8, 10), 255, np.uint8))
    assert load_arrays(path, "evaluation", RGB)[0].max() == 1
    path = save(tmp_path / "e.npz", x=np.full((1, 4, 3, 8, 10), 7, np.uint8))
    assert load_arrays(path, "evaluation", InputSpec((4, 3, 8, 10)))[0].max() == 7


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"z": np.zeros(3)}, "no array 'x' (found z)"),
        ({"x": np.zeros((4, 3, 8, 8))}, "'x' has shape [4, 3, 8, 8], the network takes [N, 3, 8, 10]"),
        ({"x": np.zeros((0, 3, 8, 10))}, "N > 0"),
        ({"x": np.array(1.0)}, "shape []"),
        ({"x": np.full((2, 3, 8, 10), np.nan)}, "NaN"),
        ({"x": np.full((2, 3, 8, 10), "a")}, "type <U1"),
        ({"x": np.zeros((2, 3, 8, 10)), "y": np.zeros(3, int)}, "expected whole numbers of shape [2]"),
        ({"x": np.zeros((2, 3, 8, 10)), "y": np.zeros(2)}, "type float64"),
        ({"x": np.zeros((2, 3, 8, 10)), "y": np.array([0, 2])}, "holds classes 0 to 2, the network has 0 to 1"),
        ({"x": np.zeros((2, 3, 8, 10)), "y": np.array([-1, 1])}, "holds classes -1"),
    ],
)
def test_npz_errors(tmp_path: Path, arrays: dict[str, object], expected: str) -> None:
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError) as error:
        load_arrays(path, "evaluation", RGB)
    text = one_line(error)
    assert str(path) in text
    assert expected in text


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("unpickled",))


def test_npz_never_unpickles(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.array([Bomb()] * 2, dtype=object), y=np.zeros(2, int))
    with pytest.raises(InputError):
        load_arrays(path, "evaluation", RGB)
    (tmp_path / "p.npz").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(InputError, match=r"p\.npz: not a readable \.npz file"):
        load_arrays(tmp_path / "p.npz", "evaluation", RGB)


def test_npz_object_labels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 10)), y=np.array([Bomb()] * 2, dtype=object))
    with pytest.raises(InputError, match="array 'y' holds Python objects, which are not read"):
        load_arrays(path, "evaluation", RGB)


def test_npz_truncated(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 10)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="not a readable"):
        load_arrays(path, "evaluation", RGB)


# folders of images


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((16, 20, 3), (c * 100, i * 10, 255), np.uint8)
            pixels[:8, :10] = 50  # the upper left quarter
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_folder_values_and_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets")
    x, y = load_arrays(root, "evaluation", RGB)
    assert (x.shape, x.dtype) == ((10, 3, 8, 10), np.float32)
    assert y is not None
    assert y.tolist() == [0] * 5 + [1] * 5
    assert np.allclose(x[7, :, 6, 8], [100 / 255, 20 / 255, 1])
    assert np.allclose(x[7, :, 1, 2], 50 / 255)
    assert np.allclose(x[7, :, 1, 8], x[7, :, 6, 8])
    train, test = (load_arrays(root, split, RGB)[0] for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)


def test_folder_grey(tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets")
    assert load_arrays(root, "evaluation", InputSpec((1, 8, 10), 2))[0].shape == (10, 1, 8, 10)


def test_folder_with_its_own_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train", count=4)
    write_images(tmp_path / "val", count=1)
    assert [len(load_arrays(tmp_path, split, RGB)[0]) for split in SPLITS] == [8, 8, 2, 2]


def test_folder_splits_must_have_the_same_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes=("cat", "cow"))
    with pytest.raises(InputError, match="class folders differ"):
        load_arrays(tmp_path, "test", RGB)


@pytest.mark.parametrize(
    ("classes", "spec", "expected"),
    [
        (("cat", "dog", "cow"), RGB, "found 3 class folders (cat, cow, dog), the network has 2 classes"),
        ((), RGB, "found 0 class folders"),
        ((), InputSpec((3, 8, 10)), "expected one sub-folder of images per class"),
        (("cat", "dog"), InputSpec((4, 3, 8, 10), 2), "the network takes [4, 3, 8, 10]"),
        (("cat", "dog"), InputSpec((2, 8, 10), 2), "1 or 3 channels"),
    ],
)
def test_folder_errors(tmp_path: Path, classes: tuple[str, ...], spec: InputSpec, expected: str) -> None:
    root = write_images(tmp_path / "pets", classes) if classes else tmp_path
    with pytest.raises(InputError) as error:
        load_arrays(root, "evaluation", spec)
    assert expected in one_line(error)


def test_folder_with_a_damaged_image(tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets")
    (root / "dog" / "1.png").write_bytes((root / "dog" / "1.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"dog.1\.png: cannot be decoded"):
        load_arrays(root, "evaluation", RGB)


def test_too_small_to_divide(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((1, 3, 8, 10)))
    with pytest.raises(InputError, match="the train split is empty"):
        load_arrays(path, "train", RGB)
    assert open_source(path, RGB).whole is not None
