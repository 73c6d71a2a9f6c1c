"""A stand-in of Google Cloud Storage: gs:// with its objects as files in a local folder.

Like an object store it has no folders, no append and no rename: an object appears when all of it is
written. `use_object_store(ROOT)` lets fsspec, and through it `etils.epath`, read and write gs://
there; `serve()` does so for TensorStore, by a server here that answers Google's JSON API.
"""

import datetime
import http.server
import io
import json
import os
import pathlib
import re
import sys
import threading
import types
import urllib.parse
import uuid

import fsspec


def preamble(root: str | os.PathLike) -> str:
    """Return the code that lets a program read and write gs:// in the objects under `root`."""
    return (
        "sys.path.insert(0, 'tests'); import object_store; "
        f"object_store.use_object_store({os.fspath(root)!r}); object_store.serve()"
    )


class Objects:
    """The objects, each in a file with the quoted BUCKET/KEY as its name."""

    def __init__(self, root: str | os.PathLike):
        self.root = pathlib.Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def file(self, key: str) -> pathlib.Path:
        return self.root / urllib.parse.quote(key, safe="")

    def keys(self, prefix: str = "") -> list[str]:
        keys = (urllib.parse.unquote(name) for name in os.listdir(self.root))
        return sorted(key for key in keys if key.startswith(prefix))

    def write(self, key: str, content: bytes) -> None:
        draft = self.root.parent / f"{self.root.name}-draft-{uuid.uuid4().hex}"
        draft.write_bytes(content)
        draft.replace(self.file(key))

    def info(self, key: str) -> dict:
        stat = self.file(key).stat()
        modified = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC)
        return {"name": key, "type": "file", "size": stat.st_size, "mtime": modified}


class ObjectFileSystem(fsspec.AbstractFileSystem):
    """gs:// for fsspec, and s3:// with the same objects."""

    protocol = ("gs", "gcs", "s3")
    cachable = False
    objects: Objects  # set by `use_object_store`

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).rstrip("/")
        keys = self.objects.keys(path)
        inside = [key for key in keys if key.startswith(f"{path}/")]
        parts = {key[len(path) + 1 :].partition("/")[:2] for key in inside if key != f"{path}/"}
        entries = [self.objects.info(f"{path}/{name}") for name, slash in parts if not slash]
        folders = {f"{path}/{name}" for name, slash in parts if slash}
        entries += [{"name": name, "type": "directory", "size": 0} for name in sorted(folders)]
        if path in keys:
            entries = [self.objects.info(path)]
        elif not inside:
            raise FileNotFoundError(path)
        return entries if detail else sorted(entry["name"] for entry in entries)

    def info(self, path, **_):
        path = self._strip_protocol(path).rstrip("/")
        if self.objects.file(path).exists():
            return self.objects.info(path)
        if self.objects.keys(f"{path}/") or "/" not in path:
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def _open(self, path, mode="rb", **_):
        key = self._strip_protocol(path)
        if mode == "rb":
            return io.BytesIO(self.objects.file(key).read_bytes())
        if mode == "wb":
            return _NewObject(self.objects, key)
        raise NotImplementedError(f"an object store cannot open {path} as {mode!r}")

    def mkdir(self, path, **_):
        """Do nothing: there are no folders."""

    makedirs = rmdir = mkdir

    def rm_file(self, path):
        # fsspec removes the folders in a folder, too, which are none here.
        self.objects.file(self._strip_protocol(path)).unlink(missing_ok=True)

    _rm = rm_file

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))


class _NewObject(io.BytesIO):
    """The content of an object, which is written when this is closed."""

    def __init__(self, objects: Objects, key: str):
        super().__init__()
        self._objects, self._key = objects, key

    def close(self):
        if not self.closed:
            self._objects.write(self._key, self.getvalue())
        super().close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """The requests of TensorStore's driver "gcs"."""

    protocol_version = "HTTP/1.1"

    @property
    def objects(self) -> Objects:
        return ObjectFileSystem.objects

    def log_message(self, *_):
        pass

    def do_GET(self):
        key, query = self._key_and_query()
        if key is None:
            return self._list(query)
        try:
            content = self.objects.file(key).read_bytes()
            generation = self.objects.file(key).stat().st_mtime_ns
        except FileNotFoundError:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        status = 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            total, status = len(content), 206
            first = int(match[1]) if match[1] else total - int(match[2])
            last = int(match[2]) if match[1] and match[2] else total - 1
            content = content[first : last + 1]
            extra = {"Content-Range": f"bytes {first}-{first + len(content) - 1}/{total}"}
        else:
            extra = {}
        return self._answer(status, content, {"x-goog-generation": str(generation), **extra})

    def do_POST(self):
        _, query = self._key_and_query()
        bucket = self.path.split("/b/")[1].split("/")[0]
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = f"{bucket}/{query['name']}"
        file = self.objects.file(key)
        there = str(file.stat().st_mtime_ns) if file.exists() else "0"
        if query.get("ifGenerationMatch", there) != there:
            return self._answer(412)
        self.objects.write(key, content)
        return self._answer(200, self._metadata(key))

    def do_DELETE(self):
        key, _ = self._key_and_query()
        assert key is not None
        exists = self.objects.file(key).exists()
        self.objects.file(key).unlink(missing_ok=True)
        return self._answer(204 if exists else 404)

    def _list(self, query):
        bucket = self.path.split("/b/")[1].split("/")[0]
        prefix = f"{bucket}/{query.get('prefix', '')}"
        items = [json.loads(self._metadata(key)) for key in self.objects.keys(prefix)]
        return self._answer(200, json.dumps({"items": items}).encode())

    def _metadata(self, key) -> bytes:
        stat = self.objects.file(key).stat()
        name = key.partition("/")[2]
        values = {"name": name, "generation": str(stat.st_mtime_ns), "size": str(stat.st_size)}
        return json.dumps(values).encode()

    def _key_and_query(self):
        url = urllib.parse.urlsplit(self.path)
        match = re.fullmatch(r"/(?:upload/)?storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if not match[2]:
            return None, query
        return f"{match[1]}/{urllib.parse.unquote(match[2])}", query

    def _answer(self, status, content=b"", headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)


def use_object_store(root: str | os.PathLike) -> Objects:
    """Let this process read and write gs:// in the objects under a folder."""
    ObjectFileSystem.objects = Objects(root)
    for protocol in ObjectFileSystem.protocol:
        fsspec.register_implementation(protocol, ObjectFileSystem, clobber=True)
    return ObjectFileSystem.objects


def serve() -> None:
    """Let TensorStore and Orbax, in this process, use the object store."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
    # Orbax asks Google's library, which gcsfs installs, whether the bucket has folders.
    storage = types.ModuleType("google.cloud.storage")
    bucket = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    storage.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: bucket)
    cloud = types.ModuleType("google.cloud")
    cloud.storage = storage
    sys.modules |= {"google.cloud": cloud, "google.cloud.storage": storage}
