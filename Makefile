# Everything a newcomer needs: `make run`, `make test`. Python >= 3.11, pip and make are enough.
# `make test PYTHON=python3.12` takes another Python, in a new .venv; without PYTHON the one that .venv has stays.
PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The versions tested together: Python 3.11 has no jax after 0.10.2, later ones get the newest.
CONSTRAINTS ?= $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-newest.txt)

.PHONY: run test quick check docs pages mine faults clean

run: .venv/train.installed
	$(BIN)/python -m train run digits $(ARGS)

test: check
	$(BIN)/python -m pytest

# For the inner loop: the op, the step, and the tests named as the files that changed since the last commit.
CHANGED = $(shell git diff --name-only HEAD | sed -n 's|.*/\([a-z0-9_]*\)\.py$$|\1|p' | sed 's|^test_||' | sort -u)
quick: .venv/test.installed
	$(BIN)/python -m pytest -q tests/regularizers/test_vcreg.py tests/trainer/test_step.py $(wildcard $(CHANGED:%=tests/*/test_%.py))

check: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/docs.installed
	$(BIN)/zensical build --clean --strict # clean: a page in the cache would keep its warnings to itself

# Every kind of page from small made-up results, and pictures of each to look at; needs Debian's package chromium.
PAGES ?= runs/pages
pages: .venv/test.installed
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.look_at_pages $(PAGES)

# The mutual information of Gaussian pairs, 0 to 8 nats with three critics each: about three minutes on 2 cores.
mine: .venv/train.installed
	$(BIN)/python -m tests.gaussian_pairs

# Crashes, kills and hangs of whole runs, damaged files, full disks: about half an hour. The last script mounts a tmpfs.
FAULTS ?= runs/faults
faults: .venv/test.installed
	$(BIN)/python -m pytest tests/faults -n 0 -s
	for script in fuzz flip_bits kill_during_save crash_and_resume damage_files damage_on_hosts diverging full_disk; do \
		$(BIN)/python -m tests.faults.$$script $(FAULTS)/$$script || exit 1; \
	done

# One stamp an extra: an install is repeated when the requirements change, and only then.
.venv/%.installed: pyproject.toml $(CONSTRAINTS) $(BIN)/python$(VERSION)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$*]'
	if [ $* = test ]; then $(BIN)/pyright --version; fi # fetches the checker once, so that later runs are offline
	touch $@

$(BIN)/python$(VERSION):
	$(PYTHON) -m venv --clear .venv

clean:
	rm -rf .venv runs build .cache
