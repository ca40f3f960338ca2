package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const sampleInvite = "INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\n" +
	"Call-ID: 1@192.0.2.1\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"

// wrap is the one place that knows how the envelope is called.
func wrap(m message, version string, addresses bool) string {
	return string(appendEnvelope(nil, &m, version, addresses))
}

// wrapper is wrap for what allocations are counted of.
func wrapper(m *message, version string, addresses bool) func() []byte {
	return func() []byte { return appendEnvelope(nil, m, version, addresses) }
}

// sampleMessage was captured on 2026-11-22 at 21:34 UTC.
func sampleMessage() message {
	return message{
		time: time.Unix(0, 1795383240123456789), transport: udp, raw: []byte(sampleInvite),
		src: netip.MustParseAddrPort("192.0.2.1:5060"), dst: netip.MustParseAddrPort("198.51.100.2:5080"),
	}
}

// binaryMessage is a message, after a line end, whose body has every byte.
func binaryMessage() []byte {
	raw := []byte("\r\nMESSAGE sip:x SIP/2.0\r\n\r\n")
	for i := range 256 {
		raw = append(raw, byte(i))
	}
	return raw
}

// unwrapped are the fields of an envelope.
type unwrapped struct {
	ID, Version, Signature, Transport, Src, Dst string
	Time                                        time.Time
	SIP                                         []byte
}

var envelopeLine = regexp.MustCompile(`^\{"id":"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",` +
	`"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z","version":"([^"\\]|\\.)*","signature":"[0-9a-f]{64}",` +
	`("transport":"(udp|tcp|sctp|ws)","src":"[^"]+:\d+","dst":"[^"]+:\d+",)?"sip":"[A-Za-z0-9+/]*={0,2}"\}$`)

// unwrap checks all that holds for every envelope: the keys and their order, and that the message comes out as it went in.
func unwrap(t testing.TB, line string) unwrapped {
	t.Helper()
	var e unwrapped
	if !envelopeLine.MatchString(line) {
		t.Fatalf("not an envelope: %.500q", line)
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%v in %.500q", err, line)
	}
	if signature := sha256.Sum256(e.SIP); e.Signature != hex.EncodeToString(signature[:]) {
		t.Errorf("signature %s is not that of the message", e.Signature)
	}
	return e
}

// TestEnvelopeGolden compares whole lines. The files were written once by other means than this program (Python's hashlib, base64, uuid
// and json), so they also hold the id still: changing how it is made would break whoever removes duplicates by it.
func TestEnvelopeGolden(t *testing.T) {
	t.Parallel()
	binary, second := sampleMessage(), sampleMessage()
	binary.time = time.Unix(0, 1795383240000000000).In(time.FixedZone("east", 3*3600+1800))
	binary.index, binary.transport, binary.raw = 2, ws, binaryMessage()
	binary.src, binary.dst = netip.MustParseAddrPort("[2001:db8::1]:5060"), netip.MustParseAddrPort("[2001:db8:0:1::ffff]:65535")
	second.time, second.index, second.transport, second.raw = time.Unix(0, 1), 1, sctp, []byte("SIP/2.0 200 OK\n\n")
	second.src, second.dst = netip.MustParseAddrPort("[::1]:1"), netip.MustParseAddrPort("[fe80::1]:0")
	for _, row := range []struct {
		golden    string
		message   message
		version   string
		addresses bool
		signature string // by sha256sum
	}{
		{"ipv4", sampleMessage(), "v1.2.3", false, "d93c5961225aa5d010c496625522866c31dfedf9f4dd6536fa83251c6de5d09b"},
		{"ipv4_addresses", sampleMessage(), "v1.2.3", true, "d93c5961225aa5d010c496625522866c31dfedf9f4dd6536fa83251c6de5d09b"},
		{"ipv6_binary", binary, `v1 "dirty" C:\build`, true, "b923117928901cc40a8c1d9eb67ae455f202117717d1dbe62a0ddb6d1b0c4db1"},
		{"sctp_second", second, "(devel)", true, "4361261a3cd55b177c16849a210f81418be6d6af32b07cdb5c8e2ba9cbe4f863"},
	} {
		t.Run(row.golden, func(t *testing.T) {
			want, err := os.ReadFile("testdata/envelope_" + row.golden + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			got := wrap(row.message, row.version, row.addresses)
			if got+"\n" != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			e := unwrap(t, got)
			if e.ID != restatedID(row.message) {
				t.Errorf("id %s, want %s", e.ID, restatedID(row.message))
			}
			if !bytes.Equal(e.SIP, row.message.raw) || e.Version != row.version || e.Signature != row.signature || !e.Time.Equal(row.message.time) {
				t.Errorf("got %+v", e)
			}
			if row.addresses && (e.Src != row.message.src.String() || e.Dst != row.message.dst.String()) {
				t.Errorf("from %s to %s", e.Src, e.Dst)
			}
		})
	}
}

// restatedID is the rule for the id: a UUID of version 8 over the SHA-256 of what tells a message from every other one: the signature, the
// time as the envelope has it, the source, a byte for the transport and two for the index, the destination.
func restatedID(m message) string {
	signature := sha256.Sum256(m.raw)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s.%09dZ%v", signature[:], m.time.UTC().Format("2006-01-02T15:04:05"), m.time.Nanosecond(), m.src)
	binary.Write(&b, binary.BigEndian, struct {
		Transport uint8
		Index     uint16
	}{uint8(m.transport), uint16(m.index)})
	fmt.Fprint(&b, m.dst)
	h := fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))
	var variant byte
	fmt.Sscanf(h[16:17], "%x", &variant)
	return fmt.Sprintf("%s-%s-8%s-%x%s-%s", h[:8], h[8:12], h[13:16], variant&3|8, h[17:20], h[20:32])
}

// TestEnvelopeID changes one thing after the other: another message, another id.
func TestEnvelopeID(t *testing.T) {
	t.Parallel()
	original := sampleMessage()
	id := unwrap(t, wrap(original, "v1", false)).ID
	seen := map[string]string{id: "the original"}
	for name, change := range map[string]func(*message){
		"a nanosecond later":  func(m *message) { m.time = m.time.Add(1) },
		"a second later":      func(m *message) { m.time = m.time.Add(time.Second) },
		"index":               func(m *message) { m.index = 1 },
		"index 256":           func(m *message) { m.index = 256 },
		"tcp":                 func(m *message) { m.transport = tcp },
		"sctp":                func(m *message) { m.transport = sctp },
		"ws":                  func(m *message) { m.transport = ws },
		"source":              func(m *message) { m.src = netip.MustParseAddrPort("192.0.2.3:5060") },
		"source port":         func(m *message) { m.src = netip.MustParseAddrPort("192.0.2.1:5061") },
		"source IPv6":         func(m *message) { m.src = netip.MustParseAddrPort("[2001:db8::1]:5060") },
		"destination":         func(m *message) { m.dst = netip.MustParseAddrPort("198.51.100.3:5080") },
		"destination port":    func(m *message) { m.dst = netip.MustParseAddrPort("198.51.100.2:5081") },
		"the other direction": func(m *message) { m.src, m.dst = m.dst, m.src },
		"first byte":          func(m *message) { m.raw = []byte("i" + sampleInvite[1:]) },
		"last byte":           func(m *message) { m.raw = []byte(sampleInvite[:len(sampleInvite)-1] + "\r") },
		"a byte less":         func(m *message) { m.raw = m.raw[:len(m.raw)-1] },
		"a byte more":         func(m *message) { m.raw = append(m.raw, 0) },
	} {
		m := sampleMessage()
		change(&m)
		e := unwrap(t, wrap(m, "v1", false))
		if seen[e.ID] != "" {
			t.Errorf("%s: the id is the same as of %s", name, seen[e.ID])
		}
		seen[e.ID] = name
	}
	same := sampleMessage()
	same.time = same.time.In(time.FixedZone("west", -11*3600))
	if e := unwrap(t, wrap(same, "v2", true)); e.ID != id {
		t.Error("the id depends on the time zone, the version or on INCLUDE_ADDRESSES")
	}
}

// TestEnvelopeSignature is about recognising one message that was seen twice: at another time, elsewhere, by another sensor.
func TestEnvelopeSignature(t *testing.T) {
	t.Parallel()
	other := sampleMessage()
	other.time, other.transport, other.index = other.time.Add(time.Hour), tcp, 5
	other.src, other.dst = other.dst, other.src
	one, two := unwrap(t, wrap(sampleMessage(), "v1", false)), unwrap(t, wrap(other, "v2", true))
	if one.Signature != two.Signature || one.ID == two.ID {
		t.Errorf("got %+v and %+v", one, two)
	}
}

func TestEnvelopeTime(t *testing.T) {
	t.Parallel()
	for want, at := range map[string]time.Time{
		"2026-11-22T21:34:00.123456789Z": time.Date(2026, 11, 22, 22, 34, 0, 123456789, time.FixedZone("east", 3600)),
		"2026-11-22T21:34:00.100000000Z": time.Date(2026, 11, 22, 21, 34, 0, 100000000, time.UTC),
		"2026-12-31T23:59:59.999999999Z": time.Date(2027, 1, 1, 11, 59, 59, 999999999, time.FixedZone("far east", 12*3600)),
		"1970-01-01T00:00:00.000000000Z": time.Unix(0, 0),
	} {
		m := sampleMessage()
		m.time = at
		if got := wrap(m, "v1", false); !strings.Contains(got, `"time":"`+want+`"`) {
			t.Errorf("%v: got %.120s, want %s", at, got, want)
		}
	}
}

func TestEnvelopeVersion(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "v1.2.3", "(devel)", `a"b`, `a\b`, `\"`, "</script>&", "v1\n2\t3", "v1.2.3+größer"} {
		if e := unwrap(t, wrap(sampleMessage(), version, true)); e.Version != version {
			t.Errorf("version %q, want %q", e.Version, version)
		}
	}
}

// TestEnvelopeSize is about the 128 KB that cloud brokers accept.
func TestEnvelopeSize(t *testing.T) {
	t.Parallel()
	m := sampleMessage()
	m.raw = bytes.Repeat([]byte{0xff}, maxMessage)
	m.src = netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:50600")
	m.dst, m.transport = m.src, sctp
	line := wrap(m, "v1.2.3-0.20261122213400-0123456789ab+dirty", true)
	if len(m.raw) != 65535 || len(line) >= 128<<10 {
		t.Errorf("%d bytes become %d", len(m.raw), len(line))
	}
	unwrap(t, line)
}

// TestEnvelopeKeepsTheMessage is about capture buffers, which are used again while the envelope waits for the broker.
func TestEnvelopeKeepsTheMessage(t *testing.T) {
	t.Parallel()
	m := sampleMessage()
	line := wrapper(&m, "v1", true)()
	if string(m.raw) != sampleInvite {
		t.Error("the message was altered")
	}
	for i := range m.raw {
		m.raw[i] = 'x'
	}
	if e := unwrap(t, string(line)); string(e.SIP) != sampleInvite {
		t.Errorf("got %q", e.SIP)
	}
}

func TestEnvelopeAllocations(t *testing.T) {
	m := benchmarkMessage()
	envelope := wrapper(&m, "v1.2.3", true)
	if n := testing.AllocsPerRun(100, func() { envelope() }); n > 2 {
		t.Errorf("%v allocations, want at most 2", n)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(sampleInvite), "v1.2.3", int64(1795383240123456789), uint8(udp), true)
	f.Add(binaryMessage(), `"\`, int64(-1), uint8(ws), false)
	f.Add([]byte{}, "größer", int64(0), uint8(sctp), true)
	f.Fuzz(func(t *testing.T, raw []byte, version string, nanoseconds int64, carrier uint8, addresses bool) {
		if strings.ContainsFunc(version, func(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }) {
			t.Skip("who builds the program chooses the version")
		}
		m := sampleMessage()
		m.raw, m.transport = bytes.Clone(raw), transport(carrier)%transports
		m.time = time.Unix(nanoseconds%(200*365*86400), nanoseconds&0x1fffffff)
		line := wrap(m, version, addresses)
		if strings.ContainsAny(line, "\r\n") || len(line) > 512+6*len(version)+base64.StdEncoding.EncodedLen(len(raw)) {
			t.Errorf("%d bytes: %q", len(line), line)
		}
		e := unwrap(t, line)
		if !bytes.Equal(e.SIP, raw) || !e.Time.Equal(m.time) || e.Version != version {
			t.Errorf("got %+v for %q at %v", e, raw, m.time)
		}
		if (e.Transport != "") != addresses || e.ID != restatedID(m) {
			t.Errorf("got %+v", e)
		}
	})
}

// benchmarkMessage has 450 bytes.
func benchmarkMessage() message {
	m := sampleMessage()
	m.raw = append(m.raw, bytes.Repeat([]byte("v"), 450-len(m.raw))...)
	return m
}

func BenchmarkEnvelope(b *testing.B) {
	m := benchmarkMessage()
	envelope := wrapper(&m, "v1.2.3", false)
	b.SetBytes(int64(len(m.raw)))
	b.ReportAllocs()
	for b.Loop() {
		envelope()
	}
}
