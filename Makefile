# Every target does its own set-up: packages of the system, virtual environment, compiler output, the rig's
# disk images. What is there already is not done again. Run as root, or as a user who may sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BASE_PYTHON ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=CI,SRIOV_CACHE_DIR)
CFLAGS := -std=c11 -Wall -Wextra -Werror -O2 -static
SHIM := build/sriov-underlay
PAUSE := build/pause

.PHONY: help demo rig-shell bench test lint test-unit test-fuzz test-netns test-monitoring test-image test-rig setup setup-rig shim image manifests proto docs-config requirements install install-node install-cni install-vfs-unit install-unmanaged uninstall clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-rig ## the main job on an emulated SR-IOV NIC, told step by step
	$(SUDO) $(PYTHON) -m hw_tests.rig run --timeout 600 -- python3 -m hw_tests.demo

rig-shell: setup-rig ## a node with SR-IOV NICs to play with; see docs/getting-started.md
	@$(SUDO) $(PYTHON) -m hw_tests.rig shell

bench: setup-rig ## how long things take, see docs/benchmarks.md; BENCH="--only native --rounds 50" for less
	@.ci/host-setup netns
	$(SUDO) $(PYTHON) -m hw_tests.bench $(BENCH)

test: lint test-unit test-fuzz test-netns test-monitoring test-image test-rig ## every tier

lint: setup ## ruff, mypy --strict, import contracts
	@.ci/step "ruff" $(VENV)/bin/ruff check .
	@.ci/step "ruff format" $(VENV)/bin/ruff format --check .
	@.ci/step "mypy" $(VENV)/bin/mypy
	@.ci/step "import contracts" $(VENV)/bin/lint-imports --no-logo

test-unit: setup ## what needs neither root nor a NIC
	@.ci/step "unit tests" $(PYTHON) -m pytest tests --ignore tests/netns --ignore tests/fuzz --ignore tests/monitoring --ignore tests/image -q

test-fuzz: setup ## 90 s of input that is almost right, or FUZZ_SECONDS of it
	@.ci/step "fuzzing" $(PYTHON) -m pytest tests/fuzz -q

test-netns: setup ## the running kernel's network namespaces, with veth pairs; needs root
	@.ci/host-setup netns
	@.ci/step "namespace tests" $(SUDO) $(PYTHON) -m pytest tests/netns -q

test-monitoring: setup ## the metrics, alert rules and dashboard, with a real Prometheus
	@.ci/host-setup monitoring
	@.ci/step "monitoring tests" $(PYTHON) -m pytest tests/monitoring -q

test-image: setup ## the container image, built and run as the manifests say; needs root
	@.ci/host-setup netns image
	@.ci/step "image tests" $(SUDO) $(PYTHON) -m pytest tests/image -q

test-rig: setup-rig ## real igb and igbvf drivers in an emulated machine
	@.ci/host-setup image
	@.ci/step "rig tests" $(SUDO) $(PYTHON) -m hw_tests.rig run --images --timeout 4500 -- \
	    python3 -m pytest hw_tests -q -p no:cacheprovider

setup: $(VENV)/.ready shim $(PAUSE)

setup-rig: setup
	@.ci/host-setup rig
	@$(SUDO) $(PYTHON) -m hw_tests.rig build

$(VENV)/.ready: requirements-dev.txt
	@# venv --clear empties what a link points to, and only then says that it takes no links
	@[ ! -L $(VENV) ] || { echo "$(VENV) is a link and older than $<: bring what it points to up to date there" >&2; exit 1; }
	@.ci/host-setup base
	@.ci/step "virtual environment" bash -c '$(BASE_PYTHON) -m venv --clear $(VENV) && \
	    $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt && \
	    touch $@'

shim: $(SHIM)

$(SHIM): sriov_cni/shim/shim.c
	@.ci/host-setup base
	@mkdir -p build
	@.ci/step "compile $@" bash -c '$(CC) $(CFLAGS) -o $@.new $< && mv $@.new $@'

$(PAUSE): hw_tests/cri/pause.c
	@mkdir -p build
	@.ci/step "compile $@" $(CC) $(CFLAGS) -o $@ $<

image: setup ## the container image, from this machine's package archive; says where it is and how large
	@.ci/host-setup image
	@.ci/step "container image" $(SUDO) $(PYTHON) -m hw_tests.rig.agent_image

manifests: setup ## write manifests/install.yaml anew
	$(PYTHON) -m hw_tests.kustomize

PREFIX ?= /opt/sriov-underlay
CNI_BIN ?= /opt/cni/bin
BIN_DIR ?= /usr/local/bin
CONFIG_DIR ?= /etc/sriov-underlay
UNIT_DIR ?= /etc/systemd/system
UDEV_DIR ?= /etc/udev/rules.d
NETWORKD_DIR ?= /etc/systemd/network
RUN_DIR ?= /run/sriov-underlay
# `make install ALSO_AS=sriov`: under the name in existing network configurations too ("type": "sriov").
ALSO_AS ?=
ifneq ($(filter-out sriov,$(ALSO_AS)),)
$(error ALSO_AS: '$(ALSO_AS)' is not valid; expected sriov, or nothing)
endif

install: shim ## the agent, the CNI executable and the systemd unit, on this node (as root)
	@.ci/host-setup base
	@.ci/step "install into $(PREFIX)" bash -c '$(BASE_PYTHON) -m venv $(PREFIX) && \
	    $(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt && \
	    $(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .'
	@$(MAKE) install-node
	@echo "Installed. Next: edit $(CONFIG_DIR)/config.yaml, then systemctl enable --now sriov-agent"

install-node: install-cni ## what `install` puts there beside the agent itself: config, unit, CNI executable, sriovctl
	install -d -m 755 $(CONFIG_DIR) $(UNIT_DIR) $(BIN_DIR)
	install -m 644 manifests/config.schema.json $(CONFIG_DIR)/config.schema.json
	[ -e $(CONFIG_DIR)/config.yaml ] || install -m 644 manifests/config.yaml $(CONFIG_DIR)/config.yaml
	install -m 644 manifests/sriov-agent.service $(UNIT_DIR)/sriov-agent.service
	ln -sfn $(PREFIX)/bin/sriovctl $(BIN_DIR)/sriovctl

install-cni: shim ## the CNI executable alone; ALSO_AS=sriov takes the place of sriov-cni
	install -d -m 755 $(CNI_BIN)
	for name in sriov-underlay $(ALSO_AS); do \
	    install -m 755 $(SHIM) $(CNI_BIN)/.$$name.new; mv $(CNI_BIN)/.$$name.new $(CNI_BIN)/$$name; done

install-vfs-unit: ## a systemd unit that makes the VFs at boot, before the kubelet starts; see docs/vf-manager.md
	install -D -m 644 -t $(UNIT_DIR) manifests/sriov-vfs.service
	@echo "Installed. Next: systemctl enable sriov-vfs"

install-unmanaged: ## what keeps NetworkManager and systemd-networkd from taking VFs; see docs/vf-manager.md
	install -D -m 644 -t $(UDEV_DIR) manifests/80-sriov-vfs.rules
	install -D -m 644 -t $(NETWORKD_DIR) manifests/10-sriov-vfs.network
	@echo "Installed. Next: udevadm control --reload; it counts for VFs made from now on"

uninstall: ## take all of it off this node again, once no pod has a VF; see docs/upgrade.md
	@cd $(RUN_DIR)/attachments 2>/dev/null && ls *.json >/dev/null 2>&1 || exit 0; \
	    echo "pods still have VFs that nobody could take back then:" *.json >&2; exit 1
	rm -f $(UNIT_DIR)/sriov-agent.service $(UNIT_DIR)/sriov-vfs.service $(UDEV_DIR)/80-sriov-vfs.rules
	rm -f $(NETWORKD_DIR)/10-sriov-vfs.network
	for name in sriov-underlay $(ALSO_AS); do rm -f $(CNI_BIN)/$$name; done
	[ "$$(readlink $(BIN_DIR)/sriovctl)" != $(PREFIX)/bin/sriovctl ] || rm $(BIN_DIR)/sriovctl
	[ ! -e $(PREFIX)/pyvenv.cfg ] || rm -r $(PREFIX)
	rm -rf $(RUN_DIR)

proto: setup ## generate the gRPC code from device_plugin/proto and hw_tests/cri/proto
	$(PYTHON) -m grpc_tools.protoc @device_plugin/proto/protoc.args
	$(PYTHON) -m grpc_tools.protoc @hw_tests/cri/proto/protoc.args

docs-config: setup ## the tables of docs/configuration.md and manifests/config.schema.json, from the types
	$(PYTHON) -m node_agent.config_reference

BUILD_REQUIRES := hatchling
requirements: setup ## pin the newest allowed versions of the dependencies, with hashes
	$(VENV)/bin/uv pip compile -q --universal --upgrade --generate-hashes --no-annotate --no-header \
	    --python-version 3.11 pyproject.toml -o requirements.txt
	$(VENV)/bin/uv pip compile -q --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	    --extra test -c requirements.txt pyproject.toml -o requirements-test.txt
	$(VENV)/bin/uv pip compile -q --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	    --extra test --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	echo '$(BUILD_REQUIRES)' | $(VENV)/bin/uv pip compile -q --universal --upgrade --generate-hashes --no-annotate \
	    --no-header --python-version 3.11 - -o requirements-build.txt

clean: ## remove what was built; the rig's downloads in .cache stay
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
