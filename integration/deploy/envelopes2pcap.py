#!/usr/bin/env python3
"""Turns envelopes back into a capture file that Wireshark, tshark, sngrep and sip-capture itself read.

    mosquitto_sub -t sip -q 1 -C 1000 | ./envelopes2pcap.py >calls.pcap
    mosquitto_sub -t sip -q 1 | ./envelopes2pcap.py | wireshark -k -i -

Reads envelopes from standard input, a line each. Each message becomes one UDP datagram in raw IP, whatever it came in, with its
time and, where the sensor has INCLUDE_ADDRESSES=true, its addresses; else it goes from 192.0.2.1 to 192.0.2.2, port 5060.
"""
import base64
import ipaddress
import json
import struct
import sys
from datetime import datetime, timezone


def endpoint(text):
    """The address and the port of 192.0.2.1:5060 or [2001:db8::1]:5060."""
    host, port = text.rsplit(":", 1)
    return ipaddress.ip_address(host.strip("[]")), int(port)


def checksum(data):
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packet(source, destination, payload):
    (source, source_port), (destination, destination_port) = source, destination
    length = 8 + len(payload)
    pseudo = source.packed + destination.packed + struct.pack("!II", length, 17)
    udp = struct.pack("!HHHH", source_port, destination_port, length, 0)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF) + payload
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + source.packed + destination.packed + udp
    ip = struct.pack("!BBHIBBH", 0x45, 0, 20 + length, 0, 64, 17, 0) + source.packed + destination.packed
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + udp


out = sys.stdout.buffer
# Times in nanoseconds; link type 101 is raw IP (https://www.tcpdump.org/linktypes.html).
out.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 101))
for line in sys.stdin:
    e = json.loads(line)
    message = base64.b64decode(e["sip"])
    source = endpoint(e.get("src", "192.0.2.1:5060"))
    destination = endpoint(e.get("dst", "192.0.2.2:5060"))
    if len(message) > 65535 - 28:
        print(e["id"], "is left out: it is too long for a datagram", file=sys.stderr)
        continue
    frame = packet(source, destination, message)
    second, fraction = e["time"].rstrip("Z").split(".")
    seconds = int(datetime.fromisoformat(second).replace(tzinfo=timezone.utc).timestamp())
    out.write(struct.pack("=IIII", seconds, int(fraction.ljust(9, "0")), len(frame), len(frame)) + frame)
    out.flush()
