package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// The SIP filter: an expression such as (all (method invite) initial), read once into a tree, whose forms then become
// functions that look at the raw bytes of a message. This file has, in this order: what each form means, the reading
// of a filter with its errors, and the view of a SIP message. The README describes the language to its users.

const maxSource, maxNesting = 64 << 10, 64 // bytes of a filter; parentheses inside each other

// argument is what the arguments of a form were compiled to: only the fields of its kinds are set.
type argument struct {
	form         func(*message) bool // F
	match        func([]byte) bool   // RE, and the test of a CODE or N
	name, header string              // NAME in lower case, and the header of that name, if need be in long form
	transport    int                 // TRANSPORT
	network      netip.Prefix        // NET
}

// forms has the kinds of the arguments of each form, and what it tests. "…" allows more arguments of that kind: the test
// is then called for one after the other, until it is true (for all: until it is false).
var forms = map[string]struct {
	kinds string
	test  func(m *message, a *argument) bool
}{
	"request":   {"", func(m *message, _ *argument) bool { return !isResponse(m.raw) }},
	"response":  {"", func(m *message, _ *argument) bool { return isResponse(m.raw) }},
	"initial":   {"", func(m *message, _ *argument) bool { return !isResponse(m.raw) && !hasToTag(m.raw) }},
	"method":    {"NAME…", func(m *message, a *argument) bool { return bytes.EqualFold(method(m.raw), []byte(a.name)) }},
	"methods":   {"NAME…", func(m *message, a *argument) bool { return bytes.EqualFold(method(m.raw), []byte(a.name)) }},
	"status":    {"CODE…", func(m *message, a *argument) bool { return isResponse(m.raw) && a.match(target(m.raw)) }},
	"uri":       {"RE", func(m *message, a *argument) bool { return !isResponse(m.raw) && a.match(target(m.raw)) }},
	"hasheader": {"NAME…", func(m *message, a *argument) bool { return anyHeader(m.raw, a.header, anyValue) }},
	"header":    {"NAME RE", func(m *message, a *argument) bool { return anyHeader(m.raw, a.header, a.match) }},
	"to":        {"RE", func(m *message, a *argument) bool { return anyHeader(m.raw, "to", a.match) }},
	"from":      {"RE", func(m *message, a *argument) bool { return anyHeader(m.raw, "from", a.match) }},
	"body":      {"RE", func(m *message, a *argument) bool { return a.match(body(m.raw)) }},
	"message":   {"RE", func(m *message, a *argument) bool { return a.match(m.raw) }},
	"transport": {"TRANSPORT…", func(m *message, a *argument) bool { return int(m.transport) == a.transport }},
	"src":       {"NET…", func(m *message, a *argument) bool { return a.network.Contains(m.src.Addr().Unmap()) }},
	"dst":       {"NET…", func(m *message, a *argument) bool { return a.network.Contains(m.dst.Addr().Unmap()) }},
	"sample":    {"N", func(m *message, a *argument) bool { return a.match(firstHeader(m.raw, "call-id")) }},
	"all":       {"F…", func(m *message, a *argument) bool { return a.form(m) }},
	"any":       {"F…", func(m *message, a *argument) bool { return a.form(m) }},
	"not":       {"F", func(m *message, a *argument) bool { return !a.form(m) }},
}

// otherNames are what other languages call our forms, where no edit distance leads to ours.
var otherNames = map[string]string{"and": "all", "or": "any", "source": "src", "destination": "dst"}

// tokens are parentheses, strings (also one that isn't closed), and words; openString is such a string.
var tokens = regexp.MustCompile(`[()]|"(\\"|[^"])*"?|[^ \t\r\n()"]+`)
var openString = regexp.MustCompile(`(?s)^"(.*(\\"|[^"]))?$`)

// The arguments of the kinds CODE and NAME (a token of RFC 3261 §25.1).
var codes = regexp.MustCompile(`^[1-6](xx|[0-9]{2}(-[1-6][0-9]{2})?)$`)
var token = regexp.MustCompile("^[-a-zA-Z0-9.!%*_+`'~]+$")

// tagged matches a value of To or From with a tag parameter. None of what follows that is the end of a <URI> or of a
// quoted string: so it isn't inside of either.
var tagged = regexp.MustCompile(`(?i);[ \t]*tag[ \t]*([=;]|$)([^"<>\\]|"([^"\\]|\\.)*")*$`)

// expression is a part of a filter as it was written: a word, a string with its quotes, or a list.
type expression struct {
	at   int    // offset of its first byte in the source
	text string // of a list only the parenthesis
	list []expression
}

// compiler reads and compiles a filter. After an error it goes on, to find the end of the top-level form.
type compiler struct {
	source string
	rest   []expression // words, strings and parentheses that are not yet read
	err    error        // the first error of the top-level form
}

// compileFilter compiles a SIP filter; an empty source selects everything. The function that it returns allocates
// nothing, unless it looks at a folded header, and takes time linear in the message and in the filter.
//
// The text of an error has one problem per top-level form, each starting "SIP_FILTER:line:column: " (from 1; columns
// count characters), followed by the line of the source and a line with a caret below the place, both indented by two
// blanks.
func compileFilter(source string) (func(*message) bool, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("SIP_FILTER:1:1: the filter has %d bytes; expected at most %d", len(source), maxSource)
	}
	c := &compiler{source: source}
	for _, place := range tokens.FindAllStringIndex(source, -1) {
		c.rest = append(c.rest, expression{at: place[0], text: source[place[0]:place[1]]})
	}
	filter := func(*message) bool { return true }
	var problems []error
	for form := 1; len(c.rest) > 0; form++ {
		c.err = nil
		e := c.read(1)
		c.expect(form != 2, e.at, "a second form; expected one: wrap them in (all …) or in (any …)")
		filter = c.compile(e)
		problems = append(problems, c.err)
	}
	return filter, errors.Join(problems...)
}

// expect records an error at an offset in the source unless ok is true or there is an error already.
func (c *compiler) expect(ok bool, at int, format string, values ...any) {
	if !ok && c.err == nil {
		before := c.source[strings.LastIndexByte(c.source[:at], '\n')+1 : at]
		after, _, _ := strings.Cut(c.source[at:], "\n")
		indent := regexp.MustCompile(`[^\t]`).ReplaceAllString(before, " ") // a tab is as wide as it is in the line above
		c.err = fmt.Errorf("SIP_FILTER:%d:%d: %s\n  %s\n  %s^", strings.Count(c.source[:at], "\n")+1, len([]rune(before))+1,
			fmt.Sprintf(format, values...), strings.TrimSuffix(before+after, "\r"), indent)
	}
}

// read takes the next expression from the rest; depth is how many parentheses are open if it begins with one.
func (c *compiler) read(depth int) expression {
	e := c.rest[0]
	c.rest = c.rest[1:]
	c.expect(e.text != ")", e.at, "this ) closes nothing; expected a form, or the end")
	c.expect(!openString.MatchString(e.text), e.at, `this string is not closed; expected a " without a backslash before it`)
	if e.text == "(" {
		c.expect(depth <= maxNesting, e.at, "%d parentheses inside each other; expected at most %d", depth, maxNesting)
		for len(c.rest) > 0 && c.rest[0].text != ")" {
			e.list = append(e.list, c.read(depth+1))
		}
		c.expect(len(c.rest) > 0, e.at, "this parenthesis is not closed; expected a )")
		c.rest = c.rest[min(1, len(c.rest)):]
	}
	return e
}

// compile makes a form into a function, which must not be called after an error.
func (c *compiler) compile(e expression) func(*message) bool {
	name, args := e, e.list
	if len(e.list) > 0 {
		name, args = e.list[0], e.list[1:]
	}
	form, known := forms[name.text]
	kinds := strings.Fields(strings.TrimSuffix(form.kinds, "…"))
	fits := len(args) == len(kinds) || len(args) > len(kinds) && strings.HasSuffix(form.kinds, "…")
	c.expect(!strings.ContainsAny(name.text[:1], `()"`), name.at, "expected the name of a form, as in request or (method invite), not %#q", name.text)
	c.expect(known, name.at, "unknown form %q; %s", name.text, suggest(name.text, slices.Sorted(maps.Keys(forms))))
	c.expect(fits, name.at, "wrong number of arguments: %d; expected (%s)", len(args), strings.TrimSpace(name.text+" "+form.kinds))
	var arguments []*argument
	for i := 0; c.err == nil && (i == 0 || i < len(args)); i += max(1, len(kinds)) { // once also without arguments
		a := &argument{}
		for k, kind := range kinds {
			c.compileArgument(kind, args[i+k], a)
		}
		arguments = append(arguments, a)
	}
	decisive := name.text != "all" // what one test must give to settle the whole: "all" is false if one is, another form true
	return func(m *message) bool {
		return slices.ContainsFunc(arguments, func(a *argument) bool { return form.test(m, a) == decisive }) == decisive
	}
}

// compileArgument compiles an argument of a kind into its field of a.
func (c *compiler) compileArgument(kind string, e expression, a *argument) {
	text := strings.NewReplacer(`\"`, `"`, `"`, ``).Replace(e.text) // without the quotes around it
	lower := strings.ToLower(text)
	switch kind {
	case "F":
		a.form = c.compile(e)
	case "NAME":
		c.expect(token.MatchString(text), e.at, "%q is not the name of a method or a header; expected letters, digits and -.!%%*_+`'~", text)
		a.name, a.header = lower, cmp.Or(longForms[lower], lower)
	case "CODE":
		from, to, _ := strings.Cut(lower, "-")
		first, last := strings.ReplaceAll(from, "x", "0"), strings.ReplaceAll(cmp.Or(to, from), "x", "9")
		c.expect(codes.MatchString(lower), e.at, "%q is not a status; expected a code (100 to 699), a class (1xx to 6xx) or a range (400-499)", text)
		c.expect(first <= last, e.at, "the range %q ends before it begins; did you mean %s-%s?", text, last, first)
		a.match = func(code []byte) bool { return first <= string(code) && string(code) <= last }
	case "RE":
		c.expect(e.text[0] == '"', e.at, "expected a regular expression in double quotes, not %#q", text)
		compiled, err := regexp.Compile(text)
		if refused, ok := errors.AsType[*syntax.Error](err); ok {
			at := e.at // if the refused part stands in the string once, its place is known
			if part := strings.ReplaceAll(refused.Expr, `"`, `\"`); strings.Count(e.text, part) == 1 {
				at += strings.Index(e.text, part)
			}
			c.expect(false, at, "the regular expression is refused: %s: %#q; expected the syntax of RE2", refused.Code, refused.Expr)
		}
		a.match = compiled.Match
	case "TRANSPORT":
		a.transport = slices.Index(transportNames[:], lower)
		c.expect(a.transport >= 0, e.at, "unknown transport %q; %s", text, suggest(lower, transportNames[:]))
	case "NET":
		network, err := netip.ParsePrefix(text)
		if address, _ := netip.ParseAddr(text); address.IsValid() && address.Zone() == "" {
			network, err = address.Unmap().Prefix(address.Unmap().BitLen())
		}
		c.expect(err == nil && !network.Addr().Is4In6(), e.at, "%q is not a network; expected one such as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32", text)
		a.network = network
	case "N":
		n, err := strconv.ParseUint(text, 10, 32)
		c.expect(err == nil && n > 0, e.at, "%q is not a sample; expected a whole number from 1 to 4294967295", text)
		a.match = func(callID []byte) bool {
			hash := fnv.New64a() // the same on every sensor
			hash.Write(callID)
			return hash.Sum64()%n == 0
		}
	}
}

// suggest names the nearest of names, if it is so near that word can be a slip of the pen, else all of them.
func suggest(word string, names []string) string {
	word = cmp.Or(otherNames[word], strings.ToLower(word))
	for edits := range min(2, (len(word)+1)/3) + 1 {
		if near := slices.IndexFunc(names, func(name string) bool { return isNear(word, name, edits) }); near >= 0 {
			return fmt.Sprintf("did you mean %q?", names[near])
		}
	}
	return "expected one of " + strings.Join(names, ", ")
}

// isNear reports whether at most that many edits (a byte left out, added, replaced, or swapped with the next) make a into b.
func isNear(a, b string, edits int) bool {
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	if a == "" || b == "" || edits == 0 {
		return len(a)+len(b) <= edits
	}
	swapped := len(a) > 1 && len(b) > 1 && a[0] == b[1] && a[1] == b[0] && isNear(a[2:], b[2:], edits-1)
	return swapped || isNear(a[1:], b, edits-1) || isNear(a, b[1:], edits-1) || isNear(a[1:], b[1:], edits-1)
}

// The view of a message follows. It takes any bytes: a malformed message is inspected as far as it goes.

// longForms has the header of each compact form in the IANA registry of SIP header fields.
var longForms = map[string]string{
	"a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition", "e": "content-encoding",
	"f": "from", "i": "call-id", "j": "reject-contact", "k": "supported", "l": "content-length", "m": "contact", "n": "identity-info",
	"o": "event", "r": "refer-to", "s": "subject", "t": "to", "u": "allow-events", "v": "via", "x": "session-expires", "y": "identity",
}

// cutLine cuts text after its first line, whose end (CRLF, or LF in malformed messages) belongs to neither part.
func cutLine(text []byte) (line, after []byte) {
	end := bytes.IndexByte(text, '\n')
	if end < 0 {
		return text, nil
	}
	return bytes.TrimSuffix(text[:end], []byte("\r")), text[end+1:]
}

// cutStartLine cuts a message after its start line. Empty lines may come before it (RFC 3261 §7.5).
func cutStartLine(raw []byte) (line, after []byte) { return cutLine(bytes.TrimLeft(raw, "\r\n")) }

func isResponse(raw []byte) bool {
	raw = bytes.TrimSpace(raw) // only to begin at the start line
	return len(raw) >= 8 && bytes.EqualFold(raw[:8], []byte("SIP/2.0 "))
}

// target is the Request-URI of a request: what stands between the first and the last blank of the start line.
// Of a response it is the status code.
func target(raw []byte) []byte {
	line, _ := cutStartLine(raw)
	_, after, _ := bytes.Cut(line, []byte(" "))
	if isResponse(raw) {
		return after[:min(3, len(after))]
	}
	return after[:max(0, bytes.LastIndexByte(after, ' '))]
}

// method is the first word of a request. In a response it is the last word of CSeq (RFC 3261 §20.16).
func method(raw []byte) []byte {
	if isResponse(raw) {
		cseq := firstHeader(raw, "cseq")
		return cseq[bytes.LastIndexAny(cseq, " \t")+1:]
	}
	line, _ := cutStartLine(raw)
	return line[:max(0, bytes.IndexByte(line, ' '))]
}

// anyHeader reports whether match is true for the value of any header field of raw with that name (given in lower case
// and long form; on the wire in any case, long or compact). The value is unfolded (RFC 3261 §7.3.1) and trimmed, and
// valid only during the call. Header fields end at the first empty line.
func anyHeader(raw []byte, name string, match func(value []byte) bool) bool {
	_, headers := cutStartLine(raw)
	for line, rest := cutLine(headers); len(line) > 0; line, rest = cutLine(rest) {
		if line[0]|0x20 != name[0]|0x20 && len(line) > 1 && isToken(line[1]) {
			continue // most headers, at a glance: another first letter (0x20: in lower case), and no compact form
		}
		header, value, found := bytes.Cut(line, []byte(":"))
		header = bytes.TrimRight(header, " \t")
		isCompact := len(header) == 1 && longForms[string(rune(header[0]|0x20))] == name
		if !found || !isCompact && (len(header) != len(name) || !bytes.EqualFold(header, []byte(name))) {
			continue
		}
		value = slices.Clip(bytes.Trim(value, " \t")) // clipped: appending copies it
		for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
			line, rest = cutLine(rest)
			value = append(append(value, ' '), bytes.Trim(line, " \t")...)
		}
		if match(bytes.Trim(value, " ")) {
			return true
		}
	}
	return false
}

func anyValue([]byte) bool { return true }

// hasToTag reports whether To has a tag, which puts a request inside a dialog (RFC 3261 §12.2).
func hasToTag(raw []byte) bool { return tagged.Match(firstHeader(raw, "to")) }

// firstHeader is the value of the first header field with that name (see anyHeader), nil without one.
func firstHeader(raw []byte, name string) (first []byte) {
	anyHeader(raw, name, func(value []byte) bool { first = value; return true })
	return first
}

// body is what follows the first empty line.
func body(raw []byte) []byte {
	line, rest := cutStartLine(raw)
	for len(line) > 0 {
		line, rest = cutLine(rest)
	}
	return rest
}

// isToken reports whether c may stand in a token, such as a method or the name of a header (RFC 3261 §25.1).
func isToken(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-.!%*_+`'~", c) >= 0 // 0x20: lower case
}
