# make notebook: execute S9.ipynb, outputs in runs/S9.ipynb.   make test: lint, tests, and S9.ipynb on a small data set.
# make publish: a full run on CIFAR-10 (an hour and a half without a GPU), which then replaces S9.ipynb and its figures.
# make benchmarks: measure all that the README says of speed, on a machine that does nothing else (an hour).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: notebook publish test benchmarks oldest warnings clean

notebook: .venv/installed
	$(BIN)/python -m scripts.notebook

publish: .venv/installed
	$(BIN)/python -m scripts.notebook --publish

test: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2
	S9_PROFILE=smoke $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env S9.ipynb

benchmarks: .venv/installed-dev
	$(BIN)/python -m scripts.benchmarks.feed
	$(BIN)/python -m scripts.benchmarks.training_speed student --rounds 3
	$(BIN)/python -m scripts.benchmarks.training_speed s9net --steps 24 --rounds 3
	$(BIN)/python -m scripts.benchmarks.training_speed student --accuracy 2
	$(BIN)/python -m scripts.benchmarks.training_speed s9net --accuracy 1
	$(BIN)/python -m scripts.benchmarks.time_to_accuracy
	$(BIN)/python -m scripts.benchmarks.cost
	$(BIN)/python -m scripts.benchmarks.processes
	$(BIN)/python -m scripts.benchmarks.watching
	$(BIN)/python -m scripts.readme

# The tests with the oldest versions that the requirements allow, in an environment of their own. These may warn of
# each other: matplotlib 3.9 calls what a newer pyparsing will take away.
oldest:
	$(PYTHON) -m venv .venv-oldest
	for file in requirements requirements-dev; do sed 's/>=/==/' $$file.txt > .venv-oldest/$$file.txt; done
	.venv-oldest/bin/python -m pip install -r .venv-oldest/requirements-dev.txt
	OMP_WAIT_POLICY=PASSIVE .venv-oldest/bin/python -m pytest -n 2 -o filterwarnings=

# The tests with every warning as an error, torch's, numpy's, matplotlib's and scikit-learn's among them.
warnings: .venv/installed-dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -W error

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .venv-oldest runs
