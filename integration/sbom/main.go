// Sbom writes what is linked into a binary of sip-capture as SPDX 2.3 in JSON: the Go modules, which the binary itself
// tells, Go's own library, and the Debian packages that its static C libraries come from, which it has to be told.
//
//	sbom v1.2.3 dist/sip-capture_1.2.3_linux_amd64 libpcap0.8-dev=1.10.3-1 libc6-dev=2.36-9 >sbom.spdx.json
//
// It is dated with SOURCE_DATE_EPOCH (seconds since 1970), so that the same binary has the same SBOM.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

type document struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creationInfo   `json:"creationInfo"`
	Packages          []spdxPackage  `json:"packages"`
	Relationships     []relationship `json:"relationships"`
}

type creationInfo struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string        `json:"SPDXID"`
	Name             string        `json:"name"`
	VersionInfo      string        `json:"versionInfo"`
	PackageFileName  string        `json:"packageFileName,omitempty"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	Checksums        []checksum    `json:"checksums,omitempty"`
	LicenseDeclared  string        `json:"licenseDeclared"`
	ExternalRefs     []externalRef `json:"externalRefs"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: sbom VERSION BINARY [DEBIAN-PACKAGE=VERSION …]")
	}
	version, binary := args[0], args[1]
	content, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	build, err := buildinfo.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("reading %s: %w", binary, err)
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(content))

	program := newPackage(build.Main.Path, version, "golang")
	program.PackageFileName = filepath.Base(binary)
	program.Checksums = []checksum{{"SHA256", sum}}
	program.LicenseDeclared = "MIT"
	d := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
		Name:              filepath.Base(binary),
		DocumentNamespace: "https://" + build.Main.Path + "/spdx/" + sum,
		CreationInfo:      creationInfo{time.Unix(epoch, 0).UTC().Format(time.RFC3339), []string{"Tool: sip-capture-sbom"}},
		Packages:          []spdxPackage{program},
		Relationships:     []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", program.SPDXID}},
	}
	link := func(p spdxPackage) {
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, relationship{program.SPDXID, "STATIC_LINK", p.SPDXID})
	}
	link(newPackage("stdlib", strings.TrimPrefix(build.GoVersion, "go"), "golang"))
	for _, module := range build.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		link(newPackage(module.Path, module.Version, "golang"))
	}
	for _, text := range args[2:] {
		name, version, found := strings.Cut(text, "=")
		if !found {
			return fmt.Errorf("%q; want PACKAGE=VERSION", text)
		}
		link(newPackage(name, version, "deb/debian"))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(d)
}

// An identifier has letters, digits, dots and hyphens only (SPDX 2.3, section 7.2).
var notInIDs = regexp.MustCompile(`[^a-zA-Z0-9.-]+`)

// newPackage describes a package by its package URL: pkg:golang/MODULE@VERSION or pkg:deb/debian/NAME@VERSION.
func newPackage(name, version, kind string) spdxPackage {
	return spdxPackage{
		SPDXID: "SPDXRef-" + notInIDs.ReplaceAllString(name, "-"), Name: name, VersionInfo: version, DownloadLocation: "NOASSERTION",
		LicenseDeclared: "NOASSERTION",
		ExternalRefs:    []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:" + kind + "/" + name + "@" + strings.ReplaceAll(version, "+", "%2B")}},
	}
}
