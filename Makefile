# Everything a person runs. `make demo` and `make test` need git, make and Python >= 3.11, nothing else;
# `make check` also needs npm, because buf comes from there, and so does `make typescript`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
# More arguments for pytest: make test ARGS="-k tree -x"
ARGS ?=
# What `make check` compares the contracts with.
BREAKING_REF ?= $(shell git rev-parse --quiet --verify main || git rev-parse --quiet --verify origin/main)

.PHONY: help demo serve test check gen proto fmt lint typecheck imports buf stubs constraints wheel \
  typescript clean

help:  ## Print the targets.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

# --- environment ----------------------------------------------------------------------------------
# torch first and alone: with it in place nothing else makes pip look for another build of it.
.venv/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Arborist needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv (a few minutes the first time)"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -m1 '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

node_modules/.package-lock.json: package.json package-lock.json services/typescript/package.json
	@command -v npm >/dev/null || { echo "this needs npm (Node.js >= 18), which gives buf and TypeScript: install Node.js and npm" >&2; exit 1; }
	@# Not `npm ci`: it refuses a lock without the platforms that a partial registry does not carry.
	@npm install --no-save --silent --no-audit --no-fund --ignore-scripts
	@touch $@

# --- use ------------------------------------------------------------------------------------------
demo: .venv/stamp  ## Stream three prompts through controller, draft and target, then stop.
	@$(BIN)/arborist demo

serve: .venv/stamp  ## Keep it up: HTTP 127.0.0.1:8000, gRPC 127.0.0.1:9000. Ctrl-C stops.
	@$(BIN)/arborist serve --config deploy/ray/local.yaml

# --- check ----------------------------------------------------------------------------------------
test: .venv/stamp  ## Run the tests.
	@$(BIN)/python -m pytest $(ARGS)

check: lint typecheck imports buf stubs  ## Everything that is checked without running the code.

lint: .venv/stamp  ## Ruff: rules and format.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: .venv/stamp  ## Mypy, strict.
	@$(BIN)/mypy

imports: .venv/stamp  ## Import contracts.
	@$(BIN)/lint-imports --no-logo

buf: node_modules/.package-lock.json  ## Contracts: lint, format, no breaking change.
	@node_modules/.bin/buf lint
	@node_modules/.bin/buf format --diff --exit-code
	@if git cat-file -e '$(BREAKING_REF):buf.yaml' 2>/dev/null && git cat-file -e '$(BREAKING_REF):protos/arborist' 2>/dev/null; then \
	  node_modules/.bin/buf breaking --against "$$(git rev-parse --git-common-dir)#ref=$$(git rev-parse '$(BREAKING_REF)')"; \
	else echo "buf breaking: main has no contracts to compare with"; fi

stubs: .venv/stamp  ## Are the committed stubs what the contracts say?
	@$(BIN)/python protos/generate.py --check

# --- change ---------------------------------------------------------------------------------------
gen proto: .venv/stamp  ## Regenerate protos/gen.
	@$(BIN)/python protos/generate.py

fmt: .venv/stamp  ## Format and fix what can be fixed.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@if [ -x node_modules/.bin/buf ]; then node_modules/.bin/buf format --write; fi

constraints: .venv/stamp  ## Write constraints.txt from what .venv holds now.
	@{ sed '/^[^#]/,$$d' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check 2>/dev/null \
	  | sed 's/+cpu$$//' | grep -viE '^(nvidia|triton|cuda)'; } > constraints.new
	@mv constraints.new constraints.txt

wheel: .venv/stamp  ## Build the wheel into dist/.
	@$(BIN)/python -m build --wheel --outdir dist .

typescript: node_modules/.package-lock.json  ## Build the TypeScript client into services/typescript/dist/.
	@npm run --silent build --workspace arborist-client

clean:  ## Remove the environment, tools and caches.
	@rm -rf .venv node_modules services/typescript/dist services/typescript/src/gen dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
