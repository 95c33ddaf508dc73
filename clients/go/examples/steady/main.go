// Steady reads one balance at a steady rate for a while, and prints how many calls it made and how many failed. It ends
// with 1 if any failed, so it shows whether a restart of the service is noticed by its callers.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"exchange-service/exchangeservice"
	"exchange-service/exchangeservice/examples/internal/connection"
	exchangev1 "exchange-service/exchangeservice/gen/exchange_service/v1"
)

var (
	user     = flag.String("user", "demo", "the user's id")
	exchange = flag.String("exchange", "oanda", "the exchange's id")
	seconds  = flag.Float64("seconds", 10, "for how long calls are made")
	rate     = flag.Float64("rate", 20, "calls a second")
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	client, err := connection.Open()
	if err != nil {
		log.Fatal(err)
	}
	if *rate <= 0 || *seconds <= 0 {
		log.Fatal("-rate and -seconds must be more than 0")
	}
	calls, failed := call(client)
	client.Close()
	fmt.Printf("calls %d failed %d\n", calls, failed)
	if failed > 0 || calls == 0 {
		os.Exit(1)
	}
}

// call makes calls, each on time although the one before may still run, and waits for all of them.
func call(client *exchangeservice.Client) (calls int, failed int64) {
	var failures atomic.Int64
	var open sync.WaitGroup
	ticker := time.NewTicker(time.Duration(float64(time.Second) / *rate))
	defer ticker.Stop()
	end := time.After(time.Duration(*seconds * float64(time.Second)))
	for {
		select {
		case <-end:
			open.Wait()
			return calls, failures.Load()
		case <-ticker.C:
			calls++
			open.Add(1)
			go func() {
				defer open.Done()
				request := &exchangev1.GetBalanceRequest{UserId: *user, ExchangeId: *exchange}
				if _, err := client.GetBalance(context.Background(), request); err != nil {
					failures.Add(1)
					log.Print(err)
				}
			}()
		}
	}
}
