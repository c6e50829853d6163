"""Run a night on a Ray cluster through its job server, follow its log, and exit with its exit code.

python deploy/schedulers/submit_night.py http://head:8265 --config night.toml

For cron and systemd on machines that are no node of the cluster: they need ray[default] alone, and
RAY_AUTH_MODE=token with RAY_AUTH_TOKEN. `ray job submit` exits with 1 for every failure; this exits
with 75 if another night is running, as jobs.nightly does. 1 may also mean that the job was lost.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys

from ray.job_submission import JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print a job's log until it ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def main(address: str, words: list[str]) -> int:
    """Run one night; its exit code."""
    client = JobSubmissionClient(address)
    job = client.submit_job(entrypoint=shlex.join(["python", "-m", "jobs.nightly", *words]))

    def stop(signum: int, _: object) -> None:
        client.stop_job(job)
        sys.exit(128 + signum)

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    asyncio.run(follow(client, job))
    code = client.get_job_info(job).driver_exit_code
    return 1 if code is None else code


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
