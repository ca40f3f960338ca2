#!/usr/bin/env bash
# Makes what a release carries besides the image, for linux/amd64 and linux/arm64: the static binary, a deb, an rpm and a
# list of what is linked into the binary (SBOM, SPDX 2.3); the files of integration/deploy in one archive; and SHA256SUMS of them
# all. The manual page in the packages is what sip-capture -help prints.
#
#   integration/packages.sh v1.2.3 dist
#
# The binaries are those of the image: they come out of its Dockerfile. The same commit gives the same files.
# Needs docker, with or without BuildKit, and go; where no registry can be reached, integration/base-images.sh first. It leaves
# the base images and the layers of the build, which have no tag (`docker image prune` removes those).
set -euo pipefail

readonly nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

[ $# = 2 ] || { echo "usage: $0 VERSION DIRECTORY" >&2; exit 2; }
readonly version=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
[ -z "$(ls -A "$out")" ] || { echo "$out is not empty" >&2; exit 1; }

cd "$(dirname "$0")/.."
work=$(mktemp -d)
loaded=()
clean_up() {
    rm -rf "$work"
    [ ${#loaded[@]} -eq 0 ] || docker rmi "${loaded[@]}" >/dev/null
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# What is dated, is dated with the commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

GOBIN=$work go install "$nfpm"
(cd integration && go build -o "$work/sbom" ./sbom)

# The architecture of this machine comes first: only its binary can be run, to print the manual.
architectures=(amd64 arm64)
[ "$(docker version --format '{{.Server.Arch}}')" != arm64 ] || architectures=(arm64 amd64)
for architecture in "${architectures[@]}"; do
    # BuildKit sets TARGETARCH, the classic builder has to be told what is not its own architecture. The image has no tag: in the
    # classic builder it is the layer that the next build finds, and to remove the tag would remove it.
    build=(docker build)
    if docker buildx version >/dev/null 2>&1; then
        build=(docker buildx build --load --platform "linux/$architecture")
    elif [ "$architecture" != "$(docker version --format '{{.Server.Arch}}')" ]; then
        build=(docker build --build-arg "TARGETARCH=$architecture")
    fi
    "${build[@]}" --target build --build-arg "VERSION=$version" --iidfile "$work/stage" . >"$work/build.log" 2>&1 </dev/null ||
        { tail -n 40 "$work/build.log" >&2; exit 1; }
    stage=$(<"$work/stage")
    [ "${build[1]}" = build ] || loaded+=("$stage")
    # in_stage runs a shell script in the build stage, whose programs are those of the machine that builds.
    in_stage() {
        docker run --rm --interactive "$stage" sh -eu -s
    }

    binary=$out/sip-capture_${version#v}_linux_$architecture
    in_stage >"$binary" <<<'cat /dist/sip-capture'
    chmod 755 "$binary"

    # A manual page that is shown as it is. Of roff's characters a text can have the backslash, and a dot or quote that begins a line.
    if [ ! -e "$work/sip-capture.8.gz" ]; then
        in_stage >"$work/help" <<<'/dist/sip-capture -help'
        {
            printf '.TH SIP-CAPTURE 8 "" "sip-capture %s"\n.SH NAME\n' "$version"
            printf 'sip-capture \\- passive SIP sensor that publishes to MQTT\n.SH DESCRIPTION\n.nf\n'
            sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/" "$work/help"
            printf '.fi\n.SH SEE ALSO\n/usr/share/doc/sip-capture/README.md\n'
        } | gzip -9n >"$work/sip-capture.8.gz"
    fi

    # The Debian packages whose code is linked into the binary, and everybody's licenses.
    in_stage >"$work/linked" <<'SCRIPT'
. /target
for library in libpcap libc libgcc libgcc_eh; do
    package=$(dpkg -S "$(realpath "$($CC -print-file-name=$library.a)")" | cut -d ' ' -f 1)
    dpkg-query --show --showformat='${Package}=${Version}\n' "${package%:}"
done | sort -u
SCRIPT
    in_stage >"$work/licenses" <<'SCRIPT'
for file in $(go list -deps -f '{{with .Module}}{{if .Version}}{{.Dir}}{{end}}{{end}}' . | sort -u | sed 's,$,/*,') \
    /usr/local/go/LICENSE /usr/share/doc/libpcap0.8-dev/copyright /usr/share/doc/libc6-dev/copyright; do
    case "${file##*/}" in
        LICENSE* | NOTICE* | edl-* | epl-* | copyright) ;;
        *) continue ;;
    esac
    name=${file#/go/pkg/mod/}
    printf '\n\n===== %s\n\n' "${name#/usr/share/doc/}"
    cat "$file"
done
SCRIPT
    { cat LICENSE; printf '\nThe binary contains the works of others, under these licenses:\n'; cat "$work/licenses"; } >"$work/copyright"

    mapfile -t linked <"$work/linked"
    "$work/sbom" "$version" "$binary" "${linked[@]}" >"$binary.spdx.json"

    for packager in deb rpm; do
        ARCH=$architecture VERSION=$version BINARY=$binary MANUAL=$work/sip-capture.8.gz LICENSES=$work/copyright \
            "$work/nfpm" package --config .nfpm.yaml --packager "$packager" --target "$out" >"$work/nfpm.log" 2>&1 ||
            { cat "$work/nfpm.log" >&2; exit 1; }
    done
done

# The files to copy.
tar -C integration --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --create deploy |
    gzip --no-name >"$out/sip-capture_${version#v}_deploy.tar.gz"

(cd "$out" && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
cat "$out/SHA256SUMS"
