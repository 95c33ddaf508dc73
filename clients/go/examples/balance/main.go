// Balance prints one account: its equity, its version, and each asset that it holds. Amounts are texts.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"

	"exchange-service/exchangeservice"
	"exchange-service/exchangeservice/examples/internal/connection"
	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

var (
	user     = flag.String("user", "demo", "the user's id")
	exchange = flag.String("exchange", "oanda", "the exchange's id")
)

func main() {
	log.SetFlags(0)
	client, err := connection.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &exchangev1.GetBalanceRequest{UserId: *user, ExchangeId: *exchange}
	reply, err := client.GetBalance(context.Background(), request)
	if err != nil {
		if delay, named := exchangeservice.RetryAfter(err); named {
			log.Printf("It may be called again after %s.", delay)
		}
		log.Fatal(err)
	}
	balance := reply.GetBalance()
	summary := balance.GetSummary()
	fmt.Printf("equity %s %s, version %d\n", summary.GetEquity(), summary.GetCurrency(), balance.GetVersion())
	for _, account := range balance.GetVenueAccounts() {
		for _, asset := range account.GetAssets() {
			fmt.Printf("%s\t%s\t%s\n", account.GetId(), asset.GetAsset(), asset.GetTotal())
		}
	}
}
