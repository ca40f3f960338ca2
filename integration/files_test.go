package integration

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	"go.yaml.in/yaml/v3"
)

// The tests of this file and those of deploy_test.go, readme_test.go, cluster_test.go and clouds_test.go read, run or
// parse each of the files in deploy/.

// tested says for each file in deploy/ which test that is.
var tested = map[string]string{
	"README.md":                 "TestReadmeLinks, TestReadmeCommands",
	"reader":                    "TestReadmeDesk",
	"reader.py":                 "TestReadmeDesk",
	"split-link.txt":            "TestReadmeSplit",
	"telegraf.conf":             "TestReadmeTelegraf",
	"aws-iot-policy.json":       "TestReadmePolicy (read; only AWS can run it)",
	"clouds":                    "TestClouds, TestAWS",
	"clouds.md":                 "TestClouds",
	"compose.yaml":              "TestComposeService",
	"envelopes-to-pcap.py":      "TestEnvelopesToPcap",
	"grafana.json":              "TestDashboard",
	"kubernetes.yaml":           "TestKubernetes",
	"mosquitto-acl":             "TestService, TestReadmeBridge",
	"mosquitto-bridge.conf":     "TestReadmeBridge",
	"mosquitto.conf":            "TestService, TestReadmeBridge",
	"nats.conf":                 "TestNATS",
	"prometheus-rules.yml":      "TestService, TestDashboard",
	"prometheus.yml":            "TestDashboard",
	"rabbitmq-definitions.json": "TestRabbitMQ",
	"rabbitmq.conf":             "TestRabbitMQ",
	"sensor.nft":                "TestService",
}

func TestDeployFiles(t *testing.T) {
	entries, err := os.ReadDir("deploy")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
		if tested[entry.Name()] == "" {
			t.Errorf("nothing says which test reads %s", entry.Name())
		}
	}
	for name := range tested {
		if !slices.Contains(names, name) {
			t.Errorf("there is no %s", name)
		}
	}
}

// TestDashboard: Prometheus, configured as in deploy/, scrapes a sensor, and answers each query of the Grafana
// dashboard with data. All that the sensor exposes is on the dashboard.
func TestDashboard(t *testing.T) {
	t.Parallel()
	networkName := newNetwork(t)
	startBroker(t, networkName)
	connected := func(body io.Reader) bool {
		text, err := io.ReadAll(body)
		return err == nil && strings.Contains(string(text), "connected true")
	}
	sensor := startSensor(t, networkName, map[string]string{
		"INTERFACE": "eth0", "BROKER": "tcp://broker:1883", "TOPIC": "sip", "METRICS_ADDR": ":9464",
		"SIP_FILTER": "(method invite)",
	}, testcontainers.WithExposedPorts("9464/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/healthz").WithPort("9464/tcp").WithResponseMatcher(connected)))
	address, err := sensor.ContainerIP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host := startHost(t, networkName)
	configuration := replaced(t, string(deployFile(t, "prometheus.yml")),
		"127.0.0.1:9464", address+":9464", "scrape_interval: 15s", "scrape_interval: 1s")
	write(t, host, "/tmp/prometheus.yml", configuration)
	write(t, host, "/tmp/prometheus-rules.yml", string(deployFile(t, "prometheus-rules.yml")))
	bash(t, host, `promtool check config /tmp/prometheus.yml
prometheus --config.file=/tmp/prometheus.yml --storage.tsdb.path=/tmp/data --web.listen-address=127.0.0.1:9090 \
    >/tmp/prometheus.log 2>&1 &
until curl -sf http://127.0.0.1:9090/-/ready; do sleep 0.2; done`)

	socket := newSocket(t)
	for i := range 20 {
		for _, message := range [][]byte{numbered(i), []byte("OPTIONS sip:x SIP/2.0\r\n\r\n")} {
			if _, err := socket.WriteTo(message, &net.UDPAddr{IP: net.ParseIP(address), Port: 5060}); err != nil {
				t.Fatal(err)
			}
		}
	}

	// query returns how many series Prometheus answers with, and the largest value.
	query := func(expression string) (series int, largest float64) {
		t.Helper()
		answer := bash(t, host, "curl -sf 'http://127.0.0.1:9090/api/v1/query?query="+url.QueryEscape(expression)+"'")
		var parsed struct {
			Data struct {
				Result []struct{ Value [2]json.RawMessage }
			}
		}
		if err := json.Unmarshal([]byte(answer), &parsed); err != nil {
			t.Fatalf("%s: %v: %s", expression, err, answer)
		}
		for _, result := range parsed.Data.Result {
			var value float64
			if _, err := fmt.Sscanf(string(result.Value[1]), `"%g"`, &value); err == nil {
				largest = max(largest, value)
			}
		}
		return len(parsed.Data.Result), largest
	}
	eventually(t, 20*time.Second, "Prometheus has scraped the messages twice", func() bool {
		_, published := query("sip_capture_messages_published_total")
		_, samples := query("count_over_time(sip_capture_messages_published_total[1m])")
		return published == 20 && samples >= 3
	})
	if n, _ := query(`up{job="sip-capture"}`); n != 1 {
		t.Errorf("%d targets", n)
	}
	if n, _ := query("ALERTS"); n != 0 {
		t.Errorf("%d alerts", n)
	}

	var dashboard struct {
		Title         string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name, Query string }
		}
		Panels []struct {
			ID                       int
			Type, Title, Description string
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(deployFile(t, "grafana.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := ""
	for _, panel := range dashboard.Panels {
		if panel.Title == "" || panel.Description == "" || len(panel.Targets) == 0 ||
			panel.GridPos.X+panel.GridPos.W > 24 {
			t.Errorf("panel %+v", panel)
		}
		for _, target := range panel.Targets {
			shown += target.Expr + "\n"
			expression := strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")
			if n, _ := query(replaced(t, expression, "$instance", ".*")); n == 0 {
				t.Errorf("%s: nothing for %s", panel.Title, target.Expr)
			}
		}
	}
	for name := range metrics(t, address+":9464") {
		name, _, _ = strings.Cut(name, "{")
		if !regexp.MustCompile(name + `\b`).MatchString(shown) {
			t.Errorf("%s is not on the dashboard", name)
		}
	}
	variable := dashboard.Templating.List[1]
	metric := regexp.MustCompile(`^label_values\((\w+), instance\)$`).FindStringSubmatch(variable.Query)
	if variable.Name != "instance" || metric == nil {
		t.Fatalf("variable %+v", variable)
	}
	if n, _ := query(metric[1]); n != 1 {
		t.Errorf("%d instances", n)
	}
}

// composeService is the service of deploy/compose.yaml; a field that isn't here is an error there.
type composeService struct {
	Image       string            `yaml:"image"`
	NetworkMode string            `yaml:"network_mode"`
	Environment map[string]string `yaml:"environment"`
	Secrets     []string          `yaml:"secrets"`
	Healthcheck struct {
		Test        []string      `yaml:"test"`
		Interval    time.Duration `yaml:"interval"`
		Timeout     time.Duration `yaml:"timeout"`
		Retries     int           `yaml:"retries"`
		StartPeriod time.Duration `yaml:"start_period"`
	} `yaml:"healthcheck"`
	CapDrop         []string      `yaml:"cap_drop"`
	CapAdd          []string      `yaml:"cap_add"`
	ReadOnly        bool          `yaml:"read_only"`
	Restart         string        `yaml:"restart"`
	StopGracePeriod time.Duration `yaml:"stop_grace_period"`
	MemLimit        string        `yaml:"mem_limit"`
}

// TestComposeService runs the image with the settings of deploy/compose.yaml, and its health check in it.
func TestComposeService(t *testing.T) {
	t.Parallel()
	var file struct {
		Services map[string]composeService
		Secrets  map[string]struct{ File string }
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(deployFile(t, "compose.yaml"))))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	service := file.Services["sip-capture"]
	if service.NetworkMode != "host" || !service.ReadOnly || service.StopGracePeriod < 10*time.Second ||
		!slices.Equal(service.CapDrop, []string{"ALL"}) || !slices.Equal(service.CapAdd, []string{"NET_RAW"}) {
		t.Errorf("the service is %+v", service)
	}
	secret := service.Secrets[0]
	if service.Environment["PASSWORD_FILE"] != "/run/secrets/"+secret || file.Secrets[secret].File == "" {
		t.Errorf("the password is in %s, the secrets are %v", service.Environment["PASSWORD_FILE"], file.Secrets)
	}
	networkName := newNetwork(t)
	env := service.Environment
	env["INTERFACE"] = "eth0"
	directory, _ := withFiles(t, map[string][]byte{secret: []byte("secret\n")})
	sensor := startContainer(t, sensorImage, sensorRequest(networkName, env, bound(directory, "/run/secrets"),
		testcontainers.WithWaitStrategy(wait.ForLog(`"msg":"stats"`)))...)
	test := service.Healthcheck.Test
	if len(test) < 2 || test[0] != "CMD" {
		t.Fatalf("the health check is %q", test)
	}
	if code := status(t, sensor, test[1:]...); code != 0 {
		t.Errorf("the health check of a healthy sensor ends with %d", code)
	}
}

// TestEnvelopesToPcap: envelopes of three capture files become one that tshark reads as SIP, with the same bytes,
// addresses and times, and no wrong checksum.
func TestEnvelopesToPcap(t *testing.T) {
	t.Parallel()
	networkName := newNetwork(t)
	broker := startBroker(t, networkName)
	topic := subscribe(t, broker.address, "sip")
	for _, name := range []string{"sipp_udp.pcap", "sipp_ipv6.pcapng", "sipp_tcp.pcap"} {
		file, err := os.ReadFile("../testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		directory, files := withFiles(t, map[string][]byte{name: file})
		startContainer(t, sensorImage, sensorRequest(networkName, map[string]string{
			"PCAP_FILE": directory + "/" + name, "BROKER": broker.url, "TOPIC": "sip", "INCLUDE_ADDRESSES": "true",
		}, files, testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(time.Minute)))...)
	}
	payloads := topic.payloads()
	if len(payloads) < 100 {
		t.Fatalf("%d envelopes", len(payloads))
	}
	host := startHost(t, "none")
	write(t, host, "/envelopes-to-pcap.py", string(deployFile(t, "envelopes-to-pcap.py")))
	write(t, host, "/envelopes", string(bytes.Join(payloads, []byte("\n")))+"\n")
	bash(t, host, "python3 /envelopes-to-pcap.py </envelopes >/calls.pcap")
	path := filepath.Join(t.TempDir(), "calls.pcap")
	if err := os.WriteFile(path, fileFrom(t, host, "/calls.pcap"), 0o644); err != nil {
		t.Fatal(err)
	}

	arguments := []string{"-r", path, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-T", "fields", "-E", "separator= "}
	for _, field := range []string{
		"frame.time_epoch", "ip.src", "ipv6.src", "udp.srcport", "ip.dst", "ipv6.dst", "udp.dstport",
		"ip.checksum.status", "udp.checksum.status", "udp.payload", "sip.Call-ID",
	} {
		arguments = append(arguments, "-e", field)
	}
	output, err := exec.Command("tshark", arguments...).Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	if len(lines) != len(payloads) {
		t.Fatalf("%d packets of %d envelopes", len(lines), len(payloads))
	}
	const good = "1" // a checksum's status in tshark
	for i, line := range lines {
		e := decode(t, payloads[i])
		src, dst := netip.MustParseAddrPort(e.Src), netip.MustParseAddrPort(e.Dst)
		want := []string{
			fmt.Sprintf("%d.%09d", e.Time.Unix(), e.Time.Nanosecond()),
			src.Addr().String(), fmt.Sprint(src.Port()), dst.Addr().String(), fmt.Sprint(dst.Port()),
		}
		if src.Addr().Is4() {
			want = append(want, good)
		}
		want = append(want, good, hex.EncodeToString(e.SIP))
		got := strings.Fields(line)
		if len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) {
			t.Fatalf("packet %d: tshark says %.300q, the envelope %.300q", i, got, want)
		}
		if !strings.Contains(string(e.SIP), got[len(want)]) {
			t.Errorf("packet %d: no SIP with the Call-ID %s", i, got[len(want)])
		}
	}
}
