// List prints the exchanges that the service can connect to: the id, where its plugin is from, and the name.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"

	"exchange-service/exchangeservice/examples/internal/connection"
	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

var (
	assetClass = flag.String("asset-class", "", "only exchanges of this asset class, such as forex")
	search     = flag.String("search", "", "only exchanges with this text in their name, id or asset types")
)

func main() {
	log.SetFlags(0)
	client, err := connection.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &exchangev1.ListExchangesRequest{AssetClass: *assetClass, Search: *search}
	exchanges, err := client.AllExchanges(context.Background(), request)
	if err != nil {
		log.Fatal(err)
	}
	for _, exchange := range exchanges {
		fmt.Printf("%s\t%s\t%s\n", exchange.GetId(), exchange.GetPlugin().GetName(), exchange.GetName())
	}
}
