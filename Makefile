PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=
EVERY_DAY := not wheel and not s3 and not stack and not warehouses

.DEFAULT_GOAL := help
.PHONY: help demo ui test lint format test-wheel test-s3 test-warehouses test-stack build constraints clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run a whole pipeline on a real Airflow against the emulator: no key, no cost
	@$(BIN)/python tests/demo.py $(ARGS)

ui: $(INSTALLED) ## The same, and leave Airflow running to look at it
	@$(BIN)/python tests/demo.py --ui

test: $(INSTALLED) ## Run the tests; ARGS="-k sensor" runs some of them, in one process
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest --numprocesses logical --dist loadscope -m "not whole and $(EVERY_DAY)"
	@$(BIN)/python -m pytest -m "whole and $(EVERY_DAY)" # each of them is several processes of Airflow: one at a time
endif

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## Mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-wheel: $(INSTALLED) ## Install the built wheel into an empty environment, and run the README's Dag there
	@$(BIN)/python -m pytest -m wheel $(ARGS)

test-s3: $(INSTALLED) ## Read requests from a server of S3, in an environment of its own
	@$(BIN)/python -m pytest -m s3 $(ARGS)

test-warehouses: $(INSTALLED) ## Run the writers of Snowflake, BigQuery and Iceberg, each in an environment of its own
	@$(BIN)/python -m pytest -m warehouses $(ARGS)

test-stack: $(INSTALLED) ## Run weeks at once on a real Airflow, and kill a triggerer while a hundred tasks wait
	@$(BIN)/python -m pytest -m stack $(ARGS)

build: $(INSTALLED) ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

constraints: $(INSTALLED) ## Write constraints.txt anew, with the newest versions that fit together
	@echo "# What the tests, the demo and the documentation ran with; made anew by 'make constraints'." > constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev --group s3 \
		--no-header --no-annotate --no-emit-index-url pyproject.toml >> constraints.txt

clean: ## Remove everything that was made here
	rm -rf .venv .airflow dist build .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv; this takes a minute or two ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[duckdb]' --group dev
	@touch $(INSTALLED)
