package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The SIP filter: an expression such as (all (method invite) initial), read once into a tree, whose forms then become
// functions that look at the raw bytes of a message. This file has, in this order: what each form means, the reading
// of a filter with its errors, and the view of a SIP message. The README describes the language to its users.

// forms has each form with the kinds of its arguments, and its test of a message with one argument (the last, if their
// kinds differ). "…" allows more arguments of the last kind: the form is true if the test is for any of them.
var forms = map[string]func(m *message, p parts, a *node) bool{
	"request":              func(_ *message, p parts, _ *node) bool { return p.code == nil },
	"response":             func(_ *message, p parts, _ *node) bool { return p.code != nil },
	"initial":              func(m *message, p parts, _ *node) bool { return p.code == nil && !tag.Match(firstHeader(m.raw, "to")) },
	"method NAME…":         func(_ *message, p parts, a *node) bool { return bytes.EqualFold(p.method, []byte(a.word)) },
	"methods NAME…":        func(_ *message, p parts, a *node) bool { return bytes.EqualFold(p.method, []byte(a.word)) },
	"status CODE…":         func(_ *message, p parts, a *node) bool { return a.first <= string(p.code) && string(p.code) <= a.last },
	"uri RE":               func(_ *message, p parts, a *node) bool { return p.code == nil && a.match(p.uri) },
	"hasheader NAME…":      func(m *message, _ parts, a *node) bool { return anyHeader(m.raw, a.name, nil) },
	"header NAME RE":       func(m *message, _ parts, a *node) bool { return anyHeader(m.raw, a.name, a.match) },
	"to RE":                func(m *message, _ parts, a *node) bool { return anyHeader(m.raw, "to", a.match) },
	"from RE":              func(m *message, _ parts, a *node) bool { return anyHeader(m.raw, "from", a.match) },
	"body RE":              func(m *message, _ parts, a *node) bool { return a.match(body(m.raw)) },
	"message RE":           func(m *message, _ parts, a *node) bool { return a.match(m.raw) },
	"transport TRANSPORT…": func(m *message, _ parts, a *node) bool { return transportNames[m.transport] == a.name },
	"src NET…":             func(m *message, _ parts, a *node) bool { return a.contains(m.src.Addr().Unmap()) },
	"dst NET…":             func(m *message, _ parts, a *node) bool { return a.contains(m.dst.Addr().Unmap()) },
	"sample N":             func(m *message, _ parts, a *node) bool { return a.match(firstHeader(m.raw, "call-id")) },
	"all F…":               func(m *message, p parts, a *node) bool { return !a.form(m, p) }, // compile negates the whole
	"any F…":               func(m *message, p parts, a *node) bool { return a.form(m, p) },
	"not F":                func(m *message, p parts, a *node) bool { return !a.form(m, p) },
}

// node is a part of a filter: a word, a string, or a list. Of an argument it also has what it was compiled to.
type node struct {
	at int // offset of its first byte in the source
	// text is as it was written, of a list only the parenthesis; word is without quotes; name is in lower case, of a
	// header in long form, and of the RE of a header that of the header; a CODE is from first to last.
	text, word, name, first, last string
	list                          []*node                    // what is between the parentheses
	form                          func(*message, parts) bool // F
	match                         func([]byte) bool          // RE, N
	contains                      func(netip.Addr) bool      // NET
}

// codes has what a CODE may be: a code, a class or a range.
var codes = regexp.MustCompile(`^[1-6](xx|[0-9]{2}(-[1-6][0-9]{2})?)$`)

// tag matches a value of To or From with a tag parameter. None of what follows that is the end of a <URI> or of a
// quoted string: so it isn't inside of either.
var tag = regexp.MustCompile(`(?i);[ \t]*tag[ \t]*([=;]|$)([^"<>\\]|"([^"\\]|\\.)*")*$`)

const unfiltered = "(any request response)" // what an empty filter stands for

// compileFilter compiles a SIP filter; an empty source selects unfiltered. The function that it returns allocates
// nothing, unless it looks at a folded header, and takes time linear in the message and in the filter.
//
// The error has up to ten problems, each starting "SIP_FILTER:line:column: " (from 1; columns count characters), followed
// by the line of the source and a line with a caret below the place, both indented by two blanks.
func compileFilter(source string) (func(*message) bool, error) {
	var errs []error
	expect := func(ok bool, e *node, want string) {
		if !ok && len(errs) < 10 {
			begin := strings.LastIndexByte(source[:e.at], '\n') + 1
			row, column := strings.Count(source[:begin], "\n")+1, len([]rune(source[begin:e.at]))+1
			line, _, _ := strings.Cut(strings.NewReplacer("\t", " ", "\r", "").Replace(source[begin:]), "\n")
			errs = append(errs, fmt.Errorf("SIP_FILTER:%d:%d: %#q; want %s\n  %s\n%*s", row, column, e.text, want, line, column+2, "^"))
		}
	}
	expect(len(source) <= 65536, &node{at: min(len(source), 65536), text: "more"}, "at most 65536 bytes")
	source = cmp.Or(strings.TrimRight(source, " \t\r\n"), unfiltered)
	open := []*node{{}} // the top level, and what is not closed yet: lists inside each other, or a string (it has one quote)
	for _, place := range regexp.MustCompile(`[()]|"(\\"|[^"])*"?|[^ \t\r\n()"]+`).FindAllStringIndex(source, -1) {
		e, last := &node{at: place[0], text: source[place[0]:place[1]]}, len(open)-1
		if e.text == ")" && last > 0 {
			open = open[:last]
			continue
		}
		expect(last > 0 || open[0].list == nil && e.text != ")", e, "the end of the filter: several forms go into (all …) or (any …)")
		open[last].list = append(open[last].list, e)
		if e.text == "(" || strings.Count(strings.ReplaceAll(e.text, `\"`, ""), `"`) == 1 {
			expect(last != 64, e, "at most 64 parentheses inside each other")
			open = append(open, e)
		}
	}
	expect(len(open) == 1, open[len(open)-1], `what closes it: a ), or a " without a backslash`)
	filter := compile(open[0].list[0], expect)
	if source == unfiltered {
		return func(*message) bool { return true }, nil // without a look at the message
	}
	return func(m *message) bool { return filter(m, partsOf(m.raw)) }, errors.Join(errs...)
}

// compile makes a form into a function, which must not be called after an error. A word is a form without arguments.
func compile(e *node, expect func(ok bool, e *node, want string)) func(*message, parts) bool {
	list := append([]*node{e}, e.list...)[min(1, len(e.list)):]
	name := cmp.Or(map[string]string{"and": "all", "or": "any"}[list[0].text], list[0].text) // as other languages say
	usage := slices.MinFunc(slices.Sorted(maps.Keys(forms)), func(a, b string) int { return edits(name, a, 3) - edits(name, b, 3) })
	kinds, test := strings.Fields(strings.TrimSuffix(usage, "…")), forms[usage]
	fits := kinds[0] == list[0].text && (len(list) == len(kinds) || len(list) > len(kinds) && strings.HasSuffix(usage, "…"))
	expect(fits, list[0], "a form with its arguments: the nearest is ("+usage+")")
	for i := 1; fits && i < len(list); i++ {
		a := list[i]
		a.word = strings.NewReplacer(`\"`, `"`, `"`, ``).Replace(a.text) // without the quotes around it
		a.name = cmp.Or(longForms[strings.ToLower(a.word)], strings.ToLower(a.word))
		switch kinds[min(i, len(kinds)-1)] {
		case "F":
			a.form = compile(a, expect)
		case "NAME":
			expect(a.word != "" && !slices.ContainsFunc([]byte(a.word), func(c byte) bool { return !isToken(c) }), a, "a name of letters, digits and -.!%*_+`'~")
		case "CODE":
			from, to, _ := strings.Cut(a.name, "-")
			a.first, a.last = strings.ReplaceAll(from, "x", "0"), strings.ReplaceAll(cmp.Or(to, from), "x", "9")
			expect(codes.MatchString(a.name) && a.first <= a.last, a, "a code (100 to 699), a class (4xx) or a range (400-499)")
		case "RE":
			expect(a.text[0] == '"', a, "a regular expression in double quotes")
			compiled, err := regexp.Compile(a.word)
			reason, part, _ := strings.Cut(strings.TrimSuffix(fmt.Sprint(err), "`"), ": `") // as in "missing closing ): `a(b`"
			expect(err == nil, &node{at: a.at + max(0, strings.Index(a.text, part)), text: part}, "the syntax of RE2: "+reason)
			a.name, a.match = list[i-1].name, compiled.Match
		case "TRANSPORT":
			nearest := slices.MinFunc(transportNames[:], func(x, y string) int { return edits(a.word, x, 3) - edits(a.word, y, 3) })
			expect(nearest == a.name, a, "one of "+strings.Join(transportNames[:], ", ")+": the nearest is "+nearest)
		case "NET":
			prefix, _ := netip.ParsePrefix(a.word)
			ip, _ := netip.ParseAddr(a.word)
			expect(prefix.IsValid() && !prefix.Addr().Is4In6() || ip.IsValid() && ip.Zone() == "", a, "an address or net like 10.0.0.0/8")
			a.contains = func(other netip.Addr) bool { return prefix.Contains(other) || other == ip.Unmap() }
		case "N":
			n, err := strconv.ParseUint(a.word, 10, 32)
			expect(err == nil && n > 0, a, "a whole number from 1 to 4294967295")
			a.match = func(callID []byte) bool { return uint64(crc32.ChecksumIEEE(callID))%n == 0 }
		}
	}
	return func(m *message, p parts) bool { // (all F…) is (not (any (not F)…))
		return slices.ContainsFunc(list[len(kinds)-1:], func(a *node) bool { return test(m, p, a) }) != (name == "all")
	}
}

// edits is how many bytes must be left out, added or replaced to make a into the first word of b, without regard to case
// in a; where that is more than most, it may be too high.
func edits(a, b string, most int) int {
	b, _, _ = strings.Cut(b, " ")
	if a == "" || b == "" || most == 0 {
		return max(len(a), len(b))
	}
	if a[0]|0x20 == b[0] { // 0x20: in lower case
		return edits(a[1:], b[1:], most)
	}
	return 1 + min(edits(a[1:], b, most-1), edits(a, b[1:], most-1), edits(a[1:], b[1:], most-1))
}
