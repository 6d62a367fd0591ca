# `make` alone lists the targets. GNU make 3.81 or newer.
#
#   make bn ARGS="--epochs 1"     flags for the script: `make bn ARGS=--help` lists them
#   make bn PYTHON=python3.12     the interpreter that .venv is made with
#   make bn VENV=no               use PYTHON's own environment and install nothing (Colab, conda)
#   make bn PIP_ARGS="..."        arguments for `pip install`
#   make seeds JOBS=4             trainings at a time, also of ablation and study-*; without it, what there is room for

PYTHON ?= python3
VENV ?= yes
ARGS ?=
PIP_ARGS ?=
JOBS ?=
# A script is a variant by being there, with a line that begins with RECIPE.
VARIANTS := $(sort $(patsubst %.py,%,$(shell grep -l "^RECIPE = " *.py)))
STUDIES := study-norms study-connections study-dropout study-groups study-batch_size study-learning_rate \
  study-corruptions study-confusions
SIDE_BY_SIDE := $(if $(JOBS),--jobs $(JOBS))
SHELL := /bin/sh

ifeq ($(VENV),no)
RUN := $(PYTHON)
else
RUN := .venv/bin/python
endif

.PHONY: help all seeds $(VARIANTS) test data summary plots augmentation check bench ablation torture clean environment \
  $(STUDIES)
.DEFAULT_GOAL := help

help: ## this list
	@sed -n -e 's/^\$$(VARIANTS)/$(VARIANTS)/' -e 's/^\([A-Za-z0-9_ -]*\):[^#]*## /\1: /p' Makefile | \
	  awk -F': ' '{ n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "make %-19s %s\n", names[i], $$2 }'

$(VARIANTS): environment ## train this variant, test it, and write its folder in results/
	$(RUN) $@.py $(ARGS)

ifeq ($(strip $(ARGS)),)
all: environment ## train what was not trained here by the code as it stands, and compare the variants
	$(RUN) -m studies.seeds --seeds 0 --jobs $(or $(JOBS),1)
	$(RUN) -m studies.norms
	$(RUN) -m tools.report pages
else
all: $(VARIANTS)
	$(RUN) -m tools.report show $(ARGS)
endif

seeds: environment ## as all, with seeds 1 and 2
	$(RUN) -m studies.seeds $(SIDE_BY_SIDE)
	$(RUN) -m studies.norms
	$(RUN) -m tools.report pages

test: environment ## check the style and run the tests; they need neither data set nor network
	@$(RUN) -c "import pytest, ruff, xdist" || { echo "$(RUN) lacks a requirement: see requirements.txt" >&2; exit 1; }
	$(RUN) -m ruff check
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal test_common.py tests

data: environment ## get CIFAR-10 into data/ and check it
	$(RUN) -m tools.report data

summary: environment ## print the layers and parameters of every variant
	$(RUN) -m tools.report summary

plots: environment ## redraw every picture and table from the saved results
	$(RUN) -m tools.report plots

augmentation: environment ## draw what the network sees in training (or by other flags, ARGS="--crop 8 --cutout 16")
	$(RUN) -m tools.report augmentation $(ARGS)

bench: environment ## measure the speed here, beside the usual way of writing it (ARGS=accuracy and ARGS=race take longer)
	$(RUN) -m tools.bench $(ARGS)

ablation: environment ## measure what each choice of the recipes is worth, in short trainings
	$(RUN) -m studies.ablation $(SIDE_BY_SIDE)
	$(RUN) -m tools.report pages

study-norms: ## draw activations before and after each norm (seconds)
study-connections: ## add a layer to another, or concatenate them? (three hours of trainings)
study-dropout: ## what does dropout do to overfitting? (an hour of trainings)
study-groups: ## how many groups, from layer norm to instance norm? (half an hour)
study-batch_size: ## how small may a batch be? (half an hour)
study-learning_rate: ## how high may the learning rate be? (half an hour)
study-corruptions: ## which norm keeps its accuracy on altered images? (ten minutes)
study-confusions: ## which classes are easy, which hard? (seconds)
$(STUDIES): environment
	$(RUN) -m studies.$(@:study-%=%) $(SIDE_BY_SIDE)
	$(RUN) -m tools.report pages

torture: environment ## kill, interrupt and damage short trainings, and see that nothing is lost (under 15 minutes)
	$(RUN) -m tests.torture

check: environment ## verify the saved results and evaluate their weights on the test set again
	$(RUN) -m tools.report check

clean: ## remove .venv, caches and leftovers; data and results stay
	rm -rf .venv .pytest_cache .ruff_cache __pycache__ */__pycache__ results/.new results/studies/.running

# .venv is made anew unless its stamp, written last, names this interpreter and these requirements.
ifeq ($(VENV),no)
environment:
	@$(PYTHON) -c "import torch, torchvision, torchinfo, matplotlib, tqdm" || \
	  { echo "$(PYTHON) lacks a requirement: see requirements.txt, or leave out VENV=no" >&2; exit 1; }
else
environment:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "$(PYTHON) is not Python 3.10 or newer: name one that is, as in make PYTHON=python3.12" >&2; exit 1; }
	@want="$$($(PYTHON) -c 'import os, sys; print(sys.version, os.path.realpath(sys.executable))'; cat requirements.txt)"; \
	if [ "$$want" != "$$(cat .venv/made-with 2>/dev/null)" ]; then \
	  rm -rf .venv && $(PYTHON) -m venv .venv && \
	  .venv/bin/python -m pip install $(PIP_ARGS) -r requirements.txt && \
	  printf '%s\n' "$$want" > .venv/made-with.new && mv .venv/made-with.new .venv/made-with || \
	  { echo "the installation into .venv did not finish; try again (on Debian: apt install python3-venv)" >&2; exit 1; }; \
	fi
endif
