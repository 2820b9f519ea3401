# The one command list. It needs Rust (cargo), Python 3.10 or later, and make; everything else it installs into $(VENV).
VENV ?= .venv
PYTHON ?= python3
CARGO ?= cargo

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN := $(BIN)/python -m
UV := VIRTUAL_ENV="$(abspath $(VENV))" UV_PYTHON_DOWNLOADS=never $(RUN) uv
# What goes to crates.io.
CRATES := --workspace --exclude bpe-llama-python
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock .cargo/config.toml

.PHONY: help demo test test-rust test-programs test-python test-arm platforms lint lint-rust lint-python deny audit format stubs parity bench \
	fuzz-all sanitize address loom kill-test cuda cuda-wheel docs site lessons clean
.DELETE_ON_ERROR:
# Cargo and rustc would look for the pipe of make's jobs, which only another make gets.
unexport MAKEFLAGS

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# ---- environments. An empty file marks each step as done, so that a second run starts at once. ----

$(VENV)/.tools:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check uv==0.13.9
	touch $@

# What the demo and a user need: the package, torch and matplotlib.
$(VENV)/.model: $(VENV)/.tools pyproject.toml $(RUST_SOURCES)
	$(UV) pip install --quiet --reinstall-package bpe-llama --editable '.[model]'
	touch $@

# The same and every tool and peer that the tests use.
$(VENV)/.dev: $(VENV)/.tools pyproject.toml $(RUST_SOURCES)
	$(UV) pip install --quiet --reinstall-package bpe-llama --editable '.[dev]'
	touch $(VENV)/.model $@

# The same and the peers that are only timed.
$(VENV)/.bench: $(VENV)/.tools pyproject.toml $(RUST_SOURCES)
	$(UV) pip install --quiet --reinstall-package bpe-llama --editable '.[bench]'
	touch $(VENV)/.model $(VENV)/.dev $@

# ---- what one runs ----

demo: $(VENV)/.model ## train a tokenizer and a small LLaMA on this machine's Python, then generate
	$(BIN)/bpe-llama demo

test: test-rust test-python ## cargo test and pytest, doctests included

# Prints the tiers of instructions that this CPU has, the best last.
TIERS := $(CARGO) run --quiet --locked -p bpe-llama-simd --example tiers

# The unit tests run once more on each tier of instructions that this CPU has below its best.
test-rust:
	$(CARGO) test $(CRATES) --locked
	set -e; tiers=$$($(TIERS)); for tier in $$(echo "$$tiers" | sed '$$d'); do \
		echo "BPE_LLAMA_SIMD=$$tier"; \
		BPE_LLAMA_SIMD=$$tier $(CARGO) test --quiet $(CRATES) --lib --locked; \
	done

# What the former runs, compiled.
test-programs:
	$(CARGO) test $(CRATES) --locked --no-run

test-python: $(VENV)/.dev
	$(RUN) pytest -n 3 --dist worksteal

# Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; rustup target add aarch64-unknown-linux-gnu
test-arm: export CC_aarch64_unknown_linux_gnu = aarch64-linux-gnu-gcc
test-arm: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = aarch64-linux-gnu-gcc
test-arm: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = qemu-aarch64 -L /usr/aarch64-linux-gnu
test-arm: ## the crates' unit tests on an emulated 64-bit ARM, NEON included
	$(CARGO) test --target aarch64-unknown-linux-gnu --workspace --exclude bpe-llama-python --lib --locked

# rustup target add x86_64-pc-windows-gnu aarch64-apple-darwin. Checking needs no objects, so C is left uncompiled.
platforms: ## type-check the Rust code for Windows and macOS
	CC_x86_64_pc_windows_gnu=true AR_x86_64_pc_windows_gnu=true \
		$(CARGO) check --target x86_64-pc-windows-gnu --workspace --locked
	CC_aarch64_apple_darwin=true AR_aarch64_apple_darwin=true \
		$(CARGO) check --target aarch64-apple-darwin --workspace --locked

lint: lint-rust lint-python site ## formatting, clippy, crates, ruff, types, stubs, import rules, the site

lint-rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p bpe-llama --no-default-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(CRATES) --no-deps --locked
	$(CARGO) package $(CRATES) --no-verify --allow-dirty

lint-python: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy -p bpe_llama -p bench
	MYPYPATH=python $(RUN) mypy.stubtest --mypy-config-file pyproject.toml --allowlist .ci/stubtest-allow.txt bpe_llama._core
	$(BIN)/lint-imports

deny: ## licences, sources and duplicates of Rust dependencies (installs cargo-deny: minutes)
	$(CARGO) deny --version || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

# Extras of users, in the newest versions that they allow. RustSec's advisories come from github.com, Python's from pypi.org.
EXTRAS := model parquet hub plot structured serve transformers tensorboard trackio wandb
audit: $(VENV)/.tools ## known vulnerabilities in what the crates and the package depend on
	$(CARGO) deny --version || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check advisories
	$(UV) pip compile --quiet $(addprefix --extra ,$(EXTRAS)) --output-file $(VENV)/requirements.txt pyproject.toml
	$(UV) tool run pip-audit@2.10.1 --disable-pip --no-deps --requirement $(VENV)/requirements.txt

format: $(VENV)/.dev ## rewrite the sources as lint wants them
	$(CARGO) fmt --all
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

stubs: $(VENV)/.dev ## copy the docstrings of the compiled module to _core.pyi
	$(BIN)/python rust/python/stub_docs.py
	$(RUN) ruff format --quiet python/bpe_llama/_core.pyi

parity: $(VENV)/.dev ## ids, merges and logits against the peers; fails where a peer or its data is missing
	BPE_LLAMA_REQUIRE_DATA=1 BPE_LLAMA_FULL=1 $(RUN) pytest tests/parity tests/model

# ---- hunts for what tests do not find. They need a nightly Rust: rustup toolchain install nightly -c miri,rust-src ----

NIGHTLY ?= nightly-2026-05-20
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(shell sed -n 's/^name = "\([a-z_]*\)"$$/\1/p' rust/fuzz/Cargo.toml)
PYTHON_FUZZ_TARGETS := $(shell sed -n 's/^    "\(python_[a-z_]*\)": .*/\1/p' tests/fuzz/test_fuzz.py tests/fuzz/model_targets.py)

fuzz-all: $(addprefix fuzz-,$(FUZZ_TARGETS) $(PYTHON_FUZZ_TARGETS)) ## guided random input, FUZZ_SECONDS (60) a target (Linux)

fuzz-%: # one target, by cargo-fuzz with AddressSanitizer; an input that breaks it is kept as a regression to commit
	$(CARGO) fuzz --version || $(CARGO) install --locked cargo-fuzz
	$(PYTHON) tests/fuzz/corpus.py unpack $*
	mkdir -p tests/fuzz/regressions/$*
	cd rust/fuzz && $(CARGO) +$(NIGHTLY) fuzz run --fuzz-dir . $* corpus/$* ../../tests/fuzz/seeds/$* ../../tests/fuzz/regressions/$* -- \
		-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=../../tests/fuzz/regressions/$*/
	-rmdir tests/fuzz/regressions/$* 2>/dev/null

fuzz-python_%: $(VENV)/.dev # one target of Python's, by atheris
	$(UV) pip install --quiet atheris==3.0.0
	$(PYTHON) tests/fuzz/corpus.py unpack python_$*
	$(BIN)/python -m tests.fuzz.guided python_$* $(FUZZ_SECONDS)
	-rmdir tests/fuzz/regressions/python_$* 2>/dev/null

# Miri takes minutes for loops over all float32, so it runs the pools; ThreadSanitizer needs an instrumented std.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
SANITIZED := --target $(HOST) --locked --lib --workspace --exclude bpe-llama-python
MIRI_TESTS := scratch thread_pool
sanitize: loom address ## the crates' unit tests under Miri, AddressSanitizer and ThreadSanitizer, and loom's models (Linux, nightly)
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks" BPE_LLAMA_SIMD=portable $(CARGO) +$(NIGHTLY) miri test --locked --lib \
		-p bpe-llama-simd -p bpe-llama-kernels -- $(MIRI_TESTS)
	TSAN_OPTIONS=allocator_may_return_null=1 RUSTFLAGS=-Zsanitizer=thread $(CARGO) +$(NIGHTLY) test -Zbuild-std --target-dir target/thread $(SANITIZED)

address: ## the crates' unit tests under AddressSanitizer, leaks included, once for each tier of instructions that this CPU has
	set -e; tiers=$$($(TIERS)); for tier in $$tiers; do \
		echo "BPE_LLAMA_SIMD=$$tier"; \
		BPE_LLAMA_SIMD=$$tier ASAN_OPTIONS=allocator_may_return_null=1 RUSTFLAGS=-Zsanitizer=address \
			$(CARGO) +$(NIGHTLY) test --target-dir target/address $(SANITIZED); \
	done

loom: ## the thread pool and the scratch pool in every order of their threads' steps
	RUSTFLAGS="--cfg loom" $(CARGO) test --target-dir target/loom --locked --lib -p bpe-llama-kernels -p bpe-llama-simd models

kill-test: $(VENV)/.dev ## kill every writing command at KILLS (100) moments; full, read-only and removed folders (root on Linux)
	$(BIN)/python -m tests.kills $(or $(KILLS),100)

bench: $(VENV)/.bench ## the tables of docs/benchmarks.md; the peers run side by side
	set -e; for script in encode doors train sample generate serve prefill; do $(RUN) bench.$$script; done

# The package's wheel, and the small ones that a machine with torch for CUDA may lack; all small enough to be carried.
CUDA_WHEELS ?= dist/cuda
cuda-wheel: $(VENV)/.dev ## build the wheels that `make cuda` installs, into dist/cuda
	rm -rf $(CUDA_WHEELS)
	$(RUN) maturin build --release --locked --strip --out $(CUDA_WHEELS)
	$(RUN) pip download --quiet --no-deps --only-binary=:all: --dest $(CUDA_WHEELS) gguf==0.19.0 torchao==0.18.0 rich==15.0.0

# Needs no environment of its own: $(PYTHON) has torch for CUDA. STEPS names some; OUT is the folder of the logs.
cuda: ## check everything on a CUDA GPU within nine minutes (CUDA_WHEELS, OUT, STEPS)
	$(PYTHON) bench/cuda/check.py --wheels $(CUDA_WHEELS) $(STEPS)

lessons: $(VENV)/.dev ## execute docs/learn: its pages' outputs, pictures and notebooks anew (NAMES="positions lora")
	$(RUN) tests.lessons $(NAMES)

docs: site ## build the site into site/, the Rust documentation in site/rust; warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(CRATES) --no-deps --locked
	cp -r $(or $(CARGO_TARGET_DIR),target)/doc site/rust

site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet

clean: ## remove what was built here
	rm -rf target dist demo-out site $(VENV)
