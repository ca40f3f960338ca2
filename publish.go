package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// At most windowSize messages are unacknowledged, with packet ids from 1. The publish to STATUS_TOPIC has the next id: that
// makes 100, a usual limit of brokers.
const windowSize, statusID = 99, 100

// second is the unit of all waits for a broker; tests shorten it.
var second = time.Second

// publisher queues envelopes and brings them to a broker with QoS 1, in batches: up to 99 messages are written, then their
// PUBACKs are awaited.
//
// It speaks MQTT 3.1.1 with the packet codec of the paho library. It does without that library's client, which writes every
// packet by itself, completes publishes that no PUBACK confirmed, and allocates up to 256 MB where a broker announces that.
//
// The captures call put; one goroutine, deliver, does the rest.
type publisher struct {
	cfg *config
	log *slog.Logger

	mu sync.Mutex // guards all that follows
	queueStats
	window, queue [][]byte // the batch sent last, nil what is acknowledged; then what waits. Both in order, oldest first
	ended         bool     // run is over: everything is dropped
}

// queueStats are the publisher's counters: always, the sum of accepted is published + dropped + messages.
type queueStats struct {
	accepted           [transports]uint64 // handed to put
	published, dropped uint64             // acknowledged by a PUBACK, and nothing else; the queue was full, or time was up
	messages, bytes    int                // waiting or unacknowledged, and the bytes of their envelopes
	connected          bool               // a broker accepted us and has answered since, at the latest 5 s ago if it is idle
}

func newPublisher(cfg *config, log *slog.Logger) *publisher { return &publisher{cfg: cfg, log: log} }

// put takes over the envelope of a message. While that makes more than QUEUE_MB, the oldest waiting messages are dropped.
// It never blocks, except with PCAP_FILE: then it waits, for as long as 1 MB is on the way.
func (p *publisher) put(t transport, envelope []byte) {
	for p.cfg.PcapFile != "" && p.stats().bytes+len(envelope) > 1<<20 {
		time.Sleep(time.Millisecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted[t]++
	p.queue, p.messages, p.bytes = append(p.queue, envelope), p.messages+1, p.bytes+len(envelope)
	for len(p.queue) > 0 && (p.ended || p.bytes > p.cfg.QueueMB<<20) {
		p.dropped, p.messages, p.bytes = p.dropped+1, p.messages-1, p.bytes-len(p.queue[0])
		p.queue[0], p.queue = nil, p.queue[1:]
	}
}

// stats is a consistent snapshot.
func (p *publisher) stats() queueStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queueStats
}

// run publishes until drain is closed and no message left, or ctx ends: what then remains is logged and counted as dropped.
func (p *publisher) run(ctx context.Context, drain <-chan struct{}) {
	ctx, end := context.WithCancel(ctx)
	go p.deliver(ctx, drain)
	go func() {
		for <-drain; p.stats().messages > 0; {
			time.Sleep(10 * time.Millisecond)
		}
		end()
	}()
	<-ctx.Done()
	time.Sleep(second / 4) // for DISCONNECT
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.messages > 0 {
		p.log.Warn("stopped before everything was delivered", "messages_dropped", p.messages)
	}
	p.dropped, p.messages, p.bytes, p.queue = p.dropped+uint64(p.messages), 0, 0, nil
	p.connected, p.ended = false, true
}

// deliver connects again and again: to the brokers in order, and after the last one it waits 1, 2, 4, 8, 16, 20, 20 … seconds
// and at random up to half as much again, so that sensors don't come back in step. Once drain is closed it waits a second.
func (p *publisher) deliver(ctx context.Context, drain <-chan struct{}) {
	for wait, reported := second, map[string]time.Time{}; ctx.Err() == nil; wait = min(2*wait, 20*second) {
		for _, broker := range p.cfg.brokers {
			start := time.Now()
			err := p.serve(ctx, broker)
			if time.Since(start) > 30*second { // the connection held
				wait = second
			}
			reason := err
			for errors.Unwrap(reason) != nil {
				reason = errors.Unwrap(reason) // without the local port, which is another one each time
			}
			if same := broker.Host + reason.Error(); ctx.Err() == nil && time.Since(reported[same]) > time.Minute {
				reported[same] = time.Now()
				p.log.Error("no connection", "broker", broker.Host, "reason", err,
					"check", "BROKER; if refused USERNAME, PASSWORD, PASSWORD_FILE, CLIENT_ID; for TLS CA_FILE, CERT_FILE, KEY_FILE")
			}
		}
		select {
		case <-time.After(wait + rand.N(wait/2)):
		case <-drain:
			time.Sleep(second)
		}
	}
}

// serve connects to a broker and publishes until the connection is lost, or ctx ends and the broker has closed: the error says
// how it ended. No proxy from the environment decides where data goes. Certificates and password are read anew, so that they
// can be rotated.
func (p *publisher) serve(ctx context.Context, broker *url.URL) error {
	config, err := p.cfg.tlsConfig(broker)
	password, passwordErr := p.cfg.password()
	dialer, conn := &net.Dialer{Timeout: 5 * second}, net.Conn(nil)
	switch err = cmp.Or(err, passwordErr, ctx.Err()); {
	case err != nil:
	case broker.Scheme == "tcp", broker.Scheme == "mqtt":
		conn, err = dialer.Dial("tcp", broker.Host)
	case broker.Scheme == "ws", broker.Scheme == "wss":
		conn, err = mqtt.NewWebsocket(broker.String(), config, 5*second, nil, &mqtt.WebsocketOptions{Proxy: http.ProxyURL(nil)})
	default:
		conn, err = tls.DialWithDialer(dialer, "tcp", broker.Host, config)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	r, w := bufio.NewReader(conn), bufio.NewWriterSize(conn, 64<<10)
	c := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	c.ProtocolName, c.ProtocolVersion, c.CleanSession, c.Keepalive, c.ClientIdentifier = "MQTT", 4, true, 30, p.cfg.ClientID
	c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = p.cfg.Username != "", p.cfg.Username, password != "", []byte(password)
	c.WillFlag, c.WillTopic, c.WillMessage = p.cfg.StatusTopic != "", p.cfg.StatusTopic, []byte("offline")
	c.WillRetain, c.WillQos = c.WillFlag, map[bool]byte{true: 1}[c.WillFlag]
	c.Write(w)
	for answers, status := 1, "online"; ; answers, status = p.send(ctx, w, status), "" {
		conn.SetDeadline(time.Now().Add(30 * second))
		w.Flush() // if that fails, so does reading, and knows why
		for range answers {
			if err := p.receive(r); err != nil {
				return err
			}
		}
		if status != "" {
			p.log.Info("connected", "broker", broker.Host)
		}
	}
}

// send writes a batch as soon as something waits, and returns how many answers it will have: what a lost connection left
// unacknowledged comes first. A status is published by itself. After 5 s without a message there is a ping.
func (p *publisher) send(ctx context.Context, w *bufio.Writer, status string) (answers int) {
	if publish(w, p.cfg.StatusTopic, statusID, []byte(status), true) {
		return 1
	}
	for start := time.Now(); time.Since(start) < 5*second; time.Sleep(10 * time.Millisecond) {
		p.mu.Lock()
		p.window = slices.DeleteFunc(p.window, func(m []byte) bool { return m == nil })
		for len(p.window) < windowSize && len(p.queue) > 0 {
			p.window, p.queue[0], p.queue = append(p.window, p.queue[0]), nil, p.queue[1:]
		}
		p.mu.Unlock()
		for i, envelope := range p.window {
			publish(w, p.cfg.Topic, i+1, envelope, false)
		}
		switch {
		case len(p.window) > 0:
			return len(p.window)
		case ctx.Err() != nil:
			publish(w, p.cfg.StatusTopic, statusID, []byte("offline"), true)
			w.Write([]byte{0xe0, 0}) // DISCONNECT: the broker closes
			return 2
		}
	}
	w.Write([]byte{0xc0, 0, 0xc0, 0}) // PINGREQ twice: so their answer has 4 bytes, as every other
	return 1
}

// receive reads an answer: CONNACK, then PUBACK or PINGRESP twice (MQTT 3.1.1 §3.2, §3.4, §3.13). Nothing else is taken from a
// broker, and never more than these 4 bytes.
func (p *publisher) receive(r *bufio.Reader) error {
	var packet [4]byte
	_, err := io.ReadFull(r, packet[:])
	kind, value := u16(packet[:]), u16(packet[2:]) // type, flags and length; then packet id, or return code
	p.mu.Lock()
	defer p.mu.Unlock()
	switch i, code := value-1, packet[3]; {
	case err != nil:
	case p.connected && kind == 0x4002 && 0 <= i && i < len(p.window) && p.window[i] != nil:
		p.published, p.messages, p.bytes = p.published+1, p.messages-1, p.bytes-len(p.window[i])
		p.window[i] = nil
	case p.connected && (kind == 0xd000 || kind == 0x4002 && value == statusID), !p.connected && kind == 0x2002 && code == packets.Accepted:
	case !p.connected && kind == 0x2002:
		err = fmt.Errorf("the broker refused: %s (%d)", packets.ConnackReturnCodes[code], code)
	default:
		err = fmt.Errorf("the broker sent a packet %04x, which has no place here", kind)
	}
	p.connected = err == nil && !p.ended
	return err
}

// publish writes a PUBLISH (MQTT 3.1.1 §3.3) and reports whether it did: without a topic or a payload there is nothing to write.
func publish(w *bufio.Writer, topic string, id int, payload []byte, retain bool) bool {
	packet := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	packet.Qos, packet.Retain, packet.TopicName, packet.MessageID, packet.Payload = 1, retain, topic, uint16(id), payload
	return topic != "" && len(payload) > 0 && packet.Write(w) == nil
}
