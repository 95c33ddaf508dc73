"""Keysets: their file, its rotation in one step, its rereading when it changes, and the secrecy of the keys."""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.credentials.key_providers import REREAD_AFTER, FileKeys, GivenKeys
from exchange_service.credentials.keyset_files import change_keyset_file, create_keyset_file, retired_file
from exchange_service.credentials.keysets import (
    KeyRefused,
    Keyset,
    KeysetInvalid,
    KeyUnknown,
    new_keyset,
    parse_keyset,
    read_keyset,
)
from exchange_service.errors import CredentialUnreadable
from tests.harness import Clock

ROW = b"this row"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keyset.json"
    create_keyset_file(path)
    return path


def rotated(keyset: Keyset) -> Keyset:
    return keyset.with_new_key(primary=True)


def rotate(path: Path) -> None:
    change_keyset_file(path, rotated)


def write(path: Path, text: str) -> None:
    """Write over the file, as no command of ours does."""
    path.write_text(text)
    path.chmod(0o600)


class TestFile:
    def test_a_new_one_is_for_our_user_alone_and_has_one_key(self, tmp_path: Path) -> None:
        path = tmp_path / "keyset.json"
        previous = os.umask(0)
        try:
            made = create_keyset_file(path)
        finally:
            os.umask(previous)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert read_keyset(path) == made
        assert list(made.keys) == [made.primary]

    def test_one_that_exists_is_never_overwritten(self, file: Path) -> None:
        before = file.read_bytes()
        with pytest.raises(KeysetInvalid, match="exists already"):
            create_keyset_file(file)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
    def test_one_on_which_others_have_rights_is_refused(self, file: Path, mode: int) -> None:
        file.chmod(mode)
        with pytest.raises(KeysetInvalid, match="chmod 600"):
            read_keyset(file)
        with pytest.raises(KeysetInvalid, match="chmod 600"):
            rotate(file)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")
    def test_one_of_roots_may_be_readable_for_the_group_of_a_service_of_another_user(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 10001)
        file.chmod(0o440)
        assert read_keyset(file).keys
        for mode in (0o460, 0o444, 0o441):
            file.chmod(mode)
            with pytest.raises(KeysetInvalid, match="chmod 600"):
                read_keyset(file)
        file.chmod(0o440)
        os.chown(file, 10002, 0)
        with pytest.raises(KeysetInvalid, match="chmod 600"):
            read_keyset(file)

    def test_one_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises(KeysetInvalid, match=str(path)):
                read_keyset(path)
        with pytest.raises(KeysetInvalid, match="cannot be made"):
            create_keyset_file(tmp_path / "no" / "folder.json")

    def test_a_rotation_adds_a_key_that_seals_and_leaves_the_older_ones(self, file: Path) -> None:
        before = read_keyset(file)
        rotate(file)
        after = read_keyset(file)
        assert after.primary != before.primary
        assert after.keys.keys() == {before.primary, after.primary}
        assert after.keys[before.primary] == before.keys[before.primary]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in file.parent.iterdir()] == [file.name]

    def test_its_owner_stays_the_same_when_another_user_rotates(self, file: Path) -> None:
        if os.geteuid() == 0:
            os.chown(file, 12345, 23456)
        before = file.stat()
        rotate(file)
        after = file.stat()
        assert after.st_ino != before.st_ino
        assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)

    def test_a_link_is_followed_and_stays_one(self, file: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.json"
        link.symlink_to(file)
        rotate(link)
        assert link.is_symlink()
        assert len(read_keyset(file).keys) == 2

    def test_rotations_at_the_same_time_lose_no_key(self, file: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(rotate, [file] * 12))
        assert len(read_keyset(file).keys) == 13

    def test_a_retired_key_is_stored_beside_the_file(self, file: Path) -> None:
        first = read_keyset(file)
        rotate(file)
        change_keyset_file(file, lambda keyset: keyset.without(first.primary))
        retired = retired_file(file, first.primary)
        assert read_keyset(retired) == first
        assert stat.S_IMODE(retired.stat().st_mode) == 0o600
        assert {path.name for path in file.parent.iterdir()} == {file.name, retired.name}

    def test_a_disk_that_is_full_leaves_the_keyset_as_it_was_and_no_half_file(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = file.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(KeysetInvalid, match=r"cannot be replaced \(No space left"):
                rotate(file)
            with pytest.raises(KeysetInvalid, match=r"cannot be made \(No space left"):
                create_keyset_file(tmp_path / "other.json")
        assert file.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        create_keyset_file(tmp_path / "other.json")

    def test_a_new_one_and_its_name_are_on_the_disk_before_it_seals(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: written.append(os.fstat(descriptor).st_ino))
        create_keyset_file(tmp_path / "keyset.json")
        assert written == [(tmp_path / "keyset.json").stat().st_ino, tmp_path.stat().st_ino]

    def test_a_change_that_is_refused_changes_nothing(self, file: Path) -> None:
        before = file.read_bytes()
        primary = read_keyset(file).primary
        with pytest.raises(KeysetInvalid, match="is the primary"):
            change_keyset_file(file, lambda keyset: keyset.without(primary))
        for change in (Keyset.without, Keyset.with_primary):
            with pytest.raises(KeysetInvalid, match="has no key other"):
                change_keyset_file(file, lambda keyset, change=change: change(keyset, "other"))  # type: ignore[misc]
        assert file.read_bytes() == before

    def test_a_key_may_be_added_first_and_seal_later(self, file: Path) -> None:
        primary = read_keyset(file).primary
        added = change_keyset_file(file, lambda keyset: keyset.with_new_key(primary=False))
        assert added.primary == primary
        (other,) = added.keys.keys() - {primary}
        assert change_keyset_file(file, lambda keyset: keyset.with_primary(other)).primary == other
        assert list(change_keyset_file(file, lambda keyset: keyset.without(primary)).keys) == [other]


KEY = base64.b64encode(bytes(32)).decode()
CREATED = "2026-11-22T10:00:00Z"
CANARY = "canary-9b1f"


def keyset_text(**changes: Any) -> str:
    return json.dumps({"primary": "a", "keys": {"a": {"key": KEY, "created": CREATED}}} | changes)


class TestForm:
    def test_what_is_written_is_read_again(self) -> None:
        keyset = rotated(new_keyset())
        assert parse_keyset(keyset.as_text()) == keyset

    @pytest.mark.parametrize(
        "text",
        [
            "",
            CANARY,
            "[]",
            "[" * 100_000,
            keyset_text(primary=CANARY),
            keyset_text(primary=None),
            keyset_text(keys={}),
            keyset_text(keys=[CANARY]),
            keyset_text(more=CANARY),
            keyset_text(keys={"a": KEY}),
            keyset_text(keys={"a": {"key": CANARY, "created": CREATED}}),
            keyset_text(keys={"a": {"key": KEY[4:], "created": CREATED}}),
            keyset_text(keys={"a": {"key": KEY, "created": CANARY}}),
            keyset_text(keys={"a": {"key": KEY, "created": "2026-11-22"}}),
            keyset_text(keys={"a": {"key": KEY}}),
            keyset_text(keys={"a:b": {"key": KEY, "created": CREATED}}, primary="a:b"),
        ],
    )
    def test_a_file_that_is_not_a_keyset_is_refused_without_being_shown(self, text: str) -> None:
        with pytest.raises(KeysetInvalid, match="cannot be used") as caught:
            parse_keyset(text)
        assert CANARY not in f"{caught.value!r}{caught.value.__context__!r}"

    def test_no_key_shows_itself(self, file: Path) -> None:
        keyset = read_keyset(file)
        secret = json.loads(file.read_text())["keys"][keyset.primary]["key"]
        raw = base64.b64decode(secret)
        text = f"{keyset!r} {keyset} {keyset.keys} {FileKeys(file)!r} {GivenKeys(keyset.as_text())!r}"
        assert keyset.primary in text
        for form in (secret, raw.hex(), repr(raw)[2:-1]):
            assert form not in text
        with pytest.raises(TypeError):
            pickle.dumps(keyset)


class TestWrapping:
    def test_every_key_opens_and_the_primary_seals(self) -> None:
        first = new_keyset()
        second = rotated(first)
        old_id, old = first.wrap(b"data key", ROW)
        new_id, new = second.wrap(b"data key", ROW)
        assert (old_id, new_id) == (first.primary, second.primary)
        assert second.unwrap(old_id, old, ROW) == second.unwrap(new_id, new, ROW) == b"data key"

    def test_nothing_opens_for_another_row_with_another_key_or_when_damaged(self) -> None:
        keyset, other = new_keyset(), new_keyset()
        key_id, wrapped = keyset.wrap(b"data key", ROW)
        impostor = Keyset(key_id, {key_id: other.keys[other.primary]})
        for keys, text, row in (
            (keyset, wrapped, b"another row"),
            (impostor, wrapped, ROW),
            (keyset, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), ROW),
            (keyset, wrapped[:20], ROW),
            (keyset, b"", ROW),
        ):
            with pytest.raises(KeyRefused) as caught:
                keys.unwrap(key_id, text, row)
            assert caught.value.__context__ is None
        with pytest.raises(KeyUnknown):
            other.unwrap(key_id, wrapped, ROW)

    def test_the_same_value_is_sealed_differently_each_time(self) -> None:
        keyset = new_keyset()
        assert len({keyset.wrap(b"data key", ROW) for _ in range(100)}) == 100


class TestKeysOfAFile:
    async def test_a_rotation_is_seen_within_seconds(self, file: Path) -> None:
        clock = Clock()
        keys = FileKeys(file, clock=clock)
        before = await keys.primary()
        rotate(file)
        assert await keys.primary() == before
        clock.now += REREAD_AFTER
        assert await keys.primary() == read_keyset(file).primary != before

    async def test_an_unknown_key_makes_the_file_be_read_at_once(self, file: Path) -> None:
        keys = FileKeys(file, clock=Clock())
        await keys.primary()
        rotate(file)
        key_id, wrapped = read_keyset(file).wrap(b"data key", ROW)
        assert await keys.unwrap(key_id, wrapped, ROW) == b"data key"
        with pytest.raises(KeyUnknown):
            await keys.unwrap("other", wrapped, ROW)

    async def test_a_file_that_breaks_leaves_the_last_good_keys_in_use_and_is_logged_once(self, file: Path) -> None:
        clock = Clock()
        keys = FileKeys(file, clock=clock)
        primary, good = await keys.primary(), read_keyset(file).as_text()
        with capture_logs() as lines:
            for text in ("", f'{{"{CANARY}"', "{}"):
                write(file, text)
                clock.now += REREAD_AFTER
                assert await keys.primary() == primary
            os.unlink(file)
            for _ in range(3):
                clock.now += REREAD_AFTER
                assert await keys.primary() == primary
        problems = [line["problem"] for line in lines if line["event"] == "keyset.unusable"]
        assert len(problems) == len(set(problems)) == 3
        assert CANARY not in str(lines)
        assert "cannot be read" in await keys.problem()
        write(file, good)
        assert await keys.problem() == ""

    async def test_without_a_usable_file_nothing_is_sealed_or_opened(self, tmp_path: Path) -> None:
        keys = FileKeys(tmp_path / "none.json")
        assert "none.json" in await keys.problem()
        for work in (keys.wrap(b"", ROW), keys.unwrap("a", b"", ROW), keys.primary(), keys.known()):
            with pytest.raises(CredentialUnreadable, match="keyset cannot be used") as caught:
                await work
            # Callers of the service need not know where its keys are.
            assert "none.json" not in str(caught.value)

    async def test_a_file_that_comes_later_is_used(self, tmp_path: Path) -> None:
        keys = FileKeys(tmp_path / "later.json", clock=Clock())
        assert await keys.problem()
        made = create_keyset_file(tmp_path / "later.json")
        assert await keys.primary() == made.primary


async def test_a_keyset_of_the_environment_is_used_as_it_is_or_refused_as_no_keyset() -> None:
    keyset = new_keyset()
    given = GivenKeys(keyset.as_text())
    assert (await given.problem(), await given.primary()) == ("", keyset.primary)
    assert await given.known() == {keyset.primary}
    broken = GivenKeys(CANARY)
    assert "not a JSON object" in await broken.problem()
    assert CANARY not in repr(broken)
    with pytest.raises(CredentialUnreadable):
        await broken.wrap(b"", ROW)
