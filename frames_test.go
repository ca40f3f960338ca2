package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// header is one header of a frame, or its data. A frame is built from the outside in:
//
//	build(ethernetHeader(), ipv4Header(), udpHeader(5060, 5060), data("OPTIONS …"))
//
// Each header is named by the one before it; gopacket fills in lengths and checksums.
type header struct {
	etherType layers.EthernetType // what names it behind Ethernet, a VLAN tag, GRE or Geneve
	protocol  layers.IPProtocol   // what names it behind IP
	build     func(next header) gopacket.SerializableLayer
	fragment  func(id uint32, offset int, more bool) header // of IPv4: the same header, of a fragment
}

// build serialises a frame. It panics where gopacket can't do that: a test has made a mistake.
func build(headers ...header) []byte {
	var network gopacket.NetworkLayer
	var all []gopacket.SerializableLayer
	for i, h := range headers {
		next := header{}
		if i+1 < len(headers) {
			next = headers[i+1]
		}
		layer := h.build(next)
		all = append(all, layer)
		if asIs, ok := layer.(unfixed); ok {
			layer = asIs.SerializableLayer
		}
		switch layer := layer.(type) {
		case *layers.IPv4:
			network = layer
		case *layers.IPv6:
			network = layer
		case *layers.UDP:
			layer.SetNetworkLayerForChecksum(network)
		case *layers.TCP:
			layer.SetNetworkLayerForChecksum(network)
		}
	}
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(
		buffer,
		gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		all...,
	); err != nil {
		panic(err)
	}
	return bytes.Clone(buffer.Bytes())
}

// unfixed keeps the lengths and checksums that a layer has.
type unfixed struct{ gopacket.SerializableLayer }

func (u unfixed) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	return u.SerializableLayer.SerializeTo(b, gopacket.SerializeOptions{})
}

// asIs is a header whose lengths and checksums are not filled in.
func asIs(h header) header {
	fixed := h.build
	h.build = func(next header) gopacket.SerializableLayer { return unfixed{fixed(next)} }
	return h
}

// octets is a header, or data, that gopacket doesn't know.
func octets(b ...byte) header {
	return header{build: func(header) gopacket.SerializableLayer { return gopacket.Payload(b) }}
}

func data(text string) header { return octets([]byte(text)...) }

func ethernetHeader() header {
	return header{etherType: layers.EthernetTypeTransparentEthernetBridging,
		build: func(next header) gopacket.SerializableLayer {
			return &layers.Ethernet{
				SrcMAC:       net.HardwareAddr{2, 0, 0, 0, 0, 1},
				DstMAC:       net.HardwareAddr{2, 0, 0, 0, 0, 2},
				EthernetType: next.etherType,
			}
		}}
}

// vlanHeader is a tag; tpid is 0x8100, 0x88a8 or 0x9100.
func vlanHeader(tpid layers.EthernetType, id uint16) header {
	return header{etherType: tpid, build: func(next header) gopacket.SerializableLayer {
		return &layers.Dot1Q{Priority: 5, VLANIdentifier: id, Type: next.etherType}
	}}
}

// sllHeader is that of Linux cooked captures; sll2Header that of version 2 (https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html).
func sllHeader() header {
	return header{build: func(next header) gopacket.SerializableLayer {
		return gopacket.Payload(
			binary.BigEndian.AppendUint16([]byte{0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0}, uint16(next.etherType)),
		)
	}}
}

func sll2Header() header {
	return header{build: func(next header) gopacket.SerializableLayer {
		b := binary.BigEndian.AppendUint16(nil, uint16(next.etherType))
		return gopacket.Payload(append(b, 0, 0, 0, 0, 0, 7, 0, 1, 4, 6, 2, 0, 0, 0, 0, 1, 0, 0))
	}}
}

// nullHeader is the address family in the order of the host that caught, loopHeader in network order; 30 is
// IPv6 on macOS.
func nullHeader() header {
	return header{
		build: func(next header) gopacket.SerializableLayer { return gopacket.Payload{addressFamily(next), 0, 0, 0} },
	}
}

func loopHeader() header {
	return header{
		build: func(next header) gopacket.SerializableLayer { return gopacket.Payload{0, 0, 0, addressFamily(next)} },
	}
}

func addressFamily(next header) byte {
	if next.etherType == layers.EthernetTypeIPv6 {
		return 30
	}
	return 2
}

// The addresses of a frame that names none.
var (
	ipv4Addresses = [2]string{"192.0.2.1", "198.51.100.2"}
	ipv6Addresses = [2]string{"2001:db8::1", "2001:db8::2"}
)

// ipv4Header takes a source and a destination, or none.
func ipv4Header(addresses ...string) header {
	return ipv4With(func(*layers.IPv4) {}, addresses...)
}

// ipv4With is an IPv4 header that differs from the usual one.
func ipv4With(change func(*layers.IPv4), addresses ...string) header {
	addresses = append(addresses, ipv4Addresses[:]...)
	h := header{etherType: layers.EthernetTypeIPv4, protocol: layers.IPProtocolIPv4,
		build: func(next header) gopacket.SerializableLayer {
			ip := &layers.IPv4{
				Version:  4,
				IHL:      5,
				TTL:      64,
				Id:       1,
				Protocol: next.protocol,
				SrcIP:    net.ParseIP(addresses[0]),
				DstIP:    net.ParseIP(addresses[1]),
			}
			change(ip)
			return ip
		}}
	h.fragment = func(id uint32, offset int, more bool) header {
		return ipv4With(func(ip *layers.IPv4) {
			ip.Id, ip.FragOffset = uint16(id), uint16(offset/8)
			if more {
				ip.Flags = layers.IPv4MoreFragments
			}
			change(ip)
		}, addresses...)
	}
	return h
}

func ipv6Header(addresses ...string) header {
	addresses = append(addresses, ipv6Addresses[:]...)
	return header{etherType: layers.EthernetTypeIPv6, protocol: layers.IPProtocolIPv6,
		build: func(next header) gopacket.SerializableLayer {
			return &layers.IPv6{
				Version:    6,
				HopLimit:   64,
				NextHeader: next.protocol,
				SrcIP:      net.ParseIP(addresses[0]),
				DstIP:      net.ParseIP(addresses[1]),
			}
		}}
}

// extensionHeader is an IPv6 one of 8 or more bytes (RFC 8200 §4.2): it is padding.
func extensionHeader(protocol layers.IPProtocol, size int) header {
	return header{protocol: protocol, build: func(next header) gopacket.SerializableLayer {
		b := make([]byte, size)
		b[0], b[1], b[2], b[3] = byte(next.protocol), byte(size/8-1), 1, byte(size-4)
		if protocol == layers.IPProtocolAH { // it counts words of 4 bytes (RFC 4302 §2.2)
			b[1] = byte(size/4 - 2)
		}
		return gopacket.Payload(b)
	}}
}

// fragmentHeader is that of IPv6 (RFC 8200 §4.5).
func fragmentHeader(id uint32, offset int, more bool) header {
	return header{protocol: layers.IPProtocolIPv6Fragment, build: func(next header) gopacket.SerializableLayer {
		b := binary.BigEndian.AppendUint16([]byte{byte(next.protocol), 0}, uint16(offset))
		if more {
			b[3] |= 1
		}
		return gopacket.Payload(binary.BigEndian.AppendUint32(b, id))
	}}
}

// fragments builds a packet and cuts what follows its outer headers (of which the last is IP, or an IPv6
// extension header) at the given
// offsets, which are multiples of 8.
func fragments(outer, inner []header, id uint32, cuts ...int) (frames [][]byte) {
	ip := 0
	for i, h := range outer {
		if h.etherType == layers.EthernetTypeIPv4 || h.etherType == layers.EthernetTypeIPv6 {
			ip = i
		}
	}
	payload := build(slices.Concat(outer[ip:], inner)...)[len(build(outer[ip:]...)):]
	cuts = append(cuts, len(payload))
	from := 0
	for i, to := range cuts {
		frames = append(frames, fragment(outer, inner[0].protocol, id, from, i < len(cuts)-1, payload[from:to]))
		from = to
	}
	return frames
}

// fragment is a single one.
func fragment(outer []header, protocol layers.IPProtocol, id uint32, offset int, more bool, payload []byte) []byte {
	headers, ip := slices.Clone(outer), 0
	for i, h := range outer {
		if h.etherType == layers.EthernetTypeIPv4 || h.etherType == layers.EthernetTypeIPv6 {
			ip = i
		}
	}
	if headers[ip].fragment != nil {
		headers[ip] = headers[ip].fragment(id, offset, more)
	} else {
		headers = append(headers, fragmentHeader(id, offset, more))
	}
	rest := octets(payload...)
	rest.protocol = protocol
	return build(append(headers, rest)...)
}

func udpHeader(src, dst int) header {
	return header{protocol: layers.IPProtocolUDP, build: func(header) gopacket.SerializableLayer {
		return &layers.UDP{SrcPort: layers.UDPPort(src), DstPort: layers.UDPPort(dst)}
	}}
}

// tcpHeader takes the flags S, F, R, P.
func tcpHeader(src, dst int, seq uint32, flags string) header {
	return header{protocol: layers.IPProtocolTCP, build: func(header) gopacket.SerializableLayer {
		return &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst),
			Seq: seq, Ack: 77, Window: 1000, ACK: flags != "S", DataOffset: 5,
			SYN: strings.Contains(flags, "S"), FIN: strings.Contains(flags, "F"),
			RST: strings.Contains(flags, "R"), PSH: strings.Contains(flags, "P")}
	}}
}

func sctpHeader(src, dst int) header {
	return header{protocol: layers.IPProtocolSCTP, build: func(header) gopacket.SerializableLayer {
		return &layers.SCTP{SrcPort: layers.SCTPPort(src), DstPort: layers.SCTPPort(dst), VerificationTag: 7}
	}}
}

// dataChunk is a DATA chunk of SCTP with its padding (RFC 9260 §3.3.1); flags: 2 begins a message, 1 ends it.
func dataChunk(flags byte, text string) header {
	b := binary.BigEndian.AppendUint16([]byte{0, flags}, uint16(16+len(text)))
	b = append(b, 0, 0, 0, 9, 0, 1, 0, 2, 0, 0, 0, 0)
	b = append(b, text...)
	return octets(append(b, make([]byte, (4-len(text)%4)%4)...)...)
}

// greHeader takes the flags C (checksum), K (key), S (sequence number).
func greHeader(flags string) header {
	return header{protocol: layers.IPProtocolGRE, build: func(next header) gopacket.SerializableLayer {
		return &layers.GRE{Protocol: next.etherType, ChecksumPresent: strings.Contains(flags,
			"C"), KeyPresent: strings.Contains(flags, "K"),
			SeqPresent: strings.Contains(flags, "S"), Key: 99, Seq: 5}
	}}
}

// erspanHeader is what stands between GRE and the mirrored frame (draft-foschiano-erspan-03): nothing in type I.
func erspanHeader(b ...byte) header {
	h := octets(b...)
	if h.etherType = 0x88be; len(b) >= 12 {
		h.etherType = 0x22eb
	}
	return h
}

func vxlanHeader(vni uint32) header {
	return header{build: func(header) gopacket.SerializableLayer { return &layers.VXLAN{ValidIDFlag: true, VNI: vni} }}
}

// geneveHeader takes options of a multiple of 4 bytes (RFC 8926 §3.4).
func geneveHeader(vni uint32, options ...byte) header {
	return header{build: func(next header) gopacket.SerializableLayer {
		b := binary.BigEndian.AppendUint16([]byte{byte(len(options) / 4), 0}, uint16(next.etherType))
		return gopacket.Payload(append(binary.BigEndian.AppendUint32(b, vni<<8), options...))
	}}
}

// connection builds the segments of one direction of a TCP connection; a position counts from its first byte.
type connection struct {
	src, dst string // with ports
	first    uint32 // sequence number of the first byte
}

var client = connection{"192.0.2.1:40000", "198.51.100.2:5060", 1000}
var server = connection{"198.51.100.2:5060", "192.0.2.1:40000", 500000}

func (f connection) segment(position int, flags, text string) []byte {
	src, dst := netip.MustParseAddrPort(f.src), netip.MustParseAddrPort(f.dst)
	ip := ipv4Header(src.Addr().String(), dst.Addr().String())
	if src.Addr().Is6() {
		ip = ipv6Header(src.Addr().String(), dst.Addr().String())
	}
	return build(
		ethernetHeader(),
		ip,
		tcpHeader(int(src.Port()), int(dst.Port()), f.first+uint32(position), flags),
		data(text),
	)
}

// segments cuts text at the given positions.
func (f connection) segments(text string, cuts ...int) (frames [][]byte) {
	from := 0
	for _, to := range append(slices.Clone(cuts), len(text)) {
		if to > from {
			frames = append(frames, f.segment(from, "P", text[from:to]))
		}
		from = to
	}
	return frames
}

// caught is a frame as it comes from a device or a file.
type caught struct {
	data   []byte
	at     time.Duration // since the start of the capture
	length int           // on the wire; 0: nothing was cut off
}

var captureStart = time.Unix(1795383240, 123456789)

// each is frames that come 1 ms after each other.
func each(frames ...[]byte) (all []caught) {
	for i, frame := range frames {
		all = append(all, caught{data: frame, at: time.Duration(i) * time.Millisecond})
	}
	return all
}

// cutTo leaves a number of bytes of a frame, as the snap length does.
func cutTo(size int, frame []byte) caught {
	return caught{data: frame[:size:size], length: len(frame)}
}

// seen is a message that comes out: which frame completed it, and its place among those that this one completed.
type seen struct {
	transport    transport
	src, dst     string
	frame, index int
	raw          string
}

func (s seen) String() string {
	return fmt.Sprintf(
		"%s %s > %s, frame %d, index %d: %.400q (%d bytes)",
		transportNames[s.transport],
		s.src,
		s.dst,
		s.frame,
		s.index,
		s.raw,
		len(s.raw),
	)
}

// player feeds frames to a decoder and notes what comes out.
type player struct {
	*decoder
	counters captureCounters
	times    []time.Duration // of the frames so far
	messages []seen
	panicky  bool // the receiver of messages fails
}

func newPlayer() *player {
	p := &player{}
	p.decoder = newDecoder(&p.counters, func(m *message) {
		if p.panicky {
			panic("a test wants this")
		}
		frame := -1 // a time that no frame has
		for i, at := range p.times {
			if captureStart.Add(at).Equal(m.time) {
				frame = i
			}
		}
		p.messages = append(
			p.messages,
			seen{m.transport, m.src.String(), m.dst.String(), frame, m.index, string(m.raw)},
		)
	})
	return p
}

// play feeds a frame. The buffer is destroyed after that, as libpcap does: nothing may refer to it.
func (p *player) play(link linkType, f caught) {
	buffer := bytes.Clone(f.data)
	p.times = append(p.times, f.at)
	p.frame(link, buffer, captureStart.Add(f.at), len(buffer) < f.length)
	for i := range buffer {
		buffer[i] = 0xee
	}
}

// counted names the counters that aren't 0. Every frame must have been counted.
func (p *player) counted(t testing.TB) string {
	t.Helper()
	if got := p.counters.packets.Load(); got != uint64(len(p.times)) {
		t.Errorf("packets: %d of %d frames", got, len(p.times))
	}
	var text []string
	note := func(name string, n uint64) {
		if n > 0 {
			text = append(text, fmt.Sprintf("%s %d", name, n))
		}
	}
	note("packets_invalid", p.counters.packetsInvalid.Load())
	note("truncated", p.counters.truncated.Load())
	note("fragment", p.counters.fragment.Load())
	note("stream_gap", p.counters.streamGap.Load())
	note("bad_length", p.counters.badLength.Load())
	note("oversize", p.counters.oversize.Load())
	return strings.Join(text, ", ")
}

// raws are the messages that come out of frames of Ethernet, and the counters.
func raws(t testing.TB, frames []caught) (messages []string, counted string) {
	t.Helper()
	p := newPlayer()
	for _, f := range frames {
		p.play(ethernet, f)
	}
	p.flush()
	for _, m := range p.messages {
		messages = append(messages, m.raw)
	}
	return messages, p.counted(t)
}

// checkEmpty tells what is still held behind the last frame.
func (p *player) checkEmpty(t testing.TB) {
	t.Helper()
	if held := p.datagrams.size + p.flows.size; held != 0 {
		t.Errorf("at the end %d bytes are held", held)
	}
	if kept := len(p.datagrams.entries) + len(p.flows.entries); kept != 0 {
		t.Errorf("at the end %d datagrams or flows are kept", kept)
	}
}

// linkNamed is a link type, as libpcap names it.
func linkNamed(name string) linkType {
	for _, link := range linkTypes {
		if link.name == name {
			return link
		}
	}
	panic("no link type " + name)
}

// named is a header, or data, that the one before it names by an EtherType.
func octetsNamed(etherType layers.EthernetType, b ...byte) header {
	h := octets(b...)
	h.etherType = etherType
	return h
}

// mplsHeader is a stack of labels (RFC 3032).
func mplsHeader(labels ...uint32) header {
	var b []byte
	for i, label := range labels {
		entry := label<<12 | 64
		if i == len(labels)-1 {
			entry |= 1 << 8
		}
		b = binary.BigEndian.AppendUint32(b, entry)
	}
	return octetsNamed(0x8847, b...)
}

// pppoeHeader is that of a session (RFC 2516), with the protocol of PPP.
func pppoeHeader(session uint16) header {
	return header{etherType: 0x8864, build: func(next header) gopacket.SerializableLayer {
		ppp := map[layers.EthernetType]byte{layers.EthernetTypeIPv4: 0x21, layers.EthernetTypeIPv6: 0x57}
		b := binary.BigEndian.AppendUint16([]byte{0x11, 0}, session)
		return gopacket.Payload(append(b, 5, 0, 0, ppp[next.etherType]))
	}}
}

func vnTagHeader(b ...byte) header {
	return header{etherType: 0x8926, build: func(next header) gopacket.SerializableLayer {
		return gopacket.Payload(binary.BigEndian.AppendUint16(bytes.Clone(b), uint16(next.etherType)))
	}}
}

// gtpHeader is that of a G-PDU of GTP-U (3GPP TS 29.281 §5.1), with what its flags ask for.
func gtpHeader(flags byte, tunnel uint32, optional ...byte) header {
	return octets(append(binary.BigEndian.AppendUint32([]byte{flags, 255, 0, 0}, tunnel), optional...)...)
}

// chunk is one of HEP version 3; hepPacket puts them together.
func chunk(vendor, kind int, value ...byte) (b []byte) {
	b = binary.BigEndian.AppendUint16(b, uint16(vendor))
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	b = binary.BigEndian.AppendUint16(b, uint16(6+len(value)))
	return append(b, value...)
}

func hepPacket(chunks ...[]byte) header {
	all := slices.Concat(chunks...)
	b := binary.BigEndian.AppendUint16([]byte("HEP3"), uint16(6+len(all)))
	return octets(append(b, all...)...)
}
