"""What a plugin's process can reach: by Linux's Landlock, which needs no rights of its own and holds for all that the
process starts.

The list is made here; the reaper hands it to the kernel before the plugin's program begins. A process may read the
interpreter, the installed packages, the system's libraries and a few of its settings, and write in its own folder. It
may connect to its venues' ports, and listen on none of its choice. It may signal its own processes only. For authors of
plugins it is in docs/plugins.md, and what it protects in docs/security.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from exchange_service.model import Manifest
from exchange_service.plugin_host.describe_environment import editable_projects, trusted_certificates
from exchange_service.venues.egress import Way
from exchange_service.venues.interpreters import Interpreter

if TYPE_CHECKING:
    # A process that only gives its manifest has no settings.
    from exchange_service.settings import Settings

Mode = Literal["auto", "require", "off"]

# The call that tells the version of Landlock's ABI, and the versions from which ports can be restricted, and signals
# with abstract sockets.
_CREATE_RULESET, _TELL_VERSION = 444, 1
_PORTS_SINCE, _SIGNALS_SINCE = 4, 6
# Rights of Landlock.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE = 1 << 14
_BIND, _CONNECT = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
# How many rights over files a version knows; later ones know no more.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FILE_RIGHTS = 16

# Programs and libraries, of whatever layout. Not /usr as a whole: an operator's secrets may lie in /usr/local/etc.
_SYSTEM = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64"),
    *(f"/usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "share")),
    *(f"/usr/local/{name}" for name in ("bin", "lib", "lib64", "share")),
    *("/nix/store", "/gnu/store"),
)
# How names are looked up, which certificates are trusted (and no private key: not /etc/ssl as a whole), the time, the
# names of users, and what libraries ask of the machine.
_SETTINGS = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services"),
    *("/etc/protocols", "/run/systemd/resolve", "/run/NetworkManager/resolv.conf", "/run/resolvconf"),
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/crypto-policies"),
    *("/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf"),
    *("/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/os-release", "/etc/mime.types"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives"),
    *("/etc/locale.alias", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/proc/sys/net/core/somaxconn"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/uptime"),
    *("/dev/random", "/dev/urandom"),
)
# Below an interpreter's folder.
_OF_INTERPRETER = ("bin", "lib", "lib64", "share", "ssl", "pyvenv.cfg")
# How deep below a folder of modules a package may begin that is divided among distributions.
_NAMESPACE_DEPTH = 3
_MODULES = (*all_suffixes(), ".pth")
_RECORDS = (".dist-info", ".egg-info", ".libs", "__pycache__")
_DNS, _HTTPS = 53, 443
_PORTS = {"http": 80, "ws": 80, "https": _HTTPS, "wss": _HTTPS}


def landlock_abi() -> int:
    """The version of the kernel's Landlock; 0 if it has none, or does not let this process use it."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _TELL_VERSION)))
    except (OSError, AttributeError):
        return 0


def complete() -> bool:
    """Whether this kernel restricts all three: files, ports and signals."""
    return landlock_abi() >= _SIGNALS_SINCE


def level(mode: Mode) -> str:
    """What is restricted on this machine with this setting, for operators."""
    abi = landlock_abi()
    if mode == "off":
        return "none: plugin_sandbox is off"
    if not abi:
        return "none: the kernel has no Landlock, or does not let this process use it"
    parts = ["files", "network ports" if abi >= _PORTS_SINCE else "", "signals" if abi >= _SIGNALS_SINCE else ""]
    return f"{', '.join(filter(None, parts))} (Landlock ABI {abi})"


def reach(folder: Path, ports: Iterable[int], interpreter: Interpreter | None = None) -> dict[str, list[Any]] | None:
    """What the reaper hands to the kernel: all that a process may reach whose own folder this is. `interpreter`: what
    runs it, if that is not the service's own.

    None if the kernel can restrict nothing.
    """
    abi = landlock_abi()
    if not abi:
        return None
    files = (1 << _FILE_RIGHTS.get(abi, _MOST_FILE_RIGHTS)) - 1
    read, write = (_READ_FILE | _READ_DIR | _EXECUTE, _READ_FILE | _EXECUTE), _READ_FILE | _WRITE_FILE
    paths: list[list[Any]] = [[path, *read] for path in readable(interpreter)]
    # Their names are searched for modules; what they hold is not read.
    paths += [[path, _READ_DIR, 0] for path in searched(interpreter)]
    paths += [[path, 0, write] for path in ("/dev/null", "/dev/zero", "/dev/full")]
    paths.append([str(folder), files & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK), 0])
    restricted, allowed = [files], []
    if abi >= _PORTS_SINCE:
        restricted.append(_BIND | _CONNECT)
        # Port 0 is one of the system's choice: libraries take one to see which protocols there are.
        allowed = [[0, _BIND], *([port, _CONNECT] for port in sorted(set(ports)))]
    if abi >= _SIGNALS_SINCE:
        restricted.append(_ABSTRACT_SOCKETS | _SIGNALS)
    return {"restricted": restricted, "paths": paths, "ports": allowed}


def lookup_files() -> tuple[tuple[int, int], ...]:
    """Which files the names of hosts are looked up by now.

    A process may not read a file that took such a name after its start: permission is given for files, not for names.
    """
    there = []
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        # In other folders, such as the resolver's own, every file may be read.
        if os.path.realpath(path).startswith("/etc/"):
            with contextlib.suppress(OSError):
                found = os.stat(path)
                there.append((found.st_dev, found.st_ino))
    return tuple(there)


class Reach:
    """What a process was given when it began, and the ports that it has come to need since."""

    def __init__(self, ports: frozenset[int]) -> None:
        self.needed = ports
        self._ports = ports
        self._looked_up_by = lookup_files()

    def outgrown(self) -> str:
        """Why it reaches less than a new process would, a sentence; empty if it does not."""
        if not self.needed <= self._ports:
            return "Its newer manifest names ports to which it could not connect."
        if lookup_files() != self._looked_up_by:
            return "The files by which names of hosts are looked up were replaced, and it could not read them."
        return ""


def venue_ports(manifest: Manifest, overrides: Mapping[str, str], withheld: Collection[int]) -> frozenset[int]:
    """The ports to which a plugin connects: HTTPS, those of its manifest's addresses, and those of the operator's.

    A manifest does not open one of `withheld`, which are the service's own: its Redis, its database, itself.
    """
    named = (url for metadata in manifest.exchanges for place in metadata.environments for url in place.urls.values())
    ports = {port for port in map(_port, named) if port not in withheld}
    return frozenset({_DNS, _HTTPS, *ports, *map(_port, overrides.values())} - {0})


def ports_by(ways: Collection[Way], ports: frozenset[int]) -> frozenset[int]:
    """The ports that a process needs whose accounts take these ways. Where all lead through proxies, those of the
    proxies alone: then no code of the plugin reaches a venue by another way."""
    proxies = {way.proxy.port for way in ways if way.proxy is not None}
    only_proxies = bool(ways) and all(way.proxy is not None for way in ways)
    return frozenset({_DNS, *proxies}) if only_proxies else ports | proxies


def _port(url: str) -> int:
    """The port of an address; 0 if it has none."""
    try:
        parts = urlsplit(url)
        return parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return 0


def own_ports(settings: Settings) -> frozenset[int]:
    """The ports on which the service listens, and those of its Redis and its database."""
    defaults = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432}
    ports = set()
    for url in (settings.cache_url, settings.database_url):
        scheme = urlsplit(url).scheme.partition("+")[0]
        ports.add(_port(url) or defaults.get(scheme, 0))
    # Every address that it listens on; the one that venues see has no port.
    for name in type(settings).model_fields:
        if name.endswith("address") and name != "outgoing_address":
            port = str(getattr(settings, name) or "").rpartition(":")[2]
            ports.add(int(port) if port.isdigit() else 0)
    return frozenset(ports - {0})


def secret_files(settings: Settings, interpreters: Iterable[Interpreter] = ()) -> list[tuple[str, Path]]:
    """The settings whose file a plugin's process may read all the same, because of where it lies, with the file.
    `interpreters`: those of plugins that run in environments of their own."""
    database = settings.database_url.partition(":///")[2] if settings.database_url.startswith("sqlite") else ""
    files = {
        "database_url": Path(database) if database else None,
        "keyset_file": settings.keyset_file,
        "VAULT_TOKEN_FILE": _named_file("VAULT_TOKEN_FILE") if settings.keyset_key else None,
        "VAULT_SECRET_ID_FILE": _named_file("VAULT_SECRET_ID_FILE") if settings.keyset_key else None,
        "tls_key": settings.tls_key,
    }
    paths = (path for interpreter in (None, *interpreters) for path in readable(interpreter))
    open_to_all = [Path(path).resolve() for path in paths]
    return [
        (name, file)
        for name, file in files.items()
        if file is not None and any(file.resolve().is_relative_to(path) for path in open_to_all)
    ]


def _named_file(variable: str) -> Path | None:
    path = os.environ.get(variable)
    return Path(path) if path else None


def readable(interpreter: Interpreter | None = None) -> tuple[str, ...]:
    """The files and folders that plugins' processes on this interpreter may read; None: the service's."""
    runs_on = interpreter or _own_interpreter()
    named = [os.environ.get(name, "") for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    paths = [*_SYSTEM, *_SETTINGS, *named, *libraries, *runs_on.certificates]
    for prefix in {*runs_on.prefixes, *runs_on.base_prefixes}:
        paths += [os.path.join(prefix, name) for name in _OF_INTERPRETER]
    paths.append(os.path.realpath(runs_on.command))
    for folder in searched(interpreter):
        paths += map(str, _modules(Path(folder)))
    return tuple(dict.fromkeys(path for path in paths if path))


def searched(interpreter: Interpreter | None = None) -> tuple[str, ...]:
    """The folders outside of the interpreter's in which modules are searched for, editable projects among them."""
    runs_on = interpreter or _own_interpreter()
    inside = tuple(os.path.join(prefix, "") for prefix in {*runs_on.prefixes[:1], *runs_on.base_prefixes[:1]})
    installed = ("lib", "lib64")
    own = tuple(os.path.join(prefix, name, "") for prefix in inside for name in installed)
    folders = (*runs_on.modules, *runs_on.projects)
    return tuple(dict.fromkeys(folder for folder in folders if folder and not f"{folder}/".startswith(own)))


def _own_interpreter() -> Interpreter:
    """The one that runs here."""
    return Interpreter(
        command=sys.executable,
        python=platform.python_version(),
        libraries=(),
        prefixes=(sys.prefix, sys.exec_prefix),
        base_prefixes=(sys.base_prefix, sys.base_exec_prefix),
        modules=tuple(sys.path),
        projects=_editable_projects(),
        certificates=tuple(trusted_certificates()),
    )


@cache
def _editable_projects() -> tuple[str, ...]:
    return tuple(editable_projects())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself, for example.
        return False


def _modules(folder: Path, depth: int = _NAMESPACE_DEPTH) -> Iterator[Path]:
    """The modules, packages and records of distributions in a folder, and nothing else.

    A project's folder may also hold its database, its keys and its settings.
    """
    if folder.is_file():
        # An archive of modules.
        yield folder
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not _is_folder(entry):
            if entry.name.endswith(_MODULES):
                yield Path(entry)
        elif entry.name.endswith(_RECORDS) or os.path.exists(os.path.join(entry, "__init__.py")):
            yield Path(entry)
        elif depth > 1 and entry.name.isidentifier():
            # Perhaps a package that several distributions share: its own packages and modules.
            yield from _modules(Path(entry), depth - 1)
