# `make` alone lists the targets. GNU make 3.81 or newer.
#
#   make bn ARGS="--epochs 1"     flags for the script: `make bn ARGS=--help` lists them
#   make bn PYTHON=python3.12     interpreter that .venv is made with
#   make bn VENV=no               use PYTHON's own packages and install nothing (Colab, conda)
#   make bn PIP_ARGS="..."        arguments for `pip install`
#   make seeds JOBS=4             runs at a time, also for study-*; default: one per core, on a GPU one

PYTHON ?= python3
VENV ?= yes
ARGS ?=
PIP_ARGS ?=
JOBS ?=
# A script is a variant if it assigns RECIPE.
VARIANTS := $(sort $(patsubst %.py,%,$(shell grep -lE "^[[:space:]]*RECIPE[[:space:]]*(:[^=]*)?=([^=]|$$)" [!.]*.py 2>/dev/null)))
STUDIES := study-norms study-signals study-predictions study-connections study-dropout study-groups \
  study-batch-size study-learning-rate study-corruptions study-ablation
PARALLEL := $(if $(JOBS),--jobs $(JOBS))
SHELL := /bin/sh
# So glibc keeps freed memory for the next tensor, instead of giving large blocks back to the kernel every time.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 2147483647

ifneq ($(filter no 0 false,$(VENV)),)
override VENV := no
RUN := "$(PYTHON)"
else
RUN := .venv/bin/python
endif
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal test_common.py tests

.PHONY: help all seeds $(VARIANTS) test test-all data summary plots check bench $(STUDIES) \
  clean venv
.DEFAULT_GOAL := help

help: ## print this list (times are for two CPU cores, if no saved run is reused)
	@sed -n -e 's/^\$$(VARIANTS)/$(VARIANTS)/' -e 's/^\([A-Za-z0-9_ -]*\):[^#]*## /\1: /p' Makefile | \
	  awk -F': ' '{ n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "make %-19s %s\n", names[i], $$2 }'

$(VARIANTS): venv ## train this variant, test it, and write results/<variant>/
	$(RUN) $@.py $(ARGS)

ifeq ($(strip $(ARGS)),)
all: venv ## train each variant not yet trained in this clone with the current code, and update README.md and the reports
	$(RUN) -m studies.run seeds --seeds 0 --jobs $(or $(JOBS),1); status=$$?; \
	  $(RUN) -m studies.run quick > /dev/null && $(RUN) -m tools.report reports && exit $$status
else
all: $(VARIANTS)
	$(RUN) -m tools.report show $(ARGS)
endif

seeds: venv ## the same with seeds 0, 1 and 2, several runs at a time (one on a GPU)
	$(RUN) -m studies.run seeds $(PARALLEL); status=$$?; \
	  $(RUN) -m studies.run quick > /dev/null && $(RUN) -m tools.report reports && exit $$status

test: venv ## check the code style and run the tests (one minute; no data set needed)
	@$(RUN) -c "import pytest, ruff, xdist" || { echo '$(RUN) lacks a requirement: see requirements.txt' >&2; exit 1; }
	$(RUN) -m ruff check
	$(TEST) -m "not slow"

test-all: venv ## run all tests, including the slow fault-injection tests
	$(TEST)

data: venv ## download CIFAR-10 into data/ if it is missing, and check it
	$(RUN) -m tools.report data

summary: venv ## print the layers and parameters of every variant
	$(RUN) -m tools.report summary

plots: venv ## plot every figure again, and update the numbers in README.md and the reports in results/
	$(RUN) -m tools.report plots

bench: venv ## measure training throughput on the CPU, in images per second (two minutes)
	$(RUN) -m tools.bench

study-norms: ## plot activations before and after each normalization (seconds)
study-signals: ## how do signals and gradients pass through an untrained network? (seconds)
study-predictions: ## which normalization is best on the test images? (seconds)
study-connections: ## do skip connections help, added or concatenated? (two hours)
study-dropout: ## what does dropout do to overfitting? (50 minutes)
study-groups: ## how many groups, from layer to instance normalization? (30 minutes)
study-batch-size: ## how small may a batch be? (20 minutes)
study-learning-rate: ## how high may the learning rate be? (30 minutes)
study-corruptions: ## which normalization keeps its accuracy on corrupted images? (10 minutes)
study-ablation: ## what are Muon, Hardswish, EMA and quadratic learning-rate decay worth? (45 minutes)
$(STUDIES): venv
	$(RUN) -m studies.run $(@:study-%=%) $(PARALLEL)
	$(RUN) -m tools.report reports > /dev/null

check: venv ## evaluate the saved weights again; check README.md, the reports in results/ and the findings
	$(RUN) -m tools.report check

clean: ## remove .venv and caches; data, results and checkpoints stay
	rm -rf .venv .pytest_cache .ruff_cache __pycache__ */__pycache__

# .venv is made again unless its stamp, written last, names this interpreter and these requirements.
ifeq ($(VENV),no)
venv:
	@"$(PYTHON)" -c "import torch, torchvision, torchinfo, matplotlib, scipy, tqdm" || \
	  { echo "$(PYTHON) lacks a requirement: see requirements.txt, or leave out VENV=no" >&2; exit 1; }
else
venv:
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python must be 3.10 or newer, $(PYTHON) is not: try make PYTHON=python3.12" >&2; exit 1; }
	@want="$$("$(PYTHON)" -c 'import os, sys; print(sys.version, os.path.realpath(sys.executable))'; cat requirements.txt)"; \
	if [ "$$want" != "$$(cat .venv/made-with 2>/dev/null)" ]; then \
	  rm -rf .venv && "$(PYTHON)" -m venv .venv && \
	  .venv/bin/python -m pip install $(PIP_ARGS) -r requirements.txt && \
	  printf '%s\n' "$$want" > .venv/made-with.new && mv .venv/made-with.new .venv/made-with || \
	  { echo "the installation into .venv failed; try again (on Debian: apt install python3-venv)" >&2; exit 1; }; \
	fi
endif
