#!/bin/sh
# After removal. The user stays: files in /etc/sip-capture may belong to its group, and its number must not become another's.
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
