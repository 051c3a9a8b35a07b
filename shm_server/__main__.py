"""``python -m shm_server``."""

from shm_server.cli import main

if __name__ == "__main__":
    main(prog_name="shm-server")
