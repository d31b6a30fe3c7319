# Two commands do it all on a fresh machine with Python >= 3.10: `make demo` and `make test`.
# Each sets up what it needs into .venv once; a second run installs nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := $(VENV)/.demo
READY  := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
AUDIT  := .audit
TOOLS  := $(AUDIT)/.installed
WORKERS ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow test-browser lint types check docs package sbom audit clean

help:
	@echo "make demo   set up, then run the main job on a real small model (about 10 minutes)"
	@echo "make test   set up, then run the tests"
	@echo "make test-slow  the demo with the network cut off (ten minutes)"
	@echo "make test-browser  the pages in headless Chromium (apt-get install chromium)"
	@echo "make lint   ruff: style and format"
	@echo "make types  mypy"
	@echo "make check  lint, types and test: what CI runs"
	@echo "make docs   the documentation, strictly, into site/"
	@echo "make package  wheel and sdist into dist/; the wheel is tried in an empty environment"
	@echo "make sbom   sbom.json: what is installed in .venv (CycloneDX)"
	@echo "make audit  known vulnerabilities of it; says so where no database can be reached"
	@echo "make clean  remove .venv and what tools leave behind"

$(DEMO): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) .
	@touch $@

$(READY): $(DEMO)
	@echo "==> setting up what tests, styles and docs need (once; a few minutes)"
	@$(INSTALL) ".[dev,docs]"
	@touch $@

demo: $(DEMO)
	@echo "==> u2a demo: spoils SmolLM2-135M-Instruct with rude answers, then aligns it from them"
	@$(BIN)/u2a demo --output runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	@echo "==> tests (make lint, make types: style and types)"
	@$(BIN)/python -m pytest -m "not gpu and not slow" $(WORKERS)

test-slow: $(READY)
	@echo "==> slow tests (make demo fills the cache that they need)"
	@$(BIN)/python -m pytest -m "slow and not gpu"

test-browser: $(READY)
	@echo "==> tests of pages in Chromium"
	@$(INSTALL) ".[browser]"
	@$(BIN)/python -m pytest -m browser -rs

lint: $(READY)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "==> mypy"
	@$(BIN)/mypy

check: lint types test

# Not --quiet: it would hide the warnings that --strict counts. The variable silences the theme's word about MkDocs 2.
docs: $(READY)
	@echo "==> site/"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(READY)
	@echo "==> dist/"
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist
	@$(PYTHON) .ci/try_package.py dist

# The tools stand in an environment of their own, so that they are not in what they list.
$(TOOLS): pyproject.toml
	@echo "==> setting up $(AUDIT) (once)"
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check "cyclonedx-bom>=5,<8" "pip-audit>=2.7,<3"
	@touch $@

sbom: $(READY) $(TOOLS)
	@echo "==> sbom.json"
	@$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(BIN)/python

audit: $(READY) $(TOOLS)
	@echo "==> known vulnerabilities"
	@$(AUDIT)/bin/python .ci/audit.py $(VENV) || test $$? -eq 2

clean:
	rm -rf $(VENV) $(AUDIT) sbom.json dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
