# Needs Python >= 3.11 with venv; everything else goes into VENV. A second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
# Processes that share the tests: one more than there are processors, since tests also wait.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile

.PHONY: setup demo test test-tenth test-slow check bench docs findings clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version); expected Python 3.11 or newer. Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/puna raise recipes/demo.toml
	@echo
	@$(BIN)/python recipes/demo_conversation.py build/demo/release

test: setup
	$(PYTEST)

test-tenth: setup
	$(PYTEST) -m tenth

test-slow: setup
	$(BIN)/pytest -m slow

bench: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/engine.py build/bench --write docs/results/engine.md

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --strict
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

findings:
	@findings/run_all

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest tests/package/test_architecture.py tests/package/test_language.py

clean:
	rm -rf build .venv
