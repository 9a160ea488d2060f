"""Energy from spike counts: exact event counts, sourced costs, and whether a network fits on a chip."""

from statten_deploy.energy.chips import Chip, chip_names, load_chip
from statten_deploy.energy.cost import EnergyReport, Hops, LayerEnergy, energy
from statten_deploy.energy.counter import EnergyCounter
from statten_deploy.energy.counts import Counts, LayerCounts
from statten_deploy.energy.estimate import EnergyEstimate, EnergyEstimator, likely_input
from statten_deploy.energy.fit import ChipFit, LayerFit, chip_fit
from statten_deploy.energy.profiles import DEFAULT_PROFILES, Figure, Profile, load_profile, profile_names
from statten_deploy.energy.totals import Bounds, synops_bounds

__all__ = [
    "DEFAULT_PROFILES",
    "Bounds",
    "Chip",
    "ChipFit",
    "Counts",
    "EnergyCounter",
    "EnergyEstimate",
    "EnergyEstimator",
    "EnergyReport",
    "Figure",
    "Hops",
    "LayerCounts",
    "LayerEnergy",
    "LayerFit",
    "Profile",
    "chip_fit",
    "chip_names",
    "energy",
    "likely_input",
    "load_chip",
    "load_profile",
    "profile_names",
    "synops_bounds",
]
