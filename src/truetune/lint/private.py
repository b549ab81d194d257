"""What must not be learned, and stands in no report: secrets by their forms, addresses and numbers of people."""

import re
from collections.abc import Iterator, Mapping

from truetune.lint.parts import Finding, Parts

_SECRETS: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "a private key": ("PRIVATE KEY", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s+\S{16}")),
    "an AWS access key": ("AKIA", re.compile(r"\bAKIA[A-Z2-7]{16}\b")),
    "a temporary AWS access key": ("ASIA", re.compile(r"\bASIA[A-Z2-7]{16}\b")),
    "a GitHub token": ("gh", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b")),
    "a GitHub token (fine-grained)": ("github_pat_", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{50,}")),
    "a GitLab token": ("glpat-", re.compile(r"\bglpat-[\w-]{20,}")),
    "a Hugging Face token": ("hf_", re.compile(r"\bhf_[A-Za-z]{30,}\b")),
    "an OpenAI or Anthropic key": ("sk-", re.compile(r"\bsk-(?:proj-|svcacct-|ant-[a-z]+\d*-)?[A-Za-z0-9_-]{32,}")),
    "a Slack token": ("xox", re.compile(r"\bxox[abprs]-\d{8,}-[A-Za-z0-9-]{10,}")),
    "a Google API key": ("AIza", re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b")),
    "a Stripe key": ("_live_", re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}\b")),
    "an npm token": ("npm_", re.compile(r"\bnpm_[A-Za-z0-9]{36}\b")),
    "a PyPI token": ("pypi-", re.compile(r"\bpypi-AgE[\w-]{50,}")),
    "a web token (JWT)": ("eyJ", re.compile(r"(?<![\w-])eyJ[\w-]{10,4000}\.eyJ[\w-]{10,4000}\.[\w-]{10,}")),
    "a password in an address": ("://", re.compile(r"\b[a-z][a-z0-9+]{2,15}://[^\s:/@<>{}$]{1,40}:[^\s:/@<>{}$]{4,60}@[\w.-]+")),
}  # fmt: skip
"""What each kind of secret is called, a literal that it has, and its pattern."""
_SHOWN = 8
_SAMPLE = re.compile(
    r"example|sample|dummy|xxxx|placeholder|your|test|(.)\1{7}|abcdef|123456|password@|:pass", re.IGNORECASE
)


def secrets(parts: Parts) -> Iterator[Finding]:
    """Keys and tokens by the forms that their makers gave them. Samples (EXAMPLE, xxxx) are none."""
    for part in parts:
        for kind, (literal, pattern) in _SECRETS.items():
            if literal not in part.text:
                continue
            match = next((each for each in pattern.finditer(part.text) if not _SAMPLE.search(each[0])), None)
            if match:
                # The secret itself must not stand in reports.
                yield part, f"holds {kind}: {match[0][:_SHOWN]}…"
                break


_MAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z][\w-]{0,62}\.)+[A-Za-z]{2,24}\b")
_MADE_UP_MAIL = re.compile(
    r"@(?:[\w.-]*\.)?(?:example|test|invalid|localhost|domain|email|mail|company|yourcompany|sample|abc|xyz)\b"
    r"|\.(?:local|internal|lan|png|jpe?g|gif|svg|webp|js|ts|py|dev)$"
    r"|^[a-z]{1,5}@gmail\.com$"  # Google gives none of fewer than six letters.
    r"|^(?:user|username|your|name|someone|john|jane|no-?reply|info|support|contact|admin|hello|sales|help|test|press|git)"
    r"[\w.+-]*@",
    re.IGNORECASE,
)
# North America's (no area or exchange begins with 0 or 1), and others with their country's code.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:(?:\+1[ .-]?)?\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[ .-]\d{4}|\+[2-9][\d .()-]{7,22}\d)(?![\w-])"
)
_LIKE_PHONE = re.compile(r"\d[ .-]\d{4}(?!\d)")
_MADE_UP_PHONE = re.compile(r"\D555\D|1234567|(\d)\1{5}")


def personal_data(parts: Parts) -> Iterator[Finding]:
    """Addresses and telephone numbers of people. Those of firms' desks, of examples and of films (555) are none."""
    for part in parts:
        if "@" in part.text:
            found = next((each[0] for each in _MAIL.finditer(part.text) if not _MADE_UP_MAIL.search(each[0])), None)
            if found:
                yield part, f"holds the e-mail address {_masked(found)}"
                continue
        if not (_LIKE_PHONE.search(part.text) or "+" in part.text):
            continue
        found = next(filter(_is_phone, (each[0] for each in _PHONE.finditer(part.text))), None)
        if found:
            yield part, f"holds the telephone number {_masked(found)}"


def _is_phone(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return 9 <= digits <= 15 and not _MADE_UP_PHONE.search(f" {text}")


def _masked(text: str) -> str:
    """So much of it as finds it again."""
    return f"{text[:3]}…{text[-3:]}"


_WHOLE_KEY = re.compile(r"(-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s+)\S{16}.*?(?=-----END|\Z)", re.DOTALL)


def without_secrets(text: str) -> str:
    """The text with what the rules secret and personal-data would find in it shortened as their messages have it."""
    text = _WHOLE_KEY.sub(r"\1…\n", text)
    for literal, pattern in _SECRETS.values():
        if literal in text:
            text = pattern.sub(lambda found: found[0] if _SAMPLE.search(found[0]) else f"{found[0][:_SHOWN]}…", text)
    if "@" in text:
        text = _MAIL.sub(lambda found: found[0] if _MADE_UP_MAIL.search(found[0]) else _masked(found[0]), text)
    return _PHONE.sub(lambda found: _masked(found[0]) if _is_phone(found[0]) else found[0], text)
