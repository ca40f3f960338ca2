// Sip-capture is a passive SIP sensor. It captures frames with libpcap, finds the SIP messages in
// them, selects with a BPF filter and a SIP filter, wraps each selected message in a JSON envelope,
// and publishes it to one MQTT topic with QoS 1.
//
//	capture.go   from libpcap to SIP messages: links, tunnels, fragments, streams
//	filter.go    SIP_FILTER: which of them are published
//	envelope.go  what a SIP message is, and its JSON
//	publish.go   the queue, and its way to a broker
//	main.go      the manual (below, which -help prints), configuration, wiring, counters
//
// Each device, or the file, has a goroutine that owns its decoder; the broker's connection has one
// that writes and one that reads; the log has one. They share the queue and the counters, which the
// stats and /metrics read.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
)

const manual = `sip-capture is a passive SIP sensor. It captures frames with libpcap, finds the SIP
messages in them, selects with a BPF filter and a SIP filter, wraps each selected message in a
JSON envelope, and publishes it to one MQTT topic with QoS 1.

  frames -> SIP messages -> selected ones -> envelopes -> queue -> broker

It never alters a message, takes identifiable data out of one, writes to disk, sends SIP data
anywhere but to the topic, lets traffic or surroundings change the topic, or takes instructions over
MQTT. Nothing is lost silently: what isn't published is counted, with the reason.

  sip-capture            capture, as the environment says
  sip-capture -check     validate the configuration without capturing or connecting
  sip-capture -health    ask /healthz at METRICS_ADDR: exit code 0 or 1 (2 where that is not set)
  sip-capture -version   print the version
  sip-capture -help      print this

Environment (a variable that is set but empty counts as not set):

  INTERFACE          any                   device, or several separated by commas, or any
  PCAP_FILE                                read this capture file (- is standard input) instead of
                                           a device, publish everything, then exit
  BPF_FILTER         SIP on port 5060      pcap-filter(7) expression; the default also selects
                                           fragments, and on Ethernet the same in VLAN tags
  SIP_FILTER                               which messages are published, such as
                                           (all (method invite) initial); empty: all
  SNAPLEN            262144                bytes captured of each frame, 68 to 262144
  PROMISCUOUS        true                  see frames for others, too (never on any)
  BUFFER_MB          32                    the kernel's capture buffer, 1 to 2047: blocks of
                                           256 KiB, each closed after 50 ms, so 32 bridge a stall
                                           of 6 s, however few frames come
  BROKER             tcp://localhost:1883  URL, or several separated by commas, tried in order:
                                           tcp mqtt ssl tls mqtts ws wss
  TOPIC              required              the one topic, without wildcards
  CLIENT_ID          sip-capture-HOST-RANDOM
  USERNAME, PASSWORD, PASSWORD_FILE        the file is read at every connect; its final newline
                                           isn't part of the password
  CA_FILE, CERT_FILE, KEY_FILE             PEM: the authority to trust instead of the system's,
                                           the client certificate and its key
  MAX_RATE           0                     most messages published a second; 0: no limit
  ALPN                                     protocols that TLS offers, separated by commas; default
                                           x-amzn-mqtt-ca with a client certificate at port 443 of
                                           a host in amazonaws.com, else none; not with wss
  QUEUE_MB           64                    bytes of envelopes that wait or are unacknowledged; when
                                           full, the oldest waiting is dropped
  STATUS_TOPIC       off                   retained: online at connect, offline at a clean stop and
                                           as the last will
  METRICS_ADDR       off                   host:port that serves /metrics and /healthz
  INCLUDE_ADDRESSES  false                 adds transport, src and dst to the envelope
  STATS_INTERVAL     1m                    how often the counters are logged; 0: only at exit
  LOG_LEVEL          info                  debug, info, warn, error

Logs are JSON lines on standard output.

Exit codes: 0 stopped by a signal, or file read and all of it acknowledged; 1 failed while running;
2 the configuration or the arguments are wrong.
`

var version string // set by the linker; else what the module was installed as

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.As(err, &configError{}) || errors.Is(err, errUnusable) {
		os.Exit(2)
	}
	os.Exit(1)
}

// configError is what is wrong with the configuration or the arguments, a line for each problem.
type configError struct{ error }

// run is the program. It returns nil where the exit code is 0.
func run(args []string) error {
	build, ok := debug.ReadBuildInfo()
	if version == "" && ok {
		version = build.Main.Version
	}
	if len(args) == 0 { // an empty argument is wrong, too
		return capture()
	}
	switch strings.Join(args, " ") {
	case "-check":
		return check()
	case "-health":
		return health(os.Getenv("METRICS_ADDR"))
	case "-version":
		fmt.Println(version)
		return nil
	case "-help", "--help", "-h":
		fmt.Print(manual)
		return nil
	}
	return configError{fmt.Errorf("arguments: %q; want none, or one of "+
		"-check, -health, -version, -help; all else is set in the environment", args)}
}

// check prints the settings in effect, if nothing is wrong with them.
func check() error {
	c, err := configure()
	if err != nil {
		return configError{err}
	}
	for _, setting := range c.settings() {
		fmt.Printf("%s: %v\n", strings.ToUpper(setting.Key), setting.Value)
	}
	for _, warning := range c.warnings() {
		fmt.Fprintln(os.Stderr, "warning:", warning)
	}
	fmt.Println("configuration ok")
	return nil
}

// capture is what the program is for.
func capture() error {
	c, err := configure()
	if err != nil {
		return configError{err}
	}
	return sense(c)
}

// config is the environment.
type config struct {
	Interfaces       []string      `env:"INTERFACE" envDefault:"any"`
	PcapFile         string        `env:"PCAP_FILE"`
	BPFFilter        string        `env:"BPF_FILTER"`
	SIPFilter        string        `env:"SIP_FILTER"`
	Snaplen          int           `env:"SNAPLEN" envDefault:"262144"`
	Promiscuous      bool          `env:"PROMISCUOUS" envDefault:"true"`
	BufferMB         int           `env:"BUFFER_MB" envDefault:"32"`
	Brokers          []string      `env:"BROKER" envDefault:"tcp://localhost:1883"`
	Topic            string        `env:"TOPIC"`
	ClientID         string        `env:"CLIENT_ID"`
	Username         string        `env:"USERNAME"`
	Password         string        `env:"PASSWORD"`
	PasswordFile     string        `env:"PASSWORD_FILE"`
	CAFile           string        `env:"CA_FILE"`
	CertFile         string        `env:"CERT_FILE"`
	KeyFile          string        `env:"KEY_FILE"`
	MaxRate          int           `env:"MAX_RATE"`
	ALPN             []string      `env:"ALPN"`
	QueueMB          int           `env:"QUEUE_MB" envDefault:"64"`
	StatusTopic      string        `env:"STATUS_TOPIC"`
	MetricsAddr      string        `env:"METRICS_ADDR"`
	IncludeAddresses bool          `env:"INCLUDE_ADDRESSES"`
	StatsInterval    time.Duration `env:"STATS_INTERVAL" envDefault:"1m"`
	LogLevel         slog.Level    `env:"LOG_LEVEL" envDefault:"info"`

	filter  func(*message) bool
	brokers []*url.URL
}

// rule is what has to hold of a variable, and what its value should be where it doesn't.
type rule struct {
	variable string
	holds    bool // the constant true where only the type counts, which unparsedVariables checks
	want     string
}

// configure reads the environment. The error has every problem in it, each with its variable first.
func configure() (*config, error) {
	host, _ := os.Hostname()
	c := &config{ClientID: "sip-capture-" + host + "-" + rand.Text()[:8]}
	unparsed := unparsedVariables(env.Parse(c))
	var problems []error
	for _, r := range slices.Concat(c.valueRules(), c.fileRules(), c.captureRules()) {
		if !r.holds || slices.Contains(unparsed, r.variable) {
			value := os.Getenv(r.variable) // is shown: no rule has the name PASSWORD
			problems = append(problems, fmt.Errorf("%s: %q; want %s", r.variable, value, r.want))
		}
	}
	for _, text := range c.Brokers {
		broker, err := parseBroker(text) // shows nothing that could be a password
		if err != nil {
			problems = append(problems, fmt.Errorf("BROKER: %w", err))
		}
		c.brokers = append(c.brokers, broker)
	}
	filter, err := compileFilter(c.SIPFilter)
	c.filter = filter
	return c, errors.Join(append(problems, err)...)
}

// unparsedVariables names those whose value is none of their type: env names the field.
func unparsedVariables(err error) (names []string) {
	var all env.AggregateError
	errors.As(err, &all)
	for _, err := range all.Errors {
		var unparsed env.ParseError // no field has an option that brings another error
		errors.As(err, &unparsed)
		field, _ := reflect.TypeFor[config]().FieldByName(unparsed.Name)
		names = append(names, field.Tag.Get("env"))
	}
	return names
}

const (
	maxSnaplen  = 262144  // bytes, the most that libpcap takes
	maxBufferMB = 2047    // libpcap counts bytes in 31 bits
	maxQueueMB  = 1 << 20 // 1 TiB
	maxRate     = 1_000_000
)

// valueRules are those that a look at the value decides.
func (c *config) valueRules() []rule {
	address, err := net.ResolveTCPAddr("tcp", c.MetricsAddr)
	const topic = "a topic without the wildcards + and #, at most 65535 bytes of text"
	return []rule{
		{"SNAPLEN", c.Snaplen >= 68 && c.Snaplen <= maxSnaplen, "a whole number from 68 to 262144"},
		{"PROMISCUOUS", true, "true or false"},
		{"BUFFER_MB", c.BufferMB >= 1 && c.BufferMB <= maxBufferMB,
			"a whole number from 1 to 2047"},
		{"TOPIC", c.Topic != "" && isTopic(c.Topic),
			topic + " (sip-capture -help lists all settings)"},
		{"STATUS_TOPIC", isTopic(c.StatusTopic), topic},
		{"STATUS_TOPIC", c.StatusTopic == "" || c.StatusTopic != c.Topic,
			"another topic than TOPIC, whose readers expect envelopes"},
		{"CLIENT_ID", isText(c.ClientID), "at most 65535 bytes of text"},
		{"USERNAME", isText(c.Username), "at most 65535 bytes of text"},
		{"USERNAME", c.Username != "" || c.Password+c.PasswordFile == "",
			"the user whose password it is"},
		{"MAX_RATE", c.MaxRate >= 0 && c.MaxRate <= maxRate,
			"messages a second, a whole number from 0 to 1000000"},
		{"ALPN", areProtocols(c.ALPN),
			"names of protocols, such as mqtt or x-amzn-mqtt-ca, separated by commas"},
		{"QUEUE_MB", c.QueueMB >= 1 && c.QueueMB <= maxQueueMB, "a whole number from 1 to 1048576"},
		{"METRICS_ADDR", c.MetricsAddr == "" || err == nil && address.Port > 0,
			"host:port, such as 127.0.0.1:9464"},
		{"INCLUDE_ADDRESSES", true, "true or false"},
		{"STATS_INTERVAL", c.StatsInterval >= 0, "a duration from 0, such as 30s or 5m"},
		{"LOG_LEVEL", true, "debug, info, warn or error"},
	}
}

func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func isTopic(s string) bool { return isText(s) && !strings.ContainsAny(s, "+#") }

// areProtocols reports whether TLS can offer these names (RFC 7301 §3.1).
func areProtocols(names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		return name == "" || len(name) > 255 || strings.TrimSpace(name) != name
	})
}

// fileRules are those of secrets and certificates. The files are read again at each connect.
func (c *config) fileRules() []rule {
	_, passwordErr := c.delivery().readPassword()
	// CA_FILE and CERT_FILE each by itself, so that an error names its variable.
	_, caErr := (&delivery{caFile: c.CAFile}).tlsConfig(&url.URL{})
	_, pairErr := (&delivery{certFile: c.CertFile, keyFile: c.KeyFile}).tlsConfig(&url.URL{})
	return []rule{
		{"PASSWORD_FILE", passwordErr == nil,
			fmt.Sprint("a file with a password of 1 to 65535 bytes: ", passwordErr)},
		{"PASSWORD_FILE", c.Password == "" || c.PasswordFile == "",
			"only one of PASSWORD and PASSWORD_FILE"},
		{"PASSWORD_FILE", len(c.Password) <= maxText, "a PASSWORD of at most 65535 bytes"},
		{"CA_FILE", caErr == nil,
			fmt.Sprint("certificates in PEM form: ", caErr)},
		{"CERT_FILE", pairErr == nil,
			fmt.Sprint("a certificate in PEM form, and its key in KEY_FILE: ", pairErr)},
		{"KEY_FILE", pairErr == nil,
			fmt.Sprint("the key of the certificate in CERT_FILE, in PEM form: ", pairErr)},
	}
}

// captureRules are those of what is captured. They also trim the names of the devices, and forget
// them where a file is read.
func (c *config) captureRules() []rule {
	if c.PcapFile != "" {
		c.Interfaces = nil
	}
	var there []string
	devices, _ := net.Interfaces()
	for _, device := range devices {
		there = append(there, device.Name)
	}
	isGood := true
	for i, device := range c.Interfaces {
		device = strings.TrimSpace(device)
		isAny := device == "any" && len(c.Interfaces) == 1
		isTwice := slices.Contains(c.Interfaces[:i], device)
		isGood = isGood && (isAny || slices.Contains(there, device) && !isTwice)
		c.Interfaces[i] = device
	}
	from := c.sources()[0] // there is one, by default any; of several devices one is enough
	fileErr := from.checkFile()
	filterErr := from.checkBPF()
	return []rule{
		{"INTERFACE", isGood,
			"any by itself, as it is all devices, or each once of " + strings.Join(there, ", ")},
		{"PCAP_FILE", fileErr == nil,
			fmt.Sprint("a pcap or pcapng file: ", fileErr)},
		{"BPF_FILTER", filterErr == nil,
			fmt.Sprint("a pcap-filter(7) expression: ", filterErr)},
	}
}

// sources are the devices, or the file, with what is the same for all.
func (c *config) sources() (all []*source) {
	names := c.Interfaces
	if c.PcapFile != "" {
		names = []string{c.PcapFile}
	}
	for _, name := range names {
		all = append(all, &source{
			name:        name,
			isFile:      c.PcapFile != "",
			bpf:         c.BPFFilter,
			snaplen:     c.Snaplen,
			bufferBytes: c.BufferMB << 20,
			promiscuous: c.Promiscuous,
		})
	}
	return all
}

// delivery is what the publisher has to know.
func (c *config) delivery() *delivery {
	return &delivery{
		brokers:      c.brokers,
		topic:        c.Topic,
		statusTopic:  c.StatusTopic,
		clientID:     c.ClientID,
		username:     c.Username,
		password:     c.Password,
		passwordFile: c.PasswordFile,
		caFile:       c.CAFile,
		certFile:     c.CertFile,
		keyFile:      c.KeyFile,
		alpn:         c.ALPN,
		maxRate:      c.MaxRate,
		queueBytes:   c.QueueMB << 20,
	}
}

// settings are those in effect, without secrets.
func (c *config) settings() []slog.Attr {
	var brokers []string
	for _, broker := range c.brokers { // without the query, where tokens may be
		shown := url.URL{Scheme: broker.Scheme, Host: broker.Host, Path: broker.Path}
		brokers = append(brokers, shown.String())
	}
	return []slog.Attr{
		slog.String("version", version),
		slog.String("interface", strings.Join(c.Interfaces, ",")),
		slog.String("pcap_file", c.PcapFile),
		slog.String("bpf_filter", cmp.Or(c.BPFFilter, defaultFilter)),
		slog.String("sip_filter", c.SIPFilter),
		slog.Int("snaplen", c.Snaplen),
		slog.Bool("promiscuous", c.Promiscuous),
		slog.Int("buffer_mb", c.BufferMB),
		slog.String("broker", strings.Join(brokers, ",")),
		slog.String("topic", c.Topic),
		slog.String("status_topic", c.StatusTopic),
		slog.String("client_id", c.ClientID),
		slog.String("password_file", c.PasswordFile),
		slog.String("ca_file", c.CAFile),
		slog.String("cert_file", c.CertFile),
		slog.String("key_file", c.KeyFile),
		slog.String("alpn", strings.Join(c.ALPN, ",")),
		slog.Int("max_rate", c.MaxRate),
		slog.Int("queue_mb", c.QueueMB),
		slog.String("metrics_addr", c.MetricsAddr),
		slog.Bool("include_addresses", c.IncludeAddresses),
		slog.String("stats_interval", c.StatsInterval.String()),
		slog.String("log_level", c.LogLevel.String()),
	}
}

// warnings are of what looks wrong, but needn't be: a variable that is nearly one of ours (the same
// first four letters, and at most one more or less in all; none of ours has fewer than four), and a
// device that this user may not open.
func (c *config) warnings() (all []string) {
	for _, setting := range os.Environ() {
		name, _, _ := strings.Cut(setting, "=")
		for _, ours := range settingNames() {
			longer := len(name) - len(ours)
			isNear := strings.HasPrefix(name, ours[:4]) && longer >= -1 && longer <= 1
			if isNear && !slices.Contains(settingNames(), name) {
				warning := fmt.Sprintf("%s is set, but isn't read; is %s meant?", name, ours)
				all = append(all, warning)
			}
		}
	}
	// A socket is opened to see whether that is allowed; with protocol 0 it gets no frames.
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	syscall.Close(socket)
	if err != nil && c.PcapFile == "" {
		all = append(all, "this user may not capture from a device (NET_RAW): "+err.Error())
	}
	return all
}

// settingNames are the names of the variables that config has.
func settingNames() (names []string) {
	fields, _ := env.GetFieldParams(&config{})
	for _, field := range fields {
		names = append(names, field.Key)
	}
	return names
}

// sensor is the running program.
type sensor struct {
	*config
	captureCounters
	rejected  [transports]atomic.Uint64 // by SIP_FILTER
	publisher *publisher
}

const (
	captureWait = time.Second     // for captures to end after a signal: a pipe may never be done
	drainWait   = 8 * time.Second // for the queue to drain after a signal
)

// sense captures until a signal comes or the file ends, then drains the queue: after a signal for
// at most 8 s, or until the next one.
func sense(c *config) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // a reader of the log that has gone is no reason to end
	lines := &logWriter{out: os.Stdout, lines: make(chan []byte, 1000)}
	go lines.run()
	defer lines.flush()
	slog.SetDefault(slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: c.LogLevel})))

	s := &sensor{config: c, publisher: newPublisher(c.delivery(), slog.Default())}
	capturing, stopCapturing := context.WithCancel(context.Background())
	defer stopCapturing()
	// drain ends captured: nothing more will be captured, so run may end when the queue is empty.
	// Only the first drain counts. Its error is the cause: the file's, or Canceled for drain(nil).
	captured, drain := context.WithCancelCause(context.Background())
	defer drain(nil)
	delivering, stopDelivering := context.WithCancel(context.Background())
	defer stopDelivering()
	if err := s.serveMetrics(); err != nil {
		return err
	}
	if err := s.startCaptures(capturing, drain); err != nil {
		return err
	}
	go func() {
		first := <-signals
		stopCapturing()
		time.AfterFunc(captureWait, func() { drain(nil) })
		time.AfterFunc(drainWait, stopDelivering)
		slog.Info("stopping", "signal", first.String())
		<-signals
		stopDelivering()
	}()
	slog.LogAttrs(context.Background(), slog.LevelInfo, "capturing", s.settings()...)
	for _, warning := range s.warnings() {
		slog.Warn(warning)
	}
	delivered := make(chan struct{})
	go func() {
		s.publisher.run(delivering, captured.Done())
		close(delivered)
	}()
	s.report(delivered)            // until delivered is closed: no stats may follow the last ones
	err := context.Cause(captured) // nil, too, if captures never ended
	if errors.Is(err, context.Canceled) {
		err = nil // they ended without an error
	}
	if c.PcapFile != "" && err == nil {
		s.warnWithoutFrames()
	}
	slog.Info("stats", attributes(s.metrics())...)
	dropped := s.publisher.stats().dropped
	if c.PcapFile != "" && capturing.Err() == nil && dropped > 0 {
		err = errors.Join(err,
			fmt.Errorf("publishing: %d messages were dropped, the log says why", dropped))
	}
	return err
}

// startCaptures starts a goroutine for each device, or for the file; drain is called when all are
// done. A device that can't be opened now is an error; a file is opened when it is read, as the
// writer of a pipe may come later.
func (s *sensor) startCaptures(ctx context.Context, drain func(error)) error {
	var captures sync.WaitGroup
	for _, from := range s.sources() {
		d := newDecoder(&s.captureCounters, s.take)
		if from.isFile {
			captures.Go(func() {
				handle, err := from.open()
				if err == nil {
					err = from.capture(ctx, handle, d)
				}
				drain(err) // before the one below, as the first call counts
			})
			continue
		}
		handle, err := from.open()
		if err != nil {
			return err
		}
		captures.Go(func() { from.capture(ctx, handle, d) })
	}
	go func() {
		captures.Wait()
		drain(nil)
	}()
	return nil
}

// take hands a message that the filter selects to the publisher. With a capture file nothing may be
// dropped: reading waits for the broker.
func (s *sensor) take(m *message) {
	if !s.filter(m) {
		s.rejected[m.transport].Add(1)
		return
	}
	if s.PcapFile != "" {
		s.publisher.awaitLess(roomBytes)
	}
	b := appendEnvelope(s.publisher.buffer(), m, version, s.IncludeAddresses)
	s.publisher.put(m.transport, b)
}

// report logs the counters each STATS_INTERVAL until ended is closed. After the first minute it
// warns, once, if no frame has come.
func (s *sensor) report(ended <-chan struct{}) {
	minute := time.After(firstMinute)
	due := time.Tick(s.StatsInterval) // never, with an interval of 0
	for {
		select {
		case <-due:
			slog.Info("stats", attributes(s.metrics())...)
		case <-minute:
			s.warnWithoutFrames()
		case <-ended:
			return
		}
	}
}

var firstMinute = time.Minute // after which silence is worth a line

// warnWithoutFrames says where to look when nothing came.
func (s *sensor) warnWithoutFrames() {
	if s.packets.Load() == 0 {
		slog.Warn("no frame has passed BPF_FILTER so far: is SIP on another port?",
			"bpf_filter", cmp.Or(s.BPFFilter, defaultFilter))
	}
}

const defaultFilter = "SIP on port 5060, with fragments, on Ethernet also in VLAN tags (default)"

// logWriter stands between slog and standard output, whose reader may stall or go: the log must
// never hold up anything.
type logWriter struct {
	out     io.Writer
	lines   chan []byte  // that wait for the reader
	pending atomic.Int64 // lines that wait or are being written
	lost    atomic.Int64 // lines for which there was no room
}

// Write takes a line over. It never blocks, and never fails.
func (l *logWriter) Write(line []byte) (int, error) {
	l.pending.Add(1)
	select {
	case l.lines <- bytes.Clone(line):
	default:
		l.pending.Add(-1)
		l.lost.Add(1)
	}
	return len(line), nil
}

// run writes for as long as the program lives. When the reader is back it learns what it missed.
func (l *logWriter) run() {
	direct := slog.New(slog.NewJSONHandler(l.out, nil))
	for line := range l.lines {
		l.out.Write(line)
		if lost := l.lost.Swap(0); lost > 0 {
			direct.Warn("lines of this log are lost: its reader stalled", "lines", lost)
		}
		l.pending.Add(-1)
	}
}

// flush waits for the last lines to be written, at most a second.
func (l *logWriter) flush() {
	for end := time.Now().Add(time.Second); l.pending.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// metric is a counter or gauge, as the log and /metrics show it.
type metric struct {
	name   string      // in Prometheus with sip_capture_ before it, and _total behind a counter's
	kind   string      // counter, gauge
	help   string      // what it is, and what is healthy
	label  string      // in Prometheus, what the keys of the values are
	values []slog.Attr // one without a key, or one for each value of the label
}

// metrics are all counters and gauges at one moment. In every such moment
// messages = messages_rejected + messages_published + messages_dropped + queue_messages.
func (s *sensor) metrics() []metric {
	queue := s.publisher.stats()
	var rejected uint64
	var messages []slog.Attr
	for t, name := range transportNames {
		n := s.rejected[t].Load()
		rejected += n
		messages = append(messages, slog.Uint64(name, n+queue.accepted[t]))
	}
	discarded := []slog.Attr{
		slog.Uint64("truncated", s.truncated.Load()),
		slog.Uint64("fragment", s.fragment.Load()),
		slog.Uint64("stream_gap", s.streamGap.Load()),
		slog.Uint64("bad_length", s.badLength.Load()),
		slog.Uint64("oversize", s.oversize.Load()),
	}
	one := func(value any) []slog.Attr { return []slog.Attr{slog.Any("", value)} }
	return []metric{
		{"packets", "counter",
			"Frames that passed the BPF filter.",
			"", one(s.packets.Load())},
		{"packets_dropped", "counter",
			"Frames that the kernel dropped; healthy is 0, else raise BUFFER_MB.",
			"", one(s.packetsDropped.Load())},
		{"packets_invalid", "counter",
			"Frames that contradict themselves; healthy is close to 0.",
			"", one(s.packetsInvalid.Load())},
		{"messages", "counter",
			"SIP messages found.",
			"transport", messages},
		{"messages_discarded", "counter",
			"SIP messages, or likely ones, that were not there whole; healthy is close to 0.",
			"reason", discarded},
		{"messages_rejected", "counter",
			"SIP messages that SIP_FILTER did not select.",
			"", one(rejected)},
		{"messages_published", "counter",
			"SIP messages that a broker acknowledged.",
			"", one(queue.published)},
		{"messages_dropped", "counter",
			"SIP messages dropped: queue full, refused by the broker, or the end; healthy is 0.",
			"", one(queue.dropped)},
		{"queue_messages", "gauge",
			"SIP messages that wait or are unacknowledged; healthy is below 100 most of the time.",
			"", one(queue.messages)},
		{"queue_bytes", "gauge",
			"Bytes of their envelopes, at most QUEUE_MB.",
			"", one(queue.bytes)},
		{"connected", "gauge",
			"Whether a broker has accepted the sensor; healthy is 1.",
			"", one(queue.connected)},
	}
}

// attributes are the metrics as the log has them.
func attributes(all []metric) (stats []any) {
	for _, m := range all {
		value := m.values[0].Value
		if m.label != "" {
			value = slog.GroupValue(m.values...)
		}
		stats = append(stats, slog.Attr{Key: m.name, Value: value})
	}
	return stats
}

// writeMetrics writes the Prometheus text format 0.0.4.
func writeMetrics(w io.Writer, all []metric) {
	booleans := strings.NewReplacer("true", "1", "false", "0") // Prometheus has only numbers
	info := metric{"info", "gauge", "The version of the sensor; always 1.",
		"version", []slog.Attr{slog.Int(version, 1)}}
	for _, m := range append(all, info) {
		name := "sip_capture_" + m.name
		if m.kind == "counter" {
			name += "_total"
		}
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, m.help, name, m.kind)
		for _, v := range m.values {
			labels := ""
			if m.label != "" {
				labels = fmt.Sprintf("{%s=%q}", m.label, v.Key)
			}
			fmt.Fprintf(w, "%s%s %s\n", name, labels, booleans.Replace(v.Value.String()))
		}
	}
}

// What the endpoint may cost, whoever calls: some 30 KB for each connection.
const (
	httpTimeout     = 5 * time.Second // for a request, for its answer, and between two
	httpHeaderBytes = 4096
	httpConnections = 64
)

// serveMetrics answers /metrics and /healthz, if METRICS_ADDR is set. What comes while 64
// connections are open is closed.
func (s *sensor) serveMetrics() error {
	if s.MetricsAddr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.MetricsAddr)
	if err != nil {
		return fmt.Errorf("METRICS_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		writeMetrics(w, s.metrics())
	})
	mux.HandleFunc("GET /healthz", s.healthz)
	var open atomic.Int64
	server := &http.Server{
		Handler:        mux,
		ReadTimeout:    httpTimeout,
		WriteTimeout:   httpTimeout,
		MaxHeaderBytes: httpHeaderBytes,
		ErrorLog:       log.New(io.Discard, "", 0), // strangers must not fill the log
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > httpConnections {
					conn.Close()
				}
			case http.StateClosed:
				open.Add(-1)
			}
		},
	}
	go server.Serve(listener)
	return nil
}

// healthz answers 200 while all devices can be read, 503 while one is away. The broker doesn't
// count: to start the sensor again for its sake would lose the queue.
func (s *sensor) healthz(w http.ResponseWriter, _ *http.Request) {
	down := s.down.Load()
	if down > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "down %d\nreopened %d\nconnected %v\n",
		down, s.reopened.Load(), s.publisher.stats().connected)
}

// health is the client of /healthz, for images without a shell. (http.Client would make the image
// half a megabyte larger.)
func health(address string) error {
	if address == "" {
		return configError{errors.New("METRICS_ADDR: not set; -health asks /healthz there")}
	}
	conn, err := net.DialTimeout("tcp", address, httpTimeout)
	if err != nil {
		return fmt.Errorf("asking for health: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(httpTimeout))
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("asking for health: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for health: %s", answer.Status)
	}
	return nil
}
