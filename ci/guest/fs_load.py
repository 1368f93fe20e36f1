#!/usr/bin/env python3
"""fs_load.py DIR RECORD SEED       a metadata-heavy load on a file system, until an error or SIGTERM
fs_load.py --check DIR RECORD    after a crash of that file system: is what was synced there?

Creates, renames, links, truncates and removes files and folders. Now and then a file is synced with its
folder and written down in RECORD (which lies elsewhere): `+ NAME SHA256` after the sync, `- NAME` before
its removal. Ends with status 3 when the file system fails.
"""
import hashlib
import os
import random
import signal
import sys

FOLDERS = 12
KEPT_MAX = 150
FILE_BYTES_MAX = 40000


def sync_path(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(top, record_path, seed):
    rng = random.Random(seed)
    folders = [os.path.join(top, f"folder{n}") for n in range(FOLDERS)]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    sync_path(top)
    kept, loose, number = [], [], 0
    with open(record_path, "a", buffering=1) as record:
        while True:
            number += 1
            folder = rng.choice(folders)
            name = f"{seed}-{number}"
            path = os.path.join(folder, name)
            choice = rng.random()
            if choice < 0.25:
                content = rng.randbytes(rng.randrange(FILE_BYTES_MAX))
                with open(path + ".new", "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(path + ".new", path)
                sync_path(folder)
                relative = os.path.relpath(path, top)
                record.write(f"+ {relative} {hashlib.sha256(content).hexdigest()}\n")
                kept.append(path)
                if len(kept) > KEPT_MAX:
                    old = kept.pop(rng.randrange(len(kept)))
                    record.write(f"- {os.path.relpath(old, top)}\n")
                    os.unlink(old)
            elif choice < 0.5 or not loose:
                with open(path, "wb") as file:
                    file.write(bytes(rng.randrange(FILE_BYTES_MAX)))
                loose.append(path)
            elif choice < 0.65:
                at = rng.randrange(len(loose))
                os.rename(loose[at], path)
                loose[at] = path
            elif choice < 0.75:
                os.link(rng.choice(loose), path)
                loose.append(path)
            elif choice < 0.8:
                os.truncate(rng.choice(loose), rng.randrange(FILE_BYTES_MAX))
            elif choice < 0.85:
                os.makedirs(os.path.join(path, "a", "b"))
                os.removedirs(os.path.join(path, "a", "b"))
                os.makedirs(folder, exist_ok=True)
            else:
                os.unlink(loose.pop(rng.randrange(len(loose))))


def check(top, record_path):
    expected = {}
    with open(record_path) as record:
        for line in record:
            sign, name, *rest = line.split()
            if sign == "+":
                expected[name] = rest[0]
            else:
                expected.pop(name, None)
    for name, digest in expected.items():
        with open(os.path.join(top, name), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found != digest:
            sys.exit(f"{name}: {found}, expected {digest}")
    print(f"{len(expected)} synced files are there")


def main():
    if sys.argv[1] == "--check":
        check(*sys.argv[2:])
        return
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        load(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except OSError as error:
        print(f"the file system failed: {error}", file=sys.stderr)
        sys.exit(3)


main()
