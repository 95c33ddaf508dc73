// Package connection has the flags that all examples share: where the service is, and whom its certificate is from.
package connection

import (
	"flag"
	"os"
	"strings"

	"exchange-service/exchangeservice"
)

var (
	addresses = flag.String("addresses", "127.0.0.1:50051", "host:port of each replica, with commas between them")
	authority = flag.String("tls-ca", "", "PEM `file` of the authority of the service's certificate; empty: no TLS")
)

// Open parses the flags and returns a client. A token is taken from EXCHANGE_SERVICE_TOKEN, because others on the
// machine can see the flags of a program.
func Open() (*exchangeservice.Client, error) {
	flag.Parse()
	options := exchangeservice.Options{Token: os.Getenv("EXCHANGE_SERVICE_TOKEN")}
	if *authority != "" {
		config, err := exchangeservice.TrustCA(*authority)
		if err != nil {
			return nil, err
		}
		options.TLS = config
	}
	return exchangeservice.Dial(strings.Split(*addresses, ","), options)
}
