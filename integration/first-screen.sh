#!/usr/bin/env bash
# Runs the first screen of README.md word by word, as a reader would: as root in bash, in a clean clone of this repository, on a
# Debian machine with Go and nothing else (a container, which is removed at the end; its image stays). What is not committed is
# not in a clone. Then the output has to be what the README shows: the same message, and its first line with a time.
#
# Needs docker, and where no registry can be reached integration/base-images.sh first.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly image=golang:1.26-bookworm
work=$(mktemp -d)
container=
clean_up() {
    [ -z "$container" ] || docker rm --force --volumes "$container" >/dev/null
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# block LANGUAGE is the first block in this language in the first section of README.md.
block() {
    awk -v begin="\`\`\`$1" '
        /^## / { sections++ }
        sections > 1 { exit }
        $0 == "```" && inside { exit }
        inside { print }
        $0 == begin { inside = 1 }' "$work/clone/README.md"
}

# A source without git, as from an archive, is copied.
git clone --quiet --no-hardlinks . "$work/clone" 2>"$work/log" || cp -a . "$work/clone"
block sh >"$work/commands"
echo 'kill %1' >>"$work/commands" # as the README says; and docker exec waits for whoever has its pipes
block json >"$work/envelope"
block text >"$work/line"
for file in commands envelope line; do
    [ -s "$work/$file" ] || fail "the first screen has no $file"
done

container=$(docker create --label "sip-capture-test=${SUITE_RUN:-$$}" --env DEBIAN_FRONTEND=noninteractive --workdir /root/sip-capture \
    "$image" sleep infinity)
docker start "$container" >/dev/null
tar -C "$work/clone" --owner 0 --group 0 -c . | docker exec --interactive "$container" tar -x
# The commands are typed, so to say: bash reads them from its standard input, with job control.
docker exec --interactive "$container" timeout 900 bash -m <"$work/commands" >"$work/output" 2>"$work/errors" ||
    { cat "$work/output" "$work/errors" >&2; fail "a command of the first screen"; }

# What it says in the end is the envelope and the line. Times, ids and versions differ.
tail -n 2 "$work/output" | head -n 1 >"$work/got-envelope"
tail -n 1 "$work/output" >"$work/got-line"
same() {
    sed -E 's/"(id|time|version)":"[^"]*"/"\1":""/g; s/^[0-9-]+T[0-9:.]+Z /TIME /' "$1"
}
for part in envelope line; do
    diff <(same "$work/$part") <(same "$work/got-$part") >&2 ||
        { tail -n 5 "$work/errors" >&2; fail "the README shows another $part"; }
done
grep -q '^TIME ' <(same "$work/got-line") || fail "the line has no time"
cat "$work/got-line"
