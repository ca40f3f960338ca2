package integration

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
)

// The tests of this file run what the README tells its readers to run, as it stands there. Where a name has
// to be another,
// such as a device or an image, `replaced` says so.

// readme is the text of the README, and of the notes on the files to copy.
func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + string(deployFile(t, "README.md"))
}

// block is a piece of the README between three backquotes and three backquotes.
type block struct{ language, text string }

func readmeBlocks(t *testing.T) (blocks []block) {
	t.Helper()
	for _, found := range regexp.MustCompile("(?ms)^( *)```(\\w+)\n(.*?)^ *```$").FindAllStringSubmatch(readme(t), -1) {
		text := found[3]
		if indent := found[1]; indent != "" {
			text = strings.TrimPrefix(strings.ReplaceAll(text, "\n"+indent, "\n"), indent)
		}
		blocks = append(blocks, block{found[2], text})
	}
	return blocks
}

// readmeBlock is the one block in this language that has this text in it.
func readmeBlock(t *testing.T, language, contains string) string {
	t.Helper()
	var found []string
	for _, b := range readmeBlocks(t) {
		if b.language == language && strings.Contains(b.text, contains) {
			found = append(found, b.text)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the README has %d %s blocks with %q, want 1", len(found), language, contains)
	}
	return found[0]
}

// readmeInline is the one command in the README's text that begins so.
func readmeInline(t *testing.T, begin string) string {
	t.Helper()
	var found []string
	for _, command := range inlineCommands(t) {
		if strings.HasPrefix(command, begin) && !slices.Contains(found, command) {
			found = append(found, command)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the README has %q, want one command that begins with %q", found, begin)
	}
	return found[0]
}

// inlineCommands are what stands between two backquotes in the text and begins with the name of a program.
func inlineCommands(t *testing.T) (commands []string) {
	t.Helper()
	text := regexp.MustCompile("(?ms)^ *```.*?^ *```$").ReplaceAllString(readme(t), "")
	program := regexp.MustCompile(
		`^((integration/[\w-]+\.sh|apt|curl|dnf|docker|docker-compose|go|grep|journalctl|jq|kubectl|mosquitto_\w+|nft|systemctl|systemd-\w+|tcpdump)( |$)|TOPIC=\S+ )`,
	)
	for _, found := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		if program.MatchString(found[1]) {
			commands = append(commands, found[1])
		}
	}
	return commands
}

// replaced replaces pairs of texts, each of which has to be there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q to replace in %q", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// executed says for each command and program of the README which test runs it, or why none does. The key is a part of a
// block, or the beginning of a command in the text.
var executed = map[string]string{
	// Blocks.
	"apt-get update &&":                                "first-screen.sh, TestReadmeDesk",
	`{"id":"`:                                          "first-screen.sh, TestReadme of the program",
	"Z INVITE sip:bob@192.0.2.2 ":                      "first-screen.sh",
	"flowchart LR":                                     "none: a picture",
	"integration/demo.sh --once":                       "test.sh",
	"docker build --build-arg":                         "TestReadmeDocker",
	"go build -ldflags":                                "TestReadmeSource",
	"./sip-capture\ndocker run":                        "TestReadmeDocker, TestReadmeDesk",
	"$ TOPIC='sip/#'":                                  "TestReadmeDesk",
	"while read -r sip; do base64 -d":                  "TestReadmeDesk",
	"integration/packages.sh v0.1.0 dist\napt install": "test.sh (its first line), TestService",
	"cosign verify-blob":                               "none: needs a release",
	"addrgenmode none":                                 "TestService",
	`"msg":"stats"`:                                    "TestReadme of the program",
	"SIP_FILTER:1:7: `methd`":                          "TestFilterReadme of the program",
	// Commands in the text.
	"apt install python3-paho-mqtt":              "images/host (as apt-get install)",
	"apt purge":                                  "TestService",
	"docker exec NAME":                           "TestReadmeDocker",
	"curl -s http://127.0.0.1:9464/":             "TestService",
	"dnf remove":                                 "none: there is no dnf for Debian; TestService removes the rpm with rpm",
	"go list -deps":                              "TestReadmeSource",
	"go list -m":                                 "TestReadmeSource",
	"go mod init reader":                         "TestReadmeDesk",
	"go test -run TestAudit":                     "test.sh, with all others",
	"integration/base-images.sh":                 "test.sh",
	"integration/packages.sh":                    "test.sh",
	"journalctl -u":                              "TestService",
	"jq 'select":                                 "TestReadmeDesk",
	"mosquitto_pub -h HOST":                      "none: has to be filled in",
	"mosquitto_sub -t '$share/archive/sip'":      "TestReadmeDesk",
	"mosquitto_sub -t sip -q 1 -C 1000":          "TestReadmeDesk",
	"systemctl edit":                             "none: opens an editor",
	"systemctl set-property":                     "TestService",
	"systemctl status":                           "TestService",
	"systemd-analyze security":                   "TestService",
	"systemd-run --pipe":                         "TestService",
	"tcpdump ":                                   "none: to look at, and without an end",
	"TOPIC=sip PCAP_FILE=calls.pcap SIP_FILTER=": "TestReadmeDesk",
}

// TestReadmeCommands: the table above has all of the README's commands and programs, and no others.
func TestReadmeCommands(t *testing.T) {
	used := map[string]bool{}
	where := func(text string, matches func(string, string) bool) {
		t.Helper()
		var keys []string
		for key := range executed {
			if matches(text, key) {
				keys = append(keys, key)
				used[key] = true
			}
		}
		if len(keys) == 0 {
			t.Errorf("nothing says which test runs\n%s", text)
		}
	}
	for _, b := range readmeBlocks(t) {
		if b.language != "lisp" { // filters: TestFilterReadme of the program
			where(b.text, strings.Contains)
		}
	}
	for _, command := range inlineCommands(t) {
		where(command, strings.HasPrefix)
	}
	for key := range executed {
		if !used[key] && !strings.HasPrefix(executed[key], "none") {
			t.Errorf("the README doesn't have %q any more", key)
		}
	}
}

// startMosquitto does what Debian's unit of Mosquitto does.
const startMosquitto = `install -d -o mosquitto /run/mosquitto
mosquitto -d -c /etc/mosquitto/mosquitto.conf
until mosquitto_pub -t x -m x 2>/dev/null; do sleep 0.1; done`

// startDesk starts a machine with a Mosquitto as Debian has it, sip-capture in its path and in the directory,
// and a capture
// file.
func startDesk(t *testing.T, networkName string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	c := startHost(t, networkName, append(options, testcontainers.WithFiles(
		testcontainers.ContainerFile{HostFilePath: filepath.Join(
			packagesDirectory(t),
			"sip-capture_"+strings.TrimPrefix(version, "v")+"_linux_"+runtime.GOARCH,
		),
			ContainerFilePath: "/root/sip-capture", FileMode: 0o755},
		testcontainers.ContainerFile{
			HostFilePath:      "../testdata/sipp_udp.pcap",
			ContainerFilePath: "/root/calls.pcap",
			FileMode:          0o644,
		},
		testcontainers.ContainerFile{
			HostFilePath:      "deploy/reader.py",
			ContainerFilePath: "/root/reader.py",
			FileMode:          0o755,
		},
		testcontainers.ContainerFile{
			HostFilePath:      "deploy/envelopes-to-pcap.py",
			ContainerFilePath: "/root/integration/deploy/envelopes-to-pcap.py",
			FileMode:          0o755,
		}))...)
	bash(t, c, "ln -s /root/sip-capture /usr/local/bin/\n"+startMosquitto)
	return c
}

// collected runs a script in the home directory of a desk and returns what it has published to the topic sip.
// The broker keeps
// a session, in which the last message is one of our own: no time has to be waited for.
func collected(t *testing.T, desk testcontainers.Container, script string) (payloads []string) {
	t.Helper()
	output := bash(t, desk, `cd /root
id=collector-$RANDOM$RANDOM
mosquitto_sub -i $id -c -q 1 -t sip -E
`+script+`
mosquitto_pub -q 1 -t sip -m end
: >/tmp/$id
mosquitto_sub -i $id -q 1 -t sip -c >>/tmp/$id &
until grep -qx end /tmp/$id; do sleep 0.05; done
kill $!
grep -vx end /tmp/$id || true`)
	for line := range strings.Lines(output) {
		payloads = append(payloads, strings.TrimSuffix(line, "\n"))
	}
	return payloads
}

// lastPublished is the counter of published messages in the last stats line of a log.
func lastPublished(t *testing.T, log string) int {
	t.Helper()
	all := regexp.MustCompile(`"messages_published":(\d+)`).FindAllStringSubmatch(log, -1)
	if all == nil {
		t.Fatalf("no statistics in\n%s", log)
	}
	n, _ := strconv.Atoi(all[len(all)-1][1])
	return n
}

// TestReadmeDesk runs what the README shows at a shell: its first screen, capture files, consumers.
func TestReadmeDesk(t *testing.T) {
	t.Parallel()
	desk := startDesk(t, newNetwork(t))
	run := func(script string) string { return bash(t, desk, "cd /root\n"+script) }
	commands := func(console string) (commands, output string) {
		for line := range strings.Lines(console) {
			if rest, ok := strings.CutPrefix(line, "$ "); ok {
				commands += rest
			} else {
				output += line
			}
		}
		return commands, output
	}

	t.Run("first screen", func(t *testing.T) {
		// Its beginning, an installation, is for first-screen.sh.
		_, script, found := strings.Cut(readmeBlock(t, "sh", "apt-get update &&"), "mosquitto -d")
		_, script, found2 := strings.Cut(script, "\n")
		if !found || !found2 {
			t.Fatal("the first screen doesn't start a broker")
		}
		shown := readmeBlock(t, "json", `{"id":"`)
		want := decode(t, []byte(shown))
		run(script + "kill %1; wait %1")
		if have := decode(t, []byte(run("cat envelope.json"))); have.Signature != want.Signature ||
			string(have.SIP) != string(want.SIP) {
			t.Errorf("the README shows\n%s, it is\n%+v", shown, have)
		}
		// Sizing: the bytes of an envelope.
		fixed := regexp.MustCompile(
			`4 × ⌈\*n\* / 3⌉ \+ (\d+) \+ the length of the version`,
		).FindStringSubmatch(readme(t))
		if fixed == nil {
			t.Fatal("the README doesn't say how long an envelope is")
		}
		n, _ := strconv.Atoi(fixed[1])
		if size := (len(want.SIP)+2)/3*4 + n + len(want.Version); size != len(strings.TrimSpace(shown)) {
			t.Errorf(
				"by the README's formula the envelope has %d bytes, but it has %d",
				size,
				len(strings.TrimSpace(shown)),
			)
		}
		if got := run(
			replaced(t, readmeInline(t, "jq 'select(.msg"), "jq ", "jq -e "),
		); strings.Contains(got, "false") || got == "" {
			t.Errorf("the counters don't add up: %q", got)
		}
	})

	t.Run("wrong configuration", func(t *testing.T) {
		script, want := commands(readmeBlock(t, "console", "$ TOPIC='sip/#'"))
		nothing := startHost(t, "none", testcontainers.WithFiles(testcontainers.ContainerFile{
			HostFilePath: filepath.Join(
				packagesDirectory(t),
				"sip-capture_"+strings.TrimPrefix(version, "v")+"_linux_"+runtime.GOARCH,
			),
			ContainerFilePath: "/usr/local/bin/sip-capture", FileMode: 0o755}))
		if got := bash(t, nothing, strings.TrimSpace(script)+" 2>&1 || [ $? = 2 ]"); got != want {
			t.Errorf("it says\n%s, the README\n%s", got, want)
		}
	})

	// How many messages the capture file has, says the program's own test of it.
	golden, err := os.ReadFile("../testdata/sipp_udp.golden")
	if err != nil {
		t.Fatal(err)
	}
	n := strings.Count(string(golden), "\n")
	t.Run("capture file", func(t *testing.T) {
		files := strings.Split(readmeBlock(t, "sh", "TOPIC=sip PCAP_FILE=calls.pcap ./sip-capture\n"), "\n")
		if got := len(collected(t, desk, files[0]+" >/dev/null")); got != n {
			t.Errorf("%d envelopes of a capture file, want %d", got, n)
		}
		calls := run(readmeInline(t, "TOPIC=sip PCAP_FILE=calls.pcap SIP_FILTER="))
		if published := lastPublished(t, calls); published == 0 || published*5 > n {
			t.Errorf("%d initial INVITEs of %d messages", published, n)
		}
		live := replaced(t, files[3], "eth0", "lo", "tcpdump", "timeout 3 tcpdump")
		if got := collected(
			t,
			desk,
			"(sleep 1.5; printf 'OPTIONS sip:x SIP/2.0\\r\\n\\r\\n' | cat >/dev/udp/127.0.0.1/5060) &\n{ "+live+
				"; } >/dev/null 2>&1 || true",
		); len(got) != 1 {
			t.Errorf("%d envelopes through a pipe, want 1", len(got))
		}
	})

	// Consumers: each is started, then the file is published, twice where it should matter.
	const publish = "TOPIC=sip PCAP_FILE=calls.pcap ./sip-capture >/dev/null\n"
	t.Run("mosquitto_sub and jq", func(t *testing.T) {
		for i, line := range strings.Split(
			strings.TrimSpace(readmeBlock(t, "sh", "while read -r sip; do base64 -d")),
			"\n",
		) {
			output := run(
				"{ " + replaced(t, line, "mosquitto_sub", fmt.Sprint("mosquitto_sub -W 20 -C ", n)) +
					"; } >out & sleep 1\n" +
					publish +
					"wait; cat out",
			)
			if got := len(
				regexp.MustCompile(`(?m)^(\d{4}-\S+ )?(SIP/2.0 \d\d\d |[A-Z]+ \S+ SIP/2.0)`).FindAllString(output, -1),
			); got != n {
				t.Errorf("line %d shows %d messages, want %d:\n%.300s", i+1, got, n, output)
			}
		}
	})
	t.Run("Python", func(t *testing.T) {
		output := run("PYTHONUNBUFFERED=1 ./reader.py >out 2>&1 &\n" +
			"until ss -Htn state established dport = 1883 | grep -q .; do sleep 0.1; done; sleep 1\n" + publish +
			publish +
			"sleep 1; kill %1; cat out")
		if got := strings.Count(output, "\n"); got != n || strings.Contains(output, "Traceback") {
			t.Errorf("it printed %d lines, want %d:\n%.1000s", got, n, output)
		}
	})
	t.Run("Go", func(t *testing.T) {
		directory := t.TempDir()
		source, err := os.ReadFile("deploy/reader/main.go")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory, "main.go"), source, 0o644); err != nil {
			t.Fatal(err)
		}
		reader := filepath.Join(directory, "reader")
		build := exec.Command("bash", "-euc", readmeInline(t, "go mod init reader")+" && go build -o reader .")
		build.Dir = directory
		if output, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		if os.Getuid() != 0 {
			t.Skip("only root can run it in the container's network")
		}
		var output bytes.Buffer
		command := exec.Command("nsenter", "--net", "--target="+pid(t, desk), reader)
		command.Stdout, command.Stderr = &output, &output
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		// Two sensors see the same message, and its retransmission 500 ms later; the program prints each once.
		run(`for i in 1 2; do TOPIC=sip INTERFACE=lo ./sip-capture >sensor$i.log & sensors="${sensors-} $!"; done
until grep -q connected sensor1.log && grep -q connected sensor2.log; do sleep 0.1; done
sleep 0.5
for i in 1 2; do printf 'OPTIONS sip:twice SIP/2.0\r\n\r\n' | cat >/dev/udp/127.0.0.1/5060; sleep 0.5; done
kill $sensors; wait $sensors; sleep 0.3`)
		command.Process.Kill()
		command.Wait()
		if text := output.String(); strings.Count(text, " OPTIONS sip:twice SIP/2.0\n") != 2 ||
			strings.Count(text, "\n") != 2 {
			t.Errorf("two sensors, a message and its retransmission: it printed\n%s", text)
		}
	})
	t.Run("back to a capture file", func(t *testing.T) {
		// What the file gives when it is read again is what it was made of, ids and all.
		first := collected(t, desk, "INCLUDE_ADDRESSES=true "+publish)
		command := replaced(
			t,
			readmeInline(t, "mosquitto_sub -t sip -q 1 -C 1000"),
			"-C 1000",
			fmt.Sprint("-C ", n),
			"calls.pcap",
			"back.pcap",
		)
		run(command + " & sleep 1\nINCLUDE_ADDRESSES=true " + publish + "wait")
		if got := run("tcpdump -nvv -r back.pcap 2>/dev/null"); strings.Contains(got, "bad ") ||
			strings.Count(got, "\n") < n {
			t.Errorf("tcpdump reads\n%.2000s", got)
		}
		again := collected(t, desk, "INCLUDE_ADDRESSES=true "+replaced(t, publish, "calls.pcap", "back.pcap"))
		if !slices.Equal(first, again) {
			t.Errorf("%d envelopes, and from their capture file %d others", len(first), len(again))
		}
	})
	t.Run("shared subscription", func(t *testing.T) {
		command := readmeInline(t, "mosquitto_sub -t '$share/archive/sip'")
		output := run("{ " + command + "; } >out1 & one=$!\n{ " + replaced(t, command, "archive-1", "archive-2") +
			"; } >out2 & two=$!\nsleep 1\n" +
			publish + "sleep 1; pkill mosquitto_sub; wc -l <out1; wc -l <out2; sort out1 out2 | uniq | wc -l")
		var counts []int
		for _, field := range strings.Fields(output) {
			count, _ := strconv.Atoi(field)
			counts = append(counts, count)
		}
		if len(counts) != 3 || counts[0] == 0 || counts[1] == 0 || counts[0]+counts[1] != n || counts[2] != n {
			t.Errorf("two in a group received %v of %d", counts, n)
		}
	})
}

// telegraf is built with what the configuration uses, and nothing else.
const telegraf = "github.com/influxdata/telegraf/cmd/telegraf@v1.36.4"

// TestReadmeTelegraf: Telegraf with deploy/telegraf.conf writes each message to its output, with its time.
func TestReadmeTelegraf(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	build := exec.Command(
		"go",
		"install",
		"-tags",
		"custom,inputs.mqtt_consumer,outputs.file,parsers.json_v2,serializers.json",
		telegraf,
	)
	build.Env = append(os.Environ(), "GOBIN="+directory, "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	desk := startDesk(t, newNetwork(t), bound(directory, "/telegraf"))
	write(t, desk, "/root/telegraf.conf", string(deployFile(t, "telegraf.conf")))
	published := collected(t, desk, `mkdir -p /var/lib/telegraf
/telegraf/telegraf --config telegraf.conf >telegraf.log 2>&1 &
until grep -q Connected telegraf.log; do sleep 0.1; done; sleep 1
INCLUDE_ADDRESSES=true TOPIC=sip PCAP_FILE=calls.pcap ./sip-capture >/dev/null`)
	var want, got []string
	for _, line := range published {
		e := decode(t, []byte(line))
		want = append(want, fmt.Sprint(e.ID, e.Time.UnixNano(), base64.StdEncoding.EncodeToString(e.SIP)))
	}
	eventually(t, 20*time.Second, fmt.Sprint(len(want), " lines of Telegraf"), func() bool {
		got = nil
		for line := range strings.Lines(bash(t, desk, "cat /var/lib/telegraf/sip.json")) {
			var point struct {
				Timestamp int64
				Fields    struct{ ID, SIP, Src string }
			}
			if err := json.Unmarshal([]byte(line), &point); err != nil || point.Fields.Src == "" {
				t.Fatalf("%v: %s", err, line)
			}
			got = append(got, fmt.Sprint(point.Fields.ID, point.Timestamp, point.Fields.SIP))
		}
		return len(got) >= len(want)
	})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d messages, and Telegraf wrote %d others", len(want), len(got))
	}
}

// TestReadmeBridge: a broker at the site passes on to the broker in the cloud, over TLS, and keeps what comes
// in between.
func TestReadmeBridge(t *testing.T) {
	t.Parallel()
	networkName := newNetwork(t)
	cloud := startCloud(t, networkName)
	received := subscribeAt(t, cloud, "reader", "-t site1/sip")
	site := startHost(t, networkName)
	write(t, site, "/ca.pem", string(fileFrom(t, cloud, "/ca.pem")))
	write(t, site, "/etc/mosquitto/conf.d/cloud.conf", string(deployFile(t, "mosquitto-bridge.conf")))
	bash(t, site, `mkdir -p /etc/ssl/certs; cat /ca.pem >>/etc/ssl/certs/ca-certificates.crt
grep -q '^persistence true' /etc/mosquitto/mosquitto.conf
sed -i '1i max_queued_messages 0' /etc/mosquitto/mosquitto.conf
`+startMosquitto+`
for i in $(seq 20); do mosquitto_pub -t sip -q 1 -m number-$i; done`)
	eventually(t, 15*time.Second, "20 messages in the cloud", func() bool { return len(received()) == 20 })
	// The broker in the cloud stops; what the site gets meanwhile arrives later.
	bash(t, cloud, "pkill -x mosquitto; while (exec 3<>/dev/tcp/broker.example/8883) 2>/dev/null; do sleep 0.1; done")
	bash(t, site, "for i in $(seq 21 40); do mosquitto_pub -t sip -q 1 -m number-$i; done")
	bash(t, cloud, "mosquitto -d -c /etc/mosquitto/conf.d/sensors.conf")
	eventually(t, 60*time.Second, "40 messages in the cloud", func() bool {
		all := received()
		slices.Sort(all)
		return len(slices.Compact(all)) == 40
	})
}

// TestReadmePolicy: AWS's policy allows to connect, to publish, and nothing else.
func TestReadmePolicy(t *testing.T) {
	var policy struct {
		Version   string
		Statement []struct {
			Effect           string
			Action, Resource any
			Condition        map[string]map[string][]string
		}
	}
	if err := json.Unmarshal(deployFile(t, "aws-iot-policy.json"), &policy); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, statement := range policy.Statement {
		resource := strings.SplitN(fmt.Sprint(statement.Resource), ":", 6)
		got = append(got, fmt.Sprint(statement.Effect, " ", statement.Action, " ", resource[len(resource)-1]))
	}
	want := []string{
		"Allow iot:Connect client/sensor-1",
		"Allow iot:Publish topic/sip/site1",
		"Allow [iot:Publish iot:RetainPublish] topic/sip/site1/status",
	}
	if policy.Version != "2012-10-17" || !slices.Equal(got, want) {
		t.Errorf("the policy is %s %q", policy.Version, got)
	}
}

// TestReadmeSource: the program is built from source as the README says, and installed as a module from a
// proxy that has it
// as v1.2.3.
func TestReadmeSource(t *testing.T) {
	directory := t.TempDir()
	source := filepath.Join(directory, "source")
	script := func(directory, script string, environment ...string) string {
		t.Helper()
		command := exec.Command("bash", "-euo", "pipefail", "-c", script)
		command.Dir, command.Env = directory, append(os.Environ(), environment...)
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, output)
		}
		return string(output)
	}
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	script("..", "cp -- *.go go.mod go.sum LICENSE '"+source+"'")

	lines := strings.Split(readmeBlock(t, "sh", "go build -ldflags"), "\n")
	script(source, lines[0])
	if got := script(source, "./sip-capture -version"); got != "v0.1.0\n" {
		t.Errorf("built as v0.1.0, it is %q", got)
	}
	if os.Getuid() == 0 { // it is root that sudo makes
		script(source, strings.TrimPrefix(lines[1], "sudo "))
		if got := script(source, "getcap sip-capture"); !strings.Contains(got, "cap_net_raw=ep") {
			t.Errorf("getcap: %s", got)
		}
	}

	// A module proxy is a directory of files: https://go.dev/ref/mod#goproxy-protocol.
	proxy := filepath.Join(directory, "proxy")
	script(directory, `versions=proxy/github.com/ik5/sip-capture/@v
mkdir -p $versions
rm source/sip-capture
cp source/go.mod $versions/v1.2.3.mod
echo v1.2.3 >$versions/list
echo '{"Version":"v1.2.3","Time":"2026-01-02T03:04:05Z"}' >$versions/v1.2.3.info`)
	makeZip(
		t,
		source,
		"github.com/ik5/sip-capture@v1.2.3/",
		filepath.Join(proxy, "github.com/ik5/sip-capture/@v/v1.2.3.zip"),
	)
	upstream := strings.TrimSpace(script("..", "go env GOPROXY"))
	script(directory, regexp.MustCompile(`go install \S+@latest`).FindString(lines[0]),
		"GOPROXY=file://"+proxy+","+
			upstream, "GONOSUMDB=github.com/ik5/sip-capture", "GOBIN="+directory+
			"/bin", "GOMODCACHE="+directory+"/modules", "GOFLAGS=-modcacherw")
	if got := script(directory, "bin/sip-capture -version"); got != "v1.2.3\n" {
		t.Errorf("installed as v1.2.3, it is %q", got)
	}

	for _, begin := range []string{"go list -deps", "go list -m"} {
		if got := script("..", readmeInline(t, begin)); !strings.Contains(got, "github.com/google/gopacket v") {
			t.Errorf("%s: %s", begin, got)
		}
	}
}

// TestReadmeDocker runs the README's docker commands on this machine, on the loopback device instead of eth0.
func TestReadmeDocker(t *testing.T) {
	broker := startBroker(t, newNetwork(t))
	topic := subscribe(t, broker.address, "sip")
	image := "sip-capture-test-readme:" + runID
	name := "sip-capture-test-readme-" + runID
	directory := t.TempDir()
	docker := func(command string) string {
		t.Helper()
		run := exec.Command("bash", "-euo", "pipefail", "-c", command)
		run.Dir = directory
		output, err := run.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
		return string(output)
	}
	commands := readmeBlock(t, "sh", "docker build --build-arg")
	build, start, _ := strings.Cut(commands, "\n")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	docker("cd '" + root + "'; " + replaced(t, build, "v0.1.0", version, "--tag sip-capture", "--tag "+image))
	t.Cleanup(func() { exec.Command("docker", "rmi", "--no-prune", image).Run() })

	here := []string{
		"docker run",
		"docker run --name " + name + " --label " + runLabel + "=" + runID,
		"tcp://127.0.0.1:1883 sip-capture",
		"tcp://" + broker.address + " " + image,
	}
	start = replaced(
		t,
		strings.TrimSpace(start),
		append(here, "INTERFACE=eth0", "INTERFACE=lo -e BPF_FILTER='udp port 15062'")...,
	)
	log := filepath.Join(directory, "log")
	sensor := exec.Command("bash", "-c", "exec "+start+" >"+log+" 2>&1")
	if err := sensor.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("docker", "rm", "--force", name).Run() })
	eventually(t, 20*time.Second, "the sensor is connected", func() bool {
		text, _ := os.ReadFile(log)
		return strings.Contains(string(text), `"msg":"connected"`)
	})
	docker(`printf 'OPTIONS sip:docker SIP/2.0\r\n\r\n' | cat >/dev/udp/127.0.0.1/15062`)
	topic.exactly(t, 1)
	docker("docker stop " + name)
	if err := sensor.Wait(); err != nil {
		t.Errorf("docker run: %v", err)
	}

	// Its health, asked as the README says, with settings from the file that it names: its defaults, and a topic.
	settings := regexp.MustCompile("`--env-file ([^`]+)`").FindStringSubmatch(readme(t))
	if settings == nil {
		t.Fatal("the README has no file with settings")
	}
	docker("sed -e 's/^TOPIC=$/TOPIC=sip/' -e 's/^#\\([A-Z_]*=\\)/\\1/' '" + root + "'/" + settings[1] + " >env")
	docker("docker run -d --name " + name + "-health --label " + runLabel + "=" + runID +
		" --network none --cap-drop ALL --cap-add NET_RAW --read-only " +
		"--env-file env -e METRICS_ADDR=127.0.0.1:9464 " + image)
	t.Cleanup(func() { exec.Command("docker", "rm", "--force", name+"-health").Run() })
	eventually(t, 30*time.Second, "the sensor is healthy", func() bool {
		return exec.Command(
			"bash",
			"-c",
			replaced(t, readmeInline(t, "docker exec NAME"), "NAME", name+"-health"),
		).Run() == nil
	})

	_, file, _ := strings.Cut(readmeBlock(t, "sh", "TOPIC=sip PCAP_FILE=calls.pcap ./sip-capture\n"), "\n")
	file, _, _ = strings.Cut(file, "\ntcpdump")
	docker("cp '" + root + "/testdata/sipp_udp.pcap' calls.pcap; chmod 644 calls.pcap")
	if err := os.Chmod(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	output := docker(replaced(t, file, here...))
	n := lastPublished(t, output)
	if n < 10 {
		t.Errorf("%d messages of a capture file", n)
	}
	topic.exactly(t, 1+n)
}

// --- filters for libpcap ---

// The frames of these tests are made by hand: what a header has to say for this, and zeros.

func ethernet(etherType uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), etherType), payload...)
}

func vlan(payload []byte) []byte { // of a frame
	tagged := append(slices.Clone(payload[:12]), 0x81, 0, 0, 7)
	return append(tagged, payload[12:]...)
}

// ip is a packet of either family, by the length of its addresses: a fragment of one where offset and more say so.
func ip(source, destination []byte, protocol byte, id uint16, offset int, more bool, payload []byte) []byte {
	flags := uint16(offset)
	if len(source) == 4 {
		h := []byte{0x45, 0}
		h = binary.BigEndian.AppendUint16(h, uint16(20+len(payload)))
		h = binary.BigEndian.AppendUint16(h, id)
		flags >>= 3
		if more {
			flags |= 0x2000
		}
		h = binary.BigEndian.AppendUint16(h, flags)
		h = append(h, 64, protocol, 0, 0)
		return slices.Concat(h, source, destination, payload)
	}
	if offset > 0 || more {
		if more {
			flags |= 1
		}
		h := []byte{protocol, 0}
		h = binary.BigEndian.AppendUint16(h, flags)
		h = binary.BigEndian.AppendUint32(h, uint32(id))
		payload, protocol = append(h, payload...), 44
	}
	h := []byte{0x60, 0, 0, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(len(payload)))
	return slices.Concat(append(h, protocol, 64), source, destination, payload)
}

func udp(source, destination uint16, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, source)
	h = binary.BigEndian.AppendUint16(h, destination)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(payload)))
	return append(append(h, 0, 0), payload...)
}

// frames are Ethernet frames with a packet, which is cut in two fragments where it is longer than 1,000 bytes.
func frames(source, destination []byte, protocol byte, id uint16, payload []byte) (frames [][]byte) {
	etherType := map[int]uint16{4: 0x0800, 16: 0x86dd}[len(source)]
	if len(payload) <= 1000 {
		return [][]byte{ethernet(etherType, ip(source, destination, protocol, id, 0, false, payload))}
	}
	return [][]byte{
		ethernet(etherType, ip(source, destination, protocol, id, 0, true, payload[:800])),
		ethernet(etherType, ip(source, destination, protocol, id, 800, false, payload[800:])),
	}
}

// captured is a capture file in pcap's format: https://www.tcpdump.org/manpages/pcap-savefile.5.html.
func captured(frames ...[]byte) (file []byte) {
	file = binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0)
	for i, frame := range frames {
		for _, n := range []int{1_700_000_000 + i/1000, i % 1000 * 1000, len(frame), len(frame)} {
			file = binary.LittleEndian.AppendUint32(file, uint32(n))
		}
		file = append(file, frame...)
	}
	return file
}

// selects has a sensor read a capture file with a BPF filter, and returns how many messages of which name it
// found: the name
// is the user in the Request-URI.
func selects(t *testing.T, desk testcontainers.Container, filter string, frames ...[]byte) (found []string) {
	t.Helper()
	if err := desk.CopyToContainer(t.Context(), captured(frames...), "/tmp/frames.pcap", 0o644); err != nil {
		t.Fatal(err)
	}
	for _, line := range collected(
		t,
		desk,
		`BPF_FILTER='`+filter+`' TOPIC=sip PCAP_FILE=/tmp/frames.pcap ./sip-capture >/dev/null`,
	) {
		found = append(
			found,
			regexp.MustCompile(`sip:([^@ ]+)`).FindStringSubmatch(string(decode(t, []byte(line)).SIP))[1],
		)
	}
	return found
}

// message is a SIP message to a name, small or too large for one frame.
func message(name string, large bool) []byte {
	text := "MESSAGE sip:" + name + " SIP/2.0\r\n\r\n"
	if large {
		text += strings.Repeat("x", 1200)
	}
	return []byte(text)
}

// TestReadmePlaces: the filters in the table of places let through what comes there, in fragments too, and in
// two VLAN tags.
func TestReadmePlaces(t *testing.T) {
	desk := startDesk(t, newNetwork(t))
	a4, b4 := []byte{192, 0, 2, 1}, []byte{192, 0, 2, 2}
	a6, b6 := append([]byte{0x20, 1, 0x0d, 0xb8}, make([]byte,
		12)...), append([]byte{0x20, 1, 0x0d, 0xb8}, append(make([]byte, 11), 9)...)
	mirror, sensor := []byte{198, 51, 100, 1}, []byte{198, 51, 100, 2}

	var inner [][]byte // what is mirrored: nothing of it is too long for one frame
	inner = append(inner, frames(a4, b4, 17, 1, udp(5060, 5060, message("four", false)))...)
	inner = append(inner, frames(a6, b6, 17, 2, udp(5060, 5060, message("six", false)))...)
	plain := append(slices.Clone(inner), frames(a4, b4, 17, 3, udp(5060, 5060, message("large", true)))...)
	plain = append(plain, frames(a6, b6, 17, 4, udp(5060, 5060, message("larger", true)))...)
	var tagged, twice, vxlan, geneve, erspan [][]byte
	for i, frame := range plain {
		tagged = append(tagged, vlan(frame))
		twice = append(twice, vlan(vlan(frame)))
		id := uint16(100 + i)
		// RFC 7348, RFC 8926 (with an Ethernet frame), and ERSPAN type II in GRE with a sequence number.
		x := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, frame...)
		vxlan = append(vxlan, frames(mirror, sensor, 17, id, udp(40000, 4789, x))...)
		g := append([]byte{0, 0, 0x08, 0, 0, 0, 1, 0}, ip(mirror, sensor, 17, id, 0, false, udp(40000, 4789, x))...)
		geneve = append(geneve, frames(mirror, sensor, 17, id, udp(40000, 6081, g))...)
		e := append([]byte{0x10, 0, 0x88, 0xbe, 0, 0, 0, byte(i), 0x10, 0, 0, 1, 0, 0, 0, 0}, frame...)
		erspan = append(erspan, frames(mirror, sensor, 47, id, e)...)
	}
	want := []string{"four", "six", "large", "larger"}

	_, table, _ := strings.Cut(readme(t), "\n## Where to place it\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| ([^|\n]+) \| [^|\n]+ \| ([^|\n]+) \|$`).FindAllStringSubmatch(table, -1)
	traffic := map[string][][][]byte{
		"on the SBC":          {plain},
		"SPAN or mirror port": {plain, tagged, twice},
		"UDP tunnels":         {vxlan, geneve},
		"GRE, ERSPAN":         {erspan},
	}
	checked := 0
	for _, row := range rows {
		for place, files := range traffic {
			if !strings.HasPrefix(row[1], place) {
				continue
			}
			filter := ""
			if !strings.HasPrefix(row[2], "the default") {
				filter = strings.Trim(row[2], "`")
			}
			for i, file := range files {
				checked++
				if got := selects(t, desk, filter, file...); !slices.Equal(got, want) {
					t.Errorf("%s, %d: the filter %q selects %q, want %q", place, i, filter, got, want)
				}
			}
		}
	}
	if checked != 7 {
		t.Errorf("%d of 7 cases are in the README's table: %q", checked, rows)
	}
}

// TestReadmeSplit: of the two filters that split a link, each message goes to exactly one, with all of its
// fragments, and
// both directions to the same; each gets a fair part.
func TestReadmeSplit(t *testing.T) {
	desk := startDesk(t, newNetwork(t))
	var filters []string
	for line := range strings.Lines(string(deployFile(t, "split-link.txt"))) {
		if !strings.HasPrefix(line, "#") {
			filters = append(filters, strings.TrimSpace(line))
		}
	}
	if len(filters) != 4 {
		t.Fatalf("%d filters", len(filters))
	}
	var link [][]byte
	const pairs = 40
	for i := range pairs {
		// Without randomness: the last bytes take all combinations of even and odd.
		a, b := []byte{10, 0, 0, byte(i)}, []byte{10, 0, 1, byte(i / 2)}
		if i%2 == 1 {
			a = append([]byte{0x20, 1}, append(make([]byte, 13), byte(i/2))...)
			b = append([]byte{0x20, 1}, append(make([]byte, 13), byte(i/4))...)
		}
		large := i%4 < 2
		link = append(
			link,
			frames(a, b, 17, uint16(i), udp(5060, 5060, message(fmt.Sprintf("pair-%d@there", i), large)))...,
		)
		link = append(
			link,
			frames(b, a, 17, uint16(i), udp(5060, 5060, message(fmt.Sprintf("pair-%d@back", i), large)))...,
		)
	}
	var parts [2]map[string]int
	for i, filter := range filters[:2] {
		parts[i] = map[string]int{}
		for _, name := range selects(t, desk, filter, link...) {
			parts[i][name]++
		}
	}
	for i := range pairs {
		name := fmt.Sprintf("pair-%d", i)
		if one, two := parts[0][name], parts[1][name]; one+two != 2 || one == 1 {
			t.Errorf("%s: %d messages go to the first, %d to the second", name, one, two)
		}
	}
	if n := len(parts[0]); n < pairs/4 || n > pairs*3/4 {
		t.Errorf("%d of %d pairs go to the first", n, pairs)
	}
	// The split of a VXLAN mirror, by the outer source port.
	var mirrored [][]byte
	for port := range uint16(10) {
		inner := frames(
			[]byte{10, 0, 0, 1},
			[]byte{10, 0, 0, 2},
			17,
			1,
			udp(5060, 5060, message(fmt.Sprint("port-", port), false)),
		)[0]
		mirrored = append(
			mirrored,
			frames(
				[]byte{10, 9, 0, 1},
				[]byte{10, 9, 0, 2},
				17,
				port,
				udp(40000+port, 4789, append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...)),
			)...,
		)
	}
	even, odd := selects(t, desk, filters[2], mirrored...), selects(t, desk, filters[3], mirrored...)
	if !slices.Equal(even, []string{"port-0", "port-2", "port-4", "port-6", "port-8"}) || len(odd) != 5 ||
		slices.Contains(even, odd[0]) {
		t.Errorf("of ten ports the filters select %q and %q", even, odd)
	}
}

// TestReadmeArithmetic repeats the sums of the tables on growth and of the section on sizing.
func TestReadmeArithmetic(t *testing.T) {
	const messagesOfACall, size, versionLength = 7, 700, 6
	envelope := (size+2)/3*4 + 196 + versionLength
	number := func(text string) float64 {
		n, err := strconv.ParseFloat(strings.ReplaceAll(text, ",", ""), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	text := readme(t)
	rows := regexp.MustCompile(
		`(?m)^\| ([\d,]+) × (\d) \| ([\d,]+) \| ([\d.]+) ([MG])bit/s \| ([\d,]+) \|$`,
	).FindAllStringSubmatch(text, -1)
	if len(rows) != 4 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		rate := number(row[1]) * number(row[2]) * messagesOfACall
		bits := rate * float64(envelope) * 8 / map[string]float64{"M": 1e6, "G": 1e9}[row[5]]
		queue := math.Ceil(rate * float64(envelope) * 60 / (1 << 20))
		if number(row[3]) != rate || math.Abs(number(row[4])-bits) > 0.05*bits || number(row[6]) != queue {
			t.Errorf("%s: want %g messages, %g %sbit/s, QUEUE_MB=%g", row[0], rate, bits, row[5], queue)
		}
	}
	if seconds := int(float64(64<<20) / (1400 * float64(envelope))); !strings.Contains(text,
		fmt.Sprintf("64 MiB at 1.6 MB/s are %d s", seconds)) {
		t.Errorf("the README doesn't say that the queue bridges %d s", seconds)
	}
	if !strings.Contains(text, "at 1 ms 99,000 a second, at 20 ms 4,950, at 100 ms 990") {
		t.Error("the README doesn't say what a window of 99 means")
	}
}

// makeZip writes the files of a directory to a zip file, each with a prefix before its name.
func makeZip(t *testing.T, directory, prefix, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := zip.NewWriter(file)
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(directory, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := w.Create(prefix + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
