r"""Credentials in free text: private keys, passwords in URLs, values with a telling name, and tokens with a known form.

As with personal data, every pattern takes time linear in the text's length.
"""

from __future__ import annotations

import re
from functools import partial

from features.patterns import ESCAPED, Detector

# ---- private keys: from the line that begins one to the line that ends it, or to the end of a text that was cut

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)


def _may_hold_private_key(text: str, low: str, shape: str) -> bool:
    return "-----BEGIN" in text


# ---- user:password@ in URLs

_URL_PASSWORD = re.compile(r"://[^\s:/?#\"'<>]*+:[^\s/?#\"'<>]+@")


def _may_hold_url_password(text: str, low: str, shape: str) -> bool:
    return "://" in text and "@" in text


# ---- values that a name gives away: password=..., "api_key": "...", --token ..., <password>...</password>

_NAME = (
    r"(?:passw(?:or)?d|passphrase|passcode|(?<=[?&])pass|secret|token|credentials?|authorization|signature|(?<=[?&])sig"
    r"|pwd(?![\"']?[ \t]{0,8}[:=][ \t]{0,8}[\"']?[/~])"  # a folder: sudo writes PWD=/root
    r"|(?:api|access|secret|private|account|encryption|signing|auth|client)[_ -]?key|(?<![a-z])(?:cvv|cvc|ssn))"
    r"(?:[_-]?(?:id|hash|value|[0-9]{1,2}))?"
)
_ASSIGN = r"\\*+[\"']?+[ \t]{0,8}(?:[:=]{1,2}>?|%3[DA])[ \t]{0,8}"
# Between quotes all up to the same quote. In JSON that stands in JSON the quotes have backslashes, and one with more of
# them than the first belongs to the value.
_QUOTED = r"(?:[^\\\"'\n]++|\\.|(?!(?P=quote))[\"'])++"
_ESCAPED = r"(?:[^\\\"'\n]++|(?!(?P=escaped))\\*+[\"']|\\++(?![\"']))++"
# Without quotes all up to a space or a quote. A comma, a semicolon, an ampersand or a bracket ends it only where
# something new begins behind; else it may be part of the password.
_BARE = (
    r"(?:(?:basic|bearer|digest|negotiate|token|apikey)[ \t]{1,8})?"
    r"(?:[^\s\"'\\,;&)\]}]|[,;&)\]}](?![\s\"'<,;&)\]}]|[.:!?]?(?:\s|\Z)|[\w.-]{1,40}+[:=])|\\++(?![\"']))++"
)
_NO_SECRET = (
    r"(?!(?:null|none|nil|true|false|undefined)(?![^\s\"'\\,;&)\]}])|[\[{](?:[\s\"'\\\[{]|\Z)"
    rf"|{_NAME}[\"']?[ \t]*+[:=])"
)
# The opening quote, if any, still belongs to the group `head`, which stays; hence the bracket that closes it.
_VALUE = (
    rf"(?:(?P<quote>[\"'])|(?P<escaped>\\++[\"']))?+){_NO_SECRET}(?(quote){_QUOTED}|(?(escaped){_ESCAPED}|{_BARE}))"
)
_ASSIGNED = re.compile(rf"(?ai)(?P<head>{_NAME}{_ASSIGN}{_VALUE}")
_OPTION = re.compile(rf"(?ai)(?P<head>(?<![\w-])--(?:[\w-]{{0,40}}-)?{_NAME}[ \t]{{1,8}}(?![-<]){_VALUE}")
_ELEMENT = re.compile(rf"(?ai)(?P<head><[\w.:-]{{0,40}}{_NAME}(?:\s[^<>]{{0,200}})?>)[^<]++(?=</)")
_COOKIE = re.compile(r"(?ai)(?P<head>cookie2?[\"']?[ \t]{0,8}:[ \t]{0,8}[\"']?)[^\r\n\"']++")


def _may_hold_secret(text: str, low: str, shape: str) -> bool:
    return (
        "pass" in low or "token" in low or "key" in low or "secret" in low or "pwd" in low or "credential" in low
        or "authoriz" in low or "signature" in low or "sig=" in low or "cvv" in low or "cvc" in low or "ssn" in low
    )  # fmt: skip


def _mask_secrets(text: str) -> str:
    text = _ASSIGNED.sub(r"\g<head><secret>", text)
    if "--" in text:
        text = _OPTION.sub(r"\g<head><secret>", text)
    if "</" in text:
        text = _ELEMENT.sub(r"\g<head><secret>", text)
    return text


def _may_hold_cookie(text: str, low: str, shape: str) -> bool:
    return "cookie" in low


# ---- tokens with a known form

_TOKEN = re.compile(
    rf"(?:(?<![0-9A-Za-z_-])|{ESCAPED})eyJ[\w-]{{13,}}(?:\.[\w-]*){{2,4}}"  # JWT and JWE
    rf"|(?:(?<![0-9A-Za-z])|{ESCAPED})(?:"
    r"A[KS]IA[A-Z0-9]{16}(?![0-9A-Za-z])"  # AWS
    r"|gh[pousr]_[0-9A-Za-z]{16,}|github_pat_[0-9A-Za-z]{10}\w{6,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[a-z]-[0-9A-Za-z-]{11,}|xapp-[0-9A-Za-z-]{11,}|hooks\.slack\.com/services/[\w/]{8,}"  # Slack
    r"|[srp]k_(?:live|test)_[0-9A-Za-z]{10,}|whsec_[0-9A-Za-z]{10}[0-9A-Za-z+/=]{6,}"  # Stripe
    r"|AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}"  # Google
    r"|sk-(?=[A-Za-z_-]{0,40}[0-9])[\w-]{20,}"  # OpenAI, Anthropic
    r"|npm_[0-9A-Za-z]{30,}|pypi-[\w-]{30,}|hf_[0-9A-Za-z]{30,}|shpat_[0-9a-fA-F]{32}"
    r"|dop_v1_[0-9a-f]{32,}|SG\.[\w-]{16,}\.[\w-]{16,})",
    re.ASCII,
)
_UNDERSCORED = re.compile("_[a0]{10}")  # in a shape
# The word is English too, so what follows must look like no word: eight characters with a digit, or sixteen.
_BEARER = re.compile(
    r"(?ai)(?P<head>(?<![a-z])bearer[ \t:=]{1,8})"
    r"(?:(?=[A-Za-z._~+/=-]{0,40}[0-9])[\w.~+/=-]{8,}|[\w.~+/=-]{16,})"
)


def _may_hold_token(text: str, low: str, shape: str) -> bool:
    return (
        "eyJ" in text or "AKIA" in text or "ASIA" in text or "AIza" in text or "ya29." in text or "SG." in text
        or "slack" in text or ("-" in text and _may_hold_dashed(text))
        or (_UNDERSCORED.search(shape) is not None and _may_hold_underscored(text))
    )  # fmt: skip


def _may_hold_dashed(text: str) -> bool:
    return "sk-" in text or "xox" in text or "xapp-" in text or "glpat-" in text or "pypi-" in text or "GOCSPX-" in text


def _may_hold_underscored(text: str) -> bool:
    return (
        "ghp_" in text or "gho_" in text or "ghu_" in text or "ghs_" in text or "ghr_" in text or "k_live_" in text
        or "k_test_" in text or "_pat_" in text or "whsec_" in text or "npm_" in text or "hf_" in text
        or "shpat_" in text or "dop_v1_" in text
    )  # fmt: skip


def _may_hold_bearer(text: str, low: str, shape: str) -> bool:
    return "bearer" in low


# What a name gives away goes before the tokens, for its value may hold more than the token.
CREDENTIALS = (
    Detector("private key", _may_hold_private_key, partial(_PRIVATE_KEY.sub, "<key>")),
    Detector("password in a URL", _may_hold_url_password, partial(_URL_PASSWORD.sub, "://<secret>@")),
    Detector("cookie", _may_hold_cookie, partial(_COOKIE.sub, r"\g<head><secret>")),
    Detector("secret", _may_hold_secret, _mask_secrets),
    Detector("bearer", _may_hold_bearer, partial(_BEARER.sub, r"\g<head><token>")),
    Detector("token", _may_hold_token, partial(_TOKEN.sub, "<token>")),
)
