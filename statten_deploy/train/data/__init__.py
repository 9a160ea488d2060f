"""Data sets: built in by name, a folder of images, or an ``.npz`` file. Importing this loads numpy only."""

from statten_deploy.train.data.registry import DATASETS, load_arrays, open_source, select
from statten_deploy.train.data.spec import SPLITS, ArraySamples, InputSpec, Samples, Source
from statten_deploy.train.data.split import stratified_split

__all__ = [
    "DATASETS",
    "SPLITS",
    "ArraySamples",
    "InputSpec",
    "Samples",
    "Source",
    "load_arrays",
    "open_source",
    "select",
    "stratified_split",
]
