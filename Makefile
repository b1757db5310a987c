# `make demo` and `make test` install what they need; `make check` is the fast half of `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROXY_VENV  := .venv-litellm
PROXY_STAMP := $(PROXY_VENV)/.installed

.PHONY: help install check test simulate chaos demo bench up lock lock-peers schemas docs format clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) $(PROXY_STAMP) ## .venv with the locked packages and tallygate itself; .venv-litellm for its proxy's test

$(STAMP): requirements.lock tests/openmeter-requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tallygate needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r tests/openmeter-requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The build backend is in the lock; compiling what a test needs of it is quicker than compiling all.
$(PROXY_STAMP): $(STAMP) tests/litellm-requirements.txt pyproject.toml
	@$(BIN)/python -m venv $(PROXY_VENV)
	@echo "installing LiteLLM's proxy into $(PROXY_VENV) for its test (a minute the first time) ..."
	@$(PROXY_VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes \
	  -r tests/litellm-requirements.txt
	@$(PROXY_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

check: install ## format, lint, types, import contracts, unit and simulation tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 tests/unit tests/simulation

test: check ## everything a machine without Docker can run: a real broker, a real ClickHouse engine
	$(BIN)/pytest -n 2 --dist loadgroup tests/chaos tests/integration tests/conformance

SEEDS ?= 1000
simulate: install ## SEEDS=5000 SEED=1: stories of owners that die, sleep and overlap; SHOW=1 tells the one of SEED
	@PYTHONPATH=tests $(BIN)/python -m simulation.run --seed $(SEED) --seeds $(SEEDS) \
	  $(if $(SHOW),--show) $(if $(LONG),--long) $(if $(OUT),--out $(OUT))

KILLS ?= 20
SEED  ?= 1
chaos: install ## kill, pause and break everything under load: KILLS=20 SEED=1; ends with one JSON line
	@PYTHONPATH=tests $(BIN)/python -m chaos --kills $(KILLS) --seed $(SEED)

demo: $(STAMP) ## 28 185 real LLM calls through Kafka, Faust, RocksDB and ClickHouse; a runaway agent stopped
	$(BIN)/tallygate demo

bench: $(STAMP) ## Tallygate and its peers measured, three rounds each, about an hour; pages and plots in load-tests/results
	$(BIN)/python load-tests/compare.py all

up: $(STAMP) ## a broker, a worker and a sink on this machine, until Ctrl-C
	$(BIN)/tallygate up

schemas: install ## regenerate the JSON Schemas and golden files after a change of the vocabulary
	$(BIN)/python -m tallygate.schemas.export

docs: install ## the documentation in docs/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml
	@echo docs/site/index.html

format: install ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## resolve pyproject.toml into requirements.lock (hashes, no hosts)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev \
	  -o requirements.lock pyproject.toml lock-build.in
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-deps \
	  --prerelease=allow -o tests/openmeter-requirements.txt tests/openmeter-requirements.in
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-package chdb --no-emit-package chdb-core -o tests/litellm-requirements.txt \
	  pyproject.toml lock-build.in tests/litellm-requirements.in

lock-peers: ## the same for the peers of the bench
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  -o load-tests/peers/requirements.txt load-tests/peers/requirements.in

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(PROXY_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
