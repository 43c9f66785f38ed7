"""No secret and no signed query string gets into an error, a log line or a traceback."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.telemetry.redact import RedactingFilter, redact, shown_url

KEY = "K005-not-a-real-key-42"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.example/a/b.mp4?X-Amz-Signature=abc#f", "https://h.example/.../b.mp4"),
        ("https://h.example/t0ken/a/b.mp4", "https://h.example/.../b.mp4"),
        ("h.example/t0ken/b.mp4", "h.example/.../b.mp4"),
        ("https://user:pw@h.example/a", "https://h.example/a"),
        ("https://user:p@w@h.example/a", "https://h.example/a"),
        ("https://user:p?w@h.example/a", "https://[hidden]"),
        ("https://user:p#w@h.example/a", "https://[hidden]"),
        ("https://h.example?sig=a/b", "https://h.example"),
        ("https://h.example?sig=a@b", "https://[hidden]"),
        ("https://user:pw@h.example/a/@b", "https://h.example/.../@b"),
        ("http://[::1/x?sig=abc", "http://[::1/x"),
        ("http://user:pw@[::1/x", "http://[::1/x"),
        ("user:pw@host/path", "host/path"),
        ("file:///data/clip.mp4", "file:///.../clip.mp4"),
        ("http://h.example/\r\n\ud800", "http://h.example/%0D%0A%3F"),
    ],
)
def test_only_scheme_host_and_name_are_shown(url: str, shown: str) -> None:
    """Mend 4.10: a secret may be in the path too, so its middle is not shown."""
    assert shown_url(url) == shown


@given(st.text(st.characters(), max_size=80))
def test_any_text_can_be_shown(text: str) -> None:
    shown = shown_url(text)
    assert shown.isascii() and shown.isprintable() and "?" not in shown and "#" not in shown


def test_long_urls_are_cut() -> None:
    assert len(shown_url("http://h.example/" + "a" * 10_000)) < 400


@pytest.mark.parametrize(
    "line",
    [
        f"PUT https://s3.example/b/k?X-Amz-Credential={KEY}&X-Amz-Date=1 failed",
        f"https://{KEY}:x@host/path",
        f"https://user:{KEY}@host/path",
        f'"GET /b/k?AWSAccessKeyId={KEY}&Expires=1 HTTP/1.1" 200',
        f'"GET /b/k?x=1&Signature={KEY} HTTP/1.1" 200',
        f"sig: /path?X-Goog-Signature={KEY}",
        f"Authorization: Bearer {KEY}",
        f"authorization=Basic {KEY}",
        f"{{'Authorization': '{KEY}'}}",
        f"headers [(b'Authorization', b'{KEY}')]",
        f"api_key={KEY}",
        f"the key itself: {KEY}",
    ],
)
def test_secrets_leave_log_lines(line: str) -> None:
    known = [KEY] if "itself" in line else []
    assert KEY not in redact(line, known)


@given(st.text(st.characters(), max_size=200))
def test_redaction_takes_any_text(text: str) -> None:
    assert isinstance(redact(text, ["secret-one"]), str)


def logged(write: object) -> str:
    """Return what a handler with the filter prints."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter([KEY, None, "", "ab"]))
    logger = logging.Logger("test", logging.DEBUG)
    logger.addHandler(handler)
    assert callable(write)
    write(logger)
    return stream.getvalue()


def test_arguments_are_redacted() -> None:
    text = logged(lambda log: log.info("fetch %s with %r", "http://h/p?sig=1", {"k": KEY}))
    assert text == "fetch http://h/p with {'k': '[hidden]'}\n"


def test_tracebacks_are_redacted() -> None:
    def write(log: logging.Logger) -> None:
        try:
            raise ValueError(f"cannot open https://h/p?token={KEY}")
        except ValueError:
            log.exception("failed")

    text = logged(write)
    assert "ValueError" in text and "https://h/p" in text and KEY not in text


def test_a_wrong_format_string_costs_nothing() -> None:
    assert KEY not in logged(lambda log: log.info("%d bytes", KEY))


def test_short_words_are_not_secrets() -> None:
    assert "about" in logged(lambda log: log.info("about"))


@pytest.mark.parametrize(
    "piece", ["a-", "a", "http://", "https://a@", "x-amz-", "authorization: ", "token=", "a.a", "@"]
)
@pytest.mark.timeout(60)
def test_redaction_takes_time_in_proportion(piece: str) -> None:
    """With patterns that look again and again this took ten seconds, in the event loop."""
    redact(piece * (2_000_000 // len(piece)))
