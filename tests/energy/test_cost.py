from fractions import Fraction

import pytest

from statten_deploy.energy import Counts, Hops, LayerCounts, energy, load_profile, profile_names
from statten_deploy.errors import ConfigError, InputError, UnsupportedError

OWN = """
name = "mine"
title = "My chip"
family = "events"
[figures.synop]
value = 0.5
unit = "nJ"
status = "measured"
source = "my bench"
[figures.mac]
value = 2000
unit = "fJ"
status = "estimated"
source = "data sheet"
"""


def counts(samples=2):
    layers = (
        LayerCounts("image_conv", "Conv2d", "synapses", macs=100, paper_macs=400, dense_macs=50),
        LayerCounts("lif", "LIF", "neurons", neurons=10, updates=80, spikes=6, spikes_by_step=(2, 4)),
        LayerCounts("or", "SpikeMaxPool2d", "gates", neurons=5, updates=40, spikes=3, synops=20),
        LayerCounts("conv", "Conv2d", "synapses", synops=1000, readers=3, paper_acs=Fraction(2401, 2), dense_macs=300),
        LayerCounts("fc", "Affine", "synapses", synops=200, paper_acs=Fraction(250), dense_macs=30),
        LayerCounts("att", "STAttenAttention", "attention", kv_accumulations=30, kv_removals=5, q_reads=15),
        LayerCounts("pool", "AvgPool2d", "pool", reads=64),
    )
    return Counts(layers, samples, 4)


def test_spikingformer_8_512_as_published():
    """0.347 G MAC + 6.518 G AC at 4.6 and 0.9 pJ: 7.46 mJ (Zhou et al. 2023, Spikingformer-8-512, T = 4)."""
    layer = LayerCounts("all", "Conv2d", "synapses", paper_macs=347_000_000, paper_acs=Fraction(6_518_000_000))
    report = energy(Counts((layer,), 1, 4), load_profile("45nm-fp32"))
    assert report.total_pj == pytest.approx(7.4624e9, rel=1e-12)
    assert round(report.total_pj / 1e9, 2) == 7.46
    assert report.parts_pj == pytest.approx({"mac": 1.5962e9, "ac": 5.8662e9})


def test_paper_profiles_price_the_paper_convention_and_the_ann():
    report = energy(counts(), load_profile("45nm-int8"))
    assert report.total_pj == pytest.approx((400 * 0.23 + (1200.5 + 250) * 0.03) / 2)
    assert report.ann_pj == pytest.approx((50 + 300 + 30) * 0.23)
    assert {layer.name for layer in report.layers} == {"image_conv", "conv", "fc"}
    assert report.not_included[0] == "static power"


def test_loihi1_prices_events():
    report = energy(counts(), load_profile("loihi1"))
    by_name = {layer.name: layer.parts_pj for layer in report.layers}
    assert by_name["conv"] == pytest.approx({"synop": 1000 * 23.6 / 2})
    assert by_name["att"] == pytest.approx({"synop": 50 * 23.6 / 2})
    assert by_name["lif"] == pytest.approx({"neuron_update": 80 * 81 / 2, "spike": 6 * 1.7 / 2})
    assert by_name["or"] == pytest.approx({"synop": 20 * 23.6 / 2, "neuron_update": 40 * 81 / 2, "spike": 3 * 1.7 / 2})
    assert "image_conv" not in by_name
    assert report.total_pj == pytest.approx((1270 * 23.6 + 120 * 81 + 9 * 1.7) / 2)
    assert (report.ann_pj, report.hops_pj, report.statuses) == (None, None, ("pre-silicon",))
    missing = "; ".join(report.not_included)
    assert "static power" in missing
    assert "hops between tiles: they need a placement" in missing
    assert "50 MACs per sample of analog layers" in missing
    assert "32 reads per sample" in missing
    assert "up to 1,000 further SynOps per sample" in missing


def test_sanafe_tells_kinds_of_synapses_apart():
    parts = {layer.name: layer.parts_pj for layer in energy(counts(1), load_profile("loihi1-sanafe")).layers}
    assert parts["conv"] == pytest.approx({"synop_conv": 24000})
    assert parts["fc"] == pytest.approx({"synop_dense": 200 * 35.5})
    assert parts["att"] == pytest.approx({"synop_sparse": 50 * 33.6})
    assert parts["lif"] == pytest.approx(
        {"neuron_access": 80 * 51.2, "neuron_update": 80 * 21.6, "spike_out": 6 * 69.3, "axon_out": 6 * 111}
    )


def test_hops_of_a_placement():
    known = energy(counts(), load_profile("loihi1"), hops=Hops(10, 4))
    assert known.hops_pj == pytest.approx((10 * 3 + 4 * 4) / 2)
    assert known.total_pj == pytest.approx(energy(counts(), load_profile("loihi1")).total_pj + 23)
    assert not any("placement" in what for what in known.not_included)
    with pytest.raises(InputError, match="'truenorth' has no figures for hops"):
        energy(counts(), load_profile("truenorth"), hops=Hops(1, 1))


def test_the_report_adds_up():
    for name in profile_names():
        report = energy(counts(), load_profile(name))
        told = report.to_dict()
        assert told["total_pj"] == pytest.approx(sum(told["parts_pj"].values()))
        assert told["total_pj"] == pytest.approx(sum(layer["total_pj"] for layer in told["layers"]))
        assert told["total_pj"] > 0
        assert all(figure["source"] and figure["status"] for figure in told["figures"].values())


def test_the_shipped_figures():
    """The table of docs/energy.md."""
    figures = {name: {key: f.pj for key, f in load_profile(name).figures.items()} for name in profile_names()}
    assert {name: (v["mac"], v["ac"]) for name, v in figures.items() if name.startswith("45nm")} == {
        "45nm-fp32": (4.6, 0.9),
        "45nm-fp16": (1.5, 0.4),
        "45nm-int8": (0.23, 0.03),
    }
    single = {name: v["synop"] for name, v in figures.items() if set(v) == {"synop"}}
    assert single == {
        "truenorth": 26,
        "spinnaker": 45,
        "spinnaker2": 10,
        "odin": 12.7,
        "tianjic": 1.54,
        "neuronflow": 20,
        "seneca": 2.8,
    }
    loihi = figures["loihi1"]
    assert (loihi["synop"], loihi["neuron_update"], loihi["neuron_update_inactive"], loihi["spike"]) == (
        23.6,
        81,
        52,
        1.7,
    )
    assert (loihi["hop_east_west"], loihi["hop_north_south"]) == (3, 4)
    assert all(f.status == "pre-silicon" for f in load_profile("loihi1").figures.values())


def test_loihi2_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="no energy per operation has been published for Loihi 2"):
        load_profile("loihi2")


def test_a_profile_of_ones_own(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(OWN)
    profile = load_profile(path)
    assert {name: figure.pj for name, figure in profile.figures.items()} == {"synop": 500, "mac": 2}
    report = energy(counts(1), profile)
    assert report.total_pj == pytest.approx(1270 * 500 + 100 * 2)
    assert not any("MACs" in what for what in report.not_included)


UPDATES, TRANSPORT = "neuron updates: no figure of their own", "spike transport: no figure of their own"


@pytest.mark.parametrize(
    ("figure", "missing"),
    [
        ("neuron_update_inactive", [UPDATES, TRANSPORT]),  # never charged: spikes do not tell which neurons are idle
        ("neuron_update", [TRANSPORT]),
        ("neuron_access", [TRANSPORT]),
        ("spike", [UPDATES]),
        ("spike_out", [UPDATES]),
        ("axon_out", [UPDATES]),
    ],
)
def test_what_a_profile_has_no_figure_for_is_said(tmp_path, figure, missing):
    path = tmp_path / "my.toml"
    path.write_text(OWN.replace("[figures.mac]", f"[figures.{figure}]"))
    report = energy(counts(1), load_profile(path))
    assert [what for what in report.not_included if what in (UPDATES, TRANSPORT)] == missing


def test_events_that_come_in_are_no_spikes_of_neurons():
    """Whoever sends them pays: neither an update nor a spike is charged for the input."""
    image = LayerCounts("frames", "Input", "input", neurons=7, updates=56, spikes=5, spikes_by_step=(2, 3))
    lif = LayerCounts("lif", "LIF", "neurons", neurons=10, updates=80, spikes=6, spikes_by_step=(2, 4))
    for name in ("loihi1", "loihi1-sanafe"):
        report = energy(Counts((image, lif), 1, 2), load_profile(name))
        assert [layer.name for layer in report.layers] == ["lif"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"events"', '"other"', "family is 'other', expected one of paper, events"),
        ('"events"', '"paper"', r"unknown figures synop; known are mac, ac"),
        ("[figures.synop]", "[figures.spikes]", "unknown figures spikes"),
        ("[figures.synop]", "[figures.synop_conv]", r"needs \[figures.synop\]"),
        ("0.5", "-1", r"\[figures.synop\]: value is -1, expected a number that is not negative"),
        ("0.5", "true", "value is True"),
        ("0.5", "nan", "value is nan"),
        ('"nJ"', '"mJ"', "unit is 'mJ', expected one of fJ, pJ, nJ"),
        ('status = "measured"', "", "status is missing, expected one of estimated, measured, pre-silicon"),
        ('source = "my bench"', 'source = ""', "source is '', expected one line of text"),
        ('source = "my bench"', 'sources = "my bench"', "source is missing"),
        ('name = "mine"', 'name = "loihi1"', "name 'loihi1' belongs to a built-in profile"),
        ('name = "mine"', 'name = "mine"\nstatic = 1', "unknown key static"),
        ('name = "mine"', 'name = "mine"\nnotes = [1]', "notes is"),
        ('name = "mine"', 'name = "mine', "not a TOML file"),
        ("[figures.synop]", "[figure.synop]", r"\[figures.synop\]|unknown key figure"),
    ],
)
def test_wrong_profiles_are_refused_in_one_line(tmp_path, old, new, message):
    path = tmp_path / "my.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_profiles(tmp_path):
    with pytest.raises(ConfigError, match="'loihi3': unknown; give one of 45nm-fp16"):
        load_profile("loihi3")
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        load_profile(tmp_path / "none.toml")
    for name, content in (("big", b"#" * 70000), ("binary", b"\xff\xfe\x00")):
        path = tmp_path / f"{name}.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"larger than 65536 bytes|not a TOML file"):
            load_profile(path)
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(folder)
