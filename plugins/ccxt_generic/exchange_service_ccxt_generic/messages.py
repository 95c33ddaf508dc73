"""What a venue's own sentence says is wrong, for the codes that no table has.

The venue's code is looked for first, and CCXT's class counts where the sentence says nothing more exact. Only the
members in which venues write errors are read, see `error_members`.
"""

from __future__ import annotations

import ipaddress
import re

from exchange_service_ccxt_generic.meanings import (
    ADDRESS,
    CLOCK,
    KEY,
    KEY_ADDRESS_OR_RIGHT,
    KEY_EXPIRED,
    LIMIT,
    MAINTENANCE,
    NONCE,
    OUTAGE,
    REGION,
    RIGHT,
    Meaning,
)

# The word alone, or a part of a name such as IP_FORBIDDEN, no_authorization_i_p or clientIp.
_IP = r"(?:(?<![a-z])ips?(?![a-z])|(?<![a-z])ip ?addr|\bi_p\b|_i_p\b|client_?ip\b|client[-_ ]address\b)"
_KEY = (
    r"(?:api[-_ ]?keys?|access[-_ ]?(?:key|id)|(?<!listen )(?<!withdraw )\bkeys?\b|apikey|credentials?|passphrase"
    r"|secret|jwt\b|(?:access|auth|bearer|session)[-_ ]tokens?\b)"
)
_WRONG = (
    r"(?:invalid|incorrect|wrong|not (?:valid|found|match|exist|correct)|mismatch|does(?:n't| not) (?:exist|match)"
    r"|unknown|illegal|failed|failure|error|refused|reject|revoked|disabled|missing|no such|verif|bad\b|not recognised)"
)
_TIME = (
    r"(?:time[-_ ]?stamp|request[-_ ]?time|recv[-_ ]?window|receive window|\bclock\b|\btonce\b"
    r"|(?:server|system|local|header|your|submission) time\b)"
)
_OFF = (
    r"(?:expired|outside|out of|ahead|behind|invalid|incorrect|too (?:old|early|late|far|small|large)|outdated|drift"
    r"|skew|differ|mismatch|less than|greater than|not valid|in the future|in the past|not within|exceed|stale)"
)
_NONCE_OFF = (
    r"(?:increment|increas|greater|higher|larger|small|low\b|below|less than|duplicat|already|used|repeat|unique"
    r"|reus|invalid|bad\b|too|wrong|incorrect|error)"
)


def _near(one: str, other: str, letters: int = 60) -> str:
    """A pattern for both words in one sentence, in either order."""
    return rf"(?:{one}[^.|]{{0,{letters}}}{other}|{other}[^.|]{{0,{letters}}}{one})"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_THREE_CAUSES = _pattern(rf"{_KEY}\W+(?:or )?{_IP}\W+(?:or )?permission")
_TOO_MANY = _pattern(
    r"rate[-_ ]?limit|too[-_ ]many[-_ ](?:new )?(?:requests?|visits|calls|api)|too[-_ ]frequent"
    r"|request(?:s|ed)?[-_ ](?:too[-_ ])?(?:frequen|often)|throttl|frequency (?:exceed|limit)|limit of requests"
    r"|slow down"
)
_REGION = _pattern(
    r"restricted (?:location|region|country|jurisdiction)|from a supported (?:location|region|country)|"
    + _near(
        r"(?:countr(?:y|ies)|\bregions?\b|jurisdiction|your location|located)",
        r"(?:not (?:support|avail|allow|permit|serv)|unsupported|unavailable|restrict|prohibit|blocked?|banned"
        r"|blacklist|denied)",
    )
)
_OTHER_LIST = _pattern(r"withdraw|deposit|recipient|beneficiary|crypto ?address|wallet address")
_ADDRESS = _pattern(
    _near(
        _IP,
        r"(?:not|white ?-?list|white_list|allow ?-?list|trusted|forbidden|denied|block|invalid|illegal|mismatch|match"
        r"|restrict|unauthori[sz]ed|no_authorization|unbound|bind|bound|incorrect|wrong|banned|access|verified)",
        100,
    )
    + r"|\bno_authorization_i_?p\b"
)
_MAINTENANCE = _pattern(
    r"maintenance(?! margin)|maintaining|being maintained|(?:is|are) being upgraded"
    r"|(?:system|server|service|engine) (?:is )?(?:being )?upgrad"
)
_CLOCK = _pattern(
    _near(_TIME, _OFF, 40)
    + r"|request (?:has |is )?expired|acceptable window|expired request|request_expired|out of sync"
    r"|signature[-_ ]?expired|expired[-_ ]signature"
)
_NONCE = _pattern(_near(r"nonces?", _NONCE_OFF, 40) + r"|\w*nonce(?:below|duplicate|toolow|small)\w*|\binvalidnonce\b")
_RIGHT = _pattern(
    r"(?:no|not have|without|insufficient|lacks?|missing|requires?|require more|incorrect|invalid|not enough)"
    r"[^.|]{0,30}(?:permission|privilege|access right|authority|\bscopes?\b|\brole\b)"
    r"|permissions?[-_ ]?(?:denied|missing|required|insufficient)|read access is required|out_of_scope"
    r"|not (?:allowed|permitted|enabled) (?:for|by|on) (?:this|your|the) (?:api )?key"
)
_EXPIRED = _pattern(_near(_KEY, r"expired", 20))
_KEY_WRONG = _pattern(
    _near(_KEY, _WRONG, 40)
    + "|"
    + _near(r"(?:signature|\bsign\b|sign(?:ed|ing))", _WRONG, 40)
    + r"|unauthori[sz]ed|not logged in|authentication[_ ]?(?:failed|failure|error|required)"
    r"|authorization (?:failed|error)|invalid[_ ](?:authorization|key)\b|invalid/no apikey|not authenticated"
)

# The key, the signature or the login itself, and not one of the key's rights.
_KEY_ITSELF = _pattern(
    _near(
        rf"(?:{_KEY}|signature|\bsign\b)",
        r"(?:invalid|incorrect|wrong|not (?:valid|found|match|exist|correct)|mismatch|does(?:n't| not) (?:exist|match)"
        r"|unknown|illegal|expired|revoked|verif|failed)",
        40,
    )
)
_OUTAGE = _pattern(
    r"(?:system|service|server|network|internal)s?[- ]?(?:is |are |server )?(?:currently |temporarily )?"
    r"(?:busy|error|abnormal|exception|failure|overload|unavailable)"
    r"|temporarily[-_ ]unavailable|try again (?:later|shortly|in a)|\boverloaded\b|deadline elapsed"
    r"|\btimed[-_ ]out\b|\btimeout\b"
)

# That a nonce has to grow: its refusal means that somebody else has used a greater one.
_NONCE_GROWS = _pattern(
    _near(r"nonces?", r"(?:increment|increas|greater|higher|larger|small|low|below|less than|already|used|reus)", 40)
)

# The classes of CCXT that say no more than that something is wrong: any sentence of the venue says more.
_VAGUE = frozenset(
    {"BaseError", "ExchangeError", "BadRequest", "OperationRejected", "OperationFailed", "ExchangeNotAvailable"}
)


def meaning_of(text: str, class_name: str) -> Meaning | None:
    """What the venue's sentence says more exactly than CCXT's class, by the class's name; None if nothing."""
    # The points in an address do not end a sentence.
    text = _ADDRESSES.sub(" IP ", text)
    if class_name in _VAGUE:
        return _of_vague(text)
    if class_name == "AuthenticationError":
        return _first(text, (_THREE_CAUSES, KEY_ADDRESS_OR_RIGHT)) or _place(text) or _time(text) or _right_alone(text)
    if class_name in ("PermissionDenied", "AccountSuspended"):
        return _first(text, (_THREE_CAUSES, KEY_ADDRESS_OR_RIGHT)) or _place(text)
    if class_name == "InvalidNonce" and _NONCE_GROWS.search(text):
        return NONCE
    return None


def _of_vague(text: str) -> Meaning | None:
    return (
        _first(text, (_THREE_CAUSES, KEY_ADDRESS_OR_RIGHT), (_TOO_MANY, LIMIT))
        or _place(text)
        or _first(text, (_MAINTENANCE, MAINTENANCE))
        or _time(text)
        or _first(text, (_RIGHT, RIGHT), (_EXPIRED, KEY_EXPIRED), (_KEY_WRONG, KEY), (_OUTAGE, OUTAGE))
    )


def _right_alone(text: str) -> Meaning | None:
    """That a right is missing, if the sentence blames neither the key itself nor its signature."""
    return RIGHT if _RIGHT.search(text) and not _KEY_ITSELF.search(text) else None


def _first(text: str, *pairs: tuple[re.Pattern[str], Meaning]) -> Meaning | None:
    return next((meaning for pattern, meaning in pairs if pattern.search(text)), None)


def _place(text: str) -> Meaning | None:
    """That the venue refuses where we call from: our region, or our address."""
    if _REGION.search(text):
        return REGION
    if _OTHER_LIST.search(text) or _TOO_MANY.search(text):
        # The address that is not on the list is one to send money to; or the limit counts by address.
        return None
    return ADDRESS if _ADDRESS.search(text) else None


def _time(text: str) -> Meaning | None:
    if _NONCE_GROWS.search(text):
        return NONCE
    return CLOCK if _CLOCK.search(text) or _NONCE.search(text) else None


# What may be an address, also within brackets or before a port.
_ADDRESSES = re.compile(
    r"(?:(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}|(?<![\w.:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w.]*\w)",
    re.IGNORECASE,
)
# Not an address of this service on the internet, whatever the venue means by it. Addresses that are reserved for
# documents do not occur.
_INSIDE = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.168.0.0/16", "224.0.0.0/3", "::/127", "fc00::/7", "fe80::/10", "ff00::/8"),
        ),
    )
)


def named_address(text: str) -> str:
    """The first public IP address that the venue's sentence names; empty if there is none."""
    for found in _ADDRESSES.findall(text):
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            continue
        if not any(address in network for network in _INSIDE if network.version == address.version):
            return str(address)
    return ""
