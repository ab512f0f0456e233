# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Opening addresses over HTTP with answers that end: at a deadline, and after a number of bytes.

By itself, `urllib` limits the silence between two bytes only, and reads headers and redirections of any length.
"""

import io
import socket
import time
from http.client import HTTPResponse
from urllib.error import URLError
from urllib.request import FTPHandler, HTTPHandler, HTTPSHandler, Request, build_opener


class _LimitedSocket(io.RawIOBase):
    """The part of a socket that `HTTPResponse` uses: a file, which here fails at a deadline or after `max_bytes`."""

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int):
        self._connection, self._stream = connection, connection.makefile("rb", buffering=0)
        self._deadline, self._bytes_left = deadline, max_bytes

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        seconds_left = self._deadline - time.monotonic()
        if seconds_left <= 0:
            raise TimeoutError("the time is over")
        self._connection.settimeout(min(seconds_left, self._connection.gettimeout() or seconds_left))
        num_bytes = self._stream.readinto(buffer)
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise OSError("the answer is too long")
        return num_bytes

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Limited:
    """A handler of `urllib` whose connections read from a [`_LimitedSocket`]."""

    def __init__(self, deadline: float, max_bytes: int):
        super().__init__()
        self._limits = deadline, max_bytes

    def do_open(self, http_class, req, **settings):
        def connect(*args, **kwargs):
            connection = http_class(*args, **kwargs)
            connection.response_class = respond
            return connection

        def respond(sock, *args, **kwargs):
            return HTTPResponse(_LimitedSocket(sock, *self._limits), *args, **kwargs)

        return super().do_open(connect, req, **settings)


class _LimitedHTTP(_Limited, HTTPHandler):
    pass


class _LimitedHTTPS(_Limited, HTTPSHandler):
    pass


class _NoFTP(FTPHandler):
    def ftp_open(self, req):
        raise URLError("it is no HTTP address")


def open_url(request: Request, timeout: float, deadline: float, max_bytes: int) -> HTTPResponse:
    """Send a request over HTTP, follow redirections, and return the answer, whose body can be read.

    Args:
        request (`Request`): What is asked for.
        timeout (`float`): Seconds without a byte after which connecting or reading fails.
        deadline (`float`): Time, as in `time.monotonic()`, at which reading fails.
        max_bytes (`int`): Number of bytes, headers included, after which reading one answer fails.
    Raises:
        HTTPError: If the answer has a status of failure.
        OSError, HTTPException, ValueError: If there is no answer, a limit is reached, or the answer makes no sense.
    """
    limits = deadline, max_bytes
    return build_opener(_LimitedHTTP(*limits), _LimitedHTTPS(*limits), _NoFTP).open(request, timeout=timeout)
