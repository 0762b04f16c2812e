# Every target sets up what it needs by itself: a virtual environment in .venv, torch, torchvision and the build.
# A second run reuses it. PYTHON chooses the interpreter (>= 3.10); SSD_EXT_BUILD and TORCH_CUDA_ARCH_LIST the build.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/*/*.* csrc/*/*/*.*)
# Where nvcc is, CUDA is built for the GPUs of this machine, or for one architecture if there is none: a build for all
# takes minutes (pip install does that; the tests compile for four).
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';')
ARCHS := $(or $(TORCH_CUDA_ARCH_LIST),$(GPUS),9.0)

.DEFAULT_GOAL := help
.PHONY: help demo check test fuzz lint format bench bench-report wheel compat install-check gpu-check clean

help:
	@echo "make demo          train, test and look at a small detector, no download of data or weights"
	@echo "make check OP=nms  the tests of one op: its own, registry, golden bits, drawn inputs, its CUDA source on the CPU"
	@echo "make check         lint, and all tests but those of the files marked slow"
	@echo "make test          lint, check types and run all tests"
	@echo "make fuzz          10,000 drawn inputs of each op, other ones each time (EXAMPLES=...)"
	@echo "make format        sort imports and format"
	@echo "make bench         measure everything on this machine into benchmarks/results/"
	@echo "make bench-report  write docs/performance.md, its charts and the README's table from these results"
	@echo "make wheel         sdist, and a wheel for every Python and torch (manylinux_2_28), checked, into dist/"
	@echo "make compat        the wheel under torch 2.11.0 and the newest and Python 3.10 to 3.13, or TORCH=2.11.0 PYTHON=..."
	@echo "make install-check the wheel installed twice, torch upgraded under it, without a compiler, uninstalled"
	@echo "make gpu-check     ten minutes on a GPU: OUT=DIR for the report (build/gpu-check), ONLY='steps', BUDGET=SECONDS,"
	@echo "                   REHEARSE=1 for what needs no GPU"
	@echo "make clean         remove the environment and all that was built"
	@echo "PYTHON=python3.12 chooses the interpreter of the environment, of compat and of gpu-check (default: python3)"

demo: .venv/built
	$(BIN)/ssd demo --out demo

# Processes share the files, the longest first (tests/conftest.py); those of one file stay together, for what they build.
PYTEST = SSD_EXT_REQUIRE=cpu OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses 4 \
	--dist loadfile --no-loadscope-reorder
test: lint
	$(PYTEST)

ifdef OP
# An op is registered in csrc/<file>/<file>.cpp; tests/ops/test_<file>.py is its own, which -k takes whole by its name.
OP_FILE := $(basename $(notdir $(shell grep -l 'm.impl."$(OP)"' csrc/*/*.cpp)))
ifeq ($(OP_FILE),)
$(error OP=$(OP) is no op; choose one of: $(shell grep -oh 'm.impl."[a-z_]*' csrc/*/*.cpp | cut -d'"' -f2 | sort -u))
endif
OF_EVERY_OP := $(patsubst %,tests/kernels/test_%.py,cuda_on_cpu fuzz registry golden)
check: .venv/built
	$(PYTEST) -k "$(OP) or test_$(OP_FILE)" tests/ops/test_$(OP_FILE).py $(OF_EVERY_OP)
else
check: lint
	$(PYTEST) -m "not slow"
endif

EXAMPLES ?= 10000
fuzz: .venv/built
	SSD_EXT_REQUIRE=cpu SSD_FUZZ_EXAMPLES=$(EXAMPLES) OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -q -n auto tests/kernels/test_fuzz.py tests/test_fuzz_files.py \
		tests/kernels/test_sanitizers.py::test_drawn_inputs_stay_in_bounds

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A contender that disagrees with ssd_ext is left out of the result file, with its reason, and fails the run.
bench: .venv/built
	mkdir -p build
	$(BIN)/python -m pytest -q benchmarks --benchmark-json=build/bench.json --benchmark-columns=median,iqr,rounds; \
	code=$$?; $(BIN)/python benchmarks/compact.py build/bench.json && exit $$code

bench-report: .venv/installed
	$(BIN)/python benchmarks/report.py

# From the sdist, so that both are whole. The wheel links for an old glibc, and names the libraries of torch without
# bringing them.
wheel: .venv/built
	SSD_EXT_BUILD=none $(BIN)/pip install -q --no-build-isolation -e ".[wheel]"
	rm -rf dist build/wheel
	$(BIN)/python -m build -q --sdist --no-isolation
	SSD_EXT_GLIBC=2.28 SSD_EXT_BUILD=cuda $(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel dist/*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_$$(uname -m) --only-plat --exclude 'libtorch*' --exclude 'libc10*' \
		-w dist build/wheel/*.whl
	$(BIN)/abi3audit --strict --summary dist/*.whl
	ls -l dist

# All Pythons and both ends of torch, or the cell of TORCH and PYTHON; SHARED=FOLDER: see tools/compat.py --help.
compat:
	test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) wheel
	$(PYTHON) tools/compat.py $(if $(TORCH),--torch $(TORCH) --python $(PYTHON)) $(if $(SHARED),--shared $(SHARED))

# What a user does to an installation: twice, torch upgraded under it, blanks in the path, no compiler, uninstalled.
install-check:
	test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) wheel
	$(PYTHON) tools/install_check.py --python $(PYTHON) $(if $(SHARED),--shared $(SHARED))

# With the Python that holds torch and not with .venv: a machine with a GPU may have no internet. ONLY="kernels network"
# names steps, BUDGET the seconds there are.
OUT ?= build/gpu-check
gpu-check:
	$(PYTHON) tools/gpu_check.py --out $(OUT) $(if $(ONLY),--only $(ONLY)) $(if $(BUDGET),--budget $(BUDGET)) \
		$(if $(REHEARSE),--rehearse)

# The package without kernels first: it brings torch, which the build then needs.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than 3.10; choose another: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip "setuptools>=77" wheel
	SSD_EXT_BUILD=none $(BIN)/pip install -q -e ".[dev]"
	@touch $@

.venv/built: .venv/installed setup.py $(SOURCES)
	TORCH_CUDA_ARCH_LIST="$(ARCHS)" $(BIN)/python setup.py -q build_ext --inplace
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info ssd_ext/*.so
