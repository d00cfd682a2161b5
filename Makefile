# Every target sets up what it needs: a virtual environment and the pinned packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
.DEFAULT_GOAL := help

.PHONY: help setup peers demo test test-slow lint types imports docs bench check lab experiments

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,lm-eval,tensorboard,verify]'
	touch $@

setup: $(READY) ## make the virtual environment with the pinned packages

peers: .peers/mergekit/.ready .peers/nngeometry/.ready .peers/trackers/.ready ## mergekit, nngeometry, MLflow, W&B apart from the rest, for test-slow and bench

.peers/trackers/.ready: $(READY)
	$(BIN)/python -m venv .peers/trackers
	into=$$(.peers/trackers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$into/holdfast.pth"
	.peers/trackers/bin/pip install --quiet mlflow==3.17.2 wandb==0.31.0
	touch $@

.peers/nngeometry/.ready: constraints.txt $(READY)
	$(BIN)/pip install --quiet --no-deps --target .peers/nngeometry nngeometry==0.4
	touch $@

.peers/mergekit/.ready: constraints.txt
	$(PYTHON) -m venv .peers/mergekit
	.peers/mergekit/bin/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	.peers/mergekit/bin/pip install --quiet --constraint constraints.txt mergekit==0.1.5
	touch $@

demo: $(READY) ## fine-tune the lab model plainly and held, measure both, report (a few minutes)
	$(BIN)/holdfast run recipes/warp-lab.yaml -o runs/warp-lab --resume

test: $(READY) ## the default tests: CPU, offline, under eight minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

test-slow: $(READY) ## the tests marked slow, and those against peer tools
	$(BIN)/pytest -m "slow or peers"

lint: $(READY) ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy -p holdfast

imports: $(READY) ## the floors: imports go down only
	$(BIN)/lint-imports

docs: $(READY) ## rewrite the pages that scripts make from data and runs
	$(BIN)/python docs/scripts/recipe_keys.py
	$(BIN)/python docs/scripts/merge_rules.py
	$(BIN)/python docs/scripts/lab_samples.py
	$(BIN)/python docs/scripts/judges.py

bench: $(READY) ## speed and memory against peers, in one run
	$(BIN)/python -m benchmarks

lab: $(READY) ## train the lab model anew (one to two hours on two cores; resumes)
	$(BIN)/holdfast run recipes/lab.yaml -o runs/lab --resume

EXPERIMENTS := exp1-safety-tax exp2-many-experts exp3-rules repair-map causal-baselines wmtp-synergy wmtp-safety
REPAIR := --set 'seeds=[0, 1, 2]' --set values.sums=1000 --set values.dial_sums=300 --set values.dial_prompts=100

experiments: $(READY) ## merging, repair and hardening on the lab, and their result pages (several hours on two cores; resumes)
	for name in $(EXPERIMENTS); do $(BIN)/holdfast run recipes/$$name.yaml -o runs/$$name --resume || exit 1; done
	$(BIN)/holdfast run recipes/repair-lab.yaml $(REPAIR) -o runs/repair-lab --resume
	$(BIN)/python docs/scripts/merging_results.py runs/exp1-safety-tax
	$(BIN)/python docs/scripts/experts_results.py runs/exp2-many-experts
	$(BIN)/python docs/scripts/rules_results.py runs/exp3-rules
	$(BIN)/python docs/scripts/repair_results.py runs/repair-lab runs/repair-map
	$(BIN)/python docs/scripts/causal_results.py runs/causal-baselines
	$(BIN)/python docs/scripts/token_weighting_results.py runs/wmtp-synergy runs/wmtp-safety

check: lint types imports ## everything that reads the code and does not run it
