package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcap"
)

// bpfLink is a link type: its number in files, its header, and whether VLAN tags follow that.
type bpfLink struct {
	name    string
	inFiles uint32
	header  []header
	tags    bool
}

var bpfLinks = []bpfLink{
	{
		"Ethernet",
		1,
		[]header{ethernetHeader()},
		true,
	},
	{
		"Linux cooked",
		113,
		[]header{sllHeader()},
		false,
	},
	{
		"Linux cooked v2",
		276,
		[]header{sll2Header()},
		false,
	},
	{
		"raw IP",
		101,
		nil,
		false,
	},
	{
		"loopback of BSD",
		0,
		[]header{nullHeader()},
		false,
	},
	{
		"loopback of OpenBSD",
		108,
		[]header{loopHeader()},
		false,
	},
}

// bpfFrame is a frame, and whether the default filter has to select it.
type bpfFrame struct {
	name     string
	data     []byte
	selected bool
}

// bpfFrames are frames of every kind behind a link header.
func bpfFrames(link bpfLink) (all []bpfFrame) {
	m := request("INVITE", "bpf", strings.Repeat("a=filtered\r\n", 60))
	over := func(ip header, protocol layers.IPProtocol, src, dst int) []header {
		switch protocol {
		case layers.IPProtocolTCP:
			return []header{ip, tcpHeader(src, dst, 1, ""), data(m)}
		case layers.IPProtocolSCTP:
			return []header{ip, sctpHeader(src, dst), dataChunk(3, m)}
		}
		return []header{ip, udpHeader(src, dst), data(m)}
	}
	named := func(protocol layers.IPProtocol, b ...byte) header {
		h := octets(b...)
		h.protocol = protocol
		return h
	}
	options := ipv4With(func(ip *layers.IPv4) {
		ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	})
	outers := map[string][]header{"": link.header}
	if link.tags {
		for _, first := range []layers.EthernetType{0x8100, 0x88a8, 0x9100} {
			one := append(slices.Clone(link.header), vlanHeader(first, 100))
			outers[fmt.Sprintf("tag %#x, ", uint16(first))] = one
			for _, second := range []layers.EthernetType{0x8100, 0x88a8, 0x9100} {
				outers[fmt.Sprintf("tags %#x %#x, ", uint16(first),
					uint16(second))] = append(slices.Clone(one), vlanHeader(second, 200))
			}
		}
	}
	for tags, outer := range outers {
		add := func(name string, selected bool, rest ...header) {
			all = append(all, bpfFrame{tags + name, build(append(slices.Clone(outer), rest...)...), selected})
		}
		for family, ip := range map[string]header{
			"IPv4":              ipv4Header(),
			"IPv4 with options": options,
			"IPv6":              ipv6Header(),
		} {
			for _, protocol := range []layers.IPProtocol{
				layers.IPProtocolUDP,
				layers.IPProtocolTCP,
				layers.IPProtocolSCTP,
			} {
				add(fmt.Sprintf("%s, %s from 5060", family, protocol), true, over(ip, protocol, 5060, 1234)...)
				add(fmt.Sprintf("%s, %s to 5060", family, protocol), true, over(ip, protocol, 1234, 5060)...)
				add(fmt.Sprintf("%s, %s of other ports", family, protocol), false, over(ip, protocol, 5061, 1234)...)
				add(fmt.Sprintf("%s, %s of port 0", family, protocol), false, over(ip, protocol, 0, 0)...)
				packet := over(ip, protocol, 5060, 5060)
				for i, fragment := range fragments(append(slices.Clone(outer), ip), packet[1:], 9, 200, 400) {
					all = append(
						all,
						bpfFrame{fmt.Sprintf("%s%s, %s, fragment %d", tags, family, protocol, i), fragment, true},
					)
				}
			}
		}
		add(
			"DF is no fragment",
			false,
			append(
				[]header{ipv4With(func(ip *layers.IPv4) { ip.Flags = layers.IPv4DontFragment })},
				over(ipv4Header(), 17, 1, 2)[1:]...,
			)...,
		)
		for name, extensions := range map[string][]header{"hop-by-hop": {extensionHeader(0,
			8)}, "routing": {extensionHeader(43, 24)}, "destination": {extensionHeader(60, 16)},
			"several": {
				extensionHeader(0, 8),
				extensionHeader(60, 8),
				extensionHeader(43, 24),
			}, "atomic fragment": {fragmentHeader(5, 0, false)}} {
			for _, protocol := range []layers.IPProtocol{
				layers.IPProtocolUDP,
				layers.IPProtocolTCP,
				layers.IPProtocolSCTP,
			} {
				packet := over(ipv6Header(), protocol, 5060, 5060)
				add(
					fmt.Sprintf("IPv6 with %s header, %s", name, protocol),
					true,
					slices.Concat(packet[:1], extensions, packet[1:])...,
				)
			}
		}
		for i, fragment := range fragments(
			append(slices.Clone(outer), ipv6Header(), extensionHeader(0, 8)),
			over(ipv6Header(), 17, 5060, 5060)[1:],
			9,
			200,
			400,
		) {
			all = append(
				all,
				bpfFrame{fmt.Sprintf("%sIPv6 with hop-by-hop header, fragment %d", tags, i), fragment, true},
			)
		}
		rtp := "\x80\x00" + strings.Repeat("rtp", 50)
		add("RTP", false, ipv4Header(), udpHeader(10000, 20000), data(rtp))
		add("RTP over IPv6", false, ipv6Header(), udpHeader(10000, 20000), data(rtp))
		add(
			"RTP with 5060 in its payload",
			false,
			ipv4Header(),
			udpHeader(10000, 20000),
			octets(slices.Repeat([]byte{0x13, 0xc4}, 80)...),
		)
		add(
			"RTP over IPv6 with 5060 in its payload",
			false,
			ipv6Header(),
			udpHeader(10000, 20000),
			octets(slices.Repeat([]byte{0x13, 0xc4}, 80)...),
		)
		add("ICMP", false, ipv4Header(), icmp(), data(m))
		add(
			"ICMP in fragments",
			false,
			ipv4With(func(ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments }),
			icmp(),
			data(m),
		)
		add("GRE", false, ipv4Header(), greHeader(""), ipv4Header(), icmp())
		add("ICMPv6", false, ipv6Header(), named(58, 128, 0, 0x13, 0xc4, 0, 1, 0, 1))
		add(
			"neighbour solicitation",
			false,
			ipv6Header(),
			named(58, append([]byte{135, 0, 0, 0}, make([]byte, 20)...)...),
		)
		add(
			"MLD",
			false,
			ipv6Header(),
			extensionHeader(0, 8),
			named(58, append([]byte{143, 0, 0, 0}, make([]byte, 24)...)...),
		)
		if link.header != nil && link.tags {
			add("ARP", false, arp())
			add("ARP with zeros behind", false, arp(), octets(make([]byte, 40)...))
		}
	}
	return all
}

// TestDefaultBPF compiles the default filter for each link type and runs it over frames of every kind.
func TestDefaultBPF(t *testing.T) {
	for _, link := range bpfLinks {
		t.Run(link.name, func(t *testing.T) {
			frames := bpfFrames(link)
			path := filepath.Join(t.TempDir(), "frames.pcap")
			file := pcapHeader(link.inFiles)
			for i, f := range frames { // the time is the number of the frame
				file = binary.LittleEndian.AppendUint32(file, uint32(i))
				file = binary.LittleEndian.AppendUint32(file, 0)
				file = binary.LittleEndian.AppendUint32(file, uint32(len(f.data)))
				file = binary.LittleEndian.AppendUint32(file, uint32(len(f.data)))
				file = append(file, f.data...)
			}
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			handle, err := pcap.OpenOffline(path)
			if err != nil {
				t.Fatal(err)
			}
			defer handle.Close()
			found, err := linkTypeOf(handle)
			if err != nil {
				t.Fatal(err)
			}
			if err := handle.SetBPFFilter(defaultBPF(found)); err != nil {
				t.Fatal(err)
			}
			selected := make([]bool, len(frames))
			for {
				_, info, err := handle.ZeroCopyReadPacketData()
				if err != nil {
					if err != io.EOF {
						t.Fatal(err)
					}
					break
				}
				selected[info.Timestamp.Unix()] = true
			}
			var filter *pcap.BPF
			if link.inFiles < 256 { // gopacket truncates the number of the other one
				if filter, err = pcap.NewBPF(handle.LinkType(), 262144, defaultBPF(found)); err != nil {
					t.Fatal(err)
				}
			}
			for i, f := range frames {
				if selected[i] != f.selected {
					t.Errorf("%s: selected %v", f.name, selected[i])
				}
				info := gopacket.CaptureInfo{CaptureLength: len(f.data), Length: len(f.data)}
				if loopback := strings.HasPrefix(link.name, "loopback"); loopback {
					continue // the number of IPv6 in files is that of BSD, live it is that of Linux
				}
				if filter != nil && filter.Matches(info, f.data) != selected[i] {
					t.Errorf("%s: another result than in a file", f.name)
				}
			}
		})
	}
}

// pcapHeader begins a pcap file (https://datatracker.ietf.org/doc/html/draft-ietf-opsawg-pcap).
func pcapHeader(link uint32) (b []byte) {
	b = binary.LittleEndian.AppendUint32(b, 0xa1b2c3d4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 262144)
	return binary.LittleEndian.AppendUint32(b, link)
}

// TestLiveTags sends tagged frames through a veth pair in a network namespace of its own. The kernel takes
// the first tag off a frame and hands it
// over beside it; libpcap puts it back. That must not hide anything from the filter.
func TestLiveTags(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, device := range []string{"veth1", "any"} {
		t.Run(device, func(t *testing.T) {
			done := make(chan error)
			go func() { // its thread is in the namespace: it ends with the goroutine, and the namespace with it
				runtime.LockOSThread()
				err := syscall.Unshare(syscall.CLONE_NEWNET)
				if err == nil {
					liveTags(t, device)
				}
				done <- err
			}()
			if err := <-done; err != nil {
				t.Skipf("no namespace of its own: %v", err)
			}
		})
	}
}

func liveTags(t *testing.T, device string) {
	ip := func(line string) error {
		output, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, output)
		}
		return nil
	}
	if err := errors.Join(
		ip("link set lo up"),
		ip("link add veth0 type veth peer name veth1"),
		ip("link set veth0 up"),
		ip("link set veth1 up"),
	); err != nil {
		t.Error(err)
		return
	}
	local := "veth0.100"
	if err := ip("link add link veth0 name veth0.100 type vlan id 100"); err != nil {
		local = "veth0"
		t.Logf("without a sub-interface: %v", err)
	}
	if err := errors.Join(
		ip("addr add 192.0.2.1/24 dev "+local),
		ip("link set "+local+" up"),
		ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev "+local),
	); err != nil {
		t.Error(err)
		return
	}
	handle, err := pcap.OpenLive(device, 262144, device != "any", 50*time.Millisecond)
	if err != nil {
		t.Error(err)
		return
	}
	defer handle.Close()
	link, err := linkTypeOf(handle)
	if err == nil {
		err = handle.SetBPFFilter(defaultBPF(link))
	}
	if err != nil {
		t.Error(err)
		return
	}
	sender, err := pcap.OpenLive("veth0", 262144, false, 50*time.Millisecond)
	if err != nil {
		t.Error(err)
		return
	}
	defer sender.Close()
	connection, err := net.Dial("udp", "192.0.2.2:5060")
	if err != nil {
		t.Error(err)
		return
	}
	defer connection.Close()

	// Each message names the way that it takes.
	missing := map[string]bool{}
	long := strings.Repeat("a=long\r\n", 300)
	write := func(name string, headers ...header) {
		missing[request("INVITE", name, "")] = true
		frame := build(
			append(
				append([]header{ethernetHeader()}, headers...),
				ipv4Header(),
				udpHeader(5060, 5060),
				data(request("INVITE", name, "")),
			)...,
		)
		if err := sender.WritePacketData(frame); err != nil {
			t.Error(err)
		}
		rtp := build(
			append(
				append([]header{ethernetHeader()}, headers...),
				ipv4Header(),
				udpHeader(10000, 10002),
				data("\x80\x00"+strings.Repeat("rtp", 50)),
			)...,
		)
		if err := sender.WritePacketData(rtp); err != nil {
			t.Error(err)
		}
	}
	write("untagged")
	write("tagged", vlanHeader(0x8100, 7))
	write("tagged 0x88a8", vlanHeader(0x88a8, 7))
	if device != "any" { // where the kernel delivers two tags garbled
		write("QinQ", vlanHeader(0x88a8, 7), vlanHeader(0x8100, 8))
		write("stacked", vlanHeader(0x8100, 7), vlanHeader(0x8100, 8))
	}
	for _, raw := range []string{request("INVITE", "sub-interface", ""), request("INVITE", "fragments", long)} {
		missing[raw] = true
		if _, err := connection.Write([]byte(raw)); err != nil {
			t.Error(err)
		}
	}
	tagged := append([]header{ethernetHeader(), vlanHeader(0x8100, 7)}, ipv6Header())
	missing[request("INVITE", "tagged fragments", long)] = true
	for _, frame := range fragments(
		tagged,
		[]header{udpHeader(5060, 5060), data(request("INVITE", "tagged fragments", long))},
		5,
		1000,
		2000,
	) {
		if err := sender.WritePacketData(frame); err != nil {
			t.Error(err)
		}
	}

	frames := 0
	var counters captureCounters
	d := newDecoder(&counters, func(m *message) { delete(missing, string(m.raw)) })
	for end := time.Now().Add(3 * time.Second); len(missing) > 0 && time.Now().Before(end); {
		frame, info, err := handle.ZeroCopyReadPacketData()
		if errors.Is(err, pcap.NextErrorTimeoutExpired) {
			continue
		} else if err != nil {
			t.Error(err)
			return
		}
		frames++
		if strings.Contains(string(frame), "rtprtp") {
			t.Error("RTP is selected")
		}
		d.frame(link, frame, info.Timestamp, info.CaptureLength < info.Length)
	}
	for raw := range missing {
		t.Errorf("not captured: %.130q", raw)
	}
	if n := counters.packetsInvalid.Load(); n > 0 {
		t.Errorf("%d of %d frames are invalid", n, frames)
	}
}

// pcapRecord is a frame in a pcap file.
func pcapRecord(seconds uint32, frame []byte) (b []byte) {
	b = binary.LittleEndian.AppendUint32(nil, seconds)
	b = binary.LittleEndian.AppendUint32(b, 7)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	return append(b, frame...)
}

// pcapngBlock is one of a pcapng file (https://datatracker.ietf.org/doc/html/draft-ietf-opsawg-pcapng).
func pcapngBlock(kind uint32, body ...byte) (b []byte) {
	body = append(body, make([]byte, (4-len(body)%4)%4)...)
	size := uint32(12 + len(body))
	b = binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, size)
	return binary.LittleEndian.AppendUint32(append(b, body...), size)
}

// pcapngOf has two devices of these link types and snap lengths, and a frame of each.
func pcapngOf(frame []byte, links [2]byte, snap [2]byte) []byte {
	b := pcapngBlock(0x0a0d0d0a, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255)
	for i := range links {
		b = append(b, pcapngBlock(1, links[i], 0, 0, 0, 0, snap[i], 0, 0)...)
	}
	for i := range links {
		head := []byte{byte(i), 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0}
		head = binary.LittleEndian.AppendUint32(head, uint32(len(frame)))
		head = binary.LittleEndian.AppendUint32(head, uint32(len(frame)))
		b = append(b, pcapngBlock(6, append(head, frame...)...)...)
	}
	return b
}

// readSource captures a file, and returns the times of the messages in it.
func readSource(t *testing.T, content []byte, bpf string) (times []string, err error) {
	t.Helper()
	s := source{name: filepath.Join(t.TempDir(), "file"), isFile: true, bpf: bpf, snaplen: 262144, bufferBytes: 1 << 20}
	if err := os.WriteFile(s.name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var counters captureCounters
	d := newDecoder(&counters, func(m *message) {
		times = append(times, m.time.UTC().Format(time.RFC3339Nano))
	})
	handle, err := s.open()
	if err == nil {
		err = s.capture(t.Context(), handle, d)
	}
	if checked := errors.Join(s.checkFile(), s.checkBPF()); (checked == nil) != (err == nil || len(times) > 0) {
		t.Errorf("check says %v, capture %v", checked, err)
	}
	return times, err
}

// TestSource: files that are read, and what is said of those that aren't.
func TestSource(t *testing.T) {
	frame := over4(request("INVITE", "source", ""), ethernetHeader())
	file := func(link uint32, seconds ...uint32) []byte {
		b := pcapHeader(link)
		for _, s := range seconds {
			b = append(b, pcapRecord(s, frame)...)
		}
		return b
	}
	cut := file(1, 1, 2)
	for _, row := range []struct {
		name     string
		content  []byte
		bpf      string
		times    string
		err      string // a part of it
		unusable bool
	}{
		{
			name:    "times of 32 bits without a sign",
			content: file(1, 1<<31-1, 1<<31, 1<<32-1),
			times:   "2038-01-19T03:14:07.000007Z 2038-01-19T03:14:08.000007Z 2106-02-07T06:28:15.000007Z",
		},
		{
			name:    "cut in the middle",
			content: cut[:len(cut)-9],
			times:   "1970-01-01T00:00:01.000007Z",
			err:     "truncated",
		},
		{
			name:     "a link type above 255 whose lower half is Ethernet's",
			content:  file(257, 1),
			err:      "link type PROFIBUS_DL can't be used",
			unusable: true,
		},
		{
			name:     "a link type above 255 whose lower half is Null's",
			content:  file(256, 1),
			bpf:      "len >= 0",
			err:      "link type BLUETOOTH_LE_LL_WITH_PHDR can't be used",
			unusable: true,
		},
		{
			name:     "a link type that libpcap doesn't know",
			content:  file(300, 1),
			err:      "300",
			unusable: true,
		},
		{
			name:     "a filter that is none",
			content:  file(1, 1),
			bpf:      "port sipp",
			err:      "the BPF filter can't be used on link type EN10MB",
			unusable: true,
		},
		{
			name:    "compressed",
			content: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14},
			err:     "unpack it",
		},
		{
			name:    "devices of two link types",
			content: pcapngOf(frame, [2]byte{1, 113}, [2]byte{8, 8}),
			err:     "tshark -r FILE",
		},
		{
			name:    "devices of two snap lengths",
			content: pcapngOf(frame, [2]byte{1, 1}, [2]byte{8, 9}),
			err:     "editcap -F pcap FILE",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			times, err := readSource(t, row.content, row.bpf)
			if got := strings.Join(times, " "); got != row.times {
				t.Errorf("messages at %s, want %s", got, row.times)
			}
			if (err == nil) != (row.err == "") || err != nil && !strings.Contains(err.Error(), row.err) {
				t.Errorf("error %v, want %q", err, row.err)
			}
			if errors.Is(err, errUnusable) != row.unusable {
				t.Errorf("errUnusable is %v: %v", !row.unusable, err)
			}
		})
	}
}
