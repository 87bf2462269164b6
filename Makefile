# `make demo` sets everything up and shows what Meshwright does; `make help` lists the rest.
# Everything that is installed or cached stays inside this folder, under .venv where it can.

# The first of these that is Python 3.11 or newer makes the virtual environment.
PYTHON ?= python3.11 python3 python3.12 python3.13 python3.14
# Installed before Meshwright, so that a CPU-only build can be asked for: TORCH=torch==2.13.0+cpu.
TORCH ?= torch==2.13.0
# More words for pytest, such as ARGS="-k matmul -x".
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
# Named after the folder it lies in, so that a clone that was moved is installed anew.
INSTALLED := $(VENV)/.installed-$(shell pwd -P | cksum | cut -d ' ' -f 1)
# Two workers, which share the list of tests in halves and then what the other has left; one
# thread a process, as tests start processes.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HOME := $(CURDIR)/$(VENV)/cache/huggingface
ifneq ($(shell test -d "$$HOME" && test -w "$$HOME" && echo writable),writable)
export PIP_CACHE_DIR := $(CURDIR)/$(VENV)/cache/pip
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/cache
endif

.PHONY: help demo install test test-all check bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      install, then plan and run a small model on this machine'
	@echo 'make install   install Meshwright and what its tests and checks need into $(VENV)'
	@echo 'make test      run the tests (about a quarter of an hour on two cores); ARGS="-k word" picks some'
	@echo 'make test-all  run the longer sweep too'
	@echo 'make check     ruff, formatting and mypy --strict'
	@echo 'make bench     run every file of benchmarks/'
	@echo 'make clean     remove $(VENV), caches and build folders; what runs wrote is kept'

demo: $(INSTALLED)
	@$(VENV)/bin/meshwright demo

install: $(INSTALLED)

test: $(INSTALLED)
	@$(PYTEST) -m "not all" $(ARGS)

test-all: $(INSTALLED)
	@$(PYTEST) $(ARGS)

check: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy --strict

bench: $(INSTALLED)
	@set -e; for file in benchmarks/*.py; do \
		case "$$file" in *'*'*|benchmarks/_*) continue ;; esac; \
		echo "== $$file"; $(RUN) "$$file"; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml Makefile
	@set -e; \
	enough='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(RUN) -c "$$enough" >/dev/null 2>&1; then \
		for each in $(PYTHON) none; do \
			"$$each" -c "$$enough" >/dev/null 2>&1 && break; \
		done; \
		if [ "$$each" = none ]; then \
			echo 'Meshwright needs Python 3.11 or newer with its venv module (Debian: python3-venv).' >&2; \
			echo 'Looked for: $(PYTHON). Name another one: make install PYTHON=/path/to/python3' >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$each" --version)"; \
		"$$each" -m venv --clear $(VENV); \
	fi
	@echo 'Installing PyTorch, Meshwright and what its tests and checks need into $(VENV)'
	@$(RUN) -m pip install --quiet $(TORCH)
	@$(RUN) -m pip install --quiet --editable '.[test,check]'
	@touch $@
