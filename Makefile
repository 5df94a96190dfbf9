# One command for each thing that is done before a push; CI runs the same ones.
#
# Tests start real servers (tests/servers/install-*.sh), so the first run installs them and wants root; PostgreSQL
# itself then runs as an unprivileged user.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
MEMBERS := $(shell sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",')
PROGRAMS := --package pgark-agent --package pgark-archive-command --package pgark-restore
# cargo-nextest kills tests that hang and gives each a process of its own; cargo's own runner does where it is missing.
NEXTEST := $(shell command -v cargo-nextest)
# `make test TEST=name` runs the tests whose name contains it.
TEST ?=

.PHONY: help
help: ## Shows this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do printf '  %-10s %s\n' "$$target" "$$what"; done

.PHONY: fmt
fmt: ## Formats all code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check: ## Fails where code is not formatted
	$(CARGO) fmt --all --check

# Member by member: in one run of the workspace, the features that one member turns on would hide what another lacks.
.PHONY: lint
lint: ## Runs clippy on every member; warnings are errors
	for member in $(MEMBERS); do $(CARGO) clippy --quiet --manifest-path $$member/Cargo.toml --all-targets -- -D warnings; done

.PHONY: servers
servers: ## Installs the servers of the everyday tests
	tests/servers/install-tools.sh
	tests/servers/install-postgres.sh
	tests/servers/install-s3s.sh
	tests/servers/install-azurite.sh

# With the tests, so that both are built with the same features, and once.
.PHONY: programs
programs:
	$(CARGO) build --quiet --workspace --bins --tests

.PHONY: test
test: servers programs doc-test ## Installs what the tests need and runs all of them, but for those of test-full
	$(call run_tests,,)

.PHONY: test-full
test-full: servers programs doc-test ## Runs all tests, also those against Ceph and the long ones
	tests/servers/install-ceph.sh
	trap 'tests/servers/ceph.sh stop' EXIT; $(call run_tests,--run-ignored all,--include-ignored)

.PHONY: doc-test
doc-test:
	$(CARGO) test --quiet --workspace --doc

.PHONY: soak
soak: servers programs ## Runs random histories and faults for long; SEED=… replays one
	if [ -n "$(NEXTEST)" ]; then $(CARGO) nextest run --workspace --profile soak --run-ignored all soak; \
	else $(CARGO) test --workspace soak -- --include-ignored --test-threads=2; fi

# Each parser for FUZZ_SECONDS, with what it finds kept in target/fuzz. Without a sanitizer, any compiler will do; there
# is no unsafe code for one to look at.
FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: ## Runs libFuzzer on every parser, FUZZ_SECONDS each (needs cargo-fuzz and a C++ compiler)
	for target in $$(cd fuzz/corpus && ls); do \
		mkdir -p target/fuzz/$$target; \
		$(CARGO) fuzz run --sanitizer none --target-dir target/fuzz/build $$target target/fuzz/$$target fuzz/corpus/$$target \
			-- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=1024; \
	done

.PHONY: bench
bench: ## Compares backup and restore with other tools on this machine; SCALE=… makes it smaller
	tests/servers/install-postgres.sh 15
	$(CARGO) build --release --bins $(PROGRAMS)
	$(CARGO) bench --package pgark-tests --bench whole_loop

.PHONY: bench-wal
bench-wal: ## Compares archiving and replay of WAL with other tools on this machine
	tests/servers/install-postgres.sh 15
	tests/servers/install-s3s.sh
	$(CARGO) build --release --bins $(PROGRAMS)
	$(CARGO) bench --package pgark-tests --bench wal

.PHONY: bench-incremental
bench-incremental: ## Compares incremental backups with full ones and with pgBackRest's; SCALE=… makes it smaller
	tests/servers/install-postgres.sh 15
	tests/servers/install-postgres.sh 17
	tests/servers/install-postgres.sh 18
	$(CARGO) build --release --bins $(PROGRAMS)
	$(CARGO) bench --package pgark-tests --bench incremental

.PHONY: bench-verify
bench-verify: ## Compares verify with cat and zstd -t of the same bytes; SCALE=… makes it smaller
	tests/servers/install-postgres.sh 15
	$(CARGO) build --release --bins $(PROGRAMS)
	$(CARGO) bench --package pgark-tests --bench verify

.PHONY: demo
demo: ## Backs up a throw-away cluster, drops a table and brings it back
	demo/run.sh

.PHONY: doc
doc: ## Builds the documentation of the code; broken links are errors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items

.PHONY: deny
deny: ## Checks licences, sources and advisories of all dependencies (needs cargo-deny)
	$(CARGO) deny check

# run_tests(arguments of nextest, arguments of cargo's runner). The servers were installed and the programs built just
# before; the tests need not look again.
define run_tests
export PGARK_PROGRAMS_BUILT=1; \
	if [ -n "$(NEXTEST)" ]; then $(CARGO) nextest run --workspace $(1) $(TEST); \
	else $(CARGO) test --workspace --lib --bins --tests $(TEST) -- $(2) --test-threads=2; fi
endef
