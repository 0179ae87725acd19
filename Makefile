# make notebook: execute S9.ipynb here, outputs in it.   make test: lint, tests, and S9.ipynb on a small data set.
# make benchmarks: measure all that the README says of speed, on a machine that does nothing else (an hour).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: notebook test benchmarks oldest warnings clean

notebook: .venv/installed
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 S9.ipynb

test: .venv/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2
	S9_PROFILE=smoke $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env S9.ipynb

benchmarks: .venv/installed
	$(BIN)/python benchmarks/feed.py
	$(BIN)/python benchmarks/training_speed.py seednet --rounds 3
	$(BIN)/python benchmarks/training_speed.py s9net --steps 24 --rounds 3
	$(BIN)/python benchmarks/training_speed.py seednet --accuracy 2
	$(BIN)/python benchmarks/training_speed.py s9net --accuracy 1
	$(BIN)/python benchmarks/time_to_accuracy.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/search_seconds.py
	$(BIN)/python tests/readme_blocks.py

# The tests with the oldest versions that requirements.txt allows, in an environment of their own. These may warn of
# each other: matplotlib 3.9 calls what a newer pyparsing will take away.
oldest:
	$(PYTHON) -m venv .venv-oldest
	sed 's/>=/==/' requirements.txt > .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pip install -r .venv-oldest/requirements.txt
	OMP_WAIT_POLICY=PASSIVE .venv-oldest/bin/python -m pytest -n 2 -o filterwarnings=

# The tests with every warning as an error, torch's, numpy's, matplotlib's and scikit-learn's among them.
warnings: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -W error

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-oldest runs
