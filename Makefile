# Two commands do everything, each alone, on a machine with Python >= 3.11, a C++ compiler and package registries:
#   make demo   the whole walk on drawings that come with the installation
#   make test   all checks and all tests
# torch comes as the build that your package index serves; on a machine without a GPU, make the CPU build visible to
# pip (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) to save gigabytes: the pinned version then resolves to it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/demo
TEST_PROCESSES ?= 2

# Threads that spin while another process runs make small steps many times slower.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export RAY_DISABLE_IMPORT_WARNING := 1

.PHONY: venv demo test check fast format clean

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/pairloom demo --out $(OUT)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

fast: check
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not slow"

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out build dist *.egg-info
