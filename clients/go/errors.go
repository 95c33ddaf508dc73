package exchangeservice

import (
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The domain of the reasons in docs/errors.md.
const domain = "exchange-service"

// The reasons that Follow acts on. docs/errors.md explains each reason.
const (
	callerUnknown         = "CALLER_UNKNOWN"
	serviceOverloaded     = "SERVICE_OVERLOADED"
	shuttingDown          = "SHUTTING_DOWN"
	storeUnavailable      = "STORE_UNAVAILABLE"
	streamLifetimeReached = "STREAM_LIFETIME_REACHED"
)

var errNoReason = status.Error(codes.Unavailable, "the service ended the stream without a reason")

// Reason returns the service's reason for a failed call, such as "CREDENTIAL_REJECTED": one of the names in
// docs/errors.md, which are also those of exchangev1.ErrorReason without "ERROR_REASON_". It is empty if the service gave
// no reason: nothing answered in time, or what answered is not this service.
func Reason(err error) string {
	reason := ""
	eachDetail(err, func(detail any) {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			reason = info.GetReason()
		}
	})
	return reason
}

// RetryAfter returns after how long a failed call may be made again. False: the service named no delay.
func RetryAfter(err error) (time.Duration, bool) {
	delay, found := time.Duration(0), false
	eachDetail(err, func(detail any) {
		if info, ok := detail.(*errdetails.RetryInfo); ok && info.GetRetryDelay() != nil {
			delay, found = info.GetRetryDelay().AsDuration(), true
		}
	})
	return delay, found
}

// FieldFaults returns what is wrong with each field of the request, by the field's name, of a failed call with the
// reason FIELD_INVALID; for other calls an empty map.
func FieldFaults(err error) map[string]string {
	faults := map[string]string{}
	eachDetail(err, func(detail any) {
		if info, ok := detail.(*errdetails.BadRequest); ok {
			for _, fault := range info.GetFieldViolations() {
				faults[fault.GetField()] = fault.GetDescription()
			}
		}
	})
	return faults
}

// eachDetail passes on each detail of a failed call's status, also of a status within other errors.
func eachDetail(err error, take func(any)) {
	var failed interface{ GRPCStatus() *status.Status }
	if errors.As(err, &failed) && failed.GRPCStatus() != nil {
		for _, detail := range failed.GRPCStatus().Details() {
			take(detail)
		}
	}
}
