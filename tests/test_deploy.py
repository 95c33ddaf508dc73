"""Several replicas: the program that starts them here, the documented client, and the files for containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import yaml

from exchange_service.client import ExchangeServiceClient
from exchange_service.client.endpoint import endpoint_of
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import Settings
from exchange_service.startup_checks import check_settings
from exchange_service.v1.balance_pb2 import BALANCE_SOURCE_CACHE
from tests.harness import USER, ScriptedPlugin, registry_of, serving
from tests.test_cli import environment

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
NAME = "exchange-service"
EXCHANGE_SERVICE = "exchange_service.v1.ExchangeService"
ACCOUNT_SERVICE = "exchange_service.accounts.v1.AccountService"


@dataclass
class Replicas:
    """The program that runs them, and where they listen."""

    process: subprocess.Popen[str]
    addresses: list[str]

    def line(self, beginning: str) -> str:
        """What follows in the next line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line.removeprefix(beginning).strip()
        raise AssertionError(f"it ended without a line of {beginning}")

    def below(self) -> list[psutil.Process]:
        """Every process that it has started, but for PostgreSQL's, which belong to nobody."""
        return psutil.Process(self.process.pid).children(recursive=True)


def start_replicas(home: Path, *arguments: str, **variables: str) -> Replicas:
    process = subprocess.Popen(
        [sys.executable, str(DEPLOY / "replicas.py"), "--port", "0", *arguments],
        env=environment(home, TMPDIR=os.environ.get("TMPDIR", "/tmp"), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("replicas "):
            return Replicas(process, line.split()[1:])
    raise AssertionError("they did not come to serve")


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    replicas = start_replicas(tmp_path_factory.mktemp("home"))
    yield replicas
    replicas.process.send_signal(signal.SIGINT)
    replicas.process.communicate(timeout=40)


class TestReplicas:
    async def test_one_replica_finds_the_balance_that_the_other_one_fetched(self, replicas: Replicas) -> None:
        first, second = replicas.addresses
        async with ExchangeServiceClient(first) as client:
            fetched = await client.get_balance("demo", "oanda")
        async with ExchangeServiceClient(second) as client:
            cached = await client.get_balance("demo", "oanda")
        assert cached.freshness.source == BALANCE_SOURCE_CACHE
        assert cached.balance == fetched.balance

    def test_the_documented_client_calls_both_also_behind_a_proxy(self, replicas: Replicas) -> None:
        done = run_example(*replicas.addresses)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"(EUR \d{16}\n){4}", done.stdout)

    async def test_one_that_ends_is_started_again_at_its_address_and_an_interrupt_ends_all(
        self, tmp_path: Path
    ) -> None:
        replicas = start_replicas(tmp_path, "--sqlite")
        first, second = replicas.addresses
        killed = int(replicas.line("processes").split()[0])
        os.kill(killed, signal.SIGKILL)
        assert replicas.line("replica 1:") == f"process {killed} has ended (signal 9); another starts in 0.5 s."
        async with ExchangeServiceClient(second) as client:
            assert (await client.get_balance("demo", "oanda")).balance.venue_accounts
        assert replicas.line("replica 1:").endswith(f" serves on {first}.")
        async with ExchangeServiceClient(first) as client:
            assert (await client.get_balance("demo", "oanda")).freshness.source == BALANCE_SOURCE_CACHE
        below = replicas.below()
        assert len(below) >= 3
        replicas.process.send_signal(signal.SIGINT)
        replicas.process.communicate(timeout=40)
        assert replicas.process.returncode == 0
        _, alive = psutil.wait_procs(below, timeout=5)
        assert not alive

    def test_where_the_first_one_cannot_start_the_program_ends(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, str(DEPLOY / "replicas.py"), "--port", "0", "--sqlite"],
            env=environment(tmp_path, EXCHANGE_SERVICE_ENGINE="steam"),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 1


def example() -> str:
    """The documented client."""
    text = (ROOT / "docs" / "operations.md").read_text()
    match = re.search(r"<!-- runs against two replicas -->\n```python\n(.*?)```", text, re.DOTALL)
    assert match
    return match[1]


def run_example(first: str, second: str) -> subprocess.CompletedProcess[str]:
    """Run the documented client behind a proxy that does not answer."""
    program = example().replace("127.0.0.1:50051", first).replace("127.0.0.1:50052", second)
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | proxy, capture_output=True, text=True, timeout=60
    )


def documented(name: str) -> Any:
    """A value of the documented client, which is not run for it."""
    names: dict[str, Any] = {}
    exec(example().partition("async def main")[0], names)
    return names[name]


def count_calls(metrics: str) -> int:
    """The number of successful calls of GetBalance."""
    match = re.search(r'call_seconds_count\{code="OK",method="GetBalance"\} (\d+)', metrics)
    return int(match[1]) if match else 0


class TestClient:
    async def test_calls_go_to_both_and_to_the_one_that_is_left(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        async with (
            serving(tmp_path / "one", registry=registry_of(ScriptedPlugin())) as one,
            serving(tmp_path / "two", registry=registry_of(ScriptedPlugin())) as two,
        ):
            for running in (one, two):
                await running.store()
            target = f"ipv4:{one.service.address},{two.service.address}"
            # Not the process's shared connections: one of another test may still be open.
            options = [*documented("OPTIONS"), ("grpc.use_local_subchannel_pool", 1)]
            async with ExchangeServiceClient(target, options=options) as client:
                await client.channel.channel_ready()

                def answered() -> list[int]:
                    return [count_calls(item.service.metrics.text().decode()) for item in (one, two)]

                while not all(answered()):
                    await client.get_balance(USER, "fakex")
                await one.service.stop()
                before = answered()
                for _ in range(20):
                    await client.get_balance(USER, "fakex")
                assert answered() == [before[0], before[1] + 20]

    def test_the_python_client_notices_a_lost_connection_as_documented(self) -> None:
        keepalive = {name: value for name, value in documented("OPTIONS") if "keepalive" in name or "ping" in name}
        ours = dict(endpoint_of("127.0.0.1:50051").options(()))
        assert keepalive == {name: ours[name] for name in keepalive}


class TestContainers:
    @pytest.fixture
    def compose(self) -> Any:
        return yaml.safe_load((DEPLOY / "compose.yaml").read_text())

    def test_every_variable_is_a_setting_that_the_service_would_start_with(
        self, compose: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        variables = compose["services"]["exchange-service"]["environment"]
        assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in variables} <= set(Settings.model_fields)
        for name, value in variables.items():
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+)[^}]*\}", r"\1-of-16-characters", str(value)))
        check_settings(Settings())

    def test_nothing_of_it_can_be_reached_from_other_machines(self, compose: Any) -> None:
        ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_it_runs_two_replicas_without_rights(self, compose: Any) -> None:
        service = compose["services"]["exchange-service"]
        assert service["scale"] == 2
        assert service["environment"]["EXCHANGE_SERVICE_REPLICAS"] == str(service["scale"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        settings = Settings(address=service["environment"]["EXCHANGE_SERVICE_ADDRESS"])
        # What is left is for calls that are told of the end, and for closing.
        assert grace > settings.leaving_delay + settings.shutdown_grace + 5

    def test_the_files_and_services_that_it_names_exist(self, compose: Any) -> None:
        build = compose["services"]["exchange-service"]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert set(compose["services"]["exchange-service"]["depends_on"]) <= set(compose["services"])
        assert compose["volumes"].keys() == {"credentials"}

    def test_the_image_installs_locked_versions_and_does_not_run_as_root(self) -> None:
        lines = (DEPLOY / "Dockerfile").read_text().splitlines()
        installs = [line for line in lines if line.startswith("RUN pip install")]
        assert installs
        assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
        (user,) = [line.split()[1] for line in lines if line.startswith("USER")]
        assert int(user.partition(":")[0]) > 0
        assert json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD ")) == ["serve"]

    def test_everything_that_the_image_copies_is_there_and_not_ignored(self) -> None:
        included = {
            line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
        }
        copied = [
            source
            for line in (DEPLOY / "Dockerfile").read_text().splitlines()
            if line.startswith("COPY ") and "--from" not in line
            for source in line.split()[1:-1]
        ]
        assert set(copied) == included
        assert all((ROOT / source).exists() for source in copied)


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Any]:
    """Each object by its kind and name."""
    documents = [
        document
        for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        if file.name != "kustomization.yaml"
        for document in yaml.safe_load_all(file.read_text())
    ]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.fixture(scope="module")
def pod(objects: dict[tuple[str, str], Any]) -> Any:
    return objects["Deployment", NAME]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """The settings that are no secret."""
    lines = (DEPLOY / "kubernetes" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.31", "1.37"])
    def test_kubernetes_would_take_every_object(self, objects: dict[tuple[str, str], Any], version: str) -> None:
        for item in objects.values():
            kubernetes_validate.validate(item, version, strict=True)

    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
    def test_kustomize_joins_them(self, objects: dict[tuple[str, str], Any]) -> None:
        done = subprocess.run(
            ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        built = list(yaml.safe_load_all(done.stdout))
        assert {item["kind"] for item in built} == {kind for kind, _ in objects} | {"ConfigMap"}
        for item in built:
            kubernetes_validate.validate(item, "1.37", strict=True)

    def test_every_variable_is_a_setting_that_the_service_would_start_with(
        self, container: Any, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        secrets = {"database-url": "postgresql://u:p@postgres/s", "cache-url": "redis://r:6379/0", "hash-key": "h" * 32}
        for entry in container["env"]:
            reference = entry["valueFrom"]["secretKeyRef"]
            # Not optional: without the Secret the pod does not start.
            assert reference.keys() == {"name", "key"}
            variables = variables | {entry["name"]: secrets[reference["key"]]}
        assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in variables} <= set(Settings.model_fields)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = [Path(value) for name, value in variables.items() if value.startswith("/")]
        assert len(files) == 3
        for file in files:
            # The service does not start without one of them.
            assert str(file.parent) in mounts
            (tmp_path / file.name).touch()
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / Path(value).name) if value.startswith("/") else value)
        settings = Settings()
        check_settings(settings)
        assert not settings.insecure
        assert not settings.open_to_all

    def test_the_numbers_fit_together(
        self, objects: dict[tuple[str, str], Any], pod: Any, container: Any, variables: dict[str, str]
    ) -> None:
        deployment = objects["Deployment", NAME]["spec"]
        assert str(deployment["replicas"]) == variables["EXCHANGE_SERVICE_REPLICAS"]
        leaving = sum(float(variables[f"EXCHANGE_SERVICE_SHUTDOWN_{name}"]) for name in ("DELAY", "GRACE"))
        assert pod["terminationGracePeriodSeconds"] > leaving + 5
        # The service waits itself.
        assert "lifecycle" not in container
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for name, setting in (("grpc", "ADDRESS"), ("health", "HEALTH_ADDRESS"), ("metrics", "METRICS_ADDRESS")):
            assert variables[f"EXCHANGE_SERVICE_{setting}"].endswith(f":{ports[name]}")
        named = [port["targetPort"] for service in kind_of(objects, "Service") for port in service["spec"]["ports"]]
        (policy,) = kind_of(objects, "NetworkPolicy")
        named += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        named += [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "liveness", "readiness")]
        assert set(named) == set(ports)
        # Within its delay a replica is no longer ready, and gone from the headless service.
        probe = container["readinessProbe"]
        delay = float(variables["EXCHANGE_SERVICE_SHUTDOWN_DELAY"])
        assert probe["periodSeconds"] * probe["failureThreshold"] < delay

    def test_all_select_the_pods_of_the_deployment(self, objects: dict[tuple[str, str], Any]) -> None:
        labels = objects["Deployment", NAME]["spec"]["template"]["metadata"]["labels"]
        selectors = [service["spec"]["selector"] for service in kind_of(objects, "Service")]
        (policy,), (budget,) = kind_of(objects, "NetworkPolicy"), kind_of(objects, "PodDisruptionBudget")
        spread = objects["Deployment", NAME]["spec"]["template"]["spec"]["topologySpreadConstraints"]
        parts = (
            policy["spec"]["podSelector"],
            budget["spec"]["selector"],
            objects["Deployment", NAME]["spec"]["selector"],
        )
        selectors += [part["matchLabels"] for part in (*parts, *(item["labelSelector"] for item in spread))]
        assert all(selector.items() <= labels.items() for selector in selectors)

    def test_its_pods_have_no_rights(self, objects: dict[tuple[str, str], Any], pod: Any, container: Any) -> None:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert objects["ServiceAccount", NAME]["automountServiceAccountToken"] is False
        # Links of a Service named so would be taken for settings.
        assert pod["enableServiceLinks"] is False
        image = (DEPLOY / "Dockerfile").read_text()
        assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in image


def kind_of(objects: dict[tuple[str, str], Any], kind: str) -> list[Any]:
    return [item for (of, _), item in objects.items() if of == kind]


class TestProxies:
    """What of the files `make nginx` and `make envoy` do not see."""

    def test_what_they_lead_to_is_what_callers_use(self) -> None:
        nginx = (DEPLOY / "nginx" / "exchange-service.conf").read_text()
        (names,) = re.findall(r"location ~ \^/\((.*)\) \{", nginx)
        envoy = yaml.safe_load((DEPLOY / "envoy" / "exchange-service.yaml").read_text())
        (local, public) = envoy["static_resources"]["listeners"]
        assert local["filter_chains"][0]["filters"] == public["filter_chains"][0]["filters"]
        manager = local["filter_chains"][0]["filters"][0]["typed_config"]
        (host,) = manager["route_config"]["virtual_hosts"]
        for service in (EXCHANGE_SERVICE, ACCOUNT_SERVICE, "grpc.health.v1.Health"):
            assert re.match(names, f"{service}/Method")
            assert f"/{service}/" in [route["match"]["prefix"] for route in host["routes"]]
        assert not re.match(names, "exchange_service.operator.v1.PluginService/ListPlugins")

    def test_a_quiet_stream_outlives_two_heartbeats(self) -> None:
        nginx = (DEPLOY / "nginx" / "exchange-service.conf").read_text()
        heartbeat = Settings().heartbeat_interval
        assert all(float(found) > 2 * heartbeat for found in re.findall(r"grpc_(?:read|send)_timeout (\d+)s", nginx))
        envoy = (DEPLOY / "envoy" / "exchange-service.yaml").read_text()
        assert [float(found) > 2 * heartbeat for found in re.findall(r"stream_idle_timeout: (\d+)s", envoy)] == [True]


class TestSystemd:
    UNIT = DEPLOY / "systemd" / "exchange-service.service"

    @pytest.fixture
    def lines(self) -> list[tuple[str, str]]:
        """The settings of the unit and of its drop-in for TLS."""
        files = (self.UNIT, Path(f"{self.UNIT}.d") / "tls.conf")
        text = "\n".join(file.read_text() for file in files)
        return [(name, value) for name, _, value in re.findall(r"^([A-Z]\w+)(=)(.*)$", text, re.MULTILINE)]

    def test_every_variable_is_a_setting_or_pythons_and_every_credential_has_its_source(
        self, lines: list[tuple[str, str]]
    ) -> None:
        variables = dict(word.split("=", 1) for name, value in lines if name == "Environment" for word in value.split())
        ours = {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in variables if "EXCHANGE" in name}
        assert ours - {"config"} <= set(Settings.model_fields)
        credentials = {value.partition(":")[0] for name, value in lines if name == "LoadCredential"}
        assert {value.removeprefix("%d/") for value in variables.values() if value.startswith("%d/")} == credentials
        assert variables.keys() - {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in ours} == {
            *("XDG_DATA_HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH"),
        }

    def test_it_has_time_to_leave(self, lines: list[tuple[str, str]]) -> None:
        values = dict(lines)
        settings = Settings(address="0.0.0.0:50051")
        assert float(values["TimeoutStopSec"]) > settings.leaving_delay + settings.shutdown_grace + 5
        assert (values["Type"], values["KillMode"]) == ("notify", "mixed")

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
    def test_systemd_finds_it_little_exposed(self) -> None:
        """`make systemd` runs it."""
        command = ("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(self.UNIT))
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        figure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
        assert figure
        # Newer releases look at more.
        if "systemd 252 " in subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout:
            assert f"0 being the best: **{figure[1]}**" in (ROOT / "docs" / "deployment.md").read_text()
