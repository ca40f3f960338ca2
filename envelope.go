package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"strconv"
	"time"
)

// This file has what a SIP message is: its start line, header fields and body, read as far as
// capturing and filtering need; and at the end the envelope, which is all that becomes of it.

// message is one SIP message as it was on the wire: what capturing hands to all that follows.
type message struct {
	time      time.Time      // when the frame that completed it was captured
	src       netip.AddrPort // the innermost addresses
	dst       netip.AddrPort
	transport transport
	index     int    // its place among the messages that its frame completed, from 0
	raw       []byte // all of it; valid only during the call that hands the message over
}

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

// verdict tells whether bytes are what they are tested for; maybe: that depends on bytes that
// aren't there yet.
type verdict uint8

const (
	no verdict = iota
	maybe
	yes
)

const maxMethod = 256 // bytes of a method

// startLine reports whether b begins with the start line of a SIP/2.0 message (RFC 3261 §7.1,
// §7.2), lenient about the Request-URI.
func startLine(b []byte) verdict {
	const version, digits = "SIP/2.0", 3
	word := 0 // bytes of the method, or of the SIP of a response
	for word < len(b) && word <= maxMethod && isToken(b[word]) {
		word++
	}
	if word > maxMethod || word == 0 && len(b) > 0 {
		return no
	} else if word == len(b) {
		return maybe
	}
	known := min(len(b), len(version+" "))
	isResponse := b[word] == '/' && bytes.EqualFold(b[:known], []byte(version + " ")[:known])
	if !isResponse && b[word] != ' ' {
		return no
	}
	line, after := cutLine(b)
	if after == nil {
		return maybe
	}
	if isResponse {
		code, _, _ := bytes.Cut(line[known:], []byte(" "))
		if len(code) != digits || bytes.ContainsFunc(code, isNoDigit) {
			return no
		}
		return yes
	}
	before := len(line) - len(version) // of a request: method, blank, Request-URI, blank
	if before <= word+2 || line[before-1] != ' ' || !equalFold(line[before:], version) {
		return no
	}
	return yes
}

// What follows takes a message apart. It takes any bytes: of a malformed message it sees what is
// there. Nothing in it takes more than linear time, or allocates, but for folded header fields.

// parts are a message and what its start line says (RFC 3261 §7.1, §7.2).
type parts struct {
	message  *message
	lines    []byte // what follows the start line: header fields, an empty line, the body
	response bool
	method   []byte // of a response the last word of CSeq (RFC 3261 §20.16)
	uri      []byte // what stands between the first and the last blank of a request
	status   int    // the code of a response; 0 in a request
}

func partsOf(m *message) parts {
	line, lines := cutLine(trimLineEnds(m.raw))
	p := parts{message: m, lines: lines}
	first, rest, _ := bytes.Cut(line, []byte(" "))
	p.response = equalFold(first, "sip/2.0")
	if p.response {
		p.status, _ = strconv.Atoi(string(rest[:min(3, len(rest))]))
		cseq := firstHeader(lines, "cseq")
		p.method = cseq[bytes.LastIndexAny(cseq, " \t")+1:]
	} else {
		p.method = first
		p.uri = rest[:max(0, bytes.LastIndexByte(rest, ' '))]
	}
	return p
}

func isNoDigit(c rune) bool { return c < '0' || c > '9' }

func isCRLF(c byte) bool { return c == '\r' || c == '\n' }

// trimLineEnds takes away the empty lines that may come before a start line (RFC 3261 §7.5).
func trimLineEnds(raw []byte) []byte {
	for len(raw) > 0 && isCRLF(raw[0]) {
		raw = raw[1:]
	}
	return raw
}

// cutLine cuts text after its first line, whose end (CRLF, or LF in malformed messages) belongs to
// neither part. Where text has no line end, all of it is the line, and after is nil.
func cutLine(text []byte) (line, after []byte) {
	line, after = text, afterLine(text)
	if after != nil {
		line = text[:len(text)-len(after)-len("\n")]
	}
	if len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	return line, after
}

// afterLine is what follows the first line and its end, nil where it has none.
func afterLine(text []byte) []byte {
	end := bytes.IndexByte(text, '\n')
	if end < 0 {
		return nil
	}
	return text[end+1:]
}

// caseBit is the difference between an upper and a lower case letter in ASCII. With it, other
// bytes become equal, too: what is found so is only worth a closer look.
const caseBit = 0x20

// longForms has the long form of each header whose compact form is one letter, by that letter
// (the IANA registry of SIP header fields).
var longForms = [256]string{
	'a': "accept-contact",
	'b': "referred-by",
	'c': "content-type",
	'd': "request-disposition",
	'e': "content-encoding",
	'f': "from",
	'i': "call-id",
	'j': "reject-contact",
	'k': "supported",
	'l': "content-length",
	'm': "contact",
	'n': "identity-info",
	'o': "event",
	'r': "refer-to",
	's': "subject",
	't': "to",
	'u': "allow-events",
	'v': "via",
	'x': "session-expires",
	'y': "identity",
}

// nextField finds the next header field with a name, from the beginning of a line on. The name is
// given in its long form and lower case; a message may have it in any case, long or compact. The
// value is what its first line has, trimmed; rest is what follows that line: more of the value,
// where the field is folded. If there is no such field, rest is what follows the empty line that
// ends the header fields, and nil where there is no such line.
func nextField(lines []byte, name string) (value, rest []byte, found bool) {
	for len(lines) > 0 {
		// Most fields, at a glance: another first letter, and not an empty line. A folded line goes
		// this way, too: caseBit makes a blank of a blank, and ")" of a tab; no name begins so.
		first := lines[0] | caseBit
		if first != name[0]|caseBit && longForms[first] != name && !isCRLF(lines[0]) {
			lines = afterLine(lines)
			continue
		}
		line, after := cutLine(lines)
		if len(line) == 0 {
			return nil, after, false
		}
		value, found = fieldValue(line, name)
		if found {
			return value, after, true
		}
		lines = after
	}
	return nil, nil, false
}

// goesOn reports whether lines begin with a blank: then the first goes on with the field before it.
func goesOn(lines []byte) bool { return len(lines) > 0 && isBlank(lines[0]) }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// unfold makes one line of the value of a header field (RFC 3261 §7.3.1), from what nextField
// returned.
func unfold(value, rest []byte) []byte {
	if !goesOn(rest) {
		return value
	}
	unfolded := bytes.Clone(value)
	for goesOn(rest) {
		line, after := cutLine(rest)
		unfolded = append(append(unfolded, ' '), bytes.TrimSpace(line)...)
		rest = after
	}
	return bytes.TrimSpace(unfolded)
}

// fieldValue is the value in the first line of a header field, if the field has that name.
func fieldValue(field []byte, name string) (value []byte, named bool) {
	word, value, found := bytes.Cut(field, []byte(":"))
	for len(word) > 0 && isBlank(word[len(word)-1]) {
		word = word[:len(word)-1]
	}
	isCompact := len(word) == 1 && longForms[word[0]|caseBit] == name
	if !found || !isCompact && !equalFold(word, name) {
		return nil, false
	}
	return bytes.TrimSpace(value), true
}

// anyHeader reports whether match is true for the value of any header field with that name; a nil
// match is true for any value.
func anyHeader(lines []byte, name string, match func(value []byte) bool) bool {
	value, lines, found := nextField(lines, name)
	for found && match != nil && !match(unfold(value, lines)) {
		value, lines, found = nextField(lines, name)
	}
	return found
}

// firstHeader is the value of the first header field with that name, nil without one.
func firstHeader(lines []byte, name string) []byte {
	value, rest, found := nextField(lines, name)
	if !found {
		return nil
	}
	return unfold(value, rest)
}

// body is what follows the first empty line.
func body(lines []byte) []byte {
	_, after, _ := nextField(lines, "\n") // no field has that name: it stops at the empty line
	return after
}

// hasTag reports whether a value of To or From has a tag (RFC 3261 §20.39, §25.1): a parameter of
// that name behind the URI. What is in a quoted string or between < and > is none, nor is what
// comes before <. A string or URI that isn't closed goes on to the end.
func hasTag(value []byte) bool {
	if bytes.IndexByte(value, ';') < 0 {
		return false // as most requests outside of a dialog
	}
	tagged := false
	var end byte // of the string or URI that the loop is in
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\' && end == '"':
			i++ // past what it escapes
		case c == end:
			end = 0
		case end != 0:
		case c == '"':
			end = '"'
		case c == '<':
			end = '>'
			tagged = false
		case c == ';':
			tagged = tagged || isTag(value[i+1:])
		}
	}
	return tagged
}

// isTag reports whether a parameter is a tag: the word in any case, then "=", ";" or nothing.
func isTag(parameter []byte) bool {
	end := bytes.IndexAny(parameter, "=;")
	if end >= 0 {
		parameter = parameter[:end]
	}
	return equalFold(bytes.TrimSpace(parameter), "tag")
}

// equalFold reports whether b is an ASCII word in any case. (bytes.EqualFold alone takes U+017F
// for an s and U+212A for a k; both are longer.)
func equalFold(b []byte, word string) bool {
	return len(b) == len(word) && bytes.EqualFold(b, []byte(word))
}

// isToken reports whether c may stand in a token, such as a method or the name of a header
// (RFC 3261 §25.1).
func isToken(c byte) bool {
	switch c {
	case '-', '.', '!', '%', '*', '_', '+', '`', '\'', '~':
		return true
	}
	letter := c | caseBit
	return 'a' <= letter && letter <= 'z' || '0' <= c && c <= '9'
}

// appendEnvelope appends the envelope of a message to b: one JSON object in one line, its keys
// always in the same order. No field is extracted from the message, which is in it whole.
//
// id is a UUID of version 8 (RFC 9562 §5.8) of all that tells this message from any other that was
// ever captured: the same capture always has the same id. signature is the same wherever and
// whenever the same bytes are seen. version must be printable: quotes and backslashes are escaped.
func appendEnvelope(b []byte, m *message, version string, addresses bool) []byte {
	signature := sha256.Sum256(m.raw)
	var timeRoom [len("2006-01-02T15:04:05.000000000Z")]byte
	at := appendTime(timeRoom[:0], m.time)

	b = append(b, `{"id":"`...)
	b = appendID(b, m, signature[:], at)
	b = append(b, `","time":"`...)
	b = append(b, at...)
	b = append(b, `","index":`...)
	b = strconv.AppendInt(b, int64(m.index), 10)
	b = append(b, `,"version":`...)
	b = strconv.AppendQuote(b, version)
	b = append(b, `,"signature":"`...)
	b = hex.AppendEncode(b, signature[:])
	if addresses {
		b = append(b, `","transport":"`...)
		b = append(b, transportNames[m.transport]...)
		b = append(b, `","src":"`...)
		b = m.src.AppendTo(b)
		b = append(b, `","dst":"`...)
		b = m.dst.AppendTo(b)
	}
	b = append(b, `","sip":"`...)
	b = base64.StdEncoding.AppendEncode(b, m.raw)
	return append(b, `"}`...)
}

// appendTime appends a time in UTC as RFC 3339 has it, with all nine digits of the nanoseconds.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	b = t.AppendFormat(b, time.RFC3339) // package time is quick with this and RFC3339Nano only
	dot := len(b) - len("Z")
	b = strconv.AppendInt(b[:dot], 1_000_000_000+int64(t.Nanosecond()), 10)
	b[dot] = '.' // where the 1 was, which kept the zeros behind it
	return append(b, 'Z')
}

// appendID appends the id of a message. What it is made of must stay as it is: whoever removes
// duplicates relies on it across versions of this program.
func appendID(b []byte, m *message, signature, at []byte) []byte {
	start := len(b) // what is hashed stands here for a moment
	b = append(b, signature...)
	b = append(b, at...)
	b = m.src.AppendTo(b)
	b = append(b, byte(m.transport), byte(m.index>>8), byte(m.index)) // a frame has < 65536
	b = m.dst.AppendTo(b)
	id := sha256.Sum256(b[start:])
	id[6] = id[6]&0x0f | 0x80 // version 8
	id[8] = id[8]&0x3f | 0x80 // the variant of RFC 9562
	b = hex.AppendEncode(b[:start], id[:4])
	for _, group := range [][]byte{id[4:6], id[6:8], id[8:10], id[10:16]} {
		b = append(b, '-')
		b = hex.AppendEncode(b, group)
	}
	return b
}
