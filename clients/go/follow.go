package exchangeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

const (
	firstPause   = 200 * time.Millisecond
	longestPause = 30 * time.Second
	// The most accounts that a request names.
	mostAccounts = 200
)

// Event is what Follow yields: exactly one field is set.
type Event struct {
	// Balance is an account's whole state: the first, or one that has changed.
	Balance *exchangev1.BalanceEvent
	// AccountError says that one account could not be read. A balance follows when it can be read again.
	AccountError *exchangev1.AccountErrorEvent
	// Heartbeat is the state of each account. It comes first when a stream goes on, and then at the service's interval.
	Heartbeat *exchangev1.HeartbeatEvent
	// Reconnecting says that the stream has ended and is opened again. Until the next event nothing is known of changes.
	Reconnecting *Reconnecting
}

// Reconnecting is the end of one stream of Follow, before the next one.
type Reconnecting struct {
	// Err is what ended the stream; Reason(Err) is "SHUTTING_DOWN" during a restart, and empty if the service is away.
	Err error
	// Delay is how long Follow waits before it opens the stream again.
	Delay time.Duration
}

// Follow yields the events of a user's accounts, and keeps the stream open: if the service restarts, can no longer be
// reached, has no database, reaches the lifetime of a stream, or takes no further stream for now, it yields Reconnecting
// and then opens the stream again, with the versions that it has yielded. So no version goes back, and no change is
// lost: a balance is an account's whole state. With Options.TokenFunc it also does so when the token ends.
//
// The request selects the accounts as the caller spells them; none: all of the user. Its Known names balances that the
// caller has already, at most 200. The request is not changed.
//
// The last pair has an error, and no event: the context's, once that has ended; the service's, with a Reason, if it
// refuses the stream; or that nothing was ever reached at the address. The iteration may be left at any time.
func (client *Client) Follow(
	ctx context.Context, request *exchangev1.StreamBalancesRequest,
) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		position, err := newPosition(request)
		if err != nil {
			yield(Event{}, err)
			return
		}
		var pause time.Duration
		for {
			received, err := client.followOnce(ctx, position, yield)
			switch {
			case errors.Is(err, errLeft):
				return
			case ctx.Err() != nil:
				yield(Event{}, ctx.Err())
				return
			case status.Code(err) == codes.DeadlineExceeded:
				// The service knows the context's deadline too, and may end the stream a moment before it.
				yield(Event{}, context.DeadlineExceeded)
				return
			case !client.resumes(err, received, position.began):
				yield(Event{}, client.explain(err))
				return
			}
			if received {
				pause = 0
			}
			pause = nextPause(pause, err)
			if !yield(Event{Reconnecting: &Reconnecting{Err: err, Delay: pause}}, nil) {
				return
			}
			select {
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			case <-time.After(pause):
			}
		}
	}
}

var errLeft = errors.New("the caller has left the iteration")

// followOnce yields the events of one stream, and returns whether there were any, and what ended it.
func (client *Client) followOnce(
	ctx context.Context, position *position, yield func(Event, error) bool,
) (received bool, err error) {
	connection, err := client.acquire()
	if err != nil {
		return false, err
	}
	defer client.release(connection)
	// Otherwise the stream stays open at the service if the caller leaves the iteration.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := exchangev1.NewExchangeServiceClient(connection.channel).StreamBalances(ctx, position.request())
	if err != nil {
		client.note(err)
		return false, err
	}
	for {
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errNoReason
		}
		client.note(err)
		if err != nil {
			return received, err
		}
		received = true
		position.advance(reply)
		event := Event{
			Balance: reply.GetBalance(), AccountError: reply.GetAccountError(), Heartbeat: reply.GetHeartbeat(),
		}
		// Kinds of events that are newer than this client are left out.
		if event != (Event{}) && !yield(event, nil) {
			return received, errLeft
		}
	}
}

// resumes says whether a stream that ended so is opened again. `received` is whether it brought events, `began` whether
// any stream before it did.
func (client *Client) resumes(err error, received, began bool) bool {
	switch Reason(err) {
	case shuttingDown, streamLifetimeReached, storeUnavailable:
		return true
	case serviceOverloaded:
		// A service that is full may stay so. A stream that it had taken before comes back, as all do after a restart.
		return began
	case callerUnknown:
		// A token that was never accepted does not become valid by asking again.
		return client.renews && received
	case "":
		// An address that was never right does not become so by waiting. UNAUTHENTICATED without a reason is from
		// TokenFunc.
		return client.reached.Load() && status.Code(err) != codes.Unauthenticated
	default:
		return false
	}
}

// explain adds what to do to an error that has no reason and so no advice.
func (client *Client) explain(err error) error {
	if Reason(err) != "" || client.reached.Load() {
		return err
	}
	return fmt.Errorf("the service was never reached at %s; check the address, and TLS on both sides: %w",
		client.addresses, err)
}

// nextPause returns the delay that the service names, or twice the last one.
func nextPause(last time.Duration, err error) time.Duration {
	delay, _ := RetryAfter(err)
	return max(delay, min(max(2*last, firstPause), longestPause))
}

// position is what a stream follows, as the caller spelled it, and what was seen of each account, as the events name it.
// It is enough to open the stream again.
type position struct {
	asked *exchangev1.StreamBalancesRequest
	// Whether any event has come.
	began bool
	seen  map[account]*seen
	// The accounts of `seen`, the newest last: a stream of all accounts may have followed some that are gone.
	order []account
}

// account names an account within its user.
type account struct{ exchange, environment, kind string }

// seen is an account's newest version, 0 if only errors were seen, and whether its last event was an error, or a
// balance that was marked as stale.
type seen struct {
	version     uint64
	unconfirmed bool
}

// named is what names an account: a selector, a balance, or an error.
type named interface {
	GetExchangeId() string
	GetEnvironment() string
	GetAccountType() string
}

func nameOf(one named) account {
	environment := one.GetEnvironment()
	if environment == "" {
		environment = "production"
	}
	return account{one.GetExchangeId(), environment, one.GetAccountType()}
}

func newPosition(request *exchangev1.StreamBalancesRequest) (*position, error) {
	if count := len(request.GetKnown()); count > mostAccounts {
		return nil, fmt.Errorf("Known may name %d accounts, and names %d", mostAccounts, count)
	}
	made := &position{asked: proto.Clone(request).(*exchangev1.StreamBalancesRequest), seen: map[account]*seen{}}
	for _, selector := range made.asked.GetKnown() {
		made.note(nameOf(selector), selector.GetKnownVersion(), selector.GetUnconfirmed())
	}
	for _, selector := range made.asked.GetAccounts() {
		if state, found := made.seen[nameOf(selector)]; found && selector.GetUnconfirmed() {
			state.unconfirmed = true
		}
	}
	return made, nil
}

// request returns the request that goes on from here.
func (position *position) request() *exchangev1.StreamBalancesRequest {
	next := proto.Clone(position.asked).(*exchangev1.StreamBalancesRequest)
	for _, selector := range next.GetAccounts() {
		// For an account that is selected by its own name; an alias's is found among the known ones.
		if state, found := position.seen[nameOf(selector)]; found {
			selector.KnownVersion = max(selector.GetKnownVersion(), state.version)
			selector.Unconfirmed = state.unconfirmed
		}
	}
	next.Known = nil
	for _, name := range position.order[max(0, len(position.order)-mostAccounts):] {
		next.Known = append(next.Known, &exchangev1.AccountSelector{
			ExchangeId:   name.exchange,
			Environment:  name.environment,
			AccountType:  name.kind,
			KnownVersion: position.seen[name].version,
			Unconfirmed:  position.seen[name].unconfirmed,
		})
	}
	return next
}

// advance takes over the version of a balance, and that an error came after it.
func (position *position) advance(reply *exchangev1.StreamBalancesResponse) {
	position.began = true
	if event := reply.GetBalance(); event != nil {
		position.note(nameOf(event.GetBalance()), event.GetBalance().GetVersion(), event.GetFreshness().GetStale() != nil)
	} else if event := reply.GetAccountError(); event != nil {
		position.note(nameOf(event), 0, true)
	}
}

func (position *position) note(name account, version uint64, unconfirmed bool) {
	state, found := position.seen[name]
	if !found {
		state = &seen{}
		position.seen[name] = state
	}
	state.version = max(state.version, version)
	state.unconfirmed = unconfirmed
	position.order = append(slices.DeleteFunc(position.order, func(one account) bool { return one == name }), name)
}
