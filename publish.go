package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// delivery is what a publisher is told: where messages go, and how.
type delivery struct {
	brokers      []*url.URL // as parseBroker makes them, tried in order
	topic        string
	statusTopic  string // empty: no status is published
	clientID     string
	username     string
	password     string
	passwordFile string // instead of password
	caFile       string // empty: the system's authorities
	certFile     string
	keyFile      string
	alpn         []string // nil: see tlsConfig; not used with wss
	maxRate      int      // messages a second, 0: no limit
	queueBytes   int      // of envelopes that wait or are unacknowledged
}

// usualPorts has the schemes that a broker's URL may have.
var usualPorts = map[string]string{
	"tcp":   "1883",
	"mqtt":  "1883",
	"ssl":   "8883",
	"tls":   "8883",
	"mqtts": "8883",
	"ws":    "80",
	"wss":   "443",
}

const hostAndPort = `([\w.-]*|\[[\w.:%]*\])(:[0-9]*)?`

var (
	brokerURL = regexp.MustCompile(`^(?i:(tcp|mqtt|ssl|tls|mqtts)://` + hostAndPort + `/?|` +
		`wss?://` + hostAndPort + `([/?][^@#\s]*)?)$`)
	// noPassword matches what has no place for credentials or a query.
	noPassword = regexp.MustCompile(`^([\w+-]*:?//)?` + hostAndPort + `(/[\w./-]*)?$`)
)

// parseBroker reads the URL of a broker and fills in the port. Credentials in it would end up in
// logs: they are refused, and the error doesn't repeat a text that may hold some.
func parseBroker(text string) (*url.URL, error) {
	text = strings.TrimSpace(text)
	broker, err := url.Parse(text)
	if err == nil && brokerURL.MatchString(text) && broker.Hostname() != "" {
		port := cmp.Or(broker.Port(), usualPorts[broker.Scheme])
		broker.Host = net.JoinHostPort(broker.Hostname(), port)
		if number, err := strconv.ParseUint(port, 10, 16); err == nil && number > 0 {
			return broker, nil
		}
	}
	const want = "want a URL such as tcp://broker.example:1883," +
		" with tcp, mqtt, ssl, tls, mqtts, ws or wss"
	if noPassword.MatchString(text) {
		return nil, fmt.Errorf("%q; %s", text, want)
	}
	return nil, errors.New("not shown, as it may hold a password; " + want +
		"; a user goes into USERNAME, a password into PASSWORD_FILE")
}

const maxText = 65535 // bytes of a string or password in MQTT (3.1.1 §1.5.3, §3.1.3.5)

var lineEnd = regexp.MustCompile(`\r?\n\z`)

// readPassword reads PASSWORD_FILE anew each time: a secret may be rotated. A final line end is no
// part of the password. Not more is read than a password can have, as the file may be /dev/zero.
func (d *delivery) readPassword() (string, error) {
	if d.passwordFile == "" {
		return d.password, nil
	}
	file, err := os.Open(d.passwordFile)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxText+int64(len("\r\n"))+1))
	password := lineEnd.ReplaceAllString(string(text), "")
	if err == nil && (password == "" || len(password) > maxText) {
		err = fmt.Errorf("%s is empty but for a newline, or longer than %d bytes",
			d.passwordFile, maxText)
	}
	return password, err
}

// tlsConfig reads the PEM files anew each time: certificates are renewed. Brokers are always
// verified. AWS IoT speaks MQTT with client certificates on port 443 if ALPN asks for it.
func (d *delivery) tlsConfig(broker *url.URL) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: broker.Hostname()}
	if d.caFile != "" {
		text, err := os.ReadFile(d.caFile)
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, cmp.Or(err, errors.New("no certificates in "+d.caFile))
		}
	}
	if d.certFile != "" || d.keyFile != "" {
		pair, err := tls.LoadX509KeyPair(d.certFile, d.keyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	isAWS := strings.HasSuffix(strings.ToLower(broker.Host), ".amazonaws.com:443")
	switch {
	case broker.Scheme == "wss":
		config.NextProtos = []string{"http/1.1"} // what a WebSocket begins as
	case d.alpn != nil:
		config.NextProtos = d.alpn
	case isAWS && config.Certificates != nil:
		config.NextProtos = []string{"x-amzn-mqtt-ca"}
	}
	return config, nil
}

// At most windowSize messages are unacknowledged, with packet ids from 1. The publish to
// STATUS_TOPIC has the next id: that makes 100, a usual limit of brokers.
const (
	windowSize = 99
	statusID   = windowSize + 1
)

const (
	roomBytes     = 7 << 17          // 896 KiB: with an envelope (88 KB at most) below QUEUE_MB=1
	writeBytes    = 64 << 10         // packets are written together up to about that size
	reusedBuffers = 1024             // buffers that are kept for further envelopes,
	reusedBytes   = 4 << 10          // none larger than that: together 4 MiB
	step          = time.Millisecond // what is due or arrives within it is handled together
)

// second is the unit of all waits for a broker; tests shorten it.
var second = time.Second

// In that unit: a ping follows after pingAfter without a packet; what has no answer after
// answerWait ends the connection.
const (
	connectWait = 5
	pingAfter   = 5
	answerWait  = 30
)

// After a hang-up at a message it is soon tried again, as all others wait for that. But where so
// many tries in a row don't find one to blame, the broker has other reasons.
const maxQuickTries = 15

// publisher queues envelopes and brings them to a broker with QoS 1: a message goes out as soon as
// less than windowSize are unacknowledged.
//
// It speaks MQTT 3.1.1 with a few packets of its own, and CONNECT and the WebSocket dialler of the
// paho library. It does without that library's client, which writes every packet by itself,
// completes publishes that no PUBACK confirmed, and allocates up to 256 MB where a broker announces
// that.
//
// The captures call put. One goroutine, deliver, connects and writes; while there is a connection,
// another one reads the answers. They wake each other, nothing polls.
type publisher struct {
	*delivery
	log      *slog.Logger
	failures failureLog
	buffers  chan []byte   // for further envelopes
	wake     chan struct{} // holds one: deliver may have something to write
	fewer    *sync.Cond    // less is on the way than before

	// Only deliver uses these.
	due      time.Time // with maxRate: when the next message may be sent
	written  time.Time // when a packet was written last, or publishing began
	caughtUp bool      // nothing waits for being sent
	onTrial  bool      // a broker hung up at a message: the next try comes soon

	// sent <= begun <= len(queue), begun <= windowSize; only queue[:begun] have packet ids.
	mu         sync.Mutex  // guards the fields below
	queueStats             // all but messages, which stats fills in
	queue      []queued    // what waits or is unacknowledged, oldest first
	begun      int         // so many of queue were ever sent: these are never dropped for room
	sent       int         // so many of queue were sent on this connection
	limit      int         // so many may be sent and unacknowledged
	quickTries int         // hang-ups in a row for which no message was dropped; 0 once all is well
	freeIDs    chan uint16 // packet ids that nothing in queue has
	ended      bool        // run is over: everything is dropped
}

// queued is a message on its way.
type queued struct {
	envelope []byte
	id       uint16    // from the first sending on
	at       time.Time // of the last sending
	hangUps  int       // how many brokers hung up while it was the only one sent
}

// queueStats are the publisher's counters: always, the sum of accepted is
// published + dropped + messages.
type queueStats struct {
	accepted  [transports]uint64 // handed to put
	published uint64             // acknowledged by a PUBACK, and nothing else
	dropped   uint64             // the queue was full, a broker hung up at it, or time was up
	messages  int                // waiting or unacknowledged
	bytes     int                // of their envelopes
	connected bool               // a broker has accepted us, and answers
}

func newPublisher(d *delivery, log *slog.Logger) *publisher {
	p := &publisher{
		delivery: d,
		log:      log,
		failures: failureLog{log: log, times: map[string]int{}},
		buffers:  make(chan []byte, reusedBuffers),
		wake:     make(chan struct{}, 1),
		limit:    windowSize,
		freeIDs:  make(chan uint16, windowSize),
	}
	p.fewer = sync.NewCond(&p.mu)
	for id := range uint16(windowSize) {
		p.freeIDs <- id + 1
	}
	return p
}

// buffer returns an empty buffer for an envelope, where possible one that was used before.
func (p *publisher) buffer() []byte {
	select {
	case b := <-p.buffers:
		return b
	default:
		return nil
	}
}

// put takes over the envelope of a message. While that makes more than queueBytes, the oldest
// waiting messages are dropped. It never blocks.
func (p *publisher) put(t transport, envelope []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted[t]++
	p.bytes += len(envelope)
	p.queue = append(p.queue, queued{envelope: envelope})
	p.makeRoom()
	if p.sent < p.limit {
		p.wakeDeliver()
	}
}

// makeRoom drops the oldest messages that were never sent, as long as there are too many; after
// the end all. mu is held.
func (p *publisher) makeRoom() {
	for len(p.queue) > p.begun && (p.ended || p.bytes > p.queueBytes) {
		p.dropped++
		p.remove(p.begun)
	}
}

// remove takes message i of the queue off the books. Its buffer is used again, unless it is large:
// with small messages in them, large ones would hold more than queueBytes says. mu is held.
func (p *publisher) remove(i int) {
	m := p.queue[i]
	p.bytes -= len(m.envelope)
	if i < p.begun {
		p.begun--
		p.freeIDs <- m.id // never blocks: there is room for all ids
	}
	if i < p.sent {
		p.sent--
	}
	// Those before it move up: at most windowSize, mostly none. Behind it there may be very many.
	copy(p.queue[1:], p.queue[:i])
	p.queue[0] = queued{}
	p.queue = p.queue[1:]
	p.fewer.Broadcast()
	if cap(m.envelope) <= reusedBytes {
		select {
		case p.buffers <- m.envelope[:0]:
		default:
		}
	}
}

// awaitLess waits until less bytes of envelopes are on the way, or run is over. A source that can
// wait does so for roomBytes: put drops nothing of it then, however small queueBytes is.
func (p *publisher) awaitLess(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.bytes >= bytes {
		p.fewer.Wait()
	}
}

// stats is a consistent snapshot.
func (p *publisher) stats() queueStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages = len(p.queue)
	return p.queueStats
}

// wakeDeliver makes deliver look for something to write, also if it is just about to wait.
func (p *publisher) wakeDeliver() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run publishes until drain is closed and no message left, or ctx ends: what then remains is
// logged and counted as dropped.
func (p *publisher) run(ctx context.Context, drain <-chan struct{}) {
	ctx, end := context.WithCancel(ctx)
	go p.deliver(ctx, drain)
	go func() {
		<-drain
		p.awaitLess(1)
		end()
	}()
	<-ctx.Done()
	time.Sleep(second / 4) // for the farewell
	p.failures.summarize()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		p.log.Warn("stopped before everything was delivered", "messages_dropped", len(p.queue))
	}
	p.ended = true
	p.connected = false
	// So that makeRoom drops what was sent, too; with that sent becomes 0. Their ids are lost, but
	// no one needs one again: nothing stays in the queue from here on, even if deliver still runs.
	p.begun = 0
	p.makeRoom()
}

// deliver connects again and again: to the brokers in order, and after the last one it waits
// 1, 2, 4, 8, 16, 20, 20 … seconds and at random up to half as much again, so that sensors don't
// come back in step. With a message on trial it is at most 2 to 3 seconds, as all others wait for
// that; once drain is closed it is one, as time is short.
func (p *publisher) deliver(ctx context.Context, drain <-chan struct{}) {
	wait := second
	for ctx.Err() == nil {
		p.onTrial = false
		for _, broker := range p.brokers {
			start := time.Now()
			err := p.serve(ctx, broker)
			if ctx.Err() != nil {
				return
			}
			p.failures.report(broker.Host, err)
			if time.Since(start) > (connectWait+answerWait)*second { // the connection held
				wait = second
			}
		}
		if p.onTrial {
			wait = min(wait, 2*second)
		}
		select {
		case <-time.After(wait + rand.N(wait/2)):
		case <-drain:
			time.Sleep(second)
		}
		wait = min(2*wait, 20*second)
	}
}

// serve connects to a broker and publishes until the connection is lost, which the error explains,
// or ctx ends.
func (p *publisher) serve(ctx context.Context, broker *url.URL) error {
	conn, err := p.dial(ctx, broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	conn.SetDeadline(time.Now().Add(answerWait * second))
	if err := p.connect(conn, r); err != nil {
		return err
	}
	if err := p.announce(conn, r); err != nil {
		return fmt.Errorf("publishing to STATUS_TOPIC: %w", err)
	}
	p.log.Info("connected", "broker", broker.Host)

	alive, stop := context.WithCancel(ctx)
	lost := make(chan error, 1)
	go func() {
		lost <- p.takeAnswers(conn, r)
		stop()
	}()
	p.publishMessages(alive, conn)
	// To read what has been acknowledged by now, and for the farewell. takeAnswers may put the read
	// deadline off meanwhile: at a stop that holds up nothing, as run doesn't wait for this.
	conn.SetDeadline(time.Now().Add(second / 4))
	if ctx.Err() != nil { // the broker closes, and run closes the books
		conn.Write(append(p.status("offline"), disconnectPacket...))
		return <-lost
	}
	return p.settle(<-lost)
}

// dial opens the connection. No proxy from the environment decides where data goes.
func (p *publisher) dial(ctx context.Context, broker *url.URL) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: connectWait * second}
	if broker.Scheme == "tcp" || broker.Scheme == "mqtt" {
		return dialer.DialContext(ctx, "tcp", broker.Host)
	}
	config, err := p.tlsConfig(broker)
	if err != nil {
		return nil, err
	}
	if broker.Scheme == "ws" || broker.Scheme == "wss" {
		noProxy := &mqtt.WebsocketOptions{Proxy: http.ProxyURL(nil)}
		return mqtt.NewWebsocket(broker.String(), config, dialer.Timeout, nil, noProxy)
	}
	secure := &tls.Dialer{NetDialer: dialer, Config: config}
	return secure.DialContext(ctx, "tcp", broker.Host)
}

// The packets that are taken from a broker, by their first two bytes: type and flags, and the
// remaining length (MQTT 3.1.1 §3.2, §3.4, §3.13).
const (
	connack  = 0x2002
	puback   = 0x4002
	pingresp = 0xd000
)

// The first byte of a PUBLISH (§3.3).
const (
	publishQoS1 = 0x32
	retain      = 0x01
)

var (
	pingreqPacket    = []byte{0xc0, 0} // §3.12
	disconnectPacket = []byte{0xe0, 0} // §3.14
)

// connect sends CONNECT and awaits CONNACK (§3.1, §3.2).
func (p *publisher) connect(conn net.Conn, r *bufio.Reader) error {
	password, err := p.readPassword()
	if err != nil {
		return fmt.Errorf("reading PASSWORD_FILE: %w", err)
	}
	packet := &packets.ConnectPacket{
		FixedHeader:      packets.FixedHeader{MessageType: packets.Connect},
		ProtocolName:     "MQTT",
		ProtocolVersion:  4,
		CleanSession:     true,
		Keepalive:        answerWait,
		ClientIdentifier: p.clientID,
		UsernameFlag:     p.username != "",
		Username:         p.username,
		PasswordFlag:     password != "",
		Password:         []byte(password),
		WillFlag:         p.statusTopic != "",
		WillRetain:       p.statusTopic != "",
		WillTopic:        p.statusTopic,
		WillMessage:      []byte("offline"),
	}
	if packet.WillFlag {
		packet.WillQos = 1
	}
	packet.Write(conn) // if that fails, so does reading, and knows why
	_, value, err := readAnswer(r, connack)
	if err != nil {
		return fmt.Errorf("awaiting CONNACK: %w", err)
	}
	if code := byte(value); code != packets.Accepted {
		return fmt.Errorf("the broker refused: %s (%d)", packets.ConnackReturnCodes[code], code)
	}
	return nil
}

// announce publishes that the sensor is online, and awaits the PUBACK.
func (p *publisher) announce(conn net.Conn, r *bufio.Reader) error {
	if p.statusTopic != "" {
		conn.Write(p.status("online"))
		_, _, err := readAnswer(r, puback) // nothing else is unacknowledged
		if err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = !p.ended
	return nil
}

// status is a PUBLISH to STATUS_TOPIC, or nothing without one.
func (p *publisher) status(text string) []byte {
	if p.statusTopic == "" {
		return nil
	}
	packet := appendPublish(nil, p.statusTopic, statusID, []byte(text))
	packet[0] |= retain
	return packet
}

// publishMessages writes what waits as soon as it may, until ctx ends or writing fails. In that
// case reading fails, too, and knows why.
func (p *publisher) publishMessages(ctx context.Context, conn net.Conn) {
	p.written = time.Now()
	var out []byte
	for ctx.Err() == nil {
		var wait time.Duration
		out, wait = p.nextPackets(out[:0])
		if len(out) > 0 {
			conn.SetWriteDeadline(time.Now().Add(answerWait * second))
			if _, err := conn.Write(out); err != nil {
				return
			}
			if p.caughtUp {
				time.Sleep(step) // so that what comes now is written together
			}
		}
		select {
		case <-p.wake:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// nextPackets appends the packets that may be sent now, and says how long to wait before asking
// again. They are on the books with that: their answers may come. Messages are copied, as their
// buffers have another use from the PUBACK on, even if a broker sends that too early.
func (p *publisher) nextPackets(out []byte) ([]byte, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for p.sent < min(p.limit, len(p.queue)) && len(out) < writeBytes && !p.due.After(now) {
		m := &p.queue[p.sent]
		if p.sent == p.begun { // sent for the first time; again, it keeps its id
			m.id = <-p.freeIDs // never blocks: begun < windowSize, the number of ids
			p.begun++
		}
		m.at = now
		p.sent++
		p.pace(now)
		out = appendPublish(out, p.topic, m.id, m.envelope)
	}
	p.caughtUp = p.sent == len(p.queue)
	if len(out) == 0 && now.Sub(p.written) >= pingAfter*second {
		out = append(out, pingreqPacket...)
	}
	if len(out) > 0 {
		p.written = now
	}
	switch {
	case len(out) >= writeBytes:
		return out, 0
	case p.due.After(now):
		return out, max(p.due.Sub(now), step)
	}
	return out, p.written.Add(pingAfter * second).Sub(now)
}

// pace says when the next message may be sent. After a pause, or when this one comes late, no more
// than a step is made up for.
func (p *publisher) pace(now time.Time) {
	if p.maxRate == 0 {
		return
	}
	if earliest := now.Add(-step); p.due.Before(earliest) {
		p.due = earliest
	}
	p.due = p.due.Add(time.Second / time.Duration(p.maxRate))
}

// takeAnswers reads answers until the connection ends. They come in crowds: a pause before the
// next reading lets many be read at once, which takes a third off the CPU of a message. There is
// none while a single answer is awaited.
func (p *publisher) takeAnswers(conn net.Conn, r *bufio.Reader) error {
	for {
		conn.SetReadDeadline(time.Now().Add((pingAfter + answerWait) * second))
		outstanding, err := p.takeAnswer(r)
		for err == nil && r.Buffered() > 0 {
			outstanding, err = p.takeAnswer(r)
		}
		p.wakeDeliver()
		if err != nil {
			return err
		}
		if outstanding > 1 {
			time.Sleep(step)
		}
	}
}

// takeAnswer books an answer, and returns how many messages are still unacknowledged. If the oldest
// has been so for longer than answerWait, that ends the connection: all are sent again on another.
func (p *publisher) takeAnswer(r *bufio.Reader) (outstanding int, err error) {
	kind, id, err := readAnswer(r, puback, pingresp)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if kind == puback {
		has := func(m queued) bool { return m.id == id }
		i := slices.IndexFunc(p.queue[:p.sent], has)
		if i < 0 {
			return 0, fmt.Errorf("the broker sent PUBACK %d, which has no place here", id)
		}
		p.remove(i)
		p.published++
		p.limit = min(p.limit+1, windowSize)
		if p.limit == windowSize {
			p.quickTries = 0
		}
	}
	if p.sent > 0 && time.Since(p.queue[0].at) > answerWait*second {
		return 0, os.ErrDeadlineExceeded
	}
	return p.sent, nil
}

// settle closes the books of a connection that ended with err, and explains that.
func (p *publisher) settle(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	sent := p.sent
	p.sent = 0
	p.connected = false
	isLate := os.IsTimeout(err)
	switch {
	case isLate && sent > 0:
		return fmt.Errorf("%d PUBACKs are late: %w", sent, err)
	case isLate:
		return fmt.Errorf("no answer: %w", err)
	case sent > 0: // a publish without a PUBACK: it may be the reason
		p.suspect()
	case time.Since(p.written) > second: // nothing was sent that could be the reason
		return fmt.Errorf("an idle connection ended: %w", err)
	}
	// With sent 0, too: a broker may hang up just after it has acknowledged what it refuses.
	return fmt.Errorf("the connection ended at a publish, %d PUBACKs are missing: %w", sent, err)
}

// suspect looks for the message at which brokers hang up: it would hold up all others for ever. It
// is the oldest unacknowledged one, or some way behind: PUBACKs that were on the way are lost with
// the connection. So the next connection begins with the oldest alone, and each PUBACK lets one
// more be unacknowledged; after a few connections the culprit is the oldest. After three on which
// it was alone, it is dropped. A broker that is away, refuses or is late costs no message, as that
// is no hang-up at one. mu is held.
func (p *publisher) suspect() {
	oldest := &p.queue[0]
	if p.limit == 1 { // it was alone: a PUBACK since would have raised the limit
		oldest.hangUps++
	}
	p.quickTries++
	if oldest.hangUps == 3 {
		p.log.Error("message dropped, as brokers hang up at it", "bytes", len(oldest.envelope),
			"check", "the broker's message size limit (Mosquitto: max_packet_size), its ACL")
		p.dropped++
		p.remove(0)
		p.quickTries = 0
	}
	p.limit = 1
	p.onTrial = p.quickTries <= maxQuickTries
}

// readAnswer reads one of the expected packets: its kind, and the packet id of PUBACK or flags and
// return code of CONNACK. Nothing else is taken from a broker, and never more than these 4 bytes.
func readAnswer(r *bufio.Reader, expected ...uint16) (kind, value uint16, err error) {
	head, err := r.Peek(2)
	if err != nil {
		return 0, 0, err
	}
	kind = binary.BigEndian.Uint16(head)
	if !slices.Contains(expected, kind) {
		return 0, 0, fmt.Errorf("the broker sent a packet %04x, which has no place here", kind)
	}
	size := len(head) + int(head[1]) // 2 or 4, as it is an expected one
	packet, err := r.Peek(size)
	if err != nil {
		return 0, 0, err
	}
	if size == 4 {
		value = binary.BigEndian.Uint16(packet[2:])
	}
	r.Discard(size)
	return kind, value, nil
}

// appendPublish appends a PUBLISH with QoS 1 (§3.3). The remaining length has the encoding of an
// unsigned varint (§2.2.3).
func appendPublish(b []byte, topic string, id uint16, payload []byte) []byte {
	const lengths = 2 + 2 // of the topic's length, and of the packet id
	b = append(b, publishQoS1)
	b = binary.AppendUvarint(b, uint64(lengths+len(topic)+len(payload)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic)))
	b = append(b, topic...)
	b = binary.BigEndian.AppendUint16(b, id)
	return append(b, payload...)
}

// advice is what to look at where a reason holds a text.
type advice struct{ text, settings string }

// The first that fits counts, and the last one always does.
var checks = []advice{
	{"x509: ", "CA_FILE, CERT_FILE, KEY_FILE"},
	{"tls: ", "CA_FILE, CERT_FILE, KEY_FILE, ALPN"},
	{"PASSWORD_FILE", "PASSWORD_FILE"},
	{"open ", "CA_FILE, CERT_FILE, KEY_FILE"},
	{"no certificates", "CA_FILE"},
	{"refused: ", "USERNAME, PASSWORD, PASSWORD_FILE, CLIENT_ID"},
	{"CONNACK: EOF", "BROKER, CLIENT_ID"},
	{"STATUS_TOPIC", "the broker's ACL for STATUS_TOPIC"},
	{"at a publish", "the broker's ACL for TOPIC and STATUS_TOPIC, its message size limit"},
	{"PUBACKs are late", "the broker's quotas, MAX_RATE"},
	{"idle", "CLIENT_ID, which two sensors may share"},
	{"", "BROKER"},
}

// failureLog logs why connections fail: a reason at once, and a minute later how often it came.
type failureLog struct {
	log   *slog.Logger
	mu    sync.Mutex
	times map[string]int // by broker and reason, since the last summary
}

// Brokers can give any number of reasons of any size.
const (
	maxReasons     = 16  // and all others are one
	maxReasonBytes = 300 // as a certificate may have thousands of names
)

var numbers = regexp.MustCompile(`[0-9]+`)

// report logs a reason. Its numbers don't make another reason: they may be the local port or the
// time.
func (l *failureLog) report(broker string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	reason := err.Error()
	reason = reason[:min(len(reason), maxReasonBytes)]
	key := broker + ": " + numbers.ReplaceAllString(reason, "#")
	if l.times[key] == 0 && len(l.times) >= maxReasons {
		key = "other reasons"
	}
	if len(l.times) == 0 {
		time.AfterFunc(60*second, l.summarize)
	}
	l.times[key]++
	if l.times[key] > 1 {
		return
	}
	first := slices.IndexFunc(checks, func(a advice) bool {
		return strings.Contains(reason, a.text)
	})
	l.log.Error("no connection", "broker", broker, "reason", reason,
		"check", checks[first].settings)
}

// summarize logs what was counted but not logged, and begins anew.
func (l *failureLog) summarize() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, reason := range slices.Sorted(maps.Keys(l.times)) {
		if l.times[reason] > 1 {
			l.log.Error("no connection, time and again", "reason", reason, "times", l.times[reason])
		}
	}
	clear(l.times)
}
