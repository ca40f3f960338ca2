package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// request and response are whole messages, with a Content-Length and a Call-ID that tells them apart.
func request(method, id, body string) string {
	return fmt.Sprintf("%s sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK%s\r\nCall-ID: %s@192.0.2.1\r\n"+
		"CSeq: 1 %s\r\nContent-Length: %d\r\n\r\n%s", method, id, id, method, len(body), body)
}

func response(status, id, body string) string {
	return fmt.Sprintf("SIP/2.0 %s\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK%s\r\nCall-ID: %s@192.0.2.1\r\nCSeq: 1 INVITE\r\n"+
		"Content-Length: %d\r\n\r\n%s", status, id, id, len(body), body)
}

// The addresses that the builder takes where a row names none.
const (
	src4, dst4 = "192.0.2.1:5060", "198.51.100.2:5060"
	src6, dst6 = "[2001:db8::1]:5060", "[2001:db8::2]:5060"
)

// over4 is the packet of a datagram over IPv4, behind whatever headers; over6 the same over IPv6.
func over4(raw string, before ...header) []byte {
	return build(append(before, ipv4Header(), udpHeader(5060, 5060), data(raw))...)
}

func over6(raw string, before ...header) []byte {
	return build(append(before, ipv6Header(), udpHeader(5060, 5060), data(raw))...)
}

func datagram4(frame int, raw string) seen { return seen{udp, src4, dst4, frame, 0, raw} }
func datagram6(frame int, raw string) seen { return seen{udp, src6, dst6, frame, 0, raw} }

// fromClient is a message that the client of a stream sent.
func fromClient(frame, index int, raw string) seen {
	return seen{tcp, client.src, client.dst, frame, index, raw}
}

// captureRow is a capture, and what must come out of it.
type captureRow struct {
	name   string
	link   layers.LinkType
	frames []caught
	want   []seen
	counts string // all counters that aren't 0, except packets
}

func TestCapture(t *testing.T) {
	names := map[string]bool{}
	for _, row := range captureRows() {
		if names[row.name] {
			t.Errorf("two rows %q", row.name)
		}
		names[row.name] = true
		t.Run(row.name, func(t *testing.T) {
			p := newPlayer()
			for _, f := range row.frames {
				p.play(row.link, f)
			}
			p.flush()
			if !slices.Equal(p.messages, row.want) {
				t.Errorf("got\n%s\nwant\n%s", list(p.messages), list(row.want))
			}
			if counts := p.counted(t); counts != row.counts {
				t.Errorf("counted %q, want %q", counts, row.counts)
			}
		})
	}
}

func list(messages []seen) string {
	var lines []string
	for _, m := range messages {
		lines = append(lines, "\t"+m.String())
	}
	return strings.Join(lines, "\n")
}

func captureRows() []captureRow {
	return slices.Concat(linkRows(), networkRows(), fragmentRows(), tunnelRows(), datagramRows(), truncatedRows(), sctpRows(), streamRows(),
		lengthRows(), webSocketRows(), otherProtocolRows())
}

const ethernet = layers.LinkTypeEthernet

// linkRows: link types and tags.
func linkRows() (rows []captureRow) {
	m := request("INVITE", "link", "v=0\r\n")
	add := func(name string, link layers.LinkType, before ...header) {
		rows = append(rows,
			captureRow{name + ", IPv4", link, each(over4(m, before...)), []seen{datagram4(0, m)}, ""},
			captureRow{name + ", IPv6", link, each(over6(m, before...)), []seen{datagram6(0, m)}, ""})
	}
	add("Ethernet", ethernet, ethernetHeader())
	add("Linux cooked", layers.LinkTypeLinuxSLL, sllHeader())
	add("Linux cooked v2", sll2, sll2Header())
	add("raw IP as Linux numbers it", 12)
	add("raw IP as files number it", layers.LinkTypeRaw)
	add("loopback of BSD", layers.LinkTypeNull, nullHeader())
	add("loopback of OpenBSD", layers.LinkTypeLoop, loopHeader())
	links := []struct {
		name   string
		link   layers.LinkType
		header header
	}{{"Ethernet", ethernet, ethernetHeader()}, {"Linux cooked", layers.LinkTypeLinuxSLL, sllHeader()}, {"Linux cooked v2", sll2, sll2Header()}}
	for _, l := range links {
		add(l.name+", 802.1Q", l.link, l.header, vlanHeader(0x8100, 100))
		add(l.name+", priority tag", l.link, l.header, vlanHeader(0x8100, 0))
		add(l.name+", QinQ 0x88a8", l.link, l.header, vlanHeader(0x88a8, 100), vlanHeader(0x8100, 4094))
		add(l.name+", stacked 0x8100", l.link, l.header, vlanHeader(0x8100, 100), vlanHeader(0x8100, 200))
		add(l.name+", stacked 0x9100", l.link, l.header, vlanHeader(0x9100, 100), vlanHeader(0x8100, 200))
	}
	add("three tags", ethernet, ethernetHeader(), vlanHeader(0x88a8, 1), vlanHeader(0x8100, 2), vlanHeader(0x8100, 3))
	rows = append(rows,
		captureRow{"raw IPv4", layers.LinkTypeIPv4, each(over4(m)), []seen{datagram4(0, m)}, ""},
		captureRow{"raw IPv6", layers.LinkTypeIPv6, each(over6(m)), []seen{datagram6(0, m)}, ""},
		captureRow{"loopback of Linux, IPv6", layers.LinkTypeNull, each(over6(m, octets(10, 0, 0, 0))), []seen{datagram6(0, m)}, ""},
	)
	return rows
}

// networkRows: IP headers, and what the card does to them.
func networkRows() []captureRow {
	m := request("INVITE", "network", "")
	short := "OPTIONS sip:a SIP/2.0\r\n\r\n"
	tiny := "A b SIP/2.0\n" // IPv4, UDP and this are less than the 46 bytes that an Ethernet frame carries
	options := ipv4With(func(ip *layers.IPv4) {
		ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	})
	noLength4 := asIs(ipv4With(func(ip *layers.IPv4) { ip.Protocol = 17 }))
	noLength4TCP := asIs(ipv4With(func(ip *layers.IPv4) { ip.Protocol = 6 }))
	extended := func(last header, extensions ...header) []byte {
		all := append([]header{ethernetHeader(), ipv6Header()}, extensions...)
		return build(append(all, last, data(m))...)
	}
	hop, route, dest := extensionHeader(0, 8), extensionHeader(43, 24), extensionHeader(60, 16)
	return []captureRow{
		{"IPv4 options", ethernet, each(build(ethernetHeader(), options, udpHeader(5060, 5060), data(m))), []seen{datagram4(0, m)}, ""},
		{"IPv6 hop-by-hop options", ethernet, each(extended(udpHeader(5060, 5060), hop)), []seen{datagram6(0, m)}, ""},
		{"IPv6 routing header", ethernet, each(extended(udpHeader(5060, 5060), route)), []seen{datagram6(0, m)}, ""},
		{"IPv6 destination options", ethernet, each(extended(udpHeader(5060, 5060), dest)), []seen{datagram6(0, m)}, ""},
		{"IPv6 mobility header", ethernet, each(extended(udpHeader(5060, 5060), extensionHeader(135, 8))), []seen{datagram6(0, m)}, ""},
		{"IPv6 authentication header", ethernet, each(extended(udpHeader(5060, 5060), extensionHeader(layers.IPProtocolAH, 24))), []seen{datagram6(0, m)}, ""},
		{"IPv6 extension headers, all of them", ethernet, each(extended(udpHeader(5060, 5060), hop, dest, route, extensionHeader(layers.IPProtocolAH, 24), dest)), []seen{datagram6(0, m)}, ""},
		{"IPv6 extension header before TCP", ethernet, each(extended(tcpHeader(5060, 5060, 9, ""), hop)), []seen{{tcp, src6, dst6, 0, 0, m}}, ""},
		{"IPv6 atomic fragment", ethernet, each(extended(udpHeader(5060, 5060), fragmentHeader(7, 0, false))), []seen{datagram6(0, m)}, ""},
		{"IPv4 authentication header", ethernet, each(build(ethernetHeader(), ipv4Header(), extensionHeader(layers.IPProtocolAH, 24), udpHeader(5060, 5060), data(m))), []seen{datagram4(0, m)}, ""},
		{"Ethernet padding is not part of a datagram", ethernet, each(over4(tiny, ethernetHeader())), []seen{datagram4(0, tiny)}, ""},
		{"Ethernet padding is not part of a stream", ethernet,
			each(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 1, "P"), data("A")), build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 2, "P"), data(m))),
			[]seen{{tcp, src4, dst4, 1, 0, "A" + m}}, ""},
		{"Ethernet trailer", ethernet, each(append(over4(m, ethernetHeader()), "trailer"...)), []seen{datagram4(0, m)}, ""},
		{"segmentation offload: IPv4 length 0, UDP", ethernet, each(build(ethernetHeader(), noLength4, udpHeader(5060, 5060), data(m))), []seen{datagram4(0, m)}, ""},
		{"segmentation offload: IPv4 length 0, TCP", ethernet, each(build(ethernetHeader(), noLength4TCP, tcpHeader(5060, 5060, 9, ""), data(m))), []seen{{tcp, src4, dst4, 0, 0, m}}, ""},
		{"segmentation offload: IPv6 length 0, TCP", ethernet, each(build(ethernetHeader(), noLength6(6), tcpHeader(5060, 5060, 9, ""), data(m))), []seen{{tcp, src6, dst6, 0, 0, m}}, ""},
		{"segmentation offload: UDP length 0", ethernet, each(build(ethernetHeader(), noLength4, asIs(udpHeader(5060, 5060)), data(m))), []seen{datagram4(0, m)}, ""},
		{"segmentation offload: 64 KB in a segment", ethernet, each(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(strings.Repeat(short[:23]+"l:0\r\n\r\n", 2000)))),
			repeated(tcp, 2000, short[:23]+"l:0\r\n\r\n"), ""},
		{"wrong checksums", ethernet, each(wrongChecksum(over4(m, ethernetHeader()), 24, 40), wrongChecksum(over6(m, ethernetHeader()), 60)), []seen{datagram4(0, m), datagram6(1, m)}, ""},
		{"wrong checksum, TCP", ethernet, each(wrongChecksum(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(m)), 24, 50)), []seen{{tcp, src4, dst4, 0, 0, m}}, ""},
		{"UDP without a checksum", ethernet, each(build(ethernetHeader(), ipv4Header(), asIs(octets()), udpWithoutChecksum(len(m)), data(m))), []seen{datagram4(0, m)}, ""},
		{"TCP options", ethernet, each(tcpOptions(m)), []seen{{tcp, src4, dst4, 0, 0, m}}, ""},
		{"an empty frame", ethernet, each([]byte{}), nil, "packets_invalid 1"},
		{"IPv4 header too short", ethernet, each(change(over4(m, ethernetHeader()), 14, 0x44)), nil, "packets_invalid 1"},
		{"IPv4 longer than the frame", ethernet, each(change(over4(m, ethernetHeader()), 16, 0x7f)), nil, "packets_invalid 1"},
		{"IPv4 shorter than its header", ethernet, each(change(change(over4(m, ethernetHeader()), 16, 0), 17, 19)), nil, "packets_invalid 1"},
		{"IP version 5", ethernet, each(change(over4(m, ethernetHeader()), 14, 0x55)), nil, "packets_invalid 1"},
		{"IPv6 longer than the frame", ethernet, each(change(over6(m, ethernetHeader()), 18, 0x7f)), nil, "packets_invalid 1"},
		{"IPv6 extension header longer than the frame", ethernet, each(change(extended(udpHeader(5060, 5060), hop), 14+40+1, 255)), nil, "packets_invalid 1"},
		{"UDP length too short", ethernet, each(change(change(over4(m, ethernetHeader()), 38, 0), 39, 7)), nil, "packets_invalid 1"},
		{"UDP longer than its packet", ethernet, each(change(over4(m, ethernetHeader()), 38, 0x7f)), nil, "packets_invalid 1"},
		{"UDP shorter than its packet", ethernet, each(change(change(over4(short+"more", ethernetHeader()), 38, 0), 39, 8+byte(len(short)))), []seen{datagram4(0, short)}, ""},
		{"TCP header too short", ethernet, each(change(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(m)), 46, 0x40)), nil, "packets_invalid 1"},
		{"TCP header longer than its packet", ethernet, each(change(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(short)), 46, 0xf0)), nil, "packets_invalid 1"},
		{"an endless chain of IPv6 extension headers", ethernet, each(build(slices.Concat([]header{ethernetHeader(), ipv6Header()}, slices.Repeat([]header{hop}, 1000), []header{udpHeader(5060, 5060), data(m)})...)), nil, ""},
	}
}

func noLength6(protocol layers.IPProtocol) header {
	h := ipv6Header()
	named := h.build
	h.build = func(next header) gopacket.SerializableLayer {
		next.protocol = protocol
		return named(next)
	}
	return asIs(h)
}

func repeated(t transport, n int, raw string) (all []seen) {
	for i := range n {
		all = append(all, seen{t, src4, dst4, 0, i, raw})
	}
	return all
}

func change(frame []byte, at int, to byte) []byte {
	frame[at] = to
	return frame
}

func wrongChecksum(frame []byte, at ...int) []byte {
	for _, i := range at {
		frame[i] ^= 0x55
	}
	return frame
}

func udpWithoutChecksum(size int) header {
	return octets(0x13, 0xc4, 0x13, 0xc4, byte((size+8)>>8), byte(size+8), 0, 0)
}

// tcpOptions has timestamps, as nearly every segment has.
func tcpOptions(raw string) []byte {
	h := header{protocol: layers.IPProtocolTCP, build: func(header) gopacket.SerializableLayer {
		return &layers.TCP{SrcPort: 5060, DstPort: 5060, ACK: true, Seq: 5, Options: []layers.TCPOption{
			{OptionType: 1}, {OptionType: 1}, {OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}}}
	}}
	return build(ethernetHeader(), ipv4Header(), h, data(raw))
}

// fragmentRows: the reassembly of IPv4 and IPv6.
func fragmentRows() (rows []captureRow) {
	m := request("INVITE", "fragment", strings.Repeat("a=fragmented over several packets\r\n", 30))
	inner := []header{udpHeader(5060, 5060), data(m)}
	size := 8 + len(m)
	v4, v6 := []header{ethernetHeader(), ipv4Header()}, []header{ethernetHeader(), ipv6Header()}
	families := []struct {
		name  string
		outer []header
		want  func(int, string) seen
	}{{"IPv4", v4, datagram4}, {"IPv6", v6, datagram6},
		{"IPv6 with extension headers", append(slices.Clone(v6), extensionHeader(0, 8), extensionHeader(43, 24)), datagram6},
		{"IPv4 with options", []header{ethernetHeader(), ipv4With(func(ip *layers.IPv4) {
			ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		})}, datagram4},
		{"tagged IPv4", []header{ethernetHeader(), vlanHeader(0x8100, 5), ipv4Header()}, datagram4}}
	for _, family := range families {
		add := func(name string, frames [][]byte, counts string, want ...seen) {
			rows = append(rows, captureRow{family.name + ": " + name, ethernet, each(frames...), want, counts})
		}
		cut := func(id uint32, at ...int) [][]byte { return fragments(family.outer, inner, id, at...) }
		pick := func(frames [][]byte, order ...int) (picked [][]byte) {
			for _, i := range order {
				picked = append(picked, frames[i])
			}
			return picked
		}
		one := func(id uint32, protocol layers.IPProtocol, offset int, more bool, b []byte) []byte {
			return fragment(family.outer, protocol, id, offset, more, b)
		}
		payload := udpPayload(family.outer, inner)
		out := family.want
		three := cut(9, 400, 800)
		add("two fragments", cut(1, 800), "", out(1, m))
		add("in order", three, "", out(2, m))
		for _, order := range [][]int{{0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			add(fmt.Sprint("in the order ", order), pick(three, order...), "", out(2, m))
		}
		add("many fragments, backwards", reversed(cut(3, sizes(8, size)...)), "", out((size-1)/8, m))
		add("duplicates", pick(three, 0, 0, 1, 1, 0, 2), "", out(5, m))
		add("duplicates, last one first", pick(three, 2, 2, 1, 1, 0), "", out(4, m))
		for tail := 1; tail <= 7; tail++ {
			text := m[:len(m)-(size-tail)%8] // so that the last fragment has tail bytes
			text = text[:len(text)/8*8+tail]
			frames := fragments(family.outer, []header{udpHeader(5060, 5060), data(text)}, 4, (8+len(text))/8*8)
			add(fmt.Sprintf("a last fragment of %d bytes", tail), frames, "", out(1, text))
			add(fmt.Sprintf("a last fragment of %d bytes, first", tail), reversed(frames), "", out(1, text))
		}
		other := request("OPTIONS", "other", strings.Repeat("b", 900))
		others := fragments(family.outer, []header{udpHeader(5060, 5060), data(other)}, 10, 400, 800)
		add("interleaved datagrams", pick(append(slices.Clone(three), others...), 0, 3, 4, 1, 5, 2), "", out(4, other), out(5, m))
		add("an id used again", slices.Concat(three, fragments(family.outer, []header{udpHeader(5060, 5060), data(other)}, 9, 400)), "", out(2, m), out(4, other))
		add("the last one is lost", three[:2], "fragment 1")
		add("the first one is lost", three[1:], "fragment 1")
		add("a middle one is lost", pick(three, 0, 2), "fragment 1")
		add("a first one alone", three[:1], "fragment 1")
		add("an overlap with other bytes", slices.Insert(slices.Clone(three), 1, one(9, 17, 392, true, bytes.Repeat([]byte("x"), 16))), "fragment 1")
		add("an overlap with other bytes, too early", slices.Insert(slices.Clone(three), 0, one(9, 17, 392, true, bytes.Repeat([]byte("x"), 16))), "fragment 1")
		add("an overlap with the same bytes and more", slices.Insert(slices.Clone(three), 1, one(9, 17, 392, true, payload[392:416])), "fragment 1")
		add("other bytes in the same place", slices.Insert(slices.Clone(three), 1, one(9, 17, 0, true, bytes.Repeat([]byte("x"), 400))), "fragment 1")
		add("other bytes in the same place, waiting", pick(append(slices.Clone(three), one(9, 17, 400, true, bytes.Repeat([]byte("x"), 400))), 1, 3, 2, 0), "fragment 1")
		add("two ends that differ", [][]byte{one(9, 17, 800, false, payload[800:]), one(9, 17, 1600, false, payload[:16]), three[0], three[1]}, "fragment 1")
		add("two ends that differ, the nearer one last", [][]byte{one(9, 17, 1600, false, payload[:16]), three[2], three[0], three[1]}, "fragment 1")
		add("a piece behind the end", [][]byte{one(9, 17, 1600, true, payload[:16]), three[0], three[1], three[2]}, "fragment 1")
		add("a piece behind the end, after it", [][]byte{three[2], one(9, 17, 1600, true, payload[:16]), three[0], three[1]}, "fragment 1")
		add("what comes of a dropped datagram does not begin another one", slices.Concat([][]byte{three[0], one(9, 17, 0, true, bytes.Repeat([]byte("x"), 400))}, three, three), "fragment 1")
		add("a middle one that isn't a multiple of 8", [][]byte{one(9, 17, 0, true, payload[:401])}, "packets_invalid 1")
		add("longer than 65,535 bytes", [][]byte{one(9, 17, 65528, false, payload[:64])}, "packets_invalid 1")
		add("an empty one", [][]byte{three[0], one(9, 17, 400, true, nil), three[1], three[2]}, "packets_invalid 1", out(3, m))
		add("not SIP", fragments(family.outer, []header{udpHeader(5060, 5060), data(strings.Repeat("\x80\x00rtp", 200))}, 5, 400), "")
	}
	// An IPv4 datagram is named by its protocol too (RFC 791), an IPv6 one isn't (RFC 8200 §4.5).
	mixed4 := slices.Concat(fragments(v4, inner, 9, 800)[:1], fragments(v4, []header{tcpHeader(5060, 5060, 1, ""), data(m)}, 9, 800), fragments(v4, inner, 9, 800)[1:])
	rows = append(rows, captureRow{"IPv4: the same id for another protocol", ethernet, each(mixed4...), []seen{{tcp, src4, dst4, 2, 0, m}, datagram4(3, m)}, ""})
	elsewhere4 := fragments([]header{ethernetHeader(), ipv4Header("192.0.2.1", "203.0.113.3")}, inner, 9, 800)
	elsewhere6 := fragments([]header{ethernetHeader(), ipv6Header("2001:db8::1", "2001:db8::3")}, inner, 9, 800)
	here4, here6 := fragments(v4, inner, 9, 800), fragments(v6, inner, 9, 800)
	rows = append(rows,
		captureRow{"IPv4: the same id for another address pair", ethernet, each(here4[0], elsewhere4[0], elsewhere4[1], here4[1]),
			[]seen{{udp, src4, "203.0.113.3:5060", 2, 0, m}, datagram4(3, m)}, ""},
		captureRow{"IPv6: the same id for another address pair", ethernet, each(here6[0], elsewhere6[0], elsewhere6[1], here6[1]),
			[]seen{{udp, src6, "[2001:db8::3]:5060", 2, 0, m}, datagram6(3, m)}, ""},
		captureRow{"IPv6: ids that differ in the upper half", ethernet, each(fragments(v6, inner, 0x10009, 800)[0], here6[0], fragments(v6, inner, 0x10009, 800)[1], here6[1]),
			[]seen{datagram6(2, m), datagram6(3, m)}, ""},
		captureRow{"IPv4: DF together with MF", ethernet, each(fragments([]header{ethernetHeader(), ipv4With(func(ip *layers.IPv4) { ip.Flags |= layers.IPv4DontFragment })}, inner, 9, 800)...),
			[]seen{datagram4(1, m)}, ""},
		captureRow{"IPv4: in another VLAN it is another datagram", ethernet,
			each(fragments([]header{ethernetHeader(), vlanHeader(0x8100, 5), ipv4Header()}, inner, 9, 800)[0], fragments([]header{ethernetHeader(), vlanHeader(0x8100, 6), ipv4Header()}, inner, 9, 800)[1]),
			nil, "fragment 2"},
		captureRow{"TCP in fragments", ethernet, each(fragments(v4, []header{tcpHeader(5060, 5060, 1, ""), data(m)}, 9, 8, 400)...), []seen{{tcp, src4, dst4, 2, 0, m}}, ""},
		captureRow{"SCTP in fragments", ethernet, each(fragments(v6, []header{sctpHeader(5060, 5060), dataChunk(3, m)}, 9, 8, 400)...), []seen{{sctp, src6, dst6, 2, 0, m}}, ""},
		captureRow{"IPv6: the next header counts in the first fragment only", ethernet,
			each(here6[0], fragment(v6, 59, 9, 800, false, udpPayload(v6, inner)[800:])), []seen{datagram6(1, m)}, ""},
		captureRow{"IPv6: an extension header in the fragments", ethernet, each(fragments(v6, []header{extensionHeader(60, 16), udpHeader(5060, 5060), data(m)}, 9, 800)...), []seen{datagram6(1, m)}, ""},
	)
	// Time is that of the capture.
	late := func(name string, gap time.Duration, counts string, want ...seen) {
		frames := each(here4[0], here4[1])
		frames[1].at = gap
		rows = append(rows, captureRow{name, ethernet, frames, want, counts})
	}
	late("IPv4: the second one after 29 s", 29*time.Second, "", datagram4(1, m))
	late("IPv4: the second one after 31 s", 31*time.Second, "fragment 2")
	slow := each(fragments(v4, inner, 9, sizes(64, 640)...)...)
	for i := range slow {
		slow[i].at = time.Duration(i) * 4 * time.Second
	}
	rows = append(rows, captureRow{"IPv4: 30 s count from the first one", ethernet, slow, nil, "fragment 2"})
	// The largest datagram there is, and one byte more than a message may have.
	largest := sized(65507)
	rows = append(rows, captureRow{"IPv4: the largest datagram", ethernet, each(fragments(v4, []header{udpHeader(5060, 5060), data(largest)}, 9, sizes(1480, 65515)...)...),
		[]seen{datagram4(44, largest)}, ""})
	return rows
}

// udpPayload is what fragments cuts.
func udpPayload(outer, inner []header) (payload []byte) {
	return build(slices.Concat(outer[1:], inner)...)[len(build(outer[1:]...)):]
}

func reversed(frames [][]byte) [][]byte {
	frames = slices.Clone(frames)
	slices.Reverse(frames)
	return frames
}

// sizes are the positions of cuts into pieces of a size.
func sizes(piece, total int) (cuts []int) {
	for at := piece; at < total; at += piece {
		cuts = append(cuts, at)
	}
	return cuts
}

// sized is a message of exactly that many bytes.
func sized(size int) string {
	m := request("MESSAGE", "sized", "")
	for n := range 100 {
		if m = request("MESSAGE", "sized", strings.Repeat("x", size-len(m)-n)); len(m) == size {
			return m
		}
		m = request("MESSAGE", "sized", "")
	}
	panic("no such size")
}

// tunnelRows: mirror tunnels. Addresses are the innermost.
func tunnelRows() (rows []captureRow) {
	m := request("INVITE", "tunnel", "v=0\r\n")
	mirror4 := []header{ethernetHeader(), ipv4Header("203.0.113.7", "203.0.113.8")}
	mirror6 := []header{ethernetHeader(), ipv6Header("2001:db8:7::7", "2001:db8:7::8")}
	outer := []struct {
		name string
		all  []header
	}{{"over IPv4", mirror4}, {"over IPv6", mirror6}, {"over tagged IPv4", []header{ethernetHeader(), vlanHeader(0x8100, 9), ipv4Header("203.0.113.7", "203.0.113.8")}}}
	erspan2 := []byte{0x10, 0x64, 0, 5, 0, 0, 0, 1}
	erspan3 := []byte{0x20, 0x64, 0, 5, 1, 2, 3, 4, 0, 0, 0, 0}
	tunnels := []struct {
		name string
		all  []header
	}{
		{"VXLAN", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader()}},
		{"VXLAN on port 8472", []header{udpHeader(50000, 8472), vxlanHeader(7), ethernetHeader()}},
		{"VLAN inside VXLAN", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader(), vlanHeader(0x8100, 5)}},
		{"two VLAN inside VXLAN", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader(), vlanHeader(0x88a8, 5), vlanHeader(0x8100, 6)}},
		{"Geneve", []header{udpHeader(50000, 6081), geneveHeader(7), ethernetHeader()}},
		{"Geneve with options", []header{udpHeader(50000, 6081), geneveHeader(7, make([]byte, 28)...), ethernetHeader()}},
		{"Geneve of IP", []header{udpHeader(50000, 6081), geneveHeader(7)}},
		{"GRE", []header{greHeader("")}},
		{"GRE with a key", []header{greHeader("K")}},
		{"GRE with a checksum", []header{greHeader("C")}},
		{"GRE with a sequence number", []header{greHeader("S")}},
		{"GRE with all of them", []header{greHeader("CKS")}},
		{"GRE of Ethernet", []header{greHeader("K"), ethernetHeader()}},
		{"GRE of Ethernet with a tag", []header{greHeader(""), ethernetHeader(), vlanHeader(0x8100, 3)}},
		{"ERSPAN I", []header{greHeader(""), erspanHeader(), ethernetHeader()}},
		{"ERSPAN II", []header{greHeader("S"), erspanHeader(erspan2...), ethernetHeader()}},
		{"ERSPAN II of a tagged frame", []header{greHeader("S"), erspanHeader(erspan2...), ethernetHeader(), vlanHeader(0x8100, 3)}},
		{"ERSPAN II with a key", []header{greHeader("KS"), erspanHeader(erspan2...), ethernetHeader()}},
		{"ERSPAN III", []header{greHeader("S"), erspanHeader(erspan3...), ethernetHeader()}},
		{"ERSPAN III with a subheader", []header{greHeader("S"), erspanHeader(append(change(slices.Clone(erspan3), 11, 1), 1, 2, 3, 4, 5, 6, 7, 8)...), ethernetHeader()}},
		{"ERSPAN III of IP", []header{greHeader("S"), erspanHeader(change(slices.Clone(erspan3), 10, 2<<2)...)}},
		{"IP in IP", nil},
		{"a tunnel in a tunnel", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader(), ipv4Header("10.9.9.9", "10.9.9.8"), greHeader("K"), ethernetHeader()}},
		{"VXLAN in VXLAN", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader(), ipv4Header("10.9.9.9", "10.9.9.8"), udpHeader(1, 4789), vxlanHeader(8), ethernetHeader()}},
		{"IP in IP in IP", []header{ipv4Header("10.9.9.9", "10.9.9.8")}},
	}
	inners := []struct {
		name  string
		build func(string, ...header) []byte
		want  seen
	}{{"IPv4", over4, datagram4(0, m)}, {"IPv6", over6, datagram6(0, m)}}
	for _, o := range outer {
		for _, tunnel := range tunnels {
			for _, inner := range inners {
				before := slices.Concat(o.all, tunnel.all)
				rows = append(rows, captureRow{tunnel.name + " " + o.name + ": " + inner.name, ethernet, each(inner.build(m, before...)), []seen{inner.want}, ""})
			}
		}
	}
	vxlan := slices.Concat(mirror4, []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader()})
	mirrored := append(slices.Clone(vxlan), ipv4Header())
	long := request("INVITE", "long", strings.Repeat("a=mirrored\r\n", 100))
	inside := fragments(mirrored, []header{udpHeader(5060, 5060), data(long)}, 5, 800)
	around := fragments(mirror4, append(slices.Clone(vxlan[2:]), ipv4Header(), udpHeader(5060, 5060), data(long)), 6, 800)
	other := slices.Clone(mirrored)
	other[3] = vxlanHeader(8)
	stream := request("INVITE", "stream", "")
	segment := func(seq uint32, text string) []byte { return build(append(mirrored, tcpHeader(40000, 5060, seq, "P"), data(text))...) }
	rows = append(rows,
		captureRow{"fragments inside a tunnel", ethernet, each(inside[1], inside[0]), []seen{datagram4(1, long)}, ""},
		captureRow{"a tunnel in fragments", ethernet, each(around[1], around[0]), []seen{datagram4(1, long)}, ""},
		captureRow{"fragments inside a tunnel in fragments", ethernet,
			each(slices.Concat(fragments(mirror4, slices.Concat(vxlan[2:], []header{octets(inside[0][14+20+8+8+14:]...)}), 6, 400),
				fragments(mirror4, slices.Concat(vxlan[2:], []header{octets(inside[1][14+20+8+8+14:]...)}), 7, 400))...), nil, ""},
		captureRow{"the same id in another VXLAN", ethernet, each(inside[0], fragments(other, []header{udpHeader(5060, 5060), data(long)}, 5, 800)[1]), nil, "fragment 2"},
		captureRow{"a stream inside a tunnel", ethernet, each(segment(1, stream[:50]), segment(51, stream[50:])), []seen{{tcp, client.src, client.dst, 1, 0, stream}}, ""},
		captureRow{"PPTP's GRE is another protocol", ethernet, each(build(ethernetHeader(), ipv4Header(), octets47(0x30, 0x01, 0x88, 0x0b, 0, 4, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4))), nil, ""},
		captureRow{"VXLAN cut by the mirror", ethernet, each(build(append(slices.Clone(vxlan), octets(over4(m)[:100]...))...)), nil, "truncated 1"},
	)
	// What octets carried there had no EtherType; it is put in by hand.
	for i := range rows {
		if rows[i].name == "fragments inside a tunnel in fragments" {
			tunnelled := func(id uint32, b []byte) [][]byte {
				packet := octets(b[14+20+8+8+14:]...)
				packet.etherType = layers.EthernetTypeIPv4
				return fragments(mirror4, slices.Concat(vxlan[2:], []header{packet}), id, 400)
			}
			rows[i].frames = each(slices.Concat(tunnelled(6, inside[0]), tunnelled(7, inside[1]))...)
			rows[i].want = []seen{datagram4(len(rows[i].frames)-1, long)}
		}
		if rows[i].name == "VXLAN cut by the mirror" {
			packet := octets(over4(m)[:100]...)
			packet.etherType = layers.EthernetTypeIPv4
			rows[i].frames = each(build(append(slices.Clone(vxlan), packet)...))
		}
	}
	return rows
}

func octets47(b ...byte) header {
	h := octets(b...)
	h.protocol = layers.IPProtocolGRE
	return h
}
