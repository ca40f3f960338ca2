package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// The tests here run a sensor with clusters of three brokers, in the configuration of deploy/, kill the node that the
// sensor is connected to while 1,000 messages a second come in, start it again, and do that twice. A session that was
// there before has every message, and all that the sensor counts as published is kept by the cluster.

// clusterRate is how many messages a second are sent to a sensor with a cluster.
const clusterRate = 1000

// cluster is three brokers and a sensor that knows all of them.
type cluster struct {
	delivery
	names        []string
	nodes        map[string]testcontainers.Container
	healthy      []string // the command that says so in a node
	certificates map[string][]byte
}

// clusterKind is what is special about the nodes of one maker.
type clusterKind struct {
	name, image string            // the nodes are NAME-1 to NAME-3
	directory   string            // of its configuration in the image
	files       map[string]string // from deploy/, by their name in directory
	env         map[string]string
	healthy     []string
	leads       bool   // the first node has to be up before the others join it
	sensor      string // the passwords of its users
	reader      string
}

// nats and rabbit are the two kinds: their files, and how a node is asked whether it is well.
var (
	nats = clusterKind{
		name: "nats", image: natsImage, directory: "/etc/nats", files: map[string]string{"nats.conf": "nats.conf"},
		env: map[string]string{"SENSOR_PASSWORD": "sensor-secret", "READER_PASSWORD": "reader-secret"},
		healthy: []string{"bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/8222
printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
grep -q '"status":"ok"' <&3`},
		sensor: "sensor-secret", reader: "reader-secret",
	}
	rabbit = clusterKind{
		name: "rabbit", image: rabbitImage, directory: "/etc/rabbitmq",
		files: map[string]string{"rabbitmq.conf": "rabbitmq.conf", "definitions.json": "rabbitmq-definitions.json"},
		// The plugin listens when the node has joined the others, and costs less to ask than rabbitmq-diagnostics.
		healthy: []string{"bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8883"},
		leads:   true,
		sensor:  "change-me-sensor", reader: "change-me-reader",
	}
)

// newCluster starts so many nodes and waits until each says that it is well.
func newCluster(t *testing.T, kind clusterKind, nodes int) *cluster {
	t.Helper()
	c := &cluster{
		delivery: delivery{t: t, network: newNetwork(t)},
		nodes:    map[string]testcontainers.Container{},
		healthy:  kind.healthy,
	}
	for i := range nodes {
		c.names = append(c.names, fmt.Sprintf("%s-%d", kind.name, i+1))
	}
	c.certificates = newAuthority(t, c.names...)
	contents := map[string][]byte{
		"ca.pem":     c.certificates["ca.pem"],
		"server.pem": c.certificates["broker.pem"],
		"server.key": c.certificates["broker.key"],
	}
	for name, file := range kind.files {
		contents[name] = deployFile(t, file)
	}
	if nodes == 1 && kind.name == "nats" { // which waits for two of three where it is told of a cluster
		alone := regexp.MustCompile(`(?ms)^cluster \{.*?^\}\n`).ReplaceAllString(string(contents["nats.conf"]), "")
		contents["nats.conf"] = []byte(replaced(t, alone, "stream_replicas: 3", "stream_replicas: 1"))
	}
	var files []testcontainers.ContainerFile
	for name, content := range contents {
		files = append(files, testcontainers.ContainerFile{
			Reader: bytes.NewReader(content), ContainerFilePath: path.Join(kind.directory, name), FileMode: 0o644,
		})
	}
	for n, name := range c.names {
		for i, content := range files {
			files[i].Reader = bytes.NewReader(contents[path.Base(content.ContainerFilePath)])
		}
		c.nodes[name] = startContainer(t, kind.image, onNetwork(c.network, name), testcontainers.WithEnv(kind.env),
			testcontainers.WithEnv(map[string]string{"NODE": name}), testcontainers.WithFiles(files...),
			testcontainers.WithConfigModifier(func(c *container.Config) { c.Hostname = name }))
		if n == 0 && kind.leads {
			c.untilHealthy(name)
		}
	}
	for _, name := range c.names {
		c.untilHealthy(name)
	}
	c.socket = newSocket(t)
	return c
}

// deployFile is a file of those that users are to copy.
func deployFile(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(path.Join("deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func (c *cluster) untilHealthy(name string) {
	c.t.Helper()
	start := time.Now()
	defer func() {
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", name, logs(c.t, c.nodes[name]))
		}
	}()
	eventually(c.t, 2*time.Minute, name+" is healthy", func() bool {
		return status(c.t, c.nodes[name], c.healthy...) == 0
	})
	c.t.Logf("%s is healthy after %.1f s", name, time.Since(start).Seconds())
}

// options are those of a subscriber that finds the nodes in this order: their addresses are known to Docker only.
func (c *cluster) options(user, password string, names ...string) *mqtt.ClientOptions {
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(c.certificates["ca.pem"])
	options := mqtt.NewClientOptions().SetUsername(user).SetPassword(password).
		SetCustomOpenConnectionFn(func(node *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
			dialer := &tls.Dialer{
				NetDialer: &net.Dialer{Timeout: time.Second},
				Config:    &tls.Config{RootCAs: authorities, ServerName: node.Hostname()},
			}
			return dialer.Dial("tcp", c.addressOf(c.nodes[node.Hostname()])+":8883")
		})
	for _, name := range names {
		options.AddBroker("ssl://" + name + ":8883")
	}
	return options
}

// start starts the sensor, with the user "sensor".
func (c *cluster) start(password string) {
	c.t.Helper()
	directory, files := withFiles(c.t, map[string][]byte{
		"ca.pem": c.certificates["ca.pem"], "password": []byte(password + "\n"),
	})
	var urls []string
	for _, name := range c.names {
		urls = append(urls, "ssl://"+name)
	}
	c.sensor = startSensor(c.t, c.network, map[string]string{
		"INTERFACE": "eth0", "BROKER": strings.Join(urls, ","), "TOPIC": "sip", "STATUS_TOPIC": "sip/status",
		"USERNAME": "sensor", "PASSWORD_FILE": directory + "/password", "CA_FILE": directory + "/ca.pem",
	}, files)
}

// connectedTo is the node that the sensor's connection goes to, by the kernel's own table.
func (c *cluster) connectedTo() string {
	c.t.Helper()
	const established = "01"
	table, err := os.ReadFile("/proc/" + pid(c.t, c.sensor) + "/net/tcp")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // sl, local address, remote address, state …
		remote, isBroker := strings.CutSuffix(fields[2], fmt.Sprintf(":%04X", 8883))
		if !isBroker || fields[3] != established {
			continue
		}
		address, err := hex.DecodeString(remote)
		if err != nil {
			c.t.Fatal(err)
		}
		ip := make(net.IP, net.IPv4len)
		binary.BigEndian.PutUint32(ip, binary.NativeEndian.Uint32(address))
		for _, name := range c.names {
			if c.addressOf(c.nodes[name]) == ip.String() {
				return name
			}
		}
	}
	return ""
}

// kill ends a node at once.
func (c *cluster) kill(name string) {
	c.t.Helper()
	id := c.nodes[name].GetContainerID()
	_, err := docker.ContainerKill(context.Background(), id, client.ContainerKillOptions{Signal: "KILL"})
	if err != nil {
		c.t.Fatal(err)
	}
}

// restart starts a node that was killed, with what it has on its disk.
func (c *cluster) restart(name string) {
	c.t.Helper()
	id := c.nodes[name].GetContainerID()
	if _, err := docker.ContainerStart(context.Background(), id, client.ContainerStartOptions{}); err != nil {
		c.t.Fatal(err)
	}
	c.untilHealthy(name)
}

// loseNodes kills the node that the sensor is connected to and starts it again, twice, each in 10 s of messages.
func (c *cluster) loseNodes() {
	c.t.Helper()
	var killed []string
	for range 2 {
		sending := make(chan bool)
		go func() {
			defer close(sending)
			c.sendAt(10*time.Second, clusterRate)
		}()
		time.Sleep(2 * time.Second)
		var name string
		eventually(c.t, 20*time.Second, "the sensor is connected", func() bool {
			name = c.connectedTo()
			return name != ""
		})
		killed = append(killed, name)
		c.kill(name)
		start := time.Now()
		eventually(c.t, 20*time.Second, "the sensor has another node", func() bool {
			now := c.connectedTo()
			return now != "" && now != name
		})
		c.t.Logf("%s killed, another node after %.1f s", name, time.Since(start).Seconds())
		c.restart(name)
		<-sending
	}
	if killed[0] == killed[1] {
		c.t.Errorf("%s was killed twice", killed[0])
	}
}

// arrivals counts what a subscriber was given of the numbers from 1 to last.
type arrivals struct {
	missing    int // numbers that never came
	late       int // numbers that came first when a higher one had come
	duplicates int
}

func arrived(t *testing.T, payloads [][]byte, last int) (a arrivals) {
	t.Helper()
	seen := map[int]bool{}
	highest := 0
	for _, payload := range payloads {
		m := callNumber.FindSubmatch(decode(t, payload).SIP)
		if m == nil {
			t.Fatalf("not one of ours: %q", payload)
		}
		number, _ := strconv.Atoi(string(m[1]))
		switch {
		case seen[number]:
			a.duplicates++
		case number < highest:
			a.late++
		}
		seen[number] = true
		highest = max(highest, number)
	}
	a.missing = last - len(seen)
	return a
}

// allKept asserts what a cluster promises: a session has everything that was sent, and the sensor's counters say so.
// What was on the way to a subscriber whose node is killed comes again when its acknowledgement is 30 s late (NATS).
func (c *cluster) allKept(topic *subscription) arrivals {
	c.t.Helper()
	c.untilPublished(90 * time.Second)
	s := stopSensor(c.t, c.sensor)
	sent := uint64(c.sent)
	if s.Published != sent || sum(s.Messages) != sent || s.Dropped != 0 || s.QueueMessages != 0 {
		c.t.Errorf("sent %d, the counters say %+v", c.sent, s)
	}
	allStats(c.t, c.sensor)
	var a arrivals
	for end := time.Now().Add(45 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if a = arrived(c.t, topic.payloads(), c.sent); a.missing == 0 || time.Now().After(end) {
			break
		}
	}
	c.t.Logf("%d messages: %d missing, %d late, %d duplicates", c.sent, a.missing, a.late, a.duplicates)
	if a.missing > 0 {
		c.t.Errorf("%d of %d messages never came", a.missing, c.sent)
	}
	return a
}

// TestNATS: JetStream, and a session over MQTT, which is a consumer of the stream that has the messages.
func TestNATS(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nats, 3)
	topic := subscribeWith(t, c.options("reader", nats.reader, "nats-3", "nats-2", "nats-1"), "sip")
	c.start(nats.sensor)
	c.loseNodes()
	// The order isn't asserted: the nodes store what a connection sends each by itself, and where one of these fails,
	// it is sent again behind the others.
	c.allKept(topic)
}

// TestRabbitMQ: a session over MQTT, which is a quorum queue bound to the topic. Its order is that of the sensor.
func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	c := newCluster(t, rabbit, 3)
	topic := subscribeWith(t, c.options("reader", rabbit.reader, "rabbit-3", "rabbit-2", "rabbit-1"), "sip")
	c.start(rabbit.sensor)
	c.loseNodes()
	if late := c.allKept(topic).late; late > 0 {
		t.Errorf("%d messages came first when a later one had come", late)
	}
}

// TestRates is target c of bench.sh, which says where the rows of its table go: a capture file published over TLS to
// one node and to three, which keep it for a session that is away.
func TestRates(t *testing.T) {
	table := os.Getenv("BENCH_TABLE")
	if table == "" {
		t.Skip("a part of integration/bench.sh")
	}
	const messages = 30_000
	var all [][]byte
	for i := range messages {
		datagram := udp(5060, 5060, numbered(i))
		all = append(all, frames([]byte{192, 0, 2, 1}, []byte{192, 0, 2, 2}, 17, uint16(i), datagram)...)
	}
	file := captured(all...)
	var rows strings.Builder
	for _, maker := range []struct {
		name string
		kind clusterKind
	}{{"NATS 2.15", nats}, {"RabbitMQ 3.10", rabbit}} {
		var perSecond, cpu [2]float64
		for i, nodes := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d", maker.name, nodes), func(t *testing.T) {
				perSecond[i], cpu[i] = measure(t, newCluster(t, maker.kind, nodes), maker.kind, file, messages)
			})
		}
		const rate = "| c | all published to %s over TLS, 3 nodes: messages a second; floor: 1 node"
		fmt.Fprintf(&rows, rate+" | %.0f | %.0f | %.2f | – | – |\n",
			maker.name, perSecond[1], perSecond[0], perSecond[1]/perSecond[0])
		fmt.Fprintf(&rows, "| c | their CPU of the sensor, a message; floor: 1 node | %.1f µs | %.1f µs | %.2f | – | – |\n",
			cpu[1], cpu[0], cpu[1]/cpu[0])
	}
	f, err := os.OpenFile(table, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(rows.String()); err != nil {
		t.Fatal(err)
	}
}

// measure publishes a capture file and returns the messages a second, and the sensor's CPU time for one in µs.
func measure(t *testing.T, c *cluster, kind clusterKind, file []byte, messages int) (perSecond, cpu float64) {
	t.Helper()
	subscribeWith(t, c.options("reader", kind.reader, c.names...), "sip")
	directory, files := withFiles(t, map[string][]byte{
		"ca.pem": c.certificates["ca.pem"], "password": []byte(kind.sensor), "calls.pcap": file,
	})
	sensor := startContainer(t, sensorImage, sensorRequest(c.network, map[string]string{
		"BROKER": "ssl://" + c.names[0], "TOPIC": "sip", "USERNAME": "sensor", "PASSWORD_FILE": directory + "/password",
		"CA_FILE": directory + "/ca.pem", "PCAP_FILE": directory + "/calls.pcap", "STATS_INTERVAL": "0",
	}, files)...)
	// The last reading before it ends: user and system time are fields 14 and 15, in hundredths of a second (proc(5)).
	statistics, ticks := "/proc/"+pid(t, sensor)+"/stat", 0
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(statistics)
		_, fields, _ := strings.Cut(string(text), ") ")
		values := strings.Fields(fields)
		if err != nil || values[0] == "Z" || values[0] == "X" {
			break
		}
		user, _ := strconv.Atoi(values[11])
		system, _ := strconv.Atoi(values[12])
		ticks = user + system
	}
	eventually(t, 5*time.Second, "the file is published", func() bool { return !running(t, sensor) })
	if n := stats(t, sensor).Published; n != uint64(messages) || exitCode(t, sensor) != 0 {
		t.Fatalf("%d of %d published:\n%s", n, messages, logs(t, sensor))
	}
	var connected, last time.Time
	for line := range strings.Lines(logs(t, sensor)) {
		var entry struct {
			Time time.Time
			Msg  string
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Msg == "connected" {
			connected = entry.Time
		}
		last = entry.Time
	}
	return float64(messages) / last.Sub(connected).Seconds(), float64(ticks) * 1e4 / float64(messages)
}
