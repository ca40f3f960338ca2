package integration

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	"go.yaml.in/yaml/v3"
)

// otherBrokers are those with which the workflow "weekly" runs the delivery tests, each by its name in SUITE_BROKER.
// Their images have to be pulled, so the suite itself does without them.
var otherBrokers = map[string]struct {
	image string
	env   map[string]string // everyone may connect, and what waits for a subscriber has no limit
	files []testcontainers.ContainerFile
}{
	"mosquitto-2.1": {
		image: "eclipse-mosquitto:2.1.2-alpine",
		files: []testcontainers.ContainerFile{
			{
				HostFilePath:      "images/mosquitto/mosquitto.conf",
				ContainerFilePath: "/mosquitto/config/mosquitto.conf",
				FileMode:          0o644,
			},
		},
	},
	"emqx": {
		image: "emqx/emqx:5.8.9",
		env:   map[string]string{"EMQX_MQTT__MAX_MQUEUE_LEN": "infinity"},
	},
	"hivemq-ce": {
		image: "hivemq/hivemq-ce:2025.5",
		env:   map[string]string{"HIVEMQ_ALLOW_ALL_CLIENTS": "true"},
	},
	"vernemq": {
		image: "vernemq/vernemq:2.1.1",
		env: map[string]string{
			"DOCKER_VERNEMQ_ACCEPT_EULA":         "yes",
			"DOCKER_VERNEMQ_ALLOW_ANONYMOUS":     "on",
			"DOCKER_VERNEMQ_MAX_ONLINE_MESSAGES": "-1",
		},
	},
}

// startOtherBroker starts the one of SUITE_BROKER and waits until it takes a connection.
func startOtherBroker(t *testing.T, networkName, name string) broker {
	t.Helper()
	other, known := otherBrokers[name]
	if !known {
		t.Fatalf("SUITE_BROKER is %s, want one of %q", name, slices.Sorted(maps.Keys(otherBrokers)))
	}
	c := startContainer(t, other.image, onNetwork(networkName, "broker"), testcontainers.WithEnv(other.env),
		testcontainers.WithFiles(other.files...), testcontainers.WithExposedPorts("1883/tcp"),
		testcontainers.WithWaitStrategy(wait.ForListeningPort("1883/tcp").WithStartupTimeout(time.Minute)))
	address, err := c.PortEndpoint(t.Context(), "1883/tcp", "")
	if err != nil {
		t.Fatalf("broker: %v", err)
	}
	eventually(t, 30*time.Second, name+" takes connections", func() bool {
		options := mqtt.NewClientOptions().AddBroker("tcp://" + address).SetProtocolVersion(4).SetClientID("probe")
		probe := mqtt.NewClient(options.SetConnectTimeout(time.Second))
		token := probe.Connect()
		token.Wait()
		probe.Disconnect(0)
		return token.Error() == nil
	})
	return broker{c, "tcp://broker:1883", address}
}

// TestOtherBrokers: the workflow takes each of them once, by a tag that says the version.
func TestOtherBrokers(t *testing.T) {
	text, err := os.ReadFile("../.github/workflows/weekly.yml")
	if err != nil {
		t.Fatal(err)
	}
	var workflow struct {
		Jobs map[string]struct {
			Strategy struct{ Matrix struct{ Broker []string } }
		}
	}
	if err := yaml.Unmarshal(text, &workflow); err != nil {
		t.Fatal(err)
	}
	got := workflow.Jobs["brokers"].Strategy.Matrix.Broker
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(otherBrokers)); !slices.Equal(got, want) {
		t.Errorf("the workflow runs %q, want %q", got, want)
	}
	for name, other := range otherBrokers {
		if _, tag, _ := strings.Cut(other.image, ":"); !strings.Contains(tag, ".") {
			t.Errorf("%s: %s has no version", name, other.image)
		}
	}
}
