"""A keyset that Vault's transit engine has wrapped: opened at the start and at rotation, used while Vault is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.cli.doctor import Severity, examine
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials import configured_keyset, wrapped_keysets
from exchange_service.credentials.configured import configured_keys, open_configured_store
from exchange_service.credentials.configured_keyset import keep_token, wait_for_keyset
from exchange_service.credentials.key_providers import WrappedKeys
from exchange_service.credentials.keyset_files import change_keyset_file, create_keyset_file, retired_file
from exchange_service.credentials.keysets import KeyRefused, KeysetInvalid, KeyUnknown, parse_keyset, read_keyset
from exchange_service.credentials.sealed_settings import SettingUnreadable, open_setting, seal_setting
from exchange_service.credentials.vault import TransitKey, read_access, unusable
from exchange_service.credentials.wrapped_keysets import KeysetAway
from exchange_service.errors import CredentialUnreadable, StoreUnavailable
from exchange_service.settings import Settings
from exchange_service.startup_checks import UnsafeSettings, check_settings
from exchange_service.testing.certificates import untrusted_certificate
from tests.commands import run_command
from tests.fake_vault import KEY, TOKEN, FakeVault, TransitEngineKey, running_vault
from tests.harness import USER, Running, settings_for


@pytest.fixture(autouse=True)
def nothing_opened() -> Iterator[None]:
    """What another test has opened is asked for again."""
    wrapped_keysets._OPENED.clear()
    yield
    wrapped_keysets._OPENED.clear()


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVault]:
    with running_vault() as started:
        for name in ("VAULT_NAMESPACE", "VAULT_TOKEN_FILE", "VAULT_CACERT", "VAULT_CAPATH", "VAULT_SKIP_VERIFY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in started.variables().items():
            monkeypatch.setenv(name, value)
        # No proxy of the environment may stand between.
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        yield started


def transit(key: str = KEY, login: str = "") -> TransitKey:
    """The key as the settings and Vault's variables name it now."""
    return TransitKey(key, read_access(login))


def keyset_settings(folder: Path, **changes: object) -> Settings:
    return settings_for(folder, keyset_file=folder / "keyset.json", keyset_key=KEY, **changes)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.threat("T98", attack=True)
def test_a_copy_of_the_keysets_file_opens_everything_unless_it_is_wrapped(vault: FakeVault, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.json", tmp_path / "keyset.json"
    assert create_keyset_file(plain).keys == read_keyset(plain).keys
    keyset = create_keyset_file(path, transit())
    value = json.loads(path.read_text())
    assert value.keys() == {"wrapped_with", "ciphertext"}
    assert value["wrapped_with"] == KEY
    assert value["ciphertext"].startswith("vault:v1:")
    assert keyset.primary not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    opened = wrapped_keysets.open_keyset(path.read_text(), transit())
    assert opened.keys == keyset.keys
    with pytest.raises(KeysetInvalid, match=f"it is wrapped with {KEY}; set keyset_key"):
        read_keyset(path)
    # Nor does a key that was taken out lie beside it in plain.
    rotated = change_keyset_file(path, lambda now: now.with_new_key(primary=True), transit())
    change_keyset_file(path, lambda now: now.without(keyset.primary), transit())
    retired = retired_file(path, keyset.primary).read_text()
    assert wrapped_keysets.open_keyset(retired, transit()).keys == keyset.keys
    assert rotated.keys.keys() > keyset.keys.keys()
    with pytest.raises(KeysetInvalid, match="it is wrapped"):
        parse_keyset(retired)
    with pytest.raises(KeysetInvalid, match="the keyset is not wrapped: run `exchange-service keys wrap`"):
        wrapped_keysets.open_keyset(plain.read_text(), transit())


def _another_key(vault: FakeVault) -> None:
    vault.keys["exchange-service"] = TransitEngineKey()


def _no_key(vault: FakeVault) -> None:
    del vault.keys["exchange-service"]


def _too_old(vault: FakeVault) -> None:
    vault.key.rotate()
    vault.key.least_version = 2


def _no_right(vault: FakeVault) -> None:
    vault.tokens[TOKEN].remove("decrypt")


def _ended_token(vault: FakeVault) -> None:
    vault.tokens.clear()


def _sealed(vault: FakeVault) -> None:
    vault.sealed = True


def _gone(vault: FakeVault) -> None:
    vault.stop()


def _redirect(vault: FakeVault) -> None:
    vault.redirects_to = "http://127.0.0.1:9"


def _other_namespace(vault: FakeVault) -> None:
    vault.namespace = "team"


@pytest.mark.threat("T8")
@pytest.mark.parametrize(
    ("change", "text", "passes"),
    [
        (_another_key, "was wrapped by another key, for another label or for something else", False),
        (_no_key, "has no key transit/keys/exchange-service: create it", False),
        (_too_old, "no longer opens: lower its min_decryption_version", False),
        (_no_right, "its policy lacks `update` on transit/decrypt/exchange-service", False),
        (_ended_token, "the token has ended", False),
        (_redirect, "sends us to another host", False),
        (_other_namespace, "has no transit engine at transit", False),
        (_sealed, "is sealed, or down for maintenance", True),
        (_gone, "cannot be reached", True),
    ],
)
def test_each_refusal_is_a_sentence_without_vaults_own_text_or_a_secret(
    vault: FakeVault, tmp_path: Path, change: object, text: str, passes: bool
) -> None:
    path = tmp_path / "keyset.json"
    create_keyset_file(path, transit())
    assert callable(change)
    change(vault)
    with pytest.raises(KeysetInvalid, match=text) as refusal:
        wrapped_keysets.open_keyset(path.read_text(), transit())
    assert isinstance(refusal.value, KeysetAway) == passes
    assert TOKEN not in repr(refusal.value) + repr(transit()) + repr(transit().access)
    assert refusal.value.__cause__ is refusal.value.__context__ is None


@pytest.mark.parametrize("reply", [{"data": {"plaintext": 5}}, {"data": {"plaintext": None}}, {"data": {}}])
def test_an_answer_of_another_shape_is_a_refusal_and_breaks_nothing(
    vault: FakeVault, monkeypatch: pytest.MonkeyPatch, reply: dict[str, object]
) -> None:
    monkeypatch.setattr(vault, "answer", lambda *_: reply)
    with pytest.raises(KeysetInvalid, match="answers with something else than Vault does"):
        transit().unwrap("vault:v1:AAAA")
    with pytest.raises(KeysetInvalid, match="answers with something else than Vault does"):
        transit().wrap(b"a keyset")


def test_an_address_that_cannot_be_read_is_a_sentence() -> None:
    assert "VAULT_ADDR is not an address" in read_access("", {"VAULT_ADDR": "https://[::1"}).problem()


@pytest.mark.threat("T98")
def test_a_keyset_of_another_label_or_another_program_does_not_open(vault: FakeVault, tmp_path: Path) -> None:
    path = tmp_path / "keyset.json"
    keyset = create_keyset_file(path, transit(f"{KEY}?label=staging"))
    with pytest.raises(KeysetInvalid, match="for another label"):
        wrapped_keysets.open_keyset(path.read_text(), transit(f"{KEY}?label=production"))
    # By the same key, but not by this program.
    foreign = {"wrapped_with": KEY, "ciphertext": vault.key.encrypt(keyset.as_text().encode(), b"")}
    with pytest.raises(KeysetInvalid, match="something else"):
        wrapped_keysets.open_keyset(json.dumps(foreign), transit())
    with pytest.raises(KeysetInvalid, match="wrapped with vault://transit/keys/theirs, and keyset_key is"):
        wrapped_keysets.open_keyset(json.dumps(foreign | {"wrapped_with": "vault://transit/keys/theirs"}), transit())


@pytest.mark.threat("T98")
@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"VAULT_ADDR": ""}, "VAULT_ADDR is not"),
        ({"VAULT_ADDR": "http://vault.example:8200"}, "leads to another machine in plain text"),
        ({"VAULT_ADDR": "https://user:secret@vault.example"}, "VAULT_ADDR is not an address"),
        ({"VAULT_ADDR": "unix:///run/vault.sock"}, "VAULT_ADDR is not an address"),
        ({"VAULT_SKIP_VERIFY": "true"}, "VAULT_SKIP_VERIFY is set"),
        ({"VAULT_TOKEN": ""}, "Nothing says how to enter Vault"),
    ],
)
def test_what_would_be_unsafe_or_cannot_work_is_refused_before_the_start(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    check_settings(keyset_settings(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnsafeSettings, match=text):
        check_settings(keyset_settings(tmp_path))
    assert text in unusable("")


def test_vaults_certificate_is_checked_against_the_named_authority(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_vault(untrusted_certificate(tmp_path)) as secure:
        monkeypatch.setenv("VAULT_ADDR", secure.url)
        with pytest.raises(KeysetAway, match="is not trusted: set VAULT_CACERT"):
            transit().wrap(b"keys")
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "venue.pem"))
        assert transit().unwrap(transit().wrap(b"keys")) == b"keys"
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "missing.pem"))
        with pytest.raises(KeysetInvalid, match="VAULT_CACERT"):
            transit().wrap(b"keys")


def test_vault_is_entered_by_a_token_file_that_an_agent_renews_or_by_a_login(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    with pytest.raises(KeysetAway, match="VAULT_TOKEN_FILE"):
        transit().wrap(b"keys")
    key = transit()
    for token in ("first", "second"):
        vault.tokens = {token: {"encrypt"}}
        file.write_text(f"{token}\n")
        key.wrap(b"keys")
    vault.tokens = {"of-approle": {"encrypt"}, "of-pod": {"encrypt"}}
    vault.logins = {
        "of-approle": {"role_id": "the-role", "secret_id": "the-secret"},
        "of-pod": {"role": "balances", "jwt": "a.pod.token"},
    }
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    monkeypatch.setenv("VAULT_SECRET_ID_FILE", str(secret))
    transit(login="approle:the-role").wrap(b"keys")
    pod = tmp_path / "pod"
    pod.write_text("a.pod.token")
    monkeypatch.setattr("exchange_service.credentials.vault._KUBERNETES_TOKEN", pod)
    transit(login="kubernetes:balances@cluster/one").wrap(b"keys")
    assert "POST /v1/auth/cluster/one/login" in vault.requests
    secret.write_text("another")
    for login in ("approle:the-role", "kubernetes:another"):
        with pytest.raises(KeysetInvalid, match="refuses the login of keyset_login") as refusal:
            transit(login=login).wrap(b"keys")
        assert refusal.value.__cause__ is refusal.value.__context__ is None


@pytest.mark.threat("T17")
async def test_a_changed_file_is_opened_again_and_while_vault_is_away_the_old_keys_stay(
    vault: FakeVault, tmp_path: Path
) -> None:
    path, clock = tmp_path / "keyset.json", Clock()
    first = create_keyset_file(path, transit())
    keys = WrappedKeys(path, transit(), clock=clock)
    assert await keys.known() == {first.primary}
    second = change_keyset_file(path, lambda keyset: keyset.with_new_key(primary=True), transit())
    wrapped_keysets._OPENED.clear()
    port = vault.stop()
    clock.now += 3
    with capture_logs() as lines:
        assert await keys.primary() == first.primary
        assert "cannot be reached" in await keys.problem()
    (line,) = lines
    assert (line["event"], line["log_level"], line["last_good_in_use"]) == ("keyset.unusable", "error", True)
    key_id, wrapped = await keys.wrap(b"data key", b"row")
    assert await keys.unwrap(key_id, wrapped, b"row") == b"data key"
    with pytest.raises(KeyRefused):
        await keys.unwrap(key_id, wrapped, b"another row")
    of_new_key = second.wrap(b"data key", b"row")
    with pytest.raises(KeyUnknown):
        await keys.unwrap(*of_new_key, b"row")
    vault.start(port)
    # It is asked again after a pause, and not with each call.
    asked = len(vault.requests)
    assert await keys.primary() == first.primary
    assert len(vault.requests) == asked
    clock.now += 6
    # A value that names a key of the changed file waits until that is open.
    assert await keys.unwrap(*of_new_key, b"row") == b"data key"
    assert await keys.problem() == ""
    assert await keys.primary() == second.primary
    assert await keys.known() == {first.primary, second.primary}


async def test_a_sealed_setting_of_a_plugin_opens_with_the_wrapped_keyset_which_is_asked_for_once(
    vault: FakeVault, tmp_path: Path
) -> None:
    create_keyset_file(tmp_path / "keyset.json", transit())
    settings = keyset_settings(tmp_path)
    keys = configured_keys(settings)
    assert keys is not None
    sealed = await seal_setting("a-secret", "acme", "token", keys)
    vault.stop()
    assert open_setting(sealed, "acme", "token", settings) == "a-secret"
    wrapped_keysets._OPENED.clear()
    with pytest.raises(SettingUnreadable, match="`exchange-service doctor` says why"):
        open_setting(sealed, "acme", "token", settings)


async def test_calls_say_whether_the_manager_is_away_or_the_keyset_does_not_open(
    vault: FakeVault, tmp_path: Path
) -> None:
    path = tmp_path / "keyset.json"
    create_keyset_file(path, transit())
    port = vault.stop()
    with pytest.raises(StoreUnavailable, match="does not answer") as away:
        await WrappedKeys(path, transit()).primary()
    assert "127.0.0.1" not in away.value.text
    vault.start(port)
    vault.tokens.clear()
    with pytest.raises(CredentialUnreadable, match="keyset cannot be used"):
        await WrappedKeys(path, transit()).primary()
    # As a text of the environment it is opened in the same way.
    vault.tokens[TOKEN] = {"decrypt"}
    assert await WrappedKeys(path.read_text(), transit()).known()


async def test_the_service_waits_for_vault_at_its_start_and_serves_on_without_it(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = keyset_settings(tmp_path, keyset_wait=20.0)
    create_keyset_file(tmp_path / "keyset.json", transit())
    vault.sealed = True
    vault.ttl = 3600
    monkeypatch.setattr(configured_keyset, "_FIRST_PAUSE", 0.05)
    starting = asyncio.create_task(start_service(settings))
    await asyncio.to_thread(vault.wait_for, lambda: len(vault.requests) > 1)
    assert not starting.done()
    vault.sealed = False
    service = await starting
    try:
        # The token is renewed, and then the service needs Vault no more.
        await asyncio.to_thread(vault.wait_for, lambda: "POST /v1/auth/token/renew-self" in vault.requests)
        vault.stop()
        async with ExchangeServiceClient(service.address) as client:
            running = Running(service, client)
            await running.store("oanda", api_key="a-key-for-tests")
            reference = await service.store.find((await service.store.accounts(USER))[0])
            assert reference is not None
            assert (await service.store.open(reference)).api_key.reveal() == "a-key-for-tests"
    finally:
        await service.stop()
    assert b"a-key-for-tests" not in (tmp_path / "credentials.db").read_bytes()


async def test_the_start_gives_up_on_a_refusal_at_once_and_on_an_outage_in_time(
    vault: FakeVault, tmp_path: Path
) -> None:
    create_keyset_file(tmp_path / "keyset.json", transit())
    vault.tokens[TOKEN].clear()
    with pytest.raises(KeysetInvalid, match="policy lacks"):
        await start_service(keyset_settings(tmp_path, keyset_wait=600.0))
    vault.stop()
    with pytest.raises(KeysetAway, match="cannot be reached"):
        await wait_for_keyset(keyset_settings(tmp_path, keyset_wait=0.1))


async def test_a_token_that_ends_is_told_and_one_that_does_not_is_left_alone(vault: FakeVault) -> None:
    for ttl, renewable, events in ((0, False, []), (90, False, ["keyset.token_ends"])):
        vault.ttl, vault.renewable = ttl, renewable
        with capture_logs() as lines:
            await asyncio.wait_for(keep_token(transit()), 20)
        assert [line["event"] for line in lines] == events
    vault.tokens.clear()
    with capture_logs() as lines:
        await asyncio.wait_for(keep_token(transit()), 20)
    assert [line["event"] for line in lines] == ["keyset.token_refused"]
    assert TOKEN not in str(lines)


async def test_the_commands_make_rotate_retire_wrap_and_rewrap_and_print_no_key(
    vault: FakeVault, tmp_path: Path
) -> None:
    path = tmp_path / "keyset.json"
    variables = {
        "HOME": str(tmp_path),
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{tmp_path / 'service.db'}",
        "EXCHANGE_SERVICE_KEYSET_FILE": str(path),
        "EXCHANGE_SERVICE_KEYSET_KEY": KEY,
    }
    printed = []

    async def keys(*arguments: str, code: int = 0) -> str:
        done = await asyncio.to_thread(run_command, ("keys", *arguments), variables | vault.variables())
        printed.append(done.stdout + done.stderr)
        assert done.returncode == code, printed[-1]
        return " ".join(printed[-1].split())

    assert f"wrapped with {KEY}" in await keys("create", str(path))
    (first,) = wrapped_keysets.open_keyset(path.read_text(), transit()).keys
    await keys("rotate")
    keyset = wrapped_keysets.open_keyset(path.read_text(), transit())
    assert set(keyset.keys) > {first}
    await keys("unwrap")
    assert read_keyset(path).keys == keyset.keys
    assert "the keyset is not wrapped" in await keys("rotate", code=4)
    await keys("wrap")
    vault.key.rotate()
    assert "Wrapped with v2 of the key; before it was v1." in await keys("rewrap")
    vault.key.least_version = 2
    assert keyset.primary in await keys("status")
    vault.sealed = True
    assert "is sealed" in await keys("rotate", code=5)
    # Nothing waits: this service's log would tell so until it gave up.
    serve = ("serve", "--address", "127.0.0.1:0", "--keyset-wait", "0")
    done = await asyncio.to_thread(run_command, serve, variables | vault.variables())
    assert done.returncode == 5
    assert "is sealed, or down for maintenance: unseal it. Waited for 0 seconds (keyset_wait)." in " ".join(
        done.stderr.split()
    )
    vault.sealed = False
    secrets = [TOKEN, *(key["key"] for key in json.loads(keyset.as_text())["keys"].values())]
    assert not [secret for secret in secrets if secret in "".join(printed)]
    assert wrapped_keysets.open_keyset(path.read_text(), transit()).keys == keyset.keys


async def test_doctor_says_what_the_manager_says_and_nothing_secret(vault: FakeVault, tmp_path: Path) -> None:
    settings = keyset_settings(tmp_path)
    create_keyset_file(tmp_path / "keyset.json", transit())
    store = await open_configured_store(settings)
    # Makes the database's file.
    assert await store.all_accounts() == []
    await store.close()

    async def findings(subject: str) -> list[tuple[Severity, str]]:
        return [(item.severity, item.text) for item in await examine(settings) if item.subject == subject]

    assert await findings("keyset_key") == [(Severity.WELL, f"{KEY} opens the keyset.")]
    vault.key.rotate()
    vault.ttl, vault.renewable = 90, False
    (old, token) = await findings("keyset_key")
    assert "wrapped with v1" in old[1]
    assert "`keys rewrap`" in old[1]
    assert "VAULT_TOKEN ends in 90 s" in token[1]
    wrapped_keysets._OPENED.clear()
    vault.stop()
    assert (await findings("keys"))[0][0] is Severity.ERROR
    assert "cannot be reached" in (await findings("keys"))[0][1]
