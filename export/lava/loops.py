"""Loops of a Lava network: which processes they need, and where the step of delay is."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import nir

from statten_deploy.ir.graph import Predecessors, successors
from statten_deploy.ir.integer import INTEGER_NEURONS
from statten_deploy.ir.schedule import Loop


class Planner(Protocol):
    """What a loop needs of the planner of the whole network."""

    graph: nir.NIRGraph
    into: Predecessors
    ready: dict[str, int]

    def add(self, name: str, written: str, inputs: dict[str, list[str]], start: int) -> None:
        """The process of the node `name`, called `written`."""

    def keep(self, source: str, present: str, start: int) -> str:
        """A process that gives what `present` gave a step ago; its name."""

    def delayed(self, source: str, start: int) -> str:
        """`source` as it arrives at step `start`."""


class LoopPlanner:
    """The entries of a loop: all nodes start together, and what comes back comes from `previous` processes."""

    def __init__(self, planner: Planner, loop: Loop) -> None:
        self.planner, self.loop, self.recurrent = planner, loop, loop.recurrent
        self.after = successors(planner.graph)
        outside = {s for ports in loop.inputs.values() for sources in ports for s in sources} - set(loop.names)
        self.start = max((planner.ready[source] for source in outside), default=0)
        self.before: dict[str, str] = {}
        self.earlier: dict[str, str] = {}
        self.needed: set[str] = set()
        for name in reversed(loop.names):
            now = [reader for reader in self.after[name] if (name, reader) not in self.recurrent]
            if self._remembers(name) or any(r in self.needed or r not in loop.names for r in now):
                self.needed.add(name)

    def schedule(self) -> None:
        """Add them."""
        for name in self.loop.names:
            if name in self.needed:
                self._add(name, name, partial(self._arriving, name))

    def _add(self, name: str, written: str, arriving: Callable[[str], str]) -> None:
        ports = self.planner.into[name].items()
        inputs = {port: [arriving(source) for source in sources] for port, sources in ports}
        self.planner.add(name, written, inputs, self.start)

    def _arriving(self, reader: str, source: str) -> str:
        return self._previous(source) if (source, reader) in self.recurrent else self._present(source)

    def _present(self, source: str) -> str:
        return source if source in self.loop.names else self.planner.delayed(source, self.start)

    def _previous(self, source: str) -> str:
        """What `source` gave at the step before: kept by a process, or computed from what was kept."""
        if source not in self.before:
            if self._remembers(source):
                self.before[source] = self.planner.keep(source, self._present(source), self.start)
            else:
                self.before[source] = f"{source}/again" if source in self.needed else source
                self._add(source, self.before[source], partial(self._arrived, source))
        return self.before[source]

    def _arrived(self, reader: str, source: str) -> str:
        """What an edge carried a step ago; over a recurrent edge that was a step old then and is kept once more."""
        previous = self._previous(source)
        if (source, reader) not in self.recurrent:
            return previous
        if source not in self.earlier:
            self.earlier[source] = self.planner.keep(previous, previous, self.start)
        return self.earlier[source]

    def _remembers(self, name: str) -> bool:
        return name not in self.loop.names or isinstance(self.planner.graph.nodes[name], INTEGER_NEURONS)
