"""No secret leaves: after every success and failure of every plugin, it is searched for in all that others can read."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from exchange_service.credentials.keysets import new_keyset
from exchange_service.observability import logs
from exchange_service.observability.logs import configure_logging
from tests.canary import Canary, run_canary
from tests.conftest import CANARY
from tests.servers import RedisServer


@pytest.fixture
def at_debug() -> Iterator[None]:
    """Every logger at its lowest level, through the service's own handler."""
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    configure_logging("debug", "json")
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)
    for handler in [*root.handlers]:
        if handler not in handlers:
            root.removeHandler(handler)
    structlog.configure(**configuration)


async def run_with_output(folder: Path, redis: RedisServer, capfd: pytest.CaptureFixture[str], *wanted: str) -> Canary:
    """A canary after its run, with the process's output among its sinks."""
    canary, keyset = Canary(), new_keyset()
    for key in keyset.keys.values():
        canary.add_secret(base64.b64encode(key.material).decode(), "a key of the keyset")
        canary.add_secret(key.material.hex(), "a key of the keyset")
    await run_canary(canary, folder, redis.url, *wanted, keyset=keyset.as_text())
    out, err = capfd.readouterr()
    canary.hold("standard output", out)
    canary.hold("log lines", err)
    return canary


@pytest.mark.threat("T8", attack=True)
@pytest.mark.usefixtures("at_debug")
class TestCanary:
    async def test_no_secret_is_found_anywhere(
        self,
        tmp_path: Path,
        redis_server: RedisServer,
        capfd: pytest.CaptureFixture[str],
        record_property: Any,
    ) -> None:
        canary = await run_with_output(tmp_path, redis_server, capfd)
        finds = canary.finds()
        record_property(CANARY, canary.summary(len(finds)))
        assert not finds, "\n".join(finds)
        assert len(canary.paths) > 150
        assert len(canary.secrets) > 50
        # Every sink had something to look at.
        empty = [sink for sink, texts in canary.sinks.items() if not "".join(texts)]
        assert empty == ["standard output"]

    async def test_with_the_redaction_point_off_they_are_found(
        self,
        tmp_path: Path,
        redis_server: RedisServer,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logs, "redact", lambda value, name="": value)
        canary = await run_with_output(tmp_path, redis_server, capfd, "oanda")
        assert {find.partition(" holds")[0] for find in canary.finds()} == {"log lines"}


@pytest.mark.parametrize("form", ["a/secret+of=someone", "a%2Fsecret%2Bof%3Dsomeone", "YS9zZWNyZXQrb2Y9c29tZW9uZQ=="])
def test_a_secret_is_known_in_every_form_and_in_every_sink(form: str) -> None:
    canary = Canary()
    canary.add_secret("a/secret+of=someone", "api_key")
    canary.hold("one sink", "nothing")
    canary.hold("another", "first", f"before{form}".encode())
    assert canary.finds() == ["another holds api_key, after 'before'"]
