"""The listings of every CCXT exchange, from a snapshot that is read without importing CCXT.

The snapshot belongs to one version of CCXT. If another version is installed, the snapshot is served with a note until a
child process has built a new one. Importing CCXT here would block the event loop for seconds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

from exchange_service.plugin_api import (
    PRODUCTION,
    SANDBOX,
    Capabilities,
    CredentialField,
    Environment,
    ExchangeMetadata,
    Manifest,
    PushLimits,
    beside_the_loop,
)
from exchange_service_ccxt_generic.key_forms import KEYS_IN_LINES
from exchange_service_ccxt_generic.limits import answer_limit_of, limits_of, push_limits_of
from exchange_service_ccxt_generic.pushed import why_not_pushed
from exchange_service_ccxt_generic.retired import Retired, is_newer, renewed, shipped_retired

# Seconds. Building takes one to three, and several times that on a busy machine.
BUILD_TIMEOUT = 60.0
# Seconds until a child process is killed that is not waited for any more, at most.
_BETWEEN_LOOKS = 0.1
# The names that venues use for their test hosts.
_SANDBOX_ALIASES = ("testnet", "demo", "practice", "paper")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The listings of one CCXT version, as plain JSON data."""

    ccxt_version: str
    exchanges: tuple[Mapping[str, Any], ...]

    @staticmethod
    def from_json(text: str | bytes) -> Snapshot:
        """The snapshot that `to_json` wrote. Raises ValueError or KeyError for anything else."""
        data = json.loads(text)
        return Snapshot(str(data["ccxt_version"]), tuple(data["exchanges"]))

    def to_json(self) -> str:
        """The snapshot as JSON, with one exchange in each line so that a diff shows what changed."""
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in self.exchanges)
        return f'{{"ccxt_version": {json.dumps(self.ccxt_version)}, "exchanges": [\n{lines}\n]}}\n'

    def manifest(self, *notes: str, retired: Iterable[Retired] = ()) -> Manifest:
        """The listings as the host wants them."""
        gone = tuple(entry.exchange() for entry in retired)
        listings = tuple(listing(entry) for entry in self.exchanges)
        return Manifest(api_version=1, exchanges=listings, notes=notes, retired=gone)


def shipped() -> Snapshot:
    """The snapshot in this package."""
    return Snapshot.from_json(_shipped_file().read_bytes())


def shipped_version() -> str:
    """The CCXT version of the snapshot in this package, from its first line: all listings take megabytes to read."""
    with _shipped_file().open("rb") as file:
        return Snapshot.from_json(file.readline().rstrip() + b"]}").ccxt_version


def _shipped_file() -> Traversable:
    return resources.files(__package__).joinpath("snapshot.json")


def installed_version() -> str:
    """The version of the installed CCXT, read without importing it; empty if it is not installed."""
    try:
        return metadata.version("ccxt")
    except metadata.PackageNotFoundError:
        return ""


def shipped_manifest() -> Manifest:
    """The shipped listings, with a note if another version of CCXT is installed."""
    snapshot, installed, retired = shipped(), installed_version(), shipped_retired()
    if installed == snapshot.ccxt_version:
        return snapshot.manifest(retired=retired)
    return snapshot.manifest(
        f"The listings are of CCXT {snapshot.ccxt_version}, and {installed or 'none'} is installed: "
        "a child process is building those of the installed version.",
        retired=retired,
    )


async def newer_manifest(timeout: float = BUILD_TIMEOUT) -> Manifest | None:
    """The listings of the installed CCXT, built in a child process.

    None if the shipped listings are of this version, or if building fails or takes longer than `timeout` seconds.
    """
    if not await beside_the_loop(_is_outdated):
        return None
    try:
        async with asyncio.timeout(timeout):
            return await beside_the_loop(_manifest_of, await _build_in_child())
    except (TimeoutError, OSError, ValueError, KeyError, TypeError):
        return None


def _is_outdated() -> bool:
    """Whether the installed CCXT is of another version than the shipped listings."""
    installed = installed_version()
    return bool(installed) and installed != shipped_version()


def _manifest_of(snapshot: bytes) -> Manifest:
    """The listings of the installed CCXT, and what it has no more."""
    newer, before, retired = Snapshot.from_json(snapshot), shipped(), shipped_retired()
    versions = (before.ccxt_version, newer.ccxt_version)
    # An older CCXT lacks what it did not have yet.
    lost = before.exchanges if is_newer(newer.ccxt_version, before.ccxt_version) else ()
    return newer.manifest(retired=renewed(retired, lost, newer.exchanges, versions, None))


async def _build_in_child() -> bytes:
    stop = threading.Event()
    try:
        # In a thread: to start a process, uvloop would fork, and stop for as long as the service's memory is large.
        return await asyncio.to_thread(_build, stop)
    finally:
        stop.set()


def _build(stop: threading.Event) -> bytes:
    """What the child process writes; it is killed once `stop` is set."""
    null, command = subprocess.DEVNULL, (sys.executable, "-W", "ignore", "-m", f"{__package__}.snapshot")
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as child:  # noqa: S603 - ours
        while True:
            try:
                return child.communicate(timeout=_BETWEEN_LOOKS)[0]
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    child.kill()


def _credential_field(exchange_id: str, field: Mapping[str, Any]) -> CredentialField:
    kinds = KEYS_IN_LINES.get(exchange_id, ()) if field["name"] == "api_secret" else ()
    # A passphrase is its user's own choice, so whatever stands in it stays.
    return CredentialField(**field, private_keys=None if field["name"] == "passphrase" else kinds)


def listing(entry: Mapping[str, Any]) -> ExchangeMetadata:
    """One entry of the snapshot as a listing."""
    sandbox: Mapping[str, str] | None = entry["sandbox"]
    environments = [Environment(PRODUCTION, entry["production"], aliases=("live",))]
    if sandbox:
        environments.append(Environment(SANDBOX, sandbox, aliases=_SANDBOX_ALIASES))
    fields = tuple(_credential_field(entry["id"], field) for field in entry["credential_fields"])
    reason: str = entry["unsupported_reason"]
    pushes = not reason and not why_not_pushed(entry["id"])
    return ExchangeMetadata(
        id=entry["id"],
        name=entry["name"],
        asset_class=entry["asset_class"],
        asset_types=entry["asset_types"],
        market_hours="24/7 Trading",
        environments=tuple(environments),
        credential_fields=fields,
        icon="i-simple-icons-bitcoin",
        logo=entry["logo"],
        color_class="bg-gray-500/20 text-gray-500",
        requires_passphrase=entry["requires_passphrase"],
        requires_account_id=entry["requires_account_id"],
        instructions=entry["instructions"],
        account_types=tuple(entry["account_types"]),
        default_account_types=tuple(entry["account_types"][:1]),
        capabilities=Capabilities(
            balance=not reason,
            push=pushes,
            sandbox=bool(sandbox),
            several_accounts=len(entry["account_types"]) > 1,
            read_without_secret=not any(field.secret for field in fields),
        ),
        documentation_url=entry["documentation_url"],
        credential_url=entry["credential_url"],
        countries=tuple(entry["countries"]),
        is_ccxt=True,
        unsupported_reason=reason,
        limits=limits_of(entry["id"], entry["rate_limit"], entry["account_types"]),
        push=push_limits_of(entry["id"]) if pushes else PushLimits(),
        answer_limit=answer_limit_of(entry["id"]),
    )
