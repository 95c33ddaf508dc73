"""`exchange-service doctor`: finds what is wrong with an installation, and says what to do about it."""

from __future__ import annotations

import asyncio
import os
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from exchange_service import clock
from exchange_service.app import certificate_files
from exchange_service.cache import open_cache
from exchange_service.cli.doctor_ways import check_ways
from exchange_service.cli.outcome import missing_text
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.configured import configured_hash_key, open_configured_store
from exchange_service.credentials.configured_keyset import configured_keyset_text, configured_wrapping
from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.keysets import KeysetInvalid
from exchange_service.credentials.rewriting import survey
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.credentials.vault import TokenState
from exchange_service.credentials.wrapped_keysets import key_version
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.errors import CredentialInvalid, ExchangeRetired, ServiceError
from exchange_service.grpc_server.certificates import UnusableCertificates, ending
from exchange_service.identity.methods import who_may_call
from exchange_service.model import PRODUCTION, Account
from exchange_service.open_files import limit, most_connections, raise_limit
from exchange_service.operator.v1.plugin_service_pb2 import PLUGIN_PROCESS_STATE_RUNNING
from exchange_service.plugin_host import sandbox
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_kit.credential_fields import missing_fields
from exchange_service.settings import Settings
from exchange_service.startup_checks import (
    UnsafeSettings,
    check_plugin_settings,
    check_settings,
    open_egress,
    unencrypted_warnings,
    unused_settings,
    venue_overrides,
)
from exchange_service.venues.registry import Registry

# Seconds that the running service has to say what it has loaded.
_SERVICE_TIMEOUT = 3.0
# Fewer are worth a warning: a load balancer alone may open hundreds.
_FEW_CONNECTIONS = 2000


class Severity(Enum):
    """How much a finding matters."""

    WELL = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its severity, what was checked, and a sentence about it."""

    severity: Severity
    subject: str
    text: str


async def examine(settings: Settings) -> list[Finding]:
    """Check everything. Nothing is changed, except that a table of ours that an existing database lacks is created."""
    registry = open_registry(settings)
    findings = [*_check_settings(settings, registry), *_check_engine(settings), *_check_certificates(settings)]
    findings += _check_plugins(registry)
    findings += [*_check_sandbox(settings, registry), *await _check_running_service(settings, registry)]
    findings += [*_check_open_files(), *await _check_cache(settings), *await _check_ways(settings, registry)]
    store = await open_configured_store(settings)
    try:
        file = store.missing_file()
        findings += await (_check_without_database(store, file) if file else _check_database(store))
        if not file and findings[-1].severity is not Severity.ERROR:
            findings += await _check_keys(store)
            findings += await asyncio.to_thread(_check_manager, settings)
            findings += await _check_credentials(store, registry)
            findings += await _check_tokens(settings)
    finally:
        await store.close()
        await registry.close()
    return findings


def _check_settings(settings: Settings, registry: Registry) -> list[Finding]:
    findings = []
    try:
        check_settings(settings)
        venue_overrides(settings, registry)
        check_plugin_settings(settings, registry)
        open_egress(settings, registry)
        findings += [Finding(Severity.WARNING, "settings", text) for text in unused_settings(settings, registry)]
        text = f"the service would listen on {settings.address}, {who_may_call(settings)}."
        findings.append(Finding(Severity.WELL, "settings", text))
    except UnsafeSettings as unsafe:
        findings.append(Finding(Severity.ERROR, "settings", str(unsafe)))
    if settings.hash_key is None and not settings.cache_url.startswith("memory:"):
        text = "hash_key is unset, so replicas share nothing in Redis; set the same one for all of them."
        findings.append(Finding(Severity.WARNING, "settings", text))
    findings += [Finding(Severity.WARNING, "settings", text) for text in unencrypted_warnings(settings)]
    for exchange_id in settings.venue_urls:
        text = f"venue_urls replaces the address of {exchange_id}; this is meant only for a simulator or a proxy."
        findings.append(Finding(Severity.WARNING, "settings", text))
    return findings


def _check_engine(settings: Settings) -> list[Finding]:
    if settings.engine_in_use == "grpcio":
        return [Finding(Severity.WELL, "engine", "grpcio.")]
    lacks = "it has no TLS and no limit on connections, and takes a request of any size into memory"
    if settings.loopback:
        return [Finding(Severity.WELL, "engine", f"native; {lacks}.")]
    text = f"native, and others reach {settings.address}: {lacks}. Put a proxy before it, or set engine=grpcio."
    return [Finding(Severity.WARNING, "engine", text)]


def _check_certificates(settings: Settings) -> list[Finding]:
    files = certificate_files(settings)
    if files is None:
        return []
    try:
        files.configuration()
        text = ending(files)
    except UnusableCertificates as error:
        return [Finding(Severity.ERROR, "TLS", str(error))]
    if not text:
        return [Finding(Severity.WELL, "TLS", "the certificate and its key fit, and do not end soon.")]
    return [Finding(Severity.ERROR if " ended " in text else Severity.WARNING, "TLS", text)]


def _check_open_files() -> list[Finding]:
    raise_limit()
    most = most_connections()
    if most is None or most >= _FEW_CONNECTIONS:
        return []
    text = (
        f"this user may have {limit()} files open, so at most {most} connections are taken: raise the hard limit "
        "(`ulimit -Hn`, LimitNOFILE, or --ulimit nofile) if there are more callers."
    )
    return [Finding(Severity.WARNING, "open files", text)]


def _check_plugins(registry: Registry) -> list[Finding]:
    findings = [
        Finding(Severity.WARNING if item.notice else Severity.ERROR, f"plugin {item.plugin.name}", item.for_operators)
        for item in registry.problems
    ]
    findings += [
        Finding(Severity.WELL, f"plugin {plugin.info.name}", f"runs on {runs_on.command}: {runs_on.described}.")
        for plugin in registry.plugins
        if (runs_on := plugin.interpreter) is not None
    ]
    pushing = sum(listing.metadata.capabilities.push for listing in registry.listings.values())
    text = f"{len(registry.plugins)} loaded, serving {len(registry.listings)} exchanges, of which {pushing} push."
    if not registry.listings:
        text = "no exchange is served; install a plugin, such as exchange-service-oanda."
        return [*findings, Finding(Severity.ERROR, "plugins", text)]
    return [Finding(Severity.WELL, "plugins", text), *findings]


def _check_sandbox(settings: Settings, registry: Registry) -> list[Finding]:
    """What plugins' own processes are kept to, and which of the service's secrets lie where they may read."""
    if not any(plugin.own_process for plugin in registry.plugins) and settings.plugin_sandbox != "require":
        return []
    subject, mode = "plugin processes", settings.plugin_sandbox
    text = f"kept to: {sandbox.level(mode)}."
    if mode == "require" and not sandbox.complete():
        text = f"plugin_sandbox=require, and this kernel restricts {sandbox.level('auto')}: none is started."
        return [Finding(Severity.ERROR, subject, text)]
    third_party = any(plugin.third_party for plugin in registry.plugins)
    weak = third_party and (mode == "off" or not sandbox.complete())
    if weak:
        text = f"{text[:-1]}. Code of others runs there as this user; docs/security.md says what it can reach."
    findings = [Finding(Severity.WARNING if weak else Severity.WELL, subject, text)]
    interpreters = [plugin.interpreter for plugin in registry.plugins if plugin.interpreter is not None]
    for name, path in sandbox.secret_files(settings, interpreters):
        text = f"{name} ({path}) lies in a folder of modules, which plugins' processes may read: move it elsewhere."
        findings.append(Finding(Severity.WARNING, subject, text))
    return findings


async def _check_ways(settings: Settings, registry: Registry) -> list[Finding]:
    checks = await check_ways(settings, registry)
    return [
        Finding(Severity.WELL if check.works else Severity.ERROR, f"way {check.name}", check.text) for check in checks
    ]


async def _check_running_service(settings: Settings, registry: Registry) -> list[Finding]:
    """Whether the service that runs here has loaded the plugins that are installed now; nothing if none answers."""
    if not settings.loopback or settings.tls_certificate or settings.address.endswith(":0"):
        return []
    token = os.environ.get(f"{ENVIRONMENT_PREFIX}TOKEN", "").strip()
    try:
        async with ExchangeServiceClient(settings.address, token=token, timeout=_SERVICE_TIMEOUT) as client:
            running = (await client.list_plugins()).plugins
    except ServiceError:
        return []
    installed = {plugin.info.distribution: plugin.info.version for plugin in registry.plugins}
    findings = []
    for status in running:
        plugin = status.plugin
        now = installed.get(plugin.distribution, plugin.version)
        if now != plugin.version:
            text = (
                f"the running service has loaded version {plugin.version}, and {now} is installed: restart the service."
            )
            findings.append(Finding(Severity.ERROR, f"plugin {plugin.name}", text))
        findings += [
            Finding(Severity.ERROR, f"plugin {plugin.name}", f"its process does not serve. {process.last_end}")
            for process in status.processes
            if process.last_end and process.state != PLUGIN_PROCESS_STATE_RUNNING and now == plugin.version
        ]
    return findings


async def _check_without_database(store: SqlCredentialStore, file: Path) -> list[Finding]:
    text = f"{file} does not exist yet; `exchange-service serve` and `credentials add` create it."
    findings = [Finding(Severity.WELL, "database", text)]
    keys = store.vault.keys
    if keys is None:
        text = "there is no keyset, so credentials will be stored in plain text: `exchange-service keys create FILE`."
        findings.append(Finding(Severity.WARNING, "keys", text))
    elif problem := await keys.problem():
        findings.append(Finding(Severity.ERROR, "keys", problem))
    return findings


async def _check_cache(settings: Settings) -> list[Finding]:
    async with open_cache(settings.cache_url, configured_hash_key(settings), prefix=settings.cache_prefix) as cache:
        problem, difference = await cache.problem(), cache.clock_difference
    if problem:
        text = f"{problem.rstrip('.')}. The service works without it, but asks the venues more often. Check cache_url."
        return [Finding(Severity.ERROR, "cache", text)]
    kind = "in the process" if settings.cache_url.startswith("memory:") else "Redis answers"
    if abs(difference) > clock.TOLERANCE:
        text = f"this machine's clock differs from that of Redis by {abs(difference):.0f} s: synchronise both by NTP."
        return [Finding(Severity.WARNING, "cache", text)]
    return [Finding(Severity.WELL, "cache", f"{kind}.")]


async def _check_database(store: SqlCredentialStore) -> list[Finding]:
    problem = await store.problem()
    if problem:
        return [Finding(Severity.ERROR, "database", f"{problem.rstrip('.')}. Check database_url.")]
    warnings = [Finding(Severity.WARNING, "database", text) for text in await store.warnings()]
    return [*warnings, Finding(Severity.WELL, "database", "it answers, and the table exists.")]


async def _check_keys(store: SqlCredentialStore) -> list[Finding]:
    """Whether credentials are sealed, and whether the keys open them."""
    problems = [Finding(Severity.ERROR, "keys", text) for text in (await check_keys(store)).problems]
    if problems:
        return problems
    counts, vault = await survey(store), store.vault
    if vault.keys is None:
        advice = "`exchange-service keys create FILE`, set keyset_file, then `exchange-service credentials seal`"
        text = f"there is no keyset, so credentials are stored in plain text ({counts.plain_rows} now): {advice}."
        return [Finding(Severity.WARNING, "keys", text)]
    primary = await vault.keys.primary()
    sealed, older = counts.values_by_key.total(), counts.values_by_key.total() - counts.values_by_key[primary]
    findings = [Finding(Severity.WELL, "keys", f"sealed values: {sealed}; the keys open them.")]
    if older:
        text = f"values sealed with a key that is not the primary: {older}; `exchange-service credentials rewrap`."
        findings.append(Finding(Severity.WARNING, "keys", text))
    if counts.plain_rows:
        severity = Severity.WARNING if vault.allow_plaintext else Severity.ERROR
        refused = "" if vault.allow_plaintext else ", refused because allow_plaintext is false"
        text = f"credentials in plain text{refused}: {counts.plain_rows}; `exchange-service credentials seal --all`."
        findings.append(Finding(severity, "keys", text))
    return findings


def _check_manager(settings: Settings) -> list[Finding]:
    """What the manager of a wrapped keyset says: whether the keyset is wrapped with the newest version of its key, and
    how long our token is valid. That it opens the keyset was seen before."""
    key, subject = configured_wrapping(settings), "keyset_key"
    if key is None:
        return []
    findings = []
    try:
        used, newest = key_version(configured_keyset_text(settings) or ""), key.newest_version()
        if newest is not None and used != f"v{newest}":
            text = f"the keyset is wrapped with {used} of {key.name}, and v{newest} is there: `keys rewrap`."
            findings.append(Finding(Severity.WARNING, subject, text))
        token = key.look_up_token() if key.access.renews_token else TokenState(None)
        if token.seconds is not None and not token.renewable:
            text = f"VAULT_TOKEN ends in {token.seconds:.0f} s and cannot be renewed: rotation fails from then on."
            findings.append(Finding(Severity.WARNING, subject, text))
    except KeysetInvalid as invalid:
        return [Finding(Severity.ERROR, subject, str(invalid))]
    return findings or [Finding(Severity.WELL, subject, f"{key.name} opens the keyset.")]


async def _check_tokens(settings: Settings) -> list[Finding]:
    """Who else may write to the table of service tokens, and whether each of its rows is signed."""
    if not settings.service_tokens:
        return []
    from exchange_service.identity.token_signatures import KeyUnusable, configured_signatures, key_warning
    from exchange_service.identity.token_store import TokenStore

    store = TokenStore(settings.database_url)
    try:
        signatures = configured_signatures(settings, make_key=False)
        warnings = [*await store.warnings(), *filter(None, [key_warning(settings)])]
        findings = [Finding(Severity.WARNING, "tokens", text) for text in warnings]
        tokens = [token for token in await store.all() if token.revoked is None]
    except KeyUnusable as unusable:
        return [Finding(Severity.ERROR, "tokens", str(unusable))]
    except ServiceError as error:
        return [Finding(Severity.ERROR, "tokens", error.text)]
    finally:
        await store.close()
    unsigned = [token.id for token in tokens if not signatures.fits(token)]
    if unsigned:
        text = (
            f"not signed with this service's key, and refused: {', '.join(unsigned[:10])}. If you made them, "
            "`exchange-service tokens sign`; if not, somebody else writes to the table."
        )
        return [*findings, Finding(Severity.ERROR, "tokens", text)]
    return [*findings, Finding(Severity.WELL, "tokens", f"{len(tokens)} in use, each signed.")]


async def _check_credentials(store: SqlCredentialStore, registry: Registry) -> list[Finding]:
    accounts = await store.all_accounts()
    findings = []
    for stored in accounts:
        subject = f"credential {stored.user_id} {stored.exchange_id} {stored.environment}"
        text = await _credential_problem(store, registry, stored)
        if text:
            retired = stored.exchange_id.strip().lower() in registry.retired
            findings.append(Finding(Severity.WARNING if retired else Severity.ERROR, subject, text))
    if not findings:
        findings.append(Finding(Severity.WELL, "credentials", f"{len(accounts)} stored, each with its fields."))
    return findings


async def _credential_problem(store: SqlCredentialStore, registry: Registry, stored: Account) -> str:
    try:
        account, listing = registry.account(stored.user_id, stored.exchange_id, stored.environment)
        reference = await store.find(account, aliases=listing.metadata.environment_aliases(account.environment))
        if reference is None:
            return "the row is not found by its own user, exchange and environment; check its environment."
        return missing_text(missing_fields(listing.metadata, await store.open(reference)))
    except ExchangeRetired as retired:
        return f"{retired.message} Remove it: {_removal(stored)}."
    except CredentialInvalid as invalid:
        return invalid.text
    except ServiceError as error:
        return error.text


def _removal(stored: Account) -> str:
    """The command that removes a stored credential."""
    words = ("credentials", "remove", "-u", stored.user_id, "-e", stored.exchange_id)
    environment = () if stored.environment == PRODUCTION else ("--environment", stored.environment)
    return f"`exchange-service {shlex.join((*words, *environment))}`"
