"""Files of data sets as tonic and SpikingJelly leave them, and configurations, made to harm."""

from pathlib import Path

import numpy as np
import pytest

from statten_deploy.errors import ConfigError, InputError
from statten_deploy.models.config import read_yaml
from statten_deploy.train.data.frame_files import read_frames, read_recording

SENSOR = (128, 128)


def recording(path: Path, **columns: float) -> Path:
    """Three events x, y, p, t as tonic writes DVS128 Gesture."""
    np.save(path, np.array([[columns.get(name, 1) for name in "xypt"]] * 3))
    return path


def test_milliseconds(tmp_path: Path) -> None:
    assert read_recording(recording(tmp_path / "a.npy", t=7), SENSOR).t.tolist() == [7000] * 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": 2**62}, "times beyond"),
        ({"t": float("nan")}, "column 't' .* something else than whole numbers"),
        ({"t": 0.5}, "holds something else than whole numbers"),
        ({"x": 128}, "outside a sensor of width 128"),
    ],
)
def test_recordings_of_no_sensor(tmp_path: Path, columns: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recording(recording(tmp_path / "a.npy", **columns), SENSOR)


@pytest.mark.parametrize(
    ("events", "message"), [(1 << 20, "declares 1,048,576 events, has fewer"), (1 << 26, "at most 33,554,432 are read")]
)
def test_recordings_that_declare_more_than_they_hold(tmp_path: Path, events: int, message: str) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        header = {"descr": "<i8", "fortran_order": False, "shape": (events, 4)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "a.npy", SENSOR)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_are_finite(tmp_path: Path, value: float) -> None:
    np.savez(tmp_path / "a.npz", frames=np.full((1, 2, 4, 4), value))
    with pytest.raises(InputError, match=r"a\.npz: 'frames' holds NaN or infinite values"):
        read_frames(tmp_path / "a.npz", (1, 2, 4, 4))


@pytest.mark.parametrize("text", ["a: " + "[" * 60_000, "\n".join(" " * i + "a:" for i in range(300))])
def test_nested_yaml_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"not valid YAML .nested too deeply"):
        read_yaml(tmp_path / "a.yaml")
