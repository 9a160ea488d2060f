"""``report.html`` as a parser sees it: numbers, escaping, what it loads, and that it is the same every time."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from statten_deploy.compare.comparison import BackendResult, Comparison, EnergyResult
from statten_deploy.compare.report import page as page_module
from statten_deploy.compare.report import write_html
from statten_deploy.compare.report.page import Page
from statten_deploy.errors import InputError
from tests.compare.comparisons import large, quantised, small
from tests.compare.real_comparison import real

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "path", "use", "br", "rect", "image", "link", "img", "input", "hr"}
HOSTILE = """"><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }} & ]]> --> $x_1$ url(#a)"""


class Document(HTMLParser):
    """Tags with their attributes, tables as {caption: {row header: {key: number}}}, and the text outside SVGs."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, dict[str, dict[str, float]]] = {}
        self.words: list[str] = []
        self.open: list[str] = []
        self.row = self.caption = self.key = ""
        self.feed(source)
        self.close()
        assert not self.open, self.open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), (tag, attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption = ""
        if tag == "tr":
            self.row = ""
        if tag == "td":
            self.key = found.get("data-key") or ""
        if tag == "data":
            self.tables[self.caption].setdefault(self.row, {})[self.key] = float(found["value"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "caption":
            self.tables.setdefault(self.caption, {})

    def handle_data(self, data):
        if "style" in self.open:
            return
        if "svg" not in self.open:
            self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        if "th" in self.open and "tbody" in self.open and self.open[-1] == "span" and not self.row:
            self.row = data

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, write_html(small(), folder)


@pytest.fixture(scope="module")
def source(written):
    return (written[0] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(source):
    return Document(source)


def table(document: Document, start: str) -> dict[str, dict[str, float]]:
    (found,) = [rows for caption, rows in document.tables.items() if caption.startswith(start)]
    return found


def check_numbers(document: Document, comparison: Comparison) -> None:
    """Every number behind a cell is that of the comparison, to the last bit."""
    results = table(document, "Results")
    for row in comparison.backends:
        if row.unavailable:
            assert row.name not in results
            continue
        found = dict(results[row.name])
        for key, taken in (("latency_ms", row.latency), ("batch_latency_ms", row.batch_latency)):
            assert found.pop(key, None) == (None if taken is None else taken.median_ms)
        if row.name == row.reference:
            assert not {"agreement", "spike_mismatches"} & set(found)
        expected = {key: getattr(row, key) for key in found}
        assert found == expected
        assert {"spikes", "synops", "macs", "neuron_updates"} <= set(found)
        for family, prefix in (("events", "event counts"), ("paper", "paper convention")):
            energies = table(document, f"Energy per sample: {prefix}")[row.name]
            priced = {profile.name for profile in comparison.profiles if profile.family == family}
            assert {key.split()[1] for key in energies} == priced
            for key, value in energies.items():
                assert value == getattr(
                    row.energy[key.split()[1]], {"energy_pj": "total_pj"}.get(key.split()[0], "ann_pj")
                )
        (layers,) = [
            rows
            for caption, rows in document.tables.items()
            if row.name in caption.removeprefix("Layers of ").split(", ") and caption.startswith("Layers")
        ]
        assert list(layers) == [layer.name for layer in row.layers if layer.name in layers]
        for layer in row.layers:
            cells = layers.get(layer.name, {})
            for key, value in cells.items():
                kind, _, profile = key.partition(" ")
                other = row.energy[profile].layers_pj[layer.name] if profile else getattr(layer, kind)
                assert value == other
            assert ("synops" in cells) == bool(layer.synops)
            assert ("firing_rate" in cells) == bool(layer.spikes_by_step)
            for key in ("macs", "paper_macs", "paper_acs"):
                assert (key in cells) == bool(getattr(layer, key))
        for profile, energy in row.energy.items():
            values = [cells.get(f"layer_pj {profile}", 0.0) for cells in layers.values()]
            assert sum(values) == pytest.approx(energy.total_pj, rel=1e-12)


def test_numbers_are_those_of_the_comparison(document):
    check_numbers(document, small())


def test_numbers_of_a_real_network_are_those_of_its_spikes():
    comparison, runs = real()
    document = Document(Page(comparison).html())
    check_numbers(document, comparison)
    for name, run in runs.items():
        (layers,) = [rows for caption, rows in document.tables.items() if caption == f"Layers of {name}"]
        assert set(run.spikes) <= set(layers)
        for layer, spikes in run.spikes.items():
            assert layers[layer]["spikes"] == np.count_nonzero(spikes)
            assert layers[layer]["firing_rate"] == pytest.approx(spikes.mean(), rel=1e-12)
            by_step = " · ".join(f"{int(step.sum()):,}" for step in spikes)
            assert by_step in document.text
        assert table(document, "Results")[name]["spikes"] == sum(map(np.count_nonzero, run.spikes.values()))


def test_what_integers_change_is_told_apart_from_what_must_be_equal():
    page = Page(quantised())
    document = Document(page.html())
    check_numbers(document, quantised())
    assert "torch-int stands beside torch: what differs there is quantisation." in document.text
    assert "What integers change by layer: torch-int beside torch" in document.text
    names = [plot.name for plot in page.plots]
    assert names[-2:] == ["layer-differences", "quantised-layers-torch-int"]
    assert page.quantised[0].alt == "torch-int: 2 layers differ, most stem.conv by -7.4 %."
    assert "torch-int" not in page.differences.alt
    assert "firing-rates-torch-int" in names
    assert "fixed: the same rates as torch-int in every layer and step." in document.text
    (folded,) = [caption for caption in document.tables if caption.startswith("Layers of torch-int")]
    assert folded == "Layers of torch-int, fixed"
    assert "Equal in every number. Second lines: the difference to torch." in document.text


def test_texts_beside_the_numbers(document):
    for expected in (
        "tiny: comparison of backends",
        "4 of 5 backends on 10 samples of made-up",
        "not installed: pip install 'statten-deploy[lava]'",
        "59.6–98.2 · 9 of 10",
        "1 of 240",
        "Latency: one call with 1 sample; median and 90th percentile (p90) of 7 to 9 calls.",
        "Latency of a batch: one call with 5 samples; median and 90th percentile (p90) of 3 calls.",
        "a machine, 2 threads",
        "Static power is in no profile",
        "hops between tiles: they need a placement",
        "synop 23.6 pJ (pre-silicon): Davies et al. 2018, Table 2",
        "one neuron fires a step later",
        "the images were scaled",
        "torch, torch-int, fixed",
        "10 · 21 · 30",
    ):
        assert expected in document.text, expected
    assert "problem" not in document.text


def test_families_share_no_table_and_every_profile_states_status_source_and_what_is_missing(document):
    assert all(
        not ({"energy_pj loihi1"} & set(cells) and {"energy_pj 45nm-fp32"} & set(cells))
        for rows in document.tables.values()
        for cells in rows.values()
    )
    assert document.text.count("Not included static power") == 2
    assert document.text.count("Status of the figures") == 2
    for status in ("pre-silicon", "estimated"):
        assert re.search(f"Status of the figures {status} Figures and sources", document.text)


def test_problems_come_first():
    comparison = replace(small(), problems=["nir: first difference", "onnx: second"], raster=None)
    source = Page(replace(comparison, backends=[])).html()
    assert source.index('<h2 id="problems-title">2 problems</h2>') < source.index('<section id="compared"')


def hostile(energy: EnergyResult) -> EnergyResult:
    return replace(energy, layers_pj={HOSTILE + name: value for name, value in energy.layers_pj.items()})


@pytest.mark.parametrize("where", ["names", "texts"])
def test_text_from_outside_stays_text(where, tmp_path):
    comparison = small()
    if where == "names":
        comparison.profiles[0] = replace(comparison.profiles[0], name=HOSTILE)
        for row in comparison.backends:
            row.layers = [replace(layer, name=HOSTILE + layer.name) for layer in row.layers]
            row.energy = {HOSTILE if name == "loihi1" else name: hostile(found) for name, found in row.energy.items()}
        comparison.backends[1].name = HOSTILE
        comparison.raster.layers = {HOSTILE: comparison.raster.layers["stem.lif"]}
    else:
        comparison.model = comparison.dataset = comparison.machine = comparison.tool_version = HOSTILE
        comparison.problems = [HOSTILE, "\udcff\x00\x1b[31m\u202eabc\ufffe"]
        comparison.warnings = [HOSTILE]
        comparison.backends[1].notes = [HOSTILE]
        comparison.backends[4].unavailable = HOSTILE
        comparison.profiles = [
            replace(
                profile,
                title=HOSTILE,
                statuses=(HOSTILE,),
                not_included=(HOSTILE,),
                sources=(HOSTILE,),
                notes=(HOSTILE,),
            )
            for profile in comparison.profiles
        ]
    files = write_html(comparison, tmp_path)
    source = files[0].read_text(encoding="utf-8")
    document = Document(source)
    names = [tag for tag, _ in document.tags]
    assert "script" not in names
    assert "img" not in names
    assert not any(key.startswith("on") for _, attributes in document.tags for key in attributes)
    assert "49 " not in document.text
    assert " ".join(HOSTILE.split()) in document.text
    assert "{{ 7 * 7 }}" in source
    assert not set(source) & {"\x00", "\x1b", "\u202e"}
    assert {path.parent for path in files} == {tmp_path}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)


def test_the_file_loads_nothing(source, document):
    loading = {"src", "srcset", "poster", "action", "data", "formaction", "background", "ping", "manifest"}
    for tag, attributes in document.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio", "source"}
        assert not loading & set(attributes)
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
        for value in attributes.values():
            assert not re.search(r"url\((?!#)", value or "")
    assert not re.search(r"https?://|@import|url\((?!#)|\b(src|href)=[\"']?//", source)
    policy = [attributes["content"] for tag, attributes in document.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_and_references_lead_somewhere(document):
    ids = document.ids()
    assert len(ids) == len(set(ids))
    used = []
    for _, attributes in document.tags:
        used += (attributes.get("aria-labelledby") or "").split()
        used += re.findall(r"url\(#([^)]*)\)", " ".join(value or "" for value in attributes.values()))
        used += [attributes["href"][1:]] if "href" in attributes else []
    assert len(used) > 20
    assert set(used) <= set(ids)


def test_pictures_are_named_and_tables_have_headers(document):
    svgs = [attributes for tag, attributes in document.tags if tag == "svg"]
    assert len(svgs) == 11
    assert all(svg["role"] == "img" and len(svg["aria-labelledby"].split()) == 2 for svg in svgs)
    tags = [tag for tag, _ in document.tags]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    assert all(
        attributes.get("scope") in ("col", "row", "colgroup") for tag, attributes in document.tags if tag == "th"
    )
    scrolled = [attributes for tag, attributes in document.tags if attributes.get("class") == "scroll"]
    assert len(scrolled) == tags.count("table")
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolled)
    assert ("html", {"lang": "en"}) in document.tags
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in document.tags


def test_pngs_are_pictures(written):
    folder, files = written
    assert files[0] == folder / "report.html"
    assert sorted(path.name for path in files[1:]) == [
        "accuracy-energy-45nm-fp32.png",
        "accuracy-energy-loihi1.png",
        "confusion-nir.png",
        "confusion-torch.png",
        "energy-layers-45nm-fp32.png",
        "energy-layers-loihi1.png",
        "firing-rates-nir.png",
        "firing-rates-torch-int.png",
        "firing-rates-torch.png",
        "layer-differences.png",
        "spike-raster.png",
    ]
    for path in files[1:]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 1000
            pixels = np.asarray(picture.convert("L"))
        assert pixels.max() == 255
        assert pixels.min() < 60
        assert 0.003 < (pixels < 200).mean() < 0.9


def test_the_same_comparison_gives_the_same_bytes(written, tmp_path):
    """Also where the user has a style of his own, which is left as it was; and in another process."""
    mine = {"svg.fonttype": "path", "font.size": 20.0, "axes.facecolor": "red", "svg.hashsalt": None}
    with matplotlib.rc_context(mine):
        again = write_html(small(), tmp_path)
        assert {key: matplotlib.rcParams[key] for key in mine} == mine
    assert [path.name for path in again] == [path.name for path in written[1]]
    for one, other in zip(written[1], again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    code = (
        "import hashlib; from statten_deploy.compare.report.page import Page;"
        "from tests.compare.comparisons import small;"
        "print(hashlib.sha256(Page(small()).html().encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout.strip() == hashlib.sha256(written[1][0].read_bytes()).hexdigest()


def test_nothing_is_half_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such folder"):
        write_html(small(), tmp_path / "nowhere")
    one = replace(small(), backends=[])
    (tmp_path / "spike-raster.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_html(one, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["spike-raster.png"]
    (tmp_path / "spike-raster.png").rmdir()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(InputError, match=r"report.html: cannot be written \(No space left on device\)"):
        write_html(one, tmp_path)
    assert not list(tmp_path.iterdir())


def test_importing_the_report_imports_no_plots_and_no_torch():
    code = (
        "import sys, statten_deploy.compare.report; heavy = {'matplotlib', 'jinja2', 'torch', 'onnx', 'nir'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_colours_have_contrast():
    """WCAG: 4.5 for text, on the page, in boxes and on the fullest cell of a map; in the light and in the dark."""
    css = (Path(page_module.__file__).parent / "templates/report.css").read_text()
    blocks = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{[^}]*--page[^}]*\}", css)
    ]
    assert len(blocks) == 2
    for colours in blocks:
        for text, ground in (
            *[("ink", ground) for ground in ("page", "paper", "heat", "bad-page", "warn-page")],
            *[("quiet", "page"), ("quiet", "paper"), ("link", "page"), ("warn", "paper")],
        ):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    from statten_deploy.compare.report.drawing import HEAT, INK, ON_SERIES, QUIET, SERIES

    light = blocks[0]
    assert (light["ink"], light["quiet"], light["heat"]) == (INK, QUIET, HEAT)
    assert all(contrast(ON_SERIES, colour) >= 4.5 for colour in SERIES)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# what people may have


def test_nothing_ran():
    rows = [BackendResult("lava", "integer", "torch-int", "not installed: pip install x")]
    document = Document(Page(replace(small(), backends=rows, raster=None)).html())
    for expected in ("No backend ran.", "not installed: pip install x", "No confusion matrix", "Only references ran"):
        assert expected in document.text, expected
    assert "svg" not in [tag for tag, _ in document.tags]


def test_no_labels_no_spikes():
    row = replace(small().backends[0], accuracy=None, correct=None, accuracy_interval=None, confusion=None, spikes=0)
    row = replace(
        row,
        synops=0,
        energy={name: replace(energy, total_pj=0.0, layers_pj={}) for name, energy in row.energy.items()},
        layers=[replace(layer, spikes=0, spikes_by_step=(0, 0, 0), firing_rate=0.0, synops=0) for layer in row.layers],
    )
    comparison = replace(small(), backends=[row], classes=None)
    comparison.raster.layers = {"stem.lif": np.zeros((3, 8), dtype=np.bool_)}
    page = Page(comparison)
    document = Document(page.html())
    for expected in ("The data has no labels", "no events were counted", "not known", "0 pJ"):
        assert expected in document.text, expected
    assert [plot.name for plot in page.plots] == ["firing-rates-torch", "spike-raster"]


def test_many_classes_are_listed_not_drawn():
    page = Page(large(backends=2, layers=1, classes=1000, profiles=0))
    document = Document(page.html())
    assert "A matrix of more than 100 classes has cells too small to see" in document.text
    assert not any(plot.name.startswith("confusion") for plot in page.plots)
    assert len([caption for caption in document.tables if caption.startswith("Most frequent confusions")]) == 2


def test_twelve_backends_sixty_one_layers_one_sample():
    """Long names as well; every layer is in a table, and plots beyond the first four of a kind are folded away."""
    comparison = large(backends=12, layers=1, classes=None, samples=1, profiles=1)
    document = Document(Page(comparison).html())
    check = [caption for caption in document.tables if caption.startswith("Layers of")]
    assert len(check) == 12
    assert "8 more" in document.text
    assert "on 1 sample of" in document.text
    deep = large(backends=1, layers=61, classes=None, profiles=2, steps=3, long_names=True)
    page = Page(deep)
    document = Document(page.html())
    check_numbers(document, deep)
    assert len(table(document, "Layers of")) == 122
    assert all(len(plot.svg) < 1_500_000 for plot in page.plots)
    stems = [plot.name for plot in page.plots]
    assert len(set(stems)) == len(stems)
