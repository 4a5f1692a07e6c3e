# Every command of the project. `make` lists them; the first run of any sets itself up.

PYTHON ?= python3
SEEDS ?= 200

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
ETCD := $(VENV)/.etcd
COMPILED := $(VENV)/.compiled

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: demo
demo: $(ETCD) $(COMPILED) ## start a cluster, play a month of a game's economy, ask both queries, stop
	$(PY) -m scripts.demo

.PHONY: test
test: $(ETCD) $(COMPILED) ## run every test
	$(PY) -m pytest --numprocesses 2 --dist loadfile

.PHONY: simulate
simulate: $(INSTALLED) ## play whole clusters under faults on virtual time; SEEDS=200
	$(PY) -m tests.whole_cluster --seeds $(SEEDS)

.PHONY: schedules
schedules: $(INSTALLED) ## play 20,000 schedules of two-phase commit alone under faults
	$(PY) -m tests.simulation --schedules 20000

.PHONY: crash
crash: $(INSTALLED) $(COMPILED) ## fail, kill, cut the power of and damage a shard node's log and state
	$(PY) -m tests.crash faults
	$(PY) -m tests.crash power
	$(PY) -m tests.crash damage

.PHONY: torture
torture: $(ETCD) ## torment real clusters for 10 minutes and check every answer
	$(PY) -m tests.history --minutes 10

.PHONY: properties
properties: $(COMPILED) ## play the property tests under 20 seeds each, on compiled cores
	$(PY) -m tests.properties --rounds 20

.PHONY: mutants
mutants: $(INSTALLED) ## plant some hundred bugs, one by one; each must turn a test red
	$(PY) -m tests.mutants

.PHONY: fuzz
fuzz: $(INSTALLED) ## fuzz every decoder for ten minutes (by coverage, once `.[fuzz]` is installed)
	$(PY) -m tests.hostile.fuzz --seconds 600

.PHONY: siege
siege: $(ETCD) ## attack a running cluster with floods, half-open streams and garbage
	$(PY) -m tests.hostile.siege --seconds 240

.PHONY: check
check: $(INSTALLED) ## format, lint, types, wire contract, stubs; changes nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/buf lint
	$(VENV)/bin/buf format --diff --exit-code
	$(PY) -m scripts.generate_stubs --check

.PHONY: bench
bench: $(ETCD) $(COMPILED) ## measure everything beside bars, floors and peers: rates, latency, disk, memory, cost
	$(PY) -m scripts.bench

.PHONY: stubs
stubs: $(INSTALLED) ## generate client/doubloon/v1 from proto/
	$(PY) -m scripts.generate_stubs

.PHONY: format
format: $(INSTALLED) ## format the code and the protos, and fix what the linter can
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(VENV)/bin/buf format --write

.PHONY: clean
clean: ## remove what these commands made, but for a running cluster's data
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The SDK is installed from ./client in the same command as what depends on it, so that pip
# never looks for a package of that name in a registry.
$(INSTALLED): pyproject.toml client/pyproject.toml scripts/make_venv.py Makefile
	@$(PYTHON) scripts/make_venv.py $(VENV)
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ./client -e '.[dev]'
	@touch $@

# Where there is a C compiler, the processes that these commands start run compiled cores.
$(COMPILED): $(INSTALLED) $(wildcard cluster/*.py shard_node/*.py router/*.py coordinator/*.py)
	@$(PY) -m scripts.compiled
	@touch $@

# Tests and demo run against a real etcd.
$(ETCD): $(INSTALLED) scripts/fetch_etcd.py
	@$(PY) -m scripts.fetch_etcd
	@touch $@
