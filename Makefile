# make notebook: execute S9.ipynb here, outputs in it.   make test: lint, tests, and S9.ipynb on a small data set.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: notebook test clean

notebook: .venv/installed
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 S9.ipynb

test: .venv/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest
	S9_PROFILE=smoke $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env S9.ipynb

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

clean:
	rm -rf .venv runs
