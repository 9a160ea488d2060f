"""In which order a graph is computed, which partial sums are shared, and when a signal can be forgotten.

A signal is named by the tuple of nodes whose outputs it adds up, left to right: ``("x",)`` is the output of x,
``("x", "a", "b")`` is ``(x + a) + b``. Several edges into a port are such a sum, and its prefixes are computed once
for all who use them: in a residual stream every consumer's sum starts with the previous consumer's sum.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import nir

from statten_deploy.ir.graph import Predecessors, is_cyclic, predecessors, successors, topological_order
from statten_deploy.ir.integer import TemporalSum
from statten_deploy.ir.nodes import STAttenAttention, TemporalMean

Signal = tuple[str, ...]


@dataclass(frozen=True)
class Sum:
    """Adds the last name of the signal to the signal without it."""

    result: Signal


@dataclass(frozen=True)
class Run:
    """One node over all steps at once."""

    name: str
    inputs: tuple[Signal, ...]


@dataclass(frozen=True)
class Loop:
    """Nodes on a cycle, computed together step by step.

    `names` is the order inside one step. An edge from a later to an earlier node (or to itself) is a recurrent one: it
    carries what its source gave at the previous step, and at the first step what its source gives while neurons are
    silent and nothing arrives from outside (the bias of an Affine, say). Sources outside are read at the current step.
    """

    names: tuple[str, ...]
    inputs: dict[str, tuple[tuple[str, ...], ...]]

    @property
    def recurrent(self) -> frozenset[tuple[str, str]]:
        """The recurrent edges, (source, reader)."""
        at = {name: index for index, name in enumerate(self.names)}
        return frozenset(
            (source, name)
            for name in self.names
            for sources in self.inputs[name]
            for source in sources
            if source in at and at[source] >= at[name]
        )


Task = Sum | Run | Loop


@dataclass(frozen=True)
class Schedule:
    """`tasks` in order; `release[i]` are the signals nobody needs after task i; `timeless` nodes have no time axis."""

    tasks: tuple[Task, ...]
    release: tuple[tuple[Signal, ...], ...]
    timeless: frozenset[str]


def make_schedule(graph: nir.NIRGraph) -> Schedule:
    """Order the work for a verified graph."""
    into = predecessors(graph)
    tasks: list[Task] = []
    made: set[Signal] = set()
    for names in _groups(graph):
        if len(names) == 1 and names[0] not in _sources(into, names[0]):
            inputs = tuple(tuple(sources) for sources in into[names[0]].values() if sources)
            for signal in inputs:
                for length in range(2, len(signal) + 1):
                    if signal[:length] not in made:
                        made.add(signal[:length])
                        tasks.append(Sum(signal[:length]))
            tasks.append(Run(names[0], inputs))
        else:
            tasks.append(_loop(graph, names, into))
    return Schedule(tuple(tasks), _releases(tasks), _timeless(graph))


def loops(graph: nir.NIRGraph) -> list[list[str]]:
    """The nodes of every loop, in no particular order."""
    into = predecessors(graph)
    return [names for names in _groups(graph) if len(names) > 1 or names[0] in _sources(into, names[0])]


def windows_in_loops(graph: nir.NIRGraph) -> list[str]:
    """What is wrong with attention over several steps in loops, which only the float simulator can compute."""
    return [
        f"{name} (STAttenAttention: a window of {node.window} steps in a loop; use one of 1)"
        for names in loops(graph)
        for name in names
        if isinstance(node := graph.nodes[name], STAttenAttention) and node.window > 1
    ]


def uses(task: Task) -> Iterator[Signal]:
    """The signals a task reads."""
    if isinstance(task, Sum):
        yield task.result[:-1]
        yield task.result[-1:]
    elif isinstance(task, Run):
        yield from task.inputs
    else:
        for name in task.names:
            for sources in task.inputs[name]:
                yield from ((source,) for source in sources if source not in task.inputs)


def makes(task: Task) -> tuple[Signal, ...]:
    """The signals a task computes."""
    if isinstance(task, Sum):
        return (task.result,)
    if isinstance(task, Run):
        return ((task.name,),)
    return tuple((name,) for name in task.names)


def _releases(tasks: list[Task]) -> tuple[tuple[Signal, ...], ...]:
    last: dict[Signal, int] = {}
    for index, task in enumerate(tasks):
        for signal in (*makes(task), *uses(task)):
            last[signal] = index
    release: list[list[Signal]] = [[] for _ in tasks]
    for signal, index in last.items():
        release[index].append(signal)
    return tuple(map(tuple, release))


def _timeless(graph: nir.NIRGraph) -> frozenset[str]:
    after = successors(graph)
    found: set[str] = set()
    stack = [name for name, node in graph.nodes.items() if isinstance(node, TemporalMean | TemporalSum)]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += after[name]
    return frozenset(found)


def _sources(into: Predecessors, name: str) -> Iterator[str]:
    return (source for sources in into[name].values() for source in sources)


# recurrent graphs


def _groups(graph: nir.NIRGraph) -> Iterable[list[str]]:
    """Sets of nodes that lie on common cycles (mostly single nodes), every set behind those that feed it."""
    if not is_cyclic(graph):
        return [[name] for name in topological_order(graph)]
    return _strongly_connected(graph.nodes, successors(graph))


def _strongly_connected(names: Iterable[str], after: dict[str, list[str]]) -> list[list[str]]:
    """Tarjan's algorithm without recursion (Tarjan, SIAM J. Comput. 1972), sources first."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    groups: list[list[str]] = []
    closed: set[str] = set()
    for root in names:
        if root in number:
            continue
        path = [(root, iter(after[root]))]
        number[root] = lowest[root] = len(number)
        open_nodes.append(root)
        while path:
            name, rest = path[-1]
            following = next((n for n in rest if n not in closed), None)
            if following is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[name])
                if lowest[name] == number[name]:
                    start = open_nodes.index(name)
                    groups.append(open_nodes[start:])
                    closed.update(open_nodes[start:])
                    del open_nodes[start:]
            elif following in number:
                lowest[name] = min(lowest[name], number[following])
            else:
                number[following] = lowest[following] = len(number)
                open_nodes.append(following)
                path.append((following, iter(after[following])))
    return groups[::-1]


def _loop(graph: nir.NIRGraph, names: list[str], into: Predecessors) -> Loop:
    """Order a cycle depth first from where a signal enters it: the edges that close it are the recurrent ones."""
    members = set(names)
    listed = [name for name in graph.nodes if name in members]
    entries = (name for name in listed if any(source not in members for source in _sources(into, name)))
    entry = next(entries, listed[0])
    after = successors(graph)
    finished: list[str] = []
    seen = {entry}
    path = [(entry, iter(after[entry]))]
    while path:
        name, rest = path[-1]
        following = next((n for n in rest if n in members and n not in seen), None)
        if following is None:
            finished.append(name)
            path.pop()
        else:
            seen.add(following)
            path.append((following, iter(after[following])))
    order = tuple(reversed(finished))
    return Loop(order, {name: tuple(tuple(sources) for sources in into[name].values()) for name in order})
