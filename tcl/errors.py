"""Errors a user can act on. The command line prints `message`, then `hint`, and exits with `exit_code`."""

from __future__ import annotations

import re

LONGEST = 900  # characters of a line
_HIDDEN = "***"
_USER = re.compile(r"(https?://)[^/\s?#\"'<>]*@|(://[^/\s:@?#\"'<>]*:)[^/\s?#\"'<>]*(?=@)", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|(?:[a-z0-9]+[_-])*"
    r"(?:[a-z]*token|key|apikey|accesskey|sig|signature|secret|password|passwd|pwd|auth|authorization|credentials?))=)"
    r"[^&#\s!\"'<>]*?(?=[:,;.)\]]*(?:[&#\s!\"'<>]|$))",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text with the credentials of its URLs as `***`: `user:password@`, `?token=`, `X-Amz-...=`, `sig=`, `key=`.

    What shows or stores a URL for people does so by this; errors do it themselves.
    """
    before, mark, url = text.partition("://")
    if not mark:
        return text
    text = before + _SECRET.sub(rf"\1{_HIDDEN}", mark + url)
    return _USER.sub(lambda found: f"{found[1]}{_HIDDEN}@" if found[1] else f"{found[2]}{_HIDDEN}", text)


class TclError(Exception):
    """Something failed at run time.

    Args:
        message: one line that names the thing and the place.
        hint: what to do next, one line; printed below the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        # A damaged file may hold a text of any length where a name is expected.
        lines = [line if len(line) <= LONGEST else f"{line[:LONGEST]} ..." for line in message.split("\n")]
        self.message = without_secrets("\n".join(lines))
        self.hint = hint and without_secrets(hint)
        super().__init__(self.message)


class UsageError(TclError):
    """The command or its arguments cannot work: a missing path, a name that does not exist, an output in the way."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe is wrong: unknown key, wrong type, value out of range, or settings that contradict each other."""


class DataError(TclError):
    """The data cannot be read or holds nothing usable."""


class CheckpointError(TclError):
    """Weights or a training state cannot be read, or do not fit the model."""


class NonFiniteError(TclError):
    """A loss or gradient stopped being finite; the update was not applied."""


class VerificationError(TclError):
    """Something was written, but a check of its numbers failed."""

    exit_code = 3


class MissingExtraError(UsageError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed",
            hint=f"pip install '.[{extra}]'",
        )


def reason_of(error: BaseException) -> str:
    """What an error of a library says, on one line of at most 300 characters; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
