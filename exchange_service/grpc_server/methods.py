"""One service of ours: its descriptor and handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from exchange_service.grpc_server.handler_wrapper import Handler, Look, Quick
from exchange_service.identity import Caller

# The reply to a known caller's request if it is ready; None if the method's handler must be called. An exception
# says the same.
Ready: TypeAlias = Callable[[bytes, Caller], bytes | None]
# A look for a reply that is not ready; None if none is of use.
BeginLook: TypeAlias = Callable[[bytes, Caller], Look | None]


@dataclass(frozen=True, slots=True)
class ServiceMethods:
    """A service's descriptor, and the handler of each of its methods by the method's name; for some of them, what
    answers without waiting where that is possible: `ready` and `looks` as the service gives it, `quick` as servers ask
    it.

    Handlers take bytes, so that a request which cannot be parsed is refused like any other bad request. They return
    bytes, because stored messages are sent as they are.
    """

    descriptor: ServiceDescriptor
    handlers: Mapping[str, Handler]
    ready: Mapping[str, Ready] = field(default_factory=dict)
    looks: Mapping[str, BeginLook] = field(default_factory=dict)
    quick: Mapping[str, Quick] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The service's full name, such as "exchange_service.v1.ExchangeService"."""
        return self.descriptor.full_name

    def wrapped(
        self,
        wrap: Callable[[MethodDescriptor, Handler], Handler],
        wrap_ready: Callable[[str, Ready, BeginLook | None], Quick],
    ) -> ServiceMethods:
        """The same service with wrapped handlers, and with the quick answers that stand before them, wrapped by the
        methods' paths. Raises KeyError if a method has no handler."""
        methods = self.descriptor.methods
        handlers = {method.name: wrap(method, self.handlers[method.name]) for method in methods}
        quick = {
            name: wrap_ready(f"{self.name}/{name}", ready, self.looks.get(name)) for name, ready in self.ready.items()
        }
        return replace(self, handlers=handlers, quick=quick)

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """The handlers as gRPC's server takes them."""
        kinds: dict[str, Callable[..., Any]] = {
            method.name: _KINDS[method.server_streaming] for method in self.descriptor.methods
        }
        handlers = {name: kinds[name](handler) for name, handler in self.handlers.items()}
        return grpc.method_handlers_generic_handler(self.name, handlers)


_KINDS = {False: grpc.unary_unary_rpc_method_handler, True: grpc.unary_stream_rpc_method_handler}
