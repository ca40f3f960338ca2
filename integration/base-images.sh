#!/usr/bin/env bash
# Makes sure that the base images of the Dockerfiles are on this machine.
#
# Each image is left alone when it is there, and pulled when a registry answers. Where there is none, a
# stand-in of the same tag is made from Debian packages and the Go installation of this machine: good enough
# to build, demonstrate and test with, never meant to be published. (A stand-in carries the label
# "sip-capture.stand-in"; `docker rmi` it to go back to the real one.)
#
# Needs: docker, and for stand-ins root and go. Installs debootstrap when it is missing.
set -euo pipefail

readonly debian=debian:bookworm-slim
readonly golang=golang:1.26-bookworm
readonly distroless=gcr.io/distroless/static-debian12:nonroot
readonly label='LABEL sip-capture.stand-in=true'

cd "$(dirname "$0")/.."
work=$(mktemp -d)
container=
clean_up() {
    [ -z "$container" ] || docker rm -f "$container" >/dev/null
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# here_or_pulled IMAGE succeeds when nothing remains to be done for it.
here_or_pulled() {
    if docker image inspect "$1" >/dev/null 2>&1; then
        echo "$1: is here"
    elif docker pull --quiet "$1" >/dev/null 2>"$work/pull.log"; then
        echo "$1: pulled"
    else
        echo "$1: cannot be pulled ($(tail -n 1 "$work/pull.log" | cut -c 1-100)); making a stand-in"
        return 1
    fi
}

need_root() {
    [ "$(id -u)" = 0 ] || { echo "a stand-in for $1 has to be made as root" >&2; exit 1; }
}

# A minimal Debian. Package lists and documentation are left out, as in the real one.
make_debian() {
    need_root "$debian"
    if ! command -v debootstrap >/dev/null; then
        echo "installing debootstrap"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    fi
    debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log" || {
        tail -n 20 "$work/debootstrap.log" >&2
        exit 1
    }
    rm -rf "$work"/debian/var/lib/apt/lists/* "$work"/debian/var/cache/apt/* \
        "$work"/debian/usr/share/{doc,man,locale,info}/*
    tar -C "$work/debian" -c . | docker import --change "$label" --change 'CMD ["bash"]' - "$debian" >/dev/null
}

# in_debian starts a container of the Debian image, in which a stand-in is put together with docker exec.
in_debian() {
    container=$(docker run --detach --env DEBIAN_FRONTEND=noninteractive "$debian" sleep infinity)
    docker exec "$container" apt-get update -qq
}

discard_container() {
    docker rm -f "$container" >/dev/null
    container=
}

# Debian, a C compiler, and the Go of this machine.
make_golang() {
    local goroot
    # Asked for in the module's directory: the version that go.mod selects.
    goroot=$(go env GOROOT) || { echo "a stand-in for $golang needs go on this machine" >&2; exit 1; }
    in_debian
    docker exec "$container" apt-get install -y -qq --no-install-recommends \
        ca-certificates gcc git libc6-dev make pkg-config >"$work/apt.log" 2>&1 || {
        tail -n 20 "$work/apt.log" >&2
        exit 1
    }
    tar -C "$goroot" -c --exclude=./test --transform 's,^\.,usr/local/go,' . | docker cp - "$container:/"
    # Where the network of this machine is behind an authority of its own, `go mod download` needs it too.
    if [ -d /usr/local/share/ca-certificates ]; then
        tar -C /usr/local/share -c ca-certificates | docker cp - "$container:/usr/local/share"
        docker exec "$container" update-ca-certificates >/dev/null 2>&1
    fi
    docker exec "$container" sh -c 'mkdir -p /go/src /go/bin && rm -rf /var/lib/apt/lists/*'
    docker commit --change "$label" --change 'ENV GOPATH=/go GOTOOLCHAIN=local' \
        --change 'ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV DEBIAN_FRONTEND=' --change 'WORKDIR /go' --change 'CMD ["bash"]' \
        "$container" "$golang" >/dev/null
    discard_container
}

# What distroless "static" holds: names, time zones and certificates, no program and no library.
make_distroless() {
    in_debian
    docker exec -i "$container" bash -eu >"$work/distroless.tar" <<'SCRIPT'
exec 3>&1 1>&2
mkdir -p /packages /image
cd /packages
apt-get download -qq -o APT::Sandbox::User=root base-files netbase tzdata ca-certificates
for package in *.deb; do dpkg-deb --extract "$package" /image; done
rm -rf /image/usr/share/doc /image/usr/share/man /image/usr/sbin /image/usr/share/bug
# ca-certificates joins its files at installation only.
mkdir -p /image/etc/ssl/certs
find /image/usr/share/ca-certificates -name '*.crt' | sort | xargs cat >/image/etc/ssl/certs/ca-certificates.crt
cat >/image/etc/passwd <<'EOT'
root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
EOT
cat >/image/etc/group <<'EOT'
root:x:0:
nobody:x:65534:
tty:x:5:
staff:x:50:
nonroot:x:65532:
EOT
mkdir -p /image/tmp /image/root /image/home/nonroot
chmod 1777 /image/tmp
chmod 700 /image/root /image/home/nonroot
chown 65532:65532 /image/home/nonroot
tar -C /image -c . >&3
SCRIPT
    docker import --change "$label" --change 'USER 65532' --change 'WORKDIR /home/nonroot' \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
        "$work/distroless.tar" "$distroless" >/dev/null
    discard_container
}

# In this order: the later stand-ins are made in the first.
here_or_pulled "$debian" || make_debian
here_or_pulled "$golang" || make_golang
here_or_pulled "$distroless" || make_distroless
