"""A small NBD client: requests of one sector each, so many at a time, and when each was answered."""
import socket
import struct
import time

from process import Failed

SECTOR = 4096
FIXED_NEWSTYLE_NO_ZEROES = 3
IHAVEOPT, OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
OPT_GO = 7
REP_ACK, REP_INFO = 1, 3
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3


class Nbd:
    """One connection over a Unix socket. Simple replies are all that it asks for."""

    def __init__(self, path, seconds=60):
        self.socket = socket.socket(socket.AF_UNIX)
        # A server that does not answer at all ends the measurement.
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.reader = self.socket.makefile("rb")
        if self._read(8) != b"NBDMAGIC" or struct.unpack(">Q", self._read(8))[0] != IHAVEOPT:
            raise Failed(f"{path} is no NBD server")
        self._read(2)
        go = struct.pack(">IH", 0, 0)
        self.socket.sendall(struct.pack(">IQII", FIXED_NEWSTYLE_NO_ZEROES, IHAVEOPT, OPT_GO, len(go)) + go)
        self.size = 0
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._read(20))
            body = self._read(length)
            if magic != OPTION_REPLY or kind not in (REP_ACK, REP_INFO):
                raise Failed(f"{path}: the server refused the export ({kind:#x})")
            if kind == REP_ACK:
                break
            if struct.unpack(">H", body[:2])[0] == 0:
                self.size = struct.unpack(">Q", body[2:10])[0]

    def _read(self, length):
        data = self.reader.read(length)
        if len(data) != length:
            raise Failed("the NBD server closed the connection")
        return data

    def _send(self, command, number, offset=0, length=0, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, number, offset, length) + data)

    def run(self, command, sectors, depth, data=bytes(range(256)) * 16):
        """Reads or writes these sectors (an iterable of numbers), `depth` at a time. For each request, in the order of the
        answers: (when it was answered, how long that took), seconds of the monotonic clock. A request that fails ends all."""
        sectors, payload = iter(sectors), data if command == WRITE else b""
        began, answers = {}, []

        def issue():
            sector = next(sectors, None)
            if sector is not None:
                number = len(answers) + len(began) + 1
                began[number] = time.monotonic()
                self._send(command, number, sector * SECTOR, SECTOR, payload)

        for _ in range(depth):
            issue()
        while began:
            self._answered(command, began, answers)
            issue()
        return answers

    def _answered(self, command, began, answers):
        magic, error, number = struct.unpack(">IIQ", self._read(16))
        if magic != REPLY_MAGIC or error:
            raise Failed(f"the guest was answered with error {error}" if error else "no reply of the NBD server")
        if command == READ:
            self._read(SECTOR)
        now = time.monotonic()
        answers.append((now, now - began.pop(number)))

    def flush(self):
        began, answers = {0: time.monotonic()}, []
        self._send(FLUSH, 0)
        self._answered(FLUSH, began, answers)

    def close(self):
        self._send(DISCONNECT, 0)
        self.reader.close()
        self.socket.close()
