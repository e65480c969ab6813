# `make demo` runs the whole method on a laptop; `make test` runs the tests. Both set up what they
# need in .venv first: Python 3.11 and pip are all that must be there.

PYTHON ?= python3.11
# CUDA's stack where `nvidia-smi` finds a GPU, else the CPU's; an environment that is there stays what
# it is. STACK=cuda or STACK=cpu chooses, and makes it anew if it was the other's.
ifndef STACK
STACK := $(or $(patsubst .venv/.stack-%,%,$(wildcard .venv/.stack-*)),$(if $(shell nvidia-smi -L 2>/dev/null | grep ^GPU),cuda,cpu))
endif
ifneq ($(STACK),$(firstword $(filter $(STACK),cpu cuda)))
$(error STACK is cpu or cuda, not '$(STACK)')
endif
# Where pip finds a CPU build of torch. Only used if the indexes that pip is configured with have none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(STACK)

.PHONY: demo test test-all test-gpu test-contract bench bench-gpu bench-startup bench-learning bench-overhead bench-text bench-clinical bench-server bench-adapters bench-actor bench-prepare check setup clean

setup: $(READY)

$(READY): requirements/$(STACK).txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is needed; name another with PYTHON=..."; exit 1; }
	@test -e $(VENV)/.stack-$(STACK) || rm -rf $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.stack-$(STACK)
	@echo "setting up $(VENV) with requirements/$(STACK).txt (a few minutes, once)"
	@$(BIN)/pip install --quiet --upgrade pip
	@test $(STACK) = cuda || $(BIN)/pip install --quiet --no-deps "torch==2.13.0+cpu" 2>/dev/null || \
		$(BIN)/pip install --quiet --no-deps --index-url $(TORCH_INDEX) "torch==2.13.0+cpu"
	@$(BIN)/pip install --quiet --no-deps -r requirements/$(STACK).txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@$(BIN)/openrlhf demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not contract"

test-all: $(READY)
	$(BIN)/python -m pytest

# On one GPU of 80 GB, where ten minutes should do; each test is skipped without one.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu --need-gpu --durations=10

# Each stack's real package, in an environment of its own where its pins collide with OpenRLHF's.
# nemo-gym's metadata asks for Python 3.12; what is used of it here runs with 3.11.
ISOLATED := verl swift verifiers nemo_gym

.contract/%/.ready: requirements/contract/%.txt pyproject.toml
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "setting up $(@D) (a few minutes, once)"
	@$(@D)/bin/pip install --quiet --upgrade pip
	@! grep -q '^accelerate==' $< || \
		$(@D)/bin/pip install --quiet --no-deps "torch==2.13.0+cpu" 2>/dev/null || \
		$(@D)/bin/pip install --quiet --no-deps --index-url $(TORCH_INDEX) "torch==2.13.0+cpu"
	@$(@D)/bin/pip install --quiet --no-deps --ignore-requires-python -r $<
	@$(@D)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test-contract: $(READY) $(ISOLATED:%=.contract/%/.ready)
	$(BIN)/python -m pytest tests/contract/test_parity.py tests/contract/test_trl.py tests/contract/test_openrlhf.py
	@for stack in $(ISOLATED); do \
		REWARD_SDK=$(CURDIR)/$(BIN)/reward-sdk .contract/$$stack/bin/python -m pytest \
			tests/contract/test_parity.py tests/contract/test_$$stack.py || exit 1; \
	done

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: bench-text bench-clinical bench-server bench-adapters bench-actor bench-overhead bench-prepare

# On one GPU of 80 GB: LLaVA-Med 7B's shape with random weights, and the reward networks.
bench-gpu: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/gpu.py
	$(BIN)/reward-sdk bench --device cuda

# What start-up is compared with: the state before it was worked on.
BASE ?= 5d5ef0e

bench-startup: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/startup.py $(BASE)

bench-overhead: $(READY)
	$(BIN)/python tests/bench/overhead.py

bench-learning: $(READY)
	$(BIN)/python tests/bench/learning.py

bench-text: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/text.py

bench-clinical: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/clinical.py

bench-server: $(READY)
	PYTHONPATH=tests:tests/bench $(BIN)/python tests/bench/server.py

bench-adapters: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/adapters.py

bench-prepare: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/prepare.py

bench-actor: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/bench/actor.py
	PYTHONPATH=tests $(BIN)/python tests/bench/training.py

clean:
	rm -rf $(VENV) .contract runs build dist
