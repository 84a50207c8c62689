"""Free text without personal data and credentials, as far as detectors find them."""

from __future__ import annotations

from features.credentials import CREDENTIALS
from features.patterns import shape_of
from features.personal_data import PERSONAL_DATA

# Credentials first: a password may look like an address, and would otherwise be replaced in part.
DETECTORS = CREDENTIALS + PERSONAL_DATA
_WAYS = [(detector.may_hold, detector.mask) for detector in DETECTORS]


def redact(text: str) -> str:
    """Replace what the detectors find by labels such as `<email>`; what they do not find stays.

    Redacting twice changes nothing. Time grows linearly with the text's length.

    Examples
    --------
    >>> redact("mail from Ann@example.org, card 4111 1111 1111 1111, password=hunter2, v1.2.3.4")
    'mail from <email>, card <card>, password=<secret>, v1.2.3.4'
    """
    # Again until nothing changes, because a find may have hidden its neighbour: in `1.2.3.4::1` the second address
    # stands alone only once the first is a label. Each turn leaves fewer characters outside labels, so it ends.
    while True:
        low, shape, before = text.lower(), shape_of(text), text
        for may_hold, mask in _WAYS:
            if may_hold(before, low, shape):
                text = mask(text)
        if text == before:
            return text
