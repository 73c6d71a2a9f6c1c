"""Downloads by http and https, of which every error is one line with the URL."""

import base64
import contextlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import retinanet_jax

SCHEMES = ("http://", "https://")
CHUNK = 1 << 20  # bytes per read
TIMEOUT = 60.0  # seconds without a byte
MAX_SECONDS = 600.0  # of one image
MAX_BYTES = 1_000_000_000  # of one image
# The errors of a connection; those of the disk are OSErrors too.
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
# What servers send instead of an image: error pages, players, the streams of cameras.
WEB_PAGE, STREAMS = "text/html", ("video/", "audio/", "multipart/")
CREDENTIALS = re.compile(r"(?<=://)([^/?#]*)@")  # USER:PASSWORD@ in a URL
UNQUOTED = "%/:=&?~#+!$,;'@()*[]"  # what a URL may contain besides letters, digits and "_.-"


class DownloadError(OSError):
    """A file that cannot be downloaded; the message has the URL and what to do."""


def is_url(text: str) -> bool:
    """Return whether a text is the URL of what can be downloaded."""
    return text.lower().startswith(SCHEMES)


def public_url(url: str) -> str:
    """Return a URL without a user's name and password, for messages and files."""
    return CREDENTIALS.sub("", url, count=1)


def split_url(url: str) -> urllib.parse.SplitResult:
    """Return the parts of a URL, without a user's name and password.

    Args:
        url: The URL.

    Raises:
        ValueError: If it is invalid.
    """
    public = public_url(url)
    try:
        return urllib.parse.urlsplit(public)
    except ValueError as error:
        raise ValueError(f"{public}: is no valid URL ({error}); check it.") from None


@contextlib.contextmanager
def opened_url(url: str, fix: str) -> Iterator[http.client.HTTPResponse]:
    """Open a URL to read what its server sends.

    Args:
        url: The URL; a user's name and password in it are sent as HTTP's basic authentication.
        fix: What to do if it cannot be read, the end of the error message.

    Raises:
        DownloadError: If it cannot be opened, or the connection ends while it is read.
    """
    try:
        with _open(url) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()  # it is also the response
        answer = f"{error.code} {error.reason}"
        raise DownloadError(f"{public_url(url)} answers {answer}; {fix}") from None
    except NETWORK_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{public_url(url)} cannot be reached ({reason}); {fix}") from None


def _open(url: str) -> http.client.HTTPResponse:
    agent = {"User-Agent": f"retinanet_jax/{retinanet_jax.__version__}"}  # some hosts require one
    quoted = urllib.parse.quote(public_url(url), safe=UNQUOTED)
    try:
        request = urllib.request.Request(quoted, headers=agent)
        if credentials := CREDENTIALS.search(url):
            encoded = base64.b64encode(urllib.parse.unquote_to_bytes(credentials[1])).decode()
            # Not for the host that a redirection names.
            request.add_unredirected_header("Authorization", f"Basic {encoded}")
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except ValueError as error:  # no host can have this name
        raise urllib.error.URLError(str(error)) from None


def num_bytes_of(response: http.client.HTTPResponse) -> int:
    """Return the number of bytes that a server announces; 0 if it does not, or no number."""
    announced = response.headers.get("Content-Length", "")
    return int(announced) if announced.isdecimal() else 0


def download_image(url: str) -> bytes:
    """Return the content of an image file.

    Args:
        url: Its URL.

    Raises:
        DownloadError: If it cannot be downloaded, or only within more than MAX_SECONDS, or has more
            than MAX_BYTES, or is of a type that is no image's.
    """
    name = public_url(url)
    fix = "check the URL, or download the file and give its path."
    end, content = time.monotonic() + MAX_SECONDS, bytearray()
    with opened_url(url, fix) as response:
        content_type, total = response.headers.get_content_type(), num_bytes_of(response)
        if content_type == WEB_PAGE:
            raise DownloadError(f"{name} is {content_type} and no image; give an image's own URL.")
        if content_type.startswith(STREAMS):
            raise DownloadError(
                f"{name} is {content_type} and no image; the URL of a video, or of a camera's "
                "stream, is given to predict as --camera=URL."
            )
        # A server that sends single bytes must not keep one call waiting: `read1` does not.
        while chunk := response.read1(CHUNK):
            content += chunk
            if max(len(content), total) > MAX_BYTES:
                raise DownloadError(f"{name} has more than {MAX_BYTES / 1e6:.0f} MB; {fix}")
            if time.monotonic() > end:
                raise DownloadError(f"{name} sends for more than {MAX_SECONDS:.0f} seconds; {fix}")
    if len(content) < total:
        raise DownloadError(f"{name} sent {len(content)} of {total} bytes; run this again.")
    return bytes(content)
