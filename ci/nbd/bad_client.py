#!/usr/bin/env python3
"""bad_client.py SOCKET EXPORT SIZE: misbehaves towards an NBD server in every way we know.

Each case ends in the refusal the protocol wants (an error reply, or the end of the connection), and
a good client must be served after it. Exit status 1 and a line per failure otherwise.
"""
import os
import socket
import struct
import sys

PATH, EXPORT, SIZE = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
NBDMAGIC, IHAVEOPT, REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISC, FLUSH, TRIM = 0, 1, 2, 3, 4
EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 22, 28, 75, 95
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7


class Closed(Exception):
    pass


class Client:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(PATH)
        magic, option_magic, _flags = struct.unpack(">QQH", self.take(18))
        assert (magic, option_magic) == (NBDMAGIC, IHAVEOPT)

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def take(self, count):
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Closed
            data += piece
        return data

    def option(self, option, data, length=None):
        self.send(struct.pack(">QII", IHAVEOPT, option, len(data) if length is None else length) + data)

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == REPLY, hex(magic)
        return option, kind, self.take(length)

    def hello(self):
        self.send(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        return self

    def go(self, name=EXPORT):
        self.hello()
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        while True:
            _, kind, _ = self.option_reply()
            if kind == 1:  # ACK
                return self
            assert kind == 3, hex(kind)  # INFO

    def request(self, command, offset, length, data=b"", flags=0, magic=REQUEST_MAGIC, cookie=7):
        self.send(struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + data)

    def reply(self, length=0):
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (SIMPLE_MAGIC, 7), (hex(magic), cookie)
        return error, self.take(length) if error == 0 else b""

    def closed(self):
        try:
            while self.take(1):
                pass
        except Closed:
            return True


def expect_closed(act):
    try:
        act()
    except Closed:
        pass


def wrong_client_flags():
    client = Client()
    expect_closed(lambda: (client.send(struct.pack(">I", 0xFFFF)), client.option(OPT_LIST, b""), client.closed()))


def wrong_option_magic():
    client = Client().hello()
    expect_closed(lambda: (client.send(os.urandom(16)), client.closed()))


def huge_option():
    client = Client().hello()
    # Only the length is sent: a server that allocates it, or waits for ever, is wrong.
    def act():
        client.option(OPT_GO, b"", length=0xFFFFFFF0)
        try:
            _, kind, _ = client.option_reply()
            assert kind & 0x80000000, "a huge option was accepted"
        finally:
            client.socket.close()

    expect_closed(act)


def unknown_option():
    client = Client().hello()
    client.option(0x1234, b"abc")
    _, kind, _ = client.option_reply()
    assert kind == 0x80000001, hex(kind)  # ERR_UNSUP
    client.option(OPT_ABORT, b"")


def unknown_export():
    client = Client().hello()
    name = b"nothing-of-that-name"
    client.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
    _, kind, _ = client.option_reply()
    assert kind & 0x80000000, hex(kind)


def lying_name_length():
    client = Client().hello()
    client.option(OPT_GO, struct.pack(">I", 1000) + b"disk" + struct.pack(">H", 0))
    expect_closed(lambda: check_error(client.option_reply()))


def check_error(reply):
    assert reply[1] & 0x80000000, hex(reply[1])


def out_of_range():
    client = Client().go()
    client.request(READ, SIZE, 4096)
    assert client.reply(4096)[0] == EINVAL
    client.request(READ, SIZE - 4096, 8192)
    assert client.reply(8192)[0] == EINVAL
    client.request(READ, (1 << 64) - 4096, 4096)
    assert client.reply(4096)[0] == EINVAL
    client.request(WRITE, SIZE, 4096, bytes(4096))
    assert client.reply()[0] in (EINVAL, ENOSPC)
    client.request(TRIM, SIZE - 4096, 8192)
    assert client.reply()[0] in (EINVAL, ENOSPC)
    client.request(READ, 0, 4096)
    assert client.reply(4096)[0] == 0, "the connection must survive a refused request"


def unaligned():
    client = Client().go()
    client.request(READ, 1, 4096)
    error, _ = client.reply(4096)
    assert error in (0, EINVAL), error


def unknown_command():
    client = Client().go()
    client.request(77, 0, 0)
    error, _ = client.reply()
    assert error in (EINVAL, ENOTSUP), error
    client.request(READ, 0, 4096, flags=0x8000)
    error, _ = client.reply(4096)
    assert error in (EINVAL, ENOTSUP), error


def oversized():
    client = Client().go()

    def act():
        client.request(READ, 0, 0xFFFFFFFF)
        assert client.reply(0)[0] in (EINVAL, EOVERFLOW)

    expect_closed(act)


def wrong_request_magic():
    client = Client().go()
    expect_closed(lambda: (client.request(READ, 0, 4096, magic=0xDEADBEEF), client.closed()))


def vanish_in_mid_write():
    client = Client().go()
    client.request(WRITE, 32 << 20, 1 << 20, bytes(12345))
    client.socket.close()


def vanish_with_reads_in_flight():
    client = Client().go()
    for _ in range(64):
        client.request(READ, 0, 1 << 20)
    client.socket.close()


def silent_from_the_start():
    # A client that never says anything must not keep others out; it is held until the end.
    return Client()


def good_client():
    client = Client().go()
    client.request(WRITE, 48 << 20, 4096, b"u" * 4096)
    assert client.reply()[0] == 0
    client.request(READ, 48 << 20, 4096)
    error, data = client.reply(4096)
    assert error == 0 and data == b"u" * 4096
    client.request(FLUSH, 0, 0)
    assert client.reply()[0] == 0
    client.request(DISC, 0, 0)
    assert client.closed()


CASES = [
    wrong_client_flags, wrong_option_magic, huge_option, unknown_option, unknown_export, lying_name_length,
    out_of_range, unaligned, unknown_command, oversized, wrong_request_magic, vanish_in_mid_write,
    vanish_with_reads_in_flight, silent_from_the_start,
]


def main():
    failures = 0
    held = []
    for case in CASES:
        try:
            held.append(case())
            good_client()
            print(f"ok     {case.__name__}")
        except Exception as error:  # every kind of failure is reported and the next case tried
            failures += 1
            print(f"FAILED {case.__name__}: {type(error).__name__} {error}")
    sys.exit(1 if failures else 0)


main()
