package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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

// envelope wraps a message for the broker: one JSON object in one line, its keys always in the same order. Nothing in it is taken out of
// the message, which is in it as it was.
//
// id is a UUID of version 8 (RFC 9562 §5.8) of all that tells this message from any other that was ever captured: the same capture always
// has the same id. signature is the same wherever and whenever the same bytes are seen.
func envelope(m *message, version string, addresses bool) []byte {
	signature, at := sha256.Sum256(m.raw), m.time.UTC().Format("2006-01-02T15:04:05.000000000Z")
	b := append(make([]byte, 0, 512+4*len(version)+base64.StdEncoding.EncodedLen(len(m.raw))), `{"id":"`...)
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

// verdict tells whether bytes are what they are tested for; maybe: that depends on bytes that aren't there yet.
type verdict uint8

const no, maybe, yes = verdict(0), verdict(1), verdict(2)

// startLine reports whether b begins with the start line of a SIP/2.0 message (RFC 3261 §7.1, §7.2), lenient
// about the Request-URI.
func startLine(b []byte) verdict {
	const version, digits = "SIP/2.0", 3
	method := 0
	for method < len(b) && method <= maxMethod && isToken(b[method]) {
		method++
	}
	known := min(len(b), len(version+" "))
	isResponse := bytes.EqualFold(b[:known], []byte(version + " ")[:known])
	isRequest := method <= maxMethod && (method == len(b) || method > 0 && b[method] == ' ')
	if !isResponse && !isRequest {
		return no
	}
	line, _, isWhole := bytes.Cut(b, []byte("\n"))
	if !isWhole {
		return maybe
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if isResponse {
		code, _, _ := bytes.Cut(line[min(known, len(line)):], []byte(" "))
		if len(code) == digits && len(bytes.Trim(code, "0123456789")) == 0 {
			return yes
		}
	}
	before := len(line) - len(version) // the blank before it isn't the one behind the method
	if isRequest && before > method+2 && line[before-1] == ' ' && bytes.EqualFold(line[before:], []byte(version)) {
		return yes
	}
	return no
}

// The view of a message follows. It takes any bytes: a malformed message is inspected as far as it goes.

// longForms has the header of each compact form in the IANA registry of SIP header fields.
var longForms = map[string]string{
	"a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition", "e": "content-encoding",
	"f": "from", "i": "call-id", "j": "reject-contact", "k": "supported", "l": "content-length", "m": "contact", "n": "identity-info",
	"o": "event", "r": "refer-to", "s": "subject", "t": "to", "u": "allow-events", "v": "via", "x": "session-expires", "y": "identity",
}

// parts are those of a start line: code is nil in a request, uri (what stands between the first and the last blank) in a
// response, whose method is the last word of CSeq (RFC 3261 §20.16).
type parts struct{ method, uri, code []byte }

// partsOf takes the start line of a message apart. Empty lines may come before it (RFC 3261 §7.5), here and below.
func partsOf(raw []byte) parts {
	line, _ := cutLine(bytes.TrimLeftFunc(raw, isCRLF))
	first, rest, _ := bytes.Cut(line, []byte(" "))
	if bytes.EqualFold(first, []byte("SIP/2.0")) {
		cseq := firstHeader(raw, "cseq")
		return parts{method: cseq[bytes.LastIndexAny(cseq, " \t")+1:], code: rest[:min(3, len(rest))]}
	}
	return parts{method: first, uri: rest[:max(0, bytes.LastIndexByte(rest, ' '))]}
}

func isCRLF(c rune) bool { return c == '\r' || c == '\n' }

// cutLine cuts text after its first line, whose end (CRLF, or LF in malformed messages) belongs to neither part.
func cutLine(text []byte) (line, after []byte) {
	line = text
	if end := bytes.IndexByte(text, '\n'); end >= 0 {
		line, after = text[:end], text[end+1:]
	}
	if end := len(line) - 1; end >= 0 && line[end] == '\r' {
		line = line[:end]
	}
	return line, after
}

// anyHeader reports whether match is true for the value of any header field of raw with that name (given in lower case
// and long form; on the wire in any case, long or compact). The value is unfolded (RFC 3261 §7.3.1) and trimmed, and
// valid only during the call. A nil match is true for any value.
func anyHeader(raw []byte, name string, match func(value []byte) bool) bool {
	found, _ := headers(raw, name, match)
	return found
}

// headers is anyHeader, and if match is never true it also returns what follows the first empty line, where header fields
// end; nil if there is none.
func headers(raw []byte, name string, match func(value []byte) bool) (found bool, after []byte) {
	last := len(name) - 1
	_, rest := cutLine(bytes.TrimLeftFunc(raw, isCRLF))
	line, rest := cutLine(rest)
	for ; len(line) > 0; line, rest = cutLine(rest) {
		differs := len(line) < len(name) || line[0]|0x20 != name[0]|0x20 || line[last]|0x20 != name[last]|0x20 // 0x20: in lower case
		if differs && len(line) > 1 && isToken(line[1]) {
			continue // most headers, at a glance: another first or last letter, and no compact form
		}
		colon := bytes.IndexByte(line, ':')
		header := bytes.TrimSpace(line[:max(0, colon)])
		isCompact := len(header) == 1 && longForms[string(rune(header[0]|0x20))] == name // 0x20: in lower case
		if line[0] > ' ' && (isCompact || bytes.EqualFold(header, []byte(name))) {
			value := slices.Clip(bytes.TrimSpace(line[colon+1:])) // clipped: appending copies it
			for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
				line, rest = cutLine(rest)
				value = append(append(value, ' '), bytes.TrimSpace(line)...)
			}
			if match == nil || match(bytes.TrimSpace(value)) {
				return true, nil
			}
		}
	}
	return false, rest
}

// firstHeader is the value of the first header field with that name (see anyHeader), nil without one.
func firstHeader(raw []byte, name string) (first []byte) {
	anyHeader(raw, name, func(value []byte) bool { first = value; return true })
	return first
}

// body is what follows the first empty line.
func body(raw []byte) []byte {
	_, after := headers(raw, " ", nil)
	return after
}

// tokenBytes has the bytes of a token, such as a method or the name of a header (RFC 3261 §25.1).
// isToken reports whether c may stand in a token.
func isToken(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-.!%*_+`'~", c) >= 0 // 0x20: in lower case
}
