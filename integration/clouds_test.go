package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
)

// settings reads a file of settings, as `docker run --env-file` does.
func settings(t *testing.T, path string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for line := range strings.Lines(string(deployFile(t, path))) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found {
			t.Errorf("%s: %q", path, line)
		}
		env[name] = value
	}
	return env
}

// TestClouds: -check accepts the settings for each cloud, which keep to its quotas in the table.
func TestClouds(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("deploy/clouds/*.env")
	if err != nil || len(files) < 10 {
		t.Fatalf("%q, %v", files, err)
	}
	// A machine with the image's program, and the files that the settings name.
	host := startHost(t, "none")
	if err := host.CopyToContainer(t.Context(), sensorProgram(t), "/sip-capture", 0o755); err != nil {
		t.Fatal(err)
	}
	certificates := newAuthority(t)
	bash(t, host, "mkdir /secrets")
	write(t, host, "/secrets/cert.pem", string(certificates["sensor.pem"]))
	write(t, host, "/secrets/key.pem", string(certificates["sensor.key"]))
	const token = "SharedAccessSignature sr=sips.azure-devices.net%2Fdevices%2Fsensor-1&sig=c2ln&se=1800000000\n"
	write(t, host, "/secrets/password", token)

	// The table: settings, messages a second, bytes a second, payload, topic, client id, MAX_RATE.
	row := regexp.MustCompile(`(?m)^\| \[\S+\]\((clouds/\S+\.env)\) \| ([\d,]*)[^|]*` +
		` \| [^|]* \| [^|]* \| ([^|]*) \| ([^|]*) \| (\S+) \|$`)
	rows := row.FindAllStringSubmatch(string(deployFile(t, "clouds.md")), -1)
	if len(rows) != len(files) {
		t.Errorf("%d files, %d rows", len(files), len(rows))
	}
	number := func(text string) int {
		n, _ := strconv.Atoi(strings.ReplaceAll(regexp.MustCompile(`^[\d,]+`).FindString(text), ",", ""))
		return n
	}
	for _, row := range rows {
		t.Run(row[1], func(t *testing.T) {
			env := settings(t, row[1])
			if env["MAX_RATE"] != strings.TrimSuffix(row[5], "–") {
				t.Errorf("MAX_RATE is %s, the table says %s", env["MAX_RATE"], row[5])
			}
			if quota := number(row[2]); quota > 0 && number(env["MAX_RATE"]) >= quota {
				t.Errorf("MAX_RATE=%s, the quota is %d", env["MAX_RATE"], quota)
			}
			for _, topic := range []string{env["TOPIC"], env["STATUS_TOPIC"]} {
				if bytes := number(row[3]); bytes > 0 && len(topic) > bytes || strings.Count(topic, "/") > 7 {
					t.Errorf("%s is too long", topic)
				}
			}
			if bytes := number(row[4]); bytes > 0 && len(env["CLIENT_ID"]) > bytes {
				t.Errorf("%s is too long", env["CLIENT_ID"])
			}
			command := []string{"env", "-i"}
			for name, value := range env {
				command = append(command, name+"="+value)
			}
			output := execute(t, host, append(command, "/sip-capture", "-check")...)
			if lastLine(output) != "configuration ok" {
				t.Errorf("-check says %s", output)
			}
		})
	}
}

// awsIoT is a broker that behaves as the documentation of AWS IoT Core says: TLS with a client certificate and a
// protocol in ALPN, at most 100 publishes a second on a connection, and silence above; at what isn't allowed it hangs
// up.
type awsIoT struct {
	mu        sync.Mutex
	payloads  [][]byte // acknowledged, of the topic sip/site1
	ignored   int      // publishes over the quota
	problems  []string // why it hung up
	connects  int
	protocols []string
}

const (
	awsPublishes   = 100
	awsBytes       = 512 << 10 // a second
	awsPayload     = 128 << 10
	awsClientIDMax = 128
)

// startAWS listens at port 443 of an address.
func startAWS(t *testing.T, host string, certificates map[string][]byte) *awsIoT {
	t.Helper()
	pair, err := tls.X509KeyPair(certificates["broker.pem"], certificates["broker.key"])
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(certificates["ca.pem"])
	listener, err := tls.Listen("tcp", net.JoinHostPort(host, "443"), &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities,
		NextProtos: []string{"x-amzn-mqtt-ca"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	aws := &awsIoT{}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if problem := aws.serve(conn.(*tls.Conn)); problem != "" {
					aws.mu.Lock()
					defer aws.mu.Unlock()
					aws.problems = append(aws.problems, problem)
				}
			}()
		}
	}()
	return aws
}

// serve answers one connection. It returns why it hangs up, or nothing when the sensor has.
func (a *awsIoT) serve(conn *tls.Conn) (problem string) {
	if err := conn.Handshake(); err != nil {
		return err.Error()
	}
	first, err := packets.ReadPacket(conn)
	if err != nil {
		return err.Error()
	}
	connect, ok := first.(*packets.ConnectPacket)
	protocol := conn.ConnectionState().NegotiatedProtocol
	if !ok || protocol != "x-amzn-mqtt-ca" || connect.ClientIdentifier != "sensor-1" ||
		len(connect.ClientIdentifier) > awsClientIDMax || connect.WillFlag && connect.WillTopic != "sip/site1/status" {
		return fmt.Sprintf("the protocol is %q, first came %v", protocol, first)
	}
	a.mu.Lock()
	a.connects++
	a.protocols = append(a.protocols, protocol)
	a.mu.Unlock()
	if err := packets.NewControlPacket(packets.Connack).Write(conn); err != nil {
		return err.Error()
	}
	publishes, bytes := &bucket{}, &bucket{}
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return "" // the sensor has gone
		}
		switch m := packet.(type) {
		case *packets.PublishPacket:
			if m.TopicName != "sip/site1" && m.TopicName != "sip/site1/status" || len(m.Payload) > awsPayload {
				return fmt.Sprintf("%d bytes for the topic %s", len(m.Payload), m.TopicName)
			}
			if !publishes.take(awsPublishes, 1) || !bytes.take(awsBytes, len(m.Payload)) {
				a.mu.Lock()
				a.ignored++
				a.mu.Unlock()
				continue
			}
			if m.TopicName == "sip/site1" {
				a.mu.Lock()
				a.payloads = append(a.payloads, slices.Clone(m.Payload))
				a.mu.Unlock()
			}
			puback := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			puback.MessageID = m.MessageID
			err = puback.Write(conn)
		case *packets.PingreqPacket:
			err = packets.NewControlPacket(packets.Pingresp).Write(conn)
		case *packets.DisconnectPacket:
			return ""
		default:
			return "it came " + packet.String()
		}
		if err != nil {
			return ""
		}
	}
}

// TestAWS: with the settings for AWS IoT on port 443 a burst of 900 messages is published within the quota, and nothing
// of it is ignored; without MAX_RATE the stand-in ignores what comes too fast.
func TestAWS(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may listen at port 443")
	}
	const recipe = "clouds/aws-iot-443.env"
	endpoint := regexp.MustCompile(`ssl://(\S+):443`).FindStringSubmatch(settings(t, recipe)["BROKER"])
	if endpoint == nil {
		t.Fatal("no endpoint")
	}
	certificates := newAuthority(t, endpoint[1])
	directory, _ := withFiles(t, map[string][]byte{
		"ca.pem":   certificates["ca.pem"],
		"cert.pem": certificates["sensor.pem"],
		"key.pem":  certificates["sensor.key"],
	})
	run := func(t *testing.T, maxRate string, check func(*delivery, *awsIoT)) {
		d := newDelivery(t)
		aws := startAWS(t, d.gateway(), certificates)
		env := settings(t, recipe)
		env["INTERFACE"], env["CA_FILE"] = "eth0", "/secrets/ca.pem"
		if maxRate != "" {
			env["MAX_RATE"] = maxRate
		}
		name := testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.ExtraHosts = []string{endpoint[1] + ":" + d.gateway()}
		})
		d.sensor = startSensor(t, d.network, env, bound(directory, "/secrets"), name)
		d.sendAt(3*time.Second, 300)
		check(d, aws)
	}
	t.Run("the recipe", func(t *testing.T) {
		run(t, "", func(d *delivery, aws *awsIoT) {
			d.untilPublished(30 * time.Second)
			s := stopSensor(t, d.sensor)
			aws.mu.Lock()
			defer aws.mu.Unlock()
			checkArrivals(t, aws.payloads, 1, d.sent)
			if aws.ignored > 0 || aws.connects != 1 || len(aws.problems) > 0 ||
				s.Published != uint64(d.sent) || s.Dropped != 0 {
				t.Errorf("%d ignored, %d connections, %q; %+v", aws.ignored, aws.connects, aws.problems, s)
			}
		})
	})
	t.Run("without MAX_RATE", func(t *testing.T) {
		run(t, "0", func(_ *delivery, aws *awsIoT) {
			aws.mu.Lock()
			defer aws.mu.Unlock()
			if aws.ignored == 0 {
				t.Errorf("all of %d messages were taken", len(aws.payloads))
			}
		})
	})
}
