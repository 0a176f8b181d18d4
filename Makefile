# Two commands do everything, each alone, on a machine with Python >= 3.11, a C++ compiler and package registries:
#   make demo   the whole workflow on drawings that come with the installation
#   make test   all checks and all tests
# torch comes as the build that your package index serves; on a machine without a GPU, make the CPU build visible to
# pip (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) to save gigabytes: the pinned version then resolves to it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# Threads that spin while another process runs make small steps many times slower.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export RAY_DISABLE_IMPORT_WARNING := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast check coverage docs format clean

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## Make .venv with everything in it

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

demo: $(STAMP) ## Run the whole workflow on drawings; about ten minutes on two cores
	$(BIN)/pairloom demo --out $(OUT)

test: check ## Run all checks and all tests
	$(PYTEST)

fast: check ## Run all checks and the quick tests
	$(PYTEST) -m "not slow"

check: $(STAMP) ## Check format, style, spelling, types, import layers and the docs site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

coverage: $(STAMP) ## Run the quick tests and print the lines that they do not reach
	$(PYTEST) -m "not slow" --cov=pairloom --cov-report=term:skip-covered

docs: $(STAMP) ## Build the docs site to out/site
	$(BIN)/mkdocs build --strict

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) out build dist *.egg-info
