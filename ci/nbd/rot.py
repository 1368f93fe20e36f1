#!/usr/bin/env python3
"""Lets data rot: overwrites sectors in the file of a node that is stopped.

    rot.py FILE BYTE INDEX...

Finds the 4 KiB blocks of FILE that hold nothing but BYTE (as 0x5a) and fills those with the given numbers,
counted from 0 in file order, with garbage. Prints how many there are. Fails if there are not enough.
"""

import os
import random
import sys

BLOCK, PIECE = 4096, 1 << 20


def main():
    path, fill = sys.argv[1], int(sys.argv[2], 0)
    indexes = {int(index) for index in sys.argv[3:]}
    wanted = bytes([fill]) * BLOCK
    positions = []
    with open(path, "r+b") as node:
        at = 0
        while piece := node.read(PIECE):
            if fill in piece:
                for offset in range(0, len(piece), BLOCK):
                    if piece[offset : offset + BLOCK] == wanted:
                        positions.append(at + offset)
            at += len(piece)
        if not positions or max(indexes) >= len(positions):
            sys.exit(f"{path}: {len(positions)} blocks of {fill:#04x}, asked for {sorted(indexes)}")
        # The same garbage each time: a failure can be repeated.
        garbage = random.Random(fill)
        for index in indexes:
            node.seek(positions[index])
            node.write(garbage.randbytes(BLOCK))
        node.flush()
        os.fsync(node.fileno())
    print(len(positions))


main()
