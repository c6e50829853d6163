"""Takes passwords, tokens and keys out of text that is logged, tracked or shown."""

from __future__ import annotations

import re

#: Names of secrets, with any prefix such as `aws_` or `X-Amz-`.
_NAMES = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret(?:[_-]?access)?(?:[_-]?key)?|token|api[_-]?key"
    r"|access[_-]?key(?:[_-]?id)?|account[_-]?key|shared[_-]?access[_-]?(?:key|signature)"
    r"|private[_-]?key|signature|credentials?|authorization)"
)
#: What secrets are replaced by, in order. An address whose password holds a slash counts as one up
#: to its last @, unless the colon is followed by a port.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, flags, replacement in (
        (r"(\w://)[^/\s]+@", 0, r"\1***@"),
        (r"(\w://)[^/\s:@]*:(?!\d{1,5}(?:[/\s]|$))[^\s\"'<>]*@", 0, r"\1***@"),
        (r"(%3A%2F%2F)(?:(?!%2F)[^\s/&])+(%40)", re.IGNORECASE, r"\1***\2"),
        (r"(jdbc:oracle:\w+:)[^@\s]+@", re.IGNORECASE, r"\1***@"),
        (r"(?<![\w/.+@:-])[\w.+-]+:[^\s@/:]+@(?=[\w.-]+)", 0, "***@"),
        (r"\b(Bearer|Basic|Digest)\s+[\w.~+/=-]{12,}", 0, r"\1 ***"),
        (rf"({_NAMES}[\"']?\s*[=:]\s*)\"[^\"]*\"", re.IGNORECASE, r'\1"***"'),
        (rf"({_NAMES}[\"']?\s*[=:]\s*)'[^']*'", re.IGNORECASE, r"\1'***'"),
        (rf"({_NAMES}\s*=\s*)(?:\\\s|[^\s,;&#\"'])+", re.IGNORECASE, r"\1***"),
        (rf"({_NAMES}:\s+)(?!\*\*\*|Bearer|Basic|Digest)[\w.~+/=-]{{8,}}", re.IGNORECASE, r"\1***"),
        (rf"({_NAMES}%3D)(?:(?!%3B|%26)[^\s&;])+", re.IGNORECASE, r"\1***"),
        (r"([?&#;](?:sig|key|code|auth|session|jwt)=)[^&\s#;\"']+", re.IGNORECASE, r"\1***"),
        # Webhooks: who knows the address can send.
        (
            r"(https?://(?:hooks\.slack\.com|[\w.-]*\.webhook\.office\.com|hc-ping\.com)/)[^\s\"'<>]+",
            re.IGNORECASE,
            r"\1***",
        ),
        (r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}\b", 0, "***"),
        (r"\b(?:gh[pousr]_|github_pat_|hf_|xox[abp]-|glpat-)[\w-]{16,}", 0, "***"),
        # A secret key of AWS: 40 characters of base64, unlike a hash in hex or a path.
        (
            r"(?<![\w/+=.-])(?=[\w/+]*[A-Z])(?=[\w/+]*[a-z])(?=[\w/+]*\d)[A-Za-z0-9+]"
            r"[A-Za-z0-9/+]{39}(?![\w/+=.-])",
            0,
            "***",
        ),
    )
)


def redact(text: str) -> str:
    """Replace passwords, tokens and keys by ***: in addresses, queries, headers and settings."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
