package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"math/rand"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is a message that the filter tests know by name. Its text has bare LF line ends, which become CRLF, unless
// asIs is set; src is its source address.
type sample struct {
	name      string
	transport transport
	src       string
	text      string
	asIs      bool
}

const sdp = `
v=0
o=alice 2890844526 2890844526 IN IP4 192.0.2.1
s=-
c=IN IP4 192.0.2.1
t=0 0
m=audio 49172 RTP/AVP 0
a=rtpmap:0 PCMU/8000
`

var samples = []sample{
	// A call, from its INVITE to the answer of its BYE.
	{
		name: "invite",
		src:  "192.0.2.1",
		text: `INVITE sip:bob@biloxi.example.com SIP/2.0
Via: SIP/2.0/UDP edge.atlanta.example.com;branch=z9hG4bKnashds8
Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bK776asdhds
Max-Forwards: 70
To: Bob <sip:bob@biloxi.example.com>
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314159 INVITE
Contact: <sip:alice@pc33.atlanta.example.com>
User-Agent: Acme Phone/2.1
Content-Type: application/sdp
Content-Length: 141
` + sdp},
	{
		name: "trying",
		src:  "198.51.100.2",
		text: `SIP/2.0 100 Trying
Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bK776asdhds
To: Bob <sip:bob@biloxi.example.com>
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314159 INVITE
Content-Length: 0

`,
	},
	{
		name: "ringing",
		src:  "198.51.100.2",
		text: `SIP/2.0 180 Ringing
Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bK776asdhds
To: Bob <sip:bob@biloxi.example.com>;tag=a6c85cf
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314159 INVITE
Contact: <sip:bob@198.51.100.2>
Content-Length: 0

`,
	},
	{
		name: "ok",
		src:  "198.51.100.2",
		text: `SIP/2.0 200 OK
Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bK776asdhds
To: Bob <sip:bob@biloxi.example.com>;tag=a6c85cf
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314159 INVITE
Contact: <sip:bob@198.51.100.2>
Content-Type: application/sdp
Content-Length: 141
` + sdp},
	{
		name: "ack",
		src:  "192.0.2.1",
		text: `ACK sip:bob@198.51.100.2 SIP/2.0
Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bKkjshdyff
To: Bob <sip:bob@biloxi.example.com>;tag=a6c85cf
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314159 ACK
Content-Length: 0

`,
	},
	{
		name: "reinvite",
		src:  "192.0.2.1",
		text: `INVITE sip:bob@198.51.100.2 SIP/2.0
To: Bob <sip:bob@biloxi.example.com> ; TAG = a6c85cf
From: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 314160 INVITE
Content-Type: application/sdp
Content-Length: 174
` + sdp + `m=video 51372 RTP/AVP 31
a=sendrecv
`,
	},
	{
		name: "bye",
		src:  "198.51.100.2",
		text: `BYE sip:alice@pc33.atlanta.example.com SIP/2.0
To: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
From: Bob <sip:bob@biloxi.example.com>;tag=a6c85cf
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 231 BYE
Content-Length: 0

`,
	},
	{
		name: "byeok",
		src:  "192.0.2.1",
		text: `SIP/2.0 200 OK
To: "Alice" <sip:alice@atlanta.example.com>;tag=1928301774
From: Bob <sip:bob@biloxi.example.com>;tag=a6c85cf
Call-ID: a84b4c76e66710@pc33.atlanta.example.com
CSeq: 231 BYE
Content-Length: 0

`,
	},

	// Calls that fail.
	{
		name: "cancel",
		src:  "192.0.2.1",
		text: `CANCEL sip:carol@chicago.example.com SIP/2.0
To: <sip:carol@chicago.example.com>
From: <sip:alice@atlanta.example.com>;tag=1
Call-ID: cancelled
CSeq: 7 CANCEL
Content-Length: 0

`,
	},
	{
		name: "busy",
		src:  "198.51.100.2",
		text: `SIP/2.0 486 Busy Here
To: <sip:carol@chicago.example.com>;tag=2
From: <sip:alice@atlanta.example.com>;tag=1
Call-ID: busy
CSeq: 8 INVITE
Content-Length: 0

`,
	},
	{
		name: "decline",
		src:  "198.51.100.2",
		text: `sip/2.0 603
To: <sip:carol@chicago.example.com>;tag=2
From: <sip:alice@atlanta.example.com>;tag=1
Call-ID: decline
cseq : 9	INVITE
Content-Length: 0

`,
	},
	{
		name: "strange",
		src:  "198.51.100.2",
		text: `SIP/2.0 999 Beyond RFC 3261
To: <sip:carol@chicago.example.com>;tag=2
From: <sip:alice@atlanta.example.com>;tag=1
Call-ID: strange
CSeq: 10 MESSAGE
Content-Length: 0

`,
	},

	// Registrations and probes.
	{
		name:      "register",
		transport: tcp,
		src:       "10.1.2.3",
		text: `REGISTER sip:registrar.biloxi.example.com SIP/2.0
To: Bob <sip:bob@biloxi.example.com>
From: Bob <sip:bob@biloxi.example.com>;tag=456248
Call-ID: 843817637684230@998sdasdh09
CSeq: 1826 REGISTER
Contact: <sip:bob@10.1.2.3>
Expires: 7200
Content-Length: 0

`,
	},
	{
		name:      "challenge",
		transport: tcp,
		src:       "198.51.100.2",
		text: `SIP/2.0 401 Unauthorized
To: Bob <sip:bob@biloxi.example.com>;tag=3
From: Bob <sip:bob@biloxi.example.com>;tag=456248
Call-ID: 843817637684230@998sdasdh09
CSeq: 1826 REGISTER
WWW-Authenticate: Digest realm="biloxi.example.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"
Content-Length: 0

`,
	},
	{
		name: "outsider",
		src:  "203.0.113.9",
		text: `REGISTER sip:registrar.biloxi.example.com SIP/2.0
To: <sip:100@biloxi.example.com>
From: <sip:100@biloxi.example.com>;tag=x
Call-ID: outsider
CSeq: 1 REGISTER
Contact: *
Content-Length: 0

`,
	},
	{
		name: "ping",
		src:  "192.0.2.1",
		text: `OPTIONS sip:198.51.100.2 SIP/2.0
To: <sip:198.51.100.2>
From: <sip:192.0.2.1>;tag=p
Call-ID: ping
CSeq: 20 OPTIONS
Content-Length: 0

`,
	},
	{
		name: "pong",
		src:  "198.51.100.2",
		text: `SIP/2.0 200 OK
To: <sip:198.51.100.2>;tag=q
From: <sip:192.0.2.1>;tag=p
Call-ID: ping
CSeq: 20 OPTIONS
Content-Length: 0

`,
	},
	{
		name: "scanner",
		src:  "203.0.113.66",
		text: `OPTIONS sip:100@198.51.100.2 SIP/2.0
To: "sipvicious"<sip:100@1.1.1.1>
From: "sipvicious"<sip:100@1.1.1.1>;tag=6364
User-Agent: friendly-scanner
Call-ID: scan
CSeq: 1 OPTIONS
Content-Length: 0

`,
	},

	// Headers in every form.
	{
		name:      "compact",
		transport: sctp,
		src:       "2001:db8::1",
		text: `INVITE sip:dave@example.net SIP/2.0
v:SIP/2.0/SCTP host.example.org;branch=z9hG4bKc
f:<sip:erin@example.org>;tag=e
t:<sip:dave@example.net>
i:compact
CSEQ:1 INVITE
M:<sip:erin@host.example.org>
s:lunch
k:100rel, timer
x:1800
r:<sip:frank@example.com>
b:<sip:erin@example.org>
o:refer
u:presence
a:*;audio
j:*;video
d:no-fork
e:gzip
y:signature
n:<https://example.org/cert>
c:text/plain
l:5

hello`,
	},
	{
		name: "folded",
		src:  "192.0.2.1",
		text: `INVITE sip:grace@example.net SIP/2.0
Via: SIP/2.0/UDP a.example.org
	;branch=z9hG4bKf
To: Grace
  <sip:grace@example.net>
 ;tag=folded
From:
 <sip:heidi@example.org>;tag=h
Subject: I know you're there, 
   pick up the phone
	and talk
Call-ID: folded
CSeq: 2
 INVITE
Content-Length: 0

`,
	},
	{
		name:      "blank",
		transport: ws,
		src:       "192.0.2.1",
		text: `INFO sip:ivan@example.net SIP/2.0
To: <sip:ivan@example.net>;tag=1
From: <sip:judy@example.org>;tag=2
Call-ID: blank
CSeq: 3 INFO
Subject:
Supported:  	
Content-Length: 0

`,
	},
	{
		name: "barelf",
		asIs: true,
		src:  "192.0.2.1",
		text: "NOTIFY sip:ivan@example.net SIP/2.0\nTo: <sip:ivan@example.net>;tag=1\n" +
			"From: <sip:judy@example.org>;tag=2\nCall-ID: barelf\nCSeq: 4 NOTIFY\nSubject: bare\n" +
			" line ends\nEvent: presence\n\nopen\n\nclosed",
	},
	{
		name: "unended",
		asIs: true,
		src:  "192.0.2.1",
		text: "SUBSCRIBE sip:ivan@example.net SIP/2.0\r\nTo: <sip:ivan@example.net>\r\n" +
			"Call-ID: unended\r\nCSeq: 5 SUBSCRIBE\r\nEvent: presence",
	},
	{
		name: "late",
		asIs: true,
		src:  "192.0.2.1",
		text: "\r\n\r\nINVITE sip:late@example.net SIP/2.0\r\nTo: sip:late@example.net\r\n" +
			"Call-ID: late\r\nCSeq: 6 INVITE\r\nContent-Length: 0\r\n\r\n",
	},
	{
		name: "quoted",
		src:  "192.0.2.1",
		text: `REFER sip:ivan@example.net;tag=no SIP/2.0
To: "Ivan \";tag=no" <sip:ivan@example.net;tag=no>
From: <sip:judy@example.org>;tag=2
Call-ID: quoted
CSeq: 7 REFER
Refer-To: <sip:frank@example.com>
X-Subject: not a Subject
Content-Length: 0

`,
	},
	{
		name: "toless",
		src:  "192.0.2.1",
		text: `UPDATE sip:ivan@example.net SIP/2.0
From: <sip:judy@example.org>;tag=2
Call-ID: toless
CSeq: 8 UPDATE
Content-Length: 0

To: <sip:body@example.net>;tag=no`,
	},
	{
		name:      "extension",
		transport: ws,
		src:       "192.0.2.1",
		text: `X-Ping.1 sip:ivan@example.net SIP/2.0
To: sip:ivan@example.net;tag=in-dialog
Call-ID: extension
CSeq: 9 X-Ping.1
Content-Length: 0

`,
	},

	// Bodies and bytes.
	{
		name: "binary",
		asIs: true,
		src:  "192.0.2.1",
		text: "MESSAGE sip:ivan@example.net SIP/2.0\r\nTo: <sip:ivan@example.net>\r\nCall-ID: binary\r\n" +
			"CSeq: 10 MESSAGE\r\nContent-Type: application/octet-stream\r\nContent-Length: 8\r\n\r\n" +
			"\x00\x01\xff\xfe\r\n\r\n",
	},
	{
		name:      "multipart",
		transport: tcp,
		src:       "192.0.2.1",
		text: `INVITE sip:kate@example.net SIP/2.0
To: <sip:kate@example.net>
From: <sip:+15550100@example.org;user=phone>;tag=2
Call-ID: multipart
CSeq: 11 INVITE
Content-Type: multipart/mixed;boundary=boundary1

--boundary1
Content-Type: application/sdp
` + sdp + `
--boundary1
Content-Type: application/ISUP;version=nxv3
Subject: in the body

IAM
--boundary1--
`,
	},
	{
		name: "latin1",
		asIs: true,
		src:  "192.0.2.1",
		text: "INVITE sip:leo@example.net SIP/2.0\r\nTo: <sip:leo@example.net>\r\n" +
			"From: \"Jos\xe9\" <sip:jose@example.org>;tag=2\r\nCall-ID: latin1\r\nCSeq: 12 INVITE\r\n" +
			"Subject: na\xc3\xafve\x00caf\xe9\r\nContent-Length: 0\r\n\r\n",
	},

	// Calls for the examples of the README.
	{
		name: "premium",
		src:  "10.1.2.3",
		text: `INVITE sip:+19005550199@example.net;user=phone SIP/2.0
To: <sip:+19005550199@example.net;user=phone>
From: <sip:2001@example.org>;tag=2
Call-ID: premium
CSeq: 13 INVITE
Content-Length: 0

`,
	},
	{
		name: "emergency",
		src:  "10.1.2.3",
		text: `INVITE urn:service:sos.fire SIP/2.0
To: <urn:service:sos.fire>
From: <sip:2001@example.org>;tag=2
Call-ID: emergency
CSeq: 14 INVITE
Content-Length: 0

`,
	},
	{
		name: "diverted",
		src:  "::ffff:10.9.9.9",
		text: `INVITE sip:voicemail@example.net SIP/2.0
To: <sip:2001@example.net>
From: <sip:112@example.org>;tag=2
Diversion: <sip:2001@example.net>;reason=no-answer
Diversion: <sip:2000@example.net>;reason=unconditional
Call-ID: diverted
CSeq: 15 INVITE
Content-Length: 0

`,
	},
	{
		name:      "publish",
		transport: sctp,
		src:       "2001:db8:1::7",
		text: `PUBLISH sip:presentity@example.com SIP/2.0
To: <sip:presentity@example.com>
From: <sip:alice@mobile.provider.com>;tag=2
Contact: <sip:alice@mobile.provider.com>
Magic: 1
Call-ID: publish
CSeq: 16 PUBLISH
Content-Type: application/pidf+xml
Content-Length: 6

secret`,
	},
}

// message is the message of a sample; all go to 198.51.100.2, and those that come from there to 192.0.2.1.
func (s sample) message() *message {
	dst := "198.51.100.2:5060"
	if s.src == "198.51.100.2" {
		dst = "192.0.2.1:5060"
	}
	raw := s.text
	if !s.asIs {
		raw = strings.ReplaceAll(raw, "\n", "\r\n")
	}
	return &message{
		time:      time.Unix(1700000000, 0),
		transport: s.transport,
		src:       netip.AddrPortFrom(netip.MustParseAddr(s.src), 5060),
		dst:       netip.MustParseAddrPort(dst),
		raw:       []byte(raw),
	}
}

// selected has the names of the samples that a filter selects, in their order.
func selected(t *testing.T, source string) string {
	t.Helper()
	filter, err := compileFilter(source)
	if err != nil {
		t.Fatalf("filter %s:\n%v", source, err)
	}
	var names []string
	for _, s := range samples {
		if filter(s.message()) {
			names = append(names, s.name)
		}
	}
	return strings.Join(names, " ")
}

const (
	everything = requests + " " + responses
	requests   = "invite ack reinvite bye cancel register outsider ping scanner compact folded blank barelf unended " +
		"late quoted toless extension binary multipart latin1 premium emergency diverted publish"
	responses = "trying ringing ok byeok busy decline strange challenge pong"
)

// inOrder puts names into the order of the samples.
func inOrder(names string) string {
	list := strings.Fields(names)
	position := func(name string) int {
		return slices.IndexFunc(samples, func(s sample) bool { return s.name == name })
	}
	slices.SortFunc(list, func(a, b string) int { return position(a) - position(b) })
	return strings.Join(list, " ")
}

// without leaves names out of a list.
func without(list, names string) string {
	isLeftOut := func(name string) bool { return slices.Contains(strings.Fields(names), name) }
	return strings.Join(slices.DeleteFunc(strings.Fields(list), isLeftOut), " ")
}

const (
	inviteMethod = "invite trying ringing ok reinvite busy decline compact folded late multipart latin1 premium " +
		"emergency diverted"
	invites    = "invite reinvite compact folded late multipart latin1 premium emergency diverted"
	inside     = "ack reinvite bye folded blank barelf extension"
	newInvites = "invite compact late multipart latin1 premium emergency diverted"
	from192    = "invite ack reinvite byeok cancel ping folded blank barelf unended late quoted toless extension " +
		"binary multipart latin1"
	from198 = "trying ringing ok bye busy decline strange challenge pong"
	withTo  = "invite trying ringing ok ack reinvite bye byeok cancel busy decline strange register challenge " +
		"outsider ping pong scanner compact folded blank barelf unended late quoted extension binary multipart " +
		"latin1 premium emergency diverted publish"
	fromless      = "unended late extension binary"
	withSDP       = "invite ok reinvite multipart"
	withSubject   = "compact folded blank barelf latin1"
	contentTyped  = "invite ok reinvite compact binary multipart publish"
	lengthless    = "barelf unended multipart"
	toBob         = "invite trying ringing ok ack reinvite register challenge"
	fromAlice     = "invite trying ringing ok ack reinvite cancel busy decline strange publish"
	contacted     = "invite ringing ok register outsider compact publish"
	tcpMessages   = "register challenge multipart"
	sctpMessages  = "compact publish"
	wsMessages    = "blank extension"
	otherThanUDP  = tcpMessages + " " + sctpMessages + " " + wsMessages
	ping          = "ping pong scanner"
	fromTen       = "register premium emergency diverted"
	firstCallSide = "invite trying ringing ok ack reinvite bye byeok"
)

func TestFilter(t *testing.T) {
	for _, row := range []struct{ filter, selects string }{
		// Everything and nothing.
		{``, everything},
		{" \t\r\n ", everything},
		{`request`, requests},
		{`(request)`, requests},
		{` ( request ) `, requests},
		{`response`, responses},
		{`(response)`, responses},
		{"\nresponse\n", responses},
		{`(not request)`, responses},
		{`(not (response))`, requests},
		{`(any request response)`, everything},
		{`(all request response)`, ""},

		// The original's documentation.
		{`(status 100 180 183 200)`, "trying ringing ok byeok pong"},
		{`(hasheader "diversion")`, "diverted"},
		{`(not (status 200))`, without(everything, "ok byeok pong")},
		{`(all (method invite) (status 200))`, "ok"},
		{`(all (methods invite) (status 200))`, "ok"},
		{`(all (to "bob@biloxi.example.com") (method invite bye) (any request (status 200)))`, "invite ok reinvite"},
		{"(all request (method invite publish) (not (body \"don't capture\"))\n" +
			`(any (header "contact" "alice@.*provider.com") (hasheader "magic") (message "secrets")))`, "publish"},

		// method
		{`(method invite)`, inviteMethod},
		{`(method INVITE)`, inviteMethod},
		{`(method "Invite")`, inviteMethod},
		{`(methods "invite")`, inviteMethod},
		{`(method INV)`, ""},
		{`(method invitee)`, ""},
		{`(method sip)`, ""},
		{`(method ack)`, "ack"},
		{`(method bye)`, "bye byeok"},
		{`(method ack bye cancel)`, "ack bye byeok cancel"},
		{`(method options)`, ping},
		{`(method register)`, "register challenge outsider"},
		{`(method message)`, "strange binary"},
		{`(method x-ping.1)`, "extension"},
		{`(method X-PING.1 update)`, "extension toless"},
		{`(method subscribe notify refer info publish)`, "blank barelf unended quoted publish"},
		{`(all (method invite) request)`, invites},
		{`(all response (method invite))`, "trying ringing ok busy decline"},
		{`(all request (not (method invite)))`, without(requests, invites)},
		{`(method prack)`, ""},

		// status
		{`(status 486)`, "busy"},
		{`(status "486")`, "busy"},
		{`(status 603)`, "decline"},
		{`(status 200)`, "ok byeok pong"},
		{`(status 1xx)`, "trying ringing"},
		{`(status 2xx)`, "ok byeok pong"},
		{`(status 2XX)`, "ok byeok pong"},
		{`(status 3xx)`, ""},
		{`(status 4xx)`, "busy challenge"},
		{`(status 6xx)`, "decline"},
		{`(status 4xx 5xx 6xx)`, "busy decline challenge"},
		{`(status 400-499)`, "busy challenge"},
		{`(status 401-485)`, "challenge"},
		{`(status 402-485)`, ""},
		{`(status 486-486)`, "busy"},
		{`(status 100-699)`, without(responses, "strange")},
		{`(status 101-199 486)`, "ringing busy"},
		{`(all response (not (status 1xx 2xx 3xx 4xx 5xx 6xx)))`, "strange"},
		{`(not (status 100-699))`, requests + " strange"},
		{`(all (status 3xx 4xx 5xx 6xx) (method invite))`, "busy decline"},

		// initial
		{`initial`, without(requests, inside)},
		{`(initial)`, without(requests, inside)},
		{`(all (method invite) initial)`, newInvites},
		{`(all request (not initial))`, inside},
		{`(all response initial)`, ""},
		{`(all initial (method refer))`, "quoted"},
		{`(all initial (method update))`, "toless"},

		// uri
		{`(uri "bob@")`, "invite ack reinvite"},
		{`(uri "^sip:bob@biloxi\.example\.com$")`, "invite"},
		{`(uri "^sip:198\.51\.100\.2$")`, "ping"},
		{`(uri "^urn:service:sos")`, "emergency"},
		{`(uri "(?i)^SIP:LATE")`, "late"},
		{`(uri ";tag=no$")`, "quoted"},
		{`(uri "SIP/2")`, ""},
		{`(uri "INVITE")`, ""},
		{`(uri "Ringing|180")`, ""},
		{`(uri "^$")`, ""},
		{`(uri "")`, requests},

		// hasheader
		{`(hasheader "to")`, withTo},
		{`(hasheader to)`, withTo},
		{`(hasheader t)`, withTo},
		{`(hasheader T)`, withTo},
		{`(not (hasheader to))`, "toless"},
		{`(hasheader subject)`, withSubject},
		{`(hasheader s)`, withSubject},
		{`(hasheader SUBJECT)`, withSubject},
		{`(hasheader x-subject)`, "quoted"},
		{`(hasheader sub)`, ""},
		{`(hasheader call-id)`, everything},
		{`(hasheader i)`, everything},
		{`(hasheader call)`, ""},
		{`(hasheader content-length)`, without(everything, lengthless)},
		{`(hasheader "l")`, without(everything, lengthless)},
		{`(hasheader content-type)`, contentTyped},
		{`(hasheader "C")`, contentTyped},
		{`(hasheader via)`, "invite trying ringing ok ack compact folded"},
		{`(hasheader supported)`, "compact blank"},
		{`(hasheader contact)`, contacted},
		{`(hasheader refer-to)`, "compact quoted"},
		{`(hasheader r)`, "compact quoted"},
		{`(hasheader event)`, "compact barelf unended"},
		{`(hasheader session-expires)`, "compact"},
		{`(hasheader referred-by)`, "compact"},
		{`(hasheader allow-events)`, "compact"},
		{`(hasheader accept-contact)`, "compact"},
		{`(hasheader reject-contact)`, "compact"},
		{`(hasheader request-disposition)`, "compact"},
		{`(hasheader content-encoding)`, "compact"},
		{`(hasheader identity)`, "compact"},
		{`(hasheader identity-info)`, "compact"},
		{`(hasheader diversion magic)`, "diverted publish"},
		{`(hasheader p-asserted-identity)`, ""},
		{`(hasheader z)`, ""},
		{`(hasheader sip)`, ""},
		{`(not (hasheader from))`, fromless},

		// header
		{`(header "to" "bob@")`, toBob},
		{`(header to "bob@")`, toBob},
		{`(header t "bob@")`, toBob},
		{`(header "TO" "bob@")`, toBob},
		{`(header subject "^lunch$")`, "compact"},
		{`(header subject "^$")`, "blank"},
		{`(header supported "^$")`, "blank"},
		{`(header supported "")`, "compact blank"},
		{`(header subject "^I know you're there, pick up the phone and talk$")`, "folded"},
		{`(header subject "^bare line ends$")`, "barelf"},
		{`(header via "^SIP/2\.0/UDP a\.example\.org ;branch=z9hG4bKf$")`, "folded"},
		{`(header from "^<sip:heidi@example\.org>;tag=h$")`, "folded"},
		{`(header cseq "^2 INVITE$")`, "folded"},
		{`(header cseq "^9\tINVITE$")`, "decline"},
		{`(header via "nashds8")`, "invite"},
		{`(header via "^SIP/2\.0/UDP pc33")`, "invite trying ringing ok ack"},
		{`(header diversion "unconditional")`, "diverted"},
		{`(header diversion "no-answer.*unconditional")`, ""},
		{`(header contact "^\*$")`, "outsider"},
		{`(header content-type "(?i)isup")`, ""},
		{`(header subject "in the body")`, ""},
		{`(header subject "not a Subject")`, ""},
		{`(header user-agent "friendly-scanner|sipvicious")`, "scanner"},
		{`(header user-agent "(?i)^ACME")`, "invite"},
		{`(header content-length "^0$")`, "trying ringing ack bye byeok cancel busy decline strange register " +
			"challenge outsider ping pong scanner folded blank late quoted toless extension latin1 " +
			"premium emergency diverted"},
		{`(header event "^presence$")`, "barelf unended"},
		{`(header subject "naïve")`, "latin1"},
		{`(header subject "\x00")`, "latin1"},
		{`(header subject "caf\x{FFFD}$")`, "latin1"},
		{`(header from "Jos\xe9")`, ""},
		{`(header from "Jos.\"")`, "latin1"},
		{`(header www-authenticate "realm=\"biloxi\.example\.com\"")`, "challenge"},

		// to and from
		{`(to "bob@biloxi.example.com")`, toBob},
		{`(to "^sip:")`, "late extension"},
		{`(to "^Grace <sip:grace@example\.net> ;tag=folded$")`, "folded"},
		{`(to "body@")`, ""},
		{`(from "alice@")`, fromAlice},
		{`(from "\"Alice\"")`, "invite trying ringing ok ack reinvite"},
		{`(from "^<sip:erin@example.org>;tag=e$")`, "compact"},
		{`(from "")`, without(everything, fromless)},

		// body and message
		{`(body "m=audio")`, withSDP},
		{`(body "(?m)^m=video [1-9]")`, "reinvite"},
		{`(body "^hello$")`, "compact"},
		{`(body "^open\n\nclosed$")`, "barelf"},
		{`(body "^\x00\x01")`, "binary"},
		{`(body "\x{FFFD}\x{FFFD}\r\n\r\n$")`, "binary"},
		{`(body "\xff")`, ""},
		{`(body "IAM")`, "multipart"},
		{`(body "^--boundary1\r\n")`, "multipart"},
		{`(body "To: <sip:body@")`, "toless"},
		{`(body "CSeq")`, ""},
		{`(body "presence")`, ""},
		{`(not (body "^$"))`, withSDP + " compact barelf toless binary publish"},
		{`(message "^\r\n\r\nINVITE")`, "late"},
		{`(message "(?i)^sip/2.0 603\r\n")`, "decline"},
		{`(message "secret$")`, "publish"},
		{`(message "Subject: in the body")`, "multipart"},
		{`(message "\x00")`, "binary latin1"},
		{`(message "don't")`, ""},

		// transport, src and dst
		{`(transport udp)`, without(everything, otherThanUDP)},
		{`(transport TCP)`, tcpMessages},
		{`(transport "sctp")`, sctpMessages},
		{`(transport ws)`, wsMessages},
		{`(transport tcp sctp ws)`, otherThanUDP},
		{`(src 192.0.2.1)`, from192},
		{`(src "192.0.2.1")`, from192},
		{`(src 192.0.2.0/24)`, from192},
		{`(src 192.0.2.77/24)`, from192},
		{`(src ::ffff:192.0.2.1)`, from192},
		{`(src 192.0.2.2/31)`, ""},
		{`(src 10.0.0.0/8)`, fromTen},
		{`(src 10.9.9.9)`, "diverted"},
		{`(src ::ffff:10.9.9.9)`, "diverted"},
		{`(src 0.0.0.0/0)`, without(everything, sctpMessages)},
		{`(src ::/0)`, sctpMessages},
		{`(src 2001:db8::/32)`, sctpMessages},
		{`(src 2001:DB8::/64)`, "compact"},
		{`(src 2001:db8:1::7)`, "publish"},
		{`(src 203.0.113.0/24 2001:db8::1)`, "outsider scanner compact"},
		{`(dst 198.51.100.2)`, without(everything, from198)},
		{`(dst 192.0.2.1)`, from198},
		{`(dst 10.0.0.0/8)`, ""},
		{`(any (src 198.51.100.2) (dst 192.0.2.1))`, from198},

		// sample
		{`(sample 1)`, everything},

		// all, any, not
		{`(all request)`, requests},
		{`(any response)`, responses},
		{`(not (not request))`, requests},
		{`(all (any request response) (not (any (method invite) (method options))))`,
			without(everything, inviteMethod+" "+ping)},
		{`(any (status 486) (method bye) (uri "sos"))`, "bye byeok busy emergency"},
		{`(all(method invite)(not initial)(not response))`, "reinvite folded"},
		{"(all\n\t(method invite)\n\tinitial\n\t(transport tcp))\n", "multipart"},
		{`(all initial (method "invite") (not (header "user-agent" "Acme|monitor")))`, without(newInvites, "invite")},
		{`(any (all request (src 10.0.0.0/8)) (all response (status 4xx)))`, fromTen + " busy challenge"},

		// Strings: only \" is an escape, and line ends may stand in them.
		{`(from "\"Alice\" <")`, "invite trying ringing ok ack reinvite"},
		{`(uri "sip:\+\d{11}@")`, "premium"},
		{`(uri "[\x22]")`, ""},
		{"(body \"open\n\nclosed\")", "barelf"},
		{`(to "\"Ivan \\\";tag=no\"")`, "quoted"},
	} {
		t.Run(row.filter, func(t *testing.T) {
			if got, want := selected(t, row.filter), inOrder(row.selects); got != want {
				t.Errorf("filter %s\n got %s\nwant %s", row.filter, got, want)
			}
		})
	}
}

// What an error says after the part of the filter that is wrong.
const (
	anyForm = "; want a form: request response method methods status initial uri hasheader header " +
		"to from body message transport src dst sample all any not"
	orderRule = ": each form stands in parentheses, its name first, then its arguments"
	operators = "; want no operator" + orderRule
	lowerCase = ": forms are in lower case, without quotes"
	isHeader  = " RE): it is a header, not a form"
	nameRule  = "; want a name of letters, digits and -.!%*_+`'~"
	codeRule  = "; want a code (100 to 699), a class (4xx) or a range (400-499)"
	netRule   = "; want an address or a net, like 10.0.0.0/8: src and dst have no port"
	wordRule  = "; want udp, tcp, sctp or ws: TLS can't be read, unless a server sends it as HEP (as tcp)"
	countRule = "; want a whole number from 1 to 4294967295"
	quoteRule = "; want a regular expression in double quotes"
	listRule  = "; want what closes it: a )"
	textRule  = `; want what closes it: a " without a backslash`
	endRule   = "; want the end: put several forms into (all …) or (any …)"
	openRule  = "; want the end: nothing is open that this could close"
	noComment = "; want no comment: a filter has none"
	reSyntax  = "; want the syntax of RE2: "
)

// Each row has a source of one line, and its only problem: the column, the part of the source that
// is wrong, and what is wanted.
func TestFilterErrors(t *testing.T) {
	for _, row := range []struct{ source, problem string }{
		// What is no form.
		{`requst`, "1: `requst`" + anyForm},
		{`(all requst)`, "6: `requst`" + anyForm},
		{`(stauts 200)`, "2: `stauts`" + anyForm},
		{`(form "x")`, "2: `form`" + anyForm},
		{`(al request)`, "2: `al`" + anyForm},
		{`(alll (method invite) (stauts 200))`, "2: `alll`" + anyForm},
		{`(source 192.0.2.1)`, "2: `source`" + anyForm},
		{`(headers "to" "x")`, "2: `headers`" + anyForm},
		{`(has-header "to")`, "2: `has-header`" + anyForm},
		{`()`, "1: `(`" + anyForm},
		{`(all ())`, "6: `(`" + anyForm},
		{`((request))`, "2: `(`" + anyForm},
		{`""`, "1: `\"\"`" + anyForm},
		{`("two words" invite)`, "2: `\"two words\"`" + anyForm},

		// What was meant by it.
		{`(METHOD invite)`, "2: `METHOD`; want (method NAME …)" + lowerCase},
		{`Request`, "1: `Request`; want (request)" + lowerCase},
		{`(Not request)`, "2: `Not`; want (not F)" + lowerCase},
		{`("method" invite)`, "2: `\"method\"`; want (method NAME …)" + lowerCase},
		{`"request"`, "1: `\"request\"`; want (request)" + lowerCase},
		{`(contact "x")`, "2: `contact`; want (header \"contact\"" + isHeader},
		{`(via "x")`, "2: `via`; want (header \"via\"" + isHeader},
		{`(User-Agent "x")`, "2: `User-Agent`; want (header \"user-agent\"" + isHeader},
		{`(call-id "x")`, "2: `call-id`; want (header \"call-id\"" + isHeader},
		{`(i "x")`, "2: `i`; want (header \"i\"" + isHeader},
		{`(all request (cseq "x"))`, "15: `cseq`; want (header \"cseq\"" + isHeader},
		{`(x-account "7")`, "2: `x-account`; want (header \"x-account\"" + isHeader},
		{`(p-asserted-identity "x")`, "2: `p-asserted-identity`; want (header \"p-asserted-identity\"" + isHeader},
		{`(not invite)`, "6: `invite`; want (method invite)"},
		{`BYE`, "1: `BYE`; want (method bye)"},
		{`(all (method invite) 4xx)`, "22: `4xx`; want (status 4xx)"},
		{`486`, "1: `486`; want (status 486)"},
		{`(udp)`, "2: `udp`; want (transport udp)"},
		{`(port 5060)`, "2: `port`; want a form: ports are a matter of BPF_FILTER"},
		{`(and request)`, "2: `and`; want (all F …): true if all of the forms in it are"},
		{`(or request)`, "2: `or`; want (any F …): true if any of the forms in it is"},
		{`(OR request)`, "2: `OR`; want (any F …): true if any of the forms in it is"},

		// Parentheses that are missing, and operators: one problem each.
		{`a == b`, "3: `==`" + operators},
		{`method == invite`, "8: `==`" + operators},
		{`(method == invite)`, "9: `==`" + operators},
		{`(to =~ "bob")`, "5: `=~`" + operators},
		{`method==invite`, "1: `method==invite`" + operators},
		{`(method invite) && (status 200)`, "17: `&&`" + operators},
		{`(any request || response)`, "14: `||`" + operators},
		{`!request`, "1: `!request`" + operators},
		{`request and response`, "9: `and`; want (all F …): true if all of the forms in it are"},
		{`(all request or response)`, "14: `or`; want (any F …): true if any of the forms in it is"},
		{`(request and response)`, "2: `request`; want (request)" + orderRule},
		{`method invite`, "1: `method`; want (method NAME …)" + orderRule},
		{`not request`, "1: `not`; want (not F)" + orderRule},
		{`(not method invite)`, "2: `not`; want (not F)" + orderRule},
		{`(all method invite status 200)`, "6: `method`; want (method NAME …)" + orderRule},
		{`(all request status 200)`, "14: `status`; want (status CODE …)" + orderRule},

		// Numbers of arguments.
		{`(request 1)`, "2: `request`; want (request)" + orderRule},
		{`(initial yes)`, "2: `initial`; want (initial)" + orderRule},
		{`method`, "1: `method`; want (method NAME …)" + orderRule},
		{`(method)`, "2: `method`; want (method NAME …)" + orderRule},
		{`(methods)`, "2: `methods`; want (methods NAME …)" + orderRule},
		{`(status)`, "2: `status`; want (status CODE …)" + orderRule},
		{`(hasheader)`, "2: `hasheader`; want (hasheader NAME …)" + orderRule},
		{`(header "to")`, "2: `header`; want (header NAME RE)" + orderRule},
		{`(header "to" "a" "b")`, "2: `header`; want (header NAME RE)" + orderRule},
		{`(header)`, "2: `header`; want (header NAME RE)" + orderRule},
		{`(to "a" "b")`, "2: `to`; want (to RE)" + orderRule},
		{`(body)`, "2: `body`; want (body RE)" + orderRule},
		{`(transport)`, "2: `transport`; want (transport TRANSPORT …)" + orderRule},
		{`(src)`, "2: `src`; want (src NET …)" + orderRule},
		{`(sample 10 20)`, "2: `sample`; want (sample N)" + orderRule},
		{`(all request (not))`, "15: `not`; want (not F)" + orderRule},
		{`(not request response)`, "2: `not`; want (not F)" + orderRule},
		{`(all)`, "2: `all`; want (all F …)" + orderRule},
		{`any`, "1: `any`; want (any F …)" + orderRule},

		// Names of methods and headers.
		{`(method "in vite")`, "9: `\"in vite\"`" + nameRule},
		{`(method invite "")`, "16: `\"\"`" + nameRule},
		{`(method (invite))`, "9: `(`" + nameRule},
		{`(method invite,bye)`, "9: `invite,bye`" + nameRule},
		{`(hasheader to:)`, "12: `to:`" + nameRule},
		{`(header "é" "a")`, "9: `\"é\"`" + nameRule},
		{`(method "==")`, "9: `\"==\"`" + nameRule},

		// Status codes.
		{`(status 99)`, "9: `99`" + codeRule},
		{`(status 700)`, "9: `700`" + codeRule},
		{`(status 7xx)`, "9: `7xx`" + codeRule},
		{`(status 48x)`, "9: `48x`" + codeRule},
		{`(status 200 ok)`, "13: `ok`" + codeRule},
		{`(status 400 or 500)`, "13: `or`" + codeRule},
		{`(status 0486)`, "9: `0486`" + codeRule},
		{`(status 400-)`, "9: `400-`" + codeRule},
		{`(status 400-700)`, "9: `400-700`" + codeRule},
		{`(status 4xx-5xx)`, "9: `4xx-5xx`" + codeRule},
		{`(status 499-400)`, "9: `499-400`" + codeRule},
		{`(status x)`, "9: `x`" + codeRule},

		// Regular expressions. What is wrong may stand in one several times: then no place is shown.
		{`(from alice)`, "7: `alice`" + quoteRule},
		{`(header to (body "x"))`, "12: `(`" + quoteRule},
		{`(body "a(b")`, "8: `a(b`" + reSyntax + "missing closing )"},
		{`(body "ab)c")`, "8: `ab)c`" + reSyntax + "unexpected )"},
		{`(uri "sip:[a-")`, "11: `[a-`" + reSyntax + "missing closing ]"},
		{`(uri "ab[z-a]")`, "10: `z-a`" + reSyntax + "invalid character class range"},
		{`(to "a**")`, "7: `**`" + reSyntax + "invalid nested repetition operator"},
		{`(to "\"\"a|*b")`, "12: `*`" + reSyntax + "missing argument to repetition operator"},
		{`(to "x*y|*")`, "5: `*`" + reSyntax + "missing argument to repetition operator"},
		{`(body "\"[b-a]\"")`, "11: `b-a`" + reSyntax + "invalid character class range"},
		{`(body "\"(\"")`, "8: `\\\"(\\\"`" + reSyntax + "missing closing )"},
		{`(message "x{1001}")`, "12: `{1001}`" + reSyntax + "invalid repeat count"},
		{`(message "é(?=x)")`, "12: `(?=`" + reSyntax + "invalid or unsupported Perl syntax"},
		{`(message "\d\y")`, "13: `\\y`" + reSyntax + "invalid escape sequence"},

		// Transports, networks, samples.
		{`(transport upd)`, "12: `upd`" + wordRule},
		{`(transport tls)`, "12: `tls`" + wordRule},
		{`(transport "WSS")`, "12: `\"WSS\"`" + wordRule},
		{`(transport (udp))`, "12: `(`" + wordRule},
		{`(src 10.0.0.0/33)`, "6: `10.0.0.0/33`" + netRule},
		{`(src 10.0.0)`, "6: `10.0.0`" + netRule},
		{`(dst 192.0.2.1 example.com)`, "16: `example.com`" + netRule},
		{`(dst 192.0.2.1:5060)`, "6: `192.0.2.1:5060`" + netRule},
		{`(src "[2001:db8::1]:5060")`, "6: `\"[2001:db8::1]:5060\"`" + netRule},
		{`(src fe80::1%eth0)`, "6: `fe80::1%eth0`" + netRule},
		{`(src ::ffff:10.0.0.0/104)`, "6: `::ffff:10.0.0.0/104`" + netRule},
		{`(sample 0)`, "9: `0`" + countRule},
		{`(sample -1)`, "9: `-1`" + countRule},
		{`(sample 1%)`, "9: `1%`" + countRule},
		{`(sample 4294967296)`, "9: `4294967296`" + countRule},

		// Parentheses, strings, comments, a second form.
		{`(`, "1: `(`" + listRule},
		{`(method invite`, "1: `(`" + listRule},
		{`(all (method invite) initial`, "1: `(`" + listRule},
		{`(all (method invite initial`, "6: `(`" + listRule},
		{`(((`, "3: `(`" + listRule},
		{`)`, "1: `)`" + openRule},
		{`(status 200))`, "13: `)`" + openRule},
		{`(status 200)) (method invite`, "13: `)`" + openRule},
		{`"`, "1: `\"`" + textRule},
		{`(body "v=0)`, "7: `\"v=0)`" + textRule},
		{`(body "a\")`, "7: `\"a\\\")`" + textRule},
		{`(body "a\\")`, "7: `\"a\\\\\")`" + textRule},
		{`; new calls`, "1: `; new calls`" + noComment},
		{`(method invite) # new "calls`, "17: `# new \"calls`" + noComment},
		{`request response`, "9: `response`" + endRule},
		{`(method invite) (uri "é") request`, "17: `(`" + endRule},
		{
			strings.Repeat("(not ", 64) + "(request)" + strings.Repeat(")", 64),
			"321: `(`; want at most 64 parentheses inside each other",
		},
	} {
		column, _ := strconv.Atoi(row.problem[:strings.IndexByte(row.problem, ':')])
		want := fmt.Sprintf("SIP_FILTER:1:%s\n  %s\n  %s^", row.problem, row.source, strings.Repeat(" ", column-1))
		_, err := compileFilter(row.source)
		if err == nil || err.Error() != want {
			t.Errorf("filter %s\n got %v\nwant %s", row.source, err, want)
		}
	}
}

// Each problem has its own line and column.
func TestFilterErrorPlaces(t *testing.T) {
	for _, row := range []struct{ source, want string }{
		{
			"(all\n\t(method invite)\n\t(stauts 200))\n",
			"SIP_FILTER:3:3: `stauts`" + anyForm + "\n" +
				"   (stauts 200))\n" +
				"    ^",
		},
		{
			"request\r\n\r\n  response\r\n",
			"SIP_FILTER:3:3: `response`" + endRule + "\n" +
				"    response\n" +
				"    ^",
		},
		{
			"(requst) (status 200) (stauts 200 x) ",
			"SIP_FILTER:1:2: `requst`" + anyForm + "\n" +
				"  (requst) (status 200) (stauts 200 x) \n" +
				"   ^\n" +
				"SIP_FILTER:1:24: `stauts`" + anyForm + "\n" +
				"  (requst) (status 200) (stauts 200 x) \n" +
				"                         ^",
		},
		{
			"(all (methd invite)\n(status 99))",
			"SIP_FILTER:1:7: `methd`" + anyForm + "\n" +
				"  (all (methd invite)\n" +
				"        ^\n" +
				"SIP_FILTER:2:9: `99`" + codeRule + "\n" +
				"  (status 99))\n" +
				"          ^",
		},
		{
			"(to \"Zoë\nand\t(\")",
			"SIP_FILTER:1:6: \"Zoë\\nand\\t(\"" + reSyntax + "missing closing )\n" +
				"  (to \"Zoë\n" +
				"       ^",
		},
		{
			"(to \"Zoë\n\tand**\")",
			"SIP_FILTER:2:5: `**`" + reSyntax + "invalid nested repetition operator\n" +
				"   and**\")\n" +
				"      ^",
		},
		{
			"request" + strings.Repeat("\n", 65536-7) + "x",
			"SIP_FILTER:65530:1: `more`; want at most 65536 bytes\n" +
				"  x\n" +
				"  ^",
		},
	} {
		if _, err := compileFilter(row.source); err == nil || err.Error() != row.want {
			t.Errorf("filter %.100s\n got %v\nwant %s", row.source, err, row.want)
		}
	}
	// However wrong it is, the error stays readable.
	_, err := compileFilter("(any" + strings.Repeat(" (no)", 12000) + ")")
	if err == nil || strings.Count(err.Error(), "SIP_FILTER:") != 10 {
		t.Errorf("got %.1000v, want ten problems", err)
	}
}

// Every header that has a compact form, and every method that RFCs define, is known where a form should be.
func TestFilterErrorKnows(t *testing.T) {
	for compact, long := range longForms {
		for _, name := range []string{string(rune(compact)), long} {
			if long == "" || name == "to" || name == "from" {
				continue
			}
			want := fmt.Sprintf("SIP_FILTER:1:2: `%s`; want (header \"%[1]s\"%s\n  (%[1]s \"x\")\n   ^", name, isHeader)
			if _, err := compileFilter("(" + name + ` "x")`); err == nil || err.Error() != want {
				t.Errorf("got %v\nwant %s", err, want)
			}
		}
	}
	methods := "invite ack bye cancel options register prack subscribe notify publish info refer update"
	for _, name := range strings.Fields(methods) {
		want := fmt.Sprintf("SIP_FILTER:1:2: `%s`; want (method %[1]s)\n  (%[1]s)\n   ^", name)
		if _, err := compileFilter("(" + name + ")"); err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// The limits themselves are allowed.
func TestFilterLimits(t *testing.T) {
	for _, source := range []string{
		strings.Repeat("(not ", 63) + "(request)" + strings.Repeat(")", 63),
		strings.Repeat("(not ", 64) + "request" + strings.Repeat(")", 64),
		`(body "` + strings.Repeat("a", 65536-9) + `")`,
		"(any " + strings.Repeat("request ", 8000) + ")",
	} {
		if _, err := compileFilter(source); err != nil {
			t.Errorf("filter %.40s…: %.200v", source, err)
		}
	}
	for _, part := range []string{"(", ")", `"(`, "(all", "; ", "(not", "method "} {
		source := strings.Repeat(part, 65536/len(part))
		if _, err := compileFilter(source); err == nil {
			t.Errorf("filter %.40s…: no error", source)
		}
	}
}

// An IPv4 address inside an IPv6 address is the IPv4 address, in a message and in a filter, on both sides.
func TestFilterMappedAddresses(t *testing.T) {
	for _, prefix := range []string{"", "::ffff:"} {
		m := &message{
			src: netip.AddrPortFrom(netip.MustParseAddr(prefix+"192.0.2.1"), 5060),
			dst: netip.AddrPortFrom(netip.MustParseAddr(prefix+"198.51.100.2"), 5061),
			raw: []byte("ACK sip:a@b SIP/2.0\r\n\r\n"),
		}
		for source, selects := range map[string]bool{
			`(src 192.0.2.1)`:                   true,
			`(src ::ffff:192.0.2.1)`:            true,
			`(src 192.0.2.0/24)`:                true,
			`(src 198.51.100.2)`:                false,
			`(src ::/0)`:                        false,
			`(dst 198.51.100.2)`:                true,
			`(dst ::ffff:198.51.100.2)`:         true,
			`(dst 198.51.100.0/24)`:             true,
			`(dst 192.0.2.1 198.51.100.2/32)`:   true,
			`(dst 192.0.2.1 198.51.100.128/25)`: false,
			`(dst ::/0)`:                        false,
		} {
			filter, err := compileFilter(source)
			if err != nil {
				t.Fatal(err)
			}
			if filter(m) != selects {
				t.Errorf("%s from %v to %v: want %v", source, m.src, m.dst, selects)
			}
		}
	}
}

// What (sample N) keeps is a matter of CRC-32 alone: the first is its check value (ITU-T V.42 has the
// polynomial), the others are zlib's.
func TestFilterSample(t *testing.T) {
	for callID, hash := range map[string]uint64{"123456789": 0xcbf43926, "a": 0xe8b7be43, "foobar": 0x9ef61f95, "": 0} {
		for n := uint64(1); n <= 100; n++ {
			filter, err := compileFilter(fmt.Sprintf("(sample %d)", n))
			if err != nil {
				t.Fatal(err)
			}
			for _, raw := range []string{
				"INVITE sip:a@b SIP/2.0\r\nCall-ID: " + callID + "\r\n\r\n",
				"SIP/2.0 200 OK\r\nVia: x\r\ni:\t" + callID + " \r\nCall-ID: second\r\n\r\n",
				// Without a header if it is empty.
				"ACK sip:a@b SIP/2.0\r\n" + strings.Repeat("i: "+callID+"\r\n", min(1, len(callID))) + "\r\n",
			} {
				if got := filter(&message{raw: []byte(raw)}); got != (hash%n == 0) {
					t.Errorf("Call-ID %q, sample %d: got %v", callID, n, got)
				}
			}
		}
	}
	for _, n := range []int{2, 7, 64, 100} { // Call-IDs that only count are sampled evenly, too
		filter, err := compileFilter(fmt.Sprintf("(sample %d)", n))
		if err != nil {
			t.Fatal(err)
		}
		kept := 0
		for call := range 100000 {
			raw := fmt.Appendf(nil, "BYE sip:a@b SIP/2.0\r\nCall-ID: %d-4711@192.0.2.1\r\n\r\n", call)
			if filter(&message{raw: raw}) {
				kept++
			}
		}
		if expected := 100000 / n; kept < expected*8/10 || kept > expected*12/10 {
			t.Errorf("sample %d kept %d of 100000 calls; expected about %d", n, kept, expected)
		}
	}
}

// The tag is that of the To header: neither in its display name nor of its URI.
func TestFilterInitial(t *testing.T) {
	filter, err := compileFilter("initial")
	if err != nil {
		t.Fatal(err)
	}
	for to, initial := range map[string]bool{
		`<sip:a@b>`:                                       true,
		`<sip:a@b>;tag=1`:                                 false,
		`<sip:a@b> ; Tag = 1`:                             false,
		`<sip:a@b>;x=y;tag=1;z`:                           false,
		`<sip:a@b>;tag=1;x=">"`:                           false,
		`<sip:a@b>;tag=1;x="\">\""`:                       false,
		`<sip:a@b>;x=";tag=1"`:                            true,
		`<sip:a@b>;x=";tag=1";y="z"`:                      true,
		`<sip:a@b>;x="\";tag=1"`:                          true,
		`<sip:a@b>;stag=1`:                                true,
		`<sip:a@b>;tagged=1`:                              true,
		`<sip:a@b>;x=tag`:                                 true,
		`<sip:a@b;tag=1>`:                                 true,
		`<sip:a@b;tag=1>;tag=2`:                           false,
		`sip:a@b`:                                         true,
		`sip:a@b;tag=1`:                                   false,
		`";tag=1" <sip:a@b>`:                              true,
		`"a;tag=1;b" <sip:a@b>;x="y"`:                     true,
		`"a\";tag=1" <sip:a@b>`:                           true,
		`"a\\" <sip:a@b>;tag=1`:                           false,
		`";tag=1\\" <sip:a@b;tag=2>`:                      true,
		`"<" <sip:a@b>;tag=1`:                             false,
		`tag <sip:tag@b>`:                                 true,
		`<sip:a@b>;tag=1` + "\r\nTo: <sip:second@b>":      false,
		`<sip:a@b>` + "\r\nt: <sip:second@b>;tag=1":       true,
		`<sip:a@b>` + "\r\nt: <sip:a@b>":                  true,
		`<sip:a@b>;tag=1` + "\r\nt: <sip:a@b>":            false,
		`<sip:a@b>;x=1; ;TAG = "a"`:                       false,
		`<sip:a@b>;tag`:                                   false,
		`<sip:a@b>;tag;x`:                                 false,
		`<sip:a@b>;tag=`:                                  false,
		`<sip:a@b>;ta=g`:                                  true,
		`<sip:a@b>;`:                                      true,
		`<sip:a@b>;t`:                                     true,
		`<sip:a@b>;tag-x=1`:                               true,
		`<sip:a@b>tag=1`:                                  true,
		`tag=1`:                                           true,
		`Bob;tag=1 <sip:a@b>`:                             true,
		`"Bob" ;tag=1 <sip:a@b>;x=y`:                      true,
		`"<" <sip:a@b;x=";tag=1>`:                         true,
		`<sip:a@b;x="y>;tag=1`:                            false,
		`">;tag=1" <sip:a@b>`:                             true,
		`"\\\";tag=1" <sip:a@b>`:                          true,
		`"\\\\" <sip:a@b>;tag=1`:                          false,
		`"open <sip:a@b>;tag=1`:                           true,
		`<sip:open@b;tag=1`:                               true,
		`<sip:a@b>;x="open;tag=1`:                         true,
		`<sip:a@b>;tag=1;x="open`:                         false,
		`"a" "b" <sip:a@b>;x="\";tag=1";y;tag=2`:          false,
		``:                                                true,
		"<sip:a@b>\r\n\t;\r\n tag=1":                      false,
		`<tel:+1-201-555-0123;phone-context=x>;tag="odd"`: false,
	} {
		for _, name := range []string{"To: ", "t:", "TO :\r\n\t"} {
			raw := "INVITE sip:a@b SIP/2.0\r\nVia: x;tag=1\r\nFrom: <sip:c@d>;tag=1\r\n" + name + to + "\r\n\r\n"
			if got := filter(&message{raw: []byte(raw)}); got != initial {
				t.Errorf("%s%s: initial is %v, want %v", name, to, got, initial)
			}
		}
	}
}

// Evaluating allocates nothing, whatever the message, also with names longer than those that the compiler
// keeps on the stack.
func TestFilterDoesNotAllocate(t *testing.T) {
	name := strings.Repeat("n", 100)
	for _, source := range []string{
		`(all (method invite) initial)`,
		`(any (method ` + name + `) (hasheader ` + name + `))`,
		`(all (header "from" "alice@.*example") (not (header via "^none$")))`,
		`(any (status 4xx 500-599) (uri "^sip:911@") (body "m=video") (message "[0-9]{20}"))`,
		`(any (src 10.0.0.0/8 2001:db8::/32) (dst 192.0.2.77) (transport ws) (not (sample 1)))`,
	} {
		filter, err := compileFilter(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range samples {
			if s.name == "folded" || s.name == "barelf" {
				continue // a folded header is copied to be unfolded
			}
			m := s.message()
			if allocations := testing.AllocsPerRun(100, func() { filter(m) }); allocations != 0 {
				t.Errorf("%s on %s: %v allocations", source, s.name, allocations)
			}
		}
	}
}

// A name of a header field is compared whole, in ASCII, and ends at the colon or at blanks before it.
func TestFilterFieldNames(t *testing.T) {
	for _, row := range []struct{ filter, line string }{
		{`(header subject "^x$")`, "Subject: x"},
		{`(header subject "^x$")`, "SUBJECT \t :\tx \t"},
		{`(header subject "^x$")`, "s: x"},
		{`(header subject "^x$")`, "S\t: x"},
		{`(header subject "^$")`, "s:"},
		{`(header subject "^:x$")`, "s::x"},
		{`(header s "^x$")`, "subject:x"},
		{`(header _x "^x$")`, "_X: x"},
		{`(header z "^x$")`, "Z: x"},
		{`(header "x-k" "^x$")`, "X-K: x"},
		{`(not (hasheader subject))`, "Subjects: x"},
		{`(not (hasheader subject))`, "Subjec: x"},
		{`(not (hasheader subject))`, "Subject"},
		{`(not (hasheader subject))`, "Subject x: x"},
		{`(not (hasheader subject))`, "s"},
		{`(not (hasheader subject))`, "s x: x"},
		{`(not (hasheader subject))`, "ss: x"},
		{`(not (hasheader subject))`, " Subject: x"},
		{`(not (hasheader subject))`, "\tSubject: x"},
		{`(not (hasheader subject))`, " s: x"},
		{`(not (hasheader subject))`, "Via: x\r\n Subject: x"},
		{`(not (hasheader subject))`, "\u017fubject: x"}, // a long s, which Unicode folds to s
		{`(not (hasheader x-k))`, "X-\u212a: x"},         // a Kelvin sign, which it folds to k
		{`(not (hasheader subject))`, "\x13ubject: x"},
		{`(not (method ack))`, "CSeq: 1 AC\u212a"},
		{`(method ack)`, "CSeq: 1\tack"},
	} {
		filter, err := compileFilter(row.filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range []string{
			"SIP/2.0 200 OK\r\n" + row.line + "\r\n\r\n",
			"\r\n\r\nSIP/2.0 200 OK\r\nVia: x\r\n" + row.line + "\r\n",
			"\nSIP/2.0 200 OK\nVia: x\n" + row.line,
		} {
			if !filter(&message{raw: []byte(raw)}) {
				t.Errorf("%s isn't true for %q", row.filter, raw)
			}
		}
	}
}

// hash is the cost to which others are compared: FNV-1a over all bytes, a multiplication for each.
func hash(raw []byte) uint32 {
	h := fnv.New32a()
	h.Write(raw)
	return h.Sum32()
}

// quickest is how long the quickest of some calls took.
func quickest(f func()) time.Duration {
	least := time.Hour
	for range 15 {
		begin := time.Now()
		f()
		least = min(least, time.Since(begin))
	}
	return least
}

// No datagram costs much more than its FNV-1a, which is a multiplication a byte, whatever of its text a usual filter
// looks at: what isn't linear would cost a thousand times as much.
func TestFilterCost(t *testing.T) {
	if raceDetector() {
		t.Skip("the race detector multiplies times")
	}
	fill := func(part string) string { return strings.Repeat(part, 65000/len(part)) }
	const most = 40 // 6 to 12 on a machine of our own, up to 25 where others share the cores
	const start = "INVITE sip:bob@example.org SIP/2.0\r\n"
	for name, raw := range map[string]string{
		"line ends first":   fill("\r\n") + start + "To: <sip:a@b>\r\nUser-Agent: x\r\n\r\n",
		"line feeds first":  fill("\n") + start + "To: <sip:a@b>\r\nUser-Agent: x\r\n\r\n",
		"short lines":       start + fill("a\n"),
		"t lines":           start + fill("t\n"),
		"u lines":           start + fill("u \n"),
		"empty To":          start + fill("t:\n"),
		"empty User-Agent":  start + fill("user-agent:\r\n"),
		"folds":             start + "User-Agent:" + fill("\r\n x"),
		"folds of To":       start + "To: ;" + fill("\n ") + ";x",
		"folded fields":     start + fill("t:\n ;\n"),
		"folded agents":     start + fill("user-agent:\n ;\n"),
		"User-Agent":        start + "User-Agent: " + fill("s") + "\r\n\r\n",
		"almost sipvicious": start + "User-Agent: " + fill("sipviciou") + "\r\n\r\n",
		"semicolons":        start + "To: <sip:a@b>" + fill(";") + "\r\n\r\n",
		"semicolons apart":  start + "To: <sip:a@b>" + fill("; ") + "x\r\n\r\n",
		"almost tags":       start + "To: <sip:a@b>" + fill(";tagx") + "\r\n\r\n",
		"tags in strings":   start + "To: <sip:a@b>" + fill(`;x=";tag="`) + "\r\n\r\n",
		"tags in URIs":      start + "To: " + fill(`<;tag=>`) + "\r\n\r\n",
		"quotes":            start + "To: <sip:a@b>;" + fill(`"`) + "\r\n\r\n",
		"escaped quotes":    start + "To: <sip:a@b>;" + fill(`\"`) + "\r\n\r\n",
		"open URIs":         start + "To: ;" + fill("<") + "\r\n\r\n",
		"blanks":            start + "To: ;" + fill(" ") + ";x\r\n\r\n",
		"a long URI":        "INVITE sip:" + fill("s") + " SIP/2.0\r\n\r\n",
		"a long method":     fill("s") + " sip:a@b SIP/2.0\r\n\r\n",
		"a response":        "SIP/2.0 200 OK\r\n" + fill("c:\n"),
		"a long CSeq":       "SIP/2.0 200 OK\r\nCSeq: " + fill("x"),
		"a long body":       start + "\r\n" + fill("m="),
	} {
		m := &message{raw: []byte(raw)}
		for _, source := range []string{
			`initial`,
			`(all (method invite) initial)`,
			`(all (method invite) initial (not (header "user-agent" "sipvicious|monitor")))`,
			`(header "user-agent" "sipvicious|friendly-scanner|sipcli")`,
			`(any (to "(alice|bob)@") (from "^\"Alice\" <sip:alice@"))`,
			`(hasheader diversion history-info)`,
			`(uri "^(sip:|tel:)\+1900")`,
			`(body "(?m)^m=video [1-9]")`,
			`(all (method invite) (status 400-699))`,
			`(message "secret")`,
			`(sample 100)`,
		} {
			filter, err := compileFilter(source)
			if err != nil {
				t.Fatal(err)
			}
			ratio := 0.0
			for range 5 { // what else runs on the machine can only raise it
				ratio = float64(quickest(func() { filter(m) })) / float64(quickest(func() { hash(m.raw) }))
				if ratio <= most {
					break
				}
			}
			if ratio > most {
				t.Errorf("%s costs %.1f times FNV-1a for %s", source, ratio, name)
			}
		}
	}
}

// A message is never changed by looking at it, also where a header is unfolded.
func TestFilterLeavesMessagesAlone(t *testing.T) {
	filter, err := compileFilter(`(not (any (to "none") (header subject "none") (header via "none") (body "none")))`)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		m, untouched := s.message(), s.message()
		filter(m)
		if !bytes.Equal(m.raw, untouched.raw) {
			t.Errorf("%s was changed", s.name)
		}
	}
}

// For any two forms a and b: not negates, De Morgan's laws hold, and order doesn't change what is selected.
func TestFilterLaws(t *testing.T) {
	forms := []string{`request`, `initial`, `(method invite bye)`, `(status 2xx 400-499)`, `(to "bob")`,
		`(hasheader subject i)`, `(body "m=")`, `(transport tcp ws)`, `(src 10.0.0.0/8)`, `(sample 3)`,
		`(uri "example")`, `(any (status 180) (method ack))`, `(all request (not initial))`}
	for _, a := range forms {
		if got, want := selected(t, "(not "+a+")"), without(selected(t, ""), selected(t, a)); got != want {
			t.Errorf("(not %s): got %s, want %s", a, got, want)
		}
		for _, b := range forms {
			for left, right := range map[string]string{
				"(all %s %s)":       "(not (any (not %s) (not %s)))",
				"(any %s %s)":       "(not (all (not %s) (not %s)))",
				"(all (all %s) %s)": "(all %s %s)",
			} {
				left, right := fmt.Sprintf(left, a, b), fmt.Sprintf(right, a, b)
				if l, r := selected(t, left), selected(t, right); l != r {
					t.Errorf("%s selects %s, but %s selects %s", left, l, right, r)
				}
			}
			if l, r := selected(t, "(all "+a+" "+b+")"), selected(t, "(all "+b+" "+a+")"); l != r {
				t.Errorf("order matters: %s and %s", l, r)
			}
		}
	}
}

// A header is found wherever it stands, however it is written: long or compact, in any case, folded at any blank.
func TestAnyHeaderProperty(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	others := []string{"Via: x\r\n", "V: y\r\n", "Subject:\r\n", "X-To: no\r\n", "To-X: no\r\n", "no colon\r\n",
		": nameless\r\n", "\x00\xff: z\r\n", "Q: a\r\n b\r\n"}
	for range 5000 {
		compact := "abcdefijklmnorstuvxy"[random.Intn(20)]
		long := longForms[compact]
		written := long
		if random.Intn(2) == 0 {
			written = string(compact)
		}
		if random.Intn(2) == 0 {
			written = strings.ToUpper(written)
		}
		fold := []string{" ", "\r\n ", "\n\t", " \t\r\n \t "}[random.Intn(4)]
		line := written + strings.Repeat(" ", random.Intn(2)) + ":" +
			fold + "one" + fold + "needle" + strings.Repeat("\t", random.Intn(2)) + "\r\n"
		raw := "OPTIONS sip:a@b SIP/2.0\r\n"
		for range random.Intn(4) {
			raw += others[random.Intn(len(others))]
		}
		raw += line
		for range random.Intn(4) {
			raw += others[random.Intn(len(others))]
		}
		raw += "\r\n" + long + ": not a header\r\n"
		found := 0
		anyHeader(partsOf(&message{raw: []byte(raw)}).lines, long, func(value []byte) bool {
			if string(value) == "one needle" {
				found++
			}
			if string(value) == "not a header" {
				t.Errorf("%q: found %s in the body", raw, long)
			}
			return false
		})
		if found != 1 {
			t.Errorf("%q: found %s %d times", raw, long, found)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, source := range []string{
		`(all (method invite) initial)`, `(header "to" "\"a\".*")`, `(status 4xx 500-600 180)`,
		`(any (src ::1 10.0.0.0/8) (not (sample 7)))`, "; comment\n(METHOD == invite)", "request\n(response)",
		`(body "a(")`, `((`, `"\"`, `(transport upd)`,
	} {
		f.Add(source)
	}
	var messages []*message
	for _, s := range samples {
		messages = append(messages, s.message())
	}
	place := regexp.MustCompile(`^SIP_FILTER:[1-9][0-9]*:[1-9][0-9]*: [^\n]+(\n|$)`)
	f.Fuzz(func(t *testing.T, source string) {
		filter, err := compileFilter(source)
		if err != nil {
			if !place.MatchString(err.Error()) {
				t.Errorf("filter %q: error without a place: %v", source, err)
			}
			return
		}
		negated, err := compileFilter("(not " + source + ")")
		for _, m := range messages {
			if selects := filter(m); err == nil && strings.TrimSpace(source) != "" && negated(m) == selects {
				t.Errorf("filter %q and its negation agree on %q", source, m.raw)
			}
		}
	})
}

// Looking for literals first changes nothing that a regular expression matches.
func FuzzExpression(f *testing.F) {
	for _, expression := range []string{
		`a`, `alice|bob`, `(alice|bob)@`, `^a(b|c+)d$`, `(?i)k|s`, `caf\x{FFFD}$`, `\xff`, `(ab)+c?`, `(ab)*c`, `(a|)b`,
		`[ab]c`, `a{2,3}`, `\Qa.b\E`, `\bab\b`, `(?s).a`, `a(?i)b`, `sipvicious|sipcli`, `(?:)`, `x*y|z`, `é`, `a|b|`,
	} {
		for _, text := range []string{
			"", "alice", "bob@", "abccd", "K", "\u212a", "caf\xe9", "\xc3\xbf", "ababc", "c", "b", "aB", "sipcli",
		} {
			f.Add(expression, []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, expression string, text []byte) {
		re, err := regexp.Compile(expression)
		if err != nil || strings.ContainsAny(expression, `"`) || strings.HasSuffix(expression, `\`) {
			t.Skip("no regular expression, or one that can't be written in a filter as it is")
		}
		filter, err := compileFilter(`(message "` + expression + `")`)
		if err != nil {
			t.Skip("an expression that is too long")
		}
		if got, want := filter(&message{raw: text}), re.Match(text); got != want {
			t.Errorf("%q on %q: got %v, want %v", expression, text, got, want)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, s := range samples {
		f.Add(s.message().raw)
	}
	f.Add([]byte("\r\n"))
	f.Add([]byte("SIP/2.0"))
	f.Add([]byte("A B\n\n"))
	f.Add([]byte(" \n:\n \n\t"))
	// One filter that reaches every form on every message.
	filter, err := compileFilter(`(any (all request response) (all initial (not initial)) (method none) (status 699)
		(uri "\Anone\z") (hasheader none) (header to "\Anone\z") (body "\Anone\z") (message "\Anone\z")
		(transport ws) (src 192.0.2.1) (dst 192.0.2.1) (all (sample 3) (not (sample 3))))`)
	if err != nil {
		f.Fatal(err)
	}
	headerNames := map[string]*regexp.Regexp{} // each name at the beginning of a line, in any case of ASCII letters
	for compact, long := range longForms {
		if long == "" {
			continue
		}
		for _, name := range []string{string(rune(compact)), long} {
			var pattern strings.Builder
			for _, letter := range name {
				fmt.Fprintf(&pattern, "[%c%s]", letter, strings.ToUpper(string(letter)))
			}
			headerNames[name] = regexp.MustCompile(`(?m)^` + pattern.String() + `([ \t]*:)`)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		untouched := bytes.Clone(raw)
		filter(&message{raw: raw})
		values := func(raw []byte, name string) (values []string) {
			anyHeader(partsOf(&message{raw: raw}).lines, name, func(value []byte) bool {
				values = append(values, string(value))
				return false
			})
			return values
		}
		for letter, long := range longForms {
			if long == "" {
				continue
			}
			compact := string(rune(letter))
			inLong := values(raw, long)
			for _, value := range inLong {
				if value != strings.Trim(value, " \t") || strings.Contains(value, "\n") {
					t.Errorf("%s of %q isn't unfolded and trimmed: %q", long, raw, value)
				}
			}
			// The same message with the compact name written out, and the other way round, has the same values.
			for from, to := range map[string]string{compact: long, long: compact} {
				name := headerNames[from]
				if renamed := name.ReplaceAll(raw, []byte(to+"$1")); !slices.Equal(values(renamed, long), inLong) {
					t.Errorf("%q has other values of %s than %q", renamed, long, raw)
				}
			}
		}
		if !bytes.Equal(raw, untouched) {
			t.Errorf("%q became %q", untouched, raw)
		}
		if !bytes.HasSuffix(raw, body(partsOf(&message{raw: raw}).lines)) {
			t.Errorf("%q: the body isn't its end", raw)
		}
	})
}

// benchmarkFilter evaluates a filter on one message, which it selects or not.
func benchmarkFilter(b *testing.B, source string, m *message, want bool) {
	filter, err := compileFilter(source)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(m.raw)))
	b.ReportAllocs()
	for b.Loop() {
		if filter(m) != want {
			b.Fatal("wrong selection")
		}
	}
}

// sampleNamed is a sample's message, with a header added that makes it as long as messages usually are.
func sampleNamed(name string) *message {
	i := slices.IndexFunc(samples, func(s sample) bool { return s.name == name })
	m := samples[i].message()
	head, rest, _ := bytes.Cut(m.raw, []byte("\r\n\r\n"))
	padding := "\r\nAllow: " + strings.Repeat("INVITE, ", max(0, 700-len(m.raw))/8) + "ACK\r\n\r\n"
	m.raw = slices.Concat(head, []byte(padding), rest)
	return m
}

func BenchmarkFilterInitialInvite(b *testing.B) {
	benchmarkFilter(b, `(all (method invite) initial)`, sampleNamed("invite"), true)
}

func BenchmarkFilterInitialRinging(b *testing.B) {
	benchmarkFilter(b, `(all (method invite) initial)`, sampleNamed("ringing"), false)
}

func BenchmarkFilterInitialInDialog(b *testing.B) {
	benchmarkFilter(b, `(all (method invite) initial)`, sampleNamed("reinvite"), false)
}

func BenchmarkFilterHeaderRegexp(b *testing.B) {
	benchmarkFilter(b, `(header "user-agent" "sipvicious|friendly-scanner")`, sampleNamed("invite"), false)
}

// The cost of terms is the sum of theirs: compare ns/op divided by the number in the name.
func BenchmarkFilterTerms(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			source := "(any " + strings.Repeat(`(header "contact" "nobody@") `, n) + ")"
			benchmarkFilter(b, source, sampleNamed("invite"), false)
		})
	}
}

// No regular expression takes more than linear time: MB/s stays about the same from 15 to 60 KB. (Short
// texts are faster: Go's regexp has another algorithm for them.) The first three would take a backtracking
// engine longer than the universe is old.
func BenchmarkFilterLinear(b *testing.B) {
	head := "MESSAGE sip:a@b SIP/2.0\r\nTo: <sip:a@b>\r\nSubject: "
	for _, source := range []string{`(body "(a*)*[b-c]")`, `(body "(a|a)*$[b-c]")`, `(body "(a+)+\d")`,
		`(message "[x-z].*[w-z]")`, `(header "subject" "(s|s)*[t-u]")`, `(hasheader "none")`} {
		for _, size := range []int{15000, 30000, 60000} {
			raw := head + strings.Repeat("s", size/2) + "\r\n\r\n" + strings.Repeat("a", size/2)
			b.Run(fmt.Sprintf("%s/%d", source, size), func(b *testing.B) {
				benchmarkFilter(b, source, &message{raw: []byte(raw)}, false)
			})
		}
	}
	for _, size := range []int{15000, 30000, 60000} { // nothing but folds, and nothing but headers
		for name, line := range map[string]string{"folds": " \r\n", "headers": "t:\r\n", "parameters": " ;tag\r\n"} {
			raw := "MESSAGE sip:a@b SIP/2.0\r\nTo:" + strings.Repeat(line, size/len(line))
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				benchmarkFilter(b, `(any (to "none") (all initial response))`, &message{raw: []byte(raw)}, false)
			})
		}
	}
}

// wholeCall is all that is seen of a call, or of another transaction.
type wholeCall struct {
	name      string
	transport transport
	src       string // who sends its requests
	dst       string
	uri       string
	from      string
	// messages has a method, or a code and its method, each with flags after a plus sign: the number of CSeq, t for
	// a tag in To, a for an answer to a challenge, d for a diversion, u for a User-Agent, v for an offer of video.
	messages string
}

var wholeCalls = []wholeCall{
	{
		name:      "challenged",
		transport: udp,
		src:       "192.0.2.10",
		dst:       "198.51.100.2",
		uri:       "sip:bob@biloxi.example.com",
		from:      `"Alice" <sip:alice@atlanta.example.com>`,
		messages: "INVITE+1 407-INVITE+1t ACK+1t INVITE+2a INVITE+2a 100-INVITE+2 180-INVITE+2t 200-INVITE+2t ACK+2t " +
			"INVITE+3tv 200-INVITE+3t ACK+3t BYE+4t 200-BYE+4t",
	},
	{
		name:      "cancelled",
		transport: ws,
		src:       "192.0.2.10",
		dst:       "192.0.2.1",
		uri:       "urn:service:sos",
		from:      `"Alice" <sip:alice@atlanta.example.com>`,
		messages:  "INVITE+1 100-INVITE+1 180-INVITE+1t CANCEL+1 200-CANCEL+1t 487-INVITE+1t ACK+1t",
	},
	{
		name:      "busy",
		transport: tcp,
		src:       "192.0.2.10",
		dst:       "198.51.100.2",
		uri:       "sip:+19005550199@example.net",
		from:      `<sip:carol@atlanta.example.com>`,
		messages:  "INVITE+1d 100-INVITE+1 486-INVITE+1t ACK+1t",
	},
	{
		name:      "registration",
		transport: tcp,
		src:       "203.0.113.9",
		dst:       "198.51.100.2",
		uri:       "sip:registrar.example.com",
		from:      `<sip:100@example.com>`,
		messages:  "REGISTER+1 401-REGISTER+1t REGISTER+2a 200-REGISTER+2t",
	},
	{
		name:      "scan1",
		transport: udp,
		src:       "203.0.113.66",
		dst:       "198.51.100.2",
		uri:       "sip:100@198.51.100.2",
		from:      `"sipvicious" <sip:100@1.1.1.1>`,
		messages:  "OPTIONS+1u 200-OPTIONS+1t",
	},
	{
		name:      "scan2",
		transport: udp,
		src:       "203.0.113.66",
		dst:       "192.0.2.1",
		uri:       "sip:100@192.0.2.1",
		from:      `"sipvicious" <sip:100@1.1.1.1>`,
		messages:  "OPTIONS+1u 200-OPTIONS+1t",
	},
}

// message is one of the messages of a call, whose Call-ID is name@example.com.
func (c wholeCall) message(t *testing.T, text string) *message {
	t.Helper()
	start, flags, _ := strings.Cut(text, "+")
	has := func(flag string) bool { return strings.Contains(flags, flag) }
	code, method, isResponse := strings.Cut(start, "-")
	src, dst := c.src, c.dst
	first := "SIP/2.0 " + code + " Reason"
	if isResponse {
		src, dst = dst, src
	} else {
		method = code
		first = method + " " + c.uri + " SIP/2.0"
	}
	raw := first + "\r\n" +
		"Via: SIP/2.0/UDP " + c.src + ";branch=z9hG4bK" + flags[:1] + "\r\n" +
		"From: " + c.from + ";tag=f\r\n" +
		"To: <" + c.uri + ">" + map[bool]string{true: ";tag=t"}[has("t")] + "\r\n" +
		"Call-ID: " + c.name + "@example.com\r\n" +
		"CSeq: " + flags[:1] + " " + method + "\r\n"
	for flag, line := range map[string]string{
		"a": "Proxy-Authorization: Digest username=\"x\"\r\n",
		"d": "Diversion: <sip:dave@example.net>;reason=no-answer\r\n",
		"u": "User-Agent: friendly-scanner\r\n",
		"v": "Content-Type: application/sdp\r\n",
	} {
		if has(flag) {
			raw += line
		}
	}
	raw += "\r\n"
	if has("v") {
		raw += "v=0\r\nm=audio 49170 RTP/AVP 0\r\nm=video 51372 RTP/AVP 31\r\n"
	}
	return &message{
		time:      time.Unix(1700000000, 0),
		transport: c.transport,
		src:       netip.AddrPortFrom(netip.MustParseAddr(src), 5060),
		dst:       netip.AddrPortFrom(netip.MustParseAddr(dst), 5060),
		raw:       []byte(raw),
	}
}

// selectedOf has what a filter selects of some calls, such as "busy: INVITE+1d; scan1: OPTIONS+1u".
func selectedOf(t *testing.T, source string) (of string, count int) {
	t.Helper()
	filter, err := compileFilter(source)
	if err != nil {
		t.Fatalf("filter %s:\n%v", source, err)
	}
	var list []string
	for _, c := range wholeCalls {
		names := ""
		for _, text := range strings.Fields(c.messages) {
			if filter(c.message(t, text)) {
				names += " " + text
				count++
			}
		}
		if names != "" {
			list = append(list, c.name+":"+names)
		}
	}
	return strings.Join(list, "; "), count
}

// whole has all messages of calls, as selectedOf has them.
func whole(names string) string {
	var list []string
	for _, c := range wholeCalls {
		if slices.Contains(strings.Fields(names), c.name) {
			list = append(list, c.name+": "+c.messages)
		}
	}
	return strings.Join(list, "; ")
}

// jobs are the filters that the README shows: what each selects of the samples, and of the calls.
var jobs = []struct {
	filter  string
	samples string
	calls   string
}{
	{
		filter:  `(all (method invite) initial)`,
		samples: newInvites,
		calls:   "challenged: INVITE+1 INVITE+2a INVITE+2a; cancelled: INVITE+1; busy: INVITE+1d",
	},
	{
		filter:  `(all (method invite) initial (not (header "user-agent" "sipvicious|monitor")))`,
		samples: newInvites,
		calls:   "challenged: INVITE+1 INVITE+2a INVITE+2a; cancelled: INVITE+1; busy: INVITE+1d",
	},
	{
		filter:  `(all (method invite) initial (not (hasheader proxy-authorization authorization)))`,
		samples: newInvites,
		calls:   "challenged: INVITE+1; cancelled: INVITE+1; busy: INVITE+1d",
	},
	{
		filter:  `(method invite ack bye cancel prack update)`,
		samples: inviteMethod + " ack bye byeok cancel toless",
		calls:   whole("challenged cancelled busy"),
	},
	{
		filter:  `(all (method invite) (status 400-699) (not (status 401 407 487)))`,
		samples: "busy decline",
		calls:   "busy: 486-INVITE+1t",
	},
	{
		filter:  `(all (method invite) (status 4xx 5xx 6xx))`,
		samples: "busy decline",
		calls:   "challenged: 407-INVITE+1t; cancelled: 487-INVITE+1t; busy: 486-INVITE+1t",
	},
	{
		filter:  `(all request (method register) (not (src 10.0.0.0/8)))`,
		samples: "outsider",
		calls:   "registration: REGISTER+1 REGISTER+2a",
	},
	{
		filter:  `(all (method register) (status 401 403 407))`,
		samples: "challenge",
		calls:   "registration: 401-REGISTER+1t",
	},
	{
		filter:  `(all (method invite) initial (uri "^(sip:|tel:)\+1900"))`,
		samples: "premium",
		calls:   "busy: INVITE+1d",
	},
	{
		filter:  `(not (method options))`,
		samples: without(everything, ping),
		calls:   whole("challenged cancelled busy registration"),
	},
	{
		filter:  `(sample 100)`,
		samples: divisible(100),
		calls:   "", // by zlib
	},
	{
		filter:  `(any (status 400-699) (sample 3))`,
		samples: inOrderOnce("busy decline challenge " + divisible(3)),
		calls: "challenged: 407-INVITE+1t; cancelled: 487-INVITE+1t; " + whole("busy") + // by zlib
			"; registration: 401-REGISTER+1t",
	},
	{
		filter:  `(header "user-agent" "(?i)friendly-scanner|sipvicious|sipcli|pplsip")`,
		samples: "scanner",
		calls:   "scan1: OPTIONS+1u; scan2: OPTIONS+1u",
	},
	{
		filter:  `(header "user-agent" "friendly-scanner|sipvicious|sipcli|pplsip")`,
		samples: "scanner",
		calls:   "scan1: OPTIONS+1u; scan2: OPTIONS+1u",
	},
	{
		filter:  `(all (method invite) initial (hasheader "diversion" "history-info"))`,
		samples: "diverted",
		calls:   "busy: INVITE+1d",
	},
	{
		filter:  `(all (header "content-type" "(?i)^(application/sdp|multipart/)") (body "(?m)^m=video [1-9]"))`,
		samples: "reinvite",
		calls:   "challenged: INVITE+3tv",
	},
	{
		filter:  `(all (method invite) initial (uri "(?i)^(urn:service:sos|(sip:|tel:)(112|911)(@|;|$))"))`,
		samples: "emergency",
		calls:   "cancelled: INVITE+1",
	},
	{
		filter:  `(from "^\"Alice\" <sip:alice@atlanta\.example\.com>")`,
		samples: "invite trying ringing ok ack reinvite",
		calls:   whole("challenged cancelled"),
	},
	{
		filter:  `(all (transport tcp ws) (src 192.0.2.0/24 203.0.113.0/24) (not (dst 192.0.2.1)))`,
		samples: "blank extension multipart",
		calls: "cancelled: 100-INVITE+1 180-INVITE+1t 200-CANCEL+1t 487-INVITE+1t; " +
			"busy: INVITE+1d ACK+1t; registration: REGISTER+1 REGISTER+2a",
	},
}

func TestFilterJobs(t *testing.T) {
	for _, job := range jobs {
		if got, want := selected(t, job.filter), inOrder(job.samples); got != want {
			t.Errorf("%s\n got %s\nwant %s", job.filter, got, want)
		}
		if got, _ := selectedOf(t, job.filter); got != job.calls {
			t.Errorf("%s\n got %s\nwant %s", job.filter, got, job.calls)
		}
	}
}

// The README shows filters in blocks, or in a table with the number of messages that each selects of the calls:
// each is one of the jobs. It has every form, and the text of an error.
func TestFilterReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut("\n"+string(readme), "\n## The filter language\n")
	section, _, _ = strings.Cut(section, "\n## ")
	examples := map[string]string{} // and their numbers
	for _, block := range regexp.MustCompile("(?ms)^```lisp\n(.*?)^```").FindAllStringSubmatch(section, -1) {
		examples[strings.Join(strings.Fields(block[1]), " ")] = ""
	}
	counted := regexp.MustCompile("(?m)^\\| `(.*)` \\| .* \\| (\\d+) \\|$")
	for _, row := range counted.FindAllStringSubmatch(section, -1) {
		examples[strings.ReplaceAll(row[1], `\|`, "|")] = row[2]
	}
	if len(examples) < 15 {
		t.Errorf("%d examples", len(examples))
	}
	for example, number := range examples {
		isJob := false
		for _, job := range jobs {
			isJob = isJob || job.filter == example
		}
		if !isJob {
			t.Errorf("%s isn't tested", example)
		}
		if _, count := selectedOf(t, example); number != "" && number != strconv.Itoa(count) {
			t.Errorf("%s selects %d messages, not %s", example, count, number)
		}
	}
	all := 0
	for _, c := range wholeCalls {
		all += len(strings.Fields(c.messages))
	}
	for _, of := range regexp.MustCompile(`\bof (\d+)\b`).FindAllStringSubmatch(section, -1) {
		if of[1] != strconv.Itoa(all) {
			t.Errorf("the calls have %d messages, not %s", all, of[1])
		}
	}

	_, example, _ := strings.Cut(section, "```text\n")
	example, _, _ = strings.Cut(example, "\n```")
	source := strings.TrimSpace(strings.Split(example+"\n", "\n")[1])
	if _, err := compileFilter(source); err == nil || err.Error() != example {
		t.Errorf("the README's error is\n%s\nbut it would be\n%v", example, err)
	}
	for _, f := range forms {
		name, _, _ := strings.Cut(f.usage, " ")
		if !regexp.MustCompile("`\\(?" + name + "[ `]").MatchString(section) {
			t.Errorf("the form (%s) isn't in the README", f.usage)
		}
	}
}

// divisible has the samples whose Call-ID has a hash that n divides.
func divisible(n uint64) string {
	callID := regexp.MustCompile(`(?mi)^(?:Call-ID: |i:)(.*?)\r?$`)
	var names []string
	for _, s := range samples {
		crc := ^uint32(0)
		for _, b := range []byte(callID.FindStringSubmatch(s.text)[1]) {
			crc ^= uint32(b)
			for range 8 {
				crc = crc>>1 ^ crc&1*0xedb88320
			}
		}
		if uint64(^crc)%n == 0 {
			names = append(names, s.name)
		}
	}
	return strings.Join(names, " ")
}

// inOrderOnce puts names into the order of the samples, and leaves out those that come again.
func inOrderOnce(names string) string {
	return strings.Join(slices.Compact(strings.Fields(inOrder(names))), " ")
}
