# Everything a fresh machine needs is Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup node azurite demo reproduce test lint types unit torn-reads fuzz format clean

setup: $(STAMP) node

# What the JavaScript client's tests run on; the Python library does without.
node:
	@scripts/node.sh

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Evergrad needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/evergrad demo

# The paper's experiments, hours of them: see experiments/prapas2021/README.md.
DATASET ?= mnist
reproduce: $(STAMP)
	$(BIN)/python -m experiments.prapas2021 $(DATASET) $(ARGS)

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# What stands for Azure in the tests, if npm is here.
azurite:
	@scripts/azurite.sh

# Three processes, for most tests use one core, and those of servers wait most of the time; what two of them say is shown
# when all have ended.
TORCH_TESTS := tests/pytorch tests/experiments tests/bench tests/demo
SERVER_TESTS := tests/serve tests/examples tests/clients
unit: setup azurite
	@mkdir -p build
	@$(BIN)/python -m pytest $(TORCH_TESTS) > build/torch-tests.log 2>&1 & torch=$$!; \
	$(BIN)/python -m pytest $(SERVER_TESTS) > build/server-tests.log 2>&1 & servers=$$!; \
	$(BIN)/python -m pytest $(TORCH_TESTS:%=--ignore=%) $(SERVER_TESTS:%=--ignore=%); rest=$$?; \
	wait $$servers; rest=$$((rest || $$?)); wait $$torch; rest=$$((rest || $$?)); \
	cat build/server-tests.log build/torch-tests.log; exit $$rest

# The long form of a test that 'make test' runs for 300 updates: 8 clients hammer a server during 10,000.
torn-reads: setup
	EVERGRAD_TORN_UPDATES=10000 $(BIN)/python -m pytest tests/serve/test_torn_reads.py

# Arbitrary updates, schemas and snapshots, guided by coverage; exits at the first finding.
RUNS ?= 100000
fuzz: setup
	$(BIN)/python tests/fuzz/fuzz_update.py -runs=$(RUNS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
