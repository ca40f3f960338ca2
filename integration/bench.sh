#!/usr/bin/env bash
# What sip-capture costs: every benchmark against its target, in one table in Markdown.
#
#   integration/bench.sh             prints the table
#   integration/bench.sh --readme    also puts it into README.md, between the two comments there
#   integration/bench.sh 5c          only targets 5 and c
#
# The benchmarks are BenchmarkTarget1 to 9 in bench_test.go. They measure the program of the image, in a network namespace
# of their own in which a Mosquitto runs: nothing of it is on the network of this machine. Target c is what clusters of brokers
# take: TestRates in integration/cluster_test.go. It takes less than 15 minutes on 2 cores, of which the machine should have
# nothing else to do.
#
# Needs Go and, on Debian, nothing else: what is missing is installed with apt. It has to be root (devices, namespaces).
# It needs the Go module proxy and Debian's packages, but no container registry (see base-images.sh). The container,
# the image tags and the capture files that it made are removed at the end; the base images and the layers of the builds
# stay, for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

readme=
targets=123456789c
case "${1-}" in
    '') ;;
    --readme) readme=yes ;;
    [1-9c]*) targets=$1 ;;
    *) echo "usage: $0 [--readme | TARGETS]" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || fail "only root can do this"

# --- cleaning up ---

run=$$
name=sip-capture-bench-broker-$run
sensor=sip-capture-bench-sensor:$run
mosquitto=sip-capture-bench-mosquitto:$run
work=$(mktemp -d)
clean_up() {
    pgrep -f "^$work/" | xargs -r kill 2>/dev/null || true # where a benchmark was cut off
    rm -rf "$work"
    command -v docker >/dev/null || return 0
    docker rm --force --volumes "$name" "$name-copy" >/dev/null 2>&1 || true
    docker rmi --no-prune "$sensor" "$mosquitto" >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- what has to be on the machine ---

command -v go >/dev/null || fail "Go is needed"
missing=()
for package in ca-certificates debootstrap gcc iproute2 libc6-dev libpcap-dev procps util-linux; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
command -v docker >/dev/null || missing+=(docker.io)
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$work/apt.log" 2>&1 || { tail -n 20 "$work/apt.log" >&2; fail "apt"; }
fi
if ! docker info >/dev/null 2>&1; then
    echo "starting Docker's engine"
    service docker start >"$work/docker.log" 2>&1 || true
    for _ in $(seq 30); do
        docker info >/dev/null 2>&1 && break
        sleep 1
    done
    docker info >/dev/null 2>&1 || { tail -n 20 "$work/docker.log" /var/log/docker.log >&2 || true; fail "Docker's engine does not start"; }
fi

# --- what is measured, and a broker ---

build() {
    docker build --tag "$1" "$2" >"$work/build.log" 2>&1 </dev/null || { tail -n 40 "$work/build.log" >&2; fail "docker build $2"; }
}
integration/base-images.sh
echo "building"
build "$sensor" .
build "$mosquitto" integration/images/mosquitto
docker create --name "$name-copy" "$sensor" >/dev/null
docker cp "$name-copy:/sip-capture" "$work/sip-capture" >/dev/null
docker rm "$name-copy" >/dev/null
go test -c -o "$work/bench.test" .

docker run --detach --name "$name" --network none "$mosquitto" >/dev/null
for _ in $(seq 100); do
    docker logs "$name" 2>&1 | grep -q 'mosquitto version .* running' && break
    sleep 0.1
done
namespace=$(docker inspect --format '{{.State.Pid}}' "$name")
[ "$namespace" -gt 0 ] || { docker logs "$name" >&2; fail "Mosquitto"; }

# --- the benchmarks ---

echo "measuring"
started=$SECONDS
host_targets=${targets//c/}
if [ -n "$host_targets" ]; then
    BENCH_BROKER=127.0.0.1:1883 BENCH_PROGRAM=$work/sip-capture BENCH_IMAGE=$sensor BENCH_TABLE=$work/rows TMPDIR=$work \
        nsenter --target "$namespace" --net "$work/bench.test" \
        -test.run '^$' -test.bench "^BenchmarkTarget[$host_targets]" -test.benchtime 1x -test.timeout 15m >"$work/bench.log" 2>&1 ||
        { cat "$work/bench.log" >&2; fail "the benchmarks"; }
fi
if [[ $targets == *c* ]]; then
    # Three nodes each of NATS and RabbitMQ, whose images are built here: from the Go module proxy and Debian's packages.
    (cd integration && SUITE_RUN=$run BENCH_TABLE=$work/rows go test -count=1 -timeout 10m -run '^TestRates$' -v .) >"$work/rates.log" 2>&1 || {
        cat "$work/rates.log" >&2
        grep -q '^building sip-capture-test-' "$work/rates.log" || fail "the clusters"
        echo "SKIPPED: target c: the images of the clusters can't be had here"
    }
fi
touch "$work/bench.log" "$work/rows"
for target in $(fold -w 1 <<<"$host_targets"); do
    grep -q "^| $target |" "$work/rows" || { cat "$work/bench.log" >&2; fail "no figure for target $target"; }
done
took=$((SECONDS - started))
# What live runs lost, if they did.
sed -n 's/^ *bench_test.go:[0-9]*: lost; //p' "$work/bench.log"

{
    echo "$(nproc) cores, Linux $(uname -r), $(go env GOVERSION), Mosquitto $(docker logs "$name" 2>&1 | grep -o -m 1 'version [0-9.]*' | cut -d ' ' -f 2); in $took s."
    echo
    echo "| target | what | figure | floor | ratio | wanted | met |"
    echo "|---|---|---|---|---|---|---|"
    cat "$work/rows"
} >"$work/table"
echo
cat "$work/table"

if [ -n "$readme" ]; then
    begin='<!-- table of integration/bench.sh -->'
    end='<!-- end of the table -->'
    [ "$(grep -cxF -e "$begin" -e "$end" README.md)" = 2 ] || fail "README.md has no place for the table"
    awk -v begin="$begin" -v end="$end" -v table="$work/table" '
        $0 == end { inside = 0 }
        !inside { print }
        $0 == begin { inside = 1; while ((getline line < table) > 0) print line }' README.md >"$work/README.md"
    cat "$work/README.md" >README.md
fi
