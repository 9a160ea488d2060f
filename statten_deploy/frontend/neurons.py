"""How the network's neurons are written as NIR neurons."""

import nir
import numpy as np
import torch

from statten_deploy.models.neurons import LIF

DT = 1e-4
"""Seconds per time step in every graph we build: snnTorch's importer hard-codes it, the others take it as given."""


def fire_at(theta: float) -> float:
    """The NIR threshold that fires where the network does.

    NIR fires on ``v > threshold``, the network on ``v >= theta``: the largest float32 below theta makes them equal.
    """
    return float(np.nextafter(np.float32(theta), np.float32(-np.inf)))


def lif_node(neuron: LIF, shape: tuple[int, ...]) -> nir.LIF:
    """``tau dv/dt = (v_leak - v) + r I`` stepped by dt is ``v += (I - v) / tau_steps`` with tau = tau_steps · dt."""
    decay = float(torch.as_tensor(neuron.decay()).detach())
    full = np.ones(shape, dtype=np.float32)
    return nir.LIF(
        tau=full * np.float32(DT / decay),
        r=full,
        v_leak=np.zeros_like(full),
        v_threshold=full * np.float32(fire_at(neuron.threshold)),
        v_reset=np.zeros_like(full),
    )
