"""A Milvus server for tests: a process in a network namespace of its own, reached through a Unix socket.

The server of the PyPI package ``milvus`` listens on all interfaces, hence the namespace, which has the loopback one
alone. Run as ``python milvus_server.py FOLDER SOCKET``; it prints a line when it answers. For each line of its input,
"kill" or "stop", it ends the server, starts it again and prints another line; it ends with its input.
"""

import socket
import subprocess
import sys
import threading
from contextlib import suppress

PORT = 19530


def forward(source, target):
    with suppress(OSError):  # one of them has ended
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def relay(path, milvus):
    """Connects each client of a Unix socket with the server, which may listen on another port when it starts again."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", milvus.listen_port))
        except OSError:  # it is being started again
            client.close()
            continue
        for ends in ((client, server), (server, client)):
            threading.Thread(target=forward, args=ends, daemon=True).start()


def main(folder, path):
    from milvus import MilvusServer

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server = MilvusServer()
    server.set_base_dir(folder)
    server.listen_port = PORT
    server.start()
    threading.Thread(target=relay, args=(path, server), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "kill\n":
            server.server_proc.kill()
        server.stop()
        server.start()
        print("ready", flush=True)
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
