# make run    environment and the demo run, from raw data to results/demo/report.html
# make test   environment and every check; what CI calls
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
TARGETS ?=

.PHONY: run test lint quick slow clean

run: $(VENV)/.run
	$(BIN)/snakemake --cores $(CORES) $(TARGETS)
	@echo "Report: results/demo/report.html"

test: lint quick slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

quick: $(VENV)/.dev
	$(BIN)/pytest -m "not slow"

slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

clean:
	rm -rf $(VENV) .snakemake
