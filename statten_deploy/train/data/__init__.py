"""Data sets: by name, a folder of images or recordings, or an ``.npz`` file. Importing this loads numpy only."""

from statten_deploy.train.data.registry import DATASETS, ON_DISK, download, load_arrays, open_source, select, split_root
from statten_deploy.train.data.spec import SPLITS, ArraySamples, InputSpec, Samples, Source
from statten_deploy.train.data.split import stratified_split

__all__ = [
    "DATASETS",
    "ON_DISK",
    "SPLITS",
    "ArraySamples",
    "InputSpec",
    "Samples",
    "Source",
    "download",
    "load_arrays",
    "open_source",
    "select",
    "split_root",
    "stratified_split",
]
