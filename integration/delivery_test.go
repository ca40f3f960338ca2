package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// The tests here break the way to the broker in all the ways that are known from the field, while messages with a
// number in their Call-ID come in at a steady rate, and then see what arrived.

// rate is how many messages a second are sent to a sensor.
const rate = 500

// delivery is a sensor that finds its broker through a proxy.
type delivery struct {
	t       *testing.T
	network string
	broker  broker
	proxy   *proxy
	sensor  testcontainers.Container
	socket  net.PacketConn
	sent    int // messages so far, numbered from 1
}

// awayWait is for a sensor whose broker is not there yet.
var awayWait = testcontainers.WithWaitStrategy(wait.ForLog(`"msg":"stats"`).WithStartupTimeout(20 * time.Second))

// newDelivery makes the network with a broker and the proxy. startSensor (below) comes when these are as they
// should be.
func newDelivery(t *testing.T) *delivery {
	t.Helper()
	d := &delivery{t: t, network: newNetwork(t)}
	d.broker = startBroker(t, d.network)
	d.proxy = newProxy(t, d.gateway(), func() string { return d.addressOf(d.broker) + ":1883" })
	d.socket = newSocket(t)
	return d
}

// newSocket is where messages are sent from.
func newSocket(t *testing.T) net.PacketConn {
	t.Helper()
	socket, err := net.ListenPacket("udp4", ":0") // not connected: ICMP errors (nobody listens) don't matter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket
}

// endpoint returns a container's place on the test's network.
func (d *delivery) endpoint(c testcontainers.Container) (address, gateway string) {
	inspected, err := docker.ContainerInspect(
		context.Background(),
		c.GetContainerID(),
		client.ContainerInspectOptions{},
	)
	if err != nil {
		return "", ""
	}
	settings := inspected.Container.NetworkSettings.Networks[d.network]
	return settings.IPAddress.String(), settings.Gateway.String()
}

func (d *delivery) addressOf(c testcontainers.Container) string {
	address, _ := d.endpoint(c)
	return address
}

// gateway is this machine as the containers see it.
func (d *delivery) gateway() string {
	_, gateway := d.endpoint(d.broker)
	return gateway
}

// start starts the sensor.
func (d *delivery) start(env map[string]string, options ...testcontainers.ContainerCustomizer) {
	d.t.Helper()
	settings := map[string]string{"INTERFACE": "eth0", "BROKER": d.proxy.url(), "TOPIC": "sip", "BUFFER_MB": "4"}
	for name, value := range env {
		settings[name] = value
	}
	d.sensor = startSensor(d.t, d.network, settings, options...)
}

// send sends messages for so long at the rate.
func (d *delivery) send(duration time.Duration) {
	d.t.Helper()
	d.sendAt(duration, rate)
}

// sendAt sends messages for so long at a rate of its own.
func (d *delivery) sendAt(duration time.Duration, perSecond int) {
	d.t.Helper()
	to := &net.UDPAddr{IP: net.ParseIP(d.addressOf(d.sensor)), Port: 5060}
	start := time.Now()
	for i := range int(duration.Seconds() * float64(perSecond)) {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		d.sent++
		if _, err := d.socket.WriteTo(numbered(d.sent), to); err != nil {
			d.t.Fatal(err)
		}
	}
}

// numbered returns an INVITE of about 500 bytes with a number in its Call-ID.
func numbered(i int) []byte {
	return fmt.Appendf(nil, "INVITE sip:bob@192.0.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK%08d\r\n"+
		"Max-Forwards: 70\r\nFrom: <sip:alice@192.0.2.1>;tag=%08d\r\nTo: <sip:bob@192.0.2.2>\r\nCall-ID: number-%08d\r\n"+
		"CSeq: 1 INVITE\r\nContact: <sip:alice@192.0.2.1>\r\nSubject: %s\r\nContent-Length: 0\r\n\r\n",
		i, i, i, strings.Repeat("x", 200))
}

var callNumber = regexp.MustCompile(`Call-ID: number-(\d+)`)

// checkArrivals asserts that the numbers first to last arrived, each at least once, in the order of first sending, and
// that duplicates are equal to the last byte, id included. It returns how many duplicates there were.
func checkArrivals(t *testing.T, payloads [][]byte, first, last int) (duplicates int) {
	t.Helper()
	seen := map[int]string{}
	next := first
	for _, payload := range payloads {
		m := callNumber.FindSubmatch(decode(t, payload).SIP)
		if m == nil {
			t.Fatalf("not one of ours: %q", payload)
		}
		number, _ := strconv.Atoi(string(m[1]))
		if before, again := seen[number]; again {
			duplicates++
			if before != string(payload) {
				t.Errorf("number %d came in two forms", number)
			}
			continue
		}
		seen[number] = string(payload)
		if number != next {
			t.Fatalf("number %d came where %d was due, after %d payloads", number, next, len(seen))
		}
		next++
	}
	if next != last+1 {
		t.Errorf("%d arrived of %d to %d", len(seen), first, last)
	}
	return duplicates
}

// sip returns the payloads that the proxy saw going to the topic, and how many of all were not acknowledged.
func (d *delivery) sip() (payloads [][]byte, unacknowledged int) {
	return get(d.proxy, func(p *proxy) [][]byte {
		for _, m := range p.sent {
			if m.topic != "sip" {
				continue
			}
			payloads = append(payloads, []byte(m.payload))
			if !p.acked[m.payload] {
				unacknowledged++
			}
		}
		return payloads
	}), unacknowledged
}

// untilPublished waits until everything sent is acknowledged.
func (d *delivery) untilPublished(timeout time.Duration) {
	d.t.Helper()
	eventually(d.t, timeout, fmt.Sprintf("%d published", d.sent), func() bool {
		return stats(d.t, d.sensor).Published == uint64(d.sent)
	})
}

// allDelivered asserts what holds after each fault: everything sent has arrived (at the subscriber too, where there is
// one), and the counters say so, in every line of the log. It returns how many publishes were repetitions.
func (d *delivery) allDelivered(topic *subscription, timeout time.Duration) (duplicates int) {
	d.t.Helper()
	d.untilPublished(timeout)
	payloads, unacknowledged := d.sip()
	duplicates = checkArrivals(d.t, payloads, 1, d.sent)
	if unacknowledged > 0 {
		d.t.Errorf("%d publishes were never acknowledged", unacknowledged)
	}
	if topic != nil {
		checkArrivals(d.t, topic.payloads(), 1, d.sent)
	}
	allStats(d.t, d.sensor)
	s := stopSensor(d.t, d.sensor)
	if s.Published != uint64(d.sent) || sum(s.Messages) != uint64(d.sent) || s.Dropped != 0 || s.QueueMessages != 0 ||
		s.QueueBytes != 0 {
		d.t.Errorf("sent %d, the counters say %+v", d.sent, s)
	}
	d.t.Logf("%d messages, %d sent again", d.sent, duplicates)
	return duplicates
}

// TestBrokerAwayAtStart: no broker for the first 10 s.
func TestBrokerAwayAtStart(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	d.proxy.close()
	d.start(nil, awayWait)
	d.send(10 * time.Second)
	d.proxy.open()
	d.send(2 * time.Second)
	d.allDelivered(topic, 30*time.Second)
}

// TestBrokerRestarts: stopped and started again, and killed and started again. What it had acknowledged and not yet
// handed on is lost with it, so only what it acknowledged counts here.
func TestBrokerRestarts(t *testing.T) {
	for _, signal := range []string{"TERM", "KILL"} {
		t.Run(signal, func(t *testing.T) {
			t.Parallel()
			d := newDelivery(t)
			d.start(nil)
			d.send(3 * time.Second)
			go func() {
				ctx, id := context.Background(), d.broker.GetContainerID()
				if _, err := docker.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signal}); err != nil {
					t.Error(err)
				}
				time.Sleep(3 * time.Second)
				if _, err := docker.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
					t.Error(err)
				}
			}()
			d.send(8 * time.Second)
			d.allDelivered(nil, 30*time.Second)
			if n := d.proxy.count("CONNECT"); n < 2 {
				t.Errorf("%d connections: the broker was never away", n)
			}
		})
	}
}

// count returns how many packets of a type the sensor has sent.
func (p *proxy) count(kind string) int {
	return get(p, func(p *proxy) int { return p.types[kind] })
}

// TestConnectionCut: each second, for 20 s, in turn with publishes on the way and with acknowledgements on
// the way back.
func TestConnectionCut(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	d.start(nil)
	for i := range 20 {
		d.send(900 * time.Millisecond)
		d.proxy.set(func(p *proxy) { p.stalled, p.withhold = i%2 == 0, i%2 == 1 })
		d.send(100 * time.Millisecond)
		d.proxy.cut()
		d.proxy.set(func(p *proxy) { p.stalled, p.withhold = false, false })
	}
	if d.allDelivered(topic, 40*time.Second) == 0 {
		t.Error("nothing had to be sent again")
	}
}

// TestStall: nothing moves for 15 s, nothing is closed.
func TestStall(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	d.start(nil)
	d.send(2 * time.Second)
	d.proxy.set(func(p *proxy) { p.stalled = true })
	d.send(15 * time.Second)
	d.proxy.set(func(p *proxy) { p.stalled = false })
	d.send(time.Second)
	d.allDelivered(topic, 20*time.Second)
	if n := d.proxy.count("CONNECT"); n != 1 {
		t.Errorf("%d connections, want the first one to live on", n)
	}
}

// TestAcknowledgementsWithheld: a broker that throttles so has its connection renewed after 30 s.
func TestAcknowledgementsWithheld(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	d.start(nil)
	d.send(time.Second)
	d.untilPublished(5 * time.Second)
	d.proxy.set(func(p *proxy) { p.withhold = true })
	begin := time.Now()
	d.send(2 * time.Second)
	for d.proxy.count("CONNECT") == 1 && time.Since(begin) < 50*time.Second {
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(begin); took < 30*time.Second || took > 42*time.Second {
		t.Errorf("the connection was renewed after %s", took)
	}
	if s := stats(t, d.sensor); s.Published != rate || s.QueueMessages != 2*rate {
		t.Errorf("meanwhile the counters say %+v", s)
	}
	d.proxy.set(func(p *proxy) { p.withhold = false })
	// Acknowledgements of what came on the new connection before that line are lost, too.
	d.proxy.cut()
	if d.allDelivered(topic, 20*time.Second) == 0 {
		t.Error("nothing had to be sent again")
	}
}

// TestMessageRefused: Mosquitto hangs up at a packet of more than max_packet_size. This one message is dropped,
// counted and logged with its size, and all others arrive in order.
func TestMessageRefused(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	_, files := withFiles(t, nil)
	d.restartBroker("max_packet_size 20000\n", files)
	topic := subscribe(t, d.broker.address, "sip")
	d.start(map[string]string{"BROKER": "tcp://secure:1883"}) // nothing between them
	body := "Length: 30000\r\n\r\n" + strings.Repeat("x", 30000)
	large := bytes.Replace(numbered(0), []byte("Length: 0\r\n\r\n"), []byte(body), 1)
	d.send(time.Second)
	to := &net.UDPAddr{IP: net.ParseIP(d.addressOf(d.sensor)), Port: 5060}
	if _, err := d.socket.WriteTo(large, to); err != nil {
		t.Fatal(err)
	}
	d.send(time.Second)
	d.untilPublished(40 * time.Second)
	checkArrivals(t, topic.payloads(), 1, d.sent)
	allStats(t, d.sensor)
	s := stopSensor(t, d.sensor)
	if s.Published != uint64(d.sent) || s.Dropped != 1 || sum(s.Messages) != uint64(d.sent)+1 ||
		s.QueueMessages != 0 || s.QueueBytes != 0 {
		t.Errorf("sent %d and a large one, the counters say %+v", d.sent, s)
	}
	text := logs(t, d.sensor)
	dropped := regexp.MustCompile(`"level":"ERROR","msg":"message dropped.*"bytes":(\d+).*max_packet_size`)
	lines := dropped.FindAllStringSubmatch(text, -1)
	if len(lines) != 1 {
		t.Fatalf("%d lines on a dropped message, want 1:\n%s", len(lines), text)
	}
	// Beside the message in base64 an envelope has less than 400 bytes.
	encoded := base64.StdEncoding.EncodedLen(len(large))
	if size, _ := strconv.Atoi(lines[0][1]); size <= encoded || size > encoded+400 {
		t.Errorf("a message of %d bytes in base64 is logged with %d", encoded, size)
	}
	if strings.Contains(text, "alice") {
		t.Errorf("the log names a party:\n%s", text)
	}
}

// TestThrottled: a broker that ignores what is over its quota of 100 publishes a second, and closes nothing, as AWS IoT
// does.
func TestThrottled(t *testing.T) {
	const quota = 100
	// With a MAX_RATE at the quota nothing is ignored, and messages go out evenly although they come in a burst.
	t.Run("MAX_RATE", func(t *testing.T) {
		t.Parallel()
		d := newDelivery(t)
		topic := subscribe(t, d.broker.address, "sip")
		d.proxy.quota = quota
		d.start(map[string]string{"MAX_RATE": strconv.Itoa(quota)})
		d.send(2 * time.Second)
		if repeated := d.allDelivered(topic, 25*time.Second); repeated > 0 {
			t.Errorf("%d were sent again", repeated)
		}
		d.proxy.set(func(p *proxy) {
			if p.ignored > 0 || p.types["CONNECT"] != 1 {
				t.Errorf("%d ignored, %d connections", p.ignored, p.types["CONNECT"])
			}
			var gaps []time.Duration
			for i, m := range p.sent[1:] {
				gaps = append(gaps, m.at.Sub(p.sent[i].at))
			}
			took := p.sent[len(p.sent)-1].at.Sub(p.sent[0].at)
			slices.Sort(gaps)
			low, middle, high := gaps[len(gaps)*3/10], gaps[len(gaps)/2], gaps[len(gaps)*9/10]
			t.Logf("%d messages in %s, gaps %s to %s, %s in the middle", len(p.sent), took, low, high, middle)
			// A machine with more to do than it can wakes the sensor late, which it doesn't make up for, and this
			// process, which then sees two together.
			const gap = time.Second / quota
			if least := time.Duration(len(gaps)) * gap; took < least*99/100 || took > least*2 {
				t.Errorf("%d messages took %s", len(p.sent), took)
			}
			if low < gap/4 || middle < gap/2 || middle > gap*2 {
				t.Errorf("three in ten of the gaps are below %s, a half below %s", low, middle)
			}
		})
	})
	// Without it the log says what is missing, and where to look.
	t.Run("no MAX_RATE", func(t *testing.T) {
		t.Parallel()
		d := newDelivery(t)
		topic := subscribe(t, d.broker.address, "sip")
		d.proxy.quota = quota
		d.start(nil)
		d.send(2 * time.Second)
		reason := regexp.MustCompile(`"level":"ERROR".*[1-9]\d* PUBACKs are late.*"check":"[^"]*quotas[^"]*MAX_RATE`)
		eventually(t, 45*time.Second, "the reason in the log", func() bool {
			return reason.MatchString(logs(t, d.sensor))
		})
		if ignored := get(d.proxy, func(p *proxy) int { return p.ignored }); ignored == 0 {
			t.Error("nothing was over the quota")
		}
		d.proxy.set(func(p *proxy) { p.quota = 0 })
		d.proxy.cut() // what was ignored on this connection never gets a PUBACK
		if d.allDelivered(nil, 15*time.Second) == 0 {
			t.Error("nothing had to be sent again")
		}
		// A broker that ignores one message and takes a later one changes their order.
		if a := arrived(t, topic.payloads(), d.sent); a.missing > 0 {
			t.Errorf("%d of %d messages never came", a.missing, d.sent)
		}
	})
}

// TestLogReader: standard output that nobody reads, or none, holds up neither delivery, nor a reconnect, nor the stop.
func TestLogReader(t *testing.T) {
	// The shell's descriptor 3, which the sensor inherits, is the pipe's other end, from which nobody reads.
	const full = "mkfifo /log\nexec 3<>/log\nhead -c 65536 /dev/zero >&3\nexec /sip-capture >/log"
	program := sensorProgram(t)
	for name, script := range map[string]string{
		"stalls":        full,
		"comes back":    full,
		"has gone":      "exec /sip-capture > >(head -n 1)",
		"never existed": "exec /sip-capture >&-",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDelivery(t)
			topic := subscribe(t, d.broker.address, "sip")
			d.sensor = startContainer(t, hostImage, onNetwork(d.network), stoppedBy("SIGTERM"),
				testcontainers.WithEntrypoint("bash", "-c", script),
				testcontainers.WithEnv(map[string]string{
					"INTERFACE":      "eth0",
					"BROKER":         d.proxy.url(),
					"TOPIC":          "sip",
					"STATS_INTERVAL": "2ms", // which fills everything
				}),
				testcontainers.WithFiles(testcontainers.ContainerFile{
					Reader:            bytes.NewReader(program),
					ContainerFilePath: "/sip-capture",
					FileMode:          0o755,
				}))
			eventually(t, 10*time.Second, "connected", func() bool { return d.proxy.count("CONNECT") > 0 })
			d.send(2 * time.Second)
			d.proxy.cut()
			d.send(2 * time.Second)
			eventually(t, 15*time.Second, "all arrived", func() bool {
				_, unacknowledged := d.sip()
				different := map[string]bool{} // what is sent again comes twice
				for _, payload := range topic.payloads() {
					different[string(payload)] = true
				}
				return unacknowledged == 0 && len(different) >= d.sent
			})
			checkArrivals(t, topic.payloads(), 1, d.sent)
			if n := d.proxy.count("CONNECT"); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
			if name == "comes back" { // more than the 1,000 lines that wait had been written before
				bash(t, d.sensor, `timeout 5 grep -a -m 1 '"lines of this log are lost.*"lines":[1-9]' /log`)
			}
			endSensor(t, d.sensor)
			if d.proxy.count("DISCONNECT") != 1 {
				t.Error("no DISCONNECT")
			}
		})
	}
}

// TestQueueFull: no broker, QUEUE_MB=1: the memory stays bounded, the oldest are dropped and no others.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	d.proxy.close()
	d.start(map[string]string{"QUEUE_MB": "1"}, awayWait)
	for range 8 {
		d.send(time.Second)
		if kB := residentKB(t, d.sensor); kB > 64<<10 {
			t.Errorf("%d kB resident", kB)
		}
	}
	eventually(
		t,
		5*time.Second,
		"all counted",
		func() bool { return sum(stats(t, d.sensor).Messages) == uint64(d.sent) },
	)
	full := stats(t, d.sensor)
	if full.QueueBytes > 1<<20 || full.QueueBytes < 1<<20-2000 || full.Dropped+full.QueueMessages != uint64(d.sent) {
		t.Errorf("the counters say %+v", full)
	}
	d.proxy.open()
	eventually(t, 40*time.Second, "the queue drained", func() bool { return stats(t, d.sensor).QueueMessages == 0 })
	checkArrivals(t, topic.payloads(), int(full.Dropped)+1, d.sent)
	allStats(t, d.sensor)
	if s := stopSensor(t, d.sensor); s.Dropped != full.Dropped || s.Published != full.QueueMessages {
		t.Errorf("before %+v, at the end %+v", full, s)
	}
}

// residentKB returns the resident memory of a container's processes.
func residentKB(t *testing.T, c testcontainers.Container) (kB int) {
	t.Helper()
	top, err := docker.ContainerTop(
		t.Context(),
		c.GetContainerID(),
		client.ContainerTopOptions{Arguments: []string{"-o", "pid,rss"}},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range top.Processes {
		rss, err := strconv.Atoi(process[1])
		if err != nil {
			t.Fatalf("%q: %v", process, err)
		}
		kB += rss
	}
	return kB
}

// TestStop: SIGTERM in the middle of the traffic, with the broker there, away, and coming back.
func TestStop(t *testing.T) {
	t.Run("under load", func(t *testing.T) {
		t.Parallel()
		d := newDelivery(t)
		topic := subscribe(t, d.broker.address, "sip")
		d.start(nil)
		sending := make(chan bool)
		go func() {
			d.send(4 * time.Second)
			close(sending)
		}()
		time.Sleep(2 * time.Second)
		s := stopSensor(t, d.sensor)
		<-sending
		if s.Dropped != 0 || s.QueueMessages != 0 || s.Published < rate || s.Published != sum(s.Messages) {
			t.Errorf("the counters say %+v", s)
		}
		checkArrivals(t, topic.exactly(t, int(s.Published)), 1, int(s.Published))
		if d.proxy.count("DISCONNECT") != 1 {
			t.Error("no DISCONNECT")
		}
	})
	t.Run("broker away", func(t *testing.T) {
		t.Parallel()
		d := newDelivery(t)
		d.start(nil)
		d.send(time.Second)
		d.untilPublished(5 * time.Second)
		d.proxy.close()
		d.send(2 * time.Second)
		time.Sleep(200 * time.Millisecond) // half of libpcap's time limit is the latency
		s := stopSensor(t, d.sensor)
		if s.Published != rate || s.Dropped != 2*rate || s.QueueMessages != 0 {
			t.Errorf("the counters say %+v", s)
		}
		if text := logs(t, d.sensor); !strings.Contains(text, fmt.Sprintf(`"messages_dropped":%d}`, 2*rate)) {
			t.Errorf("what was left is not logged:\n%s", text)
		}
	})
	t.Run("broker comes back", func(t *testing.T) {
		t.Parallel()
		d := newDelivery(t)
		topic := subscribe(t, d.broker.address, "sip")
		d.start(nil)
		d.send(time.Second)
		d.proxy.close()
		d.send(2 * time.Second)
		time.Sleep(200 * time.Millisecond)
		time.AfterFunc(4*time.Second, d.proxy.open)
		s := stopSensor(t, d.sensor)
		if s.Published != uint64(d.sent) || s.Dropped != 0 {
			t.Errorf("the counters say %+v", s)
		}
		checkArrivals(t, topic.payloads(), 1, d.sent)
	})
}

// TestHangUp: SIGHUP, which a closed terminal sends, is a clean stop: what waits for a broker is delivered first.
func TestHangUp(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	status := subscribe(t, d.broker.address, "status")
	d.start(map[string]string{"STATUS_TOPIC": "status"}, stoppedBy("SIGHUP"))
	d.send(time.Second)
	d.untilPublished(5 * time.Second)
	d.proxy.set(func(p *proxy) { p.stalled = true })
	d.send(time.Second)
	time.Sleep(200 * time.Millisecond) // half of libpcap's time limit is the latency
	time.AfterFunc(2*time.Second, func() { d.proxy.set(func(p *proxy) { p.stalled = false }) })
	s := stopSensor(t, d.sensor)
	if s.Published != uint64(d.sent) || s.Dropped != 0 || s.QueueMessages != 0 {
		t.Errorf("sent %d, the counters say %+v", d.sent, s)
	}
	if text := logs(t, d.sensor); !strings.Contains(text, `"signal":"hangup"`) {
		t.Errorf("the signal is not logged:\n%s", text)
	}
	checkArrivals(t, topic.exactly(t, d.sent), 1, d.sent)
	if all := status.exactly(t, 2); string(all[1]) != "offline" || d.proxy.count("DISCONNECT") != 1 {
		t.Errorf("the status was %q at last, with %d DISCONNECT", all[1], d.proxy.count("DISCONNECT"))
	}
}

// stoppedBy sets the signal with which Docker stops a container.
func stoppedBy(signal string) testcontainers.CustomizeRequestOption {
	return testcontainers.WithConfigModifier(func(c *container.Config) { c.StopSignal = signal })
}

// withFiles binds a new directory into a container, at the same path, and returns the path. Docker doesn't
// copy files into a
// container whose file system is read-only, as every sensor's is.
func withFiles(t *testing.T, contents map[string][]byte) (string, testcontainers.ContainerCustomizer) {
	t.Helper()
	directory := t.TempDir()
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(directory, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return directory, testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
		h.Binds = append(h.Binds, directory+":"+directory+":ro")
	})
}

// restartBroker starts another broker in place of the first, with lines added to its configuration.
func (d *delivery) restartBroker(configuration string, files testcontainers.ContainerCustomizer) {
	d.t.Helper()
	base, err := os.ReadFile("images/mosquitto/mosquitto.conf")
	if err != nil {
		d.t.Fatal(err)
	}
	c := startContainer(d.t, mosquittoImage, onNetwork(d.network, "secure"), files,
		testcontainers.WithExposedPorts("1883/tcp"),
		testcontainers.WithWaitStrategy(wait.ForLog("mosquitto version .* running").AsRegexp()),
		testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: strings.NewReader(
				"per_listener_settings true\n" + string(base) + configuration,
			), ContainerFilePath: "/etc/mosquitto/mosquitto.conf", FileMode: 0o644,
		}))
	address, err := c.PortEndpoint(d.t.Context(), "1883/tcp", "")
	if err != nil {
		d.t.Fatal(err)
	}
	d.broker = broker{c, "", address}
}

// TestPassword: a wrong one, then the right one in the same file, without a restart, and none of them ever in a log.
func TestPassword(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	salt := []byte("twelve bytes")
	hash, err := pbkdf2.Key(sha512.New, "right-secret", salt, 101, 64)
	if err != nil {
		t.Fatal(err)
	}
	users := fmt.Sprintf(
		"sensor:$7$101$%s$%s\n",
		base64.StdEncoding.EncodeToString(salt),
		base64.StdEncoding.EncodeToString(hash),
	)
	directory, files := withFiles(t, map[string][]byte{"users": []byte(users), "password": []byte("wrong-secret\n")})
	d.restartBroker("listener 1884\nallow_anonymous false\npassword_file "+directory+"/users\n", files)
	d.proxy.target = func() string { return d.addressOf(d.broker) + ":1884" }
	topic := subscribe(t, d.broker.address, "sip")
	d.start(map[string]string{"USERNAME": "sensor", "PASSWORD_FILE": directory + "/password"}, awayWait, files)
	d.send(4 * time.Second)
	text := logs(t, d.sensor)
	if !strings.Contains(text, `"level":"ERROR"`) || !strings.Contains(text, "USERNAME") ||
		!strings.Contains(text, "efused") {
		t.Errorf("nothing says what is wrong:\n%s", text)
	}
	if stats(t, d.sensor).Connected {
		t.Error("connected, says a sensor that was refused")
	}
	if err := os.WriteFile(directory+"/password.new", []byte("right-secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(directory+"/password.new", directory+"/password"); err != nil {
		t.Fatal(err)
	}
	d.allDelivered(topic, 30*time.Second)
	if strings.Contains(logs(t, d.sensor), "-secret") {
		t.Error("a password is in the log")
	}
	if strings.Count(logs(t, d.sensor), `"msg":"no connection","`) != 1 {
		t.Errorf("the same reason more than once a minute:\n%s", logs(t, d.sensor))
	}
}

// newAuthority makes a certificate authority, and certificates of it for the broker and for a sensor, in PEM
// form. The broker
// is "secure", or has the names that are given.
func newAuthority(t *testing.T, names ...string) map[string][]byte {
	t.Helper()
	if names == nil {
		names = []string{"secure"}
	}
	made := map[string][]byte{}
	var authority *x509.Certificate
	var authorityKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "broker", "sensor"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: names,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: name == "ca", BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if authority == nil {
			authority, authorityKey = template, key
		}
		certificate, err := x509.CreateCertificate(rand.Reader, template, authority, &key.PublicKey, authorityKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		made[name+".pem"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
		made[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	}
	return made
}

// TestTLS: the own authority, a wrong one, and a client certificate, there and missing. What is refused stays with
// the sensor: nothing of it is ever on the wire.
func TestTLS(t *testing.T) {
	t.Parallel()
	certificates := newAuthority(t)
	certificates["other.pem"] = newAuthority(t)["ca.pem"]
	directory, files := withFiles(t, certificates)
	listener := func(port int, more string) string {
		return fmt.Sprintf(
			"listener %d\nallow_anonymous true\ncafile %[2]s/ca.pem\ncertfile %[2]s/broker.pem\nkeyfile %[2]s/broker.key\n%s",
			port,
			directory,
			more,
		)
	}
	d := newDelivery(t)
	d.restartBroker(listener(8883, "")+listener(8884, "require_certificate true\n"), files)
	client := map[string]string{"CERT_FILE": directory + "/sensor.pem", "KEY_FILE": directory + "/sensor.key"}
	for _, row := range []struct {
		name, port, authority string
		env                   map[string]string
		refused               string
	}{
		{
			"own authority",
			"8883",
			"ca.pem",
			nil,
			"",
		},
		{
			"wrong authority",
			"8883",
			"other.pem",
			nil,
			"unknown authority",
		},
		{
			"client certificate",
			"8884",
			"ca.pem",
			client,
			"",
		},
		{
			"client certificate missing",
			"8884",
			"ca.pem",
			nil,
			"certificate required",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			one := *d
			one.t, one.sent = t, 0
			one.proxy = newProxy(t, d.gateway(), func() string { return d.addressOf(d.broker) + ":" + row.port })
			one.proxy.set(func(p *proxy) { p.opaque = true })
			_, port, _ := net.SplitHostPort(one.proxy.address)
			env := map[string]string{
				"BROKER":  "ssl://secure:" + port,
				"CA_FILE": directory + "/" + row.authority,
				"TOPIC":   "sip",
			}
			for name, value := range row.env {
				env[name] = value
			}
			// The certificate is for the name "secure", which for the sensor is the proxy.
			one.start(env, awayWait, files, testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
				h.ExtraHosts = []string{"secure:" + d.gateway()}
			}))
			topic := subscribe(t, d.broker.address, "sip")
			one.send(time.Second)
			if row.refused == "" {
				one.untilPublished(10 * time.Second)
				checkArrivals(t, topic.exactly(t, one.sent), 1, one.sent)
				stopSensor(t, one.sensor)
			} else {
				eventually(t, 10*time.Second, "an error in the log", func() bool {
					text := logs(t, one.sensor)
					return strings.Contains(text, `"level":"ERROR"`) && strings.Contains(text, row.refused) &&
						strings.Contains(text, "CA_FILE")
				})
				if s := stats(t, one.sensor); s.Published != 0 || s.Dropped != 0 {
					t.Errorf("the counters say %+v", s)
				}
			}
			wire := string(get(one.proxy, func(p *proxy) []byte { return p.fromHere }))
			if len(wire) == 0 || wire[0] != 0x16 || strings.Contains(wire, "MQTT") || strings.Contains(wire, `"sip"`) {
				t.Errorf("not TLS alone on the wire: %.200q", wire)
			}
		})
	}
}

// TestWill: a sensor that is killed is "offline" for everyone who asks.
func TestWill(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	status := subscribe(t, d.broker.address, "status")
	last := func() string {
		all := status.payloads()
		if len(all) == 0 {
			return ""
		}
		return string(all[len(all)-1])
	}
	d.start(map[string]string{"STATUS_TOPIC": "status"})
	eventually(t, 5*time.Second, "online", func() bool { return last() == "online" })
	if _, err := docker.ContainerKill(
		t.Context(),
		d.sensor.GetContainerID(),
		client.ContainerKillOptions{Signal: "KILL"},
	); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "offline", func() bool { return last() == "offline" })
	if retained := subscribe(t, d.broker.address, "status").exactly(t, 1); string(retained[0]) != "offline" {
		t.Errorf("retained: %q", retained)
	}
}

// TestPackets sees everything that a sensor with a STATUS_TOPIC sends from its start to its stop.
func TestPackets(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	d.start(map[string]string{"STATUS_TOPIC": "status"})
	d.send(time.Second)
	eventually(t, 20*time.Second, "a ping", func() bool { return d.proxy.count("PINGREQ") > 0 })
	d.allDelivered(nil, 5*time.Second)
	d.proxy.set(func(p *proxy) {
		if len(p.types) != 4 || p.types["CONNECT"] != 1 || p.types["PUBLISH"] != rate+2 || p.types["DISCONNECT"] != 1 {
			t.Errorf("the sensor sent %v", p.types)
		}
		first, last := p.sent[0], p.sent[len(p.sent)-1]
		if first.topic != "status" || first.payload != "online" || last.topic != "status" || last.payload != "offline" {
			t.Errorf("first %v, last %v", first, last)
		}
	})
}

// TestHostileBrokers: one broker after the other breaks the protocol. All that comes of it is that the next is tried.
func TestHostileBrokers(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	const connack = "\x20\x02\x00\x00"
	answers := []string{
		"\xde\xad\xbe\xef\x00\x01\x02\x03",               // garbage
		"\x20\x05\x00\x00\x00\x00\x00",                   // a CONNACK of a wrong length
		"\x20\x02\x00\x63",                               // a return code that doesn't exist
		connack + "\x32\x0a\x00\x03sip\x00\x01{}!",       // a message for us
		connack + "\x30\xff\xff\xff\x7f\x00\x03sip",      // a message of 256 MB
		connack + "\x40\x02\x12\x34\x40\x02\x12\x34\x90", // PUBACKs for nothing, then half a SUBACK
	}
	var urls []string
	visits := make(chan int, 100)
	for i, answer := range answers {
		l, err := net.Listen("tcp", d.gateway()+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				visits <- i
				packets.ReadPacket(conn)
				io.WriteString(conn, answer)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		}()
		urls = append(urls, "tcp://"+l.Addr().String())
	}
	d.start(map[string]string{"BROKER": strings.Join(append(urls, d.proxy.url()), ",")})
	d.send(2 * time.Second)
	for i := range answers {
		if visited := <-visits; visited != i {
			t.Errorf("broker %d was tried where %d was due", visited, i)
		}
	}
	if kB := residentKB(t, d.sensor); kB > 64<<10 {
		t.Errorf("%d kB resident", kB)
	}
	d.allDelivered(topic, 10*time.Second)
}

// TestDeviceComesBack: a veth device is deleted and created again, in the network namespace of a container.
func TestDeviceComesBack(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may make devices")
	}
	d := newDelivery(t)
	topic := subscribe(t, d.broker.address, "sip")
	sleep := []testcontainers.ContainerCustomizer{
		testcontainers.WithEntrypoint("sleep"),
		testcontainers.WithCmd("infinity"),
	}
	near := startContainer(t, mosquittoImage, append(sleep, onNetwork(d.network))...)
	far := startContainer(t, mosquittoImage, append(sleep, onNetwork("none"))...)
	ip := func(c testcontainers.Container, arguments string) {
		t.Helper()
		command := append([]string{"-t", pid(t, c), "-n", "ip"}, strings.Fields(arguments)...)
		if output, err := exec.Command("nsenter", command...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", arguments, err, output)
		}
	}
	plug := func() {
		ip(near, "link add tap0 type veth peer name tap1 netns "+pid(t, far))
		ip(near, "link set tap0 up")
		ip(near, "addr add 10.99.0.1/24 dev tap0")
		ip(far, "link set tap1 up")
		ip(far, "addr add 10.99.0.2/24 dev tap1")
	}
	sendFar := func(first, last int) {
		// bash writes line by line, cat a file at once: one datagram each.
		script := fmt.Sprintf(
			`for i in $(seq -f %%08g %d %d); do printf 'OPTIONS sip:bob@192.0.2.2 SIP/2.0\r\nCall-ID: number-%%s\r\n\r\n' $i >/tmp/m; cat /tmp/m >/dev/udp/10.99.0.1/5060; done`,
			first,
			last,
		)
		execute(t, far, "bash", "-c", script)
	}
	plug()
	d.sensor = startSensor(
		t,
		sameNetworkAs(near),
		map[string]string{"INTERFACE": "tap0", "BROKER": d.proxy.url(), "TOPIC": "sip"},
	)
	sendFar(1, 100)
	checkArrivals(t, topic.exactly(t, 100), 1, 100)
	ip(near, "link del tap0")
	eventually(
		t,
		10*time.Second,
		"the loss in the log",
		func() bool { return strings.Contains(logs(t, d.sensor), `"level":"ERROR"`) },
	)
	plug()
	eventually(
		t,
		20*time.Second,
		"capturing again",
		func() bool { return strings.Contains(logs(t, d.sensor), "capturing again") },
	)
	sendFar(101, 200)
	checkArrivals(t, topic.exactly(t, 200), 1, 200)
	stopSensor(t, d.sensor)
}

// pid returns the process id of a container's first process on this machine.
func pid(t *testing.T, c testcontainers.Container) string {
	t.Helper()
	inspected, err := docker.ContainerInspect(t.Context(), c.GetContainerID(), client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(inspected.Container.State.Pid)
}
