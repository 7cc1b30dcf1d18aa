"""A server under load: clients that each send one image after the other, and what they and its memory go through.

    python benchmarks/serve_load.py STUDENT --minutes 10 --clients 32

Starts `segdistill serve STUDENT` on a free port of this machine, sends generated images of several sizes to /mask and
stops it again. A client that is answered 503 waits as long as Retry-After says. Latencies are of the answered requests;
memory is the server's resident memory as /proc tells it (Linux).
"""

import argparse
import http.client
import io
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

BOUNDARY = "a-boundary"
SIDES = (128, 256, 512, 1024)


def uploads():
    """A form for each size, as a browser would send it."""
    rng = np.random.default_rng(0)
    made = []
    for side in SIDES:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side))
        file = io.BytesIO()
        coarse.save(file, format="JPEG", quality=90)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        made.append(head.encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode())
    return made


def client(port, bodies, end, seconds, statuses):
    """One after the other over one connection, until the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    number = 0
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            connection.request("POST", "/mask", bodies[number % len(bodies)], kind)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            statuses["broken connection"] += 1
            connection.close()
            continue
        statuses[answer.status] += 1
        if answer.status == 200:
            seconds.append(time.monotonic() - start)
            number += 1
        elif answer.status == 503:
            connection.close()  # a server keeps idle connections for a few seconds only
            time.sleep(max(0, min(int(answer.headers["Retry-After"]), end - time.monotonic())))


def megabytes(process):
    """Resident memory."""
    status = Path(f"/proc/{process.pid}/status")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")


def load(process, port, minutes, clients):
    """Print what happened."""
    bodies = uploads()
    seconds, statuses = [[] for _ in range(clients)], [Counter() for _ in range(clients)]
    begin = time.monotonic()
    end = begin + 60 * minutes
    threads = [
        threading.Thread(target=client, args=(port, bodies[k % 4 :] + bodies[: k % 4], end, seconds[k], statuses[k]))
        for k in range(clients)
    ]
    memory = [megabytes(process)]
    for thread in threads:
        thread.start()
    time.sleep(30 * minutes)
    memory.append(megabytes(process))
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    memory.append(megabytes(process))
    answered = np.sort(np.concatenate(seconds))
    p50, p95, p99 = 1000 * np.percentile(answered, (50, 95, 99))
    total = sum(statuses, Counter())
    print(f"{clients} clients, {took:.0f} s, images of {', '.join(map(str, SIDES))} px in turn")
    print(f"  {len(answered) / took:.1f} requests/s; p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")
    print("  answers: " + ", ".join(f"{count} x {status}" for status, count in sorted(total.items(), key=str)))
    print("  server's memory at start, middle, end: " + ", ".join(f"{value:.0f} MB" for value in memory))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-waiting", type=int, default=16)
    given = parser.parse_args()
    options = ["--port", "0", "--threads", str(given.threads), "--max-waiting", str(given.max_waiting)]
    command = [sys.executable, "-m", "segdistill", "serve", given.student, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        said = process.stdout.readline()
        found = re.search(r":(\d+)/ ", said)
        if found is None:
            sys.exit("the server did not start")
        print(said.strip())
        load(process, int(found[1]), given.minutes, given.clients)
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
