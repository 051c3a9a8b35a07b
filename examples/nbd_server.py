"""An NBD server for every volume of a volume server: qemu-img info nbd://127.0.0.1:10809/VOLUME

    python examples/nbd_server.py [PORT [SERVER_SOCKET]]

Fixed newstyle handshake; READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, DISC, and FUA. Several connections may share an
export: each has a thread and a Context, all have one owner. Payload is received into shared memory and sent out of it.
"""

import contextlib
import os
import socket
import struct
import sys
import threading

from iscsi_ovs import shm_client

EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
ACK, SERVER, INFORMATION, UNSUPPORTED, POLICY, UNKNOWN = 1, 2, 3, 1 << 31 | 1, 1 << 31 | 2, 1 << 31 | 6
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8  # all of the above, and several connections
PAYLOAD_BYTES_MAX = 8 << 20
ERRNOS = {1: 1, 12: 12, 22: 22, 27: 28, 28: 28, 95: 95}  # the others are EIO; EFBIG is ENOSPC here


def negotiate(stream, context, owner):
    """The handshake: the volume that the client wants, open, or None."""
    stream.write(b"NBDMAGICIHAVEOPT\0\3")
    stream.flush()
    has_no_zeroes = stream.read(4)[3] & 2
    while True:
        magic, option, length = struct.unpack(">8sII", stream.read(16))
        if magic != b"IHAVEOPT" or length > 4096:
            return None
        data, answers = stream.read(length), [(UNSUPPORTED, b"")]
        try:
            if option == EXPORT_NAME:
                volume = context.open(data.decode(), owner=owner)
                stream.write(struct.pack(">QH", volume.size, FLAGS) + (b"" if has_no_zeroes else bytes(124)))
                return volume
            if option in (INFO, GO):
                name = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
                size = context.stat_volume(name).size_bytes
                volume = context.open(name, owner=owner) if option == GO else None
                sizes = struct.pack(">HIII", 3, 1, 4096, PAYLOAD_BYTES_MAX)
                answers = [(INFORMATION, struct.pack(">HQH", 0, size, FLAGS)), (INFORMATION, sizes), (ACK, b"")]
            elif option == LIST:
                names = [volume.name.encode() for volume in context.list_volumes()]
                answers = [(SERVER, struct.pack(">I", len(name)) + name) for name in names] + [(ACK, b"")]
            elif option == ABORT:
                return None
        except OSError as error:
            if option == EXPORT_NAME:
                return None
            answers = [(UNKNOWN if isinstance(error, FileNotFoundError) else POLICY, str(error).encode())]
        for kind, data in answers:
            stream.write(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)
        stream.flush()
        if option == GO and answers[-1][0] == ACK:
            return volume


def serve(stream, volume, buffer):
    """Requests, one after the other."""
    while len(header := stream.read(28)) == 28:
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", header)
        if magic != 0x25609513 or command == DISCONNECT or (command <= WRITE and length > PAYLOAD_BYTES_MAX):
            return
        if command == WRITE and stream.readinto(buffer.data[:length]) < length:
            return
        try:
            number = 0
            if command == READ:
                number = 0 if volume.read(buffer, length, offset) == length else 22  # EINVAL: across the end
            elif command == WRITE:
                volume.write(buffer, length, offset, fua=bool(flags & FUA))
            elif command == WRITE_ZEROES:
                volume.write_zeroes(offset, length, fua=bool(flags & FUA), no_unmap=bool(flags & NO_HOLE))
            elif command == TRIM:
                volume.discard(offset, length)
            elif command != FLUSH:
                number = 22
            if command == FLUSH or (command == TRIM and flags & FUA):
                volume.flush()
        except OSError as error:
            number = ERRNOS.get(error.errno, 5)
        stream.write(struct.pack(">IIQ", 0x67446698, number, cookie))
        if command == READ and not number:
            stream.write(buffer.data[:length])
        stream.flush()


def client(connection, owner, *server_socket):
    with connection, connection.makefile("rwb") as stream, contextlib.suppress(ConnectionError, struct.error):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with shm_client.Context(*server_socket, words=f"NBD server pid {os.getpid()}") as context:
            if (volume := negotiate(stream, context, owner)) is not None:
                stream.flush()
                serve(stream, volume, context.allocate(PAYLOAD_BYTES_MAX))


if __name__ == "__main__":
    owner = f"nbd {os.urandom(8).hex()}"
    with socket.create_server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 10809)) as listener:
        print(f"nbd://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            arguments = (listener.accept()[0], owner, *sys.argv[2:])
            threading.Thread(target=client, args=arguments, daemon=True).start()
