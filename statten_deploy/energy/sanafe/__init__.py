"""The integer network in SANA-FE (GPL-3.0, an extra, imported when a run starts): spikes and energy beside ours."""

from statten_deploy.energy.sanafe.chip import SanafeRun, loihi_description, mesh_of, simulate
from statten_deploy.energy.sanafe.comparison import Comparison, Row, compare
from statten_deploy.energy.sanafe.emitter import emit
from statten_deploy.energy.sanafe.network import Connection, Population, SpikingNetwork
from statten_deploy.energy.sanafe.placement import Mesh, Placement, place

__all__ = [
    "Comparison",
    "Connection",
    "Mesh",
    "Placement",
    "Population",
    "Row",
    "SanafeRun",
    "SpikingNetwork",
    "compare",
    "emit",
    "loihi_description",
    "mesh_of",
    "place",
    "simulate",
]
