# make demo    the whole chain on built-in data, minutes on two CPU cores
# make test    the test suite
# make check   lint, formatting, types, layers
# make mutants mutation testing, of one file with FILES=tcl/objective/losses.py
# make smoke   the three commands of the README in an empty folder

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# pip works everywhere; with `make INSTALL="uv pip install --python .venv/bin/python"` it takes seconds instead of minutes.
INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: venv demo test check mutants smoke clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing; PyTorch is several gigabytes ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@

demo: venv
	$(BIN)/python benchmarks/demo.py demo

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: venv
	$(BIN)/python tests/mutation/run.py $(FILES)

smoke: venv
	PATH="$(BIN):$$PATH" bash .ci/smoke

clean:
	rm -rf $(VENV) demo build dist
