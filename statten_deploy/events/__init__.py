"""Event cameras: files, frames of event counts, a model of the sensor. Needs numpy only; file formats may need more."""

from statten_deploy.events.binner import Dropped, Frame, FrameBinner
from statten_deploy.events.camera import Chunk, SimulatedCamera
from statten_deploy.events.events import Events, concatenate, empty
from statten_deploy.events.frames import frames_by_number, frames_by_time
from statten_deploy.events.readers import READERS, read_events

__all__ = [
    "READERS",
    "Chunk",
    "Dropped",
    "Events",
    "Frame",
    "FrameBinner",
    "SimulatedCamera",
    "concatenate",
    "empty",
    "frames_by_number",
    "frames_by_time",
    "read_events",
]
