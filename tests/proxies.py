"""nginx and Envoy before replicas, with the files of deploy/: ports and paths in them are replaced, nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.identities import Authority

DEPLOY = Path(__file__).parent.parent / "deploy"
NGINX = os.environ.get("EXCHANGE_SERVICE_TEST_NGINX") or shutil.which("nginx")
ENVOY = os.environ.get("EXCHANGE_SERVICE_TEST_ENVOY") or shutil.which("envoy")
# nginx's file is one of many that a main file includes.
NGINX_MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    include {folder}/exchange-service.conf;
}}
"""
# The ways to two replicas.
WAYS = [
    "round robin",
    pytest.param("nginx", marks=pytest.mark.skipif(NGINX is None, reason="there is no nginx here; see `make nginx`")),
    pytest.param("envoy", marks=pytest.mark.skipif(ENVOY is None, reason="there is no Envoy here; see `make envoy`")),
]


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass(frozen=True)
class Proxy:
    """Where a proxy listens: for callers on this machine, and over TLS with `authority`'s certificate."""

    address: str
    tls_address: str
    authority: Authority

    def credentials(self) -> grpc.ChannelCredentials:
        """What trusts it over TLS."""
        return self.authority.channel_credentials()


def substitute(text: str, *replacements: tuple[str, str]) -> str:
    """The text with other ports and paths; each must be there."""
    for before, after in replacements:
        assert before in text, before
        text = text.replace(before, after)
    return text


def nginx_command(folder: Path, plain: str, tls: str, replicas: Sequence[str]) -> list[str]:
    listen = (
        ("127.0.0.1:50050", plain),
        ("listen 443 ", f"listen {tls} "),
        ("/etc/nginx/exchange-service", str(folder)),
    )
    servers = zip(("127.0.0.1:50051", "127.0.0.1:50052"), replicas, strict=True)
    text = substitute((DEPLOY / "nginx" / "exchange-service.conf").read_text(), *listen, *servers)
    (folder / "exchange-service.conf").write_text(text)
    (folder / "nginx.conf").write_text(NGINX_MAIN.format(folder=folder))
    return [str(NGINX), "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def envoy_command(folder: Path, plain: str, tls: str, replicas: Sequence[str]) -> list[str]:
    def port(address: str) -> str:
        return address.rpartition(":")[2]

    listen = (
        ("port_value: 50050}", f"port_value: {port(plain)}}}"),
        ("{address: 0.0.0.0, port_value: 443}", f"{{address: 127.0.0.1, port_value: {port(tls)}}}"),
        ("/etc/envoy/exchange-service", str(folder)),
    )
    first, second = map(port, replicas)
    servers = (("port_value: 50051}", f"port_value: {first}}}"), ("port_value: 50052}", f"port_value: {second}}}"))
    config = folder / "envoy.yaml"
    config.write_text(substitute((DEPLOY / "envoy" / "exchange-service.yaml").read_text(), *listen, *servers))
    check = subprocess.run([str(ENVOY), "--mode", "validate", "-c", str(config)], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    return [str(ENVOY), "-c", str(config), "--log-path", str(folder / "envoy.log"), "--use-dynamic-base-id"]


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until it takes connections."""
    host, _, port = address.rpartition(":")
    for _ in range(200):
        assert process.poll() is None, "the proxy has ended"
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {address}")


@contextmanager
def proxy(way: str, folder: Path, replicas: Sequence[str]) -> Iterator[Proxy]:
    """nginx or Envoy before these replicas, with the file of deploy/ and other ports, once it listens."""
    plain, tls = (f"127.0.0.1:{port}" for port in free_ports(2))
    authority = Authority.create(folder)
    for source, name in zip(authority.sign("proxy"), ("tls.crt", "tls.key"), strict=True):
        shutil.copy(source, folder / name)
    command = (nginx_command if way == "nginx" else envoy_command)(folder, plain, tls, replicas)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for address in (plain, tls):
            _wait_for(address, process)
        yield Proxy(plain, tls, authority)
    finally:
        process.terminate()
        process.wait()
