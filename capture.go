package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcap"
)

// From libpcap to SIP messages:
//
//	source → frame → headers, tunnels → datagram, put together from fragments → message
//	                                  → segment → track of a flow → framer → message
//
// Limits on what the wire can make the sensor keep, for each source. Times are of the capture.
const (
	maxMessage = 65535   // bytes of a message; its envelope stays below the 128 KB of cloud brokers
	maxSkip    = 2 << 20 // bytes of a message too large that are skipped; more is a mistake
	maxHeaders = 24      // in a frame: tags, extensions, tunnels; a longer chain is an attack

	maxDatagrams = 5 << 20   // bytes that datagrams in fragments hold
	maxFlows     = 6 << 20   // bytes that flows hold; most hold nothing
	maxIdle      = 105_000   // flows that hold nothing, and as many that had nothing to say lately
	maxWaiting   = 256 << 10 // bytes of one datagram, or that wait for one lost segment
	pieceSize    = 16        // bytes of a piece
	overhead     = 128       // bytes that a piece, segment, datagram or flow costs besides its data
	maxGone      = 1000      // dropped ones that a pool's queue may have beyond those in use

	fragmentAge = 30 * time.Second // in which a datagram must be complete
	flowAge     = time.Minute      // after which a flow without segments is forgotten
	gapAge      = 2 * time.Second  // in which a lost segment may be sent again
	window      = 1 << 20          // sequence numbers farther apart are of different connections

	maxLengths          = 64   // fields of Content-Length in a message
	maxFolds            = 64   // lines on which one goes on
	maxChecksums        = 8    // datagrams under one identification that fail, until all of it goes
	maxWebSocketTries   = 8    // places in a segment where a WebSocket stream may begin
	maxWebSocketLine    = 1024 // bytes of a start line with which one begins
	maxWebSocketSection = 8192 // bytes of a header section with which one begins that has no mask
)

// captureCounters are shared by all captures.
type captureCounters struct {
	packets, packetsDropped, packetsInvalid             atomic.Uint64
	truncated, fragment, streamGap, badLength, oversize atomic.Uint64
	down, reopened                                      atomic.Int64 // devices, how often
}

// source is where frames come from, as the configuration says.
type source struct {
	name        string // of a device, or of a capture file ("-" is standard input)
	isFile      bool
	bpf         string // "": the default for its link type
	snaplen     int    // bytes
	bufferBytes int
	promiscuous bool // never on any
}

// errUnusable is in the errors of what trying again doesn't mend: a filter or a link type.
var errUnusable = errors.New("can't be used")

// open opens the device or the file. A BPF filter that is refused never means an unfiltered
// capture.
func (s *source) open() (*pcap.Handle, error) {
	handle, err := s.activate()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", s.name, err)
	}
	link, err := linkTypeOf(handle)
	if err == nil {
		err = refused(handle.SetBPFFilter(cmp.Or(s.bpf, defaultBPF(link))), link)
	}
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("opening %s: %w", s.name, err)
	}
	return handle, nil
}

// activate makes a handle of libpcap. There is no immediate mode: that would size each slot of the
// kernel's buffer by the snap length. Half the timeout is the latency.
func (s *source) activate() (*pcap.Handle, error) {
	if s.isFile {
		handle, err := pcap.OpenOffline(s.name)
		if err != nil && strings.Contains(err.Error(), "unknown file format") {
			err = fmt.Errorf("%w: neither pcap nor pcapng; unpack it, if compressed", err)
		}
		return handle, err
	}
	inactive, err := pcap.NewInactiveHandle(s.name)
	if err != nil {
		return nil, err
	}
	defer inactive.CleanUp()
	err = errors.Join(
		inactive.SetSnapLen(s.snaplen),
		inactive.SetPromisc(s.promiscuous && s.name != "any"),
		inactive.SetTimeout(50*time.Millisecond),
		inactive.SetBufferSize(s.bufferBytes),
	)
	if err != nil {
		return nil, err
	}
	handle, err := inactive.Activate()
	if err != nil && strings.Contains(strings.ToLower(err.Error()), "permi") {
		err = fmt.Errorf("%w (capturing needs the capability NET_RAW)", err)
	}
	return handle, err
}

// checkFile tells what is wrong with a file, as far as its first frame. What can be read only once
// isn't read.
func (s *source) checkFile() error {
	if !s.isFile || s.isPipe() {
		return nil
	}
	handle, err := s.activate()
	if err != nil {
		return err
	}
	defer handle.Close()
	_, err = linkTypeOf(handle)
	if err != nil {
		return err
	}
	_, _, err = handle.ZeroCopyReadPacketData()
	if errors.Is(err, pcap.NextErrorReadError) {
		if err, isHopeless := readError(handle); isHopeless {
			return err
		}
	}
	return nil // what is cut is read as far as it goes
}

func (s *source) isPipe() bool {
	info, err := os.Stat(s.name)
	return s.name == "-" || err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// checkBPF tells what is wrong with the filter. It has to fit the link type of the file; most
// devices are Ethernet, and the start knows better.
func (s *source) checkBPF() error {
	link, number := ethernet, layers.LinkTypeEthernet
	if s.isFile && !s.isPipe() {
		if handle, err := s.activate(); err == nil {
			defer handle.Close()
			link, err := linkTypeOf(handle)
			if err == nil {
				return refused(handle.SetBPFFilter(cmp.Or(s.bpf, defaultBPF(link))), link)
			}
		}
	}
	if s.name == "any" && !s.isFile {
		link, number = linuxCooked, layers.LinkTypeLinuxSLL
	}
	_, err := pcap.CompileBPFFilter(number, maxMessage, cmp.Or(s.bpf, defaultBPF(link)))
	return refused(err, link)
}

// refused is an error if a BPF filter is.
func refused(err error, link linkType) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the BPF filter %w on link type %s: %w", errUnusable, link.name, err)
}

// linkType is a link type that is read: where its header has the EtherType, and the size of that
// header.
type linkType struct {
	name        string // as libpcap has it
	etherTypeAt int    // or noEtherType: IP follows
	headerSize  int
}

const noEtherType = -1

var (
	ethernet    = linkType{"EN10MB", 12, 14}
	linuxCooked = linkType{"LINUX_SLL", 14, 16}
	linkTypes   = []linkType{
		ethernet,
		linuxCooked,
		{"LINUX_SLL2", 0, 20},
		{"NULL", noEtherType, 4},
		{"LOOP", noEtherType, 4},
		{"RAW", noEtherType, 0},
		{"IPV4", noEtherType, 0},
		{"IPV6", noEtherType, 0},
	}
)

// linkTypeOf goes by the name, as gopacket keeps only the lower 8 bits of the number. libpcap lists
// the type that the handle has first.
func linkTypeOf(handle *pcap.Handle) (linkType, error) {
	names, err := handle.ListDataLinks()
	if err != nil || len(names) == 0 {
		return linkType{}, fmt.Errorf("no link type: %w", err)
	}
	read := ""
	for _, link := range linkTypes {
		if link.name == names[0].Name {
			return link, nil
		}
		read += " " + link.name
	}
	name := names[0].Name
	if name == "" { // libpcap's error has the number
		name = fmt.Sprint(handle.SetBPFFilter("ip"))
	}
	return linkType{}, fmt.Errorf("link type %s %w; it reads%s", name, errUnusable, read)
}

// defaultBPF selects port 5060 over UDP, TCP and SCTP, the fragments that may belong to it (only
// the first one has the port), IPv6 behind extension headers, and on Ethernet all this inside one
// or two VLAN tags: vlan shifts the offsets of what follows it, and fails on other links. In
// libpcap's language 'and' and 'or' have the same precedence: hence all the parentheses.
func defaultBPF(link linkType) string {
	const sip = "((ip and (ip[9] = 6 or ip[9] = 17 or ip[9] = 132) and (ip[6:2] & 0x3fff != 0" +
		" or ip[((ip[0] & 15) << 2):2] = 5060 or ip[((ip[0] & 15) << 2) + 2:2] = 5060))" +
		" or (ip6 and (((ip6[6] = 6 or ip6[6] = 17 or ip6[6] = 132)" +
		" and (ip6[40:2] = 5060 or ip6[42:2] = 5060))" +
		" or ((ip6[6] = 0 or ip6[6] = 43 or ip6[6] = 44 or ip6[6] = 60) and ip6[40] != 58))))"
	if link != ethernet {
		return sip
	}
	return sip + " or (vlan and (" + sip + " or (vlan and " + sip + ")))"
}

// capture hands every frame to the decoder, to the end of the file, or until ctx ends. A device
// that fails is opened again, for as long as it takes, every 1 s to 30 s. The goroutine that calls
// it alone owns the decoder: there are no locks.
func (s *source) capture(ctx context.Context, handle *pcap.Handle, d *decoder) error {
	defer d.flush()
	for {
		err := s.read(ctx, handle, d)
		if err == nil || s.isFile {
			return err
		}
		d.counters.down.Add(1)
		for delay := time.Second; err != nil; delay = min(2*delay, 30*time.Second) {
			slog.Error("capture failed, trying again", "error", err, "in", delay.String())
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(delay):
			}
			handle, err = s.open()
		}
		d.counters.down.Add(-1)
		d.counters.reopened.Add(1)
		slog.Info("capturing again", "device", s.name)
	}
}

// read returns nil at the end of the file or of ctx. Then what the kernel has buffered still
// comes, for at most lastFrames. Asking for the kernel's counters costs as much as 50 frames.
func (s *source) read(ctx context.Context, handle *pcap.Handle, d *decoder) error {
	const lastFrames = 200 * time.Millisecond
	var dropped uint32
	var asked, stop time.Time
	defer func() {
		d.countDropped(handle, dropped)
		handle.Close()
	}()
	link, err := linkTypeOf(handle)
	if err != nil {
		return err
	}
	for frames := 0; ; frames++ {
		data, info, err := handle.ZeroCopyReadPacketData()
		switch {
		case err == nil:
			captured := info.Timestamp
			if s.isFile && captured.Unix() < 0 { // pcap has 32 bits without a sign
				captured = captured.Add(1 << 32 * time.Second)
			}
			d.frame(link, data, captured, info.CaptureLength < info.Length)
		case errors.Is(err, pcap.NextErrorTimeoutExpired):
			d.expire(time.Now()) // also on a quiet device
		case errors.Is(err, pcap.NextErrorReadError):
			err, _ = readError(handle)
			return fmt.Errorf("reading %s: %w", s.name, err)
		default: // the end of the file
			return nil
		}
		if (err != nil || frames%64 == 0) && time.Since(asked) > time.Second {
			asked = time.Now()
			dropped = d.countDropped(handle, dropped)
		}
		if ctx.Err() == nil {
			continue
		}
		if stop.IsZero() {
			stop = time.Now().Add(lastFrames)
		}
		if s.isFile || time.Now().After(stop) {
			return nil
		}
	}
}

// countDropped adds what the kernel has dropped since the last call. Its counter of 32 bits wraps.
func (d *decoder) countDropped(handle *pcap.Handle, before uint32) uint32 {
	stats, err := handle.Stats()
	if err != nil {
		return before
	}
	now := uint32(stats.PacketsDropped)
	d.counters.packetsDropped.Add(uint64(now - before))
	return now
}

// explanations are of errors of libpcap, which reads no pcapng files of devices that differ.
var explanations = map[string]string{
	"different from the type of the first interface": "split the file, for each N from 0:" +
		" tshark -r FILE -Y 'frame.interface_id == N' -w N.pcapng," +
		" then editcap -T ether (or -T linux-sll) -F pcap N.pcapng N.pcap",
	"different from the snapshot length": "convert the file: editcap -F pcap FILE FILE.pcap",
}

// readError is the error of a handle that couldn't read, and whether all of its file is of no use.
func readError(handle *pcap.Handle) (err error, isHopeless bool) {
	err = handle.Error()
	for text, explanation := range explanations {
		if strings.Contains(err.Error(), text) {
			return fmt.Errorf("%w: %s", err, explanation), true
		}
	}
	return err, false
}

// decoder finds the SIP messages in frames. All of its state belongs to the one goroutine that
// calls frame, expire and flush.
type decoder struct {
	counters  *captureCounters
	found     func(*message) // takes every message; must not keep its bytes
	datagrams pool[datagramKey, datagram]
	flows     pool[path, flow]
	idle      map[path]*idle // flows that hold nothing
	silent    map[path]*idle // those to which nothing came since the last turn
	turned    time.Duration  // when idle flows became silent ones
	failed    time.Time      // when a mistake of ours was logged
	spare     flow           // the flow in hand, until it holds something
	whole     []byte         // the datagram that the last fragment completed
	unmasked  []byte         // the payload of the last WebSocket frame

	inHand
}

// inHand is what is known of the frame in hand.
type inHand struct {
	path            // of the innermost packet so far
	message message // the next one
	missing int     // bytes at the end of the packet that were not captured
	cut     bool    // the snap length may have cut it, or the mirror that it came in
	short   bool    // a header isn't there as a whole
	bad     bool    // the frame contradicts itself
}

// path is from where to where a packet goes.
type path struct {
	src, dst [16]byte // addresses of IPv4 in their form in IPv6
	network  uint64   // of tags and tunnels: the same address in another network is another host
	ports    uint32   // that of src in the upper half
}

func newDecoder(counters *captureCounters, found func(*message)) *decoder {
	d := &decoder{counters: counters, found: found, idle: map[path]*idle{}}
	d.datagrams = pool[datagramKey, datagram]{
		entries: map[datagramKey]*pooled[datagramKey, datagram]{},
		limit:   maxDatagrams,
		age:     fragmentAge,
		end:     d.endDatagram,
	}
	d.flows = pool[path, flow]{
		entries: map[path]*pooled[path, flow]{},
		limit:   maxFlows,
		age:     flowAge,
		end:     d.endFlow,
	}
	return d
}

// frame hands over the messages that a frame completes. It may have been cut by the snap length.
func (d *decoder) frame(link linkType, data []byte, captured time.Time, cut bool) {
	defer d.recovered()
	d.counters.packets.Add(1)
	d.endOld(captured)
	d.inHand = inHand{message: message{time: captured}, cut: cut}
	d.decode(link, data)
	if d.bad || d.short && !d.cut {
		d.counters.packetsInvalid.Add(1)
	} else if d.short {
		d.counters.truncated.Add(1)
	}
}

// expire does what time brings where no frame comes.
func (d *decoder) expire(now time.Time) {
	defer d.recovered()
	d.endOld(now)
}

func (d *decoder) endOld(now time.Time) {
	at := sinceEpoch(now)
	if len(d.idle) > maxIdle || at-d.turned > flowAge {
		d.idle, d.silent = map[path]*idle{}, d.idle
		d.turned = at
	}
	d.datagrams.expire(at)
	d.flows.expire(at)
}

// sinceEpoch is a time as pools have it: such times are quick to compare, and differ rightly even
// where they wrap.
func sinceEpoch(t time.Time) time.Duration { return time.Duration(t.UnixNano()) }

// flush ends everything, however far in the future its frames were stamped: nothing is younger than
// the least age. No frame comes after it.
func (d *decoder) flush() {
	d.datagrams.age = math.MinInt64
	d.flows.age = math.MinInt64
	for len(d.datagrams.queue)+len(d.flows.queue) > 0 {
		d.expire(time.Now())
	}
}

// recovered makes a mistake of ours cost a frame, never the process. The log gets its place at
// most once a minute, and never bytes of the frame, which the text of a panic may have.
func (d *decoder) recovered() {
	if recover() == nil {
		return
	}
	d.counters.packetsInvalid.Add(1)
	if time.Since(d.failed) < time.Minute {
		return
	}
	d.failed = time.Now()
	_, here, _, ok := runtime.Caller(0)
	file, line := "", 0
	for skip := 1; ok && filepath.Dir(file) != filepath.Dir(here); skip++ {
		_, file, line, ok = runtime.Caller(skip)
	}
	place := fmt.Sprintf("%s:%d", filepath.Base(file), line)
	slog.Error("a frame is lost by a mistake in sip-capture", "place", place)
}

// pool keeps what isn't complete yet, each under its name. When it holds too much, what was used
// least lately goes, or nearly that: what was used since it was queued gets a second chance.
type pool[K comparable, V any] struct {
	entries map[K]*pooled[K, V]
	queue   []*pooled[K, V] // the oldest first
	size    int             // bytes
	limit   int             // bytes
	age     time.Duration
	end     func(*pooled[K, V])
}

type pooled[K comparable, V any] struct {
	key          K
	value        V
	size         int           // bytes
	used, queued time.Duration // since 1970
	gone         bool          // it was dropped; its place in the queue goes later
}

func (p *pool[K, V]) add(key K, now time.Duration) *pooled[K, V] {
	e := &pooled[K, V]{key: key, used: now, queued: now}
	p.entries[key] = e
	if len(p.queue) > 2*len(p.entries)+maxGone {
		p.queue = slices.DeleteFunc(p.queue, func(e *pooled[K, V]) bool { return e.gone })
	}
	p.queue = append(p.queue, e)
	return e
}

func (p *pool[K, V]) resize(e *pooled[K, V], size int) {
	p.size += size - e.size
	e.size = size
}

func (p *pool[K, V]) drop(e *pooled[K, V]) {
	p.resize(e, 0)
	e.gone = true
	delete(p.entries, e.key)
}

// expire ends at most one entry that is too old, and small ones until there is room for a large
// one, with so many looks at most: no frame pays for all the others.
func (p *pool[K, V]) expire(now time.Duration) {
	const looks = 64
	for range min(looks, len(p.queue)) {
		e := p.queue[0]
		crowded := p.size > p.limit
		if !e.gone && !crowded && now-e.queued < p.age {
			return
		}
		p.queue[0] = nil
		p.queue = p.queue[1:]
		isOld := now-e.used >= p.age || crowded && e.used <= e.queued
		switch {
		case e.gone:
		case isOld:
			p.drop(e)
			p.end(e)
			if !crowded {
				return
			}
		default:
			e.queued = now
			p.queue = append(p.queue, e)
		}
	}
}

// The layers of a frame: an EtherType, protocolBase plus an IP protocol, or portBase plus a port of
// UDP.
const (
	etherIPv4  = 0x0800
	etherMAC   = 0x6558 // Ethernet in a tunnel
	etherIPv6  = 0x86dd
	etherMPLS  = 0x8847
	etherPPPoE = 0x8864

	protocolBase = 1 << 16
	portBase     = 1 << 17
)

// The IP protocols with a meaning beyond their header.
const (
	protocolTCP  = 6
	protocolUDP  = 17
	protocolSCTP = 132
)

// decode reads header after header, from the link to SIP. What isn't IP, or is another protocol,
// is no concern of ours.
func (d *decoder) decode(link linkType, b []byte) {
	layer := etherIPv4
	if at := link.etherTypeAt; at >= 0 && len(b) >= link.headerSize {
		layer = u16(b[at:])
	}
	b = d.behind(b, link.headerSize)
	for headers := 0; headers < maxHeaders && layer != 0 && !d.short && !d.bad; headers++ {
		// h is the header, or its beginning; what isn't there is 0, and noticed by behind.
		h := new([40]byte)
		if len(b) >= len(h) {
			h = (*[40]byte)(b)
		} else {
			copy(h[:], b)
		}
		switch {
		case layer < protocolBase:
			layer, b = d.etherType(layer, h, b)
		case layer < portBase:
			layer, b = d.protocol(layer-protocolBase, h, b)
		default:
			layer, b = d.tunnel(layer-portBase, h, b)
		}
	}
}

func u16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
func u32(b []byte) int { return int(binary.BigEndian.Uint32(b)) }

// behind returns what follows a header, and notes where that isn't there as a whole.
func (d *decoder) behind(b []byte, size int) []byte {
	d.short = d.short || len(b) < size
	return b[min(size, len(b)):]
}

// upTo returns what is there of size bytes that a header announces, and notes what is missing.
// What lies behind them is padding.
func (d *decoder) upTo(b []byte, size int) []byte {
	d.missing = max(size-len(b), 0)
	d.bad = d.bad || size < 0 || d.missing > 0 && !d.cut
	return b[:max(min(size, len(b)), 0)]
}

// enter notes a network in which what follows is. The factor is odd: no bit of the others is lost.
func (d *decoder) enter(id int) { d.network = (d.network + uint64(id) + 1) * 0x9e3779b97f4a7c15 }

var pppProtocols = map[int]int{0x21: etherIPv4, 0x57: etherIPv6, 0x281: etherMPLS}

// etherType reads a header that is named by an EtherType.
func (d *decoder) etherType(layer int, h *[40]byte, b []byte) (next int, rest []byte) {
	switch layer {
	case etherIPv4, etherIPv6:
		return d.ip(h, b)
	case etherMAC:
		return u16(h[12:]), d.behind(b, 14)
	case 0x8100, 0x88a8, 0x9100: // VLAN tags (IEEE 802.1Q)
		d.enter(u16(h[0:]) & 0xfff)
		return u16(h[2:]), d.behind(b, 4)
	case 0x8926: // VN-Tag (Cisco): it differs with the direction, so it is no network
		return u16(h[4:]), d.behind(b, 6)
	case etherMPLS, 0x8848: // a label (RFC 3032); the last one of the stack tells the network
		if h[2]&1 == 0 {
			return etherMPLS, d.behind(b, 4)
		}
		d.enter(u32(h[0:]) >> 12)
		if h[4]>>4 == 0 { // a control word before Ethernet (RFC 4448)
			return etherMAC, d.behind(b, 8)
		}
		return ipVersion(h[4], etherMAC), d.behind(b, 4)
	case etherPPPoE: // its session, and the protocol of PPP (RFC 2516, RFC 1661)
		d.enter(u16(h[2:]))
		return pppProtocols[u16(h[6:])], d.behind(b, 8)
	case 0x22eb: // ERSPAN type III, with an optional subheader
		return etherMAC, d.behind(b, 12+8*int(h[11]&1))
	}
	return 0, nil
}

// ipVersion tells by its first byte whether IP follows.
func ipVersion(first byte, otherwise int) (layer int) {
	switch first >> 4 {
	case 4, 6:
		return etherIPv4
	}
	return otherwise
}

// protocol reads a header that is named by an IP protocol.
func (d *decoder) protocol(layer int, h *[40]byte, b []byte) (next int, rest []byte) {
	switch layer {
	case protocolTCP:
		d.tcp(h, b)
	case protocolUDP:
		return d.udp(h, b)
	case protocolSCTP:
		d.sctp(h, b)
	case 0, 43, 60, 135: // IPv6 extension headers (RFC 8200 §4)
		return protocolBase + int(h[0]), d.behind(b, 8+8*int(h[1]))
	case 51: // authentication header (RFC 4302 §2)
		return protocolBase + int(h[0]), d.behind(b, 8+4*int(h[1]))
	case 44: // IPv6 fragment (RFC 8200 §4.5)
		p := piece{begin: int32(u16(h[2:]) &^ 7), last: h[3]&1 == 0, protocol: h[0]}
		return d.reassemble(datagramKey{id: u32(h[4:])}, p, d.behind(b, 8))
	case 4, 41: // IP in IP (RFC 2003, RFC 4213)
		d.cut = true
		return etherIPv4, b
	case 47:
		return d.gre(h, b)
	}
	return 0, nil
}

// gre reads the header of RFC 2784 and RFC 2890. In it is ERSPAN type I, or, where it has sequence
// numbers, type II with 8 bytes more.
func (d *decoder) gre(h *[40]byte, b []byte) (next int, rest []byte) {
	const erspan = 0x88be
	checksum := int(h[0] >> 7)
	key := int(h[0] >> 5 & 1)
	sequence := int(h[0] >> 4 & 1)
	d.cut = true
	if key == 1 {
		d.enter(u32(h[4+4*checksum:]))
	}
	size := 4 + 4*(checksum+key+sequence)
	next = u16(h[2:])
	if next == erspan {
		return etherMAC, d.behind(b, size+8*sequence)
	}
	return next, d.behind(b, size)
}

// tunnel reads the header of a tunnel, if a datagram to its port has one.
func (d *decoder) tunnel(layer int, h *[40]byte, b []byte) (next int, rest []byte) {
	d.cut = true
	switch {
	case (layer == 4789 || layer == 8472) && h[0]&8 != 0: // VXLAN (RFC 7348 §5)
		d.enter(u32(h[4:]) >> 8)
		return etherMAC, d.behind(b, 8)
	case layer == 6081 && h[0]>>6 == 0: // Geneve (RFC 8926 §3.4)
		d.enter(u32(h[4:]) >> 8)
		return u16(h[2:]), d.behind(b, 8+4*int(h[0]&63))
	case layer == 2152 && h[0]>>4 == 3 && h[1] == 255: // GTP-U, a G-PDU (3GPP TS 29.281 §5)
		d.enter(u32(h[4:]))
		rest = d.behind(b, 8)
		if h[0]&7 != 0 { // with optional fields; 4: the last one is the type of an extension header
			rest = d.behind(b, 12)
			for extension := h[11]; h[0]&4 != 0 && extension != 0 && len(rest) > 3; {
				size := max(4*int(rest[0]), 4)
				extension = rest[min(size, len(rest))-1]
				rest = d.behind(rest, size)
			}
		}
		if len(rest) > 0 {
			return ipVersion(rest[0], 0), rest
		}
	case layer == 37008 && h[0] == 1 && h[1] <= 1 && u16(h[2:]) == 1: // TZSP with Ethernet
		const padding, end = 0, 1
		for rest = d.behind(b, 4); len(rest) > 1 && rest[0] != end; {
			size := 1
			if rest[0] != padding {
				size = 2 + int(rest[1])
			}
			rest = d.behind(rest, size)
		}
		return etherMAC, d.behind(rest, 1)
	}
	return 0, nil
}

// mappedIPv4 is how an address of IPv4 begins in its form in IPv6 (RFC 4291 §2.5.5.2).
var mappedIPv4 = [16]byte{10: 0xff, 11: 0xff}

// ip reads an IPv4 (RFC 791) or IPv6 (RFC 8200) header. A length of 0 is what segmentation offload
// leaves.
func (d *decoder) ip(h *[40]byte, b []byte) (next int, rest []byte) {
	var key datagramKey
	var p piece
	var size, total int
	switch h[0] >> 4 {
	case 4: // the protocol names a datagram, too (RFC 791 §3.2); not in IPv6 (RFC 8200 §4.5)
		p = piece{begin: int32(8 * (u16(h[6:]) & 0x1fff)), last: h[6]&0x20 == 0, protocol: h[9]}
		key = datagramKey{id: u16(h[4:]), protocol: h[9]}
		size = 4 * int(h[0]&15)
		total = u16(h[2:])
		d.src, d.dst = mappedIPv4, mappedIPv4
		copy(d.src[12:], h[12:16])
		copy(d.dst[12:], h[16:20])
	case 6:
		p = piece{last: true, protocol: h[6]}
		size = 40
		if length := u16(h[4:]); length != 0 {
			total = size + length
		}
		d.src = [16]byte(h[8:24])
		d.dst = [16]byte(h[24:40])
	}
	d.ports = 0
	d.missing = 0
	d.bad = size < 20
	rest = d.behind(b, size)
	if total != 0 {
		rest = d.upTo(rest, total-size)
	}
	return d.reassemble(key, p, rest)
}

// udp reads a datagram (RFC 768), which may be SIP, or HEP, or a tunnel, as its port says.
func (d *decoder) udp(h *[40]byte, b []byte) (next int, rest []byte) {
	d.ports = binary.BigEndian.Uint32(h[0:])
	payload := d.behind(b, 8)
	if length := u16(h[4:]); length > 0 { // segmentation offload leaves 0
		payload = d.upTo(payload, length-8)
	}
	switch {
	case d.short || d.bad: // the frame is counted
	case bytes.HasPrefix(payload, []byte("HEP3")):
		d.hep(payload)
	case !d.takePayload(udp, payload, d.missing):
		return portBase + u16(h[2:]), payload
	}
	return 0, nil
}

// takePayload takes a payload that is a message if it is SIP at all, and of which bytes may be
// missing.
func (d *decoder) takePayload(t transport, payload []byte, missing int) (isTaken bool) {
	sip := startLine(trimLineEnds(payload))
	if missing > 0 && sip != no {
		d.counters.truncated.Add(1)
	} else if sip == yes {
		d.emit(t, payload)
	}
	return sip == yes || sip == maybe && missing > 0
}

func (d *decoder) emit(t transport, raw []byte) {
	src, dst := netip.AddrFrom16(d.src).Unmap(), netip.AddrFrom16(d.dst).Unmap()
	d.message.src = netip.AddrPortFrom(src, uint16(d.ports>>16))
	d.message.dst = netip.AddrPortFrom(dst, uint16(d.ports))
	d.message.transport = t
	d.message.raw = raw
	d.found(&d.message)
	d.message.index++
}

// hepTransports are named by IP protocols; 22 and 50 are what Kamailio writes for TLS and
// WebSocket.
var hepTransports = map[int]transport{
	protocolTCP:  tcp,
	protocolUDP:  udp,
	protocolSCTP: sctp,
	22:           tcp,
	50:           ws,
}

// hep reads the chunks of HEP version 3 (https://github.com/sipcapture/HEP), which has a message
// in clear that a server has sent or received. A malformed packet has none.
func (d *decoder) hep(packet []byte) {
	const chunkHeader, sip = 6, 1
	var src, dst netip.Addr
	var ports [2]uint32
	var kind, carrier int
	var payload []byte
	lost := d.missing // bytes of the payload; all of it, if the frame was cut before it
	if len(packet) < chunkHeader || u16(packet[4:]) > len(packet)+d.missing {
		return
	}
	b := packet[chunkHeader:]
	for len(b) >= chunkHeader {
		vendor, chunk := u16(b[0:]), u16(b[2:])
		size := u16(b[4:])
		value := b[chunkHeader:max(min(size, len(b)), chunkHeader)]
		missing := max(size-len(b), 0)
		if size < chunkHeader || missing > d.missing {
			return
		}
		b = b[chunkHeader+len(value):]
		number := 0
		for _, c := range value[:min(len(value), 2)] {
			number = number<<8 | int(c)
		}
		switch {
		case vendor != 0:
		case chunk == 2:
			carrier = number
		case chunk == 3 || chunk == 5:
			src, _ = netip.AddrFromSlice(value)
		case chunk == 4 || chunk == 6:
			dst, _ = netip.AddrFromSlice(value)
		case chunk == 7 || chunk == 8:
			ports[chunk-7] = uint32(number)
		case chunk == 11:
			kind = number
		case chunk == 15:
			payload = value
			lost = missing
		}
	}
	t, known := hepTransports[carrier]
	if kind != sip || !known || !src.IsValid() || !dst.IsValid() {
		return
	}
	d.path = path{src: src.As16(), dst: dst.As16(), ports: ports[0]<<16 | ports[1]}
	d.takePayload(t, payload, lost)
}

// sctp reads every message that is whole in one DATA chunk (RFC 9260 §3.3.1); of one in several
// chunks the first is counted.
func (d *decoder) sctp(h *[40]byte, b []byte) {
	const data, beginning, whole, chunkHeader, dataHeader = 0, 2, 3, 4, 16
	d.ports = binary.BigEndian.Uint32(h[0:])
	b = d.behind(b, 12)
	missing := d.missing // of the packet; from here on d.missing is of the chunk in hand
	// A chunk of which nothing was captured may have been DATA: it is counted as cut.
	for !d.short && (len(b) > 0 || missing >= chunkHeader) {
		isData := len(b) == 0 || b[0] == data
		headerSize := chunkHeader
		if isData {
			headerSize = dataHeader
		}
		if len(b) < headerSize {
			d.bad = missing == 0
			if isData && !d.bad {
				d.counters.truncated.Add(1)
			}
			return
		}
		size := u16(b[2:])
		chunk := d.upTo(b, size)
		d.bad = d.bad || size < headerSize
		if d.bad {
			return
		}
		if flags := b[1] & whole; isData && flags == whole {
			d.takePayload(sctp, chunk[dataHeader:], d.missing)
		} else if isData && flags == beginning {
			d.counters.fragment.Add(1)
		}
		if d.missing > 0 {
			return
		}
		padded := (size + 3) &^ 3
		missing = min(missing, max(missing+len(b)-padded, 0))
		b = b[min(padded, len(b)):]
	}
}

// datagramKey names a datagram in fragments; of IPv6 without the protocol.
type datagramKey struct {
	path     // without ports
	id       int
	protocol uint8
}

// datagram is what came under one identification: fragments of one datagram, or, as
// identifications are used again within seconds, of an older and a newer one. A datagram that is
// finished stays known, so that duplicates of its fragments, however they are cut, are nothing
// new.
type datagram struct {
	began     time.Time // when the first piece came
	pieces    []piece   // by position; they don't overlap
	bytes     []byte    // of all pieces, in the order of arrival
	covered   int       // bytes of the datagram that are there
	accounted int       // bytes[:accounted] have come out, or are counted: they are no loss later
	failures  int       // of checksums
	cut       bool      // a piece was not captured as a whole
}

// piece is a fragment, or what it had that was new.
type piece struct {
	begin, end int32 // its position in the datagram
	at         int32 // its place in the bytes
	last       bool  // the datagram ends with it
	protocol   uint8 // what the datagram is, if this is its beginning
}

func (g *datagram) data(p piece) []byte { return g.bytes[p.at:][:p.end-p.begin] }

// reassemble takes what follows an IP header: a datagram, or a fragment, and then returns the
// datagram that it completes.
func (d *decoder) reassemble(key datagramKey, p piece, data []byte) (next int, rest []byte) {
	p.end = p.begin + int32(len(data)+d.missing)
	isFragment := p.begin > 0 || !p.last
	d.bad = d.bad || isFragment && (p.end > maxMessage || !p.last && p.end%8 != 0)
	if !isFragment || d.bad || d.short || p.begin == p.end { // decode ends at what is bad or short
		return protocolBase + int(p.protocol), data
	}
	key.path = d.path
	e := d.datagrams.entries[key]
	now := d.message.time
	if e != nil && (now.Sub(e.value.began) > fragmentAge || len(e.value.bytes) > maxWaiting) {
		d.datagrams.drop(e)
		d.endDatagram(e)
		e.value = datagram{} // the queue keeps e for a while
		e = nil
	}
	if e == nil {
		e = d.datagrams.add(key, sinceEpoch(now))
		e.value.began = now
	}
	e.used = sinceEpoch(now)
	g := &e.value
	isNew, stale := false, false
	if d.missing == 0 {
		isNew, stale = g.take(p, data)
	} else {
		// Not if all that is there has come out: then this repeats a piece of it.
		g.cut = g.cut || g.accounted == 0 || g.accounted < len(g.bytes)
	}
	if stale {
		d.counters.fragment.Add(1)
	}
	if isNew && g.isComplete() {
		next, rest = d.finish(e)
	}
	if !e.gone {
		d.datagrams.resize(e, cap(g.bytes)+pieceSize*cap(g.pieces)+2*overhead)
	}
	return next, rest
}

// take takes a piece p in, or what is new of it: pieces[from:to] overlap it, or contradict the end
// that it brings; kept replaces them. Of pieces that contradict each other the newer one
// stays: an identification is used again after all of its datagram has arrived, or was lost. It
// tells whether there was anything new, and whether a piece had to go that wasn't accounted for.
func (g *datagram) take(p piece, data []byte) (isNew, stale bool) {
	// from is the first piece that ends behind the beginning: one that ends at it counts as before.
	from, _ := slices.BinarySearchFunc(g.pieces, p.begin, func(q piece, begin int32) int {
		return cmp.Or(cmp.Compare(q.end, begin), -1)
	})
	if count := len(g.pieces); count > 0 && from == count && g.pieces[count-1].last {
		from-- // the last piece says that the datagram ends before p
	}
	to := from
	kept := make([]piece, 0, 8)
	done := p.begin // the position before which p is taken in, or was there
	base := int32(len(g.bytes))
	add := func(end int32) {
		if done < end {
			isEnd := p.last && end == p.end
			kept = append(kept, piece{done, end, base + done - p.begin, isEnd, p.protocol})
			g.covered += int(end - done)
			isNew = true
		}
	}
	for ; to < len(g.pieces) && (p.last || g.pieces[to].begin < p.end); to++ {
		q := g.pieces[to]
		if !g.agree(q, p, data) {
			stale = stale || int(q.at) >= g.accounted
			g.covered -= int(q.end - q.begin)
			continue
		}
		add(q.begin)
		q.last = q.last || p.last && q.end == p.end
		kept = append(kept, q)
		done = max(done, q.end)
	}
	add(p.end)
	g.pieces = slices.Replace(g.pieces, from, to, kept...)
	if isNew {
		g.bytes = append(g.bytes, data...)
	}
	// p, too: it may be the older one that came late, which only a checksum could tell.
	if stale {
		g.accounted = len(g.bytes)
	}
	return isNew, stale
}

// agree tells whether two pieces may be of one datagram: its end, and the bytes that both have.
func (g *datagram) agree(q, p piece, data []byte) bool {
	if q.last && p.end > q.end || p.last && q.end > p.end {
		return false
	}
	begin, end := max(q.begin, p.begin), min(q.end, p.end)
	if begin >= end {
		return true
	}
	return bytes.Equal(g.data(q)[begin-q.begin:end-q.begin], data[begin-p.begin:end-p.begin])
}

func (g *datagram) isComplete() bool {
	end := g.pieces[len(g.pieces)-1]
	return end.last && g.covered == int(end.end)
}

// finish puts a datagram together. If its checksum fails, its oldest piece is of an older
// datagram. Without a checksum nothing of an older one may be in it.
func (d *decoder) finish(e *pooled[datagramKey, datagram]) (next int, rest []byte) {
	g := &e.value
	oldest := 0
	d.whole = d.whole[:0]
	for i, p := range g.pieces {
		d.whole = append(d.whole, g.data(p)...)
		if p.at < g.pieces[oldest].at {
			oldest = i
		}
	}
	p := g.pieces[oldest]
	isAccounted := int(p.at) < g.accounted
	first := int(g.pieces[0].protocol)
	good, hasChecksum := d.checksum(first, d.whole)
	if hasChecksum && good || !hasChecksum && !isAccounted {
		g.accounted = len(g.bytes)
		g.failures = 0
		g.cut = false
		return protocolBase + first, d.whole
	}
	if !isAccounted {
		d.counters.fragment.Add(1)
		g.accounted = len(g.bytes)
	}
	g.pieces = slices.Delete(g.pieces, oldest, oldest+1)
	g.covered -= int(p.end - p.begin)
	g.failures++
	if g.failures >= maxChecksums {
		d.datagrams.drop(e)
		e.value = datagram{}
	}
	return 0, nil
}

// checksum checks that of a UDP datagram (RFC 768, RFC 8200 §8.1), also behind extension headers;
// 0 is none. An IPv4 address adds the same to the sum as in its IPv6 form.
func (d *decoder) checksum(next int, b []byte) (good, there bool) {
	for (next == 0 || next == 43 || next == 60 || next == 135) && len(b) >= 8 {
		next = int(b[0])
		b = b[min(8+8*int(b[1]), len(b)):]
	}
	if next != protocolUDP || len(b) < 8 || u16(b[6:]) == 0 {
		return false, false
	}
	if length := u16(b[4:]); length >= 8 && length < len(b) {
		b = b[:length]
	}
	sum := onesComplement(d.src[:]) + onesComplement(d.dst[:]) + onesComplement(b)
	sum += uint64(protocolUDP + len(b))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff, true
}

// onesComplement adds up the words of 16 bits (RFC 1071), not yet folded.
func onesComplement(b []byte) (sum uint64) {
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	var rest [4]byte
	copy(rest[:], b)
	return sum + uint64(binary.BigEndian.Uint32(rest[:]))
}

// endDatagram counts what stayed incomplete.
func (d *decoder) endDatagram(e *pooled[datagramKey, datagram]) {
	isOpen := func(p piece) bool { return int(p.at) >= e.value.accounted }
	if e.value.cut {
		d.counters.truncated.Add(1)
	} else if slices.ContainsFunc(e.value.pieces, isOpen) {
		d.counters.fragment.Add(1)
	}
}

// idle is what is known of a flow that holds nothing. There may be a hundred thousand.
type idle struct {
	progress
	kind
}

// flow is one that holds something. Besides the track on which the last segment was it may have
// another: of an earlier connection on the same ports, of segments that came before the first one
// seen, of a stray segment, or from before a gap.
type flow struct {
	track
	other *track
}

// track is a part of a flow that was seen without a gap, and the segments that wait for what comes
// next.
type track struct {
	progress
	framer
	counted bool          // what is incomplete at its end has been counted
	born    time.Duration // when it began, for its head
	moved   time.Duration // when something last came in order, or began to wait
	head    []byte        // what came before the first message: its beginning may come yet
	waiting []segment     // in order
	held    int           // bytes of them
}

// progress is how far a track has come.
type progress struct {
	begin    uint32  // its lowest sequence number, but at most a window before the position
	position uint32  // the sequence number that comes next
	last     opening // of the segment that came last in order
	begun    bool    // there is one
	fresh    bool    // it begins with a SYN, and nothing came yet
}

type segment struct {
	sequence uint32
	time     time.Time
	data     []byte
	missing  int // bytes behind the data that were not captured
}

// opening is what a segment begins with, to tell another one in its place from a repetition.
type opening struct {
	sequence uint32
	size     uint8
	bytes    [8]byte
}

func (o *opening) set(s *segment) {
	o.sequence = s.sequence
	o.size = uint8(copy(o.bytes[:], s.data))
}

func (o *opening) contradicts(s *segment) bool {
	size := min(int(o.size), len(s.data))
	return o.sequence == s.sequence && !bytes.Equal(o.bytes[:size], s.data[:size])
}

// offset tells where in the segment a sequence number, which wraps, would be; below 0: how far
// before the segment.
func (s *segment) offset(sequence uint32) int { return int(int32(sequence - s.sequence)) }

// cutFront takes away what is before a sequence number.
func (s *segment) cutFront(sequence uint32) {
	n := max(s.offset(sequence), 0)
	s.missing = max(s.missing-max(n-len(s.data), 0), 0)
	s.data = s.data[min(n, len(s.data)):]
	s.sequence += uint32(n)
}

// tcp reads a segment (RFC 9293 §3.1). FIN and RST end nothing: they may be spoofed, and the end
// of a flow shows in time.
func (d *decoder) tcp(h *[40]byte, b []byte) {
	const reset, synchronize = 4, 2
	d.ports = binary.BigEndian.Uint32(h[0:])
	size, flags := int(h[12]>>4)*4, h[13]
	isFirst := flags&synchronize != 0
	s := segment{
		sequence: uint32(u32(h[4:])),
		time:     d.message.time,
		data:     d.behind(b, max(size, 20)),
		missing:  d.missing,
	}
	d.bad = !d.short && size < 20
	if d.bad || d.short || flags&reset != 0 || len(s.data)+s.missing == 0 && !isFirst {
		return
	}
	if isFirst {
		s.sequence++
	}
	f, e, known := d.recall()
	d.segment(f, &s, isFirst)
	d.keep(f, e, known)
}

// recall returns what is known of a flow, and its entry in the pool, or among the idle ones, if it
// has one.
func (d *decoder) recall() (*flow, *pooled[path, flow], *idle) {
	if e := d.flows.entries[d.path]; e != nil {
		e.used = sinceEpoch(d.message.time)
		return &e.value, e, nil
	}
	known := d.idle[d.path]
	if known == nil && d.silent[d.path] != nil {
		known = d.silent[d.path]
		d.idle[d.path] = known
		delete(d.silent, d.path)
	}
	d.spare = flow{}
	if known != nil {
		d.spare.progress = known.progress
		d.spare.kind = known.kind
		d.spare.moved = sinceEpoch(d.message.time)
	}
	return &d.spare, nil, known
}

// keep puts a flow where it belongs: e or known is where it was, or both are nil.
func (d *decoder) keep(f *flow, e *pooled[path, flow], known *idle) {
	if f.other == nil && f.head == nil && f.waiting == nil && f.isIdle() {
		if known == nil {
			known = &idle{}
			d.idle[d.path] = known
		}
		*known = idle{f.progress, f.kind}
		if e != nil {
			d.flows.drop(e)
		}
		return
	}
	if e == nil {
		delete(d.idle, d.path)
		e = d.flows.add(d.path, sinceEpoch(d.message.time))
		e.value = *f
	}
	size := 4*overhead + e.value.size()
	if f.other != nil {
		size += f.other.size()
	}
	d.flows.resize(e, size)
}

func (t *track) size() int { return cap(t.buffer) + cap(t.head) + t.held + overhead*cap(t.waiting) }

// segment takes a segment to the track that it belongs to, or makes a new one for it.
func (d *decoder) segment(f *flow, s *segment, isFirst bool) {
	now := sinceEpoch(s.time)
	if f.head != nil && now-f.born > gapAge {
		f.head = nil
	}
	if f.other != nil && now-f.other.moved > flowAge {
		d.endOther(f)
	}
	fit := f.fit(s, isFirst)
	if f.other != nil {
		other := f.other.fit(s, isFirst)
		if other < fit || other == fit && f.other.sip && !f.sip {
			fit = other
			f.track, *f.other = *f.other, f.track
		}
	}
	switch fit {
	case continues:
		d.advance(f, s)
	case ahead:
		f.wait(*s)
	case unrelated:
		d.begin(f, s, isFirst)
	}
	if len(f.waiting) > 0 && (now-f.moved > gapAge || f.held > maxWaiting) {
		d.giveUp(f)
	}
}

// How a segment fits a track, best first.
const (
	continues = iota // it has the next byte
	repeats          // all of it was there
	ahead            // something before it is missing
	unrelated
)

// fit lets a segment wait only where SIP was seen, or may begin: else it begins a track of its own.
func (t *track) fit(s *segment, isFirst bool) int {
	offset := s.offset(t.position)
	switch {
	case !t.begun || isFirst && s.sequence != t.begin:
		return unrelated
	case t.last.contradicts(s): // one of them is a stray
		return unrelated
	case offset >= 0 && s.offset(t.begin) <= 0 && offset < len(s.data)+s.missing:
		return continues
	case offset >= 0 && s.offset(t.begin) <= 0:
		return repeats
	case offset < 0 && offset >= -window && (t.sip || t.fresh || len(t.buffer) > 0):
		return ahead
	}
	return unrelated
}

// begin makes a track for a segment. It takes the place of the one that was used less lately,
// unless that is the only one with SIP.
func (d *decoder) begin(f *flow, s *segment, isFirst bool) {
	if f.other != nil && f.other.sip && !f.sip { // that one stays
		f.track, *f.other = *f.other, f.track
	}
	d.endOther(f)
	if f.begun {
		previous := f.track
		f.other = &previous
	}
	f.track = track{
		progress: progress{begin: s.sequence, position: s.sequence, begun: true, fresh: isFirst},
		born:     sinceEpoch(s.time),
		moved:    sinceEpoch(s.time),
	}
	data := s.data
	if len(data) == 0 {
		return
	}
	d.advance(f, s)
	// If advance has joined the other track, passed is still that of this one: join hands it on.
	if passed := min(f.passed, len(data)); passed > 0 && !isFirst {
		f.head = bytes.Clone(data[:passed])
	}
}

// wait keeps a segment in its place among those that wait.
func (t *track) wait(s segment) {
	i, known := slices.BinarySearchFunc(t.waiting, s, func(x, y segment) int {
		return y.offset(x.sequence)
	})
	if known && bytes.Equal(t.waiting[i].data, s.data) {
		return
	}
	if len(t.waiting) == 0 {
		t.moved = sinceEpoch(s.time)
	}
	s.data = bytes.Clone(s.data)
	t.waiting = slices.Insert(t.waiting, i, s)
	t.held += len(s.data) + overhead
}

// advance takes in the segment that comes next, those that waited for it, and, where the track
// reaches the beginning of the other one, that.
func (d *decoder) advance(f *flow, s *segment) {
	for {
		rest := segment{}
		if f.other != nil && int32(f.other.begin-f.position) >= 0 {
			room := s.offset(f.other.begin)
			if room > 0 && room < len(s.data) {
				rest = *s
				rest.cutFront(f.other.begin)
				s.data = s.data[:room]
				s.missing = 0
				if f.other.last.contradicts(&rest) { // it is a stray
					d.endOther(f)
				}
			}
		}
		d.extend(&f.track, s)
		if f.other != nil && f.position == f.other.begin {
			d.join(f)
		}
		switch {
		case len(rest.data) > 0 && rest.offset(f.position) < len(rest.data)+rest.missing:
			*s = rest
		case len(f.waiting) > 0 && f.waiting[0].offset(f.position) >= 0:
			s = f.next()
		default:
			return
		}
	}
}

// next takes the first segment off those that wait.
func (t *track) next() *segment {
	s := &t.waiting[0]
	t.held -= len(s.data) + overhead
	t.waiting = t.waiting[1:]
	if len(t.waiting) == 0 {
		t.waiting = nil
	}
	return s
}

// extend frames what is new of a segment. The messages that it completes have the time of the last
// of the segments that these waited for.
func (d *decoder) extend(t *track, s *segment) {
	if s.time.After(d.message.time) {
		d.message.time = s.time
		d.message.index = 0
	}
	s.cutFront(t.position)
	if len(s.data) > 0 {
		t.last.set(s)
	}
	t.position += uint32(len(s.data) + s.missing)
	t.fresh = false
	t.moved = sinceEpoch(d.message.time)
	if int32(t.position-t.begin) > window {
		t.begin = t.position - window
	}
	// Last, so that a mistake of ours in a message isn't made again with it.
	t.feed(d, s.data)
	if s.missing > 0 && t.gap(s.missing) {
		d.counters.truncated.Add(1)
	}
}

// join goes on with the other track, whose beginning was reached: with its messages, if it has
// found any.
func (d *decoder) join(f *flow) {
	other := f.other
	f.other = nil
	size := other.position - other.begin
	onlyHead := other.isIdle() && !other.sip && size == uint32(len(other.head)) &&
		other.waiting == nil
	d.extend(&f.track, &segment{sequence: f.position, time: d.message.time, data: other.head})
	if onlyHead { // all that it had has just been framed
		return
	}
	for _, s := range f.waiting {
		other.wait(s)
	}
	f.waiting = nil
	d.endTrack(&f.track)
	other.begin = f.begin
	other.passed = f.passed
	other.head = nil
	f.track = *other
}

// giveUp goes on behind a lost segment. What was before it stays as the other track: if it was no
// loss, but a stray segment that was ahead, the flow goes on there.
func (d *decoder) giveUp(f *flow) {
	d.endOther(f)
	// Both share the buffer for a moment: gap, in skipGap, gives f.track another one, or none.
	before := f.track
	before.waiting, before.held = nil, 0
	before.counted = true // by skipGap
	f.other = &before
	d.skipGap(&f.track)
}

// skipGap goes on with the first segment that waits, and those right behind it.
func (d *decoder) skipGap(t *track) {
	now, index := d.message.time, d.message.index // of the frame in hand: put back at the end
	s := t.next()
	inSIP := t.sip
	if t.gap(int(s.sequence-t.position)) && inSIP {
		d.counters.streamGap.Add(1)
	}
	t.begin, t.position = s.sequence, s.sequence
	d.message.time, d.message.index = s.time, 0
	d.extend(t, s)
	for len(t.waiting) > 0 && t.waiting[0].offset(t.position) >= 0 {
		d.extend(t, t.next())
	}
	d.message.time, d.message.index = now, index
}

// endTrack hands over what waited, and counts what stays incomplete.
func (d *decoder) endTrack(t *track) {
	for len(t.waiting) > 0 {
		d.skipGap(t)
	}
	if t.sip && !t.counted && t.isOpen() {
		d.counters.streamGap.Add(1)
	}
}

// endFlow ends a flow of which no segment is in hand.
func (d *decoder) endFlow(e *pooled[path, flow]) {
	d.path = e.key
	d.endOther(&e.value)
	d.endTrack(&e.value.track)
}

func (d *decoder) endOther(f *flow) {
	if f.other != nil {
		d.endTrack(f.other)
		f.other = nil
	}
}

// framer turns the bytes of a stream, in order, into messages. It remembers how far it has looked:
// no byte is looked at more than a few times, however the stream is cut into segments.
type framer struct {
	kind
	search
	passed int    // bytes before the first message, without what was skipped
	buffer []byte // from where a message, or a WebSocket frame, may begin
}

// search is how far the message in hand was looked for, or at.
type search struct {
	broken   bool // it was counted: its header section is only read for its end
	state    uint8
	skip     int // bytes to come that nothing is looked for in
	line     int // of the buffer: where the last header line begins; inRest: bytes of that line
	lengthAt int // of the buffer: where the first Content-Length may begin, 0 without one
	searched int // of the buffer: from line to there no line ends
	need     int // size of the message or frame in the buffer, of what may tell which it is,
	// or of the body behind a header section that is too large
}

// kind is what is known of a stream.
type kind struct {
	sip       bool // a whole start line was seen in it
	webSocket bool // it is framed by RFC 6455, not by Content-Length
}

const (
	seeking   = iota // a start line
	inHeaders        // behind a start line
	inRest           // of a header section that is too large
	inBody           // behind the empty line
)

// isIdle tells whether only what an idle flow keeps needs to be known.
func (f *framer) isIdle() bool { return f.state == seeking && f.skip == 0 && len(f.buffer) == 0 }

// isOpen tells whether the end of the stream would be in the middle of a message.
func (f *framer) isOpen() bool { return !f.broken && f.skip == 0 && len(f.buffer) > 0 }

// restart begins a new search behind a message; feed shortens the buffer.
func (f *framer) restart() { f.search = search{} }

// feed takes the next bytes. With them a line begins, or goes on.
func (f *framer) feed(d *decoder, b []byte) {
	if len(f.buffer) > 0 {
		f.buffer = append(f.buffer, b...)
		b = f.buffer
	}
	tries := maxWebSocketTries
	for more := true; more && len(b) > 0; {
		switch {
		case f.skip > 0:
			n := min(f.skip, len(b))
			f.skip -= n
			b = b[n:]
		case f.webSocket:
			b, more = f.webSocketFrame(d, b)
		case f.state == seeking:
			before, hadSIP := len(b), f.sip
			b, more = f.seek(d, b, &tries)
			if !hadSIP {
				f.passed += before - len(b)
			}
		case f.state == inHeaders:
			b, more = f.headers(d, b)
		case f.state == inRest:
			b, more = f.rest(b)
		default:
			b, more = f.body(d, b)
		}
	}
	if len(b) == 0 {
		f.buffer = nil
	} else if len(b) != len(f.buffer) {
		f.buffer = append(f.buffer[:0], b...)
	}
}

// gap notes that bytes are missing, and tells whether that is a loss: not in what is skipped
// anyway. What is known of the message in hand is used to skip the rest of it.
func (f *framer) gap(size int) (lost bool) {
	if f.skip >= size || f.state == inRest {
		f.skip = max(f.skip-size, 0)
		return false
	}
	lost = f.sip || len(f.buffer) > 0
	rest := -1 // bytes of the message or frame in hand behind the gap, below 0 if it isn't known
	switch {
	case f.state == inHeaders:
		lost = !f.broken
		f.broken = true
		f.buffer = bytes.Clone(f.buffer[:f.line]) // whole lines; giveUp keeps a track with the rest
		f.searched = f.line
		return lost
	case f.state == inBody || f.webSocket:
		rest = f.need - len(f.buffer) - size
	}
	if rest < 0 {
		f.kind = kind{}
	}
	f.search = search{skip: max(rest, 0)}
	f.buffer = nil
	return lost
}

const minStartLine = len("M x SIP/2.0\n") // or of a response; most attacks have shorter lines

// seek looks for a start line, at the beginnings of lines and of segments, and, at a few places,
// for a WebSocket frame with one. It waits for more where there may be one.
func (f *framer) seek(d *decoder, b []byte, tries *int) (rest []byte, more bool) {
	isPlace := f.searched == 0 // WebSocket may begin here: no line goes on from the last segment
	for len(b) > 0 {
		if f.searched == 0 {
			line := len(b)
			for len(b) > 0 && (b[0] == '\n' || b[0] == '\r' || b[0] == 0) { // keep-alives
				b = b[1:]
			}
			isPlace = isPlace || len(b) < line
		}
		verdict, size := proxyHeader(b)
		if verdict != no {
			f.skip = size // 0 while more has to come to know it
			return b, verdict == yes
		}
		if isPlace && *tries > 0 && len(b) > 0 && b[0]&webSocketReserved == 0 {
			// An earlier try said how many bytes would tell; until then it isn't made again.
			if len(b) < f.need {
				return b, false
			}
			*tries--
			verdict, size = d.webSocketStart(b)
			if verdict == yes {
				f.restart()
				f.webSocket, f.sip = true, true
				return b[size:], true
			} else if verdict == maybe {
				f.need = size
				return b, false
			}
		}
		f.need = 0
		isPlace = false
		newline := bytes.IndexByte(b[f.searched:], '\n')
		if newline < 0 {
			f.searched = len(b)
			if len(b) > maxMessage || startLine(b[:min(len(b), maxMethod+1)]) == no {
				f.searched = 0
				b = nil
			}
			return b, false
		}
		size = f.searched + newline + 1
		f.searched = 0
		if size >= minStartLine && size <= maxMessage && startLine(b[:size]) == yes {
			f.sip = true
			f.state = inHeaders
			f.line, f.searched = size, size
			return b, true
		}
		b = b[size:]
	}
	return nil, false
}

// proxyHeader recognises a PROXY header, version 2
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt §2.2), by what is left of its
// signature behind the line ends and the NUL in it, and returns the size of that rest and of the
// header.
func proxyHeader(b []byte) (verdict, int) {
	const signature, size = "QUIT\n", 9
	n := min(len(b), len(signature))
	if string(b[:n]) != signature[:n] || len(b) > n && b[n]>>4 != 2 {
		return no, 0
	}
	if len(b) < size {
		return maybe, 0
	}
	return yes, size + u16(b[size-2:])
}

// headers looks for the end of the header section.
func (f *framer) headers(d *decoder, b []byte) (rest []byte, more bool) {
	begin, searched := f.line, f.searched
	for {
		end := searched + bytes.IndexByte(b[searched:], '\n') + 1
		if end == searched || end > maxMessage {
			f.line = begin
			f.searched = len(b)
			if len(b) > maxMessage {
				return f.oversize(d, b)
			}
			return b, false
		}
		line := b[begin:end]
		switch {
		case len(line) <= len("\r\n") && isCRLF(line[0]):
			f.searched = end
			return f.section(d, b)
		case mayBegin(line) && beginsMessage(line):
			// what came before was a line in a body, or has lost its end
			b = b[begin:]
			end -= begin
			f.broken = false
			f.lengthAt = 0
		case f.lengthAt == 0 && mayHaveLength(line):
			f.lengthAt = begin
		}
		begin, searched = end, end
	}
}

// mayBegin tells at a glance whether beginsMessage may be true: the line begins with SIP/, or ends
// with .0, where the dot is at n-1 before LF, and before CRLF at n-2 with the 0 at n-1.
func mayBegin(line []byte) bool {
	n := len(line) - len("0\n")
	return n > 2 && (line[3] == '/' || line[n-1] == '.' || line[n-2] == '.' && line[n-1] == '0')
}

// beginsMessage tells whether a line in a header section is a start line, and not one like "Server
// : demo SIP/2.0".
func beginsMessage(line []byte) bool {
	if startLine(line) != yes {
		return false
	}
	name := bytes.IndexFunc(line, func(c rune) bool { return c > 127 || !isToken(byte(c)) })
	return !bytes.HasPrefix(bytes.TrimLeft(line[name:], " \t"), []byte(":"))
}

// mayHaveLength tells at a glance whether a line may be a Content-Length, or its compact form.
func mayHaveLength(line []byte) bool {
	const at = len("content-")
	first := line[0] | caseBit
	return first == 'l' || first == 'c' && len(line) > at && line[at]|caseBit == 'l'
}

// section comes to the end of a header section, and with it to the Content-Length (RFC 3261
// §18.3).
func (f *framer) section(d *decoder, b []byte) (rest []byte, more bool) {
	end := f.searched
	length, good := contentLength(b[f.lengthAt:end])
	switch {
	case f.broken:
	case !good:
		d.counters.badLength.Add(1)
	case length > maxMessage-end:
		d.counters.oversize.Add(1)
	default:
		f.state = inBody
		f.need = end + length
		return f.body(d, b)
	}
	f.restart()
	if good && length <= maxSkip {
		f.skip = length
	}
	return b[end:], true
}

// contentLength is the value of all Content-Length fields of a header section, or of its end. Two
// that differ, or very many, are as bad as none: the next hop may believe another one than we do.
func contentLength(section []byte) (length int, good bool) {
	value, section, found := nextField(section, "content-length")
	folded := section
	for n := 0; found && n < maxFolds && goesOn(section); n++ {
		section = afterLine(section)
	}
	value = unfold(value, folded[:len(folded)-len(section)])
	differ := goesOn(section)
	for n := 1; found && !differ && len(section) > 0 && !isCRLF(section[0]); n++ {
		var other []byte
		other, section, found = nextField(section, "content-length")
		differ = found && (n == maxLengths || !bytes.Equal(value, other) || goesOn(section))
	}
	for _, c := range value {
		if isNoDigit(rune(c)) {
			return 0, false
		}
		length = min(10*length+int(c-'0'), math.MaxInt32)
	}
	return length, len(value) > 0 && !differ
}

// oversize gives up a message whose header section is too large. Its Content-Length counts if it
// has come.
func (f *framer) oversize(d *decoder, b []byte) (rest []byte, more bool) {
	if !f.broken {
		d.counters.oversize.Add(1)
	}
	length, good := contentLength(b[f.lengthAt:f.line])
	line := f.line
	f.restart()
	f.state = inRest
	if good && length <= maxSkip {
		f.need = length
	}
	return b[line:], true
}

// rest passes over the rest of a header section, up to the empty line.
func (f *framer) rest(b []byte) (rest []byte, more bool) {
	for {
		end := bytes.IndexByte(b, '\n') + 1
		if end == 0 {
			f.line += len(b) // bytes of a line whose end is still to come
			if string(b) != "\r" {
				f.line++ // so that 1 is a CR, and no other byte alone
			}
			return nil, false
		}
		size := f.line + end
		isEmpty := size == len("\n") || size == len("\r\n") && (end == 1 || b[0] == '\r')
		b = b[end:]
		f.line = 0
		if isEmpty {
			length := f.need
			f.restart()
			f.skip = length
			return b, true
		}
	}
}

// body waits for the end of the message.
func (f *framer) body(d *decoder, b []byte) (rest []byte, more bool) {
	size := f.need
	if len(b) < size {
		return b, false
	}
	f.restart()
	d.emit(tcp, b[:size])
	return b[size:], true
}

// webSocketHeader is the header of a WebSocket frame (RFC 6455 §5.2).
type webSocketHeader struct {
	opcode       uint8
	final        bool
	masked       bool
	key          uint32
	size, length int // of the header, and of the payload
}

// The opcodes of WebSocket frames (RFC 6455 §5.2).
const (
	opcodeContinuation = 0
	opcodeText         = 1
	opcodeBinary       = 2
	opcodeControl      = 8 // and higher
	opcodePong         = 10
)

const webSocketReserved = 0x70 // bits of the first byte that are 0: no letter begins a frame

// readWebSocketHeader reads what b begins with; maybe: the header isn't there as a whole.
func readWebSocketHeader(b []byte) (h webSocketHeader, is verdict) {
	const finalBit, maskBit, maxControl = 0x80, 0x80, 125
	var head [14]byte
	copy(head[:], b)
	h = webSocketHeader{
		opcode: head[0] & 15,
		final:  head[0]&finalBit != 0,
		masked: head[1]&maskBit != 0,
		length: int(head[1] &^ maskBit),
		size:   2,
	}
	isControl := h.opcode >= opcodeControl
	isKnown := h.opcode <= opcodeBinary || isControl && h.opcode <= opcodePong
	isKnown = isKnown && head[0]&webSocketReserved == 0
	if !isKnown || isControl && (!h.final || h.length > maxControl) {
		return h, no
	}
	switch h.length {
	case 126:
		h.length, h.size = u16(head[2:]), 4
	case 127:
		h.length, h.size = int(min(binary.BigEndian.Uint64(head[2:]), math.MaxInt32)), 10
	}
	if h.masked {
		h.key = binary.LittleEndian.Uint32(head[h.size:])
		h.size += 4
	}
	if len(b) < h.size {
		return h, maybe
	}
	return h, yes
}

// payload is what is there of the payload of a frame, and at most so many bytes, without its mask
// (RFC 6455 §5.3).
func (d *decoder) payload(h webSocketHeader, frame []byte, most int) []byte {
	b := frame[h.size:min(h.size+min(h.length, most), len(frame))]
	if !h.masked {
		return b
	}
	size := len(b)
	d.unmasked = append(append(d.unmasked[:0], b...), make([]byte, 8)...)
	twice := uint64(h.key)<<32 | uint64(h.key)
	for i := 0; i < size; i += 8 {
		word := d.unmasked[i:]
		binary.LittleEndian.PutUint64(word, binary.LittleEndian.Uint64(word)^twice)
	}
	return d.unmasked[:size]
}

// webSocketStart tells whether a WebSocket stream begins with b: with control frames, and a data
// frame with a whole start line. n is where the data frame begins; for maybe how many bytes would
// tell.
func (d *decoder) webSocketStart(b []byte) (is verdict, n int) {
	const maxControls = 4
	for range maxControls {
		h, is := readWebSocketHeader(b[n:])
		if is != yes {
			return is, len(b) + 1
		}
		end := n + h.size + h.length
		if h.opcode < opcodeControl {
			return d.webSocketMessage(h, b, n)
		}
		if end == len(b) {
			return no, 0 // behind it a segment begins: that is a place, too
		}
		if end > len(b) {
			return maybe, end
		}
		n = end
	}
	return no, 0
}

const emptyLine = "\n\r\n" // and the end of the line before it

// webSocketMessage is webSocketStart from a data frame on, which begins at n. Without a mask a
// byte of anything before a start line looks like a frame, too: there the header section has to
// end in it, and text can't follow it.
func (d *decoder) webSocketMessage(h webSocketHeader, b []byte, n int) (verdict, int) {
	end := n + h.size + h.length
	line := d.payload(h, b[n:], maxWebSocketLine)
	isAll := len(line) == min(h.length, maxWebSocketLine)
	switch sip := startLine(trimLineEnds(line)); {
	case h.opcode == opcodeContinuation || sip == no || sip == maybe && isAll:
		return no, 0
	case sip == maybe:
		return maybe, n + h.size + min(h.length, maxWebSocketLine)
	case h.masked || !h.final || h.length > maxMessage:
		return yes, n
	}
	text := b[n+h.size : min(end, n+h.size+maxWebSocketSection, len(b))]
	section := bytes.Index(text, []byte(emptyLine)) + len(emptyLine) // less where there is none
	length, good := contentLength(trimLineEnds(text))
	switch {
	case section < len(emptyLine) && len(text) < min(h.length, maxWebSocketSection):
		return maybe, len(b) + 1
	case section < len(emptyLine):
		return no, 0
	case end == len(b) || end > len(b) && good && section+length == h.length:
		return yes, n
	case end < len(b):
		if _, is := readWebSocketHeader(b[end:]); is != no {
			return yes, n
		}
	}
	return no, 0
}

// webSocketFrame takes a WebSocket frame, one of which is a message (RFC 7118 §5). One in several
// frames is counted at the first. What isn't a frame ends WebSocket.
func (f *framer) webSocketFrame(d *decoder, b []byte) (rest []byte, more bool) {
	h, is := readWebSocketHeader(b)
	size := h.size + h.length
	isData := h.opcode == opcodeText || h.opcode == opcodeBinary
	if is == maybe {
		return b, false
	}
	if is == yes && isData && h.length <= maxMessage && len(b) < size {
		f.need = size
		return b, false
	}
	f.restart()
	f.webSocket = is == yes && size <= maxSkip
	switch {
	case is == no:
		return b, true
	case isData && h.length > maxMessage:
		d.counters.oversize.Add(1)
	case isData:
		payload := d.payload(h, b, maxMessage)
		sip := startLine(trimLineEnds(payload))
		if h.final && sip == yes {
			d.emit(ws, payload)
		} else if !h.final && sip != no {
			d.counters.streamGap.Add(1)
		}
	}
	if size > maxSkip {
		return nil, false
	}
	f.skip = size
	return b, true
}
