"""Answers the service's calls with one plugin that runs in this process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, ServiceError, VenueUnavailable
from exchange_service.model import Account, Credential, Secret, VenueReports
from exchange_service.observability.tracing import RecordedSpan, current_span
from exchange_service.plugin_host.protocol import (
    OTHER_VERSION,
    PROTOCOL,
    process_proof,
    read_credential,
    read_error,
    read_reference,
    read_ways,
    write_error,
    write_pushes,
    write_replacement,
    write_reports,
    write_rights,
    write_spans,
)
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.v1 import balance_pb2
from exchange_service.venues.egress import DIRECT
from exchange_service.venues.fetching import Target
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.loading import LoadedPlugin
from exchange_service.venues.manifests import PluginRejected, manifest_digest, read_manifest
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing, Registry
from exchange_service.venues.sessions import Sessions
from exchange_service.venues.setting_values import read_values
from exchange_service.venues.watching import Pushed

# Seconds between two messages of one account's pushes: a little more than the service needs for one.
_BETWEEN_PUSHES = 0.075
# Seconds after which a call that was cancelled and still runs counts as stuck.
_STUCK_AFTER = 3.0

log = structlog.get_logger(__name__)


AskService = Callable[[messages.ReplaceCredentialRequest], Awaitable[messages.ReplaceCredentialResponse | None]]


class _CredentialNeeded(Exception):
    """The account has no session, and the call has no credential."""


class _PluginChanged(PluginRejected):
    """The plugin is not the one that the service loaded."""


@dataclass(slots=True)
class _ServedPlugin:
    """What the handshake opened."""

    plugin: LoadedPlugin
    listings: dict[str, Listing]
    sessions: Sessions
    http: VenueHttpPool

    def serve(self, request: messages.ConfigureRequest) -> None:
        """Use the service's manifest and settings: the manifest says which exchanges may be asked for, and which hosts
        may be reached; the ways, by which proxies and addresses."""
        self.plugin.manifest = read_manifest(request.manifest)
        self.plugin.use_settings(read_values(self.plugin.manifest.settings, request.settings))
        self.sessions.egress = read_ways(request.ways)
        self.listings = Registry([self.plugin]).listings


class PluginServer:
    """Serves one plugin, which `load` loads at the handshake. `token`: what the handshake's reply proves to know."""

    def __init__(self, load: Callable[[], LoadedPlugin], token: str) -> None:
        self._load = load
        self._token = token
        self._served: _ServedPlugin | None = None
        # The credentials of calls, each for as long as its call lasts.
        self._offered: dict[CredentialReference, Credential] = {}
        # Sends the service a request of this process; None without a connection to it.
        self.ask_service: AskService | None = None

    async def configure(self, request: messages.ConfigureRequest) -> messages.ConfigureResponse:
        """The handshake."""
        problem, changed = "", False
        if request.protocol_version != PROTOCOL:
            problem, changed = OTHER_VERSION, True
        elif self._served is not None:
            self._served.serve(request)
        else:
            try:
                self._served = self._open_plugin(request)
            except PluginRejected as rejection:
                problem, changed = str(rejection), isinstance(rejection, _PluginChanged)
        return messages.ConfigureResponse(
            protocol_version=PROTOCOL,
            problem=problem,
            proof=process_proof(self._token),
            process_id=os.getpid(),
            changed=changed,
            ways=len(request.ways) if self._served is not None else 0,
        )

    def _open_plugin(self, request: messages.ConfigureRequest) -> _ServedPlugin:
        plugin = self._load()
        _require_same(plugin, request)
        http = VenueHttpPool(timeout=request.venue_timeout, traced=request.traces)
        # Nobody else waits for this process yet.
        http.load()
        sessions = Sessions(
            self._open_credential,
            http,
            overrides=dict(request.overrides),
            idle_timeout=request.session_idle,
            replace_credential=self._replace_credential,
        )
        served = _ServedPlugin(plugin, {}, sessions, http)
        served.serve(request)
        return served

    async def _open_credential(self, reference: CredentialReference) -> Credential:
        credential = self._offered.get(reference)
        if credential is None:
            raise _CredentialNeeded
        return credential

    async def _replace_credential(
        self, account: Account, version: str, listing: Listing, changes: Mapping[str, Secret]
    ) -> str | None:
        """See `ReplaceCredential`: the service does it."""
        request = write_replacement(account, version, changes)
        reply = None if self.ask_service is None else await self.ask_service(request)
        outcome = None if reply is None else reply.WhichOneof("outcome")
        if reply is None or outcome is None:
            raise VenueUnavailable(
                f"The new credential of {listing.metadata.name} may not be stored: the service does not answer."
            )
        if outcome == "fault":
            raise read_error(reply.fault, listing.plugin.info.name)
        return None if outcome == "changed" else reply.credential_version

    def _lacks_credential(self, call: messages.VenueCall, reference: CredentialReference) -> bool:
        """Whether the service must send the credential. A session of another version stays until then: the new one may
        have been made by the plugin itself."""
        served = self._served
        return served is not None and not (call.HasField("credential") or served.sessions.serves(reference))

    async def check_health(self, request: messages.CheckHealthRequest) -> messages.CheckHealthResponse:
        """How many calls are stuck; that this is answered at all shows that the event loop is not blocked."""
        stuck = self._served.sessions.stuck_calls(_STUCK_AFTER) if self._served else 0
        figures = self._served.http.push_figures() if self._served else {}
        return messages.CheckHealthResponse(stuck_calls=stuck, pushes=write_pushes(figures))

    async def fetch_balance(self, request: messages.FetchBalanceRequest) -> messages.FetchBalanceResponse:
        """The hook fetch_balance."""
        call, reports = request.call, VenueReports()

        async def fetch(sessions: Sessions, target: Target, deadline: float) -> messages.FetchBalanceResponse:
            balance = await sessions.fetch(target, deadline, Priority())
            return messages.FetchBalanceResponse(balance=balance)

        reply: messages.FetchBalanceResponse = await self._answer(call, reports, fetch, messages.FetchBalanceResponse)
        if reports.usage or reports.cooldown or reports.costs:
            reply.reports.CopyFrom(write_reports(reports))
        if reports.answered_at is not None:
            reply.answer_age = time.monotonic() - reports.answered_at
        _add_spans(reply)
        return reply

    async def watch_balance(
        self, request: messages.WatchBalanceRequest
    ) -> AsyncGenerator[messages.WatchBalanceResponse, None]:
        """The hook watch_balance: a message for each thing that it brings, and one for how it ends."""
        call, reference = request.call, read_reference(request.call)
        if self._lacks_credential(call, reference):
            yield messages.WatchBalanceResponse(credential_needed=True)
            return
        if call.HasField("credential"):
            self._offered[reference] = read_credential(call.credential)
        try:
            assert self._served is not None
            target = _target(call, reference, self._served.listings[call.exchange_id], VenueReports())
            async with aclosing(self._served.sessions.watch(target)) as pushes:
                async for pushed in pushes:
                    self._offered.pop(reference, None)
                    yield _watch_reply(pushed)
                    # What comes meanwhile is one balance, the last: none waits on its way to the service.
                    await asyncio.sleep(_BETWEEN_PUSHES)
        except _CredentialNeeded:
            yield messages.WatchBalanceResponse(credential_needed=True)
        except ServiceError as error:
            yield messages.WatchBalanceResponse(fault=write_error(error))
        except Exception as error:
            yield messages.WatchBalanceResponse(fault=_own_failure(error))
        finally:
            self._offered.pop(reference, None)

    async def check_credential(self, request: messages.CheckCredentialRequest) -> messages.CheckCredentialResponse:
        """The hook check_credential."""
        call = request.call

        async def check(sessions: Sessions, target: Target, deadline: float) -> messages.CheckCredentialResponse:
            rights = await sessions.key_rights(target, deadline)
            return messages.CheckCredentialResponse(rights=write_rights(rights))

        reply: messages.CheckCredentialResponse = await self._answer(
            call, VenueReports(), check, messages.CheckCredentialResponse
        )
        _add_spans(reply)
        return reply

    async def _answer(
        self,
        call: messages.VenueCall,
        reports: VenueReports,
        ask: Callable[[Sessions, Target, float], Awaitable[Any]],
        reply: Callable[..., Any],
    ) -> Any:
        """The plugin's answer, or its error as part of the reply."""
        reference = read_reference(call)
        offered = call.HasField("credential")
        if self._lacks_credential(call, reference):
            return reply(credential_needed=True)
        if offered:
            self._offered[reference] = read_credential(call.credential)
        try:
            assert self._served is not None
            target = _target(call, reference, self._served.listings[call.exchange_id], reports)
            deadline = asyncio.get_running_loop().time() + call.timeout
            return await ask(self._served.sessions, target, deadline)
        except _CredentialNeeded:
            return reply(credential_needed=True)
        except ServiceError as error:
            return reply(fault=write_error(error), held_back=not error.venue_was_asked)
        except Exception as error:
            return reply(fault=_own_failure(error))
        finally:
            if offered:
                self._offered.pop(reference, None)

    async def forget_account(self, request: messages.ForgetAccountRequest) -> messages.ForgetAccountResponse:
        """Close an account's session."""
        if self._served is not None:
            self._served.sessions.forget(Account(request.user_id, request.exchange_id, request.environment))
        return messages.ForgetAccountResponse()

    async def close(self) -> None:
        """Close the sessions and the plugin's state."""
        if self._served is not None:
            await self._served.sessions.close()
            await self._served.plugin.close()
            await self._served.http.close()


def _require_same(plugin: LoadedPlugin, request: messages.ConfigureRequest) -> None:
    """Raise PluginRejected if the service loaded another version or manifest of the plugin than this process."""
    if not request.plugin_version and not request.manifest_digest:
        return
    name, installed, loaded = plugin.info.distribution, plugin.info.version, request.plugin_version
    if loaded != installed:
        raise _PluginChanged(
            f"Restart the service: version {installed} of {name} is installed, and the service loaded {loaded}."
        )
    if request.manifest_digest != manifest_digest(plugin.manifest):
        raise _PluginChanged(
            f"Restart the service: the manifest of {name} is not the one that the service loaded. If that does not "
            "help, it is another one each time that the plugin is imported: report it to the plugin's author."
        )


def _add_spans(reply: messages.FetchBalanceResponse | messages.CheckCredentialResponse) -> None:
    """Tell what was done for the call, if it is traced."""
    span = current_span()
    if isinstance(span, RecordedSpan):
        reply.spans.extend(write_spans(span))


def _watch_reply(pushed: Pushed) -> messages.WatchBalanceResponse:
    age = time.monotonic() - pushed.arrived_at
    if pushed.balance is None:
        return messages.WatchBalanceResponse(changed=True, age=age)
    return messages.WatchBalanceResponse(balance=pushed.balance, age=age)


def _own_failure(error: Exception) -> balance_pb2.AccountFault:
    """An error of this process. Its text stays here: it may hold a credential."""
    log.error("plugin_host.failed", error=type(error).__name__)
    return write_error(
        PluginFailed("The process that runs the plugin failed.", advice="Look for the reason in its log.")
    )


def _target(
    call: messages.VenueCall, reference: CredentialReference, listing: Listing, reports: VenueReports
) -> Target:
    account = Account(call.user_id, call.exchange_id, call.environment, call.account_type)
    # Never empty: that would be for the service to choose.
    return Target(account, listing, reference, way=call.way or DIRECT, reports=reports)
