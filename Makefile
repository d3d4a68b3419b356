# The contributor's day. `make` alone lists the targets.

# A machine whose `stable` is the Rust of rust-toolchain.toml need not have it twice.
ifeq ($(findstring rustc 1.95.,$(shell rustup run stable rustc --version 2>/dev/null)),rustc 1.95.)
export RUSTUP_TOOLCHAIN ?= stable
endif

BUILT := $(or $(CARGO_TARGET_DIR),target)
SCRIPTS := .ci/run tests/support/install benches/peers/certs.sh fuzz/tool

# Given to the program that a target runs: make demo ARGS=--stay
ARGS ?=
# How long `make fuzz` spends on each of its targets.
FUZZ_SECONDS ?= 60

.PHONY: help demo test prove lint bench keepalive dns balance unequal limits fuzz fmt clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## a small mesh with real traffic, which changes while it runs (ARGS=--stay keeps it up)
	@tests/support/install demo
	cargo build --profile test-release --locked --bin pannier
	$(BUILT)/test-release/pannier demo $(ARGS)

test: ## every test; installs what it needs as root on Debian, else says what is missing
	@tests/support/install test
	cargo test --profile test-release --locked $(ARGS)

prove: ## everything a release needs to have passed: lint, test, fuzz, keepalive, dns, balance, unequal, limits, bench
	$(MAKE) lint
	$(MAKE) test
	PANNIER_TEST_BODY_MIB=8192 $(MAKE) test ARGS='--test explicit large_bodies'
	PANNIER_TEST_REQUESTS=1000000 $(MAKE) test ARGS='--test rolling -- --nocapture'
	$(MAKE) fuzz
	$(MAKE) keepalive
	$(MAKE) dns
	$(MAKE) balance
	$(MAKE) unequal
	$(MAKE) limits
	$(MAKE) bench

lint: ## format, clippy, scripts, and dependencies where cargo-deny is installed
	@tests/support/install lint
	cargo fmt --all -- --check
	cargo clippy --all-targets --locked -- -D warnings
	shellcheck $(SCRIPTS)
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked check bans licenses sources; \
	else \
		echo "Not checked: deny.toml, because cargo-deny is not installed (cargo install --locked cargo-deny)."; \
	fi

bench: ## the same work through Pannier, nginx, HAProxy and Envoy; the result goes into the README
	@tests/support/install bench
	cargo build --release --locked --bin pannier --example floor --example load
	python3 benches/peers/bench.py --pannier $(BUILT)/release/pannier --examples $(BUILT)/release/examples \
		$(or $(ARGS),--publish)

keepalive: ## whether connections to upstreams ever go stale, beside the peers; the result goes into the README
	@tests/support/install bench
	cargo build --release --locked --bin pannier --example edge
	python3 benches/keepalive/bench.py --pannier $(BUILT)/release/pannier --examples $(BUILT)/release/examples \
		$(or $(ARGS),--publish)

dns: ## how soon names are followed, and what fails while DNS does, beside the peers; the result goes into the README
	@tests/support/install bench
	cargo build --release --locked --bin pannier
	python3 benches/dns/bench.py --pannier $(BUILT)/release/pannier $(or $(ARGS),--publish)

balance: ## how well endpoints are chosen, simulated beside other ways (ARGS='--minutes 10' for a part); the result goes into the README
	cargo build --release --locked --example balance
	$(BUILT)/release/examples/balance $(ARGS)
	python3 benches/balance/report.py --publish

unequal: ## endpoints of unequal speed, beside the peers (ARGS='--resume --minutes 8 --publish' for a part); into the README
	@tests/support/install bench
	cargo build --release --locked --bin pannier --example queue
	python3 benches/balance/real/bench.py --pannier $(BUILT)/release/pannier --examples $(BUILT)/release/examples \
		$(or $(ARGS),--publish)

limits: ## mesh-wide limits: cost, calls of Redis, the bound (ARGS='--resume --minutes 6 --publish' for a part); into the README
	@tests/support/install limits
	cargo build --release --locked --bin pannier --example load --example ratelimit --example admissions --example stage
	python3 benches/limit/bench.py --pannier $(BUILT)/release/pannier --examples $(BUILT)/release/examples \
		$(or $(ARGS),--publish)

fuzz: ## hostile input for every parser, FUZZ_SECONDS (60) for each target, or for those in ARGS
	@tests/support/install fuzz
	fuzz/tool run $(FUZZ_SECONDS) $(ARGS)

fmt: ## format the code
	cargo fmt --all

clean: ## remove everything that was built
	cargo clean
	rm -rf target benches/peers/__pycache__
