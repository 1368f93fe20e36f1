#!/usr/bin/env python3
"""zipf.py MIB THETA: a Zipf distribution over the 1 MiB pieces of a disk, as fio's `random_distribution`.

fio's own `zipf` scatters its ranks over single blocks, so every chunk is about as hot as any other. Disks are not
like that: what is hot lies together. Here piece k (counted from the hottest) gets a share of k^-THETA; fio takes
whole per cents, so pieces are put together until they have one. The hot end is cut in two, one part at the
beginning of the disk and one in the middle.
"""
import sys


def zones(pieces, theta):
    """(share in per cent, pieces), the hottest first; shares sum to 100."""
    weights = [k ** -theta for k in range(1, pieces + 1)]
    total, seen, told, begin, result = sum(weights), 0.0, 0, 0, []
    for index, weight in enumerate(weights):
        seen += weight
        share = round(100 * seen / total) - told
        # The last per cent goes to all that is left.
        if share >= 1 and told + share < 100:
            result.append((share, index + 1 - begin))
            told, begin = told + share, index + 1
    return [*result, (100 - told, pieces - begin)]


def main():
    found = zones(int(sys.argv[1]), float(sys.argv[2]))
    hot, cold = found[:-1], found[-1]
    # fio divides a share evenly within its zone, so the cold one may be cut in proportion only: it stays whole.
    ordered = [*hot[0::2], cold, *reversed(hot[1::2])]
    print("zoned_abs:" + ":".join(f"{share}/{size}m" for share, size in ordered))


if __name__ == "__main__":
    main()
