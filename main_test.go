package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// These tests see the program as its users do: a process with an environment, capture files and a broker.

const (
	programVersion = "v1.2.3-test"
	patience       = 10 * time.Second // bounds every wait for something that must happen
)

var buildDirectory string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if buildDirectory, err = os.MkdirTemp("", "sip-capture"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(buildDirectory)
		os.Chmod(buildDirectory, 0o755) // one test runs the program as another user
		return m.Run()
	}())
}

// program builds the program when the first test needs it, and returns its path. With the race detector if
// the tests have it.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDirectory, "sip-capture")
	args := []string{"build", "-o", path, "-ldflags", "-X main.version=" + programVersion}
	if build, ok := debug.ReadBuildInfo(); ok &&
		slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if output, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return path, nil
})

// process is the program running; its environment holds nothing but what the test says.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr logBuffer
	done           chan struct{}
}

// prepareProgram returns a process with nothing on standard input.
func prepareProgram(t *testing.T, args []string, environment ...string) *process {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{"GORACE=atexit_sleep_ms=0"}, environment...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	return p
}

func (p *process) start() *process {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	p.t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// launch starts the program with a pipe on standard input that stays open.
func launch(t *testing.T, environment ...string) *process {
	t.Helper()
	p := prepareProgram(t, nil, environment...)
	p.stdin, _ = p.cmd.StdinPipe()
	return p.start()
}

// output is what the program wrote, of the stats only the last.
func (p *process) output() string {
	var kept []string
	stats := ""
	for line := range strings.Lines(p.stdout.String()) {
		if strings.Contains(line, `"msg":"stats"`) {
			stats = line
		} else {
			kept = append(kept, line)
		}
	}
	return "\n" + strings.Join(kept, "") + stats + p.stderr.String()
}

// exits waits for the program to end with an exit code.
func (p *process) exits(code int, within time.Duration) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		p.t.Fatalf("still running after %v%s", within, p.output())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("%v, want exit code %d%s", p.cmd.ProcessState, code, p.output())
	}
}

// execute runs the program to its end.
func execute(t *testing.T, code int, args []string, environment ...string) (stdout, stderr string) {
	t.Helper()
	p := prepareProgram(t, args, environment...).start()
	p.exits(code, patience)
	return p.stdout.String(), p.stderr.String()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
}

// stop stops the process, and waits until all of its threads stand still.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	runs := func(thread string) bool {
		status, _ := os.ReadFile(thread)
		return !bytes.Contains(status, []byte("\nState:\tT"))
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
		if !slices.ContainsFunc(threads, runs) {
			return
		}
		if time.Now().After(end) {
			p.t.Fatal("it doesn't stop")
		}
	}
}

// untilLogged waits for a text on standard output.
func (p *process) untilLogged(text string) {
	p.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(p.stdout.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("never logged %q%s", text, p.output())
		}
	}
}

// collector is a broker that acknowledges everything and keeps it.
type collector struct {
	net.Listener
	mu        sync.Mutex
	connects  []*packets.ConnectPacket
	published []*packets.PublishPacket
	ends      []string // how connections ended
}

func newCollector(t *testing.T) *collector {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &collector{Listener: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return c
}

func (c *collector) serve(conn net.Conn) {
	defer conn.Close()
	for {
		packet, err := packets.ReadPacket(conn)
		var answer packets.ControlPacket
		c.mu.Lock()
		switch packet := packet.(type) {
		case *packets.ConnectPacket:
			c.connects = append(c.connects, packet)
			answer = packets.NewControlPacket(packets.Connack)
		case *packets.PublishPacket:
			c.published = append(c.published, packet)
			acknowledgement := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			acknowledgement.MessageID = packet.MessageID
			answer = acknowledgement
		case *packets.PingreqPacket:
			answer = packets.NewControlPacket(packets.Pingresp)
		default:
			c.ends = append(c.ends, fmt.Sprint(packet, err))
		}
		c.mu.Unlock()
		if answer == nil {
			return
		}
		answer.Write(conn)
	}
}

// setting is the BROKER for it.
func (c *collector) setting() string { return "BROKER=tcp://" + c.Addr().String() }

// envelopes are what was published to a topic, each checked.
func (c *collector) envelopes(t *testing.T, topic string) (all []unwrapped) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.published {
		if p.TopicName == topic {
			all = append(all, unwrap(t, string(p.Payload)))
		}
	}
	return all
}

// freeAddress is one on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// testCall is a request that nobody but its index tells from the others. What must never be in a log is in
// it: see checkLogs.
func testCall(method string, i int) string {
	return fmt.Sprintf("%s sip:bob@callee.example SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.77;branch=z9hG4bK%d\r\nFrom: <sip:alice@caller.example>;tag=1\r\n"+
		"To: <sip:bob@callee.example>\r\nCall-ID: %d@192.0.2.77\r\nCSeq: 1 %s\r\nContent-Length: 0\r\n\r\n",
		method, i, i, method)
}

// testFrame is an Ethernet frame with a datagram or a segment.
func testFrame(protocol layers.IPProtocol, payload string) []byte {
	ethernet := &layers.Ethernet{
		SrcMAC:       make(net.HardwareAddr, 6),
		DstMAC:       make(net.HardwareAddr, 6),
		EthernetType: layers.EthernetTypeIPv4,
	}
	ip := &layers.IPv4{
		Version:  4,
		TTL:      64,
		Protocol: protocol,
		SrcIP:    net.IPv4(192, 0, 2, 77),
		DstIP:    net.IPv4(198, 51, 100, 88),
	}
	var transport gopacket.SerializableLayer = &layers.UDP{SrcPort: 5060, DstPort: 5060}
	if protocol == layers.IPProtocolTCP {
		transport = &layers.TCP{SrcPort: 5060, DstPort: 5060, Seq: 1000, ACK: true, PSH: true}
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(
		b,
		gopacket.SerializeOptions{FixLengths: true},
		ethernet,
		ip,
		transport,
		gopacket.Payload(payload),
	)
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// captured is a record of a capture file; each of them is a millisecond later than the one before.
type captured struct {
	frame []byte
	cut   int // bytes that the snap length took
}

// captureFile is a pcap file (draft-ietf-opsawg-pcap) in network byte order, with nanoseconds.
func captureFile(linkType uint32, records ...captured) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0xa1b23c4d)
	b = append(b, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0)
	b = binary.BigEndian.AppendUint32(b, linkType)
	return append(b, captureRecords(0, records...)...)
}

func captureRecords(first int, records ...captured) (b []byte) {
	for i, r := range records {
		at := time.Unix(1795383240, 123456789).Add(time.Duration(first+i) * time.Millisecond)
		b = binary.BigEndian.AppendUint32(b, uint32(at.Unix()))
		b = binary.BigEndian.AppendUint32(b, uint32(at.Nanosecond()))
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.frame)-r.cut))
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.frame)))
		b = append(b, r.frame[:len(r.frame)-r.cut]...)
	}
	return b
}

// testCalls are n datagrams with an INVITE each.
func testCalls(n int) (records []captured) {
	for i := range n {
		records = append(records, captured{frame: testFrame(layers.IPProtocolUDP, testCall("INVITE", i))})
	}
	return records
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// statsLine is a line of the log with the message "stats".
type statsLine struct {
	Packets           uint64
	PacketsDropped    uint64 `json:"packets_dropped"`
	PacketsInvalid    uint64 `json:"packets_invalid"`
	Messages          map[string]uint64
	MessagesDiscarded map[string]uint64 `json:"messages_discarded"`
	MessagesRejected  uint64            `json:"messages_rejected"`
	MessagesPublished uint64            `json:"messages_published"`
	MessagesDropped   uint64            `json:"messages_dropped"`
	QueueMessages     uint64            `json:"queue_messages"`
	QueueBytes        uint64            `json:"queue_bytes"`
	Connected         bool
}

func (s statsLine) messages() (sum uint64) {
	for _, n := range s.Messages {
		sum += n
	}
	return sum
}

// samples is what /metrics has to show for s.
func (s statsLine) samples() map[string]uint64 {
	samples := map[string]uint64{
		"packets_total": s.Packets, "packets_dropped_total": s.PacketsDropped,
		"packets_invalid_total":    s.PacketsInvalid,
		"messages_rejected_total":  s.MessagesRejected,
		"messages_published_total": s.MessagesPublished, "messages_dropped_total": s.MessagesDropped,
		"queue_messages": s.QueueMessages, "queue_bytes": s.QueueBytes, "connected": 0,
		fmt.Sprintf("info{version=%q}", programVersion): 1,
	}
	if s.Connected {
		samples["connected"] = 1
	}
	for name, n := range s.Messages {
		samples[fmt.Sprintf("messages_total{transport=%q}", name)] = n
	}
	for name, n := range s.MessagesDiscarded {
		samples[fmt.Sprintf("messages_discarded_total{reason=%q}", name)] = n
	}
	return samples
}

var statsFormat = regexp.MustCompile(`^\{"time":"[^"]+","level":"INFO","msg":"stats","packets":\d+,"packets_dropped":\d+,"packets_invalid":\d+,` +
	`"messages":\{"udp":\d+,"tcp":\d+,"sctp":\d+,"ws":\d+\},"messages_discarded":\{"truncated":\d+,"fragment":\d+,"stream_gap":\d+,"bad_length":\d+,"oversize":\d+\},` +
	`"messages_rejected":\d+,"messages_published":\d+,"messages_dropped":\d+,"queue_messages":\d+,"queue_bytes":\d+,"connected":(true|false)\}$`)

// statistics returns all stats lines: their form is right, and each adds up.
func (p *process) statistics() (all []statsLine) {
	p.t.Helper()
	for line := range strings.Lines(p.stdout.String()) {
		if !strings.Contains(line, `"msg":"stats"`) || !strings.HasSuffix(line, "\n") {
			continue
		}
		var s statsLine
		if err := json.Unmarshal([]byte(line), &s); err != nil || !statsFormat.MatchString(strings.TrimSpace(line)) {
			p.t.Fatalf("not a stats line: %s", line)
		}
		if s.messages() != s.MessagesRejected+s.MessagesPublished+s.MessagesDropped+s.QueueMessages {
			p.t.Errorf("messages = rejected + published + dropped + queue_messages is not true: %s", line)
		}
		if (s.QueueMessages == 0) != (s.QueueBytes == 0) {
			p.t.Errorf("messages and bytes that wait: %s", line)
		}
		all = append(all, s)
	}
	return all
}

// lastStats is the line that a program leaves at its end.
func (p *process) lastStats() statsLine {
	p.t.Helper()
	p.checkLogs()
	all := p.statistics()
	if len(all) == 0 {
		p.t.Fatalf("no stats%s", p.output())
	}
	return all[len(all)-1]
}

// untilStats waits for a stats line.
func (p *process) untilStats(what string, reached func(statsLine) bool) statsLine {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if all := p.statistics(); len(all) > 0 && reached(all[len(all)-1]) {
			return all[len(all)-1]
		}
	}
	p.t.Fatalf("never %s%s", what, p.output())
	return statsLine{}
}

// checkLogs: JSON lines, in which nothing of a message shows, nor the addresses of its parties.
func (p *process) checkLogs() {
	p.t.Helper()
	for line := range strings.Lines(p.stdout.String()) {
		var entry struct {
			Time       time.Time
			Level, Msg string
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time.IsZero() || entry.Level == "" ||
			entry.Msg == "" {
			p.t.Errorf("not a line of a log: %q", line)
		}
	}
	output := p.stdout.String() + p.stderr.String()
	for _, secret := range []string{
		"192.0.2.77",
		"198.51.100.88",
		"alice",
		"bob",
		"callee",
		"caller",
		"z9hG4bK",
		"SIP/2.0",
		"INVITE",
		"OPTIONS",
		"Call-ID",
		"SU5WSVRF",
		"CSeq",
	} {
		if strings.Contains(output, secret) {
			p.t.Errorf("%q of a message is in the log: %s", secret, p.output())
		}
	}
}

var sampleFormat = regexp.MustCompile(
	`^(sip_capture_([a-z_]+?)(_total)?)(\{(transport|reason|version)="[a-z0-9_.-]+"\})? (\d+)$`,
)

// scrape reads /metrics and checks that each metric has its HELP and TYPE before it (Prometheus text format
// 0.0.4). It returns the samples without the prefix.
func scrape(t *testing.T, address string) map[string]uint64 {
	t.Helper()
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK ||
		!strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Fatalf("%s, %s", response.Status, kind)
	}
	samples, helped, typed := map[string]uint64{}, "", map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		word := strings.SplitN(line, " ", 4)
		switch {
		case strings.HasPrefix(line, "# HELP ") && len(word) == 4 && len(word[3]) > 5:
			helped = word[2]
		case strings.HasPrefix(line, "# TYPE ") && len(word) == 4 && word[2] == helped && typed[helped] == "":
			typed[helped] = word[3]
		default:
			part := sampleFormat.FindStringSubmatch(line)
			kind := map[bool]string{true: "counter", false: "gauge"}[part != nil && part[3] == "_total"]
			if part == nil || part[1] != helped || typed[helped] != kind {
				t.Fatalf("/metrics: %q in\n%s", line, text)
			}
			name := strings.TrimPrefix(part[1]+part[4], "sip_capture_")
			if _, twice := samples[name]; twice {
				t.Errorf("/metrics: %s twice", name)
			}
			samples[name], _ = strconv.ParseUint(part[6], 10, 64)
		}
	}
	var messages uint64
	for name, n := range samples {
		if strings.HasPrefix(name, "messages_total{") {
			messages += n
		}
	}
	if messages != samples["messages_rejected_total"]+samples["messages_published_total"]+
		samples["messages_dropped_total"]+
		samples["queue_messages"] {
		t.Errorf("messages = rejected + published + dropped + queue_messages is not true:\n%s", text)
	}
	return samples
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

// problems runs -check with a wrong configuration and returns a line for each problem. The lines that show a
// place in SIP_FILTER, indented,
// stay with theirs.
func problems(t *testing.T, environment ...string) (lines []string) {
	t.Helper()
	stdout, stderr := execute(t, 2, []string{"-check"}, environment...)
	if stdout != "" {
		t.Errorf("on standard output: %q", stdout)
	}
	if strings.Contains(stderr, "nil>") {
		t.Errorf("not for users: %q", stderr)
	}
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "  ") && len(lines) > 0 {
			lines[len(lines)-1] += line
		} else {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestConfigurationRefused has the wrong values of one variable after the other: one line that starts with
// the variable, shows the value and says what would be right.
func TestConfigurationRefused(t *testing.T) {
	t.Parallel()
	numbers := []string{"x", "-1", "0x", "1.5", "1e3", "1 000", "99999999999999999999"}
	for _, row := range []struct {
		variable, want string
		values         []string
	}{
		{
			"INTERFACE",
			"lo",
			[]string{"nosuch0", "LO", "lo,lo", "lo, lo", "lo,", "any,lo", "any,any", "lo,nosuch0"},
		},
		{
			"BPF_FILTER",
			"pcap-filter",
			[]string{"prot 5060", "port", "port 5060 and", "(port 5060", "port 65536", "vlan"},
		},
		{
			"SNAPLEN",
			"68 to 262144",
			append(numbers, "0", "67", "262145"),
		},
		{
			"PROMISCUOUS",
			"true or false",
			[]string{"yes", "no", "2", "tru"},
		},
		{
			"BUFFER_MB",
			"1 to 2047",
			append(numbers, "0", "2048"),
		},
		{
			"QUEUE_MB",
			"from 1",
			append(numbers, "0"),
		},
		{
			"BROKER",
			"tcp://",
			[]string{"localhost", "localhost:1883", "//localhost", "http://localhost",
				"tcp6://localhost", "unix:///run/broker", "tcp://", "tcp://:1883", "ssl:///x",
				"tcp:localhost", "tcp://h:65536", "tcp://h:x", "tcp://h:-1", "tcp://h:0", "tcp://h h",
				"tcp://h/path", "tcp://h?a=b", "tcp://h#f", "ssl://h/path", "tcp://[::1", "%"},
		},
		{
			"MAX_RATE",
			"0 to 1000000",
			append(numbers, "1000001"),
		},
		{
			"ALPN",
			"mqtt",
			[]string{"mqtt,", "mqtt, http/1.1", strings.Repeat("a", 256)},
		},
		{
			"BROKER",
			"tcp://",
			[]string{"tcp://localhost,localhost", "tcp://localhost,", "tcp://localhost;tcp://h"},
		},
		{
			"TOPIC",
			"wildcards",
			[]string{"+", "#", "a/#", "a/+/b", "a+", "a\nb", "a\x01", "a\x7f", "a\u0085", "a\xff", "a\ufffe\xc3"},
		},
		{
			"STATUS_TOPIC",
			"wildcards",
			[]string{"+", "a/#", "a\tb", "a\xff"},
		},
		{
			"STATUS_TOPIC",
			"TOPIC",
			[]string{"sip"},
		},
		{
			"CLIENT_ID",
			"",
			[]string{"a\xff", strings.Repeat("c", 65536)},
		},
		{
			"USERNAME",
			"",
			[]string{"a\xff", strings.Repeat("u", 65536)},
		},
		{
			"METRICS_ADDR",
			"host:port",
			[]string{
				"9060",
				"localhost",
				"localhost:",
				"localhost:x",
				"localhost:65536",
				"localhost:-1",
				"::1:80",
				"[::1]",
				"http://localhost:80",
				"http://localhost",
			},
		},
		{
			"INCLUDE_ADDRESSES",
			"true or false",
			[]string{"yes", "2", "on"},
		},
		{
			"STATS_INTERVAL",
			"30s",
			[]string{"10", "1.5", "-1s", "-1ns", "1 m", "1d", "m", "x"},
		},
		{
			"LOG_LEVEL",
			"debug, info, warn",
			[]string{"trace", "warning", "1", "-4", "fatal", "debug,info"},
		},
		{
			"PCAP_FILE",
			"pcap",
			[]string{"/nonexistent", "/nonexistent/x.pcap"},
		},
		{
			"PASSWORD_FILE",
			"",
			[]string{"/nonexistent"},
		},
		{
			"CA_FILE",
			"",
			[]string{"/nonexistent"},
		},
	} {
		for _, value := range row.values {
			t.Run(fmt.Sprintf("%s/%.40q", row.variable, value), func(t *testing.T) {
				t.Parallel()
				environment := []string{"TOPIC=sip", row.variable + "=" + value}
				if row.variable == "PASSWORD_FILE" {
					environment = append(environment, "USERNAME=u")
				}
				lines := problems(t, environment...)
				others := func(line string) bool { return !strings.HasPrefix(line, row.variable+": ") }
				if len(lines) == 0 || slices.ContainsFunc(lines, others) {
					t.Fatalf("got %.600q, want lines about %s", lines, row.variable)
				}
				// A part of a list is as good as the list.
				start := value[strings.LastIndex(value, ",")+1:]
				inQuotes := strings.Trim(strconv.Quote(start), `"`)
				if strings.HasPrefix(lines[0], "BROKER: not shown, as it may hold a password; want ") {
					return
				}
				if !strings.Contains(lines[0], inQuotes) && !strings.Contains(lines[0], start) ||
					!strings.Contains(lines[0], row.want) {
					t.Errorf("got %.600q, want the value %.40q and %q", lines[0], value, row.want)
				}
			})
		}
	}
}

// TestConfigurationProblems has what takes more than one variable, or a file. Each want is a pattern for a line.
func TestConfigurationProblems(t *testing.T) {
	t.Parallel()
	pem, other := certificates(t), certificates(t)
	empty, newline, text := writeFile(t, "empty", nil), writeFile(t, "newline",
		[]byte("\n")), writeFile(t, "text", []byte("no such thing as PEM\n"))
	raw := writeFile(t, "raw.pcap", captureFile(12))
	wlan := writeFile(t, "wlan.pcap", captureFile(127))
	secret := writeFile(t, "secret", []byte("geheim\n"))
	locked := writeFile(t, "locked", []byte("x"))
	os.Chmod(locked, 0)
	overlong := strings.Repeat("t", 65536)
	for _, row := range []struct {
		name        string
		environment []string
		want        []string
	}{
		{
			"TOPIC not set",
			[]string{"TOPIC="},
			[]string{`TOPIC: .*topic`},
		},
		{
			"TOPIC overlong",
			[]string{"TOPIC=" + overlong},
			[]string{`TOPIC: .*ttttt`},
		},
		{
			"STATUS_TOPIC overlong",
			[]string{"STATUS_TOPIC=" + overlong},
			[]string{`STATUS_TOPIC: .*ttttt`},
		},
		{
			"SNAPLEN too small for a filter",
			[]string{"SNAPLEN=67", "BPF_FILTER=port 5060"},
			[]string{`SNAPLEN: .*67`},
		},

		{
			"BPF doesn't fit a raw IP file",
			[]string{"PCAP_FILE=" + raw, "BPF_FILTER=ether host 00:11:22:33:44:55"},
			[]string{`BPF_FILTER: .*00:11:22`},
		},
		{
			"BPF doesn't fit any",
			[]string{"INTERFACE=any", "BPF_FILTER=vlan and port 5060"},
			[]string{`BPF_FILTER: .*vlan`},
		},
		{
			"BPF wrong, standard input",
			[]string{"PCAP_FILE=-", "BPF_FILTER=prot 5060"},
			[]string{`BPF_FILTER: .*prot 5060`},
		},
		{
			"BPF wrong and no file",
			[]string{"PCAP_FILE=/nonexistent", "BPF_FILTER=prot 5060"},
			[]string{`PCAP_FILE: .*nonexistent`, `BPF_FILTER: .*prot 5060`},
		},
		{
			"BPF wrong and no device",
			[]string{"INTERFACE=nosuch0", "BPF_FILTER=prot 5060"},
			[]string{`INTERFACE: .*nosuch0.*\blo\b`, `BPF_FILTER: .*prot 5060`},
		},

		{
			"PCAP_FILE empty",
			[]string{"PCAP_FILE=" + empty},
			[]string{`PCAP_FILE: .*empty.*pcap`},
		},
		{
			"PCAP_FILE text",
			[]string{"PCAP_FILE=" + text},
			[]string{`PCAP_FILE: .*text.*pcap`},
		},
		{
			"PCAP_FILE directory",
			[]string{"PCAP_FILE=" + pem},
			[]string{`PCAP_FILE: .*pcap`},
		},
		{
			"PCAP_FILE device file",
			[]string{"PCAP_FILE=/dev/null"},
			[]string{`PCAP_FILE: .*/dev/null.*pcap`},
		},
		{
			"PCAP_FILE link type",
			[]string{"PCAP_FILE=" + wlan},
			[]string{`PCAP_FILE: .*wlan.pcap`},
		},

		{
			"SIP_FILTER form",
			[]string{"SIP_FILTER=(methd invite)"},
			[]string{`(?s)SIP_FILTER:1:2: .*method.*\n  \(methd invite\)\n   \^`},
		},
		{
			"SIP_FILTER second line",
			[]string{"SIP_FILTER=(all\n (method invite)\n (status 40))"},
			[]string{`(?s)SIP_FILTER:3:10: .*\n +\^`},
		},
		{
			"SIP_FILTER regular expression",
			[]string{`SIP_FILTER=(to "a(b")`},
			[]string{`(?s)SIP_FILTER:1:\d+: .*\n +\^`},
		},
		{
			"SIP_FILTER two forms",
			[]string{"SIP_FILTER=(foo)\n(bar)"},
			[]string{`SIP_FILTER:1:2: `, `SIP_FILTER:2:\d+: `},
		},

		{
			"BROKER several wrong in a list",
			[]string{"BROKER=tcp://a,b,tcp://c:x,http://d"},
			[]string{
				`BROKER: "b"; want .*tcp://`,
				`BROKER: not shown, .*PASSWORD_FILE`,
				`BROKER: "http://d"; want .*tcp://`,
			},
		},
		{
			"BROKER credentials, the @ encoded",
			[]string{"BROKER=tcp://user:geheim%40h:1883"},
			[]string{`BROKER: not shown, as it may hold a password; want .*PASSWORD_FILE`},
		},
		{
			"BROKER credentials, the @ forgotten",
			[]string{"BROKER=tcp://user:geheim h"},
			[]string{`BROKER: not shown, as it may hold a password; want .*PASSWORD_FILE`},
		},
		{
			"BROKER credentials, begun with a digit",
			[]string{"BROKER=tcp://user:1geheim"},
			[]string{`BROKER: not shown, as it may hold a password; want .*PASSWORD_FILE`},
		},
		{
			"BROKER credentials",
			[]string{"BROKER=tcp://user:geheim@h:1883"},
			[]string{`BROKER: .*USERNAME`},
		},
		{
			"BROKER user",
			[]string{"BROKER=tcp://geheim@h:1883"},
			[]string{`BROKER: .*USERNAME`},
		},
		{
			"BROKER credentials, port isn't a number",
			[]string{"BROKER=tcp://user:geheim@h:x"},
			[]string{`BROKER: .*USERNAME`},
		},
		{
			"BROKER credentials without a scheme",
			[]string{"BROKER=user:geheim@h:1883"},
			[]string{`BROKER: `},
		},
		{
			"BROKER credentials without a scheme, dotted",
			[]string{"BROKER=us.er:geheim@h"},
			[]string{`BROKER: `},
		},
		{
			"BROKER credentials, slashes forgotten",
			[]string{"BROKER=tcp:user:geheim@h"},
			[]string{`BROKER: `},
		},
		{
			"BROKER credentials, one slash",
			[]string{"BROKER=ssl:/user:geheim@h"},
			[]string{`BROKER: `},
		},
		{
			"BROKER credentials, blank",
			[]string{"BROKER=tcp://us er:geheim@h"},
			[]string{`BROKER: `},
		},
		{
			"BROKER credentials with a comma",
			[]string{"BROKER=tcp://user:geheim,x@h"},
			[]string{`BROKER: not shown`, `BROKER: not shown`},
		},
		{
			"BROKER credentials, unknown scheme",
			[]string{"BROKER=http://user:geheim@h"},
			[]string{`BROKER: `},
		},

		{
			"both passwords",
			[]string{"USERNAME=u", "PASSWORD=geheim", "PASSWORD_FILE=" + secret},
			[]string{`PASSWORD(_FILE)?: .*PASSWORD`},
		},
		{
			"PASSWORD overlong",
			[]string{"USERNAME=u", "PASSWORD=" + strings.Repeat("geheim", 11000)},
			[]string{`PASSWORD_FILE: .*PASSWORD.*65535`},
		},
		{
			"PASSWORD without a user",
			[]string{"PASSWORD=geheim"},
			[]string{`(USERNAME|PASSWORD): .*(USERNAME|user)`},
		},
		{
			"PASSWORD_FILE without a user",
			[]string{"PASSWORD_FILE=" + secret},
			[]string{`(USERNAME|PASSWORD_FILE): .*(USERNAME|user)`},
		},
		{
			"PASSWORD_FILE empty",
			[]string{"USERNAME=u", "PASSWORD_FILE=" + empty},
			[]string{`PASSWORD_FILE: .*empty`},
		},
		{
			"PASSWORD_FILE only a line end",
			[]string{"USERNAME=u", "PASSWORD_FILE=" + newline},
			[]string{`PASSWORD_FILE: .*newline`},
		},
		{
			"PASSWORD_FILE directory",
			[]string{"USERNAME=u", "PASSWORD_FILE=" + pem},
			[]string{`PASSWORD_FILE: .*directory`},
		},

		{
			"CA_FILE empty",
			[]string{"CA_FILE=" + empty},
			[]string{`CA_FILE: .*empty`},
		},
		{
			"CA_FILE text",
			[]string{"CA_FILE=" + text},
			[]string{`CA_FILE: .*text.*PEM`},
		},
		{
			"CA_FILE key",
			[]string{"CA_FILE=" + pem + "/ca.key"},
			[]string{`CA_FILE: .*ca.key.*PEM`},
		},
		{
			"CA_FILE directory",
			[]string{"CA_FILE=" + pem},
			[]string{`CA_FILE: .*directory`},
		},
		{
			"CERT_FILE alone",
			[]string{"CERT_FILE=" + pem + "/client.pem"},
			[]string{`CERT_FILE: .*client.pem.*KEY_FILE`, `KEY_FILE: .*"".*CERT_FILE`},
		},
		{
			"KEY_FILE alone",
			[]string{"KEY_FILE=" + pem + "/client.key"},
			[]string{`CERT_FILE: .*"".*KEY_FILE`, `KEY_FILE: .*client.key.*CERT_FILE`},
		},
		{
			"CERT_FILE isn't there",
			[]string{"CERT_FILE=/nonexistent", "KEY_FILE=" + pem + "/client.key"},
			[]string{
				`CERT_FILE: "/nonexistent".*open /nonexistent`,
				`KEY_FILE: .*client.key.*CERT_FILE.*open /nonexistent`,
			},
		},
		{
			"KEY_FILE isn't there",
			[]string{"CERT_FILE=" + pem + "/client.pem", "KEY_FILE=/nonexistent"},
			[]string{
				`CERT_FILE: .*client.pem.*KEY_FILE.*open /nonexistent`,
				`KEY_FILE: "/nonexistent".*open /nonexistent`,
			},
		},
		{
			"CERT_FILE text",
			[]string{"CERT_FILE=" + text, "KEY_FILE=" + pem + "/client.key"},
			[]string{`CERT_FILE: .*text.*PEM.*certificate input`, `KEY_FILE: .*client.key.*certificate input`},
		},
		{
			"KEY_FILE text",
			[]string{"CERT_FILE=" + pem + "/client.pem", "KEY_FILE=" + text},
			[]string{`CERT_FILE: .*client.pem.*key input`, `KEY_FILE: .*text.*PEM.*key input`},
		},
		{
			"KEY_FILE of another certificate",
			[]string{"CERT_FILE=" + pem + "/client.pem", "KEY_FILE=" + other + "/client.key"},
			[]string{`CERT_FILE: .*client\.pem.*match`, `KEY_FILE: .*client\.key.*match`},
		},
		{
			"no PEM file is there",
			[]string{"CA_FILE=/nonexistent1", "CERT_FILE=/nonexistent2", "KEY_FILE=/nonexistent3"},

			[]string{`CA_FILE: .*nonexistent1`, `CERT_FILE: .*nonexistent2`, `KEY_FILE: .*nonexistent3`},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			lines := problems(t, append([]string{"TOPIC=sip"}, row.environment...)...)
			matched := 0
			for _, want := range row.want {
				if slices.ContainsFunc(lines, regexp.MustCompile("^"+want).MatchString) {
					matched++
				}
			}
			if matched != len(row.want) || len(lines) != len(row.want) {
				t.Errorf("got %.600q, want %q", lines, row.want)
			}
			if strings.Contains(fmt.Sprint(lines), "geheim") {
				t.Errorf("the secret is shown: %q", lines)
			}
		})
	}
	t.Run("files that may not be read", func(t *testing.T) {
		t.Parallel()
		p := prepareProgram(
			t,
			[]string{"-check"},
			"TOPIC=sip",
			"USERNAME=u",
			"PCAP_FILE="+locked,
			"PASSWORD_FILE="+locked,
			"CA_FILE="+locked,
			"CERT_FILE="+locked,
			"KEY_FILE="+locked,
		)
		asNobody(p)
		p.start().exits(2, patience)
		for _, variable := range []string{"PCAP_FILE", "PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE"} {
			if !regexp.MustCompile(`(?im)^` + variable +
				`: .*locked.*permission denied`).MatchString(p.stderr.String()) {
				t.Errorf("%s is missing in %s", variable, &p.stderr)
			}
		}
	})
}

// asNobody takes root's capabilities from a process.
func asNobody(p *process) {
	if os.Getuid() == 0 {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}

// TestSeveralProblems has everything wrong at once.
func TestSeveralProblems(t *testing.T) {
	t.Parallel()
	wrong := []string{"INTERFACE=nosuch0", "BPF_FILTER=prot 5060", "SIP_FILTER=(foo)",
		"SNAPLEN=x", "PROMISCUOUS=maybe", "BUFFER_MB=0", "BROKER=h", "TOPIC=#", "STATUS_TOPIC=+",
		"PASSWORD=geheim", "PASSWORD_FILE=/nonexistent", "CA_FILE=/nonexistent",
		"CERT_FILE=/nonexistent", "KEY_FILE=/nonexistent", "QUEUE_MB=0", "METRICS_ADDR=x",
		"INCLUDE_ADDRESSES=maybe", "STATS_INTERVAL=1", "LOG_LEVEL=loud"}
	devices := regexp.MustCompile(`each once of .*`) // other tests make some and remove them
	stable := func(lines ...string) string { return devices.ReplaceAllString(strings.Join(lines, ""), "") }
	lines := problems(t, wrong...)
	for _, setting := range wrong {
		variable, _, _ := strings.Cut(setting, "=")
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, variable+":") }) &&
			variable != "PASSWORD" {
			t.Errorf("no line for %s in %q", setting, lines)
		}
	}
	if text := fmt.Sprint(lines); strings.Contains(text, "geheim") || !strings.Contains(text, "USERNAME") {
		t.Errorf("got %q", lines)
	}
	for range 5 {
		if again := problems(t, wrong...); stable(again...) != stable(lines...) {
			t.Fatalf("another order: %q, then %q", lines, again)
		}
	}
	// Without -check it is the same: nothing starts.
	if stdout, stderr := execute(t, 2, nil, wrong...); stdout != "" || stable(stderr) != stable(lines...) {
		t.Errorf("got %q and %q, want %q", stdout, stderr, lines)
	}
}

func TestConfigurationAccepted(t *testing.T) {
	t.Parallel()
	pem := certificates(t)
	secret := writeFile(t, "secret", []byte("geheim\n"))
	file := writeFile(t, "calls.pcap", captureFile(1, testCalls(1)...))
	unset := []string{"TOPIC=sip"}
	for _, variable := range variables() {
		if variable != "TOPIC" {
			unset = append(unset, variable+"=")
		}
	}
	for name, environment := range map[string][]string{
		"only TOPIC":       {"TOPIC=sip"},
		"set but empty":    unset,
		"lo":               {"TOPIC=sip", "INTERFACE=lo", "BPF_FILTER=vlan and port 5060"},
		"blanks in a list": {"TOPIC=sip", "INTERFACE= lo ", "BROKER= tcp://a , ssl://b "},
		"a file":           {"TOPIC=sip", "PCAP_FILE=" + file, "INTERFACE=nosuch0"},
		"standard input":   {"TOPIC=sip", "PCAP_FILE=-"},
		"limits": {
			"TOPIC=" + strings.Repeat("t", 65535),
			"SNAPLEN=68",
			"BUFFER_MB=1",
			"QUEUE_MB=1",
			"STATS_INTERVAL=0",
			"METRICS_ADDR=:65535",
		},
		"upper limits": {
			"TOPIC=/größe/ /$",
			"SNAPLEN=262144",
			"BUFFER_MB=2047",
			"STATS_INTERVAL=1h30m0.5s",
			"METRICS_ADDR=[::1]:80",
			"LOG_LEVEL=error",
		},
		"levels in capitals": {"TOPIC=sip", "LOG_LEVEL=WARN", "PROMISCUOUS=false", "INCLUDE_ADDRESSES=TRUE"},
		"schemes": {
			"TOPIC=sip",
			"BROKER=tcp://h,mqtt://h,ssl://h,tls://h,mqtts://h,ws://h,wss://h,TCP://h",
		},
		"schemes with a port": {
			"TOPIC=sip",
			"BROKER=tcp://h:1,mqtt://192.0.2.1:65535,ssl://[::1]:443,tls://h:8883,mqtts://h.:1,ws://h:8080/mqtt?a=b,wss://h:1/",
		},
		"addresses":               {"TOPIC=sip", "BROKER=tcp://[2001:db8::1],tcp://192.0.2.1,tcp://h/,tcp://h:"},
		"user without a password": {"TOPIC=sip", "USERNAME=u"},
		"another STATUS_TOPIC":    {"TOPIC=sip", "STATUS_TOPIC=SIP"},
		"client without authority": {
			"TOPIC=sip",
			"CERT_FILE=" + pem + "/client.pem",
			"KEY_FILE=" + pem + "/client.key",
		},
		"every variable": {"INTERFACE=lo", "PCAP_FILE=" +
			file, "BPF_FILTER=port 5060", "SIP_FILTER=(all (method invite) initial)",
			"SNAPLEN=65535", "PROMISCUOUS=false", "BUFFER_MB=4",
			"BROKER=ssl://h", "TOPIC=sip", "CLIENT_ID=c", "USERNAME=u", "PASSWORD_FILE=" +
				secret, "CA_FILE=" + pem + "/ca.pem", "CERT_FILE=" + pem + "/client.pem",
			"KEY_FILE=" + pem +
				"/client.key", "QUEUE_MB=4", "STATUS_TOPIC=status", "METRICS_ADDR=127.0.0.1:1",
			"INCLUDE_ADDRESSES=true", "STATS_INTERVAL=1s", "LOG_LEVEL=debug"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr := execute(t, 0, []string{"-check"}, environment...)
			if !strings.HasSuffix(stdout, "\nconfiguration ok\n") || stderr != "" {
				t.Errorf("got %q and %q", stdout, stderr)
			}
		})
	}
}

// TestCheckOnlyLooks: -check neither connects, listens nor reads standard input.
func TestCheckOnlyLooks(t *testing.T) {
	t.Parallel()
	broker := newCollector(t)
	p := prepareProgram(
		t,
		[]string{"-check"},
		broker.setting(),
		"TOPIC=sip",
		"PCAP_FILE=-",
		"METRICS_ADDR="+broker.Addr().String(),
	)
	p.stdin, _ = p.cmd.StdinPipe()
	p.start().exits(0, patience)
	time.Sleep(50 * time.Millisecond)
	broker.mu.Lock()
	defer broker.mu.Unlock()
	if len(broker.connects)+len(broker.ends) != 0 {
		t.Errorf("connected: %v, %v", broker.connects, broker.ends)
	}
}

// TestPorts reads from the log which port each scheme stands for: nothing listens at these addresses.
func TestPorts(t *testing.T) {
	t.Parallel()
	p := launch(t, "TOPIC=sip", "PCAP_FILE=-",
		"BROKER=tcp://127.7.0.1,mqtt://127.7.0.2,ssl://127.7.0.3,tls://127.7.0.4,mqtts://127.7.0.5,ws://127.7.0.6,wss://127.7.0.7,tcp://127.7.0.8:1,wss://127.7.0.9:2,TCP://127.7.0.10:")
	p.stdin.Write(captureFile(1))
	for _, broker := range []string{"127.7.0.1:1883", "127.7.0.2:1883", "127.7.0.3:8883",
		"127.7.0.4:8883", "127.7.0.5:8883", "127.7.0.6:80", "127.7.0.7:443", "127.7.0.8:1", "127.7.0.9:2",
		"127.7.0.10:1883"} {
		p.untilLogged(fmt.Sprintf(`"broker":%q`, broker))
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-x"}, {"--check"}, {"help"}, {"check"},
		{""}, {"-check", "-version"}, {"-check", "-check"}, {"-version", "x"}, {"-version=true"},
		{"TOPIC=sip"}, {"-CHECK"}, {"-check "}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			t.Parallel()
			stdout, stderr := execute(t, 2, args, "TOPIC=sip")
			if stdout != "" || !strings.Contains(stderr, args[0]) || !strings.Contains(stderr, "-help") ||
				strings.Count(stderr, "\n") != 1 {
				t.Errorf("got %q and %q", stdout, stderr)
			}
		})
	}
	// These look at nothing in the environment.
	if stdout, stderr := execute(t, 0, []string{"-version"}, "SNAPLEN=x"); stdout != programVersion+"\n" ||
		stderr != "" {
		t.Errorf("-version: got %q and %q", stdout, stderr)
	}
	if _, stderr := execute(t, 0, []string{"-help"}, "SNAPLEN=x"); stderr != "" {
		t.Errorf("-help: got %q", stderr)
	}
}

// defaults are those of the contract.
var defaults = map[string]string{
	"INTERFACE": "any", "PCAP_FILE": "", "BPF_FILTER": "SIP on port 5060", "SIP_FILTER": "",
	"SNAPLEN": "262144", "PROMISCUOUS": "true", "BUFFER_MB": "32", "BROKER": "tcp://localhost:1883",
	"TOPIC": "required", "CLIENT_ID": "sip-capture-HOST-RANDOM", "USERNAME": "", "PASSWORD": "",
	"PASSWORD_FILE": "", "CA_FILE": "", "CERT_FILE": "", "KEY_FILE": "", "QUEUE_MB": "64",
	"STATUS_TOPIC": "off", "METRICS_ADDR": "off",
	"INCLUDE_ADDRESSES": "false", "STATS_INTERVAL": "1m", "LOG_LEVEL": "info", "MAX_RATE": "0", "ALPN": "",
}

func variables() []string { return slices.Sorted(maps.Keys(defaults)) }

// TestManual compares -help with the configuration and the contract.
func TestManual(t *testing.T) {
	for _, argument := range []string{"-help", "--help", "-h"} {
		if printed, stderr := execute(t, 0, []string{argument}, "SNAPLEN=x"); printed != manual || stderr != "" {
			t.Errorf("%s prints another text than the manual: %q%q", argument, printed, stderr)
		}
	}
	row := func(variable string) string {
		return regexp.MustCompile(`(?m)^\s+(\w+, )*` + variable + `\b.*`).FindString(manual)
	}
	for variable, value := range defaults {
		if line := row(variable); line == "" || !strings.Contains(line, value) {
			t.Errorf("%s with the default %q: got %q", variable, value, line)
		}
	}
	for _, variable := range variables() {
		t.Setenv(variable, "")
	}
	t.Setenv("TOPIC", "required")
	values := map[string]string{} // of an environment in which only TOPIC is set
	configured, err := configure()
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config]()) {
		if variable := field.Tag.Get("env"); variable != "" {
			value := reflect.ValueOf(*configured).FieldByIndex(field.Index)
			values[variable] = strings.Trim(fmt.Sprint(value), "[]")
		}
	}
	random := strings.TrimPrefix(values["CLIENT_ID"], "sip-capture-")
	if random == values["CLIENT_ID"] || len(random) < 8 {
		t.Errorf("CLIENT_ID is %s", values["CLIENT_ID"])
	}
	want := maps.Clone(defaults)
	want["CLIENT_ID"] = values["CLIENT_ID"]
	want["STATS_INTERVAL"] = "1m0s" // as Go prints it
	want["LOG_LEVEL"] = "INFO"
	for _, off := range []string{"BPF_FILTER", "STATUS_TOPIC", "METRICS_ADDR"} {
		want[off] = ""
	}
	if !maps.Equal(values, want) {
		t.Errorf("got %v, want %v", values, want)
	}
	for _, promise := range []string{"-check", "-health", "-version", "-help", "Exit code", "empty"} {
		if !strings.Contains(manual, promise) {
			t.Errorf("the manual doesn't say %q", promise)
		}
	}
}

// TestReadme checks the examples of JSON: envelopes that hold what they promise, and stats lines as they are logged.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	envelopes := 0
	for _, line := range regexp.MustCompile(`(?m)^\s*(\{"id":.*\})\s*$`).FindAllSubmatch(readme, -1) {
		envelopes++
		if bytes.Contains(line[1], []byte("…")) {
			continue // shortened for the eye
		}
		if e := unwrap(t, string(line[1])); startLine(e.SIP) != yes {
			t.Errorf("no SIP message: %q", e.SIP)
		}
	}
	if envelopes == 0 {
		t.Error("README.md shows no envelope on a line of its own")
	}
	for _, line := range regexp.MustCompile(`(?m)^\s*(\{.*"msg":"stats".*\})\s*$`).FindAllSubmatch(readme, -1) {
		if !statsFormat.Match(line[1]) {
			t.Errorf("not a stats line: %s", line[1])
		}
	}
	for _, variable := range variables() {
		if !bytes.Contains(readme, []byte("`"+variable+"`")) {
			t.Errorf("README.md doesn't have `%s`", variable)
		}
	}
}

// TestFile reads a good file, twice.
func TestFile(t *testing.T) {
	t.Parallel()
	const n = 500
	broker := newCollector(t)
	records := testCalls(n)
	records = append(records, records[0]) // a retransmission
	file := writeFile(t, "calls.pcap", captureFile(1, records...))
	secret := writeFile(t, "secret", []byte("geheim\n"))
	for range 2 {
		p := prepareProgram(t, nil, broker.setting(), "TOPIC=sip/1", "PCAP_FILE="+
			file, "STATUS_TOPIC=status/1", "USERNAME=u", "PASSWORD_FILE="+
			secret, "INCLUDE_ADDRESSES=true", "LOG_LEVEL=debug",
			"SIP_FILTER=(method invite)", "QUEUE_MB=1").start()
		p.exits(0, patience)
		s := p.lastStats()
		if s.Packets != n+1 || s.Messages["udp"] != n+1 || s.MessagesPublished != n+1 || s.messages() != n+1 ||
			s.QueueMessages != 0 ||
			s.Connected {
			t.Errorf("got %+v", s)
		}
		if p.stderr.String() != "" || strings.Contains(p.stdout.String(), "geheim") {
			t.Errorf("got %s%s", &p.stdout, &p.stderr)
		}
	}
	all := broker.envelopes(t, "sip/1")
	if len(all) != 2*(n+1) {
		t.Fatalf("%d envelopes, want %d", len(all), 2*(n+1))
	}
	ids := map[string]bool{}
	for i, e := range all[:n+1] {
		at := time.Unix(1795383240, 123456789).Add(time.Duration(i) * time.Millisecond)
		if string(e.SIP) != testCall("INVITE", i%n) || !e.Time.Equal(at) || e.Version != programVersion {
			t.Fatalf("%d: got %+v at %v", i, e, at)
		}
		if e.Transport != "udp" || e.Src != "192.0.2.77:5060" || e.Dst != "198.51.100.88:5060" {
			t.Fatalf("%d: got %+v", i, e)
		}
		if again := all[n+1+i]; !reflect.DeepEqual(e, again) {
			t.Fatalf("read again: got %+v, then %+v", e, again)
		}
		ids[e.ID] = true
	}
	if len(ids) != n+1 || all[0].Signature != all[n].Signature {
		t.Errorf("%d ids; retransmitted: %+v and %+v", len(ids), all[0], all[n])
	}

	broker.mu.Lock()
	defer broker.mu.Unlock()
	if len(broker.connects) != 2 {
		t.Fatalf("%d connections", len(broker.connects))
	}
	for _, c := range broker.connects {
		if c.Username != "u" || string(c.Password) != "geheim" ||
			!regexp.MustCompile(`^sip-capture-.+-\w{6,}$`).MatchString(c.ClientIdentifier) {
			t.Errorf("CONNECT %v", c)
		}
	}
	if broker.connects[0].ClientIdentifier == broker.connects[1].ClientIdentifier {
		t.Error("the same CLIENT_ID twice")
	}
	var status []string
	for _, p := range broker.published {
		if p.TopicName == "status/1" {
			status = append(status, fmt.Sprint(string(p.Payload), p.Retain))
		} else if p.TopicName != "sip/1" || p.Retain || p.Qos != 1 {
			t.Fatalf("PUBLISH %v", p.Details())
		}
	}
	if !slices.Equal(status, []string{"onlinetrue", "offlinetrue", "onlinetrue", "offlinetrue"}) {
		t.Errorf("status: %q", status)
	}
}

// TestFiles has files that end otherwise.
func TestFiles(t *testing.T) {
	t.Parallel()
	whole := captureFile(1, testCalls(7)...)
	last := 16 + len(testCalls(1)[0].frame) // bytes of the last record
	text := []byte("this is no capture file, whatever its name says")
	for _, row := range []struct {
		name      string
		content   []byte
		code      int // for a file; what is wrong with standard input shows only when the program runs already
		published int
		says      string
	}{
		{
			"whole",
			whole,
			0,
			7,
			"",
		},
		{
			"no frames",
			captureFile(1),
			0,
			0,
			"",
		},
		{
			"cut in a frame",
			whole[:len(whole)-1],
			1,
			6,
			"truncated",
		},
		{
			"cut behind a record's header",
			whole[:len(whole)-last+16],
			1,
			6,
			"truncated",
		},
		{
			"cut in a record's header",
			whole[:len(whole)-last+8],
			1,
			6,
			"truncated",
		},
		{
			"record of 4 GB",
			append(slices.Clone(whole), bytes.Repeat([]byte{255}, 64)...),
			1,
			7,
			"",
		},
		{
			"empty",
			nil,
			2,
			0,
			"PCAP_FILE: ",
		},
		{
			"text",
			text,
			2,
			0,
			"PCAP_FILE: ",
		},
		{
			"header cut",
			whole[:20],
			2,
			0,
			"PCAP_FILE: ",
		},
		{
			"another link type",
			captureFile(127),
			2,
			0,
			"PCAP_FILE: ",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			broker := newCollector(t)
			p := prepareProgram(
				t,
				nil,
				broker.setting(),
				"TOPIC=sip",
				"PCAP_FILE="+writeFile(t, "calls.pcap", row.content),
			).start()
			p.exits(row.code, patience)
			if got := broker.envelopes(t, "sip"); len(got) != row.published {
				t.Errorf("%d envelopes, want %d", len(got), row.published)
			}
			if said := p.stderr.String(); !strings.Contains(said, row.says) || (said == "") != (row.code == 0) ||
				said != "" && !strings.Contains(said, "calls.pcap") {
				t.Errorf("got %q on standard error, want %q", said, row.says)
			}
			if row.code == 2 {
				if p.stdout.String() != "" {
					t.Errorf("on standard output: %s", &p.stdout)
				}
			} else if s := p.lastStats(); s.MessagesPublished != uint64(row.published) {
				t.Errorf("got %+v", s)
			}
		})
		t.Run(row.name+", standard input", func(t *testing.T) {
			t.Parallel()
			broker := newCollector(t)
			p := prepareProgram(t, nil, broker.setting(), "TOPIC=sip", "PCAP_FILE=-")
			p.cmd.Stdin = bytes.NewReader(row.content)
			p.start()
			<-p.done
			if code := p.cmd.ProcessState.ExitCode(); (code == 0) != (row.code == 0) || code > 2 || code < 0 ||
				(p.stderr.String() == "") != (code == 0) {
				t.Errorf("%v: %s", p.cmd.ProcessState, &p.stderr)
			}
			if got := broker.envelopes(t, "sip"); len(got) != row.published {
				t.Errorf("%d envelopes, want %d", len(got), row.published)
			}
			p.checkLogs()
		})
	}
}

// TestFIFO reads a named pipe, which can be opened only once.
func TestFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	broker := newCollector(t)
	p := prepareProgram(t, nil, broker.setting(), "TOPIC=sip", "PCAP_FILE="+path).start()
	f, err := os.OpenFile(path, os.O_RDWR, 0) // which doesn't wait for a reader
	if err != nil {
		t.Fatal(err)
	}
	f.Write(captureFile(1, testCalls(3)...))
	p.untilLogged("connected")
	time.Sleep(100 * time.Millisecond) // closing a pipe that nobody has opened yet would lose all
	f.Close()
	p.exits(0, patience)
	if got := broker.envelopes(t, "sip"); len(got) != 3 {
		t.Errorf("%d envelopes", len(got))
	}
}

func TestMetricsAddressTaken(t *testing.T) {
	t.Parallel()
	broker := newCollector(t)
	_, stderr := execute(
		t,
		1,
		nil,
		broker.setting(),
		"TOPIC=sip",
		"PCAP_FILE="+writeFile(t, "calls.pcap", captureFile(1)),
		"METRICS_ADDR="+broker.Addr().String(),
	)
	if !strings.HasPrefix(stderr, "METRICS_ADDR: ") || !strings.Contains(stderr, broker.Addr().String()) {
		t.Errorf("got %q", stderr)
	}
}

func TestNetRawMissing(t *testing.T) {
	t.Parallel()
	p := prepareProgram(t, nil, "TOPIC=sip", "INTERFACE=lo")
	asNobody(p)
	p.start().exits(1, patience)
	if text := p.stderr.String(); !strings.Contains(text, "NET_RAW") || !strings.Contains(text, "lo") ||
		p.stdout.String() != "" {
		t.Errorf("got %q and %q", &p.stdout, text)
	}
}

// TestStop sends signals while a pipe on standard input stays open.
func TestStop(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			broker := newCollector(t)
			p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "STATS_INTERVAL=20ms", "LOG_LEVEL=debug")
			p.stdin.Write(captureFile(1, testCalls(10)...))
			p.untilStats("published", func(s statsLine) bool { return s.MessagesPublished == 10 })
			p.signal(s)
			p.exits(0, 3*time.Second)
			if got := p.lastStats(); got.MessagesPublished != 10 || got.MessagesDropped != 0 ||
				p.stderr.String() != "" {
				t.Errorf("got %+v%s", got, &p.stderr)
			}
			broker.mu.Lock()
			defer broker.mu.Unlock()
			if len(broker.ends) != 1 || !strings.HasPrefix(broker.ends[0], "DISCONNECT") {
				t.Errorf("ended with %q", broker.ends)
			}
		})
	}
}

// TestSilentPipe stops the program before anything came on standard input. (In a container, as process 1, it
// would have to be killed.)
func TestSilentPipe(t *testing.T) {
	t.Parallel()
	p := launch(t, "TOPIC=sip", "PCAP_FILE=-", "BROKER=tcp://"+freeAddress(t))
	p.untilLogged("capturing")
	p.signal(syscall.SIGTERM)
	p.exits(0, 3*time.Second)
}

// TestStopDuringOutage: what can't be delivered within 8 s is counted and logged.
func TestStopDuringOutage(t *testing.T) {
	t.Parallel()
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("second signal %v", second), func(t *testing.T) {
			t.Parallel()
			p := launch(
				t,
				"BROKER=tcp://"+freeAddress(t),
				"TOPIC=sip",
				"PCAP_FILE=-",
				"STATS_INTERVAL=20ms",
				"LOG_LEVEL=debug",
			)
			p.stdin.Write(captureFile(1, testCalls(5)...))
			p.untilStats("queued", func(s statsLine) bool { return s.QueueMessages == 5 })
			p.signal(syscall.SIGTERM)
			begin := time.Now()
			if second {
				time.Sleep(200 * time.Millisecond)
				p.signal(syscall.SIGTERM)
				p.exits(0, time.Second)
			} else {
				p.exits(0, 9500*time.Millisecond)
				if took := time.Since(begin); took < 7*time.Second {
					t.Errorf("given up after %v", took)
				}
			}
			if got := p.lastStats(); got.MessagesDropped != 5 || got.MessagesPublished != 0 || got.QueueMessages != 0 ||
				got.QueueBytes != 0 {
				t.Errorf("got %+v", got)
			}
			if !regexp.MustCompile(`(?m)^.*"level":"WARN".*"messages_dropped":5\D.*$`).MatchString(p.stdout.String()) {
				t.Errorf("not logged: %s", p.output())
			}
		})
	}
}

// TestStopWhileReadingWaits: the queue is full, so reading waits for the broker, which doesn't come.
func TestStopWhileReadingWaits(t *testing.T) {
	t.Parallel()
	p := prepareProgram(
		t,
		nil,
		"BROKER=tcp://"+freeAddress(t),
		"TOPIC=sip",
		"PCAP_FILE="+writeFile(t, "calls.pcap", captureFile(1, testCalls(3000)...)),
		"QUEUE_MB=1",
		"STATS_INTERVAL=20ms",
	).start()
	before := statsLine{}
	p.untilStats("full", func(s statsLine) bool {
		full := s.QueueBytes >= roomBytes && s.QueueMessages == before.QueueMessages
		before = s
		return full
	})
	if before.MessagesDropped != 0 || before.QueueBytes > 1<<20 {
		t.Errorf("got %+v", before)
	}
	p.signal(syscall.SIGINT)
	time.Sleep(1200 * time.Millisecond)
	p.signal(syscall.SIGINT)
	p.exits(0, time.Second)
	if s := p.lastStats(); s.MessagesDropped < before.QueueMessages || s.MessagesDropped > before.QueueMessages+1 {
		t.Errorf("got %+v, before %+v", s, before)
	}
}

// TestStatistics compares the log with /metrics, for a traffic in which most counters differ.
func TestStatistics(t *testing.T) {
	t.Parallel()
	broker, address := newCollector(t), freeAddress(t)
	p := launch(
		t,
		broker.setting(),
		"TOPIC=sip",
		"PCAP_FILE=-",
		"STATS_INTERVAL=20ms",
		"METRICS_ADDR="+address,
		"SIP_FILTER=(method invite)",
		"LOG_LEVEL=debug",
	)
	records := testCalls(4)
	for i := range 3 {
		records = append(records, captured{frame: testFrame(layers.IPProtocolUDP, testCall("OPTIONS", i))})
	}
	records = append(
		records,
		captured{
			frame: testFrame(
				layers.IPProtocolTCP,
				testCall("INVITE", 9)+testCall("OPTIONS", 3)+
					strings.Replace(testCall("INVITE", 10), "Length: 0", "Length: x", 1),
			),
		},
	)
	records = append(records, captured{frame: testFrame(layers.IPProtocolUDP, testCall("INVITE", 11)), cut: 20})
	records = append(records, captured{frame: testFrame(layers.IPProtocolUDP, "\x00\x00\x00\x00")})
	p.stdin.Write(captureFile(1, records...))
	ready := func(s statsLine) bool {
		return s.Packets == uint64(len(records)) && s.QueueMessages == 0 && s.Connected
	}
	s := p.untilStats("all published", ready)
	if s.Messages["udp"] != 7 || s.Messages["tcp"] != 2 || s.messages() != 9 || s.MessagesRejected != 4 ||
		s.MessagesPublished != 5 ||
		s.MessagesDiscarded["truncated"] != 1 || s.MessagesDiscarded["bad_length"] != 1 {
		t.Errorf("got %+v", s)
	}
	if got := scrape(t, address); !maps.Equal(got, s.samples()) {
		t.Errorf("/metrics %v, the log %v", got, s.samples())
	}
	if status, body := get(t, "http://"+address+"/healthz"); status != http.StatusOK || body == "" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	for _, path := range []string{"/", "/metric", "/metrics/x", "/debug/pprof/", "/debug/vars"} {
		if status, _ := get(t, "http://"+address+path); status != http.StatusNotFound {
			t.Errorf("%s: %d", path, status)
		}
	}
	response, err := http.Post("http://"+address+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil || response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v, %v", response, err)
	} else {
		response.Body.Close()
	}
	if listening := p.sockets(t, "0A"); !slices.Equal(listening, []string{address}) {
		t.Errorf("listens on %q, want %s", listening, address)
	}
	p.stdin.Close()
	p.exits(0, patience)
	if last := p.lastStats(); last.MessagesPublished != 5 {
		t.Errorf("got %+v", last)
	}
}

// sockets are the local addresses of the process's IPv4 sockets for TCP in a state (0A: listening), with
// those of IPv6 or UDP as they stand in the kernel's table.
func (p *process) sockets(t *testing.T, state string) (found []string) {
	t.Helper()
	directory := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	own := map[string]bool{}
	descriptors, err := os.ReadDir(directory + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, descriptor := range descriptors {
		if target, err := os.Readlink(directory + "fd/" +
			descriptor.Name()); err == nil && strings.HasPrefix(target, "socket:[") {
			own[strings.Trim(target, "socket:[]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, _ := os.ReadFile(directory + "net/" + table)
		for line := range strings.Lines(string(text)) {
			field := strings.Fields(line)
			if len(field) < 10 || !own[field[9]] || field[3] != state && !strings.HasPrefix(table, "udp") {
				continue
			}
			var ip, port uint32
			fmt.Sscanf(field[1], "%08x:%x", &ip, &port)
			local := netip.AddrPortFrom(
				netip.AddrFrom4([4]byte(binary.LittleEndian.AppendUint32(nil, ip))),
				uint16(port),
			).String()
			if table != "tcp" {
				local = table + " " + field[1]
			}
			found = append(found, local)
		}
	}
	return found
}

// TestNothingListens: without METRICS_ADDR the only socket is the connection to the broker.
func TestNothingListens(t *testing.T) {
	t.Parallel()
	broker := newCollector(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "STATS_INTERVAL=20ms", "STATUS_TOPIC=status")
	p.stdin.Write(captureFile(1, testCalls(1)...))
	p.untilStats("published", func(s statsLine) bool { return s.MessagesPublished == 1 })
	if listening, connected := p.sockets(t, "0A"), p.sockets(t, "01"); len(listening) != 0 || len(connected) != 1 {
		t.Errorf("listening: %q, connected: %q", listening, connected)
	}
}

// TestIdentityUnderLoad polls the log and /metrics while messages come and go: none may be missing in any of them.
func TestIdentityUnderLoad(t *testing.T) {
	t.Parallel()
	const rounds, batch = 40, 250
	broker, address := newCollector(t), freeAddress(t)
	p := launch(
		t,
		broker.setting(),
		"TOPIC=sip",
		"PCAP_FILE=-",
		"STATS_INTERVAL=2ms",
		"METRICS_ADDR="+address,
		"SIP_FILTER=(method invite)",
		"QUEUE_MB=1",
	)
	p.stdin.Write(captureFile(1))
	go func() {
		for round := range rounds {
			var records []captured
			for i := round * batch; i < (round+1)*batch; i++ {
				records = append(
					records,
					captured{frame: testFrame(layers.IPProtocolUDP, testCall([]string{"INVITE", "OPTIONS"}[i%2], i))},
				)
			}
			p.stdin.Write(captureRecords(round*batch, records...))
		}
	}()
	p.untilLogged(`"msg":"stats"`)
	moving := 0 // scrapes that saw messages wait
	for end := time.Now().Add(patience); time.Now().Before(end); {
		got := scrape(t, address)
		if got["queue_messages"] > 0 {
			moving++
		}
		if got["packets_total"] == rounds*batch && got["queue_messages"] == 0 {
			break
		}
	}
	p.stdin.Close()
	p.exits(0, patience)
	s := p.lastStats()
	if s.Packets != rounds*batch || s.MessagesRejected != rounds*batch/2 || s.MessagesPublished != rounds*batch/2 ||
		s.MessagesDropped != 0 {
		t.Errorf("got %+v", s)
	}
	if lines := len(p.statistics()); lines < 5 || moving < 3 {
		t.Errorf("%d stats lines; %d scrapes under load", lines, moving)
	}
	all := broker.envelopes(t, "sip")
	for i, e := range all {
		if string(e.SIP) != testCall("INVITE", 2*i) {
			t.Fatalf("%d: out of order: %q", i, e.SIP)
		}
	}
}

// TestIdentityWithDrops captures live, so that the queue has to drop: the broker is away.
func TestIdentityWithDrops(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs NET_RAW")
	}
	listener, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.LocalAddr().String())
	p := launch(
		t,
		"BROKER=tcp://"+freeAddress(t),
		"TOPIC=sip",
		"INTERFACE=lo",
		"BPF_FILTER=udp dst port "+port,
		"QUEUE_MB=1",
		"BUFFER_MB=8",
		"STATS_INTERVAL=5ms",
	)
	p.untilLogged(`"msg":"stats"`)
	sender, err := net.Dial("udp", listener.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	const n = 4000
	for i := range n {
		sender.Write([]byte(testCall("INVITE", i)))
		if i%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	s := p.untilStats("captured", func(s statsLine) bool { return s.Messages["udp"]+s.PacketsDropped == n })
	if s.Messages["udp"] != s.Packets || s.QueueMessages+s.MessagesDropped != s.Packets || s.MessagesDropped == 0 ||
		s.QueueBytes > 1<<20 ||
		s.QueueBytes < 1<<20-2000 {
		t.Errorf("got %+v", s)
	}
	p.signal(syscall.SIGTERM)
	time.Sleep(300 * time.Millisecond)
	p.signal(syscall.SIGTERM)
	p.exits(0, 3*time.Second)
	if last := p.lastStats(); last.MessagesDropped != s.Packets || last.QueueMessages != 0 {
		t.Errorf("got %+v", last)
	}
}

// TestLogLevel: the stats are at level INFO.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	broker := newCollector(t)
	file := writeFile(t, "calls.pcap", captureFile(1, testCalls(2)...))
	for level, lines := range map[string]int{"debug": 1, "info": 1, "warn": 0, "error": 0} {
		p := prepareProgram(
			t,
			nil,
			broker.setting(),
			"TOPIC=sip",
			"PCAP_FILE="+file,
			"LOG_LEVEL="+level,
			"STATS_INTERVAL=0",
		).start()
		p.exits(0, patience)
		p.checkLogs()
		if got := len(p.statistics()); got != lines {
			t.Errorf("%s: %d stats lines, want %d: %s", level, got, lines, &p.stdout)
		}
	}
}

// TestFileNotAcknowledged: where a broker hangs up at a message of a file, the file isn't delivered. What
// was wrong with the file itself is told, too.
func TestFileNotAcknowledged(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			packets.ReadPacket(conn)
			packets.NewControlPacket(packets.Connack).Write(conn)
			packets.ReadPacket(conn)
			conn.Close()
		}
	}()
	text := captureFile(1, testCalls(2)...)
	p := prepareProgram(t, nil, "BROKER=tcp://"+l.Addr().String(), "TOPIC=sip",
		"PCAP_FILE="+writeFile(t, "cut.pcap", text[:len(text)-5])).start()
	p.exits(1, patience)
	const dropped = "publishing: 1 messages were dropped, the log says why\n"
	got := p.stderr.String()
	if !strings.HasPrefix(got, "reading ") || !strings.Contains(got, "truncated") || !strings.HasSuffix(got, "\n"+dropped) {
		t.Errorf("got %q", got)
	}
}

// TestCheckPrints compares -check, and the line with which the program starts, with the settings.
func TestCheckPrints(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "calls.pcap", captureFile(1, testCalls(1)...))
	broker := newCollector(t)
	environment := []string{broker.setting() + ",ssl://b.example", "TOPIC=sip", "PCAP_FILE=" + file, "USERNAME=u",
		"PASSWORD=geheim", "SIP_FILTER=(method invite)", "CLIENT_ID=c", "QUEUE_MB=5"}
	stdout, stderr := execute(t, 0, []string{"-check"}, environment...)
	want := []string{
		"VERSION: " + programVersion,
		"INTERFACE: ",
		"PCAP_FILE: " + file,
		"BPF_FILTER: SIP on port 5060, with fragments, on Ethernet also in VLAN tags (default)",
		"SIP_FILTER: (method invite)",
		"SNAPLEN: 262144",
		"PROMISCUOUS: true",
		"BUFFER_MB: 32",
		"BROKER: tcp://" + broker.Addr().String() + ",ssl://b.example:8883",
		"TOPIC: sip",
		"STATUS_TOPIC: ",
		"CLIENT_ID: c",
		"PASSWORD_FILE: ",
		"CA_FILE: ",
		"CERT_FILE: ",
		"KEY_FILE: ",
		"ALPN: ",
		"MAX_RATE: 0",
		"QUEUE_MB: 5",
		"METRICS_ADDR: ",
		"INCLUDE_ADDRESSES: false",
		"STATS_INTERVAL: 1m0s",
		"LOG_LEVEL: INFO",
		"configuration ok",
	}
	if stdout != strings.Join(want, "\n")+"\n" || stderr != "" {
		t.Errorf("-check prints %q and %q, want %q", stdout, stderr, want)
	}
	p := prepareProgram(t, nil, environment...).start()
	p.exits(0, patience)
	line, _, _ := strings.Cut(p.stdout.String(), "\n")
	start := map[string]any{}
	if err := json.Unmarshal([]byte(line), &start); err != nil || start["msg"] != "capturing" {
		t.Fatalf("it starts with %q", line)
	}
	for _, setting := range want[:len(want)-1] {
		name, value, _ := strings.Cut(setting, ": ")
		if got := fmt.Sprint(start[strings.ToLower(name)]); got != value {
			t.Errorf("the line at the start has %s %q, want %q", name, got, value)
		}
	}
	if strings.Contains(p.stdout.String(), "geheim") {
		t.Errorf("the password is in the log: %s", &p.stdout)
	}
}

// TestWarnings are of variables that are nearly ours.
func TestWarnings(t *testing.T) {
	t.Parallel()
	_, stderr := execute(t, 0, []string{"-check"}, "TOPIC=sip", "PCAP_FILE=-", "INTERFCE=eth0", "BROKERS=x", "TOPIK=x",
		"TERM=xterm", "HOME=/", "BROWSER=x", "PATH=/bin")
	want := "warning: INTERFCE is set, but isn't read; is INTERFACE meant?\n" +
		"warning: BROKERS is set, but isn't read; is BROKER meant?\n" +
		"warning: TOPIK is set, but isn't read; is TOPIC meant?\n"
	if stderr != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
	p := prepareProgram(t, []string{"-check"}, "TOPIC=sip", "INTERFACE=lo")
	asNobody(p)
	p.start().exits(0, patience)
	want = "warning: this user may not capture from a device (NET_RAW): operation not permitted\n"
	if got := p.stderr.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestExactProblems has problems whose whole text matters.
func TestExactProblems(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "p", []byte("x"))
	const devices = "…"
	eachOnce := regexp.MustCompile(`(each once of ).*`) // other tests make some and remove them
	for _, row := range []struct {
		environment []string
		want        string
	}{
		{
			environment: nil,
			want: `TOPIC: ""; want a topic without the wildcards + and #, at most 65535 bytes of text ` +
				"(sip-capture -help lists all settings)",
		},
		{
			environment: []string{"TOPIC=sip", "STATUS_TOPIC=sip"},
			want:        `STATUS_TOPIC: "sip"; want another topic than TOPIC, whose readers expect envelopes`,
		},
		{
			environment: []string{"TOPIC=sip", "INTERFACE=any,lo"},
			want:        `INTERFACE: "any,lo"; want any by itself, as it is all devices, or each once of ` + devices,
		},
		{
			environment: []string{"TOPIC=sip", "INTERFACE=lo,lo"},
			want:        `INTERFACE: "lo,lo"; want any by itself, as it is all devices, or each once of ` + devices,
		},
		{
			environment: []string{"TOPIC=sip", "USERNAME=u", "PASSWORD=geheim", "PASSWORD_FILE=" + file},
			want:        fmt.Sprintf("PASSWORD_FILE: %q; want only one of PASSWORD and PASSWORD_FILE", file),
		},
	} {
		lines := problems(t, row.environment...)
		for i := range lines {
			lines[i] = eachOnce.ReplaceAllString(lines[i], "${1}"+devices)
		}
		if len(lines) != 1 || lines[0] != row.want+"\n" {
			t.Errorf("got %q, want %q", lines, row.want)
		}
	}
	_, stderr := execute(t, 2, []string{"-check", "x"})
	want := `arguments: ["-check" "x"]; want none, or one of -check, -health, -version, -help; ` +
		"all else is set in the environment\n"
	if stderr != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
}

// TestSilence: a file without a frame that the filter lets through is worth a line.
func TestSilence(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "calls.pcap", captureFile(1, testCalls(1)...))
	for filter, want := range map[string]int{"port 5060": 0, "port 5080": 1} {
		broker := newCollector(t)
		p := prepareProgram(t, nil, broker.setting(), "TOPIC=sip", "PCAP_FILE="+file, "BPF_FILTER="+filter).start()
		p.exits(0, patience)
		pattern := `"level":"WARN","msg":"no frame has passed BPF_FILTER so far: is SIP on another port\?","bpf_filter":"` +
			filter + `"`
		if got := len(regexp.MustCompile(pattern).FindAllString(p.stdout.String(), -1)); got != want {
			t.Errorf("%s: %d warnings, want %d: %s", filter, got, want, &p.stdout)
		}
	}
}

// TestSlowClients: who sends a byte now and then, or keeps a connection without asking again, is cut off; scrapes go
// on.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	broker, address := newCollector(t), freeAddress(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "METRICS_ADDR="+address)
	p.untilLogged("capturing")
	begin := time.Now()
	ends := make(chan string, 4)
	for _, row := range []struct {
		name, first, slowly string
	}{
		{
			"header",
			"GET /metrics HTTP/1.1\r\nX: ",
			"y",
		},
		{
			"body",
			"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
			"y",
		},
		{
			"between",
			"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
			"",
		},
		{
			"nothing",
			"",
			"",
		},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(begin.Add(patience))
		fmt.Fprint(conn, row.first)
		go func() {
			ticks := time.NewTicker(time.Second)
			defer ticks.Stop()
			for range ticks.C {
				if _, err := fmt.Fprint(conn, row.slowly); err != nil {
					return
				}
			}
		}()
		go func() {
			_, err := io.Copy(io.Discard, conn)
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				ends <- row.name + ": still connected"
				return
			}
			ends <- ""
		}()
	}
	for range 4 {
		for ended := false; !ended; {
			select {
			case failure := <-ends:
				ended = true
				if failure != "" {
					t.Error(failure)
				}
			case <-time.After(500 * time.Millisecond):
				scrape(t, address)
			}
		}
	}
	if took := time.Since(begin); took < 4*time.Second || took > 8*time.Second {
		t.Errorf("cut off after %v, want 5 s", took)
	}
}

// TestConnectionLimit: while 64 connections are open, another one is closed at once.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	broker, address := newCollector(t), freeAddress(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "METRICS_ADDR="+address)
	p.untilLogged("capturing")
	ends := make(chan time.Duration, 70)
	begin := time.Now()
	for range 70 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(begin.Add(patience))
		go func() {
			io.Copy(io.Discard, conn)
			ends <- time.Since(begin)
		}()
	}
	early := 0
	for range 70 {
		if <-ends < 4*time.Second { // the others have 5 s for a request
			early++
		}
	}
	if early != 6 {
		t.Errorf("%d of 70 connections were closed early, want 6", early)
	}
}

// TestMappedAddresses: IPv4 addresses mapped into IPv6 are those of IPv4 to the filter and in the envelope.
func TestMappedAddresses(t *testing.T) {
	t.Parallel()
	ip := ipv6Header("::ffff:192.0.2.77", "::ffff:198.51.100.88")
	frame := build(ethernetHeader(), ip, udpHeader(5060, 5061), data(testCall("INVITE", 0)))
	file := writeFile(t, "mapped.pcap", captureFile(1, captured{frame: frame}))
	for filter, want := range map[string]int{
		"(src 192.0.2.0/24)":                           1,
		"(dst 198.51.100.88)":                          1,
		"(dst ::ffff:198.51.100.88)":                   1,
		"(all (src 192.0.2.77) (dst 198.51.100.0/24))": 1,
		"(dst 192.0.2.77)":                             0,
		"(src 198.51.100.88)":                          0,
		"(any (src ::/0) (dst ::/0))":                  0, // all of IPv6
	} {
		broker := newCollector(t)
		settings := []string{broker.setting(), "TOPIC=sip", "PCAP_FILE=" + file, "INCLUDE_ADDRESSES=true"}
		prepareProgram(t, nil, append(settings, "SIP_FILTER="+filter)...).start().exits(0, patience)
		all := broker.envelopes(t, "sip")
		if len(all) != want {
			t.Errorf("%s: %d messages, want %d", filter, len(all), want)
		}
		for _, e := range all {
			if e.Src != "192.0.2.77:5060" || e.Dst != "198.51.100.88:5061" {
				t.Errorf("%s: from %s to %s", filter, e.Src, e.Dst)
			}
		}
	}
}

// TestFirstLines: the log begins with the settings in effect, and then says what looks wrong with them.
func TestFirstLines(t *testing.T) {
	t.Parallel()
	broker := newCollector(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "BROKERS=x", "SNAPLEN=1500", "CLIENT_ID=me")
	p.untilLogged("isn't read")
	p.stdin.Write(captureFile(1, testCalls(1)...))
	p.stdin.Close()
	p.exits(0, patience)
	lines := slices.DeleteFunc(slices.Collect(strings.Lines(p.stdout.String())), func(line string) bool {
		return strings.Contains(line, `"connected`) // which may come at any time
	})
	if len(lines) < 2 {
		t.Fatalf("got %q", lines)
	}
	for i, want := range []string{
		`"level":"INFO","msg":"capturing","version":"` + programVersion + `","interface":"","pcap_file":"-",` +
			`"bpf_filter":"SIP on port 5060, with fragments, on Ethernet also in VLAN tags (default)","sip_filter":"",` +
			`"snaplen":1500,`,
		`"level":"WARN","msg":"BROKERS is set, but isn't read; is BROKER meant?"}`,
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("got %s, want %s", lines[i], want)
		}
	}
}

// TestFirstMinute: a minute without a frame is worth one line, a minute with one is not. It changes what is a minute,
// and the log, so no other test runs beside it.
func TestFirstMinute(t *testing.T) {
	usual, minute := slog.Default(), firstMinute
	defer func() {
		slog.SetDefault(usual)
		firstMinute = minute
	}()
	if minute != time.Minute {
		t.Errorf("the first minute has %v", minute)
	}
	firstMinute = 30 * time.Millisecond
	for frames, want := range []int{1, 0} {
		var log logBuffer
		slog.SetDefault(slog.New(slog.NewJSONHandler(&log, nil)))
		c := &config{StatsInterval: 10 * time.Millisecond, BPFFilter: "port 5080"}
		s := &sensor{config: c, publisher: newPublisher(c.delivery(), slog.Default())}
		s.packets.Store(uint64(frames))
		ended, done := make(chan struct{}), make(chan struct{})
		go func() {
			s.report(ended)
			close(done)
		}()
		time.Sleep(200 * time.Millisecond)
		close(ended)
		within(t, "the end of the reports", done)
		text := `"level":"WARN","msg":"no frame has passed BPF_FILTER so far: is SIP on another port?",` +
			`"bpf_filter":"port 5080"`
		if got := lines(log.String(), text); got != want {
			t.Errorf("%d frames: %d warnings, want %d: %s", frames, got, want, log.String())
		}
		if got := lines(log.String(), `"msg":"stats"`); got < 5 {
			t.Errorf("%d lines with the counters in 200 ms, want one each 10 ms", got)
		}
	}
}

// TestHealthCommand asks a sensor that runs, one that doesn't, and no one.
func TestHealthCommand(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	if _, stderr := execute(t, 1, []string{"-health"}, "METRICS_ADDR="+
		address); !strings.HasPrefix(stderr, "asking for health: ") {
		t.Errorf("nobody listens: %q", stderr)
	}
	broker := newCollector(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "METRICS_ADDR="+address)
	p.untilLogged("capturing")
	if stdout, stderr := execute(
		t,
		0,
		[]string{"-health"},
		"METRICS_ADDR="+address,
		"http_proxy=http://127.0.0.1:1",
	); stdout+stderr != "" {
		t.Errorf("healthy: %q%q", stdout, stderr)
	}
	_, stderr := execute(t, 2, []string{"-health"})
	if want := "METRICS_ADDR: not set; -health asks /healthz there\n"; stderr != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
	sick := &http.Server{Handler: http.NotFoundHandler()}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go sick.Serve(listener)
	defer sick.Close()
	_, stderr = execute(t, 1, []string{"-health"}, "METRICS_ADDR="+listener.Addr().String())
	if want := "asking for health: 404 Not Found\n"; stderr != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
}

// TestLogReaderStalls fills the pipe that is standard output, which nobody reads: messages are delivered, the program
// ends when it is told to, and when the reader is back it learns how many lines it lost.
func TestLogReaderStalls(t *testing.T) {
	t.Parallel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	broker, address := newCollector(t), freeAddress(t)
	p := prepareProgram(
		t,
		nil,
		broker.setting(),
		"TOPIC=sip",
		"PCAP_FILE=-",
		"STATS_INTERVAL=1ms",
		"METRICS_ADDR="+address,
	)
	p.cmd.Stdout = writer
	p.stdin, _ = p.cmd.StdinPipe()
	p.start()
	writer.Close()
	p.stdin.Write(captureFile(1))
	waitFor(t, "connected", func() bool {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		return len(broker.connects) == 1
	})
	time.Sleep(3 * time.Second) // 64 KiB of pipe and 1,000 lines that wait are full by then
	p.stdin.Write(captureRecords(0, testCalls(50)...))
	waitFor(t, "published", func() bool { return scrape(t, address)["messages_published_total"] == 50 })
	text := make([]byte, 256<<10)
	seen := ""
	for end := time.Now().Add(patience); !strings.Contains(seen, "lines of this log are lost"); {
		reader.SetReadDeadline(end)
		n, err := reader.Read(text)
		if err != nil {
			t.Fatalf("never said that lines are lost: %v", err)
		}
		seen += string(text[:n])
	}
	if !regexp.MustCompile(
		`"level":"WARN","msg":"lines of this log are lost: its reader stalled","lines":[1-9]`,
	).MatchString(seen) {
		t.Errorf("not said how many: %.300s", seen)
	}
	time.Sleep(time.Second) // and nobody reads again
	p.signal(syscall.SIGTERM)
	p.exits(0, 5*time.Second)
}

// TestLogReaderGone: standard output is closed at the other end, which would be the end of a program by SIGPIPE.
func TestLogReaderGone(t *testing.T) {
	t.Parallel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	broker := newCollector(t)
	p := prepareProgram(t, nil, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "STATS_INTERVAL=10ms")
	p.cmd.Stdout = writer
	p.stdin, _ = p.cmd.StdinPipe()
	p.start()
	writer.Close()
	p.stdin.Write(captureFile(1, testCalls(7)...))
	time.Sleep(300 * time.Millisecond)
	p.stdin.Close()
	p.exits(0, patience)
	if got := broker.envelopes(t, "sip"); len(got) != 7 {
		t.Errorf("%d envelopes, want 7", len(got))
	}
}

// TestHostileScrapers opens many connections that send headers without an end: what they cost is bounded.
func TestHostileScrapers(t *testing.T) {
	t.Parallel()
	if raceDetector() {
		t.Skip("the race detector multiplies memory")
	}
	broker, address := newCollector(t), freeAddress(t)
	p := launch(t, broker.setting(), "TOPIC=sip", "PCAP_FILE=-", "METRICS_ADDR="+address)
	p.untilLogged("capturing")
	before := resident(t, p.cmd.Process.Pid)
	header := append([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("x"), 1<<20)...)
	for range 300 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		defer conn.Close()
		conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		conn.Write(header)
	}
	if grown := resident(t, p.cmd.Process.Pid) - before; grown > 32<<20 {
		t.Errorf("300 connections cost %d MB", grown>>20)
	}
	waitFor(t, "served again", func() bool {
		answer, err := http.Get("http://" + address + "/healthz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// resident is the memory of a process, in bytes.
func resident(t *testing.T, pid int) (bytes int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "VmRSS:")
	fmt.Sscan(text, &bytes)
	return bytes << 10
}

// waitFor polls until something has happened.
func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never %s", what)
		}
	}
}
