"""What circuits are built from: gates, delays, counters, clocks, in one of two instruction sets.

``core`` takes any stock node of NIR and needs the fewest. ``portable`` takes what the importers of Norse, SpikingJelly
and snnTorch really execute: Conv2d without groups, Affine, Linear, LIF, Flatten, SumPool2d without padding. Every LIF
here has r = 1 and leaks and resets to 0, one threshold for the layer, tau of one step (a gate) or two. All constants
are multiples of 1/32, so every membrane is exact in float32. docs/circuits.md draws them.
"""

from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from statten_deploy.errors import GraphError, UnsupportedError
from statten_deploy.ir.shapes import Shape
from statten_deploy.passes.spike_maxpool_to_circuit import gate

Profile = Literal["core", "portable"]
Array = NDArray[np.float32]

TIMING = "timing"
"""Prefix of the nodes that tell time, shared by all circuits of a graph."""

RESET_CURRENT = 2.0**30
"""Drives any neuron above its threshold, whatever else it receives."""

LONGEST_WINDOW = 20
"""Steps that the clock neuron can tell apart: its threshold lies between 1 - 2^(1 - S) and 1 - 2^-S."""


class Parts:
    """Collects nodes and edges; every method adds one part and returns the name of the node that gives its result.

    `origin` is any node with a signal [C, H, W]: the constant line hangs on it, by weights of zero.
    """

    def __init__(self, profile: Profile, dt: float, origin: tuple[str, Shape]) -> None:
        self.profile, self.dt, self.origin = profile, dt, origin
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.shapes: dict[str, Shape] = {origin[0]: origin[1]}

    @property
    def portable(self) -> bool:
        return self.profile == "portable"

    def add(self, name: str, node: nir.NIRNode, shape: Shape, *sources: str) -> str:
        """One node, fed by the sum of `sources`."""
        if name in self.nodes:
            raise GraphError(f"node {name!r} is in the way of a circuit; rename it")
        self.nodes[name], self.shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]
        return name

    # linear maps

    def conv(
        self,
        name: str,
        weight: Array,
        bias: float,
        *sources: str,
        padding: tuple[int, int] = (0, 0),
        stride: tuple[int, int] = (1, 1),
    ) -> str:
        """Convolution; `weight` [out, in, kh, kw] or [out, in], one bias for all channels."""
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        grid = self.shapes[sources[0]][1:]
        axes = zip(grid, padding, weight.shape[2:], stride, strict=True)
        size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in axes)
        biases = np.full(len(weight), bias, dtype=np.float32)
        node = nir.Conv2d(grid, np.ascontiguousarray(weight, np.float32), stride, padding, (1, 1), 1, biases)
        return self.add(name, node, (len(weight), *size), *sources)

    def times(self, name: str, factor: float, *sources: str, bias: float = 0.0) -> str:
        """``factor · x + bias``, element by element."""
        shape = self.shapes[sources[0]]
        if self.profile == "core" and bias == 0:
            return self.add(name, nir.Scale(np.full(shape, factor, dtype=np.float32)), shape, *sources)
        eye = np.eye(shape[0], dtype=np.float32) * np.float32(factor)
        if len(shape) == 3:
            return self.conv(name, eye, bias, *sources)
        return self.add(name, nir.Affine(eye, np.full(shape, bias, dtype=np.float32)), shape, *sources)

    def sums(
        self, name: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], *sources: str
    ) -> str:
        """Sums over windows."""
        shape = self.shapes[sources[0]]
        node = nir.SumPool2d(*(np.array(value) for value in (kernel, stride, padding)))
        grid = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True))
        return self.add(name, node, (shape[0], *grid), *sources)

    def fill(self, name: str, source: str, shape: Shape, value: float) -> str:
        """``value · x`` at every place of `shape`, from a signal x of shape [1, 1, 1]."""
        if len(shape) == 1:
            flat = f"{source}.flat"
            if flat not in self.nodes:
                self.add(flat, nir.Flatten({"input": np.array((1, 1, 1))}, 0, -1), (1,), source)
            weight = np.full((*shape, 1), value, dtype=np.float32)
            return self.add(name, nir.Affine(weight, np.zeros(shape, dtype=np.float32)), shape, flat)
        around = (shape[1] - 1, shape[2] - 1)
        weight = np.full((shape[0], 1), value, dtype=np.float32)
        if self.portable:
            placed = self.conv(f"{name}.place", weight, 0, source, padding=around)
            return self.sums(name, shape[1:], (1, 1), (0, 0), placed)
        return self.sums(name, shape[1:], (1, 1), around, self.conv(f"{name}.place", weight, 0, source))

    def spread(self, name: str, grid: tuple[int, int], *sources: str, factor: float = 1.0) -> list[str]:
        """`factor` times the sum of `sources` [P, G, 1] over a token grid: value g in the rows of group g.

        Returns nodes that add up to it.
        """
        G, (H, W) = self.shapes[sources[0]][1], grid
        if not self.portable:
            if G == 1:
                return [self.sums(name, grid, (1, 1), (H - 1, W - 1), *sources)]
            return [self._masked(f"{name}.group{g}", grid, g, *sources) for g in range(G)]
        return [self._placed(f"{name}.group{g}" if G > 1 else name, grid, g, factor, *sources) for g in range(G)]

    def _placed(self, name: str, grid: tuple[int, int], g: int, factor: float, *sources: str) -> str:
        """Portable: value g of [P, G, 1] in the rows of group g, zeros elsewhere.

        A convolution puts the value between zeros so that the window sums over R rows hold it in these R rows only.
        Its kernel has to be square, for `nir` reads one axis of it; where it is even the windows are a column wider.
        """
        P, G, _ = self.shapes[sources[0]]
        H, W = grid
        R = H // G
        eye = np.eye(P, dtype=np.float32)
        if G > 1:
            size, above = G | 1, 1 - G % 2
            pick = np.zeros((P, P, size, size), dtype=np.float32)
            pick[:, :, g + above, size // 2] = eye
            padding = (above, size // 2)
            sources = (self.conv(f"{name}.pick", pick, 0, *sources, padding=padding, stride=(size + 2, 1)),)
        uneven = (H - 1 - g * R) - ((g + 1) * R - 1)  # zeros below minus zeros above
        size = abs(uneven) + 1
        kernel = np.zeros((P, P, size, size), dtype=np.float32)
        kernel[:, :, (uneven + size - 1) // 2, size // 2] = eye * np.float32(factor)
        padding = ((H + R - 1 + size - 2) // 2, W - 1 + size // 2)
        placed = self.conv(f"{name}.place", kernel, 0, *sources, padding=padding)
        return self.sums(name, (R, W + 1 - size % 2), (1, 1), (0, 0), placed)

    def _masked(self, name: str, grid: tuple[int, int], g: int, *sources: str) -> str:
        """Core: value g of [P, G, 1] in the rows of group g, zeros elsewhere."""
        P, G, _ = self.shapes[sources[0]]
        H, W = grid
        pick = np.zeros((P, G, 1), dtype=np.float32)
        pick[:, g] = 1
        picked = self.add(f"{name}.pick", nir.Scale(pick), pick.shape, *sources)
        everywhere = self.sums(f"{name}.place", (H + G - 1, W), (1, 1), (H - 1, W - 1), picked)
        rows = np.zeros((P, H, W), dtype=np.float32)
        rows[:, g * (H // G) : (g + 1) * (H // G)] = 1
        return self.add(name, nir.Scale(rows), rows.shape, everywhere)

    # neurons

    def gate(self, name: str, threshold: float, *sources: str) -> str:
        """A neuron without memory: fires where the sum of `sources` is above `threshold`."""
        shape = self.shapes[sources[0]]
        return self.add(name, gate(shape, self.dt, threshold), shape, *sources)

    def leaky(self, name: str, threshold: float, *sources: str) -> str:
        """A neuron with a memory of two steps: v <- v/2 + x/2, fires above `threshold`, then v <- 0."""
        shape = self.shapes[sources[0]]
        ones = np.ones(shape, dtype=np.float32)
        node = nir.LIF(ones * np.float32(2 * self.dt), ones, ones * 0, ones * np.float32(threshold), ones * 0)
        return self.add(name, node, shape, *sources)

    def nor(self, name: str, source: str, *, inverted: bool = False) -> str:
        """``NOT (x[t] OR x[t-1])`` in one neuron; `inverted`: x is 1 minus the source.

        Input 2 - 4x. After x = 1 the membrane is at most -1, so one quiet step lifts it to 1/2 at most and two lift it
        to 1; after firing it is 0, and one quiet step lifts it to 1.
        """
        sign = 1.0 if inverted else -1.0
        return self.leaky(name, 0.75, self.times(f"{name}.in", 4 * sign, source, bias=-2 * sign))

    def delayed(self, name: str, source: str, steps: int) -> str:
        """``x[t - steps]`` of spikes, 0 before: ``name.was<steps>``. In core real values too.

        portable: x[t-1] = 1 - NOR + AND - x, where the AND of two successive steps is one neuron with the input
        -5/4 + 13/4 x - 5/4 start. From rest it fires on x = 1 as it must after firing; only at the first step, where
        the rest means "0 before", the start pulse prevents that.
        """
        if steps == 0:
            return source
        if not self.portable:
            late = f"{name}.was{steps}"
            shape = self.shapes[source]
            return self.add(late, nir.Delay(np.full(shape, np.float32(steps * self.dt))), shape, source)
        for step in range(1, steps + 1):
            late = f"{name}.was{step}"
            if late not in self.nodes:
                nor = self.nor(f"{late}.nor", source)
                twice = self.times(f"{late}.and.in", 3.25, source, bias=-1.25)
                both = self.leaky(f"{late}.and", 31 / 32, twice, self._not_yet(self.shapes[source]))
                rest = self.times(f"{late}.rest", -1.0, source, nor, bias=1.0)
                self.gate(late, 0.5, rest, both)
            source = late
        return source

    # time

    def _not_yet(self, shape: Shape) -> str:
        name = f"{TIMING}.start.{'x'.join(map(str, shape))}"
        return name if name in self.nodes else self.fill(name, self.start(), shape, -1.25)

    def one(self) -> str:
        """1 at every step."""
        name = f"{TIMING}.one"
        if name not in self.nodes:
            source, (channels, *grid) = self.origin
            self.conv(name, np.zeros((1, channels), dtype=np.float32), 1.0, source, stride=(grid[0], grid[1]))
        return name

    def beat(self, period: int) -> str:
        """Fires at the steps period - 1, 2 period - 1, ...: a leaky neuron on a constant of 1."""
        if period > LONGEST_WINDOW:
            raise UnsupportedError(
                f"a circuit for a window of {period} steps: its clock tells at most {LONGEST_WINDOW} steps apart; "
                "use the compact form"
            )
        name = f"{TIMING}.every{period}"
        return name if name in self.nodes else self.leaky(name, 1 - 1.5 * 2.0**-period, self.one())

    def start(self) -> str:
        """Fires at step 0 only: NOR of a neuron that fires every second step."""
        name = f"{TIMING}.start"
        return name if name in self.nodes else self.nor(name, self.beat(2))

    def clock(self, period: int, phase: int) -> str:
        """Fires at the steps t with (t - phase + 1) % period == 0, except perhaps before step phase + period - 1."""
        phase %= period
        name = self.beat(period)
        late = f"{name}.was{phase}"
        return late if late in self.nodes else self.delayed(name, name, phase)

    def restart(self, shape: Shape, steps: int) -> str:
        """A current that makes every neuron fire at step `steps` - 1, so that it is at rest at step `steps`."""
        start = self.start()
        late = start if steps == 1 else f"{start}.was{steps - 1}"
        pulse = late if late in self.nodes else self.delayed(start, start, steps - 1)
        name = f"{TIMING}.reset{steps}.{'x'.join(map(str, shape))}"
        return name if name in self.nodes else self.fill(name, pulse, shape, RESET_CURRENT)


def digits_of(parts: Parts, name: str, bits: int, totals: list[str]) -> list[str]:
    """The binary digits of an integer, least significant first: ``name.digit<b>``.

    Most significant first, one gate each: digit b fires where what the higher digits leave is above 2^b - 1/2.
    """
    found: list[str] = []
    taken: list[str] = []
    for b in reversed(range(bits)):
        digit = parts.gate(f"{name}.digit{b}", 2.0**b - 0.5, *totals, *taken)
        found.insert(0, digit)
        if b:
            taken.append(parts.times(f"{name}.minus{b}", -(2.0**b), digit))
    return found


def squared(weight: Array, padding: tuple[int, ...]) -> tuple[Array, tuple[int, int]]:
    """A kernel [out, in, kh, kw] made square by zeros around it, and its padding. `nir` reads one axis of a kernel."""
    size = max(weight.shape[2:])
    before = [(size - k + 1) // 2 for k in weight.shape[2:]]
    margins = [(b, size - k - b) for b, k in zip(before, weight.shape[2:], strict=True)]
    return np.pad(weight, [(0, 0), (0, 0), *margins]), (padding[0] + before[0], padding[1] + before[1])


def same_node(a: Any, b: Any) -> bool:
    """Whether two nodes are of one type with equal parameters; metadata and inferred shapes do not count."""
    if type(a) is not type(b):
        return False
    derived = {"metadata", "input_type", "output_type", "input_shape"}
    fields = {key: value for key, value in vars(a).items() if key not in derived}
    others = {key: value for key, value in vars(b).items() if key not in derived}
    return fields.keys() == others.keys() and all(np.array_equal(fields[key], others[key]) for key in fields)
