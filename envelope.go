package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"time"
)

// transport is what carried a message.
type transport uint8

const (
	udp transport = iota
	tcp
	sctp
	ws
	transports // how many there are
)

var transportNames = [transports]string{"udp", "tcp", "sctp", "ws"}

// message is one SIP message as it was on the wire: the one type that crosses the files.
type message struct {
	time      time.Time      // when the frame that completed it was captured
	src, dst  netip.AddrPort // the innermost addresses
	transport transport
	index     int    // its place among the messages that its frame completed, from 0
	raw       []byte // the bytes of the wire; valid only during the call that hands the message over
}

// envelope wraps a message for the broker (version is a JSON string already): one JSON object in one line, its keys always in the same order. Nothing in it is taken out of the
// message, which is in it as it was.
//
// id is a UUID of version 8 (RFC 9562 §5.8) of all that tells this message from any other that was ever captured: the same capture always has the
// same id. signature is the same wherever and whenever the same bytes are seen.
func envelope(m *message, version string, addresses bool) []byte {
	signature := sha256.Sum256(m.raw)
	identity := make([]byte, 0, 128)
	identity = binary.BigEndian.AppendUint64(identity, uint64(m.time.UnixNano()))
	identity = append(identity, byte(m.transport), byte(m.index>>8), byte(m.index))
	for _, address := range []netip.AddrPort{m.src, m.dst} {
		ip := address.Addr().As16()
		identity = binary.BigEndian.AppendUint16(append(identity, ip[:]...), address.Port())
	}
	id := sha256.Sum256(append(identity, signature[:]...))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version and variant

	b := make([]byte, 0, 384+2*len(version)+base64.StdEncoding.EncodedLen(len(m.raw)))
	b = append(b, `{"id":"`...)
	for i, c := range id[:16] {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, []byte{c})
	}
	b = m.time.UTC().AppendFormat(append(b, `","time":"`...), "2006-01-02T15:04:05.000000000Z")
	b = append(append(b, `","version":`...), version...)
	b = hex.AppendEncode(append(b, `,"signature":"`...), signature[:])
	if addresses {
		b = append(append(b, `","transport":"`...), transportNames[m.transport]...)
		b = m.src.AppendTo(append(b, `","src":"`...))
		b = m.dst.AppendTo(append(b, `","dst":"`...))
	}
	b = base64.StdEncoding.AppendEncode(append(b, `","sip":"`...), m.raw)
	return append(b, `"}`...)
}

// quoted makes a JSON string.
func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}
