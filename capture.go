package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
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
	maxYoung    = 120_000          // assemblies that are young, and as many may be old; past that the old ones are ended
	maxHeld     = 6 << 20          // bytes that the young ones hold, and as many the old ones
	maxWaiting  = 512 << 10        // bytes of a datagram, or of a flow that wait for a lost segment; more, and it is given up
	overhead    = 64               // bytes that a part costs besides its data, and as many its place: tiny ones count too
	assemblyAge = 30 * time.Second // of capture time, in which a datagram must be complete; after twice that without a segment a flow is ended
	gapAge      = 2 * time.Second  // of capture time in which a lost segment may be sent again
	window      = 1 << 20          // sequence numbers farther apart than this belong to different connections on the same ports
)

// decoder finds the SIP messages in frames. All of its state belongs to the one goroutine that calls frame, expire and flush.
type decoder struct {
	counters   *counters
	found      func(*message)           // takes every message; must not keep its bytes
	young, old map[assemblyKey]assembly // to which something came since the last turn; since the one before
	held       int                      // bytes in the backlogs of the young ones
	turned     time.Time                // when the young ones became old, in capture time
	spare      backlog                  // of the assembly in hand, if it had none
	orphanOf   assemblyKey              // the flow that the next one would belong to:
	orphan     part                     // the last segment of no flow: the beginning of a stream may come right behind it
	unmasked   []byte                   // the payload of the last WebSocket frame

	// Of the frame in hand:
	message    message // its addresses are those of the innermost packet so far
	network    int     // a hash of VLANs and tunnels: the same address in another network is another host
	missing    int     // bytes at the end of the packet that were not captured
	cut        bool    // the snap length may have cut it, or the mirror that it came in
	short, bad bool    // a header isn't there as a whole; the frame contradicts itself
}

func newDecoder(counters *counters, found func(*message)) *decoder {
	return &decoder{counters: counters, found: found, young: map[assemblyKey]assembly{}, old: map[assemblyKey]assembly{}}
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
	d.decode(link, data)
}

// linkHeader is where the EtherType is in the header of a link, or -1 if IP follows, and the size of that header.
type linkHeader struct{ etherType, size int }

// links has the link types that are read.
var links = [256]linkHeader{layers.LinkTypeEthernet: {12, 14}, layers.LinkTypeLinuxSLL: {14, 16}, sll2: {0, 20},
	layers.LinkTypeNull: {-1, 4}, layers.LinkTypeLoop: {-1, 4},
	layers.LinkTypeRaw: {-1, 0}, rawIP: {-1, 0}, layers.LinkTypeIPv4: {-1, 0}, layers.LinkTypeIPv6: {-1, 0}}

const sll2, rawIP = 276 & 0xff, 12 // gopacket keeps a byte of a link type; as libpcap numbers it on Linux

// A layer is an EtherType, protocol plus an IP protocol, or tunnel plus a port of UDP.
const ip, mac, protocol, tunnel = 0x0800, 0x6558, 1 << 16, 1 << 17 // the EtherTypes of IP, and of Ethernet in a tunnel

// decode reads header after header, from the link to SIP. What isn't IP, or is another protocol, is no concern of ours.
func (d *decoder) decode(link layers.LinkType, b []byte) {
	layer, at, frame := ip, links[link].etherType, b
	b = d.behind(b, links[link].size)
	if at >= 0 && !d.short {
		layer = u16(frame[at:])
	}
	for headers := 0; headers < maxHeaders && layer != 0 && !d.short && !d.bad; headers++ {
		var h [40]byte // the header, or its beginning; what isn't there is 0, and noticed below
		copy(h[:], b)
		size, next := 0, 0
		switch layer {
		case mac:
			size, next = 14, u16(h[12:])
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
			b, next = d.reassemble(u32(h[4:]), 0, protocol+int(h[0]), u16(h[2:])&^7, h[3]&1 != 0, d.behind(b, 8))
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
	return d.reassemble(u16(h[4:]), next, protocol+next, 8*(fragment&0x1fff), fragment&0x2000 != 0, payload)
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
	sip, readable := startLine(bytes.TrimLeftFunc(payload, isCRLF)), !d.short && !d.bad // else the frame is counted
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
	src, dst     [16]byte
	network      int
	id, protocol uint32 // of a flow its ports, and isFlow
}

const isFlow = 1 << 16 // more than any protocol

// key names the assembly of the packet in hand.
func (d *decoder) key(id, protocol int) assemblyKey {
	return assemblyKey{d.message.src.Addr().As16(), d.message.dst.Addr().As16(), d.network, uint32(id), uint32(protocol)}
}

// assembly is a datagram whose fragments are still coming, or a flow: one direction of a TCP connection in which a start line was seen, or
// may just have begun. Most flows hold nothing between two segments: these have no backlog, and there may be a hundred thousand of them.
type assembly struct {
	*backlog
	held                int    // bytes in the backlog
	position            uint32 // of a flow: the sequence number that comes next
	sip, webSocket, cut bool   // a start line was seen; it is framed by RFC 6455, not by Content-Length; a part was not captured as a whole
}

type backlog struct {
	waiting     []part // fragments, or the segments behind a lost one; the one with the lowest position last
	size        int    // bytes of them, with overhead
	next, total int    // of a datagram: the protocol in its first fragment; its length, 0 until the last fragment came
	buffer      []byte // of a flow: what came before the position and isn't a message yet
	payload     []byte // of the WebSocket message so far; nil: none has begun
}

// part is a fragment or a segment.
type part struct {
	position uint32
	time     time.Time
	data     []byte
}

// take returns the assembly of that name, or a new one, to be kept or ended.
func (d *decoder) take(key assemblyKey) (a assembly, known bool) {
	if a, known = d.young[key]; known {
		d.held -= a.held
	} else if a, known = d.old[key]; known {
		delete(d.old, key)
	}
	d.spare = backlog{}
	a.backlog = cmp.Or(a.backlog, &d.spare)
	return a, known
}

// keep puts an assembly back, among the young ones.
func (d *decoder) keep(key assemblyKey, a assembly) {
	if a.held = a.size + overhead*(cap(a.waiting)+2) + cap(a.buffer) + cap(a.payload); a.size+len(a.buffer) == 0 && a.payload == nil {
		a.held, a.backlog = 0, nil
	} else if a.backlog == &d.spare {
		a.backlog = new(d.spare)
	}
	d.young[key], d.held = a, d.held+a.held
}

// hold keeps a part in its place among those that wait.
func (b *backlog) hold(p part) {
	i, known := slices.BinarySearchFunc(b.waiting, p, func(x, y part) int { return int(int32(y.position - x.position)) })
	if !known || !bytes.Equal(b.waiting[i].data, p.data) {
		p.data = bytes.Clone(p.data)
		b.waiting, b.size = slices.Insert(b.waiting, i, p), b.size+len(p.data)+overhead
	}
}

// expire ends the old assemblies and makes the young ones old, when it is time, or when too much is held.
func (d *decoder) expire(now time.Time) {
	turns := min(now.Sub(d.turned)/assemblyAge, 2)
	if turns <= 0 && d.held <= maxHeld && len(d.young) <= maxYoung {
		return
	}
	for range max(turns, 1) {
		for key, a := range d.old {
			if a.backlog != nil {
				d.end(key, &a)
			}
		}
		clear(d.old)
		d.young, d.old, d.held = d.old, d.young, 0
	}
	d.turned = now
}

// flush ends everything: after an hour all is old.
func (d *decoder) flush() { d.expire(d.turned.Add(time.Hour)) }

// end counts what stays incomplete of an assembly, and forgets it.
func (d *decoder) end(key assemblyKey, a *assembly) {
	for key.protocol == isFlow && len(a.waiting) > 0 {
		d.giveUp(key, a)
	}
	switch {
	case a.cut:
		d.counters.truncated.Add(1)
	case key.protocol != isFlow:
		d.counters.fragment.Add(1)
	case a.sip && (len(a.buffer) > 0 || a.payload != nil):
		d.counters.streamGap.Add(1)
	}
	delete(d.young, key)
}

// reassemble takes a fragment and goes on with the datagram that it completes; what isn't a fragment is whole already.
// Overlapping fragments would let an attacker choose what we see and the receiver does not (RFC 5722): such a datagram is never
// complete, as its fragments have more bytes than it, and ends when it is old.
func (d *decoder) reassemble(id, kind, next, offset int, more bool, data []byte) (datagram []byte, protocol int) {
	end := offset + len(data) + d.missing
	d.bad = d.bad || (offset > 0 || more) && (end > 65535 || more && end%8 != 0)
	if offset == 0 && !more || len(data) == 0 || d.bad || d.short {
		return data, next
	}
	key := d.key(id, kind)
	a, _ := d.take(key)
	late := func(p part) bool { return d.message.time.Sub(p.time) > assemblyAge }
	if a.size > maxWaiting || slices.ContainsFunc(a.waiting, late) {
		d.end(key, &a)
		a, _ = d.take(key)
	}
	a.hold(part{uint32(offset), d.message.time, data})
	a.cut = a.cut || d.missing > 0
	if offset == 0 {
		a.next = next
	}
	if !more {
		a.total = end
	}
	for _, p := range slices.Backward(a.waiting) {
		if a.size != a.total+overhead*len(a.waiting) || int(p.position) != len(datagram) {
			d.keep(key, a)
			return nil, 0
		}
		datagram = append(datagram, p.data...)
	}
	delete(d.young, key)
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
	key := d.key(u32(h[0:]), isFlow)
	a, known := d.take(key)
	if known && (syn != 0 || a.ahead(p) > window || a.ahead(p) < -window) { // another connection on the same ports
		d.end(key, &a)
		a, known = d.take(key)
	}
	if !known {
		if _, sip, _ := find(p.data); sip == no {
			d.orphanOf, d.orphan = key, part{p.position, now, append(d.orphan.data[:0], p.data...)}
			return
		}
		a.position = p.position
		if early := a.ahead(d.orphan); d.orphanOf == key && early > 0 && early < window && now.Sub(d.orphan.time) <= gapAge {
			a.hold(d.orphan)
		}
	}
	a.cut, d.missing = d.missing > 0, 0 // what is there of it is whole
	if a.ahead(p) > 0 {
		a.hold(p)
	} else {
		d.advance(&a, p)
	}
	if last := len(a.waiting) - 1; last >= 0 && (a.size > maxWaiting || now.Sub(a.waiting[last].time) > gapAge) {
		d.giveUp(key, &a)
	}
	if a.cut || len(a.buffer) == 0 && !a.sip {
		d.end(key, &a)
	} else {
		d.keep(key, a)
	}
}

// ahead tells by how many bytes p begins behind (above 0) what comes next, or repeats (below 0) what came. Sequence numbers wrap.
func (a *assembly) ahead(p part) int { return int(int32(p.position - a.position)) }

// giveUp goes on behind a lost segment.
func (d *decoder) giveUp(key assemblyKey, a *assembly) {
	if a.sip {
		d.counters.streamGap.Add(1)
	}
	a.sip, a.webSocket, a.buffer, a.payload = false, false, nil, nil
	a.position = a.waiting[len(a.waiting)-1].position
	d.message.src = netip.AddrPortFrom(netip.AddrFrom16(key.src).Unmap(), uint16(key.id>>16))
	d.message.dst = netip.AddrPortFrom(netip.AddrFrom16(key.dst).Unmap(), uint16(key.id))
	d.advance(a, part{position: a.position})
}

// advance takes in a segment that comes next, and those that waited for it, and hands over the messages that they complete. These have the
// time of the last of the segments.
func (d *decoder) advance(a *assembly, p part) {
	d.message.time, d.message.index = p.time, 0
	for {
		b := p.data[min(-a.ahead(p), len(p.data)):]
		a.position += uint32(len(b))
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
		last := len(a.waiting) - 1
		if last < 0 || a.ahead(a.waiting[last]) > 0 {
			return
		}
		p, a.waiting[last] = a.waiting[last], part{} // or the array would keep its bytes
		a.waiting, a.size = a.waiting[:last], a.size-len(p.data)-overhead
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
	value, fields, differ := []byte(nil), 0, false
	_, after := headers(b, "content-length", func(other []byte) bool {
		differ = differ || fields > 0 && !bytes.Equal(value, other)
		value, fields = other, fields+1
		return false
	})
	length, err := strconv.ParseUint(string(value), 10, 64) // 2^64-1 if it is larger
	end := len(b) - len(after) + int(min(length, maxMessage+1))
	switch {
	case after == nil && len(b) <= maxMessage:
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
	size, length, payload := webSocketFrame(d.unmasked, b)
	opcode, final := b[0]&0x7f, b[0] >= 0x80
	d.unmasked = payload
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
		a.payload, d.unmasked = payload, nil
	}
	if final && opcode <= 2 {
		if startLine(bytes.TrimLeftFunc(a.payload, isCRLF)) == yes {
			d.emit(ws, a.payload)
		}
		a.payload, d.unmasked = nil, a.payload
	}
	return b[size:], true
}

// webSocketFrame reads the frame at the start of b: its size and that of its payload (2^24 at most; 0 until its header is whole), and what
// is there of the payload, unmasked (RFC 6455 §5.3), in the buffer if that is large enough.
func webSocketFrame(buffer, b []byte) (size, length int, payload []byte) {
	var h [14]byte
	copy(h[:], b)
	length, size = int(h[1]&127), 2
	switch length {
	case 126:
		length, size = u16(h[2:]), 4
	case 127:
		length, size = int(min(binary.BigEndian.Uint64(h[2:]), 1<<24)), 10
	}
	var key [4]byte // all zero without a mask
	if size += copy(key[:h[1]>>7*4], h[size:]); len(b) < size {
		return 0, 0, buffer[:0]
	}
	there, mask := min(length, len(b)-size), uint64(binary.LittleEndian.Uint32(key[:]))*(1<<32+1) // the key twice
	payload = append(append(buffer[:0], b[size:size+there]...), make([]byte, 8)...)
	for i := 0; i < there; i += 8 {
		binary.LittleEndian.PutUint64(payload[i:], binary.LittleEndian.Uint64(payload[i:])^mask)
	}
	return size + length, length, payload[:there]
}

// find looks for the first line of b with which a SIP message begins or may begin, or a WebSocket frame with one. Of such a frame it reads
// 256 bytes: no segment can make it unmask the same bytes for each of its lines.
func find(b []byte) (rest []byte, sip verdict, webSocket bool) {
	for ; len(b) > 0; _, b = cutLine(b) {
		if opcode := b[0] & 0x7f; opcode == 1 || opcode == 2 {
			if _, _, payload := webSocketFrame(make([]byte, 300), b[:min(len(b), 256)]); startLine(bytes.TrimLeftFunc(payload, isCRLF)) != no {
				return b, yes, true
			}
		}
		if sip = startLine(b); sip != no {
			return b, sip, false
		}
	}
	return nil, no, false
}
