package exchangeservice

// retries is the part of the service config for the calls that read: docs/operations.md, "Several replicas". gRPC heeds
// the delay in the trailer grpc-retry-pushback-ms, and does not retry if the service sends -1. CANCELLED is gRPC's
// answer to a call that arrives in the moment in which a replica ends. After several failures in a row nothing is
// retried: retries would make the trouble of a service worse.
const retries = `
	"methodConfig": [{
		"name": [
			{"service": "exchange_service.v1.ExchangeService", "method": "ListExchanges"},
			{"service": "exchange_service.v1.ExchangeService", "method": "GetBalance"}
		],
		"retryPolicy": {
			"maxAttempts": 3,
			"initialBackoff": "0.1s",
			"maxBackoff": "1s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
		}
	}],
	"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}`

// spreading is the part for a client that knows the replicas itself. One that says NOT_SERVING, because it is about to
// end, gets no further calls.
const spreading = `
	"loadBalancingConfig": [{"round_robin": {}}],
	"healthCheckConfig": {"serviceName": "exchange_service.v1.ExchangeService"},`

// serviceConfig returns the recommended service config, as JSON.
func serviceConfig(spread bool) string {
	if spread {
		return "{" + spreading + retries + "}"
	}
	return "{" + retries + "}"
}
