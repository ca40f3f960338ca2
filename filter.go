package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The SIP filter: an expression such as (all (method invite) initial). It is read once, into nodes
// and then into functions, which look at the raw bytes of a message. This file has what each form
// means and what its arguments may be, then the reading, then the errors. The README describes the
// language to its users.

// form is a form of the language.
type form struct {
	usage   string // its name and the kinds of its arguments; "…" allows more of the last kind
	selects func(p parts, a []*argument) bool
}

// forms has every form, in the order in which the README and an error list them.
var forms = []form{
	{"request", func(p parts, _ []*argument) bool {
		return !p.response
	}},
	{"response", func(p parts, _ []*argument) bool {
		return p.response
	}},
	{"method NAME …", isMethod},
	{"methods NAME …", isMethod},
	{"status CODE …", anyOf(func(p parts, a *argument) bool {
		return a.lowest <= p.status && p.status <= a.highest
	})},
	{"initial", func(p parts, _ []*argument) bool {
		return !p.response && !hasTag(firstHeader(p.lines, "to"))
	}},
	{"uri RE", func(p parts, a []*argument) bool {
		return !p.response && a[0].matches(p.uri)
	}},
	{"hasheader NAME …", anyOf(func(p parts, a *argument) bool {
		return anyHeader(p.lines, a.header, nil)
	})},
	{"header NAME RE", func(p parts, a []*argument) bool {
		return anyHeader(p.lines, a[0].header, a[1].matches)
	}},
	{"to RE", func(p parts, a []*argument) bool {
		return anyHeader(p.lines, "to", a[0].matches)
	}},
	{"from RE", func(p parts, a []*argument) bool {
		return anyHeader(p.lines, "from", a[0].matches)
	}},
	{"body RE", func(p parts, a []*argument) bool {
		return a[0].matches(body(p.lines))
	}},
	{"message RE", func(p parts, a []*argument) bool {
		return a[0].matches(p.message.raw)
	}},
	{"transport TRANSPORT …", anyOf(func(p parts, a *argument) bool {
		return p.message.transport == a.transport
	})},
	{"src NET …", anyOf(func(p parts, a *argument) bool {
		return a.net.Contains(p.message.src.Addr().Unmap())
	})},
	{"dst NET …", anyOf(func(p parts, a *argument) bool {
		return a.net.Contains(p.message.dst.Addr().Unmap())
	})},
	{"sample N", func(p parts, a []*argument) bool {
		return crc32.ChecksumIEEE(firstHeader(p.lines, "call-id"))%a[0].n == 0
	}},
	{"all F …", func(p parts, a []*argument) bool {
		return !slices.ContainsFunc(a, func(f *argument) bool { return !f.selects(p) })
	}},
	{"any F …", anyOf(func(p parts, a *argument) bool {
		return a.selects(p)
	})},
	{"not F", func(p parts, a []*argument) bool {
		return !a[0].selects(p)
	}},
}

var isMethod = anyOf(func(p parts, a *argument) bool { return equalFold(p.method, a.name) })

// anyOf is a form that is true if a test is true for any of its arguments.
func anyOf(test func(p parts, a *argument) bool) func(parts, []*argument) bool {
	return func(p parts, arguments []*argument) bool {
		return slices.ContainsFunc(arguments, func(a *argument) bool { return test(p, a) })
	}
}

// argument is what an argument was compiled to; its kind says which fields it has.
type argument struct {
	name      string                 // NAME, of a method: as it was written
	header    string                 // NAME, of a header: its long form in lower case
	lowest    int                    // CODE
	highest   int                    // CODE
	transport transport              // TRANSPORT
	net       netip.Prefix           // NET
	n         uint32                 // N
	matches   func(text []byte) bool // RE
	selects   func(p parts) bool     // F
}

// kinds has how an argument of each kind is read, and what an error wants if it can't be.
// RE and F have functions of their own.
var kinds = map[string]struct {
	want string
	read func(word string, a *argument) bool
}{
	"NAME": {
		want: "a name of letters, digits and -.!%*_+`'~",
		read: func(word string, a *argument) bool {
			a.name = word
			a.header = strings.ToLower(word)
			if len(word) == 1 && longForms[a.header[0]] != "" {
				a.header = longForms[a.header[0]]
			}
			return word != "" && !strings.ContainsFunc(word, func(c rune) bool {
				return c > 0x7f || !isToken(byte(c))
			})
		},
	},
	"CODE": {
		want: "a code (100 to 699), a class (4xx) or a range (400-499)",
		read: func(word string, a *argument) bool {
			low, high, _ := strings.Cut(strings.ToLower(word), "-")
			high = cmp.Or(high, low) // one code, or a class
			a.lowest, _ = strconv.Atoi(strings.ReplaceAll(low, "x", "0"))
			a.highest, _ = strconv.Atoi(strings.ReplaceAll(high, "x", "9"))
			return isCode.MatchString(word) && a.lowest <= a.highest
		},
	},
	"TRANSPORT": {
		want: "udp, tcp, sctp or ws: TLS can't be read, unless a server sends it as HEP (as tcp)",
		read: func(word string, a *argument) bool {
			i := slices.Index(transportNames[:], strings.ToLower(word))
			a.transport = transport(i)
			return i >= 0
		},
	},
	"NET": {
		want: "an address or a net, like 10.0.0.0/8: src and dst have no port",
		read: func(word string, a *argument) bool {
			a.net, _ = netip.ParsePrefix(word)
			if ip, err := netip.ParseAddr(word); err == nil && ip.Zone() == "" {
				ip = ip.Unmap()
				a.net = netip.PrefixFrom(ip, ip.BitLen())
			}
			return a.net.IsValid() && !a.net.Addr().Is4In6()
		},
	},
	"N": {
		want: "a whole number from 1 to 4294967295",
		read: func(word string, a *argument) bool {
			n, err := strconv.ParseUint(word, 10, 32)
			a.n = uint32(n)
			return err == nil && n > 0
		},
	},
}

var isCode = regexp.MustCompile(`^[1-6]([xX]{2}|[0-9]{2}(-[1-6][0-9]{2})?)$`)

const (
	maxSource   = 65536 // bytes of a filter
	maxDepth    = 64    // parentheses inside each other: the stack has to bear them
	maxProblems = 10    // that an error shows
)

// compileFilter compiles a SIP filter; an empty source selects every message. The function that it
// returns takes time linear in the message and in the filter, allocates nothing unless it looks at
// a folded header field, and may be called by several goroutines at a time.
//
// The error has at most maxProblems problems. Each starts with "SIP_FILTER:line:column: " (from 1;
// columns count characters); two more lines have the line of the source, and a caret below the
// place, both indented by two blanks.
func compileFilter(source string) (func(*message) bool, error) {
	c := compiler{source: source}
	if len(source) > maxSource {
		c.fail(maxSource, "more", fmt.Sprintf("at most %d bytes", maxSource))
		return nil, c.problems[0]
	}
	c.tokens = tokenRE.FindAllStringIndex(source, -1)
	filter := c.read(node{}, 0)
	var arguments []*argument
	if len(c.problems) == 0 {
		arguments = c.arguments(filter, []string{"F"})
	}
	if len(c.problems) == 0 && len(filter) > 1 {
		const want = "the end: put several forms into (all …) or (any …)"
		c.fail(filter[1].at, filter[1].text, want)
	}
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return func(m *message) bool {
		return len(arguments) == 0 || arguments[0].selects(partsOf(m))
	}, nil
}

// compiler has what is known of a filter while it is read.
type compiler struct {
	source   string
	tokens   [][]int // begin and end of each token that isn't read yet
	problems []error
}

// node is a part of a filter as it is written: a word, a string, or a list.
type node struct {
	at   int    // offset of its first byte in the source
	text string // of a list only the parenthesis
	list []node // what is between the parentheses
}

var (
	// tokenRE matches a parenthesis, a string, a comment as other languages have them, or a word.
	// In a string \" is always a quote, also after a backslash; other backslashes are the RE's own.
	tokenRE  = regexp.MustCompile(`[()]|"(\\"|[^"])*"?|[;#][^\n]*|[^ \t\r\n()"]+`)
	unclosed = regexp.MustCompile(`^"(\\"|[^"])*$`)
	comment  = regexp.MustCompile(`^[;#]`)
	operator = regexp.MustCompile(`^[=!~<>&|]*[=<>&|][=!~<>&|]*$`) // names may have ! and ~
)

const order = "each form stands in parentheses, its name first, then its arguments"

// read reads up to the parenthesis that closes open; at depth 0 nothing is open, and it reads all.
// It ends at the first problem, after which it isn't clear what the rest means.
func (c *compiler) read(open node, depth int) (list []node) {
	for len(c.tokens) > 0 {
		at := c.tokens[0]
		c.tokens = c.tokens[1:]
		n := node{at: at[0], text: c.source[at[0]:at[1]]}
		want := ""
		switch {
		case n.text == ")" && depth > 0:
			return list
		case n.text == ")":
			want = "the end: nothing is open that this could close"
		case n.text == "(" && depth == maxDepth:
			want = fmt.Sprintf("at most %d parentheses inside each other", maxDepth)
		case n.text == "(":
			n.list = c.read(n, depth+1)
		case unclosed.MatchString(n.text):
			want = `what closes it: a " without a backslash`
		case comment.MatchString(n.text):
			want = "no comment: a filter has none"
		case operator.MatchString(n.text):
			want = "no operator: " + order
		}
		if want != "" {
			c.fail(n.at, n.text, want)
			c.tokens = nil
		}
		list = append(list, n)
	}
	if depth > 0 && len(c.problems) == 0 {
		c.fail(open.at, open.text, "what closes it: a )")
	}
	return list
}

// form compiles a form. A word is a form without arguments; the name of () is its parenthesis,
// which is no form.
func (c *compiler) form(n node) func(parts) bool {
	name := n
	var list []node
	if len(n.list) > 0 {
		name = n.list[0]
		list = n.list[1:]
	}
	i := slices.IndexFunc(forms, named(name.text))
	if i < 0 {
		c.fail(name.at, name.text, hint(name.text))
		return nil
	}
	f := forms[i]
	usage, more := strings.CutSuffix(f.usage, " …")
	wanted := strings.Fields(usage)[1:]
	if len(list) < len(wanted) || len(list) > len(wanted) && !more {
		c.fail(name.at, name.text, fmt.Sprintf("(%s): %s", f.usage, order))
		return nil
	}
	arguments := c.arguments(list, wanted)
	return func(p parts) bool { return f.selects(p, arguments) }
}

// named is a test for the form with a name.
func named(name string) func(form) bool {
	return func(f form) bool { return strings.HasPrefix(f.usage+" ", name+" ") }
}

// arguments compiles arguments of the wanted kinds, and more of the last one. A wrong word ends it:
// in (all method invite) parentheses are missing, and invite would be a second problem for that. A
// wrong list doesn't end it: what follows it is to be checked, too.
func (c *compiler) arguments(list []node, wanted []string) (arguments []*argument) {
	for i, n := range list {
		a := &argument{}
		kind := wanted[min(i, len(wanted)-1)]
		problems := len(c.problems)
		switch {
		case kind == "F":
			a.selects = c.form(n)
		case kind == "RE":
			a.matches = c.expression(n)
		case !kinds[kind].read(unquote.Replace(n.text), a): // which fills a
			c.fail(n.at, n.text, kinds[kind].want)
		}
		if len(c.problems) > problems && len(n.list) == 0 {
			return nil
		}
		arguments = append(arguments, a)
	}
	return arguments
}

// unquote makes a string what it stands for, and leaves a word as it is.
var unquote = strings.NewReplacer(`\"`, `"`, `"`, ``)

// expression compiles a RE. Its errors show the part of it that is wrong, and where that is if it
// occurs once.
func (c *compiler) expression(n node) func(text []byte) bool {
	if n.text[0] != '"' {
		c.fail(n.at, n.text, "a regular expression in double quotes")
		return nil
	}
	source := unquote.Replace(n.text)
	re, err := regexp.Compile(source)
	var wrong *syntax.Error
	if errors.As(err, &wrong) {
		part := strings.ReplaceAll(wrong.Expr, `"`, `\"`)
		at := n.at
		if strings.Count(n.text, part) == 1 {
			at += strings.Index(n.text, part)
		}
		c.fail(at, part, "the syntax of RE2: "+wrong.Code.String())
		return nil
	}
	tree, _ := syntax.Parse(source, syntax.Perl) // again, for its tree: regexp doesn't show it
	required := literals(tree)
	return func(text []byte) bool {
		occurs := func(literal []byte) bool { return bytes.Contains(text, literal) }
		return (required == nil || slices.ContainsFunc(required, occurs)) && re.Match(text)
	}
}

// literals are texts of which each match has at least one; nil if that can't be told. Without a
// look for them, an expression that doesn't begin with a literal takes 2 ms for 60 KB.
func literals(re *syntax.Regexp) (texts [][]byte) {
	switch re.Op {
	case syntax.OpLiteral:
		text := string(re.Rune)
		// U+FFFD also matches each byte that isn't UTF-8: such a text needn't occur.
		if re.Flags&syntax.FoldCase == 0 && !strings.ContainsRune(text, utf8.RuneError) {
			return [][]byte{[]byte(text)}
		}
	case syntax.OpCapture, syntax.OpPlus:
		return literals(re.Sub[0])
	case syntax.OpConcat:
		for i := 0; i < len(re.Sub) && texts == nil; i++ {
			texts = literals(re.Sub[i])
		}
	case syntax.OpAlternate:
		for _, alternative := range re.Sub {
			found := literals(alternative)
			if found == nil {
				return nil
			}
			texts = append(texts, found...)
		}
	}
	return texts
}

// hint is what an error wants where a word is no form.
func hint(word string) string {
	bare := strings.ToLower(strings.Trim(word, `"`))
	i := slices.IndexFunc(forms, named(bare))
	if i >= 0 {
		return fmt.Sprintf("(%s): forms are in lower case, without quotes", forms[i].usage)
	}
	for _, h := range hints {
		if h.words.MatchString(bare) {
			return strings.ReplaceAll(h.want, "WORD", bare)
		}
	}
	want := "a form:"
	for _, f := range forms {
		name, _, _ := strings.Cut(f.usage, " ")
		want += " " + name
	}
	return want
}

// hints has what may have been meant by a word that is no form: it becomes WORD.
var hints = []struct {
	words *regexp.Regexp
	want  string
}{
	{regexp.MustCompile(`^and$`), "(all F …): true if all of the forms in it are"},
	{regexp.MustCompile(`^or$`), "(any F …): true if any of the forms in it is"},
	{regexp.MustCompile(`[=!~<>&|]`), "no operator: " + order},
	{regexp.MustCompile(`^[1-6](xx|[0-9]{2})$`), "(status WORD)"},
	{regexp.MustCompile(`^(udp|tcp|sctp|ws)$`), "(transport WORD)"},
	{regexp.MustCompile(`^port$`), "a form: ports are a matter of BPF_FILTER"},
	{regexp.MustCompile(`^(ack|bye|cancel|info|invite|notify|options|prack|publish|refer|` +
		`register|subscribe|update)$`), "(method WORD)"},
	// The IANA registry of SIP header fields, and others that are in use.
	{regexp.MustCompile(`^([a-fi-or-vxy]|[px]-.+|accept(-contact|-encoding|-language)?|` +
		`alert-info|allow(-events)?|answer-mode|authentication-info|authorization|call-(id|` +
		`info)|contact|content-(disposition|encoding|id|language|length|type)|cseq|date|` +
		`diversion|error-info|event|expires|feature-caps|flow-timer|geolocation(-error|` +
		`-routing)?|history-info|identity(-info)?|in-reply-to|info-package|join|max-(breadth|` +
		`forwards)|mime-version|min-(expires|se)|organization|path|priority|privacy|` +
		`proxy-(authenticate|authorization|require)|rack|reason|record-route|recv-info|` +
		`refer-(sub|to)|referred-by|reject-contact|remote-party-id|replaces|reply-to|` +
		`request-disposition|require|resource-priority|retry-after|route|rseq|` +
		`security-(client|server|verify)|server|service-route|session-(expires|id)|sip-(etag|` +
		`if-match)|subject|subscription-state|supported|target-dialog|timestamp|unsupported|` +
		`user-(agent|to-user)|via|warning|www-authenticate)$`),
		`(header "WORD" RE): it is a header, not a form`},
}

// fail adds a problem to the error: a text of the source, its offset, and what is wanted instead.
func (c *compiler) fail(at int, text, want string) {
	if len(c.problems) == maxProblems {
		return
	}
	before := c.source[:at]
	begin := strings.LastIndexByte(before, '\n') + 1
	row := strings.Count(before, "\n") + 1
	column := utf8.RuneCountInString(before[begin:]) + 1
	line, _, _ := strings.Cut(c.source[begin:], "\n")
	line = strings.NewReplacer("\t", " ", "\r", "").Replace(line)
	c.problems = append(c.problems, fmt.Errorf("SIP_FILTER:%d:%d: %#q; want %s\n  %s\n%*s",
		row, column, text, want, line, column+2, "^"))
}
