package exchangeservice

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// How gRPC names sockets of this machine.
var unixSchemes = []string{"unix:", "unix-abstract:"}

// The ends of names that only private networks know.
var privateEnds = []string{".local", ".internal", ".svc", ".lan", ".home.arpa", ".localhost"}

// target returns what gRPC dials for the addresses, and the options that this needs. One address is left to gRPC; for
// several, a resolver of our own gives gRPC all of them.
func target(addresses []string) (string, []grpc.DialOption, error) {
	for _, address := range addresses {
		if strings.TrimSpace(address) == "" || strings.ContainsAny(address, ", ") {
			return "", nil, fmt.Errorf("%q is no address: give each replica as host:port, in a string of its own", address)
		}
		if len(addresses) > 1 && strings.Contains(address, "/") {
			return "", nil, fmt.Errorf("%q cannot stand beside other addresses: give several as host:port", address)
		}
	}
	switch len(addresses) {
	case 0:
		return "", nil, errors.New("no address was given: give the service's host:port, such as 127.0.0.1:50051")
	case 1:
		return addresses[0], nil, nil
	}
	static := manual.NewBuilderWithScheme("exchange-service")
	state := resolver.State{}
	for _, address := range addresses {
		// A certificate is compared with the name of the replica that shows it.
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address, ServerName: host(address)})
	}
	static.InitialState(state)
	return "exchange-service:///" + addresses[0], []grpc.DialOption{grpc.WithResolvers(static)}, nil
}

// all says whether something holds for every address.
func all(addresses []string, holds func(string) bool) bool {
	for _, address := range addresses {
		if !holds(address) {
			return false
		}
	}
	return true
}

// isLoopback says whether an address is on this machine. A name other than "localhost" may lead to another one.
func isLoopback(address string) bool {
	if isUnix(address) {
		return true
	}
	name := host(address)
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// isPrivate says whether an address is on this machine or in a private network, where no proxy leads.
func isPrivate(address string) bool {
	if isUnix(address) {
		return true
	}
	name := host(address)
	if ip, err := netip.ParseAddr(name); err == nil {
		ip = ip.Unmap()
		return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast()
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !strings.Contains(name, ".") {
		// A name of one word is one of this network's own.
		return true
	}
	for _, end := range privateEnds {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

func isUnix(address string) bool {
	for _, scheme := range unixSchemes {
		if strings.HasPrefix(address, scheme) {
			return true
		}
	}
	return false
}

// host returns the host of host:port, without brackets; also after dns:/// and similar, and without a port.
func host(address string) string {
	if _, rest, found := strings.Cut(address, ":///"); found {
		address = rest
	} else {
		address = strings.TrimPrefix(address, "dns:")
	}
	if colon := strings.LastIndex(address, ":"); colon >= 0 && !strings.HasSuffix(address, "]") {
		address = address[:colon]
	}
	return strings.Trim(address, "[]")
}
