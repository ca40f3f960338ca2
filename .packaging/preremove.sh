#!/bin/sh
# Before removal, not before an upgrade: dpkg says "remove", rpm how many versions stay.
set -e
case "${1-}" in
    remove | 0) ;;
    *) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
    systemctl disable --now --quiet sip-capture.service
fi
