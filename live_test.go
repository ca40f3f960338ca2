package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// These tests run the program on devices: pairs of virtual Ethernet in a network namespace that ends with the
// test. Where that needs more than this user may, they are skipped, and say so.

const liveMetrics = "127.0.0.1:9464" // free in a namespace of its own

// enterNamespace puts the test's own goroutine, and what it starts and listens on, into a new network namespace.
// Its thread ends with the goroutine, and with it the namespace and its devices.
func enterNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	if _, err := program(); err != nil { // built before: the compiler may want the network
		t.Fatal(err)
	}
	runtime.LockOSThread() // and never unlocked
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	ip(t, "link set lo up")
}

// ip runs ip(8).
func ip(t *testing.T, line string) string {
	t.Helper()
	output, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", line, err, output)
	}
	return string(output)
}

// wire is a pair of devices: what is sent into its far end comes out of the near one, where the sensor listens.
type wire struct {
	t      *testing.T
	name   string
	socket int
	to     *syscall.SockaddrLinklayer
}

// newWire makes name, and name-far.
func newWire(t *testing.T, name string) *wire {
	t.Helper()
	far := name + "-far"
	ip(t, "link add "+name+" type veth peer name "+far)
	for _, device := range []string{name, far} {
		os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0o644)
		ip(t, "link set "+device+" up")
	}
	device, err := net.InterfaceByName(far)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, 0) // receives nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(socket) })
	return &wire{t, name, socket, &syscall.SockaddrLinklayer{Ifindex: device.Index}}
}

func (w *wire) send(frames ...[]byte) {
	w.t.Helper()
	for _, frame := range frames {
		if err := syscall.Sendto(w.socket, frame, 0, w.to); err != nil {
			w.t.Fatalf("sending on %s: %v", w.name, err)
		}
	}
}

// cut takes both devices away.
func (w *wire) cut() { ip(w.t, "link del "+w.name) }

// liveCalls are frames with an INVITE each.
func liveCalls(first, n int) (frames [][]byte) {
	for i := range n {
		frames = append(frames, testFrame(layers.IPProtocolUDP, testCall("INVITE", first+i)))
	}
	return frames
}

// otherPort is a frame with a message that the default filter doesn't select.
func otherPort(i int) []byte {
	return build(ethernetHeader(), ipv4Header(), udpHeader(5070, 5070), data(testCall("INVITE", i)))
}

// sensing is a sensor that captures in the namespace, with its broker there.
type sensing struct {
	*process
	broker *collector
}

// launchLive returns when the sensor has said that it captures, and is connected.
func launchLive(t *testing.T, environment ...string) *sensing {
	t.Helper()
	broker := newCollector(t)
	settings := []string{broker.setting(), "TOPIC=sip", "STATS_INTERVAL=20ms", "METRICS_ADDR=" + liveMetrics}
	p := launch(t, append(settings, environment...)...)
	p.untilLogged(`"msg":"capturing"`)
	p.untilLogged(`"connected":true`)
	return &sensing{p, broker}
}

// healthz asks from within the namespace.
func healthz(t *testing.T) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", liveMetrics)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET /healthz HTTP/1.0\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// untilPublished waits for n messages and checks that they are those of liveCalls(0, n), and that nothing else
// was captured.
func (s *sensing) untilPublished(n int) {
	s.t.Helper()
	s.untilStats("published", func(s statsLine) bool { return s.MessagesPublished >= uint64(n) })
	s.checkPublished(n)
}

func (s *sensing) checkPublished(n int) {
	s.t.Helper()
	times := map[string]int{}
	for _, e := range s.broker.envelopes(s.t, "sip") {
		times[string(e.SIP)]++
		if e.Transport+e.Src+e.Dst != "" {
			s.t.Error("an envelope has addresses, without INCLUDE_ADDRESSES")
		}
	}
	once := 0
	for i := range n {
		if times[testCall("INVITE", i)] == 1 {
			once++
		}
	}
	if once != n || len(times) != n {
		s.t.Errorf("of %d messages %d were published once; %d different ones were", n, once, len(times))
	}
}

// captureSockets is how many sockets in the namespace get frames of every protocol.
func (s *sensing) captureSockets() (n int) {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(string(text), " 0003 ") // ETH_P_ALL
}

// end stops the sensor and returns its last counters.
func (s *sensing) end() statsLine {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.exits(0, patience)
	return s.lastStats()
}

// TestLiveDevices captures from two devices, and only what the default filter selects.
func TestLiveDevices(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one, other := newWire(t, "one"), newWire(t, "other")
	s := launchLive(t, "INTERFACE=one, other")
	for i, frame := range liveCalls(0, 10) {
		[]*wire{one, other}[i%2].send(frame, otherPort(i))
	}
	s.untilPublished(10)
	if got := s.end(); got.Packets != 10 || got.PacketsDropped != 0 {
		t.Errorf("got %+v", got)
	}
}

// TestLiveReopening takes one of two devices away, and gives it back.
func TestLiveReopening(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one, other := newWire(t, "one"), newWire(t, "other")
	s := launchLive(t, "INTERFACE=one,other")
	one.send(liveCalls(0, 1)...)
	s.untilPublished(1)
	open := s.captureSockets()
	if status, body := healthz(t); status != http.StatusOK || body != "down 0\nreopened 0\nconnected true\n" {
		t.Errorf("before: %d %q", status, body)
	}
	one.cut()
	s.untilLogged(`"level":"ERROR","msg":"capture failed, trying again","error":"reading one: `)
	if status, body := healthz(t); status != http.StatusServiceUnavailable ||
		body != "down 1\nreopened 0\nconnected true\n" {
		t.Errorf("while it is away: %d %q", status, body)
	}
	stdout, stderr := execute(t, 1, []string{"-health"}, "METRICS_ADDR="+liveMetrics)
	if want := "asking for health: 503 Service Unavailable\n"; stdout != "" || stderr != want {
		t.Errorf("-health: %q%q, want %q", stdout, stderr, want)
	}
	other.send(liveCalls(1, 1)...) // the other device goes on
	s.untilPublished(2)
	one = newWire(t, "one")
	s.untilLogged(`"msg":"capturing again","device":"one"`)
	if status, body := healthz(t); status != http.StatusOK || body != "down 0\nreopened 1\nconnected true\n" {
		t.Errorf("after: %d %q", status, body)
	}
	if got := s.captureSockets(); got != open || got == 0 {
		t.Errorf("%d sockets capture, before %d", got, open)
	}
	one.send(otherPort(1)) // the filter holds for the new device, too
	one.send(liveCalls(2, 3)...)
	s.untilPublished(5)
	if got := s.end(); got.Packets != 5 {
		t.Errorf("%d frames captured, want 5", got.Packets)
	}
}

// TestLiveStopWhileAway: a device that is away holds up no stop.
func TestLiveStopWhileAway(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one := newWire(t, "one")
	s := launchLive(t, "INTERFACE=one")
	one.cut()
	s.untilLogged("trying again")
	s.signal(syscall.SIGTERM)
	s.exits(0, 900*time.Millisecond) // sooner than it would be opened again
}

// newTunnel makes a device that isn't Ethernet, which its name doesn't tell: filters that need Ethernet are
// refused. What is written to the file is received on the device.
func newTunnel(t *testing.T, name string) *os.File {
	t.Helper()
	file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no device without a link layer: %v", err)
	}
	t.Cleanup(func() { file.Close() })                      // and with it the device goes
	const tunSetInterface, packetsOnly = 0x400454ca, 0x1001 // TUNSETIFF; IFF_TUN | IFF_NO_PI
	var device struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(device.name[:], name)
	device.flags = packetsOnly
	_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), tunSetInterface, uintptr(unsafe.Pointer(&device)))
	if failed != 0 {
		t.Skipf("no device without a link layer: %v", failed)
	}
	ip(t, "link set "+name+" up")
	return file
}

// TestLiveFilterRefused: a filter that suits Ethernet only never means an unfiltered capture, neither at the
// start nor when another device has taken a name.
func TestLiveFilterRefused(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	const filter = "BPF_FILTER=vlan or udp port 5060"
	newTunnel(t, "tunnel")
	p := prepareProgram(t, nil, "TOPIC=sip", "INTERFACE=tunnel", filter).start()
	p.exits(2, patience)
	want := "opening tunnel: the BPF filter can't be used on link type RAW: "
	if stderr, stdout := p.stderr.String(), p.stdout.String(); !strings.HasPrefix(stderr, want) || stdout != "" {
		t.Errorf("got %q and %q, want %q", stderr, stdout, want)
	}

	one := newWire(t, "one")
	s := launchLive(t, "INTERFACE=one", filter)
	one.cut()
	tunnel := newTunnel(t, "one")
	s.untilLogged(`"error":"opening one: the BPF filter can't be used on link type RAW: `)
	s.untilLogged(`"in":"2s"`) // after 1 s
	if got := s.captureSockets(); got != 0 {
		t.Errorf("%d sockets still capture", got)
	}
	for i := range 10 {
		if _, err := tunnel.Write(over4(testCall("INVITE", i))); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if status, body := healthz(t); status != http.StatusServiceUnavailable ||
		!strings.HasPrefix(body, "down 1\nreopened 0\n") {
		t.Errorf("/healthz: %d %q", status, body)
	}
	if got := s.end(); got.Packets != 0 {
		t.Errorf("%d frames captured without a filter", got.Packets)
	}
}

// TestLiveDrops stops the process until the kernel's buffer of 1 MB overflows. What the kernel dropped is
// counted, once.
func TestLiveDrops(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one := newWire(t, "one")
	s := launchLive(t, "INTERFACE=one", "BUFFER_MB=1", "SIP_FILTER=(method options)")
	const sent, more, size = 4000, 50, 1000
	long := testFrame(layers.IPProtocolUDP, testCall("INVITE", 0)+strings.Repeat("x", size))
	flood := slices.Repeat([][]byte{long}, sent)
	s.stop()
	one.send(flood...)
	s.signal(syscall.SIGCONT)
	got := s.untilStats("all counted", func(s statsLine) bool { return s.Packets+s.PacketsDropped >= sent })
	if got.Packets < 1<<20/2/size || got.Packets > 1<<20/size { // libpcap's own 2 MB would hold 1,400
		t.Errorf("%d frames captured, with a buffer of 1 MB", got.Packets)
	}
	dropped := got.PacketsDropped
	for range more { // each of them looks at the kernel's counter again, as do the time-outs between
		one.send(long)
		time.Sleep(5 * time.Millisecond)
	}
	s.untilStats("more captured", func(s statsLine) bool { return s.Packets >= got.Packets+more })
	last := s.end()
	if last.PacketsDropped != dropped || last.Packets+last.PacketsDropped != sent+more {
		t.Errorf("%d captured and %d dropped (before %d) of %d", last.Packets, last.PacketsDropped, dropped, sent+more)
	}
}

// TestLiveStop: what is in the kernel's buffer when the signal comes is published.
func TestLiveStop(t *testing.T) {
	for _, isBusy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy %v", isBusy), func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			one := newWire(t, "one")
			s := launchLive(t, "INTERFACE=one")
			const n = 500
			if isBusy { // so that the signal comes before any of the frames is read
				s.stop()
			}
			one.send(liveCalls(0, n)...)
			s.signal(syscall.SIGTERM)
			s.signal(syscall.SIGCONT)
			s.exits(0, patience)
			if got := s.lastStats(); got.Packets != n || got.MessagesPublished != n {
				t.Errorf("got %+v", got)
			}
			s.checkPublished(n)
		})
	}
}

// TestLiveStopUnderLoad: frames that keep coming don't keep the sensor from its end.
func TestLiveStopUnderLoad(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one := newWire(t, "one")
	s := launchLive(t, "INTERFACE=one", "SIP_FILTER=(method options)")
	frame := liveCalls(0, 1)[0]
	end := time.Now().Add(3 * time.Second)
	for isTold := false; time.Now().Before(end); {
		one.send(frame)
		time.Sleep(100 * time.Microsecond)
		if !isTold && time.Until(end) < 2500*time.Millisecond {
			isTold = true
			s.signal(syscall.SIGTERM)
		}
		select {
		case <-s.done:
			end = time.Now()
		default:
		}
	}
	s.exits(0, 100*time.Millisecond)
	if got := s.lastStats(); got.Packets < 100 || got.MessagesRejected != got.Packets {
		t.Errorf("got %+v", got)
	}
}

// TestLiveQuietDevice: what is incomplete gets old although no frame comes.
func TestLiveQuietDevice(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	newWire(t, "one")
	from := &source{name: "one", snaplen: maxSnaplen, bufferBytes: 1 << 20}
	handle, err := from.open()
	if err != nil {
		t.Fatal(err)
	}
	var counters captureCounters
	d := newDecoder(&counters, func(*message) {})
	outer, inner := []header{ethernetHeader(), ipv4Header()}, []header{udpHeader(5060, 5060), data(sampleInvite)}
	first := fragments(outer, inner, 1, 64)[0]
	info := gopacket.CaptureInfo{Timestamp: time.Now().Add(-fragmentAge), CaptureLength: len(first), Length: len(first)}
	d.frame(ethernet, first, info.Timestamp, info.CaptureLength < info.Length)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := from.read(ctx, handle, d); err != nil || counters.packets.Load() != 1 {
		t.Errorf("%d frames, %v", counters.packets.Load(), err)
	}
	if got := counters.fragment.Load(); got != 1 {
		t.Errorf("fragment %d, want 1", got)
	}
}

// TestLiveWithoutBroker: the broker doesn't count for health, as to start the sensor again would lose the queue.
func TestLiveWithoutBroker(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one := newWire(t, "one")
	settings := []string{"BROKER=tcp://127.0.0.1:1", "TOPIC=sip", "INTERFACE=one", "METRICS_ADDR=" + liveMetrics}
	p := launch(t, append(settings, "STATS_INTERVAL=20ms")...)
	p.untilLogged(`"msg":"capturing"`)
	one.send(liveCalls(0, 3)...)
	p.untilStats("queued", func(s statsLine) bool { return s.QueueMessages == 3 })
	if status, body := healthz(t); status != http.StatusOK || body != "down 0\nreopened 0\nconnected false\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
}

// TestLivePromiscuous looks at what the kernel says of the devices.
func TestLivePromiscuous(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	newWire(t, "one")
	promiscuity := regexp.MustCompile(`promiscuity (\d+)`)
	for _, row := range []struct {
		environment []string
		want        string
	}{
		{[]string{"INTERFACE=one"}, "1"},
		{[]string{"INTERFACE=one", "PROMISCUOUS=true"}, "1"},
		{[]string{"INTERFACE=one", "PROMISCUOUS=false"}, "0"},
		{[]string{"PROMISCUOUS=true"}, "0"}, // any
	} {
		s := launchLive(t, row.environment...)
		got := promiscuity.FindStringSubmatch(ip(t, "-d link show dev one"))
		if len(got) != 2 || got[1] != row.want {
			t.Errorf("%q: %q, want %s", row.environment, got, row.want)
		}
		s.end()
	}
}

// TestLiveSnaplen: a message longer than that is counted, and never published in part.
func TestLiveSnaplen(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	one := newWire(t, "one")
	frame := liveCalls(0, 1)[0]
	for _, row := range []struct {
		snaplen              int
		published, truncated uint64
	}{
		{
			len(frame),
			1,
			0,
		},
		{
			len(frame) - 1,
			0,
			1,
		},
		{
			68,
			0,
			1,
		},
		{
			262144,
			1,
			0,
		},
	} {
		s := launchLive(t, "INTERFACE=one", fmt.Sprint("SNAPLEN=", row.snaplen))
		one.send(frame)
		s.untilStats("captured", func(s statsLine) bool { return s.Packets == 1 })
		got := s.end()
		if got.MessagesPublished != row.published || got.MessagesDiscarded["truncated"] != row.truncated {
			t.Errorf("%d bytes of %d: %+v", row.snaplen, len(frame), got)
		}
	}
}
