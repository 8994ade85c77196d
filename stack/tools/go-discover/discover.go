// Package discover takes the place of HashiCorp's library of the same name in the servers that Waypost builds.
//
// The library finds servers through the API of a cloud, for addresses such as "provider=aws tag_key=consul". Its SDKs take
// a third of the build, and no stack on one machine uses them. Such an address is an error here; plain addresses, DNS names
// and "exec=" do not come here. Servers that need a provider come from the vendor's packages, which Waypost uses if they
// are on PATH.
package discover

import (
	"fmt"
	"log"
)

// Provider finds the addresses of servers; no build of Waypost has one.
type Provider interface {
	Addrs(args map[string]string, logger *log.Logger) ([]string, error)
	Help() string
}

// Providers is empty.
var Providers = map[string]Provider{}

// Discover rejects every address that names a provider.
type Discover struct{}

// Option is accepted and has no effect.
type Option func()

// WithUserAgent has no effect, because no provider sends a request.
func WithUserAgent(string) Option { return func() {} }

// WithProviders has no effect.
func WithProviders(map[string]Provider) Option { return func() {} }

// New returns a Discover without providers.
func New(...Option) (*Discover, error) { return &Discover{}, nil }

// Addrs returns an error that names the address and the next step.
func (*Discover) Addrs(address string, _ *log.Logger) ([]string, error) {
	return nil, fmt.Errorf("%q needs a cloud provider, and this build has none: name the addresses, or install the vendor's package", address)
}

// Help says that there is no provider.
func (*Discover) Help() string { return "this build has no cloud providers\n" }

// Names returns no name.
func (*Discover) Names() []string { return nil }
