package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The rules that make the five files quick to read. What is counted is the statement, which is what a
// reader reads, and which packing doesn't lower.
const (
	mostColumns       = 100  // of a line, in which a tab is 4; none is longer but for a URL
	mostDensity       = 0.70 // statements a line of code, in functions
	mostFunctionLines = 70
	mostParameters    = 4

	// mostStatements is how many there are: more than the 1,000 of an afternoon's reading. It may fall,
	// and not rise.
	mostStatements = 1882
)

var auditedFiles = []string{"main.go", "capture.go", "filter.go", "envelope.go", "publish.go"}

// audit is what a file has to read, and where it breaks a rule.
type audit struct {
	lines      int                             // of code: neither blank nor comment
	statements int                             // of a parallel assignment each value is one
	longest    int                             // lines of code of a function
	inFuncs    struct{ lines, statements int } // without the function literals of tables
	faults     []string
}

// auditSource reads a file of Go.
func auditSource(name, text string) (a audit, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.ParseComments)
	if err != nil {
		return a, err
	}
	fault := func(line int, format string, values ...any) {
		a.faults = append(a.faults, fmt.Sprintf("%s:%d: %s", name, line, fmt.Sprintf(format, values...)))
	}
	code := codeLines(text, set, file)
	for i, line := range strings.Split(text, "\n") {
		columns := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    "))
		if columns > mostColumns && !strings.Contains(line, "://") {
			fault(i+1, "%d columns", columns)
		}
		if code[i+1] {
			a.lines++
		}
	}
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok || function.Body == nil {
			continue
		}
		lines := 0
		for line := set.Position(function.Pos()).Line; line <= set.Position(function.End()).Line; line++ {
			if code[line] {
				lines++
			}
		}
		a.inFuncs.lines += lines
		a.inFuncs.statements += countStatements(function.Body)
		a.longest = max(a.longest, lines)
		at := set.Position(function.Pos()).Line
		if lines > mostFunctionLines {
			fault(at, "%s has %d lines", function.Name.Name, lines)
		}
		if n := function.Type.Params.NumFields(); n > mostParameters {
			fault(at, "%s has %d parameters", function.Name.Name, n)
		}
	}
	a.statements = countStatements(file)
	ast.Inspect(file, func(node ast.Node) bool {
		if node == nil {
			return true
		}
		at := set.Position(node.Pos()).Line
		switch s := node.(type) {
		case *ast.FuncLit:
			if n := s.Type.Params.NumFields(); n > mostParameters {
				fault(at, "a function with %d parameters", n)
			}
		case *ast.AssignStmt:
			if assigned(s) > 2 {
				fault(at, "assigns %d values at once", len(s.Lhs))
			}
		case *ast.IfStmt:
			if assignsInHeader(s.Init) {
				fault(at, "assigns to an outer variable in a header")
			}
		case *ast.SwitchStmt:
			if assignsInHeader(s.Init) {
				fault(at, "assigns to an outer variable in a header")
			}
		}
		return true
	})
	return a, nil
}

func assignsInHeader(header ast.Stmt) bool {
	assign, ok := header.(*ast.AssignStmt)
	return ok && assign.Tok != token.DEFINE
}

func countStatements(root ast.Node) (n int) {
	ast.Inspect(root, func(node ast.Node) bool {
		switch s := node.(type) {
		case *ast.BlockStmt, *ast.CaseClause, *ast.CommClause, *ast.LabeledStmt, *ast.EmptyStmt, *ast.DeclStmt:
		case *ast.AssignStmt:
			n += assigned(s)
		case ast.Stmt:
			n++
		}
		return true
	})
	return n
}

// assigned is how many statements an assignment counts as.
func assigned(s *ast.AssignStmt) int {
	if len(s.Lhs) == len(s.Rhs) {
		return len(s.Lhs)
	}
	return 1
}

// codeLines tells which lines, from 1, have code: something that is no comment, or part of a string of several lines.
func codeLines(text string, set *token.FileSet, file *ast.File) map[int]bool {
	code := map[int]bool{}
	comment := map[int]bool{}
	for _, group := range file.Comments {
		for _, c := range group.List {
			for line := set.Position(c.Pos()).Line; line <= set.Position(c.End()).Line; line++ {
				comment[line] = true
			}
		}
	}
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		isComment := comment[i+1] && (strings.HasPrefix(trimmed, "//") || strings.HasPrefix(trimmed, "/*"))
		code[i+1] = trimmed != "" && !isComment
	}
	return code
}

// TestAudit prints the table that README.md quotes, and fails where a rule is broken.
func TestAudit(t *testing.T) {
	row := func(name string, a audit) string {
		return fmt.Sprintf("| %s | %d | %d | %.2f | %d |", name, a.lines, a.statements,
			float64(a.inFuncs.statements)/float64(max(1, a.inFuncs.lines)), a.longest)
	}
	var all audit
	table := []string{"| file | lines of code | statements | a line of functions | longest function, lines |", "|---|---|---|---|---|"}
	for _, name := range auditedFiles {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := auditSource(name, string(text))
		if err != nil {
			t.Fatal(err)
		}
		if density := float64(a.inFuncs.statements) / float64(a.inFuncs.lines); density > mostDensity {
			a.faults = append(a.faults, fmt.Sprintf("%s: %.3f statements a line", name, density))
		}
		for _, fault := range a.faults {
			t.Error(fault)
		}
		table = append(table, row("`"+name+"`", a))
		all.lines += a.lines
		all.inFuncs.lines += a.inFuncs.lines
		all.inFuncs.statements += a.inFuncs.statements
		all.statements += a.statements
		all.longest = max(all.longest, a.longest)
	}
	table = append(table, row("all", all))
	if all.statements > mostStatements {
		t.Errorf("%d statements, at most %d", all.statements, mostStatements)
	}
	printed := strings.Join(table, "\n")
	t.Logf("\n%s", printed)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), printed) {
		t.Errorf("README.md has another table than\n%s", printed)
	}
}

// TestAuditNotices has a fault of each kind.
func TestAuditNotices(t *testing.T) {
	for _, row := range []struct {
		name string
		body string
		want string // "" where nothing is wrong
	}{
		{
			name: "plain",
			body: "func f(a, b, c, d int) {\n\tif x := a; x > 0 {\n\t\treturn\n\t}\n}",
		},
		{
			name: "parallel assignment",
			body: "func f(a, b, c int) {\n\ta, b, c = 1, 2, 3\n}",
			want: "x.go:4: assigns 3 values at once",
		},
		{
			name: "assignment in the header of an if",
			body: "func f(a int) {\n\tif a = 2; a > 0 {\n\t}\n}",
			want: "x.go:4: assigns to an outer variable in a header",
		},
		{
			name: "assignment in the header of a switch",
			body: "func f(a int) {\n\tswitch a = 2; {\n\t}\n}",
			want: "x.go:4: assigns to an outer variable in a header",
		},
		{
			name: "five parameters",
			body: "func f(a, b, c, d, e int) {}",
			want: "x.go:3: f has 5 parameters",
		},
		{
			name: "five parameters of a literal",
			body: "var f = func(a, b, c, d, e int) {}",
			want: "x.go:3: a function with 5 parameters",
		},
		{
			name: "long line",
			body: "func f() {\n\t_ = `" + strings.Repeat("x", 100) + "`\n}",
			want: "x.go:4: 110 columns",
		},
		{
			name: "long URL",
			body: "// https://example.com/" + strings.Repeat("x", 100),
		},
		{
			name: "long function",
			body: "func f() {\n" + strings.Repeat("\tf()\n", 69) + "}",
			want: "x.go:3: f has 71 lines",
		},
	} {
		a, err := auditSource("x.go", "package x\n\n"+row.body+"\n")
		if err != nil {
			t.Fatal(err)
		}
		if row.want == "" && len(a.faults) > 0 || row.want != "" && !slices.Equal(a.faults, []string{row.want}) {
			t.Errorf("%s: %q, want %q", row.name, a.faults, row.want)
		}
	}
	a, err := auditSource(
		"x.go",
		"package x\n\n// c\nfunc f() {\n\ta, b := 1, 2 // c\n\n\tfor range b {\n\t\ta++\n\t}\n}\n",
	)
	if err != nil || a.lines != 7 || a.statements != 4 || a.inFuncs.lines != 6 {
		t.Errorf("%+v, %v", a, err)
	}
}
