"""Event files as users give them to the commands."""

import json
from pathlib import Path

import numpy as np

from statten_deploy.train.data import InputSpec, open_source
from statten_deploy.train.data.digits_events import digit_recordings
from tests.cli.commands import DIGITS, ZOO, error_line, export, run
from tests.events.encoders import bin_bytes, dat_bytes, write

EVENTS = ZOO / "digits-events.ckpt"


def write_recordings(root: Path) -> list[int]:
    """One test digit of every class as a .dat file below its class's folder; their numbers in the test split."""
    recordings, labels = digit_recordings("test")
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    for label, number in enumerate(first):
        (root / str(label)).mkdir(parents=True)
        header = "% Data file\n% Version 2\n% Height 32\n% Width 32\n"
        write(root / str(label) / "digit.dat", dat_bytes(recordings[number], header))
    return first


def test_event_files_give_what_the_built_in_data_give(here: Path, capsys) -> None:
    first = write_recordings(here / "rec")
    assert run(EVENTS, "--data", here / "rec", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 10
    assert told["accuracy"] >= 0.9
    samples = open_source("digits-events", InputSpec((8, 2, 16, 16), 10)).test
    assert samples is not None
    np.savez(here / "frames.npz", x=np.stack([samples.sample(number) for number in first]))
    assert run(EVENTS, "--data", here / "frames.npz", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["predictions"] == told["predictions"]
    assert again["layers"] == told["layers"]


def test_calibration_on_event_files_and_artefact_on_one(here: Path, capsys) -> None:
    write_recordings(here / "rec")
    assert export(EVENTS, "--target", "onnx", "--calibration", here / "rec", "--samples", 10) == 0
    assert "10/10 predictions agree" in capsys.readouterr().out
    file = here / "rec/7/digit.dat"
    assert run(here / "digits-events.onnx", "--data", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 1
    assert told["accuracy"] is None  # one file has no class
    assert told["predictions"] == [7]


def test_sensor_is_told_where_the_format_does_not(here: Path, capsys) -> None:
    recordings, labels = digit_recordings("test")
    file = write(here / "digit.bin", bin_bytes(recordings[0]))
    assert run(EVENTS, "--data", file) == 2
    assert "digit.bin@34x34" in error_line(capsys)
    assert run(EVENTS, "--data", f"{file}@32x32", "--json") == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == [int(labels[0])]
    assert run(DIGITS, "--data", f"{file}@32x32") == 2
    assert "the network takes [1, 16, 16]" in error_line(capsys)
    write(file, file.read_bytes()[:-2])
    assert run(EVENTS, "--data", f"{file}@32x32") == 2
    assert "truncated" in error_line(capsys)
