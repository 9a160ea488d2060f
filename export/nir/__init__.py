"""NIR files: writing any graph, reading ours and everyone else's. docs/nir.md describes the format."""

from statten_deploy.export.nir.compact import FORMAT
from statten_deploy.export.nir.conventions import CONVENTIONS, as_written_by
from statten_deploy.export.nir.names import original_names
from statten_deploy.export.nir.reader import read_nir
from statten_deploy.export.nir.readout import cut_readout
from statten_deploy.export.nir.writer import WriteReport, write_nir

__all__ = [
    "CONVENTIONS",
    "FORMAT",
    "WriteReport",
    "as_written_by",
    "cut_readout",
    "original_names",
    "read_nir",
    "write_nir",
]
