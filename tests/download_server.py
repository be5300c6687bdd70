"""A server on 127.0.0.1 that misbehaves in every way a server can, and that can serve files as
MLCommons does.
"""

import contextlib
import hashlib
import http.server
import socket
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, {path: bytes, or an HTTP status, or ("redirect", address)}; `requests`
    records (path, Range header).

    `faults` are used up first, one a request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {}, [], []
        self.etag, self.knows_ranges, self.tells_length = '"v1"', True, True
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """Clients hang up here on purpose."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "html":
            return self.reply(
                200,
                b"<!DOCTYPE html><p>Quota exceeded",
                {"Content-Type": "text/html; charset=utf-8"},
            )
        if fault == "chunked":
            return self.reply_in_chunks(server.files[self.path])
        if fault == "disguised html":
            return self.reply(
                200, b"\n<html><p>Sign in", {"Content-Type": "application/octet-stream"}
            )
        if self.path not in server.files:
            return self.send_error(404)
        data = server.files[self.path]
        if isinstance(data, int):
            return self.send_error(data)
        if isinstance(data, tuple):
            return self.reply(302, b"", {"Location": data[1]})
        validators = {"ETag": server.etag} if server.etag else {}
        start, status = 0, 200
        if wanted and server.knows_ranges and self.headers.get("If-Range") in (None, server.etag):
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(data):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            validators["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault == "other range":
            validators["Content-Range"] = f"bytes 0-{len(data) - 1}/{len(data)}"
        self.reply(
            status,
            data[start:],
            validators,
            cut=300_000 if fault == "cut" else None,
            stall=fault == "stall",
        )

    def reply(self, status, body, headers, cut=None, stall=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if stall:
            self.connection.recv(1)  # until the client hangs up
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def reply_in_chunks(self, body):
        """Without the length, but a cut would show."""
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))


@contextlib.contextmanager
def running_server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve_mlcommons(server, name, files):
    """Serves files, {path: bytes}, by MLCommons' protocol: <name>.uri, <name>.md5, and the files
    behind a redirect.

    Returns the value of --metadata_url.
    """
    server.files[f"/metadata/{name}.uri"] = f"{server.url}/data/{name}\n".encode()
    listed = "".join(f"{hashlib.md5(data).hexdigest()}  ./{path}\n" for path, data in files.items())
    server.files[f"/metadata/{name}.md5"] = listed.encode()
    for path, data in files.items():
        server.files[f"/data/{name}/{path}"] = ("redirect", f"{server.url}/bucket/{name}/{path}")
        server.files[f"/bucket/{name}/{path}"] = data
    return f"{server.url}/metadata"
