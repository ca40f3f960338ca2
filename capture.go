package main

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Limits on what the wire can make the sensor keep, for each device.
const (
	maxMessage  = 65535            // bytes of a message; its envelope stays below the 128 KB that cloud brokers accept
	maxMethod   = 256              // bytes of a method
	maxHeaders  = 24               // in a frame: tags, extensions, a tunnel in a tunnel; a longer chain is an attack
	maxHeld     = 12 << 20         // bytes that datagrams in fragments and TCP flows hold; a flood ends the oldest of them
	maxWaiting  = 512 << 10        // bytes of a flow that wait for a lost segment; more, and it is given up
	overhead    = 512              // bytes that an assembly or a part costs besides its data: tiny ones count too
	assemblyAge = 30 * time.Second // of capture time: since a datagram's first fragment, since a flow's last segment
	gapAge      = 2 * time.Second  // of capture time in which a lost segment may be sent again
	window      = 1 << 20          // sequence numbers farther apart than this belong to different connections on the same ports
)

// decoder finds the SIP messages in frames. All of its state belongs to the one goroutine that calls frame, expire and flush.
type decoder struct {
	counters   *counters
	found      func(*message) // takes every message; must not keep its bytes
	assemblies map[assemblyKey]*assembly
	held       int         // bytes of them, at most
	swept      int64       // the second of capture time in which the old ones were ended last
	orphanOf   assemblyKey // the flow that the next one would belong to:
	orphan     part        // the last segment of no flow: the beginning of a stream may come right behind it

	// Of the frame in hand:
	message    message // its addresses are those of the innermost packet so far
	network    int     // a hash of VLANs and tunnels: the same address in another network is another host
	missing    int     // bytes at the end of the packet that were not captured
	cut        bool    // the snap length may have cut it, or the mirror that it came in
	short, bad bool    // a header isn't there as a whole; the frame contradicts itself
}

func newDecoder(counters *counters, found func(*message)) *decoder {
	return &decoder{counters: counters, found: found, assemblies: map[assemblyKey]*assembly{}}
}

// frame hands over the messages that a frame completes.
func (d *decoder) frame(link layers.LinkType, data []byte, info gopacket.CaptureInfo) {
	d.counters.packets.Add(1)
	defer func() {
		if recover() != nil || d.bad || d.short && !d.cut { // a mistake of ours costs a frame, never the process
			d.counters.packetsInvalid.Add(1)
		} else if d.short {
			d.counters.truncated.Add(1)
		}
	}()
	d.expire(info.Timestamp)
	d.message, d.cut = message{time: info.Timestamp}, info.CaptureLength < info.Length
	d.network, d.missing, d.short, d.bad = 0, 0, false, false
	d.decode(linkLayer+int(link), data)
}

// A layer is an EtherType, protocol plus an IP protocol, linkLayer plus a link type, or tunnel plus a port of UDP.
const (
	ip, mac                     = 0x0800, 0x6558 // the EtherTypes of IP, and of Ethernet in a tunnel
	protocol, linkLayer, tunnel = 1 << 16, 1 << 17, 1 << 18
	sll2, rawIP                 = 276 & 0xff, 12 // gopacket keeps a byte of a link type; as libpcap numbers it on Linux
)

var linkTypes = []layers.LinkType{layers.LinkTypeEthernet, layers.LinkTypeLinuxSLL, sll2, layers.LinkTypeNull, layers.LinkTypeLoop,
	rawIP, layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6}

// decode reads header after header, from the link to SIP. What isn't IP, or is another protocol, is no concern of ours.
func (d *decoder) decode(layer int, b []byte) {
	for headers := 0; headers < maxHeaders && layer != 0 && !d.short && !d.bad; headers++ {
		var h [40]byte // the header, or its beginning; what isn't there is 0, and noticed below
		copy(h[:], b)
		size, next := 0, 0
		switch layer {
		case linkLayer + int(layers.LinkTypeEthernet), mac:
			size, next = 14, u16(h[12:])
		case linkLayer + int(layers.LinkTypeLinuxSLL):
			size, next = 16, u16(h[14:])
		case linkLayer + sll2:
			size, next = 20, u16(h[0:])
		case linkLayer + int(layers.LinkTypeNull), linkLayer + int(layers.LinkTypeLoop):
			size, next = 4, ip
		case linkLayer + rawIP, linkLayer + int(layers.LinkTypeRaw), linkLayer + int(layers.LinkTypeIPv4), linkLayer + int(layers.LinkTypeIPv6):
			next = ip
		case 0x8100, 0x88a8, 0x9100: // VLAN tags
			size, next = 4, u16(h[2:])
			d.network = d.network<<12 ^ u16(h[0:])&0xfff
		case ip, 0x86dd:
			b, next = d.ip(h, b)
		case protocol + 0, protocol + 43, protocol + 60, protocol + 135: // IPv6 extension headers (RFC 8200 §4)
			size, next = 8+8*int(h[1]), protocol+int(h[0])
		case protocol + 51: // authentication header (RFC 4302 §2)
			size, next = 8+4*int(h[1]), protocol+int(h[0])
		case protocol + 44: // IPv6 fragment (RFC 8200 §4.5)
			id := assemblyKey{id: u32(h[4:])}
			b, next = d.reassemble(id, protocol+int(h[0]), u16(h[2:])&^7, h[3]&1 != 0, d.behind(b, 8))
		case protocol + 4, protocol + 41: // IP in IP (RFC 2003, RFC 4213)
			d.cut, next = true, ip
		case protocol + 47: // GRE (RFC 2784, RFC 2890); in it ERSPAN type I, or, where it has sequence numbers, II with 8 bytes more
			checksum, key, sequence := int(h[0]>>7), int(h[0]>>5&1), int(h[0]>>4&1)
			d.cut, size, next = true, 4+4*(checksum+key+sequence), u16(h[2:])
			if next == 0x88be {
				size, next = size+8*sequence, mac
			}
		case 0x22eb: // ERSPAN type III, with an optional subheader
			size, next = 12+8*int(h[11]&1), mac
		case tunnel + 4789, tunnel + 8472: // VXLAN (RFC 7348)
			d.cut, d.network, size, next = true, d.network<<24^u32(h[4:]), 8, mac
		case tunnel + 6081: // Geneve (RFC 8926)
			d.cut, d.network, size, next = true, d.network<<24^u32(h[4:]), 8+4*int(h[0]&63), u16(h[2:])
		case protocol + 6:
			d.tcp(h, b)
		case protocol + 17:
			b, next = d.udp(h, b)
		case protocol + 132:
			d.sctp(h, b)
		}
		b, layer = d.behind(b, size), next
	}
}

func u16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
func u32(b []byte) int { return int(binary.BigEndian.Uint32(b)) }

// behind returns what follows a header, and notes where that isn't there as a whole.
func (d *decoder) behind(b []byte, size int) []byte {
	d.short = d.short || len(b) < size
	return b[min(size, len(b)):]
}

// upTo returns what is there of size bytes that a header announces, and notes what is missing. What lies behind them is padding.
func (d *decoder) upTo(b []byte, size int) []byte {
	d.missing = max(size-len(b), 0)
	d.bad = d.bad || size < 0 || d.missing > 0 && !d.cut
	return b[:max(min(size, len(b)), 0)]
}

// ip reads an IPv4 (RFC 791) or IPv6 (RFC 8200) header and returns what follows it. A length of 0 is what segmentation offload leaves.
func (d *decoder) ip(h [40]byte, b []byte) (payload []byte, next int) {
	size, payloadSize, src, dst, fragment := 40, u16(h[4:]), h[8:24], h[24:40], 0
	next = int(h[6])
	version := h[0] >> 4
	if version == 4 {
		size = 4 * int(h[0]&15)
		payloadSize, src, dst, fragment, next = u16(h[2:])-size, h[12:16], h[16:20], u16(h[6:]), int(h[9])
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	d.message.src, d.message.dst, d.missing = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0), 0
	payload = d.behind(b, size)
	if d.bad = version != 4 && version != 6 || size < 20; payloadSize != 0 && payloadSize != -size {
		payload = d.upTo(payload, payloadSize)
	}
	id := assemblyKey{id: u16(h[4:]), protocol: next}
	return d.reassemble(id, protocol+next, 8*(fragment&0x1fff), fragment&0x2000 != 0, payload)
}

// ports reads the ports, which UDP, TCP and SCTP have in the same place.
func (d *decoder) ports(h [40]byte) {
	d.message.src = netip.AddrPortFrom(d.message.src.Addr(), uint16(u16(h[0:])))
	d.message.dst = netip.AddrPortFrom(d.message.dst.Addr(), uint16(u16(h[2:])))
}

// udp reads a datagram (RFC 768), which may be SIP, or a tunnel, as its port says.
func (d *decoder) udp(h [40]byte, b []byte) (payload []byte, next int) {
	d.ports(h)
	payload = d.behind(b, 8)
	if length := u16(h[4:]); length > 0 { // segmentation offload leaves 0
		payload = d.upTo(payload, length-8)
	}
	d.whole(udp, payload)
	return payload, tunnel + int(d.message.dst.Port())
}

// sctp reads every message that is whole in one DATA chunk (RFC 9260 §3.3.1); of one in several chunks the first is counted.
func (d *decoder) sctp(h [40]byte, b []byte) {
	const data, beginning, whole = 0, 2, 3
	d.ports(h)
	for b = d.behind(b, 12); len(b) >= 16 && !d.bad; {
		flags, size := b[1]&whole, u16(b[2:])
		if chunk := d.upTo(b[4:], size-4); b[0] == data && flags == whole && size >= 16 {
			d.whole(sctp, chunk[12:])
		} else if b[0] == data && flags == beginning {
			d.counters.fragment.Add(1)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

// whole takes a payload that is a message if it is SIP at all.
func (d *decoder) whole(t transport, payload []byte) {
	sip, readable := startLine(bytes.TrimLeft(payload, "\r\n")), !d.short && !d.bad // else the frame is counted
	if readable && sip == yes && d.missing == 0 {
		d.emit(t, payload)
	} else if readable && sip != no && d.missing > 0 {
		d.counters.truncated.Add(1)
	}
}

func (d *decoder) emit(t transport, raw []byte) {
	d.message.transport, d.message.raw = t, raw
	d.found(&d.message)
	d.message.index++
}

// assemblyKey names a datagram in fragments or a flow. The protocol is part of an IPv4 datagram's name (RFC 791 §3.2), not of an IPv6 one's
// (RFC 8200 §4.5).
type assemblyKey struct {
	src, dst              netip.AddrPort
	id, protocol, network int
	flow                  bool
}

// assembly is a datagram whose fragments are still coming, or a flow: one direction of a TCP connection in which a start line was seen, or
// may just have begun.
type assembly struct {
	key     assemblyKey
	touched time.Time // when its first fragment, or its last segment, was captured
	waiting []part    // fragments, or the segments behind a lost one, by position
	size    int       // bytes of them
	cut     bool      // one was not captured as a whole

	next, total int // of a datagram: the protocol in its first fragment; its length, 0 until the last fragment came

	position       uint32 // of a flow: the sequence number that comes next
	buffer         []byte // what came before it and isn't a message yet
	payload        []byte // of the WebSocket message so far; nil: none has begun
	sip, webSocket bool   // a start line was seen; it is framed by RFC 6455, not by Content-Length
}

// part is a fragment or a segment.
type part struct {
	position uint32
	time     time.Time
	data     []byte
}

// assembly returns the assembly of that name, a new one if there is none.
func (d *decoder) assembly(key assemblyKey) *assembly {
	if d.assemblies[key] == nil {
		d.assemblies[key] = &assembly{key: key, touched: d.message.time}
		d.held += overhead
	}
	return d.assemblies[key]
}

// hold keeps a part in its place among those that wait.
func (d *decoder) hold(a *assembly, p part) {
	i, known := slices.BinarySearchFunc(a.waiting, p, func(x, y part) int { return int(int32(x.position - y.position)) })
	if !known || !bytes.Equal(a.waiting[i].data, p.data) {
		p.data = bytes.Clone(p.data)
		a.waiting, a.size, d.held = slices.Insert(a.waiting, i, p), a.size+len(p.data), d.held+len(p.data)+overhead
	}
}

// expire ends what is old, once in a second of capture time. When too much is held, it ends the oldest and keeps half of the limit.
func (d *decoder) expire(now time.Time) {
	if now.Unix() == d.swept && d.held <= maxHeld {
		return
	}
	held := 0
	for _, a := range slices.SortedFunc(maps.Values(d.assemblies), func(a, b *assembly) int { return b.touched.Compare(a.touched) }) {
		cost := overhead + cap(a.buffer) + cap(a.payload) + a.size + overhead*len(a.waiting)
		if now.Sub(a.touched) > assemblyAge || held+cost > maxHeld/2 {
			d.end(a)
		} else {
			held += cost
		}
	}
	d.swept, d.held = now.Unix(), held
}

// flush ends everything: at the end of time all is old.
func (d *decoder) flush() { d.expire(time.Unix(1<<40, 0)) }

// end forgets an assembly and counts what stays incomplete.
func (d *decoder) end(a *assembly) {
	for a.key.flow && len(a.waiting) > 0 {
		d.giveUp(a)
	}
	switch {
	case a.cut:
		d.counters.truncated.Add(1)
	case !a.key.flow:
		d.counters.fragment.Add(1)
	case a.sip && (len(a.buffer) > 0 || a.payload != nil):
		d.counters.streamGap.Add(1)
	}
	delete(d.assemblies, a.key)
}

// reassemble takes a fragment and goes on with the datagram that it completes; what isn't a fragment is whole already.
// Overlapping fragments would let an attacker choose what we see and the receiver does not (RFC 5722): such a datagram is never
// complete, as its fragments have more bytes than it, and ends when it is old.
func (d *decoder) reassemble(key assemblyKey, next, offset int, more bool, data []byte) (datagram []byte, protocol int) {
	end := offset + len(data) + d.missing
	d.bad = d.bad || (offset > 0 || more) && (end > 65535 || more && end%8 != 0)
	if offset == 0 && !more || len(data) == 0 || d.bad || d.short {
		return data, next
	}
	key.src, key.dst, key.network = d.message.src, d.message.dst, d.network
	a := d.assembly(key)
	d.hold(a, part{uint32(offset), d.message.time, data})
	a.cut = a.cut || d.missing > 0
	if offset == 0 {
		a.next = next
	}
	if !more {
		a.total = end
	}
	for _, p := range a.waiting {
		if a.size != a.total || int(p.position) != len(datagram) {
			return nil, 0
		}
		datagram = append(datagram, p.data...)
	}
	delete(d.assemblies, key)
	return datagram, a.next
}

// tcp reads a segment (RFC 9293 §3.1).
func (d *decoder) tcp(h [40]byte, b []byte) {
	d.ports(h)
	size, syn, now := int(h[12]>>4)*4, h[13]>>1&1, d.message.time
	p := part{uint32(u32(h[4:]) + int(syn)), now, d.behind(b, max(size, 20))}
	d.bad = !d.short && size < 20
	if d.bad || d.short || len(p.data) == 0 && syn == 0 {
		return
	}
	key := assemblyKey{src: d.message.src, dst: d.message.dst, network: d.network, flow: true}
	a := d.assemblies[key]
	if a != nil && (syn != 0 || a.ahead(p) > window || a.ahead(p) < -window) { // another connection on the same ports
		d.end(a)
		a = nil
	}
	if a == nil {
		if _, sip, _ := find(p.data); sip == no {
			d.orphanOf, d.orphan = key, part{p.position, now, append(d.orphan.data[:0], p.data...)}
			return
		}
		a = d.assembly(key)
		a.position = p.position
		if early := a.ahead(d.orphan); d.orphanOf == key && early > 0 && early < window && now.Sub(d.orphan.time) <= gapAge {
			d.hold(a, d.orphan)
		}
	}
	a.touched, a.cut, d.missing = now, d.missing > 0, 0 // what is there of it is whole
	if a.ahead(p) > 0 {
		d.hold(a, p)
	} else {
		d.advance(a, p)
	}
	if a.cut || len(a.buffer) == 0 && !a.sip {
		d.end(a)
	} else if len(a.waiting) > 0 && (a.size > maxWaiting || now.Sub(a.waiting[0].time) > gapAge) {
		d.giveUp(a)
	}
}

// ahead tells by how many bytes p begins behind (above 0) what comes next, or repeats (below 0) what came. Sequence numbers wrap.
func (a *assembly) ahead(p part) int { return int(int32(p.position - a.position)) }

// giveUp goes on behind a lost segment.
func (d *decoder) giveUp(a *assembly) {
	if a.sip {
		d.counters.streamGap.Add(1)
	}
	a.sip, a.webSocket, a.buffer, a.payload = false, false, nil, nil
	a.position = a.waiting[0].position
	d.advance(a, part{position: a.position})
}

// advance takes in a segment that comes next, and those that waited for it, and hands over the messages that they complete. These have the
// time of the last of the segments.
func (d *decoder) advance(a *assembly, p part) {
	d.message = message{time: p.time, src: a.key.src, dst: a.key.dst}
	for {
		b := p.data[min(-a.ahead(p), len(p.data)):]
		a.position, d.held = a.position+uint32(len(b)), d.held+len(b)
		if len(a.buffer) > 0 {
			a.buffer = append(a.buffer, b...)
			b = a.buffer
		}
		for more := true; more && len(b) > 0; {
			if a.webSocket {
				b, more = d.webSocketMessage(a, b)
			} else {
				b, more = d.streamMessage(a, b)
			}
		}
		if a.buffer = append(a.buffer[:0], b...); len(b) == 0 {
			a.buffer = nil
		}
		if len(a.waiting) == 0 || a.ahead(a.waiting[0]) > 0 {
			return
		}
		p, a.waiting[0] = a.waiting[0], part{} // or the array would keep its bytes
		a.waiting, a.size = a.waiting[1:], a.size-len(p.data)
		if p.time.After(d.message.time) {
			d.message.time, d.message.index = p.time, 0
		}
	}
}

// streamMessage takes the first message in b, framed by its Content-Length (RFC 3261 §18.3). Two that differ are as bad as none: the next hop
// may believe another one than we do.
func (d *decoder) streamMessage(a *assembly, b []byte) (rest []byte, more bool) {
	b, sip, webSocket := find(b)
	a.sip, a.webSocket = a.sip || sip == yes, webSocket
	if sip == no || sip == maybe && len(b) <= maxMessage || webSocket {
		return b, webSocket
	}
	after := body(b)
	headers := b[:len(b)-len(after)]
	value, fields, differ := []byte(nil), 0, false
	anyHeader(headers, "content-length", func(other []byte) bool {
		differ = differ || fields > 0 && !bytes.Equal(value, other)
		value, fields = other, fields+1
		return false
	})
	length, err := strconv.ParseUint(string(value), 10, 64) // 2^64-1 if it is larger
	end := len(headers) + int(min(length, maxMessage+1))
	switch {
	case after == nil && len(headers) <= maxMessage:
		return b, false
	case after == nil || end > maxMessage:
		d.counters.oversize.Add(1)
	case err != nil || differ:
		d.counters.badLength.Add(1)
	case len(b) < end:
		return b, false
	default:
		d.emit(tcp, b[:end])
		return b[end:], true
	}
	_, rest = cutLine(b)
	return rest, true
}

// webSocketMessage takes the frame at the start of b (RFC 6455 §5.2) and the message that it completes (RFC 7118 §5). Frames with other
// opcodes, and those of extensions such as compression, are skipped.
func (d *decoder) webSocketMessage(a *assembly, b []byte) (rest []byte, more bool) {
	size, length, payload := webSocketFrame(b)
	opcode, final := b[0]&0x7f, b[0] >= 0x80
	switch {
	case length > maxMessage || opcode == 0 && len(a.payload)+length > maxMessage:
		d.counters.oversize.Add(1)
		a.webSocket, a.payload = false, nil
		return b[min(len(b), size):], true
	case size == 0 || len(b) < size:
		return b, false
	case opcode == 0 && a.payload != nil:
		a.payload = append(a.payload, payload...)
	case opcode == 1 || opcode == 2:
		a.payload = payload
	}
	if final && opcode <= 2 {
		if startLine(bytes.TrimLeft(a.payload, "\r\n")) == yes {
			d.emit(ws, a.payload)
		}
		a.payload = nil
	}
	return b[size:], true
}

// webSocketFrame reads the frame at the start of b: its size and that of its payload (2^24 at most; 0 until its header is whole), and what
// is there of the payload, unmasked.
func webSocketFrame(b []byte) (size, length int, payload []byte) {
	var h [14]byte
	copy(h[:], b)
	length, size = int(h[1]&127), 2
	if length > 125 {
		extended := h[2 : 4+6*(length-126)]
		length, size = 0, 2+len(extended)
		for _, c := range extended {
			length = min(length<<8|int(c), 1<<24)
		}
	}
	var key [4]byte // all zero without a mask
	if size += copy(key[:h[1]>>7*4], h[size:]); len(b) < size {
		return 0, 0, nil
	}
	payload = append([]byte{}, b[size:min(len(b), size+length)]...)
	subtle.XORBytes(payload, payload, bytes.Repeat(key[:], len(payload)/4+1))
	return size + length, length, payload
}

// verdict tells whether bytes are what they are tested for; maybe: that depends on bytes that aren't there yet.
type verdict uint8

const no, maybe, yes = verdict(0), verdict(1), verdict(2)

// find looks for the first line of b with which a SIP message begins or may begin, or a WebSocket frame with one. Of such a frame it reads
// 256 bytes: no segment can make it unmask the same bytes for each of its lines.
func find(b []byte) (rest []byte, sip verdict, webSocket bool) {
	for ; len(b) > 0; _, b = cutLine(b) {
		if opcode := b[0] & 0x7f; opcode == 1 || opcode == 2 {
			if _, _, payload := webSocketFrame(b[:min(len(b), 256)]); startLine(bytes.TrimLeft(payload, "\r\n")) != no {
				return b, yes, true
			}
		}
		if sip = startLine(b); sip != no {
			return b, sip, false
		}
	}
	return nil, no, false
}

// startLine reports whether b begins with the start line of a SIP/2.0 message (RFC 3261 §7.1, §7.2), lenient about the Request-URI.
func startLine(b []byte) verdict {
	if len(b) > 0 && !isToken(b[0]) {
		return no // at a glance: most of what isn't SIP
	}
	version := []byte(" SIP/2.0")
	line, _, complete := bytes.Cut(b, []byte("\n"))
	first, after, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\r")), []byte(" "))
	request := len(first) <= maxMethod && !slices.ContainsFunc(first, func(c byte) bool { return !isToken(c) })
	response := bytes.EqualFold(first, version[1:min(1+len(first), len(version))])
	code, _, _ := bytes.Cut(after, []byte(" "))
	switch {
	case !complete && (request || response):
		return maybe
	case complete && request && len(after) > len(version) && bytes.EqualFold(after[len(after)-len(version):], version):
		return yes
	case complete && response && len(first) == len("SIP/2.0") && len(code) == 3 && len(bytes.Trim(code, "0123456789")) == 0:
		return yes
	}
	return no
}
