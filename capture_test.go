package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcap"
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
	link   linkType
	frames []caught
	want   []seen
	counts string // all counters that aren't 0, except packets; "*": whatever
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
			p.checkEmpty(t)
			if !slices.Equal(p.messages, row.want) {
				t.Errorf("got\n%s\nwant\n%s", listed(p.messages), listed(row.want))
			}
			if counts := p.counted(t); counts != row.counts && row.counts != "*" {
				t.Errorf("counted %q, want %q", counts, row.counts)
			}
		})
	}
}

func listed(messages []seen) string {
	var lines []string
	for _, m := range messages {
		lines = append(lines, "\t"+m.String())
	}
	return strings.Join(lines, "\n")
}

func captureRows() []captureRow {
	return slices.Concat(linkRows(), networkRows(), fragmentRows(),
		tunnelRows(), datagramRows(), truncatedRows(), sctpRows(), streamRows(),
		lengthRows(), webSocketRows(), strayRows(), orderRows(), firstRows(), encapsulationRows(),
		hepRows(), sctpCutRows(), otherProtocolRows())
}

// linkRows: link types and tags.
func linkRows() (rows []captureRow) {
	m := request("INVITE", "link", "v=0\r\n")
	add := func(name string, link linkType, before ...header) {
		rows = append(rows,
			captureRow{name + ", IPv4", link, each(over4(m, before...)), []seen{datagram4(0, m)}, ""},
			captureRow{name + ", IPv6", link, each(over6(m, before...)), []seen{datagram6(0, m)}, ""})
	}
	add("Ethernet", ethernet, ethernetHeader())
	add("Linux cooked", linuxCooked, sllHeader())
	add("Linux cooked v2", linkNamed("LINUX_SLL2"), sll2Header())
	add("raw IP", linkNamed("RAW"))
	add("loopback of BSD", linkNamed("NULL"), nullHeader())
	add("loopback of OpenBSD", linkNamed("LOOP"), loopHeader())
	links := []struct {
		name   string
		link   linkType
		header header
	}{{
		"Ethernet",
		ethernet,
		ethernetHeader(),
	}, {
		"Linux cooked",
		linuxCooked,
		sllHeader(),
	}, {
		"Linux cooked v2",
		linkNamed("LINUX_SLL2"),
		sll2Header(),
	}}
	for _, l := range links {
		add(l.name+", 802.1Q", l.link, l.header, vlanHeader(0x8100, 100))
		add(l.name+", priority tag", l.link, l.header, vlanHeader(0x8100, 0))
		add(l.name+", QinQ 0x88a8", l.link, l.header, vlanHeader(0x88a8, 100), vlanHeader(0x8100, 4094))
		add(l.name+", stacked 0x8100", l.link, l.header, vlanHeader(0x8100, 100), vlanHeader(0x8100, 200))
		add(l.name+", stacked 0x9100", l.link, l.header, vlanHeader(0x9100, 100), vlanHeader(0x8100, 200))
	}
	add("three tags", ethernet, ethernetHeader(), vlanHeader(0x88a8, 1), vlanHeader(0x8100, 2), vlanHeader(0x8100, 3))
	rows = append(rows,
		captureRow{"raw IPv4", linkNamed("IPV4"), each(over4(m)), []seen{datagram4(0, m)}, ""},
		captureRow{"raw IPv6", linkNamed("IPV6"), each(over6(m)), []seen{datagram6(0, m)}, ""},
		captureRow{
			"loopback of Linux, IPv6",
			linkNamed("NULL"),
			each(over6(m, octets(10, 0, 0, 0))),
			[]seen{datagram6(0, m)},
			"",
		},
	)
	return rows
}

// networkRows: IP headers, and what the card does to them.
func networkRows() []captureRow {
	m := request("INVITE", "network", "")
	short := "OPTIONS sip:a SIP/2.0\r\n\r\n"
	tiny := "A b SIP/2.0\n" // IPv4, UDP and this are less than the 46 bytes that an Ethernet frame carries
	options := ipv4With(func(ip *layers.IPv4) {
		ip.Options = []layers.IPv4Option{
			{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}},
			{OptionType: 1},
			{OptionType: 1},
			{OptionType: 1},
			{OptionType: 0},
		}
	})
	noLength4 := asIs(ipv4With(func(ip *layers.IPv4) { ip.Protocol = 17 }))
	noLength4TCP := asIs(ipv4With(func(ip *layers.IPv4) { ip.Protocol = 6 }))
	extended := func(last header, extensions ...header) []byte {
		all := append([]header{ethernetHeader(), ipv6Header()}, extensions...)
		return build(append(all, last, data(m))...)
	}
	hop, route, dest := extensionHeader(0, 8), extensionHeader(43, 24), extensionHeader(60, 16)
	return []captureRow{
		{
			"IPv4 options",
			ethernet,
			each(build(ethernetHeader(), options, udpHeader(5060, 5060), data(m))),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"IPv6 hop-by-hop options",
			ethernet,
			each(extended(udpHeader(5060, 5060), hop)),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 routing header",
			ethernet,
			each(extended(udpHeader(5060, 5060), route)),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 destination options",
			ethernet,
			each(extended(udpHeader(5060, 5060), dest)),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 mobility header",
			ethernet,
			each(extended(udpHeader(5060, 5060), extensionHeader(135, 8))),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 authentication header",
			ethernet,
			each(extended(udpHeader(5060, 5060), extensionHeader(layers.IPProtocolAH, 24))),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 extension headers, all of them",
			ethernet,
			each(extended(udpHeader(5060, 5060), hop, dest, route, extensionHeader(layers.IPProtocolAH, 24), dest)),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv6 extension header before TCP",
			ethernet,
			each(extended(tcpHeader(5060, 5060, 9, ""), hop)),
			[]seen{{
				tcp,
				src6,
				dst6,
				0,
				0,
				m,
			}},
			"",
		},
		{
			"IPv6 atomic fragment",
			ethernet,
			each(extended(udpHeader(5060, 5060), fragmentHeader(7, 0, false))),
			[]seen{datagram6(0, m)},
			"",
		},
		{
			"IPv4 authentication header",
			ethernet,
			each(
				build(
					ethernetHeader(),
					ipv4Header(),
					extensionHeader(layers.IPProtocolAH, 24),
					udpHeader(5060, 5060),
					data(m),
				),
			),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"Ethernet padding is not part of a datagram",
			ethernet,
			each(over4(tiny, ethernetHeader())),
			[]seen{datagram4(0, tiny)},
			"",
		},
		{
			"Ethernet padding is not part of a stream",
			ethernet,

			each(
				build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 1, "P"), data("A")),
				build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 2, "P"), data(m)),
			),

			[]seen{{
				tcp,
				src4,
				dst4,
				1,
				0,
				"A" + m,
			}},
			"",
		},
		{
			"Ethernet trailer",
			ethernet,
			each(append(over4(m, ethernetHeader()), "trailer"...)),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"segmentation offload: IPv4 length 0, UDP",
			ethernet,
			each(build(ethernetHeader(), noLength4, udpHeader(5060, 5060), data(m))),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"segmentation offload: IPv4 length 0, TCP",
			ethernet,
			each(build(ethernetHeader(), noLength4TCP, tcpHeader(5060, 5060, 9, ""), data(m))),
			[]seen{{
				tcp,
				src4,
				dst4,
				0,
				0,
				m,
			}},
			"",
		},
		{
			"segmentation offload: IPv6 length 0, TCP",
			ethernet,
			each(build(ethernetHeader(), noLength6(6), tcpHeader(5060, 5060, 9, ""), data(m))),
			[]seen{{
				tcp,
				src6,
				dst6,
				0,
				0,
				m,
			}},
			"",
		},
		{
			"segmentation offload: UDP length 0",
			ethernet,
			each(build(ethernetHeader(), noLength4, asIs(udpHeader(5060, 5060)), data(m))),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"segmentation offload: 64 KB in a segment",
			ethernet,
			each(
				build(
					ethernetHeader(),
					ipv4Header(),
					tcpHeader(5060, 5060, 9, ""),
					data(strings.Repeat(short[:23]+"l:0\r\n\r\n", 2000)),
				),
			),

			repeated(tcp, 2000, short[:23]+"l:0\r\n\r\n"),
			"",
		},
		{
			"wrong checksums",
			ethernet,
			each(wrongChecksum(over4(m, ethernetHeader()), 24, 40), wrongChecksum(over6(m, ethernetHeader()), 60)),
			[]seen{datagram4(0, m), datagram6(1, m)},
			"",
		},
		{
			"wrong checksum, TCP",
			ethernet,
			each(wrongChecksum(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(m)), 24, 50)),
			[]seen{{
				tcp,
				src4,
				dst4,
				0,
				0,
				m,
			}},
			"",
		},
		{
			"UDP without a checksum",
			ethernet,
			each(build(ethernetHeader(), ipv4Header(), udpWithoutChecksum(len(m)), data(m))),
			[]seen{datagram4(0, m)},
			"",
		},
		{
			"TCP options",
			ethernet,
			each(tcpOptions(m)),
			[]seen{{
				tcp,
				src4,
				dst4,
				0,
				0,
				m,
			}},
			"",
		},
		{
			"an empty frame",
			ethernet,
			each([]byte{}),
			nil,
			"packets_invalid 1",
		},
		{
			"IPv4 header too short",
			ethernet,
			each(change(over4(m, ethernetHeader()), 14, 0x44)),
			nil,
			"packets_invalid 1",
		},
		{
			"IPv4 longer than the frame",
			ethernet,
			each(change(over4(m, ethernetHeader()), 16, 0x7f)),
			nil,
			"packets_invalid 1",
		},
		{
			"IPv4 shorter than its header",
			ethernet,
			each(change(change(over4(m, ethernetHeader()), 16, 0), 17, 19)),
			nil,
			"packets_invalid 1",
		},
		{
			"IP version 5",
			ethernet,
			each(change(over4(m, ethernetHeader()), 14, 0x55)),
			nil,
			"packets_invalid 1",
		},
		{
			"IPv6 longer than the frame",
			ethernet,
			each(change(over6(m, ethernetHeader()), 18, 0x7f)),
			nil,
			"packets_invalid 1",
		},
		{
			"IPv6 extension header longer than the frame",
			ethernet,
			each(change(extended(udpHeader(5060, 5060), hop), 14+40+1, 255)),
			nil,
			"packets_invalid 1",
		},
		{
			"UDP length too short",
			ethernet,
			each(change(change(over4(m, ethernetHeader()), 38, 0), 39, 7)),
			nil,
			"packets_invalid 1",
		},
		{
			"UDP longer than its packet",
			ethernet,
			each(change(over4(m, ethernetHeader()), 38, 0x7f)),
			nil,
			"packets_invalid 1",
		},
		{
			"UDP shorter than its packet",
			ethernet,
			each(change(change(over4(short+"more", ethernetHeader()), 38, 0), 39, 8+byte(len(short)))),
			[]seen{datagram4(0, short)},
			"",
		},
		{
			"TCP header too short",
			ethernet,
			each(change(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(m)), 46, 0x40)),
			nil,
			"packets_invalid 1",
		},
		{
			"TCP header longer than its packet",
			ethernet,
			each(change(build(ethernetHeader(), ipv4Header(), tcpHeader(5060, 5060, 9, ""), data(short)), 46, 0xf0)),
			nil,
			"packets_invalid 1",
		},
		{
			"an endless chain of IPv6 extension headers",
			ethernet,
			each(
				build(
					slices.Concat(
						[]header{ethernetHeader(), ipv6Header()},
						slices.Repeat([]header{hop}, 1000),
						[]header{udpHeader(5060, 5060), data(m)},
					)...,
				),
			),
			nil,
			"",
		},
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
	h := octets(0x13, 0xc4, 0x13, 0xc4, byte((size+8)>>8), byte(size+8), 0, 0)
	h.protocol = layers.IPProtocolUDP
	return h
}

// tcpOptions has timestamps, as nearly every segment has.
func tcpOptions(raw string) []byte {
	h := header{protocol: layers.IPProtocolTCP, build: func(header) gopacket.SerializableLayer {
		return &layers.TCP{SrcPort: 5060, DstPort: 5060, ACK: true, Seq: 5, Options: []layers.TCPOption{
			{OptionType: 1}, {OptionType: 1}, {
				OptionType:   layers.TCPOptionKindTimestamps,
				OptionLength: 10,
				OptionData:   make([]byte, 8),
			}}}
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
	}{{
		"IPv4",
		v4,
		datagram4,
	}, {
		"IPv6",
		v6,
		datagram6,
	},
		{
			"IPv6 with extension headers",
			append(slices.Clone(v6), extensionHeader(0, 8), extensionHeader(43, 24)),
			datagram6,
		},
		{
			"IPv4 with options",
			[]header{ethernetHeader(), ipv4With(func(ip *layers.IPv4) {
				ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
			})},
			datagram4,
		},
		{
			"tagged IPv4",
			[]header{ethernetHeader(), vlanHeader(0x8100, 5), ipv4Header()},
			datagram4,
		}}
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
		add(
			"interleaved datagrams",
			pick(append(slices.Clone(three), others...), 0, 3, 4, 1, 5, 2),
			"",
			out(4, other),
			out(5, m),
		)
		add(
			"an id used again",
			slices.Concat(three, fragments(family.outer, []header{udpHeader(5060, 5060), data(other)}, 9, 400)),
			"",
			out(2, m),
			out(4, other),
		)
		add("the last one is lost", three[:2], "fragment 1")
		add("the first one is lost", three[1:], "fragment 1")
		add("a middle one is lost", pick(three, 0, 2), "fragment 1")
		add("a first one alone", three[:1], "fragment 1")
		// Where bytes differ there are two datagrams with this id, and the newer pieces stay: of the older
		// one nothing comes,
		// and of the newer one only if it is whole.
		foreign := func(offset, size int) []byte {
			return one(9, 17, offset, true, bytes.Repeat([]byte("x"), size))
		}
		end := one(9, 17, 1600, false, payload[:16])
		behind := one(9, 17, 1600, true, payload[:16])
		a, b, c := three[0], three[1], three[2]
		add("an overlap with other bytes", [][]byte{a, foreign(392, 16), b, c}, "fragment 2")
		add("an overlap with other bytes, too early", [][]byte{foreign(392, 16), a, b, c}, "fragment 1", out(3, m))
		add(
			"an overlap with other bytes, and the datagram again",
			[][]byte{a, foreign(392, 16), a, b, c},
			"fragment 1",
			out(4, m),
		)
		add(
			"an overlap with the same bytes and more",
			[][]byte{a, one(9, 17, 392, true, payload[392:416]), b, c},
			"",
			out(3, m),
		)
		add("other bytes in the same place", [][]byte{a, foreign(0, 400), b, c}, "fragment 2")
		add("other bytes in the same place, waiting", [][]byte{b, foreign(400, 400), c, a}, "fragment 2")
		add("two ends that differ", [][]byte{c, end, a, b}, "fragment 2")
		add("two ends that differ, the nearer one last", [][]byte{end, c, a, b}, "fragment 1", out(3, m))
		add("a piece behind the end", [][]byte{behind, a, b, c}, "fragment 1", out(3, m))
		add("a piece behind the end, after it", [][]byte{c, behind, a, b}, "fragment 2")
		add(
			"foreign bytes, and then all of it",
			[][]byte{a, foreign(0, 400), a, b, c, a, b, c},
			"fragment 1",
			out(4, m),
		)
		// An id that is used again after a loss: the checksum tells, in whatever order the pieces come.
		again := request("OPTIONS", "again", strings.Repeat("c", size-300))
		news := fragments(family.outer, []header{udpHeader(5060, 5060), data(again)}, 9, 400, 800)
		for _, lost := range [][]int{{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}} {
			for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
				add(fmt.Sprint("an id used again after the loss of all but ", lost, ", in the order ", order),
					slices.Concat(pick(three, lost...), pick(news, order...)), "fragment 1", out(len(lost)+2, again))
			}
		}
		add("an id used again, each frame twice", [][]byte{
			a,
			a,
			b,
			b,
			c,
			c,
			news[0],
			news[0],
			news[1],
			news[1],
			news[2],
			news[2],
		},
			"", out(4, m), out(10, again))
		add(
			"an id used again, each datagram twice",
			slices.Concat(three, three, news, news),
			"",
			out(2, m),
			out(8, again),
		)
		add("an id used again, backwards", slices.Concat(three, reversed(news)), "", out(2, m), out(5, again))
		add("a duplicate that is cut differently", slices.Concat(three, cut(9, 80, 160, 800)), "", out(2, m))
		add(
			"cut twice in different ways, interleaved",
			slices.Concat(pick(cut(9, 160, 640), 2, 1), pick(cut(9, 320, 480), 1, 0)),
			"",
			out(3, m),
		)
		add(
			"a middle one that isn't a multiple of 8",
			[][]byte{one(9, 17, 0, true, payload[:401])},
			"packets_invalid 1",
		)
		add("longer than 65,535 bytes", [][]byte{one(9, 17, 65528, false, payload[:64])}, "packets_invalid 1")
		add(
			"an empty one",
			[][]byte{three[0], one(9, 17, 400, true, nil), three[1], three[2]},
			"packets_invalid 1",
			out(3, m),
		)
		add(
			"not SIP",
			fragments(family.outer, []header{udpHeader(5060, 5060), data(strings.Repeat("\x80\x00rtp", 200))}, 5, 400),
			"",
		)
	}
	// An IPv4 datagram is named by its protocol too (RFC 791), an IPv6 one isn't (RFC 8200 §4.5).
	mixed4 := slices.Concat(
		fragments(v4, inner, 9, 800)[:1],
		fragments(v4, []header{tcpHeader(5060, 5060, 1, ""), data(m)}, 9, 800),
		fragments(v4, inner, 9, 800)[1:],
	)
	rows = append(rows, captureRow{"IPv4: the same id for another protocol", ethernet, each(mixed4...), []seen{{
		tcp,
		src4,
		dst4,
		2,
		0,
		m,
	}, datagram4(3, m)}, ""})
	elsewhere4 := fragments([]header{ethernetHeader(), ipv4Header("192.0.2.1", "203.0.113.3")}, inner, 9, 800)
	elsewhere6 := fragments([]header{ethernetHeader(), ipv6Header("2001:db8::1", "2001:db8::3")}, inner, 9, 800)
	here4, here6 := fragments(v4, inner, 9, 800), fragments(v6, inner, 9, 800)
	rows = append(rows,
		captureRow{"IPv4: the same id for another address pair",
			ethernet, each(here4[0], elsewhere4[0], elsewhere4[1], here4[1]),
			[]seen{{
				udp,
				src4,
				"203.0.113.3:5060",
				2,
				0,
				m,
			}, datagram4(3, m)}, ""},
		captureRow{"IPv6: the same id for another address pair",
			ethernet, each(here6[0], elsewhere6[0], elsewhere6[1], here6[1]),
			[]seen{{
				udp,
				src6,
				"[2001:db8::3]:5060",
				2,
				0,
				m,
			}, datagram6(3, m)}, ""},
		captureRow{"IPv6: ids that differ in the upper half", ethernet, each(
			fragments(v6, inner, 0x10009, 800)[0],
			here6[0],
			fragments(v6, inner, 0x10009, 800)[1],
			here6[1],
		),
			[]seen{datagram6(2, m), datagram6(3, m)}, ""},
		captureRow{"IPv4: DF together with MF", ethernet, each(
			fragments(
				[]header{ethernetHeader(), ipv4With(func(ip *layers.IPv4) { ip.Flags |= layers.IPv4DontFragment })},
				inner,
				9,
				800,
			)...,
		),
			[]seen{datagram4(1, m)}, ""},
		captureRow{"IPv4: in another VLAN it is another datagram", ethernet,
			each(
				fragments([]header{ethernetHeader(), vlanHeader(0x8100, 5), ipv4Header()}, inner, 9, 800)[0],
				fragments([]header{ethernetHeader(), vlanHeader(0x8100, 6), ipv4Header()}, inner, 9, 800)[1],
			),
			nil, "fragment 2"},
		captureRow{"TCP in fragments", ethernet, each(
			fragments(v4, []header{tcpHeader(5060, 5060, 1, ""), data(m)}, 9, 8, 400)...,
		), []seen{{
			tcp,
			src4,
			dst4,
			2,
			0,
			m,
		}}, ""},
		captureRow{"SCTP in fragments", ethernet, each(
			fragments(v6, []header{sctpHeader(5060, 5060), dataChunk(3, m)}, 9, 8, 400)...,
		), []seen{{
			sctp,
			src6,
			dst6,
			2,
			0,
			m,
		}}, ""},
		captureRow{"IPv6: the next header counts in the first fragment only", ethernet,
			each(here6[0], fragment(v6, 59, 9, 800, false, udpPayload(v6, inner)[800:])), []seen{datagram6(1, m)}, ""},
		captureRow{
			"IPv6: an extension header in the fragments",
			ethernet,
			each(fragments(v6, []header{extensionHeader(60, 16), udpHeader(5060, 5060), data(m)}, 9, 800)...),
			[]seen{datagram6(1, m)},
			"",
		},
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
	rows = append(rows, captureRow{"IPv4: the largest datagram", ethernet, each(
		fragments(v4, []header{udpHeader(5060, 5060), data(largest)}, 9, sizes(1480, 65515)...)...,
	),
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
	}{
		{"over IPv4", mirror4},
		{"over IPv6", mirror6},
		{
			"over tagged IPv4",
			[]header{ethernetHeader(), vlanHeader(0x8100, 9), ipv4Header("203.0.113.7", "203.0.113.8")},
		},
	}
	erspan2 := []byte{0x10, 0x64, 0, 5, 0, 0, 0, 1}
	erspan3 := []byte{0x20, 0x64, 0, 5, 1, 2, 3, 4, 0, 0, 0, 0}
	tunnels := []struct {
		name string
		all  []header
	}{
		{"VXLAN", []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader()}},
		{"VXLAN on port 8472", []header{udpHeader(50000, 8472), vxlanHeader(7), ethernetHeader()}},
		{
			"VLAN inside VXLAN",
			[]header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader(), vlanHeader(0x8100, 5)},
		},
		{
			"two VLAN inside VXLAN",
			[]header{
				udpHeader(50000, 4789),
				vxlanHeader(7),
				ethernetHeader(),
				vlanHeader(0x88a8, 5),
				vlanHeader(0x8100, 6),
			},
		},
		{"Geneve", []header{udpHeader(50000, 6081), geneveHeader(7), ethernetHeader()}},
		{
			"Geneve with options",
			[]header{udpHeader(50000, 6081), geneveHeader(7, make([]byte, 28)...), ethernetHeader()},
		},
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
		{
			"ERSPAN II of a tagged frame",
			[]header{greHeader("S"), erspanHeader(erspan2...), ethernetHeader(), vlanHeader(0x8100, 3)},
		},
		{"ERSPAN II with a key", []header{greHeader("KS"), erspanHeader(erspan2...), ethernetHeader()}},
		{"ERSPAN III", []header{greHeader("S"), erspanHeader(erspan3...), ethernetHeader()}},
		{
			"ERSPAN III with a subheader",
			[]header{
				greHeader("S"),
				erspanHeader(append(change(slices.Clone(erspan3), 11, 1), 1, 2, 3, 4, 5, 6, 7, 8)...),
				ethernetHeader(),
			},
		},
		{"IP in IP", nil},
		{
			"a tunnel in a tunnel",
			[]header{
				udpHeader(50000, 4789),
				vxlanHeader(7),
				ethernetHeader(),
				ipv4Header("10.9.9.9", "10.9.9.8"),
				greHeader("K"),
				ethernetHeader(),
			},
		},
		{
			"VXLAN in VXLAN",
			[]header{
				udpHeader(50000, 4789),
				vxlanHeader(7),
				ethernetHeader(),
				ipv4Header("10.9.9.9", "10.9.9.8"),
				udpHeader(1, 4789),
				vxlanHeader(8),
				ethernetHeader(),
			},
		},
		{"IP in IP in IP", []header{ipv4Header("10.9.9.9", "10.9.9.8")}},
	}
	inners := []struct {
		name  string
		build func(string, ...header) []byte
		want  seen
	}{{
		"IPv4",
		over4,
		datagram4(0, m),
	}, {
		"IPv6",
		over6,
		datagram6(0, m),
	}}
	for _, o := range outer {
		for _, tunnel := range tunnels {
			for _, inner := range inners {
				before := slices.Concat(o.all, tunnel.all)
				rows = append(
					rows,
					captureRow{
						tunnel.name + " " + o.name + ": " + inner.name,
						ethernet,
						each(inner.build(m, before...)),
						[]seen{inner.want},
						"",
					},
				)
			}
		}
	}
	vxlan := slices.Concat(mirror4, []header{udpHeader(50000, 4789), vxlanHeader(7), ethernetHeader()})
	mirrored := append(slices.Clone(vxlan), ipv4Header())
	long := request("INVITE", "long", strings.Repeat("a=mirrored\r\n", 100))
	inside := fragments(mirrored, []header{udpHeader(5060, 5060), data(long)}, 5, 800)
	around := fragments(
		mirror4,
		append(slices.Clone(vxlan[2:]), ipv4Header(), udpHeader(5060, 5060), data(long)),
		6,
		800,
	)
	other := slices.Clone(mirrored)
	other[3] = vxlanHeader(8)
	stream := request("INVITE", "stream", "")
	segment := func(seq uint32, text string) []byte {
		return build(append(mirrored, tcpHeader(40000, 5060, seq, "P"), data(text))...)
	}
	rows = append(rows,
		captureRow{"fragments inside a tunnel", ethernet, each(inside[1], inside[0]), []seen{datagram4(1, long)}, ""},
		captureRow{"a tunnel in fragments", ethernet, each(around[1], around[0]), []seen{datagram4(1, long)}, ""},
		captureRow{"fragments inside a tunnel in fragments", ethernet,
			each(
				slices.Concat(
					fragments(mirror4, append(slices.Clone(vxlan[2:]), packet4(inside[0])), 6, 400),
					fragments(mirror4, append(slices.Clone(vxlan[2:]), packet4(inside[1])), 7, 400),
				)...,
			),
			[]seen{datagram4(3, long)}, ""},
		captureRow{
			"the same id in another VXLAN",
			ethernet,
			each(inside[0], fragments(other, []header{udpHeader(5060, 5060), data(long)}, 5, 800)[1]),
			nil,
			"fragment 2",
		},
		captureRow{"a stream inside a tunnel", ethernet,
			each(segment(1, stream[:50]), segment(51, stream[50:])), []seen{{
				tcp,
				client.src,
				client.dst,
				1,
				0,
				stream,
			}}, ""},
		captureRow{
			"PPTP's GRE is another protocol",
			ethernet,
			each(
				build(
					ethernetHeader(),
					ipv4Header(),
					octets47(0x30, 0x01, 0x88, 0x0b, 0, 4, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4),
				),
			),
			nil,
			"",
		},
		captureRow{
			"VXLAN cut by the mirror",
			ethernet,
			each(build(append(slices.Clone(vxlan), packet4(append(make([]byte, tunnelled), over4(m)[:100]...)))...)),
			nil,
			"truncated 1",
		},
	)
	return rows
}

const tunnelled = 14 + 20 + 8 + 8 + 14 // bytes before the inner IP header in VXLAN over IPv4

// packet4 is the inner packet of a frame of VXLAN over IPv4, as it is.
func packet4(frame []byte) header {
	h := octets(frame[tunnelled:]...)
	h.etherType = layers.EthernetTypeIPv4
	return h
}

// octets47 is named as GRE.
func octets47(b ...byte) header {
	h := octets(b...)
	h.protocol = layers.IPProtocolGRE
	return h
}

// startLines are start lines, and what is none, as contract and RFC 3261 §7 have them.
var startLines = []struct {
	line string
	sip  bool
}{
	{"INVITE sip:bob@example.org SIP/2.0\r\n", true},
	{"INVITE sip:bob@example.org SIP/2.0\n", true},
	{"INVITE sip:bob@example.org sip/2.0\r\n", true},
	{"INVITE sip:bob@example.org SiP/2.0\r\nVia: x\r\n\r\n", true},
	{"invite sip:bob@example.org SIP/2.0\r\n", true},
	{"X sip:bob@example.org SIP/2.0\r\n", true},
	{"A-.!%*_+`'~9 sip:a SIP/2.0\r\n", true},
	{"911 sip:a SIP/2.0\r\n", true},
	{"SIP sip:a SIP/2.0\r\n", true},
	{"OPTIONS tel:+1-201-555-0123 SIP/2.0\r\n", true},
	{"OPTIONS * SIP/2.0\r\n", true},
	{"OPTIONS sip:a b c SIP/2.0\r\n", true},
	{"OPTIONS sip:\xff\x00\x80 SIP/2.0\r\n", true},
	{"OPTIONS SIP/2.0 SIP/2.0\r\n", true},
	{"OPTIONS " + strings.Repeat("u", 10000) + " SIP/2.0\r\n", true},
	{"SIP/2.0 200 OK\r\n", true},
	{"SIP/2.0 200 OK\n", true},
	{"sip/2.0 200 OK\r\n", true},
	{"SIP/2.0 200 \r\n", true},
	{"SIP/2.0 200\r\n", true},
	{"SIP/2.0 200\n", true},
	{"SIP/2.0 999 \xff\x00 \r\n", true},
	{"SIP/2.0 180 Ringing SIP/2.0\r\n", true},
	{"", false},
	{"\r\n", false},
	{"INVITE sip:bob@example.org SIP/2.0", false},
	{"INVITE sip:bob@example.org SIP/2.0\r", false},
	{"INVITE sip:bob@example.org SIP/2.0 \r\n", false},
	{"INVITE sip:bob@example.org SIP/2.0\r\r\n", false},
	{"INVITE sip:bob@example.org SIP/2.1\r\n", false},
	{"INVITE sip:bob@example.org SIP/2.00\r\n", false},
	{"INVITE sip:bob@example.org XSIP/2.0\r\n", false},
	{"INVITE sip:bob@example.org\tSIP/2.0\r\n", false},
	{"INVITE SIP/2.0\r\n", false},
	{"INVITE  SIP/2.0\r\n", false},
	{"INVITE\r\n", false},
	{" INVITE sip:bob@example.org SIP/2.0\r\n", false},
	{"INV(ITE sip:bob@example.org SIP/2.0\r\n", false},
	{"INVITE: sip:bob@example.org SIP/2.0\r\n", false},
	{"INV\x80TE sip:bob@example.org SIP/2.0\r\n", false},
	{"INV\xc3\x89TE sip:bob@example.org SIP/2.0\r\n", false},
	{"\x00INVITE sip:bob@example.org SIP/2.0\r\n", false},
	{"SIP/2.0 20 OK\r\n", false},
	{"SIP/2.0 2000 OK\r\n", false},
	{"SIP/2.0 200OK\r\n", false},
	{"SIP/2.0 2x0 OK\r\n", false},
	{"SIP/2.0  200 OK\r\n", false},
	{"SIP/2.0 200\tOK\r\n", false},
	{"SIP/2.0\r\n", false},
	{"SIP/2.0", false},
	{"SIP/1.0 200 OK\r\n", false},
	{"SIP/2.0 200 OK", false},
	{"HTTP/1.1 200 OK\r\n", false},
	{"GET / HTTP/1.1\r\n", false},
	{"DESCRIBE rtsp://example.org RTSP/1.0\r\n", false},
	{"SSH-2.0-OpenSSH_9.2\r\n", false},
	{"MSRP d93kswow SEND\r\n", false},
}

// TestStartLine also tests that no prefix of a start line is taken for something else: a stream may end anywhere.
func TestStartLine(t *testing.T) {
	for _, row := range startLines {
		if got := startLine([]byte(row.line)); (got == yes) != row.sip {
			t.Errorf("%.80q: %d, want SIP: %v", row.line, got, row.sip)
		}
		line, _, _ := strings.Cut(row.line, "\n")
		for i := range len(line) {
			if got := startLine([]byte(line[:i])); row.sip && got != maybe {
				t.Errorf("%.80q: %d, want that more may make it SIP", line[:i], got)
			} else if got == yes {
				t.Errorf("%.80q: it has no end yet", line[:i])
			}
		}
	}
}

// datagramRows: the payload is the message, byte for byte.
func datagramRows() (rows []captureRow) {
	for i, line := range startLines {
		row := captureRow{
			name:   fmt.Sprintf("datagram, start line %d", i),
			link:   ethernet,
			frames: each(over4(line.line, ethernetHeader())),
		}
		if line.sip {
			row.want = []seen{datagram4(0, line.line)}
		}
		rows = append(rows, row)
	}
	add := func(name, raw string) {
		rows = append(
			rows,
			captureRow{
				"datagram: " + name,
				ethernet,
				each(over4(raw, ethernetHeader())),
				[]seen{datagram4(0, raw)},
				"",
			},
		)
	}
	m := request("INVITE", "datagram", "v=0\r\n")
	add("CRLFs before it are part of it", "\r\n\r\n"+m)
	add("Content-Length too small", strings.Replace(m, "Content-Length: 5", "Content-Length: 1", 1))
	add("Content-Length too large", strings.Replace(m, "Content-Length: 5", "Content-Length: 9999", 1))
	add("Content-Length negative", strings.Replace(m, "Content-Length: 5", "Content-Length: -1", 1))
	add("no Content-Length", strings.Replace(m, "Content-Length: 5\r\n", "", 1))
	add("no end of headers", "INVITE sip:a SIP/2.0\r\nVia: x")
	add("a folded first header", "INVITE sip:a SIP/2.0\r\n folded\r\nVia: x\r\n\r\n")
	add("every byte", string(binaryMessage()))
	add("two messages are one", m+m)
	add("bytes behind the body", m+"\x00\x00\x00")
	ports := build(ethernetHeader(), ipv4Header(), udpHeader(1234, 4321), data(m))
	return append(rows,
		captureRow{"datagram: any port", ethernet, each(ports), []seen{{
			udp,
			"192.0.2.1:1234",
			"198.51.100.2:4321",
			0,
			0,
			m,
		}}, ""},
		captureRow{"datagram: SIP on the port of a tunnel", ethernet, each(
			build(ethernetHeader(), ipv4Header(), udpHeader(5060, 4789), data(m)),
		),
			[]seen{{
				udp,
				src4,
				"198.51.100.2:4789",
				0,
				0,
				m,
			}}, ""},
		captureRow{
			"datagram: a retransmission is another message",
			ethernet,
			each(over4(m, ethernetHeader()), over4(m, ethernetHeader())),
			[]seen{datagram4(0, m), datagram4(1, m)},
			"",
		},
		captureRow{"datagram: IPv4 addresses mapped into IPv6 stay IPv6", ethernet,
			each(
				build(ethernetHeader(), ipv6Header("2001:db8::ffff:1:2", "fe80::1"), udpHeader(5060, 5061), data(m)),
			), []seen{{
				udp,
				"[2001:db8::ffff:1:2]:5060",
				"[fe80::1]:5061",
				0,
				0,
				m,
			}}, ""})
}

// truncatedRows: the snap length has cut the frame.
func truncatedRows() (rows []captureRow) {
	m, next := request("INVITE", "cut", strings.Repeat("a=cut\r\n", 50)), request("BYE", "next", "")
	whole := over4(m, ethernetHeader())
	add := func(name string, counts string, want []seen, frames ...caught) {
		for i := range frames {
			frames[i].at = time.Duration(i) * time.Millisecond
		}
		rows = append(rows, captureRow{"cut: " + name, ethernet, frames, want, counts})
	}
	all := func(frame []byte) caught { return caught{data: frame} }
	add("a datagram in its body", "truncated 1", nil, cutTo(200, whole))
	add("a datagram by one byte", "truncated 1", nil, cutTo(len(whole)-1, whole))
	add("a datagram in its start line", "truncated 1", nil, cutTo(14+20+8+9, whole))
	add("a datagram in its Ethernet header", "truncated 1", nil, cutTo(10, whole))
	add("a datagram in its IPv4 header", "truncated 1", nil, cutTo(14+15, whole))
	add("a datagram in its UDP header", "truncated 1", nil, cutTo(14+20+6, whole))
	add(
		"a datagram in an IPv6 extension header",
		"truncated 1",
		nil,
		cutTo(14+40+3, build(ethernetHeader(), ipv6Header(), extensionHeader(0, 8), udpHeader(5060, 5060), data(m))),
	)
	add("IPv6", "truncated 1", nil, cutTo(200, over6(m, ethernetHeader())))
	add("only a trailer", "", []seen{datagram4(0, m)}, cutTo(len(whole), append(slices.Clone(whole), 0, 0, 0, 0)))
	add("RTP", "", nil, cutTo(100, over4("\x80\x00"+strings.Repeat("rtp", 100), ethernetHeader())))
	add("DNS", "", nil, cutTo(60, over4("\x12\x34\x01\x00\x00\x01"+strings.Repeat("\x00", 100), ethernetHeader())))
	add("ARP", "", nil, cutTo(20, build(ethernetHeader(), arp())))
	add("ICMP", "", nil, cutTo(50, build(ethernetHeader(), ipv4Header(), icmp(), data(m))))
	add(
		"in a tunnel",
		"truncated 1",
		nil,
		cutTo(
			200,
			over4(
				m,
				ethernetHeader(),
				ipv4Header("10.0.0.1", "10.0.0.2"),
				udpHeader(1, 4789),
				vxlanHeader(1),
				ethernetHeader(),
			),
		),
	)
	add(
		"a tunnel in its header",
		"truncated 1",
		nil,
		cutTo(
			46,
			over4(
				m,
				ethernetHeader(),
				ipv4Header("10.0.0.1", "10.0.0.2"),
				udpHeader(1, 4789),
				vxlanHeader(1),
				ethernetHeader(),
			),
		),
	)
	pieces := fragments([]header{ethernetHeader(), ipv4Header()}, []header{udpHeader(5060, 5060), data(m)}, 7, 200)
	add("a first fragment", "truncated 1", nil, cutTo(100, pieces[0]), all(pieces[1]))
	add("a last fragment", "truncated 1", nil, all(pieces[0]), cutTo(100, pieces[1]))
	add("both fragments", "truncated 1", nil, cutTo(100, pieces[0]), cutTo(100, pieces[1]))
	add("fragments in the other order", "truncated 1", nil, cutTo(100, pieces[1]), all(pieces[0]))
	chunk := build(ethernetHeader(), ipv4Header(), sctpHeader(5060, 5060), dataChunk(3, next), dataChunk(3, m))
	add("SCTP in its second message", "truncated 1", []seen{{
		sctp,
		src4,
		dst4,
		0,
		0,
		next,
	}}, cutTo(len(chunk)-100, chunk))
	add("SCTP in its header", "truncated 1", nil, cutTo(14+20+10, chunk))
	segment := client.segment(0, "P", m)
	following := client.segment(len(m), "P", next)
	add("a segment", "truncated 1", nil, cutTo(200, segment))
	add(
		"a segment, and the stream goes on",
		"truncated 1",
		[]seen{fromClient(1, 0, next)},
		cutTo(200, segment),
		all(following),
	)
	add("a segment in its header", "truncated 1", nil, cutTo(14+20+10, segment))
	add("a segment in its start line", "truncated 1", nil, cutTo(14+20+20+7, segment))
	add(
		"the second half of a message",
		"truncated 1",
		[]seen{fromClient(2, 0, next)},
		all(client.segment(0, "P", m[:100])),
		cutTo(100, client.segment(100, "P", m[100:])),
		all(following),
	)
	two := client.segment(0, "P", next+m)
	add("a segment behind a whole message", "truncated 1", []seen{fromClient(0, 0, next)}, cutTo(len(two)-100, two))
	add(
		"a segment that is no SIP",
		"",
		nil,
		cutTo(100, client.segment(0, "P", "\x17\x03\x03\x01\x00"+strings.Repeat("tls", 100))),
	)
	return rows
}

func arp() header {
	h := octets(0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 198, 51, 100, 2)
	h.etherType = layers.EthernetTypeARP
	return h
}

func icmp() header {
	h := octets(3, 3, 0, 0, 0, 0, 0, 0)
	h.protocol = layers.IPProtocolICMPv4
	return h
}

// sctpRows: one message a DATA chunk.
func sctpRows() (rows []captureRow) {
	a, b := request("INVITE", "a", "v=0\r\n"), response("200 OK", "b", "")
	add := func(name, counts string, want []string, chunks ...header) {
		row := captureRow{name: "SCTP: " + name, link: ethernet, counts: counts}
		row.frames = each(build(append([]header{ethernetHeader(), ipv4Header(), sctpHeader(5060, 5060)}, chunks...)...))
		for i, raw := range want {
			row.want = append(row.want, seen{sctp, src4, dst4, 0, i, raw})
		}
		rows = append(rows, row)
	}
	const whole = 3
	sack := octets(3, 0, 0, 16, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0)
	add("a message", "", []string{a}, dataChunk(whole, a))
	add("several messages", "", []string{a, b, a}, dataChunk(whole, a), dataChunk(whole, b), dataChunk(whole, a))
	add("behind a SACK", "", []string{a, b}, sack, dataChunk(whole, a), sack, dataChunk(whole, b))
	add("unordered, and acknowledged at once", "", []string{a, b}, dataChunk(whole|4, a), dataChunk(whole|8, b))
	for size := range 4 {
		text := "OPTIONS sip:a SIP/2.0\r\n\r\n" + strings.Repeat("x", size)
		add(
			fmt.Sprintf("padding, %d bytes", len(text)),
			"",
			[]string{text, b},
			dataChunk(whole, text),
			dataChunk(whole, b),
		)
	}
	add("CRLF before the message", "", []string{"\r\n" + a}, dataChunk(whole, "\r\n"+a))
	add("Content-Length doesn't matter", "", []string{a + "more"}, dataChunk(whole, a+"more"))
	add("not SIP", "", []string{a}, dataChunk(whole, "\x01\x00\x08M3UA"), dataChunk(whole, a))
	add("empty", "", []string{a}, dataChunk(whole, ""), dataChunk(whole, a))
	add(
		"a message in three chunks",
		"fragment 1",
		[]string{b},
		dataChunk(2, a[:20]),
		dataChunk(0, a[20:40]),
		dataChunk(1, a[40:]),
		dataChunk(whole, b),
	)
	add("the end of a message", "", nil, dataChunk(1, a))
	add(
		"a chunk without a length",
		"packets_invalid 1",
		[]string{a},
		dataChunk(whole, a),
		octets(0, 3, 0, 0, 0, 0, 0, 0),
		dataChunk(whole, b),
	)
	add(
		"a chunk longer than the packet",
		"packets_invalid 1",
		[]string{a},
		dataChunk(whole, a),
		octets(0, 3, 255, 0, 0, 0, 0, 0),
		dataChunk(whole, b),
	)
	add("handshake", "", nil, octets(1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1))
	rows = append(rows, captureRow{"SCTP: IPv6", ethernet, each(
		build(ethernetHeader(), ipv6Header(), sctpHeader(5060, 5060), dataChunk(whole, a)),
	), []seen{{
		sctp,
		src6,
		dst6,
		0,
		0,
		a,
	}}, ""})
	return rows
}

// streamRows: one direction of a connection, most of them.
func streamRows() (rows []captureRow) {
	a, b, c := request("INVITE", "a", "v=0\r\n"), response("180 Ringing",
		"b", ""), request("BYE", "c", "x=1\r\ny=2\r\n")
	all := a + b + c
	add := func(name, counts string, want []seen, frames ...[]byte) {
		rows = append(rows, captureRow{"stream: " + name, ethernet, each(frames...), want, counts})
	}
	timed := func(name, counts string, want []seen, at []time.Duration, frames ...[]byte) {
		row := captureRow{"stream: " + name, ethernet, each(frames...), want, counts}
		for i := range at {
			row.frames[i].at = at[i]
		}
		rows = append(rows, row)
	}
	at := func(position int, text string) []byte { return client.segment(position, "P", text) }
	syn, synAck := connection{
		client.src,
		client.dst,
		client.first - 1,
	}.segment(0, "S", ""), connection{server.src, server.dst, server.first - 1}.segment(0, "S", "")
	add("a message", "", []seen{fromClient(0, 0, a)}, at(0, a))
	add("with its handshake", "", []seen{fromClient(3, 0, a)}, syn, synAck, client.segment(0, "", ""), at(0, a))
	add(
		"data in the SYN",
		"",
		[]seen{fromClient(0, 0, a), fromClient(1, 0, b)},
		connection{client.src, client.dst, client.first - 1}.segment(0, "S", a),
		at(len(a), b),
	)
	add(
		"many messages in a segment",
		"",
		[]seen{fromClient(0, 0, a), fromClient(0, 1, b), fromClient(0, 2, c)},
		at(0, all),
	)
	add(
		"a message in many segments",
		"",
		[]seen{fromClient(len(a)-1, 0, a)},
		client.segments(a, sizes(1, len(a))...)...,
	)
	add(
		"the end of one and the beginning of another",
		"",
		[]seen{fromClient(1, 0, a), fromClient(2, 0, b)},
		client.segments(a+b, len(a)-3, len(a)+9)...,
	)
	add(
		"acknowledgements between",
		"",
		[]seen{fromClient(3, 0, a)},
		at(0, a[:30]),
		client.segment(30, "", ""),
		server.segment(0, "", ""),
		at(30, a[30:]),
	)
	add("both directions", "", []seen{{
		tcp,
		server.src,
		server.dst,
		2,
		0,
		b,
	}, fromClient(3, 0, a), fromClient(3, 1, c)},
		at(0, a[:30]), server.segment(0, "P", b[:40]), server.segment(40, "P", b[40:]), at(30, a[30:]+c))
	six := connection{"[2001:db8::1]:40000", "[2001:db8::2]:5060", 5}
	add("IPv6", "", []seen{{
		tcp,
		six.src,
		six.dst,
		1,
		0,
		a,
	}}, six.segments(a, 70)...)

	add("joined in the middle of headers", "", []seen{fromClient(1, 0, b)}, at(50, a[50:]), at(len(a), b))
	add(
		"joined in the middle, the next one in the same segment",
		"",
		[]seen{fromClient(0, 0, b), fromClient(1, 0, c)},
		at(50, a[50:]+b),
		at(len(a+b), c),
	)
	add("joined in the middle of a line", "", []seen{fromClient(1, 0, b)}, at(40, a[40:60]), at(60, a[60:]+b))
	add("joined in the end of headers", "", []seen{fromClient(0, 0, b)}, at(len(a)-7, a[len(a)-7:]+b))
	add(
		"joined in the middle of a body in two segments",
		"",
		[]seen{fromClient(1, 0, b)},
		at(len(a)-5, "v=0"),
		at(len(a)-2, "\r\n"+b),
	)
	add("joined before a keep-alive", "", []seen{fromClient(1, 0, a)}, at(-4, "\r\n\r\n"), at(0, a))

	add(
		"reordered",
		"",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, b), fromClient(2, 1, c)},
		at(0, a),
		at(len(a+b), c),
		at(len(a), b),
	)
	add(
		"reordered in a message",
		"",
		[]seen{fromClient(3, 0, all[:len(a)]), fromClient(3, 1, b), fromClient(3, 2, c)},
		at(0, all[:40]),
		at(200, all[200:]),
		at(100, all[100:200]),
		at(40, all[40:100]),
	)
	add("the first two segments are swapped", "", []seen{fromClient(1, 0, a)}, at(60, a[60:]), at(0, a[:60]))
	add(
		"the first two segments are swapped behind the handshake",
		"",
		[]seen{fromClient(3, 0, a)},
		syn,
		synAck,
		at(60, a[60:]),
		at(0, a[:60]),
	)
	add(
		"retransmitted",
		"",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, b)},
		at(0, a),
		at(0, a),
		at(len(a), b),
		at(len(a), b),
		at(0, a),
	)
	add(
		"retransmitted in a larger segment",
		"",
		[]seen{fromClient(2, 0, a), fromClient(2, 1, b)},
		at(0, a[:40]),
		at(0, a[:40]),
		at(0, a+b),
		at(40, a[40:]),
	)
	add(
		"retransmitted while waiting",
		"",
		[]seen{fromClient(0, 0, a), fromClient(4, 0, b), fromClient(4, 1, c)},
		at(0, a),
		at(len(a+b), c),
		at(len(a+b), c),
		at(len(a)+10, b[10:]+c[:5]),
		at(len(a), b),
	)
	add(
		"partial overlap",
		"",
		[]seen{fromClient(1, 0, a), fromClient(2, 0, b), fromClient(2, 1, c)},
		at(0, a[:50]),
		at(20, all[20:len(a)+30]),
		at(40, all[40:]),
	)
	add(
		"overlap of what waits",
		"",
		[]seen{fromClient(4, 0, a), fromClient(4, 1, b), fromClient(4, 2, c)},
		at(0, all[:20]),
		at(200, all[200:300]),
		at(150, all[150:260]),
		at(140, all[140:]),
		at(20, all[20:145]),
	)

	lost := []seen{fromClient(0, 0, a), fromClient(1, 0, c), fromClient(2, 0, a)}
	timed(
		"a lost segment",
		"stream_gap 1",
		lost,
		[]time.Duration{0, time.Second, 4 * time.Second},
		at(0, a+b[:20]),
		at(len(a)+60, b[60:]+c),
		at(len(all), a),
	)
	timed(
		"a lost message",
		"stream_gap 1",
		lost,
		[]time.Duration{0, time.Second, 4 * time.Second},
		at(0, a),
		at(len(a+b), c),
		at(len(all), a),
	)
	timed("a lost segment is filled in time", "", []seen{
		fromClient(0, 0, a),
		fromClient(2, 0, b),
		fromClient(2, 1, c),
		fromClient(3, 0, a),
	},
		[]time.Duration{
			0,
			time.Second,
			2900 * time.Millisecond,
			4 * time.Second,
		}, at(0, a+b[:20]), at(len(a)+60, b[60:]+c), at(len(a)+20, b[20:60]), at(len(all), a))
	timed("a lost segment that comes too late", "stream_gap 1", lost, []time.Duration{
		0,
		time.Second,
		4 * time.Second,
		5 * time.Second,
	},
		at(0, a+b[:20]), at(len(a)+60, b[60:]+c), at(len(all), a), at(len(a)+20, b[20:60]))
	timed("two gaps", "stream_gap 2", []seen{
		fromClient(0, 0, a),
		fromClient(1, 0, c),
		fromClient(2, 0, b),
		fromClient(3, 0, a),
	},
		[]time.Duration{0, time.Second, 1100 * time.Millisecond, 9 * time.Second},
		at(0, a+b[:20]), at(len(a)+60, b[60:]+c+a[:10]), at(len(all)+50, a[50:]+b), at(len(all+a+b), a))
	add(
		"a lost segment at the end of the file",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a), fromClient(1, 0, c)},
		at(0, a+b[:20]),
		at(len(a)+60, b[60:]+c),
	)
	add("the file ends in a message", "stream_gap 1", []seen{fromClient(0, 0, a)}, at(0, a+b[:20]))
	add("the file ends in a keep-alive", "", []seen{fromClient(0, 0, a)}, at(0, a), at(len(a), "\r\n\r\n"))
	gap := [][]byte{at(0, a+b[:20])}
	big := sized(30000)
	wanted := []seen{fromClient(0, 0, a)}
	for i := range 24 {
		gap = append(gap, at(len(a+b)+i*len(big), big))
		wanted = append(wanted, fromClient(i+1, 0, big))
	}
	add("a lost segment, and much that waits for it", "stream_gap 1", wanted, gap...)

	for _, first := range []uint32{0xffffffff, 0xffffffff - uint32(len(a)), 0xffffff80, 0} {
		wrapping := connection{client.src, client.dst, first}
		pieces := wrapping.segments(all, 40, 150, 300)
		add(
			fmt.Sprintf("sequence numbers wrap from %#x", first),
			"",
			[]seen{fromClient(3, 0, a), fromClient(3, 1, b), fromClient(3, 2, c)},
			pieces[0],
			pieces[2],
			pieces[3],
			pieces[1],
		)
	}

	add("keep-alives", "", []seen{fromClient(0, 0, a), fromClient(2, 0, b), fromClient(4, 0, c)},
		at(0, a), at(len(a), "\r\n\r\n"), at(len(a)+
			4, "\r\n\r\n"+b), at(len(a+b)+8, "\r\n"), at(len(a+b)+10, c+"\r\n\r\n"))
	add(
		"a keep-alive in pieces",
		"",
		[]seen{fromClient(0, 0, a), fromClient(3, 0, b)},
		at(0, a),
		at(len(a), "\r"),
		at(len(a)+1, "\n\r"),
		at(len(a)+3, "\n"+b),
	)
	add(
		"1-byte probes",
		"",
		[]seen{fromClient(0, 0, a), fromClient(4, 0, b)},
		at(0, a),
		at(len(a)-1, "\x00"),
		at(len(a)-1, "x"),
		at(len(a)-1, "\n"),
		at(len(a), b),
	)
	add(
		"empty probes",
		"",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, b)},
		at(0, a),
		client.segment(len(a)-1, "", ""),
		at(len(a), b),
	)
	add(
		"1-byte probes of a connection that isn't known",
		"",
		[]seen{fromClient(2, 0, a)},
		at(-1, "\x00"),
		at(-1, "\x00"),
		at(0, a),
	)
	add(
		"1-byte probes in the middle of a message",
		"",
		[]seen{fromClient(2, 0, a)},
		at(0, a[:40]),
		at(39, "\x00"),
		at(40, a[40:]),
	)

	again := connection{client.src, client.dst, 90000000}
	add(
		"another connection on the same ports",
		"",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, b)},
		at(0, a),
		connection{client.src, client.dst, 89999999}.segment(0, "S", ""),
		again.segment(0, "P", b),
	)
	add(
		"another connection in the middle of a message",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, c)},
		at(0, a+b[:20]),
		connection{client.src, client.dst, 89999999}.segment(0, "S", ""),
		again.segment(0, "P", c),
	)
	add(
		"another connection, its SYN not seen",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a), fromClient(1, 0, c)},
		at(0, a+b[:20]),
		again.segment(0, "P", c),
	)
	add("another connection, lower numbers", "stream_gap 1", []seen{{
		tcp,
		again.src,
		again.dst,
		0,
		0,
		a,
	}, fromClient(1, 0, c)}, again.segment(0, "P", a+b[:20]), at(0, c))
	add(
		"another connection, near numbers",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, c)},
		at(0, a+b[:20]),
		connection{client.src, client.dst, client.first + 4999}.segment(0, "S", ""),
		at(5000, c),
	)
	add(
		"another connection, its SYN twice",
		"",
		[]seen{fromClient(0, 0, a), fromClient(3, 0, c)},
		at(0, a),
		connection{client.src, client.dst, 89999999}.segment(0, "S", ""),
		connection{client.src, client.dst, 89999999}.segment(0, "S", ""),
		again.segment(0, "P", c),
	)
	add("FIN behind a message", "", []seen{fromClient(0, 0, a)}, client.segment(0, "FP", a))
	add(
		"FIN in a message",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a)},
		at(0, a+b[:20]),
		client.segment(len(a)+20, "F", ""),
	)
	add("FIN with the first half of a message", "stream_gap 1", nil, client.segment(0, "FP", a[:50]))
	add(
		"RST in a message",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a)},
		at(0, a+b[:20]),
		client.segment(len(a)+20, "R", ""),
	)
	add(
		"FIN before what it ends",
		"",
		[]seen{fromClient(0, 0, a), fromClient(2, 0, b)},
		at(0, a+b[:20]),
		client.segment(len(a)+60, "FP", b[60:]),
		at(len(a)+20, b[20:60]),
	)
	add(
		"FIN, and its retransmission",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a)},
		at(0, a+b[:20]),
		client.segment(len(a)+20, "F", ""),
		client.segment(len(a)+20, "F", ""),
	)
	add(
		"FIN, then another connection",
		"",
		[]seen{fromClient(0, 0, a), fromClient(3, 0, b)},
		at(0, a),
		client.segment(len(a), "F", ""),
		connection{client.src, client.dst, 89999999}.segment(0, "S", ""),
		again.segment(0, "P", b),
	)

	timed(
		"what an earlier connection left behind",
		"",
		[]seen{fromClient(1, 0, a), fromClient(2, 0, b)},
		[]time.Duration{0, 10 * time.Second, 10001 * time.Millisecond},
		at(5000, "\x00\r\n"),
		at(0, a),
		at(len(a), b),
	)
	timed(
		"idle",
		"",
		[]seen{fromClient(0, 0, a), fromClient(1, 0, b)},
		[]time.Duration{0, time.Hour},
		at(0, a),
		at(len(a), b),
	)
	timed(
		"idle in a message",
		"stream_gap 1",
		[]seen{fromClient(0, 0, a), fromClient(1, 0, c)},
		[]time.Duration{0, time.Minute},
		at(0, a+b[:20]),
		at(len(a)+20, b[20:]+c),
	)
	timed(
		"slow in a message",
		"",
		[]seen{fromClient(3, 0, a)},
		[]time.Duration{0, 20 * time.Second, 40 * time.Second, time.Minute},
		client.segments(a, 20, 40, 60)...,
	)
	timed("idle, another flow makes it old", "stream_gap 1", []seen{{
		tcp,
		six.src,
		six.dst,
		1,
		0,
		b,
	}}, []time.Duration{0, 31 * time.Second}, at(0, a[:50]), six.segment(0, "P", b))

	most := sized(maxMessage)
	add(
		"the largest message",
		"",
		[]seen{fromClient(46, 0, most), fromClient(46, 1, b)},
		client.segments(most+b, append(sizes(1448, len(most)-100), len(most)-10)...)...,
	)
	add("a byte more than the largest message, announced", "oversize 1", []seen{fromClient(46, 0, b)},
		append(client.segments(sizedMore(), sizes(1448, maxMessage+1)...), at(maxMessage+1, b))...)
	endless := "INVITE sip:a SIP/2.0\r\n" + strings.Repeat("X: y\r\n", 12000)
	add("headers without an end, up to an empty line", "oversize 1", []seen{fromClient(51, 0, c)},
		append(client.segments(endless, sizes(1448, len(endless))...), at(len(endless), b), at(len(endless+b), c))...)
	add("headers without an end, the last line's end in another segment", "oversize 1", []seen{fromClient(51, 0, c)},
		append(client.segments(endless+"x", sizes(1448, len(endless+"x"))...),
			at(len(endless+"x"), "\n"+b), at(len(endless+"x\n"+b), c))...)
	add(
		"a line without an end",
		"",
		[]seen{fromClient(0, 0, a), fromClient(101, 0, b)},
		slices.Concat(
			[][]byte{at(0, a)},
			connection{
				client.src,
				client.dst,
				client.first + uint32(len(a)),
			}.segments(strings.Repeat("x", 144800), sizes(1448, 144800)...),
			[][]byte{at(len(a)+144800, "\r\n"+b)},
		)...,
	)
	add(
		"an endless Request-URI",
		"",
		[]seen{fromClient(0, 0, a), fromClient(101, 0, b)},
		slices.Concat(
			[][]byte{at(0, a)},
			connection{client.src, client.dst, client.first + uint32(len(a))}.segments(
				"OPTIONS "+strings.Repeat("x", 144792),
				sizes(1448, 144800)...,
			),
			[][]byte{at(len(a)+144800, "\r\n"+b)},
		)...,
	)
	add(
		"other lines between",
		"",
		[]seen{fromClient(0, 0, a), fromClient(0, 1, b)},
		at(0, a+"what is this\r\n\x00\xff\r\n"+b),
	)
	add("another protocol first", "", []seen{fromClient(1, 0, a)}, at(0, "\x16\x03\x01 no\r\n"), at(9, a))
	add(
		"a message in a body stays there",
		"",
		[]seen{fromClient(1, 0, request("NOTIFY", "n", b)), fromClient(1, 1, c)},
		client.segments(request("NOTIFY", "n", b)+c, 120)...,
	)
	// The way that the other end sees it: VLANs are different networks.
	tagged := func(id uint16, position int, text string) []byte {
		return build(
			ethernetHeader(),
			vlanHeader(0x8100, id),
			ipv4Header(),
			tcpHeader(40000, 5060, 1000+uint32(position), "P"),
			data(text),
		)
	}
	add(
		"the same addresses in two VLANs",
		"",
		[]seen{fromClient(2, 0, a), fromClient(3, 0, c)},
		tagged(1, 0, a[:50]),
		tagged(2, 0, c[:60]),
		tagged(1, 50, a[50:]),
		tagged(2, 60, c[60:]),
	)
	return rows
}

// sizedMore is a message that is one byte too long.
func sizedMore() string {
	m := sized(maxMessage)
	return strings.Replace(m[:len(m)-2], "Call-ID: ", "Call-ID: x", 1) + "\r\n" // the next start line must begin a line
}

// lengthRows: every form of Content-Length, in a stream. The body has five bytes.
func lengthRows() (rows []captureRow) {
	next := request("BYE", "next", "")
	skips := []string{"Content-Length: 65535\r\n", "Content-Length: 65536\r\n"} // what follows, as it announces
	for _, row := range []struct{ fields, counts string }{
		{"Content-Length: 5\r\n", ""},
		{"content-length:5\r\n", ""},
		{"CONTENT-LENGTH:  5\r\n", ""},
		{"l: 5\r\n", ""},
		{"L:5\r\n", ""},
		{"Content-Length : 5\r\n", ""},
		{"Content-Length\t \t:\t5\t \r\n", ""},
		{"l : 5\r\n", ""},
		{"Content-Length:\r\n 5\r\n", ""},
		{"Content-Length: 5\r\n \r\n", ""},
		{"Content-Length:\r\n\t \r\n\t5\r\n", ""},
		{"Content-Length:" + strings.Repeat("\r\n ", 64) + "5\r\n", ""},
		{"Content-Length: 5" + strings.Repeat("\r\n ", 65) + "\r\n", "bad_length 1"},
		{"Content-Length: 5\r\nContent-Length:\r\n 5\r\n", "bad_length 1"},
		{"Content-Length: 5\n", ""},
		{"Content-Length: 00005\r\n", ""},
		{"Content-Length: 0000000000000000000000000000005\r\n", ""},
		{"Content-Length: 5\r\nContent-Length: 5\r\n", ""},
		{"l: 5\r\nContent-Length: 5\r\n", ""},
		{"X-Content-Length: 9\r\nContent-Length: 5\r\nContent-Lengthy: 7\r\n", ""},
		{"Subject: x\r\n Content-Length: 9\r\nContent-Length: 5\r\n", ""},
		{"", "bad_length 1"},
		{"Content-Length: -1\r\n", "bad_length 1"},
		{"Content-Length: -5\r\n", "bad_length 1"},
		{"Content-Length: +5\r\n", "bad_length 1"},
		{"Content-Length:\r\n", "bad_length 1"},
		{"Content-Length\r\n", "bad_length 1"},
		{"Content-Length: five\r\n", "bad_length 1"},
		{"Content-Length: 5x\r\n", "bad_length 1"},
		{"Content-Length: 5.0\r\n", "bad_length 1"},
		{"Content-Length: 0x5\r\n", "bad_length 1"},
		{"Content-Length: 5_0\r\n", "bad_length 1"},
		{"Content-Length: 5 5\r\n", "bad_length 1"},
		{"Content-Length: 5;x=y\r\n", "bad_length 1"},
		{"Content-Length: \"5\"\r\n", "bad_length 1"},
		{"Content-Length: \xef\xbc\x95\r\n", "bad_length 1"},
		{"Content-Length: 5\x00\r\n", "bad_length 1"},
		{"Content-Length: 5\r\n 5\r\n", "bad_length 1"},
		{"Content-Length: 5\r\nContent-Length: 6\r\n", "bad_length 1"},
		{"Content-Length: 5\r\nl: 0\r\n", "bad_length 1"},
		{"Content-Length:\r\nContent-Length: 5\r\n", "bad_length 1"},
		{"l: x\r\nContent-Length: 5\r\n", "bad_length 1"},
		{"Content-Length: -99999999999999999999999\r\n", "bad_length 1"},
		{"Content-Length: 65535\r\n", "oversize 1"},
		{"Content-Length: 65536\r\n", "oversize 1"},
		{"Content-Length: 2147483648\r\n", "oversize 1"},
		{"Content-Length: 4294967301\r\n", "oversize 1"},
		{"Content-Length: 9223372036854775807\r\n", "oversize 1"},
		{"Content-Length: 18446744073709551621\r\n", "oversize 1"},
		{"Content-Length: 99999999999999999999999999999999999999\r\n", "oversize 1"},
	} {
		first := "INVITE sip:a SIP/2.0\r\nVia: x\r\n" + row.fields + "From: y\r\n\r\nv=0\r\n"
		for _, form := range []string{"CRLF", "LF"} {
			if form == "LF" {
				head, _, _ := strings.Cut(first, "v=0")
				first = strings.ReplaceAll(head, "\r\n", "\n") + "v=0\r\n"
			}
			want := []seen{fromClient(0, 0, first), fromClient(0, 1, next)}
			if row.counts != "" {
				want = []seen{fromClient(0, 0, next)}
			}
			if slices.Contains(skips, row.fields) {
				want = nil
			}
			name := fmt.Sprintf("%s: Content-Length as %q", form, row.fields)
			rows = append(rows, captureRow{name, ethernet, each(client.segment(0, "P", first+next)), want, row.counts})
			if row.counts != "" {
				want = []seen{fromClient(1, 0, next)}
			} else {
				want = []seen{fromClient(1, 0, first), fromClient(1, 1, next)}
			}
			if slices.Contains(skips, row.fields) {
				want = nil
			}
			rows = append(
				rows,
				captureRow{
					name + " in two segments",
					ethernet,
					each(client.segments(first+next, 40)...),
					want,
					row.counts,
				},
			)
		}
	}
	folded := "INVITE sip:a SIP/2.0\r\n folded: first\r\nl: 0\r\n\r\n"
	return append(rows,
		captureRow{
			"a folded first header in a stream",
			ethernet,
			each(client.segment(0, "P", folded+next)),
			[]seen{fromClient(0, 0, folded), fromClient(0, 1, next)},
			"",
		},
		captureRow{"a Content-Length that ends in the next start line", ethernet,
			each(
				client.segment(
					0,
					"P",
					"INVITE sip:a SIP/2.0\r\nl: 5\r\n\r\n"+"ab\r\nINVITE sip:b SIP/2.0\r\nl: 0\r\n\r\n"+next,
				),
			),
			[]seen{
				fromClient(0, 0, "INVITE sip:a SIP/2.0\r\nl: 5\r\n\r\nab\r\nI"),
				fromClient(0, 1, "NVITE sip:b SIP/2.0\r\nl: 0\r\n\r\n"),
				fromClient(0, 2, next),
			}, ""})
}

// webSocketFrameOf is a frame of RFC 6455 §5.2; a mask of 0 is none. Its length takes as few bytes as it can.
func webSocketFrameOf(opcode byte, final bool, mask uint32, payload string) string {
	b := []byte{opcode, byte(len(payload))}
	if final {
		b[0] |= 0x80
	}
	switch {
	case len(payload) > 65535:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	case len(payload) > 125:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	if mask == 0 {
		return string(b) + payload
	}
	b[1] |= 0x80
	key := binary.BigEndian.AppendUint32(nil, mask)
	b = append(b, key...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return string(b)
}

const (
	opContinuation, opText, opBinary, opClose, opPing, opPong = 0, 1, 2, 8, 9, 10 // of RFC 6455
	mask                                                      = 0x37fa213d
)

const webSocketRequest = "GET /sip HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
const webSocketResponse = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: sip\r\n\r\n"

// webSocketRows: RFC 7118 over RFC 6455.
func webSocketRows() (rows []captureRow) {
	// The branch makes them longer than 125 bytes; small is shorter.
	a, b, small := request("REGISTER", "a", ""), request("MESSAGE", "b",
		strings.Repeat("hello ", 50)), "OPTIONS sip:a SIP/2.0\r\nl:0\r\n\r\n"
	overWS := func(frame, index int, raw string) seen { return seen{ws, client.src, client.dst, frame, index, raw} }
	add := func(name, counts string, want []seen, segments ...string) {
		row := captureRow{name: "WebSocket: " + name, link: ethernet, want: want, counts: counts}
		position := 0
		for _, s := range segments {
			row.frames = append(
				row.frames,
				caught{data: client.segment(position, "P", s), at: time.Duration(len(row.frames)) * time.Millisecond},
			)
			position += len(s)
		}
		rows = append(rows, row)
	}
	frame := webSocketFrameOf
	add("handshake seen", "", []seen{overWS(1, 0, a)}, webSocketRequest, frame(opText, true, mask, a))
	add("handshake in the same segment", "", []seen{overWS(0, 0, a)}, webSocketRequest+frame(opText, true, mask, a))
	add(
		"answer of the handshake in the same segment",
		"",
		[]seen{overWS(0, 0, a)},
		webSocketResponse+frame(opText, true, 0, a),
	)
	add(
		"handshake not seen",
		"",
		[]seen{overWS(0, 0, a), overWS(1, 0, b)},
		frame(opText, true, mask, a),
		frame(opText, true, mask+1, b),
	)
	for _, opcode := range []byte{opText, opBinary} {
		for _, key := range []uint32{0, mask, 0x00ff0000, 0x0a0d0a0d} {
			for _, raw := range []string{small, a, b} {
				add(fmt.Sprintf("opcode %d, mask %x, %d bytes", opcode, key,
					len(raw)), "", []seen{overWS(0, 0, raw), overWS(0, 1, small)},
					frame(opcode, true, key, raw)+frame(opcode, true, key, small))
			}
		}
	}
	add(
		"Content-Length doesn't matter",
		"",
		[]seen{overWS(0, 0, a+"more"), overWS(0, 1, small)},
		frame(opText, true, mask, a+"more")+frame(opText, true, mask, small),
	)
	add(
		"no Content-Length",
		"",
		[]seen{overWS(0, 0, "OPTIONS sip:a SIP/2.0\r\n\r\n")},
		frame(opText, true, mask, "OPTIONS sip:a SIP/2.0\r\n\r\n"),
	)
	add(
		"in several frames",
		"stream_gap 1",
		nil,
		frame(opText, false, mask, a[:50])+frame(opContinuation, false, mask, a[50:60])+
			frame(opContinuation, true, mask, a[60:]),
	)
	add(
		"in several frames, cut in its start line",
		"stream_gap 1",
		[]seen{overWS(0, 0, small)},
		frame(opText, true, mask, small),
		frame(opText, false, mask, a[:5])+frame(opContinuation, true, mask+9, a[5:]),
	)
	add(
		"in several frames, the first one empty",
		"stream_gap 1",
		[]seen{overWS(1, 0, b)},
		webSocketRequest,
		frame(opText, true, mask, b)+frame(opText, false, mask, "")+frame(opContinuation, true, mask, a),
	)
	add("in several frames, control frames between", "stream_gap 1", []seen{overWS(2, 0,
		b)}, frame(opText, false, mask, a[:50]), frame(opPing, true, mask, "are you there"),
		frame(opContinuation, false, mask, a[50:60])+frame(opPong, true, mask, "")+
			frame(opContinuation, true, mask, a[60:])+
			frame(opText, true, mask, b))
	add("in several frames, over segments", "stream_gap 1", nil, (frame(opText, false, 0, a[:50]) +
		frame(opContinuation, true, 0, a[50:]))[:30],
		(frame(opText, false, 0, a[:50]) +
			frame(opContinuation, true, 0, a[50:]))[30:53], (frame(opText, false, 0, a[:50]) +
			frame(opContinuation, true, 0, a[50:]))[53:60],
		(frame(opText, false, 0, a[:50]) + frame(opContinuation, true, 0, a[50:]))[60:])
	add("ping first", "", []seen{overWS(1, 0, a)}, frame(opPing, true, mask, ""), frame(opText, true, mask, a))
	add(
		"ping and message in a segment, joined in the middle",
		"",
		[]seen{overWS(1, 0, a), overWS(1, 1, b)},
		frame(opText, true, mask, small)[9:],
		frame(opText, true, mask, a)+frame(opPing, true, mask, "x")+frame(opText, true, mask, b),
	)
	rows[len(rows)-1].want = []seen{overWS(1, 0, a), overWS(1, 1, b)}
	add(
		"keep-alives",
		"",
		[]seen{overWS(0, 0, a), overWS(2, 0, b)},
		frame(opText, true, mask, a),
		frame(opText, true, mask, "\r\n\r\n"),
		frame(opText, true, mask, "\r\n")+frame(opText, true, mask, b),
	)
	add(
		"other messages between",
		"",
		[]seen{overWS(0, 0, a), overWS(1, 0, b)},
		frame(opText, true, mask, a),
		frame(opText, true, mask, `{"no":"SIP"}`)+frame(opBinary, true, mask, "\x00\x01\x02")+
			frame(opText, true, mask, b),
	)
	add(
		"not SIP at all",
		"",
		nil,
		webSocketRequest,
		frame(opText, true, mask, `{"chat":"hello"}`),
		frame(opText, true, mask, "hello")+frame(opBinary, true, mask, "\x01\x02"),
		frame(opClose, true, mask, "\x03\xe8"),
	)
	add(
		"CRLF before the message is part of it",
		"",
		[]seen{overWS(0, 0, "\r\n"+a)},
		frame(opText, true, mask, "\r\n"+a),
	)
	add(
		"joined in the middle of a message",
		"",
		[]seen{overWS(1, 0, b)},
		frame(opText, true, mask, a)[40:],
		frame(opText, true, mask, b),
	)
	add(
		"a continuation of what wasn't seen",
		"",
		[]seen{overWS(0, 0, a), overWS(1, 0, b)},
		frame(opText, true, mask, a),
		frame(opContinuation, true, mask, small)+frame(opText, true, mask, b),
	)
	add("closed", "", []seen{overWS(0, 0, a)}, frame(opText, true, mask, a), frame(opClose, true, mask, "\x03\xe8"))
	add(
		"the file ends in a message",
		"stream_gap 1",
		[]seen{overWS(0, 0, a)},
		frame(opText, true, mask, a),
		frame(opText, true, mask, b)[:100],
	)
	add(
		"the file ends between two fragments",
		"stream_gap 1",
		[]seen{overWS(0, 0, a)},
		frame(opText, true, mask, a),
		frame(opText, false, mask, b[:100]),
	)
	largest := sized(maxMessage)
	inSegments := func(s string) (segments []string) {
		for len(s) > 1400 {
			segments, s = append(segments, s[:1400]), s[1400:]
		}
		return append(segments, s)
	}
	frames := inSegments(frame(opText, true, mask, largest))
	add(
		"the largest message",
		"",
		[]seen{overWS(len(frames)-1, 0, largest), overWS(len(frames), 0, a)},
		append(frames, frame(opText, true, mask, a))...,
	)
	frames = inSegments(
		frame(opText, false, mask, largest[:40000]) + frame(opContinuation, true, mask, largest[40000:]),
	)
	add(
		"the largest message, in several frames",
		"stream_gap 1",
		[]seen{overWS(len(frames), 0, a)},
		append(frames, frame(opText, true, mask, a))...,
	)
	frames = inSegments(frame(opText, true, mask, a) + frame(opText, true, mask, sizedMore()))
	add(
		"a byte more than the largest message",
		"oversize 1",
		[]seen{overWS(0, 0, a), overWS(len(frames), 0, b)},
		append(frames, frame(opText, true, mask, b))...,
	)
	frames = inSegments(
		frame(opText, true, mask, a) + frame(opText, false, mask, largest[:60000]) +
			frame(opContinuation, true, mask, largest[:60000]),
	)
	add(
		"frames that are too long together",
		"stream_gap 1",
		[]seen{overWS(0, 0, a), overWS(len(frames), 0, b)},
		append(frames, frame(opText, true, mask, b))...,
	)
	frames = inSegments(frame(opText, true, mask, sizedMore()))
	add(
		"a byte more than the largest message, first",
		"oversize 1",
		[]seen{overWS(len(frames), 0, b)},
		append(frames, frame(opText, true, mask, b))...,
	)
	add(
		"a length of 64 bits",
		"oversize 1",
		[]seen{overWS(0, 0, a), overWS(2, 0, b)},
		frame(opText, true, mask, a),
		"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04"+a,
		frame(opText, true, mask, b),
	)
	add(
		"a length of 64 bits that is negative",
		"oversize 1",
		[]seen{overWS(0, 0, a), overWS(2, 0, b)},
		frame(opText, true, mask, a),
		"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04"+a,
		frame(opText, true, mask, b),
	)

	whole := frame(opText, true, mask, a) + frame(opText, true, mask, b) + frame(opText, true, mask, small)
	pieces := client.segments(whole, 100, 300, 500)
	rows = append(rows,
		captureRow{
			"WebSocket: reordered",
			ethernet,
			each(pieces[0], pieces[2], pieces[3], pieces[1]),
			[]seen{overWS(3, 0, a), overWS(3, 1, b), overWS(3, 2, small)},
			"",
		},
		captureRow{"WebSocket: a lost segment", ethernet,
			[]caught{{data: pieces[0]}, {data: pieces[2], at: time.Millisecond},
				{
					data: client.segment(len(whole), "P", frame(opText, true, mask, a)),
					at:   9 * time.Second,
				}}, []seen{overWS(2, 0, a)}, "stream_gap 1"},
		captureRow{"WebSocket: what waited for a lost segment comes out when the flow is old, whatever the last frame was",
			ethernet,
			[]caught{{
				data: client.segment(0, "P", frame(opText, true, mask, a)),
			}, {data: client.segment(9000, "P", frame(opText, true, mask, b)), at: time.Millisecond},
				{
					data: []byte{},
					at:   2 * time.Millisecond,
				}, {data: build(ethernetHeader(), arp()), at: 40 * time.Second}},
			[]seen{overWS(0, 0, a), overWS(1, 0, b)}, "packets_invalid 1, stream_gap 1"},
		captureRow{"WebSocket: both directions", ethernet, each(client.segment(0,
			"P", webSocketRequest), server.segment(0, "P", webSocketResponse),
			client.segment(len(webSocketRequest), "P", frame(opText, true, mask, a)),
			server.segment(len(webSocketResponse), "P", frame(opText, true, 0, b))),
			[]seen{overWS(2, 0, a), {
				ws,
				server.src,
				server.dst,
				3,
				0,
				b,
			}}, ""})
	return rows
}

// says is a message that comes out of a connection.
func (f connection) says(frame, index int, raw string) seen {
	return seen{tcp, f.src, f.dst, frame, index, raw}
}

// syn is the segment before the first byte.
func (f connection) syn() []byte {
	f.first--
	return f.segment(0, "S", "")
}

// inTime gives frames their times, in milliseconds.
func inTime(frames []caught, at ...int) []caught {
	for i := range at {
		frames[i].at = time.Duration(at[i]) * time.Millisecond
	}
	return frames
}

var bothFamilies = map[string]connection{
	"IPv4": client,
	"IPv6": {"[2001:db8::1]:40000", "[2001:db8::2]:5060", 4294967000}, // its numbers wrap
}

// sipI is a message whose body has ISUP in it (RFC 3204): a line that begins like a WebSocket frame.
func sipI(id string) string {
	isup := "\r\n--b\r\nContent-Type: application/isup\r\n\r\n"
	isup += "\x01\x00\x49\x00\x00\x03\x02\x00\x07\x04\x10\x00\x33\x63\x21\x43\x00\x00\n\x01\x00\n\x82\x00\n\x81\x05IINVI"
	return request("INVITE", id, "--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n"+isup+"\r\n--b--\r\n")
}

// encapsulationRows: more of what may stand between Ethernet and SIP. Addresses are the innermost.
func encapsulationRows() (rows []captureRow) {
	m := request("INVITE", "encapsulated", "v=0\r\n")
	outer := []header{ethernetHeader(), ipv4Header("203.0.113.7", "203.0.113.8")}
	gtp, tzsp := udpHeader(2152, 2152), udpHeader(40000, 37008)
	control := octetsNamed(0, 0, 0, 0, 0)
	extension := []byte{1, 0x10, 5, 0} // the type of none follows
	for name, before := range map[string][]header{
		"MPLS":               {ethernetHeader(), mplsHeader(100)},
		"MPLS, three labels": {ethernetHeader(), mplsHeader(100, 200, 300)},
		"MPLS behind a tag":  {ethernetHeader(), vlanHeader(0x8100, 5), mplsHeader(100)},
		"MPLS, Ethernet":     {ethernetHeader(), mplsHeader(100), control, ethernetHeader()},
		"MPLS, Ethernet with a tag": {
			ethernetHeader(),
			mplsHeader(100, 7),
			control,
			ethernetHeader(),
			vlanHeader(0x8100, 5),
		},
		"MPLS in GRE": append(slices.Clone(outer), greHeader("K"), mplsHeader(100)),
		"PPPoE":       {ethernetHeader(), pppoeHeader(17)},
		"PPPoE behind two tags": {
			ethernetHeader(),
			vlanHeader(0x88a8, 5),
			vlanHeader(0x8100, 6),
			pppoeHeader(17),
		},
		"VN-Tag":                 {ethernetHeader(), vnTagHeader(0, 1, 0, 2)},
		"VN-Tag and VLAN":        {ethernetHeader(), vnTagHeader(0x80, 1, 0, 2), vlanHeader(0x8100, 6)},
		"GTP-U":                  append(slices.Clone(outer), gtp, gtpHeader(0x30, 7)),
		"GTP-U, sequence number": append(slices.Clone(outer), gtp, gtpHeader(0x32, 7, 1, 2, 0, 0)),
		"GTP-U, no extension":    append(slices.Clone(outer), gtp, gtpHeader(0x32, 7, 1, 2, 0, 0x85)),
		"GTP-U, N-PDU number":    append(slices.Clone(outer), gtp, gtpHeader(0x31, 7, 0, 0, 9, 0)),
		"GTP-U, extension header": append(
			slices.Clone(outer),
			gtp,
			gtpHeader(0x34, 7, append([]byte{0, 0, 0, 0x85}, extension...)...),
		),
		"GTP-U, two extension headers": append(
			slices.Clone(outer),
			gtp,
			gtpHeader(0x36, 7, append([]byte{0, 1, 0, 0x85, 2, 1, 2, 3, 4, 5, 6, 0x85}, extension...)...),
		),
		"TZSP": append(slices.Clone(outer), tzsp, octets(1, 0, 0, 1, 1), ethernetHeader()),
		"TZSP, tagged fields, and sent": append(
			slices.Clone(outer),
			tzsp,
			octets(1, 1, 0, 1, 0, 0x0a, 1, 0xc4, 0, 40, 2, 1, 1, 1),
			ethernetHeader(),
		),
	} {
		rows = append(rows,
			captureRow{
				name:   name + ", IPv4",
				link:   ethernet,
				frames: each(over4(m, before...)),
				want:   []seen{datagram4(0, m)},
			},
			captureRow{
				name:   name + ", IPv6",
				link:   ethernet,
				frames: each(over6(m, before...)),
				want:   []seen{datagram6(0, m)},
			})
	}
	// Equal addresses in two networks: datagrams in fragments and streams don't mix.
	key := func(key uint32) header {
		h := greHeader("K")
		h.build = func(next header) gopacket.SerializableLayer {
			return &layers.GRE{Protocol: next.etherType, KeyPresent: true, Key: key}
		}
		return h
	}
	networks := map[string][2][]header{
		"GRE keys": {append(slices.Clone(outer), key(100)), append(slices.Clone(outer), key(200))},
		"VXLAN": {
			append(slices.Clone(outer), udpHeader(9, 4789), vxlanHeader(1), ethernetHeader()),
			append(slices.Clone(outer), udpHeader(9, 4789), vxlanHeader(2), ethernetHeader()),
		},
		"Geneve": {
			append(slices.Clone(outer), udpHeader(9, 6081), geneveHeader(1)),
			append(slices.Clone(outer), udpHeader(9, 6081), geneveHeader(2)),
		},
		"GTP tunnels": {
			append(slices.Clone(outer), gtp, gtpHeader(0x30, 1)),
			append(slices.Clone(outer), gtp, gtpHeader(0x30, 2)),
		},
		"MPLS labels":    {{ethernetHeader(), mplsHeader(5, 1)}, {ethernetHeader(), mplsHeader(5, 2)}},
		"PPPoE sessions": {{ethernetHeader(), pppoeHeader(1)}, {ethernetHeader(), pppoeHeader(2)}},
		"VLANs":          {{ethernetHeader(), vlanHeader(0x8100, 1)}, {ethernetHeader(), vlanHeader(0x8100, 2)}},
	}
	a, b := request("MESSAGE", "a", strings.Repeat("a", 900)), request("MESSAGE", "b", strings.Repeat("b", 900))
	for name, two := range networks {
		var first, second [][]byte
		for i, raw := range []string{a, b} {
			inside := append(slices.Clone(two[i]), ipv4Header())
			payload := build(ipv4Header(), udpHeader(5060, 5060), data(raw))[20:]
			for _, part := range [][2]int{{0, 800}, {800, len(payload)}} {
				ip := ipv4Header().fragment(9, part[0], part[0] == 0)
				rest := octets(payload[part[0]:part[1]]...)
				rest.protocol = layers.IPProtocolUDP
				first = append(first, build(append(slices.Clone(two[i]), ip, rest)...))
			}
			for _, part := range [][2]int{{0, 300}, {300, len(raw)}} {
				tcp := tcpHeader(40000, 5060, 1000+uint32(part[0]), "P")
				second = append(second, build(append(slices.Clone(inside), tcp, data(raw[part[0]:part[1]]))...))
			}
		}
		rows = append(rows,
			captureRow{
				name:   "two networks by " + name + ", fragments",
				link:   ethernet,
				frames: each(first[0], first[2], first[1], first[3]),
				want:   []seen{datagram4(2, a), datagram4(3, b)},
			},
			captureRow{
				name:   "two networks by " + name + ", streams",
				link:   ethernet,
				frames: each(second[0], second[2], second[1], second[3]),
				want:   []seen{client.says(2, 0, a), client.says(3, 0, b)},
			})
	}
	mapped := ipv6Header("::ffff:192.0.2.1", "::ffff:198.51.100.2")
	inMapped := func(position int, text string) []byte {
		return build(ethernetHeader(), mapped, tcpHeader(40000, 5060, 1000+uint32(position), ""), data(text))
	}
	lost := []caught{{data: inMapped(0, m)}, {data: inMapped(len(m)+9, m), at: time.Second}}
	return append(rows,
		captureRow{
			name:   "IPv4-mapped addresses are IPv4 addresses",
			link:   ethernet,
			frames: each(build(ethernetHeader(), mapped, udpHeader(5060, 5060), data(m))),
			want:   []seen{datagram4(0, m)},
		},
		captureRow{
			name:   "IPv4-mapped addresses, behind a lost segment",
			link:   ethernet,
			frames: lost,
			want:   []seen{client.says(0, 0, m), client.says(1, 0, m)},
			counts: "stream_gap 1",
		},
		captureRow{
			name:   "IPv4-mapped addresses are another form of the same flow",
			link:   ethernet,
			frames: each(inMapped(0, m[:50]), client.segment(50, "P", m[50:])),
			want:   []seen{client.says(1, 0, m)},
		})
}

// hepRows: what servers say of SIP that is TLS on the wire.
func hepRows() (rows []captureRow) {
	m := request("INVITE", "hep", "v=0\r\n")
	families := map[string][2][]byte{
		"IPv4": {chunk(0, 3, 192, 0, 2, 1), chunk(0, 4, 198, 51, 100, 2)},
		"IPv6": {chunk(0, 5, net.ParseIP("2001:db8::1")...), chunk(0, 6, net.ParseIP("2001:db8::2")...)},
	}
	port := binary.BigEndian.AppendUint16(nil, 5060)
	ports := append(chunk(0, 7, port...), chunk(0, 8, port...)...)
	sip := chunk(0, 11, 1)
	payload := chunk(0, 15, []byte(m)...)
	others := slices.Concat(chunk(0, 9, 1, 2, 3, 4), chunk(0, 12, 0, 0, 0, 9), chunk(77, 15, 'x'), chunk(0, 14))
	frame := func(port int, chunks ...[]byte) []byte {
		return build(
			ethernetHeader(),
			ipv4Header("203.0.113.1", "203.0.113.2"),
			udpHeader(44444, port),
			hepPacket(chunks...),
		)
	}
	for family, addresses := range families {
		want := seen{udp, src4, dst4, 0, 0, m}
		if family == "IPv6" {
			want = seen{udp, src6, dst6, 0, 0, m}
		}
		add := func(name string, t transport, counts string, frame caught) {
			row := captureRow{
				name:   "HEP: " + family + ", " + name,
				link:   ethernet,
				frames: []caught{frame},
				counts: counts,
			}
			if t < transports {
				want.transport = t
				row.want = []seen{want}
			}
			rows = append(rows, row)
		}
		good := [][]byte{chunk(0, 1, 2), addresses[0], addresses[1], ports, others, sip}
		// By their IP protocols; 22 and 50 stand for TLS and WebSocket.
		for number, t := range map[byte]transport{17: udp, 6: tcp, 132: sctp, 22: tcp, 50: ws} {
			chunks := append(slices.Clone(good), chunk(0, 2, number), payload)
			add(fmt.Sprintf("protocol %d", number), t, "", caught{data: frame(9060, chunks...)})
		}
		chunks := append(slices.Clone(good), chunk(0, 2, 17), payload)
		backwards := slices.Clone(chunks)
		slices.Reverse(backwards)
		whole := frame(9060, chunks...)
		none := transports
		add("any port, chunks in any order", udp, "", caught{data: frame(5060, backwards...)})
		add("on the port of a tunnel", udp, "", caught{data: frame(4789, chunks...)})
		add(
			"RTCP",
			none,
			"",
			caught{data: frame(9060, append(slices.Clone(good[:5]), chunk(0, 11, 5), chunk(0, 2, 17), payload)...)},
		)
		add("no protocol", none, "", caught{data: frame(9060, append(slices.Clone(good), payload)...)})
		add("no destination", none, "", caught{data: frame(9060, addresses[0], ports, sip, chunk(0, 2, 17), payload)})
		add("no payload", none, "", caught{data: frame(9060, chunks[:len(chunks)-1]...)})
		add(
			"no SIP in it",
			none,
			"",
			caught{data: frame(9060, append(slices.Clone(chunks[:len(chunks)-1]), chunk(0, 15, []byte("\r\n")...))...)},
		)
		add(
			"a chunk without a size",
			none,
			"",
			caught{data: frame(9060, append([][]byte{{0, 0, 0, 1, 0, 0}}, chunks...)...)},
		)
		add(
			"a chunk that is too long",
			none,
			"",
			caught{data: frame(9060, append(slices.Clone(chunks), []byte{0, 0, 0, 1, 0, 9})...)},
		)
		add("longer than its datagram", none, "", caught{data: change(bytes.Clone(whole), 14+20+8+4, 0x7f)})
		add("cut in the message", none, "truncated 1", cutTo(len(whole)-9, whole))
		add("cut before the message", none, "truncated 1", cutTo(len(whole)-len(payload)+3, whole))
	}
	return rows
}

// sctpCutRows: the snap length cuts in a chunk header, or near it.
func sctpCutRows() (rows []captureRow) {
	a, b := request("OPTIONS", "a", ""), request("INVITE", "b", "v=0\r\n")
	sack := []byte{3, 0, 0, 16, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0}
	for family, ip := range map[string]header{"IPv4": ipv4Header(), "IPv6": ipv6Header()} {
		src, dst := src4, dst4
		if family == "IPv6" {
			src, dst = src6, dst6
		}
		one := build(ethernetHeader(), ip, sctpHeader(5060, 5060), dataChunk(3, b))
		two := build(ethernetHeader(), ip, sctpHeader(5060, 5060), dataChunk(3, a), dataChunk(3, b))
		acknowledged := build(ethernetHeader(), ip, sctpHeader(5060, 5060), octets(sack...))
		begin := len(one) - 16 - (len(b)+3)&^3
		for size := 0; size <= 20; size++ {
			counts := "truncated 1"
			rows = append(rows, captureRow{
				name:   fmt.Sprintf("cut: SCTP over %s, %d bytes of its chunk", family, size),
				link:   ethernet,
				frames: []caught{cutTo(begin+size, one)},
				counts: counts,
			}, captureRow{
				name:   fmt.Sprintf("cut: SCTP over %s, %d bytes of its second chunk", family, size),
				link:   ethernet,
				frames: []caught{cutTo(len(two)-16-(len(b)+3)&^3+size, two)},
				want: []seen{{
					sctp,
					src,
					dst,
					0,
					0,
					a,
				}},
				counts: counts,
			})
		}
		rows = append(rows, captureRow{
			name:   "cut: SCTP over " + family + ", in an acknowledgement",
			link:   ethernet,
			frames: []caught{cutTo(len(acknowledged)-7, acknowledged)},
		})
	}
	return rows
}

// TestHealthyTraffic: what is no SIP, and is as it should be, counts in nothing, whatever order TCP brings it in.
func TestHealthyTraffic(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 7))
	noise := func(size int) string {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return string(b)
	}
	kinds := map[string]func() string{
		"TLS": func() string { return "\x17\x03\x03\x05\x73" + noise(1395) },
		"HTTP": func() string {
			return "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + strings.Repeat("text and so on\n", 60)
		},
		"random": func() string { return noise(1 + random.IntN(1448)) },
		"lines":  func() string { return strings.Repeat("\x01\x00\n\x02\x00\n\x81\x05hello\n", 1+random.IntN(90)) },
		"base64": func() string { return strings.Repeat("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo", 1+random.IntN(40)) },
		"zeros":  func() string { return strings.Repeat("\x00", 1+random.IntN(1448)) },
	}
	for name, next := range kinds {
		t.Run(name, func(t *testing.T) {
			p := newPlayer()
			for i := range 40 {
				f := connection{fmt.Sprintf("192.0.2.1:%d", 20000+i), "198.51.100.2:443", random.Uint32()}
				if i%2 == 0 {
					p.play(ethernet, caught{data: f.syn()})
				}
				position := 0
				for range 100 {
					text := next()
					lost, twice := random.IntN(20) == 0, random.IntN(20) == 0
					if !lost {
						p.play(
							ethernet,
							caught{
								data: f.segment(position, "", text),
								at:   time.Duration(len(p.times)) * time.Millisecond,
							},
						)
					}
					if twice {
						p.play(
							ethernet,
							caught{
								data: f.segment(max(0, position-700), "", text),
								at:   time.Duration(len(p.times)) * time.Millisecond,
							},
						)
					}
					position += len(text)
				}
			}
			p.flush()
			if counts := p.counted(t); counts != "" || len(p.messages) > 0 {
				t.Errorf("counted %q, and %d messages", counts, len(p.messages))
			}
		})
	}
}

// strayRows: segments of others, and WebSocket by mistake. One that isn't the sender's costs at most what it touches.
func strayRows() (rows []captureRow) {
	a, b, c := request("OPTIONS", "a", ""), request("INVITE", "b", "v=0\r\n"), request("BYE", "c", "")
	isup := sipI("isup")
	for family, f := range bothFamilies {
		at := func(position int, text string) []byte { return f.segment(position, "P", text) }
		add := func(name, counts string, want []seen, frames ...caught) {
			rows = append(rows, captureRow{
				name:   family + ": " + name,
				link:   ethernet,
				frames: frames,
				want:   want,
				counts: counts,
			})
		}
		for _, from := range []int{
			strings.Index(isup, "\n\x01\x00\x49") + 1,
			strings.Index(isup, "\x01\x00\n"),
			strings.Index(isup, "\x82\x00"),
			170,
		} {
			rest := isup[from:]
			add(fmt.Sprintf("joined in the binary part of a SIP-I message, at %d",
				from), "", []seen{f.says(1, 0, a), f.says(2, 0, b)},
				each(at(0, rest), at(len(rest), a), at(len(rest+a), b))...)
		}
		add(
			"a message with a binary part",
			"",
			[]seen{f.says(0, 0, isup), f.says(1, 0, a)},
			each(at(0, isup), at(len(isup), a))...,
		)
		for _, lost := range []int{100, 250, strings.Index(isup, "\n\x01\x00\x49") + 1} {
			add(fmt.Sprintf("the first %d bytes of a SIP-I message are lost", lost), "stream_gap 1",
				[]seen{f.says(1, 0, a), f.says(3, 0, b), f.says(4, 0, c)},
				inTime(
					each(f.syn(), at(0, a), at(len(a)+lost, isup[lost:]), at(len(a+isup), b), at(len(a+isup+b), c)),
					0,
					1,
					2,
					3,
					2500,
				)...)
		}
		for _, stray := range []string{
			"\x81",
			"\x01",
			"\x82",
			"\x02",
			"\x89",
			"\x00",
			"x",
			"\x81\x7e",
			strings.Repeat("z", 1400),
			strings.Repeat("z\n", 700),
		} {
			add(fmt.Sprintf("a stray segment %.9q (%d) in the place of the next one", stray, len(stray)), "*",
				[]seen{f.says(1, 0, a), f.says(3, 0, b), f.says(4, 0, c), f.says(5, 0, a)},
				each(f.syn(), at(0, a), at(len(a), stray), at(len(a), b), at(len(a+b), c), at(len(a+b+c), a))...)
			add(fmt.Sprintf("a stray segment %.9q (%d) in the place of one that was", stray, len(stray)), "*",
				[]seen{f.says(1, 0, a), f.says(4, 0, b), f.says(5, 0, c), f.says(6, 0, a)},
				each(
					f.syn(),
					at(0, a),
					at(len(a), b[:90]),
					at(len(a), stray),
					at(len(a)+90, b[90:]),
					at(len(a+b), c),
					at(len(a+b+c), a),
				)...)
		}
		for _, size := range []int{1, 1400} {
			stray := strings.Repeat("z", size)
			for _, ahead := range []int{len(b), len(b) + 20, 3000, 1_000_000, 5_000_000, -5_000, -5_000_000, 1 << 31} {
				add(fmt.Sprintf("a stray segment of %d bytes, %d bytes ahead", size, ahead), "*", []seen{
					f.says(1, 0, a),
					f.says(3, 0, b),
					f.says(4, 0, c),
					f.says(5, 0, a),
				},
					each(
						f.syn(),
						at(0, a),
						at(len(a)+ahead, stray),
						at(len(a), b),
						at(len(a+b), c),
						at(len(a+b+c), a),
					)...)
				add(fmt.Sprintf(
					"a stray segment of %d bytes, %d bytes ahead, in a slow stream",
					size,
					ahead,
				), "*", []seen{f.says(1, 0, a), f.says(4, 0, b), f.says(5, 0, c), f.says(6, 0, a)},
					inTime(
						each(
							f.syn(),
							at(0, a),
							at(len(a)+ahead, stray),
							at(len(a), b[:20]),
							at(len(a)+20, b[20:]),
							at(len(a+b), c),
							at(len(a+b+c), a),
						),
						0,
						1,
						2,
						10000,
						20000,
						30000,
						40000,
					)...)
				add(fmt.Sprintf(
					"a stray segment of %d bytes, %d bytes ahead, comes first",
					size,
					ahead,
				), "*", []seen{f.says(1, 0, a), f.says(2, 0, b), f.says(3, 0, c)},
					each(at(ahead, stray), at(0, a), at(len(a), b), at(len(a+b), c))...)
			}
		}
		spoofed := connection{f.src, f.dst, f.first + 777777}
		for _, flags := range []string{"S", "F", "R", "RP", "FP"} {
			for name, by := range map[string]connection{
				"elsewhere":     spoofed,
				"in the stream": {f.src, f.dst, f.first + uint32(len(a))},
			} {
				text := ""
				if strings.Contains(flags, "P") {
					text = "spoofed"
				}
				if name == "in the stream" && flags == "FP" {
					continue // that is a segment in the place of the next one
				}
				add(fmt.Sprintf("a spoofed segment with %s, %s", flags, name), "*", []seen{
					f.says(1, 0, a),
					f.says(4, 0, b),
					f.says(5, 0, c),
				},
					each(
						f.syn(),
						at(0, a),
						by.segment(0, flags, text),
						at(len(a), b[:30]),
						at(len(a)+30, b[30:]),
						at(len(a+b), c),
					)...)
			}
		}
	}
	return rows
}

// orderRows: segments that come early, at the beginning of a stream and later. Nothing is lost silently.
func orderRows() (rows []captureRow) {
	a, b, c := request("OPTIONS", "a", ""), request("INVITE", "b", "v=0\r\n"), request("BYE", "c", "")
	for family, f := range bothFamilies {
		at := func(position int, text string) []byte { return f.segment(position, "P", text) }
		elsewhere := connection{f.src[:len(f.src)-1] + "9", f.dst, 5}.segment(0, "P", "\r\n\r\n")
		add := func(name, counts string, want []seen, frames ...caught) {
			rows = append(rows, captureRow{
				name:   family + ": " + name,
				link:   ethernet,
				frames: frames,
				want:   want,
				counts: counts,
			})
		}
		inOrder := func(frame int) []seen {
			return []seen{f.says(frame, 0, a), f.says(frame, 1, b), f.says(frame, 2, c)}
		}
		first, second, third := at(0, a), at(len(a), b), at(len(a+b), c)
		add(
			"behind the SYN the second message comes first",
			"",
			[]seen{f.says(2, 0, a), f.says(2, 1, b), f.says(3, 0, c)},
			each(f.syn(), second, first, third)...,
		)
		add(
			"behind the SYN three messages come in reverse",
			"",
			inOrder(4),
			each(f.syn(), third, second, elsewhere, first)...,
		)
		add(
			"the second message comes first",
			"",
			[]seen{f.says(0, 0, b), f.says(1, 0, a), f.says(2, 0, c)},
			each(second, first, third)...,
		)
		add(
			"three messages come in reverse",
			"",
			[]seen{f.says(0, 0, c), f.says(1, 0, b), f.says(2, 0, a)},
			each(third, second, first)...,
		)
		add("three messages come in reverse, each twice", "", []seen{f.says(0, 0, c), f.says(2, 0, b), f.says(4, 0, a)},
			each(third, third, second, third, first, first, second, third)...)
		add("silent, then the second message comes first", "", []seen{
			f.says(0, 0, c),
			f.says(2, 0, b),
			f.says(3, 0, a),
		},
			inTime(each(at(-len(c), c), elsewhere, second, first), 0, 70000, 150000, 150001)...)
		add("silent for a while, then the second message comes first", "", []seen{
			f.says(0, 0, c),
			f.says(2, 0, a),
			f.says(2, 1, b),
		},
			inTime(each(at(-len(c), c), second, first), 0, 50000, 50001)...)
		add(
			"halves in reverse",
			"",
			[]seen{f.says(1, 0, a), f.says(2, 0, b)},
			each(at(50, a[50:]), at(0, a[:50]), second)...,
		)
		add(
			"thirds, the last one first",
			"",
			[]seen{f.says(2, 0, a), f.says(3, 0, b)},
			each(at(90, a[90:]), at(0, a[:50]), at(50, a[50:90]), second)...,
		)
		add("the end of a message and another come before its beginning", "", []seen{
			f.says(0, 0, b),
			f.says(1, 0, a),
			f.says(2, 0, c),
		},
			each(at(50, a[50:]+b), at(0, a[:50]), third)...)
		add("the beginning comes after 3 s", "stream_gap 1", []seen{f.says(0, 0, b), f.says(1, 0, c)},
			inTime(each(at(50, a[50:]+b), third, at(0, a[:50])), 0, 2900, 3000)...)
		add(
			"a keep-alive before what is known",
			"",
			[]seen{f.says(0, 0, a), f.says(2, 0, b)},
			each(first, at(-4, "\r\n\r\n"), second)...,
		)
		add("a lost segment in headers, then another message", "stream_gap 1", []seen{
			f.says(0, 0, a),
			f.says(1, 0, c),
			f.says(2, 0, a),
		},
			inTime(each(first, at(len(a)+60, b[60:]+c), at(len(a+b+c), a)), 0, 1, 3000)...)
		nested := request("MESSAGE", "nested", c+strings.Repeat("\r\n"+c, 20))
		head := strings.Index(nested, "\r\n\r\n") + 4
		add("a lost segment in a body with messages in it", "stream_gap 1", []seen{f.says(0, 0, a), f.says(2, 0, b)},
			inTime(
				each(
					at(0, a+nested[:head+200]),
					at(len(a)+head+700, nested[head+700:]+b),
					at(len(a+nested+b), "\r\n\r\n"),
				),
				0,
				1,
				3000,
			)...)
		rows[len(rows)-1].want[1].frame = 1
		add("a lost segment in headers with a body behind that has messages in it",
			"stream_gap 1", []seen{f.says(0, 0, a), f.says(1, 0, b)},
			inTime(
				each(at(0, a+nested[:50]), at(len(a)+80, nested[80:]+b), at(len(a+nested+b), "\r\n\r\n")),
				0,
				1,
				3000,
			)...)
		add(
			"joined in a sipfrag",
			"",
			[]seen{f.says(0, 0, a), f.says(1, 0, b)},
			each(at(0, "SIP/2.0 100 Trying\r\n"+a), at(len(a)+20, b))...,
		)
		add(
			"joined in a body without a newline at its end",
			"",
			[]seen{f.says(1, 0, a)},
			each(at(-8, "sendrecv"[:8]), at(0, a))...,
		)
		rows[len(rows)-1].want = []seen{f.says(1, 0, "sendrecv"+a)} // it might be a method
		add(
			"joined in a body that can't be a method",
			"",
			[]seen{f.says(1, 0, a)},
			each(at(-10, "a=sendrecv"), at(0, a))...,
		)
	}
	return rows
}

// firstRows: what may come before the first message in a segment, and what is known to be one message.
func firstRows() (rows []captureRow) {
	a, b, c := request("OPTIONS", "a", ""), request("INVITE", "b", "v=0\r\n"), request("BYE", "c", "")
	proxy4 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x13\xc4\x13\xc4"
	proxy6 := "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x28" + strings.Repeat("\nINVITE \x00", 4) + "\x13\xc4\x13\xc4"
	local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	frame := webSocketFrameOf
	ping, pong := frame(opPing, true, mask, "are you there"), frame(opPong, true, 0, "")
	for family, f := range bothFamilies {
		cuts := func(name string, transport transport, text string, want ...string) {
			for size := 1; size <= len(text); size += 1 + size*size/20 {
				row := captureRow{
					name:   fmt.Sprintf("%s: %s, in segments of %d", family, name, size),
					link:   ethernet,
					frames: each(append([][]byte{f.syn()}, f.segments(text, sizes(size, len(text))...)...)...),
				}
				at := 0
				for _, raw := range want {
					begin := strings.Index(text[at:], raw)
					if transport == ws { // the payload is masked: what is behind it tells
						begin = strings.Index(text[at:], frame(opText, true, mask, raw)) +
							len(frame(opText, true, mask, raw)) - len(raw)
					}
					at += begin + len(raw)
					message := seen{transport, f.src, f.dst, 1 + (at-1)/size, 0, raw}
					if n := len(row.want); n > 0 && row.want[n-1].frame == message.frame {
						message.index = row.want[n-1].index + 1
					}
					row.want = append(row.want, message)
				}
				rows = append(rows, row)
			}
		}
		cuts("PROXY v2 for IPv4", tcp, proxy4+a+b, a, b)
		cuts("PROXY v2 for IPv6", tcp, proxy6+a+b, a, b)
		cuts("PROXY v2, local", tcp, local+"\r\n"+a+b, a, b)
		cuts("PROXY v1", tcp, "PROXY TCP4 192.0.2.1 198.51.100.2 56324 5060\r\n"+a+b, a, b)
		cuts("NUL as keep-alive", tcp, "\x00"+a+"\x00\x00\r\n"+b+"\x00", a, b)
		overWS := func(raw string) string { return frame(opText, true, mask, raw) }
		cuts("WebSocket ping and message", ws, ping+overWS(a)+overWS(b), a, b)
		cuts("WebSocket pong, ping and message", ws, pong+ping+overWS(a)+pong+overWS(b), a, b)
		cuts("WebSocket with its handshake", ws, webSocketRequest+ping+overWS(a)+overWS(b), a, b)
		cuts(
			"a message that isn't, and one that is",
			tcp,
			strings.Replace(b, "\r\n\r\n", "\r\nServer : demo SIP/2.0\r\n\r\n", 1)+c,
			strings.Replace(b, "\r\n\r\n", "\r\nServer : demo SIP/2.0\r\n\r\n", 1),
			c,
		)

		decoy := "INVITE sip:a SIP/2.0\r\nServer : demo SIP/2.0\r\nCSeq: 1 INVITE\r\nContent-Length: %s\r\n\r\n"
		large := "MESSAGE sip:a SIP/2.0\r\nl: 70000\r\n\r\n" + strings.Repeat(c, 1000)[:70000]
		for size := 70; size < 80000; size *= 9 {
			text := a + fmt.Sprintf(decoy, "many") + b + large + c
			p := captureRow{
				name:   fmt.Sprintf("%s: header sections and bodies that are skipped, in segments of %d", family, size),
				link:   ethernet,
				frames: each(f.segments(text, sizes(size, len(text))...)...),
				counts: "bad_length 1, oversize 1",
			}
			last := (len(text) - 1) / size
			p.want = []seen{
				f.says((len(a)-1)/size, 0, a),
				f.says((len(a+fmt.Sprintf(decoy, "many")+b)-1)/size, 0, b),
				f.says(last, 0, c),
			}
			for i := 1; i < len(p.want); i++ {
				if p.want[i].frame == p.want[i-1].frame {
					p.want[i].index = p.want[i-1].index + 1
				}
			}
			rows = append(rows, p)
		}
	}
	return rows
}

// otherProtocols are payloads that are no SIP, on the ports of SIP.
var otherProtocols = map[string]string{
	"STUN":                   "\x00\x01\x00\x08\x21\x12\xa4\x42abcdefghijkl\x00\x03\x00\x04\x00\x00\x00\x00",
	"STUN response":          "\x01\x01\x00\x0c\x21\x12\xa4\x42abcdefghijkl\x00\x20\x00\x08\x00\x01\x11\x22\x33\x44\x55\x66",
	"STUN with a start line": "\x00\x01\x00\x1c\x21\x12\xa4\x42INVITE sip:a SIP/2.0\r\n\r\n\r\n\r\n",
	"RTP":                    "\x80\x00\x12\x34\x00\x00\x00\xa0\xde\xad\xbe\xef" + strings.Repeat("\xd5", 160),
	"RTCP":                   "\x80\xc8\x00\x06" + strings.Repeat("\x01", 24),
	"HTTP request":           "POST /INVITE HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP response":          "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP of a SIP dump":     "HTTP/1.1 200 OK\r\n\r\n> INVITE sip:a SIP/2.0\r\n> Via: x\r\n",
	"RTSP":                   "DESCRIBE rtsp://example.org/a RTSP/1.0\r\nCSeq: 1\r\n\r\n",
	"MSRP":                   "MSRP a786hjs2 SEND\r\nTo-Path: msrp://a\r\n\r\n-------a786hjs2$\r\n",
	"DNS":                    "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03sip\x07example\x03org\x00\x00\x21\x00\x01",
	"DNS over TCP":           "\x00\x21\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03sip\x07example\x03org\x00\x00\x21\x00\x01",
	"TLS":                    "\x16\x03\x01\x00\x2c\x01\x00\x00\x28\x03\x03" + strings.Repeat("\x5a", 40),
	"TLS data":               "\x17\x03\x03\x00\x20" + strings.Repeat("\x91\x0a", 16),
	"SSH":                    "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
	"SMTP":                   "220 mail.example.org ESMTP\r\n250 OK\r\n",
	"FTP":                    "RETR sip:a SIP\r\n",
	"keep-alive":             "\r\n\r\n",
	"pong":                   "\r\n",
	"keep-alive of zeros":    "\x00\x00\x00\x00",
	"one zero":               "\x00",
	"keep-alive of a phone":  "jaK",
	"a space":                " ",
	"nothing":                "",
	"SIP/2.0 in a text":      "this is SIP/2.0 200 OK\r\nand so on\r\n",
	"SIP behind a zero":      "\x00INVITE sip:a SIP/2.0\r\nl: 0\r\n\r\n",
	"SIP/3.0":                "INVITE sip:a SIP/3.0\r\nl: 0\r\n\r\n",
	"XML":                    "<?xml version=\"1.0\"?>\r\n<a/>\r\n",
	"JSON":                   `{"sip":"INVITE sip:a SIP/2.0"}`,
	"a JPEG":                 "\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x02\x00\x00\x01\x00\x01\x00\x00",
}

func otherProtocolRows() (rows []captureRow) {
	m := request("INVITE", "quoted", "")
	for name, raw := range otherProtocols {
		if name == "SIP behind a zero" { // in a stream that is a keep-alive
			rows = append(
				rows,
				captureRow{"no SIP: " + name + " over UDP", ethernet, each(over4(raw, ethernetHeader())), nil, ""},
			)
			continue
		}
		rows = append(rows,
			captureRow{
				"no SIP: " + name + " over UDP",
				ethernet,
				each(over4(raw, ethernetHeader()), over6(raw, ethernetHeader())),
				nil,
				"",
			},
			captureRow{
				"no SIP: " + name + " over TCP",
				ethernet,
				each(
					client.segment(0, "P", raw),
					client.segment(len(raw), "P", raw),
					client.segment(2*len(raw), "F", ""),
				),
				nil,
				"",
			},
			captureRow{
				"no SIP: " + name + " over SCTP",
				ethernet,
				each(build(ethernetHeader(), ipv4Header(), sctpHeader(5060, 5060), dataChunk(3, raw))),
				nil,
				"",
			})
	}
	quoted := build(ipv4Header(), udpHeader(5060, 5060), data(m))
	named := func(protocol layers.IPProtocol, h header) header {
		h.protocol = protocol
		return h
	}
	rows = append(rows,
		captureRow{"no SIP: ARP", ethernet, each(build(ethernetHeader(), arp())), nil, ""},
		captureRow{
			"no SIP: ICMP that quotes SIP",
			ethernet,
			each(build(ethernetHeader(), ipv4Header(), icmp(), octets(quoted...))),
			nil,
			"",
		},
		captureRow{
			"no SIP: ICMPv6",
			ethernet,
			each(build(ethernetHeader(), ipv6Header(), named(58, octets(128, 0, 0, 0, 0, 1, 0, 1)), data(m))),
			nil,
			"",
		},
		captureRow{
			"no SIP: ESP",
			ethernet,
			each(build(ethernetHeader(), ipv4Header(), named(50, octets(0, 0, 0, 1, 0, 0, 0, 1)), data(m))),
			nil,
			"",
		},
		captureRow{
			"no SIP: no next header",
			ethernet,
			each(build(ethernetHeader(), ipv6Header(), named(59, data(m)))),
			nil,
			"",
		},
		captureRow{
			"no SIP: UDP-Lite",
			ethernet,
			each(build(ethernetHeader(), ipv4Header(), named(136, octets(19, 196, 19, 196, 0, 8, 0, 0)), data(m))),
			nil,
			"",
		},
		captureRow{
			"no SIP: an Ethernet frame with a length",
			ethernet,
			each(append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0, 38, 0x42, 0x42, 3}, m...)),
			nil,
			"",
		},
		captureRow{
			"no SIP: LLDP",
			ethernet,
			each(append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xcc}, m...)),
			nil,
			"",
		})
	slices.SortFunc(rows, func(x, y captureRow) int { return cmp.Compare(x.name, y.name) })
	return rows
}

// TestRandomBytes sends noise to port 5060.
func TestRandomBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 60))
	p := newPlayer()
	for i := range 20000 {
		noise := make([]byte, random.IntN(600))
		for j := range noise {
			noise[j] = byte(random.Uint32())
		}
		sender := connection{fmt.Sprintf("192.0.2.1:%d", 1024+i%3000), client.dst, uint32(i/3000) * 600}
		p.play(ethernet, caught{data: over4(string(noise), ethernetHeader())})
		p.play(ethernet, caught{data: sender.segment(0, "P", string(noise))})
	}
	p.flush()
	if len(p.messages) > 0 {
		t.Errorf("noise has become\n%s", listed(p.messages))
	}
}

// TestDecoderFailure: what fails in the decoder, or behind it, costs the frame and not the process.
func TestDecoderFailure(t *testing.T) {
	p := newPlayer()
	p.panicky = true
	p.play(ethernet, caught{data: over4(sampleInvite, ethernetHeader())})
	p.panicky = false
	p.play(ethernet, caught{data: over4(sampleInvite, ethernetHeader()), at: time.Second})
	if counts := p.counted(t); len(p.messages) != 1 || counts != "packets_invalid 1" {
		t.Errorf("%d messages, counted %q", len(p.messages), counts)
	}
}

// TestQuietDevice: what is incomplete gets old although no frame comes.
func TestQuietDevice(t *testing.T) {
	p := newPlayer()
	p.play(
		ethernet,
		caught{
			data: fragments(
				[]header{ethernetHeader(), ipv4Header()},
				[]header{udpHeader(5060, 5060), data(sampleInvite)},
				1,
				64,
			)[0],
		},
	)
	p.play(ethernet, caught{data: client.segment(0, "P", sampleInvite[:50]), at: time.Second})
	counts := []string{}
	for at := time.Second; at < 2*time.Minute; at += time.Second / 2 {
		p.expire(captureStart.Add(at))
		if got := p.counted(t); len(counts) == 0 || got != counts[len(counts)-1] {
			if at < 30*time.Second && got != "" || at > 61*time.Second {
				t.Errorf("after %s: counted %q", at, got)
			}
			counts = append(counts, got)
		}
	}
	if want := "fragment 1, stream_gap 1"; counts[len(counts)-1] != want {
		t.Errorf("counted %q, want %q in the end", counts, want)
	}
}

// stream is three messages as a stream has them: keep-alives between, bodies that look like messages. The
// first one begins it.
func stream() (text string, messages []string) {
	messages = []string{
		request("INVITE", "1", "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\n"),
		request("NOTIFY", "2", response("100 Trying", "3", "")+"\r\n\r\nINVITE sip:a SIP/2.0\r\n"),
		response("200 OK", "4", ""),
	}
	return messages[0] + "\r\n\r\n" + messages[1] + messages[2] + "\r\n", messages
}

// checkStream compares what comes out of frames with what must come out, each exactly once and in order.
func checkStream(t testing.TB, frames []caught, want []string, wantCounts string) bool {
	t.Helper()
	got, counts := raws(t, frames)
	if !slices.Equal(got, want) || counts != wantCounts {
		t.Errorf(
			"got %d messages %.3000q\nwant %d %.3000q\ncounted %q, want %q",
			len(got),
			got,
			len(want),
			want,
			counts,
			wantCounts,
		)
		return false
	}
	return true
}

// webSocketStream is the same messages over WebSocket.
func webSocketStream() (text string, messages []string) {
	_, messages = stream()
	frame := webSocketFrameOf
	return frame(1, true, mask, messages[0]) + frame(opPing, true, mask, "ping") + frame(2, true, mask, messages[1]) +
		frame(opPong, true, mask, "\r\n") + frame(1, true, mask, "\r\n\r\n") + frame(1, true, 0, messages[2]), messages
}

// TestSegmentation: wherever a stream is cut, the same messages come out.
func TestSegmentation(t *testing.T) {
	for name, of := range map[string]func() (string, []string){"SIP": stream, "WebSocket": webSocketStream} {
		all, messages := of()
		for i := range len(all) {
			if !checkStream(t, each(client.segments(all, i)...), messages, "") {
				t.Fatalf("%s: cut at %d", name, i)
			}
		}
		for piece := 1; piece < 20; piece++ {
			if !checkStream(t, each(client.segments(all, sizes(piece, len(all))...)...), messages, "") {
				t.Fatalf("%s: cut in pieces of %d", name, piece)
			}
		}
		random := rand.New(rand.NewPCG(7, 118))
		for range 1000 {
			cuts := randomCuts(random, len(all), 1+random.IntN(12))
			if !checkStream(t, each(client.segments(all, cuts...)...), messages, "") {
				t.Fatalf("%s: cut at %v", name, cuts)
			}
		}
	}
}

func randomCuts(random *rand.Rand, size, n int) (cuts []int) {
	for range n {
		cuts = append(cuts, random.IntN(size))
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}

// TestReordering: whatever the network does to segments, as long as each one comes, the same messages come
// out. The first one that is captured is
// the first one that was sent: what comes before it can't be known.
func TestReordering(t *testing.T) {
	for name, of := range map[string]func() (string, []string){"SIP": stream, "WebSocket": webSocketStream} {
		all, messages := of()
		for seed := range uint64(3000) {
			random := rand.New(rand.NewPCG(seed, 9293))
			f := connection{client.src, client.dst, uint32(-random.IntN(2*len(all)) - 1)} // most of them wrap
			var frames [][]byte
			from := 0
			for _, to := range append(randomCuts(random, len(all), 1+random.IntN(15)), len(all)) {
				if to == from {
					continue
				}
				for range 1 + random.IntN(2) { // each comes once or twice, with more or less of its neighbours
					first, last := max(0, from-random.IntN(40)), min(len(all), to+random.IntN(40))
					frames = append(frames, f.segment(first, "P", all[first:last]))
				}
				from = to
			}
			reach := 1 + random.IntN(6)
			for i := 1; i < len(frames); i++ {
				j := min(len(frames)-1, i+random.IntN(reach))
				frames[i], frames[j] = frames[j], frames[i]
			}
			if !checkStream(t, each(frames...), messages, "") {
				t.Fatalf("%s: seed %d", name, seed)
			}
		}
	}
}

// TestLoss: a lost segment costs the messages that it had a part of, is counted once, and every other message
// comes out.
func TestLoss(t *testing.T) {
	var all strings.Builder
	var messages []string
	var ends []int
	for i := range 30 {
		m := request("MESSAGE", strconv.Itoa(i), strings.Repeat("text\r\n", i*7%40))
		all.WriteString(m)
		messages, ends = append(messages, m), append(ends, all.Len())
	}
	for size := 50; size < 900; size += 13 {
		cuts := append(sizes(size, all.Len()), all.Len())
		lost := 1 + size%(len(cuts)-2)
		var frames []caught
		for i := range cuts {
			from := 0
			if i > 0 {
				from = cuts[i-1]
			}
			if i != lost {
				frames = append(
					frames,
					caught{
						data: client.segment(from, "P", all.String()[from:cuts[i]]),
						at:   time.Duration(i) * 5 * time.Second,
					},
				)
			}
		}
		var want []string
		ambiguous := false // what is left of a method is a method as well
		for i, m := range messages {
			begin := ends[i] - len(m)
			ambiguous = ambiguous || begin < cuts[lost] && cuts[lost] < begin+len("MESSAGE")
			if ends[i] <= cuts[lost-1] || begin >= cuts[lost] {
				want = append(want, m)
			}
		}
		if !ambiguous && !checkStream(t, frames, want, "stream_gap 1") {
			t.Fatalf("segments of %d, the one at %d is lost", size, cuts[lost-1])
		}
	}
}

// frameInput packs frames for FuzzFrame: a length of 2 bytes, a byte that cuts so many bytes off, the frame.
func frameInput(frames []caught) (packed []byte) {
	for _, f := range frames {
		packed = binary.BigEndian.AppendUint16(packed, uint16(len(f.data)))
		packed = append(packed, byte(max(f.length-len(f.data), 0)))
		packed = append(packed, f.data...)
	}
	return packed
}

// FuzzFrame decodes anything at all. What comes out is SIP and not too long, and every frame is counted.
func FuzzFrame(f *testing.F) {
	for _, row := range captureRows() {
		if packed := frameInput(row.frames); len(packed) < 4000 {
			f.Add(byte(slices.Index(linkTypes, row.link)), packed)
		}
	}
	f.Fuzz(func(t *testing.T, link byte, packed []byte) {
		p := newPlayer()
		for len(packed) >= 3 {
			size, cut := min(int(binary.BigEndian.Uint16(packed)), len(packed)-3), int(packed[2])
			frame := packed[3 : 3+size]
			packed = packed[3+size:]
			p.play(
				linkTypes[int(link)%len(linkTypes)],
				caught{data: frame, length: size + cut, at: time.Duration(len(p.times)) * 100 * time.Millisecond},
			)
		}
		p.flush()
		p.counted(t)
		p.checkEmpty(t)
		for _, m := range p.messages {
			raw := []byte(m.raw)
			if startLine(bytes.TrimLeft(raw, "\r\n")) != yes || len(raw) > maxMessage || m.frame < 0 || m.index < 0 {
				t.Errorf("not a message: %s", m)
			}
		}
	})
}

// FuzzFragments sends pieces of three datagrams under one identification, each of them cut in three ways, and
// foreign ones, as
// the script says. Whatever comes out was sent, and of one datagram alone all of it comes out, once.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, false)
	f.Add([]byte{64, 65, 66, 0, 128, 129, 130, 1, 2, 3}, true)
	f.Add([]byte{0, 200, 1, 201, 2, 64, 3, 65, 66, 67, 68}, false)
	f.Add([]byte{12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}, true)
	var sent []string
	for i, size := range []int{900, 900, 1100} {
		sent = append(
			sent,
			request("INVITE", strconv.Itoa(i), strings.Repeat(string(rune('a'+i)), 200)+strings.Repeat("z", size-200)),
		)
	}
	outers := [][]header{{ethernetHeader(), ipv4Header()}, {ethernetHeader(), ipv6Header()}}
	built := make([][][][]byte, len(outers)) // of each family, of each datagram
	for family, outer := range outers {
		for _, raw := range sent {
			inner := []header{udpHeader(5060, 5060), data(raw)}
			built[family] = append(built[family], slices.Concat(
				fragments(outer, inner, 77, 400, 800),
				fragments(outer, inner, 77, sizes(160, 800)...),
				fragments(outer, inner, 77, 8, 16, 904)))
		}
		var foreign [][]byte
		for i := range 64 {
			bytes := bytes.Repeat([]byte{byte(i)}, 16)
			foreign = append(foreign, fragment(outer, layers.IPProtocolUDP, 77, 8*i, i%2 == 0, bytes))
		}
		built[family] = append(built[family], foreign)
	}
	f.Fuzz(func(t *testing.T, script []byte, six bool) {
		pieces := built[0]
		if six {
			pieces = built[1]
		}
		p := newPlayer()
		used := map[byte]map[byte]bool{}
		for _, step := range script {
			kind, which := step>>6, step&63
			which %= byte(len(pieces[kind]))
			frame := pieces[kind][which]
			if used[kind] == nil {
				used[kind] = map[byte]bool{}
			}
			used[kind][which] = true
			p.play(ethernet, caught{data: frame, at: time.Duration(len(p.times)) * time.Millisecond})
		}
		p.flush()
		p.checkEmpty(t)
		p.counted(t)
		for _, m := range p.messages {
			if !slices.Contains(sent, m.raw) {
				t.Errorf("never sent: %s", m)
			}
		}
		if only := used[0]; len(used) == 1 && only[0] && only[1] && only[2] && len(p.messages) != 1 {
			t.Errorf("%d messages of one", len(p.messages))
		}
	})
}

// cutsFrom makes positions of cuts out of anything.
func cutsFrom(steps []byte, size int) (cuts []int) {
	at := 0
	for i := 0; at < size && len(steps) > 0; i++ {
		at += 1 + int(steps[i%len(steps)])
		cuts = append(cuts, min(at, size))
	}
	return cuts
}

// shuffled puts segments into another order, each at most 8 places from its own, some of them twice.
func shuffled(frames [][]byte, order []byte) (all [][]byte) {
	frames = slices.Clone(frames)
	for i, o := range order {
		if i >= len(frames) {
			break
		}
		j := min(len(frames)-1, i+int(o)%8)
		frames[i], frames[j] = frames[j], frames[i]
	}
	for i, frame := range frames {
		all = append(all, frame)
		if len(order) > 0 && order[i%len(order)] > 200 {
			all = append(all, frames[max(0, i-3)])
		}
	}
	return all
}

// isOnly tells whether a stream is nothing but these messages. Between messages anything may stand, but where a segment
// happens to begin in it a message may seem to begin, too: a stream joined in the middle can't be told from a
// shorter one.
func isOnly(all string, messages []string) bool {
	lines := strings.NewReplacer("\r", "", "\n", "")
	return lines.Replace(strings.Join(messages, "")) == lines.Replace(all)
}

// FuzzStream: however a stream of messages that begins with a SYN is cut, and in whatever order its segments
// come, the same
// messages come out, in the same order; whatever else it holds, nothing breaks.
func FuzzStream(f *testing.F) {
	all, _ := stream()
	f.Add([]byte(all), []byte{1}, []byte{})
	f.Add([]byte(all), []byte{90, 3, 200}, []byte{7, 3, 255, 1})
	for _, row := range lengthRows() {
		f.Add(row.frames[0].data[14+20+20:], []byte{7, 30}, []byte{3})
	}
	for _, name := range slices.Sorted(maps.Keys(otherProtocols)) {
		f.Add([]byte(otherProtocols[name]+"\r\n"+all), []byte{5}, []byte{201, 2})
	}
	for _, line := range startLines {
		f.Add([]byte(line.line+"\r\n"+all), []byte{5}, []byte{})
	}
	f.Fuzz(func(t *testing.T, rest, steps, order []byte) {
		all := request("OPTIONS", "first", "") + string(rest)
		if len(all) > 60000 {
			return
		}
		want, _ := raws(t, each(client.syn(), client.segment(0, "P", all)))
		segments := client.segments(all, cutsFrom(steps, len(all))...)
		got, _ := raws(t, each(append([][]byte{client.syn()}, shuffled(segments, order)...)...))
		if isOnly(all, want) && !slices.Equal(got, want) {
			t.Errorf("in one segment %.2000q\ncut with %v, order %v %.2000q", want, steps, order, got)
		}
	})
}

// FuzzFramer: whatever comes, and however it is cut, with gaps or without, what comes out of the framer
// begins with a start line
// and is in the stream as it is, or in a WebSocket frame of it.
func FuzzFramer(f *testing.F) {
	all, _ := stream()
	overWS, _ := webSocketStream()
	f.Add([]byte(all), []byte{40, 90, 3}, uint16(0))
	f.Add([]byte(overWS), []byte{40, 90, 3}, uint16(0))
	f.Add([]byte(sipI("fuzz")+all), []byte{9, 200}, uint16(50))
	f.Add([]byte("INVITE sip:a SIP/2.0\r\nX: y\r\r\n\r\n"+all), []byte{1}, uint16(0))
	f.Fuzz(func(t *testing.T, all, steps []byte, gap uint16) {
		if len(all) > 60000 {
			return
		}
		var counters captureCounters
		text := string(all)
		d := newDecoder(&counters, func(m *message) {
			if startLine(bytes.TrimLeft(m.raw, "\r\n")) != yes || len(m.raw) > maxMessage {
				t.Errorf("not a message: %.200q", m.raw)
			}
			if m.transport == tcp && !strings.Contains(text, string(m.raw)) {
				t.Errorf("not in the stream: %.200q", m.raw)
			}
		})
		var stream framer
		for i, to := range append(cutsFrom(steps, len(all)), len(all)) {
			from := len(text) - len(all)
			if gap > 0 && i == 3 {
				stream.gap(int(gap))
			}
			part := bytes.Clone(all[:to-from])
			stream.feed(d, part)
			clear(part)
			all = all[to-from:]
			if len(stream.buffer) > maxMessage+to-from {
				t.Fatalf("%d bytes are held", len(stream.buffer))
			}
		}
	})
}

// FuzzWebSocket does the same as FuzzStream for frames of WebSocket.
func FuzzWebSocket(f *testing.F) {
	all, _ := webSocketStream()
	f.Add([]byte(all), []byte{1}, uint32(0))
	f.Add([]byte(all), []byte{90, 3, 200}, uint32(mask))
	for _, row := range webSocketRows() {
		if rest := row.frames[len(row.frames)-1].data[14+20+20:]; len(rest) < 3000 {
			f.Add(rest, []byte{7, 30}, uint32(mask))
		}
	}
	f.Fuzz(func(t *testing.T, rest, steps []byte, key uint32) {
		if len(rest) > 50000 {
			return
		}
		m := request("MESSAGE", "ws", strings.Repeat("text ", 40))
		all, opcode := "", byte(opText)
		all = webSocketFrameOf(opcode, true, key, m) + webSocketFrameOf(opPing, true, key, "ping")
		got, counts := raws(t, each(client.segments(all, cutsFrom(steps, len(all))...)...))
		if len(got) != 1 || got[0] != m || counts != "" {
			t.Errorf("got %q, counted %q, want %q", got, counts, m)
		}
		all += string(rest)
		want, _ := raws(t, each(client.segment(0, "P", all)))
		got, _ = raws(t, each(client.segments(all, cutsFrom(steps, len(all))...)...))
		if isOnly(all, want) && !slices.Equal(got, want) {
			t.Errorf("in one segment %.2000q\ncut with %v %.2000q", want, steps, got)
		}
	})
}

// TestSIPpCaptures compares with tshark what comes out of real captures: 20 calls each of SIPp's own
// scenarios over UDP (in fragments: the MTU is
// 400), TCP (in segments of 348 bytes) and IPv6 (pcapng, with nanoseconds). A
// line of a golden file is the time of the frame that completed a message, the addresses and
// ports, and the message in hex; it is made by
//
//	tshark -r sipp_tcp.pcap -Y sip -T json -x | jq -r '.[]._source.layers | [.frame."frame.time_epoch",
//	    (.ip // .ipv6 | ."ip.src" // ."ipv6.src"), (.tcp // .udp | ."tcp.srcport" // ."udp.srcport"),
//
// (.ip // .ipv6 | ."ip.dst" // ."ipv6.dst"), (.tcp // .udp | ."tcp.dstport" // ."udp.dstport"), .sip_raw[0]]
// | join(" ")'
func TestSIPpCaptures(t *testing.T) {
	for name, over := range map[string]transport{"sipp_udp.pcap": udp, "sipp_tcp.pcap": tcp, "sipp_ipv6.pcapng": udp} {
		t.Run(name, func(t *testing.T) {
			golden, err := os.ReadFile("testdata/" + strings.TrimSuffix(name, filepath.Ext(name)) + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			handle, err := pcap.OpenOffline("testdata/" + name)
			if err != nil {
				t.Fatal(err)
			}
			defer handle.Close()
			link, err := linkTypeOf(handle)
			if err != nil {
				t.Fatal(err)
			}
			if err := handle.SetBPFFilter(defaultBPF(link)); err != nil {
				t.Fatal(err)
			}
			var counters captureCounters
			var got []string
			d := newDecoder(&counters, func(m *message) {
				if m.transport != over {
					t.Errorf("transport %s", transportNames[m.transport])
				}
				got = append(
					got,
					fmt.Sprintf(
						"%d.%09d %s %d %s %d %x",
						m.time.Unix(),
						m.time.Nanosecond(),
						m.src.Addr(),
						m.src.Port(),
						m.dst.Addr(),
						m.dst.Port(),
						m.raw,
					),
				)
			})
			for {
				frame, info, err := handle.ZeroCopyReadPacketData()
				if err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				d.frame(link, frame, info.Timestamp, info.CaptureLength < info.Length)
			}
			d.flush()
			want := strings.Split(strings.TrimSpace(string(golden)), "\n")
			if len(want) != 120 || !slices.Equal(got, want) {
				t.Errorf(
					"got %d messages\n%.2000s\nwant %d\n%.2000s",
					len(got),
					strings.Join(got, "\n"),
					len(want),
					strings.Join(want, "\n"),
				)
			}
			lost := counters.packetsInvalid.Load() + counters.truncated.Load() + counters.fragment.Load() +
				counters.streamGap.Load() +
				counters.badLength.Load() +
				counters.oversize.Load()
			if lost != 0 {
				t.Errorf(
					"%d frames or messages are counted as invalid or discarded: invalid %d truncated %d fragment %d gap %d length %d over %d",
					lost,
					counters.packetsInvalid.Load(),
					counters.truncated.Load(),
					counters.fragment.Load(),
					counters.streamGap.Load(),
					counters.badLength.Load(),
					counters.oversize.Load(),
				)
			}
		})
	}
}

const (
	floodVariable = "SIP_CAPTURE_TEST_FLOOD" // set in the process that is flooded
	floodLimit    = 128 << 10                // KB of resident memory
)

// floods are what an attacker may send, to a decoder whose frames come 1 µs after each other. between is
// called now and then.
var floods = map[string]func(send func([]byte), between func()){
	"2 million first fragments": func(send func([]byte), between func()) {
		first := fragments(
			[]header{ethernetHeader(), ipv4Header()},
			[]header{udpHeader(5060, 5060), data(sized(1400))},
			1,
			1400,
		)[0]
		for i := range 2000000 {
			binary.BigEndian.PutUint32(first[14+12:], 0x0a000000+uint32(i>>16)) // another source after each 65,536
			binary.BigEndian.PutUint16(first[14+4:], uint16(i))
			send(first)
			if i%100000 == 0 {
				between()
			}
		}
	},
	"2 million half-open flows": func(send func([]byte), between func()) {
		manyFlows(client.segment(0, "P", request("INVITE", "half", "")[:120]), send, between)
	},
	// without Content-Length: counted, and the flow goes on
	"2 million flows of one segment": func(send func([]byte), between func()) {
		manyFlows(client.segment(0, "P", "INVITE sip:a SIP/2.0\r\n\r\n\r\n"), send, between)
	},
	"50,000 unfinished messages of 60 KB": func(send func([]byte), between func()) {
		pieces := client.segments(
			("MESSAGE sip:a SIP/2.0\r\nl: 61000\r\n\r\n" + strings.Repeat("x", 60000))[:60000],
			sizes(1448, 60000)...,
		)
		for i := range 50000 {
			for _, piece := range pieces {
				binary.BigEndian.PutUint32(piece[14+12:], 0x0a000000+uint32(i))
				send(piece)
			}
			if i%2500 == 0 {
				between()
			}
		}
	},
}

// manyFlows sends a segment in 2 million connections.
func manyFlows(segment []byte, send func([]byte), between func()) {
	for i := range 2000000 {
		binary.BigEndian.PutUint32(segment[14+12:], 0x0a000000+uint32(i>>8))
		binary.BigEndian.PutUint16(segment[14+20:], 1024+uint16(i&0xff))
		send(segment)
		if i%100000 == 0 {
			between()
		}
	}
}

// TestFloods runs each flood in a process of its own, as resident memory is that of a process. Messages
// between must come out.
func TestFloods(t *testing.T) {
	if name := os.Getenv(floodVariable); name != "" {
		flood(t, floods[name])
		return
	}
	if testing.Short() || raceDetector() {
		t.Skip("takes long, and more memory with the race detector")
	}
	for name := range floods {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestFloods$", "-test.v")
			cmd.Env = append(os.Environ(), floodVariable+"="+name)
			output, err := cmd.CombinedOutput()
			t.Logf("%s", output)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func raceDetector() bool {
	build, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// flood counts the messages that come out between the frames of a flood, and looks at the memory that the
// process has had at most.
func flood(t *testing.T, run func(send func([]byte), between func())) {
	var counters captureCounters
	got, want := 0, 0
	d := newDecoder(&counters, func(*message) { got++ })
	info := gopacket.CaptureInfo{Timestamp: captureStart}
	send := func(frame []byte) {
		info.Timestamp = info.Timestamp.Add(time.Microsecond)
		info.CaptureLength, info.Length = len(frame), len(frame)
		d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
	}
	all, messages := stream()
	overWS, _ := webSocketStream()
	rounds := uint32(0)
	run(send, func() {
		rounds++ // the same streams go on as new connections
		sip := connection{client.src, client.dst, rounds * 9999999}
		webSocket := connection{"192.0.2.77:5000", client.dst, rounds * 9999999}
		good := slices.Concat(
			[][]byte{over4(messages[0], ethernetHeader()), sip.syn(), webSocket.syn()},
			sip.segments(all, 100, 200, 300),
			webSocket.segments(overWS, 100, 200, 300),
			fragments(
				[]header{ethernetHeader(), ipv6Header()},
				[]header{udpHeader(5060, 5060), data(messages[1])},
				rounds,
				80,
				160,
			))
		for _, frame := range good {
			send(frame)
		}
		want += 1 + 3 + 3 + 1
	})
	if got != want {
		t.Errorf("%d messages, want %d", got, want)
	}
	d.flush()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	high, _ := strconv.Atoi(string(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)[1]))
	if t.Logf("%d packets, at most %d MB resident", counters.packets.Load(), high>>10); high > floodLimit {
		t.Errorf("resident memory %d KB, want at most %d", high, floodLimit)
	}
}

// benchmarkFrames decodes frames again and again; each round is one of b.N. messages is how many come out of a round.
func benchmarkFrames(b *testing.B, messages int, frames ...[]byte) {
	var counters captureCounters
	got := 0
	d := newDecoder(&counters, func(*message) { got++ })
	info := gopacket.CaptureInfo{Timestamp: captureStart}
	round := func() {
		for _, frame := range frames {
			info.CaptureLength, info.Length, info.Timestamp = len(frame), len(frame), info.Timestamp.Add(time.Microsecond)
			d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
		}
	}
	round()
	got = 0
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
	if got != b.N*messages {
		b.Errorf("%d messages in %d rounds, want %d each", got, b.N, messages)
	}
}

func BenchmarkFrameUDP(b *testing.B) {
	benchmarkFrames(b, 1, over4(request("INVITE", "benchmark", strings.Repeat("a=rtpmap:0\r\n", 25)), ethernetHeader()))
}

// BenchmarkFrameTCP is a segment with a message; its sequence number goes on.
func BenchmarkFrameTCP(b *testing.B) {
	m := request("INVITE", "benchmark", strings.Repeat("a=rtpmap:0\r\n", 25))
	segment := client.segment(0, "P", m)
	var counters captureCounters
	got, sequence := 0, client.first
	d := newDecoder(&counters, func(*message) { got++ })
	info := gopacket.CaptureInfo{Timestamp: captureStart, CaptureLength: len(segment), Length: len(segment)}
	b.ReportAllocs()
	for b.Loop() {
		binary.BigEndian.PutUint32(segment[14+20+4:], sequence)
		sequence += uint32(len(m))
		info.Timestamp = info.Timestamp.Add(time.Microsecond)
		d.frame(ethernet, segment, info.Timestamp, info.CaptureLength < info.Length)
	}
	if got != b.N {
		b.Errorf("%d messages of %d", got, b.N)
	}
}

// BenchmarkFrameNoise is a round of four frames: RTP, DNS, HTTP over TCP, TLS.
func BenchmarkFrameNoise(b *testing.B) {
	https := connection{"192.0.2.1:50000", "198.51.100.2:443", 9}
	benchmarkFrames(b, 0, over4(otherProtocols["RTP"],
		ethernetHeader()), over4(otherProtocols["DNS"], ethernetHeader()),
		client.segment(0, "P", otherProtocols["HTTP request"]), https.segment(0, "P", otherProtocols["TLS data"]))
}

// costs decodes frames and returns what they took in all, and what the slowest took: of several runs the best,
// as the machine may have other things to do.
func costs(frames [][]byte) (total, slowest time.Duration) {
	const runs = 7
	took := make([]time.Duration, len(frames))
	total = math.MaxInt64
	for run := range runs {
		var counters captureCounters
		info := gopacket.CaptureInfo{Timestamp: captureStart}
		d := newDecoder(&counters, func(*message) {})
		runtime.GC()
		sum := time.Duration(0)
		for i, frame := range frames {
			info.CaptureLength, info.Length = len(frame), len(frame)
			info.Timestamp = info.Timestamp.Add(time.Microsecond)
			begin := time.Now()
			d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
			this := time.Since(begin)
			sum += this
			if run == 0 || this < took[i] {
				took[i] = this
			}
		}
		total = min(total, sum)
	}
	return total, slices.Max(took)
}

// hostile are streams that may cost more than plain messages, most of them by quadratic searches.
func hostile() map[string][][]byte {
	byteByByte := func(begin, text string) (frames [][]byte) {
		frames = [][]byte{client.segment(0, "P", begin)}
		for i := range len(text) {
			frames = append(frames, client.segment(len(begin)+i, "P", text[i:i+1]))
		}
		return frames
	}
	ofSegments := func(text string) [][]byte { return client.segments(text, sizes(1400, len(text))...) }
	whole := func(text string) [][]byte { return [][]byte{client.segment(0, "P", text)} }
	first := request("OPTIONS", "first", "")
	headers := "INVITE sip:a SIP/2.0\r\n" + strings.Repeat("X-Header: value\r\n", 3500)
	startLines := strings.Repeat("INVITE sip:a SIP/2.0\r\n", 2900)
	lengths := "INVITE sip:a SIP/2.0\r\n" + strings.Repeat("l: 5\r\n", 10000)
	binary := strings.Repeat("\x01\x00\n\n", 15000)
	frameLines := strings.Repeat("\n\n\x81\xfe\xff\xff\x00\x00\x00\x00INVITE sip:a SIP/2.0", 1800)
	unmasked := strings.Repeat("\n\n\x81\x7e\xff\x00INVITE sip:a SIP/2.0\nl: 3\nX: y\r\n", 1300)
	v4 := []header{ethernetHeader(), ipv4Header()}
	v6 := []header{ethernetHeader(), ipv6Header()}
	shuffled := func(outer []header, inner ...header) [][]byte {
		frames := fragments(outer, inner, 9, sizes(8, 65500)...)
		rand.New(rand.NewPCG(1, 8)).Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
		return frames
	}
	sized := data(sized(65492))
	var descending, ascending [][]byte
	for i := range 3000 {
		ascending = append(ascending, client.segment(len(first)+3*i+9, "P", "x"))
		descending = append(descending, client.segment(len(first)+90000-3*i, "P", "x"))
	}
	begin := client.segment(0, "P", first)
	return map[string][][]byte{
		"1-byte segments behind 60 KB of headers": byteByByte(headers, strings.Repeat("X: y\r\n", 300)),
		"1-byte segments of one header line":      byteByByte(headers, strings.Repeat("x", 2000)),
		"1-byte segments in a body of 60 KB": byteByByte(
			"INVITE sip:a SIP/2.0\r\nl: 65000\r\n\r\n"+strings.Repeat("x", 60000),
			strings.Repeat("x", 2000),
		),
		"1-byte segments of a Request-URI of 60 KB": byteByByte(
			first+"INVITE "+strings.Repeat("x", 60000),
			strings.Repeat("x", 2000),
		),
		"1-byte segments of a method": byteByByte(first, strings.Repeat("x", 5000)),
		"1-byte segments of CRLF":     byteByByte(first, strings.Repeat("\r\n", 2000)),
		"1-byte segments behind a header section too large": byteByByte(headers+
			headers, strings.Repeat("X: y\r\n", 300)),
		"1-byte segments of a WebSocket frame": byteByByte(
			webSocketFrameOf(opText, true, mask, "INVITE sip:a SIP/2.0\r\n"+strings.Repeat("x", 60000)),
			strings.Repeat("x", 2000),
		),
		"1-byte segments of what may be a WebSocket frame": byteByByte(
			first,
			"\x81\xfe\xff\xff\x00\x00\x00\x00INVITE "+strings.Repeat("x", 2000),
		),
		"1-byte segments of what may be one without a mask": byteByByte(
			first,
			"\x81\x7e\xff\x00INVITE sip:a SIP/2.0\r\n"+strings.Repeat("x", 9000),
		),
		"start lines without an empty line":        ofSegments(startLines),
		"start lines without an empty line, 64 KB": whole(startLines[:63800]),
		"start lines, then header lines":           ofSegments(startLines[:30000] + lengths[:30000]),
		"lines of Content-Length":                  ofSegments(lengths + "\r\n"),
		"lines of Content-Length, 64 KB":           whole(lengths[:60000] + "\r\n"),
		"folded lines of Content-Length": ofSegments(
			"INVITE sip:a SIP/2.0\r\nl: 5\r\n" + strings.Repeat(" 5\r\n", 12000) + "\r\n",
		),
		"messages without a length": ofSegments(
			strings.Repeat("INVITE sip:a SIP/2.0\r\nl: x\r\n\r\n", 1900),
		),
		"lines that could begin WebSocket frames":    whole(binary),
		"frames that could be of WebSocket":          whole(frameLines),
		"frames that could be of WebSocket, no mask": whole(unmasked),
		"the same in small segments":                 ofSegments(frameLines + unmasked),
		"60 KB of CRLFs":                             whole(strings.Repeat("\r\n", 30000)),
		"60 KB of NUL":                               whole(strings.Repeat("\x00", 60000)),
		"60 KB of short lines":                       whole(strings.Repeat("a\n", 30000)),
		"60 KB of short methods":                     whole(strings.Repeat("a b\n", 15000)),
		"8-byte fragments in random order, IPv4":     shuffled(v4, udpHeader(5060, 5060), sized),
		"8-byte fragments in random order, IPv6":     shuffled(v6, udpHeader(5060, 5060), sized),
		"8-byte fragments whose checksum fails":      shuffled(v4, asIs(header{protocol: 17, build: wrongUDP}), sized),
		"segments that wait, backwards":              append([][]byte{begin}, descending...),
		"segments that wait, forwards":               append([][]byte{begin}, ascending...),
	}
}

func wrongUDP(header) gopacket.SerializableLayer {
	return &layers.UDP{SrcPort: 5060, DstPort: 5060, Length: 65500, Checksum: 1}
}

// TestHostileCost: no stream costs more than 20 times the CPU of plain messages in as many frames of these sizes, and
// no frame more than 1 ms, with room for a busy machine.
func TestHostileCost(t *testing.T) {
	if testing.Short() || raceDetector() {
		t.Skip("measures time")
	}
	const most, room = 20, 1.25
	plainOf := func(size int) time.Duration {
		m := request("INVITE", "plain", strings.Repeat("a=rtpmap:0\r\n", 25))
		text := strings.Repeat(m, max(size/len(m), 1))
		var frames [][]byte
		for i := range 500 {
			frames = append(frames, client.segment(i*len(text), "P", text))
		}
		total, _ := costs(frames)
		return total / 500
	}
	for name, frames := range hostile() {
		t.Run(name, func(t *testing.T) {
			size := 500
			if len(frames) == 1 {
				size = 60000
			}
			slowest, ratio := time.Hour, math.Inf(1)
			for range 5 { // what else runs on the machine can only raise them
				plain := plainOf(size)
				total, longest := costs(frames)
				each := total / time.Duration(len(frames))
				slowest = min(slowest, longest)
				ratio = min(ratio, float64(each)/float64(plain))
				t.Logf("%d frames, %s each, %s plain ones, at most %s", len(frames), each, plain, longest)
				if ratio <= most && slowest <= time.Millisecond {
					break
				}
			}
			if ratio > most*room {
				t.Errorf("%.1f times plain frames, want at most %d", ratio, most)
			}
			if slowest > time.Duration(room*float64(time.Millisecond)) {
				t.Errorf("a frame took %s, want at most 1 ms", slowest)
			}
		})
	}
}

// TestFlushEnds: also where a damaged file has frames from a time that no clock will reach.
func TestFlushEnds(t *testing.T) {
	var counters captureCounters
	d := newDecoder(&counters, func(*message) {})
	frame := client.segment(0, "P", "INVITE sip:b SIP/2.0\r\nVia: x")
	info := gopacket.CaptureInfo{
		Timestamp:     time.Unix(1<<50, 0),
		CaptureLength: len(frame),
		Length:        len(frame),
	}
	d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
	done := make(chan struct{})
	go func() {
		d.flush()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("flush doesn't end")
	}
	if got := counters.streamGap.Load(); got != 1 {
		t.Errorf("%d counted, want 1", got)
	}
}

// TestDroppedIsFreed: an entry that stays at the head of its queue must not keep what was dropped behind it.
func TestDroppedIsFreed(t *testing.T) {
	d := newDecoder(&captureCounters{}, func(*message) {})
	info := gopacket.CaptureInfo{Timestamp: captureStart}
	send := func(frame []byte) {
		info.Timestamp = info.Timestamp.Add(time.Microsecond)
		info.CaptureLength, info.Length = len(frame), len(frame)
		d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
	}
	heap := func() int {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int(stats.HeapAlloc)
	}
	outer := []header{ethernetHeader(), ipv4Header()}
	payload := make([]byte, 1400)
	m := request("INVITE", "split", "")
	before := heap()
	send(fragment(outer, layers.IPProtocolUDP, 1, 0, true, payload))                       // stays
	send(connection{"192.0.2.99:5060", "192.0.2.2:5060", 0}.segment(0, "P", m[:len(m)/2])) // stays
	for i := range 20_000 {
		binary.BigEndian.PutUint32(payload, uint32(i))
		send(fragment(outer, layers.IPProtocolUDP, 2, 0, true, payload))
		send(client.segment(i*len(m), "P", m[:len(m)/2]))
		send(client.segment(i*len(m)+len(m)/2, "P", m[len(m)/2:]))
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
	if size := len(d.flows.queue); size > maxGone+10 {
		t.Errorf("%d flows are queued", size)
	}
	runtime.KeepAlive(d)
}

// TestJoinKeepsWhatWaits: a segment before the first one of a track must not cost what waits in either.
func TestJoinKeepsWhatWaits(t *testing.T) {
	first, second := request("INVITE", "first", ""), request("INVITE", "second", "")
	text := first + second
	for name, frames := range map[string][][]byte{
		"a stray segment before a SYN": {
			client.syn(),
			client.segment(100, "P", text[100:]),
			client.segment(-50, "P", strings.Repeat("x", 50)),
			client.segment(0, "P", text[:100]),
		},
		"in the late beginning": {
			client.segment(0, "P", text[:40]),
			client.segment(200, "P", text[200:]),
			client.segment(100, "P", text[100:200]),
			client.segment(40, "P", text[40:150]),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, counted := raws(t, each(frames...))
			if !slices.Equal(got, []string{first, second}) || counted != "" {
				t.Errorf("got %q, counted %s", got, counted)
			}
		})
	}
}

// TestCutSegments: of a message in segments that the snap length cuts, one is counted, and what comes behind it is
// known to be of the same stream.
func TestCutSegments(t *testing.T) {
	const headers = 14 + 20 + 20
	long := request("INVITE", "long", strings.Repeat("a=x\r\n", 400))
	first, second := request("INVITE", "first", ""), request("INVITE", "second", "")
	for name, row := range map[string]struct {
		frames []caught
		want   []string
		counts string
	}{
		"two segments of a message": {
			frames: []caught{
				cutTo(headers+400, client.segment(0, "P", long[:1448])),
				cutTo(headers+400, client.segment(1448, "P", long[1448:])),
				{data: client.segment(len(long), "P", second)},
			},
			want:   []string{second},
			counts: "truncated 1",
		},
		"without a byte of the second message": {
			frames: []caught{
				{data: client.segment(0, "P", first)},
				cutTo(headers, client.segment(len(first), "P", long[:1448])),
				{data: client.segment(len(first)+1448, "P", second)},
			},
			want:   []string{first, second},
			counts: "truncated 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, counted := raws(t, row.frames)
			if !slices.Equal(got, row.want) || counted != row.counts {
				t.Errorf("got %q, counted %s", got, counted)
			}
		})
	}
}

// TestLargeAfterSmall: that many small things are held must not let large ones exceed the limit.
func TestLargeAfterSmall(t *testing.T) {
	d := newDecoder(&captureCounters{}, func(*message) {})
	info := gopacket.CaptureInfo{Timestamp: captureStart}
	most := 0
	for i := range 14_000 {
		c := connection{fmt.Sprintf("192.0.2.1:%d", 1000+i), "198.51.100.2:5060", 0}
		text := "x"
		if i > 12_500 {
			text = strings.Repeat("x", 60_000)
		}
		frame := c.segment(0, "P", text)
		info.Timestamp = info.Timestamp.Add(time.Microsecond)
		info.CaptureLength, info.Length = len(frame), len(frame)
		d.frame(ethernet, frame, info.Timestamp, info.CaptureLength < info.Length)
		most = max(most, d.flows.size)
	}
	if most > 2*maxFlows {
		t.Errorf("%d bytes are held, twice the limit of %d and more", most, maxFlows)
	}
}
