package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// world is what most tests need: a network with a broker, someone who answers calls, a subscriber, and a sensor that
// sees the callee's traffic.
type world struct {
	network string
	broker  broker
	callee  testcontainers.Container
	sensor  testcontainers.Container
	topic   *subscription
}

// newWorld starts one. env adds to and overrides the sensor's settings.
func newWorld(t *testing.T, transport, note string, env map[string]string) world {
	t.Helper()
	w := world{network: newNetwork(t)}
	w.broker = startBroker(t, w.network)
	w.topic = subscribe(t, w.broker.address, "sip")
	w.callee = callee(t, w.network, transport, note)
	w.sensor = startSensor(t, sameNetworkAs(w.callee), w.settings(env))
	return w
}

func (w world) settings(env map[string]string) map[string]string {
	settings := map[string]string{"INTERFACE": "eth0", "BROKER": w.broker.url, "TOPIC": "sip"}
	for name, value := range env {
		settings[name] = value
	}
	return settings
}

// sentBy returns what both SIPps say that they sent.
func sentBy(t *testing.T, callers ...testcontainers.Container) (messages [][]byte) {
	t.Helper()
	for _, c := range callers {
		for _, m := range trace(t, c) {
			if m.sent {
				messages = append(messages, m.raw)
			}
		}
	}
	return messages
}

// startLine returns the first line of a message.
func startLine(raw []byte) string {
	line, _, _ := bytes.Cut(raw, []byte("\r\n"))
	return string(line)
}

// sameMessages asserts that two sets of messages are equal, byte for byte, duplicates counted, in any order.
func sameMessages(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	count := map[string]int{}
	for _, m := range want {
		count[string(m)]++
	}
	for _, m := range got {
		count[string(m)]--
	}
	for m, n := range count {
		if n > 0 {
			t.Errorf("%s: %d × missing: %s", what, n, startLine([]byte(m)))
		}
		if n < 0 {
			t.Errorf("%s: %d × too many: %q", what, -n, m)
		}
	}
}

// sips returns the decoded messages of envelopes.
func sips(envelopes []envelope) (messages [][]byte) {
	for _, e := range envelopes {
		messages = append(messages, e.SIP)
	}
	return messages
}

// The keys in their order, and nothing else.
var envelopeForm = regexp.MustCompile(`^\{"id":"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",` +
	`"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z","index":\d+,"version":"` + regexp.QuoteMeta(version) + `",` +
	`"signature":"[0-9a-f]{64}",("transport":"(udp|tcp|sctp|ws)","src":"[0-9a-f.:\[\]]+","dst":"[0-9a-f.:\[\]]+",)?"sip":"[A-Za-z0-9+/]+=*"\}$`)

// checkEnvelopes asserts every promise that is made of an envelope, for messages captured since a time, and
// decodes them.
func checkEnvelopes(t *testing.T, payloads [][]byte, since time.Time) (envelopes []envelope) {
	t.Helper()
	ids := map[string]bool{}
	for _, payload := range payloads {
		if !envelopeForm.Match(payload) {
			t.Fatalf("not the form of an envelope: %q", payload)
		}
		e := decode(t, payload)
		hash := sha256.Sum256(e.SIP)
		if e.Signature != hex.EncodeToString(hash[:]) {
			t.Errorf("signature %s is not the SHA-256 of the message", e.Signature)
		}
		if ids[e.ID] {
			t.Errorf("id %s is there twice", e.ID)
		}
		ids[e.ID] = true
		if e.Time.Before(since.Add(-time.Second)) || e.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("time %s is not between %s and now", e.Time, since)
		}
		if (e.Src == "") != (e.Dst == "") || (e.Src == "") != (e.Transport == "") {
			t.Errorf("addresses are there in part: %s", payload)
		}
		envelopes = append(envelopes, e)
	}
	return envelopes
}

// checkLogs asserts that the log is JSON lines without anything of these messages, nor of any other.
func checkLogs(t *testing.T, c testcontainers.Container, messages [][]byte) {
	t.Helper()
	text := logs(t, c)
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Errorf("log line %q is not JSON: %v", line, err)
		}
		for _, field := range []string{"time", "level", "msg"} {
			if _, there := fields[field]; !there {
				t.Errorf("log line %q has no %q", line, field)
			}
		}
	}
	forbidden := map[string]bool{
		"SIP/2.0": true,
		"sip:":    true,
		"INVITE":  true,
		"Call-ID": true,
		"alice":   true,
		"PCMA":    true,
	}
	for _, m := range messages {
		forbidden[base64.StdEncoding.EncodeToString(m)[:24]] = true
		for _, address := range regexp.MustCompile(`@\[?([0-9a-f]+[.:][0-9a-f.:]*[0-9a-f])`).FindAllSubmatch(m, -1) {
			forbidden[strings.TrimSuffix(string(address[1]), ":5060")] = true
		}
		if id := regexp.MustCompile(`Call-ID: (\S+)`).FindSubmatch(m); id != nil {
			forbidden[string(id[1])] = true
		}
	}
	for word := range forbidden {
		if strings.Contains(text, word) {
			t.Errorf("the log holds %q:\n%s", word, text)
		}
	}
}

// TestCalls: what SIPp says it sent is what arrives, byte for byte, and every number and promise around it holds.
func TestCalls(t *testing.T) {
	const calls = 100
	begin := time.Now()
	w := newWorld(
		t,
		"u1",
		"-",
		map[string]string{"METRICS_ADDR": ":9464", "LOG_LEVEL": "debug", "CLIENT_ID": "sensor-1"},
	)
	caller := makeCalls(t, w.network, "u1", "-", calls, 50)

	want := sentBy(t, caller, w.callee)
	kinds := map[string]int{}
	for _, m := range want {
		kind, _, _ := strings.Cut(startLine(m), " sip:")
		kinds[kind]++
	}
	for kind, n := range map[string]int{
		"INVITE":              calls,
		"SIP/2.0 180 Ringing": calls,
		"ACK":                 calls,
		"BYE":                 calls,
		"SIP/2.0 200 OK":      2 * calls,
	} {
		if kinds[kind] < n { // more where something was sent again
			t.Errorf("SIPp sent %d × %s, want %d", kinds[kind], kind, n)
		}
	}

	envelopes := checkEnvelopes(t, w.topic.exactly(t, len(want)), begin)
	sameMessages(t, "sent by SIPp", sips(envelopes), want)
	var seen [][]byte
	for _, m := range trace(t, w.callee) {
		seen = append(seen, m.raw)
	}
	sameMessages(t, "sent or received by the callee", sips(envelopes), seen)
	for i, e := range envelopes {
		if e.Src != "" {
			t.Fatalf("an address without INCLUDE_ADDRESSES: %+v", e)
		}
		if i > 0 && e.Time.Before(envelopes[i-1].Time) {
			t.Errorf("envelope %d is older than the one before it", i)
		}
	}

	// The counters of the log and of /metrics are the same.
	address, err := w.callee.ContainerIP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	address = net.JoinHostPort(address, "9464")
	eventually(
		t,
		5*time.Second,
		"all acknowledged",
		func() bool { return stats(t, w.sensor).Published == uint64(len(want)) },
	)
	scraped := metrics(t, address)
	last := stopSensor(t, w.sensor)
	for name, value := range map[string]uint64{
		`sip_capture_messages_total{transport="udp"}`: last.Messages["udp"],
		`sip_capture_messages_total{transport="tcp"}`: last.Messages["tcp"],
		`sip_capture_messages_published_total`:        last.Published,
		`sip_capture_messages_rejected_total`:         last.Rejected,
		`sip_capture_messages_dropped_total`:          last.Dropped,
		`sip_capture_packets_dropped_total`:           last.PacketsDropped,
		`sip_capture_queue_messages`:                  last.QueueMessages,
	} {
		got, there := scraped[name]
		if !there || got != float64(value) {
			t.Errorf("metrics: %s is %v (there: %t), stats say %d", name, got, there, value)
		}
	}
	if scraped["sip_capture_connected"] != 1 {
		t.Errorf("metrics: connected is %v", scraped["sip_capture_connected"])
	}
	n := uint64(len(want))
	if last.Messages["udp"] != n || sum(last.Messages) != n || last.Published != n || last.Rejected != 0 ||
		last.Dropped != 0 ||
		last.QueueMessages != 0 || last.QueueBytes != 0 || sum(last.Discarded) != 0 || last.PacketsDropped != 0 ||
		last.PacketsInvalid != 0 ||
		last.Packets < n {
		t.Errorf("counters after %d messages: %+v", n, last)
	}
	allStats(t, w.sensor)
	checkLogs(t, w.sensor, want)
}

// TestHealth: /healthz says that all is well.
func TestHealth(t *testing.T) {
	w := newWorld(t, "u1", "-", map[string]string{"METRICS_ADDR": ":9464"})
	address, err := w.callee.ContainerIP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Get("http://" + net.JoinHostPort(address, "9464") + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
		t.Errorf("/healthz: %s: %s", response.Status, body)
	}
}

// TestFilter: only what the filter selects is published; the rest is counted as rejected.
func TestFilter(t *testing.T) {
	request := func(m []byte, method string) bool { return strings.HasPrefix(startLine(m), method+" ") }
	tests := []struct {
		filter  string
		selects func(m []byte) bool
	}{
		{`(all (method invite) initial)`, func(m []byte) bool { return request(m, "INVITE") }},
		{`(all response (status 180 183))`, func(m []byte) bool { return startLine(m) == "SIP/2.0 180 Ringing" }},
		{`(any (all request (methods BYE "ACK")) (header "call-id" "^7-"))`, func(m []byte) bool {
			return request(m, "BYE") || request(m, "ACK") || bytes.Contains(m, []byte("\r\nCall-ID: 7-"))
		}},
		{`(not (any request response))`, func(m []byte) bool { return false }},
	}
	for _, test := range tests {
		t.Run(test.filter, func(t *testing.T) {
			begin := time.Now()
			w := newWorld(t, "u1", "-", map[string]string{"SIP_FILTER": test.filter})
			all := sentBy(t, makeCalls(t, w.network, "u1", "-", 20, 40), w.callee)
			var want [][]byte
			for _, m := range all {
				if test.selects(m) {
					want = append(want, m)
				}
			}
			eventually(
				t,
				5*time.Second,
				"all seen",
				func() bool { return sum(stats(t, w.sensor).Messages) == uint64(len(all)) },
			)
			last := stopSensor(t, w.sensor)
			sameMessages(t, test.filter, sips(checkEnvelopes(t, w.topic.exactly(t, len(want)), begin)), want)
			if last.Published != uint64(len(want)) || last.Rejected != uint64(len(all)-len(want)) {
				t.Errorf("%d of %d selected, but the counters are %+v", len(want), len(all), last)
			}
		})
	}
}

// TestTCP: the same over TCP, where a message is not a packet.
func TestTCP(t *testing.T) {
	begin := time.Now()
	// Bodies of 4 KB, so that a message is several segments.
	note := strings.Repeat("tcp ", 1000)
	w := newWorld(t, "t1", note, map[string]string{"INCLUDE_ADDRESSES": "true"})
	want := sentBy(t, makeCalls(t, w.network, "t1", note, 100, 50), w.callee)
	envelopes := checkEnvelopes(t, w.topic.exactly(t, len(want)), begin)
	sameMessages(t, "over TCP", sips(envelopes), want)
	for _, e := range envelopes {
		if e.Transport != "tcp" {
			t.Errorf("transport %q, want tcp", e.Transport)
		}
	}
	last := stopSensor(t, w.sensor)
	if last.Messages["tcp"] != uint64(len(want)) || sum(last.Discarded) != 0 || last.PacketsInvalid != 0 {
		t.Errorf("counters after %d messages over TCP: %+v", len(want), last)
	}
	checkLogs(t, w.sensor, want)
}

// TestFragments: UDP with bodies of 4 KB, on a bridge with an MTU of 1500.
func TestFragments(t *testing.T) {
	begin := time.Now()
	note := strings.Repeat("big ", 1000)
	w := newWorld(t, "u1", note, nil)
	want := sentBy(t, makeCalls(t, w.network, "u1", note, 50, 25), w.callee)
	// The INVITE and its 200: SIPp's host must have had to put together the former and to cut the latter.
	snmp := execute(t, w.callee, "cat", "/proc/net/snmp")
	if counter(t, snmp, "ReasmOKs") < 50 || counter(t, snmp, "FragOKs") < 50 {
		t.Fatalf("nothing was fragmented:\n%s", snmp)
	}
	sameMessages(t, "in fragments", sips(checkEnvelopes(t, w.topic.exactly(t, len(want)), begin)), want)
	if last := stopSensor(t, w.sensor); sum(last.Discarded) != 0 || last.PacketsInvalid != 0 {
		t.Errorf("counters: %+v", last)
	}
	checkLogs(t, w.sensor, want)
}

// counter reads one of the counters of protocol IP in /proc/net/snmp: a line of names, and a line of values.
func counter(t *testing.T, snmp, name string) int {
	t.Helper()
	var names []string
	for line := range strings.Lines(snmp) {
		if !strings.HasPrefix(line, "Ip:") {
			continue
		}
		if names == nil {
			names = strings.Fields(line)
			continue
		}
		for i, value := range strings.Fields(line) {
			if names[i] == name {
				var n int
				fmt.Sscan(value, &n)
				return n
			}
		}
	}
	t.Fatalf("no %s in:\n%s", name, snmp)
	return 0
}

// TestIPv6: over IPv6, with small bodies and with fragmented ones, and with the addresses in the envelope.
func TestIPv6(t *testing.T) {
	for name, note := range map[string]string{"small": "-", "fragments": strings.Repeat("six ", 1000)} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			networkName := newNetwork(t, netip.MustParsePrefix("fd53:4950:5060::/64"))
			broker := startBroker(t, networkName)
			topic := subscribe(t, broker.address, "sip")
			callee := sippAt(t, networkName, "fd53:4950:5060::a", "callee", []string{
				"-sf",
				"/scenarios/callee.xml",
				"-key",
				"note",
				note,
			},
				wait.ForExec([]string{"grep", "-q", ":13C4", "/proc/net/udp6"}))
			sensor := startSensor(t, sameNetworkAs(callee), map[string]string{
				"INTERFACE": "eth0", "BROKER": broker.url, "TOPIC": "sip", "INCLUDE_ADDRESSES": "true"})
			caller := makeCallsFrom(t, networkName, "fd53:4950:5060::b", "[fd53:4950:5060::a]:5060", "u1", note, 50, 25)
			want := sentBy(t, caller, callee)
			envelopes := checkEnvelopes(t, topic.exactly(t, len(want)), begin)
			sameMessages(t, "over IPv6", sips(envelopes), want)
			for _, e := range envelopes {
				src, dst := "[fd53:4950:5060::b]:5060", "[fd53:4950:5060::a]:5060"
				if strings.HasPrefix(startLine(e.SIP), "SIP/2.0 ") {
					src, dst = dst, src
				}
				if e.Transport != "udp" || e.Src != src || e.Dst != dst {
					t.Errorf(
						"%s: %s from %s to %s, want udp from %s to %s",
						startLine(e.SIP),
						e.Transport,
						e.Src,
						e.Dst,
						src,
						dst,
					)
				}
			}
			if last := stopSensor(t, sensor); sum(last.Discarded) != 0 || last.PacketsInvalid != 0 {
				t.Errorf("counters: %+v", last)
			}
			checkLogs(t, sensor, want)
		})
	}
}

// TestAnyDevice: INTERFACE=any (the default) has another link type.
func TestAnyDevice(t *testing.T) {
	begin := time.Now()
	w := newWorld(t, "u1", "-", map[string]string{"INTERFACE": "any"})
	want := sentBy(t, makeCalls(t, w.network, "u1", "-", 20, 40), w.callee)
	sameMessages(t, "on any", sips(checkEnvelopes(t, w.topic.exactly(t, len(want)), begin)), want)
	stopSensor(t, w.sensor)
}

// TestHostNetwork: the way that the README shows first, on the network of the host.
func TestHostNetwork(t *testing.T) {
	begin := time.Now()
	broker := startBroker(t, newNetwork(t))
	topic := subscribe(t, broker.address, "sip")
	sensor := startSensor(t, "host", map[string]string{"INTERFACE": "lo", "BROKER": "tcp://" +
		broker.address, "TOPIC": "sip",
		"BPF_FILTER": "udp port 15060", "INCLUDE_ADDRESSES": "true"})
	// Someone has to listen: the kernel's answer to the first would keep the second from being sent.
	receiver, err := net.ListenPacket("udp4", "127.0.0.1:15060")
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	conn, err := net.Dial("udp4", "127.0.0.1:15060")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var want [][]byte
	for i := range 10 {
		m := fmt.Appendf(nil, "OPTIONS sip:ping@127.0.0.1 SIP/2.0\r\nCall-ID: %d\r\n\r\n", i)
		if _, err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
		want = append(want, m)
	}
	envelopes := checkEnvelopes(t, topic.exactly(t, len(want)), begin)
	sameMessages(t, "on the host", sips(envelopes), want)
	for _, e := range envelopes {
		if e.Src != conn.LocalAddr().String() || e.Dst != "127.0.0.1:15060" {
			t.Errorf("from %s to %s, want from %s to 127.0.0.1:15060", e.Src, e.Dst, conn.LocalAddr())
		}
	}
	stopSensor(t, sensor)
}

// TestCaptureFile: 10,000 messages that tcpdump has written to a file give 10,000 envelopes in its order, with what
// tshark extracts from it; the same file again gives the same ids.
func TestCaptureFile(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Fatal("tshark is needed (integration/test.sh installs it)")
	}
	const messages = 10_000
	networkName := newNetwork(t)
	broker := startBroker(t, networkName)
	callee := callee(t, networkName, "u1", "-")
	tcpdump := startContainer(t, sippImage, onNetwork(sameNetworkAs(callee)),
		testcontainers.WithConfigModifier(func(c *container.Config) { c.User = "0" }),
		testcontainers.WithEntrypoint(
			"tcpdump",
			"-i",
			"eth0",
			"-B",
			"16384",
			"-w",
			"/calls.pcap",
			"-c",
			fmt.Sprint(messages),
			"udp port 5060",
		),
		testcontainers.WithWaitStrategy(wait.ForLog("listening on")))
	makeCalls(t, networkName, "u1", "-", (messages+5)/6, 300)
	eventually(t, 10*time.Second, "tcpdump has all", func() bool { return !running(t, tcpdump) })

	directory := t.TempDir()
	file := filepath.Join(directory, "calls.pcap")
	if err := os.WriteFile(file, fileFrom(t, tcpdump, "/calls.pcap"), 0o644); err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("tshark", "-r", file, "-T", "fields", "-e", "udp.payload").Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	var want [][]byte
	for line := range strings.Lines(string(output)) {
		m, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("tshark: %v", err)
		}
		want = append(want, m)
	}
	if len(want) != messages {
		t.Fatalf("the file has %d messages, want %d", len(want), messages)
	}

	var ids [2][]string
	for round := range ids {
		topic := fmt.Sprintf("file/%d", round)
		subscriber := subscribe(t, broker.address, topic)
		start := time.Now()
		sensor := startContainer(t, sensorImage, append(sensorRequest(networkName, map[string]string{
			"PCAP_FILE": "/calls.pcap", "BROKER": broker.url, "TOPIC": topic, "QUEUE_MB": "1"}),
			testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
				h.Binds = []string{file + ":/calls.pcap:ro"}
			}),
			testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(time.Minute)))...)
		if code := exitCode(t, sensor); code != 0 {
			t.Fatalf("exit code %d, want 0; log:\n%s", code, logs(t, sensor))
		}
		t.Logf("published in %.1f s, the container's start included", time.Since(start).Seconds())
		last := stats(t, sensor)
		if last.Published != messages || last.Dropped != 0 || last.Messages["udp"] != messages ||
			last.Packets != messages {
			t.Errorf("counters: %+v", last)
		}
		for i, e := range checkEnvelopes(t, subscriber.exactly(t, messages), start.Add(-5*time.Minute)) {
			if !bytes.Equal(e.SIP, want[i]) {
				t.Fatalf("message %d is %q, tshark says %q", i, e.SIP, want[i])
			}
			ids[round] = append(ids[round], e.ID)
		}
		checkLogs(t, sensor, want[:100])
	}
	if strings.Join(ids[0], " ") != strings.Join(ids[1], " ") {
		t.Error("the same file gave other ids")
	}
}

// running tells whether a container runs, as Docker says at this moment.
func running(t *testing.T, c testcontainers.Container) bool {
	t.Helper()
	state, err := c.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state.Running
}

// TestProcess: who the process is, what it may do, and what it has open.
func TestProcess(t *testing.T) {
	networkName := newNetwork(t)
	broker := startBroker(t, networkName)
	sensor := startSensor(t, networkName, map[string]string{"INTERFACE": "eth0", "BROKER": broker.url, "TOPIC": "sip"})

	// A look from outside, from a container that shares its processes and its network and may trace.
	observer := startContainer(t, sippImage, onNetwork(sameNetworkAs(sensor)),
		testcontainers.WithEntrypoint("sleep", "infinity"),
		testcontainers.WithConfigModifier(func(c *container.Config) { c.User = "0" }),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.PidMode = container.PidMode(sameNetworkAs(sensor))
			h.CapAdd = []string{"SYS_PTRACE"}
		}))
	const netRaw = "0000000000002000" // bit 13, capabilities(7)
	status := execute(t, observer, "cat", "/proc/1/status")
	for field, want := range map[string]string{
		"Name": "sip-capture", "Uid": "65532 65532 65532 65532", "Gid": "65532 65532 65532 65532",
		"CapInh": "0000000000000000", "CapPrm": netRaw,
		"CapEff": netRaw, "CapBnd": netRaw, "CapAmb": "0000000000000000",
	} {
		value := regexp.MustCompile(`(?m)^` + field + `:(.*)$`).FindStringSubmatch(status)
		// Docker before 20.10.14 put the capabilities into the inheritable set too, where they do nothing for
		// this program.
		if field == "CapInh" && value != nil && strings.TrimSpace(value[1]) == netRaw {
			continue
		}
		if value == nil || strings.Join(strings.Fields(value[1]), " ") != want {
			t.Errorf("%s is %q, want %q", field, value, want)
		}
	}

	// Of its sockets none listens; the one TCP connection is to the broker. Nothing else of it is open for writing.
	inodes := map[string]bool{}
	for _, target := range strings.Fields(execute(t, observer, "sh", "-c", "readlink /proc/1/fd/*")) {
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		switch {
		case isSocket:
			inodes[strings.TrimSuffix(inode, "]")] = true
		case strings.HasPrefix(target, "pipe:"), strings.HasPrefix(target, "anon_inode:"), target == "/dev/null":
		case strings.HasPrefix(target, "/sys/fs/cgroup/"): // the Go runtime reads its share of the processors there
		default:
			t.Errorf("the sensor has %s open", target)
		}
	}
	connections := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		for line := range strings.Lines(execute(t, observer, "cat", "/proc/net/"+table)) {
			// sl local_address rem_address st queues timer retransmits uid timeout inode: proc(5)
			fields := strings.Fields(line)
			if len(fields) < 10 || !inodes[fields[9]] {
				continue // not a socket of the sensor: Docker's own name server lives here too
			}
			const established = "01"
			if !strings.HasPrefix(table, "tcp") || fields[3] != established || !strings.HasSuffix(fields[2], ":075B") {
				t.Errorf("the sensor has a socket in %s: %s", table, line)
			}
			connections++
		}
	}
	if connections != 1 {
		t.Errorf("the sensor has %d connections, want 1", connections)
	}
	stopSensor(t, sensor)
}

// TestNoNetRaw: without the capability the kernel refuses to start a program that has it as a file capability.
func TestNoNetRaw(t *testing.T) {
	c, err := testcontainers.Run(t.Context(), sensorImage,
		append(sensorRequest(newNetwork(t), map[string]string{"TOPIC": "sip"}),
			testcontainers.WithHostConfigModifier(func(h *container.HostConfig) { h.CapAdd = nil }),
			testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(20*time.Second)), labelled)...)
	testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0))
	// Depending on its version, Docker says so itself or the container's log does.
	text := logs(t, c)
	if err != nil {
		text += err.Error()
	} else if exitCode(t, c) == 0 {
		t.Error("exit code 0")
	}
	if !strings.Contains(text, "operation not permitted") {
		t.Errorf("without NET_RAW: %s", text)
	}
}

// TestNoNewPrivileges voids file capabilities: the message says what to do, and it works.
func TestNoNewPrivileges(t *testing.T) {
	networkName := newNetwork(t)
	broker := startBroker(t, networkName)
	settings := map[string]string{"INTERFACE": "eth0", "BROKER": broker.url, "TOPIC": "sip"}
	noNewPrivileges := testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
		h.SecurityOpt = []string{"no-new-privileges"}
	})
	t.Run("as nonroot", func(t *testing.T) {
		sensor := startContainer(t, sensorImage, append(sensorRequest(networkName, settings, noNewPrivileges),
			testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(20*time.Second)))...)
		if text := logs(t, sensor); exitCode(t, sensor) != 1 || !strings.Contains(text, "NET_RAW") {
			t.Errorf("exit code %d, log:\n%s", exitCode(t, sensor), text)
		}
	})
	t.Run("as user 0", func(t *testing.T) {
		sensor := startSensor(t, networkName, settings, noNewPrivileges,
			testcontainers.WithConfigModifier(func(c *container.Config) { c.User = "0" }))
		stopSensor(t, sensor)
	})
}

// TestImage: what is in the image, and what is written on it.
func TestImage(t *testing.T) {
	image, err := docker.ImageInspect(t.Context(), sensorImage)
	if err != nil {
		t.Fatal(err)
	}
	if image.Config.User != "65532:65532" {
		t.Errorf("user %q", image.Config.User)
	}
	const megabyte = 1_000_000
	t.Logf("the image has %.1f MB", float64(image.Size)/megabyte)
	if image.Size > 12*megabyte {
		t.Errorf("the image has %d bytes, want at most 12 MB", image.Size)
	}
	for label, want := range map[string]string{
		"title":    "sip-capture",
		"version":  version,
		"licenses": "MIT",
		"source":   "https://github.com/ik5/sip-capture",
	} {
		if got := image.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	if len(image.Config.ExposedPorts) > 0 || len(image.Config.Volumes) > 0 {
		t.Errorf("ports %v, volumes %v", image.Config.ExposedPorts, image.Config.Volumes)
	}

	// Of all files only the binary can be executed, and it is linked statically: distroless has nothing else to offer.
	id := startContainer(t, sensorImage, append(sensorRequest("none", nil), testcontainers.WithCmd("-version"),
		testcontainers.WithWaitStrategy(wait.ForExit()))...)
	if text := logs(t, id); exitCode(t, id) != 0 || !strings.Contains(text, version) {
		t.Errorf("-version: exit code %d: %s", exitCode(t, id), text)
	}
	export := exec.Command("sh", "-c", "docker export "+id.GetContainerID()+" | tar -t -v")
	listing, err := export.Output()
	if err != nil {
		t.Fatalf("docker export: %v", err)
	}
	var executables []string
	for line := range strings.Lines(string(listing)) {
		fields := strings.Fields(line)
		name := fields[len(fields)-1]
		// Docker puts empty files into a container where it mounts something.
		if strings.HasPrefix(line, "-") && strings.Contains(fields[0], "x") && fields[2] != "0" {
			executables = append(executables, name)
		}
	}
	sort.Strings(executables)
	if strings.Join(executables, " ") != "sip-capture" &&
		strings.Join(executables, " ") != "etc/update-motd.d/10-uname sip-capture" {
		t.Errorf("executables in the image: %v", executables)
	}
}

// TestCheck: the configuration is checked without capturing or connecting.
func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		code int
		text string
	}{
		{
			"good",
			map[string]string{
				"TOPIC":      "sip",
				"INTERFACE":  "lo",
				"SIP_FILTER": "(method invite)",
				"BPF_FILTER": "port sip",
			},
			0,
			"configuration ok",
		},
		{
			"no topic",
			map[string]string{"INTERFACE": "lo"},
			2,
			"TOPIC: ",
		},
		{
			"no device",
			map[string]string{"TOPIC": "sip", "INTERFACE": "eth7"},
			2,
			"INTERFACE: ",
		},
		{
			"bad filter",
			map[string]string{"TOPIC": "sip", "SIP_FILTER": "(methot invite)"},
			2,
			"SIP_FILTER:1:2: ",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := startContainer(t, sensorImage, append(sensorRequest("none",
				test.env), testcontainers.WithCmd("-check"),
				testcontainers.WithWaitStrategy(wait.ForExit()))...)
			if text := logs(t, c); exitCode(t, c) != test.code || !strings.Contains(text, test.text) {
				t.Errorf("exit code %d, want %d with %q; output:\n%s", exitCode(t, c), test.code, test.text, text)
			}
		})
	}
}
