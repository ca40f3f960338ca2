// Sip-capture is a passive SIP sensor. It captures frames with libpcap, finds the SIP messages in them, selects with a BPF filter and a SIP
// filter, wraps each selected message in a JSON envelope, and publishes it to one MQTT topic with QoS 1.
//
//	frames → capture.go: SIP messages → filter.go: selected ones → envelope.go → publish.go: queue → broker
//
// It never alters a message, takes identifiable data out of one, writes to disk, sends SIP data anywhere but to the topic, lets traffic or
// surroundings change the topic, or takes instructions over MQTT. Nothing is lost silently: what isn't published is counted, with the reason.
//
//	sip-capture            capture, as the environment says
//	sip-capture -check     validate the configuration without capturing or connecting
//	sip-capture -version   print the version
//	sip-capture -help      print this
//
// Environment:
//
//	INTERFACE          any                    device, or several separated by commas, or any
//	PCAP_FILE                                 read this capture file (- is standard input) instead, publish everything, then exit
//	BPF_FILTER         SIP on port 5060       pcap-filter(7) expression; the default also selects fragments and VLAN-tagged frames
//	SIP_FILTER                                which messages are published, such as (all (method invite) initial); empty: all
//	SNAPLEN            262144                 bytes captured of each frame, 68 to 262144
//	PROMISCUOUS        true                   see frames for others, too (never on any)
//	BUFFER_MB          32                     the kernel's capture buffer, 1 to 2047
//	BROKER             tcp://localhost:1883   URL, or several separated by commas, tried in order: tcp mqtt ssl tls mqtts ws wss
//	TOPIC                                     the one topic; required, without wildcards
//	CLIENT_ID          sip-capture-HOST-RANDOM
//	USERNAME, PASSWORD, PASSWORD_FILE         the file is read at every connect; its final newline isn't part of the password
//	CA_FILE, CERT_FILE, KEY_FILE              PEM: the authority to trust instead of the system's, the client certificate and its key
//	QUEUE_MB           64                     bytes of envelopes that wait or are unacknowledged; when full, the oldest waiting is dropped
//	STATUS_TOPIC       off                    retained: online at connect, offline at a clean stop and as the last will
//	METRICS_ADDR       off                    host:port that serves /metrics and /healthz
//	INCLUDE_ADDRESSES  false                  adds transport, src and dst to the envelope
//	STATS_INTERVAL     1m                     how often the counters are logged; 0: only at exit
//	LOG_LEVEL          info                   debug, info, warn, error
//
// A variable that is set but empty counts as not set. Logs are JSON lines on standard output.
//
// Exit codes: 0 stopped by SIGINT or SIGTERM, or file read and all of it acknowledged; 1 failed while running; 2 the configuration is wrong.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcap"
)

//go:embed main.go
var source string // -help prints the comment above

var version string // set by the linker; else what the module was installed as

func main() {
	err := run(os.Args[1:], os.Stdout)
	code := map[bool]int{true: 1}[err != nil]
	if errors.As(err, new(configError)) {
		code = 2
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// configError is a problem of the configuration, or several, a line each.
type configError string

func (e configError) Error() string { return string(e) }

// config is the environment. The tag want says what a value must be.
type config struct {
	Interfaces       []string      `env:"INTERFACE" envDefault:"any"`
	PcapFile         string        `env:"PCAP_FILE" want:"a pcap or pcapng file that can be read"`
	BPFFilter        string        `env:"BPF_FILTER"`
	SIPFilter        string        `env:"SIP_FILTER"`
	SnapLen          int           `env:"SNAPLEN" envDefault:"262144" want:"a whole number from 68 to 262144"`
	Promiscuous      bool          `env:"PROMISCUOUS" envDefault:"true" want:"true or false"`
	BufferMB         int           `env:"BUFFER_MB" envDefault:"32" want:"a whole number from 1 to 2047"`
	Brokers          []string      `env:"BROKER" envDefault:"tcp://localhost:1883" want:"URLs such as tcp://broker.example:1883, with tcp, mqtt, ssl, tls, mqtts, ws or wss, without credentials (see USERNAME)"`
	Topic            string        `env:"TOPIC" want:"the topic to publish to, without the wildcards + and #"`
	ClientID         string        `env:"CLIENT_ID" want:"at most 65535 bytes of text"`
	Username         string        `env:"USERNAME" want:"the user that the password belongs to, at most 65535 bytes of text"`
	Password         string        `env:"PASSWORD"`
	PasswordFile     string        `env:"PASSWORD_FILE" want:"a file with a password, and no PASSWORD"`
	CAFile           string        `env:"CA_FILE"`
	CertFile         string        `env:"CERT_FILE"`
	KeyFile          string        `env:"KEY_FILE"`
	QueueMB          int           `env:"QUEUE_MB" envDefault:"64" want:"a whole number from 1 to 1048576"`
	StatusTopic      string        `env:"STATUS_TOPIC" want:"another topic than TOPIC, without the wildcards + and #"`
	MetricsAddr      string        `env:"METRICS_ADDR" want:"host:port, such as 127.0.0.1:9060"`
	IncludeAddresses bool          `env:"INCLUDE_ADDRESSES" envDefault:"false" want:"true or false"`
	StatsInterval    time.Duration `env:"STATS_INTERVAL" envDefault:"1m" want:"a duration from 0, such as 30s or 5m"`
	LogLevel         slog.Level    `env:"LOG_LEVEL" envDefault:"info" want:"debug, info, warn or error"`

	brokers []*url.URL
	filter  func(*message) bool
}

// configure reads the environment and reports every problem in it.
func configure() (*config, error) {
	cfg, problems, fields := &config{}, []string{}, reflect.VisibleFields(reflect.TypeFor[config]())
	note := func(err error) {
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	check := func(ok bool, variable string) {
		reported := slices.ContainsFunc(problems, func(problem string) bool { return strings.HasPrefix(problem, variable+":") })
		i := slices.IndexFunc(fields, func(f reflect.StructField) bool { return f.Tag.Get("env") == variable })
		if !ok && !reported {
			note(fmt.Errorf("%s: %q; want %s", variable, os.Getenv(variable), fields[i].Tag.Get("want")))
		}
	}
	var failed env.AggregateError
	errors.As(env.Parse(cfg), &failed)
	for _, err := range failed.Errors {
		var parse env.ParseError
		errors.As(err, &parse) // it names the field, not the variable
		field, _ := reflect.TypeFor[config]().FieldByName(parse.Name)
		check(false, field.Tag.Get("env"))
	}
	host, _ := os.Hostname()
	cfg.ClientID = cmp.Or(cfg.ClientID, "sip-capture-"+host+"-"+rand.Text()[:8])
	check(cfg.SnapLen >= 68 && cfg.SnapLen <= 262144, "SNAPLEN")
	check(cfg.BufferMB >= 1 && cfg.BufferMB <= 2047, "BUFFER_MB")
	check(cfg.QueueMB >= 1 && cfg.QueueMB <= 1<<20, "QUEUE_MB")
	check(cfg.StatsInterval >= 0, "STATS_INTERVAL")
	check(cfg.Topic != "" && isTopic(cfg.Topic), "TOPIC")
	check(cfg.StatusTopic == "" || isTopic(cfg.StatusTopic) && cfg.StatusTopic != cfg.Topic, "STATUS_TOPIC")
	check(len(cfg.ClientID) < 65536 && utf8.ValidString(cfg.ClientID), "CLIENT_ID")
	check(cfg.Password == "" || cfg.PasswordFile == "", "PASSWORD_FILE")
	if len(cfg.Password) > 65535 {
		note(errors.New("PASSWORD: too long; want at most 65535 bytes"))
	}
	check(len(cfg.Username) < 65536 && utf8.ValidString(cfg.Username) && (cfg.Username != "" || cfg.Password+cfg.PasswordFile == ""), "USERNAME")
	_, port, err := net.SplitHostPort(cfg.MetricsAddr)
	check(cfg.MetricsAddr == "" || err == nil && isPort(port), "METRICS_ADDR")
	for _, text := range cfg.Brokers {
		broker, err := parseBroker(strings.TrimSpace(text))
		note(err)
		cfg.brokers = append(cfg.brokers, broker)
	}
	_, err = cfg.password()
	note(err)
	_, err = cfg.tlsConfig(&url.URL{})
	note(err)
	cfg.filter, err = compileFilter(cfg.SIPFilter)
	note(err)
	link := cfg.checkSources(note)
	if _, err := pcap.CompileBPFFilter(link, 65535, cfg.bpf(link)); err != nil && link != sll2 { // that one it can't compile without a file
		note(fmt.Errorf("BPF_FILTER: %q; want a pcap-filter(7) expression: %w", cfg.BPFFilter, err))
	}
	if len(problems) > 0 {
		return nil, configError(strings.Join(problems, "\n"))
	}
	return cfg, nil
}

func isTopic(text string) bool {
	return len(text) < 65536 && utf8.ValidString(text) && !strings.ContainsAny(text, "+#") && !strings.ContainsFunc(text, unicode.IsControl)
}

func isPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}

// checkSources notes devices and capture files that aren't there and returns the link type that BPF_FILTER has to fit.
func (c *config) checkSources(note func(error)) layers.LinkType {
	if c.PcapFile != "" {
		info, err := os.Stat(c.PcapFile)
		if c.PcapFile == "-" || err == nil && info.Mode()&os.ModeNamedPipe != 0 { // it can be opened only once
			return layers.LinkTypeEthernet
		}
		handle, err := pcap.OpenOffline(c.PcapFile)
		if err != nil {
			note(fmt.Errorf("PCAP_FILE: %q; want a pcap or pcapng file that can be read: %w", c.PcapFile, err))
			return layers.LinkTypeEthernet
		}
		defer handle.Close()
		if !slices.Contains(linkTypes, handle.LinkType()) {
			note(fmt.Errorf("PCAP_FILE: %q has link type %s; want Ethernet, Linux cooked, raw IP or loopback", c.PcapFile, handle.LinkType()))
		}
		return handle.LinkType()
	}
	var there []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		there = append(there, i.Name)
	}
	wrong := len(c.Interfaces) > 1 && slices.Contains(c.Interfaces, "any")
	for i := range c.Interfaces {
		c.Interfaces[i] = strings.TrimSpace(c.Interfaces[i])
		wrong = wrong || slices.Contains(c.Interfaces[:i], c.Interfaces[i]) || !slices.Contains(append(there, "any"), c.Interfaces[i])
	}
	if wrong {
		note(fmt.Errorf("INTERFACE: %q; want any, or each once of %s", os.Getenv("INTERFACE"), strings.Join(there, ", ")))
	}
	if c.Interfaces[0] == "any" {
		return layers.LinkTypeLinuxSLL
	}
	return layers.LinkTypeEthernet
}

// parseBroker reads a URL and fills in the usual port of its scheme. Credentials in it would end up in logs: they are refused, and not shown.
func parseBroker(text string) (*url.URL, error) {
	if strings.Contains(os.Getenv("BROKER"), "@") { // not only in text: a password may have a comma
		return nil, errors.New("BROKER: has credentials; want URLs such as ssl://broker.example:8883, and USERNAME and PASSWORD")
	}
	broker, err := url.Parse(text)
	if err != nil {
		broker = &url.URL{}
	}
	port := map[string]string{"tcp": "1883", "mqtt": "1883", "ssl": "8883", "tls": "8883", "mqtts": "8883", "ws": "80", "wss": "443"}[broker.Scheme]
	extra := strings.TrimPrefix(broker.RequestURI()+broker.Fragment, "/")
	if port == "" || !isPort(cmp.Or(broker.Port(), port)) || broker.Hostname() == "" || extra != "" && !strings.HasPrefix(broker.Scheme, "ws") {
		return nil, fmt.Errorf("BROKER: %q; want URLs such as tcp://broker.example:1883, with tcp, mqtt, ssl, tls, mqtts, ws or wss", text)
	}
	broker.Host = net.JoinHostPort(broker.Hostname(), cmp.Or(broker.Port(), port))
	return broker, nil
}

// password reads PASSWORD_FILE anew each time: a secret may be rotated.
func (c *config) password() (string, error) {
	if c.PasswordFile == "" {
		return c.Password, nil
	}
	text, err := os.ReadFile(c.PasswordFile)
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if err != nil || password == "" || len(password) > 65535 {
		return "", fmt.Errorf("PASSWORD_FILE: %q; want a file with a password: %w", c.PasswordFile, cmp.Or(err, errors.New("it is empty, or over 65535 bytes")))
	}
	return password, nil
}

func readPEM(variable, path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if block, _ := pem.Decode(text); block == nil {
		return nil, fmt.Errorf("%s: %q; want a PEM file: %w", variable, path, cmp.Or(err, errors.New("there is no PEM in it")))
	}
	return text, nil
}

// tlsConfig reads the PEM files anew each time: certificates are renewed. Brokers are always verified. AWS IoT speaks MQTT with client
// certificates on port 443 when ALPN asks for it.
func (c *config) tlsConfig(broker *url.URL) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: broker.Hostname()}
	var authority, certificate, key []byte
	var failed [3]error
	if c.CAFile != "" {
		authority, failed[0] = readPEM("CA_FILE", c.CAFile)
		if config.RootCAs = x509.NewCertPool(); failed[0] == nil && !config.RootCAs.AppendCertsFromPEM(authority) {
			failed[0] = fmt.Errorf("CA_FILE: %q; want certificates in PEM form", c.CAFile)
		}
	}
	if c.CertFile+c.KeyFile != "" {
		certificate, failed[1] = readPEM("CERT_FILE", c.CertFile)
		key, failed[2] = readPEM("KEY_FILE", c.KeyFile)
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil && failed[1] == nil && failed[2] == nil {
			failed[1] = fmt.Errorf("CERT_FILE: %q; want a certificate in PEM form, its key in KEY_FILE: %w", c.CertFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
		if broker.Port() == "443" && broker.Scheme != "wss" {
			config.NextProtos = []string{"x-amzn-mqtt-ca"}
		}
	}
	return config, errors.Join(failed[:]...)
}

// run is the program. It returns nil where the exit code is 0.
func run(args []string, stdout io.Writer) error {
	if build, ok := debug.ReadBuildInfo(); ok {
		version = cmp.Or(version, build.Main.Version)
	}
	mode := fmt.Sprintf("%q", args)
	switch mode {
	case `["-version"]`:
		fmt.Fprintln(stdout, version)
		return nil
	case `["-help"]`:
		manual, _, _ := strings.Cut(source, "package main")
		fmt.Fprint(stdout, regexp.MustCompile(`(?m)^// ?`).ReplaceAllString(manual, ""))
		return nil
	case "[]", `["-check"]`:
	default:
		return configError("arguments: " + mode + "; want none, or one of -check, -version, -help; everything else is set in the environment")
	}
	cfg, err := configure()
	if err != nil {
		return err
	}
	if mode != "[]" {
		fmt.Fprintln(stdout, "configuration ok")
		return nil
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: cfg.LogLevel}))
	s := &sensor{cfg: cfg, log: log, version: quoted(version), publisher: newPublisher(cfg, log)}
	if cfg.PcapFile != "" {
		cfg.Interfaces = []string{""}
	}
	for _, device := range cfg.Interfaces {
		c := &capture{decoder: newDecoder(&s.counters, s.handle), cfg: cfg, device: device, name: cmp.Or(device, cfg.PcapFile), log: log}
		if device != "" { // a file may be a pipe in which nothing is yet
			if err := c.open(); err != nil {
				return err
			}
		}
		s.captures = append(s.captures, c)
	}
	if err := s.serveMetrics(); err != nil {
		return err
	}
	return s.run()
}

// sensor is the running program.
type sensor struct {
	counters
	cfg       *config
	log       *slog.Logger
	version   string // as a JSON string
	publisher *publisher
	captures  []*capture
}

// counters are shared by all captures.
type counters struct {
	packets, packetsDropped, packetsInvalid             atomic.Uint64
	truncated, fragment, streamGap, badLength, oversize atomic.Uint64
	rejected                                            [transports]atomic.Uint64
}

// handle decides what becomes of a message.
func (s *sensor) handle(m *message) {
	if s.cfg.filter(m) {
		s.publisher.put(m.transport, envelope(m, s.version, s.cfg.IncludeAddresses))
	} else {
		s.rejected[m.transport].Add(1)
	}
}

// run captures until a signal comes or the file ends, then drains the queue: after a signal for at most 8 s, or until the next one.
func (s *sensor) run() error {
	capturing, stopCapture := context.WithCancel(context.Background())
	delivering, stopDelivery := context.WithCancel(context.Background())
	drain, delivered, ended := make(chan struct{}), make(chan struct{}), make(chan error, 2*len(s.captures))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s.log.Info("stopping", "signal", (<-signals).String())
		time.Sleep(200 * time.Millisecond) // what the kernel has buffered still comes
		stopCapture()
		time.AfterFunc(time.Second, func() { // reading a pipe that nobody writes to can't be interrupted
			for range s.captures {
				ended <- nil
			}
		})
		select {
		case <-signals:
		case <-time.After(8 * time.Second):
		}
		stopDelivery()
	}()
	for _, c := range s.captures {
		go func() { ended <- c.run(capturing) }()
	}
	go func() {
		s.publisher.run(delivering, drain)
		close(delivered)
	}()
	ticker := time.NewTicker(cmp.Or(s.cfg.StatsInterval, math.MaxInt64))
	var failed error
	for left := len(s.captures); ; {
		select {
		case err := <-ended:
			failed = errors.Join(failed, err)
			if left--; left == 0 {
				close(drain)
			}
		case <-ticker.C:
			s.logStats()
		case <-delivered:
			s.logStats()
			return failed
		}
	}
}

// statistic is a counter, or several that a label tells apart; it is a gauge if it is not of the kind Uint64 or Group.
type statistic struct {
	slog.Attr
	label, help string
}

// statistics are all counters and gauges at one moment. In every such moment
// messages = messages_rejected + messages_published + messages_dropped + queue_messages.
func (s *sensor) statistics() []statistic {
	queue, rejected := s.publisher.stats(), uint64(0)
	var messages []any
	for t, name := range transportNames {
		n := s.rejected[t].Load()
		rejected += n
		messages = append(messages, slog.Uint64(name, n+queue.accepted[t]))
	}
	discarded := slog.Group("messages_discarded", "truncated", s.truncated.Load(), "fragment", s.fragment.Load(), "stream_gap", s.streamGap.Load(),
		"bad_length", s.badLength.Load(), "oversize", s.oversize.Load())
	return []statistic{
		{slog.Uint64("packets", s.packets.Load()), "", "Frames that passed the BPF filter."},
		{slog.Uint64("packets_dropped", s.packetsDropped.Load()), "", "Frames that the kernel dropped; healthy is 0, else raise BUFFER_MB."},
		{slog.Uint64("packets_invalid", s.packetsInvalid.Load()), "", "Frames that contradict themselves; healthy is close to 0."},
		{slog.Group("messages", messages...), "transport", "SIP messages found."},
		{discarded, "reason", "SIP messages, or what may have been some, that could not be taken whole; healthy is close to 0."},
		{slog.Uint64("messages_rejected", rejected), "", "SIP messages that SIP_FILTER did not select."},
		{slog.Uint64("messages_published", queue.published), "", "SIP messages that a broker acknowledged."},
		{slog.Uint64("messages_dropped", queue.dropped), "", "SIP messages dropped from a full queue, or at the end; healthy is 0, else look at the broker."},
		{slog.Int("queue_messages", queue.messages), "", "SIP messages that wait or are unacknowledged; healthy is below 100 most of the time."},
		{slog.Int("queue_bytes", queue.bytes), "", "Bytes of their envelopes, at most QUEUE_MB."},
		{slog.Bool("connected", queue.connected), "", "Whether a broker has accepted the sensor; healthy is 1."},
	}
}

func (s *sensor) logStats() {
	var attrs []slog.Attr
	for _, statistic := range s.statistics() {
		attrs = append(attrs, statistic.Attr)
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "stats", attrs...)
}

// serveMetrics serves /metrics and /healthz, if METRICS_ADDR is set.
func (s *sensor) serveMetrics() error {
	if s.cfg.MetricsAddr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.cfg.MetricsAddr)
	if err != nil {
		return fmt.Errorf("METRICS_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		for _, statistic := range s.statistics() {
			statistic.print(w)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		down, reopened := 0, uint64(0)
		for _, c := range s.captures {
			down += int(c.down.Load())
			reopened += c.reopened.Load()
		}
		if down > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "captures %d\ndown %d\nreopened %d\nconnected %v\n", len(s.captures), down, reopened, s.publisher.stats().connected)
	})
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10}
	go server.Serve(listener)
	return nil
}

// print writes the Prometheus text format 0.0.4.
func (s statistic) print(w io.Writer) {
	name, kind, values := "sip_capture_"+s.Key, "gauge", []slog.Attr{s.Attr}
	switch s.Value.Kind() {
	case slog.KindGroup:
		name, kind, values = name+"_total", "counter", s.Value.Group()
	case slog.KindUint64:
		name, kind = name+"_total", "counter"
	case slog.KindBool:
		values[0].Value = slog.IntValue(map[bool]int{true: 1}[s.Value.Bool()])
	}
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, s.help, name, kind)
	for _, v := range values {
		label := ""
		if s.label != "" {
			label = fmt.Sprintf("{%s=%q}", s.label, v.Key)
		}
		fmt.Fprintf(w, "%s%s %v\n", name, label, v.Value)
	}
}

// capture reads one device or file. Its goroutine alone owns its decoder: there are no locks here.
type capture struct {
	*decoder
	cfg      *config
	device   string // empty: the capture file
	name     string
	log      *slog.Logger
	handle   *pcap.Handle
	kernel   uint32 // drops that the kernel told of last
	down     atomic.Int32
	reopened atomic.Uint64
}

// open opens the device or file and sets the BPF filter: a filter that is refused must never mean an unfiltered capture.
func (c *capture) open() (err error) {
	if c.device == "" {
		c.handle, err = pcap.OpenOffline(c.name)
	} else {
		c.handle, err = openDevice(c.cfg, c.device)
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", c.name, err)
	}
	if err = c.handle.SetBPFFilter(c.cfg.bpf(c.handle.LinkType())); err != nil {
		err = configError(fmt.Sprintf("BPF_FILTER: %q; want an expression that fits %s: %v", c.cfg.BPFFilter, c.name, err))
	} else if !slices.Contains(linkTypes, c.handle.LinkType()) {
		err = configError(fmt.Sprintf("%s: link type %s; want Ethernet, Linux cooked, raw IP or loopback", c.name, c.handle.LinkType()))
	}
	if err != nil {
		c.handle.Close()
	}
	return err
}

func openDevice(cfg *config, device string) (*pcap.Handle, error) {
	inactive, err := pcap.NewInactiveHandle(device)
	if err != nil {
		return nil, err
	}
	defer inactive.CleanUp()
	// Without immediate mode: that would size each slot of the kernel's buffer by the snap length. Half the timeout is the latency.
	// libpcap can't be promiscuous on any.
	err = errors.Join(inactive.SetSnapLen(cfg.SnapLen), inactive.SetPromisc(cfg.Promiscuous && device != "any"),
		inactive.SetTimeout(50*time.Millisecond), inactive.SetBufferSize(cfg.BufferMB<<20))
	if err != nil {
		return nil, err
	}
	handle, err := inactive.Activate()
	if err != nil && strings.Contains(err.Error(), "Permission") {
		err = fmt.Errorf("%w (capturing needs the capability NET_RAW)", err)
	}
	return handle, err
}

// run reads a capture to its end. A device that fails is opened again, for as long as it takes, every 1 s to 30 s.
func (c *capture) run(ctx context.Context) error {
	defer c.flush()
	if c.handle == nil {
		if err := c.open(); err != nil {
			return err
		}
	}
	for {
		err := c.read(ctx)
		c.countDrops()
		c.handle.Close()
		if ctx.Err() != nil || c.device == "" {
			return err
		}
		c.down.Store(1)
		for delay := time.Second; err != nil; delay = min(2*delay, 30*time.Second) {
			c.log.Error("capture failed, trying again", "error", err, "in", delay.String())
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(delay):
			}
			err = c.open()
		}
		c.kernel = 0
		c.down.Store(0)
		c.reopened.Add(1)
		c.log.Info("capturing again", "device", c.device)
	}
}

// read hands every frame to the decoder until ctx or the file ends, or the capture fails.
func (c *capture) read(ctx context.Context) error {
	link, counted := c.handle.LinkType(), int64(0)
	for ctx.Err() == nil {
		data, info, err := c.handle.ZeroCopyReadPacketData()
		switch {
		case err == nil:
			c.frame(link, data, info)
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, pcap.NextErrorTimeoutExpired):
			info.Timestamp = time.Now()
			c.expire(info.Timestamp) // also on a quiet device
		default:
			return fmt.Errorf("reading %s: %w", c.name, c.handle.Error())
		}
		if second := info.Timestamp.Unix(); c.device != "" && second != counted {
			counted = second
			c.countDrops()
		}
	}
	return nil
}

// countDrops adds what the kernel dropped since the last time; its counter has 32 bits and wraps. After Close libpcap would crash.
func (c *capture) countDrops() {
	if stats, err := c.handle.Stats(); err == nil {
		c.counters.packetsDropped.Add(uint64(uint32(stats.PacketsDropped) - c.kernel))
		c.kernel = uint32(stats.PacketsDropped)
	}
}

// bpf is the BPF filter for a link type.
func (c *config) bpf(link layers.LinkType) string { return cmp.Or(c.BPFFilter, defaultBPF(link)) }

// defaultBPF selects port 5060 over UDP, TCP and SCTP, the fragments that may belong to it (only the first one has the port), IPv6
// behind extension headers, and all this inside one or two VLAN tags. libpcap knows 'vlan' on Ethernet only (where it also finds the
// tags that the card took off); on cooked links the same is spelt out over the bytes of the frame.
func defaultBPF(link layers.LinkType) string {
	const sip = "(port 5060 or (ip[6:2] & 0x3fff != 0 and (ip[9] = 17 or ip[9] = 6 or ip[9] = 132))" +
		" or ((ip6[6] = 44 or ip6[6] = 0 or ip6[6] = 43 or ip6[6] = 60) and ip6[40] != 58))"
	switch link {
	case layers.LinkTypeEthernet:
		return sip + " or (vlan and (" + sip + " or (vlan and " + sip + ")))"
	case layers.LinkTypeLinuxSLL:
		return sip + " or " + taggedBPF(14, "("+cookedBPF(18)+" or "+taggedBPF(18, cookedBPF(22))+")")
	case sll2:
		return sip + " or " + taggedBPF(0, "("+cookedBPF(22)+" or "+taggedBPF(22, cookedBPF(26))+")")
	}
	return sip
}

// taggedBPF is true for a frame that has the EtherType of a VLAN tag at the given offset and for which inner is true.
func taggedBPF(ethertype int, inner string) string {
	return fmt.Sprintf("((link[%[1]d:2] = 0x8100 or link[%[1]d:2] = 0x88a8 or link[%[1]d:2] = 0x9100) and %[2]s)", ethertype, inner)
}

// cookedBPF is what defaultBPF selects of IP, for a packet that has its EtherType at the given offset.
// In libpcap's language 'and' and 'or' have the same precedence: hence all the parentheses.
func cookedBPF(ethertype int) string {
	at := func(offset int) string { return fmt.Sprintf("link[%d]", ethertype+2+offset) }
	word := func(offset string) string { return fmt.Sprintf("link[%d + %s:2]", ethertype+2, offset) }
	transport := func(field string) string { return "(" + field + " = 17 or " + field + " = 6 or " + field + " = 132)" }
	options := "((" + at(0) + " & 15) << 2)"
	v4 := transport(at(9)) + " and (" + word("6") + " & 0x3fff != 0 or " + word(options) + " = 5060 or " + word("2 + "+options) + " = 5060)"
	v6 := "(" + transport(at(6)) + " and (" + word("40") + " = 5060 or " + word("42") + " = 5060))" +
		" or ((" + at(6) + " = 44 or " + at(6) + " = 0 or " + at(6) + " = 43 or " + at(6) + " = 60) and " + at(40) + " != 58)"
	return fmt.Sprintf("((link[%[1]d:2] = 0x800 and %[2]s) or (link[%[1]d:2] = 0x86dd and (%[3]s)))", ethertype, v4, v6)
}
