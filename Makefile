# Two commands do all the set-up on a fresh Debian 12 that has git, make and python3:
#
#   make serve    a running volume server and iSCSI target   (make serve ARGS='--portal 127.0.0.1:3999 --volume a=1G')
#   make test     the whole suite, real initiators and a Linux guest included
#
# Each makes what it needs, says what it installs before it does, and is quick the second time.

SHELL   := /bin/bash
# Empty: the distribution's own python3 where it is new enough (Debian builds it with profile-guided optimisation,
# which the target runs about a tenth faster on than on a plain build), else the one in PATH.
PYTHON  ?=
BIN     := .venv/bin
ARGS    ?=
WORKERS ?= 2

# The environment is ready when a stamp of *this* pyproject.toml lies in it: the stamp is written last,
# because a `python3 -m venv` that failed half way leaves a python behind that looks like success.
.PHONY: env serve test lint bench bench-iscsi bench-snapshots bench-interfaces bench-long conformance soak traces packages-test packages-bench clean
.DEFAULT_GOAL := test

env:
	@PYTHON='$(PYTHON)' tools/setup env

packages-test packages-bench: packages-%:
	@tools/setup packages $*

serve: env
	@exec $(BIN)/iscsi-ovs serve $(ARGS)

# The tests that may run side by side, then those that need the machine to themselves. Both calls run whatever the first
# says, and either can fail the target. pytest's code 5 (nothing was selected) is no failure of a selection that may be empty.
test: env packages-test
	@status=0; \
	$(BIN)/pytest -n $(WORKERS) -m 'not serial and not soak' $(ARGS) || { code=$$?; [ $$code -eq 5 ] || status=$$code; }; \
	$(BIN)/pytest -m 'serial and not soak' $(ARGS) || { code=$$?; [ $$code -eq 5 ] || status=$$code; }; \
	exit $$status

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# This target beside Debian's tgtd, and volumes with snapshots beside QEMU's qcow2 (ARGS='--quick' for a first look).
bench: bench-iscsi bench-snapshots

bench-iscsi: env packages-bench
	$(BIN)/python -m benchmarks.bench_iscsi $(ARGS)

bench-snapshots: env packages-bench
	$(BIN)/python -m benchmarks.bench_snapshots $(ARGS)

# The same volume through FUSE, vhost-user, iSCSI and the client library, beside QEMU's interfaces in C. Guests need root.
bench-interfaces: env packages-bench
	$(BIN)/python -m benchmarks.bench_interfaces $(ARGS)

# What one session waits while another unmaps, formats or sanitizes 1 TiB.
bench-long: env
	$(BIN)/python -m benchmarks.bench_long_work $(ARGS)

# libiscsi's whole suite against LUNs of every personality and against tgtd, the matrix of requirements, and
# docs/CONFORMANCE.md out of it all. Fails where anything is not as promised (ARGS=--pin takes it as it is now).
conformance: env packages-test packages-bench
	$(BIN)/python -m conformance $(ARGS)

soak: env packages-test
	$(BIN)/pytest -m soak --timeout 3600 -o faulthandler_timeout=0 $(ARGS)

# Records tests/traces/*.pcapng anew from real initiators.
traces: env packages-test
	$(BIN)/python -m tests.traces.record $(ARGS)

clean:
	rm -rf .venv .linux .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
