"""What an error of the object store's library means, in words and with what to do; without anything that is secret.

The library's own texts hold the answer's body and the address with its query, where keys and signatures may stand.
Nothing of them is passed on but the status, and the error code that the store gave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_CODE = re.compile(r"<Code>\s*(\w{1,60})\s*</Code>")
_STATUS = re.compile(r"status code: (\d{3})|\bstatus: (\d{3}),")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_PATH = re.compile(r'(?:[Pp]ath|location) "((?:[^"\\]|\\.){1,1000})"')
_CREDENTIAL_PLACES = (
    "169.254.",
    "metadata.google.internal",
    "login.microsoftonline.com",
    "oauth2",
    "sts.",
    "Credential",
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """`what` fits after "cannot read URL:". `passes` is true of what may be gone a moment later.

    `code` is the store's word for it, or the status of its answer.
    """

    what: str
    advice: str
    passes: bool = False
    code: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.code})" if self.code else self.what


_AGAIN = "then run the same command again, what is finished is kept"
MISSING = Trouble("there is no such object", "see to the address")
THROTTLED = Trouble(
    "the store is overloaded and wants fewer requests", f"wait or use fewer workers, {_AGAIN}", passes=True
)
BROKEN = Trouble("the store failed", f"wait until it works, {_AGAIN}", passes=True)
TIMED_OUT = Trouble("no answer came in time", f"see to the network and the endpoint, {_AGAIN}", passes=True)
CUT = Trouble("the connection was lost", f"see to the network and the endpoint, {_AGAIN}", passes=True)
UNREACHABLE = Trouble(
    "the endpoint cannot be reached",
    f"see to the network, and to AWS_ENDPOINT_URL where that is set, {_AGAIN}",
    passes=True,
)
NO_BUCKET = Trouble("there is no such bucket", "create it, or correct its name")
NO_CREDENTIALS = Trouble(
    "no credentials were found",
    "set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
    "AZURE_STORAGE_ACCOUNT_KEY; docs/storage.md has all ways), or AWS_SKIP_SIGNATURE=true for a public bucket",
)
BAD_CREDENTIALS = Trouble(
    "the credentials were not accepted", f"correct or renew the ones in the environment (docs/storage.md), {_AGAIN}"
)
FORBIDDEN = Trouble(
    "the credentials do not allow it",
    "ask for the right to list, read and write there, or use others (docs/storage.md)",
)
ELSEWHERE = Trouble("the bucket lies in another region", "set AWS_REGION to the bucket's region")
CLOCK = Trouble("this machine's clock is wrong", "set the clock")
ARCHIVED = Trouble("the object is in an archive", "restore it to a class of storage that can be read")
EMPTY = Trouble("the object has no such bytes", "it was changed meanwhile, or is empty")
WHOLE = Trouble("the server gave a whole object where a part was wanted", "use a server that knows the Range header")
NOT_SUPPORTED = Trouble(
    "the server does not know a request that this program needs",
    "it needs PUT with If-None-Match; update the server, or write to another store",
)
ODD_KEY = Trouble("there is an object whose key cannot be reached", "rename it, or name the folders beside it")

_BY_CODE = {
    **dict.fromkeys(["NoSuchKey", "BlobNotFound"], MISSING),
    **dict.fromkeys(["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"], NO_BUCKET),
    **dict.fromkeys(["SlowDown", "RequestLimitExceeded", "TooManyRequests", "Throttling", "ServerBusy"], THROTTLED),
    **dict.fromkeys(["RequestTimeout", "OperationTimedOut"], TIMED_OUT),
    **dict.fromkeys(["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"], BAD_CREDENTIALS),
    **dict.fromkeys(["TokenRefreshRequired", "AuthenticationFailed", "InvalidAuthenticationInfo"], BAD_CREDENTIALS),
    **dict.fromkeys(["PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"], ELSEWHERE),
    **dict.fromkeys(["InvalidObjectState", "BlobArchived"], ARCHIVED),
    "RequestTimeTooSkewed": CLOCK,
    "ConditionalRequestConflict": THROTTLED,
    "NotImplemented": NOT_SUPPORTED,
}
_BY_STATUS = {
    **dict.fromkeys([301, 307], ELSEWHERE),
    401: BAD_CREDENTIALS,
    403: FORBIDDEN,
    404: MISSING,
    **dict.fromkeys([408, 504], TIMED_OUT),
    **dict.fromkeys([409, 429, 503], THROTTLED),
    416: EMPTY,
    501: NOT_SUPPORTED,
}
_BY_KIND = {"Timeout": TIMED_OUT, "Connect": UNREACHABLE, "Request": CUT, "Interrupted": CUT, "Decode": CUT}


def understand(error: Exception) -> Trouble:
    """What an exception of obstore's comes from."""
    text = str(error)
    status, code = _status(text), _CODE.search(text)
    if type(error).__name__ == "InvalidPathError":
        return replace(ODD_KEY, what=f"{ODD_KEY.what}: {_odd_key(text)}")
    if code and code[1] in _BY_CODE:
        return replace(_BY_CODE[code[1]], code=f"{status} {code[1]}" if status else code[1])
    if any(place in text for place in _CREDENTIAL_PLACES):
        return NO_CREDENTIALS
    if status:
        known = _BY_STATUS.get(status, BROKEN if status >= 500 else None)
        named = f"{status} {code[1]}" if code else str(status)
        return replace(known or Trouble("the store refused it", "see to its settings"), code=named)
    if "redirect" in text:
        return ELSEWHERE
    if "non-partial" in text:
        return WHOLE
    if isinstance(error, FileNotFoundError):
        return MISSING
    kind = _KIND.search(text)
    if kind:
        return UNREACHABLE if "ConnectError" in text else _BY_KIND.get(kind[1], CUT)
    return Trouble(f"the store's library failed with {type(error).__name__}", "please report this as an issue")


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0


def _odd_key(text: str) -> str:
    found = _PATH.search(text)
    return repr(found[1]) if found else "a part of it is empty, . or .., or it has control characters"
