# The image of sip-capture: one static binary on distroless, for linux/amd64 and linux/arm64.
#
#   docker build --build-arg VERSION=v1.2.3 --tag sip-capture .
#
# BuildKit and the classic builder both read this file. With BuildKit and --platform the program is
# cross-compiled, so that nothing runs in emulation; the classic builder builds for amd64.

# BUILDPLATFORM and TARGETARCH are set by BuildKit only. (A default for TARGETARCH would override its value.)
FROM --platform=${BUILDPLATFORM:-linux/amd64} golang:1.26-bookworm AS build
ARG TARGETARCH

# libpcap as a static library and a C compiler, both for the target. libcap2-bin has setcap.
RUN set -eu; \
    native="$(dpkg --print-architecture)"; target="${TARGETARCH:-$native}"; \
    case "$target" in \
        amd64) triplet=x86_64-linux-gnu ;; \
        arm64) triplet=aarch64-linux-gnu ;; \
        *) echo "no build for $target" >&2; exit 1 ;; \
    esac; \
    packages="libcap2-bin libpcap-dev:$target"; \
    if [ "$target" != "$native" ]; then \
        dpkg --add-architecture "$target"; \
        packages="$packages gcc-$(echo $triplet | tr _ -)"; \
    fi; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends $packages >/dev/null; \
    rm -rf /var/lib/apt/lists/*; \
    echo "export CGO_ENABLED=1 GOARCH=$target CC=$triplet-gcc" >/target

WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY *.go ./

# Debian's libpcap.a can capture from D-Bus, which has no static library: its two entry points are defined as 0
# and stay unused, for a D-Bus device is not one that exists here. netgo and osusergo keep the C library's
# resolver, which can't be linked statically, out. The same commit gives the same binary: no paths, no build ids.
ARG VERSION=devel
RUN . /target; mkdir -p /dist; \
    CGO_LDFLAGS="-Wl,--defsym=dbus_create=0,--defsym=dbus_findalldevs=0" \
    go build -o /dist/sip-capture -trimpath -buildvcs=false -tags netgo,osusergo \
        -ldflags "-s -w -buildid= -X main.version=$VERSION -linkmode external -extldflags -static" . && \
    setcap cap_net_raw=ep /dist/sip-capture

FROM gcr.io/distroless/static-debian12:nonroot
# The directory, not the file: only so the file keeps its capability.
COPY --from=build /dist/ /
# The base image's user "nonroot", as a number, so that an orchestrator can see that it isn't root.
USER 65532:65532
ENTRYPOINT ["/sip-capture"]

ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="sip-capture" \
      org.opencontainers.image.description="A passive SIP sensor: captures SIP messages and publishes them over MQTT" \
      org.opencontainers.image.source="https://github.com/ik5/sip-capture" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
