package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcap"
)

// readText reads a file of the repository.
func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReadmeSize: the README is short, and its first 120 lines have what it is, how it is started, what it
// never does, and how
// to check that.
func TestReadmeSize(t *testing.T) {
	const mostCharacters, firstLines = 40_000, 120
	text := readText(t, "README.md")
	if n := utf8.RuneCountInString(text); n > mostCharacters {
		t.Errorf("%d characters, at most %d", n, mostCharacters)
	}
	lines := strings.Split(text, "\n")
	first := strings.Join(lines[:firstLines], "\n")
	for _, part := range []string{
		"```mermaid", "integration/demo.sh", "integration/test.sh", "docker run", "`SIP_FILTER`", "```lisp",
		"## What it doesn't do", "## How to audit it", "| all |",
	} {
		if !strings.Contains(first, part) {
			t.Errorf("the first %d lines don't have %q", firstLines, part)
		}
	}
}

var fence = regexp.MustCompile("(?ms)^ *```.*?^ *```$")

// anchors are those of the headings of a text, as GitHub makes them.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	headings := regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1)
	for _, heading := range headings {
		all[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, heading[1])] = true
	}
	return all
}

// TestReadmeLinks: each link to a heading or a file leads somewhere.
func TestReadmeLinks(t *testing.T) {
	for _, path := range []string{"README.md", "integration/deploy/README.md"} {
		text := fence.ReplaceAllString(readText(t, path), "")
		for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(link[1], "https://") {
				continue
			}
			file, anchor, _ := strings.Cut(link[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", path, link[0], err)
			} else if anchor != "" && !anchors(readText(t, target))[anchor] {
				t.Errorf("%s: %s: there is no such heading", path, link[0])
			}
		}
	}
}

// TestReadmeNamesTests: the tests that prove what the README promises exist.
func TestReadmeNamesTests(t *testing.T) {
	var tests strings.Builder
	for _, pattern := range []string{"*_test.go", "integration/*_test.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			tests.WriteString(readText(t, path))
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(readText(t, "README.md"), -1)
	if len(named) < 10 {
		t.Errorf("the README names %d tests", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "\nfunc "+name[1]+"(t *testing.T)") {
			t.Errorf("there is no %s", name[1])
		}
	}
}

// TestReadmeFilters: every filter in the README is one, wherever it stands.
func TestReadmeFilters(t *testing.T) {
	text := readText(t, "README.md")
	filters := regexp.MustCompile("(?ms)^```lisp\n(.*?)^```$").FindAllStringSubmatch(text, -1)
	filters = append(filters, regexp.MustCompile(`SIP_FILTER='([^']+)'`).FindAllStringSubmatch(text, -1)...)
	if len(filters) < 2 { // those of the section on the language: TestFilterReadme
		t.Errorf("%d filters", len(filters))
	}
	for _, filter := range filters {
		if _, err := compileFilter(filter[1]); err != nil {
			t.Error(err)
		}
	}
}

// TestReadmeFigures: no cost is quoted but in the table, which integration/bench.sh makes.
func TestReadmeFigures(t *testing.T) {
	text := readText(t, "README.md")
	const begin, end = "<!-- table of integration/bench.sh -->", "<!-- end of the table -->"
	before, rest, _ := strings.Cut(text, begin)
	_, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatal("README.md has no table of costs")
	}
	prose := before + after + readText(t, "integration/deploy/README.md")
	cost := regexp.MustCompile(`[\d.]+ (µs|ns|% of a core)|resident|a second on one core`)
	for _, figure := range cost.FindAllString(prose, -1) {
		t.Errorf("a cost outside the table: %q", figure)
	}
}

// place is a row of the README's table of places: what comes there.
type place struct {
	name     string
	traffic  [][]header // behind an IP header of either family
	ethernet [][]header // behind that of Ethernet
	all      bool       // it selects everything
}

// of gives an octet string the number of its protocol, behind IP and behind Ethernet.
func of(protocol layers.IPProtocol, etherType layers.EthernetType, b ...byte) header {
	h := octets(b...)
	h.protocol = protocol
	h.etherType = etherType
	return h
}

// TestReadmeBPF runs each filter of the table of places against what comes there, over IPv4 and IPv6, whole and in
// fragments, and with a VLAN tag, and against RTP. (What the default selects: TestDefaultBPF.)
func TestReadmeBPF(t *testing.T) {
	sip := data(request("INVITE", "place", strings.Repeat("a=long\r\n", 60)))
	over := func(udpPort int) []header { return []header{udpHeader(40000, udpPort), sip} }
	packet := []header{ipv4Header(), udpHeader(5060, 5060), sip}
	places := []place{
		{
			name:    "other ports",
			traffic: [][]header{over(5060), over(5090), {tcpHeader(5070, 40000, 1, ""), sip}},
		},
		{
			name:    "other ports, one VLAN tag",
			traffic: [][]header{over(5060), over(5090), {tcpHeader(5070, 40000, 1, ""), sip}},
		},
		{
			name:    "SIP over WebSocket, too",
			traffic: [][]header{over(5060), {tcpHeader(40000, 80, 1, ""), sip}},
		},
		{
			name: "UDP tunnels",
			traffic: [][]header{
				{udpHeader(40000, 4789), vxlanHeader(7), ethernetHeader(), packet[0], packet[1], sip},
				{udpHeader(40000, 6081), geneveHeader(7), ethernetHeader(), packet[0], packet[1], sip},
				over(2152), over(37008), over(9060),
			},
		},
		{
			name: "GRE, ERSPAN, IP in IP, 6in4",
			traffic: [][]header{
				append([]header{greHeader("")}, packet...),
				packet,
				{ipv6Header(), packet[1], sip},
			},
		},
		{
			name: "MPLS, PPPoE, VN-Tag",
			ethernet: [][]header{
				append([]header{of(0, 0x8847, 0, 1, 0x41, 64)}, packet...),
				append([]header{of(0, 0x8848, 0, 1, 0x41, 64)}, packet...),
				append([]header{of(0, 0x8864, 0x11, 0, 0, 1, 1, 0, 0, 0x21)}, packet...),
				append([]header{of(0, 0x8926, 0x80, 1, 0, 2, 8, 0)}, packet...),
			},
		},
		{
			name:     "all there is",
			traffic:  [][]header{over(1)},
			ethernet: [][]header{{arp()}},
			all:      true,
		},
	}
	rtp := []header{udpHeader(10000, 20000), data("\x80\x00" + strings.Repeat("rtp", 50))}

	_, table, _ := strings.Cut(readText(t, "README.md"), "\n## Where to place it\n")
	table, _, _ = strings.Cut(table, "\n## ")
	row3 := regexp.MustCompile("(?m)^\\| ([^|\n]+) \\| ([^|\n]+) \\| `([^`|\n]* [^`|\n]*)` \\|$")
	rows := row3.FindAllStringSubmatch(table, -1)
	if len(rows) != len(places) {
		t.Fatalf("%d filters in the README, %d here: %q", len(rows), len(places), rows)
	}
	for i, row := range rows {
		p, device, filter := places[i], row[2], row[3]
		if !strings.HasPrefix(row[1], p.name) {
			t.Fatalf("the row of %s is that of %s", row[1], p.name)
		}
		run := func(filter string, link layers.LinkType, outer ...header) {
			t.Helper()
			bpf, err := pcap.NewBPF(link, 262144, filter)
			if err != nil {
				t.Fatalf("%s: %q: %v", p.name, filter, err)
			}
			selects := func(what string, frame []byte, want bool) {
				t.Helper()
				info := gopacket.CaptureInfo{CaptureLength: len(frame), Length: len(frame)}
				if bpf.Matches(info, frame) != want {
					t.Errorf("%s: %q, %s, %s: want %v", p.name, filter, link, what, want)
				}
			}
			for _, ip := range []header{ipv4Header(), ipv6Header()} {
				behind := append(slices.Clone(outer), ip)
				for _, inner := range p.traffic {
					selects("whole", build(slices.Concat(behind, inner)...), true)
					for _, fragment := range fragments(behind, inner, 5, 96, 400) {
						selects("a fragment", fragment, true)
					}
				}
				selects("RTP", build(slices.Concat(behind, rtp)...), p.all)
			}
			for _, inner := range p.ethernet {
				selects("behind Ethernet", build(slices.Concat(outer, inner)...), true)
			}
		}
		const ethernet, cooked = layers.LinkTypeEthernet, layers.LinkTypeLinuxSLL
		tag := vlanHeader(0x8100, 7)
		inTags := filter + " or (vlan and (" + filter + "))" // as the README says below the table
		run(filter, ethernet, ethernetHeader())
		run(inTags, ethernet, ethernetHeader())
		run(inTags, ethernet, ethernetHeader(), tag)
		if strings.Contains(filter, "vlan") {
			run(filter, ethernet, ethernetHeader(), tag)
		}
		if device == "`any`" {
			run(filter, cooked, sllHeader())
		}
	}
}
