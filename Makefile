# Two commands do it all on a fresh machine with Python >= 3.10: `make demo` and `make test`.
# Both set up what they need into .venv once; a second run installs nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: help demo test lint types check clean

help:
	@echo "make demo   set up, then run the main job on a real small model (about 10 minutes)"
	@echo "make test   set up, then run the tests"
	@echo "make lint   ruff: style and format"
	@echo "make types  mypy"
	@echo "make check  lint, types and test: what CI runs"
	@echo "make clean  remove .venv and what tools leave behind"

$(READY): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)
	@echo "==> u2a demo: spoils SmolLM2-135M-Instruct with rude answers, then aligns it from them"
	@$(BIN)/u2a demo --output runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	@echo "==> tests (make lint, make types: style and types)"
	@$(BIN)/python -m pytest -m "not gpu"

lint: $(READY)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "==> mypy"
	@$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
