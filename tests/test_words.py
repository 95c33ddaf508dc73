"""Words that made readers stumble do not come back, and neither do names that were replaced."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".md", ".proto", ".py", ".toml", ".yaml"}
SPECIAL_NAMES = {"Dockerfile", "Makefile"}
# Generated code repeats the comments of protos/; a changelog keeps its history; this file has the words themselves.
SKIPPED = ("exchange_service/v1/", "exchange_service/plugin_host/v1/", "CHANGELOG.md", "tests/test_words.py")

# What stumbles, and what to write in its place. A blank stands for any white space, line ends included.
WORDS = {
    r"\b(for|to|of|by|with|from|than|only|but|also) who\b": "a noun before it, or: if you ..., callers that ...",
    r"[.:;] Who\b(?![^.]*\?)": "a noun: a caller that ..., the operator",
    r"\b[Ww]hoever\b": "a noun: every caller that ..., a person who ...",
    r"\banew\b": "again",
    # "If there is none" is plain English; "that is none", "where there is none" and "is none of" are not.
    r"\b(?!there )\w+ (is|are|be|was) none\b": "is not a ...",
    r"\b(?![Ii]f )\w+ there (is|are|be|was) none\b": "if there is no ...",
    r"\b(is|are|be|was) none of\b": "is not a ..., does not count as a ...",
    r"\bso that it\b": "two sentences",
    r"\bof which\b[^.]{0,120}\bof which\b": "two sentences",
    r"\b(br(ing|ings|inging|ought)) (it |them )?along\b": "installs, contains, comes with",
    r"\blets? (it|them)sel(f|ves) be\b": "can be",
    r"\bin so many words\b": "explicitly",
    r"\bin earnest\b": "in production, really",
    r"\btheir kin\b": "similar ones",
    r"\bkeep their own manners\b": "behave differently",
    r"\bgets in who\b": "authenticates ...",
    r"\b([Hh]e|[Hh]im|[Hh]is|[Hh]imself)\b": "they, it, the caller, the user, the operator",
}

# Names that were replaced, and by what.
NAMES = {
    r"\bturn_kept\b": "lease_held",
    r"\bKeptBalances\b|\bkept_balances?\b": "CachedBalances, cached",
    r"\bat_hand\b": "get_local",
    r"\bclass _?Flight\b|\b_landed\b": "a single-flight call, _on_fetch_done",
    r"\bgave_up\b": "publish_abandoned",
    r"\bwake_with\b|\bwake_no_more\b|\b_heard\b": "add_listener, remove_listener, _on_message",
    r"\bPlaces\b|\b_Shelf\b|\bclass _?Place\b": "Bulkhead, compartment, slot; MailboxSlot; AssociatedData",
    r"\bUrgency\b|\bsomebody_waits\b": "Priority, promote",
    r"\bclass Budget\b|\bput_back\b": "RateLimiter, release",
    r"\bSharedCount\b|\bclass Share\b": "SharedRateLimits, QuotaStore",
    r"\bclass _?Pause\b": "Cooldown",
    r"\bclass _?Pace\b": "PollBackoff",
    r"\bclass _?Reading\b": "BalanceResult",
    r"\bmade_ready\b": "on_event_age",
    r"\bclass Proof\b": "PresentedCredentials, KeyCheck",
    r"\bclass Callers\b": "Authenticator",
    r"\bclass Boundary\b": "HandlerWrapper",
    r"\bnewer_introduction\b|\bintroduction\b": "manifest, refreshed_manifest",
    r"\bUnfit\b|\bclass Problem\b": "PluginRejected, PluginProblem",
    r"\bclass (Terms|Launch|Work|Condition)\b": "ProcessPolicy, LaunchSpec, ServeConfig, ProcessStatus",
    r"\bcall_overdue\b": "report_timeout",
    r"\bMeteredVenues\b|\bmetered_\w+": "instrumented, InstrumentedVenues",
    r"\b[Cc]heckups?\b": "credential_check",
    r"\bmisshapen\b": "shape_error",
    r"\bclass (Outcome|Row|State|Breaker)\b": "a name of its own for each",
    r"\bclass (Bench|Shifted)\b|\bpencil\b": "TestService, OffsetClock, fakey",
    r"\b[Ss]trangers?\b|\b[Kk]eepers?\b": "third-party plugin, another caller; reaper",
}

# (path, the matched text): places where the word is right.
ALLOWED = {
    # The state that a plugin keeps, a name of the plugin API.
    ("exchange_service/plugin_kit/state.py", "class State"),
}


@cache
def texts() -> dict[str, str]:
    """The project's own texts by path. Marks of comments and of joined literals are blanks, so that lines run on."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return {
        str(path): _run_on((ROOT / path).read_text())
        for path in paths
        if (path.suffix in SUFFIXES or path.name in SPECIAL_NAMES)
        and not str(path).startswith(SKIPPED)
        and (ROOT / path).is_file()
    }


def _run_on(text: str) -> str:
    def blanks(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"^[ \t]*(#|//)[#!]?", blanks, text, flags=re.MULTILINE)
    # The words of an address are its owner's.
    text = re.sub(r"https?://[^\s\"'`<>)\]]+", blanks, text)
    return re.sub(r'"\n[ \t]*[fr]?"', blanks, text)


def _hits(pattern: str) -> Iterator[str]:
    expression = re.compile(pattern.replace(" ", r"\s+"))
    for path, text in texts().items():
        for match in expression.finditer(text):
            if (path, " ".join(match[0].split())) not in ALLOWED:
                yield f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}"


@pytest.mark.parametrize(("pattern", "better"), WORDS.items())
def test_no_text_has_words_that_made_readers_stumble(pattern: str, better: str) -> None:
    hits = list(_hits(pattern))
    assert hits == [], f"write {better!r} in place of:\n" + "\n".join(hits)


@pytest.mark.parametrize(("pattern", "new"), NAMES.items())
def test_no_name_comes_back_that_was_replaced(pattern: str, new: str) -> None:
    hits = list(_hits(pattern))
    assert hits == [], f"the name is now {new}:\n" + "\n".join(hits)


def test_a_pattern_finds_its_words_across_lines_and_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = {"a.py": _run_on('# This is\n# none of ours.\nraise E("it is for "\n    "who asks")\n')}
    monkeypatch.setitem(globals(), "texts", lambda: sample)
    hits = [hit for pattern in WORDS for hit in _hits(pattern)]
    assert hits == ["a.py:3: for who", "a.py:1: This is none", "a.py:1: is none of"]


def test_the_words_of_an_address_are_its_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# See https://docs.acme.example/introduction, the manifest.\n# An introduction.\n"
    monkeypatch.setitem(globals(), "texts", lambda: {"a.py": _run_on(text)})
    assert [hit for pattern in NAMES for hit in _hits(pattern)] == ["a.py:2: introduction"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Empty if there is none.", False),
        ("If there\nare none, it waits.", False),
        ("Where there is none, it waits.", True),
        ("A value that is none.", True),
        ("This is none of them.", True),
    ],
)
def test_there_is_none_may_follow_if_alone(monkeypatch: pytest.MonkeyPatch, text: str, expected: bool) -> None:
    monkeypatch.setitem(globals(), "texts", lambda: {"a.md": text})
    assert any(hit for pattern in WORDS for hit in _hits(pattern)) is expected
