"""The soak of `benchmarks/soak.py`, for as long as a test may take."""

from benchmarks.soak import long_stream, soak
from statten_deploy.runtime import load


def test_many_samples_through_several_streams(artefact) -> None:
    """Weights whose sums are exact: not a bit may differ, first sample or last, alone or beside others."""
    session = load(artefact("sliding"), threads=1)
    for streams in (1, 3):
        found = soak(session, 6000, streams)
        assert found["frames"] == 6000
        assert found["largest_difference"] == 0
        assert found["flat"], found


def test_a_stream_that_never_ends(artefact) -> None:
    found = long_stream(load(artefact("frames"), threads=1), 3000)
    assert found["finite"]
    assert found["different"] == 0
    assert len(set(found["state_bytes"])) == 1


def test_a_drift_would_be_seen(artefact) -> None:
    session = load(artefact("sliding"), threads=1)
    stream = session.stream

    def late():
        made = stream()
        made.reset = lambda: None  # membranes of the sample before
        return made

    session.stream = late
    assert soak(session, 400, 1)["largest_difference"] > 0
