"""perf/stream.py BYTES    prints the bytes/s of one TCP stream on the loopback

A process on the first CPU sends 1 MiB at a time, another on the last receives: two, as the nodes of a copy are.
"""
import os
import socket
import sys
import time

PIECE = 1 << 20


def send(address, total):
    os.sched_setaffinity(0, {0})
    piece = bytes(PIECE)
    with socket.create_connection(address) as stream:
        for _ in range(total // PIECE):
            stream.sendall(piece)


def receive(listener, total):
    os.sched_setaffinity(0, {os.cpu_count() - 1})
    piece, received = memoryview(bytearray(PIECE)), 0
    stream, _ = listener.accept()
    with stream:
        began = time.monotonic()
        while received < total:
            count = stream.recv_into(piece)
            if not count:
                sys.exit(f"the stream ended after {received} bytes")
            received += count
    return received / (time.monotonic() - began)


def main():
    total = int(sys.argv[1]) // PIECE * PIECE
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            try:
                send(listener.getsockname(), total)
            finally:
                os._exit(0)
        print(receive(listener, total))
        os.waitpid(child, 0)


main()
