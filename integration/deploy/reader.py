#!/usr/bin/env python3
"""Prints the time and the first line of each message, once, however often it is delivered.

Needs paho-mqtt: apt install python3-paho-mqtt, or pip install paho-mqtt. A client id of its own and clean_session=False let
the broker keep what comes while the program is away.
"""
import base64
import hashlib
import json

from paho.mqtt import subscribe

seen = {}  # ids; a dict keeps their order


def on_message(client, userdata, m):
    e = json.loads(m.payload)
    if e["id"] in seen:
        return  # delivered again
    seen[e["id"]] = True
    if len(seen) > 100_000:
        del seen[next(iter(seen))]
    sip = base64.b64decode(e["sip"])
    assert hashlib.sha256(sip).hexdigest() == e["signature"]
    print(e["time"], sip.split(b"\r\n")[0].decode(errors="replace"))


subscribe.callback(on_message, "sip", qos=1, hostname="localhost", client_id="reader", clean_session=False)
