"""A block server in a line protocol of its own: READ OFFSET LENGTH, WRITE OFFSET LENGTH and so many bytes, FLUSH.

    python examples/line_server.py VOLUME LISTENING_SOCKET [SERVER_SOCKET]

Payload is received into shared memory and sent out of it. Answers: OK LENGTH (and the bytes of a READ) or ERROR ERRNO.
"""

import socket
import sys

from iscsi_ovs import shm_client


def serve(connection: socket.socket, volume: shm_client.Volume, buffer: shm_client.Buffer) -> None:
    with connection.makefile("rwb") as stream:
        while words := stream.readline().split():
            operation, offset, length = words[0], *map(int, words[1:] or (0, 0))
            try:
                if operation == b"WRITE":
                    if length > buffer.size or stream.readinto(buffer.data[:length]) < length:
                        return
                    length = volume.write(buffer, length, offset)
                elif operation == b"READ":
                    length = volume.read(buffer, length, offset)
                else:
                    volume.flush()
                stream.write(b"OK %d\n" % length)
                if operation == b"READ":
                    stream.write(buffer.data[:length])
            except OSError as error:
                stream.write(b"ERROR %d\n" % (error.errno or 0))
            stream.flush()


if __name__ == "__main__":
    with shm_client.Context(*sys.argv[3:]) as context, context.open(sys.argv[1]) as volume:
        buffer = context.allocate(1 << 20)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(sys.argv[2])
            listener.listen()
            while True:
                with listener.accept()[0] as connection:
                    serve(connection, volume, buffer)
