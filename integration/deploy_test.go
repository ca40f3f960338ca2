package integration

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
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

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	"go.yaml.in/yaml/v3"
)

// --- what a release carries ---

// packagesDirectory has what packages.sh makes: test.sh made it already, or it is made here.
func packagesDirectory(t *testing.T) string {
	t.Helper()
	if made := os.Getenv("SUITE_PACKAGES"); made != "" {
		return made
	}
	directory := t.TempDir()
	if output, err := exec.Command("./packages.sh", version, directory).CombinedOutput(); err != nil {
		t.Fatalf("packages.sh: %v\n%s", err, output)
	}
	return directory
}

// The names of a version in a deb and an rpm, where a hyphen stands before the package's own number.
var packageVersion = strings.ReplaceAll(strings.TrimPrefix(version, "v"), "-", "~")

func debName(architecture string) string {
	return "sip-capture_" + packageVersion + "_" + architecture + ".deb"
}

func rpmName(architecture string) string {
	return "sip-capture-" + packageVersion + "-1." +
		map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[architecture] +
		".rpm"
}

func sha256File(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

// startHost starts a Debian machine without its systemd, to work on.
func startHost(t *testing.T, mode string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	return startContainer(t, hostImage, append([]testcontainers.ContainerCustomizer{onNetwork(mode),
		testcontainers.WithEntrypoint("sleep"), testcontainers.WithCmd("infinity")}, options...)...)
}

// bash runs a script in a container and returns what it prints; it must end with status 0, within a minute.
func bash(t *testing.T, c testcontainers.Container, script string) string {
	t.Helper()
	return execute(t, c, "timeout", "60", "bash", "-euo", "pipefail", "-c", script)
}

// bound binds a directory of this machine into a container.
func bound(directory, at string) testcontainers.CustomizeRequestOption {
	return testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
		h.Binds = append(h.Binds, directory+":"+at+":ro")
	})
}

// TestPackages: what stands on the packages, and that the binary in them is that of the image.
func TestPackages(t *testing.T) {
	directory := packagesDirectory(t)
	host := startHost(t, "none", bound(directory, "/dist"))

	sums := strings.Fields(
		bash(t, host, "cd /dist && sha256sum --check --strict SHA256SUMS >&2 && cut -d ' ' -f 3 SHA256SUMS"),
	)
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 10 {
		t.Errorf("%d files in %s, want 4 for each architecture, those to copy and SHA256SUMS", len(entries), directory)
	}
	archive := "tar -xzOf /dist/sip-capture_" + strings.TrimPrefix(version, "v") +
		"_deploy.tar.gz deploy/kubernetes.yaml"
	if bash(t, host, archive) != string(deployFile(t, "kubernetes.yaml")) {
		t.Error("the archive has another kubernetes.yaml")
	}
	for _, entry := range entries {
		if entry.Name() != "SHA256SUMS" &&
			!slices.ContainsFunc(sums, func(line string) bool { return strings.HasSuffix(line, entry.Name()) }) {
			t.Errorf("%s is not in SHA256SUMS", entry.Name())
		}
	}

	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(architecture, func(t *testing.T) {
			name := "sip-capture_" + strings.TrimPrefix(version, "v") + "_linux_" + architecture
			path := filepath.Join(directory, name)
			sum := sha256File(t, path)

			binary, err := elf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer binary.Close()
			if binary.Machine != machine {
				t.Errorf("the binary is for %s", binary.Machine)
			}
			if text := bash(t, host, "file --brief /dist/"+
				name); !strings.Contains(text, "statically linked") || !strings.Contains(text, "stripped") {
				t.Errorf("file says: %s", text)
			}

			fields := bash(
				t,
				host,
				"dpkg-deb --show --showformat='${Package} ${Version} ${Architecture}' /dist/"+debName(architecture),
			)
			if want := "sip-capture " + packageVersion + " " + architecture; fields != want {
				t.Errorf("the deb is %q, want %q", fields, want)
			}
			if got := bash(
				t,
				host,
				"dpkg-deb --fsys-tarfile /dist/"+debName(architecture)+" | tar -xO ./usr/bin/sip-capture | sha256sum",
			); !strings.HasPrefix(got, sum) {
				t.Errorf("the binary of the deb has the SHA-256 %s, want %s", got, sum)
			}
			// What installing writes, with its owner and mode.
			const want = "-rw-------root/root./etc/sip-capture/sip-capture.env " +
				"-rwxr-xr-xroot/root./usr/bin/sip-capture " +
				"-rw-r--r--root/root./usr/lib/systemd/system/sip-capture.service " +
				"-rw-r--r--root/root./usr/share/doc/sip-capture/README.md " +
				"-rw-r--r--root/root./usr/share/doc/sip-capture/copyright " +
				"-rw-r--r--root/root./usr/share/man/man8/sip-capture.8.gz "
			if got := bash(
				t,
				host,
				"dpkg-deb --contents /dist/"+debName(architecture)+` | awk '/^-/ { printf "%s%s%s ", $1, $2, $6 }'`,
			); got != want {
				t.Errorf("the deb has\n%s, want\n%s", got, want)
			}
			if got := bash(
				t,
				host,
				"dpkg-deb --info /dist/"+debName(architecture)+" conffiles",
			); got != "/etc/sip-capture/sip-capture.env\n" {
				t.Errorf("conffiles: %q", got)
			}

			rpm := bash(
				t,
				host,
				"rpm --checksig /dist/"+rpmName(architecture)+
					" >&2; rpm -qp --queryformat '%{NAME} %{VERSION} %{ARCH} %{LICENSE}' --dump /dist/"+
					rpmName(architecture),
			)
			rpmArchitecture := strings.Split(rpmName(architecture),
				".")[len(strings.Split(rpmName(architecture), "."))-2]
			if !strings.Contains(rpm, "sip-capture "+packageVersion+" "+rpmArchitecture+" MIT") {
				t.Errorf("the rpm is %s", rpm)
			}
			if !strings.Contains(rpm, "/usr/bin/sip-capture ") || !strings.Contains(rpm, sum) {
				t.Errorf("the rpm has another binary: %s", rpm)
			}
			if got := bash(
				t,
				host,
				"rpm -qp --configfiles /dist/"+rpmName(architecture),
			); got != "/etc/sip-capture/sip-capture.env\n" {
				t.Errorf("configuration files of the rpm: %q", got)
			}

			checkSBOM(t, path, sum)
			runBinary(t, architecture, path)
		})
	}

	// The manual page is what -help prints, with roff's hyphens and backslashes.
	page := bash(
		t,
		host,
		"dpkg-deb --fsys-tarfile /dist/"+debName("amd64")+
			" | tar -xO ./usr/share/man/man8/sip-capture.8.gz | gzip -d | sed -e 's/\\\\-/-/g' -e 's/\\\\e/\\\\/g' -e 's/\\\\&//'",
	)
	help, err := exec.Command(
		filepath.Join(directory, "sip-capture_"+strings.TrimPrefix(version, "v")+"_linux_"+runtime.GOARCH),
		"-help",
	).Output()
	if err != nil || !strings.HasPrefix(page, ".TH SIP-CAPTURE 8 ") || !strings.Contains(page, string(help)) {
		t.Errorf("%v; the manual page is\n%s", err, page)
	}

	// The licenses of what is linked into the binary.
	copyright := bash(
		t,
		host,
		"dpkg-deb --fsys-tarfile /dist/"+debName("amd64")+" | tar -xO ./usr/share/doc/sip-capture/copyright",
	)
	for _, name := range []string{
		"MIT License",
		"google/gopacket",
		"eclipse/paho.mqtt.golang",
		"caarlos0/env",
		"usr/local/go/LICENSE",
		"libpcap0.8-dev/copyright",
		"libc6-dev/copyright",
	} {
		if !strings.Contains(copyright, name) {
			t.Errorf("no license of %s in the package", name)
		}
	}

	// The image's binary is the release's.
	c := startContainer(
		t,
		sensorImage,
		append(
			sensorRequest("none", nil),
			testcontainers.WithCmd("-version"),
			testcontainers.WithWaitStrategy(wait.ForExit()),
		)...,
	)
	image := fmt.Sprintf("%x", sha256.Sum256(fileFrom(t, c, "/sip-capture")))
	if released := sha256File(
		t,
		filepath.Join(directory, "sip-capture_"+strings.TrimPrefix(version, "v")+"_linux_"+runtime.GOARCH),
	); image != released {
		t.Errorf("the image's binary has the SHA-256 %s, the release's %s", image, released)
	}
}

// runBinary runs a binary of the release here, another architecture's in emulation where that is there.
func runBinary(t *testing.T, architecture, path string) {
	t.Helper()
	var emulator []string
	if architecture != runtime.GOARCH {
		machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[architecture]
		for _, name := range []string{"qemu-" + machine + "-static", "qemu-" + machine} {
			if found, err := exec.LookPath(name); err == nil && emulator == nil {
				emulator = []string{found}
			}
		}
		if emulator == nil {
			t.Logf(
				"there is no qemu-%s on this machine: the binary for %s is inspected, but not run",
				machine,
				architecture,
			)
			return
		}
	}
	for argument, want := range map[string]string{"-version": version + "\n", "-check": "configuration ok\n"} {
		command := append(slices.Clone(emulator), path, argument)
		run := exec.Command(command[0], command[1:]...)
		run.Env = append(
			os.Environ(),
			"TOPIC=sip",
			"INTERFACE=lo",
			"BPF_FILTER=port 5060",
			"SIP_FILTER=(method invite)",
		)
		if output, err := run.CombinedOutput(); err != nil || !strings.HasSuffix(string(output), want) {
			t.Errorf("%s: %v, %q", command, err, output)
		}
	}
}

// checkSBOM compares an SBOM with what the binary tells of itself, and with what SPDX 2.3 asks for.
func checkSBOM(t *testing.T, binary, sum string) {
	t.Helper()
	content, err := os.ReadFile(binary + ".spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		SPDXVersion, DataLicense, SPDXID, Name, DocumentNamespace string
		CreationInfo                                              struct {
			Created  time.Time
			Creators []string
		}
		Packages []struct {
			SPDXID, Name, VersionInfo, DownloadLocation string
			Checksums                                   []struct{ Algorithm, ChecksumValue string }
			ExternalRefs                                []struct{ ReferenceLocator string }
		}
		Relationships []struct{ SPDXElementID, RelationshipType, RelatedSPDXElement string }
	}
	if err := json.Unmarshal(content, &sbom); err != nil {
		t.Fatal(err)
	}
	if sbom.SPDXVersion != "SPDX-2.3" || sbom.DataLicense != "CC0-1.0" || sbom.SPDXID != "SPDXRef-DOCUMENT" ||
		sbom.Name == "" ||
		!strings.HasPrefix(sbom.DocumentNamespace, "https://") || sbom.CreationInfo.Created.IsZero() ||
		len(sbom.CreationInfo.Creators) == 0 {
		t.Errorf("the document is %+v", sbom)
	}
	build, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"github.com/ik5/sip-capture " + version, "stdlib " + strings.TrimPrefix(build.GoVersion, "go")}
	for _, module := range build.Deps {
		want = append(want, module.Path+" "+module.Version)
	}
	ids, got, libraries := map[string]bool{sbom.SPDXID: true}, []string{}, []string{}
	for _, p := range sbom.Packages {
		if !regexp.MustCompile(`^SPDXRef-[a-zA-Z0-9.-]+$`).MatchString(p.SPDXID) || ids[p.SPDXID] ||
			p.DownloadLocation == "" ||
			len(p.ExternalRefs) != 1 {
			t.Errorf("package %+v", p)
		}
		ids[p.SPDXID] = true
		if strings.HasPrefix(p.ExternalRefs[0].ReferenceLocator, "pkg:deb/debian/") {
			libraries = append(libraries, p.Name)
		} else {
			got = append(got, p.Name+" "+p.VersionInfo)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("modules %q, want %q", got, want)
	}
	if !slices.Contains(libraries, "libpcap0.8-dev") || !slices.Contains(libraries, "libc6-dev") {
		t.Errorf("libraries %q", libraries)
	}
	if checksums := sbom.Packages[0].Checksums; len(checksums) != 1 || checksums[0].Algorithm != "SHA256" ||
		checksums[0].ChecksumValue != sum {
		t.Errorf("checksums of the binary: %v, want %s", checksums, sum)
	}
	if len(sbom.Relationships) != len(sbom.Packages) {
		t.Errorf("%d relationships of %d packages", len(sbom.Relationships), len(sbom.Packages))
	}
	for _, r := range sbom.Relationships {
		if !ids[r.SPDXElementID] || !ids[r.RelatedSPDXElement] {
			t.Errorf("relationship %+v", r)
		}
	}
}

// --- the broker of deploy/ ---

// startCloud starts the broker of deploy/mosquitto.conf: TLS, users with passwords, an ACL. It is broker.example on
// its network, and its authority is in /ca.pem.
func startCloud(t *testing.T, networkName string) testcontainers.Container {
	t.Helper()
	c := startHost(t, networkName, onNetwork(networkName, "broker.example"), testcontainers.WithEnv(map[string]string{
		"SENSOR_PASSWORD": "sensor-secret", "READER_PASSWORD": "reader-secret"}))
	configuration := string(deployFile(t, "mosquitto.conf"))
	write(t, c, "/etc/mosquitto/conf.d/sensors.conf", configuration)
	// One more user, for the bridge.
	write(
		t,
		c,
		"/etc/mosquitto/acl",
		string(deployFile(t, "mosquitto-acl"))+
			"\nuser site1\ntopic write site1/sip\n\nuser reader\ntopic read site1/sip\n",
	)
	var passwords []string // the commands in its first lines
	for _, command := range regexp.MustCompile(`(?m)^#   (mosquitto_passwd .*)$`).FindAllStringSubmatch(configuration,
		-1) {
		passwords = append(passwords, command[1])
	}
	bash(t, c, strings.Join(passwords, "\n")+"\nmosquitto_passwd -b /etc/mosquitto/passwd site1 change-me\n"+`
mkdir -p /etc/mosquitto/certs
cd /etc/mosquitto/certs
key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
openssl req -x509 $key -keyout ca.key -out /ca.pem -subj /CN=ca -days 1
openssl req $key -keyout server.key -out server.csr -subj /CN=broker.example
openssl x509 -req -in server.csr -CA /ca.pem -CAkey ca.key -CAcreateserial -extfile <(echo subjectAltName=DNS:broker.example) -days 1 -out server.pem
chown -R mosquitto /etc/mosquitto
mosquitto -d -c /etc/mosquitto/conf.d/sensors.conf`)
	eventually(t, 10*time.Second, "the broker listens", func() bool {
		return status(t, c, "bash", "-c", "exec 3<>/dev/tcp/broker.example/8883") == 0
	})
	return c
}

// subscribeAt starts a subscriber in the cloud's container, with a user of its own, and returns what has it
// received so far.
func subscribeAt(t *testing.T, c testcontainers.Container, user, topics string) (received func() []string) {
	t.Helper()
	file := "/tmp/received-by-" + user
	bash(t, c, `: >`+file+`
stdbuf -oL mosquitto_sub -h broker.example -p 8883 --cafile /ca.pem -u `+user+` -P `+user+`-secret -q 1 `+topics+
		` -F '%t %p' -d >>`+
		file+
		` 2>&1 &
until grep -q ^Subscribed `+file+`; do sleep 0.1; done`)
	return func() (messages []string) {
		for line := range strings.Lines(bash(t, c, "grep -vE '^(Client|Subscribed) ' "+file+" || true")) {
			messages = append(messages, strings.TrimSpace(line))
		}
		return messages
	}
}

// write writes a file in a container.
func write(t *testing.T, c testcontainers.Container, path, content string) {
	t.Helper()
	if err := c.CopyToContainer(t.Context(), []byte(content), path, 0o644); err != nil {
		t.Fatalf("writing %s: %v", path, err)
	}
}

// status is the exit status of a command in a container.
func status(t *testing.T, c testcontainers.Container, command ...string) int {
	t.Helper()
	code, output, err := c.Exec(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if _, err := io.Copy(io.Discard, output); err != nil {
		t.Fatal(err)
	}
	return code
}

// --- the service ---

// startMachine boots a Debian machine. systemd needs more of the kernel than other containers get.
func startMachine(t *testing.T, networkName string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	c := startContainer(t, hostImage, append([]testcontainers.ContainerCustomizer{onNetwork(networkName, "machine"),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.CapAdd = []string{"SYS_ADMIN", "NET_ADMIN"}
			h.SecurityOpt = []string{"seccomp=unconfined", "apparmor=unconfined"}
			h.CgroupnsMode = container.CgroupnsModeHost
			h.Binds = append(h.Binds, "/sys/fs/cgroup:/sys/fs/cgroup")
			h.Tmpfs = map[string]string{"/run": "", "/run/lock": ""}
		})}, options...)...)
	eventually(t, 30*time.Second, "systemd is up", func() bool {
		return status(t, c, "systemctl", "is-system-running", "--quiet") == 0
	})
	return c
}

// invite is a message that the filter in the example environment file selects.
func invite(number int) string {
	return fmt.Sprintf(
		`INVITE sip:bob@198.51.100.2 SIP/2.0\r\nTo: <sip:bob@198.51.100.2>\r\nCall-ID: service-%d\r\nCSeq: 1 INVITE\r\n\r\n`,
		number,
	)
}

// TestService does what the README tells an operator to do: install the deb on a machine with two network
// cards, behind a
// firewall, with a broker that allows nothing but what is needed. systemd runs the sensor with all settings
// of the unit.
// Then it is stopped, killed, installed again, and removed; and the same with the rpm.
func TestService(t *testing.T) {
	t.Parallel()
	networkName := newNetwork(t)
	cloud := startCloud(t, networkName)
	machine := startMachine(t, networkName, bound(packagesDirectory(t),
		"/root/dist"), testcontainers.WithConfigModifier(func(c *container.Config) {
		c.WorkingDir = "/root"
	}))
	authority := string(fileFrom(t, cloud, "/ca.pem"))
	received := subscribeAt(t, cloud, "reader", "-t sip -t sip/status")
	leaked := subscribeAt(t, cloud, "sensor", "-t '#'")
	systemctl := func(arguments string) string { return strings.TrimSpace(bash(t, machine, "systemctl "+arguments)) }
	property := func(name string) string { return systemctl("show --property=" + name + " --value sip-capture") }

	// The second network card: the other end is a switch with a mirror port.
	bash(t, machine, `ip netns add switch
ip link add eth1 type veth peer name mirror netns switch
ip -n switch addr add 198.51.100.1/24 dev mirror
ip -n switch link set mirror up
ip -n switch neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev mirror nud permanent
`+readmeBlock(t, "sh", "addrgenmode none"))
	if addresses := bash(t, machine, "ip -oneline addr show dev eth1"); addresses != "" {
		t.Errorf("the capturing card has an address: %s", addresses)
	}

	// The firewall lets out what it should, and nothing in.
	bash(t, machine, "systemd-run --quiet python3 -m http.server 2323")
	bash(t, cloud, "cd /var/empty 2>/dev/null || cd /mnt; python3 -m http.server 2323 >/dev/null 2>&1 &")
	reaches := func(from testcontainers.Container, address string) bool {
		return status(t, from, "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+address) == 0
	}
	eventually(t, 10*time.Second, "without a firewall both reach each other", func() bool {
		return reaches(cloud, "machine/2323") && reaches(machine, "broker.example/2323")
	})
	write(t, machine, "/root/sensor.nft", string(deployFile(t, "sensor.nft")))
	bash(t, machine, "nft -f sensor.nft")
	if reaches(cloud, "machine/2323") || reaches(machine, "broker.example/2323") ||
		!reaches(machine, "broker.example/8883") {
		t.Error("the firewall lets too much through, or too little")
	}

	// Installed, but without a topic: not started, and a start says why and is not repeated.
	install := readmeBlock(t, "sh", "integration/packages.sh v0.1.0 dist")
	lines := strings.Split(strings.TrimSpace(install), "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[0], "integration/packages.sh v0.1.0 dist") ||
		!strings.HasPrefix(lines[3], "editor ") {
		t.Fatalf("the README installs by\n%s", install)
	}
	debInstall := replaced(t, lines[1], "sip-capture_0.1.0_amd64.deb", debName(runtime.GOARCH))
	bash(t, machine, debInstall)
	if systemctl("is-enabled sip-capture || true") != "disabled" ||
		systemctl("is-active sip-capture || true") != "inactive" {
		t.Error("the installation has started the service, or enabled it")
	}
	bash(t, machine, "systemctl start sip-capture")
	eventually(t, 10*time.Second, "the start fails", func() bool { return property("ActiveState") == "failed" })
	if log := journal(t, machine); property("ExecMainStatus") != "2" || property("NRestarts") != "0" ||
		!strings.Contains(log, "TOPIC: ") {
		t.Errorf(
			"without a topic: status %s, %s restarts, log:\n%s",
			property("ExecMainStatus"),
			property("NRestarts"),
			log,
		)
	}

	// The editor of the README's commands is a script here, which takes the file's own examples.
	check := readmeInline(t, "systemd-run --pipe")
	write(t, machine, "/root/ca.pem", authority)
	bash(t, machine, `editor() {
    sed -i -e 's/^TOPIC=$/TOPIC=sip/' -e 's,^#STATUS_TOPIC=,STATUS_TOPIC=sip/status,' -e 's/^#STATS_INTERVAL=1m/STATS_INTERVAL=1s/' \
        -E -e 's/^#   ((INTERFACE|SIP_FILTER|BROKER|USERNAME|PASSWORD_FILE|CA_FILE|METRICS_ADDR)=)/\1/' "$1"
    echo sensor-secret >"$2"
    install -o root -g sip-capture -m 0640 ca.pem /etc/sip-capture/ca.pem
}
`+lines[2]+"\n"+lines[3]+"\n[ \"$("+check+" | tail -n 1)\" = 'configuration ok' ]\n"+lines[4])
	connected := func() bool { return strings.Contains(lastLine(journal(t, machine)), `"connected":true`) }
	eventually(t, 20*time.Second, "the sensor is connected", connected)

	// What systemd says of the settings, and what the process has become by them.
	security := bash(t, machine, readmeInline(t, "systemd-analyze security")+" --no-pager")
	said := regexp.MustCompile("`systemd-analyze security sip-capture` says ([0-9.]+) ").FindStringSubmatch(readme(t))
	level := regexp.MustCompile(
		`Overall exposure level for sip-capture.service: ([0-9.]+) OK`,
	).FindStringSubmatch(security)
	if said == nil || level == nil || said[1] != level[1] {
		t.Errorf("the README says %q, systemd-analyze:\n%s", said, security)
	}
	if text := bash(t, machine, "systemd-analyze verify sip-capture.service 2>&1"); text != "" {
		t.Errorf("systemd-analyze verify: %s", text)
	}
	process := property("MainPID")
	checkStatus(t, bash(t, machine, "cat /proc/"+process+"/status"), map[string]string{
		"CapPrm": netRaw, "CapEff": netRaw, "CapBnd": netRaw, "CapAmb": netRaw, "NoNewPrivs": "1", "Seccomp": "2",
		"Groups": strings.TrimSpace(bash(t, machine, "id -g sip-capture")),
		"Uid":    strings.TrimSpace(strings.Repeat(strings.TrimSpace(bash(t, machine, "id -u sip-capture"))+" ", 4)),
	})
	// Even root can't write in what the process has for a file system; and there is no core dump, and no swap space.
	for _, directory := range []string{
		"/",
		"/etc/sip-capture",
		"/tmp",
		"/var/tmp",
		"/var/lib",
		"/run",
		"/home",
		"/dev",
		"/sys/fs/cgroup",
		"/usr/bin",
	} {
		if code := status(
			t,
			machine,
			"nsenter",
			"--mount",
			"--target="+process,
			"touch",
			directory+"/written",
		); code == 0 {
			t.Errorf("%s can be written to", directory)
		}
	}
	if limits := bash(
		t,
		machine,
		"grep 'Max core file size' /proc/"+process+"/limits",
	); strings.Join(strings.Fields(limits), " ") != "Max core file size 0 0 bytes" {
		t.Errorf("limits: %s", limits)
	}
	if text := bash(
		t,
		machine,
		readmeInline(t, "systemctl status")+" --no-pager",
	); !strings.Contains(text, "active (running)") {
		t.Errorf("systemctl status: %s", text)
	}
	bash(t, machine, readmeInline(t, "systemctl set-property"))
	if weight := property("CPUWeight"); weight != "20" {
		t.Errorf("the weight is %s", weight)
	}
	systemctl("revert sip-capture")
	if property("MemoryMax") != strconv.Itoa(384<<20) || property("MemorySwapMax") != "0" {
		t.Errorf("memory: %s, swap: %s", property("MemoryMax"), property("MemorySwapMax"))
	}

	// It does its work: of two messages on the second card, the filter selects one.
	send := func(number int) {
		bash(
			t,
			machine,
			`ip netns exec switch bash -c "printf '`+invite(number)+
				`' | cat >/dev/udp/198.51.100.2/5060; printf 'OPTIONS sip:x SIP/2.0\r\n\r\n' | cat >/dev/udp/198.51.100.2/5060"`,
		)
	}
	arrived := func(want ...string) {
		t.Helper()
		var got []string
		eventually(t, 15*time.Second, fmt.Sprintf("%q arrive", want), func() bool {
			got = nil
			for _, line := range received() {
				topic, payload, _ := strings.Cut(line, " ")
				if topic == "sip" {
					e := decode(t, []byte(payload))
					payload = regexp.MustCompile(`service-\d+`).FindString(string(e.SIP))
				}
				got = append(got, topic+" "+payload)
			}
			return slices.Equal(got, want)
		})
	}
	send(1)
	arrived("sip/status online", "sip service-1")

	// The rules for Prometheus are made for these metrics.
	metrics := readmeInline(t, "curl -s http://127.0.0.1:9464/metrics")
	bash(t, machine, metrics+" | promtool check metrics")
	if text := bash(
		t,
		machine,
		readmeInline(t, "curl -s http://127.0.0.1:9464/healthz"),
	); text != "down 0\nreopened 0\nconnected true\n" {
		t.Errorf("/healthz says %q", text)
	}
	checkAlerts(t, machine, bash(t, machine, metrics))

	// It comes back when it is killed, and an installation of the same package again starts it anew with the
	// same settings.
	bash(t, machine, "systemctl kill --signal=KILL sip-capture")
	eventually(t, 20*time.Second, "it is restarted", func() bool { return property("NRestarts") == "1" && connected() })
	arrived("sip/status online", "sip service-1", "sip/status offline", "sip/status online")
	process = property("MainPID")
	bash(t, machine, replaced(t, debInstall, "apt install", "apt install --reinstall"))
	if again := property("MainPID"); again == process || again == "0" ||
		systemctl("is-active sip-capture") != "active" {
		t.Errorf("after an upgrade the process is %s, was %s", again, process)
	}
	bash(
		t,
		machine,
		"grep -q ^TOPIC=sip$ /etc/sip-capture/sip-capture.env && [ \"$(stat -c %a /etc/sip-capture/sip-capture.env)\" = 600 ]",
	)
	eventually(t, 20*time.Second, "it is connected again", connected)
	send(2)
	arrived(
		"sip/status online",
		"sip service-1",
		"sip/status offline",
		"sip/status online",
		"sip/status offline",
		"sip/status online",
		"sip service-2",
	)
	if messages := leaked(); len(messages) > 0 {
		t.Errorf("the sensor's user may read: %q", messages)
	}

	// A stop is clean, and a removal leaves nothing but the user, and what was put there by hand.
	bash(t, machine, "systemctl stop sip-capture")
	if property("Result") != "success" || property("ExecMainStatus") != "0" {
		t.Errorf("stopped with %s, status %s", property("Result"), property("ExecMainStatus"))
	}
	bash(t, machine, "systemctl start sip-capture; "+readmeInline(t, "apt purge sip-capture")+" --yes")
	left := bash(
		t,
		machine,
		"find / -xdev -name '*sip-capture*' -not -path '/proc/*' -not -path '/root/*' | sort; ls /etc/sip-capture; pgrep -x sip-capture || true",
	)
	if left != "/etc/sip-capture\nca.pem\npassword\n" {
		t.Errorf("after the removal there is still\n%s", left)
	}

	// Debian's rpm knows of no packages here, so that the one that has useradd can't be found.
	rpm := rpmName(runtime.GOARCH)
	bash(t, machine, "rm -r /etc/sip-capture; rpm --install --nodeps dist/"+rpm+"; rpm --verify --nodeps sip-capture")
	if got := bash(
		t,
		machine,
		"sip-capture -version; systemctl is-enabled sip-capture || true",
	); got != version+"\ndisabled\n" {
		t.Errorf("the rpm is installed: %q", got)
	}
	bash(
		t,
		machine,
		"sed -i -e s/^TOPIC=/TOPIC=sip/ -e 's/^#INTERFACE=any/INTERFACE=lo/' /etc/sip-capture/sip-capture.env; systemctl enable --quiet --now sip-capture; sleep 1",
	)
	process = property("MainPID")
	bash(t, machine, "rpm --upgrade --force --nodeps dist/"+rpm)
	if again := property("MainPID"); again == process || again == "0" {
		t.Errorf("after an upgrade of the rpm the process is %s, was %s", again, process)
	}
	bash(t, machine, "grep -q ^TOPIC=sip$ /etc/sip-capture/sip-capture.env; rpm --erase sip-capture")
	left = bash(
		t,
		machine,
		"find / -xdev -name '*sip-capture*' -not -path '/proc/*' -not -path '/root/*' | sort; pgrep -x sip-capture || true",
	)
	if left != "/etc/sip-capture\n/etc/sip-capture/sip-capture.env.rpmsave\n" {
		t.Errorf("after the removal of the rpm there is still\n%s", left)
	}
}

// journal is what the service has logged.
func journal(t *testing.T, machine testcontainers.Container) string {
	t.Helper()
	return bash(t, machine, readmeInline(t, "journalctl -u sip-capture")+" --no-pager")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// netRaw is the one capability, bit 13 (capabilities(7)).
const netRaw = "0000000000002000"

// checkStatus compares fields of a /proc/PID/status, blanks folded.
func checkStatus(t *testing.T, status string, want map[string]string) {
	t.Helper()
	for field, value := range want {
		got := regexp.MustCompile(`(?m)^` + field + `:(.*)$`).FindStringSubmatch(status)
		if got == nil || strings.Join(strings.Fields(got[1]), " ") != value {
			t.Errorf("%s is %q, want %q", field, got, value)
		}
	}
}

// checkAlerts has promtool check deploy/prometheus-rules.yml, with series that must and must not raise each
// alert. All metrics that
// the rules name are among those of a sensor.
func checkAlerts(t *testing.T, machine testcontainers.Container, metrics string) {
	t.Helper()
	rules := string(deployFile(t, "prometheus-rules.yml"))
	write(t, machine, "/tmp/rules.yaml", rules)
	for _, name := range regexp.MustCompile(`sip_capture_\w+`).FindAllString(rules, -1) {
		if !strings.Contains(metrics, "\n"+name+" ") && !strings.Contains(metrics, "\n"+name+"{") {
			t.Errorf("a rule names %s, which the sensor doesn't have", name)
		}
	}
	// Values are sampled each minute; the alert is asked for after 30 minutes.
	const healthy = "0x40"
	tests := []struct{ alert, series, bad, good string }{
		{
			"SipCaptureDown",
			`up{job="sip-capture",instance="a"}`,
			"0x40",
			"1x40",
		},
		{
			"SipCaptureDisconnected",
			`sip_capture_connected{instance="a"}`,
			"0x40",
			"1x28 0x2 1x10",
		},
		{
			"SipCaptureQueueFills",
			`sip_capture_queue_bytes{instance="a"}`,
			"40000000x40",
			"30000000x40",
		},
		{
			"SipCaptureMessagesDropped",
			`sip_capture_messages_dropped_total{instance="a"}`,
			"0x28 5x12",
			healthy,
		},
		{
			"SipCaptureFramesDropped",
			`sip_capture_packets_dropped_total{instance="a"}`,
			"0x28 5x12",
			healthy,
		},
		{
			"SipCaptureMessagesIncomplete",
			`sip_capture_messages_discarded_total{instance="a",reason="stream_gap"}`,
			"0+12x40",
			"0+8x40",
		},
		{
			"SipCaptureSilent",
			`sip_capture_packets_total{instance="a"}`,
			"7x40",
			"0+1x40",
		},
	}
	names := regexp.MustCompile(`(?m)alert: (\w+)`).FindAllStringSubmatch(rules, -1)
	if len(names) != len(tests) {
		t.Errorf("%d alerts, %d tested", len(names), len(tests))
	}
	var text strings.Builder
	text.WriteString("rule_files: [/tmp/rules.yaml]\nevaluation_interval: 1m\ntests:\n")
	for _, test := range tests {
		for _, values := range []string{test.bad, test.good} {
			labels := `instance: a`
			if strings.Contains(test.series, "job=") {
				labels += ", job: sip-capture"
			}
			expected := "[]"
			if values == test.bad {
				expected = "[{exp_labels: {" + labels + "}, exp_annotations: {summary: " +
					strconv.Quote(summary(t, rules, test.alert)) +
					"}}]"
			}
			fmt.Fprintf(&text, `  - interval: 1m
    input_series:
      - {series: '%s', values: '%s'}
      - {series: 'sip_capture_messages_total{instance="a",transport="udp"}', values: '0+1000x40'}
    alert_rule_test:
      - {eval_time: 30m, alertname: %s, exp_alerts: %s}
`, test.series, values, test.alert, expected)
		}
	}
	write(t, machine, "/tmp/tests.yaml", text.String())
	bash(t, machine, "promtool check rules /tmp/rules.yaml && promtool test rules /tmp/tests.yaml")
}

// summary is the annotation of an alert for the instance "a".
func summary(t *testing.T, rules, alert string) string {
	t.Helper()
	var parsed struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(rules), &parsed); err != nil {
		t.Fatal(err)
	}
	for _, rule := range parsed.Groups[0].Rules {
		if rule.Alert == alert {
			return strings.ReplaceAll(rule.Annotations["summary"], "{{ $labels.instance }}", "a")
		}
	}
	t.Errorf("there is no alert %s", alert)
	return ""
}

// TestEnvironmentFile: the example has every variable of the README's table, with its default.
func TestEnvironmentFile(t *testing.T) {
	example, err := os.ReadFile("../.packaging/sip-capture.env")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(readme(t), "\n## Configuration\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var want []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[A-Z_`, ]+) \\|").FindAllStringSubmatch(table, -1) {
		want = append(want, regexp.MustCompile(`[A-Z_]+`).FindAllString(row[1], -1)...)
	}
	if len(want) < 20 {
		t.Fatalf("the README has the variables %q", want)
	}
	for _, name := range want {
		// PASSWORD_FILE is the better of the two, and a service reads no capture file.
		if name == "PASSWORD" || name == "PCAP_FILE" {
			continue
		}
		line := regexp.MustCompile(`(?m)^#?` + name + `=(.*)$`).FindSubmatch(example)
		if line == nil {
			t.Errorf("the example has no %s", name)
			continue
		}
		byDefault := ""
		row := regexp.MustCompile("(?m)^\\| `" + name + "` \\| `([^`]+)` \\|").FindStringSubmatch(table)
		if row != nil && name != "CLIENT_ID" {
			byDefault = row[1]
		}
		if string(line[1]) != byDefault {
			t.Errorf("the example has %s=%s, the default is %q", name, line[1], byDefault)
		}
	}
	settings := regexp.MustCompile(`(?m)^(?:#   |#)?([A-Z_]+)=(.*)$`).FindAllSubmatch(example, -1)
	for _, setting := range settings {
		if !slices.Contains(want, string(setting[1])) {
			t.Errorf("the example has %s, which the README doesn't", setting[1])
		}
		// Docker would leave quotes, and systemd take backslashes away.
		if bytes.ContainsAny(setting[2], `\'`) || bytes.HasPrefix(setting[2], []byte(`"`)) {
			t.Errorf("quotes or backslashes: %s", setting[0])
		}
	}
}

// --- Kubernetes ---

// daemonSet is what deploy/kubernetes.yaml uses of Kubernetes' types; a field that isn't here is an error
// there. (It was
// read into the types of k8s.io/api, strictly, when it was written: they are too much to compile each time.)
type daemonSet struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   metadata `yaml:"metadata"`
	Spec       struct {
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
		Template struct {
			Metadata metadata `yaml:"metadata"`
			Spec     podSpec  `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type metadata struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace"`
	Labels    map[string]string `yaml:"labels"`
}

type podSpec struct {
	NodeSelector                  map[string]string `yaml:"nodeSelector"`
	HostNetwork                   bool              `yaml:"hostNetwork"`
	DNSPolicy                     string            `yaml:"dnsPolicy"`
	AutomountServiceAccountToken  bool              `yaml:"automountServiceAccountToken"`
	EnableServiceLinks            bool              `yaml:"enableServiceLinks"`
	TerminationGracePeriodSeconds int               `yaml:"terminationGracePeriodSeconds"`
	SecurityContext               struct {
		RunAsUser      int  `yaml:"runAsUser"`
		RunAsGroup     int  `yaml:"runAsGroup"`
		RunAsNonRoot   bool `yaml:"runAsNonRoot"`
		FSGroup        int  `yaml:"fsGroup"`
		SeccompProfile struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers []struct {
		Name  string `yaml:"name"`
		Image string `yaml:"image"`
		Env   []struct {
			Name  string `yaml:"name"`
			Value string `yaml:"value"`
		} `yaml:"env"`
		SecurityContext struct {
			AllowPrivilegeEscalation bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct {
				Drop []string `yaml:"drop"`
				Add  []string `yaml:"add"`
			} `yaml:"capabilities"`
		} `yaml:"securityContext"`
		ReadinessProbe probe `yaml:"readinessProbe"`
		LivenessProbe  probe `yaml:"livenessProbe"`
		Resources      struct {
			Requests map[string]string `yaml:"requests"`
			Limits   map[string]string `yaml:"limits"`
		} `yaml:"resources"`
		VolumeMounts []struct {
			Name      string `yaml:"name"`
			MountPath string `yaml:"mountPath"`
			ReadOnly  bool   `yaml:"readOnly"`
		} `yaml:"volumeMounts"`
	} `yaml:"containers"`
	Volumes []struct {
		Name   string `yaml:"name"`
		Secret struct {
			SecretName  string      `yaml:"secretName"`
			DefaultMode os.FileMode `yaml:"defaultMode"`
		} `yaml:"secret"`
	} `yaml:"volumes"`
}

type probe struct {
	HTTPGet struct {
		Host string `yaml:"host"`
		Port int    `yaml:"port"`
		Path string `yaml:"path"`
	} `yaml:"httpGet"`
	PeriodSeconds    int `yaml:"periodSeconds"`
	FailureThreshold int `yaml:"failureThreshold"`
}

// manifest reads the documents of deploy/kubernetes.yaml: a namespace, a secret, the DaemonSet.
func manifest(t *testing.T) (d daemonSet, password string) {
	t.Helper()
	var namespace struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`
	}
	var secret struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   metadata          `yaml:"metadata"`
		StringData map[string]string `yaml:"stringData"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(deployFile(t, "kubernetes.yaml")))
	decoder.KnownFields(true)
	for _, document := range []any{&namespace, &secret, &d} {
		if err := decoder.Decode(document); err != nil {
			t.Fatalf("kubernetes.yaml: %v", err)
		}
	}
	if err := decoder.Decode(&struct{}{}); err != io.EOF {
		t.Errorf("there is more in the example: %v", err)
	}
	if namespace.Kind+secret.Kind+d.Kind != "NamespaceSecretDaemonSet" ||
		namespace.APIVersion+secret.APIVersion+d.APIVersion != "v1v1apps/v1" {
		t.Errorf("kinds %s, %s, %s", namespace.Kind, secret.Kind, d.Kind)
	}
	pod := d.Spec.Template.Spec
	if secret.Metadata.Namespace != namespace.Metadata.Name || d.Metadata.Namespace != namespace.Metadata.Name ||
		d.Spec.Selector.MatchLabels["app"] != d.Spec.Template.Metadata.Labels["app"] ||
		pod.Volumes[0].Secret.SecretName != secret.Metadata.Name {
		t.Error("the parts of the example don't fit together")
	}
	return d, secret.StringData["password"]
}

// TestKubernetes runs the image with the settings of the DaemonSet, each in the form that Docker has it.
func TestKubernetes(t *testing.T) {
	d, password := manifest(t)
	pod := d.Spec.Template.Spec
	spec := pod.Containers[0]
	if !pod.HostNetwork || !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.RunAsUser == 0 ||
		pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" ||
		!spec.SecurityContext.ReadOnlyRootFilesystem ||
		!slices.Equal(spec.SecurityContext.Capabilities.Drop, []string{"ALL"}) ||
		!slices.Equal(spec.SecurityContext.Capabilities.Add, []string{"NET_RAW"}) || pod.AutomountServiceAccountToken {
		t.Errorf("not the settings that are promised: %+v", pod)
	}
	if spec.LivenessProbe.HTTPGet != spec.ReadinessProbe.HTTPGet || spec.LivenessProbe.HTTPGet.Path != "/healthz" {
		t.Errorf("probes %+v, %+v", spec.LivenessProbe, spec.ReadinessProbe)
	}

	networkName := newNetwork(t)
	cloud := startCloud(t, networkName)
	bash(t, cloud, "mosquitto_passwd -b /etc/mosquitto/passwd sensor '"+password+"'; pkill -HUP mosquitto")
	received := subscribeAt(t, cloud, "reader", "-t sip")
	address, err := cloud.ContainerIP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The secret as a volume, owned by the group that the pod has.
	secrets := t.TempDir()
	mode := pod.Volumes[0].Secret.DefaultMode
	if os.Getuid() != 0 {
		mode |= 0o004 // only root can give it to that group
	}
	for name, content := range map[string][]byte{
		"password": []byte(password),
		"ca.pem":   fileFrom(t, cloud, "/ca.pem"),
	} {
		path := filepath.Join(secrets, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := os.Chown(path, 0, pod.SecurityContext.FSGroup); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(secrets, 0o755); err != nil {
		t.Fatal(err)
	}

	// Only these differ from the example: the broker's authority isn't the system's, the port for metrics may
	// be taken on this
	// machine, and frames of other tests must not be taken for this one's.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metricsAddress := listener.Addr().String()
	listener.Close()
	env := map[string]string{"CA_FILE": "/secrets/ca.pem", "BPF_FILTER": "udp port 15061"}
	for _, variable := range spec.Env {
		env[variable.Name] = variable.Value
	}
	if want := fmt.Sprintf(
		"%s:%d",
		spec.LivenessProbe.HTTPGet.Host,
		spec.LivenessProbe.HTTPGet.Port,
	); env["METRICS_ADDR"] != want {
		t.Errorf("METRICS_ADDR is %s, but the probes go to %s", env["METRICS_ADDR"], want)
	}
	env["METRICS_ADDR"] = metricsAddress
	memory, err := strconv.Atoi(strings.TrimSuffix(spec.Resources.Limits["memory"], "Mi"))
	if err != nil {
		t.Fatal(err)
	}
	sensor := startContainer(t, sensorImage, onNetwork("host"), testcontainers.WithEnv(env),
		testcontainers.WithEnv(map[string]string{"STATS_INTERVAL": "1s"}),
		testcontainers.WithConfigModifier(func(c *container.Config) {
			c.User = fmt.Sprintf("%d:%d", pod.SecurityContext.RunAsUser, pod.SecurityContext.RunAsGroup)
		}),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.CapDrop, h.CapAdd = spec.SecurityContext.Capabilities.Drop, spec.SecurityContext.Capabilities.Add
			h.ReadonlyRootfs = spec.SecurityContext.ReadOnlyRootFilesystem
			h.GroupAdd = []string{strconv.Itoa(pod.SecurityContext.FSGroup)}
			if !spec.SecurityContext.AllowPrivilegeEscalation {
				h.SecurityOpt = []string{"no-new-privileges"}
			}
			h.Memory = int64(memory) << 20
			h.Binds = []string{secrets + ":" + spec.VolumeMounts[0].MountPath + ":ro"}
			h.ExtraHosts = []string{"broker.example:" + address}
		}),
		testcontainers.WithWaitStrategy(
			wait.ForLog(`"msg":"stats".*"connected":true`).AsRegexp().WithStartupTimeout(20*time.Second),
		))

	response, err := http.Get("http://" + metricsAddress + spec.LivenessProbe.HTTPGet.Path)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the probe gets %s", response.Status)
	}
	processStatus, err := os.ReadFile("/proc/" + pid(t, sensor) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	checkStatus(t, string(processStatus), map[string]string{
		"Uid": "65532 65532 65532 65532", "CapPrm": netRaw, "CapEff": netRaw,
		"CapBnd": netRaw, "CapAmb": "0000000000000000", "NoNewPrivs": "0", "Seccomp": "2",
	})

	conn, err := net.Dial("udp4", "127.0.0.1:15061")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	message := []byte("OPTIONS sip:kubernetes@127.0.0.1 SIP/2.0\r\nCall-ID: k\r\n\r\n")
	if _, err := conn.Write(message); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the message arrives", func() bool { return len(received()) == 1 })
	if _, payload, _ := strings.Cut(received()[0], " "); !bytes.Equal(decode(t, []byte(payload)).SIP, message) {
		t.Errorf("received %s", payload)
	}
	start := time.Now()
	stopSensor(t, sensor)
	if took := time.Since(start); took > time.Duration(pod.TerminationGracePeriodSeconds)*time.Second {
		t.Errorf("the stop took %s, the pod is given %d s", took, pod.TerminationGracePeriodSeconds)
	}

	// With escalation forbidden it takes root with this one capability: the README says so.
	alternative := startContainer(t, sensorImage, onNetwork(networkName), testcontainers.WithEnv(
		map[string]string{"TOPIC": "sip", "INTERFACE": "eth0", "STATS_INTERVAL": "1s"},
	),
		testcontainers.WithConfigModifier(func(c *container.Config) { c.User = "0:0" }),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.CapDrop, h.CapAdd = spec.SecurityContext.Capabilities.Drop, spec.SecurityContext.Capabilities.Add
			h.ReadonlyRootfs = true
			h.SecurityOpt = []string{"no-new-privileges"}
		}),
		testcontainers.WithWaitStrategy(wait.ForLog(`"msg":"stats"`).WithStartupTimeout(20*time.Second)))
	processStatus, err = os.ReadFile("/proc/" + pid(t, alternative) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	checkStatus(
		t,
		string(processStatus),
		map[string]string{"Uid": "0 0 0 0", "CapEff": netRaw, "CapBnd": netRaw, "NoNewPrivs": "1"},
	)
}

// --- GitHub ---

// TestWorkflows: no action that isn't pinned by its commit, nobody who may do more than is said, and
// Dependabot looks at
// all that is pinned. (actionlint, in test.sh, checks the rest.)
func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("workflows: %v, %v", files, err)
	}
	pinned := regexp.MustCompile(
		`^\s*(- )?uses: (\./\.github/workflows/[a-z]+\.yml|[a-z]+/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$`,
	)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "uses:") && !pinned.MatchString(strings.TrimRight(line, "\n")) {
				t.Errorf("%s: not pinned: %s", file, line)
			}
		}
		var workflow struct {
			Permissions map[string]string
			Jobs        map[string]struct{ Permissions map[string]string }
		}
		if err := yaml.Unmarshal(text, &workflow); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for scope, access := range workflow.Permissions {
			if scope != "contents" || access != "read" {
				t.Errorf("%s: every job may %s %s", file, access, scope)
			}
		}
		if workflow.Permissions == nil {
			t.Errorf("%s doesn't say what its jobs may do", file)
		}
	}
	var dependabot struct {
		Version int
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}
	text, err := os.ReadFile("../.github/dependabot.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &dependabot); err != nil {
		t.Fatal(err)
	}
	var watched []string
	for _, update := range dependabot.Updates {
		for _, directory := range append(update.Directories, update.Directory) {
			if directory != "" {
				watched = append(watched, update.Ecosystem+" "+directory)
			}
		}
	}
	want := []string{"github-actions /", "gomod /", "gomod /integration", "docker /"}
	images, _ := filepath.Glob("images/*/Dockerfile")
	for _, image := range images {
		want = append(want, "docker /integration/"+filepath.Dir(image))
	}
	slices.Sort(watched)
	slices.Sort(want)
	if !slices.Equal(watched, want) {
		t.Errorf("Dependabot watches %q, want %q", watched, want)
	}
}
