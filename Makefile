PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench

demo: $(INSTALLED)  ## the whole way on the phantom, then the page
	$(VENV)/bin/chest-opacity demo

test: $(INSTALLED)  ## the whole suite
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(INSTALLED)  ## speed, as ratios against a named alternative
	for script in tests/benchmarks/bench_*.py; do $(VENV)/bin/python $$script || exit 1; done

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
