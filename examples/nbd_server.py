"""An NBD server for every volume of a volume server: qemu-img info nbd://127.0.0.1:10809/VOLUME

    python examples/nbd_server.py [PORT [SERVER_SOCKET]]

Fixed newstyle handshake; READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, DISC, and FUA. Several connections may share an
export: each has a thread and a Context, all have one owner. Payload is received into shared memory and sent out of it.
"""

import os
import socketserver
import struct
import sys

from iscsi_ovs import shm_client

EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
ACK, SERVER, INFORMATION, UNSUPPORTED, UNKNOWN = 1, 2, 3, 1 << 31 | 1, 1 << 31 | 6
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8  # FLUSH, FUA, TRIM, WRITE_ZEROES, several connections
PAYLOAD_BYTES_MAX = 8 << 20
ERRNOS = {1: 1, 12: 12, 22: 22, 27: 28, 28: 28, 95: 95}  # the others are EIO; EFBIG is ENOSPC here
OWNER = f"nbd {os.urandom(8).hex()}"


class Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm, wbufsize = True, -1

    def handle(self):
        try:
            with shm_client.Context(*sys.argv[2:3], words=f"NBD server pid {os.getpid()}") as context:
                if volume := self.negotiate(context):
                    self.serve(volume, context.allocate(PAYLOAD_BYTES_MAX))
        except (OSError, ValueError, struct.error) as error:  # the client went away, or is none
            print(f"{self.client_address}: {error}", file=sys.stderr)

    def receive(self, layout):
        return struct.unpack(layout, self.rfile.read(struct.calcsize(layout)))

    def send(self, layout, *values, data=b""):
        self.wfile.write(struct.pack(layout, *values))
        self.wfile.write(data)
        self.wfile.flush()

    def answer(self, option, kind, data=b""):
        self.send(">QIII", 0x3E889045565A9, option, kind, len(data), data=data)

    def negotiate(self, context):
        """The handshake: the volume that the client wants, open."""
        self.send(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
        (has_no_zeroes,) = self.receive(">I")
        while True:
            magic, option, length = self.receive(">8sII")
            if magic != b"IHAVEOPT" or length > 4096 or option == ABORT:
                return None
            data = self.rfile.read(length)
            if option == EXPORT_NAME:
                volume = context.open(data.decode(), owner=OWNER)
                self.send(">QH", volume.size, FLAGS, data=b"" if has_no_zeroes & 2 else bytes(124))
                return volume
            try:
                if option in (INFO, GO):
                    name = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
                    volume = context.open(name, os.O_RDWR if option == GO else os.O_RDONLY, owner=OWNER)
                    self.answer(option, INFORMATION, struct.pack(">HQH", 0, volume.size, FLAGS))
                    self.answer(option, INFORMATION, struct.pack(">HIII", 3, 1, 4096, PAYLOAD_BYTES_MAX))
                elif option == LIST:
                    for name in [each.name.encode() for each in context.list_volumes()]:
                        self.answer(option, SERVER, struct.pack(">I", len(name)) + name)
                self.answer(option, ACK if option in (INFO, GO, LIST) else UNSUPPORTED)
                if option == GO:
                    return volume
            except OSError as error:
                self.answer(option, UNKNOWN, str(error).encode())

    def serve(self, volume, buffer):
        """Requests, one after the other."""
        while True:
            magic, flags, command, cookie, offset, length = self.receive(">IHHQQI")
            if magic != 0x25609513 or command == DISCONNECT or (command <= WRITE and length > PAYLOAD_BYTES_MAX):
                return
            if command == WRITE and self.rfile.readinto(buffer.data[:length]) < length:
                return
            number, is_durable, keeps_space = 0, bool(flags & 1), bool(flags & 2)
            try:
                if command == READ:
                    number = 0 if volume.read(buffer, length, offset) == length else 22  # EINVAL: across the end
                elif command == WRITE:
                    volume.write(buffer, length, offset, fua=is_durable)
                elif command == WRITE_ZEROES:
                    volume.write_zeroes(offset, length, fua=is_durable, no_unmap=keeps_space)
                elif command == TRIM:
                    volume.discard(offset, length)
                elif command != FLUSH:
                    number = 22
                if command == FLUSH or (command == TRIM and is_durable):
                    volume.flush()
            except OSError as error:
                number = ERRNOS.get(error.errno, 5)
            is_read = command == READ and not number
            self.send(">IIQ", 0x67446698, number, cookie, data=buffer.data[:length] if is_read else b"")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 10809), Connection) as server:
        print(f"nbd://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()
