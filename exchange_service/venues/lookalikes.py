"""Which ids and names a person may take for each other: equal but for case, separators, accents, or letters of other
alphabets that have the same shape."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Capitals and others that look like these Latin letters, before anything is taken away: as small letters, or without
# their form, they look like something else.
_CAPITALS = {
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹϲ", "ABEZHIKMNOPTYXCC", strict=True)),
    **dict(zip("АВЕЅІЈКМНОРСТУХЗЬ", "ABESIJKMHOPCTYX3b", strict=True)),
    **dict(zip("ᎪᏴᏟᎠᎬᏀᎻᎥᎫᏦᏞᎷᏢᏒᏚᎢᏙᎳᏃᎩ", "ABCDEGHIJKLMPRSTVWZY", strict=True)),
    **dict(zip("ꓮꓐꓚꓓꓰꓝꓖꓧꓲꓙꓗꓡꓟꓠꓳꓑꓣꓢꓔꓴꓦꓪꓫꓬꓜ", "ABCDEFGHIJKLMNOPRSTUVWXYZ", strict=True)),
}
_CAPITAL_OF = {ord(letter): latin for letter, latin in _CAPITALS.items()}
# Letters and digits that look like these Latin ones, after case and accents are taken away.
_SHAPES = {
    "a": "аαɑ@ᴀ",
    "b": "вьβʙƅ",
    "c": "сϲᴄⅽ",
    "d": "ԁɗđⅾ",
    "e": "еєεҽ℮",
    "f": "ƒϝ",
    "g": "ɡցԍɢ",
    "h": "һнհħʜ",
    "j": "јϳյ",
    "k": "кκᴋĸ",
    "l": "1i!|ıіιӏǀɩłⅼא",
    "m": "мᴍⅿ",
    "n": "ոηпɴ",
    "o": "0оοօσøᴏ๐໐",
    "p": "рρᴘ",
    "q": "ԛզ",
    "r": "гʀᴦ",
    "s": "5ѕ$ʂꜱ",
    "t": "тτᴛ",
    "u": "υսцᴜ",
    "v": "ѵνᴠⅴ",
    "w": "ԝωшᴡա",
    "x": "хχ×ⅹ",
    "y": "уүγʏ",
    "z": "2ᴢʐ",
}
_SHAPE_OF = {ord(letter): latin for latin, letters in _SHAPES.items() for letter in letters}
# Two letters that look like one.
_PAIRS = (("rn", "m"), ("vv", "w"))
# Alphabets whose letters look like Latin ones, by the first word of a letter's name.
_LIKE_LATIN = frozenset(
    {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU", "GEORGIAN", "HEBREW", "DESERET"}
)
# Characters that count as letters or signs, and show nothing.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code)
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
}


# Ids and names that the service knows; each is looked at again whenever a plugin gives a newer manifest.
@lru_cache(maxsize=4096)
def shape(text: str) -> str:
    """What is left of an id or a name once all is taken away that a reader may overlook."""
    letters = unicodedata.normalize("NFKD", text.translate(_CAPITAL_OF)).casefold()
    letters = "".join(map(_latin, unicodedata.normalize("NFKD", letters))).translate(_SHAPE_OF)
    plain = "".join(letter for letter in letters if letter.isalnum() and letter not in _INVISIBLE)
    for pair, single in _PAIRS:
        plain = plain.replace(pair, single)
    return plain


def _latin(letter: str) -> str:
    """The letter a for any Latin one that is derived from it, such as one with a stroke or a hook."""
    if letter.isascii():
        return letter
    words = unicodedata.name(letter, "").split()
    named = words[:3] == ["LATIN", "SMALL", "LETTER"] and len(words) > 3 and len(words[3]) == 1
    return words[3].lower() if named else letter


def is_printable(text: str) -> bool:
    """Whether each character of the text is shown as itself: no control, escape or direction characters, no line ends,
    no unusual or invisible blanks."""
    return text.isprintable() and not _INVISIBLE.intersection(text)


def mixes_alphabets(text: str) -> bool:
    """Whether a word has Latin letters beside those of an alphabet with letters of the same shape."""
    return any(_alphabets(word) & _LIKE_LATIN and "LATIN" in _alphabets(word) for word in text.split())


def _alphabets(word: str) -> frozenset[str]:
    return frozenset(unicodedata.name(letter, "").partition(" ")[0] for letter in word if letter.isalpha())
