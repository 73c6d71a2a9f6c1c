"""A server on this machine that stands for the hosts of published weights."""

import http.server

CONTENT = bytes(range(256)) * 5_000  # more than one chunk


class Server(http.server.ThreadingHTTPServer):
    """A server of /good/NAME, and of what else a path names (/absent/..., /short/...).

    Attributes:
        files: The content of each file by its name; CONTENT if the name is missing.
        requests: The paths that were asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.requests.append(self.path)
        answer, name = self.path.split("/")[1], self.path.rpartition("/")[2]
        if answer == "absent":
            self.send_error(404)
            return
        content = self.server.files.get(name, CONTENT)
        self.send_response(200)
        if answer != "nolength":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer == "short" else content)

    def log_message(self, *_):
        pass
