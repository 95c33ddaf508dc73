"""The public import paths, and what each exports: other people's plugins, clients and programs depend on them.

A name may be added here. To remove or rename one breaks somebody's program.
"""

from __future__ import annotations

import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

# What each public module exports: its `__all__`, or what it defines itself.
EXPORTS: dict[str, set[str]] = {
    "exchange_service.plugin_api": {
        "ALL_ACCOUNT_TYPES",
        "ANSWER_LIMIT",
        "API_VERSION",
        "ASSET_CLASSES",
        "CASH",
        "HOLDING",
        "Account",
        "AccountUnknown",
        "AddressNotAllowed",
        "AssetBalance",
        "Balance",
        "Capabilities",
        "Changed",
        "ClockSkew",
        "Credential",
        "CredentialField",
        "CredentialInvalid",
        "CredentialRejected",
        "Environment",
        "ExchangeMetadata",
        "FeatureNotEnabled",
        "Http",
        "KEY_KINDS",
        "KeyRights",
        "Manifest",
        "NotSupported",
        "PRODUCTION",
        "PermissionMissing",
        "PluginSetting",
        "PrivateKey",
        "PushLanguage",
        "PushLimits",
        "RateLimit",
        "RegionRestricted",
        "RequestRefused",
        "Response",
        "RetiredExchange",
        "SANDBOX",
        "SECRET_FIELDS",
        "Secret",
        "Socket",
        "State",
        "Subscription",
        "Summary",
        "VenueAccount",
        "VenueCall",
        "VenueError",
        "VenueMaintenance",
        "VenueMalformed",
        "VenueRateLimited",
        "VenueReports",
        "VenueTimeout",
        "VenueUnavailable",
        "amount",
        "as_list",
        "as_object",
        "beside_the_loop",
        "check_unique",
        "clean_text",
        "combined_summary",
        "exact_difference",
        "exact_sum",
        "gather_accounts",
        "gateway_error",
        "hookimpl",
        "hookspec",
        "iso_time",
        "milliseconds",
        "parse_amount",
        "parse_json",
        "private_key",
        "raise_unexpected_status",
        "read_account_list",
        "read_metadata",
        "require_account",
        "require_same_accounts",
        "required_amount",
        "required_iso_time",
        "required_milliseconds",
        "required_seconds",
        "required_text",
        "retry_after",
        "seconds",
        "split_accounts",
        "subscribed",
        "text",
        "wallet_address",
    },
    "exchange_service.testing": {
        "DemoVenue",
        "Fault",
        "LoopbackVenue",
        "RecordedAnswer",
        "RecordedRequest",
        "RecordedVenue",
        "Recording",
        "StoredRow",
        "SITUATIONS",
        "TROUBLES",
        "bearer_token",
        "json_object",
        "recorded",
        "show_situation",
        "venue_call",
    },
    "exchange_service.testing.contract": {"HEAVY_LIBRARIES", "NONSENSE", "ListingContract", "PluginContract"},
    "exchange_service.testing.venue": {
        "DemoVenue",
        "Fault",
        "LoopbackVenue",
        "RecordedRequest",
    },
    "exchange_service.client": {
        "AsyncClient",
        "Client",
        "ExchangeServiceClient",
        "Reconnecting",
        "ServiceUnreachable",
        "is_loopback",
    },
    "exchange_service.pytest_plugin": {
        "pytest_addoption",
        "pytest_configure",
        "pytest_terminal_summary",
    },
    "exchange_service.errors": {
        "AccountUnknown",
        "AddressNotAllowed",
        "CallerRateLimited",
        "CallerUnknown",
        "ClockSkew",
        "CredentialInvalid",
        "CredentialMissing",
        "CredentialRejected",
        "CredentialUnreadable",
        "DeadlinePassed",
        "ExchangeRetired",
        "ExchangeUnknown",
        "FeatureNotEnabled",
        "FieldInvalid",
        "HostError",
        "NotSupported",
        "PermissionMissing",
        "PluginFailed",
        "PluginUnavailable",
        "RegionRestricted",
        "RequestError",
        "RequestRefused",
        "ServiceError",
        "ServiceFailed",
        "ServiceOverloaded",
        "ShuttingDown",
        "StoreUnavailable",
        "StreamLifetimeReached",
        "SubscriberTooSlow",
        "UserForbidden",
        "VenueError",
        "VenueMaintenance",
        "VenueMalformed",
        "VenueRateLimited",
        "VenueTimeout",
        "VenueUnavailable",
        "from_reason",
        "leaves",
    },
    "exchange_service.model": {
        "Account",
        "AssetBalance",
        "Balance",
        "Capabilities",
        "Changed",
        "Credential",
        "CredentialField",
        "Environment",
        "ExchangeMetadata",
        "KeyRights",
        "Manifest",
        "ModelError",
        "PluginInfo",
        "PluginSetting",
        "PushLimits",
        "RateLimit",
        "RetiredExchange",
        "Secret",
        "Summary",
        "Trouble",
        "VenueAccount",
        "VenueReports",
        "WrongType",
        "WrongValue",
    },
}
# Single names within modules that are otherwise our own.
SINGLE_NAMES = (
    ("exchange_service.cli", "main"),
    ("exchange_service.credentials.keysets", "read_keyset"),
    ("exchange_service.credentials.sealing", "open_value"),
)
# The messages and stubs that a client of the Python package may import.
GENERATED = {
    "exchange_service.accounts.v1.account_service_pb2": ("ConnectAccountRequest", "ListAccountsRequest"),
    "exchange_service.v1.exchange_service_pb2": ("GetBalanceRequest", "ListExchangesRequest", "StreamBalancesRequest"),
    "exchange_service.v1.exchange_service_pb2_grpc": ("ExchangeServiceStub",),
    "exchange_service.v1.balance_pb2": ("Balance", "Freshness", "AccountFault"),
    "exchange_service.v1.exchange_pb2": ("Exchange",),
    "exchange_service.v1.error_reason_pb2": ("ErrorReason",),
    "exchange_service.operator.v1.plugin_service_pb2": ("ListPluginsRequest", "ListPluginsResponse"),
    "exchange_service.operator.v1.plugin_service_pb2_grpc": ("PluginServiceStub",),
}


def exported(module: ModuleType) -> set[str]:
    """The names that the module offers."""
    declared = getattr(module, "__all__", None)
    if declared is not None:
        return set(declared)
    defined = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_public_module_exports_what_is_pinned_here(name: str) -> None:
    assert exported(import_module(name)) == EXPORTS[name]


@pytest.mark.parametrize(("module", "name"), SINGLE_NAMES)
def test_a_public_name_of_a_private_module_stays_where_it_is(module: str, name: str) -> None:
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("module", GENERATED)
def test_generated_messages_and_stubs_stay_where_they_are(module: str) -> None:
    assert all(hasattr(import_module(module), name) for name in GENERATED[module])


def test_the_contract_suite_is_inherited_from_its_old_path() -> None:
    assert import_module("exchange_service.testing.contract").PluginContract


def test_the_entry_point_groups_keep_their_names() -> None:
    assert {point.name for point in entry_points(group="exchange_service")} >= {"oanda", "ccxt_generic"}
    assert {point.name for point in entry_points(group="exchange_service.simulators")} >= {"oanda"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"exchange-service": "exchange_service.cli:main"}
    kit = tomllib.loads((ROOT / "packages" / "exchange-service-plugin" / "pyproject.toml").read_text())["project"]
    assert kit["entry-points"]["pytest11"] == {"exchange_service": "exchange_service.pytest_plugin"}
