"""An NBD server for every volume of a volume server: qemu-img info nbd://127.0.0.1:10809/VOLUME

    python examples/nbd_server.py [PORT [SERVER_SOCKET]]

Fixed newstyle handshake; READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, DISC, and FUA. Several connections may share an
export: each has a thread and a Context, all have one owner. Payload is received into shared memory and sent out of it.
"""

import contextlib
import os
import socketserver
import struct
import sys

from iscsi_ovs import shm_client

EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
ACK, SERVER, INFORMATION, UNSUPPORTED, UNKNOWN = 1, 2, 3, 1 << 31 | 1, 1 << 31 | 6
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8  # all of the above, and several connections
PAYLOAD_BYTES_MAX = 8 << 20
EINVAL, EIO = 22, 5
ERRNOS = {1: 1, 12: 12, 22: 22, 27: 28, 28: 28, 95: 95}  # the others are EIO; EFBIG is ENOSPC here
OWNER = f"nbd {os.urandom(8).hex()}"


class Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        with contextlib.suppress(OSError, struct.error), shm_client.Context(*sys.argv[2:], words="NBD") as context:
            self.serve(self.negotiate(context), context.allocate(PAYLOAD_BYTES_MAX))

    def receive(self, layout):
        """So many fields; struct.error where the client has gone."""
        return struct.unpack(layout, self.rfile.read(struct.calcsize(layout)))

    def negotiate(self, context):
        """The handshake; returns the volume that the client wants. OSError ends the connection."""
        self.wfile.write(b"NBDMAGICIHAVEOPT\0\1")
        self.receive(">I")
        while True:
            magic, option, length = self.receive(">8sII")
            if magic != b"IHAVEOPT" or length > 4096 or option == ABORT:
                raise ConnectionError
            data, answers = self.rfile.read(length), [(UNSUPPORTED, b"")]
            if option == EXPORT_NAME:
                volume = context.open(data.decode(), owner=OWNER)
                self.wfile.write(struct.pack(">QH124x", volume.size, FLAGS))
                return volume
            if option == LIST:
                names = [volume.name.encode() for volume in context.list_volumes()]
                answers = [(SERVER, struct.pack(">I", len(name)) + name) for name in names] + [(ACK, b"")]
            elif option in (INFO, GO):
                try:
                    volume = context.open(data[4 : 4 + int.from_bytes(data[:4], "big")].decode(), owner=OWNER)
                    size = struct.pack(">HQH", 0, volume.size, FLAGS)
                    limits = struct.pack(">HIII", 3, 1, 4096, PAYLOAD_BYTES_MAX)
                    answers = [(INFORMATION, size), (INFORMATION, limits), (ACK, b"")]
                except OSError as error:
                    answers = [(UNKNOWN, str(error).encode())]
            for kind, data in answers:
                self.wfile.write(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)
            if option == GO and answers[-1][0] == ACK:
                return volume

    def serve(self, volume, buffer):
        """Requests, one after the other."""
        while True:
            magic, flags, command, cookie, offset, length = self.receive(">IHHQQI")
            if magic != 0x25609513 or command == DISCONNECT or (command <= WRITE and length > PAYLOAD_BYTES_MAX):
                return
            if command == WRITE and self.rfile.readinto(buffer.data[:length]) < length:
                return
            number = 0
            try:
                if command == READ:
                    number = 0 if volume.read(buffer, length, offset) == length else EINVAL  # across the end
                elif command == WRITE:
                    volume.write(buffer, length, offset)
                elif command in (TRIM, WRITE_ZEROES):
                    volume.write_zeroes(offset, length, no_unmap=bool(flags & NO_HOLE))
                elif command != FLUSH:
                    number = EINVAL
                if flags & FUA or command == FLUSH:
                    volume.flush()
            except OSError as error:
                number = ERRNOS.get(error.errno, EIO)
            self.wfile.write(struct.pack(">IIQ", 0x67446698, number, cookie))
            if command == READ and not number:
                self.wfile.write(buffer.data[:length])


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", int([*sys.argv, 10809][1])), Connection) as server:
        print(f"nbd://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()
