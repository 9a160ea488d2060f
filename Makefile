# `make demo` and `make test` are all a fresh machine needs (Python 3.11 and make).
# python3.11 where it has that name, else python3 if that is what it is
PYTHON ?= $(shell command -v python3.11 || echo python3)
# for Lava as it is published, which is tested where there is a Python 3.10: on the path or of pyenv
PYTHON310 ?= $(firstword $(foreach python,python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python),$(shell $(python) -c 'import sys, venv; sys.version_info[:2] == (3, 10) and print("$(python)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo

.PHONY: setup demo test check lint bench bench-cuda fuzz soak audit sbom licences clean help

help:
	@echo "make demo   install, export the shipped checkpoint to every target, verify, run (writes $(DEMO)/)"
	@echo "make test   the whole test suite"
	@echo "make check  lint, types, import directions, then the test suite: what CI runs"
	@echo "make bench  measured comparisons, printed as ratios"
	@echo "make bench-cuda  the training step on a CUDA device"
	@echo "make fuzz   twenty times as many damaged files as the test suite, other ones each day"
	@echo "make soak   a day of frames through the runtime: memory, and results against whole samples"
	@echo "make audit  known vulnerabilities of all pins, licences; make sbom writes sbom.json (CycloneDX)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install it or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: $(PYTHON) is not Python 3.11; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --ignore-requires-python --no-deps lava-nc lava-dl sinabs
	$(if $(PYTHON310),$(PYTHON310) -m venv $(VENV)/python3.10)
	$(if $(PYTHON310),$(VENV)/python3.10/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt lava-nc)
	touch $@

demo: setup
	$(BIN)/python examples/demo.py --out $(DEMO)

# Two parts at a time, each in a process of its own: what one part loads or leaves behind is not there for another.
define TEST_PARTS
tests/export/onnx
tests/untrusted
tests/train
tests/cli tests/compare
tests/export/lava tests/export/netx
tests/runtime tests/simulate tests/quantize tests/models tests/fixed_point tests/frontend tests/ir
tests/export/nir tests/passes
tests/energy tests/events tests/examples tests/benchmarks
tests/faults tests/export/test_*.py tests/test_*.py
endef
export TEST_PARTS

test: setup
	@echo "$$TEST_PARTS" | xargs -P 2 -I{} sh -c '$(BIN)/python -m pytest {}'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(MAKE) test

bench: setup
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/quantisation.py
	$(BIN)/python benchmarks/quantisation.py --engines
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/lava.py
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/circuits.py
	$(BIN)/python benchmarks/events.py
	$(BIN)/python benchmarks/training.py

bench-cuda: setup
	@$(BIN)/python benchmarks/training.py --device cuda --batch 64
	@$(BIN)/python benchmarks/training.py --device cuda --memory --network cifar10dvs-2-256-t16

fuzz: setup
	STATTEN_FUZZ_FACTOR=20 STATTEN_FUZZ_SEED=$$(date +%Y%m%d)00000 $(BIN)/python -m pytest -q -rP tests/untrusted/test_fuzz.py

soak: setup
	$(BIN)/python benchmarks/soak.py

# Tools that look at the environment live in one of their own, so that they are no part of what they look at.
TOOLS := $(VENV)/tools

$(TOOLS)/.installed: $(STAMP)
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-tools.txt cyclonedx-bom pip-audit
	touch $@

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

sbom: $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file sbom.json --validate $(BIN)/python

licences: setup
	$(BIN)/python .ci/licences.py

clean:
	rm -rf $(VENV) $(DEMO) sbom.json runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
