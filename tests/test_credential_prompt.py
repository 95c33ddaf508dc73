"""`credentials add` at a real terminal: a pasted key is stored whole or refused, and the shell gets none of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.commands import run_command

KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
ENCRYPTED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")).decode()
ENCRYPTED_BEFORE = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"word"))
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
WITHOUT_HEADER = "\n".join(PEM.splitlines()[1:-1]) + "\n"
NAME = "organizations/acme/apiKeys/one"
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# Seconds between the lines of a paste on a slow line: more than those after which a line that comes is a new answer.
SLOW = 0.2


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home / 'service.db'}",
    }


class Shell:
    """A person's terminal: it runs `credentials add` and then, as a shell, shows what is left in the input."""

    def __init__(self, home: Path, exchange: str) -> None:
        arguments = ("-m", "exchange_service", "credentials", "add", "-u", "alice", "-e", exchange)
        # `read` takes whatever is there already; a shell would run it.
        script = '"$@"; echo "code $?"; read -r -t 0.1 left; echo "left:$left:"'
        self.home, self.shown = home, ""
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(
                "/bin/bash",
                ["bash", "-c", script, "bash", sys.executable, *arguments],
                environment(home) | {"TERM": "xterm"},
            )

    def until(self, text: str, seconds: float = 30) -> None:
        limit = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, limit - time.monotonic()))
            assert ready, f"the terminal shows no {text!r}: {self.shown!r}"
            self.shown += COLOUR.sub("", os.read(self.terminal, 4096).decode())

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def paste(self, text: str, pause: float = 0.0) -> None:
        for line in text.splitlines(keepends=True):
            self.type(line)
            time.sleep(pause)

    def end(self) -> None:
        """Wait until the command and the shell have ended, and check that nothing of the input was left."""
        self.until("left:")
        self.until(":\r\n")
        os.waitpid(self.child, 0)
        os.close(self.terminal)
        assert "left::" in self.shown
        shown = self.shown.replace("\r", "").replace("\n", "")
        lines = [line for line in PEM.splitlines() + PUBLIC.splitlines() if "-----" not in line]
        assert not any(line in shown for line in lines)

    def stored(self) -> list[tuple[str, str]]:
        """The API keys and secrets in the database."""
        path = self.home / "service.db"
        with sqlite3.connect(path) as database:
            found = database.execute("select api_key, api_secret from bot_credentials").fetchall()
        database.close()
        return found


@pytest.mark.parametrize(
    ("text", "pause"),
    [(PEM, 0.0), (PEM, SLOW), (WITHOUT_HEADER, SLOW), (f'"{PEM.strip()}"\n', SLOW)],
    ids=["PEM", "PEM on a slow line", "no header on a slow line", "quoted on a slow line"],
)
def test_all_lines_of_a_pasted_key_are_stored(tmp_path: Path, text: str, pause: float) -> None:
    shell = Shell(tmp_path, "coinbase")
    shell.until("API key: ")
    shell.type(NAME + "\n")
    shell.until("API secret: ")
    shell.paste(text, pause)
    shell.until("Stored the credential")
    shell.end()
    assert shell.stored() == [(NAME, PEM.strip())]


@pytest.mark.parametrize(
    ("exchange", "text", "pause", "told"),
    [
        ("coinbase", ENCRYPTED, SLOW, "encrypted"),
        ("coinbase", PUBLIC, SLOW, "public key"),
        ("kraken", PEM, 0.0, "an EC key on the curve P-256"),
        ("coinbase", json.dumps({"name": NAME, "privateKey": PEM}, indent=1) + "\n", SLOW, "JSON object"),
    ],
    ids=["encrypted", "public", "HMAC alone", "JSON"],
)
def test_what_is_no_usable_key_is_refused_at_once(
    tmp_path: Path, exchange: str, text: str, pause: float, told: str
) -> None:
    shell = Shell(tmp_path, exchange)
    shell.until("API key: ")
    shell.type(NAME + "\n")
    shell.until("API secret: ")
    shell.paste(text, pause)
    shell.until("code 2")
    shell.end()
    assert "nothing was stored" in shell.shown
    assert told in shell.shown
    assert "--stdin" in shell.shown
    assert not (tmp_path / "service.db").exists() or shell.stored() == []


def test_a_key_that_is_pasted_for_another_field_is_refused_before_the_next_question(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "coinbase")
    shell.until("API key: ")
    shell.paste(PEM, 0.1)
    shell.until("code 2")
    shell.end()
    assert "api_key holds" in shell.shown
    assert "API secret" not in shell.shown


def test_lines_of_which_nothing_is_known_are_taken_as_one_paste(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "kraken")
    shell.until("API key: ")
    shell.type("abc\necho this is run\nand this\n")
    shell.until("code 2")
    shell.end()
    assert "several lines" in shell.shown
    assert "run" not in shell.shown


def test_a_terminal_that_marks_a_paste_may_bring_it_as_slowly_as_it_likes(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "kraken")
    shell.until("\x1b[?2004h")
    shell.until("API key: ")
    shell.paste("\x1b[200~abc\necho this is run\nand this\n", 0.5)
    shell.type("\x1b[201~\n")
    shell.until("code 2")
    shell.until("\x1b[?2004l")
    shell.end()
    assert "several lines" in shell.shown
    assert "run" not in shell.shown


def test_ctrl_c_in_the_middle_of_a_paste_leaves_nothing(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "coinbase")
    shell.until("API key: ")
    shell.type(PEM[:100].replace("\n", "\n"))
    shell.type("\x03" + PEM[100:])
    shell.until("left:")
    shell.end()
    assert "Stored" not in shell.shown


@pytest.mark.parametrize("text", [PEM, PEM.replace("\n", "\\n"), PEM.replace("\n", "\r\n"), WITHOUT_HEADER])
def test_by_standard_input_a_key_is_stored_in_its_lines(tmp_path: Path, text: str) -> None:
    done = add(tmp_path, json.dumps({"api_key": NAME, "api_secret": text}))
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "service.db") as database:
        assert database.execute("select api_secret from bot_credentials").fetchall() == [(PEM.strip(),)]


def test_the_lines_may_stand_in_the_object_as_they_are(tmp_path: Path) -> None:
    done = add(tmp_path, f'{{"api_key": "{NAME}", "api_secret": "{PEM}"}}')
    assert done.returncode == 0, done.stderr


def test_by_standard_input_it_says_at_once_what_is_wrong(tmp_path: Path) -> None:
    done = add(tmp_path, json.dumps({"api_key": NAME, "api_secret": PUBLIC}))
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing was stored: api_secret holds a public key.")
    for text, told in (
        (ENCRYPTED_BEFORE.decode(), "encrypted"),
        ("\n".join(PEM.splitlines()[:1] + PEM.splitlines()[2:]) + "\n", "beginning is missing"),
    ):
        done = add(tmp_path, json.dumps({"api_key": NAME, "api_secret": text}))
        assert done.returncode == 2
        assert told in done.stderr
    done = add(tmp_path, json.dumps({"api_key": NAME, "api_secret": "abc", "passphrase": PEM}))
    assert done.returncode == 2
    assert "passphrase holds" in done.stderr
    done = add(tmp_path, json.dumps({"extra_metadata": {"wallet_address": "0x" + "11" * 32}}), "hyperliquid")
    assert done.returncode == 2
    assert "extra_metadata.wallet_address is not a wallet address" in done.stderr


def add(home: Path, text: str, exchange: str = "coinbase") -> subprocess.CompletedProcess[str]:
    arguments = ("credentials", "add", "-u", "alice", "-e", exchange, "--stdin", "--replace")
    return run_command(arguments, environment(home), text)
