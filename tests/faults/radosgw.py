"""A real S3 server for tests: Ceph's radosgw over one monitor and one disk that is memory.

Debian has it: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw. It checks
signatures and permissions, as servers that are written for tests do not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool")
GATEWAY = ("radosgw", "radosgw-admin")
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDNIGHTLOUPEREAL", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-radosgw"}
_SETTINGS = """
[global]
fsid = {fsid}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# radosgw insists on an encrypted way to the monitor, which only cephx has.
ms_mon_client_mode = crc
mon_data = {folder}/mon
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_data = {folder}/osd
osd_objectstore = memstore
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
memstore_device_bytes = 1073741824
keyring = {folder}/keyring
run_dir = {folder}
crash_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""


@contextlib.contextmanager
def running(free_port: Callable[[], int]) -> Iterator[str]:
    """Start a server, and end it; its address. Skips the test where Ceph is not installed."""
    lacking = [name for name in (*PROGRAMS, *GATEWAY) if not shutil.which(name)]
    if lacking:
        pytest.skip(f"Ceph is not installed: {', '.join(lacking)}")
    # Sockets need short paths, and the programs of the system their own Python.
    with tempfile.TemporaryDirectory(prefix="nl-rgw-") as folder, contextlib.ExitStack() as stack:
        server = _Server(Path(folder), free_port(), stack)
        server.start([free_port(), free_port()])
        yield server.address


class _Server:
    def __init__(self, folder: Path, port: int, stack: contextlib.ExitStack) -> None:
        self.folder, self.port, self._stack = folder, port, stack
        self.address = f"http://127.0.0.1:{port}"

    def start(self, ports: list[int]) -> None:
        monitor = "[v2:127.0.0.1:{},v1:127.0.0.1:{}]".format(*ports)
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        settings = _SETTINGS.format(
            fsid=fsid, monitor=monitor, folder=self.folder, port=self.port
        ).lstrip()
        (self.folder / "ceph.conf").write_text(settings)
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        self._run("ceph-authtool", "--create-keyring", "keyring", "--gen-key", "-n", "mon.")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, "monmap")
        made = ("--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._run("ceph-mon", *made)
        self._serve("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", "-i", "0")
        keys = ("--access-key", KEYS["AWS_ACCESS_KEY_ID"])
        keys += ("--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"])
        self._run("radosgw-admin", "user", "create", "--uid=n", "--display-name=n", *keys)
        stranger = ("--access-key=AKIDSTRANGER", "--secret-key=of-a-stranger")
        self._run("radosgw-admin", "user", "create", "--uid=s", "--display-name=s", *stranger)
        self._serve("radosgw", "-n", "client.rgw")
        self._wait()

    def _command(self, program: str, *words: str) -> list[str]:
        plain = program in {"ceph-authtool", "monmaptool"}
        return [program, *([] if plain else ["-c", f"{self.folder}/ceph.conf"]), *words]

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            self._command(program, *words),
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def _serve(self, program: str, *words: str) -> None:
        server = subprocess.Popen(
            self._command(program, *words, "-f"),
            cwd=self.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(server.wait, 20)
        self._stack.callback(server.kill)  # what it holds is memory

    def _wait(self) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.address, timeout=2)
                return
            time.sleep(0.2)
        pytest.fail("radosgw did not start")


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
