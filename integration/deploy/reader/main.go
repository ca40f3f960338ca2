// Reader prints the time and the first line of each message once, whichever sensors saw it and however often it is delivered.
//
//	go mod init reader && go get github.com/eclipse/paho.mqtt.golang && go run .
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

type envelope struct {
	Time      time.Time `json:"time"`
	Signature string    `json:"signature"`
	SIP       []byte    `json:"sip"` // encoding/json decodes base64
}

// A message that another sensor saw, or that is delivered again, has a known signature and was captured within this time. A
// retransmission is sent 500 ms later at the earliest (RFC 3261 §17.1.1.1, T1).
const same = 100 * time.Millisecond

// When each signature was captured last: the newest 50,000, and those before them.
var (
	seen   = map[string]time.Time{}
	before = map[string]time.Time{}
)

// receive is called for one message at a time.
func receive(_ mqtt.Client, m mqtt.Message) {
	var e envelope
	if err := json.Unmarshal(m.Payload(), &e); err != nil {
		fmt.Fprintln(os.Stderr, "no envelope:", err)
		return
	}
	for _, known := range []map[string]time.Time{seen, before} {
		if t, ok := known[e.Signature]; ok && e.Time.Sub(t).Abs() < same {
			return
		}
	}
	if len(seen) == 50_000 {
		before = seen
		seen = map[string]time.Time{}
	}
	seen[e.Signature] = e.Time
	line, _, _ := strings.Cut(string(e.SIP), "\r\n")
	fmt.Println(e.Time.Format(time.RFC3339Nano), line)
}

func main() {
	options := mqtt.NewClientOptions()
	options.AddBroker("tcp://localhost:1883")
	options.SetClientID("go-reader")
	options.SetCleanSession(false) // the broker keeps what comes while this program is away
	options.SetOnConnectHandler(func(c mqtt.Client) { c.Subscribe("sip", 1, receive) })
	token := mqtt.NewClient(options).Connect()
	if token.Wait() && token.Error() != nil {
		fmt.Fprintln(os.Stderr, token.Error())
		os.Exit(1)
	}
	select {}
}
