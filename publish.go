package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	windowSize = 99    // unacknowledged publishes; with the one of STATUS_TOPIC 100, a usual limit of brokers
	maxID      = 65534 // packet ids of messages are 1 to maxID …
	statusID   = 65535 // … and this is the one for STATUS_TOPIC
)

// Variables so that tests can shorten them.
var (
	connectTimeout = 5 * time.Second  // for name look-up, TCP, TLS and WebSocket; again for CONNACK
	brokerTimeout  = 30 * time.Second // for a batch of writes, for any sign of the broker, for a PUBACK
	pingInterval   = 5 * time.Second  // between two PINGREQs; also how exactly a late PUBACK is noticed
	backoffUnit    = time.Second      // the first wait between two rounds of attempts
	steadyAfter    = 10 * time.Second // a connection that held so long lets the waits start over
	reportInterval = time.Minute      // the same reason is logged once in it
)

// publisher queues envelopes and brings them to a broker with QoS 1.
//
// It speaks MQTT 3.1.1 through the packet codec of the paho library, but not through its client: that one calls
// publishes done that no PUBACK confirmed, resends in random order, stores without a bound, and allocates up to
// 256 MB when a broker announces that much. What a broker may send to a client that never subscribes is so
// little that we read it ourselves: see receive.
//
// The captures call put; one goroutine connects and writes; each connection has one that reads.
type publisher struct {
	cfg      *config
	log      *slog.Logger
	wake     chan struct{}        // holds a token when there may be something for the writer to do
	reported map[string]time.Time // when a reason was logged; only run uses it

	mu     sync.Mutex // guards all that follows
	room   sync.Cond  // with PCAP_FILE put waits for it
	ended  bool       // run is over: everything is dropped
	counts queueStats
	queue  []publish // oldest first: the window, then what waits; the first one is not acknowledged
	window int       // how many at the head of queue have ever been sent: they are never dropped from it
	next   int       // how many of these this connection has sent
	lastID uint16
}

// publish is a message in the queue.
type publish struct {
	payload []byte    // nil once acknowledged
	id      uint16    // given when it is sent first
	sent    time.Time // last time; zero before the first
}

// queueStats are the publisher's counters: always, the sum of accepted is published + dropped + messages.
type queueStats struct {
	accepted  [transports]uint64 // handed to put
	published uint64             // acknowledged by a PUBACK, and nothing else
	dropped   uint64             // the queue was full, or time was up
	messages  int                // waiting or unacknowledged
	bytes     int                // of their envelopes
	connected bool               // a broker accepted us and the connection stands
}

// refusal is a failure that waiting alone seldom mends: it is logged as an error.
type refusal struct{ error }

func newPublisher(cfg *config, log *slog.Logger) *publisher {
	p := &publisher{cfg: cfg, log: log, wake: make(chan struct{}, 1), reported: map[string]time.Time{}}
	p.room.L = &p.mu
	return p
}

// put takes over the envelope of a message, which counts as accepted. While that makes more than QUEUE_MB, the
// oldest waiting messages are dropped. It never blocks, except with PCAP_FILE: then it waits for room until
// the context of run ends.
func (p *publisher) put(t transport, envelope []byte) {
	limit := p.cfg.QueueMB << 20
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cfg.PcapFile != "" && p.counts.bytes > 0 && p.counts.bytes+len(envelope) > limit {
		p.room.Wait()
	}
	p.counts.accepted[t]++
	p.counts.messages++
	p.counts.bytes += len(envelope)
	p.queue = append(p.queue, publish{payload: envelope})
	for len(p.queue) > p.window && (p.counts.bytes > limit || p.ended) {
		p.counts.dropped++
		p.release(&p.queue[p.window])
		copy(p.queue[1:], p.queue[:p.window]) // the window moves up: it is much shorter than what follows
		p.queue[0] = publish{}                // or the array would keep an envelope
		p.queue = p.queue[1:]
	}
	p.wakeWriter()
}

// release takes a message that is done off the gauges, and frees its envelope; p.mu is held.
func (p *publisher) release(m *publish) {
	p.counts.messages--
	p.counts.bytes -= len(m.payload)
	m.payload = nil
	p.room.Signal()
}

func (p *publisher) wakeWriter() {
	select {
	case p.wake <- struct{}{}:
	default: // it has its token already
	}
}

// stats is a consistent snapshot.
func (p *publisher) stats() queueStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// run publishes until drain is closed and no message left, or ctx ends: what then remains is logged and counted
// as dropped.
func (p *publisher) run(ctx context.Context, drain <-chan struct{}) {
	delivered := make(chan struct{})
	go func() { p.deliver(ctx, drain); close(delivered) }()
	select {
	case <-delivered:
	case <-ctx.Done(): // at once, even if a connection attempt hangs
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts.messages > 0 {
		p.log.Warn("stopped before everything was delivered", "messages_dropped", p.counts.messages)
	}
	p.ended = true
	p.counts.dropped += uint64(p.counts.messages)
	p.counts.messages, p.counts.bytes, p.counts.connected = 0, 0, false
	p.queue, p.window, p.next = nil, 0, 0
	p.room.Broadcast()
}

// deliver connects again and again: to the brokers in order, always from the first. After the last one, and
// after a connection that held, it waits 1, 2, 4, 8, 16, 20, 20 … seconds and at random up to half as much
// again, so that sensors don't come back in step; when drain begins it tries at once and then each second.
func (p *publisher) deliver(ctx context.Context, drain <-chan struct{}) {
	drainBegins := drain
	for failures := 0; ; failures++ {
		for _, broker := range p.cfg.brokers {
			if ctx.Err() != nil || p.drained(drain) {
				return
			}
			held, err := p.serve(ctx, broker, drain)
			if err == nil {
				return
			}
			p.report(broker.Host, err)
			if held >= steadyAfter {
				failures = 0
				break
			}
		}
		wait := min(backoffUnit<<min(failures, 5), 20*backoffUnit)
		wait += rand.N(wait / 2)
		if drainBegins == nil {
			wait = backoffUnit
		}
		select {
		case <-time.After(wait):
		case <-drainBegins:
			drainBegins = nil
		case <-ctx.Done():
		}
	}
}

// drained reports whether drain is closed and no message left.
func (p *publisher) drained(drain <-chan struct{}) bool {
	select {
	case <-drain:
		return p.stats().messages == 0
	default:
		return false
	}
}

// localAddress is what changes each time in "read tcp 192.0.2.1:40312->192.0.2.2:1883: …".
var localAddress = regexp.MustCompile(`\S+->`)

// report logs why there is no connection, the same reason once a minute.
func (p *publisher) report(broker string, err error) {
	reason := localAddress.ReplaceAllString(err.Error(), "")
	level := slog.LevelWarn
	if _, refused := err.(refusal); refused {
		level = slog.LevelError
	}
	if strings.Contains(reason, "tls: ") { // as in all errors of crypto/tls, the broker's alerts among them
		level, reason = slog.LevelError, reason+": check CA_FILE, CERT_FILE, KEY_FILE and the broker's certificate"
	}
	maps.DeleteFunc(p.reported, func(_ string, at time.Time) bool { return time.Since(at) >= reportInterval })
	if _, recently := p.reported[broker+reason]; !recently {
		p.reported[broker+reason] = time.Now()
		p.log.Log(context.Background(), level, "no connection", "broker", broker, "reason", reason)
	}
}

// serve connects to a broker and publishes, until the connection is lost (the error) or deliver is over (nil).
// It also returns how long the connection held.
func (p *publisher) serve(ctx context.Context, broker *url.URL, drain <-chan struct{}) (time.Duration, error) {
	conn, err := p.dial(broker)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := p.introduce(conn); err != nil {
		return 0, err
	}
	start := time.Now()
	p.log.Info("connected", "broker", broker.Host)
	p.setConnected(true)
	defer p.setConnected(false)
	lost := make(chan error, 1)
	go func() { lost <- p.read(conn) }()
	err = p.write(ctx, conn, lost, drain)
	return time.Since(start), err
}

// setConnected begins or ends a connection, on which everything unacknowledged is to be sent again.
func (p *publisher) setConnected(connected bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.connected = connected
	p.next = 0
}

// dial opens the connection that the scheme stands for, directly: no proxy from the environment decides where
// data goes. Certificates are read anew each time, so that they can be renewed.
func (p *publisher) dial(broker *url.URL) (net.Conn, error) {
	config, err := p.cfg.tlsConfig(broker)
	if err != nil {
		return nil, refusal{err}
	}
	dialer := &net.Dialer{Timeout: connectTimeout}
	switch broker.Scheme {
	case "tcp", "mqtt":
		return dialer.Dial("tcp", broker.Host)
	case "ws", "wss":
		noProxy := func(*http.Request) (*url.URL, error) { return nil, nil }
		return mqtt.NewWebsocket(broker.String(), config, connectTimeout, nil, &mqtt.WebsocketOptions{Proxy: noProxy})
	}
	return tls.DialWithDialer(dialer, "tcp", broker.Host, config)
}

// introduce sends CONNECT and awaits CONNACK (MQTT 3.1.1 §3.1, §3.2). The password is read anew each time, so
// that it can be rotated.
func (p *publisher) introduce(conn net.Conn) error {
	password, err := p.cfg.password()
	if err != nil {
		return refusal{err}
	}
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion = "MQTT", 4
	connect.CleanSession, connect.Keepalive = true, 30 // seconds
	connect.ClientIdentifier = p.cfg.ClientID
	connect.UsernameFlag, connect.Username = p.cfg.Username != "", p.cfg.Username
	connect.PasswordFlag, connect.Password = password != "", []byte(password)
	connect.WillFlag, connect.WillTopic = p.cfg.StatusTopic != "", p.cfg.StatusTopic
	if connect.WillFlag {
		connect.WillMessage, connect.WillQos, connect.WillRetain = []byte("offline"), 1, true
	}
	conn.SetDeadline(time.Now().Add(connectTimeout))
	connect.Write(conn) // if that fails, so does the next, and knows the broker's reason
	answer := make([]byte, 4)
	if err := receive(conn, answer, 0x2002); err != nil { // CONNACK
		return err
	}
	if code := answer[3]; code != packets.Accepted {
		return refusal{fmt.Errorf("%s (%d): check USERNAME, PASSWORD, PASSWORD_FILE, CLIENT_ID and the broker's access rules", packets.ConnackReturnCodes[code], code)}
	}
	return nil
}

// receive reads a packet of at most 4 bytes, whose first two (type and flags, length) are one of those that are
// legal. They are checked before anything else is read: a broker can't make us allocate, nor take a message.
func receive(r io.Reader, packet []byte, legal ...uint16) error {
	if _, err := io.ReadFull(r, packet[:2]); err != nil {
		return err
	}
	if !slices.Contains(legal, binary.BigEndian.Uint16(packet)) {
		return fmt.Errorf("the broker sent %s (%x), which has no place here", packets.PacketNames[packet[0]>>4], packet[:2])
	}
	_, err := io.ReadFull(r, packet[2:2+packet[1]])
	return err
}

// read handles what the broker sends until the connection is lost, which is the error.
func (p *publisher) read(conn net.Conn) error {
	r, packet := bufio.NewReader(conn), make([]byte, 4)
	for {
		conn.SetReadDeadline(time.Now().Add(brokerTimeout))
		if err := receive(r, packet, 0x4002, 0xd000); err != nil { // PUBACK, PINGRESP
			return err
		}
		if packet[0] == packets.Puback<<4 {
			p.acknowledge(binary.BigEndian.Uint16(packet[2:]))
		}
	}
}

// acknowledge counts a message as published, and frees the window up to the first unacknowledged one. PUBACKs
// may come in any order; one for nothing that this connection has sent is ignored.
func (p *publisher) acknowledge(id uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.queue[:p.next], func(m publish) bool { return m.id == id && m.payload != nil })
	if i < 0 {
		return
	}
	p.counts.published++
	p.release(&p.queue[i])
	for p.next > 0 && p.queue[0].payload == nil {
		p.queue, p.window, p.next = p.queue[1:], p.window-1, p.next-1
	}
	p.wakeWriter()
}

// write publishes until the connection is lost or a PUBACK late (the error), or ctx ends or everything is
// drained (nil). What can be sent is collected first and then takes one system call. The buffered writer keeps
// its first error until Flush returns it.
func (p *publisher) write(ctx context.Context, conn net.Conn, lost <-chan error, drain <-chan struct{}) error {
	w := bufio.NewWriterSize(conn, 64<<10)
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	p.writeStatus(w, "online")
	drainBegins := drain
	for {
		conn.SetWriteDeadline(time.Now().Add(brokerTimeout))
		batch, oldest := p.batch()
		for _, m := range batch {
			writePublish(w, p.cfg.Topic, m, false)
		}
		if p.drained(drain) {
			p.writeStatus(w, "offline")
			packets.NewControlPacket(packets.Disconnect).Write(w)
			w.Flush()
			select { // the broker closes; if we did, a reset could overtake what we sent
			case <-lost:
			case <-time.After(time.Second):
			}
			return nil
		}
		if err := w.Flush(); err != nil {
			return err
		}
		select {
		case <-p.wake:
		case <-drainBegins:
			drainBegins = nil
		case <-ping.C:
			if time.Since(oldest) > brokerTimeout {
				return fmt.Errorf("no PUBACK within %v", brokerTimeout)
			}
			packets.NewControlPacket(packets.Pingreq).Write(w)
		case err := <-lost:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// batch returns what this connection has to send now, as far as the window allows, and when the oldest
// unacknowledged message was sent.
func (p *publisher) batch() (unsent []publish, oldest time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for ; p.next < min(len(p.queue), windowSize); p.next++ {
		m := &p.queue[p.next]
		if m.id == 0 {
			p.lastID = p.lastID%maxID + 1
			m.id = p.lastID
		}
		if m.payload != nil {
			unsent = append(unsent, *m)
			m.sent = now
		}
	}
	if p.window = p.next; p.window == 0 {
		return nil, now
	}
	return unsent, p.queue[0].sent
}

// writePublish writes a PUBLISH (MQTT 3.1.1 §3.3), with DUP if m was sent before.
func writePublish(w io.Writer, topic string, m publish, retain bool) {
	packet := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	packet.Qos, packet.Dup, packet.Retain = 1, !m.sent.IsZero(), retain
	packet.TopicName, packet.MessageID, packet.Payload = topic, m.id, m.payload
	packet.Write(w)
}

// writeStatus publishes to STATUS_TOPIC, if there is one.
func (p *publisher) writeStatus(w io.Writer, status string) {
	if p.cfg.StatusTopic != "" {
		writePublish(w, p.cfg.StatusTopic, publish{id: statusID, payload: []byte(status)}, true)
	}
}
