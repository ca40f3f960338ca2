package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// proxy stands between a sensor and its broker and does to their connection what a test asks for. It parses and
// keeps all that passes, and fails the test where a sensor sends what it never may.
type proxy struct {
	t       *testing.T
	target  func() string // the broker's address, asked for at each connection: a restart may change it
	address string        // where the sensor finds the proxy

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	stalled  bool // forward nothing, close nothing
	withhold bool // forward no PUBACK
	quota    int  // most publishes a second that are forwarded, 0: no limit
	opaque   bool // forward bytes and parse nothing: they should be TLS
	fromHere []byte
	ignored  int                  // publishes over the quota
	types    map[string]int       // how many packets of each type the sensor sent
	sent     []publishedThroughUs // in the order of sending
	acked    map[string]bool      // payloads that the broker acknowledged
	problems []string
}

// publishedThroughUs is a PUBLISH of the sensor's.
type publishedThroughUs struct {
	topic, payload string
	dup, retained  bool
	at             time.Time
}

// newProxy listens at a host's address; the target is where the broker is.
func newProxy(t *testing.T, host string, target func() string) *proxy {
	t.Helper()
	p := &proxy{
		t:       t,
		target:  target,
		address: host + ":0",
		conns:   map[net.Conn]bool{},
		types:   map[string]int{},
		acked:   map[string]bool{},
	}
	p.open()
	t.Cleanup(func() {
		p.close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, problem := range p.problems {
			t.Error(problem)
		}
	})
	return p
}

func (p *proxy) url() string { return "tcp://" + p.address }

// open accepts connections, after close on the same port as before.
func (p *proxy) open() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatalf("proxy: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.address = l, l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
}

// close refuses connections from now on and cuts those there are: the broker is away.
func (p *proxy) close() {
	p.mu.Lock()
	p.listener.Close()
	p.mu.Unlock()
	p.cut()
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// set changes the proxy's behaviour under its lock.
func (p *proxy) set(change func(*proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// get reads something that has been kept.
func get[T any](p *proxy, what func(*proxy) T) T {
	p.mu.Lock()
	defer p.mu.Unlock()
	return what(p)
}

func (p *proxy) serve(sensor net.Conn) {
	defer sensor.Close()
	broker, err := net.DialTimeout("tcp", p.target(), 5*time.Second)
	if err != nil {
		return // the broker is away, and so it seems through the proxy
	}
	defer broker.Close()
	p.set(func(p *proxy) { p.conns[sensor], p.conns[broker] = true, true })
	defer p.set(func(p *proxy) { delete(p.conns, sensor); delete(p.conns, broker) })

	payloads := map[uint16]string{} // by packet id, on this connection
	allowed := &bucket{}
	done := make(chan bool, 2)
	go func() {
		p.forward(broker, sensor, func(packet packets.ControlPacket) bool {
			return p.fromSensor(packet, payloads, allowed)
		})
		done <- true
	}()
	go func() {
		p.forward(sensor, broker, func(packet packets.ControlPacket) bool { return p.fromBroker(packet, payloads) })
		done <- true
	}()
	<-done
}

// forward passes packets on, those for which keep is true.
func (p *proxy) forward(to, from net.Conn, keep func(packets.ControlPacket) bool) {
	if get(p, func(p *proxy) bool { return p.opaque }) {
		io.Copy(to, io.TeeReader(from, opaqueRecord{p}))
		return
	}
	var raw bytes.Buffer
	for {
		raw.Reset()
		packet, err := packets.ReadPacket(io.TeeReader(from, &raw))
		if err != nil {
			return
		}
		for get(p, func(p *proxy) bool { return p.stalled }) {
			time.Sleep(10 * time.Millisecond)
		}
		if !keep(packet) {
			continue
		}
		if _, err := to.Write(raw.Bytes()); err != nil {
			return
		}
	}
}

// opaqueRecord keeps bytes of both directions.
type opaqueRecord struct{ *proxy }

func (r opaqueRecord) Write(b []byte) (int, error) {
	r.set(func(p *proxy) { p.fromHere = append(p.fromHere, b...) })
	return len(b), nil
}

// fromSensor keeps what the sensor sends, and notes what it never may.
func (p *proxy) fromSensor(packet packets.ControlPacket, payloads map[uint16]string, allowed *bucket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m := packet.(type) {
	case *packets.ConnectPacket:
		p.types["CONNECT"]++
	case *packets.PublishPacket:
		p.types["PUBLISH"]++
		if m.TopicName != "sip" && m.TopicName != "status" || m.Qos != 1 || m.Retain != (m.TopicName == "status") {
			p.problems = append(
				p.problems,
				fmt.Sprintf("the sensor published to %q, QoS %d, retained %v", m.TopicName, m.Qos, m.Retain),
			)
		}
		payloads[m.MessageID] = string(m.Payload)
		p.sent = append(p.sent, publishedThroughUs{m.TopicName, string(m.Payload), m.Dup, m.Retain, time.Now()})
		if p.quota > 0 && !allowed.take(p.quota, 1) {
			p.ignored++
			return false
		}
	case *packets.PingreqPacket:
		p.types["PINGREQ"]++
	case *packets.DisconnectPacket:
		p.types["DISCONNECT"]++
	default:
		p.problems = append(p.problems, fmt.Sprintf("the sensor sent %v", packet))
	}
	return true
}

// bucket counts a quota on a connection. A second's worth may come at once, as the way to here may delay what was sent
// evenly.
type bucket struct {
	left  float64
	since time.Time
}

// take reports whether n more are within the quota a second.
func (b *bucket) take(quota, n int) bool {
	now := time.Now()
	b.left = min(float64(quota), b.left+now.Sub(b.since).Seconds()*float64(quota))
	b.since = now
	if b.left < float64(n) {
		return false
	}
	b.left -= float64(n)
	return true
}

// fromBroker keeps what the broker acknowledges.
func (p *proxy) fromBroker(packet packets.ControlPacket, payloads map[uint16]string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ack, ok := packet.(*packets.PubackPacket)
	if !ok {
		return true
	}
	if p.withhold {
		return false
	}
	p.acked[payloads[ack.MessageID]] = true
	return true
}
