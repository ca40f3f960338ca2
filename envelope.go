package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// transport is what carried a message.
type transport uint8

const udp, tcp, sctp, ws, transports transport = 0, 1, 2, 3, 4 // the last one is how many there are

var transportNames = [transports]string{"udp", "tcp", "sctp", "ws"}

// message is one SIP message as it was on the wire: the one type that crosses the files.
type message struct {
	time      time.Time      // when the frame that completed it was captured
	src, dst  netip.AddrPort // the innermost addresses
	transport transport
	index     int    // its place among the messages that its frame completed, from 0
	raw       []byte // the bytes of the wire; valid only during the call that hands the message over
}

// appendEnvelope wraps a message for the broker: one JSON object in one line, its keys always in the same order. Nothing in it is taken out of
// the message, which is in it as it was.
//
// id is a UUID of version 8 (RFC 9562 §5.8) of all that tells this message from any other that was ever captured: the same capture always
// has the same id. signature is the same wherever and whenever the same bytes are seen.
func appendEnvelope(b []byte, m *message, version string, addresses bool) []byte {
	signature, at := sha256.Sum256(m.raw), m.time.UTC().Format("2006-01-02T15:04:05.000000000Z")
	b = append(slices.Grow(b, 512+4*len(version)+base64.StdEncoding.EncodedLen(len(m.raw))), `{"id":"`...)
	identity := m.src.AppendTo(append(append(b, signature[:]...), at...))
	identity = m.dst.AppendTo(append(identity, byte(m.transport), byte(m.index>>8), byte(m.index)))
	id := sha256.Sum256(identity[len(b):])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version and variant
	for _, part := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:16]} {
		b = append(hex.AppendEncode(b, part), '-')
	}
	b = append(append(b[:len(b)-1], `","time":"`...), at...)
	b = strconv.AppendQuote(append(b, `","version":`...), version)
	b = hex.AppendEncode(append(b, `,"signature":"`...), signature[:])
	if addresses {
		b = append(append(b, `","transport":"`...), transportNames[m.transport]...)
		b = m.dst.AppendTo(append(m.src.AppendTo(append(b, `","src":"`...)), `","dst":"`...))
	}
	return append(base64.StdEncoding.AppendEncode(append(b, `","sip":"`...), m.raw), `"}`...)
}
