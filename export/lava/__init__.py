"""Lava bundles: a folder that runs a quantised graph in Lava's fixed-point simulator, and the runner that starts it."""

from statten_deploy.export.lava.runner import LavaResult, LavaRunner
from statten_deploy.export.lava.writer import BundleReport, write_bundle

__all__ = ["BundleReport", "LavaResult", "LavaRunner", "write_bundle"]
