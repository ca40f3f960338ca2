// Sip-capture is a passive SIP sensor. It captures frames with libpcap, finds the SIP messages in them, selects with a BPF filter and a
// SIP filter, wraps each selected message in a JSON envelope, and publishes it to one MQTT topic with QoS 1.
//
//	frames → capture.go: SIP messages → filter.go: selected ones → envelope.go → publish.go: queue → broker
//
// It never alters a message, takes identifiable data out of one, writes to disk, sends SIP data anywhere but to the topic, lets traffic
// or surroundings change the topic, or takes instructions over MQTT. Nothing is lost silently: what isn't published is counted, with the
// reason.
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
// Exit codes: 0 stopped by SIGINT or SIGTERM, or file read and all of it acknowledged; 1 failed while running; 2 the configuration is
// wrong.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/caarlos0/env/v11"
)

//go:embed main.go
var manualSource string // -help prints the comment above

var version string // set by the linker; else what the module was installed as

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.As(err, &configError{}) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// configError is what is wrong with the configuration or the arguments, a line for each problem.
type configError struct{ error }

// run is the program. It returns nil where the exit code is 0.
func run(args []string) error {
	build, _ := debug.ReadBuildInfo()
	version = cmp.Or(version, build.Main.Version)
	mode := fmt.Sprintf("%q", args)
	switch mode {
	case `["-version"]`:
		fmt.Println(version)
		return nil
	case `["-help"]`:
		manual, _, _ := strings.Cut("\n"+manualSource, "\npackage ")
		fmt.Println(strings.NewReplacer("\n// ", "\n", "\n//", "\n").Replace(manual))
		return nil
	case `["-check"]`, "[]":
	default:
		return configError{fmt.Errorf("arguments: %s; want none, or one of -check, -version, -help; all else is set in the environment", mode)}
	}
	cfg, err := configure()
	if err != nil {
		return configError{err}
	}
	if mode == "[]" {
		return sense(cfg)
	}
	fmt.Println("configuration ok")
	return nil
}

// config is the environment: PcapFile is PCAP_FILE, and so on.
type config struct {
	Interface, Broker                                                         []string
	PcapFile, BPFFilter, SIPFilter, Topic, ClientID, StatusTopic, MetricsAddr string
	Username, Password, PasswordFile, CAFile, CertFile, KeyFile               string
	Snaplen, BufferMB, QueueMB                                                int
	Promiscuous, IncludeAddresses                                             bool
	StatsInterval                                                             time.Duration
	LogLevel                                                                  slog.Level

	brokers []*url.URL
	filter  func(*message) bool
}

// configure reads the environment. The error has every problem in it, a line each.
func configure() (*config, error) {
	host, _ := os.Hostname()
	c := &config{Interface: []string{"any"}, Snaplen: 262144, BufferMB: 32, Promiscuous: true, Broker: []string{"tcp://localhost:1883"},
		ClientID: "sip-capture-" + host + "-" + rand.Text()[:8], QueueMB: 64, StatsInterval: time.Minute}
	problems, unparsed := []error{}, env.AggregateError{}
	errors.As(env.ParseWithOptions(c, env.Options{UseFieldNameByDefault: true}), &unparsed)
	check := func(ok bool, variable string, want ...any) {
		value, name := os.Getenv(variable), strings.ReplaceAll(variable, "_", "")
		failed := func(err error) bool { return strings.EqualFold(err.(env.ParseError).Name, name) }
		isText := len(value) < 65536 && !strings.ContainsFunc(strings.ToValidUTF8(value, "\n"), unicode.IsControl)
		if !ok || !isText || slices.ContainsFunc(unparsed.Errors, failed) {
			if variable == "BROKER" {
				value = value[strings.LastIndex(value, "@")+1:] // what is before may be credentials
			}
			problems = append(problems, fmt.Errorf("%s: %q; want %s", variable, value, fmt.Sprint(want...)))
		}
	}
	check(c.Snaplen >= 68 && c.Snaplen <= 262144, "SNAPLEN", "a whole number from 68 to 262144")
	check(true, "PROMISCUOUS", "true or false")
	check(c.BufferMB >= 1 && c.BufferMB <= 2047, "BUFFER_MB", "a whole number from 1 to 2047")
	check(c.Topic != "" && !strings.ContainsAny(c.Topic, "+#"), "TOPIC", "the topic to publish to, without the wildcards + and #")
	check((c.Topic == "" || c.StatusTopic != c.Topic) && !strings.ContainsAny(c.StatusTopic, "+#"), "STATUS_TOPIC", "no wildcards, not TOPIC")
	check(true, "CLIENT_ID", "at most 65535 bytes of text")
	check(c.Username != "" || c.Password+c.PasswordFile == "", "USERNAME", "the user whose password it is, at most 65535 bytes of text")
	check(c.QueueMB >= 1 && c.QueueMB <= 1<<20, "QUEUE_MB", "a whole number from 1 to 1048576")
	address, err := net.ResolveTCPAddr("tcp", c.MetricsAddr)
	check(c.MetricsAddr == "" || err == nil && address.Port > 0, "METRICS_ADDR", "host:port, such as 127.0.0.1:9060")
	check(true, "INCLUDE_ADDRESSES", "true or false")
	check(c.StatsInterval >= 0, "STATS_INTERVAL", "a duration from 0, such as 30s or 5m")
	check(true, "LOG_LEVEL", "debug, info, warn or error")

	// Without a port a broker's URL gets the usual one. Credentials in it would end up in logs: they are refused.
	ports := map[string]string{"tcp": "1883", "mqtt": "1883", "ssl": "8883", "tls": "8883", "mqtts": "8883", "ws": "80", "wss": "443"}
	good := !strings.Contains(fmt.Sprint(c.Broker), "@")
	for _, text := range c.Broker {
		broker, _ := url.Parse(strings.TrimSpace(text))
		broker = cmp.Or(broker, &url.URL{})
		port, _ := net.LookupPort("tcp", cmp.Or(broker.Port(), ports[broker.Scheme])) // 0 is no port
		path := strings.Trim(broker.RequestURI()+broker.Fragment, "/")
		good = good && port > 0 && ports[broker.Scheme] != "" && broker.Hostname() != "" && (path == "" || broker.Scheme[0] == 'w')
		broker.Host = net.JoinHostPort(broker.Hostname(), fmt.Sprint(port))
		c.brokers = append(c.brokers, broker)
	}
	check(good, "BROKER", "URLs such as tcp://broker.example:1883, with tcp, mqtt, ssl, tls, mqtts, ws or wss; a user goes into USERNAME")

	password, err := c.password()
	good = err == nil && len(password) < 65536 && (c.PasswordFile == "" || password != "" && c.Password == "")
	err = cmp.Or(err, errors.New("it is empty, too long, or both are set"))
	check(good, "PASSWORD_FILE", "a file with a password of 1 to 65535 bytes, and no PASSWORD: ", err)
	_, err = (&config{CAFile: c.CAFile}).tlsConfig(&url.URL{})
	check(err == nil, "CA_FILE", "certificates in PEM form: ", err)
	_, err = (&config{CertFile: c.CertFile, KeyFile: c.KeyFile}).tlsConfig(&url.URL{})
	check(err == nil, "CERT_FILE", "a certificate in PEM form, and its key in KEY_FILE: ", err)
	check(err == nil, "KEY_FILE", "the key of the certificate in CERT_FILE, in PEM form: ", err)

	sources := c.sources()
	if c.PcapFile == "" && fmt.Sprint(c.Interface) != "[any]" {
		var there []string
		devices, _ := net.Interfaces()
		for _, device := range devices {
			there = append(there, device.Name)
		}
		good = true
		for i, device := range c.Interface {
			c.Interface[i] = strings.TrimSpace(device)
			good = good && slices.Contains(there, c.Interface[i]) && !slices.Contains(c.Interface[:i], c.Interface[i])
		}
		check(good, "INTERFACE", "any, or each once of ", strings.Join(there, ", "))
		sources = c.sources()
	}
	for _, source := range sources {
		err := source.checkFile()
		check(err == nil, "PCAP_FILE", "a pcap or pcapng file that can be read: ", err)
		err = source.checkBPF()
		check(err == nil, "BPF_FILTER", "a pcap-filter(7) expression: ", err)
	}
	c.filter, err = compileFilter(c.SIPFilter)
	return c, errors.Join(append(problems, err)...)
}

// password reads PASSWORD_FILE anew each time: a secret may be rotated.
func (c *config) password() (string, error) {
	if c.PasswordFile == "" {
		return c.Password, nil
	}
	text, err := os.ReadFile(c.PasswordFile)
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), err
}

// tlsConfig reads the PEM files anew each time: certificates are renewed. Brokers are always verified. AWS IoT speaks MQTT with client
// certificates on port 443 when ALPN asks for it.
func (c *config) tlsConfig(broker *url.URL) (config *tls.Config, err error) {
	config = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: broker.Hostname()}
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, cmp.Or(err, errors.New("no certificates in "+c.CAFile))
		}
	}
	if c.CertFile+c.KeyFile != "" {
		config.Certificates = make([]tls.Certificate, 1)
		config.Certificates[0], err = tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if broker.Port() == "443" && broker.Scheme != "wss" {
			config.NextProtos = []string{"x-amzn-mqtt-ca"}
		}
	}
	return config, err
}

func (c *config) sources() (all []*source) {
	common := source{bpf: c.BPFFilter, snaplen: c.Snaplen, bufferBytes: c.BufferMB << 20, promiscuous: c.Promiscuous}
	if c.PcapFile != "" {
		common.name, common.isFile = c.PcapFile, true
		return []*source{&common}
	}
	for _, device := range c.Interface {
		one := common
		one.name = device
		all = append(all, &one)
	}
	return all
}

// sensor is the running program.
type sensor struct {
	counters
	*config
	publisher *publisher
}

// counters are shared by all captures.
type counters struct {
	captureCounters
	rejected [transports]atomic.Uint64
}

// sense captures until a signal comes or the file ends, then drains the queue: after a signal for at most 8 s, or until the next one.
func sense(cfg *config) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{Level: cfg.LogLevel})))
	s := &sensor{config: cfg, publisher: newPublisher(cfg, slog.Default())}
	if err := s.serve(); err != nil {
		return err
	}
	var captures sync.WaitGroup
	captured, drain := context.WithCancelCause(context.Background())
	defer drain(nil)
	capturing, stopCapture := context.WithCancel(context.Background())
	for _, source := range cfg.sources() {
		d := newDecoder(&s.captureCounters, func(m *message) {
			if s.filter(m) {
				s.publisher.put(m.transport, envelope(m, version, s.IncludeAddresses))
			} else {
				s.rejected[m.transport].Add(1)
			}
		})
		if source.isFile {
			captures.Go(func() {
				handle, err := source.open() // not before: a pipe may have nothing to read yet
				if err == nil {
					err = source.capture(capturing, handle, d)
				}
				if errors.Is(err, errUnusable) {
					err = configError{err}
				}
				drain(err)
			})
			continue
		}
		handle, err := source.open()
		if errors.Is(err, errUnusable) {
			err = configError{err}
		}
		if err != nil {
			return err
		}
		captures.Go(func() { source.capture(capturing, handle, d) })
	}
	go func() {
		captures.Wait()
		drain(nil)
	}()
	delivering, stop := context.WithCancel(context.Background())
	go func() {
		slog.Info("stopping", "signal", (<-signals).String())
		stopCapture()
		time.AfterFunc(time.Second, func() { drain(nil) }) // a pipe, or a device that is away, may never be done
		time.AfterFunc(8*time.Second, stop)
		<-signals
		stop()
	}()
	go func() {
		for range time.Tick(cmp.Or(cfg.StatsInterval, 1<<62)) {
			slog.Info("stats", s.statistics()...)
		}
	}()
	s.publisher.run(delivering, captured.Done())
	slog.Info("stats", s.statistics()...)
	if err := context.Cause(captured); err != context.Canceled {
		return err
	}
	return nil
}

// statistics are all counters and gauges at one moment. In every such moment
// messages = messages_rejected + messages_published + messages_dropped + queue_messages.
func (s *sensor) statistics() []any {
	queue, rejected, messages := s.publisher.stats(), uint64(0), []any{}
	for t, name := range transportNames {
		n := s.rejected[t].Load()
		rejected += n
		messages = append(messages, name, n+queue.accepted[t])
	}
	return []any{
		"packets", s.packets.Load(), "packets_dropped", s.packetsDropped.Load(), "packets_invalid", s.packetsInvalid.Load(),
		slog.Group("messages", messages...), slog.Group("messages_discarded", "truncated", s.truncated.Load(), "fragment", s.fragment.Load(),
			"stream_gap", s.streamGap.Load(), "bad_length", s.badLength.Load(), "oversize", s.oversize.Load()),
		"messages_rejected", rejected, "messages_published", queue.published, "messages_dropped", queue.dropped,
		"queue_messages", queue.messages, "queue_bytes", queue.bytes, "connected", queue.connected,
	}
}

// help says in /metrics what each counter is, and what is healthy.
var help = map[string]string{
	"packets": "Frames that passed the BPF filter.", "packets_dropped": "Frames that the kernel dropped; healthy is 0, else raise BUFFER_MB.",
	"packets_invalid": "Frames that contradict themselves; healthy is close to 0.", "messages": "SIP messages found.",
	"messages_discarded": "SIP messages, or what may have been some, that could not be taken whole; healthy is close to 0.",
	"messages_rejected":  "SIP messages that SIP_FILTER did not select.", "messages_published": "SIP messages that a broker acknowledged.",
	"messages_dropped": "SIP messages dropped from a full queue, or at the end; healthy is 0, else look at the broker.",
	"queue_messages":   "SIP messages that wait or are unacknowledged; healthy is below 100 most of the time.",
	"queue_bytes":      "Bytes of their envelopes, at most QUEUE_MB.", "connected": "Whether a broker has accepted the sensor; healthy is 1.",
}

// serve answers /metrics and /healthz, if METRICS_ADDR is set.
func (s *sensor) serve() error {
	if s.MetricsAddr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.MetricsAddr)
	if err != nil {
		return fmt.Errorf("METRICS_ADDR: %w", err)
	}
	http.HandleFunc("GET /metrics", s.metrics)
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		down := s.down.Load()
		w.WriteHeader(map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[down == 0])
		fmt.Fprintf(w, "down %d\nreopened %d\nconnected %v\n", down, s.reopened.Load(), s.publisher.stats().connected)
	})
	go (&http.Server{ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}).Serve(listener)
	return nil
}

// metrics writes the Prometheus text format 0.0.4.
func (s *sensor) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	labels := map[string]string{"messages": "transport", "messages_discarded": "reason"}
	numbers := strings.NewReplacer("true", "1", "false", "0")
	for _, a := range slog.Group("", s.statistics()...).Value.Group() {
		name, kind, format, samples := "sip_capture_"+a.Key+"_total", "counter", "%[1]s %[4]s\n", []slog.Attr{a}
		switch a.Value.Kind() {
		case slog.KindGroup:
			format, samples = "%s{%s=%q} %s\n", a.Value.Group()
		case slog.KindInt64, slog.KindBool:
			name, kind = "sip_capture_"+a.Key, "gauge"
		}
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help[a.Key], kind)
		for _, sample := range samples {
			fmt.Fprintf(w, format, name, labels[a.Key], sample.Key, numbers.Replace(sample.Value.String()))
		}
	}
}
