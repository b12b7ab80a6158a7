# `make` lists the targets. Each builds the environment it needs, once: a stamp inside it is
# renewed when setup.cfg or pyproject.toml changes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# make PYTHON=...      the interpreter that new environments are made with
# make PIP_FLAGS=...   more options for pip install, such as an index of CPU-only wheels
# make test ARGS=...   more arguments for what the target runs
PYTHON ?=
PYTHONS = python3.11 python3.12 python3.13 python3 python
PIP_FLAGS ?=
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Two processes: each holds compiled code of up to 4 GB in the end.
PARALLEL = -n 2 --dist worksteal

# Libraries of Keras 2. The last TensorFlow with it that they ran on is for Python 3.11 at most.
PARITY = tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 voxelmorph==0.2 neurite==0.2 'numpy<2'

# The backends besides TensorFlow, at the version they are tested with.
BACKEND_jax = jax==0.10.2
BACKEND_torch = torch==2.13.0

VENVS = .venv .venv-jax .venv-torch .venv-oldest .venv-parity
PY = .venv/bin/python
TEST_READY = .venv/.kreg-test
BENCH_READY = .venv/.kreg-bench
DOCS_READY = .venv/.kreg-docs
PIP_INSTALL = -m pip install --quiet --no-input $(PIP_FLAGS)

.PHONY: help install demo test test-backends test-jax test-torch test-oldest parity lint types docs bench package clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

install: $(TEST_READY) ## set up .venv with kreg and all that its tests and examples need

demo: $(TEST_READY) ## register MNIST digits: train, evaluate, write pictures (ARGS="--mnist FILE")
	$(PY) examples/mnist.py $(ARGS)

test: $(TEST_READY) ## run the tests on TensorFlow (ARGS="-k warp")
	KERAS_BACKEND=tensorflow $(PY) -m pytest $(PARALLEL) $(ARGS)

test-backends: test-jax test-torch ## run the tests on JAX and on PyTorch, without TensorFlow installed

test-jax test-torch: test-%: .venv-%/.kreg-test
	KERAS_BACKEND=$* .venv-$*/bin/python -m pytest $(PARALLEL) $(ARGS)

test-oldest: .venv-oldest/.kreg-test ## run the tests with every requirement at its lower bound
	KERAS_BACKEND=tensorflow .venv-oldest/bin/python -m pytest $(PARALLEL) $(ARGS)

parity: .venv-parity/.kreg-parity ## write what tensorflow-addons and VoxelMorph 0.2 give, which the tests compare with
	TF_CPP_MIN_LOG_LEVEL=3 .venv-parity/bin/python tests/parity/tensorflow_addons_values.py
	TF_CPP_MIN_LOG_LEVEL=3 .venv-parity/bin/python tests/parity/voxelmorph_values.py

lint: $(TEST_READY) ## check style and format with ruff
	$(PY) -m ruff check $(ARGS)
	$(PY) -m ruff format --check

types: $(TEST_READY) ## check types with mypy
	$(PY) -m mypy $(ARGS)

docs: $(DOCS_READY) ## write the reference of all public names to build/docs
	$(PY) docs/build.py

bench: $(BENCH_READY) ## run the benchmarks against other libraries
	$(PY) -m benchmarks $(ARGS)

# build makes the wheel from the sdist, so a good wheel proves both. An egg-info or build folder
# left from before would bring back files that have been deleted since.
package: $(TEST_READY) ## build the sdist and the wheel into dist/ and check what is inside
	rm -rf build dist kreg.egg-info
	$(PY) -m build --no-isolation
	KREG_WHEEL="$$(echo dist/*.whl)" $(PY) -m pytest -k wheel tests/test_packaging.py

clean: ## remove builds and caches; environments (.venv*) and outputs/ stay
	rm -rf build dist kreg.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# --- environments ---

# Sets $python to an interpreter that is new enough, or says what is missing.
find_python = \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "kreg needs Python 3.11 or newer. Tried: $(or $(PYTHON),$(PYTHONS))" >&2; \
		echo "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi

$(VENVS:%=%/bin/python): %/bin/python:
	@$(find_python); \
	echo "Creating $* with $$("$$python" --version)"; \
	"$$python" -m venv --clear $* >/dev/null 2>&1 \
	|| "$$python" -m virtualenv --quiet --clear $* 2>/dev/null \
	|| { rm -rf $*; \
		echo "$$python can make no environment: install its venv module (Debian, Ubuntu:" >&2; \
		echo "apt-get install python3-venv) or the virtualenv package." >&2; \
		exit 1; }

$(TEST_READY): $(PY) setup.cfg pyproject.toml
	@echo "Installing kreg and its test tools into .venv (the first time 1 to 4 minutes, 3 GB)"
	@$(PY) $(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(BENCH_READY): $(TEST_READY)
	@echo "Installing what the benchmarks compare with into .venv (the first time this takes minutes)"
	@$(PY) $(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(DOCS_READY): $(TEST_READY)
	@echo "Installing what writes the reference into .venv"
	@$(PY) $(PIP_INSTALL) --editable '.[docs]'
	@touch $@

# What setup.cfg requires of a user and of the tests, line by line.
requirements = from configparser import ConfigParser; \
	config = ConfigParser(); config.read("setup.cfg"); \
	needed = config["options"]["install_requires"].split(); \
	tests = config["options.extras_require"]["test"].split()

.venv-jax/.kreg-test .venv-torch/.kreg-test: .venv-%/.kreg-test: .venv-%/bin/python setup.cfg pyproject.toml
	@echo "Installing kreg with $(BACKEND_$*) and without TensorFlow into .venv-$* (the first time this takes minutes)"
	@.venv-$*/bin/python -c '$(requirements); \
		print(*(line for line in needed + tests if not line.startswith("tensorflow")), sep="\n")' > .venv-$*/requirements.txt
	@.venv-$*/bin/python $(PIP_INSTALL) --requirement .venv-$*/requirements.txt '$(BACKEND_$*)'
	@.venv-$*/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv-oldest/.kreg-test: .venv-oldest/bin/python setup.cfg pyproject.toml
	@echo "Installing kreg and the oldest versions that it allows into .venv-oldest (the first time this takes minutes)"
	@.venv-oldest/bin/python -c '$(requirements); \
		print(*(line.replace(">=", "==") for line in needed), *tests, sep="\n")' > .venv-oldest/requirements.txt
	@.venv-oldest/bin/python $(PIP_INSTALL) --requirement .venv-oldest/requirements.txt
	@.venv-oldest/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv-parity/.kreg-parity: .venv-parity/bin/python Makefile
	@echo "Installing tensorflow-addons and VoxelMorph 0.2 into .venv-parity (the first time this takes minutes)"
	@.venv-parity/bin/python $(PIP_INSTALL) $(PARITY) \
	|| { echo "This needs Python 3.11: rm -r .venv-parity; make parity PYTHON=python3.11" >&2; exit 1; }
	@touch $@
