# The dev loop. Needs Python 3.11 or newer and make; everything else is installed into .venv.
#
#   make demo    train a language model through a real server, kill the server, print the comparison
#   make test    all tests
#   make check   format, lint, types, what is generated, schema
#   make bench   benchmarks
#   make peers   what some of them are held against, each into an environment of its own; optional, 8 GB
#   make plots   two pictures of what make bench found
#   make faults [ONLY="disk full" ROUNDS=20 MINUTES=5 KEEP=1]   disturb servers under load; KEEP: and write
#                tests/robustness/README.md, as with make soak and make powercut
#   make fuzz MINUTES=15   fuzz every handler; with atheris where it has a wheel for this Python (3.11 to 3.13, Linux)
#   make objects   back up to a server that speaks S3, and restore from there
#   make gen     generate code from proto/, METHODS.md from the methods, and METRICS.md
#   make monitoring   the alert rules and the dashboard
#   make promtool     Prometheus and its rule checker from Debian's archive, unpacked into .venv: nothing is installed
#   make powercut [ROUNDS=100]   cut the power of a user-mode-linux machine whose disk holds the store
#   make soak MINUTES=10     train as fast as it goes, and see that nothing grows
#   make crash MINUTES=10 [SEED=7 ROUND=3]   kill servers and trainers for so long, and compare with runs in peace
#
#   make image   build the server's image without an engine, and try it; needs root, buildah, mmdebstrap
#   make lock    what the image installs, anew, by hash
#   make deploy-check   chart, image and units, as far as they can be checked without a cluster; part of make check
#
#   make release-schema   take today's protos as what later ones must stay compatible with
#   make clean            remove .venv and the caches

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
GEN := $(VENV)/gen/bin/python
DEPLOY := $(VENV)/deploy/bin/python
BUF := $(VENV)/buf/node_modules/.bin/buf

TORCH := torch==2.13.0
BUF_VERSION := 1.75.0
PROMTOOL := $(VENV)/promtool/usr/bin/promtool
MONITORING := deploy/monitoring
UV := uv==0.13.9
LOCKING := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
JOBS ?= 3
MINUTES ?= 5
SOURCES := client server tests proto $(wildcard trainer_example deploy)

.DELETE_ON_ERROR:
.PHONY: demo test check bench peers plots crash faults powercut soak fuzz objects gen release-schema clean lint types generated schema kernels monitoring promtool image lock deploy-check

demo: $(VENV)/ready
	$(PY) trainer_example/demo.py

test: $(VENV)/ready kernels
	$(PY) -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

check: lint types generated schema deploy-check

bench: $(VENV)/ready kernels
	$(PY) tests/benchmarks/run.py $(ARGS)

peers: $(VENV)/ready
	$(PY) tests/benchmarks/peers.py $(ARGS)

plots: $(VENV)/ready
	$(PY) tests/benchmarks/plots.py $(ARGS)

# With a round it plays that one, to repeat what failed.
crash: $(VENV)/ready
	$(PY) tests/robustness/crash/run.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND) --rounds 1)

faults: $(VENV)/ready kernels
	$(PY) tests/robustness/faults/run.py $(if $(ONLY),--only "$(ONLY)") $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(filter command line,$(origin MINUTES)),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep)

monitoring: $(PROMTOOL) $(VENV)/ready
	$(PROMTOOL) check rules $(MONITORING)/rules.yaml
	cd $(MONITORING) && $(abspath $(PROMTOOL)) test rules *.test.yaml
	$(PY) $(MONITORING)/dashboard.py --check

promtool: $(PROMTOOL)

# BASE=an image to build on, in place of a Debian one that is made; DRIVER=overlay is faster where it works; LOCK=s3 installs
# what backups to s3:// need too.
image: $(VENV)/ready
	deploy/image/build.sh

lock: | $(PY)
	$(PY) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python $(PIP_INSTALL) $(UV)
	$(VENV)/lock/bin/uv pip compile $(LOCKING) --extra server --extra otel --no-emit-package steelyard pyproject.toml \
		--output-file deploy/image/requirements.lock.txt
	$(VENV)/lock/bin/uv pip compile $(LOCKING) --extra server --extra otel --extra s3 --no-emit-package steelyard pyproject.toml \
		--constraint deploy/image/requirements.lock.txt --output-file deploy/image/s3.lock.txt
	$(VENV)/lock/bin/uv pip compile $(LOCKING) --group pyproject.toml:build --output-file deploy/image/build.lock.txt

# helm's engine and the checkers are apart from the rest, because they pin what they need. Nothing of them is compiled
# ahead: most of it is never imported.
deploy-check: $(VENV)/deploy/ready $(VENV)/ready
	$(PY) deploy/chart/generate.py --check
	$(DEPLOY) deploy/check.py

# Without atheris the same search goes at random.
fuzz: $(VENV)/ready
	$(PY) $(PIP_INSTALL) --group fuzz || echo "fuzz: atheris has no wheel for this Python; searching at random" >&2
	$(PY) tests/robustness/fuzz/run.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# moto keeps the objects in memory and answers on loopback.
objects: $(VENV)/ready
	$(PY) $(PIP_INSTALL) --group objects
	$(PY) -m pytest tests/keeping/test_object_store.py $(ARGS)

powercut: $(VENV)/ready
	$(PY) tests/robustness/faults/run.py --only "power cut" $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(KEEP),--keep)

soak: $(VENV)/ready kernels
	SOAK_MINUTES=$(MINUTES) $(PY) tests/robustness/faults/run.py --only soak $(if $(KEEP),--keep)

# Compiles them once, so that no test or measurement waits for it; nothing is done where that was.
kernels: $(VENV)/ready
	$(PY) -m steelyard_server.kernel_cache

gen: $(VENV)/gen/ready $(VENV)/ready
	$(GEN) proto/generate.py
	$(PY) tests/methods/page.py
	$(PY) deploy/chart/generate.py
	$(PY) -m steelyard_server.observing.names > deploy/monitoring/METRICS.md
	$(PY) $(MONITORING)/dashboard.py

lint: $(VENV)/ready
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m ruff check $(SOURCES)

# The packages and the example strictly; tests without the duty to annotate themselves.
types: $(VENV)/ready
	$(PY) -m mypy
	$(if $(wildcard trainer_example/*.py),$(PY) -m mypy trainer_example/*.py)
	$(PY) -m mypy $(MONITORING)/dashboard.py deploy/sizing.py deploy/check.py deploy/chart/generate.py deploy/image/check.py
	$(PY) -m mypy --config-file tests/mypy.ini tests

generated: $(VENV)/gen/ready $(VENV)/ready
	$(GEN) proto/generate.py --check
	$(PY) tests/methods/page.py --check
	$(PY) $(MONITORING)/dashboard.py --check

# buf comes from npm. Without npm the schema goes unchecked here, but not in CI.
ifneq ($(shell command -v npm 2>/dev/null),)
schema: $(VENV)/buf/ready
	$(BUF) lint proto
	$(BUF) breaking proto --against proto/released.binpb
else ifeq ($(CI),true)
schema:
	@echo "schema: npm was not found, and CI must run buf" >&2; exit 1
else
schema:
	@echo "schema: npm was not found, so buf did not check proto/ (CI does)"
endif

release-schema: $(VENV)/buf/ready
	$(BUF) build proto --exclude-source-info -o proto/released.binpb

# The package alone, without what it depends on and without its service. Elsewhere, a promtool in the PATH does.
$(PROMTOOL): | $(PY)
	rm -rf $(VENV)/promtool && mkdir -p $(VENV)/promtool
	cd $(VENV)/promtool && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb

clean:
	rm -rf $(VENV) .cache .hypothesis build dist

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed; $(PYTHON) is %d.%d: make PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: what the project's own ranges ask for later is then satisfied and pulls nothing else.
$(VENV)/ready: pyproject.toml Makefile | $(PY)
	$(PY) $(PIP_INSTALL) --upgrade "pip>=25.1"
	$(PY) $(PIP_INSTALL) $(TORCH)
	$(PY) $(PIP_INSTALL) --editable ".[server,torch,plot,otel]" --group dev
	@touch $@

# Apart from the rest, because the pinned generator keeps to an older protobuf.
$(VENV)/gen/ready: pyproject.toml Makefile | $(PY)
	$(PY) -m venv $(VENV)/gen
	$(GEN) $(PIP_INSTALL) --upgrade "pip>=25.1"
	$(GEN) $(PIP_INSTALL) --group gen
	@touch $@

$(VENV)/deploy/ready: pyproject.toml Makefile | $(PY)
	$(PY) -m venv $(VENV)/deploy
	$(DEPLOY) $(PIP_INSTALL) --upgrade "pip>=25.1"
	$(DEPLOY) $(PIP_INSTALL) --no-compile --group deploy
	@touch $@

$(VENV)/buf/ready: Makefile | $(PY)
	npm install --silent --no-save --prefix $(VENV)/buf @bufbuild/buf@$(BUF_VERSION)
	@touch $@
