"""What is drawn where: the artists of every plot against the numbers of the comparison."""

from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from statten_deploy.compare.comparison import EnergyResult, Raster
from statten_deploy.compare.report import class_plots, drawing, energy_plots, spike_plots
from statten_deploy.compare.report.groups import across, grouped, held, layer_key, leads, ran
from tests.compare.comparisons import EVENTS, PAPER, large, quantised, small


class Drawn:
    """A plot that was painted but not written: its figure, and the words around it."""

    def __init__(self, name, title, alt, height, paint, *, note=""):
        self.name, self.title, self.alt, self.note = name, title, alt, note
        with drawing._styled(name):
            self.figure = Figure(figsize=(5, height / 72))
            paint(self.figure)
        self.axes = self.figure.axes[0]

    @property
    def texts(self):
        return {
            (round(text.get_position()[0], 6), round(text.get_position()[1], 6)): text.get_text()
            for text in self.axes.texts
        }

    @property
    def legend(self):
        return [text.get_text() for legend in self.figure.legends for text in legend.get_texts()]

    @property
    def rows(self):
        return [label.get_text() for label in self.axes.get_yticklabels()]


@pytest.fixture(autouse=True)
def painted(monkeypatch):
    """Plots are painted and looked at, not written: that is `test_report_page`'s."""
    for module in (energy_plots, spike_plots, class_plots):
        monkeypatch.setattr(module, "draw", Drawn)


def points(axes):
    """(x, y) of the markers that stand for backends."""
    return {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 1
    }


def test_accuracy_against_energy():
    plot = energy_plots.accuracy_energy(ran(small()), EVENTS, "x")
    assert plot.legend == ["torch, torch-int, fixed (90.00 %, 13.58 nJ)", "nir (80.00 %, 13.55 nJ)"]
    found = list(points(plot.axes).values())
    assert [y for _, y in found] == [90.0, 80.0]
    assert plot.axes.get_xlabel() == "energy per sample (nJ)"
    bars = [tuple(collection.get_segments()[0][:, 1]) for collection in plot.axes.collections]
    assert bars[::2] == bars[1::2] == [pytest.approx((59.58, 98.21)), pytest.approx((49.02, 94.33))]
    assert "torch, torch-int, fixed: accuracy 90.00 % (95 % interval 59.6–98.2), 13.58 nJ" in plot.alt
    # 0.2 % apart: side by side around their middle, and it says so
    assert np.mean([x for x, _ in found]) == pytest.approx((13.58025 + 13.5525) / 2)
    assert found[0][0] - found[1][0] == pytest.approx(0.035 * 0.14 * 13.58025, rel=1e-3)
    assert "side by side" in plot.note


def test_energies_that_are_apart_stand_where_they_are():
    rows = ran(small())[:2]
    rows[1] = replace(rows[1], energy={"loihi1": EnergyResult(20_000.0, {})})
    plot = energy_plots.accuracy_energy(rows, EVENTS, "x")
    assert [x for x, _ in points(plot.axes).values()] == [13.58025, 20.0]
    assert "side by side" not in plot.note
    low, high = plot.axes.get_xlim()
    assert low < 13.58 < 20.0 < high
    assert energy_plots.accuracy_energy([replace(row, accuracy=None) for row in rows], EVENTS, "x") is None
    assert energy_plots.accuracy_energy(rows[:1], PAPER, "x") is not None
    assert energy_plots.accuracy_energy(rows[1:], PAPER, "x") is None


def bars_of(plot):
    """Per backend the segments from left to right as (left, width)."""
    found = {}
    for container in plot.axes.containers:
        for label, bar in zip(plot.rows, container, strict=True):
            found.setdefault(label, []).append((bar.get_x(), bar.get_width()))
    return found


@pytest.mark.parametrize("profile", [EVENTS, PAPER])
def test_layers_stack_up_to_the_total(profile):
    comparison = small()
    plot = energy_plots.energy_layers(ran(comparison), profile, "x")
    unit = {"loihi1": 1e3, "45nm-fp32": 1e6}[profile.name]
    for row in ran(comparison):
        energy = row.energy[profile.name]
        segments = bars_of(plot)[row.name]
        assert [width for _, width in segments] == pytest.approx([value / unit for value in energy.layers_pj.values()])
        assert [left for left, _ in segments] == pytest.approx(np.cumsum([0.0, *[w for _, w in segments]])[:-1])
        assert sum(width for _, width in segments) == pytest.approx(energy.total_pj / unit)
    assert plot.legend[0].startswith("1  stem.conv  ")


def test_a_deep_network_shows_its_blocks_and_a_flat_one_its_largest_layers():
    comparison = large(backends=2, layers=61, classes=None, profiles=1)
    rows = ran(comparison)
    plot = energy_plots.energy_layers(rows, comparison.profiles[0], "x")
    assert [entry.split()[1] for entry in plot.legend] == [f"block.{number}" for number in range(11)]
    assert "Layers of one block are added up." in plot.note
    energy = rows[0].energy["events-0"]
    third = sum(value for name, value in energy.layers_pj.items() if name.startswith("block.2."))
    assert bars_of(plot)[rows[0].name][2][1] == pytest.approx(third / 1e9)
    flat = {f"layer{number}": float(number**3) for number in range(1, 31)}
    rows = [replace(rows[0], energy={"events-0": EnergyResult(sum(flat.values()), flat)})]
    plot = energy_plots.energy_layers(rows, comparison.profiles[0], "x")
    assert [entry.split()[:2] for entry in plot.legend[:-1]] == [[str(n), f"layer{23 + n}"] for n in range(1, 8)]
    assert plot.legend[-1].startswith("+  23 other layers  ")
    assert sum(width for _, width in bars_of(plot)[rows[0].name]) == pytest.approx(sum(flat.values()) / 1e3)


def test_no_energy_no_plot():
    rows = [replace(ran(small())[0], energy={"loihi1": EnergyResult(0.0, {"stem.conv": 0.0})})]
    assert energy_plots.energy_layers(rows, EVENTS, "x") is None
    assert energy_plots.accuracy_energy(rows, EVENTS, "x") is not None


def test_rates_by_layer_and_step():
    row = ran(small())[0]
    plot = spike_plots.rate_map(row, "x")
    assert plot.rows == ["stem.lif"]
    assert plot.texts == {(0.5, 0.5): "12.5", (1.5, 0.5): "26.2", (2.5, 0.5): "37.5"}
    opacity = plot.axes.collections[0].get_facecolor()[:, 3]
    assert opacity == pytest.approx([0.08 + 0.92 * share / 30 for share in (10, 21, 30)])
    assert "full colour is 37.5 %" in plot.note
    silent = [replace(layer, spikes_by_step=(0, 0, 0) if layer.spikes_by_step else ()) for layer in row.layers]
    assert set(spike_plots.rate_map(replace(row, layers=silent), "x").texts.values()) == {"0"}
    assert spike_plots.rate_map(replace(row, layers=[]), "x") is None


def test_many_steps_are_averaged():
    layer = ran(small())[0].layers[1]
    by_step = tuple(int(n) for n in np.arange(100) % 80)
    row = replace(ran(small())[0], layers=[replace(layer, spikes_by_step=by_step)])
    plot = spike_plots.rate_map(row, "x")
    assert plot.axes.get_xlabel() == "time step (averages of 4)"
    assert not plot.texts
    means = np.array(by_step).reshape(25, 4).mean(1)
    opacity = plot.axes.collections[0].get_facecolor()[:, 3]
    assert opacity == pytest.approx(0.08 + 0.92 * means / means.max())


def test_the_largest_gap_between_rates():
    torch, nir, *_ = ran(small())
    gap, layer, step = spike_plots.largest_gap(nir, torch)
    assert (layer, step) == ("stem.lif", 2)
    assert gap == pytest.approx(1 / 80)
    assert spike_plots.largest_gap(torch, torch)[0] == 0.0


def marks(plot, position):
    """(row, column) in [0, 1] of the marks in one strip."""
    x, y = (np.asarray(values, dtype=float)[::3] for values in plot.axes.lines[position].get_data())
    return x, (y - position - 0.06) / 0.88


def test_a_mark_for_every_spike():
    rng = np.random.default_rng(0)
    layers = {"a": rng.random((4, 7)) < 0.5, "b": np.zeros((4, 3), dtype=np.bool_), "wide": rng.random((4, 999)) < 0.3}
    plot = spike_plots.spike_raster(Raster(5, 2, 3, layers))
    assert plot.title == "Spikes of one sample (sample 5, class 2, predicted 3)"
    x, y = marks(plot, 0)
    step, neuron = np.nonzero(layers["a"])
    assert x == pytest.approx((neuron + 0.5) / 7)
    assert y == pytest.approx(step / 4)
    assert not len(marks(plot, 1)[0])
    chosen = layers["wide"][:, np.linspace(0, 998, 110).round().astype(int)]
    assert len(marks(plot, 2)[0]) == chosen.sum()
    assert "more than 110 neurons" in plot.note
    assert f"wide: {layers['wide'].sum():,} of 3,996" in plot.alt
    shares = [label.get_text() for label in plot.axes.child_axes[0].get_yticklabels()]
    assert shares == [f"{layer.mean() * 100:.1f} %" if layer.any() else "0.0 %" for layer in layers.values()]
    assert spike_plots.spike_raster(Raster(0, None, None, {})) is None


def test_long_and_deep_networks_show_fewer_neurons_of_each_layer():
    layers = {f"layer{number}": np.ones((100, 500), dtype=np.bool_) for number in range(61)}
    plot = spike_plots.spike_raster(Raster(0, None, None, layers))
    assert sum(len(line.get_xdata()) for line in plot.axes.lines) == 61 * 100 * 20 * 3
    assert plot.figure.get_figheight() * 72 < 2_100


def test_confusion_matrix():
    matrix = [[4, 0, 0], [0, 2, 1], [0, 0, 3]]
    plot = class_plots.confusion_matrix(["torch", "fixed"], matrix, "x")
    assert plot.texts == {(0.5, 0.5): "4", (1.5, 1.5): "2", (2.5, 1.5): "1", (2.5, 2.5): "3"}  # x predicted, y true
    assert plot.axes.get_ylim() == (3, 0)
    opacity = plot.axes.collections[0].get_facecolor()[:, 3]
    assert opacity == pytest.approx([1, 0.08 + 0.92 * 2 / 3, 0.08 + 0.92 / 3, 1])
    assert plot.alt == "9 of 10 on the diagonal. Most frequent: 1 of class 1 taken for 2."
    assert class_plots.confusion_matrix(["x"], np.zeros((0, 0)), "x") is None
    assert class_plots.confusion_matrix(["x"], np.ones((101, 101), dtype=int), "x") is None


def test_a_hundred_classes_are_drawn_without_numbers():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 5, (100, 100))
    plot = class_plots.confusion_matrix(["x"], matrix, "x")
    assert not plot.texts
    opacity = plot.axes.images[0].get_array()[..., 3]
    share = matrix / matrix.sum(1, keepdims=True)
    assert np.allclose(opacity, np.where(matrix > 0, 0.08 + 0.92 * share, 0))
    assert "Numbers" not in plot.note


def test_most_frequent_confusions():
    matrix = np.diag([100, 90, 80])
    matrix[0, 2], matrix[2, 1], matrix[1, 0] = 3, 20, 10
    found = class_plots.confusions(matrix)
    assert [(one.true, one.predicted, one.samples) for one in found] == [(2, 1, 20), (1, 0, 10), (0, 2, 3)]
    assert [one.share for one in found] == pytest.approx([0.2, 0.1, 3 / 103])
    assert class_plots.confusions(np.diag([1, 2])) == []
    assert len(class_plots.confusions(np.ones((20, 20), dtype=int))) == class_plots.LISTED


def test_differences_by_layer():
    plot = class_plots.layer_differences(held(small()), "n", "t")
    assert plot.legend == ["nir"]
    assert plot.rows == ["stem.conv", "stem.lif", "head"]
    (line,) = [line for line in plot.axes.lines if line.get_label() == "nir"]
    assert line.get_xdata() == pytest.approx([-100 / 4_321, -100 / 61, -1000 / 610])
    assert list(np.round(line.get_ydata())) == [0, 1, 2]
    assert plot.alt == "nir: 3 layers differ, most stem.lif by -1.6 %."
    equal = [row for row in held(small()) if row.name != "nir"]
    assert [row.name for row in equal] == ["fixed"]
    assert class_plots.layer_differences(equal, "n", "t") is None


def test_quantisation_stands_apart_from_what_should_be_equal():
    comparison = quantised()
    assert [row.name for row in held(comparison)] == ["nir", "fixed"]
    assert [row.name for row in across(comparison)] == ["torch-int"]
    assert leads(comparison) == {"torch", "torch-int"}
    assert [group.names for group in grouped(ran(comparison), layer_key)] == [
        ["torch"],
        ["nir"],
        ["torch-int", "fixed"],
    ]
    reverse = list(reversed(ran(comparison)))
    assert grouped(reverse, layer_key)[0].names == ["torch-int", "fixed"]
    plot = class_plots.layer_differences(across(comparison), "n", "t")
    assert plot.rows == ["stem.conv", "head"]


def test_only_the_largest_of_many_differences_are_drawn():
    rows = ran(large(backends=12, layers=61, classes=None, profiles=1))
    plot = class_plots.layer_differences(rows, "n", "t")
    worst = {}
    for row in rows:
        for layer, value in class_plots.differences(row).items():
            worst[layer] = max(worst.get(layer, 0.0), abs(value))
    kept = sorted(worst, key=lambda layer: -worst[layer])[: class_plots.DRAWN_LAYERS]
    assert set(plot.rows) == set(kept)
    assert "The 40 largest of 122." in plot.note


def test_names_in_a_drawing_are_text(monkeypatch):
    """No mathematics, no markup, no ids from names; colours of the theme become variables, those of series stay."""
    hostile = "$\\alpha_{x}$ <b>&amp; #16181d url(#p) --> id='x'"

    def paint(figure):
        axes = figure.subplots()
        axes.set_title(hostile)
        axes.plot([0, 1], [0, 1], color=drawing.SERIES[0])
        axes.axhline(0, color=drawing.INK)

    plot = drawing.draw("name", hostile, "\x00 alt", 100, paint)
    root = ET.fromstring(plot.svg)
    assert [element.text for element in root.iter("text") if element.text == hostile]
    assert root.find("title").text == hostile
    assert root.find("desc").text == "\ufffd alt"
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert "var(--ink)" in styles
    assert drawing.SERIES[0] in styles
    assert not any(colour in styles for colour in drawing.THEMED)
    assert "font-family" not in plot.svg
    assert all(identity.startswith("name-") for element in root.iter() if (identity := element.get("id")))
    assert plot.svg == drawing.draw("name", hostile, "\x00 alt", 100, paint).svg
