package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Time runs faster in all tests of the package: 200 ms to connect, 1.2 s for answers, a ping after 200 ms.
func init() { second = 40 * time.Millisecond }

// testPatience bounds every wait for something that must happen.
const testPatience = 10 * time.Second

// fakeBroker accepts connections one by one, as a test asks for them, and does nothing by itself.
type fakeBroker struct {
	t *testing.T
	net.Listener
}

func newFakeBroker(t *testing.T) *fakeBroker {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &fakeBroker{t, l}
}

func (b *fakeBroker) url(scheme string) *url.URL {
	return &url.URL{Scheme: scheme, Host: b.Addr().String()}
}

// session is one connection to the fake broker.
type session struct {
	t *testing.T
	net.Conn
	connect *packets.ConnectPacket
	pings   int
}

// accept takes the next connection, reads CONNECT, and answers with the return code.
func (b *fakeBroker) accept(code byte) *session {
	b.t.Helper()
	if tcp, ok := b.Listener.(*net.TCPListener); ok {
		tcp.SetDeadline(time.Now().Add(testPatience))
	}
	conn, err := b.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	return newSession(b.t, conn, code)
}

func newSession(t *testing.T, conn net.Conn, code byte) *session {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	s := &session{t: t, Conn: conn}
	s.connect = s.next().(*packets.ConnectPacket)
	if got := s.connect.Validate(); got != packets.Accepted || s.connect.ProtocolVersion != 4 ||
		!s.connect.CleanSession {
		t.Fatalf("CONNECT %v: %d", s.connect, got)
	}
	connack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	connack.ReturnCode = code
	connack.Write(conn)
	return s
}

// next reads a packet and checks that it is one that the publisher may send; pings are answered in passing.
func (s *session) next() packets.ControlPacket {
	s.t.Helper()
	for {
		s.SetReadDeadline(time.Now().Add(testPatience))
		packet, err := packets.ReadPacket(s)
		if err != nil {
			s.t.Fatalf("the publisher's connection: %v", err)
		}
		switch packet.(type) {
		case *packets.PingreqPacket:
			s.pings++
			packets.NewControlPacket(packets.Pingresp).Write(s)
		case *packets.ConnectPacket, *packets.PublishPacket, *packets.DisconnectPacket:
			return packet
		default:
			s.t.Fatalf("the publisher sent %v", packet)
		}
	}
}

func (s *session) publish() *packets.PublishPacket {
	s.t.Helper()
	packet, ok := s.next().(*packets.PublishPacket)
	if !ok || packet.Qos != 1 || packet.MessageID == 0 {
		s.t.Fatalf("got %v, want a PUBLISH with QoS 1", packet)
	}
	return packet
}

// publishes reads publishes and checks that these are the payloads from first to last, in order.
func (s *session) publishes(first, last int) []uint16 {
	s.t.Helper()
	var ids []uint16
	for i := first; i <= last; i++ {
		m := s.publish()
		if string(m.Payload) != payload(i) || m.Retain || m.TopicName != "sip" {
			s.t.Fatalf("got %.70v, want %.10q", m, payload(i))
		}
		ids = append(ids, m.MessageID)
	}
	return ids
}

func (s *session) ack(ids ...uint16) {
	var all bytes.Buffer
	for _, id := range ids {
		ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		ack.MessageID = id
		ack.Write(&all)
	}
	s.Write(all.Bytes())
}

// quiet fails if a publish comes.
func (s *session) quiet(d time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); ; {
		s.SetReadDeadline(end)
		packet, err := packets.ReadPacket(s)
		if err != nil {
			return
		}
		if _, ping := packet.(*packets.PingreqPacket); !ping {
			s.t.Fatalf("got %v, want nothing", packet)
		}
		packets.NewControlPacket(packets.Pingresp).Write(s)
	}
}

// closed fails unless the publisher closes the connection, and returns what still came.
func (s *session) closed() []byte {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(testPatience))
	rest, err := io.ReadAll(s)
	if os.IsTimeout(err) {
		s.t.Fatal("the connection stands")
	}
	return rest
}

// payload is 1,000 bytes that begin with a number.
func payload(i int) string { return fmt.Sprintf("%-1000d", i) }

// logBuffer is safe for a logger and a test at once.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a publisher whose run runs.
type running struct {
	*publisher
	t      *testing.T
	logs   *logBuffer
	cancel context.CancelFunc
	drain  chan struct{}
	done   chan struct{}
}

func prepare(t *testing.T, change func(*delivery), brokers ...*url.URL) *running {
	d := &delivery{brokers: brokers, topic: "sip", clientID: "test", queueBytes: 1 << 20}
	if change != nil {
		change(d)
	}
	logs := &logBuffer{}
	p := newPublisher(d, slog.New(slog.NewTextHandler(logs, nil)))
	return &running{publisher: p, t: t, logs: logs, drain: make(chan struct{}), done: make(chan struct{})}
}

func (r *running) start() *running {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		r.run(ctx, r.drain)
		close(r.done)
	}()
	r.t.Cleanup(func() {
		cancel()
		r.ended()
		checkIdentity(r.t, r.stats())
		if s := r.stats(); s.messages != 0 || s.bytes != 0 || s.connected {
			r.t.Errorf("after the end: %+v", s)
		}
	})
	return r
}

func start(t *testing.T, change func(*delivery), brokers ...*url.URL) *running {
	return prepare(t, change, brokers...).start()
}

func (r *running) putAll(first, last int) {
	for i := first; i <= last; i++ {
		r.put(udp, []byte(payload(i)))
	}
}

// ended waits for the end of run.
func (r *running) ended() {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(testPatience):
		r.t.Fatal("run did not end")
	}
}

// until waits for the counters to come to a state.
func (r *running) until(what string, reached func(queueStats) bool) {
	r.t.Helper()
	for end := time.Now().Add(testPatience); !reached(r.stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never %s: %+v", what, r.stats())
		}
	}
}

func (r *running) untilPublished(n uint64) {
	r.t.Helper()
	r.until(fmt.Sprint(n, " published"), func(s queueStats) bool { return s.published == n })
}

func checkIdentity(t *testing.T, s queueStats) {
	var accepted uint64
	for _, n := range s.accepted {
		accepted += n
	}
	if accepted != s.published+s.dropped+uint64(s.messages) || s.bytes < 0 || (s.bytes > 0) != (s.messages > 0) {
		t.Errorf("the counters do not add up: %+v", s)
	}
}

// TestAcknowledgements: each PUBACK counts by itself and lets the next message go out at once, whatever their order.
func TestAcknowledgements(t *testing.T) {
	const n = 140
	for name, pick := range map[string]func(open int) int{
		"in order":     func(int) int { return 0 },
		"latest first": func(open int) int { return open - 1 },
		"any order":    mathrand.IntN,
	} {
		t.Run(name, func(t *testing.T) {
			b := newFakeBroker(t)
			p := prepare(t, nil, b.url("tcp"))
			p.putAll(1, n)
			p.start()
			s := b.accept(packets.Accepted)
			open := s.publishes(1, windowSize)
			s.quiet(20 * time.Millisecond) // the window is full
			for acknowledged := range n {
				i := pick(len(open))
				s.ack(open[i])
				open = slices.Delete(open, i, i+1)
				if next := windowSize + 1 + acknowledged; next <= n {
					open = append(open, s.publishes(next, next)...)
				}
				p.untilPublished(uint64(acknowledged + 1))
				if got := p.stats().messages; got != n-acknowledged-1 {
					t.Fatalf("%d messages after %d PUBACKs", got, acknowledged+1)
				}
			}
			got := p.stats()
			if got.bytes != 0 || got.dropped != 0 || !got.connected || got.accepted[udp] != n {
				t.Errorf("at the end: %+v", got)
			}
		})
	}
}

// TestAcknowledgedOnce: a PUBACK for what is not in flight acknowledges nothing.
func TestAcknowledgedOnce(t *testing.T) {
	for name, wrong := range map[string]func(ids []uint16) uint16{
		"again":         func(ids []uint16) uint16 { return ids[0] },
		"never sent":    func(ids []uint16) uint16 { return ids[len(ids)-1] + 1 },
		"no packet id":  func([]uint16) uint16 { return 0 },
		"far away":      func([]uint16) uint16 { return 40000 },
		"the last one":  func([]uint16) uint16 { return 65535 },
		"high byte set": func(ids []uint16) uint16 { return ids[2] | 0x100 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newFakeBroker(t)
			p := prepare(t, nil, b.url("tcp"))
			p.putAll(1, 5)
			p.start()
			s := b.accept(packets.Accepted)
			ids := s.publishes(1, 5)
			s.ack(ids[0], wrong(ids))
			s.closed()
			if got := p.stats(); got.published != 1 || got.messages != 4 || got.bytes != 4000 {
				t.Errorf("%+v", got)
			}
			s = b.accept(packets.Accepted)
			for i := 2; i <= 5; i++ {
				s.ack(s.publishes(i, i)...)
			}
			p.untilPublished(5)
		})
	}
}

// TestPacketIDs: no id is in flight twice, not that of STATUS_TOPIC either; at most 100 publishes are unacknowledged.
func TestPacketIDs(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, func(d *delivery) { d.statusTopic = "status" }, b.url("tcp"))
	p.putAll(1, 1000)
	p.start()
	for range 3 { // each connection leaves some open and acknowledges others
		s := b.accept(packets.Accepted)
		open := map[uint16]bool{}
		take := func() {
			t.Helper()
			id := s.publish().MessageID
			if open[id] || id == 0 {
				t.Fatalf("packet id %d is in flight twice", id)
			}
			open[id] = true
		}
		ackAny := func() {
			for id := range open {
				if id != statusID {
					delete(open, id)
					s.ack(id)
					return
				}
			}
		}
		take() // online: its id stays its own
		s.ack(statusID)
		take()
		ackAny()
		for len(open) < windowSize { // each PUBACK lets at least two messages go out until the window is full
			take()
			take()
			ackAny()
		}
		for len(open) <= windowSize {
			take()
		}
		s.quiet(20 * time.Millisecond)
		s.Close()
	}
}

// TestWithheldAcknowledgement: while the oldest message waits for its PUBACK, all others go out.
func TestWithheldAcknowledgement(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("mqtt"))
	p.putAll(1, 400)
	p.start()
	s := b.accept(packets.Accepted)
	ids := s.publishes(1, windowSize)
	oldest := ids[0]
	ids = ids[1:]
	for i := windowSize + 1; i <= 400; i++ {
		s.ack(ids[0])
		ids = append(ids[1:], s.publishes(i, i)...)
	}
	p.untilPublished(400 - windowSize)
	s.ack(ids...)
	s.ack(oldest)
	p.untilPublished(400)
}

func TestResend(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("tcp"))
	p.putAll(1, 99)
	p.start()
	s := b.accept(packets.Accepted)
	ids := s.publishes(1, 99)
	s.ack(ids[0], ids[2], ids[4])
	p.untilPublished(3)
	s.Close()
	p.until("disconnected", func(s queueStats) bool { return !s.connected })
	p.putAll(100, 160) // meanwhile

	s = b.accept(packets.Accepted)
	s.ack(s.publishes(2, 2)...)
	s.ack(s.publishes(4, 4)...)
	for i := 6; i <= 160; i++ {
		s.ack(s.publishes(i, i)...)
	}
	p.untilPublished(160)
}

// TestOneAtATime: after a hang-up a message goes out alone, and each PUBACK lets one more go out.
func TestOneAtATime(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("tcp"))
	p.putAll(1, 400)
	p.start()
	s := b.accept(packets.Accepted)
	s.publishes(1, windowSize)
	s.Close()
	s = b.accept(packets.Accepted)
	open := s.publishes(1, 1)
	s.quiet(20 * time.Millisecond)
	for next := 2; next < 200; next += 2 {
		s.ack(open[0])
		open = append(open[1:], s.publishes(next, min(next+1, next+windowSize-len(open)))...)
		if len(open) == windowSize {
			break
		}
	}
	s.quiet(20 * time.Millisecond)
	if len(open) != windowSize || p.stats().dropped != 0 {
		t.Errorf("%d unacknowledged, want %d: %+v", len(open), windowSize, p.stats())
	}
}

// hangsUpAt is a broker that acknowledges messages, but hangs up at those that it refuses.
type hangsUpAt struct {
	*fakeBroker
	refuses func(*packets.PublishPacket) bool
	pause   time.Duration // before each PUBACK

	mu          sync.Mutex
	connections int
	took        []string // first words of the payloads that were acknowledged
}

func newHangsUpAt(t *testing.T, refuses func(*packets.PublishPacket) bool) *hangsUpAt {
	return &hangsUpAt{fakeBroker: newFakeBroker(t), refuses: refuses}
}

func (b *hangsUpAt) run() {
	for {
		conn, err := b.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.connections++
		b.mu.Unlock()
		go b.serve(conn)
	}
}

func (b *hangsUpAt) serve(conn net.Conn) {
	defer conn.Close()
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch m := packet.(type) {
		case *packets.ConnectPacket:
			conn.Write([]byte("\x20\x02\x00\x00"))
		case *packets.PingreqPacket:
			conn.Write([]byte("\xd0\x00"))
		case *packets.PublishPacket:
			if b.refuses(m) {
				return
			}
			time.Sleep(b.pause)
			word, _, _ := strings.Cut(string(m.Payload), " ")
			b.mu.Lock()
			b.took = append(b.took, word)
			b.mu.Unlock()
			(&session{Conn: conn}).ack(m.MessageID)
		}
	}
}

// state is how many connections there were, and which messages were acknowledged.
func (b *hangsUpAt) state() (int, []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connections, slices.Clone(b.took)
}

// TestPoison: one message at which the broker hangs up is dropped, and all others come, in order.
func TestPoison(t *testing.T) {
	for _, row := range []struct {
		name   string
		poison []int // which messages are too large
		n      int
	}{
		{
			name:   "the only one",
			poison: []int{1},
			n:      1,
		},
		{
			name:   "first",
			poison: []int{1},
			n:      300,
		},
		{
			name:   "in the middle of a window",
			poison: []int{150},
			n:      300,
		},
		{
			name:   "last",
			poison: []int{300},
			n:      300,
		},
		{
			name:   "two in turn",
			poison: []int{20, 21},
			n:      40,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newHangsUpAt(t, func(m *packets.PublishPacket) bool { return len(m.Payload) > 20000 })
			go b.run()
			p := prepare(t, func(d *delivery) { d.statusTopic = "status" }, b.url("tcp"))
			var want []string
			for i := 1; i <= row.n; i++ {
				text := payload(i)
				if slices.Contains(row.poison, i) {
					text += strings.Repeat("sip:geheim", 3000)
				} else {
					want = append(want, fmt.Sprint(i))
				}
				p.put(udp, []byte(text))
			}
			p.start()
			p.until("delivered", func(s queueStats) bool { return s.messages == 0 })
			got := p.stats()
			if got.published != uint64(len(want)) || got.dropped != uint64(len(row.poison)) {
				t.Errorf("%+v", got)
			}
			connections, took := b.state()
			took = slices.DeleteFunc(took, func(word string) bool { return word == "online" })
			// After a loss messages may come once more, but none before an earlier one has come.
			if first := firsts(took); !slices.Equal(first, want) {
				t.Errorf("got %v", first)
			}
			if least := 3 * len(row.poison); connections < least+1 || connections > least+4 {
				t.Errorf("%d connections", connections)
			}
			logs := p.logs.String()
			if n := strings.Count(logs, "message dropped"); n != len(row.poison) || strings.Contains(logs, "geheim") {
				t.Errorf("%d lines: %s", n, logs)
			}
			if !strings.Contains(
				logs,
				"bytes=31000 check=\"the broker's message size limit (Mosquitto: max_packet_size)",
			) {
				t.Errorf("no size or no advice: %s", logs)
			}
		})
	}
}

// firsts are the words without repetitions.
func firsts(words []string) (first []string) {
	seen := map[string]bool{}
	for _, word := range words {
		if !seen[word] {
			first = append(first, word)
		}
		seen[word] = true
	}
	return first
}

// TestPoisonOvertaken: a broker that acknowledges other messages, and then hangs up at the oldest.
func TestPoisonOvertaken(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("tcp"))
	p.putAll(1, 10)
	p.start()
	s := b.accept(packets.Accepted)
	s.publishes(1, 1)
	s.ack(s.publishes(2, 10)...)
	p.untilPublished(9)
	s.Close()
	for range 3 {
		s := b.accept(packets.Accepted)
		s.publishes(1, 1)
		s.quiet(10 * time.Millisecond)
		if got := p.stats().dropped; got != 0 {
			t.Fatalf("dropped %d", got)
		}
		s.Close()
	}
	p.until("dropped", func(s queueStats) bool { return s.dropped == 1 && s.messages == 0 })
}

// TestPoisonWithLostAcknowledgements: Mosquitto closes before its PUBACKs have left it (Nagle's algorithm
// keeps them back), so
// only the first one of a crowd arrives.
func TestPoisonWithLostAcknowledgements(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("tcp"))
	const poison = 90
	p.putAll(1, 99)
	p.start()
	connections := 0
	for ; p.stats().dropped == 0; connections++ {
		if connections == 20 {
			t.Fatalf("not found: %+v", p.stats())
		}
		s := b.accept(packets.Accepted)
		for crowd := []uint16{}; ; crowd = nil {
			isPoison := false
			s.SetReadDeadline(time.Now().Add(testPatience))
			for !isPoison {
				packet, err := packets.ReadPacket(s)
				if err != nil {
					break
				}
				m := packet.(*packets.PublishPacket)
				isPoison = strings.HasPrefix(string(m.Payload), fmt.Sprint(poison, " "))
				crowd = append(crowd, m.MessageID)
				s.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			}
			if isPoison {
				s.ack(crowd[:min(1, len(crowd)-1)]...)
				break
			}
			s.ack(crowd...)
		}
		time.Sleep(5 * time.Millisecond)
		s.Close()
		p.until("seen", func(s queueStats) bool { return !s.connected || s.dropped > 0 })
	}
	if got := p.stats(); got.published != poison-1 || got.dropped != 1 {
		t.Errorf("%+v", got)
	}
	t.Logf("%d connections", connections)
	s := b.accept(packets.Accepted)
	for i := poison + 1; i <= 99; i++ {
		s.ack(s.publishes(i, i)...)
	}
	p.untilPublished(98)
}

// TestNoPoison: what happens to a connection, but not because of a message, costs none.
func TestNoPoison(t *testing.T) {
	for _, row := range []struct {
		name string
		lose func(*fakeBroker)
	}{
		{
			name: "hangs up before CONNACK",
			lose: func(b *fakeBroker) {
				conn, err := b.Accept()
				if err != nil {
					b.t.Fatal(err)
				}
				packets.ReadPacket(conn)
				conn.Close()
			},
		},
		{
			name: "refuses",
			lose: func(b *fakeBroker) { b.accept(packets.ErrRefusedServerUnavailable).Close() },
		},
		{
			name: "hangs up at the status",
			lose: func(b *fakeBroker) {
				s := b.accept(packets.Accepted)
				s.publish()
				s.Close()
			},
		},
		{
			name: "doesn't acknowledge in time",
			lose: func(b *fakeBroker) {
				s := b.accept(packets.Accepted)
				s.ack(s.publish().MessageID)
				s.publishes(1, 3)
				s.quiet(testPatience)
				s.Close()
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newFakeBroker(t)
			p := prepare(t, func(d *delivery) { d.statusTopic = "status" }, b.url("tcp"))
			p.putAll(1, 3)
			p.start()
			for range 5 {
				row.lose(b)
			}
			s := b.accept(packets.Accepted)
			s.ack(s.publish().MessageID) // online
			for i := 1; i <= 3; i++ {
				s.ack(s.publishes(i, i)...)
			}
			p.untilPublished(3)
			if got := p.stats(); got.dropped != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestHangsUpAtEverything: a forbidden topic costs at most one message for three connections, and the log
// says what to check.
func TestHangsUpAtEverything(t *testing.T) {
	b := newHangsUpAt(t, func(*packets.PublishPacket) bool { return true })
	go b.run()
	p := prepare(t, nil, b.url("tcp"))
	p.putAll(1, 50)
	p.start()
	p.until("dropped", func(s queueStats) bool { return s.dropped == 2 })
	if connections, _ := b.state(); connections < 6 {
		t.Errorf("two messages lost in %d connections", connections)
	}
	if got := p.stats(); got.messages != 48 {
		t.Errorf("%+v", got)
	}
	p.untilLogged("check=\"the broker's ACL for TOPIC and STATUS_TOPIC, its message size limit\"")
}

// TestAcknowledgesAndHangsUp: so do some brokers whose ACL forbids TOPIC. That isn't tried again quickly for ever.
func TestAcknowledgesAndHangsUp(t *testing.T) {
	b := newFakeBroker(t)
	p := prepare(t, nil, b.url("tcp"))
	p.putAll(1, 500)
	p.start()
	last := time.Now()
	for i := range maxQuickTries + 4 {
		s := b.accept(packets.Accepted)
		if waited := time.Since(last); i == maxQuickTries+3 && waited < 4*second {
			t.Errorf("connection %d came after %v", i+1, waited)
		}
		s.ack(s.publishes(i+1, i+1)...)
		p.untilPublished(uint64(i + 1))
		s.Close()
		last = time.Now()
	}
	p.untilLogged("check=\"the broker's ACL for TOPIC and STATUS_TOPIC, its message size limit\"")
	if got := p.stats(); got.dropped != 0 {
		t.Errorf("%+v", got)
	}
}

func TestQueueDropsTheOldestWaiting(t *testing.T) {
	const kept = 1 << 20 / 1000 // messages that fit
	t.Run("before a connection", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, nil, b.url("tcp"))
		for i := 1; i <= 3000; i++ {
			p.put(tcp, []byte(payload(i)))
			want := queueStats{messages: min(i, kept), dropped: uint64(max(0, i-kept)), bytes: 1000 * min(i, kept)}
			want.accepted[tcp] = uint64(i)
			if got := p.stats(); got != want {
				t.Fatalf("after %d: %+v, want %+v", i, got, want)
			}
		}
		p.start()
		s := b.accept(packets.Accepted)
		for i := 3000 - kept + 1; i <= 3000; i++ {
			s.ack(s.publishes(i, i)...)
		}
		p.untilPublished(kept)
	})
	t.Run("but nothing in the window", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, nil, b.url("tcp"))
		p.putAll(1, windowSize)
		p.start()
		s := b.accept(packets.Accepted)
		ids := s.publishes(1, windowSize)
		p.putAll(windowSize+1, 3000)
		s.ack(ids...)
		for i := 3000 - (kept - windowSize) + 1; i <= 3000; i++ {
			s.ack(s.publishes(i, i)...)
		}
		p.untilPublished(kept)
		if got := p.stats().dropped; got != 3000-kept {
			t.Errorf("dropped %d, want %d", got, 3000-kept)
		}
	})
	t.Run("also the new one", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, nil, b.url("tcp"))
		big := make([]byte, 11000)
		for range 95 {
			p.put(ws, big) // 1,045,000 bytes
		}
		p.start()
		s := b.accept(packets.Accepted)
		for range 95 {
			s.publish()
		}
		p.put(ws, big) // none waits that could make room
		if got := p.stats(); got.dropped != 1 || got.messages != 95 || got.bytes != 95*11000 || got.accepted[ws] != 96 {
			t.Errorf("%+v", got)
		}
	})
}

// TestBuffers: what is acknowledged or dropped is used again, unless it is large: that takes no memory,
// whatever else is queued.
func TestBuffers(t *testing.T) {
	for _, row := range []struct {
		name string
		size int
		end  func(p *running, s *session, id uint16)
	}{
		{
			name: "acknowledged",
			size: reusedBytes,
			end:  func(p *running, s *session, id uint16) { s.ack(id) },
		},
		{
			name: "large, acknowledged",
			size: reusedBytes + 1,
			end:  func(p *running, s *session, id uint16) { s.ack(id) },
		},
		{
			name: "large, acknowledged, the queue full",
			size: reusedBytes + 1,
			end: func(p *running, s *session, id uint16) {
				p.putAll(1, 1100)
				s.ack(id)
			},
		},
		{
			name: "dropped",
			size: reusedBytes,
		},
		{
			name: "large, dropped",
			size: reusedBytes + 1,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newFakeBroker(t)
			p := prepare(t, nil, b.url("tcp"))
			freed := make(chan bool, 1)
			envelope := bytes.Repeat([]byte("x"), row.size)
			first := &envelope[0]
			runtime.AddCleanup(first, func(int) { freed <- true }, 0)
			p.put(udp, envelope)
			envelope = nil
			if row.end == nil {
				p.putAll(1, 1100)
			}
			p.start()
			s := b.accept(packets.Accepted)
			if row.end != nil {
				row.end(p, s, s.publish().MessageID)
				p.untilPublished(1)
			}
			if row.size <= reusedBytes {
				again := p.buffer()
				if cap(again) < row.size || len(again) != 0 || &again[:1][0] != first {
					t.Errorf("another buffer, of %d bytes", cap(again))
				}
				return
			}
			first = nil
			for attempt := 0; len(freed) == 0; attempt++ {
				if attempt == 1000 {
					t.Fatal("the envelope is still referred to")
				}
				runtime.GC()
				time.Sleep(time.Millisecond)
			}
			runtime.KeepAlive(p)
		})
	}
}

// TestBuffersAreBounded: together 4 MiB.
func TestBuffersAreBounded(t *testing.T) {
	p := prepare(t, func(d *delivery) { d.queueBytes = 1 })
	for range 2000 {
		p.put(udp, make([]byte, reusedBytes)) // dropped at once
	}
	kept := 0
	for b := p.buffer(); b != nil; b = p.buffer() {
		kept += cap(b)
	}
	if kept > 4<<20 {
		t.Errorf("%d bytes are kept", kept)
	}
}

// TestMessagesAreCopied: a broker that acknowledges what it hasn't got yet must not make one message hold
// another's bytes.
func TestMessagesAreCopied(t *testing.T) {
	p := prepare(t, nil)
	envelope := []byte(payload(1))
	p.put(udp, envelope)
	out, _ := p.nextPackets(nil)
	if _, err := p.takeAnswer(bufio.NewReader(strings.NewReader("\x40\x02\x00\x01"))); err != nil {
		t.Fatal(err)
	}
	copy(p.buffer()[:1000], payload(2))
	if !bytes.HasSuffix(out, []byte(payload(1))) {
		t.Errorf("sent %.20q", out)
	}
}

// TestIdentity has senders, a broker that acknowledges some messages and cuts connections, and a reader of the
// counters, all at once.
func TestIdentity(t *testing.T) {
	t.Parallel()
	b := newFakeBroker(t)
	p := start(t, nil, b.url("tcp"))
	var senders, others sync.WaitGroup
	stop := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				checkIdentity(t, p.stats())
			}
		}
	})
	go func() {
		for {
			conn, err := b.Accept()
			if err != nil {
				return
			}
			packets.ReadPacket(conn)
			conn.Write([]byte{0x20, 2, 0, 0})
			for range mathrand.IntN(600) {
				packet, err := packets.ReadPacket(conn)
				if err != nil {
					break
				}
				if m, ok := packet.(*packets.PublishPacket); ok && mathrand.IntN(2000) > 0 {
					(&session{Conn: conn}).ack(m.MessageID)
				}
			}
			conn.Close()
		}
	}()
	for tr := range transports {
		senders.Go(func() {
			for i := range 2500 {
				p.put(tr, append(p.buffer(), make([]byte, 1+mathrand.IntN(2000))...))
				if i%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	senders.Wait()
	close(p.drain)
	p.ended()
	close(stop)
	others.Wait()
	s := p.stats()
	if checkIdentity(t, s); s.published == 0 || s.dropped == 0 ||
		s.accepted != [transports]uint64{2500, 2500, 2500, 2500} {
		t.Errorf("%+v", s)
	}
}

// room is how many messages of 1,000 bytes fill it.
const room = roomBytes/1000 + 1

func TestAwaitRoom(t *testing.T) {
	b := newFakeBroker(t)
	p := start(t, nil, b.url("tcp"))
	read := make(chan struct{})
	go func() {
		for i := 1; i <= 3000; i++ {
			p.awaitLess(roomBytes)
			p.putAll(i, i)
		}
		close(read)
	}()
	p.until("full", func(s queueStats) bool { return s.messages == room })
	s := b.accept(packets.Accepted)
	ids := s.publishes(1, windowSize)
	s.quiet(20 * time.Millisecond)
	if got := p.stats(); got.accepted[udp] != room {
		t.Errorf("it didn't wait: %+v", got)
	}
	for i := windowSize + 1; i <= 3000; i++ {
		s.ack(ids[0])
		ids = append(ids[1:], s.publishes(i, i)...)
	}
	s.ack(ids...)
	within(t, "the source is read", read)
	p.untilPublished(3000)
	if got := p.stats(); got.dropped != 0 {
		t.Errorf("%+v", got)
	}
}

// TestAwaitRoomFitsTheQueue: the largest envelope fits into the smallest queue that has room.
func TestAwaitRoomFitsTheQueue(t *testing.T) {
	p := prepare(t, nil)
	p.putAll(1, room-1) // after this, there is still room
	p.awaitLess(roomBytes)
	m := &message{raw: make([]byte, 65535)}
	p.put(udp, appendEnvelope(nil, m, strings.Repeat("v", 1000), true))
	if got := p.stats(); got.dropped != 0 {
		t.Errorf("%+v", got)
	}
}

// within fails unless the channel is closed in time.
func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(testPatience):
		t.Fatalf("not in time: %s", what)
	}
}

// TestAwaitRoomEnds: nobody waits for room after the end, or where room came another way than by a PUBACK.
func TestAwaitRoomEnds(t *testing.T) {
	t.Run("by the end", func(t *testing.T) {
		p := start(t, nil, newFakeBroker(t).url("tcp"))
		read := make(chan struct{})
		go func() {
			for i := 1; i <= 3000; i++ {
				p.awaitLess(roomBytes)
				p.putAll(i, i)
			}
			close(read)
		}()
		p.until("full", func(s queueStats) bool { return s.messages == room })
		p.cancel()
		p.ended()
		within(t, "the source is read", read)
		if got := p.stats(); got.accepted[udp] != 3000 || got.dropped != 3000 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("by a dropped message", func(t *testing.T) {
		b := newHangsUpAt(t, func(*packets.PublishPacket) bool { return true })
		go b.run()
		p := start(t, func(d *delivery) { d.queueBytes = 4 << 20 }, b.url("tcp"))
		p.put(udp, make([]byte, 2<<20))
		room := make(chan struct{})
		go func() {
			p.awaitLess(roomBytes)
			close(room)
		}()
		within(t, "room", room)
		close(p.drain) // and nothing is left
		p.ended()
	})
}

func TestDrain(t *testing.T) {
	status := func(d *delivery) { d.statusTopic = "status" }
	disconnects := func(t *testing.T, s *session) {
		t.Helper()
		if packet, ok := s.next().(*packets.DisconnectPacket); !ok {
			t.Errorf("got %v, want DISCONNECT", packet)
		}
		s.quiet(20 * time.Millisecond)
	}
	t.Run("idle", func(t *testing.T) {
		b := newFakeBroker(t)
		p := start(t, nil, b.url("tcp"))
		s := b.accept(packets.Accepted)
		close(p.drain)
		disconnects(t, s)
		p.ended()
	})
	t.Run("waits for every PUBACK", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, status, b.url("tcp"))
		p.putAll(1, 250)
		p.start()
		s := b.accept(packets.Accepted)
		close(p.drain)
		s.ack(s.publish().MessageID) // online
		ids := s.publishes(1, windowSize)
		for i := windowSize + 1; i <= 250; i++ {
			s.ack(ids[0])
			ids = append(ids[1:], s.publishes(i, i)...)
		}
		s.ack(ids[1:]...)
		select {
		case <-p.done:
			t.Fatal("ended while something was unacknowledged")
		case <-time.After(50 * time.Millisecond):
		}
		s.ack(ids[0])
		if m := s.publish(); m.TopicName != "status" || string(m.Payload) != "offline" || !m.Retain ||
			m.MessageID != statusID {
			t.Errorf("got %v, want offline", m)
		}
		disconnects(t, s)
		p.ended()
		if got := p.stats(); got.published != 250 || got.dropped != 0 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("survives a cut", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, nil, b.url("tcp"))
		p.putAll(1, 10)
		p.start()
		s := b.accept(packets.Accepted)
		s.publishes(1, 10)
		close(p.drain)
		s.Close()
		s = b.accept(packets.Accepted)
		for i := 1; i <= 10; i++ {
			s.ack(s.publishes(i, i)...)
		}
		disconnects(t, s)
		p.ended()
		if got := p.stats().published; got != 10 {
			t.Errorf("published %d, want 10", got)
		}
	})
	t.Run("nothing waits and no broker", func(t *testing.T) {
		b := newFakeBroker(t)
		b.Close()
		p := start(t, nil, b.url("tcp"))
		close(p.drain)
		p.ended()
	})
	t.Run("tries each second", func(t *testing.T) {
		b := newFakeBroker(t)
		p := start(t, nil, b.url("tcp"))
		p.putAll(1, 1)
		for range 6 {
			b.accept(packets.ErrRefusedServerUnavailable)
		}
		begin := time.Now() // the next attempt would come in 20 s at least
		close(p.drain)
		for range 4 {
			b.accept(packets.ErrRefusedServerUnavailable)
		}
		b.accept(packets.Accepted)
		if took := time.Since(begin); took < 4*second || took > 16*second {
			t.Errorf("five attempts took %v", took)
		}
	})
	t.Run("time is up", func(t *testing.T) {
		b := newFakeBroker(t)
		p := prepare(t, status, b.url("tcp"))
		p.putAll(1, 120)
		p.start()
		s := b.accept(packets.Accepted)
		s.ack(s.publish().MessageID)
		ids := s.publishes(1, 99)
		close(p.drain)
		s.ack(ids[:40]...)
		p.untilPublished(40)
		s.publishes(100, 120)
		p.cancel()
		if m := s.publish(); m.TopicName != "status" || string(m.Payload) != "offline" || !m.Retain {
			t.Errorf("got %v, want offline", m)
		}
		disconnects(t, s)
		p.ended()
		if got := p.stats(); got.published != 40 || got.dropped != 80 {
			t.Errorf("%+v", got)
		}
		if logs := p.logs.String(); !strings.Contains(logs, "level=WARN") ||
			!strings.Contains(logs, "messages_dropped=80") {
			t.Error(logs)
		}
		s.ack(ids[40:]...) // too late
		s.closed()
		if got := p.stats(); got.published != 40 || got.dropped != 80 || got.connected {
			t.Errorf("%+v", got)
		}
	})
	t.Run("time is up while nothing waits", func(t *testing.T) {
		b := newFakeBroker(t)
		p := start(t, status, b.url("tcp"))
		s := b.accept(packets.Accepted)
		s.ack(s.publish().MessageID)
		p.until("connected", func(s queueStats) bool { return s.connected })
		p.cancel()
		p.ended()
		if m := s.publish(); m.TopicName != "status" || string(m.Payload) != "offline" || !m.Retain {
			t.Errorf("got %v, want offline", m)
		}
		disconnects(t, s)
		p.put(tcp, []byte("late"))
		if got := p.stats(); got.dropped != 1 || got.accepted[tcp] != 1 {
			t.Errorf("a message after the end: %+v", got)
		}
	})
}

func TestEndWhileConnecting(t *testing.T) {
	b := newFakeBroker(t) // takes the connection, says nothing
	for _, scheme := range []string{"tcp", "ssl", "ws"} {
		p := start(t, nil, b.url(scheme))
		p.putAll(1, 3)
		time.Sleep(10 * time.Millisecond)
		begin := time.Now()
		p.cancel()
		p.ended()
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("%s: the end took %v", scheme, took)
		}
	}
}

// TestHostileBroker has a broker do what none may. All that comes of it is a new connection.
func TestHostileBroker(t *testing.T) {
	rows := []struct {
		name   string
		answer string // instead of CONNACK, or after it
		log    string
	}{
		{
			name:   "garbage",
			answer: "\xde\xad\xbe\xef\x00\x01\x02\x03",
			log:    "dead",
		},
		{
			name:   "text",
			answer: "HTTP/1.1 400 Bad Request\r\n\r\n",
			log:    "4854",
		},
		{
			name:   "nothing",
			answer: "",
			log:    "EOF",
		},
		{
			name:   "half a CONNACK",
			answer: "\x20\x02\x00",
			log:    "EOF",
		},
		{
			name:   "CONNACK too long",
			answer: "\x20\x03\x00\x00\x00",
			log:    "2003",
		},
		{
			name:   "refused",
			answer: "\x20\x02\x00\x05",
			log:    "Connection Refused: Not Authorised (5)",
		},
		{
			name:   "unknown code",
			answer: "\x20\x02\x00\x63",
			log:    "(99)",
		},
		{
			name:   "PUBACK first",
			answer: "\x40\x02\x00\x01",
			log:    "4002",
		},
		{
			name:   "PUBACK for a status first",
			answer: "\x40\x02\x00\x64",
			log:    "4002",
		},
		{
			name:   "PINGRESP first",
			answer: "\xd0\x00\xd0\x00",
			log:    "d000",
		},
		{
			name:   "huge first",
			answer: "\x20\xff\xff\xff\x7f",
			log:    "20ff",
		},
		{
			name:   "second CONNACK",
			answer: "\x20\x02\x00\x00\x20\x02\x00\x00",
			log:    "2002",
		},
		{
			name:   "publish, QoS 0",
			answer: "\x20\x02\x00\x00\x30\x06\x00\x03sipx",
			log:    "3006",
		},
		{
			name:   "publish, QoS 1",
			answer: "\x20\x02\x00\x00\x32\x08\x00\x03sip\x00\x01x",
			log:    "3208",
		},
		{
			name:   "publish of 256 MB",
			answer: "\x20\x02\x00\x00\x30\xff\xff\xff\x7f\x00\x03sip",
			log:    "30ff",
		},
		{
			name:   "SUBACK",
			answer: "\x20\x02\x00\x00\x90\x03\x00\x01\x00",
			log:    "9003",
		},
		{
			name:   "PUBREC",
			answer: "\x20\x02\x00\x00\x50\x02\x00\x01",
			log:    "5002",
		},
		{
			name:   "PUBCOMP",
			answer: "\x20\x02\x00\x00\x70\x02\x00\x01",
			log:    "7002",
		},
		{
			name:   "DISCONNECT",
			answer: "\x20\x02\x00\x00\xe0\x00\xe0\x00",
			log:    "e000",
		},
		{
			name:   "PUBACK too long",
			answer: "\x20\x02\x00\x00\x40\x04\x00\x01\x00\x00",
			log:    "4004",
		},
		{
			name:   "PUBACK with flags",
			answer: "\x20\x02\x00\x00\x42\x02\x00\x01",
			log:    "4202",
		},
		{
			name:   "PINGRESP too long",
			answer: "\x20\x02\x00\x00\xd0\x02\x00\x00",
			log:    "d002",
		},
		{
			name:   "type 0",
			answer: "\x20\x02\x00\x00\x00\x00\x00\x00",
			log:    "0000",
		},
		{
			name:   "half a PUBACK",
			answer: "\x20\x02\x00\x00\x40\x02\x00",
			log:    "EOF",
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			b := newFakeBroker(t)
			p := start(t, nil, b.url("tcp"))
			p.putAll(1, 3)
			conn, err := b.Accept()
			if err != nil {
				t.Fatal(err)
			}
			packets.ReadPacket(conn)
			io.WriteString(conn, row.answer)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn) // ends as the publisher hangs up
			conn.Close()
			s := b.accept(packets.Accepted)
			for i := 1; i <= 3; i++ {
				s.ack(s.publish().MessageID)
			}
			p.untilPublished(3)
			if logs := p.logs.String(); !strings.Contains(logs, row.log) {
				t.Errorf("no %q in %s", row.log, logs)
			}
			if got := p.stats(); got.published != 3 || got.messages != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestHugeLengthAllocatesNothing: a packet that announces 256 MB.
func TestHugeLengthAllocatesNothing(t *testing.T) {
	p := prepare(t, nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, packet := range []string{"\x30\xff\xff\xff\x7f", "\x20\xff\xff\xff\x7f"} {
		if _, err := p.takeAnswer(bufio.NewReader(strings.NewReader(packet))); err == nil {
			t.Errorf("%x was taken", packet)
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 100_000 {
		t.Errorf("%d bytes allocated", got)
	}
}

func TestPasswordIsReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	os.WriteFile(file, []byte("guess4711\n"), 0o600)
	b := newFakeBroker(t)
	p := start(t, func(d *delivery) { d.username, d.passwordFile = "joe", file }, b.url("tcp"))
	for range 3 {
		s := b.accept(packets.ErrRefusedBadUsernameOrPassword)
		if !s.connect.UsernameFlag || s.connect.Username != "joe" || string(s.connect.Password) != "guess4711" {
			t.Errorf("CONNECT %v", s.connect)
		}
		s.closed()
	}
	os.Remove(file)
	time.Sleep(10 * second) // attempts without a password
	os.WriteFile(file+".new", []byte("right0815"), 0o600)
	os.Rename(file+".new", file)
	for connected := false; !connected; {
		conn, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		packet, _ := packets.ReadPacket(conn) // none where the password was missing
		c, ok := packet.(*packets.ConnectPacket)
		connected = ok && string(c.Password) == "right0815"
		if !connected {
			conn.Close()
		}
	}
	logs := p.logs.String()
	if strings.Contains(logs, "4711") || strings.Contains(logs, "0815") {
		t.Errorf("a password in the log: %s", logs)
	}
	for _, reason := range []string{"Username or Password in unknown format (4)", "open " + file + ": no such file"} {
		if n := strings.Count(logs, reason); n != 1 {
			t.Errorf("%q is logged %d times, want once a minute: %s", reason, n, logs)
		}
	}
	for _, check := range []string{`"USERNAME, PASSWORD, PASSWORD_FILE, CLIENT_ID"`, "PASSWORD_FILE\n"} {
		if n := strings.Count(logs, " check="+check); n != 1 {
			t.Errorf("check=%s stands there %d times: %s", check, n, logs)
		}
	}
}

func (r *running) untilLogged(text string) {
	r.t.Helper()
	for end := time.Now().Add(testPatience); !strings.Contains(r.logs.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never logged %q: %s", text, r.logs)
		}
	}
}

func TestFailover(t *testing.T) {
	first, second := newFakeBroker(t), newFakeBroker(t)
	address := first.Addr().String()
	first.Close()
	p := start(t, nil, first.url("tcp"), second.url("tcp"))
	s := second.accept(packets.Accepted)
	p.putAll(1, 1)
	s.publishes(1, 1)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip("the port is taken: ", err)
	}
	defer l.Close()
	first.Listener = l
	s.Close()
	s = first.accept(packets.Accepted)
	s.publishes(1, 1)
	s.Close() // at once, so the second has its turn
	second.accept(packets.Accepted).publishes(1, 1)
	if n := strings.Count(p.logs.String(), "connect: connection refused"); n != 1 {
		t.Errorf("%d lines, want the same reason once: %s", n, p.logs)
	}
}

// TestSameReasonOnce: the ports of the publisher's own side, other ones each time, don't make another reason.
func TestSameReasonOnce(t *testing.T) {
	b := newFakeBroker(t)
	p := start(t, nil, b.url("tcp"))
	for range 5 {
		conn, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		packets.ReadPacket(conn)
		conn.(*net.TCPConn).SetLinger(0) // closing resets
		conn.Close()
	}
	if n := strings.Count(p.logs.String(), "reset by peer"); n != 1 {
		t.Errorf("logged %d times: %s", n, p.logs)
	}
}

// TestBackoff sees the waits between attempts grow, and start over after a connection that held.
func TestBackoff(t *testing.T) {
	b := newFakeBroker(t)
	start(t, nil, b.url("tcp"))
	last := time.Now()
	b.accept(packets.ErrRefusedServerUnavailable)
	for i, units := range []time.Duration{1, 2, 4, 8, 16, 20} {
		b.accept(packets.ErrRefusedServerUnavailable)
		waited := time.Since(last)
		last = time.Now()
		if least, most := units*second, units*second*3/2+
			50*time.Millisecond; waited < least-2*time.Millisecond || waited > most {
			t.Errorf("wait %d took %v, want %v to %v", i+1, waited, least, most)
		}
	}
	s := b.accept(packets.Accepted)
	s.quiet(36 * second)
	last = time.Now()
	s.Close()
	b.accept(packets.Accepted)
	// the next ping fails, then comes the first wait; else it would be 20 s
	if waited := time.Since(last); waited > 15*second {
		t.Errorf("waited %v after a connection that held", waited)
	}
}

func TestStatus(t *testing.T) {
	b := newFakeBroker(t)
	p := start(t, func(d *delivery) { d.statusTopic = "status/1" }, b.url("tcp"))
	s := b.accept(packets.Accepted)
	c := s.connect
	if !c.WillFlag || c.WillTopic != "status/1" || string(c.WillMessage) != "offline" || !c.WillRetain ||
		c.WillQos != 1 {
		t.Errorf("CONNECT %v", c)
	}
	online := func() {
		m := s.publish()
		if m.TopicName != "status/1" || string(m.Payload) != "online" || !m.Retain || m.Dup || m.MessageID != statusID {
			t.Errorf("got %v, want online", m)
		}
		s.ack(m.MessageID)
	}
	online()
	p.putAll(1, 2)
	s.publishes(1, 1)
	s.Close()
	s = b.accept(packets.Accepted)
	online()
	s.ack(s.publishes(1, 1)...)
	s.ack(s.publishes(2, 2)...)
	p.untilPublished(2)

	start(t, nil, b.url("tcp"))
	if c := b.accept(packets.Accepted).connect; c.WillFlag || c.UsernameFlag || c.PasswordFlag {
		t.Errorf("CONNECT %v", c)
	}
}

func TestKeepAlive(t *testing.T) {
	t.Run("pings", func(t *testing.T) {
		t.Parallel()
		b := newFakeBroker(t)
		start(t, nil, b.url("tcp"))
		s := b.accept(packets.Accepted)
		s.SetReadDeadline(time.Now().Add(testPatience))
		begin := time.Now()
		for range 3 {
			packet, _ := packets.ReadPacket(s)
			if _, ok := packet.(*packets.PingreqPacket); !ok {
				t.Fatalf("got %v, want PINGREQ", packet)
			}
			packets.NewControlPacket(packets.Pingresp).Write(s)
		}
		if took := time.Since(begin); took < 14*second || took > 25*second {
			t.Errorf("three pings in %v", took)
		}
	})
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		b := newFakeBroker(t)
		p := start(t, nil, b.url("tcp"))
		b.accept(packets.Accepted)
		begin := time.Now()
		b.accept(packets.Accepted)
		if took := time.Since(begin); took < 30*second {
			t.Errorf("given up after %v", took)
		}
		p.untilLogged("timeout")
	})
	t.Run("late PUBACK", func(t *testing.T) {
		t.Parallel()
		b := newFakeBroker(t)
		p := prepare(t, nil, b.url("tcp"))
		p.putAll(1, 5)
		p.start()
		s := b.accept(packets.Accepted)
		ids := s.publishes(1, 5)
		begin := time.Now()
		s.ack(ids[0], ids[2])
		time.Sleep(20 * second)
		s.ack(ids[4]) // is no reason to wait longer for the others
		s.quiet(testPatience)
		if took := time.Since(begin); took < 29*second || took > 40*second {
			t.Errorf("renewed after %v", took)
		}
		s = b.accept(packets.Accepted)
		s.ack(s.publishes(2, 2)...)
		s.ack(s.publishes(4, 4)...)
		p.untilPublished(5)
		p.untilLogged("timeout")
	})
	t.Run("the broker does not read", func(t *testing.T) {
		t.Parallel()
		b := newFakeBroker(t)
		p := prepare(t, func(d *delivery) { d.queueBytes = 64 << 20 }, b.url("tcp"))
		for range windowSize {
			p.put(udp, make([]byte, 500_000)) // more than the sockets hold
		}
		p.start()
		b.accept(packets.Accepted)
		b.accept(packets.Accepted)
		p.untilLogged("timeout")
		if got := p.stats(); got.dropped != 0 || got.published != 0 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no CONNACK", func(t *testing.T) {
		t.Parallel()
		b := newFakeBroker(t)
		start(t, nil, b.url("tcp"))
		conn, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // and not before
		b.accept(packets.Accepted)
	})
}

// certificates makes an authority, and a server's and a client's certificate of it, as PEM files.
func certificates(t *testing.T) (dir string) {
	dir = t.TempDir()
	write := func(name, kind string, der []byte) {
		block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), block, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var authority *x509.Certificate
	var authorityKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
			IsCA: name == "ca", BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if authority == nil {
			authority, authorityKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, authority, &key.PublicKey, authorityKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".pem", "CERTIFICATE", der)
		write(name+".key", "PRIVATE KEY", keyDER)
	}
	return dir
}

// recorder keeps what a connection brought, before TLS.
type recorder struct {
	net.Listener
	logBuffer
}

func (r *recorder) Accept() (net.Conn, error) {
	conn, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return recorded{conn, &r.logBuffer}, nil
}

type recorded struct {
	net.Conn
	log *logBuffer
}

func (r recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.log.Write(b[:n])
	return n, err
}

func TestTLS(t *testing.T) {
	dir, other := certificates(t), certificates(t)
	pair, err := tls.LoadX509KeyPair(dir+"/server.pem", dir+"/server.key")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	authority, _ := os.ReadFile(dir + "/ca.pem")
	roots.AppendCertsFromPEM(authority)

	for _, row := range []struct {
		name   string
		ca     string
		client string
		server *tls.Config
		fails  string
	}{
		{
			name: "own authority",
			ca:   dir,
		},
		{
			name:  "wrong authority",
			ca:    other,
			fails: "unknown authority",
		},
		{
			name:  "system authorities",
			fails: "unknown authority",
		},
		{
			name:  "no such file",
			ca:    "/nonexistent",
			fails: "no such file",
		},
		{
			name:   "client certificate",
			ca:     dir,
			client: dir,
			server: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert},
		},
		{
			name:   "client certificate, TLS 1.2",
			ca:     dir,
			client: dir,
			server: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: tls.VersionTLS12},
		},
		{
			name:   "client certificate missing",
			ca:     dir,
			server: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert},
			fails:  "certificate required",
		},
		{
			name:   "client certificate wrong",
			ca:     dir,
			client: other,
			server: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert},
			fails:  "tls: ",
		},
		{
			name:   "TLS 1.1",
			ca:     dir,
			server: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
			fails:  "tls: ",
		},
	} {
		for _, scheme := range []string{"ssl", "tls", "mqtts"} {
			t.Run(row.name+" "+scheme, func(t *testing.T) {
				b := newFakeBroker(t)
				wire := &recorder{Listener: b.Listener}
				server := &tls.Config{}
				if row.server != nil {
					server = row.server.Clone()
				}
				server.Certificates, server.ClientCAs = []tls.Certificate{pair}, roots
				l := tls.NewListener(wire, server)
				p := prepare(t, func(d *delivery) {
					if row.ca != "" {
						d.caFile = row.ca + "/ca.pem"
					}
					if row.client != "" {
						d.certFile, d.keyFile = row.client+"/client.pem", row.client+"/client.key"
					}
				}, b.url(scheme))
				p.put(udp, []byte("INVITE sip:secret"))
				p.start()
				if row.fails == "" {
					b.Listener = l
					s := b.accept(packets.Accepted)
					s.ack(s.publish().MessageID)
					p.untilPublished(1)
				} else {
					go func() {
						for {
							conn, err := l.Accept()
							if err != nil {
								return
							}
							go io.Copy(io.Discard, conn)
						}
					}()
					p.untilLogged(row.fails)
					if logs := p.logs.String(); !strings.Contains(logs, "level=ERROR") ||
						!strings.Contains(logs, "CA_FILE") && row.ca != "/nonexistent" {
						t.Errorf("the log doesn't say what to check: %s", logs)
					}
					if got := p.stats(); got.published != 0 || got.messages != 1 {
						t.Errorf("%+v", got)
					}
				}
				if seen := wire.String(); strings.Contains(seen, "secret") || strings.Contains(seen, "MQTT") {
					t.Errorf("sent in clear: %q", seen)
				}
			})
		}
	}
}

func TestWebsocket(t *testing.T) {
	dir := certificates(t)
	for _, scheme := range []string{"ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			conns := make(chan net.Conn, 1)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/mqtt" || r.URL.RawQuery != "a=b" ||
					r.Header.Get("Sec-WebSocket-Protocol") != "mqtt" {
					t.Errorf("asked for %v, %v", r.URL, r.Header)
				}
				if conn := upgrade(w, r); conn != nil {
					conns <- conn
				}
			}))
			if scheme == "wss" {
				pair, err := tls.LoadX509KeyPair(dir+"/server.pem", dir+"/server.key")
				if err != nil {
					t.Fatal(err)
				}
				server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			broker := &url.URL{Scheme: scheme, Host: server.Listener.Addr().String(), Path: "/mqtt", RawQuery: "a=b"}
			p := start(t, func(d *delivery) { d.caFile = dir + "/ca.pem" }, broker)
			p.putAll(1, 300)
			s := newSession(t, <-conns, packets.Accepted)
			for i := 1; i <= 300; i++ {
				s.ack(s.publishes(i, i)...)
			}
			p.untilPublished(300)
		})
	}
}

// upgrade is a server's part of the WebSocket handshake (RFC 6455 §4.2).
func upgrade(w http.ResponseWriter, r *http.Request) net.Conn {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "websocket")
	w.Header().Set("Sec-WebSocket-Protocol", "mqtt")
	w.Header().Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil
	}
	return &frames{Conn: conn, r: buffered.Reader}
}

// frames makes a byte stream of the binary messages of a WebSocket client (RFC 6455 §5.2).
type frames struct {
	net.Conn
	r    *bufio.Reader
	left uint64 // bytes of the frame that is being read
	mask [4]byte
	at   int // in mask
}

func (f *frames) Read(b []byte) (int, error) {
	for f.left == 0 {
		var head [2]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			return 0, err
		}
		if kind := head[0] & 15; kind != 0 && kind != 2 || head[1]&0x80 == 0 {
			return 0, fmt.Errorf("a frame that is not masked and binary: %x", head)
		}
		extended := map[byte]int{126: 2, 127: 8}[head[1]&127]
		length := make([]byte, 8)
		if _, err := io.ReadFull(f.r, length[8-extended:]); err != nil {
			return 0, err
		}
		if f.left = binary.BigEndian.Uint64(length); extended == 0 {
			f.left = uint64(head[1] & 127)
		}
		if _, err := io.ReadFull(f.r, f.mask[:]); err != nil {
			return 0, err
		}
		f.at = 0
	}
	n, err := f.r.Read(b[:min(uint64(len(b)), f.left)])
	for i := range b[:n] {
		b[i] ^= f.mask[f.at%4]
		f.at++
	}
	f.left -= uint64(n)
	return n, err
}

// Write writes one message of at most 65,535 bytes.
func (f *frames) Write(b []byte) (int, error) {
	head := binary.BigEndian.AppendUint16([]byte{0x82, 126}, uint16(len(b)))
	if len(b) < 126 {
		head = []byte{0x82, byte(len(b))}
	}
	_, err := f.Conn.Write(append(head, b...))
	return len(b), err
}

// delayed is a proxy to a broker that takes its time in both directions.
func delayed(t *testing.T, broker net.Listener, delay time.Duration) *url.URL {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	type chunk struct {
		due  time.Time
		data []byte
	}
	forward := func(to, from net.Conn) {
		chunks := make(chan chunk, 10000)
		go func() {
			defer close(chunks)
			for {
				b := make([]byte, 64<<10)
				n, err := from.Read(b)
				if err != nil {
					return
				}
				chunks <- chunk{time.Now().Add(delay), b[:n]}
			}
		}()
		for c := range chunks {
			time.Sleep(time.Until(c.due))
			to.Write(c.data)
		}
		to.Close()
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", broker.Addr().String())
			if err != nil {
				client.Close()
				return
			}
			go forward(server, client)
			go forward(client, server)
		}
	}()
	return &url.URL{Scheme: "tcp", Host: l.Addr().String()}
}

// TestLatency: at a round trip of 100 ms a message takes half of that, and doesn't wait for others' acknowledgements.
func TestLatency(t *testing.T) {
	b := newFakeBroker(t)
	p := start(t, nil, delayed(t, b.Listener, 50*time.Millisecond))
	s := b.accept(packets.Accepted)
	p.until("connected", func(s queueStats) bool { return s.connected })
	const n = 75
	sent := make([]time.Time, n+1)
	var mu sync.Mutex
	go func() {
		for i := 1; i <= n; i++ {
			mu.Lock()
			sent[i] = time.Now()
			mu.Unlock()
			p.putAll(i, i)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	var took []time.Duration
	for i := 1; i <= n; i++ {
		s.ack(s.publishes(i, i)...)
		mu.Lock()
		took = append(took, time.Since(sent[i]))
		mu.Unlock()
	}
	slices.Sort(took)
	t.Logf("p50 %v, p95 %v", took[n/2], took[n*95/100])
	if took[n/2] < 50*time.Millisecond || took[n/2] > 70*time.Millisecond {
		t.Errorf("p50 %v", took[n/2])
	}
	p.untilPublished(n)
}

// TestIdle: nothing polls. All that happens is a ping every 200 ms.
func TestIdle(t *testing.T) {
	b := newHangsUpAt(t, func(*packets.PublishPacket) bool { return false })
	go b.run()
	p := start(t, nil, b.url("tcp"))
	p.putAll(1, 10)
	p.untilPublished(10)
	const most = 180 // 100 are the runtime's, where what another test has left is in a system call
	least := int64(1 << 62)
	for range 5 { // other tests may leave something behind that ends soon
		var before, after syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		time.Sleep(time.Second)
		syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		least = min(least, after.Nvcsw-before.Nvcsw)
		if least < most {
			break
		}
	}
	t.Logf("%d context switches a second", least)
	if least >= most {
		t.Errorf("%d context switches a second", least)
	}
}

// TestPace: how many messages may be sent, asked at some moments.
func TestPace(t *testing.T) {
	for _, row := range []struct {
		name  string
		rate  int
		asked time.Duration // how often it's asked
		for1s int           // messages in a second, at least; one more at most
		burst int           // most of them at once
	}{
		{
			name:  "1 a second",
			rate:  1,
			asked: time.Millisecond,
			for1s: 1,
			burst: 1,
		},
		{
			name:  "80 a second",
			rate:  80,
			asked: time.Millisecond,
			for1s: 80,
			burst: 1,
		},
		{
			name:  "1,000 a second, asked a bit late",
			rate:  1000,
			asked: 1100 * time.Microsecond,
			for1s: 999,
			burst: 2,
		},
		{
			name:  "80 a second, asked too seldom",
			rate:  80,
			asked: 50 * time.Millisecond,
			for1s: 20,
			burst: 1,
		},
		{
			name:  "100,000 a second",
			rate:  100000,
			asked: time.Millisecond,
			for1s: 100000,
			burst: 101,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := prepare(t, func(d *delivery) { d.maxRate = row.rate })
			moment := time.Now()
			for _, pause := range []time.Duration{0, time.Hour, 0} { // a pause is no reason for a burst
				moment = moment.Add(pause)
				total, most := 0, 0
				for end := moment.Add(time.Second); moment.Before(end); moment = moment.Add(row.asked) {
					n := 0
					for ; !p.due.After(moment); n++ {
						p.pace(moment)
					}
					total += n
					most = max(most, n)
				}
				// a step is made up for at a beginning
				if total < row.for1s || total > row.for1s+1+row.rate/1000 || most > row.burst {
					t.Errorf("%d messages, at most %d at once", total, most)
				}
			}
		})
	}
}

// TestMaxRate sees the messages come evenly, those that are sent again, too.
func TestMaxRate(t *testing.T) {
	for _, rate := range []int{50, 400, 20000} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			b := newFakeBroker(t)
			p := prepare(t, func(d *delivery) { d.maxRate = rate }, b.url("tcp"))
			n := min(rate, 1000)
			p.putAll(1, n)
			p.start()
			var came []time.Time
			for range 2 {
				s := b.accept(packets.Accepted)
				first := 1 + int(p.stats().published)
				for i := first; i <= min(n, first+n/2); i++ {
					s.ack(s.publishes(i, i)...)
					came = append(came, time.Now())
				}
				p.untilPublished(uint64(min(n, first+n/2)))
				s.Close()
			}
			took := came[len(came)-1].Sub(came[0])
			if least := time.Duration(len(came)-1) * time.Second / time.Duration(rate); took < least-2*step {
				t.Errorf("%d messages in %v, want at least %v", len(came), took, least)
			}
			const window = 100 * time.Millisecond
			for i := range came {
				within := 0
				for _, at := range came[i:] {
					if at.Sub(came[i]) < window {
						within++
					}
				}
				// some room, as the test may be late to see one
				if most := int(int64(rate)*int64(window)/int64(time.Second))*3/2 + 2; within > most {
					t.Fatalf("%d messages within %v, want at most %d", within, window, most)
				}
			}
		})
	}
}

// throttling is a broker that acknowledges 100 messages a second, by tens, and ignores what is over that, as
// AWS IoT does.
func throttling(conn net.Conn) {
	var recent []time.Time
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch m := packet.(type) {
		case *packets.ConnectPacket:
			conn.Write([]byte("\x20\x02\x00\x00"))
		case *packets.PingreqPacket:
			conn.Write([]byte("\xd0\x00"))
		case *packets.PublishPacket:
			recent = slices.DeleteFunc(recent, func(at time.Time) bool { return time.Since(at) > 100*time.Millisecond })
			if len(recent) < 10 {
				recent = append(recent, time.Now())
				(&session{Conn: conn}).ack(m.MessageID)
			}
		}
	}
}

func TestThrottlingBroker(t *testing.T) {
	for _, row := range []struct {
		name    string
		maxRate int
	}{
		{
			name:    "with MAX_RATE",
			maxRate: 80,
		},
		{
			name: "without",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newFakeBroker(t)
			go func() {
				for {
					conn, err := b.Accept()
					if err != nil {
						return
					}
					go throttling(conn)
				}
			}()
			p := prepare(t, func(d *delivery) { d.maxRate = row.maxRate }, b.url("tcp"))
			p.putAll(1, 150)
			p.start()
			if row.maxRate > 0 {
				p.untilPublished(150)
				if n := strings.Count(p.logs.String(), "no connection"); n > 0 {
					t.Errorf("lost connections: %s", p.logs)
				}
				return
			}
			p.untilLogged("PUBACKs are late: i/o timeout\" check=\"the broker's quotas, MAX_RATE\"")
			p.until("further", func(s queueStats) bool { return s.published > 30 })
			if got := p.stats(); got.dropped > 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestParseBroker(t *testing.T) {
	for text, want := range map[string]string{
		"tcp://h":                       "tcp://h:1883",
		" mqtt://h ":                    "mqtt://h:1883",
		"ssl://broker.example":          "ssl://broker.example:8883",
		"tls://192.0.2.1:":              "tls://192.0.2.1:8883",
		"mqtts://[2001:db8::1]":         "mqtts://[2001:db8::1]:8883",
		"tcp://[fe80::1%25eth0]:1":      "tcp://[fe80::1%25eth0]:1",
		"ws://h":                        "ws://h:80",
		"wss://h":                       "wss://h:443",
		"ws://h:8080/mqtt?a=b":          "ws://h:8080/mqtt?a=b",
		"TCP://h:65535/":                "tcp://h:65535/",
		"tcp://a_b.example.:8883":       "tcp://a_b.example.:8883",
		"":                              "",
		"h":                             "",
		"h:1883":                        "",
		"//h":                           "",
		"http://h":                      "",
		"tcp6://h":                      "",
		"tcp://":                        "",
		"tcp://:1883":                   "",
		"tcp://h:0":                     "",
		"tcp://h:65536":                 "",
		"tcp://h:x":                     "",
		"tcp://h/path":                  "",
		"tcp://h?query":                 "",
		"tcp://h#fragment":              "",
		"ws://h/#fragment":              "",
		"tcp://[::1":                    "",
		"unix:///run/broker":            "",
		"tcp://u@h":                     "",
		"ws://h/@":                      "",
		"tcp://h:1883;tcp://other:1883": "",
	} {
		broker, err := parseBroker(text)
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "want a URL such as tcp://broker.example:1883") {
				t.Errorf("%q: %v, %v", text, broker, err)
			}
			continue
		}
		if err != nil || broker.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, broker, err, want)
		}
	}
}

// TestBrokerSecrets: no error shows a password, and it says where a password goes.
func TestBrokerSecrets(t *testing.T) {
	for _, text := range []string{
		"tcp://user:geheim@h:1883",
		"tcp://user:geheim%40h:1883",
		"tcp://user:geheim h",
		"tcp://user:geheim",
		"user:geheim@h",
		"user:geheim",
		"us.er:geheim h",
		"tcp:user:geheim@h",
		"ssl:/user:geheim@h",
		"tcp://us er:geheim@h",
		"http://user:geheim@h",
		"tcp://u:12/geheim@h",
		"tcp://user:geheim\\@h",
		"tcp://h:1883?password=geheim",
		"ws://user:geheim@h/mqtt",
		"ws://h/mqtt?token=geheim#x",
		"tcp://user:%67eheim:1883",
		"tcp://user:geheim:1883",
		"tcp://user:geheim\n@h",
	} {
		broker, err := parseBroker(text)
		if err == nil {
			t.Errorf("%q is taken for %v", text, broker)
			continue
		}
		if got := err.Error(); strings.Contains(got, "eheim") || !strings.Contains(got, "PASSWORD_FILE") {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestReadPassword(t *testing.T) {
	long := strings.Repeat("x", 65535)
	for _, row := range []struct {
		name string
		text string
		want string // empty: an error
	}{
		{
			name: "bare",
			text: "geheim",
			want: "geheim",
		},
		{
			name: "a line",
			text: "geheim\n",
			want: "geheim",
		},
		{
			name: "a line with CRLF",
			text: "geheim\r\n",
			want: "geheim",
		},
		{
			name: "only the last line end goes",
			text: " ge\nheim\r\n\n",
			want: " ge\nheim\r\n",
		},
		{
			name: "CR alone is no line end",
			text: "geheim\r",
			want: "geheim\r",
		},
		{
			name: "longest",
			text: long,
			want: long,
		},
		{
			name: "longest with CRLF",
			text: long + "\r\n",
			want: long,
		},
		{
			name: "too long",
			text: long + "x",
		},
		{
			name: "far too long",
			text: long + long,
		},
		{
			name: "empty",
			text: "",
		},
		{
			name: "LF",
			text: "\n",
		},
		{
			name: "CRLF",
			text: "\r\n",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := (&delivery{passwordFile: file}).readPassword()
			if (err != nil) != (row.want == "") || err == nil && got != row.want {
				t.Errorf("%.20q, %v; want %.20q", got, err, row.want)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	t.Run("/dev/zero", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if got, err := (&delivery{passwordFile: "/dev/zero"}).readPassword(); err == nil {
				t.Errorf("a password of %d bytes", len(got))
			}
		}()
		within(t, "the error", done)
	})
	if got, err := (&delivery{password: "geheim\n"}).readPassword(); got != "geheim\n" || err != nil {
		t.Errorf("PASSWORD: %q, %v", got, err)
	}
	if _, err := (&delivery{passwordFile: "/nonexistent"}).readPassword(); err == nil {
		t.Error("no error without the file")
	}
}

func TestALPN(t *testing.T) {
	dir := certificates(t)
	for _, row := range []struct {
		broker string
		client bool
		alpn   []string
		want   []string
	}{
		{
			broker: "ssl://x-ats.iot.eu-west-1.amazonaws.com:443",
			client: true,
			want:   []string{"x-amzn-mqtt-ca"},
		},
		{
			broker: "tls://X.IOT.AmazonAWS.com:443",
			client: true,
			want:   []string{"x-amzn-mqtt-ca"},
		},
		{
			broker: "ssl://x.iot.eu-west-1.amazonaws.com:8883",
			client: true,
		},
		{
			broker: "ssl://x.iot.eu-west-1.amazonaws.com:443",
		},
		{
			broker: "ssl://broker.example:443",
			client: true,
		},
		{
			broker: "ssl://amazonaws.com.broker.example:443",
			client: true,
		},
		{
			broker: "ssl://notamazonaws.com:443",
			client: true,
		},
		{
			broker: "ssl://broker.example:8883",
			alpn:   []string{"mqtt", "x"},
			want:   []string{"mqtt", "x"},
		},
		{
			broker: "ssl://x.iot.eu-west-1.amazonaws.com:443",
			client: true,
			alpn:   []string{"mqtt"},
			want:   []string{"mqtt"},
		},
		{
			broker: "wss://x.iot.eu-west-1.amazonaws.com",
			client: true,
			alpn:   []string{"mqtt"},
			want:   []string{"http/1.1"},
		},
		{
			broker: "wss://x.iot.eu-west-1.amazonaws.com:443",
			client: true,
			want:   []string{"http/1.1"},
		},
	} {
		broker, err := parseBroker(row.broker)
		if err != nil {
			t.Fatal(err)
		}
		d := &delivery{alpn: row.alpn}
		if row.client {
			d.certFile = dir + "/client.pem"
			d.keyFile = dir + "/client.key"
		}
		config, err := d.tlsConfig(broker)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(config.NextProtos, row.want) {
			t.Errorf("%s, %v: %v, want %v", row.broker, row.alpn, config.NextProtos, row.want)
		}
		if config.MinVersion != tls.VersionTLS12 || config.InsecureSkipVerify ||
			config.ServerName != broker.Hostname() {
			t.Errorf("%s: not verified", row.broker)
		}
	}
}

// TestNoProxy: HTTP_PROXY and its like don't decide where data goes. They are read once in a process, so this
// is a process of
// its own; and not for addresses of this machine, so the broker has one that nobody has (RFC 5737).
func TestNoProxy(t *testing.T) {
	proxy := os.Getenv("TEST_PROXY")
	if proxy != "" {
		for _, scheme := range []string{"ws", "wss", "tcp", "ssl"} {
			broker := &url.URL{Scheme: scheme, Host: "192.0.2.1:80"}
			conn, err := newPublisher(&delivery{}, slog.New(slog.DiscardHandler)).dial(context.Background(), broker)
			if err == nil {
				conn.Close()
			}
		}
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err == nil {
			close(asked)
			conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestNoProxy$")
	child.Env = os.Environ()
	address := "http://" + l.Addr().String()
	for _, name := range []string{
		"TEST_PROXY",
		"HTTP_PROXY",
		"HTTPS_PROXY",
		"ALL_PROXY",
		"http_proxy",
		"https_proxy",
		"all_proxy",
	} {
		child.Env = append(child.Env, name+"="+address)
	}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	select {
	case <-asked:
		t.Error("the proxy was asked")
	default:
	}
}

// TestSwallowedSYN: a broker that never answers a SYN costs 5 units, not the minutes of the kernel.
func TestSwallowedSYN(t *testing.T) {
	full, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(full)
	if err := syscall.Bind(full, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(full, 0); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(full)
	if err != nil {
		t.Fatal(err)
	}
	host := fmt.Sprint("127.0.0.1:", address.(*syscall.SockaddrInet4).Port)
	for isFull := false; !isFull; {
		conn, err := net.DialTimeout("tcp", host, 100*time.Millisecond)
		isFull = err != nil
		if err == nil {
			defer conn.Close()
		}
	}
	b := newFakeBroker(t)
	for _, scheme := range []string{"tcp", "ssl", "ws"} {
		begin := time.Now()
		p := start(t, nil, &url.URL{Scheme: scheme, Host: host}, b.url("tcp"))
		b.accept(packets.Accepted)
		if took := time.Since(begin); took < 4*second || took > 15*second {
			t.Errorf("%s: the next broker had its turn after %v", scheme, took)
		}
		p.untilLogged("timeout\" check=BROKER")
	}
}

// TestJitter: publishers that lost their broker together don't come back in step.
func TestJitter(t *testing.T) {
	var waits []time.Duration
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 10 {
		b := newFakeBroker(t)
		start(t, nil, b.url("tcp"))
		all.Go(func() {
			var last time.Time
			for range 4 { // the third wait is 4 units and up to 2 more
				last = time.Now()
				conn, err := b.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			waits = append(waits, time.Since(last))
		})
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	within(t, "all attempts", done)
	if len(waits) != 10 || slices.Max(waits)-slices.Min(waits) < second/2 {
		t.Errorf("in step: %v", waits)
	}
}

func lines(text, part string) (n int) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

// TestFailureLog: a reason is logged at once, then counted for a minute. Times and ports don't make it
// another one. The table
// is bounded, whatever brokers say.
func TestFailureLog(t *testing.T) {
	newLog := func() (*failureLog, *logBuffer) {
		logs := &logBuffer{}
		return &failureLog{log: slog.New(slog.NewTextHandler(logs, nil)), times: map[string]int{}}, logs
	}
	t.Run("once", func(t *testing.T) {
		l, logs := newLog()
		for i := range 20 {
			l.report("h:8883", x509.CertificateInvalidError{
				Cert:   &x509.Certificate{},
				Reason: x509.Expired,
				Detail: fmt.Sprintf("current time 2026-11-28T21:%02d:00Z is after 2026-01-01T00:00:00Z", i),
			})
			l.report("h:1883", fmt.Errorf("read tcp 10.0.0.1:%d->192.0.2.1:1883: connection reset by peer", 40000+i))
		}
		if got := logs.String(); strings.Count(got, "\n") != 2 || lines(got, "expired") != 1 ||
			lines(got, "reset") != 1 {
			t.Errorf("%s", got)
		}
		l.summarize()
		if got := logs.String(); strings.Count(got, "\n") != 4 || lines(got, "times=20") != 2 {
			t.Errorf("%s", got)
		}
		l.report("h:1883", io.EOF)
		if got := logs.String(); strings.Count(got, "\n") != 5 {
			t.Errorf("not logged anew: %s", got)
		}
		l.summarize() // what came once was logged already
		if got := logs.String(); strings.Count(got, "\n") != 5 {
			t.Errorf("%s", got)
		}
	})
	t.Run("summary by itself", func(t *testing.T) {
		l, logs := newLog()
		l.report("h:1883", io.EOF)
		l.report("h:1883", io.EOF)
		for end := time.Now().Add(testPatience); lines(logs.String(), "times=2") == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no summary: %s", logs)
			}
		}
	})
	t.Run("bounded", func(t *testing.T) {
		l, logs := newLog()
		for i := range 1000 {
			name := strings.Repeat(string(rune('a'+i%26)), 1000+i/26)
			l.report("h:1883", fmt.Errorf("certificate is valid for %s and %s", name[:i/26], name))
		}
		l.mu.Lock()
		if len(l.times) > maxReasons+1 {
			t.Errorf("%d reasons", len(l.times))
		}
		l.mu.Unlock()
		l.summarize()
		got := logs.String()
		if n := strings.Count(got, "\n"); n > maxReasons+2 || len(got) > 10000 {
			t.Errorf("%d lines, %d bytes", n, len(got))
		}
		if lines(got, "other reasons") != 1 {
			t.Errorf("%s", got)
		}
	})
}

// TestChecks: the log names the settings that a reason points at, and no others.
func TestChecks(t *testing.T) {
	_, noHost := net.LookupHost("broker.invalid")
	_, noFile := (&delivery{caFile: "/nonexistent"}).tlsConfig(&url.URL{})
	for _, row := range []struct {
		err  error
		want string
	}{
		{
			err:  noHost,
			want: "BROKER",
		},
		{
			err:  &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
			want: "BROKER",
		},
		{
			err:  &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded},
			want: "BROKER",
		},
		{
			err:  x509.UnknownAuthorityError{},
			want: "CA_FILE, CERT_FILE, KEY_FILE",
		},
		{
			err:  &net.OpError{Op: "remote error", Err: tls.AlertError(116)},
			want: "CA_FILE, CERT_FILE, KEY_FILE, ALPN",
		},
		{
			err:  noFile,
			want: "CA_FILE, CERT_FILE, KEY_FILE",
		},
	} {
		logs := &logBuffer{}
		l := &failureLog{log: slog.New(slog.NewTextHandler(logs, nil)), times: map[string]int{}}
		l.report("h:1", row.err)
		_, got, _ := strings.Cut(strings.TrimSpace(logs.String()), " check=")
		if strings.Trim(got, `"`) != row.want {
			t.Errorf("%v: %s, want %s", row.err, got, row.want)
		}
	}
}

// TestChecksOfHangUps: what to look at depends on what the broker hung up at.
func TestChecksOfHangUps(t *testing.T) {
	status := func(d *delivery) { d.statusTopic = "status" }
	for _, row := range []struct {
		name   string
		change func(*delivery)
		hangUp func(*running, *session)
		want   string
	}{
		{
			name:   "at the status",
			change: status,
			hangUp: func(_ *running, s *session) { s.publish() },
			want:   `"the broker's ACL for STATUS_TOPIC"`,
		},
		{
			name: "at a message",
			hangUp: func(p *running, s *session) {
				p.putAll(1, 1)
				s.publishes(1, 1)
			},
			want: `"the broker's ACL for TOPIC and STATUS_TOPIC, its message size limit"`,
		},
		{
			name: "after the PUBACK",
			hangUp: func(p *running, s *session) {
				p.putAll(1, 1)
				s.ack(s.publishes(1, 1)...)
				p.untilPublished(1)
			},
			want: `"the broker's ACL for TOPIC and STATUS_TOPIC, its message size limit"`,
		},
		{
			name:   "at nothing",
			hangUp: func(_ *running, s *session) { s.quiet(3 * second) },
			want:   `"CLIENT_ID, which two sensors may share"`,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newFakeBroker(t)
			p := start(t, row.change, b.url("tcp"))
			s := b.accept(packets.Accepted)
			row.hangUp(p, s)
			s.Close()
			p.untilLogged(" check=" + row.want + "\n")
		})
	}
}

// sink is a broker that acknowledges everything as fast as it can.
func sink(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			r, w := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn)
			for {
				first, _ := r.ReadByte()
				length, err := binary.ReadUvarint(r) // the same encoding as MQTT's
				if err != nil {
					return
				}
				switch first >> 4 {
				case packets.Connect:
					w.Write([]byte{0x20, 2, 0, 0})
				case packets.Pingreq:
					w.Write([]byte{0xd0, 0})
				case packets.Publish:
					topic, _ := r.Peek(2)
					skip := 2 + int(binary.BigEndian.Uint16(topic))
					head, _ := r.Peek(skip + 2)
					w.Write([]byte{0x40, 2, head[skip], head[skip+1]})
				}
				r.Discard(int(length))
				if r.Buffered() == 0 {
					w.Flush()
				}
			}
		}()
	}
}

// BenchmarkPublish compares the publisher with a bare loop over paho's client, with the same window and
// payloads, over loopback to the same sink, whose work is part of both figures.
func BenchmarkPublish(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go sink(l)
	broker := &url.URL{Scheme: "tcp", Host: l.Addr().String()}
	envelope := []byte(payload(1))
	measure := func(b *testing.B, loop func()) {
		var before, after syscall.Rusage
		b.ReportAllocs()
		b.ResetTimer()
		syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		loop()
		syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
	}
	b.Run("publisher", func(b *testing.B) {
		d := &delivery{brokers: []*url.URL{broker}, topic: "sip", clientID: "bench", queueBytes: 2 << 20}
		p := newPublisher(d, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		drain, done := make(chan struct{}), make(chan struct{})
		go func() { p.run(ctx, drain); close(done) }()
		for !p.stats().connected {
			time.Sleep(time.Millisecond)
		}
		measure(b, func() {
			for range b.N {
				p.awaitLess(roomBytes)
				p.put(udp, append(p.buffer(), envelope...))
			}
			for p.stats().published < uint64(b.N) {
				time.Sleep(50 * time.Microsecond)
			}
		})
		cancel()
		<-done
	})
	b.Run("paho", func(b *testing.B) {
		options := mqtt.NewClientOptions().AddBroker(broker.String()).SetProtocolVersion(4).SetAutoReconnect(false)
		client := mqtt.NewClient(options)
		if token := client.Connect(); token.Wait() && token.Error() != nil {
			b.Fatal(token.Error())
		}
		measure(b, func() {
			window := make(chan mqtt.Token, windowSize)
			acknowledged := make(chan struct{})
			go func() {
				for token := range window {
					token.Wait()
				}
				close(acknowledged)
			}()
			for range b.N {
				window <- client.Publish("sip", 1, false, envelope)
			}
			close(window)
			<-acknowledged
		})
		client.Disconnect(0)
	})
}
