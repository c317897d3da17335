"""Redaction of secrets in any encoding, and of nothing else."""

import html
import json
import tomllib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forwarder
from forwarder import redaction
from support import ROOT

# A trailing escape character merges with the text after it.
SECRETS = st.text(st.characters(codec="utf-8"), min_size=8, max_size=80).map(
    lambda text: text.rstrip("\\%&") + "7Q"
)
ENCODINGS: list[Callable[[str], str]] = [
    str,
    quote,
    lambda text: quote(text, safe=""),
    quote_plus,
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(json.dumps(text))[3:-3],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    html.escape,
    lambda text: html.escape(json.dumps(text)[1:-1]),
    lambda text: quote(json.dumps(text)[1:-1]),
    lambda text: b64encode(text.encode()).decode(),
    lambda text: quote(b64encode(f"user:{text}".encode()).decode(), safe=""),
    lambda text: urlsafe_b64encode(f"a{text}bc".encode()).decode(),
]


@pytest.fixture(autouse=True)
def no_secrets_afterwards() -> Iterator[None]:
    yield
    redaction.configure([])


@given(SECRETS)
def test_a_secret_is_redacted_in_each_encoding(secret: str) -> None:
    redaction.configure([secret])
    for encode in ENCODINGS:
        shown = redaction.redact(f"before {encode(secret)} after")
        assert shown.startswith("before ")
        assert shown.endswith(" after")
        assert "***" in shown
        inner = encode(secret)[3:-4]
        assert len(inner) < 6 or inner not in shown
        assert redaction.has_secret(f"before {encode(secret)} after".encode())


def test_only_the_latest_renewed_secrets_and_those_in_use_are_kept() -> None:
    """Each takes kilobytes and milliseconds, and the kubelet renews a token every hour."""
    redaction.configure(["secret-of-the-start"])
    tokens = [f"token-of-hour-{hour:04}" for hour in range(100)]
    for token in tokens:
        redaction.protect(token)
        redaction.protect("secret-in-use")
    for secret in "secret-of-the-start", "secret-in-use", *tokens[-8:]:
        assert redaction.redact(secret) == "***"
    assert redaction.redact(tokens[0]) == tokens[0]


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*"\\\\%&#;:xXuU0fFzé", "ud8", "UD9", "dc"]), max_size=30))
def test_any_text_without_a_secret_is_unchanged(parts: list[str]) -> None:
    """An invalid escape sequence is unchanged, such as a backslash, a capital U and some digits."""
    text = "".join(parts)
    assert redaction.redact(text) == text
    assert not redaction.has_secret(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "SharedAccessSignature sr=a&sig=***&se=1",
        "Authorization: Bearer ***, and more",
        "Endpoint=sb://a/;SharedAccessKey=***;EntityPath=hub",
        "GET http://***@host/path?*** failed",
        "key ***.",
    ],
)
def test_unknown_secrets_are_redacted_where_they_look_like_credentials(text: str) -> None:
    for unknown in ("x7" * 12, b64encode(b"k" * 32).decode()):
        if unknown.endswith("=") or "key ***" not in text:
            assert redaction.redact(text.replace("***", unknown)) == text


def test_texts_of_this_product_are_unchanged() -> None:
    causes = Path(forwarder.__file__).parent / "diagnosis/causes.toml"
    texts = [
        *strings(tomllib.loads(causes.read_text())),
        "it takes bearer tokens or basic authentication",
        "3f2b8a0c-6d5e-4c1b-9a57-2f64a1f0d3c9",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        *(ROOT / "chart/docs/operations.md").read_text().splitlines(),
    ]
    assert [text for text in texts if redaction.redact(text) != text] == []


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)


def test_digits_are_redacted_in_texts_and_not_in_numbers() -> None:
    redaction.configure(["20261126"])
    assert redaction.redact("pin 20261126, 120261126") == "pin ***, 120261126"
    assert redaction.redact("pin 20261126. .20261126") == "pin ***. .***"
    assert redaction.redact("1.20261126 20261126.5") == "1.20261126 20261126.5"
    assert redaction.redact('{"bytes":20261126}') == '{"bytes":20261126}'


@pytest.mark.parametrize(
    "hidden", "\0\x07\r\x1b\x7f\x9b\xad\u061c\u180e\u200b\u202e\u2066\ufeff\ufff9\U000e0041"
)
def test_characters_that_hide_or_reverse_text_are_escaped(hidden: str) -> None:
    shown = redaction.escape_hidden(f"a{hidden}b é漢😀\tc\n")
    assert shown == f"a\\u{ord(hidden):04x}b é漢😀\tc\n"
