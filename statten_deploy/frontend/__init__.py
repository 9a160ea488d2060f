"""From a torch network to the in-memory graph."""

from statten_deploy.frontend.neurons import DT, fire_at
from statten_deploy.frontend.statten import build_graph, folded_weights

__all__ = ["DT", "build_graph", "fire_at", "folded_weights"]
