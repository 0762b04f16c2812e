# Every target sets up what it needs: a virtual environment in .venv, torch, torchvision and the build. Later runs reuse
# them. PYTHON is the interpreter (>= 3.10). SSD_EXT_BUILD and TORCH_CUDA_ARCH_LIST configure the build (setup.py).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/*/*.* csrc/*/*/*.*)
# With nvcc, CUDA is built for the GPUs of this machine, or for one architecture if there is no GPU. A build for all
# architectures takes minutes (pip install does that; the tests compile for four).
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';')
ARCHS := $(or $(TORCH_CUDA_ARCH_LIST),$(GPUS),9.0)

.DEFAULT_GOAL := help
.PHONY: help demo check test fuzz lint format docs bench bench-report wheel compat install-check gpu-check clean

help:
	@echo "make demo          train and test a small detector, and draw its detections; downloads no data and no weights"
	@echo "make check OP=nms  test one op: its own tests, registry, golden bits, random inputs, its CUDA source on the CPU"
	@echo "make check         lint, check types, and run all tests except those in files marked slow"
	@echo "make test          lint, check types, and run all tests"
	@echo "make lint          lint and check types"
	@echo "make fuzz          test each op with 10,000 new random inputs, and readers with damaged files (EXAMPLES=...)"
	@echo "make format        sort imports and format"
	@echo "make docs          build the documentation site in build/docs, and run its notebooks (EXECUTE=off: do not run them)"
	@echo "make bench         run all benchmarks; writes benchmarks/results/<machine>.json"
	@echo "make bench-report  write docs/performance.md, its charts and the README's table from these results"
	@echo "make wheel         build and check dist/: an sdist, and a wheel for all supported Pythons and torches (manylinux_2_28)"
	@echo "make compat        test the wheel with torch 2.11.0 and the newest, Python 3.10 to 3.13 (TORCH=2.11.0 PYTHON=...)"
	@echo "make install-check test the wheel: install twice, upgrade torch, uninstall; then the sdist without a compiler"
	@echo "make gpu-check     test and measure on a GPU for ten minutes; OUT=DIR for the report (build/gpu-check),"
	@echo "                   ONLY='steps', BUDGET=SECONDS, REHEARSE=1 for small versions without a GPU"
	@echo "make clean         remove the environment and all builds"
	@echo "PYTHON=python3.12  the interpreter of the environment, compat, install-check and gpu-check (default: python3)"

demo: .venv/built
	$(BIN)/ssd demo --out demo

# Test files are distributed over processes, the longest first (tests/conftest.py). The tests of one file run in one
# process, since they share what they build.
PYTEST = SSD_EXT_REQUIRE=cpu OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses 4 \
	--dist loadfile --no-loadscope-reorder
test: lint
	$(PYTEST)

ifdef OP
# csrc/<file>/<file>.cpp registers the op, and tests/ops/test_<file>.py has its tests; -k selects that file by its name.
OP_FILE := $(basename $(notdir $(shell grep -l 'm.impl."$(OP)"' csrc/*/*.cpp)))
ifeq ($(OP_FILE),)
$(error OP=$(OP) is not an op; choose from: $(shell grep -oh 'm.impl."[a-z_]*' csrc/*/*.cpp | cut -d'"' -f2 | sort -u))
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

# Every warning is an error. The site is built anew, because Sphinx does not see that a page depends on the package.
EXECUTE ?= force
docs: .venv/built
	rm -rf build/docs build/doctrees
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(CURDIR) $(BIN)/python -m sphinx -W --keep-going -D nb_execution_mode=$(EXECUTE) \
		-d build/doctrees docs build/docs

# A contender that disagrees with ssd_ext fails the run; the result file has the reason instead of its time. The loss is
# measured in three processes, because its times depend on how the system maps new memory.
bench: .venv/built
	mkdir -p build
	$(BIN)/python -m pytest -q benchmarks --benchmark-json=build/bench.json --benchmark-columns=median,iqr,rounds; \
	code=$$?; \
	for run in 2 3; do $(BIN)/python -m pytest -q benchmarks/test_bench_loss.py -k "ssd_ext or torchvision" \
		--benchmark-json=build/bench-$$run.json --benchmark-columns=median,iqr,rounds; done; \
	$(BIN)/python benchmarks/compact.py build/bench.json build/bench-2.json build/bench-3.json && exit $$code

bench-report: .venv/installed
	$(BIN)/python benchmarks/report.py

# The wheel is built from the sdist, which tests that the sdist is complete. It is linked for an old glibc, and uses the
# libraries of the installed torch.
wheel: .venv/built
	SSD_EXT_BUILD=none $(BIN)/pip install -q --no-build-isolation -e ".[wheel]"
	rm -rf dist build/wheel
	$(BIN)/python -m build -q --sdist --no-isolation
	SSD_EXT_GLIBC=2.28 SSD_EXT_BUILD=cuda $(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel dist/*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_$$(uname -m) --only-plat --exclude 'libtorch*' --exclude 'libc10*' \
		-w dist build/wheel/*.whl
	$(BIN)/abi3audit --strict --summary dist/*.whl
	ls -l dist

# All Pythons with the oldest and the newest torch, or only TORCH and PYTHON. SHARED is --shared of tools/compat.py.
compat:
	test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) wheel
	$(PYTHON) tools/compat.py $(if $(TORCH),--torch $(TORCH) --python $(PYTHON)) $(if $(SHARED),--shared $(SHARED))

# Installs twice into a path with blanks, upgrades torch, uninstalls, installs the sdist without a compiler.
install-check:
	test -n "$$(ls dist/*.whl 2>/dev/null)" || $(MAKE) wheel
	$(PYTHON) tools/install_check.py --python $(PYTHON) $(if $(SHARED),--shared $(SHARED))

# Uses a Python that has torch, not .venv: a machine with a GPU may have no internet. ONLY="kernels network" selects
# steps, and BUDGET is the time in seconds.
OUT ?= build/gpu-check
gpu-check:
	$(PYTHON) tools/gpu_check.py --out $(OUT) $(if $(ONLY),--only $(ONLY)) $(if $(BUDGET),--budget $(BUDGET)) \
		$(if $(REHEARSE),--rehearse)

# Installs the package without kernels first: this also installs torch, which the build needs.
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
