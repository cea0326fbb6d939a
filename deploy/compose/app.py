"""A web service that asks its database for the time. Python's library alone.

    python3 app.py          serves on port 8080
    python3 app.py ask      asks once, from the shell; exit code 1 if nobody answers
"""

import http.server
import os
import socket
import struct
import sys

DATABASE = (os.environ.get("DATABASE", "db"), 5432)


def exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("the database hung up")
        data += more
    return data


def message(connection):
    """A message of PostgreSQL's protocol: its kind and what it holds."""
    kind, length = struct.unpack("!cI", exactly(connection, 5))
    return kind, exactly(connection, length - 4)


def ask(query=b"select now(), inet_client_addr()"):
    """The first row that the database answers with, as text."""
    with socket.create_connection(DATABASE, timeout=2) as connection:
        start = struct.pack("!I", 196608) + b"user\0postgres\0\0"
        connection.sendall(struct.pack("!I", len(start) + 4) + start)
        row = None
        while True:
            kind, body = message(connection)
            if kind == b"E":
                raise ConnectionError(body.replace(b"\0", b" ").decode())
            if kind == b"D":
                row, at = [], 2
                while at < len(body):
                    (length,) = struct.unpack_from("!i", body, at)
                    at += 4
                    row.append(body[at : at + max(length, 0)].decode())
                    at += max(length, 0)
            if kind == b"Z":
                if row is not None:
                    return ", ".join(row)
                connection.sendall(b"Q" + struct.pack("!I", len(query) + 5) + query + b"\0")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, f"the database answers: {ask()}\n"
        except OSError as error:
            status, text = 503, f"no answer from the database: {error}\n"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


if sys.argv[1:] == ["ask"]:
    try:
        print(ask())
    except OSError as error:
        sys.exit(f"no answer from the database: {error}")
else:
    http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
