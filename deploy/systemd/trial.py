"""Run deploy/systemd/exchange-service.service under a systemd of its own, in namespaces of its own, and look at it.

    sudo .venv/bin/python deploy/systemd/trial.py

It needs root, Linux with cgroup v2, and systemd's program; it does not need systemd to have started this machine. That
systemd reads this unit and no other one that is installed, has a network without a way out, and ends with this program.
Nothing is installed. The unit runs as it is, but for its watchdog's time, its log's place and its credentials' files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "exchange-service.service"
COMMAND_FILE = UNIT.with_name("exchange-service-command")
SYSTEMD = Path("/lib/systemd/systemd")
NAME = "exchange-service"
# Seconds of the whole trial, and of one thing to come true.
LIMIT, PATIENCE = 150, 40
COMMAND = f"/opt/{NAME}/bin/{NAME}"
# Targets without which systemd starts no unit; they are empty here.
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user", "local-fs")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--kill-child=KILL")
SETTINGS = """
hash_key = "only-for-this-trial-of-the-unit"
# The start of CCXT's process fails if the unit keeps Landlock from it.
plugin_sandbox = "require"
plugin_start = "at-once"
"""
# What systemd's parent does in a container. The root is made shared because systemd hands credentials over by mounts.
INIT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/private && mount -t tmpfs -o mode=700 tmpfs /var/lib/private
umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind {packages} {folder}/opt/packages
mount --bind {root} {folder}/opt/source
mount --bind {python} {folder}/opt/python
mount --rbind {folder}/opt /opt
mount --bind /dev/null /dev/console
mount --bind {folder}/systemd.log /dev/kmsg
ip link set lo up 2>/dev/null || true
mount --make-rshared /
export container=trial SYSTEMD_UNIT_PATH={folder}/units SYSTEMD_LOG_TARGET=kmsg
exec {systemd} --system --unit=trial.target --log-target=kmsg --show-status=false
"""


def make_environment(folder: Path) -> None:
    """The service's environment as /opt/exchange-service, from this one's packages: the unit hides home folders."""
    place = folder / "opt" / NAME
    for name in ("packages", "source", "python"):
        (folder / "opt" / name).mkdir(parents=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = Path(sysconfig.get_path("purelib"))
    sources = [
        line for file in packages.glob("*.pth") for line in file.read_text().splitlines() if line.startswith("/")
    ]
    site = place / "lib" / python / "site-packages"
    site.mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(f"/opt/python/bin/{python}")
    (place / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
    paths = ["/opt/packages", *(line.replace(str(ROOT), "/opt/source", 1) for line in sources)]
    (site / "this_environment.pth").write_text("\n".join(paths) + "\n")
    command = place / "bin" / NAME
    command.write_text(f"#!/opt/{NAME}/bin/python\nfrom exchange_service.cli import main\n\nmain()\n")
    command.chmod(0o755)


def make_units(folder: Path) -> None:
    """The unit as it is, with a drop-in, and what begins the trial."""
    units = folder / "units"
    units.mkdir()
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    start = "After=basic.target\nRequires=basic.target sysinit.target\nWants=trial.service\n"
    (units / "trial.target").write_text(f"[Unit]\nDefaultDependencies=no\n{start}")
    shutil.copy(UNIT, units)
    log, python = f"append:{folder}/service.log", "Environment=LD_LIBRARY_PATH=/opt/python/lib\n"
    secrets = "".join(f"LoadCredential={file}:{folder}/etc/{file}\n" for file in ("settings.toml", "keyset.json"))
    (units / f"{NAME}.service.d").mkdir()
    (units / f"{NAME}.service.d" / "trial.conf").write_text(
        f"[Service]\nStandardOutput={log}\nStandardError={log}\nWatchdogSec=4\nLoadCredential=\n{secrets}{python}"
    )
    _write_command(units, folder)
    checks = f"/opt/{NAME}/bin/python deploy/systemd/trial.py --inside"
    (units / "trial.service").write_text(
        f"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nWorkingDirectory=/opt/source\n{python}"
        f"StandardOutput=file:{folder}/result\nStandardError=inherit\nExecStart={checks}\n"
    )


def _write_command(units: Path, folder: Path) -> None:
    """A unit that does what exchange-service-command lets systemd-run do, for one command."""
    text = COMMAND_FILE.read_text()
    lines = [line.replace("/etc/exchange-service/", f"{folder}/etc/") for line in re.findall(r"--property=(\S+)", text)]
    lines += [f"Environment={variable}" for variable in re.findall(r"--setenv=(\S+)", text)]
    (shell,) = re.findall(r"/bin/sh -c '(.*)'", text)
    # systemd replaces variables and percent signs itself.
    shell = shell.replace("$", "$$").replace("%", "%%").replace('"', '\\"')
    lines += ["Type=oneshot", f"StandardOutput=file:{folder}/command.log", "StandardError=inherit"]
    lines += ["Environment=LD_LIBRARY_PATH=/opt/python/lib"]
    lines += [f'ExecStart=/bin/sh -c "{shell}" {NAME} credentials seal --dry-run --all']
    (units / "command.service").write_text("\n".join(["[Unit]", "DefaultDependencies=no", "[Service]", *lines, ""]))


def make_secrets(folder: Path) -> None:
    """The files that the unit takes as credentials, of root alone."""
    (folder / "etc").mkdir(mode=0o700)
    (folder / "etc" / "settings.toml").write_text(SETTINGS)
    make = [sys.executable, "-m", "exchange_service", "keys", "create", str(folder / "etc" / "keyset.json")]
    subprocess.run(make, check=True, capture_output=True)


def cgroup_root() -> Path:
    """Where this machine's cgroup v2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    sys.exit("This machine has no cgroup v2, which systemd needs: try the unit on another one.")


def run_trial(folder: Path) -> str:
    """Run everything inside; what it printed."""
    make_environment(folder)
    make_units(folder)
    make_secrets(folder)
    (folder / "systemd.log").touch()
    text = INIT.format(
        folder=folder, root=ROOT, systemd=SYSTEMD, packages=sysconfig.get_path("purelib"), python=sys.base_prefix
    )
    (folder / "init.sh").write_text(text)
    group = cgroup_root() / f"exchange-service-trial-{os.getpid()}"
    group.mkdir()
    try:
        return _run_in(group, folder)
    finally:
        _remove(group)


def _run_in(group: Path, folder: Path) -> str:
    join = f"echo $BASHPID > {group}/cgroup.procs; exec unshare {' '.join(NAMESPACES)} bash {folder}/init.sh"
    with subprocess.Popen(["bash", "-c", join], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            end = time.monotonic() + LIMIT
            while time.monotonic() < end and process.poll() is None and not _has_ended(folder):
                time.sleep(0.2)
        finally:
            # unshare ends the first process of the namespace with itself, and the kernel all others with that one.
            process.kill()
        output = process.communicate()[0]
    result = folder / "result"
    return result.read_text() if result.exists() else f"systemd did not come so far:\n{output}"


def _has_ended(folder: Path) -> bool:
    result = folder / "result"
    return result.exists() and result.read_text().rstrip().endswith(("All is well.", "It failed."))


def _remove(group: Path) -> None:
    """Remove the group and those below it, once the kernel has ended their processes."""
    for _ in range(50):
        try:
            for path in sorted(group.rglob("*/"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return


def call(*command: str) -> str:
    """What a command prints, whatever its exit code."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()


def shown(name: str) -> str:
    """A property of the unit."""
    return call("systemctl", "show", NAME, "--property", name, "--value")


def status_of_main() -> dict[str, str]:
    """What the kernel says of the service's process."""
    text = Path(f"/proc/{shown('MainPID')}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def has_no_rights() -> bool:
    status = status_of_main()
    wanted = {"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0" * 16, "CapEff": "0" * 16}
    return status["Uid"].split()[0] != "0" and all(status[name] == value for name, value in wanted.items())


def command_reaches_database_and_keyset() -> bool:
    """What exchange-service-command starts, by a unit: systemd-run would need D-Bus."""
    call("systemctl", "start", "command.service")
    log = Path(shown("FragmentPath")).parent.with_name("command.log")
    return "0 with nothing to do" in log.read_text()


def ccxt_runs_confined() -> bool:
    """With its memory, which is why ProtectProc is left as it is."""
    lines = call(COMMAND, "plugins").splitlines()
    confined = any("files, network ports, signals" in line for line in lines)
    (line,) = (line for line in lines if line.startswith("ccxt_generic"))
    return " running " in line and " MiB " in line and confined


def send(signal: str) -> None:
    call("kill", f"-{signal}", shown("MainPID"))


def restarted(times: int) -> Callable[[], bool]:
    return lambda: shown("NRestarts") == str(times) and shown("SubState") == "running"


def stopped() -> bool:
    return (shown("ActiveState"), shown("Result"), shown("ExecMainStatus")) == ("inactive", "success", "0")


def inside() -> int:
    """Start the unit and look at it; the exit code."""
    steps: list[tuple[str, Callable[[], object], Callable[[], bool]]] = [
        (
            "it starts: READY=1 with a status",
            lambda: call("systemctl", "start", NAME),
            lambda: shown("SubState") == "running" and shown("StatusText").startswith("Serving on"),
        ),
        ("it serves", lambda: None, lambda: call(COMMAND, "health") == "SERVING"),
        ("it runs as a user of its own without any right", lambda: None, has_no_rights),
        ("CCXT's process runs, confined in all three ways, and its memory is seen", lambda: None, ccxt_runs_confined),
        ("a command as its user uses its database and keyset", lambda: None, command_reaches_database_and_keyset),
        ("killed, it is started again", lambda: send("KILL"), restarted(1)),
        ("frozen, it is ended by the watchdog and started again", lambda: send("STOP"), restarted(2)),
        ("it stops: STOPPING=1, and exit code 0", lambda: call("systemctl", "stop", NAME), stopped),
    ]
    for sentence, act, is_so in steps:
        act()
        end = time.monotonic() + PATIENCE
        while not (well := is_so()) and time.monotonic() < end:
            time.sleep(0.5)
        print(f"{'yes' if well else 'NO':3}  {sentence}", flush=True)
        if not well:
            print(call("systemctl", "status", "--no-pager", "--full", NAME), "It failed.", sep="\n", flush=True)
            return 1
    print("All is well.", flush=True)
    return 0


def main() -> None:
    if "--inside" in sys.argv:
        sys.exit(inside())
    if os.geteuid() or not SYSTEMD.exists() or not shutil.which("unshare"):
        sys.exit(f"The trial of the unit needs root, {SYSTEMD} and util-linux's unshare. It was not made.")
    version = call(str(SYSTEMD), "--version").partition("\n")[0]
    print(f"{version} runs {UNIT.relative_to(ROOT)} in namespaces of its own:")
    with tempfile.TemporaryDirectory(prefix="exchange-service-unit-") as name:
        folder = Path(name)
        text = run_trial(folder)
        print(text.rstrip())
        if "All is well." not in text:
            for log in ("service.log", "systemd.log"):
                path = folder / log
                if path.exists():
                    print(f"--- {log}", *path.read_text(errors="replace").splitlines()[-30:], sep="\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
