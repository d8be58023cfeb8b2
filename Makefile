# make build test asan lint docs bench demo fuzz fuzz-files soak history bump
#
# Everything runs in .venv, which $(PYTHON) creates on first use.  llama.cpp is fetched and built once,
# in build/.  After that, changes to headers, templates or native/ compile only what depends on them,
# and changes to Python code compile nothing.

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: build reference test asan lint fuzz fuzz-files soak history bump docs bench demo clean

SOURCES := pyproject.toml CMakeLists.txt build_ffi.py vendor/llama.toml llamacffi/_native/layout.py \
  $(wildcard cmake/* ffigen/*.py headers/* headers/*/* native/* native/*/*)

build: .venv/.installed

.venv/.installed: .venv/.tools $(SOURCES)
	$(PY) -m pip install --quiet --no-build-isolation --editable .
	@touch $@

# The build tools stay installed, unlike in pip's isolated builds, because paths in build/ refer to them.
.venv/.tools: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --group dev
	@touch $@

# Upstream's own programs from the same tree; the tests compare results with theirs.
reference: build
	.venv/bin/cmake --build build/cp310-* --target llamacffi-reference

test: build reference
	$(PY) -m pytest

# The tests with AddressSanitizer in llama.cpp and in the binding, in a separate environment, with GCC.
# The C++ library must be loaded before Python, or the sanitizer cannot intercept exceptions.
ASAN_PY := .venv-asan/bin/python
ASAN_TESTS ?= tests/raw tests/facade
ASAN_FLAGS := -fsanitize=address -fno-omit-frame-pointer -g1
ASAN_LIBRARY = $(shell gcc -print-file-name=$(1))
asan: .venv-asan/.installed
	LD_PRELOAD=$(call ASAN_LIBRARY,libasan.so):$(call ASAN_LIBRARY,libstdc++.so) \
	  ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 $(ASAN_PY) -m pytest $(ASAN_TESTS)

.venv-asan/.installed: .venv-asan/.tools $(SOURCES)
	CC=gcc CXX=g++ $(ASAN_PY) -m pip install --quiet --no-build-isolation --editable . \
	  -C build-dir=build/asan -C "cmake.define.CMAKE_C_FLAGS=$(ASAN_FLAGS)" \
	  -C "cmake.define.CMAKE_CXX_FLAGS=$(ASAN_FLAGS)"
	@touch $@

.venv-asan/.tools: pyproject.toml
	test -x $(ASAN_PY) || $(PYTHON) -m venv .venv-asan
	$(ASAN_PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(ASAN_PY) -m pip install --quiet --group dev
	@touch $@

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) build_ffi.py check

demo: build
	.venv/bin/llamacffi run --seed 7 -n 120 "The llama"

bench: build
	$(PY) -m bench

# Calls every function of the raw layer with bad values; writes docs/raw_unsafe.toml and its page.
fuzz: build
	$(PY) -m tests.fuzz.raw --jobs 2

# 20,000 damaged and hostile files of every kind, for ten minutes; another SEED gives other files.
SEED ?= 0
fuzz-files: build
	$(PY) -m tests.fuzz.files --jobs 2 --minutes 10 --count 20000 --seed $(SEED)

# Random signals, threads, and operations on every kind of object: make soak SECONDS=60 SEED=2
SECONDS ?= 600
soak: build
	$(PY) -m tests.soak --seconds $(SECONDS) --seed $(SEED)

# Runs the generator on past versions of llama.cpp; three of them are built completely and tested.
VERSIONS ?= all
BUILD ?= 0.3.22 0.3.26 newest
history: .venv/.tools
	$(PY) build_ffi.py history $(VERSIONS) $(addprefix --build ,$(BUILD))

# Moves to another llama.cpp: make bump VERSION=0.3.37
VERSION ?= newest
bump: .venv/.tools
	$(PY) build_ffi.py bump $(VERSION)

docs: build
	$(PY) -m pip install --quiet --group docs
	$(PY) -m mkdocs build --strict

clean:
	rm -rf .venv .venv-asan build dist site llamacffi/_generated llamacffi/_llama.pyi
