package main

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Limits on what the wire can make the sensor keep, for each device.
const (
	maxMessage   = 65535            // bytes of a message; its envelope stays below the 128 KB that cloud brokers accept
	maxLayers    = 24               // headers in a frame: tags, extensions, a tunnel in a tunnel; a longer chain is an attack
	maxHeld      = 12 << 20         // bytes that datagrams in fragments and TCP flows hold; a flood ends the oldest
	maxWaiting   = 512 << 10        // bytes of one that wait for something lost; more, and it is given up
	partCost     = 128              // bytes that a fragment or segment costs besides its data: tiny ones count too
	assemblyCost = 640              // bytes that a datagram or flow costs besides its parts: so there are at most 19,000
	assemblyAge  = 30 * time.Second // of capture time: since a datagram's first fragment, since a flow's last segment
	gapAge       = 2 * time.Second  // of capture time in which a lost segment may be sent again
	maxMethod    = 256              // bytes of a method
	window       = 1 << 20          // sequence numbers farther apart than this belong to different connections on the same ports
)

// decoder finds the SIP messages in frames. All of its state belongs to the one goroutine that calls frame and expire.
type decoder struct {
	counters   *counters
	found      func(*message) // takes every message; must not keep its bytes
	assemblies map[assemblyKey]*assembly
	order      list.List    // of *assembly, the one that was left alone the longest first
	held       int          // bytes
	orphans    [32]struct { // segments of no flow, overwritten in turn: the beginning of a stream may come behind them
		key assemblyKey
		part
	}
	orphan int // the next to be overwritten

	// Of the frame in hand:
	message    message // its addresses are those of the innermost packet so far
	cut        bool    // the snap length may have cut it, or the mirror that it came in
	short, bad bool    // something read lies behind its end; it contradicts itself
	missing    int     // bytes of the packet that were not captured
	network    uint32  // a hash of VLANs and tunnels: the same address in another network is another host
}

func newDecoder(counters *counters, found func(*message)) *decoder {
	return &decoder{counters: counters, found: found, assemblies: map[assemblyKey]*assembly{}}
}

// frame hands over the messages that a frame completes.
func (d *decoder) frame(link layers.LinkType, data []byte, info gopacket.CaptureInfo) {
	d.counters.packets.Add(1)
	defer func() {
		d.bad = recover() != nil || d.bad || d.short && !d.cut // a mistake of ours costs a frame, never the process
		if d.bad {
			d.counters.packetsInvalid.Add(1)
		} else if d.short {
			d.counters.truncated.Add(1)
		}
	}()
	d.expire(info.Timestamp)
	d.message = message{time: info.Timestamp}
	d.cut, d.short, d.bad, d.missing, d.network = info.CaptureLength < info.Length, false, false, 0, 0
	d.decode(linkLayer+int(link), data)
}

// cutOut returns size bytes of b from an offset; behind the end of b it notes that b is short. u8, u16, u32 and tail build upon it.
func (d *decoder) cutOut(b []byte, at, size int) []byte {
	if at < 0 || size < 0 || len(b) < at+size {
		d.short = true
		return nil
	}
	return b[at : at+size]
}

func (d *decoder) u32(b []byte, at, size int) (n uint32) {
	for _, c := range d.cutOut(b, at, size) {
		n = n<<8 | uint32(c)
	}
	return n
}

func (d *decoder) u8(b []byte, at int) int      { return int(d.u32(b, at, 1)) }
func (d *decoder) u16(b []byte, at int) int     { return int(d.u32(b, at, 2)) }
func (d *decoder) tail(b []byte, at int) []byte { return d.cutOut(b, at, len(b)-at) }

// A layer is an EtherType, protocol plus an IP protocol, linkLayer plus a link type, or a tunnel over UDP.
const (
	protocol, linkLayer, tunnel, ip = 1 << 16, 1 << 17, 1 << 18, 0x0800
	sll2, rawIP                     = 276 & 0xff, 12 // gopacket keeps a byte of a link type; as libpcap numbers it on Linux
)

var linkTypes = []layers.LinkType{layers.LinkTypeEthernet, layers.LinkTypeLinuxSLL, sll2, layers.LinkTypeNull, layers.LinkTypeLoop,
	rawIP, layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6}

// decode reads layer after layer, from the link to SIP. What isn't IP, or is another protocol, is no concern of ours.
func (d *decoder) decode(layer int, b []byte) {
	for headers, sequenced := 0, 0; headers < maxLayers && layer != 0 && !d.short && !d.bad; headers++ {
		size, next := 0, 0
		switch layer {
		case linkLayer + int(layers.LinkTypeEthernet), 0x6558: // also inside of tunnels
			size, next = 14, d.u16(b, 12)
		case linkLayer + int(layers.LinkTypeLinuxSLL):
			size, next = 16, d.u16(b, 14)
		case linkLayer + sll2:
			size, next = 20, d.u16(b, 0)
		case linkLayer + int(layers.LinkTypeNull), linkLayer + int(layers.LinkTypeLoop):
			size, next = 4, ip
		case linkLayer + rawIP, linkLayer + int(layers.LinkTypeRaw), linkLayer + int(layers.LinkTypeIPv4), linkLayer + int(layers.LinkTypeIPv6):
			next = ip
		case 0x8100, 0x88a8, 0x9100: // VLAN tags
			d.enter(d.u32(b, 0, 2) & 0xfff)
			size, next = 4, d.u16(b, 2)
		case ip, 0x86dd:
			b, next = d.ip(b)
		case protocol + 0, protocol + 43, protocol + 60, protocol + 135: // IPv6 extension headers (RFC 8200 §4)
			size, next = 8+8*d.u8(b, 1), protocol+d.u8(b, 0)
		case protocol + 51: // authentication header (RFC 4302 §2)
			size, next = 8+4*d.u8(b, 1), protocol+d.u8(b, 0)
		case protocol + 44: // IPv6 fragment (RFC 8200 §4.5); an atomic one is whole
			size, next = 8, protocol+d.u8(b, 0)
			if offset := d.u16(b, 2); offset&^6 != 0 {
				b, next = d.reassemble(assemblyKey{id: d.u32(b, 4, 4)}, next, offset&^7, offset&1 != 0, d.tail(b, 8))
				size = 0
			}
		case protocol + 4, protocol + 41: // IP in IP (RFC 2003, RFC 4213)
			d.cut, next = true, ip
		case protocol + 47: // GRE (RFC 2784, RFC 2890): the sequence number tells ERSPAN type II from type I
			flags := d.u16(b, 0)
			d.cut, sequenced = true, flags>>12&1
			size, next = 4+4*bits.OnesCount(uint(flags&0xb000)), d.u16(b, 2)
			if flags&0x4007 != 0 { // source routes, or version 1 (PPTP)
				return
			}
		case 0x88be:
			size, next = 8*sequenced, 0x6558
		case 0x22eb: // ERSPAN type III, with an optional subheader, of an Ethernet frame or an IP packet
			flags := d.u16(b, 10)
			if size, next = 12+8*(flags&1), 0x6558; flags>>10&31 == 2 {
				next = ip
			}
		case tunnel + 4789, tunnel + 8472: // VXLAN (RFC 7348)
			d.enter(d.u32(b, 4, 3))
			d.cut, size, next = true, 8, 0x6558
		case tunnel + 6081: // Geneve (RFC 8926)
			d.enter(d.u32(b, 4, 3))
			d.cut, size, next = true, 8+4*(d.u8(b, 0)&63), d.u16(b, 2)
		case protocol + 6:
			d.tcp(b)
		case protocol + 17:
			b, next = d.udp(b)
		case protocol + 132:
			d.sctp(b)
		}
		b, layer = d.tail(b, size), next
	}
}

// enter notes a VLAN id or a VNI.
func (d *decoder) enter(network uint32) { d.network = d.network*65599 + network }

// ip reads an IPv4 (RFC 791) or IPv6 (RFC 8200) header and returns what follows it. A length of 0 is what segmentation offload leaves.
func (d *decoder) ip(b []byte) (payload []byte, next int) {
	header, total, address, size, offset := 40, d.u16(b, 4)+40, 8, 16, 0
	next = protocol + d.u8(b, 6)
	version := d.u8(b, 0) >> 4
	if version == 4 {
		header, total, address, size, offset = 4*(d.u8(b, 0)&15), d.u16(b, 2), 12, 4, d.u16(b, 6)
		next = protocol + d.u8(b, 9)
	}
	if total == 0 || version == 6 && total == 40 {
		total = len(b)
	}
	src, _ := netip.AddrFromSlice(d.cutOut(b, address, size))
	dst, _ := netip.AddrFromSlice(d.cutOut(b, address+size, size))
	d.message.src, d.message.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	d.missing = max(total-len(b), 0)
	d.bad = version != 4 && version != 6 || header < address+2*size || total < header
	d.short = d.short || d.missing > 0 && !d.cut
	payload = d.cutOut(b, header, min(total, len(b))-header)
	if offset&0x3fff != 0 {
		return d.reassemble(assemblyKey{id: d.u32(b, 4, 2), protocol: next}, next, 8*(offset&0x1fff), offset&0x2000 != 0, payload)
	}
	return payload, next
}

// ports reads the ports, which UDP, TCP and SCTP have in the same place.
func (d *decoder) ports(b []byte) {
	d.message.src = netip.AddrPortFrom(d.message.src.Addr(), uint16(d.u16(b, 0)))
	d.message.dst = netip.AddrPortFrom(d.message.dst.Addr(), uint16(d.u16(b, 2)))
}

// udp reads a datagram (RFC 768): it is SIP, or else its port says that it is a tunnel.
func (d *decoder) udp(b []byte) (payload []byte, next int) {
	d.ports(b)
	length := d.u16(b, 4)
	if length == 0 {
		length = len(b) + d.missing
	}
	d.bad = length < 8 || length > len(b)+d.missing
	payload = d.cutOut(b, 8, min(length, len(b))-8)
	if d.short || d.bad || d.whole(udp, payload, length > len(b)) {
		return nil, 0
	}
	return payload, tunnel + int(d.message.dst.Port())
}

// sctp reads every message that is whole in one DATA chunk (RFC 9260 §3.3.1); of one in several chunks the first is counted.
func (d *decoder) sctp(b []byte) {
	d.ports(b)
	for b = d.tail(b, 12); len(b) >= 4 && !d.bad; {
		length := d.u16(b, 2)
		d.bad = length < 4 || length > len(b)+d.missing
		switch flags := b[1] & 3; {
		case b[0] != 0 || d.bad || length < 16:
		case flags == 3:
			d.whole(sctp, b[min(16, len(b)):min(length, len(b))], length > len(b))
		case flags == 2:
			d.counters.fragment.Add(1)
		}
		b = b[min((length+3)&^3, len(b)):]
	}
}

// whole takes a payload that is a message if it is SIP at all, and reports whether it is.
func (d *decoder) whole(t transport, payload []byte, cut bool) bool {
	sip := startLine(bytes.TrimLeft(payload, "\r\n"))
	switch {
	case sip == no, sip == maybe && !cut:
		return false
	case cut:
		d.counters.truncated.Add(1)
	default:
		d.emit(t, payload)
	}
	return true
}

func (d *decoder) emit(t transport, raw []byte) {
	d.message.transport, d.message.raw = t, raw
	d.found(&d.message)
	d.message.index++
}

// assemblyKey names a datagram in fragments or a flow. The protocol is part of an IPv4 datagram's name (RFC 791 §3.2), not of an IPv6 one's
// (RFC 8200 §4.5).
type assemblyKey struct {
	src, dst    netip.AddrPort
	flow        bool
	id, network uint32
	protocol    int
}

// assembly is a datagram whose fragments are still coming, or a flow: one direction of a TCP connection in which a start line was seen, or
// may just have begun.
type assembly struct {
	key      assemblyKey
	place    *list.Element
	touched  time.Time // when its first fragment, or its last segment, was captured
	position uint32    // the offset or sequence number that comes next
	buffer   []byte    // what came before it: of a datagram all, of a flow what isn't framed yet
	waiting  []part    // what came too early, by position
	held     int       // bytes that all this costs

	total, reach int  // of a datagram: its length, 0 until the last fragment came; where the fragment farthest behind ends
	next         int  // the protocol in its first fragment
	dead         bool // the datagram was discarded; what still comes of it must not begin another one

	sip, framed     bool   // of a flow: a start line was seen; framing is right (else it hunts for the next start line)
	webSocket, open bool   // framed by RFC 6455, not by Content-Length; a WebSocket message has begun
	payload         []byte // of the WebSocket message so far
	need            int    // bytes in buffer before there can be more of it
}

// part is a fragment or a segment.
type part struct {
	position uint32
	time     time.Time
	data     []byte
}

// ahead tells by how many bytes p begins behind (above 0) what comes next, or repeats (below 0) what came. Sequence numbers wrap.
func (a *assembly) ahead(p part) int { return int(int32(p.position - a.position)) }

// add begins an assembly.
func (d *decoder) add(key assemblyKey) *assembly {
	a := &assembly{key: key, touched: d.message.time, held: assemblyCost}
	d.held += a.held
	a.place, d.assemblies[key] = d.order.PushBack(a), a
	return a
}

// take adds a part wherever it belongs and reports whether it overlaps another one. What it completes has its time, also where it filled a gap;
// what comes out because a gap was given up has the time of its own segments.
func (d *decoder) take(a *assembly, p part) (overlap bool) {
	if a.ahead(p) > 0 {
		p.data = bytes.Clone(p.data) // it has to wait
	}
	i, known := slices.BinarySearchFunc(a.waiting, p, func(x, y part) int { return int(int32(x.position - y.position)) })
	if len(p.data) > 0 && !(known && bytes.Equal(a.waiting[i].data, p.data)) {
		a.waiting = slices.Insert(a.waiting, i, p)
	}
	n, latest := 0, time.Time{}
	for ; n < len(a.waiting) && a.ahead(a.waiting[n]) <= 0; n++ {
		p := a.waiting[n]
		repeated := min(-a.ahead(p), len(p.data))
		overlap = overlap || !a.key.flow && repeated > 0 && !bytes.HasPrefix(a.buffer[p.position:], p.data)
		if p.time.After(latest) {
			latest, d.message = p.time, message{time: p.time, src: a.key.src, dst: a.key.dst}
		}
		a.buffer = append(a.buffer, p.data[repeated:]...)
		a.position += uint32(len(p.data) - repeated)
		if a.key.flow {
			d.consume(a)
		}
	}
	a.waiting = slices.Delete(a.waiting, 0, n)
	d.held -= a.held
	a.held = assemblyCost + cap(a.buffer) + cap(a.payload)
	for _, p := range a.waiting {
		a.held += len(p.data) + partCost
	}
	d.held += a.held
	return overlap
}

// expire ends what is old, and the oldest where there is too much, by capture time. At the end of time everything is old.
func (d *decoder) expire(now time.Time) {
	for e := d.order.Front(); e != nil; e = d.order.Front() {
		a := e.Value.(*assembly)
		if now.Sub(a.touched) <= assemblyAge && d.held <= maxHeld {
			return
		}
		d.end(a)
	}
}

// flush ends everything: what is incomplete now stays so.
func (d *decoder) flush() { d.expire(time.Unix(1<<40, 0)) }

// end forgets an assembly and counts what stays incomplete.
func (d *decoder) end(a *assembly) {
	for a.key.flow && len(a.waiting) > 0 {
		d.giveUp(a)
	}
	if !a.key.flow && !a.dead {
		d.counters.fragment.Add(1)
	}
	d.lose(a)
	d.forget(a)
}

func (d *decoder) forget(a *assembly) {
	d.held -= a.held
	d.order.Remove(a.place)
	delete(d.assemblies, a.key)
}

// reassemble takes in a fragment and returns the datagram that it completes. Overlapping fragments would let an attacker choose what we see
// and the receiver does not: such a datagram is dropped (RFC 5722).
func (d *decoder) reassemble(key assemblyKey, next, offset int, more bool, data []byte) ([]byte, int) {
	end := offset + len(data) + d.missing
	d.bad = d.bad || end == offset || end > 65535 || more && end%8 != 0
	if d.bad || d.short {
		return nil, 0
	}
	key.src, key.dst, key.network = d.message.src, d.message.dst, d.network
	a := d.assemblies[key]
	if a == nil {
		a = d.add(key)
	}
	if a.dead {
		return nil, 0
	}
	if offset == 0 {
		a.next = next
	}
	overlap := d.take(a, part{uint32(offset), d.message.time, data}) || !more && a.total > 0 && a.total != end
	a.reach = max(a.reach, end)
	if !more {
		a.total = end
	}
	switch {
	case d.missing > 0:
		d.counters.truncated.Add(1)
	case overlap || a.total > 0 && a.reach > a.total:
		d.counters.fragment.Add(1)
	case a.total > 0 && len(a.buffer) == a.total:
		d.forget(a)
		return a.buffer, a.next
	default:
		return nil, 0
	}
	d.held -= a.held - assemblyCost
	a.dead, a.held, a.buffer, a.waiting = true, assemblyCost, nil, nil
	return nil, 0
}

// tcp reads a segment (RFC 9293 §3.1).
func (d *decoder) tcp(b []byte) {
	const fin, syn, rst = 1, 2, 4
	d.ports(b)
	header, flags := d.u8(b, 12)>>4*4, d.u8(b, 13)
	p, frame := part{d.u32(b, 4, 4), d.message.time, d.tail(b, header)}, d.message
	if d.bad = !d.short && header < 20; d.bad || d.short {
		return
	}
	if flags&syn != 0 {
		p.position++
	}
	key := assemblyKey{src: d.message.src, dst: d.message.dst, network: d.network, flow: true}
	a := d.assemblies[key]
	if a != nil && (flags&syn != 0 || max(a.ahead(p), -a.ahead(p)) > window) { // another connection on the same ports
		d.end(a)
		a, d.message = nil, frame
	}
	if a == nil {
		if _, sip, _ := find(p.data); sip == no {
			o := &d.orphans[d.orphan%len(d.orphans)]
			o.key, o.position, o.time, o.data = key, p.position, p.time, append(o.data[:0], p.data...)
			d.orphan++
			return
		}
		a = d.add(key)
		a.position = p.position
		for _, o := range d.orphans {
			if ahead := a.ahead(o.part); o.key == key && ahead > 0 && ahead < window && frame.time.Sub(o.time) <= gapAge {
				d.take(a, o.part)
			}
		}
	}
	a.touched = frame.time
	d.order.MoveToBack(a.place)
	d.take(a, p)
	if end := p.position + uint32(len(p.data)+d.missing); d.missing > 0 && int32(end-a.position) > 0 {
		d.counters.truncated.Add(1)
		a.restart()
		a.position = end
	}
	if len(a.waiting) > 0 && (a.held > maxWaiting || frame.time.Sub(a.waiting[0].time) > gapAge) {
		d.giveUp(a)
	}
	if flags&(fin|rst) != 0 && a.ahead(p) == -len(p.data) {
		d.lose(a)
	}
	if !a.sip && len(a.buffer) == 0 {
		d.end(a)
	}
}

// giveUp goes on behind a lost segment.
func (d *decoder) giveUp(a *assembly) {
	if a.framed {
		d.counters.streamGap.Add(1)
	}
	a.restart()
	a.position = a.waiting[0].position
	d.take(a, part{})
}

// lose counts the message that the flow is in the middle of.
func (d *decoder) lose(a *assembly) {
	if a.framed && (len(a.buffer) > 0 || a.open) {
		d.counters.streamGap.Add(1)
	}
	a.restart()
}

// restart goes back to hunting.
func (a *assembly) restart() {
	a.framed, a.webSocket, a.open, a.buffer, a.payload, a.need = false, false, false, nil, nil, 0
}

// consume hands over the messages at the start of a flow's buffer.
func (d *decoder) consume(a *assembly) {
	if len(a.buffer) < a.need {
		return
	}
	a.need = 0
	b := a.buffer
	for more := true; more && len(b) > 0; {
		switch {
		case !a.framed:
			var sip verdict
			b, sip, a.webSocket = find(b)
			more = sip == yes
			a.framed, a.sip = more, a.sip || more
		case a.webSocket:
			b, more = d.webSocket(a, b)
		default:
			b, more = d.stream(a, b)
		}
	}
	if a.buffer = append(a.buffer[:0], b...); len(b) == 0 || len(b) > 2*maxMessage {
		a.buffer = nil
	}
}

// stream takes the message at the start of b, framed by its Content-Length (RFC 3261 §18.3). Two that differ are as bad as none: the next hop
// may believe another one than we do.
func (d *decoder) stream(a *assembly, b []byte) (rest []byte, more bool) {
	b = bytes.TrimLeft(b, "\r\n") // a keep-alive (RFC 5626 §3.5.1)
	if startLine(b) == no {
		a.restart()
		return b, true
	}
	after := body(b)
	if after == nil && len(b) <= maxMessage {
		return b, false
	}
	headers := b[:len(b)-len(after)]
	value := firstHeader(headers, "content-length")
	length, err := strconv.ParseUint(string(value), 10, 16)
	differs := anyHeader(headers, "content-length", func(other []byte) bool { return !bytes.Equal(other, value) })
	end := len(headers) + int(length)
	switch {
	case after == nil || errors.Is(err, strconv.ErrRange) || end > maxMessage:
		d.counters.oversize.Add(1)
	case err != nil || differs:
		d.counters.badLength.Add(1)
	case len(b) < end:
		a.need = end
		return b, false
	default:
		d.emit(tcp, b[:end])
		return b[end:], true
	}
	a.restart()
	_, rest = cutLine(b)
	return rest, true
}

// webSocket takes the frame at the start of b (RFC 6455 §5.2) and the message that it completes (RFC 7118 §5).
func (d *decoder) webSocket(a *assembly, b []byte) (rest []byte, more bool) {
	header, length, key := webSocketFrame(b)
	opcode := b[0] & 0x7f
	switch {
	case header == 0:
		return b, false
	case opcode > 2 && opcode < 8 || opcode > 10: // an extension, or not WebSocket at all
		d.lose(a)
		return b[1:], true
	case length > maxMessage || opcode == 0 && len(a.payload)+length > maxMessage:
		d.counters.oversize.Add(1)
		a.restart()
		return b[min(len(b), header+length):], true
	case len(b) < header+length:
		a.need = header + length
		return b, false
	case opcode == 1 || opcode == 2:
		a.open, a.payload = true, a.payload[:0]
	}
	if opcode < 8 {
		a.payload = appendUnmasked(a.payload, b[header:header+length], key)
		if final := b[0]&0x80 != 0; final {
			if a.open {
				d.whole(ws, a.payload, false)
			}
			a.open, a.payload = false, a.payload[:0]
		}
	}
	return b[header+length:], true
}

// webSocketFrame reads the header of a frame; it is 0 bytes long until it is complete. Without a mask the key is zero. A length is 2^40 at most.
func webSocketFrame(b []byte) (header, length int, key [4]byte) {
	if len(b) < 2 {
		return 0, 0, key
	}
	header, length = 2, int(b[1]&127)
	if length > 125 {
		header = 4 + 6*(length-126)
	}
	mask := 4 * int(b[1]>>7)
	if len(b) < header+mask {
		return 0, 0, key
	}
	switch length {
	case 126:
		length = int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		length = int(min(binary.BigEndian.Uint64(b[2:]), 1<<40))
	}
	copy(key[:mask], b[header:])
	return header + mask, length, key
}

func appendUnmasked(to, payload []byte, key [4]byte) []byte {
	for i, c := range payload {
		to = append(to, c^key[i%4])
	}
	return to
}

// verdict tells whether bytes are what they are tested for; maybe: that depends on bytes that aren't there yet.
type verdict uint8

const no, maybe, yes = verdict(0), verdict(1), verdict(2)

// find looks for the first line of b with which a SIP message begins or may begin, or for a WebSocket frame with one: at the start, or behind
// the handshake (RFC 6455 §1.3).
func find(b []byte) (rest []byte, sip verdict, webSocket bool) {
	frame := b
	if bytes.HasPrefix(b, []byte("GET ")) || bytes.HasPrefix(b, []byte("HTTP/1.1 101")) {
		frame = body(b)
	}
	if sip = webSocketStart(frame); sip != no {
		return frame, sip, true
	}
	for ; len(b) > 0; _, b = cutLine(b) {
		line := bytes.TrimLeft(b, "\r\n")
		if sip = startLine(line); sip != no && len(line) > 0 {
			return line, sip, false
		}
	}
	return nil, no, false
}

// webSocketStart reports whether b begins with a WebSocket frame that carries a start line, or its beginning.
func webSocketStart(b []byte) verdict {
	if len(b) == 0 || b[0]&0x7f != 1 && b[0]&0x7f != 2 {
		return no
	}
	header, length, key := webSocketFrame(b)
	if header == 0 {
		return maybe
	}
	payload := appendUnmasked(nil, b[header:min(len(b), header+length)], key)
	sip := startLine(bytes.TrimLeft(payload, "\r\n"))
	if whole := len(payload) == length; whole && sip == maybe && b[0] < 0x80 {
		return yes // the start line goes on in the next frame
	} else if whole && sip == maybe {
		return no
	}
	return sip
}

var statusLine = regexp.MustCompile(`^[0-9]{3}( |$)`)

// startLine reports whether b begins with the start line of a SIP/2.0 message (RFC 3261 §7.1, §7.2), lenient about the Request-URI.
func startLine(b []byte) verdict {
	version := []byte("SIP/2.0")
	line, rest := cutLine(b)
	first, after, _ := bytes.Cut(line, []byte(" "))
	request := !bytes.ContainsFunc(first[:min(len(first), maxMethod)], func(r rune) bool { return r > 127 || !isToken(byte(r)) })
	response := bytes.EqualFold(first, version[:min(len(first), len(version))])
	uri, last := len(after)-len(" SIP/2.0"), []byte(nil) // where the Request-URI ends
	if uri > 0 {
		last = after[uri+1:]
	}
	switch {
	case len(b) > 0 && len(first) == 0 || len(first) > maxMethod || !request && !response:
		return no
	case rest == nil:
		return maybe
	case request && uri > 0 && after[uri] == ' ' && bytes.EqualFold(last, version), !request && len(first) == len(version) && statusLine.Match(after):
		return yes
	}
	return no
}
