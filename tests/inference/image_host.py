"""A server on this machine that sends images, and what servers send instead of them."""

import http.server
import time


class ImageHost(http.server.ThreadingHTTPServer):
    """A server of `files`, by their paths.

    Attributes:
        files: The content of each file by its path, with the query.
        content_types: The type of each file by its path; that of any content if it is missing.
        announced: What a server states as the length of a file, by its path, if that is wrong.
        withheld: How many bytes at the end of each file are never sent, by its path.
        pause: Seconds between two bytes of the files that have such bytes.
        agents: The user agents that asked for files.
        authorizations: What they sent to be allowed to; None for nothing.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.content_types: dict[str, str] = {}
        self.announced: dict[str, str] = {}
        self.withheld: dict[str, int] = {}
        self.pause = 0.0
        self.agents: list[str] = []
        self.authorizations: list[str | None] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: ImageHost

    def do_GET(self):
        path = self.path.removeprefix("/")
        self.server.agents.append(self.headers["User-Agent"])
        self.server.authorizations.append(self.headers["Authorization"])
        if path == "moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if path not in self.server.files:
            self.send_error(404)
            return
        content, withheld = self.server.files[path], self.server.withheld.get(path, 0)
        self.send_response(200)
        length = self.server.announced.get(path, str(len(content)))
        self.send_header("Content-Length", length)
        default = "application/octet-stream"
        self.send_header("Content-Type", self.server.content_types.get(path, default))
        self.end_headers()
        if not (withheld and self.server.pause):
            self.wfile.write(content[: len(content) - withheld])
            return
        for byte in content[: len(content) - withheld]:
            try:
                self.wfile.write(bytes([byte]))
            except OSError:  # the client does not wait
                return
            time.sleep(self.server.pause)

    def log_message(self, *_):
        pass
