package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/gopacket"
	"github.com/google/gopacket/pcap"
)

// What the program costs, against targets that are ratios to a floor: the same work without the program. Each
// benchmark is one target,
// measures floor and program in turn, several rounds of it, and compares medians. They ignore b.N:
//
// go test -run '^$' -bench '^BenchmarkTarget' -benchtime 1x . (with -short: a twentieth of the work, to see
// whether they run at all)
//
// runs those that need neither a broker nor root; integration/bench.sh runs all of them, in a network
// namespace with a Mosquitto in it.
//
// It sets BENCH_BROKER (host:port of a Mosquitto; also: root may make devices here), BENCH_PROGRAM (what is
// measured; default: built from
// this directory), BENCH_IMAGE (whose size is measured) and BENCH_TABLE (a file to which the rows are appended).
//
// CPU is user and system time of the whole process, start to end, from wait4(2): one second per million
// messages is 1 µs per message.

const (
	benchRounds     = 5
	benchLiveRounds = 3 // each takes 10 s
	benchLiveTime   = 10 * time.Second
	benchWindow     = 100               // unacknowledged publishes of the paho loop
	benchWarm       = 7000              // frames decoded before anything is measured in this process
	benchResident   = 64 << 20          // bytes
	benchNone       = "(method notify)" // there is none
)

// scaled is how much work of n there is.
func scaled(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

// --- the table ---

// benchRow is a line of the table. Where there is no floor, the target is one for the figure itself.
type benchRow struct {
	target              int
	what, figure, floor string
	ratio               float64 // 0: none
	limit               string
	met                 bool
}

func (r benchRow) report(b *testing.B) {
	b.Helper()
	ratio, met := "", "**no**"
	if r.ratio > 0 {
		ratio = fmt.Sprintf("%.2f", r.ratio)
	}
	if r.met {
		met = "yes"
	}
	if r.limit == "" {
		r.limit, met = "–", "–"
	}
	line := fmt.Sprintf(
		"| %d | %s | %s | %s | %s | %s | %s |",
		r.target,
		r.what,
		r.figure,
		cmp.Or(r.floor, "–"),
		cmp.Or(ratio, "–"),
		r.limit,
		met,
	)
	b.Log(line)
	b.ReportMetric(0, "ns/op") // says nothing here
	if path := os.Getenv("BENCH_TABLE"); path != "" {
		file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		fmt.Fprintln(file, line)
	}
}

// compare reports a figure that may be at most limit times its floor; where the limit is 0 it is only shown. Figures
// and floors were measured in turns: the ratio is the median of the ratios in each, as what slows the machine for a
// while slows both.
func compare(b *testing.B, target int, what, format string, figure, floor []float64, limit float64) {
	b.Helper()
	var ratios []float64
	for i := range figure {
		ratios = append(ratios, figure[i]/floor[i])
	}
	r := benchRow{
		target: target,
		what:   what,
		figure: fmt.Sprintf(format, median(figure)),
		floor:  fmt.Sprintf(format, median(floor)),
		ratio:  median(ratios),
	}
	if r.met = r.ratio <= limit; limit > 0 {
		r.limit = fmt.Sprintf("≤ %g ×", limit)
	}
	r.report(b)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// residents are the rows of target 8 about memory: the other targets add to them.
var residents []benchRow

func noteResident(target int, runs []spent) {
	most := int64(0)
	for _, run := range runs {
		most = max(most, run.resident)
	}
	residents = append(residents, benchRow{target: 8, what: fmt.Sprintf("resident memory in %d, at most", target),
		figure: fmt.Sprintf("%.0f MB", float64(most)/(1<<20)), limit: "< 64 MB", met: most < benchResident})
}

// --- processes ---

// spent is what a process took from its start to its end.
type spent struct {
	cpu, wall time.Duration
	resident  int64 // bytes at most, without the kernel's capture buffer
	output    string
}

// watched is a running process.
type watched struct {
	cmd            *exec.Cmd
	begin          time.Time
	stdout, stderr bytes.Buffer
	ended          chan struct{}
	resident       chan int64
}

func begin(b *testing.B, cmd *exec.Cmd) *watched {
	b.Helper()
	r := &watched{cmd: cmd, begin: time.Now(), ended: make(chan struct{}), resident: make(chan int64, 1)}
	cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill() })
	go func() {
		most := int64(0)
		for {
			most = max(most, residentMemory(cmd.Process.Pid))
			select {
			case <-r.ended:
				r.resident <- most
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return r
}

// residentMemory is VmHWM of proc(5), the peak, without the mapped sockets, which are the kernel's capture
// buffer. (ru_maxrss is of no use:
// it starts with the memory of the process that forked.)
func residentMemory(pid int) int64 {
	kB := func(file, begins, section string) (sum int64) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		inside := section == ""
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if section != "" && len(fields) > 4 && strings.Contains(fields[0], "-") {
				inside = strings.Contains(line, section)
			}
			if inside && len(fields) > 1 && fields[0] == begins {
				n, _ := strconv.ParseInt(fields[1], 10, 64)
				sum += n
			}
		}
		return sum
	}
	return (kB("status", "VmHWM:", "") - kB("smaps", "Rss:", "socket:[")) << 10
}

// end waits for the process, which must succeed.
func (r *watched) end(b *testing.B) spent {
	b.Helper()
	timer := time.AfterFunc(2*time.Minute, func() { r.cmd.Process.Kill() })
	err := r.cmd.Wait()
	timer.Stop()
	wall := time.Since(r.begin)
	close(r.ended)
	if err != nil {
		b.Fatalf("%s: %v\n%s%s", r.cmd.Path, err, r.stdout.String(), r.stderr.String())
	}
	return spent{r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime(), wall, <-r.resident, r.stdout.String()}
}

// sensorCommand is the program with an environment of its own.
func sensorCommand(b *testing.B, environment ...string) *exec.Cmd {
	b.Helper()
	path := os.Getenv("BENCH_PROGRAM")
	if path == "" {
		var err error
		if path, err = program(); err != nil {
			b.Fatal(err)
		}
	}
	cmd := exec.Command(path)
	cmd.Env = append([]string{"TOPIC=sip/bench"}, environment...)
	return cmd
}

// benchStats is the last line with the counters.
type benchStats struct {
	Packets   int            `json:"packets"`
	Kernel    int            `json:"packets_dropped"`
	Messages  map[string]int `json:"messages"`
	Discarded map[string]int `json:"messages_discarded"`
	Rejected  int            `json:"messages_rejected"`
	Published int            `json:"messages_published"`
	Dropped   int            `json:"messages_dropped"`
}

func (s spent) stats(b *testing.B) (last benchStats) {
	b.Helper()
	found := false
	for line := range strings.Lines(s.output) {
		if strings.Contains(line, `"msg":"stats"`) {
			found, last = true, benchStats{}
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				b.Fatal(err)
			}
		}
	}
	if !found {
		b.Fatalf("no stats in %q", s.output)
	}
	return last
}

func total(counts map[string]int) (sum int) {
	for _, n := range counts {
		sum += n
	}
	return sum
}

// fileRun lets the program read a file of which it must find that many messages and publish that many.
func fileRun(b *testing.B, broker, path string, messages, published int, environment ...string) spent {
	b.Helper()
	s := begin(b, sensorCommand(b, append(environment, "PCAP_FILE="+path, "BROKER=tcp://"+broker)...)).end(b)
	if got := s.stats(b); total(got.Messages) != messages || got.Published != published ||
		got.Rejected != messages-published {
		b.Fatalf("%+v; want %d messages, %d published", got, messages, published)
	}
	return s
}

// floorRun is the bare loop over a file.
func floorRun(b *testing.B, path string, frames int) spent {
	b.Helper()
	s := begin(b, helperCommand("read", path)).end(b)
	if s.output != fmt.Sprintln(frames) {
		b.Fatalf("the bare loop read %q frames; want %d", s.output, frames)
	}
	return s
}

// cpuOf is the CPU of runs in µs for each of n things.
func cpuOf(runs []spent, n int) (all []float64) {
	for _, run := range runs {
		all = append(all, run.cpu.Seconds()*1e6/float64(n))
	}
	return all
}

// --- this test binary as another process: floors and senders ---

var benchHelpers = map[string]func(args []string) error{
	"read":   readHelper,
	"listen": listenHelper,
	"paho":   pahoHelper,
	"send":   sendHelper,
}

func init() {
	if helper, ok := benchHelpers[os.Getenv("BENCH_HELPER")]; ok {
		if err := helper(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func itself() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

func helperCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(itself(), args...)
	cmd.Env = append(os.Environ(), "BENCH_HELPER="+name)
	return cmd
}

// readHelper is the bare loop over a file.
func readHelper(args []string) error {
	handle, err := pcap.OpenOffline(args[0])
	if err != nil {
		return err
	}
	frames := 0
	for {
		_, _, err := handle.ZeroCopyReadPacketData()
		if errors.Is(err, io.EOF) {
			fmt.Println(frames)
			return nil
		} else if err != nil {
			return err
		}
		frames++
	}
}

// listenHelper is the bare loop over a device until SIGTERM, with the program's settings. It prints how many
// frames came and how many the
// kernel dropped.
func listenHelper(args []string) error {
	inactive, err := pcap.NewInactiveHandle(args[0])
	if err != nil {
		return err
	}
	err = errors.Join(
		inactive.SetSnapLen(262144),
		inactive.SetPromisc(true),
		inactive.SetTimeout(50*time.Millisecond),
		inactive.SetBufferSize(32<<20),
	)
	if err != nil {
		return err
	}
	handle, err := inactive.Activate()
	if err == nil {
		err = handle.SetBPFFilter("udp port 5060") // the kernel has things to say on a new device
	}
	if err != nil {
		return err
	}
	var stop atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		stop.Store(true)
	}()
	frames := 0
	for {
		_, _, err := handle.ZeroCopyReadPacketData()
		switch {
		case err == nil:
			frames++
		case !errors.Is(err, pcap.NextErrorTimeoutExpired):
			return err
		case stop.Load():
			stats, err := handle.Stats()
			fmt.Println(frames, stats.PacketsDropped)
			return err
		}
	}
}

// pahoHelper publishes with paho's client as it comes, and waits for every acknowledgement. Its payloads are
// the envelopes of the first
// messages of a file, made beforehand. It prints the CPU and the time that publishing alone took, in seconds.
func pahoHelper(args []string) error {
	broker, path := args[0], args[1]
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var payloads [][]byte
	d := newDecoder(&captureCounters{}, func(m *message) {
		payloads = append(payloads, appendEnvelope(nil, m, "v1.2.3", false))
	})
	handle, err := pcap.OpenOffline(path)
	for err == nil && len(payloads) < benchWarm {
		data, info, failed := handle.ZeroCopyReadPacketData()
		if err = failed; err == nil {
			d.frame(ethernet, data, info.Timestamp, info.CaptureLength < info.Length)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + broker).SetClientID("bench-paho"))
	if token := client.Connect(); token.Wait() && token.Error() != nil {
		return token.Error()
	}
	before, begin := cpuHere(), time.Now()
	window, failed := make(chan mqtt.Token, benchWindow-1), make(chan error,
		1) // one more is in the hands of the receiver
	go func() {
		var err error
		for token := range window {
			token.Wait()
			err = cmp.Or(err, token.Error())
		}
		failed <- err
	}()
	for i := range count {
		window <- client.Publish("sip/bench", 1, false, payloads[i%len(payloads)])
	}
	close(window)
	err = <-failed
	fmt.Println((cpuHere() - before).Seconds(), time.Since(begin).Seconds())
	client.Disconnect(100)
	return err
}

// cpuHere is the CPU time of this process so far.
func cpuHere() time.Duration {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// sendHelper sends frames to a device. Each line of its input asks for a rate in frames a second, a number of
// frames, and which of them, one
// in so many, are MESSAGE requests and not OPTIONS; it answers with the seconds that sending them took.
func sendHelper(args []string) error {
	if output, err := exec.Command("ip", "link", "set", args[0], "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	device, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	if err := syscall.Bind(socket, &syscall.SockaddrLinklayer{Ifindex: device.Index}); err != nil {
		return err
	}
	for {
		var rate, count, every int
		if _, err := fmt.Scanln(&rate, &count, &every); err != nil {
			return nil // the input has ended
		}
		var frame []byte
		begin := time.Now()
		for sent := 0; sent < count; time.Sleep(500 * time.Microsecond) {
			due := min(count, int(time.Since(begin).Seconds()*float64(rate)))
			for ; sent < due; sent++ {
				text := options
				if sent%every == 0 {
					text = instantMessage
				}
				frame = appendDatagram(frame[:0], text.number(sent))
				for {
					if _, err = syscall.Write(socket, frame); err != syscall.ENOBUFS && err != syscall.EINTR {
						break
					}
				}
				if err != nil {
					return fmt.Errorf("sending: %w", err)
				}
			}
		}
		fmt.Println(time.Since(begin).Seconds())
	}
}

// --- what is captured ---

// numbered is a SIP message with places for the eight digits of a number, so that no two messages are the same.
type numbered struct {
	text  []byte
	marks []int
}

const mark = "########"

func newNumbered(startLine, cseq, body string) *numbered {
	contentType := ""
	if body != "" {
		contentType = "Content-Type: application/sdp\r\n"
	}
	text := startLine + "\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK" + mark + ";rport\r\nMax-Forwards: 70\r\n" +
		"From: \"Alice\" <sip:+15550100@example.com>;tag=a" + mark + "\r\nTo: <sip:+15550199@example.com>;tag=b" +
		mark +
		"\r\n" +
		"Call-ID: " + mark + "-5f1c@192.0.2.1\r\nCSeq: " + cseq + "\r\nContact: <sip:+15550100@192.0.2.1:5060>\r\n" +
		"Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, NOTIFY\r\nUser-Agent: Example PBX 18.4\r\n" + contentType +
		fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) +
		body
	n := &numbered{text: []byte(text)}
	for at := 0; ; at += len(mark) {
		next := strings.Index(text[at:], mark)
		if next < 0 {
			return n
		}
		at += next
		n.marks = append(n.marks, at)
	}
}

// number is the message with that number; it is valid until the next call.
func (n *numbered) number(i int) []byte {
	for _, at := range n.marks {
		for place, rest := len(mark)-1, i; place >= 0; place, rest = place-1, rest/10 {
			n.text[at+place] = byte('0' + rest%10)
		}
	}
	return n.text
}

const offer = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 16384 RTP/AVP 8\r\na=sendrecv\r\n"

// call is a call as it is seen on the wire: 450 bytes a message in the mean.
var call = []*numbered{
	newNumbered("INVITE sip:+15550199@example.com SIP/2.0", "1 INVITE", offer),
	newNumbered("SIP/2.0 100 Trying", "1 INVITE", ""),
	newNumbered("SIP/2.0 180 Ringing", "1 INVITE", ""),
	newNumbered("SIP/2.0 200 OK", "1 INVITE", offer),
	newNumbered("ACK sip:+15550199@198.51.100.2:5060 SIP/2.0", "1 ACK", ""),
	newNumbered("BYE sip:+15550199@198.51.100.2:5060 SIP/2.0", "2 BYE", ""),
	newNumbered("SIP/2.0 200 OK", "2 BYE", ""),
}

var (
	options        = newNumbered("OPTIONS sip:198.51.100.2:5060 SIP/2.0", "1 OPTIONS", "")
	instantMessage = newNumbered("MESSAGE sip:198.51.100.2:5060 SIP/2.0", "1 MESSAGE", "")
)

func callMessage(i int) []byte { return call[i%len(call)].number(i / len(call)) }

// TestCallMessages: the targets are for messages of 450 bytes.
func TestCallMessages(t *testing.T) {
	size := 0
	for i := range call {
		size += len(callMessage(i))
	}
	if mean := size / len(call); mean < 440 || mean > 460 {
		t.Errorf("%d bytes in the mean", mean)
	}
}

// appendPacket appends an Ethernet frame with IPv4 and what stands before the ports' payload. No checksum is
// filled in: capture doesn't ask for it.
func appendPacket(b []byte, protocol byte, host, srcPort, dstPort int, size int) []byte {
	b = append(b, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0)
	b = binary.BigEndian.AppendUint16(append(b, 0x45, 0), uint16(20+size))
	b = append(b, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, byte(host>>16), byte(host>>8), byte(host), 198, 51, 100, 2)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, uint16(srcPort)), uint16(dstPort))
}

func appendUDP(b []byte, srcPort, dstPort int, payload []byte) []byte {
	b = appendPacket(b, 17, 1, srcPort, dstPort, 8+len(payload))
	b = append(binary.BigEndian.AppendUint16(b, uint16(8+len(payload))), 0, 0)
	return append(b, payload...)
}

func appendDatagram(b, message []byte) []byte { return appendUDP(b, 5060, 5060, message) }

// appendTCP appends a segment from a host of its own to a port.
func appendTCP(b []byte, host, port int, sequence uint32, payload []byte) []byte {
	b = appendPacket(b, 6, host, 40000, port, 20+len(payload))
	b = binary.BigEndian.AppendUint32(b, sequence)
	b = append(b, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0)
	return append(b, payload...)
}

// streams makes the frames of that many TCP connections, whose turn comes one after the other: each frame is
// what payload returns for it.
func streams(flows int, payload func(i int) []byte) func(b []byte, i int) []byte {
	sequence := make([]uint32, flows)
	return func(b []byte, i int) []byte {
		flow, text := i%flows, payload(i)
		b = appendTCP(b, flow, 5060, sequence[flow], text)
		sequence[flow] += uint32(len(text))
		return b
	}
}

// webSocketMessage is a message in a WebSocket frame (RFC 6455 §5.2), masked as those of clients are.
func webSocketMessage(i int) []byte {
	text := callMessage(i)
	b := binary.BigEndian.AppendUint16([]byte{0x81, 0x80 | 126}, uint16(len(text)))
	key := [4]byte{0x12, 0x34, 0x56, 0x78}
	b = append(b, key[:]...)
	for at, c := range text {
		b = append(b, c^key[at%4])
	}
	return b
}

// segmented is a stream of messages cut at 1,448 bytes, as a busy connection is.
func segmented() func(int) []byte {
	var stream []byte
	next := 0
	return func(int) []byte {
		stream = slices.Clone(stream)
		for ; len(stream) < 1448; next++ {
			stream = append(stream, callMessage(next)...)
		}
		segment := stream[:1448]
		stream = stream[1448:]
		return segment
	}
}

// noise makes frames of which one in 20 is SIP; the others are RTP (12), DNS (2), and of TCP acknowledgements
// (2), TLS (2) and HTTP (1).
func noise() func(b []byte, i int) []byte {
	source := rand.NewChaCha8([32]byte{1})
	random := make([]byte, 64<<10)
	source.Read(random)
	at := func(i, size int) []byte { return random[i*97%(len(random)-size):][:size] }
	query := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01")
	page := "HTTP/1.1 200 OK\r\nServer: example\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: max-age=600\r\n\r\n" +
		strings.Repeat("<li><a href=\"/page\">a line of the page</a></li>\n", 12)
	return func(b []byte, i int) []byte {
		round := i / 20
		switch kind := i % 20; {
		case kind == 0:
			return appendDatagram(b, callMessage(round))
		case kind < 13:
			rtp := append([]byte{0x80, 8}, at(i, 170)...)
			return appendUDP(b, 16384+2*(i%500), 20000+2*kind, rtp)
		case kind < 15:
			return appendUDP(b, 30000+round%1000, 53, query)
		case kind < 17:
			return appendTCP(b, round%50, 443, 1, nil)
		case kind < 19:
			return appendTCP(
				b,
				50*kind+round%50,
				443,
				uint32(round/50*1400),
				append([]byte{23, 3, 3, 5, 0x73}, at(i, 1395)...),
			)
		}
		return appendTCP(b, 950+round%50, 80, uint32(round/50*len(page)), []byte(page))
	}
}

// captureOf writes a capture file with nanoseconds, of frames that come 10 µs after each other.
func captureOf(b *testing.B, name string, frames int, frame func(b []byte, i int) []byte) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriterSize(file, 1<<20)
	little := binary.LittleEndian
	header := little.AppendUint32(little.AppendUint32(nil, 0xa1b23c4d), 4<<16|2)
	header = little.AppendUint32(little.AppendUint32(append(header, make([]byte, 8)...), 262144), 1) // Ethernet
	w.Write(header)
	var record, data []byte
	for i := range frames {
		data = frame(data[:0], i)
		at := time.Unix(1795383240, 0).Add(time.Duration(i) * 10 * time.Microsecond)
		record = record[:0]
		for _, n := range []int64{at.Unix(), int64(at.Nanosecond()), int64(len(data)), int64(len(data))} {
			record = little.AppendUint32(record, uint32(n))
		}
		w.Write(record)
		w.Write(data)
	}
	if err := errors.Join(w.Flush(), file.Close()); err != nil {
		b.Fatal(err)
	}
	return path
}

func datagrams(b []byte, i int) []byte { return appendDatagram(b, callMessage(i)) }

// --- in this process ---

// decode decodes frames as the program does, again and again if there are less than count, and returns CPU µs
// a message and allocations a
// frame. Before that it decodes some to fill what is kept.
func decode(b *testing.B, filter string, selected func(*message), frames [][]byte, count int) (cpu, allocations float64) {
	b.Helper()
	match, err := compileFilter(filter)
	if err != nil {
		b.Fatal(err)
	}
	messages := 0
	d := newDecoder(&captureCounters{}, func(m *message) {
		if messages++; match(m) {
			selected(m)
		}
	})
	info := gopacket.CaptureInfo{Timestamp: time.Unix(1795383240, 0)}
	next := 0
	pass := func(count int) {
		for range count {
			frame := frames[next%len(frames)]
			next++
			info.Timestamp = info.Timestamp.Add(10 * time.Microsecond)
			info.CaptureLength, info.Length = len(frame), len(frame)
			d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
		}
	}
	pass(benchWarm)
	messages = 0
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := cpuHere()
	pass(count)
	took := cpuHere() - begin
	runtime.ReadMemStats(&after)
	if messages == 0 {
		b.Fatal("no message was found")
	}
	return took.Seconds() * 1e6 / float64(messages), float64(after.Mallocs-before.Mallocs) / float64(count)
}

func framesOf(count int, frame func(b []byte, i int) []byte) (frames [][]byte) {
	for i := range count {
		frames = append(frames, frame(nil, i))
	}
	return frames
}

func reportAllocations(b *testing.B, target int, what string, figures []float64, limit float64) {
	b.Helper()
	n := median(figures)
	// What is kept for later (a segment may end in what may be the beginning of a message) costs an
	// allocation now and then.
	r := benchRow{
		target: target,
		what:   what,
		figure: fmt.Sprintf("%.3f", n),
		limit:  fmt.Sprintf("≤ %g", limit),
		met:    n < limit+0.05,
	}
	if limit == 0 {
		r.limit = "0"
	}
	r.report(b)
}

// --- a broker that acknowledges everything ---

type publishedMessage struct {
	payload []byte
	at      time.Time
}

// acknowledger is a broker that acknowledges and forgets, except the first message of each connection. It
// returns its address.
func acknowledger(b *testing.B) (string, <-chan publishedMessage) {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { listener.Close() })
	first := make(chan publishedMessage, 100)
	serve := func(conn net.Conn) {
		defer conn.Close()
		r, published := bufio.NewReader(conn), 0
		for {
			packet, err := packets.ReadPacket(r)
			if err != nil {
				return
			}
			switch packet := packet.(type) {
			case *packets.ConnectPacket:
				packets.NewControlPacket(packets.Connack).Write(conn)
			case *packets.PublishPacket:
				if published++; published == 1 {
					first <- publishedMessage{packet.Payload, time.Now()}
				}
				acknowledgement := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
				acknowledgement.MessageID = packet.MessageID
				acknowledgement.Write(conn)
			case *packets.PingreqPacket:
				packets.NewControlPacket(packets.Pingresp).Write(conn)
			case *packets.DisconnectPacket:
				return
			}
		}
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return listener.Addr().String(), first
}

// --- the targets ---

// BenchmarkTarget1File: a file of SIP messages, none selected, against the bare loop over the same file.
func BenchmarkTarget1File(b *testing.B) {
	count := scaled(1_000_000)
	path := captureOf(b, "sip.pcap", count, datagrams)
	broker, _ := acknowledger(b)
	frames := framesOf(benchWarm, datagrams)
	var floor, figure []spent
	var allocations []float64
	for range benchRounds {
		floor = append(floor, floorRun(b, path, count))
		figure = append(figure, fileRun(b, broker, path, count, 0, "SIP_FILTER="+benchNone))
		_, n := decode(b, benchNone, nil, frames, scaled(100_000))
		allocations = append(allocations, n)
	}
	compare(
		b,
		1,
		"file of SIP, none selected: CPU a message; floor: bare read loop",
		"%.2f µs",
		cpuOf(figure, count),
		cpuOf(floor, count),
		3,
	)
	reportAllocations(b, 1, "allocations a message", allocations, 0)
	noteResident(1, figure)
}

// BenchmarkTarget2Noise: a file of 95 % RTP, DNS and TCP. What the default BPF filter throws away never gets
// to the decoder; with another one
// it has to see for itself.
func BenchmarkTarget2Noise(b *testing.B) {
	count := scaled(1_000_000)
	path := captureOf(b, "noise.pcap", count, noise())
	broker, _ := acknowledger(b)
	frames := framesOf(benchWarm+scaled(100_000), noise())
	var floor, all, filtered []spent
	var allocations []float64
	for range benchRounds {
		floor = append(floor, floorRun(b, path, count))
		all = append(all, fileRun(b, broker, path, count/20, 0, "BPF_FILTER=len >= 0", "SIP_FILTER="+benchNone))
		filtered = append(filtered, fileRun(b, broker, path, count/20, 0, "SIP_FILTER="+benchNone))
		_, n := decode(b, benchNone, nil, frames, scaled(100_000))
		allocations = append(allocations, n)
	}
	compare(
		b,
		2,
		"file of 95 % noise, BPF filter `len >= 0`: CPU a frame; floor: bare read loop",
		"%.2f µs",
		cpuOf(all, count),
		cpuOf(floor, count),
		2,
	)
	compare(b, 2, "the same with the default BPF filter", "%.2f µs", cpuOf(filtered, count), cpuOf(floor, count), 2)
	reportAllocations(b, 2, "allocations a frame", allocations, 0)
	noteResident(2, append(all, filtered...))
}

var discarded []byte // keeps the compiler from leaving out what makes it

// BenchmarkTarget3Envelope: decoded, selected, enveloped, thrown away. The floor is what no implementation
// can leave out: SHA-256 and base64.
func BenchmarkTarget3Envelope(b *testing.B) {
	count := scaled(500_000)
	frames := framesOf(benchWarm, datagrams)
	var figure, floor, allocations []float64
	for range benchRounds {
		begin := cpuHere()
		for i := range count {
			raw := frames[i%len(frames)][42:]
			signature := sha256.Sum256(raw)
			discarded = base64.StdEncoding.AppendEncode(append(make([]byte, 0, 4*len(raw)/3+400), signature[:]...), raw)
		}
		floor = append(floor, (cpuHere()-begin).Seconds()*1e6/float64(count))
		cpu, n := decode(b, "", func(m *message) {
			discarded = appendEnvelope(discarded[:0], m, "v1.2.3", false)
		}, frames, count)
		figure, allocations = append(figure, cpu), append(allocations, n)
	}
	compare(
		b,
		3,
		"450 bytes decoded, selected, enveloped, discarded: CPU a message; floor: SHA-256 and base64",
		"%.2f µs",
		figure,
		floor,
		1.8,
	)
	reportAllocations(b, 3, "allocations a message", allocations, 0)
}

// needsBroker returns the address of a Mosquitto.
func needsBroker(b *testing.B) string {
	b.Helper()
	broker := os.Getenv("BENCH_BROKER")
	if broker == "" {
		b.Skip("needs a Mosquitto and root: integration/bench.sh has them")
	}
	return broker
}

// BenchmarkTarget4Publish: a file, everything published and acknowledged, against a bare paho loop that has
// its payloads in memory. The
// program's figures are those of the whole process, with its start, reading, decoding and enveloping.
func BenchmarkTarget4Publish(b *testing.B) {
	broker := needsBroker(b)
	count := scaled(200_000)
	path := captureOf(b, "sip.pcap", count, datagrams)
	var figure []spent
	var floorCPU, floorRate, rate []float64
	for range benchRounds {
		var cpu, wall float64
		floor := begin(b, helperCommand("paho", broker, path, strconv.Itoa(count))).end(b)
		if _, err := fmt.Sscan(floor.output, &cpu, &wall); err != nil {
			b.Fatalf("%v: %q", err, floor.output)
		}
		floorCPU, floorRate = append(floorCPU, cpu*1e6/float64(count)), append(floorRate, float64(count)/wall)
		run := fileRun(b, broker, path, count, count)
		figure, rate = append(figure, run), append(rate, float64(count)/run.wall.Seconds())
	}
	compare(
		b,
		4,
		"all published to Mosquitto and acknowledged: CPU a message; floor: bare paho loop",
		"%.1f µs",
		cpuOf(figure, count),
		floorCPU,
		0.25,
	)
	r := benchRow{
		target: 4,
		what:   "messages a second; floor: bare paho loop",
		ratio:  median(rate) / median(floorRate),
		limit:  "≥ 2 ×",
	}
	r.figure, r.floor, r.met = fmt.Sprintf("%.0f", median(rate)), fmt.Sprintf("%.0f", median(floorRate)), r.ratio >= 2
	r.report(b)
	noteResident(4, figure)
}

// sender is a process in a network namespace of its own, from which a pair of devices leads here. The
// namespace ends with the process.
type sender struct {
	device string // the end that is here
	in     io.WriteCloser
	out    *bufio.Reader
}

func newSender(b *testing.B) *sender {
	b.Helper()
	s := &sender{device: fmt.Sprintf("bench%d", os.Getpid())}
	ready, write, err := os.Pipe() // holds the process back until its device is there
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `read -r _ <&3 && exec "$0" "$@"`, itself(), s.device+"p")
	cmd.Env = append(os.Environ(), "BENCH_HELPER=send")
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Stderr = os.Stderr
	s.in, _ = cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	s.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		exec.Command("ip", "link", "del", s.device).Run() // if it isn't gone with the namespace
	})
	for _, line := range []string{
		fmt.Sprintf("link add %s type veth peer name %sp netns %d", s.device, s.device, cmd.Process.Pid),
		"link set " + s.device + " up",
	} {
		if output, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			b.Fatalf("ip %s: %v: %s", line, err, output)
		}
	}
	write.Write([]byte("\n"))
	write.Close()
	ready.Close()
	time.Sleep(1500 * time.Millisecond) // until the link is up
	return s
}

func (s *sender) begin(rate, count, every int) { fmt.Fprintln(s.in, rate, count, every) }

// finish returns how long sending took.
func (s *sender) finish(b *testing.B) time.Duration {
	b.Helper()
	line, err := s.out.ReadString('\n')
	seconds, _ := strconv.ParseFloat(strings.TrimSpace(line), 64)
	if err != nil || seconds == 0 {
		b.Fatalf("the sender failed: %v", err)
	}
	return time.Duration(seconds * float64(time.Second))
}

// live is what became of frames.
type live struct {
	sent, lost int
	slowest    float64 // frames a second
	how        string  // the losses
	runs       []spent
}

// listen starts a process that captures, sends, and stops it.
func (l *live) listen(b *testing.B, s *sender, cmd *exec.Cmd, rate, every int) (spent, int) {
	b.Helper()
	count := int(float64(rate) * benchLiveTime.Seconds())
	if testing.Short() {
		count /= 10
	}
	r := begin(b, cmd)
	time.Sleep(time.Second) // until it captures
	s.begin(rate, count, every)
	took := s.finish(b)
	time.Sleep(500 * time.Millisecond) // what is on its way
	r.cmd.Process.Signal(syscall.SIGTERM)
	run := r.end(b)
	l.runs, l.sent = append(l.runs, run), l.sent+count
	if reached := float64(count) / took.Seconds(); l.slowest == 0 || reached < l.slowest {
		l.slowest = reached
	}
	return run, count
}

// sensor is listen with the program. One message in so many is selected: everything else is a loss.
func (l *live) sensor(b *testing.B, s *sender, broker string, rate, every int) {
	b.Helper()
	environment := []string{"INTERFACE=" + s.device, "BROKER=tcp://" + broker}
	if every > 1 {
		environment = append(environment, "SIP_FILTER=(method message)")
	}
	run, count := l.listen(b, s, sensorCommand(b, environment...), rate, every)
	stats, selected := run.stats(b), (count+every-1)/every
	lost := count - total(stats.Messages) + selected - stats.Published
	if lost != 0 || stats.Packets != count || stats.Kernel != 0 || stats.Dropped != 0 || total(stats.Discarded) != 0 ||
		stats.Rejected != count-selected {
		l.lost += max(lost, 1)
		l.how += fmt.Sprintf("; of %d: %+v", count, stats)
	}
}

// show is the figure: the slowest sender is part of it, for a slow sender proves nothing.
func (l *live) show(b *testing.B, rate int) (text string, met bool) {
	b.Helper()
	if l.lost > 0 {
		b.Logf("lost%s", l.how)
	}
	return fmt.Sprintf("%d of %d, at %.0f/s", l.lost, l.sent, l.slowest), l.lost == 0 && l.slowest > 0.98*float64(rate)
}

// BenchmarkTarget5Live: a pair of devices between two namespaces. Sender, program and Mosquitto share the machine.
func BenchmarkTarget5Live(b *testing.B) {
	broker := needsBroker(b)
	s := newSender(b)
	var bare, many, all live
	const manyRate, allRate = 150_000, 20_000
	for range benchLiveRounds {
		run, count := bare.listen(b, s, helperCommand("listen", s.device), manyRate, 100)
		var frames, dropped int
		if _, err := fmt.Sscan(run.output, &frames, &dropped); err != nil {
			b.Fatalf("%v: %q", err, run.output)
		}
		bare.lost += count - frames
		many.sensor(b, s, broker, manyRate, 100)
		all.sensor(b, s, broker, allRate, 1)
	}
	r := benchRow{
		target: 5,
		what:   "live, 150,000 messages/s for 10 s, 1 % selected: lost; floor: bare read loop",
		limit:  "0",
	}
	r.figure, r.met = many.show(b, manyRate)
	r.floor, _ = bare.show(b, manyRate)
	r.report(b)
	compare(
		b,
		5,
		"their CPU, a frame",
		"%.2f µs",
		cpuOf(many.runs, many.sent/benchLiveRounds),
		cpuOf(bare.runs, bare.sent/benchLiveRounds),
		0,
	)
	r = benchRow{target: 5, what: "live, 20,000 messages/s for 10 s, all published: lost", limit: "0"}
	r.figure, r.met = all.show(b, allRate)
	r.report(b)
	benchRow{
		target: 5,
		what:   "their CPU, a message",
		figure: fmt.Sprintf("%.1f µs", median(cpuOf(all.runs, all.sent/benchLiveRounds))),
	}.report(b)
	noteResident(5, append(many.runs, all.runs...))
}

// BenchmarkTarget6Streams: the same messages in datagrams, in TCP streams, in WebSocket streams, none
// selected. Once the whole program on a
// file, once the decoder and the filter alone.
func BenchmarkTarget6Streams(b *testing.B) {
	count := scaled(490_000)
	broker, _ := acknowledger(b)
	kinds := []struct {
		name     string
		frame    func() func(b []byte, i int) []byte
		frames   int // that hold count messages
		messages int
		limit    float64
	}{
		{
			"a datagram",
			func() func(b []byte, i int) []byte { return datagrams },
			count,
			count,
			0,
		},
		{
			"TCP stream, one message in each segment",
			func() func(b []byte, i int) []byte { return streams(1000, callMessage) },
			count,
			count,
			1.5,
		},
		{
			"TCP stream, cut every 1,448 bytes",
			func() func(b []byte, i int) []byte { return streams(1, segmented()) },
			count / 3,
			0,
			1.5,
		},
		{
			"WebSocket, masked, one message in each segment",
			func() func(b []byte, i int) []byte { return streams(1000, webSocketMessage) },
			count,
			count,
			2,
		},
	}
	kinds[2].messages = wholeMessages(kinds[2].frames * 1448)
	whole, alone := make([][]float64, len(kinds)), make([][]float64, len(kinds))
	paths, frames := make([]string, len(kinds)), make([][][]byte, len(kinds))
	for k, kind := range kinds {
		paths[k] = captureOf(b, "kind.pcap", kind.frames, kind.frame())
		frames[k] = framesOf(benchWarm+scaled(50_000), kind.frame())
	}
	for range 2 * benchRounds {
		for k, kind := range kinds {
			run := fileRun(b, broker, paths[k], kind.messages, 0, "SIP_FILTER="+benchNone)
			whole[k] = append(whole[k], cpuOf([]spent{run}, kind.messages)...)
			cpu, _ := decode(b, benchNone, nil, frames[k], len(frames[k])-benchWarm)
			alone[k] = append(alone[k], cpu)
		}
	}
	for k, kind := range kinds[1:] {
		compare(b, 6, kind.name+": CPU a message; floor: a datagram", "%.2f µs", whole[k+1], whole[0], kind.limit)
		b.Logf("decoder and filter alone: %.2f µs, floor %.2f µs", median(alone[k+1]), median(alone[0]))
	}
}

// wholeMessages is how many messages of calls fit into a stream of that size.
func wholeMessages(size int) (n int) {
	for ; ; n++ {
		if size -= len(callMessage(n)); size < 0 {
			return n
		}
	}
}

// BenchmarkTarget7Load: as many messages in 1, 1,000 and 100,000 TCP connections at once; filters of 10 and
// of 1,000 terms.
func BenchmarkTarget7Load(b *testing.B) {
	count := scaled(500_000)
	broker, _ := acknowledger(b)
	flows := []int{1, 1000, 100_000}
	whole, alone := make([][]float64, len(flows)), make([][]float64, len(flows))
	paths, frames := make([]string, len(flows)), make([][][]byte, len(flows))
	for k, n := range flows {
		paths[k] = captureOf(b, "flows.pcap", count, streams(n, callMessage))
		frames[k] = framesOf(benchWarm+max(count/2, 2*n), streams(n, callMessage))
	}
	terms := []int{10, 1000}
	filters, perTerm := make([]func(*message) bool, len(terms)), make([][]float64, len(terms))
	for k, n := range terms {
		filter := "(any"
		for i := range n {
			filter += fmt.Sprintf(" (header \"x-%d\" \"^%d$\")", i, i)
		}
		var err error
		if filters[k], err = compileFilter(filter + ")"); err != nil {
			b.Fatal(err)
		}
	}
	m := message{raw: slices.Clone(call[0].number(1))}
	for range benchRounds {
		for k := range flows {
			run := fileRun(b, broker, paths[k], count, 0, "SIP_FILTER="+benchNone)
			whole[k] = append(whole[k], cpuOf([]spent{run}, count)...)
			cpu, _ := decode(b, benchNone, nil, frames[k], len(frames[k])-benchWarm)
			alone[k] = append(alone[k], cpu)
		}
		for k, n := range terms {
			evaluations := scaled(1_000_000) / n
			begin := cpuHere()
			for range evaluations {
				if filters[k](&m) {
					b.Fatal("selected")
				}
			}
			perTerm[k] = append(perTerm[k], float64(cpuHere()-begin)/float64(evaluations*n))
		}
	}
	for k, name := range []string{"1,000", "100,000"} {
		compare(b, 7, name+" TCP flows at once: CPU a message; floor: 1 flow", "%.2f µs", whole[k+1], whole[0], 1.5)
		b.Logf("decoder and filter alone: %.2f µs, floor %.2f µs", median(alone[k+1]), median(alone[0]))
	}
	compare(b, 7, "filter of 1,000 terms: CPU a term; floor: of 10 terms", "%.0f ns", perTerm[1], perTerm[0], 1.5)
}

// BenchmarkTarget8Footprint: memory in what ran before it, the first message after the start, the image.
func BenchmarkTarget8Footprint(b *testing.B) {
	for _, r := range residents {
		r.report(b)
	}
	if image := os.Getenv("BENCH_IMAGE"); image != "" {
		output, err := exec.Command("docker", "image", "inspect", "--format", "{{.Size}}", image).Output()
		size, _ := strconv.Atoi(strings.TrimSpace(string(output)))
		if err != nil || size == 0 {
			b.Fatalf("the size of %s: %v", image, err)
		}
		benchRow{
			target: 8,
			what:   "the image",
			figure: fmt.Sprintf("%.1f MB", float64(size)/1e6),
			limit:  "≤ 12 MB",
			met:    size <= 12_000_000,
		}.report(b)
	}
	needsBroker(b)
	s := newSender(b)
	broker, first := acknowledger(b)
	var captured, arrived []float64
	s.begin(1000, 1000*3*benchRounds, 1)
	for range benchRounds {
		r := begin(b, sensorCommand(b, "INTERFACE="+s.device, "BROKER=tcp://"+broker))
		select {
		case m := <-first:
			var e struct{ Time time.Time }
			if err := json.Unmarshal(m.payload, &e); err != nil {
				b.Fatal(err)
			}
			captured = append(captured, float64(e.Time.Sub(r.begin).Microseconds())/1000)
			arrived = append(arrived, float64(m.at.Sub(r.begin).Microseconds())/1000)
		case <-time.After(5 * time.Second):
			b.Fatal("no message within 5 s")
		}
		r.cmd.Process.Signal(syscall.SIGTERM)
		r.end(b)
	}
	r := benchRow{
		target: 8,
		what:   "first message captured after the start",
		figure: fmt.Sprintf("%.0f ms", median(captured)),
		limit:  "≤ 300 ms",
		met:    median(captured) <= 300,
	}
	r.report(b)
	benchRow{target: 8, what: "and with a broker", figure: fmt.Sprintf("%.0f ms", median(arrived))}.report(b)
}

// BenchmarkTarget9Delivery: how long a message is on its way to a broker 100 ms (there and back) away, what the program
// costs when nothing happens, and what strangers at METRICS_ADDR can make it cost.
func BenchmarkTarget9Delivery(b *testing.B) {
	latency(b)
	idlePipe(b)
	hostileScrapers(b)
	if os.Getenv("BENCH_BROKER") != "" {
		idleDevice(b)
	}
}

// latency feeds 50 messages a second through a pipe; each has the time at which it was written.
func latency(b *testing.B) {
	const roundTrip, rate = 100 * time.Millisecond, 50
	arrived := make(chan time.Duration, 1000)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go distantBroker(listener, roundTrip, arrived)
	cmd := sensorCommand(b, "PCAP_FILE=-", "BROKER=tcp://"+listener.Addr().String())
	in, _ := cmd.StdinPipe()
	r := begin(b, cmd)
	in.Write(captureFile(1))
	count := scaled(500)
	for i := range count {
		record := captureRecords(0, captured{frame: appendDatagram(nil, callMessage(i))})
		now := time.Now()
		binary.BigEndian.PutUint32(record, uint32(now.Unix()))
		binary.BigEndian.PutUint32(record[4:], uint32(now.Nanosecond()))
		in.Write(record)
		time.Sleep(time.Second / rate)
	}
	in.Close()
	r.end(b)
	close(arrived)
	var all []float64
	for d := range arrived {
		all = append(all, d.Seconds()*1e3)
	}
	if len(all) != count {
		b.Fatalf("%d of %d messages", len(all), count)
	}
	all = all[count/10:] // the first ones wait for the connection
	benchRow{
		target: 9,
		what:   "50 messages/s to a broker with a round trip of 100 ms: p50 at the broker",
		figure: fmt.Sprintf("%.0f ms", median(all)),
		limit:  "< 80 ms",
		met:    median(all) < 80,
	}.report(b)
}

// distantBroker gets each packet half a round trip after it was sent, and its answer takes the other half. It
// reports how
// old each message is when it gets it.
func distantBroker(listener net.Listener, roundTrip time.Duration, arrived chan<- time.Duration) {
	conn, err := listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		packet, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		at := time.Now().Add(roundTrip / 2)
		var answer packets.ControlPacket
		switch packet := packet.(type) {
		case *packets.ConnectPacket:
			answer = packets.NewControlPacket(packets.Connack)
		case *packets.PublishPacket:
			var e struct{ Time time.Time }
			json.Unmarshal(packet.Payload, &e)
			arrived <- at.Sub(e.Time)
			acknowledgement := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			acknowledgement.MessageID = packet.MessageID
			answer = acknowledgement
		case *packets.PingreqPacket:
			answer = packets.NewControlPacket(packets.Pingresp)
		default:
			return
		}
		time.AfterFunc(roundTrip, func() { answer.Write(conn) })
	}
}

// activity is the CPU time and the context switches of a process in a while, each a second.
func activity(b *testing.B, pid int) (cpu, switches float64) {
	b.Helper()
	read := func() (ticks, switches float64) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')'):]))
		for _, field := range fields[12:14] { // utime and stime
			n, _ := strconv.ParseFloat(field, 64)
			ticks += n
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, task := range tasks {
			status, _ := os.ReadFile(task)
			for line := range strings.Lines(string(status)) {
				if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "ctxt_switches") {
					n, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
					switches += n
				}
			}
		}
		return ticks, switches
	}
	window := time.Duration(scaled(10)) * time.Second
	window = max(window, time.Second)
	time.Sleep(2 * time.Second) // what the start costs
	ticks, before := read()
	time.Sleep(window)
	later, after := read()
	return (later - ticks) / 100 / window.Seconds(), (after - before) / window.Seconds()
}

// idlePipe: connected to a broker, with a pipe on which nothing comes.
func idlePipe(b *testing.B) {
	broker, _ := acknowledger(b)
	cmd := sensorCommand(b, "PCAP_FILE=-", "BROKER=tcp://"+broker)
	in, _ := cmd.StdinPipe()
	r := begin(b, cmd)
	in.Write(captureFile(1))
	cpu, switches := activity(b, r.cmd.Process.Pid)
	in.Close()
	r.cmd.Process.Signal(syscall.SIGTERM)
	r.end(b)
	benchRow{
		target: 9,
		what:   "a broker and nothing to read: of a core",
		figure: fmt.Sprintf("%.2f %%", 100*cpu),
		limit:  "< 0.3 %",
		met:    100*cpu < 0.3,
	}.report(b)
	benchRow{
		target: 9,
		what:   "the same: context switches a second",
		figure: fmt.Sprintf("%.0f", switches),
		limit:  "< 60",
		met:    switches < 60,
	}.report(b)
}

// idleDevice: a device on which nothing comes, against the bare loop over it.
func idleDevice(b *testing.B) {
	s := newSender(b)
	broker, _ := acknowledger(b)
	var floor, figure, floorCPU, figureCPU []float64
	for range benchLiveRounds {
		r := begin(b, helperCommand("listen", s.device))
		cpu, switches := activity(b, r.cmd.Process.Pid)
		r.cmd.Process.Signal(syscall.SIGTERM)
		r.end(b)
		floor, floorCPU = append(floor, switches), append(floorCPU, 100*cpu)
		r = begin(b, sensorCommand(b, "INTERFACE="+s.device, "BROKER=tcp://"+broker))
		cpu, switches = activity(b, r.cmd.Process.Pid)
		r.cmd.Process.Signal(syscall.SIGTERM)
		r.end(b)
		figure, figureCPU = append(figure, switches), append(figureCPU, 100*cpu)
	}
	compare(
		b,
		9,
		"a device on which nothing comes: of a core; floor: bare read loop",
		"%.2f %%",
		figureCPU,
		floorCPU,
		1.1,
	)
	compare(b, 9, "the same: context switches a second", "%.0f", figure, floor, 1.1)
}

// hostileScrapers: 300 connections with headers that don't end.
func hostileScrapers(b *testing.B) {
	broker, _ := acknowledger(b)
	address := "127.0.0.1:19464"
	cmd := sensorCommand(b, "PCAP_FILE=-", "BROKER=tcp://"+broker, "METRICS_ADDR="+address)
	in, _ := cmd.StdinPipe()
	r := begin(b, cmd)
	in.Write(captureFile(1))
	time.Sleep(time.Second)
	before := residentMemory(r.cmd.Process.Pid)
	header := append([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("x"), 1<<20)...)
	for range 300 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		defer conn.Close()
		conn.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		conn.Write(header)
	}
	grown := residentMemory(r.cmd.Process.Pid) - before
	in.Close()
	r.cmd.Process.Signal(syscall.SIGTERM)
	r.end(b)
	benchRow{
		target: 9,
		what:   "300 connections to `METRICS_ADDR` with 1 MB of headers each: memory",
		figure: fmt.Sprintf("%.0f MB", float64(grown)/(1<<20)),
		limit:  "≤ 32 MB",
		met:    grown <= 32<<20,
	}.report(b)
}
