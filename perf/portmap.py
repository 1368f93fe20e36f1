"""portmap.py NFS_PORT MOUNT_PORT: the port mapper that NFS version 3 cannot do without, for one Ganesha on loopback.

Ganesha insists on registering (Unix socket, versions 3 and 4 of the protocol, RFC 1833), its client asks for two ports
(TCP 111, version 2). Registrations are acknowledged and forgotten.
"""
import os
import socket
import socketserver
import struct
import sys
import threading

UNIX = "/run/rpcbind.sock"
PORT = 111
NFS, MOUNT = 100003, 100005
SET, UNSET, GETPORT = 1, 2, 3
# A call of the port mapper is far below this.
RECORD_BYTES_MAX = 4096


def reply(call, ports):
    """The reply to one RPC call; raises struct.error if it is malformed"""
    transaction, _, _, _, version, procedure = struct.unpack_from(">6I", call)
    at = 24
    for _ in ("credentials", "verifier"):
        (length,) = struct.unpack_from(">I", call, at + 4)
        at += 8 + (length + 3) // 4 * 4
    if procedure in (SET, UNSET):
        result = struct.pack(">I", 1)
    elif procedure == GETPORT:
        port = ports.get(struct.unpack_from(">I", call, at)[0], 0)
        address = f"127.0.0.1.{port >> 8}.{port & 255}".encode()
        result = struct.pack(">I", port) if version == 2 else struct.pack(">I", len(address)) + address + bytes(-len(address) % 4)
    else:
        result = b""
    return struct.pack(">6I", transaction, 1, 0, 0, 0, 0) + result


class Stream(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            while header := self.request.recv(4, socket.MSG_WAITALL):
                length = struct.unpack(">I", header)[0] & 0x7FFFFFFF
                if length > RECORD_BYTES_MAX:
                    return
                answer = reply(self.request.recv(length, socket.MSG_WAITALL), self.server.ports)
                self.request.sendall(struct.pack(">I", 0x80000000 | len(answer)) + answer)
        except (OSError, struct.error):
            pass


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


class Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def main():
    ports = {NFS: int(sys.argv[1]), MOUNT: int(sys.argv[2])}
    tcp = Tcp(("127.0.0.1", PORT), Stream)
    try:
        unix = Unix(UNIX, Stream)
        tcp.ports = unix.ports = ports
        threading.Thread(target=tcp.serve_forever, daemon=True).start()
        print("ready", flush=True)
        unix.serve_forever()
    finally:
        os.remove(UNIX)


if __name__ == "__main__":
    main()
