# Needs only make and Python 3.11, 3.12 or 3.13. The environment is created once in .venv and reused.

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-slow fuzz lint format docs bench gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       pre-train on speech, images, text and signals in minutes, on data that comes with the package"
	@echo "make test       linter, type checker and tests"
	@echo "make test-slow  the tests that 'make test' leaves out: demo, examples, several processes, compilation"
	@echo "make fuzz       try every hostile input at every entry point, and random ones for an hour or more"
	@echo "make lint       linter and type checker only"
	@echo "make format     format the code"
	@echo "make docs       build the documentation site in build/site, and fail on any warning"
	@echo "make bench      time a training step of each base recipe on this machine"
	@echo "make gpu        check and measure everything on the GPU of this machine, in calls of nine minutes"
	@echo "make clean      remove the environment and all build products"

demo: $(VENV)/installed-demo
	$(VENV)/bin/data2vec demo

test: lint
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/pytest  # the processes that tests start compile the package once

test-slow: $(VENV)/installed-dev
	$(VENV)/bin/pytest -m slow

fuzz: $(VENV)/installed-dev
	cd tests && ../$(VENV)/bin/python -m hostile.run
	grep -l "hypothesis import given" -r tests | DATA2VEC_HYPOTHESIS=fuzz xargs $(VENV)/bin/pytest

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/installed-docs
	$(VENV)/bin/python tools/build_docs.py
	$(VENV)/bin/zensical build --strict

bench: $(VENV)/installed
	$(VENV)/bin/python benchmarks/step.py

gpu: $(VENV)/installed
	$(VENV)/bin/python benchmarks/gpu.py build/gpu

clean:
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch is installed first, so that no other package can select another version.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "data2vec needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(PIP) -e .[demo]
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e .[dev]
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e .[docs]
	@touch $@
