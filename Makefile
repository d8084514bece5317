# Everything here needs Go, git and make; e2e, up and images use more where it is there and say so.

MODULES  := proto scraper aggregator apigw sinks deploy/standalone e2e
PROGRAMS := heapstream scraper aggregator apigw sinks simcluster demo benchcluster soak nats healthcheck
# Where a program's package is, and which module builds it: "module package".
heapstream_in := deploy/standalone ./cmd/heapstream
scraper_in    := scraper ./cmd/scraper
aggregator_in := aggregator ./cmd/aggregator
apigw_in      := apigw ./cmd/apigw
sinks_in      := sinks ./cmd/sinks
simcluster_in := e2e ./cmd/simcluster
demo_in       := e2e ./cmd/demo
benchcluster_in := e2e ./cmd/benchcluster
soak_in       := e2e ./cmd/soak
# The bus of the compose file is the server's own program, in the version that proto embeds.
nats_in       := proto github.com/nats-io/nats-server/v2
# What asks it, in an image without a shell.
healthcheck_in := proto ./daemon/cmd/healthcheck

# What is built and what is tested is the same, and needs no C compiler; only the race detector does.
export CGO_ENABLED ?= 0
race: export CGO_ENABLED = 1

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
daemon  := github.com/heapstream/heapstream/proto/daemon
LDFLAGS := -s -w -X $(daemon).version=$(VERSION) -X $(daemon).commit=$(COMMIT)

FUZZTIME  ?= 10s
BENCH     ?= .
BENCHTIME ?= 1s
COUNT     ?= 6
BASE      ?=
TESTFLAGS ?=
RACE      ?= proto scraper aggregator apigw sinks deploy/standalone e2e
# Images are named $(IMAGES)/<program>:$(TAG).
IMAGES ?= heapstream
TAG    ?= dev
PROFILES ?=
compose := $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)

.DEFAULT_GOAL := help
.PHONY: help build $(PROGRAMS) test race fuzz e2e bench bench-compare bench-cluster soak-cluster fmt lint tools tidy check check-modules run up down up-multicluster down-multicluster images deploy clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(PROGRAMS) ## static binaries of all programs in bin/

# The Go tool knows what has changed; a program is built anew only then.
$(PROGRAMS):
	@mkdir -p bin
	cd $(firstword $($@_in)) && go build -trimpath -ldflags '$(LDFLAGS)' -o $(CURDIR)/bin/$@ $(lastword $($@_in))

test: ## all tests of all modules (TESTFLAGS='-run … -v')
	go test -timeout 40m $(TESTFLAGS) work

race: ## all tests under the race detector, module by module (RACE='proto sinks')
	@set -e; for m in $(RACE); do echo "== $$m"; (cd $$m && go test -race $(TESTFLAGS) ./...); done

fuzz: ## every fuzz target for FUZZTIME
	@set -e; for m in $(MODULES); do \
	  for d in $$(grep -rl --include='*_test.go' '^func Fuzz' $$m 2>/dev/null | xargs -r -n1 dirname | sort -u); do \
	    for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$d/*_test.go); do \
	      echo "== $$d $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$d; \
	    done; \
	  done; \
	done

e2e: build ## the tests of all of it together, with what is built in bin/
	cd e2e && go test -count=1 $(TESTFLAGS) ./...

bench: ## benchmarks (BENCH=regexp BENCHTIME=1s COUNT=6), printed and kept in bin/bench.txt
	@mkdir -p bin
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -count $(COUNT) $(TESTFLAGS) work | tee bin/bench.txt

bench-compare: tools ## the same here and at BASE=<revision>, compared by benchstat
	@test -n "$(BASE)" || { echo "bench-compare: say what to compare with: make bench-compare BASE=main~5" >&2; exit 2; }
	.ci/bench-compare '$(BASE)' '$(BENCH)' '$(BENCHTIME)' '$(COUNT)'

# The table of what it costs and how soon it answers: NODES=1000 PODS=30 RESOLUTION=15s TICKS=4 WARMUP=4 PPROF=folder;
# BATCHES=1 writes batches straight to the bus (NODES=10000).
NODES      ?= 100
PODS       ?= 30
RESOLUTION ?= 15s
TICKS      ?= 4
WARMUP     ?= 4
BATCHES    ?=
bench-cluster: nats simcluster scraper aggregator apigw benchcluster ## what each process costs on a simulated cluster (NODES=1000 PODS=30 RESOLUTION=15s)
	bin/benchcluster --nodes=$(NODES) --pods=$(PODS) --resolution=$(RESOLUTION) --ticks=$(TICKS) --warm-up=$(WARMUP) $(if $(BATCHES),--batches) $(if $(PPROF),--profiles=$(PPROF))

# Nothing lost and nothing doubled: NODES=1000 PODS=30 RESOLUTION=15s DURATION=1h OUT=folder
DURATION ?= 1h
OUT      ?=
soak-cluster: nats simcluster scraper aggregator apigw sinks soak ## an hour with churn, kills and a flapping backend (NODES=1000 DURATION=1h OUT=folder)
	bin/soak --nodes=$(NODES) --pods=$(PODS) --resolution=$(RESOLUTION) --duration=$(DURATION) $(if $(OUT),--out=$(OUT))

fmt: ## gofmt everything
	@git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l -w

tools: ## the linters and benchstat, pinned in .ci/tools/go.mod, in bin/tools/
	@mkdir -p bin/tools
	@cd .ci/tools && GOWORK=off go build -o $(CURDIR)/bin/tools/ tool

lint: tools ## staticcheck and errcheck, settings in staticcheck.conf and .ci/errcheck.txt
	bin/tools/staticcheck work
	bin/tools/errcheck -ignoretests -exclude .ci/errcheck.txt work

tidy: ## go mod tidy in every module
	@set -e; for m in $(MODULES) .ci/tools; do echo "== $$m"; (cd $$m && GOWORK=off go mod tidy); done

check: ## gofmt, vet, lint, and every module tidy and complete by itself
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	  if [ -n "$$bad" ]; then echo "check: not formatted (make fmt):"; echo "$$bad"; exit 1; fi
	go vet work
	@$(MAKE) --no-print-directory lint check-modules

# With go.work any import of a sibling compiles; without, only what go.mod requires.
check-modules:
	@set -e; for m in $(MODULES); do \
	  if [ -z "$$(find $$m -name '*.go' -print -quit)" ]; then continue; fi; \
	  echo "== $$m: tidy and built alone"; \
	  (cd $$m && GOWORK=off go mod tidy -diff && GOWORK=off go build ./...); \
	done

run: demo ## a simulated cluster and heapstream on it, ready to be asked
	bin/demo

# The demonstration is for the terminal it is started in.
in_images := $(filter-out healthcheck demo soak,$(PROGRAMS))

images: $(in_images) healthcheck ## a container image of every program, from bin/ and nothing else
	.ci/images '$(IMAGES)' '$(TAG)' $(in_images)

up: images ## the services apart, with docker-compose (PROFILES='log influxdb kafka')
	deploy/docker/passwords .env
	IMAGES='$(IMAGES)' TAG='$(TAG)' $(compose) $(PROFILES:%=--profile %) up -d

down: ## stop what up started and remove its data
	IMAGES='$(IMAGES)' TAG='$(TAG)' $(compose) --profile log --profile influxdb --profile kafka down --volumes --remove-orphans

multicluster := IMAGES='$(IMAGES)' TAG='$(TAG)' $(compose) --project-name heapstream-multicluster -f deploy/multicluster/compose.yaml
up-multicluster: images ## a hub of three NATS servers and two edges, each with its cluster (deploy/multicluster/compose.yaml)
	deploy/multicluster/credentials
	$(multicluster) up -d

down-multicluster: ## stop what up-multicluster started and remove its data
	$(multicluster) down --volumes --remove-orphans

SHAPE ?= standalone
deploy: ## heapstream into the cluster of the kubectl context (SHAPE=standalone, full, edge, hub; see deploy/kubernetes/README.md)
	@test -d 'deploy/kubernetes/overlays/$(SHAPE)/secrets' || { echo "deploy: make its certificates first: deploy/kubernetes/credentials $(SHAPE)" >&2; exit 2; }
	kubectl apply -k 'deploy/kubernetes/overlays/$(SHAPE)'

clean: ## remove what was built
	rm -rf bin
