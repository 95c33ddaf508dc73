package exchangeservice

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

// peer is a gRPC server that answers each stream and each call by the next of its steps, and keeps what it was asked.
type peer struct {
	exchangev1.UnimplementedExchangeServiceServer
	address string

	mutex   sync.Mutex
	streams []func(exchangev1.ExchangeService_StreamBalancesServer) error
	calls   []func(context.Context) error
	asked   []*exchangev1.StreamBalancesRequest
	tokens  []string
}

func newPeer(test *testing.T, streams ...func(exchangev1.ExchangeService_StreamBalancesServer) error) *peer {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		test.Fatal(err)
	}
	made := &peer{streams: streams, address: listener.Addr().String()}
	server := grpc.NewServer()
	exchangev1.RegisterExchangeServiceServer(server, made)
	go server.Serve(listener)
	test.Cleanup(server.Stop)
	return made
}

func (peer *peer) StreamBalances(
	request *exchangev1.StreamBalancesRequest, stream exchangev1.ExchangeService_StreamBalancesServer,
) error {
	peer.mutex.Lock()
	peer.asked = append(peer.asked, request)
	peer.tokens = append(peer.tokens, token(stream.Context()))
	if len(peer.streams) == 0 {
		peer.mutex.Unlock()
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	step := peer.streams[0]
	peer.streams = peer.streams[1:]
	peer.mutex.Unlock()
	return step(stream)
}

func (peer *peer) GetBalance(
	ctx context.Context, _ *exchangev1.GetBalanceRequest,
) (*exchangev1.GetBalanceResponse, error) {
	peer.mutex.Lock()
	defer peer.mutex.Unlock()
	peer.tokens = append(peer.tokens, token(ctx))
	if len(peer.calls) == 0 {
		return &exchangev1.GetBalanceResponse{}, nil
	}
	step := peer.calls[0]
	peer.calls = peer.calls[1:]
	return nil, step(ctx)
}

func token(ctx context.Context) string {
	values, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(values.Get("authorization"), ",")
}

// refusal is an error as the service sends it.
func refusal(code codes.Code, reason string, delay time.Duration) error {
	failed, err := status.New(code, "What happened. What to do.").WithDetails(
		&errdetails.ErrorInfo{Reason: reason, Domain: domain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)},
	)
	if err != nil {
		panic(err)
	}
	return failed.Err()
}

func refusing(err error) func(exchangev1.ExchangeService_StreamBalancesServer) error {
	return func(exchangev1.ExchangeService_StreamBalancesServer) error { return err }
}

// sending sends events and then ends the stream with the error.
func sending(
	err error, events ...*exchangev1.StreamBalancesResponse,
) func(exchangev1.ExchangeService_StreamBalancesServer) error {
	return func(stream exchangev1.ExchangeService_StreamBalancesServer) error {
		for _, event := range events {
			if failed := stream.Send(event); failed != nil {
				return failed
			}
		}
		return err
	}
}

func balanceOf(exchange string, version uint64) *exchangev1.StreamBalancesResponse {
	balance := &exchangev1.Balance{ExchangeId: exchange, Environment: "production", Version: version}
	return &exchangev1.StreamBalancesResponse{Event: &exchangev1.StreamBalancesResponse_Balance{
		Balance: &exchangev1.BalanceEvent{Balance: balance, Freshness: &exchangev1.Freshness{}},
	}}
}

func errorOf(exchange string) *exchangev1.StreamBalancesResponse {
	failed := &exchangev1.AccountErrorEvent{ExchangeId: exchange, Environment: "production"}
	return &exchangev1.StreamBalancesResponse{
		Event: &exchangev1.StreamBalancesResponse_AccountError{AccountError: failed},
	}
}

func dial(test *testing.T, options Options, addresses ...string) *Client {
	client, err := Dial(addresses, options)
	if err != nil {
		test.Fatal(err)
	}
	test.Cleanup(func() { client.Close() })
	return client
}

func limited(test *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	test.Cleanup(cancel)
	return ctx
}

// collect follows until `enough` events have come, and returns their kinds, and the error that ended it.
func collect(
	test *testing.T, client *Client, request *exchangev1.StreamBalancesRequest, enough int,
) (kinds []string, ended error) {
	for event, err := range client.Follow(limited(test), request) {
		switch {
		case err != nil:
			return kinds, err
		case event.Balance != nil:
			kinds = append(kinds, "balance")
		case event.AccountError != nil:
			kinds = append(kinds, "error")
		case event.Heartbeat != nil:
			kinds = append(kinds, "heartbeat")
		case event.Reconnecting != nil:
			kinds = append(kinds, "reconnecting "+Reason(event.Reconnecting.Err))
		}
		if len(kinds) == enough {
			break
		}
	}
	return kinds, nil
}

func TestAFailedCallHasItsReasonAndDelay(test *testing.T) {
	peer := newPeer(test)
	peer.calls = []func(context.Context) error{func(context.Context) error {
		return refusal(codes.ResourceExhausted, "VENUE_RATE_LIMITED", 7*time.Second)
	}}
	client := dial(test, Options{}, peer.address)
	_, err := client.GetBalance(limited(test), &exchangev1.GetBalanceRequest{})
	wrapped := errors.Join(errors.New("while the page was made"), err)
	if reason := Reason(wrapped); reason != "VENUE_RATE_LIMITED" {
		test.Errorf("the reason is %q", reason)
	}
	if delay, named := RetryAfter(wrapped); !named || delay != 7*time.Second {
		test.Errorf("the delay is %s, %t", delay, named)
	}
	if reason := Reason(nil); reason != "" {
		test.Errorf("a call that did not fail has the reason %q", reason)
	}
}

func TestACallIsRetriedUnlessTheServiceSaysThatItShouldNot(test *testing.T) {
	for pushback, tries := range map[string]int{"": 2, "10": 2, "-1": 1} {
		peer := newPeer(test)
		peer.calls = []func(context.Context) error{func(ctx context.Context) error {
			if pushback != "" {
				grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", pushback))
			}
			return refusal(codes.Unavailable, "VENUE_UNAVAILABLE", 0)
		}}
		client := dial(test, Options{}, peer.address)
		_, err := client.GetBalance(limited(test), &exchangev1.GetBalanceRequest{})
		if (err == nil) != (tries == 2) || len(peer.tokens) != tries {
			test.Errorf("with the push-back %q: %v after %d tries", pushback, err, len(peer.tokens))
		}
	}
}

func TestSeveralAddressesAreAllCalled(test *testing.T) {
	first, second := newPeer(test), newPeer(test)
	client := dial(test, Options{}, first.address, second.address)
	both := func() bool {
		first.mutex.Lock()
		defer first.mutex.Unlock()
		second.mutex.Lock()
		defer second.mutex.Unlock()
		return len(first.tokens) > 0 && len(second.tokens) > 0
	}
	for ctx := limited(test); !both(); {
		if _, err := client.GetBalance(ctx, &exchangev1.GetBalanceRequest{}); err != nil {
			test.Fatal(err)
		}
	}
}

func TestAStreamGoesOnWithWhatItHasSeen(test *testing.T) {
	shutting := refusal(codes.Unavailable, shuttingDown, time.Millisecond)
	peer := newPeer(test,
		sending(shutting, balanceOf("oanda", 5), balanceOf("aster", 7), balanceOf("oanda", 6), errorOf("aster")),
		sending(shutting, balanceOf("aster", 8)),
	)
	client := dial(test, Options{}, peer.address)
	known := []*exchangev1.AccountSelector{{ExchangeId: "lighter", KnownVersion: 3}}
	kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{UserId: "alice", Known: known}, 7)
	again := "reconnecting " + shuttingDown
	if !slices.Equal(kinds, []string{"balance", "balance", "balance", "error", again, "balance", again}) || err != nil {
		test.Fatalf("it yields %q, and ends with %v", kinds, err)
	}
	second := peer.asked[1]
	if len(second.GetAccounts()) != 0 || second.GetUserId() != "alice" {
		test.Errorf("the stream of all accounts goes on as %v", second)
	}
	want := map[string]*exchangev1.AccountSelector{
		"lighter": {KnownVersion: 3}, "oanda": {KnownVersion: 6}, "aster": {KnownVersion: 7, Unconfirmed: true},
	}
	if len(second.GetKnown()) != len(want) {
		test.Errorf("it names %v as known", second.GetKnown())
	}
	for _, one := range second.GetKnown() {
		expected := want[one.GetExchangeId()]
		if one.GetKnownVersion() != expected.GetKnownVersion() || one.GetUnconfirmed() != expected.GetUnconfirmed() {
			test.Errorf("it names %v as known", one)
		}
	}
}

func TestAStreamOfSelectedAccountsGoesOnAsTheyWereSpelled(test *testing.T) {
	peer := newPeer(test, sending(refusal(codes.Unavailable, storeUnavailable, 0), balanceOf("oanda", 5)))
	client := dial(test, Options{}, peer.address)
	request := &exchangev1.StreamBalancesRequest{Accounts: []*exchangev1.AccountSelector{
		{ExchangeId: "oanda"}, {ExchangeId: "aster", Environment: "testnet"},
	}}
	ctx, leave := context.WithCancel(limited(test))
	ended := make(chan error)
	go func() {
		var last error
		for _, last = range client.Follow(ctx, request) {
			if len(peerAsked(peer)) == 2 {
				leave()
			}
		}
		ended <- last
	}()
	for len(peerAsked(peer)) < 2 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		test.Errorf("it ended with %v", err)
	}
	accounts := peerAsked(peer)[1].GetAccounts()
	if len(accounts) != 2 || accounts[0].GetKnownVersion() != 5 || accounts[0].GetEnvironment() != "" {
		test.Errorf("it goes on with %v", accounts)
	}
	if request.GetAccounts()[0].GetKnownVersion() != 0 {
		test.Error("the caller's request was changed")
	}
}

func peerAsked(peer *peer) []*exchangev1.StreamBalancesRequest {
	peer.mutex.Lock()
	defer peer.mutex.Unlock()
	return slices.Clone(peer.asked)
}

func TestAStreamThatCannotBeginFails(test *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		test.Fatal(err)
	}
	unused := listener.Addr().String()
	listener.Close()
	client := dial(test, Options{}, unused)
	if kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{}, 1); err == nil ||
		!strings.Contains(err.Error(), "was never reached at "+unused) {
		test.Errorf("where nothing listens it yields %q and ends with %v", kinds, err)
	}
	full := refusal(codes.ResourceExhausted, serviceOverloaded, time.Millisecond)
	for name, refused := range map[string]error{
		serviceOverloaded: full,
		"USER_FORBIDDEN":  refusal(codes.PermissionDenied, "USER_FORBIDDEN", 0),
		callerUnknown:     refusal(codes.Unauthenticated, callerUnknown, 0),
	} {
		client := dial(test, Options{TokenFunc: fixed("a")}, newPeer(test, refusing(refused)).address)
		if kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{}, 1); Reason(err) != name {
			test.Errorf("for %s it yields %q and ends with %v", name, kinds, err)
		}
	}
	client = dial(test, Options{}, newPeer(test, sending(full, balanceOf("oanda", 1)), sending(nil, balanceOf("oanda", 2))).address)
	kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{}, 4)
	if !slices.Equal(kinds, []string{"balance", "reconnecting " + serviceOverloaded, "balance", "reconnecting "}) {
		test.Errorf("one that had begun yields %q and ends with %v", kinds, err)
	}
}

func TestAStreamEndsWithItsContext(test *testing.T) {
	passed := refusal(codes.DeadlineExceeded, "DEADLINE_PASSED", 0)
	client := dial(test, Options{}, newPeer(test, sending(passed, balanceOf("oanda", 1))).address)
	kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{}, 2)
	if len(kinds) != 1 || !errors.Is(err, context.DeadlineExceeded) {
		test.Errorf("it yields %q and ends with %v", kinds, err)
	}
}

func fixed(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

func TestAStreamWhoseTokenEndsIsOpenedWithTheNextOne(test *testing.T) {
	ended := refusal(codes.Unauthenticated, callerUnknown, 0)
	peer := newPeer(test, sending(ended, balanceOf("oanda", 1)), sending(ended, balanceOf("oanda", 2)))
	count := 0
	client := dial(test, Options{TokenFunc: func(context.Context) (string, error) {
		count++
		return "token-" + string(rune('0'+count)), nil
	}}, peer.address)
	if kinds, err := collect(test, client, &exchangev1.StreamBalancesRequest{}, 3); err != nil || len(kinds) != 3 {
		test.Errorf("it yields %q and ends with %v", kinds, err)
	}
	if !slices.Equal(peer.tokens, []string{"Bearer token-1", "Bearer token-2"}) {
		test.Errorf("the tokens are %q", peer.tokens)
	}
	fixedToken := dial(test, Options{Token: "fixed"}, newPeer(test, sending(ended, balanceOf("oanda", 1))).address)
	if _, err := collect(test, fixedToken, &exchangev1.StreamBalancesRequest{}, 3); Reason(err) != callerUnknown {
		test.Errorf("with a fixed token it ends with %v", err)
	}
}

func TestATokenIsNotSentToAnotherMachineInPlaintext(test *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1:1": false, "[::1]:1": false, "localhost:1": false, "unix:/tmp/socket": false,
		"10.0.0.1:1": true, "service:1": true, "dns:///127.example.com:1": true,
	} {
		if _, err := Dial([]string{address}, Options{Token: "secret"}); (err != nil) != refused {
			test.Errorf("for %s: %v", address, err)
		} else if err != nil && strings.Contains(err.Error(), "secret") {
			test.Errorf("the token is in %v", err)
		}
	}
	if _, err := Dial([]string{"127.0.0.1:1", "10.0.0.1:1"}, Options{Token: "secret"}); err == nil {
		test.Error("one of several addresses is on another machine")
	}
}

func TestWrongAddressesAreRefused(test *testing.T) {
	for _, addresses := range [][]string{nil, {""}, {"127.0.0.1:1,127.0.0.1:2"}, {"dns:///a:1", "b:1"}} {
		if _, err := Dial(addresses, Options{}); err == nil {
			test.Errorf("%q were taken", addresses)
		}
	}
}

func TestNoProxyLeadsToPrivateAddresses(test *testing.T) {
	for address, private := range map[string]bool{
		"127.0.0.1:1": true, "10.1.2.3:1": true, "[fd00::1]:1": true, "replica:1": true, "dns:///a.default.svc:1": true,
		"203.0.113.5:1": false, "exchange.example.com:443": false,
	} {
		if isPrivate(address) != private {
			test.Errorf("%s counts as private: %t", address, !private)
		}
	}
}

func TestMoreStreamsThanAConnectionTakesGetAnother(test *testing.T) {
	client := dial(test, Options{}, "127.0.0.1:1")
	for range streamsPerConnection {
		if _, err := client.acquire(); err != nil {
			test.Fatal(err)
		}
	}
	if first := len(client.connections); first != 1 {
		test.Errorf("%d connections for as many streams as one takes", first)
	}
	another, err := client.acquire()
	if err != nil || len(client.connections) != 2 {
		test.Fatalf("%d connections for one more, %v", len(client.connections), err)
	}
	client.release(another)
	if again, _ := client.acquire(); again != another || len(client.connections) != 2 {
		test.Error("a connection that has room again is not used")
	}
}
