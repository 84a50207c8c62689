# Each target builds .venv first when it is missing or older than the lock files.
#   make demo    a Kafka broker, events, logs and metrics with faults, and Offbeat finding them (two minutes)
#   make test    every test, those on a real broker included, three at a time
#   make check   ruff, mypy strict, import contracts, generated documents up to date
#   make chaos   a storm of SECONDS by SEED on a real broker: every fault, then every row and verdict compared
#   make chaos-alerts   10,000 alerts to a receiver that fails, stalls and throttles, over three kills (ten minutes)
#   make bench   speed and quality on this machine, printed and written to benchmarks/results/; with BASE=REF how the
#                quick ones of speed (or those of ARGS) compare with that commit
#   make bench-peers-deps  Quix Streams and Bytewax, for `python -m benchmarks peers`; Faust is there anyway
#   make stack-deps  Prometheus and Alertmanager from Debian, as root, not started; tests of deploy/ need them
#   make up      the whole stack in containers (PROFILE=minimal or full); make down stops it, make break breaks the shop
#   make lock    resolve the dependencies anew (needs uv)
#   make clean   remove .venv and caches
# TORCH=cpu installs PyTorch's CPU-only build (a tenth of the download) from TORCH_INDEX.

PYTHON ?= python3.11
TORCH ?= default
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LOCKS := requirements/base.lock requirements/torch.lock

.PHONY: demo test check chaos chaos-alerts bench bench-peers-deps stack-deps up down break lock clean
.DEFAULT_GOAL := test

demo: $(VENV)/ready
	$(BIN)/offbeat demo $(ARGS)

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(ARGS)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pipeline.reference --check
	$(BIN)/python deploy/grafana/make_dashboards.py --check
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

SECONDS := 180
SEED := 1
DELIVERY := at_least_once
chaos: $(VENV)/ready
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --delivery $(DELIVERY) $(ARGS)

chaos-alerts: $(VENV)/ready
	$(BIN)/python -m tests.chaos.alert_storm $(ARGS)

BASE :=
bench: $(VENV)/ready
	$(BIN)/python -m $(if $(BASE),benchmarks.compare $(BASE),benchmarks) $(ARGS)

# Their own environment, for they want older versions of what the project has; numpy and torch are the project's.
PEERS := benchmarks/peers/.venv
bench-peers-deps: $(PEERS)/ready
$(PEERS)/ready: benchmarks/peers/requirements.lock $(VENV)/ready
	rm -rf $(PEERS)
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --require-hashes -r $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@touch $@

stack-deps:
	deploy/stack-deps.sh

PROFILE := full
COMPOSE = docker compose --profile $(PROFILE)
up:
	deploy/secrets.sh
	$(COMPOSE) up --detach --build --wait
	@echo "Alertmanager: http://127.0.0.1:9093  Prometheus: http://127.0.0.1:9090  Grafana: http://127.0.0.1:3000 (admin, deploy/secrets/grafana-password)"

down:
	docker compose --profile full down

break:
	docker compose --profile full kill --signal SIGUSR1 storefront

lock:
	requirements/lock.sh

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

# "ready" is touched last, so an interrupted install starts over.
$(VENV)/ready: pyproject.toml $(LOCKS)
	@command -v $(PYTHON) >/dev/null || { echo "Offbeat needs Python 3.11 ($(PYTHON) is not on PATH): install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Building $(VENV): a virtual environment with the locked dependencies (1 to 3 minutes, mostly PyTorch)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing: apt-get install python3.11-venv"; rm -rf $(VENV); exit 1; }
ifeq ($(TORCH),cpu)
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/base.lock
	$(PIP) install --quiet --no-deps --index-url $(TORCH_INDEX) "$$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements/torch.lock)"
else
	$(PIP) install --quiet --no-deps --require-hashes $(addprefix -r ,$(LOCKS))
endif
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
