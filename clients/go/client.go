// Package exchangeservice calls exchange-service: it lists exchanges and brokers, reads users' balances and streams
// them. It is a thin layer over the generated packages gen/exchange_service/v1 (exchangev1) and
// gen/exchange_service/accounts/v1 (accountsv1), whose messages it takes and returns. Amounts are decimal texts.
//
//	client, err := exchangeservice.Dial([]string{"127.0.0.1:50051"}, exchangeservice.Options{})
//	reply, err := client.GetBalance(ctx, &exchangev1.GetBalanceRequest{UserId: "alice", ExchangeId: "oanda"})
package exchangeservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // Without it gRPC does not heed a replica that says NOT_SERVING.
	"google.golang.org/grpc/keepalive"

	accountsv1 "exchange-service/exchangeservice/gen/exchange_service/accounts/v1"
	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

const (
	defaultTimeout = 10 * time.Second
	// The largest message that is accepted.
	maxMessage = 16 * 1024 * 1024
	// A server lets each connection have so many calls and streams open at the same time, and gRPC lets further ones wait
	// without a word. This service's limit is 250; proxies often have 100 or 128. The rest is for unary calls.
	streamsPerConnection = 80
)

// Options say how to reach the service. The zero value is for a service on this machine, without TLS.
type Options struct {
	// Token is sent with every call and stream, as `authorization: Bearer`.
	Token string
	// TokenFunc gives the token of each call and stream, in place of Token, for tokens that end. It is called often, and
	// by several goroutines at the same time, so let it keep a token while that is valid. A stream of Follow whose token
	// ends is opened again with the token that it gives then.
	TokenFunc func(context.Context) (string, error)
	// TLS is used for every connection. Nil: no TLS. An empty config trusts the authorities of this machine, see also
	// TrustCA; a client certificate goes into its Certificates.
	TLS *tls.Config
	// Timeout is how long a unary call may take whose context has no deadline. Zero: 10 seconds.
	Timeout time.Duration
	// DialOptions are further options of gRPC, such as interceptors or a stats handler. They win over our own.
	DialOptions []grpc.DialOption
}

// TrustCA returns a TLS config that trusts the authorities in a PEM file, and no others.
func TrustCA(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the file of the TLS authority cannot be read: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate: it should be a PEM file of the TLS authority", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// Client calls the service. It may be used by several goroutines at the same time. ListExchanges, GetBalance and
// StreamBalances are those of the generated client; see also AllExchanges and Follow.
type Client struct {
	exchangev1.ExchangeServiceClient
	// Accounts lists, connects, checks and removes accounts; it needs the right to manage.
	Accounts accountsv1.AccountServiceClient

	addresses string
	renews    bool
	open      func() (*grpc.ClientConn, error)
	// Whether this service has ever answered.
	reached atomic.Bool

	mutex       sync.Mutex
	connections []*connection
}

// connection is a gRPC channel, which has one connection to each replica, and the number of its streams of Follow.
type connection struct {
	channel *grpc.ClientConn
	streams int
}

// Dial returns a client of the service at the addresses. It connects when the first call needs it, so an address at which
// nothing answers is no error here. Calls are spread over several addresses, each the host:port of a replica, and over
// what a name stands for that is given as dns:///name:port; a replica that says NOT_SERVING gets no further calls. A
// single host:port is taken for one replica, or a proxy that chooses the replica.
//
// Dial fails without an address, and if a token would be sent to another machine in plaintext.
func Dial(addresses []string, options Options) (*Client, error) {
	name, dial, err := target(addresses)
	if err != nil {
		return nil, err
	}
	local := all(addresses, isLoopback)
	bears := options.Token != "" || options.TokenFunc != nil
	if bears && options.TLS == nil && !local {
		return nil, errors.New("a token is not sent to another machine in plaintext: set Options.TLS")
	}
	if options.Timeout == 0 {
		options.Timeout = defaultTimeout
	}
	client := &Client{addresses: strings.Join(addresses, ", "), renews: options.TokenFunc != nil}
	dial = append(dial, client.dialOptions(options, len(addresses) > 1 || strings.HasPrefix(name, "dns:///"))...)
	if all(addresses, isPrivate) {
		// By default gRPC sends a call to our own network, with its token, through the proxy that the environment names.
		dial = append(dial, grpc.WithNoProxy())
	}
	if bears {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer{options, options.TLS != nil}))
	}
	dial = append(dial, options.DialOptions...)
	client.open = func() (*grpc.ClientConn, error) { return grpc.NewClient(name, dial...) }
	first, err := client.open()
	if err != nil {
		return nil, err
	}
	client.connections = []*connection{{channel: first}}
	client.ExchangeServiceClient = exchangev1.NewExchangeServiceClient(first)
	client.Accounts = accountsv1.NewAccountServiceClient(first)
	return client, nil
}

func (client *Client) dialOptions(options Options, spread bool) []grpc.DialOption {
	secure := insecure.NewCredentials()
	if options.TLS != nil {
		secure = credentials.NewTLS(options.TLS)
	}
	// A replica that has been started again is tried within a second, and not after up to two minutes.
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(secure),
		grpc.WithDefaultServiceConfig(serviceConfig(spread)),
		grpc.WithDisableServiceConfig(), // One from DNS would take the place of ours.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		// A dead connection is noticed within 40 seconds; by default it is not noticed at all.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(client.unary(options.Timeout)),
	}
}

// unary gives a call without a deadline one, and notes whether the service has answered.
func (client *Client) unary(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, channel *grpc.ClientConn,
		invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if _, limited := ctx.Deadline(); !limited {
			limitedContext, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			ctx = limitedContext
		}
		err := invoke(ctx, method, request, reply, channel, options...)
		client.note(err)
		return err
	}
}

// note takes over from a call's end, or an event, that the service is there.
func (client *Client) note(err error) {
	if err == nil || Reason(err) != "" {
		client.reached.Store(true)
	}
}

// Conn returns the gRPC channel of the unary calls, for other services on it, such as health.
func (client *Client) Conn() *grpc.ClientConn {
	return client.connections[0].channel
}

// Close ends all connections, calls and streams.
func (client *Client) Close() error {
	client.mutex.Lock()
	defer client.mutex.Unlock()
	var failed []error
	for _, one := range client.connections {
		failed = append(failed, one.channel.Close())
	}
	return errors.Join(failed...)
}

// AllExchanges returns every exchange that the request's filters select, over all pages.
func (client *Client) AllExchanges(
	ctx context.Context, request *exchangev1.ListExchangesRequest,
) ([]*exchangev1.Exchange, error) {
	page := &exchangev1.ListExchangesRequest{
		AssetClass: request.GetAssetClass(),
		Source:     request.GetSource(),
		Search:     request.GetSearch(),
		PageSize:   request.GetPageSize(),
	}
	var exchanges []*exchangev1.Exchange
	for {
		reply, err := client.ListExchanges(ctx, page)
		if err != nil {
			return nil, err
		}
		exchanges = append(exchanges, reply.GetExchanges()...)
		page.PageToken = reply.GetNextPageToken()
		if page.PageToken == "" {
			return exchanges, nil
		}
	}
}

// acquire returns a connection for one more stream: another one if each has as many as it may have.
func (client *Client) acquire() (*connection, error) {
	client.mutex.Lock()
	defer client.mutex.Unlock()
	for _, one := range client.connections {
		if one.streams < streamsPerConnection {
			one.streams++
			return one, nil
		}
	}
	channel, err := client.open()
	if err != nil {
		return nil, err
	}
	opened := &connection{channel: channel, streams: 1}
	client.connections = append(client.connections, opened)
	return opened, nil
}

func (client *Client) release(one *connection) {
	client.mutex.Lock()
	defer client.mutex.Unlock()
	one.streams--
}

// bearer sends the token with every call.
type bearer struct {
	options Options
	secure  bool
}

func (bearer bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token := bearer.options.Token
	if bearer.options.TokenFunc != nil {
		var err error
		if token, err = bearer.options.TokenFunc(ctx); err != nil {
			return nil, err
		}
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (bearer bearer) RequireTransportSecurity() bool { return bearer.secure }
