// Package integration runs sip-capture from its own image against real peers in containers: Mosquitto, SIPp,
// and where needed a broker or a proxy of the tests' own. `integration/test.sh` runs it with everything else.
//
// This file has the helpers. Each test starts what it needs and removes it; nothing is shared but the images.
package integration

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/log"
	tcnetwork "github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// runID tells this run from others on the same machine: test.sh sets it, to clean up after a run that was cut off.
var runID = cmp.Or(os.Getenv("SUITE_RUN"), strconv.Itoa(os.Getpid()))

// runLabel is the label, with runID, of all that the suite makes.
const runLabel = "sip-capture-test"

// The images of the suite, built by TestMain.
var (
	sensorImage    = "sip-capture-test-sensor:" + runID
	mosquittoImage = "sip-capture-test-mosquitto:" + runID
	sippImage      = "sip-capture-test-sipp:" + runID
	hostImage      = "sip-capture-test-host:" + runID
	natsImage      = "sip-capture-test-nats:" + runID
	rabbitImage    = "sip-capture-test-rabbitmq:" + runID
)

// version is what the sensor's image is built as.
const version = "v9.8.7-test"

// docker is the client for what testcontainers has no call for.
var docker *testcontainers.DockerClient

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	log.SetDefault(silent{})
	ctx := context.Background()
	// testcontainers reads its settings once, with its first client, so that these are looked at with another.
	engine, err := client.New(client.FromEnv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "docker:", err)
		return 1
	}
	defer engine.Close()
	// The reaper removes what a run leaves that was cut off. Every test cleans up by itself, so it can do without.
	if !canHave(ctx, engine, reaperImage) {
		os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	}
	// In a container testcontainers takes the gateway for the Docker host. Where that container uses the
	// network of its host,
	// the ports of others are on localhost.
	if _, err := os.Stat("/.dockerenv"); err == nil && onDockerHost(ctx, engine) &&
		os.Getenv("TESTCONTAINERS_HOST_OVERRIDE") == "" {
		os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "localhost")
	}
	if docker, err = testcontainers.NewDockerClientWithOpts(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "docker:", err)
		return 1
	}
	images := map[string]string{
		sensorImage: "..", mosquittoImage: "images/mosquitto", sippImage: "images/sipp", hostImage: "images/host",
		natsImage: "images/nats", rabbitImage: "images/rabbitmq",
	}
	for image, directory := range images {
		start := time.Now()
		if err := build(ctx, image, directory); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n", image, err)
			return 1
		}
		fmt.Printf("built %s in %.1f s\n", image, time.Since(start).Seconds())
	}
	code := m.Run()
	for image := range images {
		// Only the tag: the layers stay for the next build.
		if _, err := docker.ImageRemove(ctx, image, client.ImageRemoveOptions{}); err != nil {
			fmt.Fprintf(os.Stderr, "removing %s: %v\n", image, err)
		}
	}
	return code
}

// reaperImage is the one of testcontainers-go v0.45, which doesn't export its name.
const reaperImage = "testcontainers/ryuk:0.14.0"

// canHave says whether an image is here, or could be pulled within 30 s.
func canHave(ctx context.Context, engine *client.Client, image string) bool {
	if _, err := engine.ImageInspect(ctx, image); err == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pull, err := engine.ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil {
		return false
	}
	defer pull.Close()
	return pull.Wait(ctx) == nil
}

// onDockerHost says whether the gateway of Docker's own bridge is an address of this machine.
func onDockerHost(ctx context.Context, engine *client.Client) bool {
	bridge, err := engine.NetworkInspect(ctx, "bridge", client.NetworkInspectOptions{})
	if err != nil {
		return false
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, configuration := range bridge.Network.IPAM.Config {
		gateway := configuration.Gateway
		if !gateway.IsValid() { // where Docker was told of none it takes the first address
			gateway = configuration.Subnet.Masked().Addr().Next()
		}
		for _, address := range addresses {
			if strings.HasPrefix(address.String(), gateway.String()+"/") {
				return true
			}
		}
	}
	return false
}

// silent drops testcontainers' remarks on each step that it takes.
type silent struct{}

func (silent) Printf(string, ...any) {}

// build builds an image from the Dockerfile in a directory.
func build(ctx context.Context, image, directory string) error {
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	defer provider.Close()
	versionArgument := version
	repository, tag, _ := strings.Cut(image, ":")
	var output bytes.Buffer
	request := testcontainers.ContainerRequest{FromDockerfile: testcontainers.FromDockerfile{
		Context: directory, Repo: repository, Tag: tag, KeepImage: true, BuildLogWriter: &output,
	}}
	if image == sensorImage {
		request.BuildArgs = map[string]*string{"VERSION": &versionArgument}
	}
	if _, err := provider.BuildImage(ctx, &request); err != nil {
		return fmt.Errorf("%w\n%s", err, output.String())
	}
	return nil
}

// --- networks and containers ---

// newNetwork makes a bridge network with an MTU of 1500 and returns its name. With an IPv6 prefix it has both families.
func newNetwork(t *testing.T, prefix ...netip.Prefix) string {
	t.Helper()
	options := []tcnetwork.NetworkCustomizer{
		tcnetwork.WithDriver("bridge"), tcnetwork.WithLabels(map[string]string{runLabel: runID}),
		tcnetwork.CustomizeNetworkOption(func(o *client.NetworkCreateOptions) error {
			o.Options = map[string]string{"com.docker.network.driver.mtu": "1500"}
			return nil
		}),
	}
	if len(prefix) > 0 {
		options = append(
			options,
			tcnetwork.WithEnableIPv6(),
			tcnetwork.WithIPAM(&network.IPAM{Config: []network.IPAMConfig{{Subnet: prefix[0]}}}),
		)
	}
	made, err := tcnetwork.New(t.Context(), options...)
	if err != nil {
		t.Fatalf("network: %v", err)
	}
	testcontainers.CleanupNetwork(t, made)
	return made.Name
}

// startContainer starts a container that the end of the test removes. Where the test fails, the end of the
// container's log is
// shown with it.
func startContainer(t *testing.T, image string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	log := &lastLines{}
	t.Cleanup(func() { // after the container is removed: all of its log has come by then
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", image, log)
		}
	})
	c, err := testcontainers.Run(t.Context(), image, append(options, labelled, testcontainers.WithLogConsumers(log))...)
	testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0))
	if err != nil {
		t.Fatalf("starting %s: %v\n%s", image, err, logs(t, c))
	}
	return c
}

// lastLines is a consumer of a container's log that keeps the last 30 pieces of it, which are lines mostly.
type lastLines struct {
	mu     sync.Mutex
	pieces []string
}

func (l *lastLines) Accept(piece testcontainers.Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pieces = append(l.pieces, string(piece.Content))
	if len(l.pieces) > 30 {
		l.pieces = l.pieces[1:]
	}
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.pieces, "")
}

// labelled marks a container as one of this run.
var labelled = testcontainers.WithLabels(map[string]string{runLabel: runID})

// onNetwork sets what a container's network is: the name of a network, "host", "none", or sameNetworkAs(another).
func onNetwork(mode string, aliases ...string) testcontainers.CustomizeRequestOption {
	return func(r *testcontainers.GenericContainerRequest) error {
		if mode == "host" || mode == "none" || strings.HasPrefix(mode, "container:") {
			return testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
				h.NetworkMode = container.NetworkMode(mode)
			})(r)
		}
		r.Networks = []string{mode}
		r.NetworkAliases = map[string][]string{mode: aliases}
		return nil
	}
}

// sameNetworkAs puts a container into another's network: it sees every frame that the other sends and receives.
func sameNetworkAs(c testcontainers.Container) string {
	return "container:" + c.GetContainerID()
}

// logs returns what a container has written so far, standard output and standard error.
func logs(t *testing.T, c testcontainers.Container) string {
	t.Helper()
	if c == nil || c.GetContainerID() == "" {
		return ""
	}
	r, err := c.Logs(context.Background())
	if err != nil {
		t.Fatalf("logs: %v", err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("logs: %v", err)
	}
	return string(text)
}

// execute runs a command in a container and returns what it prints; it must end with status 0.
func execute(t *testing.T, c testcontainers.Container, command ...string) string {
	t.Helper()
	code, output, err := c.Exec(t.Context(), command, exec.Multiplexed())
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	text, err := io.ReadAll(output)
	if err != nil || code != 0 {
		t.Fatalf("%s: status %d, %v: %s", command, code, err, text)
	}
	return string(text)
}

// fileFrom returns the contents of a file in a container, running or ended.
func fileFrom(t *testing.T, c testcontainers.Container, path string) []byte {
	t.Helper()
	r, err := c.CopyFileFromContainer(t.Context(), path)
	if err != nil {
		t.Fatalf("copying %s: %v", path, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("copying %s: %v", path, err)
	}
	return data
}

// eventually polls until a condition holds.
func eventually(t *testing.T, timeout time.Duration, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		if condition() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", timeout, what)
		}
	}
}

// --- the broker and its subscriber ---

// broker is a Mosquitto in a container.
type broker struct {
	testcontainers.Container
	url     string // for containers on its network: "tcp://broker:1883"
	address string // for this process: "localhost:49153"
}

// startBroker starts a Mosquitto, or the broker that SUITE_BROKER names.
func startBroker(t *testing.T, networkName string) broker {
	t.Helper()
	if name := os.Getenv("SUITE_BROKER"); name != "" {
		return startOtherBroker(t, networkName, name)
	}
	c := startContainer(t, mosquittoImage, onNetwork(networkName, "broker"),
		testcontainers.WithExposedPorts("1883/tcp"),
		testcontainers.WithWaitStrategy(
			wait.ForLog(`mosquitto version \S+ running`).AsRegexp().WithStartupTimeout(20*time.Second),
		))
	address, err := c.PortEndpoint(t.Context(), "1883/tcp", "")
	if err != nil {
		t.Fatalf("broker: %v", err)
	}
	return broker{c, "tcp://broker:1883", address}
}

// subscription collects the payloads of a topic, in the order of their arrival.
type subscription struct {
	mu       sync.Mutex
	received [][]byte
}

// subscribe subscribes with QoS 1 at a broker's address. It reconnects and subscribes again where a broker restarts.
func subscribe(t *testing.T, address, topic string) *subscription {
	t.Helper()
	return subscribeWith(t, mqtt.NewClientOptions().AddBroker("tcp://"+address), topic)
}

// subscribeWith is subscribe with options that say where the broker is.
func subscribeWith(t *testing.T, options *mqtt.ClientOptions, topic string) *subscription {
	t.Helper()
	s := &subscription{}
	collect := func(_ mqtt.Client, m mqtt.Message) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.received = append(s.received, bytes.Clone(m.Payload()))
	}
	subscribed := make(chan error, 1)
	options.SetProtocolVersion(4).
		SetClientID(fmt.Sprintf("test-%d", time.Now().UnixNano())).SetCleanSession(false).
		SetMaxReconnectInterval(200 * time.Millisecond).
		SetOnConnectHandler(func(c mqtt.Client) {
			token := c.Subscribe(topic, 1, collect)
			token.Wait()
			select {
			case subscribed <- token.Error():
			default:
			}
		})
	c := mqtt.NewClient(options)
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		t.Fatalf("subscribing at %s: %v", options.Servers, token.Error())
	}
	t.Cleanup(func() { c.Disconnect(100) })
	if err := <-subscribed; err != nil {
		t.Fatalf("subscribing to %s: %v", topic, err)
	}
	return s
}

// payloads returns what has arrived so far.
func (s *subscription) payloads() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.received...)
}

// exactly waits for n payloads, and a moment longer for any too many, and returns them.
func (s *subscription) exactly(t *testing.T, n int) [][]byte {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); len(s.payloads()) < n && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	all := s.payloads()
	if len(all) != n {
		t.Fatalf("%d payloads arrived, want %d", len(all), n)
	}
	return all
}

// --- the sensor ---

// sensorRequest is the request for a sensor with the security settings that the README tells users to take, statistics
// each second, and these environment variables.
func sensorRequest(mode string, env map[string]string, options ...testcontainers.ContainerCustomizer) []testcontainers.ContainerCustomizer {
	return append([]testcontainers.ContainerCustomizer{
		onNetwork(mode),
		testcontainers.WithEnv(map[string]string{"STATS_INTERVAL": "1s"}),
		testcontainers.WithEnv(env),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.CapDrop = []string{"ALL"}
			h.CapAdd = []string{"NET_RAW"}
			h.ReadonlyRootfs = true
		}),
	}, options...)
}

// startSensor starts a sensor on a network (see onNetwork), waits until it captures and, if its broker is there, until
// it is connected. Where the broker is away on purpose, pass wait.ForLog with something else as an option.
func startSensor(t *testing.T, mode string, env map[string]string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	ready := testcontainers.WithWaitStrategy(
		wait.ForLog(`"msg":"stats".*"connected":true`).AsRegexp().WithStartupTimeout(20 * time.Second),
	)
	return startContainer(
		t,
		sensorImage,
		sensorRequest(mode, env, append([]testcontainers.ContainerCustomizer{ready}, options...)...)...,
	)
}

// sensorProgram returns the program of the sensor's image.
func sensorProgram(t *testing.T) []byte {
	t.Helper()
	c := startContainer(t, sensorImage, sensorRequest("none", map[string]string{"TOPIC": "sip"})...)
	return fileFrom(t, c, "/sip-capture")
}

// stopSensor is endSensor, and returns the last counters in the log.
func stopSensor(t *testing.T, c testcontainers.Container) counters {
	t.Helper()
	endSensor(t, c)
	return stats(t, c)
}

// endSensor stops a sensor as `docker stop` does, and checks that it ended by itself with status 0 within 10 s.
func endSensor(t *testing.T, c testcontainers.Container) {
	t.Helper()
	start := time.Now()
	timeout := 20 * time.Second
	if err := c.Stop(t.Context(), &timeout); err != nil {
		t.Fatalf("stopping: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if code := exitCode(t, c); code != 0 {
		t.Errorf("exit code %d, want 0; log:\n%s", code, logs(t, c))
	}
}

// exitCode returns the exit code of a container that has ended.
func exitCode(t *testing.T, c testcontainers.Container) int {
	t.Helper()
	state, err := c.State(t.Context())
	if err != nil {
		t.Fatalf("state: %v", err)
	}
	if state.Running {
		t.Fatal("the container still runs")
	}
	return state.ExitCode
}

// counters are those of contract and README: the line "msg":"stats", and /metrics.
type counters struct {
	Packets        uint64            `json:"packets"`
	PacketsDropped uint64            `json:"packets_dropped"`
	PacketsInvalid uint64            `json:"packets_invalid"`
	Messages       map[string]uint64 `json:"messages"`
	Discarded      map[string]uint64 `json:"messages_discarded"`
	Rejected       uint64            `json:"messages_rejected"`
	Published      uint64            `json:"messages_published"`
	Dropped        uint64            `json:"messages_dropped"`
	QueueMessages  uint64            `json:"queue_messages"`
	QueueBytes     uint64            `json:"queue_bytes"`
	Connected      bool              `json:"connected"`
}

// sum adds up what a labelled counter has under all labels.
func sum(labelled map[string]uint64) (total uint64) {
	for _, n := range labelled {
		total += n
	}
	return total
}

// check asserts the identity that holds in every line: messages = rejected + published + dropped + waiting.
func (c counters) check(t *testing.T) {
	t.Helper()
	if sum(c.Messages) != c.Rejected+c.Published+c.Dropped+c.QueueMessages {
		t.Errorf("messages don't add up: %+v", c)
	}
}

// allStats returns the counters of every stats line so far, each checked.
func allStats(t *testing.T, c testcontainers.Container) (lines []counters) {
	t.Helper()
	for line := range strings.Lines(logs(t, c)) {
		if !strings.Contains(line, `"msg":"stats"`) {
			continue
		}
		var s counters
		decoder := json.NewDecoder(strings.NewReader(line))
		if err := decoder.Decode(&s); err != nil {
			t.Fatalf("stats line %q: %v", line, err)
		}
		s.check(t)
		lines = append(lines, s)
	}
	return lines
}

// stats returns the counters of the last stats line.
func stats(t *testing.T, c testcontainers.Container) counters {
	t.Helper()
	lines := allStats(t, c)
	if len(lines) == 0 {
		t.Fatalf("no stats line in the log:\n%s", logs(t, c))
	}
	return lines[len(lines)-1]
}

// metrics scrapes http://ADDRESS/metrics: each sample's name with its labels, as it is written, and its value.
func metrics(t *testing.T, address string) map[string]float64 {
	t.Helper()
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	defer response.Body.Close()
	samples := map[string]float64{}
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		name, value, _ := strings.Cut(lines.Text(), " ")
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metrics: %q: %v", lines.Text(), err)
		}
		samples[name] = number
	}
	return samples
}

// --- envelopes ---

// envelope is a decoded payload.
type envelope struct {
	ID        string    `json:"id"`
	Time      time.Time `json:"time"`
	Index     int       `json:"index"`
	Version   string    `json:"version"`
	Signature string    `json:"signature"`
	Transport string    `json:"transport"`
	Src       string    `json:"src"`
	Dst       string    `json:"dst"`
	SIP       []byte    `json:"sip"` // encoding/json decodes base64
}

// decode decodes one payload; checkEnvelopes (endtoend_test.go) checks every promise.
func decode(t *testing.T, payload []byte) envelope {
	t.Helper()
	var e envelope
	if err := json.Unmarshal(payload, &e); err != nil {
		t.Fatalf("payload %q: %v", payload, err)
	}
	return e
}

// --- SIPp ---

// traceFile is where SIPp writes every message that it sends and receives.
const traceFile = "/traces/messages.log"

// callee starts a SIPp that answers calls (scenario callee.xml) on port 5060 of the host name "callee". note
// is the text
// that fills up the bodies, transport as SIPp's -t has it ("u1", "t1"), more are further arguments.
func callee(t *testing.T, networkName, transport, note string, more ...string) testcontainers.Container {
	t.Helper()
	return sippAt(t, networkName, "", "callee", append(
		[]string{"-sf", "/scenarios/callee.xml", "-t", transport, "-key", "note", note},
		more...,
	),
		wait.ForExec([]string{"sh", "-c", "grep -q :13C4 /proc/net/udp /proc/net/udp6 /proc/net/tcp /proc/net/tcp6"}))
}

// makeCalls has a SIPp make calls to the callee, each with INVITE, 180, 200, ACK, BYE, 200, and returns its
// container when
// all have succeeded.
func makeCalls(t *testing.T, networkName, transport, note string, calls, perSecond int, more ...string) testcontainers.Container {
	t.Helper()
	return makeCallsFrom(t, networkName, "", "callee:5060", transport, note, calls, perSecond, more...)
}

// makeCallsFrom is makeCalls with an address of the caller's own and another destination.
func makeCallsFrom(t *testing.T, networkName, address, to, transport, note string, calls, perSecond int, more ...string) testcontainers.Container {
	t.Helper()
	arguments := append([]string{to, "-sf", "/scenarios/caller.xml", "-s", "bob", "-t", transport, "-key", "note", note,
		"-m", strconv.Itoa(calls), "-r", strconv.Itoa(perSecond)}, more...)
	c := sippAt(
		t,
		networkName,
		address,
		"caller",
		arguments,
		wait.ForExit().WithExitTimeout(2*time.Minute).WithPollInterval(100*time.Millisecond),
	)
	// SIPp's status: 0 all calls succeeded, 1 at least one failed.
	if code := exitCode(t, c); code != 0 {
		t.Fatalf("SIPp ended with status %d:\n%s", code, logs(t, c))
	}
	return c
}

// sippAt starts a SIPp, at an IPv6 address of its own where one is given.
func sippAt(t *testing.T, networkName, address, alias string, arguments []string, ready wait.Strategy) testcontainers.Container {
	t.Helper()
	arguments = append(arguments, "-nostdin", "-trace_msg", "-message_file", traceFile)
	if address != "" {
		arguments = append(arguments, "-i", address)
	}
	return startContainer(t, sippImage, onNetwork(networkName, alias), testcontainers.WithCmd(arguments...),
		testcontainers.WithEndpointSettingsModifier(func(settings map[string]*network.EndpointSettings) {
			if address != "" {
				settings[networkName].IPAMConfig = &network.EndpointIPAMConfig{
					IPv6Address: netip.MustParseAddr(address),
				}
			}
		}),
		testcontainers.WithWaitStrategy(ready))
}

// traced is one message in SIPp's trace.
type traced struct {
	sent bool // or received
	raw  []byte
}

// The trace has a line of dashes and the time, "UDP message sent (512 bytes):" or "UDP message received [291]
// bytes :", an
// empty line, so many bytes, and a line feed. Other remarks (of a connection, say) may stand between.
var traceHeader = regexp.MustCompile(
	`-{47} [^\n]+\n[A-Z0-9]+ message (?:(sent) \((\d+) bytes\)|received \[(\d+)\] bytes ):\n\n`,
)

// trace returns the messages that a SIPp has sent and received, as it says itself.
func trace(t *testing.T, c testcontainers.Container) (messages []traced) {
	t.Helper()
	rest := fileFrom(t, c, traceFile)
	for {
		header := traceHeader.FindSubmatchIndex(rest)
		if header == nil {
			break
		}
		// Group 2 is the size of a sent message, group 3 of a received one: the one that matched tells the direction.
		sent := header[4] >= 0
		from, to := header[6], header[7]
		if sent {
			from, to = header[4], header[5]
		}
		size, err := strconv.Atoi(string(rest[from:to]))
		if err != nil {
			t.Fatalf("SIPp's trace: %q: %v", rest[header[0]:header[1]], err)
		}
		rest = rest[header[1]:]
		if size >= len(rest) || rest[size] != '\n' {
			t.Fatalf("SIPp's trace: a message of %d bytes does not end where it should", size)
		}
		messages = append(messages, traced{sent, rest[:size]})
		rest = rest[size+1:]
	}
	if len(messages) == 0 {
		t.Fatal("SIPp's trace is empty")
	}
	return messages
}
