# make quickstart   train the built-in phantom tasks and look at the report
# make test         the test suite
# make test-long    the tests that take minutes each, which make test leaves out
# make lint         style, formatting and types
# make bench        timings, one JSON line each; NAMES="model step" says which
# make docs         the documentation as pages: site/index.html
# make setup        only make .venv from requirements.lock; the others do so where it is needed
# make clean        remove .venv, what quickstart made, and the caches of the tools
#
# The first Python of 3.11 to 3.13 among these is taken; make PYTHON=python3.12 says which.
PYTHON ?= python3 python3.13 python3.12 python3.11
NAMES = model step

RUN = .venv/bin/python
# glibc then keeps the memory that a step gives back, for the next one: a fifth of a step on a CPU.
KEEP = GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736
SHOW = [ -t 1 ] && { [ "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; }

.PHONY: quickstart test test-long lint bench docs setup clean

quickstart: setup
	@$(RUN) tools/make_phantoms.py runs/phantoms --rows 100 --seed 0
	@$(KEEP) $(RUN) -m usfm.main --config=configs/quickstart.py --workdir=runs/quickstart
	@if $(SHOW); then $(RUN) -m webbrowser "file://$(CURDIR)/runs/quickstart/report.html" \
		</dev/null >/dev/null 2>&1 & fi

test: setup
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n 2 --dist loadgroup -q

test-long: setup
	JAX_PLATFORMS=cpu $(RUN) -m pytest -q -m long

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/pyrefly check

bench: setup
	@$(KEEP) $(RUN) tools/benchmark.py $(NAMES)

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet
	@echo "site/index.html; with search: $(RUN) -m http.server --directory site"

setup: .venv/complete

# Newer than the lock once all of it is installed.
.venv/complete: requirements.lock
	@for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
			2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "usfm needs Python 3.11, 3.12 or 3.13, and found none: tried $(PYTHON)." \
			"Name one: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "making .venv with $$($$found --version) from requirements.lock (a minute or two)"; \
	$$found -m venv --clear .venv
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip install --quiet --require-hashes --no-deps \
		-r requirements.lock
	@touch $@

clean:
	rm -rf .venv site runs/phantoms runs/quickstart runs/cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
