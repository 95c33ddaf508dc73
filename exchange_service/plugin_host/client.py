"""Reads accounts through plugins, in the service's own process or in the processes that run them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

import structlog

from exchange_service.credentials import CredentialReference
from exchange_service.errors import NotSupported, PluginFailed, PluginUnavailable, ServiceError
from exchange_service.model import Account, Credential, KeyRights, Secret
from exchange_service.observability.tracing import CLIENT, ActiveSpan, Within, child_span
from exchange_service.plugin_host.connection import CallFailed
from exchange_service.plugin_host.launch import MEBIBYTE, OWN_MEMORY, THIRD_PARTY_MEMORY, ProcessPolicy
from exchange_service.plugin_host.methods import code_name
from exchange_service.plugin_host.process import PluginProcess, ServeConfig
from exchange_service.plugin_host.protocol import (
    read_error,
    read_replacement,
    read_reports,
    read_rights,
    write_call,
    write_credential,
    write_error,
)
from exchange_service.plugin_host.remote_spans import rebuild_spans
from exchange_service.plugin_host.sandbox import Mode, ports_by, venue_ports
from exchange_service.plugin_host.supervisor import ProcessStatus, Supervisor
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.tasks import TaskSet, beside_the_loop, without_origin
from exchange_service.venues.answers import MAX_ROWS, shape_error
from exchange_service.venues.egress import Egress, Way
from exchange_service.venues.fetching import Target
from exchange_service.venues.loading import LoadedPlugin
from exchange_service.venues.manifests import manifest_digest
from exchange_service.venues.outgoing import name_in_accounts, named_in_errors
from exchange_service.venues.priority import Priority
from exchange_service.venues.push_figures import PushFigures
from exchange_service.venues.registry import Listing, Registry
from exchange_service.venues.replacing import ReplaceCredential
from exchange_service.venues.sessions import Sessions
from exchange_service.venues.watching import Pushed, Watch
from exchange_service.wire.balances import FetchedBalance, fetched_balance, read_fetched, rows_of

# Seconds that a process has, beyond the deadline, to answer that the deadline has passed.
_TIMEOUT_MARGIN = 0.25
# Bytes. A third-party plugin's larger balance is checked in a thread: it may have a thousand rows and more.
_LARGE_BALANCE = 32 * 1024
# How a call fails whose process is not there any more, or does not serve it.
_GONE = frozenset({messages.FAILURE_CODE_UNAVAILABLE, messages.FAILURE_CODE_CANCELLED})
# Seconds between two messages of an account's pushes that are taken: less than a process leaves between them, unless
# the plugin has changed it.
_BETWEEN_PUSHES = 0.02

log = structlog.get_logger("exchange_service.plugin_host")


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How processes of plugins are run: times in seconds, memory in MiB and counts by the plugin's name."""

    venue_timeout: float
    session_idle: float
    overrides: Mapping[str, str]
    memory: Mapping[str, int]
    processes: Mapping[str, int]
    start_at_once: bool
    sandbox: Mode = "auto"
    # The service's own, which a manifest does not open.
    own_ports: frozenset[int] = frozenset()
    # Which way out each account takes, and by which address venues see it, for errors.
    egress: Egress = field(default_factory=Egress)
    # Whether calls may be traced.
    traces: bool = False


class PluginClients:
    """Reads accounts through plugins in processes of their own, and through the sessions `here` for the other plugins.

    An account always goes to the same one of its plugin's processes. `on_change` gets a plugin's name, a sentence
    while some of its accounts cannot be read, else "", and whether others still can.
    """

    def __init__(
        self,
        registry: Registry,
        here: Sessions,
        open_credential: Callable[[CredentialReference], Awaitable[Credential]],
        settings: ProcessSettings,
        on_change: Callable[[str, str, bool], None],
        replace_credential: ReplaceCredential | None = None,
    ) -> None:
        self._registry = registry
        self._replace_credential = replace_credential
        self._here = here
        self._open_credential = open_credential
        self._settings = settings
        self._on_change = on_change
        self._tasks = TaskSet()
        self._processes = {
            plugin.info.name: [self._supervisor(plugin) for _ in range(settings.processes.get(plugin.info.name, 1))]
            for plugin in registry.plugins
            if plugin.own_process
        }
        if settings.start_at_once:
            for supervisor in self._supervisors():
                supervisor.start()

    def _supervisor(self, plugin: LoadedPlugin) -> Supervisor:
        name = plugin.info.name
        default = THIRD_PARTY_MEMORY if plugin.third_party else OWN_MEMORY
        memory = self._settings.memory.get(name, default) * MEBIBYTE
        policy = ProcessPolicy(
            name,
            plugin.info.distribution,
            memory,
            plugin.third_party,
            confined=self._settings.sandbox,
            interpreter=plugin.interpreter,
        )
        # As the plugin's code gave it; a newer one that the plugin has given since is passed on to the process.
        loaded = manifest_digest(plugin.manifest)

        def config() -> ServeConfig:
            settings = self._settings
            own = {metadata.id for metadata in plugin.manifest.exchanges}
            overrides = {name: url for name, url in settings.overrides.items() if name.partition(".")[0] in own}
            ways = settings.egress.serving(own)
            ports = ports_by(ways, venue_ports(plugin.manifest, overrides, settings.own_ports))
            times = (settings.venue_timeout, settings.session_idle)
            replacing = partial(self._answer_replacing, plugin)
            return ServeConfig(
                plugin.manifest,
                overrides,
                *times,
                ports,
                plugin.info.version,
                loaded,
                plugin.settings,
                replacing,
                ways,
                settings.traces,
            )

        return Supervisor(policy, config, lambda: self._notify(name))

    async def _answer_replacing(
        self, plugin: LoadedPlugin, request: messages.ReplaceCredentialRequest
    ) -> messages.ReplaceCredentialResponse:
        """Store what a process of this plugin has sent, if the account is one of the plugin's."""
        try:
            version = await self._replace(plugin, *read_replacement(request))
        except ServiceError as error:
            return messages.ReplaceCredentialResponse(fault=write_error(error))
        if version is None:
            return messages.ReplaceCredentialResponse(changed=True)
        return messages.ReplaceCredentialResponse(credential_version=version)

    async def _replace(
        self, plugin: LoadedPlugin, account: Account, version: str, changes: Mapping[str, Secret]
    ) -> str | None:
        listing = self._registry.listings.get(account.exchange_id)
        if listing is None or listing.plugin is not plugin:
            log.warning("plugin_host.foreign_account", plugin=plugin.info.name)
            raise PluginFailed(f"The plugin {plugin.info.name} does not serve this exchange.")
        if self._replace_credential is None:
            raise NotSupported("Nothing here stores credentials that rotate.")
        return await self._replace_credential(account, version, listing, changes)

    def _way(self, target: Target) -> Way:
        return self._settings.egress.of_target(target)

    def _notify(self, name: str) -> None:
        troubles = [supervisor.trouble for supervisor in self._processes[name] if supervisor.trouble]
        self._on_change(name, troubles[0] if troubles else "", len(troubles) < len(self._processes[name]))

    def _supervisors(self) -> list[Supervisor]:
        return [supervisor for several in self._processes.values() for supervisor in several]

    def statuses(self, plugin: LoadedPlugin) -> Sequence[ProcessStatus]:
        """The plugin's processes; empty if it runs in the service's own."""
        return [supervisor.snapshot() for supervisor in self._processes.get(plugin.info.name, ())]

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """See `Venues`."""
        address = self._way(target).address
        with named_in_errors(address):
            return name_in_accounts(await self._fetch(target, deadline, priority), address)

    async def _fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        plugin = target.listing.plugin
        if not plugin.own_process:
            return await self._here.fetch(target, deadline, priority)

        def request(call: messages.VenueCall) -> messages.FetchBalanceRequest:
            return messages.FetchBalanceRequest(call=call)

        asked_at = time.monotonic()
        reply = await self._ask("FetchBalance", request, target, deadline)
        target.reports.answered_at = _answered_at(reply.answer_age, asked_at, time.monotonic())
        return await _believed(FetchedBalance(reply.balance), target.listing)

    async def watch(self, target: Target) -> AsyncGenerator[Pushed, None]:
        """See `Venues`."""
        plugin, address = target.listing.plugin, self._way(target).address
        pushes = self._watch_process(target) if plugin.own_process else self._here.watch(target)
        async with aclosing(pushes):
            while True:
                with named_in_errors(address):
                    pushed = await anext(pushes, None)
                if pushed is None:
                    return
                named = None if pushed.balance is None else name_in_accounts(pushed.balance, address)
                yield Pushed(named, pushed.arrived_at)

    async def _watch_process(self, target: Target) -> AsyncGenerator[Pushed, None]:
        listing, watch = target.listing, Watch()

        async def read(answer: Any) -> FetchedBalance:
            return await _believed(answer, listing)

        # Beside the reader, so that nothing waits on its way, where it would grow old unseen.
        taking = asyncio.create_task(self._take_pushes(target, watch), name=f"pushes of {listing.plugin.info.name}")
        taking.add_done_callback(partial(_end_watch, watch, listing))
        try:
            async with aclosing(watch.items(read)) as items:
                async for item in items:
                    yield item
        finally:
            taking.cancel()
            await asyncio.wait({taking})

    async def _take_pushes(self, target: Target, watch: Watch) -> None:
        """Put what the plugin's process sends into the watch, until it ends."""
        name, reference = target.listing.plugin.info.name, target.reference
        supervisor = self._supervisor_of(name, reference.account)
        began = asyncio.get_running_loop().time()
        process = await supervisor.process(began + self._settings.venue_timeout)
        call = write_call(reference, target.account.account_type, 0.0, self._way(target).name)
        needed = True
        while needed:
            needed = False
            request = messages.WatchBalanceRequest(call=call)
            async with aclosing(_stream_process(process, "WatchBalance", request, name)) as replies:
                async for reply in replies:
                    if reply.WhichOneof("outcome") == "credential_needed" and not call.HasField("credential"):
                        needed = True
                        break
                    _take_push(reply, watch, name)
                    await asyncio.sleep(_BETWEEN_PUSHES)
            if needed:
                call.credential.CopyFrom(write_credential(await target.opened(self._open_credential(reference))))

    async def key_rights(self, target: Target, deadline: float) -> KeyRights:
        """See `Venues`."""
        with named_in_errors(self._way(target).address):
            return await self._key_rights(target, deadline)

    async def _key_rights(self, target: Target, deadline: float) -> KeyRights:
        plugin = target.listing.plugin
        if not plugin.own_process:
            return await self._here.key_rights(target, deadline)

        def request(call: messages.VenueCall) -> messages.CheckCredentialRequest:
            return messages.CheckCredentialRequest(call=call)

        reply = await self._ask("CheckCredential", request, target, deadline)
        try:
            return read_rights(reply.rights)
        except (ValueError, OverflowError):
            name = plugin.info.name
            raise PluginFailed(f"The plugin {name} answered with something that is not KeyRights.") from None

    async def _ask(
        self, method: str, request: Callable[[messages.VenueCall], Any], target: Target, deadline: float
    ) -> Any:
        """The process's answer. The credential is sent only if the process has no session for the account yet."""
        with Within(_hop_span(method, target.listing)) as span:
            send = _call_process if span is None else partial(_call_traced, span, self._hosts(target.listing))
            return await self._ask_by(send, method, request, target, deadline)

    def _hosts(self, listing: Listing) -> set[str]:
        """The hosts that a process may reach for this listing."""
        metadata = listing.metadata
        urls = [url for place in metadata.environments for url in place.urls.values()]
        urls += [url for name, url in self._settings.overrides.items() if name.partition(".")[0] == metadata.id]
        return {urlsplit(url).hostname or "" for url in urls}

    async def _ask_by(
        self,
        call_process: Callable[..., Awaitable[Any]],
        method: str,
        request: Callable[[messages.VenueCall], Any],
        target: Target,
        deadline: float,
    ) -> Any:
        name, reference = target.listing.plugin.info.name, target.reference
        supervisor = self._supervisor_of(name, reference.account)
        process = await supervisor.process(deadline)
        loop = asyncio.get_running_loop()
        left, way = max(0.0, deadline - loop.time()), self._way(target)
        call = write_call(reference, target.account.account_type, left, way.name)
        send = partial(call_process, supervisor, process, method, target.listing, deadline)
        reply = await send(request(call))
        if reply.WhichOneof("outcome") == "credential_needed":
            credential = await target.opened(self._open_credential(reference))
            call.credential.CopyFrom(write_credential(credential))
            call.timeout = max(0.0, deadline - loop.time())
            reply = await send(request(call))
        if isinstance(reply, messages.FetchBalanceResponse):
            read_reports(reply.reports, target.reports)
        outcome = reply.WhichOneof("outcome")
        if outcome == "fault":
            error = read_error(reply.fault, name)
            error.venue_was_asked = not reply.held_back
            raise error
        if outcome in (None, "credential_needed"):
            raise PluginFailed(f"The process of the plugin {name} answered with nothing.")
        return reply

    def _supervisor_of(self, name: str, account: Account) -> Supervisor:
        several = self._processes[name]
        text = "\0".join((account.user_id, account.exchange_id, account.environment))
        return several[zlib.crc32(text.encode()) % len(several)]

    def forget(self, account: Account) -> None:
        """See `Venues`."""
        self._here.forget(account)
        listing = self._registry.listings.get(account.exchange_id)
        if listing is None or not listing.plugin.own_process:
            return
        process = self._supervisor_of(listing.plugin.info.name, account).running
        if process is not None:
            self._tasks.start(_forget(process, account), name="forgetting a session")

    def push_figures(self) -> Iterator[tuple[str, PushFigures]]:
        """What the plugins' processes have open for pushes, with the exchange's id; one exchange may come several
        times."""
        for supervisor in self._supervisors():
            yield from supervisor.push_figures().items()

    async def configure(self) -> None:
        """Give the running processes the newer manifests."""
        await asyncio.gather(*(supervisor.configure() for supervisor in self._supervisors()))

    async def close(self) -> None:
        """End every process, and close the sessions here."""
        self._tasks.cancel()
        endings = (supervisor.close() for supervisor in self._supervisors())
        await asyncio.gather(*endings, self._tasks.wait(), return_exceptions=True)
        await self._here.close()


async def _believed(fetched: FetchedBalance, listing: Listing) -> FetchedBalance:
    """The balance of a plugin's process; checked again if the plugin is not ours."""
    if not listing.plugin.third_party:
        return fetched
    if len(fetched) <= _LARGE_BALANCE:
        return _revalidate(fetched, listing)
    return await beside_the_loop(_revalidate, fetched, listing)


async def _stream_process(
    process: PluginProcess, method: str, request: Any, name: str
) -> AsyncGenerator[messages.WatchBalanceResponse, None]:
    """The messages of the process; a failure of its connection becomes an error of ours."""
    try:
        async with aclosing(process.stream(method, request)) as replies:
            async for reply in replies:
                yield reply
        return
    except CallFailed as failure:
        code = failure.code
    # After the block: inside, the failure would be the error's context, and its frames hold the request.
    raise _without_reply(code, name)


def _without_reply(code: int, name: str) -> ServiceError:
    if code in _GONE:
        return PluginUnavailable(f"The process of the plugin {name} ended, and is started again.")
    return PluginFailed(f"The process of the plugin {name} failed ({code_name(code)}).")


def _take_push(reply: messages.WatchBalanceResponse, watch: Watch, name: str) -> None:
    """Put what a message of a plugin's process brings into the watch. Raises the error that it holds."""
    outcome, now = reply.WhichOneof("outcome"), time.monotonic()
    arrived_at = min(now, now - reply.age) if isfinite(reply.age) else now
    if outcome == "fault":
        raise read_error(reply.fault, name)
    if outcome == "changed":
        watch.put_hint(arrived_at)
    elif outcome == "balance":
        watch.put(FetchedBalance(reply.balance), arrived_at)
    else:
        raise PluginFailed(f"The process of the plugin {name} answered with nothing.")


def _end_watch(watch: Watch, listing: Listing, taking: asyncio.Task[None]) -> None:
    """The process sends nothing more: say why."""
    name = listing.plugin.info.name
    error = None if taking.cancelled() else taking.exception()
    if not isinstance(error, ServiceError):
        how = "without a reason" if error is None else f"with {type(error).__name__}"
        error = PluginFailed(f"The process of the plugin {name} ended its pushes {how}.")
    watch.end(without_origin(error))


def _answered_at(age: float, asked_at: float, now: float) -> float:
    """When the venue answered, by this process's monotonic clock, if that was `age` seconds before a reply that came
    now; never before it was asked, whatever the plugin's process says."""
    return max(asked_at, min(now, now - age)) if isfinite(age) else now


def _hop_span(method: str, listing: Listing) -> ActiveSpan | None:
    """The span of a call to a plugin's process; None if nothing is traced."""
    attributes = {"exchange_service.plugin": listing.plugin.info.name}
    return child_span(f"plugin_process.{method}", attributes, kind=CLIENT)


async def _call_traced(
    span: ActiveSpan,
    hosts: set[str],
    supervisor: Supervisor,
    process: PluginProcess,
    method: str,
    listing: Listing,
    deadline: float,
    request: Any,
) -> Any:
    """As `_call_process`; what the process says that it did for the call is put below its `span`."""
    began = time.monotonic()
    reply = await _call_process(supervisor, process, method, listing, deadline, request, span.trace_id)
    rebuild_spans(reply.spans, span, time.monotonic() - began, listing, hosts)
    return reply


async def _call_process(
    supervisor: Supervisor,
    process: PluginProcess,
    method: str,
    listing: Listing,
    deadline: float,
    request: Any,
    trace_id: str = "",
) -> Any:
    """The process's answer; a failure of its connection becomes an error of ours."""
    name = listing.plugin.info.name
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    try:
        return await process.call(method, request, left + _TIMEOUT_MARGIN, trace_id)
    except CallFailed as failure:
        code = failure.code
    # After the block, as above.
    if code != messages.FAILURE_CODE_DEADLINE_EXCEEDED:
        raise _without_reply(code, name)
    supervisor.report_timeout()
    # It did not even say that the deadline has passed: the venue is not the cause.
    raise PluginUnavailable(f"The process of the plugin {name} did not answer in time; it may block its event loop.")


def _revalidate(fetched: FetchedBalance, listing: Listing) -> FetchedBalance:
    """The balance, checked and serialized again in this process; PluginFailed if it is wrong.

    A third-party plugin may have changed the balance, or the checks themselves, in its own process.
    """
    name = listing.plugin.info.name
    try:
        if rows_of(fetched) > 2 * MAX_ROWS:
            raise ValueError("more rows than any venue has")
        balance = read_fetched(fetched)
        problem = shape_error(balance, listing.metadata)
        if problem:
            raise PluginFailed(f"The plugin {name} answered with a wrong balance: {problem.partition(': ')[0]}.")
        return fetched_balance(balance)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        raise PluginFailed(f"The plugin {name} answered with something that is not a balance.") from None


async def _forget(process: PluginProcess, account: Account) -> None:
    request = messages.ForgetAccountRequest(
        user_id=account.user_id, exchange_id=account.exchange_id, environment=account.environment
    )
    with contextlib.suppress(CallFailed, asyncio.CancelledError):
        await process.call("ForgetAccount", request, 1.0)
