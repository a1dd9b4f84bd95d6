# The same words here and in CI. Every target does its own set-up; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
WEB := dashboards/web
# npm and every script that it starts use the Node of the virtual environment, whatever the system has.
NPM := PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix $(WEB)
BENCH ?= page --peer prometheus
# A process a core, up to four; each takes the next test when it is done, the longest first (tests/conftest.py).
PYTEST_ARGS ?= --numprocesses logical --maxprocesses 4 --dist load --maxschedchunk 1
WEB_SOURCES := $(shell find $(WEB) -type f -not -path '*/node_modules/*' -not -path '*/dist/*' 2>/dev/null)
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command 'make lock'

.PHONY: help demo test check bench docs lock services setup setup-dev clean

help: ## list these words
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r word does; do \
		printf '  make %-10s %s\n' "$$word" "$$does"; done

demo: setup ## the whole system on this machine: a real training job goes bad and is paged
	$(BIN)/nantucket demo

test: setup-dev services ## the real services, then the whole test suite
	$(NPM) run --if-present test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup-dev ## lint, types, imports and generated files; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(NPM) run typecheck
	$(BIN)/python -m scripts.make_docs --check

bench: setup services ## the measurement that the documentation quotes (another: BENCH='NAME --option ...')
	$(BIN)/nantucket bench $(BENCH) --json

docs: setup-dev ## write the generated pages of docs/ anew
	$(BIN)/python -m scripts.make_docs

lock: setup-dev ## pin the newest allowed versions with their hashes (UPGRADE= to keep the ones pinned now)
	$(LOCK) $(if $(filter undefined,$(origin UPGRADE)),--upgrade) --group build --group dev -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt -o requirements/server.txt
	$(subst compile pyproject.toml,compile,$(LOCK)) --group build -c requirements/dev.txt -o requirements/build.txt

services: $(BIN)/.server ## get the programs that the tests talk to, and say which cannot be had
	$(BIN)/python -m scripts.services

setup: $(BIN)/.server $(WEB)/dist/index.html

setup-dev: $(BIN)/.dev setup

clean: ## remove what was built here; the virtual environment stays
	rm -rf dist test-artifacts $(WEB)/dist $(WEB)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	python=$$(scripts/find-python); "$$python" -m venv .venv

# The locks first, by their hashes; then our two distributions, editable. No build fetches anything: what builds comes
# from the first lock.
$(BIN)/.server: requirements/server.txt requirements/build.txt pyproject.toml sdk/pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --only-binary :all: -r requirements/build.txt
	$(PIP) install --require-hashes --only-binary :all: -r requirements/server.txt
	$(PIP) install --no-index --no-deps --no-build-isolation --editable . --editable sdk
	touch $@

$(BIN)/.dev: requirements/dev.txt $(BIN)/.server
	$(PIP) install --require-hashes --no-build-isolation -r requirements/dev.txt
	touch $@

$(WEB)/node_modules/.installed: $(WEB)/package.json $(WEB)/package-lock.json | $(BIN)/.server
	$(NPM) ci --no-audit --no-fund --no-progress
	touch $@

$(WEB)/dist/index.html: $(WEB)/node_modules/.installed $(WEB_SOURCES)
	$(NPM) run build
	touch $@
