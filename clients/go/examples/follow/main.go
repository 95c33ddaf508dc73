// Follow prints a line of JSON for each event of a user's accounts, and keeps on through restarts of the service until
// it is interrupted or the service refuses the stream.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"exchange-service/exchangeservice"
	"exchange-service/exchangeservice/examples/internal/connection"
	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

var (
	user      = flag.String("user", "demo", "the user's id")
	exchanges = flag.String("exchanges", "", "exchange ids, with commas between them; empty: all of the user's accounts")
)

// line is one event, or one account of a heartbeat.
type line struct {
	Event   string `json:"event"`
	Account string `json:"account,omitempty"`
	Version uint64 `json:"version,omitempty"`
	// An amount is a text.
	Equity     string `json:"equity,omitempty"`
	Currency   string `json:"currency,omitempty"`
	Stale      bool   `json:"stale,omitempty"`
	CatchingUp bool   `json:"catching_up,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Delay      string `json:"delay,omitempty"`
	Accounts   []line `json:"accounts,omitempty"`
}

func main() {
	log.SetFlags(0)
	client, err := connection.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	request := &exchangev1.StreamBalancesRequest{UserId: *user}
	for _, id := range strings.FieldsFunc(*exchanges, func(one rune) bool { return one == ',' }) {
		request.Accounts = append(request.Accounts, &exchangev1.AccountSelector{ExchangeId: id})
	}
	out := json.NewEncoder(os.Stdout)
	for event, err := range client.Follow(ctx, request) {
		if ctx.Err() != nil {
			// It was interrupted.
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		out.Encode(lineOf(event))
	}
}

func lineOf(event exchangeservice.Event) line {
	switch {
	case event.Balance != nil:
		balance, summary := event.Balance.GetBalance(), event.Balance.GetBalance().GetSummary()
		return line{
			Event:    "balance",
			Account:  account(balance),
			Version:  balance.GetVersion(),
			Equity:   summary.GetEquity(),
			Currency: summary.GetCurrency(),
			Stale:    event.Balance.GetFreshness().GetStale() != nil,
		}
	case event.AccountError != nil:
		failed := event.AccountError
		return line{
			Event:   "error",
			Account: account(failed),
			Version: failed.GetLastVersion(),
			Reason:  reason(failed.GetError()),
		}
	case event.Heartbeat != nil:
		beat := line{Event: "heartbeat"}
		for _, state := range event.Heartbeat.GetAccounts() {
			beat.Accounts = append(beat.Accounts, line{
				Event:      "state",
				Account:    account(state),
				Version:    state.GetVersion(),
				CatchingUp: state.GetCatchingUp(),
				Reason:     reason(state.GetError()),
			})
		}
		return beat
	default:
		again := event.Reconnecting
		return line{Event: "reconnecting", Reason: exchangeservice.Reason(again.Err), Delay: again.Delay.String()}
	}
}

// account is the name of an account within its user.
func account(named interface {
	GetExchangeId() string
	GetEnvironment() string
	GetAccountType() string
}) string {
	name := named.GetExchangeId() + "/" + named.GetEnvironment()
	if kind := named.GetAccountType(); kind != "" {
		name += "/" + kind
	}
	return name
}

// reason is the name of a fault's reason in docs/errors.md; empty without a fault.
func reason(fault *exchangev1.AccountFault) string {
	if fault == nil {
		return ""
	}
	return strings.TrimPrefix(fault.GetReason().String(), "ERROR_REASON_")
}
