#!/bin/sh
# After installation or upgrade, of the deb and of the rpm: the service's user exists, and a running service is the new one.
# It is not started the first time: it has no TOPIC yet.
set -e
getent passwd sip-capture >/dev/null ||
    useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin sip-capture
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart sip-capture.service
fi
