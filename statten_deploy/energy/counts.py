"""What was counted: exact integers per node of the graph, over all samples given so far."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Role = Literal["input", "neurons", "gates", "synapses", "pool", "attention"]


@dataclass(frozen=True)
class LayerCounts:
    """One node. Totals over `Counts.samples` samples unless the field says otherwise; zero where it does not apply.

    Events:
        neurons: units per sample. updates: units · steps. spikes: of these, how many fired (`spikes_by_step` adds up
            to it; for event inputs: entries that are not zero).
        synops: synapses that events reach, ``Σ events · fan-out``; in pools and gates windows and gates instead.
        kv_accumulations, kv_removals, q_reads: attention's own. Every active k meets every active v of its token,
            step and head; sliding windows take each pair out again; every active q reads a row of KV.
        weights: weights that are not zero, each kernel once.
        readers: neuron layers that the currents of a connection reach; residual streams have several.
        macs: products of currents with non-zero weights inside the borders, computed once where the currents are the
            same at every step. macs_every_step: the same if they were computed at every step.
        reads: currents that pools read.
    Paper convention:
        dense_macs: products of one step of one sample, padding and zero weights included: an ANN of the same shape.
            Of pools only attention's sum over tokens has any; the others are free in the convention.
        paper_macs: dense_macs · steps · samples where currents arrive. paper_acs: firing rate · that where events do.
    """

    name: str
    operation: str
    role: Role
    neurons: int = 0
    updates: int = 0
    spikes: int = 0
    spikes_by_step: tuple[int, ...] = ()
    synops: int = 0
    weights: int = 0
    readers: int = 1
    kv_accumulations: int = 0
    kv_removals: int = 0
    q_reads: int = 0
    macs: int = 0
    macs_every_step: int = 0
    reads: int = 0
    dense_macs: int = 0
    paper_macs: int = 0
    paper_acs: Fraction = Fraction(0)

    @property
    def firing_rate(self) -> float:
        """Spikes per unit and step, 0 for nodes without units."""
        return self.spikes / self.updates if self.updates else 0.0

    @property
    def attention_ops(self) -> int:
        """Accumulations, removals and reads of attention."""
        return self.kv_accumulations + self.kv_removals + self.q_reads

    @property
    def event_ops(self) -> int:
        """Everything that events set off here."""
        return self.synops + self.attention_ops

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; `paper_acs` as a float."""
        values = {**vars(self), "spikes_by_step": list(self.spikes_by_step), "paper_acs": float(self.paper_acs)}
        return {**values, "firing_rate": self.firing_rate}


@dataclass(frozen=True)
class Counts:
    """All nodes that compute something, in graph order, over `samples` samples of `steps` steps."""

    layers: tuple[LayerCounts, ...]
    samples: int
    steps: int
    by_name: dict[str, LayerCounts] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {layer.name: layer for layer in self.layers})

    def __getitem__(self, name: str) -> LayerCounts:
        return self.by_name[name]

    @property
    def spikes(self) -> int:
        """Spikes of the network's neurons (gates and inputs not included)."""
        return sum(layer.spikes for layer in self.layers if layer.role == "neurons")

    @property
    def synops(self) -> int:
        """Every operation that an event sets off: synapses, attention, pools and gates."""
        return sum(layer.event_ops for layer in self.layers)

    @property
    def synops_unshared(self) -> int:
        """`synops` if every neuron layer that reads a residual current had synapses of its own: no chip needs more."""
        return self.synops + sum(layer.synops * (layer.readers - 1) for layer in self.layers)

    @property
    def synops_by_role(self) -> dict[str, int]:
        """`synops` apart: synapses with weights, attention, pools and gates."""
        found: dict[str, int] = {}
        for layer in self.layers:
            if layer.event_ops:
                found[layer.role] = found.get(layer.role, 0) + layer.event_ops
        return found

    @property
    def macs(self) -> int:
        """Products of currents with weights."""
        return sum(layer.macs for layer in self.layers)

    @property
    def updates(self) -> int:
        """Neuron updates (gates not included)."""
        return sum(layer.updates for layer in self.layers if layer.role == "neurons")

    @property
    def activation_sparsity(self) -> float:
        """Share of neuron updates without a spike."""
        return 1 - self.spikes / self.updates if self.updates else 0.0

    @property
    def weights(self) -> int:
        """Weights that are not zero."""
        return sum(layer.weights for layer in self.layers)

    @property
    def paper_macs(self) -> int:
        """MACs by the paper convention."""
        return sum(layer.paper_macs for layer in self.layers)

    @property
    def paper_acs(self) -> Fraction:
        """ACs by the paper convention: firing rate times MACs."""
        return sum((layer.paper_acs for layer in self.layers), Fraction(0))

    @property
    def ann_macs(self) -> int:
        """MACs of an ANN of the same shape for all samples: every product once, no steps."""
        return self.samples * sum(layer.dense_macs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return {
            "samples": self.samples,
            "steps": self.steps,
            "spikes": self.spikes,
            "synops": self.synops,
            "synops_unshared": self.synops_unshared,
            "synops_by_role": self.synops_by_role,
            "macs": self.macs,
            "neuron_updates": self.updates,
            "activation_sparsity": self.activation_sparsity,
            "weights": self.weights,
            "paper_macs": self.paper_macs,
            "paper_acs": float(self.paper_acs),
            "ann_macs": self.ann_macs,
            "layers": [layer.to_dict() for layer in self.layers],
        }
