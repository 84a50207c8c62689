"""Personal data in free text: e-mail addresses, IBANs, card numbers, IP addresses and phone numbers.

Every pattern is written so that a text of any kind takes time linear in its length: what may repeat without bound is
possessive and tried at its first character only, all else has a bound.
"""

from __future__ import annotations

import re
from functools import partial
from ipaddress import IPv6Address
from re import Match

from features.patterns import END, ESCAPED, SHAPE_START, START, Detector, replace

# ---- e-mail

# A run of characters that may stand before the @ is tried only from its beginning. `%40` is the @ of URLs.
# What ends like a unit of systemd is one: user@1000.service.
_EMAIL = re.compile(
    r"(?<![\w.+%-])(?:[\w.+-]++|%(?!40))++(?:'[\w.+-]++){0,2}+(?:@|%40)"
    r"[\w-]++(?:\.[\w-]++)*\.(?!(?:service|socket|timer|slice|mount|target|device|scope)\b)"
    r"(?:xn--[\w-]++|[^\W\d_]{2,}+)"
)


def _may_hold_email(text: str, low: str, shape: str) -> bool:
    return "@" in text or "%40" in text


# ---- IBAN

_IBAN = re.compile(
    START
    + r"[A-Za-z]{2}[0-9]{2}(?:[0-9A-Za-z]{11,30}|(?:[ \u00a0-][0-9A-Za-z]{4}){2,7}(?:[ \u00a0-][0-9A-Za-z]{1,3})?)"
)
_IBAN_SHAPE = re.compile("aa00" + SHAPE_START.format("aa00") + r"(?:[a0]{11}|[ -][a0]{4}[ -][a0]{4})")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def _may_hold_iban(text: str, low: str, shape: str) -> bool:
    return "aa00" in shape and _IBAN_SHAPE.search(shape) is not None


def _iban_length(candidate: Match[str]) -> int:
    """A country's length, ISO 7064's mod 97, and no letter or digit right behind."""
    found = candidate.group()
    wanted = _IBAN_LENGTHS.get(found[:2].upper(), 0)
    at = [i for i, c in enumerate(found) if c.isalnum()][:wanted]
    if not wanted or len(at) < wanted:
        return 0
    length = at[-1] + 1
    behind = candidate.string[candidate.start() + length : candidate.start() + length + 1]
    if behind.isascii() and (behind.isalnum() or behind == "_"):
        return 0
    symbols = [found[i] for i in at]
    number = int("".join(str(int(c, 36)) for c in symbols[4:] + symbols[:4]))
    return length if number % 97 == 1 else 0


# ---- card numbers

# In one piece, or in the groups that are printed on cards, all with the same separator. A digit and a point before, or
# a point and a digit behind, make it part of a decimal number; a dash that joins nothing makes it a negative one.
_CARD = re.compile(
    START + r"(?<![0-9]\.)(?<![^0-9A-Za-z]-)(?<!\A-)"
    r"(?:[0-9]{13,19}|[0-9]{4}(?P<by>[ \u00a0-])[0-9]{4}(?P=by)[0-9]{4}(?P=by)[0-9]{4}(?P<more>(?P=by)[0-9]{1,3})?"
    r"|[0-9]{4}(?P<gap>[ \u00a0-])[0-9]{6}(?P=gap)[0-9]{4,5})"
    + END + r"(?!\.[0-9])"
)  # fmt: skip
_CARD_SHAPE = re.compile(
    "0000" + SHAPE_START.format("0000") + "(?<!_-0000)(?:0{9}|[ -]0000[ -]0000[ -]0000|[ -]000000[ -]0000)"
)
# How the numbers of card networks begin, and how long they are. Without this a tenth of all long numbers would pass
# the check digit, and a time in milli- or microseconds, which begins with 1, would pass as often.
_NETWORKS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-59]|[689][0-9])[0-9]{11,16}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # Diners Club, JCB
    r"|(?:5[0678]|6[0-57])[0-9]{14,17}"  # Maestro, Discover, UnionPay, RuPay
    r"|220[0-4][0-9]{12,15}|8[12][0-9]{14}|9792[0-9]{12}"  # Mir, RuPay, Troy
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # twice a digit, its own digits added up


def _may_hold_card(text: str, low: str, shape: str) -> bool:
    return _CARD_SHAPE.search(shape) is not None


def _card_length(candidate: Match[str]) -> int:
    """A network's number with a right check digit (Luhn)."""
    found = candidate.group()
    if _is_card(found):
        return len(found)
    # A fifth group may be something else that happens to stand behind, such as a date.
    shorter = found.removesuffix(candidate["more"] or "")
    return len(shorter) if _is_card(shorter) else 0


def _is_card(text: str) -> bool:
    digits = re.sub("[^0-9]", "", text)
    if _NETWORKS.fullmatch(digits) is None:
        return False
    numbers = [int(d) for d in reversed(digits)]
    return (sum(numbers[::2]) + sum(_DOUBLED[d] for d in numbers[1::2])) % 10 == 0


# ---- IP addresses

# The first digit comes first, for then the search skips to digits at the speed of C; what lies before it is looked at
# from there. Five numbers with points between are a version; so are four behind that word or a v, and Name/120.0.0.0.
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]{1,2})"
_IPV4 = re.compile(
    r"[0-9](?:(?<![0-9A-Za-z][0-9])|(?<=\\[nrt][0-9])|(?<=%[0-9A-Fa-f]{2}[0-9]))(?<![0-9]\.[0-9])(?<!ersion[ =:][0-9])"
    r"(?!(?<=[A-Za-z]/[0-9])[0-9]{0,2}\.0\.0\.0(?![.0-9]))"
    rf"(?:(?<=2)5[0-5]|(?<=2)[0-4][0-9]|(?<=[01])[0-9]{{2}}|[0-9])?(?:\.{_OCTET}){{3}}(?![0-9A-Za-z])(?!\.[0-9])"
)
_IPV4_SHAPE = re.compile(r"0\.0{1,3}+\.0{1,3}+\.0{1,3}+(?![a0])")
# A whole run of hexadecimal digits and colons, and perhaps an IPv4 address at its end.
_IPV6 = re.compile(
    rf"(?:(?<![0-9A-Za-z_:.])|{ESCAPED})[0-9A-Fa-f:]{{2,40}}+(?:(?:\.[0-9]{{1,3}}){{3}})?(?:%[0-9A-Za-z]{{1,16}})?{END}"
)


def _may_hold_ipv4(text: str, low: str, shape: str) -> bool:
    return _IPV4_SHAPE.search(shape) is not None


def _may_hold_ipv6(text: str, low: str, shape: str) -> bool:
    return "::" in text or text.count(":") > 6


def _ipv6_length(candidate: Match[str]) -> int:
    """An address with a decimal digit or three groups: `::` and `dead::beef` are more often code than addresses."""
    found = candidate.group()
    if found.endswith(":") and not found.endswith("::"):
        found = found[:-1]
    if not 2 <= found.count(":") <= 8 or ("::" not in found and found.count(":") < 6):
        return 0
    if not any(c in "0123456789" for c in found) and sum(map(bool, found.split(":"))) < 3:
        return 0
    try:
        IPv6Address(found)
    except ValueError:
        return 0
    return len(found)


# ---- phone numbers

_GAP = r"[ .()/\u00a0-]{0,2}"
_PHONE = re.compile(
    # +, a country code, 8 to 15 digits in all
    r"\+[1-9](?:" + _GAP + r"[0-9]){7,14}" + END + r"(?!\.[0-9])"
    # North America's way to write ten digits
    r"|" + START + r"(?<![.+-])(?:\([2-9][0-9]{2}\)[ ]?[2-9][0-9]{2}-|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1)[0-9]{4}"
    + END + r"(?![.-][0-9])"
)  # fmt: skip
_PHONE_SHAPE = re.compile(r"000[-.]000[-.]0000(?![a0])")
_NAMED_PHONE = re.compile(
    r"(?ai)((?:phone|mobile|msisdn|(?<![a-z])(?:tel|fax))(?:[_ -]?(?:number|no|nr))?"
    r"\\{0,4}[\"']?[ \t]{0,4}[:=][ \t]{0,4}\\{0,4}[\"']?)(?:\+|(?=[0-9(]))(?:" + _GAP + r"[0-9]){6,15}" + END
)  # fmt: skip


def _may_hold_phone(text: str, low: str, shape: str) -> bool:
    return "+0" in shape or "(000)" in shape or _PHONE_SHAPE.search(shape) is not None


def _phone_length(candidate: Match[str]) -> int:
    """A plus, digits and one point are a decimal number."""
    found = candidate.group()
    decimal = found.startswith("+") and found.count(".") == 1 and found[1:].replace(".", "").isdigit()
    return 0 if decimal else len(found)


def _may_hold_named_phone(text: str, low: str, shape: str) -> bool:
    return "phone" in low or "tel" in low or "mobile" in low or "fax" in low or "msisdn" in low


# An IBAN goes before a card number, because its digits may look like one; IPv6 before the IPv4 at its end.
PERSONAL_DATA = (
    Detector("e-mail", _may_hold_email, partial(_EMAIL.sub, "<email>")),
    Detector("IBAN", _may_hold_iban, partial(replace, _IBAN, _iban_length, "<iban>")),
    Detector("card", _may_hold_card, partial(replace, _CARD, _card_length, "<card>")),
    Detector("IPv6", _may_hold_ipv6, partial(replace, _IPV6, _ipv6_length, "<ip>")),
    Detector("IPv4", _may_hold_ipv4, partial(_IPV4.sub, "<ip>")),
    Detector("phone", _may_hold_phone, partial(replace, _PHONE, _phone_length, "<phone>")),
    Detector("named phone", _may_hold_named_phone, partial(_NAMED_PHONE.sub, r"\1<phone>")),
)
