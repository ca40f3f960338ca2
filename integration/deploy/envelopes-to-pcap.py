#!/usr/bin/env python3
"""Turns envelopes into a capture file, for Wireshark, tshark and sngrep.

    mosquitto_sub -t sip -W 60 | ./envelopes-to-pcap.py >calls.pcap

The sensor needs INCLUDE_ADDRESSES=true. Each message becomes one UDP datagram, also where it came over TCP, SCTP or
WebSocket: what the network had around it isn't in an envelope. A message of more than 65,507 bytes doesn't fit and is
left out, with a word on standard error. Nothing but Python 3 is needed.
"""

import base64
import ipaddress
import json
import re
import struct
import sys
from datetime import datetime, timezone

MOST = 65_507  # bytes in a UDP datagram over IPv4
UDP = 17
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def endpoint(text):
    """'192.0.2.1:5060' or '[2001:db8::1]:5060'."""
    host, port = text.rsplit(":", 1)
    return ipaddress.ip_address(host.strip("[]")), int(port)


def frame(source, destination, payload):
    """An Ethernet frame with a UDP datagram; the hardware addresses are 0."""
    (src, sport), (dst, dport) = source, destination
    length = 8 + len(payload)
    pseudo = src.packed + dst.packed + struct.pack("!II", length, UDP)
    header = struct.pack("!HHH", sport, dport, length)
    datagram = header + struct.pack("!H", checksum(pseudo + header + b"\0\0" + payload) or 0xFFFF) + payload
    if src.version == 4:
        ip = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 0, 0, 64, UDP)
        ip += struct.pack("!H", checksum(ip + b"\0\0" + src.packed + dst.packed))
    else:
        ip = struct.pack("!IHBB", 6 << 28, length, UDP, 64)
    return bytes(12) + struct.pack("!H", ETHERTYPE[src.version]) + ip + src.packed + dst.packed + datagram


def seconds_and_nanoseconds(text):
    """RFC 3339 with up to nine digits of a second, in UTC."""
    whole, digits = re.fullmatch(r"([^.Z]*)(?:\.(\d+))?Z", text).groups()
    moment = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc)
    return int((moment - EPOCH).total_seconds()), int((digits or "0").ljust(9, "0"))


def main():
    out = sys.stdout.buffer
    # pcap with nanoseconds, version 2.4, Ethernet.
    out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
    for line in sys.stdin:
        envelope = json.loads(line)
        if "src" not in envelope:
            sys.exit("no addresses in the envelope: set INCLUDE_ADDRESSES=true")
        sip = base64.b64decode(envelope["sip"])
        if len(sip) > MOST:
            print(f"{envelope['id']}: {len(sip)} bytes don't fit", file=sys.stderr)
            continue
        packet = frame(endpoint(envelope["src"]), endpoint(envelope["dst"]), sip)
        out.write(struct.pack("<IIII", *seconds_and_nanoseconds(envelope["time"]), len(packet), len(packet)) + packet)
        out.flush()


main()
