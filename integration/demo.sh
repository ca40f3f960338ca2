#!/usr/bin/env bash
# The demonstration in one command: makes calls with SIPp, captures them, and shows the envelopes that a subscriber
# of the broker receives, one of them decoded to its INVITE, and the first call as a ladder.
#
#   integration/demo.sh           until Ctrl-C
#   integration/demo.sh --once    a few envelopes, then it ends by itself
#
# Everything is in containers on a network of its own (compose.yaml) and is removed at the end; the images stay.
set -euo pipefail

once=
case "${1-}" in
    '') ;;
    --once) once=yes ;;
    *) echo "usage: $0 [--once]" >&2; exit 2 ;;
esac

cd "$(dirname "$0")/.."
docker info >/dev/null 2>&1 || { echo "Docker is needed, and its engine must be running." >&2; exit 1; }

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    if ! command -v docker-compose >/dev/null; then
        echo "installing docker-compose"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends docker-compose >/dev/null
    fi
    compose=(docker-compose)
fi
compose+=(--project-name "sip-capture-demo-$$")

log=$(mktemp)
clean_up() {
    # Where it did not get as far as starting, there is nothing to take down.
    "${compose[@]}" down --volumes >"$log" 2>&1 || tail -n 5 "$log" >&2
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# quietly runs a command and shows what it printed only when it fails.
quietly() {
    "$@" >"$log" 2>&1 </dev/null || { tail -n 40 "$log" >&2; echo "failed: $*" >&2; exit 1; }
}

# field NAME prints the value of a string in the envelope that is read: the envelope is one line without nesting.
field() {
    sed -E 's/.*"'"$1"'":"([^"]*)".*/\1/'
}

# call_id prints the Call-ID of the message that is read.
call_id() {
    sed -n 's/^Call-ID: *//p' | head -n 1
}

integration/base-images.sh
echo "building"
quietly "${compose[@]}" build
echo "starting"
quietly "${compose[@]}" up -d

subscriber=$("${compose[@]}" ps -q subscriber)
sensor=$("${compose[@]}" ps -q sensor)
shown=0
decoded=
call=
ladder=()
echo
echo "envelopes on the topic demo/sip, with the first line of the message in each:"
while [ -z "$once" ] || [ "$shown" -lt 8 ] || [ "$call" != shown ]; do
    if ! read -r -t 60 envelope; then
        echo "no envelope within 60 s; the sensor's log:" >&2
        docker logs "$sensor" >&2
        exit 1
    fi
    # A message may end without a line end, and tr removes what a terminal must not see.
    message=$(printf '%s' "$envelope" | field sip | base64 --decode | tr -d '\r\000' | tr '\001-\010\013-\037\177' '?')
    time=$(printf '%s' "$envelope" | field time)
    first=${message%%$'\n'*}
    printf '%s  %s  %s\n' "$time" "$(printf '%s' "$envelope" | field id)" "$first"
    shown=$((shown + 1))
    if [ -z "$decoded" ] && [[ $message == INVITE\ * ]]; then
        decoded=yes
        printf '\n%s\n\nis the envelope of that INVITE, and this is its "sip", decoded:\n\n' "$envelope"
        printf '%s\n' "$message" | sed 's/^/    /'
        echo
        call=$(call_id <<<"$message")
    fi
    # The first call, to the 200 of its BYE.
    if [ -n "$call" ] && [ "$(call_id <<<"$message")" = "$call" ]; then
        clock=${time#*T}
        ladder+=("$(printf '%-15s  %21s -> %-21s  %s' "${clock:0:15}" "$(printf '%s' "$envelope" | field src)" \
            "$(printf '%s' "$envelope" | field dst)" "$first")")
        if [[ $first == SIP/2.0\ 200\ * ]] && grep -q '^CSeq:.* BYE$' <<<"$message"; then
            call=shown
            printf '\nthat call:\n\n'
            printf '    %s\n' "${ladder[@]}"
            echo
        fi
    fi
done < <(docker logs --follow "$subscriber" 2>&1)
echo
echo "stopping"
