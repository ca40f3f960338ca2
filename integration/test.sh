#!/usr/bin/env bash
# Every check of the project in one command: formatting, vet, staticcheck, known vulnerabilities, the rules of the audit,
# tests, fuzzing, the image, the packages, the first screen, the demo, and last the suite in containers.
#
#   integration/test.sh
#
# Needs Go and, on Debian, nothing else: what is missing is installed with apt, for which it has to be root. It needs
# the Go module proxy and Debian's packages, but no container registry (see base-images.sh). Containers, networks and
# image tags that it made are removed at the end; the base images and the layers of the builds stay, for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive

readonly staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
readonly govulncheck=golang.org/x/vuln/cmd/govulncheck@v1.9.0
readonly actionlint=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
readonly fuzz_executions=20000 # for each target; with a time go test fails now and then when it is over ("context deadline exceeded")

# --- steps: a header line each, and what the one before took ---

step_started=
step() {
    [ -z "$step_started" ] || echo "    $((SECONDS - step_started)) s"
    step_started=$SECONDS
    printf '\n=== %s\n' "$*"
}

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# --- cleaning up ---

# The suite marks all that it makes with this, and so do the images here.
export SUITE_RUN=$$
work=$(mktemp -d)
clean_up() {
    rm -rf "$work"
    command -v docker >/dev/null || return 0
    # The suite has removed its own already, unless it was cut off.
    docker ps --all --quiet --filter "label=sip-capture-test=$SUITE_RUN" | xargs -r docker rm --force --volumes >/dev/null 2>&1 || true
    docker network ls --quiet --filter "label=sip-capture-test=$SUITE_RUN" | xargs -r docker network rm >/dev/null 2>&1 || true
    docker images --format '{{.Repository}}:{{.Tag}}' | grep -E "^sip-capture-(test|demo)-[a-z]+:$SUITE_RUN\$" |
        xargs -r docker rmi --no-prune >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- what has to be on the machine ---

step "machine"
command -v go >/dev/null || fail "Go is needed"
missing=()
for package in ca-certificates debootstrap file gcc git iproute2 libc6-dev libcap2-bin libpcap-dev procps shellcheck tshark; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
command -v docker >/dev/null || missing+=(docker.io)
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "not installed, and only root can do it: ${missing[*]}"
    echo "installing: ${missing[*]}"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$work/apt.log" 2>&1 || { tail -n 20 "$work/apt.log" >&2; fail "apt"; }
fi
if ! docker info >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || fail "Docker's engine does not run, or this user may not use it"
    echo "starting Docker's engine"
    service docker start >"$work/docker.log" 2>&1 || true
    for _ in $(seq 30); do
        docker info >/dev/null 2>&1 && break
        sleep 1
    done
    docker info >/dev/null 2>&1 || { tail -n 20 "$work/docker.log" /var/log/docker.log >&2 || true; fail "Docker's engine does not start"; }
fi
go version
docker version --format 'Docker {{.Server.Version}}'

# --- the source ---

step "gofmt"
unformatted=$(gofmt -l .) || fail "the source can't be read"
[ -z "$unformatted" ] || fail "not formatted: $unformatted"

step "go vet"
go vet ./...
(cd integration && go vet ./...)

step "staticcheck"
go run "$staticcheck" ./...
(cd integration && go run "$staticcheck" ./...)

step "shellcheck"
shellcheck integration/*.sh .packaging/*.sh .ci/run

step "actionlint"
go run "$actionlint" .github/workflows/*.yml

step "govulncheck"
# What is linked into the program. (The workflow "weekly" looks at the tests' dependencies, too, and can't do without the database.)
GOBIN=$work go install "$govulncheck"
if "$work/govulncheck" ./... >"$work/vulnerabilities.log" 2>&1; then
    tail -n 1 "$work/vulnerabilities.log"
elif grep '^govulncheck: fetching vulnerabilities: ' "$work/vulnerabilities.log"; then
    echo "SKIPPED: the database of vulnerabilities can't be reached from here. Nothing is known of them."
else
    cat "$work/vulnerabilities.log" >&2
    fail "govulncheck"
fi

step "shape"
# One flat package and nothing hidden in a corner: what may stand at the root is listed here.
if git rev-parse --git-dir >/dev/null 2>&1; then
    entries=$(git ls-files --cached --others --exclude-standard | cut -d/ -f1 | sort -u)
else
    entries=$(find . -mindepth 1 -maxdepth 1 -printf '%f\n')
fi
for entry in $entries; do
    case "$entry" in
        main.go | capture.go | filter.go | envelope.go | publish.go | *_test.go) ;;
        go.mod | go.sum | README.md | LICENSE | Dockerfile | compose.yaml) ;;
        integration | testdata | .*) ;;
        *) fail "what is $entry doing at the root?" ;;
    esac
done

step "audit rules"
go test -count=1 -run '^TestAudit' -v . | grep -E '^ +\||^(---|FAIL|ok|panic)'

# Twice: the race detector allocates, so that tests of allocations and of time hold only without it.
step "go test"
go test -timeout 15m ./...

step "go test -race"
go test -race -skip '^TestFilterDoesNotAllocate$' -timeout 15m ./...

step "fuzzing"
mapfile -t targets < <(go test -list '^Fuzz' . | grep '^Fuzz')
[ ${#targets[@]} -gt 0 ] || fail "no fuzz targets"
for target in "${targets[@]}"; do
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${fuzz_executions}x" -parallel 2 . >"$work/fuzz.log" 2>&1 || { cat "$work/fuzz.log" >&2; fail "$target"; }
    echo "$target: $(grep -o 'execs: [0-9]*' "$work/fuzz.log" | tail -n 1)"
done

# --- the image ---

step "base images"
integration/base-images.sh

step "image"
# The version is that of the suite, which thereby finds the image in the builder's cache.
export VERSION=v9.8.7-test
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
docker build --build-arg "VERSION=$VERSION" --build-arg "REVISION=$revision" --tag "sip-capture-test-image:$SUITE_RUN" . \
    >"$work/build.log" 2>&1 </dev/null || { tail -n 40 "$work/build.log" >&2; fail "docker build"; }
docker images --format '{{.Repository}} {{.Size}}' "sip-capture-test-image:$SUITE_RUN"
label=$(docker inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "sip-capture-test-image:$SUITE_RUN")
[ "$label" = "$revision" ] || fail "the label for the revision is $label"

step "packages for two architectures"
export SUITE_PACKAGES=$work/packages
integration/packages.sh "$VERSION" "$SUITE_PACKAGES"

step "a second build"
# Without the builder's cache everything is done again, and has to give the same binary. Nothing else may be built meanwhile: in
# the classic builder it would find this one's layers, which are removed here, and leave no others to find.
docker build --no-cache --target build --build-arg "VERSION=$VERSION" --iidfile "$work/second" . >"$work/build.log" 2>&1 </dev/null ||
    { tail -n 40 "$work/build.log" >&2; fail "docker build --no-cache"; }
docker run --rm "$(<"$work/second")" cat /dist/sip-capture >"$work/second-binary"
docker rmi "$(<"$work/second")" >/dev/null
cmp "$work/second-binary" "$SUITE_PACKAGES/sip-capture_${VERSION#v}_linux_$(go env GOARCH)" || fail "two builds of one source differ"
echo "two builds: $(sha256sum <"$work/second-binary")"

step "first screen"
integration/first-screen.sh

step "demo"
TAG=$SUITE_RUN integration/demo.sh --once </dev/null

step "suite in containers"
cd integration
# Reports its own time; nothing comes after its lines.
go test -count=1 -timeout 25m -v .
