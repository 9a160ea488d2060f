"""Deploy spiking vision transformers (STAtten): PyTorch checkpoint in, verified NIR and ONNX out.

The names below load on first use, so that ``import statten_deploy`` (and every ``--help``) stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from statten_deploy.version import __version__

if TYPE_CHECKING:
    from statten_deploy import runtime
    from statten_deploy.api import (
        ExportOptions,
        ExportResult,
        export_lava,
        export_netx,
        export_nir,
        export_onnx,
        export_onnx_int8,
    )
    from statten_deploy.comparing import Comparison, compare_backends, write_report
    from statten_deploy.export.nir import as_written_by, read_nir
    from statten_deploy.models.checkpoint import load_checkpoint, load_model
    from statten_deploy.models.config import ModelConfig
    from statten_deploy.models.statten import STAtten
    from statten_deploy.simulate import Simulator

_HOME: dict[str, str] = {
    "Comparison": "statten_deploy.comparing",
    "ExportOptions": "statten_deploy.api",
    "ExportResult": "statten_deploy.api",
    "ModelConfig": "statten_deploy.models.config",
    "STAtten": "statten_deploy.models.statten",
    "Simulator": "statten_deploy.simulate",
    "as_written_by": "statten_deploy.export.nir",
    "compare_backends": "statten_deploy.comparing",
    "export_lava": "statten_deploy.api",
    "export_netx": "statten_deploy.api",
    "export_nir": "statten_deploy.api",
    "export_onnx": "statten_deploy.api",
    "export_onnx_int8": "statten_deploy.api",
    "load_checkpoint": "statten_deploy.models.checkpoint",
    "load_model": "statten_deploy.models.checkpoint",
    "read_nir": "statten_deploy.export.nir",
    "runtime": "statten_deploy.runtime",
    "write_report": "statten_deploy.comparing",
}

__all__ = [
    "Comparison",
    "ExportOptions",
    "ExportResult",
    "ModelConfig",
    "STAtten",
    "Simulator",
    "__version__",
    "as_written_by",
    "compare_backends",
    "export_lava",
    "export_netx",
    "export_nir",
    "export_onnx",
    "export_onnx_int8",
    "load_checkpoint",
    "load_model",
    "read_nir",
    "runtime",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        home = import_module(_HOME[name])
        return home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
