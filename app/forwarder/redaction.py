"""Redaction: every text that leaves the process passes `redact`, and on a terminal `printable`.

Sinks, proxies and libraries quote what they were sent, so a secret may come back percent-encoded,
with JSON or HTML escapes, or inside longer base64. `redact` therefore also searches the text with
its escapes undone. It replaces the secrets of the settings, their base64, and what looks like a
credential. Call it before a text is shortened, because half a secret is not recognized.
"""

import math
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

_ROUNDS: Final = 4  # levels of escapes within escapes, such as JSON in JSON
_RENEWED: Final = 16  # secrets; older ones have expired
_MIN_BASE64: Final = 6  # characters; fewer occur by chance

_ESCAPE: Final = re.compile(
    rb"""%[0-9a-f]{2}  # of a URL
    | &(?:\#x?[0-9a-f]{1,6}|[a-z]{2,6});  # of HTML
    | \\(?:(?:ud[89ab][0-9a-f]{2}\\)?u[0-9a-f]{4}|x[0-9a-f]{2}|.)  # of JSON or Python
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_CONTROLS: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
# Each group is a secret. Placeholders in our own texts are not: USER:PASSWORD@, ?name=VALUE,
# ?name={value}, and a query of one number.
_LOOKS_SECRET: Final = re.compile(
    rb"""\b\w+://
        (?:(?!(?-i:[A-Z:]+@)) ([^\s/@"'<>]+)@)?  # the login in a URL
        [^\s?"'<>;&]*
        (?:\?(?!\w+=(?-i:[A-Z]+|\d+|\{\w+\})(?![^\s.,)|])) ([^\s"'<>)]+))?  # its query
    | (?:\b(?:sig|signature|sharedaccesskey|accountkey|password|\w+_token|\w+_secret)=
        | \b(?:bearer|basic)\ (?=\S*[0-9=+/.]\S)) ([^\s;&"'<>,]{6,})
    | \b(eyJ[\w-]{8,400}\.[\w-]+(?:\.[\w-]*)?)  # a JSON web token
    | (?<![\w+/])([a-z0-9+/]{43}=|[a-z0-9+/]{86}==)(?![\w+/=])  # a key of Event Hubs or Storage
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Controls but for line ends, tabs and the colours of `check`, and characters that hide others or
# change their direction.
_HIDDEN: Final = re.compile(
    "(?!\x1b\\[(?:0|1;31|2|32|33)m)[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_NEVER: Final = re.compile(rb"(?!)")


class _Known:
    """The secrets of this process, as they are, without escapes, and as base64."""

    secrets: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()
    spellings: frozenset[bytes] = frozenset()
    pattern = _NEVER

    def update(self) -> None:
        """Compute the spellings of the secrets, and the pattern for them."""
        known = filter(None, (*self.secrets, *self.renewed))
        # A form has + for a space, beside percent-encoding.
        raw = frozenset(_bytes(form) for one in known for form in (one, one.replace(" ", "+")))
        self.spellings = raw.union(
            *map(_base64, raw), *([plain for plain, _ in _unescaped(secret)] for secret in raw)
        )
        # The longest first, because the first alternative that matches counts. A secret of digits
        # must not match a number in JSON or a part of a longer number.
        words = (
            rb'(?<!\d)(?<!\d\.)(?<!":)%b(?!\.?\d)' % word if word.isdigit() else re.escape(word)
            for word in sorted(self.spellings, key=len, reverse=True)
        )
        self.pattern = re.compile(b"(%b)" % b"|".join(words)) if self.spellings else _NEVER


_known: Final = _Known()


def configure(secrets: Iterable[str]) -> None:
    """Set the secrets of this process."""
    _known.secrets, _known.renewed = tuple(secrets), ()
    _known.update()


def protect(secret: str) -> None:
    """Add a secret that is read while the process runs, such as a renewed token.

    Only the latest are kept, because a token that is renewed each hour would add thousands.
    """
    if not secret or secret in _known.secrets or secret in _known.renewed[-1:]:
        return
    others = (known for known in _known.renewed if known != secret)
    _known.renewed = (*others, secret)[-_RENEWED:]
    if _bytes(secret) not in _known.spellings:
        _known.update()


def has_secret(text: bytes) -> bool:
    """Return whether a secret may be in a text; fast enough for each batch of log entries.

    Secrets that are plain words, such as a header's value `production`, are ignored, because audit
    events contain such words.
    """
    for _ in range(_ROUNDS):
        if any(one in text for one in _known.spellings if not (one.isalpha() and one.islower())):
            return True
        if not any(mark in text for mark in (b"%", b"&", b"\\")):
            break
        text = _ESCAPE.sub(_unescape, text)
    return False


def redact(text: str) -> str:
    """Return the text with `***` in place of each secret."""
    raw = _bytes(text)
    spans = {
        (starts[match.start(group)], starts[match.end(group)])
        for plain, starts in _unescaped(raw)
        for pattern in (_known.pattern, _LOOKS_SECRET)
        for match in pattern.finditer(plain)
        for group in range(1, pattern.groups + 1)
        if match[group]
    }
    parts: list[bytes] = []
    done = 0
    for begin, end in sorted(spans):
        if end > done:
            parts += raw[done:begin], b"***"
            done = end
    return b"".join([*parts, raw[done:]]).decode("utf-8", "surrogatepass") if spans else text


def guard_streams() -> None:
    """Redact what is written to standard output and standard error from now on."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.write = partial(_write, stream.write)


def redact_all(value: Any) -> Any:
    """Return JSON types with every string in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_all(item) for name, item in value.items()}
    return [redact_all(item) for item in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """Return the text on one line, with escapes for what a terminal would interpret or hide."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def escape_hidden(text: str) -> str:
    """Return the text with escapes for controls and for characters that hide or reorder text.

    Unlike `printable`, it keeps line ends, tabs and the colours of `check`.
    """
    return _HIDDEN.sub(lambda char: f"\\u{ord(char[0]):04x}", text)


def _write(write: Callable[[str], int], text: str) -> int:
    write(escape_hidden(redact(text)))
    return len(text)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unescaped(text: bytes) -> Iterator[tuple[bytes, Sequence[int]]]:
    """Yield the text, then the text with its escapes undone once, twice and so on.

    The second value maps each index of the yielded text, including its end, to the original text.
    """
    starts: Sequence[int] = range(len(text) + 1)
    for _ in range(_ROUNDS):
        yield text, starts
        parts: list[bytes] = []
        origins: list[int] = []
        done = 0
        for match in _ESCAPE.finditer(text):
            char = _unescape(match)
            parts += text[done : match.start()], char
            origins += [*starts[done : match.start()], *[starts[match.start()]] * len(char)]
            done = match.end()
        if not done:
            return
        text = b"".join([*parts, text[done:]])
        starts = [*origins, *starts[done:]]


def _unescape(match: re.Match[bytes]) -> bytes:
    """Return what an escape stands for."""
    text = match[0]
    if text[:1] == b"%":
        return bytes.fromhex(text[1:].decode())
    if text[:1] == b"&":
        from html import unescape  # noqa: PLC0415 - its table of entities costs 0.4 MB

        return _bytes(unescape(text.decode()))
    char = text[1:]
    if len(char) == 1:
        return _CONTROLS.get(char, char)
    pair = text.lower().decode("unicode_escape").encode("utf-16-le", "surrogatepass")
    return _bytes(pair.decode("utf-16-le", "surrogatepass"))


def _base64(secret: bytes) -> set[bytes]:
    """Return the secret as it appears inside base64, for each of its three possible alignments."""
    spellings = set()
    for before in range(3):
        whole = b64encode(bytes(before) + secret)
        # Without the characters at both ends that also depend on the bytes next to the secret.
        core = whole[math.ceil(before * 8 / 6) : (before + len(secret)) * 8 // 6]
        if len(core) >= _MIN_BASE64:
            spellings |= {core, core.translate(bytes.maketrans(b"+/", b"-_"))}
    return spellings
