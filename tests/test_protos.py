"""The proto files: what other languages need is there, and Google's files are Google's."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from exchange_service.accounts.v1 import account_service_pb2
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.plugin_host.v1 import plugin_host_pb2
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_pb2, exchange_service_pb2

PROTOS = Path(__file__).parent.parent / "protos"
OURS = [
    module.DESCRIPTOR
    for module in (
        *(balance_pb2, error_reason_pb2, exchange_pb2, exchange_service_pb2),
        *(account_service_pb2, plugin_service_pb2, plugin_host_pb2),
    )
]
GOOGLES = ("status.proto", "code.proto", "error_details.proto")


def test_every_proto_file_is_one_of_ours_or_of_googles() -> None:
    files = {str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")}
    assert files == {file.name for file in OURS} | {f"google/rpc/{name}" for name in GOOGLES}


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_each_of_ours_names_its_go_and_java_packages(file: FileDescriptor) -> None:
    folder = file.name.rpartition("/")[0]
    options = file.GetOptions()
    path, _, alias = options.go_package.partition(";")
    assert path == f"exchange-service/exchangeservice/gen/{folder}"
    assert re.fullmatch(r"[a-z]+v1", alias)
    assert (options.java_package, options.java_multiple_files) == (file.package, True)
    assert file.package == folder.replace("/", ".")


def test_each_packages_go_alias_is_its_own() -> None:
    aliases = {(file.package, file.GetOptions().go_package.partition(";")[2]) for file in OURS}
    assert len(aliases) == len({package for package, _ in aliases}) == len({alias for _, alias in aliases})


def test_the_services_have_these_methods_and_no_others() -> None:
    methods = {
        service.full_name: [method.name for method in service.methods]
        for file in OURS
        for service in file.services_by_name.values()
    }
    assert methods["exchange_service.v1.ExchangeService"] == ["ListExchanges", "GetBalance", "StreamBalances"]
    assert methods["exchange_service.operator.v1.PluginService"] == ["ListPlugins"]
    managing = ["ListAccounts", "ConnectAccount", "CheckAccount", "RemoveAccount"]
    assert methods["exchange_service.accounts.v1.AccountService"] == managing
    assert set(methods) - set(list(methods)[:3]) == {"exchange_service.plugin_host.v1.PluginHostService"}


@pytest.mark.parametrize("name", GOOGLES)
def test_googles_files_are_unchanged(name: str) -> None:
    distribution = importlib.metadata.distribution("googleapis-common-protos")
    original = Path(str(distribution.locate_file(f"google/rpc/{name}"))).read_bytes()
    assert (PROTOS / "google" / "rpc" / name).read_bytes() == original


def test_googles_licence_stands_beside_them() -> None:
    licence = (PROTOS / "google" / "rpc" / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
